//! One subject, from its configuration to its figures.

use crate::figures::{self, Runs};
use crate::report::Mode;
use crate::{Effort, Error, Options, Subject};
use guest::measure::{Operation, PEER, ROOT, SCRATCH, Task, VARIABLE};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;
use vmm::config::{Config, Net, NetBackend, Serial, UserBackend, UserNet};
use vmm::ending::Ending;
use vmm::exit::Exit;
use vmm::machine::{self, Attached};
use vmm::record::{Record, Recorder};

/// No machine is waited for longer, even where it is emulated itself; and with many
/// repetitions.
const LIMIT: Duration = Duration::from_secs(90);
const FULL_LIMIT: Duration = Duration::from_secs(180);
/// What a machine lacks in which interrupts end as on a real one.
const PLAIN_EOI: &str = "eoi=off";
/// The size of the disk that is overwritten: unlikely to be another's, and there is
/// room for all that is read and written.
const SCRATCH_SIZE: u64 = (8 << 20) + (4 << 10);
const SECTOR: u64 = 512;

/// What all subjects have.
pub struct Bench<'a> {
    /// What was asked for.
    pub options: &'a Options,
    /// The init that measures.
    pub initramfs: &'a Path,
    /// Where the guest finds its peer.
    pub peer: u16,
}

/// A machine that has run.
pub struct Ran {
    /// What it did.
    pub record: Record,
    /// What it was made from.
    pub config: Config,
    /// How it ended.
    pub exit: Exit,
}

impl Bench<'_> {
    /// Boots the subject; once more where it can have a second processor, and once
    /// more without KVM's way to end interrupts where it has that.
    pub fn run(&self, subject: &Subject) -> Result<Mode, Error> {
        let effort = self.options.effort;
        let task = match effort {
            Effort::Boot => Task::Boot,
            Effort::Quick => Task::Quick,
            Effort::Full => Task::Full,
        };
        let alone = self.boot(subject, task, 1)?;
        // One that does not end would not another time either.
        let more = effort != Effort::Boot && alone.exit == Exit::Told;
        let pair = (more && subject.can_have_two()).then(|| self.boot(subject, Task::Ipi, 2));
        let plain = (more && subject.has_pv_eoi()).then(|| self.boot(subject, Task::Tick, 1));
        let (pair, plain) = (pair.transpose()?, plain.transpose()?);
        let runs = Runs { alone: &alone, pair: pair.as_ref(), plain: plain.as_ref() };
        Ok(figures::mode(subject, runs, effort, self.options.clock))
    }

    fn boot(&self, subject: &Subject, task: Task, cpus: u32) -> Result<Ran, Error> {
        let (_scratch, path, size) = self.scratch()?;
        let mut config = self.config(task, (&path, size), cpus)?;
        subject.configure(&mut config);
        if task == Task::Tick {
            config.pv_features = PLAIN_EOI.parse().map_err(machine::Error::from)?;
        }
        let ending = Ending::new().map_err(|source| Error::Host { what: "eventfd", source })?;
        let end = ending.clone();
        let done = Operation::Done.mark(1);
        let recorder = Arc::new(Recorder::new(move |word| {
            if word == done {
                end.end(Exit::Told);
            }
        }));
        let limit = if self.options.effort == Effort::Full { FULL_LIMIT } else { LIMIT };
        let exit = run_within_limit(&config, limit, ending, recorder.clone())?;
        Ok(Ran { record: recorder.take(), config, exit })
    }

    /// The file that the guest may overwrite: its path, and its sectors.
    fn scratch(&self) -> Result<(File, PathBuf, u64), Error> {
        let host = |source| Error::Host { what: "scratch disk", source };
        let root = self.options.rootfs.as_ref();
        let taken = root.and_then(|disk| std::fs::metadata(&disk.path).ok());
        let mut size = SCRATCH_SIZE;
        if taken.is_some_and(|taken| taken.len() == size) {
            size += 4 << 10;
        }
        let file = tempfile::tempfile().map_err(host)?;
        file.set_len(size).map_err(host)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok((file, path.into(), size / SECTOR))
    }

    fn config(&self, task: Task, scratch: (&Path, u64), cpus: u32) -> Result<Config, Error> {
        let mut config = Config::new(&self.options.kernel);
        config.initrd = Some(self.initramfs.to_owned());
        config.cpus = cpus;
        let (path, sectors) = scratch;
        let disk = path.display().to_string().parse();
        config.disks.push(disk.map_err(machine::Error::from)?);
        let mut words = format!(
            "{} quiet panic=-1 {VARIABLE}={} {SCRATCH}={sectors} {PEER}=10.0.2.2:{}",
            self.options.cmdline,
            task.word(),
            self.peer
        );
        if let Some(root) = &self.options.rootfs {
            let mut root = root.clone();
            root.readonly = true;
            config.rootfs = Some(root);
            words += &format!(" {ROOT}=1");
        }
        config.cmdline = words.trim().to_owned();
        let network =
            UserNet { backend: UserBackend::Internal, host_loopback: true, ..UserNet::default() };
        config.nets.push(Net {
            backend: NetBackend::User(network),
            mac: None,
            mtu: None,
            queues: None,
            rate: None,
            ops: None,
            vhost: Default::default(),
        });
        // The console is the recorder's to read, and nobody types.
        config.serial = Some(Serial::File("/dev/null".into()));
        Ok(config)
    }
}

/// Runs the machine on a thread of its own, which has filters of its own, and ends
/// it when it takes too long.
fn run_within_limit(
    config: &Config,
    limit: Duration,
    ending: Ending,
    recorder: Arc<Recorder>,
) -> Result<Exit, Error> {
    let (finished, wait) = mpsc::channel::<()>();
    let watched = ending.clone();
    let watchdog = thread::spawn(move || {
        if wait.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            watched.end(Exit::Signal(SIGALRM));
        }
    });
    let config = config.clone();
    let machine = thread::Builder::new().name("machine".to_owned()).spawn(move || {
        let attached =
            Attached { ending: Some(ending), recorder: Some(recorder), ..Attached::default() };
        machine::run(&config, attached)
    });
    let host = |source: io::Error| Error::Host { what: "thread", source };
    let exit = machine.map_err(host)?.join();
    drop(finished);
    let _ = watchdog.join();
    exit.map_err(|_| host(io::Error::other("it panicked")))?.map_err(Error::from)
}

/// What ends a program that takes too long.
pub const SIGALRM: i32 = 14;
