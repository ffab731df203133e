//! How each subject is started: one program, in the way that its users would.

mod tool;

use crate::Error;
use crate::cgroup::Group;
use crate::namespaces::Setup;
use crate::place::Place;
use crate::spawn::Order;
use crate::subject::Subject;
use std::cell::Cell;
use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use vmm::host::find_command;

/// Of every virtual machine.
const MEMORY: &str = "256M";
/// Stands for the directory or disk where a subject's disk is measured.
pub const DISK: &str = "DISK";

/// What runs in a subject.
#[derive(Debug, Clone, Copy)]
pub enum Work<'a> {
    /// The agent.
    Agent(&'a [&'a str]),
    /// The agent in a machine whose counters can be read meanwhile.
    Counted(&'a [&'a str]),
    /// A program of the host's.
    Command(&'a [String]),
    /// One that starts two others, in machines with two processors.
    Parallel(&'a [String]),
}

/// What all subjects are started with.
pub struct Workshop {
    /// Where.
    pub place: Place,
    /// This program, which is a subject as well.
    pub microvm: PathBuf,
    /// The kernel of guests, or why there is none.
    pub kernel: Result<PathBuf, String>,
    /// Whether control groups with limits can be had.
    pub groups: Result<(), String>,
    counter: Cell<u32>,
}

/// What can't be.
fn cannot(reason: impl Into<String>) -> Error {
    Error::Subject(reason.into())
}

impl Workshop {
    /// Looks for what there is.
    pub fn new(microvm: PathBuf, kernel: Option<PathBuf>) -> Result<Self, Error> {
        let place = Place::new().map_err(Error::host("scratch directory"))?;
        let kernel = job::kernel::find(kernel).map_err(|error| error.to_string());
        let groups = Group::new(&format!("microvm-compare-{}", std::process::id()));
        let groups = groups.map(drop).map_err(|error| vmm::plain(&error));
        Ok(Self { place, microvm, kernel, groups, counter: Cell::new(0) })
    }

    /// The socket where a machine that is [`Work::Counted`] tells its counters.
    pub fn counters(&self) -> PathBuf {
        self.place.path().join("counters")
    }

    fn metrics(&self) -> String {
        format!("socket={}", self.counters().display())
    }

    fn next(&self) -> u32 {
        self.counter.set(self.counter.get() + 1);
        self.counter.get()
    }

    /// What starts a subject with this work.
    pub fn order(&self, subject: Subject, work: Work) -> Result<Order, Error> {
        match subject {
            Subject::Native => self.native(work),
            Subject::One(_) | Subject::All | Subject::Sandbox => self.namespaces(subject, work),
            Subject::Tool(tool) => self.tool(tool, work),
            Subject::Job => self.job(work),
            Subject::Mode(mode) => self.machine(mode, work),
        }
    }

    fn native(&self, work: Work) -> Result<Order, Error> {
        let (program, words) = self.on_host(work)?;
        Order::new(&program, words).map_err(Error::host("arguments"))
    }

    /// The program and its words where the host's files are seen.
    fn on_host(&self, work: Work) -> Result<(PathBuf, Vec<String>), Error> {
        match work {
            Work::Agent(words) | Work::Counted(words) => {
                Ok((self.place.agent(), placed(words, &self.place.scratch().to_string_lossy())))
            }
            Work::Command(words) | Work::Parallel(words) => {
                let (program, rest) = words.split_first().ok_or_else(|| cannot("no command"))?;
                let found = find_command(program)
                    .ok_or_else(|| cannot(format!("{program}: no such program")))?;
                Ok((found, rest.to_vec()))
            }
        }
    }

    fn namespaces(&self, subject: Subject, work: Work) -> Result<Order, Error> {
        let own_root = subject.namespaces() & libc::CLONE_NEWNS as u64 != 0;
        let (program, words) = match work {
            Work::Agent(words) | Work::Counted(words) if own_root => {
                (PathBuf::from("/agent"), placed(words, "/scratch"))
            }
            _ => self.on_host(work)?,
        };
        let mut order = Order::new(&program, words).map_err(Error::host("arguments"))?;
        let rootfs = self.place.rootfs();
        let setup = match work {
            Work::Agent(_) | Work::Counted(_) => {
                Setup::new(subject, &rootfs, &rootfs, Path::new("/"))
            }
            Work::Command(_) | Work::Parallel(_) => {
                let here = env::current_dir().unwrap_or_else(|_| "/".into());
                Setup::new(subject, Path::new("/"), &self.place.mount(), &here)
            }
        };
        order.setup = Some(setup.map_err(Error::host("namespaces"))?);
        if subject == Subject::Sandbox && self.groups.is_ok() {
            order.group =
                Some(Group::new(&self.container()).map_err(Error::host("control group"))?);
        }
        Ok(order)
    }

    fn job(&self, work: Work) -> Result<Order, Error> {
        let kernel = self.kernel.clone().map_err(Error::Subject)?;
        let (memory, cpus) = match work {
            Work::Parallel(_) => ("512M", "2"),
            _ => (MEMORY, "1"),
        };
        let mut words: Vec<String> = [
            "run",
            "--kernel",
            &kernel.to_string_lossy(),
            "--memory",
            memory,
            "--cpus",
            cpus,
            "--net",
            "none",
            "--exec",
        ]
        .map(str::to_owned)
        .into();
        if let Work::Counted(_) = work {
            words.extend(["--metrics".to_owned(), self.metrics()]);
        }
        match work {
            Work::Agent(agent) | Work::Counted(agent) => {
                let bind = format!("{}:/scratch", self.place.scratch().display());
                words.extend(["--contain".to_owned(), "--bind".to_owned(), bind]);
                words.extend([
                    self.place.rootfs().to_string_lossy().into_owned(),
                    "/agent".to_owned(),
                ]);
                words.extend(placed(agent, "/scratch"));
            }
            Work::Command(command) | Work::Parallel(command) => {
                if let Work::Parallel(_) = work {
                    let here = self.place.path().display();
                    words.extend(["--bind".to_owned(), format!("{here}:{here}")]);
                }
                words.push("host".to_owned());
                words.extend_from_slice(command);
            }
        }
        Order::new(&self.microvm, words).map_err(Error::host("arguments"))
    }

    fn machine(&self, mode: &str, work: Work) -> Result<Order, Error> {
        let kernel = self.kernel.clone().map_err(Error::Subject)?;
        let (Work::Agent(agent) | Work::Counted(agent)) = work else {
            return Err(cannot("its guest has no programs of the host's: see vm:job"));
        };
        // What has no meaning to Linux behind `--` is init's.
        let cmdline = format!("quiet loglevel=0 rdinit=/agent -- boot {}", agent.join(" "));
        let (initrd, mut disk) = (self.place.initramfs(), self.place.disk().into_os_string());
        if !agent.contains(&DISK) {
            // Many machines at once have it.
            disk.push(",readonly=on");
        }
        let metrics = self.metrics();
        let counted: &[&OsStr] = match work {
            Work::Counted(_) => &["--metrics".as_ref(), metrics.as_ref()],
            _ => &[],
        };
        let words: [&OsStr; 14] = [
            "--mode".as_ref(),
            mode.as_ref(),
            "--kernel".as_ref(),
            kernel.as_os_str(),
            "--initrd".as_ref(),
            initrd.as_os_str(),
            "--disk".as_ref(),
            &disk,
            "--memory".as_ref(),
            MEMORY.as_ref(),
            "--cmdline".as_ref(),
            cmdline.as_ref(),
            "--log".as_ref(),
            "error".as_ref(),
        ];
        Order::new(&self.microvm, words.iter().chain(counted)).map_err(Error::host("arguments"))
    }
}

fn placed(words: &[&str], disk: &str) -> Vec<String> {
    words
        .iter()
        .map(|word| if *word == DISK { disk.to_owned() } else { (*word).to_owned() })
        .collect()
}
