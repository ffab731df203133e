//! Which directories of the host a job sees, and where: by default what it would
//! have with Singularity, which is its home, where it is, and `/tmp`.

use crate::caller::Caller;
use crate::options::Options;
use crate::{Error, source};
use std::path::{Path, PathBuf};

/// As many fit beside the root, an overlay and the connection to the guest.
pub const MOST: usize = 12;
/// Directories of the system's: a job that starts in one does not bring it along.
const SYSTEM: [&str; 11] =
    ["/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr"];

/// A directory of the host in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// On the host.
    pub source: PathBuf,
    /// In the guest.
    pub target: PathBuf,
    /// Whether it can't be changed there.
    pub readonly: bool,
    /// Whether the job can do without it.
    pub optional: bool,
    /// It is a file: the machine gets the directory that it is in, the job the file.
    pub file: bool,
}

impl Shared {
    /// The directory that the machine gets.
    pub fn directory(&self) -> &Path {
        match self.source.parent() {
            Some(parent) if self.file => parent,
            _ => &self.source,
        }
    }
}

/// What is shared, in the order in which it is mounted, and what is empty and held
/// in memory.
pub fn choose(
    options: &Options,
    caller: &Caller,
    source: &source::Source,
) -> Result<(Vec<Shared>, Vec<PathBuf>), Error> {
    let mut shares: Vec<Shared> = Vec::new();
    let mut scratch = Vec::new();
    if options.contain {
        scratch.extend(["/tmp", "/var/tmp"].map(PathBuf::from));
    } else {
        for path in ["/tmp", "/var/tmp"].map(Path::new) {
            if path.is_dir() {
                add(&mut shares, same(path));
            }
        }
        if let Some(home) = caller.home.as_deref().filter(|home| *home != Path::new("/"))
            && !options.no_home
        {
            add(&mut shares, same(home));
        }
        // A directory as the root is the user's own: it may lie in itself.
        if let Some(directory) = &caller.directory
            && is_users(directory)
            && options.pwd.is_none()
            && !source.is_root(directory)
        {
            add(&mut shares, same(directory));
        }
    }
    for bind in &options.binds {
        add(&mut shares, explicit(bind)?);
    }
    // Short paths first: what lies in another is mounted after that.
    shares.sort_by_key(|share| share.target.components().count());
    if shares.len() > MOST {
        return Err(Error::Binds(shares.len()));
    }
    Ok((shares, scratch))
}

fn same(path: &Path) -> Shared {
    Shared {
        source: path.to_owned(),
        target: path.to_owned(),
        readonly: false,
        optional: true,
        file: false,
    }
}

fn explicit(bind: &crate::options::Bind) -> Result<Shared, Error> {
    let refused = |reason: String| Error::Bind { path: bind.source.clone(), reason };
    let source = bind.source.canonicalize().map_err(|e| refused(vmm::plain(&e)))?;
    let file = source.is_file();
    if !file && !source.is_dir() {
        return Err(refused("is neither a directory nor a file".to_owned()));
    }
    // A relative target is the source's own place.
    let target = match bind.target.is_absolute() {
        true => bind.target.clone(),
        false if bind.target == bind.source => source.clone(),
        false => return Err(refused("TARGET must be an absolute path".to_owned())),
    };
    let dots = target.components().any(|part| part == std::path::Component::ParentDir);
    if dots || target == Path::new("/") {
        return Err(refused(format!("can't be at {}", target.display())));
    }
    Ok(Shared { source, target, readonly: bind.readonly, optional: false, file })
}

fn is_users(directory: &Path) -> bool {
    directory != Path::new("/") && !SYSTEM.iter().any(|system| directory.starts_with(system))
}

/// Adds a share, unless it is in another one already; the last at one place counts.
fn add(shares: &mut Vec<Shared>, share: Shared) {
    shares.retain(|other| other.target != share.target);
    let inside = |other: &&Shared| {
        let way = share.target.strip_prefix(&other.target).ok();
        way.is_some_and(|way| other.source.join(way) == share.source)
    };
    // The innermost that holds it decides.
    let around = shares.iter().filter(|other| share.target.starts_with(&other.target));
    let innermost = around.max_by_key(|other| other.target.components().count());
    if !innermost.as_ref().is_some_and(|o| inside(o) && o.readonly == share.readonly) {
        shares.push(share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Bind;
    use crate::source::Source;

    fn caller(home: &str, directory: &str) -> Caller {
        let mut caller = Caller::this().unwrap();
        caller.home = Some(home.into());
        caller.directory = Some(directory.into());
        caller
    }

    fn targets(options: &Options, caller: &Caller) -> Vec<String> {
        let (shares, _) = choose(options, caller, &Source::Host).unwrap();
        shares.iter().map(|s| s.target.display().to_string()).collect()
    }

    #[test]
    fn home_work_and_tmp_are_there_by_default() {
        let all = targets(&Options::default(), &caller("/home/me", "/data/run"));
        assert_eq!(all, ["/tmp", "/var/tmp", "/home/me", "/data/run"]);
        let inside = targets(&Options::default(), &caller("/home/me", "/home/me/x"));
        assert_eq!(inside, ["/tmp", "/var/tmp", "/home/me"]);
        let system = targets(&Options::default(), &caller("/", "/usr/lib"));
        assert_eq!(system, ["/tmp", "/var/tmp"]);
    }

    #[test]
    fn less_is_shared_where_that_is_asked_for() {
        let no_home = Options { no_home: true, ..Options::default() };
        let all = targets(&no_home, &caller("/home/me", "/data/run"));
        assert_eq!(all, ["/tmp", "/var/tmp", "/data/run"]);
        let contain = Options { contain: true, ..Options::default() };
        let (shares, scratch) =
            choose(&contain, &caller("/home/me", "/data"), &Source::Host).unwrap();
        assert!(shares.is_empty());
        assert_eq!(scratch, [PathBuf::from("/tmp"), PathBuf::from("/var/tmp")]);
    }

    #[test]
    fn binds_are_added_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        std::fs::write(path.join("file"), "").unwrap();
        let with = |source: PathBuf, target: &str, readonly| Options {
            contain: true,
            binds: vec![Bind { source, target: target.into(), readonly }],
            ..Options::default()
        };
        let all = targets(&with(path.clone(), "/mnt", true), &caller("/", "/"));
        assert_eq!(all, ["/mnt"]);
        let options = with(path.join("file"), "/etc/one", true);
        let (shares, _) = choose(&options, &caller("/", "/"), &Source::Host).unwrap();
        assert!(shares[0].file && shares[0].directory() == path);
        for (source, target) in [
            (path.join("none"), "/mnt"),
            ("/dev/null".into(), "/mnt"),
            (path.clone(), "/"),
            (path.clone(), "/a/../.."),
            (path.clone(), "mnt"),
        ] {
            let refused = choose(&with(source, target, false), &caller("/", "/"), &Source::Host);
            assert!(matches!(refused, Err(Error::Bind { .. })));
        }
    }

    #[test]
    fn a_read_only_place_in_a_share_is_a_share_of_its_own() {
        let mut shares = Vec::new();
        add(&mut shares, same(Path::new("/home/me")));
        add(&mut shares, same(Path::new("/home/me/data")));
        assert_eq!(shares.len(), 1);
        add(&mut shares, Shared { readonly: true, ..same(Path::new("/home/me/data")) });
        assert_eq!(shares.len(), 2);
        add(&mut shares, same(Path::new("/home/me/data/rw")));
        assert_eq!(shares.len(), 3);
    }
}
