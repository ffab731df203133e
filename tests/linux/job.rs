//! `microvm run`: jobs, done natively and in a virtual machine of their own, with
//! equal results.
//!
//! A guest costs seconds where the machine is emulated, so one job tries as much
//! as fits: each line of its report is a case.

use crate::console::{Session, expect_status};
use crate::guest::{LIMIT, Reader, wait_until};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub fn tests() -> Vec<Trial> {
    vec![
        trial("job::what_a_process_is_given_is_the_same", || given(None)),
        trial("job::an_ordinary_user_has_the_same_too", || given(Some(USER))),
        trial("job::signals_reach_it_and_stop_it_and_end_it", signals),
        trial("job::a_terminal_with_keys_that_interrupt_and_stop", terminal),
        trial("job::descriptors_that_are_closed_stay_closed", closed),
        trial("job::the_end_of_one_stream_is_the_end_of_the_other", ends),
        trial("job::changes_are_kept_in_an_overlay_and_nowhere_else", overlay),
        trial("job::a_tap_is_a_network_of_its_own", tap),
        trial("job::an_image_that_was_built_holds_what_it_was_built_from", built),
        trial("job::nothing_is_left_when_the_runner_is_killed", killed),
        trial("job::what_cannot_be_run_is_told", refused),
        trial("job::a_kernel_of_debian_6_1_with_plain_modules", || stock("6_1_GENERIC", false)),
        trial("job::a_kernel_of_debian_6_12_with_compressed_modules", || stock("6_12_CLOUD", true)),
        trial("job::what_isolates_is_told_and_taken", isolated),
    ]
}

const USER: u32 = 1000;
/// Bytes through the job, in and out again.
const BYTES: u32 = 8 << 20;

/// What the tests start, where an ordinary user can read it.
pub struct Kit {
    scratch: tempfile::TempDir,
    pub microvm: PathBuf,
    pub kernel: PathBuf,
}

impl Kit {
    pub fn new() -> Result<Self, String> {
        let scratch = tempfile::tempdir().map_err(|e| e.to_string())?;
        let copy = |from: &Path, name: &str, mode| -> std::io::Result<PathBuf> {
            let to = scratch.path().join(name);
            fs::copy(from, &to)?;
            fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
            Ok(to)
        };
        let made = || -> std::io::Result<(PathBuf, PathBuf)> {
            fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
            let microvm = copy(env!("CARGO_BIN_EXE_microvm").as_ref(), "microvm", 0o755)?;
            Ok((microvm, copy(&kit::vmlinux(), "vmlinux", 0o644)?))
        };
        let (microvm, kernel) = made().map_err(|e| e.to_string())?;
        Ok(Self { scratch, microvm, kernel })
    }

    /// Where all of it is.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// `microvm run` with an image and what follows it.
    pub fn run(&self, options: &[&str], image: impl AsRef<OsStr>, words: &[&str]) -> Command {
        let mut command = Command::new(&self.microvm);
        command.env("MICROVM_KERNEL", &self.kernel);
        command.args(["run", "--memory", "256M", "--cpus", "1"]).args(options);
        command.arg(image).args(words);
        command
    }
}

/// Gives it what a job is to have from whoever starts it, and few have: a limit, a umask
/// and an ignored signal.
pub fn inherit(command: &mut Command) {
    // SAFETY: the calls take numbers, and a struct that outlives them.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 200, rlim_max: 3000 };
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
            libc::umask(0o027);
            libc::signal(libc::SIGUSR2, libc::SIG_IGN);
            Ok(())
        });
    }
}

/// Makes a command an ordinary user's, one of those who may use KVM.
pub fn as_user(command: &mut Command, uid: u32, kvm: u32) {
    // SAFETY: the child makes system calls with numbers, and a list that it owns.
    unsafe {
        command.pre_exec(move || {
            let groups = [kvm, 4242];
            let done = libc::setgroups(groups.len(), groups.as_ptr()) == 0
                && libc::setgid(uid) == 0
                && libc::setuid(uid) == 0;
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
}

pub fn end(mut child: Child) -> Result<ExitStatus, String> {
    let status = wait_until(&mut child, Instant::now() + LIMIT);
    let _ = child.wait();
    status.ok_or_else(|| format!("still running after {LIMIT:?}"))
}

/// Everything that can be said of one run.
#[derive(PartialEq, Eq)]
pub struct Told {
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub status: i32,
}

/// Runs a command with bytes as its input.
pub fn complete(mut command: Command, input: Vec<u8>) -> Result<Told, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let mut stdin = child.stdin.take().ok_or("no pipe")?;
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let read = |mut stream: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).map(|_| bytes)
        })
    };
    let stdout = read(Box::new(child.stdout.take().ok_or("no pipe")?));
    let stderr = read(Box::new(child.stderr.take().ok_or("no pipe")?));
    let status = end(child)?.into_raw();
    let _ = writer.join();
    let collect = |thread: thread::JoinHandle<std::io::Result<Vec<u8>>>| {
        thread.join().map_err(|_| "a thread panicked")?.map_err(|e| e.to_string())
    };
    let stderr = String::from_utf8_lossy(&collect(stderr)?).into_owned();
    Ok(Told { stdout: collect(stdout)?, stderr, status })
}

/// What a process has of whoever started it, a line for each. Standard input goes
/// to standard output behind it.
const REPORT: &str = r#"
exec 3>&1 1>&2
echo "arguments $#"
printf '<%s>\n' "$@" | md5sum
echo "environment"; env | grep -v '^_=' | sort | md5sum; echo "$LARGE" | wc -c; printenv ODD
echo "user"; id -u; id -g; id -G; id -un; echo "$HOME"; cd && pwd; cd "$OLDPWD"
echo "directory"; pwd; pwd -P; ls -di . | wc -w; cat here; echo written >from-job; cat from-job
umask; touch new; stat -c '%a %u %g' new; rm new
echo "limits"; ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -s; ulimit -f; ulimit -u; ulimit -v
echo "signals"; grep -E 'SigIgn|SigBlk' /proc/self/status
echo "host"; hostname
echo "streams"; test -t 0; echo $?; test -t 1; echo $?; test -p /dev/stdin; echo $?
test -p /dev/stdout; echo $?; ls /proc/self/fd | wc -l
[ $(id -u) != 0 ] || echo reopened >/dev/stderr
echo "children"; (exit 9); echo $?; sh -c 'kill -15 $$'; echo $?; /nonexistent; echo $?
sleep 0.1 & wait $!; echo $?; true | false; echo $?
exec 1>&3 3>&-
cat
exit 42
"#;

/// The report, natively and in a machine, as root or another user.
fn given(user: Option<u32>) -> Verdict {
    let kit = Kit::new()?;
    let place = kit.path("place");
    fs::create_dir(&place)?;
    fs::write(place.join("here"), "here\n")?;
    let kvm = open_kvm_to(user)?;
    if let Some(user) = user {
        chown(&place, Some(user), Some(user))?;
    }
    let many: Vec<String> = (0..2000).map(|i| format!("argument {i} '\"$\\\n")).collect();
    let mut words = vec!["-c", REPORT, "sh", "", "two words", "\u{fc}\t*"];
    words.extend(many.iter().map(String::as_str));

    let run = |mut command: Command| {
        command.env("LARGE", "x".repeat(100_000));
        command.env("ODD", OsStr::from_bytes(b"\xff\xfe=\n;"));
        command.env_remove("_").current_dir(&place).env("PWD", &place).env("HOME", &place);
        if let Some(user) = user {
            as_user(&mut command, user, kvm);
        }
        inherit(&mut command);
        let input = (0..BYTES).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        complete(command, input)
    };
    let mut native = Command::new("/bin/sh");
    native.args(&words).env("MICROVM_KERNEL", &kit.kernel);
    let native = run(native)?;
    let words: Vec<&str> = ["/bin/sh"].into_iter().chain(words).collect();
    let job = run(kit.run(&[], "host", &words))?;
    if native.stderr != job.stderr {
        return Err(format!("natively:\n{}\nas a job:\n{}", native.stderr, job.stderr).into());
    }
    let enough = native.stderr.lines().count() > 45 && native.stdout.len() == BYTES as usize;
    if !enough || native.stdout != job.stdout || native.status != job.status {
        let of = |r: &Told| format!("{} bytes, status {:#x}", r.stdout.len(), r.status);
        return Err(format!("natively {}; as a job {}", of(&native), of(&job)).into());
    }
    Ok(Completion::Completed)
}

/// Lets a group use KVM, as hosts do; only the emulated host is ours to change.
pub fn open_kvm_to(user: Option<u32>) -> Result<u32, String> {
    const KVM: u32 = 4243;
    if user.is_some() && std::env::var_os(rig::IN_RIG).is_some() {
        let device = Path::new("/dev/kvm");
        chown(device, Some(0), Some(KVM)).map_err(|e| e.to_string())?;
        let mode = fs::Permissions::from_mode(0o660);
        fs::set_permissions(device, mode).map_err(|e| e.to_string())?;
    }
    Ok(KVM)
}

/// A job with its output at hand.
pub struct Job {
    pub child: Child,
    output: Reader,
}

impl Job {
    pub fn start(mut command: Command) -> Result<Self, String> {
        // A group of its own, as a shell gives it: else it could not be stopped.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let output = Reader::new(child.stdout.take().ok_or("no pipe")?);
        Ok(Self { child, output })
    }

    pub fn expect(&mut self, text: &str) -> Result<(), String> {
        self.output.expect(text, Instant::now() + LIMIT)
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so its pid is its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Waits until it stops.
    pub fn stopped_by(&self) -> Result<i32, String> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let mut status = 0;
            let pid = self.child.id() as i32;
            // SAFETY: the call fills in an int.
            let got = unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG | libc::WUNTRACED) };
            if got == pid {
                return match libc::WIFSTOPPED(status) {
                    true => Ok(libc::WSTOPSIG(status)),
                    false => Err(format!("it ended instead of stopping: {status:#x}")),
                };
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err("it did not stop".to_owned())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const TRAPS: &str = "trap 'echo got-hup' HUP; trap 'echo got-int' INT; trap 'echo got-usr1' USR1; \
    trap 'echo got-usr2' USR2; trap 'echo got-winch' WINCH; trap 'echo got-cont' CONT; \
    trap 'echo got-quit' QUIT; echo ready; while :; do sleep 0.1; done";

/// The same signals, natively and in a machine.
fn signals() -> Verdict {
    let kit = Kit::new()?;
    let mut native = Command::new("/bin/sh");
    native.args(["-c", TRAPS]);
    for command in [native, kit.run(&[], kit::root(), &["sh", "-c", TRAPS])] {
        let mut job = Job::start(command)?;
        job.expect("ready")?;
        for (signal, text) in [
            (libc::SIGHUP, "got-hup"),
            (libc::SIGINT, "got-int"),
            (libc::SIGUSR1, "got-usr1"),
            (libc::SIGUSR2, "got-usr2"),
            (libc::SIGWINCH, "got-winch"),
            (libc::SIGQUIT, "got-quit"),
        ] {
            job.signal(signal);
            job.expect(text)?;
        }
        job.signal(libc::SIGTSTP);
        let stopped = job.stopped_by()?;
        if stopped != libc::SIGTSTP {
            return Err(format!("stopped by {stopped}").into());
        }
        job.signal(libc::SIGCONT);
        job.expect("got-cont")?;
        job.signal(libc::SIGTERM);
        let status = job.child.wait()?;
        if status.signal() != Some(libc::SIGTERM) {
            return Err(format!("ended with {status}, not by SIGTERM").into());
        }
    }
    Ok(Completion::Completed)
}

fn terminal() -> Verdict {
    let kit = Kit::new()?;
    let script = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all-three; \
        trap 'echo interrupted' INT; echo name?; read name; echo \"hello $name\"; \
        sleep 1000; trap - INT; echo again; sleep 0.2; echo last; sleep 1; exit 5";
    let job = kit.run(&[], kit::root(), &["sh", "-c", script]);
    // A shell with job control, which is told of the stop and goes on.
    let mut shell = Command::new("/bin/sh");
    shell.args(["-mc", "stty rows 33 cols 77; \"$@\"; echo stop-$?; fg; echo end-$?", "sh"]);
    shell.arg(job.get_program()).args(job.get_args()).env("MICROVM_KERNEL", &kit.kernel);
    let mut session = Session::of(shell)?;
    session.expect("/dev/pts/0")?;
    session.expect("33 77")?;
    session.expect("all-three")?;
    session.expect("name?")?;
    session.send("wo\x7forld\n")?;
    session.expect("hello world")?;
    thread::sleep(Duration::from_secs(1));
    session.send("\x03")?;
    session.expect("interrupted")?;
    session.expect("again")?;
    session.send("\x1a")?;
    session.expect("stop-148")?;
    session.expect("last")?;
    session.expect("end-5")?;
    expect_status(session.end()?, 0)
}

/// Runs a command with some of its first descriptors closed; its report goes to a
/// file.
fn closed() -> Verdict {
    let kit = Kit::new()?;
    let script = "exec 8>\"$0\"; for fd in 0 1 2; do \
        if (eval \"exec 9>&$fd\") 2>/dev/null; then echo $fd open >&8; \
        else echo $fd closed >&8; fi; done; cat >&8 2>/dev/null; echo status $? >&8";
    let run = |mut command: Command, name: &str| -> Result<String, String> {
        let report = kit.path(name);
        command.arg(&report);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: close takes numbers.
        unsafe {
            command.pre_exec(|| {
                libc::close(0);
                libc::close(1);
                Ok(())
            });
        }
        let status = end(command.spawn().map_err(|e| e.to_string())?)?;
        let text = fs::read_to_string(&report).map_err(|e| e.to_string())?;
        Ok(format!("{text}{status}"))
    };
    let mut native = Command::new("/bin/sh");
    native.args(["-c", script]);
    let native = run(native, "native")?;
    let bind = kit.scratch.path().display().to_string();
    let options = ["--bind", bind.as_str()];
    let job = run(kit.run(&options, "host", &["/bin/sh", "-c", script]), "job")?;
    if native != job || !native.contains("0 closed\n1 closed\n2 open") {
        return Err(format!("natively:\n{native}\nas a job:\n{job}").into());
    }
    Ok(Completion::Completed)
}

/// What is read of a file is gone and the rest is not; a reader that goes away ends
/// the writer, on either side.
fn ends() -> Verdict {
    let kit = Kit::new()?;
    let file = kit.path("lines");
    fs::write(&file, "1\n2\n3\n4\n")?;
    let script = "dd bs=4 count=1 2>/dev/null; exec <&-; exec yes";
    let mut native = Command::new("/bin/sh");
    native.args(["-c", script]);
    let mut all = Vec::new();
    for mut command in [native, kit.run(&[], kit::root(), &["sh", "-c", script])] {
        let mut input = File::open(&file)?;
        command.stdin(input.try_clone()?).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut output = child.stdout.take().ok_or("no pipe")?;
        let mut start = [0; 8];
        output.read_exact(&mut start)?;
        drop(output);
        let status = end(child)?;
        let mut rest = String::new();
        input.read_to_string(&mut rest)?;
        let start = String::from_utf8_lossy(&start).into_owned();
        all.push((start, rest, status.signal()));
    }
    let wanted = ("1\n2\ny\ny\n".to_owned(), "3\n4\n".to_owned(), Some(libc::SIGPIPE));
    if all.iter().any(|one| *one != wanted) {
        return Err(format!("natively and as a job: {all:?}").into());
    }
    Ok(Completion::Completed)
}

fn tap() -> Verdict {
    let ip = |words: &str| {
        Command::new("ip").args(words.split(' ')).status().is_ok_and(|status| status.success())
    };
    // SAFETY: has no preconditions.
    if unsafe { libc::geteuid() } != 0 || !ip("tuntap add jobtap0 mode tap") {
        return Ok(Completion::ignored_with("no TAP can be made here"));
    }
    let result = on_tap(ip);
    ip("link del jobtap0");
    result
}

fn on_tap(ip: impl Fn(&str) -> bool) -> Verdict {
    if !ip("addr add 10.98.0.1/24 dev jobtap0") || !ip("link set jobtap0 up") {
        return Err("the TAP has no address".into());
    }
    let kit = Kit::new()?;
    let server = TcpListener::bind("10.98.0.1:0")?;
    let port = server.local_addr()?.port().to_string();
    thread::spawn(move || server.accept().map(|(mut client, _)| client.write_all(b"served\n")));
    let script = "nc 10.98.0.1 $PORT </dev/null; ip route | cut -d' ' -f1-3";
    let net = "tap=jobtap0,address=10.98.0.2/24,gateway=10.98.0.1";
    let mut job = kit.run(&["--contain", "--net", net], kit::root(), &["sh", "-c", script]);
    job.env("PORT", port);
    let job = complete(job, Vec::new())?;
    let told = String::from_utf8_lossy(&job.stdout).into_owned();
    if told != "served\ndefault via 10.98.0.1\n10.98.0.0/24 dev eth0\n" || job.status != 0 {
        return Err(format!("{:#x} {told}{}", job.status, job.stderr).into());
    }
    Ok(Completion::Completed)
}

fn overlay() -> Verdict {
    let kit = Kit::new()?;
    let (image, data) = (kit.path("over.ext4"), kit.path("data"));
    File::create(&image)?.set_len(16 << 20)?;
    let made = Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&image).status()?;
    if !made.success() {
        return Err(format!("mkfs.ext4: {made}").into());
    }
    fs::create_dir(&data)?;
    fs::write(data.join("in"), "input")?;
    let before = fs::read(kit::root())?;
    let bind = format!("{}:/opt/data:ro", data.display());
    let over = image.display().to_string();
    let server = TcpListener::bind("127.0.0.1:0")?;
    let port = server.local_addr()?.port();
    thread::spawn(move || server.accept().map(|(mut client, _)| client.write_all(b"served\n")));
    let network = "user,host-loopback=on";
    let one = format!("{}:/opt/one:ro", data.join("in").display());
    let options = [
        "--contain",
        "--bind",
        &bind,
        "--bind",
        &one,
        "--overlay",
        &over,
        "--pwd",
        "/opt",
        "--net",
        network,
    ];
    let contained = "nc 10.0.2.2 $PORT </dev/null; head -1 /etc/resolv.conf; pwd; cat data/in; echo; cat one; echo; (echo x >data/out; echo x >one) || echo read-only; ls; ls /tmp | wc -l; \
        echo kept >/etc/kept && cat /etc/kept; echo y >/tmp/scratch && echo scratch";
    let mut first = kit.run(&options, kit::root(), &["sh", "-c", contained]);
    first.env("PORT", port.to_string());
    let job = complete(first, Vec::new())?;
    let first = String::from_utf8_lossy(&job.stdout).into_owned();
    if first
        != "served\nnameserver 10.0.2.3\n/opt\ninput\ninput\nread-only\ndata\none\n0\nkept\nscratch\n"
        || job.status != 0
    {
        return Err(format!("{first}{}", job.stderr).into());
    }
    let again = "cat /etc/kept; cd /; mkdir -p .singularity.d/env; cd .singularity.d; \
        echo 'export SET=by-the-image' >env/90-environment.sh; \
        printf '#!/bin/sh\\necho $SET $# $1; exit 3\\n' >runscript; chmod +x runscript";
    let job = complete(kit.run(&options, kit::root(), &["sh", "-c", again]), Vec::new())?;
    if job.stdout != b"kept\n" || job.status != 0 {
        return Err(format!("the second: {}", job.stderr).into());
    }
    // Now there is a program of the image's own.
    let job = complete(kit.run(&options, kit::root(), &["one", "two words"]), Vec::new())?;
    if job.stdout != b"by-the-image 2 one\n" || job.status != 3 << 8 {
        return Err(format!("a runscript: {}", job.stderr).into());
    }
    // The image is as it was, and without an overlay can't be changed at all.
    let alone = "echo x >/etc/new; cat /etc/kept";
    let job = complete(kit.run(&[], kit::root(), &["sh", "-c", alone]), Vec::new())?;
    if !job.stderr.contains("Read-only file system") || !job.stdout.is_empty() {
        return Err(format!("without an overlay: {}", job.stderr).into());
    }
    if fs::read(kit::root())? != before || fs::read_dir(&data)?.count() != 1 {
        return Err("the image or the directory has changed".into());
    }
    Ok(Completion::Completed)
}

/// Every kind of file there is, its owners, modes, names and content.
const INVENTORY: &str = r#"
find . | sort | while read -r name; do
    stat -c '%n %a %u %g %Y %t:%T' "$name"
    [ -d "$name" ] || stat -c '%F %h %s' "$name"
done
find . -type f | sort | xargs md5sum
find . -type l | sort | xargs readlink
"#;

/// EROFS as we write it, mounted by Linux.
fn built() -> Verdict {
    let kit = Kit::new()?;
    let (tree, image) = (kit.path("tree"), kit.path("app.img"));
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "run", "root", "opt"] {
        fs::create_dir_all(tree.join(name))?;
    }
    let busybox = tree.join("bin/busybox");
    let request = format!("dump -p /bin/busybox {}", busybox.display());
    let taken = Command::new("debugfs").arg("-R").arg(request).arg(kit::root()).output();
    if !taken.is_ok_and(|output| output.status.success()) {
        return Ok(Completion::ignored_with("debugfs is missing"));
    }
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755))?;
    for name in ["sh", "find", "sort", "stat", "md5sum", "readlink", "xargs"] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(name))?;
    }
    let data = tree.join("opt/data");
    let mut made = Command::new("sh");
    made.arg("-c").arg(
        r#"mkdir -p "$1/many" && cd "$1" && umask 027 && mknod null c 1 3 && mknod disk b 254 70000
        mkfifo pipe; ln -s /nowhere/at/all link; head -c 300000 /dev/urandom >large
        ln large many/hard; printf x >setuid; chown 12:70000 setuid; chmod 4751 setuid
        touch -d @1000000000 setuid; truncate -s 9000000 sparse; printf end >>sparse
        i=0; while [ $i -lt 400 ]; do head -c $((i * 37)) large >many/$i; i=$((i + 1)); done"#,
    );
    let status = made.arg("sh").arg(&data).status()?;
    let status = if status.success() {
        Command::new(&kit.microvm)
            .arg("build")
            .args([&tree, &image])
            .stdout(Stdio::null())
            .status()?
    } else {
        status
    };
    if !status.success() {
        return Err(format!("making the image: {status}").into());
    }
    let mut native = Command::new(&busybox);
    native.args(["sh", "-c", INVENTORY]).current_dir(&data).env("PATH", tree.join("bin"));
    let native = complete(native, Vec::new())?;
    let options = ["--contain", "--pwd", "/opt/data"];
    let job = complete(kit.run(&options, &image, &["sh", "-c", INVENTORY]), Vec::new())?;
    if job != native || native.stdout.len() < 20_000 {
        let [job, native] = [job, native].map(|told| {
            let (status, stderr) = (told.status, told.stderr);
            format!("{status:#x} {stderr}\n{}", String::from_utf8_lossy(&told.stdout))
        });
        return Err(format!("in the image:\n{job}\nin the directory:\n{native}").into());
    }
    Ok(Completion::Completed)
}

fn killed() -> Verdict {
    let kit = Kit::new()?;
    let runtime = kit.path("runtime");
    fs::create_dir(&runtime)?;
    let mut command = kit.run(&[], kit::root(), &["sh", "-c", "echo runs; sleep 1000"]);
    command.env("XDG_RUNTIME_DIR", &runtime).env("TMPDIR", &runtime);
    let mut job = Job::start(command)?;
    job.expect("runs")?;
    let pid = job.child.id();
    job.child.kill()?;
    job.child.wait()?;
    if Path::new(&format!("/proc/{pid}")).exists() || fs::read_dir(&runtime)?.count() != 0 {
        return Err("something is left".into());
    }
    // The program is nobody's any more: no process of it is left.
    for process in fs::read_dir("/proc")?.flatten() {
        let program = fs::read_link(process.path().join("exe"));
        if program.is_ok_and(|program| program.starts_with(kit.scratch.path())) {
            return Err(format!("{} is left", process.path().display()).into());
        }
    }
    Ok(Completion::Completed)
}

/// A distribution's kernel as it is installed, with a list of its modules' order or
/// without: a disk with ext4, a share, a network, an overlay.
fn stock(name: &str, listed: bool) -> Verdict {
    let kit = Kit::new()?;
    let (kernel, _) = kit::debian(name);
    let place = kernel.parent().ok_or("no directory")?;
    let ours = kit.path("kernel");
    fs::create_dir_all(ours.join("modules"))?;
    std::os::unix::fs::symlink(place.join("modules/kernel"), ours.join("modules/kernel"))?;
    for file in ["modules.builtin", "modules.dep"] {
        if listed || file == "modules.builtin" {
            fs::copy(place.join("modules").join(file), ours.join("modules").join(file))?;
        }
    }
    fs::copy(&kernel, ours.join("vmlinuz"))?;
    let directory = kit.path("place");
    fs::create_dir(&directory)?;
    fs::write(directory.join("here"), "shared")?;
    let given = ours.join("vmlinuz").display().to_string();
    let script = "uname -r; cat here; echo; grep -c 'eth0' /proc/net/dev; touch /etc/new && \
        cut -d' ' -f3 /proc/mounts | sort -u | tr '\n' ' '; exit 9";
    let options = ["--kernel", &given, "--writable-tmpfs"];
    let mut command = kit.run(&options, kit::root(), &["sh", "-c", script]);
    command.current_dir(&directory).env("PWD", &directory).env("HOME", &directory);
    let job = complete(command, Vec::new())?;
    let text = String::from_utf8_lossy(&job.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let release = fs::read_to_string(place.join("version"))?;
    let good = lines.len() == 4
        && lines[0] == release.trim()
        && lines[1..3] == ["shared", "1"]
        && lines[3].contains("overlay")
        && lines[3].contains("virtiofs")
        && job.status == 9 << 8;
    match good {
        true => Ok(Completion::Completed),
        false => Err(format!("{:#x} {text}{}", job.status, job.stderr).into()),
    }
}

/// What is said of isolation, and what the host sees of it.
fn isolated() -> Verdict {
    let kit = Kit::new()?;
    let kvm = open_kvm_to(Some(USER))?;
    let options = ["--contain", "--net", "none", "--isolation", "strict"];
    let script = "echo ready; cat; id -u; id -G";
    let mut command = kit.run(&options, kit::root(), &["sh", "-c", script]);
    as_user(&mut command, USER, kvm);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn()?;
    let mut output = Reader::new(child.stdout.take().ok_or("no pipe")?);
    output.expect("ready", Instant::now() + LIMIT)?;
    let of = |process: &str, name: &str| fs::read_link(format!("/proc/{process}/ns/{name}"));
    let pid = child.id().to_string();
    for name in ["user", "mnt", "ipc", "uts", "net"] {
        if of(&pid, name)? == of("self", name)? {
            return Err(format!("the runner has this host's {name} namespace").into());
        }
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let core = limits.lines().find(|line| line.starts_with("Max core")).unwrap_or_default();
    if core.split_whitespace().nth(4) != Some("0") {
        return Err(format!("limits: {core}").into());
    }
    drop(child.stdin.take());
    output.expect(&format!("{USER}\n{USER} 4242 {kvm}"), Instant::now() + LIMIT)?;
    if !end(child)?.success() {
        return Err("it failed".into());
    }
    // With directories of the host, in its network, it says what it has instead.
    let told = kit.run(&["--isolation", "report"], kit::root(), &["true"]);
    let told = complete(told, Vec::new())?;
    for words in ["namespaces: mount, IPC, UTS\n", "limits: no cores", "inspection: not dumpable"] {
        if !told.stderr.contains(words) {
            return Err(told.stderr.into());
        }
    }
    Ok(Completion::Completed)
}

/// Statuses and words where there is no job.
fn refused() -> Verdict {
    let kit = Kit::new()?;
    let directory = kit.path("root");
    fs::create_dir(&directory)?;
    fs::write(directory.join("data"), "no program")?;
    let image = kit::root();
    let none = kit.path("none");
    for (command, status, words) in [
        (kit.run(&[], &image, &["no-such-program"]), 127, "no-such-program: No such file"),
        (kit.run(&["--contain"], &directory, &["/data"]), 126, "/data: Permission denied"),
        (kit.run(&["--pwd", "/nowhere"], &image, &["true"]), 125, "/nowhere: No such file"),
        (kit.run(&[], &none, &["true"]), 125, "none: No such file"),
        (kit.run(&[], &kit.kernel, &["true"]), 125, "no image that we know"),
        (kit.run(&["--kernel", "/nowhere"], &image, &["true"]), 125, "/nowhere: No such file"),
        (kit.run(&["--bind", "/nowhere"], &image, &["true"]), 125, "bind /nowhere"),
    ] {
        let told = complete(command, Vec::new())?;
        let lines = told.stderr.lines().count();
        if told.status != status << 8 || !told.stderr.contains(words) || lines > 1 {
            return Err(format!("{words:?}: status {:#x}: {}", told.status, told.stderr).into());
        }
    }
    Ok(Completion::Completed)
}
