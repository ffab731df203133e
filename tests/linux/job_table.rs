//! The table of what a process relies on: natively, in crun and in `microvm run`,
//! as an ordinary user and as root, all three in the same small root file system.
//!
//! Each case is a line with a name. Results are equal, but for those that are
//! listed below with the reason; what is listed must differ, so that the list
//! stays true.

use crate::console::Session;
use crate::job::{Kit, Told, as_user, complete, end, inherit, open_kvm_to};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("job::a_table_of_cases_beside_crun_as_a_user", || table(Some(1000))),
        trial("job::a_table_of_cases_beside_crun_as_root", || table(None)),
    ]
}

/// Where a result may differ, where from, and why.
const DIFFERENCES: [(&str, Runner, &str); LISTED] = [
    ("end.by-SIGTERM", Runner::Crun, AS_STATUS),
    ("end.by-SIGKILL", Runner::Crun, AS_STATUS),
    ("end.by-SIGSEGV", Runner::Crun, AS_STATUS),
    ("end.by-SIGINT", Runner::Crun, AS_STATUS),
    ("end.by-SIGPIPE", Runner::Crun, AS_STATUS),
    ("end.not-found", Runner::Crun, "crun fails with 1, or 127, in its own words"),
    ("end.not-executable", Runner::Crun, "crun fails with 1, or 126, in its own words"),
    ("end.directory", Runner::Crun, "crun fails with 1, or 126, in its own words"),
    ("env.odd-bytes", Runner::Crun, "its configuration is JSON, which holds only UTF-8"),
    ("signals", Runner::Crun, UNIGNORED),
    ("signal.ignored-usr2", Runner::Crun, UNIGNORED),
    ("stream.closed", Runner::Crun, "crun fails if its own input or error is closed"),
    ("stream.terminal", Runner::Crun, "BusyBox's stty fails on the terminal that crun makes"),
    ("env.path", Runner::Microvm, "PATH is where images have their programs, as in Singularity"),
];
const LISTED: usize = 14;
const UNIGNORED: &str = "crun has no signal ignored, whatever its caller ignores";
const AS_STATUS: &str = "crun ends with 128 + the signal's number, not by the signal";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    Native,
    Crun,
    Microvm,
}

/// Cases about arguments and environment, in a shell that has large ones: a line
/// with a name, and what a command prints.
const LARGE: &str = r#"
t() { echo "== $1"; shift; "$@" 2>&1; }
exec 3>&1 >"$REPORT"
t args.count echo $#
t args.first printf '<%s>' "$1" "$2" "$3"
longest() { n=0; for word; do [ ${#word} -le $n ] || n=${#word}; done; echo $n; }
t args.longest longest "$@"
sum() { printf '%s\n' "$@" | md5sum; }
t args.hash sum "$@"
t env.large sh -c 'echo ${#LARGE}; printf %s "$LARGE" | md5sum'
unset LARGE
exec sh ./cases >>"$REPORT"
"#;

/// The others, in one with small ones.
const CASES: &str = r#"
t() { echo "== $1"; shift; "$@" 2>&1; }
t env.empty echo "${EMPTY-unset}"
t env.newline printf '<%s>' "$LINES2"
t env.equals echo "$EQUALS"
t env.odd-bytes sh -c 'env | grep -a ^ODD | od -An -tx1'
t env.path echo "$PATH"
t env.home echo "$HOME"
t user.ids sh -c 'id -u; id -g'
t user.groups id -G
t cwd.pwd pwd
t cwd.physical pwd -P
t cwd.reads cat here
w() { echo w >w; cat w; stat -c "%u %g %a" w; rm w; }
t cwd.writes w
t umask.value umask
d() { mkdir d; stat -c %a d; rmdir d; }
t umask.directory d
f() { : >f; chmod 4751 f; stat -c %a f; rm f; }
t file.chmod f
f() { : >f; ln f g; stat -c %h g; ln -s f s; readlink s; rm f g s; }
t file.links f
f() { mkdir d; echo x >d/a; mv d e; cat e/a; rm -r e; }
t file.rename f
f() { truncate -s 9000000000 f; stat -c %s f; rm f; }
t file.sparse f
f() { echo a >f; echo b >>f; cat f; rm f; }
t file.append f
f() { echo a >f; exec 4<f; rm f; read x <&4; echo "$x"; exec 4<&-; }
t file.unlinked f
f() { touch -d @1000000000 f; stat -c %Y f; rm f; }
t file.time f
t file.lock flock -n here flock -n here true
echo $?
f() { mkfifo p; echo through >p & cat p; rm p; }
t file.fifo f
t file.missing cat missing
t file.directory cat .
t file.full sh -c 'echo x >/dev/full'
f() { mkdir m; for i in 1 2 3 4 5 6 7 8 9; do for j in 1 2 3 4 5 6 7 8 9; do : >m/$i$j; done; done
    ls m | wc -l; rm -r m; }
t file.many f
t limits cat /proc/self/limits
f() { n=3; while (eval "exec $n</dev/null") 2>/dev/null; do n=$((n + 50)); done; echo $n; }
t limit.enforced f
t signals grep -E 'SigIgn|SigBlk' /proc/self/status
t signal.trap sh -c 'trap "echo caught" TERM; kill $$; echo on'
t signal.ignored-usr2 sh -c 'kill -USR2 $$; echo alive'
t signal.child-term sh -c 'kill -15 $$'; echo $?
t signal.child-segv sh -c 'kill -11 $$'; echo $?
t signal.child-kill sh -c 'kill -9 $$'; echo $?
t privileges.new grep NoNewPrivs /proc/self/status
t privileges.nice nice
t privileges.oom cat /proc/self/oom_score_adj
p() { test -p /dev/stdin; echo $?; test -p /dev/fd/3; echo $?; test -p /dev/stderr; echo $?; }
t stream.pipes p <&0
p() { test -t 0; echo $?; test -t 3; echo $?; test -t 2; echo $?; }
t stream.terminals p
t stream.fds sh -c 'ls /proc/self/fd | wc -l'
t stream.no-terminal sh -c 'echo x >/dev/tty'
t stream.reopen sh -c '(echo again >/dev/stdout) | cat'
t stream.broken sh -c '(yes 2>&3; echo $? >&2) 3>/dev/null | head -1'
t device.null sh -c 'cat /dev/null; echo x >/dev/null; echo $?'
t device.zero sh -c 'head -c 5 /dev/zero | od -An -tx1'
t device.random sh -c 'head -c 100 /dev/urandom | wc -c'
t device.fd cat /dev/fd/4 4<here
t device.shm sh -c 'echo s >/dev/shm/s$$; cat /dev/shm/s$$; rm /dev/shm/s$$'
t tmp.writes sh -c 'f=$(mktemp) && echo t >$f && cat $f; rm $f'
t tmp.mode stat -c %a /tmp
t child.status sh -c 'exit 9'; echo $?
t child.not-found /nonexistent; echo $?
t child.not-executable ./here; echo $?
t child.background sh -c 'sleep 0.1 & wait $!; echo $?'
t child.stopped sh -c 'sleep 9 & kill -STOP $!; sleep 0.3; cut -d" " -f3 /proc/$!/stat; kill -KILL $!'
t child.many sh -c 'for i in 1 2 3 4 5 6 7 8; do sh -c "exit $i" & done; wait; echo $?'
t script.interpreter ./script one 'two words'; echo $?
t script.without ./plain
t host.name hostname
t proc.exe readlink -f /proc/self/exe
t proc.comm cat /proc/self/comm
t time.zone date +%Z
t time.year date +%Y
exec 1>&3 3>&-
exec cat
"#;

/// The image `$1` at `$2`, with what a root file system has, and the directory `$3`.
const MOUNTS: &str = r#"
debugfs -R "rdump / $2" "$1"; mount --bind "$2" "$2"; mount --make-private "$2"
for name in dev proc tmp; do mount --rbind /$name "$2/$name"; done
mkdir -p "$2$3"; mount --bind "$3" "$2$3"
"#;

struct Table<'k> {
    kit: &'k Kit,
    image: PathBuf,
    place: PathBuf,
    user: Option<u32>,
    kvm: u32,
    words: Vec<String>,
}

fn table(user: Option<u32>) -> Verdict {
    if !kit::has("crun") {
        return Ok(Completion::ignored_with("crun is missing"));
    }
    // SAFETY: has no preconditions.
    if std::env::var_os(rig::IN_RIG).is_none() || unsafe { libc::geteuid() } != 0 {
        return Ok(Completion::ignored_with("needs root on a host that is ours: the rig"));
    }
    let kit = Kit::new()?;
    let place = kit.path("place");
    fs::create_dir(&place)?;
    for (name, text, mode) in [
        ("here", "here\n", 0o644),
        ("script", "#!/bin/sh\necho \"$# $2\"; exit 3\n", 0o755),
        ("plain", "echo plain\n", 0o755),
        ("cases", CASES, 0o644),
    ] {
        fs::write(place.join(name), text)?;
        fs::set_permissions(place.join(name), fs::Permissions::from_mode(mode))?;
    }
    // Not where it is: this checkout may be below /tmp, which is about to be another.
    let image = kit.path("image.ext4");
    fs::copy(kit::root(), &image)?;
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644))?;
    // As on every host. What users make in the rig's own becomes root's.
    let tmp = ["-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"];
    if !Command::new("mount").args(tmp).status()?.success() {
        return Err("mounting /tmp".into());
    }
    let kvm = open_kvm_to(user)?;
    if let Some(user) = user {
        chown(&place, Some(user), Some(user))?;
    }
    // The longest argument that Linux takes, and as many as fit beside it.
    let mut words: Vec<String> = ["", "two words", "\u{fc}\t*\n'\"$\\"].map(String::from).into();
    words.push("x".repeat((128 << 10) - 1));
    words.extend((0..9000).map(|i| format!("argument {i} {}", "y".repeat(i % 150))));
    let table = Table { kit: &kit, image, place, user, kvm, words };
    let rootfs = table.kit.path("rootfs");
    fs::create_dir(&rootfs)?;
    let mut shell = Command::new("sh");
    shell.args(["-ec", MOUNTS, "sh"]).arg(&table.image).arg(&rootfs).arg(table.kit.scratch());
    let mounted = shell.output()?;
    let result = match mounted.status.success() {
        true => table.compare(),
        false => {
            let free = Command::new("df").arg("-m").output()?;
            let said = [mounted.stdout, mounted.stderr, free.stdout].concat();
            let said = String::from_utf8_lossy(&said);
            Err(format!("mounting the root file system: {}: {said}", mounted.status).into())
        }
    };
    let _ = Command::new("umount").arg("-l").arg(&rootfs).status();
    let _ = Command::new("umount").args(["-l", "/tmp"]).status();
    result
}

impl Table<'_> {
    fn compare(&self) -> Verdict {
        let mut wrong = Vec::new();
        let native = self.all(Runner::Native)?;
        if native.len() < 90 {
            wrong.push(format!("only {} cases", native.len()));
        }
        for runner in [Runner::Crun, Runner::Microvm] {
            let results = self.all(runner)?;
            for (case, value) in &native {
                let listed = DIFFERENCES.iter().find(|(c, r, _)| c == case && *r == runner);
                let other = results.get(case).map_or("nothing", String::as_str);
                match (other == value, listed) {
                    (true, None) | (false, Some(_)) => {}
                    (true, Some((_, _, why))) => {
                        wrong.push(format!("{case}: {runner:?} does not differ: {why}"));
                    }
                    (false, None) => {
                        let short = |text: &str| text.chars().take(200).collect::<String>();
                        wrong.push(format!(
                            "{case}: natively {:?}, {runner:?} {:?}",
                            short(value),
                            short(other)
                        ));
                    }
                }
            }
        }
        if wrong.is_empty() { Ok(Completion::Completed) } else { Err(wrong.join("\n").into()) }
    }

    fn all(&self, runner: Runner) -> Result<BTreeMap<String, String>, String> {
        let mut results = self.report(runner)?;
        for (name, words) in [
            ("end.status-1", &["sh", "-c", "exit 1"][..]),
            ("end.status-255", &["sh", "-c", "exit 255"]),
            ("end.by-SIGTERM", &["sh", "-c", "kill -TERM $$"]),
            ("end.by-SIGKILL", &["sh", "-c", "kill -KILL $$"]),
            ("end.by-SIGSEGV", &["sh", "-c", "kill -SEGV $$"]),
            ("end.by-SIGINT", &["sh", "-c", "kill -INT $$"]),
            ("end.by-SIGPIPE", &["sh", "-c", "kill -PIPE $$"]),
            ("end.not-found", &["/no/such/program"]),
            ("end.not-executable", &["./here"]),
            ("end.directory", &["/tmp"]),
        ] {
            // One machine for each; root's are the same program's.
            if self.user.is_none() && !["end.by-SIGKILL", "end.status-255"].contains(&name) {
                continue;
            }
            let told = self.complete(runner, words, Vec::new())?;
            let told = match (runner, name) {
                // Not started, which a shell tells so.
                (Runner::Native, "end.not-found") => "0x7f00 0".to_owned(),
                (Runner::Native, "end.not-executable" | "end.directory") => "0x7e00 0".to_owned(),
                _ => format!("{:#x} {}", told.status, told.stdout.len()),
            };
            results.insert(name.to_owned(), told);
        }
        results.insert("stream.terminal".to_owned(), self.terminal(runner)?);
        if self.user.is_some() {
            results.insert("stream.closed".to_owned(), self.closed(runner)?);
        }
        Ok(results)
    }

    /// A command in one of the three, with everything else set.
    fn command(&self, runner: Runner, words: &[&str], terminal: bool) -> Result<Command, String> {
        let mut command = match runner {
            Runner::Native => {
                let mut command = Command::new(words[0]);
                command.args(&words[1..]);
                self.enter(&mut command)?;
                command
            }
            Runner::Crun => self.crun(words, terminal)?,
            Runner::Microvm => self.kit.run(&[], &self.image, words),
        };
        command.env_clear().envs(self.environment()).env("ODD", OsStr::from_bytes(b"\xff\xfe;"));
        command.current_dir(&self.place);
        if runner == Runner::Microvm {
            command.env("MICROVM_KERNEL", &self.kit.kernel);
        }
        if let (Some(user), false) = (self.user, runner == Runner::Crun) {
            as_user(&mut command, user, self.kvm);
        }
        if runner == Runner::Crun {
            command.current_dir(self.kit.path("bundle"));
        }
        inherit(&mut command);
        Ok(command)
    }

    /// Has a command run in the root file system, where the place has its own path.
    fn enter(&self, command: &mut Command) -> Result<(), String> {
        let path = |path: PathBuf| CString::new(path.as_os_str().as_bytes());
        let root = path(self.kit.path("rootfs")).map_err(|e| e.to_string())?;
        let place = path(self.place.clone()).map_err(|e| e.to_string())?;
        // SAFETY: both are strings that end with NUL, and the child's own.
        unsafe {
            command.pre_exec(move || {
                match libc::chroot(root.as_ptr()) == 0 && libc::chdir(place.as_ptr()) == 0 {
                    true => Ok(()),
                    false => Err(std::io::Error::last_os_error()),
                }
            });
        }
        Ok(())
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let place = self.place.display().to_string();
        [
            ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_owned()),
            ("HOME", place.clone()),
            ("PWD", place.clone()),
            ("REPORT", format!("{place}/report")),
            ("LARGE", "v".repeat(120_000)),
            ("EMPTY", String::new()),
            ("LINES2", "one\ntwo\n".to_owned()),
            ("EQUALS", "a=b=c".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn crun(&self, words: &[&str], terminal: bool) -> Result<Command, String> {
        let bundle = self.kit.path("bundle");
        let user = self.user.unwrap_or(0);
        let groups: Vec<u32> =
            if self.user.is_some() { vec![self.kvm, 4242] } else { own_groups() };
        let limits: Vec<_> = limits()
            .into_iter()
            .map(|(name, soft, hard)| json!({ "type": name, "soft": soft, "hard": hard }))
            .collect();
        let environment: Vec<String> =
            self.environment().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let all = [
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_DAC_READ_SEARCH",
            "CAP_FOWNER",
            "CAP_FSETID",
            "CAP_KILL",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SYS_RESOURCE",
            "CAP_SYS_ADMIN",
            "CAP_MKNOD",
            "CAP_SYS_CHROOT",
        ];
        let capabilities = if self.user.is_some() { json!([]) } else { json!(all) };
        let mount = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
        let config = json!({
            "ociVersion": "1.0.2",
            "root": { "path": self.kit.path("rootfs") },
            "hostname": fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim(),
            "process": {
                "terminal": terminal,
                "user": { "uid": user, "gid": user, "additionalGids": groups, "umask": 0o027 },
                "args": words,
                "env": environment,
                "cwd": self.place,
                "rlimits": limits,
                "capabilities": { "bounding": capabilities, "effective": capabilities,
                    "permitted": capabilities },
                "noNewPrivileges": false,
                "oomScoreAdj": 0,
            },
            "mounts": [
                mount("/proc", "proc", &[]),
                mount("/dev", "tmpfs", &["nosuid", "mode=755"]),
                mount("/dev/pts", "devpts", &["nosuid", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
                mount("/dev/shm", "tmpfs", &["nosuid", "mode=1777"]),
            ],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" },
                { "type": "uts" }] },
        });
        fs::create_dir_all(&bundle).map_err(|e| e.to_string())?;
        fs::write(bundle.join("config.json"), config.to_string()).map_err(|e| e.to_string())?;
        let mut command = Command::new("crun");
        command.arg("--root").arg(self.kit.path("crun")).args(["--cgroup-manager", "disabled"]);
        command.args(["run", "--bundle"]).arg(&bundle).arg("case");
        Ok(command)
    }

    fn complete(&self, runner: Runner, words: &[&str], input: Vec<u8>) -> Result<Told, String> {
        let result = complete(self.command(runner, words, false)?, input);
        // A program that can't be started is an error of spawn's natively.
        match (runner, result) {
            (Runner::Native, Err(_)) if words.len() == 1 => {
                Ok(Told { stdout: Vec::new(), stderr: String::new(), status: 0 })
            }
            (_, result) => result,
        }
    }

    /// The cases of [`LARGE`] and [`CASES`], and the stream through them.
    fn report(&self, runner: Runner) -> Result<BTreeMap<String, String>, String> {
        let mut words = vec!["sh", "-c", LARGE, "sh"];
        words.extend(self.words.iter().map(String::as_str));
        let bytes: u32 = if self.user.is_some() { 100 << 20 } else { 1 << 20 };
        let input = (0..bytes).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        let path = self.place.join("report");
        let told = self.complete(runner, &words, input).map_err(|why| {
            let text = fs::read_to_string(&path).unwrap_or_default();
            format!(
                "{runner:?}: {why}; the last case: {:?}",
                text.lines().rfind(|l| l.starts_with("=="))
            )
        })?;
        let text = fs::read(&path).map_err(|e| format!("{runner:?}: {e}: {}", told.stderr))?;
        fs::remove_file(&path).map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut results = parse(&text);
        let mut hash = DefaultHasher::new();
        hash.write(&told.stdout);
        let stream = format!("{} bytes, {:x}", told.stdout.len(), hash.finish());
        results.insert("stream.through".to_owned(), stream);
        results.insert("stream.error".to_owned(), told.stderr);
        results.insert("end.status-0".to_owned(), format!("{:#x}", told.status));
        Ok(results)
    }

    fn terminal(&self, runner: Runner) -> Result<String, String> {
        let script = "stty size; tty | cut -c1-9; test -t 0 && test -t 1 && test -t 2 && echo all; \
            stty -a | grep -o -- '-\\?icanon'; echo ready; read line; echo \"got $line\"; \
            trap 'echo interrupted; exit 6' INT; echo now; sleep 60";
        let command = self.command(runner, &["sh", "-c", script], true)?;
        let mut session = Session::sized(command, Some((31, 83)))?;
        session.expect("ready\r\n")?;
        session.send("wo\x7fords\n")?;
        session.expect("got words")?;
        session.expect("now")?;
        thread::sleep(std::time::Duration::from_millis(500));
        session.send("\x03")?;
        session.expect("interrupted")?;
        let text: Vec<String> = session.screen().lines().map(|l| l.trim_end().to_owned()).collect();
        Ok(format!("{} {}", text.join("|"), session.end()?))
    }

    /// Without input and error, as `<&- 2>&-` in a shell.
    fn closed(&self, runner: Runner) -> Result<String, String> {
        let path = self.place.join("closed");
        let script = "for fd in 0 1 2; do if (eval \"exec 9>&$fd\") 2>/dev/null; then \
            echo $fd open; else echo $fd closed; fi; done";
        let mut command = self.command(runner, &["sh", "-c", script], false)?;
        command.stdin(Stdio::null()).stdout(File::create(&path).map_err(|e| e.to_string())?);
        // SAFETY: close takes numbers.
        unsafe {
            command.pre_exec(|| {
                libc::close(0);
                libc::close(2);
                Ok(())
            });
        }
        let status = end(command.spawn().map_err(|e| e.to_string())?)?;
        let mut text = String::new();
        let read = File::open(&path).and_then(|mut file| file.read_to_string(&mut text));
        read.map_err(|e| e.to_string())?;
        Ok(format!("{} {status}", text.replace('\n', "|")))
    }
}

/// Values by the names of cases; of limits, each is one.
fn parse(text: &str) -> BTreeMap<String, String> {
    let mut results = BTreeMap::new();
    for case in text.split("== ").skip(1) {
        let (name, value) = case.split_once('\n').unwrap_or((case, ""));
        if name != "limits" {
            results.insert(name.to_owned(), value.to_owned());
            continue;
        }
        for line in value.lines().filter(|line| line.starts_with("Max")) {
            let (name, value) = line.split_at(line.len().min(26));
            let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
            results.insert(format!("limit.{}", name.trim()), value);
        }
    }
    results
}

fn own_groups() -> Vec<u32> {
    let mut groups = vec![0; 64];
    // SAFETY: the list has as much room as is said.
    let count = unsafe { libc::getgroups(groups.len() as i32, groups.as_mut_ptr()) };
    groups.truncate(usize::try_from(count).unwrap_or(0));
    groups
}

/// The limits of this process, as OCI names them, with those of the cases.
fn limits() -> Vec<(String, u64, u64)> {
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let one = |(number, name): (u32, &&str)| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: getrlimit fills the struct in that it is given.
        unsafe { libc::getrlimit(number, &mut limit) };
        if *name == "NOFILE" {
            limit = libc::rlimit { rlim_cur: 200, rlim_max: 3000 };
        }
        (format!("RLIMIT_{name}"), limit.rlim_cur, limit.rlim_max)
    };
    (0..).zip(NAMES.iter()).map(one).collect()
}
