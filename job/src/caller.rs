//! Who runs the job: what a process has from whoever started it.

use crate::Error;
use crate::launcher::Launcher;
use guest::protocol::{Identity, Limit};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Which of the first three descriptors were closed, before Rust opened them.
static CLOSED: AtomicU8 = AtomicU8::new(0);
/// Which signals were ignored, before Rust ignored `SIGPIPE`.
static IGNORED: AtomicU64 = AtomicU64::new(0);

/// The last signal there is.
const LAST_SIGNAL: i32 = 64;
/// Limits there are (`RLIMIT_RTTIME` is the last).
const LIMITS: u8 = 16;

/// Runs before Rust's own start, which changes what is recorded here.
#[used]
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = record;

extern "C" fn record() {
    let closed = (0..3).filter(|fd| {
        // SAFETY: fcntl takes numbers.
        unsafe { libc::fcntl(*fd, libc::F_GETFD) < 0 }
    });
    CLOSED.store(closed.fold(0, |set, fd| set | 1 << fd), Ordering::Relaxed);
    let ignored = (1..=LAST_SIGNAL).filter(|signal| {
        // SAFETY: the action is plain data that the call fills in.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(*signal, std::ptr::null(), &mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
        }
    });
    IGNORED.store(ignored.fold(0, |set, signal| set | 1 << (signal - 1)), Ordering::Relaxed);
}

/// The caller, as far as the job is to be the same.
#[derive(Debug, Clone)]
pub struct Caller {
    /// User, groups, mask, limits, ignored signals.
    pub identity: Identity,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The working directory, if it is there.
    pub directory: Option<PathBuf>,
    /// The home directory, if there is one.
    pub home: Option<PathBuf>,
    /// Which of the first three descriptors are closed.
    pub closed: [bool; 3],
    /// Output and error lead to the same place, in the order of writing.
    pub merged: bool,
    /// Input is a file with a position.
    pub rewinds: bool,
    /// The host's name.
    pub hostname: Vec<u8>,
    /// The user's line of `/etc/passwd`, and the group's of `/etc/group`.
    pub lines: [Vec<u8>; 2],
    /// Who has launched it as a rank of a parallel program.
    pub launcher: Option<Launcher>,
}

impl Caller {
    /// The caller of this process. Before anything is changed: the monitor raises
    /// limits for itself.
    pub fn this() -> io::Result<Self> {
        let closed = CLOSED.load(Ordering::Relaxed);
        let closed = [0, 1, 2].map(|fd| closed & 1 << fd != 0);
        let identity = identity()?;
        let environment: Vec<_> = std::env::vars_os().collect();
        let value = |name: &str| {
            environment.iter().find(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| v.clone())
        };
        let passwd = line_of("/etc/passwd", identity.uid);
        let home = value("HOME").map(PathBuf::from).or_else(|| home_in(passwd.as_deref()));
        let user = value("USER").or_else(|| value("LOGNAME")).unwrap_or_else(|| "user".into());
        let user = user.into_vec();
        let lines = lines(&identity, &user, passwd, home.as_ref());
        // As the shell calls it, if that is the same place.
        let directory = directory(value("PWD"));
        Ok(Self {
            merged: !closed[1] && !closed[2] && same_place(),
            rewinds: !closed[0] && is_file(),
            identity,
            launcher: Launcher::of(&environment),
            environment,
            directory,
            home: home.filter(|home| home.is_absolute() && home.is_dir()),
            closed,
            hostname: fs::read("/proc/sys/kernel/hostname")
                .unwrap_or_default()
                .trim_ascii()
                .to_vec(),
            lines,
        })
    }
}

impl Caller {
    /// The variable that `NAME=VALUE` sets, or `NAME` takes of the caller's.
    pub fn variable(&self, entry: &str) -> Result<(OsString, OsString), Error> {
        match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
            Some(_) => Err(Error::Env(entry.to_owned())),
            None => {
                let found = self.environment.iter().find(|(name, _)| name == entry);
                found.cloned().ok_or_else(|| Error::Env(entry.to_owned()))
            }
        }
    }
}

fn identity() -> io::Result<Identity> {
    let mut groups = vec![0; 65536];
    // SAFETY: the list has as much room as is said; umask is set back at once, and
    // there is one thread.
    let (count, umask, uid, gid) = unsafe {
        let count = libc::getgroups(groups.len() as i32, groups.as_mut_ptr());
        let umask = libc::umask(0o077);
        libc::umask(umask);
        (count, umask, libc::geteuid(), libc::getegid())
    };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    groups.truncate(count);
    let ignored = IGNORED.load(Ordering::Relaxed);
    Ok(Identity { uid, gid, groups, umask, limits: limits(), ignored })
}

fn limits() -> Vec<Limit> {
    let limit = |resource: u8| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: getrlimit fills the struct in that it is given.
        let done = unsafe { libc::getrlimit(resource.into(), &mut limit) };
        (done == 0).then_some(Limit { resource, soft: limit.rlim_cur, hard: limit.rlim_max })
    };
    (0..LIMITS).filter_map(limit).collect()
}

fn directory(said: Option<OsString>) -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &PathBuf| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let real = std::env::current_dir().ok()?;
    let said = said.map(PathBuf::from).filter(|path| path.is_absolute());
    let same = said.filter(|path| identity(path) == identity(&real));
    Some(same.unwrap_or(real))
}

/// The line with this number in its third field.
fn line_of(path: &str, number: u32) -> Option<Vec<u8>> {
    let text = fs::read(path).ok()?;
    let number = number.to_string();
    let found = text
        .split(|byte| *byte == b'\n')
        .find(|line| line.split(|b| *b == b':').nth(2) == Some(number.as_bytes()))?;
    Some(found.to_vec())
}

fn home_in(line: Option<&[u8]>) -> Option<PathBuf> {
    let home = line?.split(|b| *b == b':').nth(5)?;
    (!home.is_empty()).then(|| OsString::from_vec(home.to_vec()).into())
}

fn lines(
    identity: &Identity,
    user: &[u8],
    passwd: Option<Vec<u8>>,
    home: Option<&PathBuf>,
) -> [Vec<u8>; 2] {
    let Identity { uid, gid, .. } = identity;
    let home = home.map(|home| home.clone().into_os_string().into_vec());
    let made = || {
        let numbers = format!(":x:{uid}:{gid}::").into_bytes();
        [user, &numbers, &home.unwrap_or_else(|| b"/".to_vec()), b":/bin/sh"].concat()
    };
    let group = line_of("/etc/group", *gid);
    let group = group.unwrap_or_else(|| [user, format!(":x:{gid}:").as_bytes()].concat());
    [passwd.unwrap_or_else(made), group].map(|mut line| {
        line.push(b'\n');
        line
    })
}

fn stat(fd: i32) -> Option<libc::stat> {
    // SAFETY: a stat is plain data that the call fills in.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &mut stat) == 0).then_some(stat)
    }
}

fn position(fd: i32) -> i64 {
    // SAFETY: lseek takes numbers, and moves nothing here.
    unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) }
}

/// Whether descriptors 1 and 2 are one and the same: whoever wrote `2>&1` wants
/// to see lines in the order in which they were written.
fn same_place() -> bool {
    let (Some(output), Some(error)) = (stat(1), stat(2)) else { return false };
    let same = (output.st_dev, output.st_ino) == (error.st_dev, error.st_ino);
    // SAFETY: fcntl takes numbers.
    let flags = |fd| unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // Of a file there may be two with positions of their own.
    same && position(1) == position(2) && flags(1) == flags(2)
}

fn is_file() -> bool {
    stat(0).is_some_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG) && position(0) >= 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_is_known() {
        let caller = Caller::this().unwrap();
        // SAFETY: has no preconditions.
        assert_eq!(caller.identity.uid, unsafe { libc::geteuid() });
        assert_eq!(caller.identity.limits.len(), usize::from(LIMITS));
        assert!(caller.directory.is_some() && !caller.hostname.is_empty());
        let number = format!(":{}:", caller.identity.uid);
        assert!(String::from_utf8_lossy(&caller.lines[0]).contains(&number));
        assert!(caller.lines.iter().all(|line| line.ends_with(b"\n")));
        assert_eq!(caller.closed, [false; 3]);
    }

    #[test]
    fn a_user_without_an_account_gets_one() {
        let identity = Identity { uid: 4_000_000_000, gid: 4_000_000_001, ..Identity::default() };
        let [user, group] = lines(&identity, b"me", None, Some(&"/home/me".into()));
        assert_eq!(user, b"me:x:4000000000:4000000001::/home/me:/bin/sh\n");
        assert_eq!(group, b"me:x:4000000001:\n");
        assert_eq!(home_in(Some(b"root:x:0:0:root:/root:/bin/sh")), Some("/root".into()));
        assert_eq!(home_in(Some(b"short:x")), None);
    }
}
