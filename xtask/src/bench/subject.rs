//! What is measured: a monitor, and how each is told to run the same guest.

use crate::kit::Kit;
use crate::workspace::{self, cargo, check};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A command line and the files it needs.
pub struct Invocation {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Files that its arguments do not name as words of their own.
    pub files: Vec<PathBuf>,
}

/// The guest: the same kernel, root and size for every monitor.
pub struct Guest<'a> {
    /// Kernel and root.
    pub kit: &'a Kit,
    /// MiB of memory.
    pub memory_mib: u32,
    /// `init=` and what follows it.
    pub init: &'a str,
    /// What it moves data through, if it does.
    pub peers: Option<Peers<'a>>,
}

/// Devices beside the root, for `bench io`.
pub struct Peers<'a> {
    /// A writable disk.
    pub disk: &'a Path,
    /// A TAP that exists where the monitor runs.
    pub tap: &'a str,
    /// Where the monitor puts its vsock.
    pub uds: &'a str,
}

/// What kind of command line a monitor takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Microvm,
    Firecracker,
    CloudHypervisor,
    Qemu,
}

/// A monitor.
pub struct Subject {
    /// How it is called in the report.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    kind: Kind,
    /// Whether its devices are PCI functions where they need not be.
    pci: bool,
}

/// Firmware and option ROMs of QEMU's microvm machine.
const QEMU_FILES: [&str; 6] = [
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/qemu/qboot.rom",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/kvmvapic.bin",
];

/// The leanest form that its manual gives, with a serial port.
const QEMU_MACHINE: &str =
    "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on";

impl Subject {
    /// This build, the others in their order, and QEMU if it is wanted.
    pub fn all(others: &[String], qemu: bool) -> Result<Vec<Self>> {
        let mut subjects = vec![Self::this_build()?];
        for other in others {
            subjects.push(Self::other(other)?);
        }
        if qemu {
            subjects.push(Self::qemu()?);
        }
        Ok(subjects)
    }

    /// This checkout, built as it is shipped.
    pub fn this_build() -> Result<Self> {
        let program = workspace::build_monitor()?;
        Ok(Self {
            name: "microvm (this build)".to_owned(),
            program,
            kind: Kind::Microvm,
            pci: false,
        })
    }

    /// QEMU's machine of the same name, from the distribution.
    pub fn qemu() -> Result<Self> {
        let program = PathBuf::from("/usr/bin/qemu-system-x86_64");
        if !program.is_file() {
            bail!("qemu-system-x86_64 is not installed: install Debian's qemu-system-x86");
        }
        let version = first_line(&program, "--version")?;
        let number = version.split_whitespace().nth(3).unwrap_or("?");
        Ok(Self {
            name: format!("QEMU {number} -M microvm"),
            program,
            kind: Kind::Qemu,
            pci: false,
        })
    }

    /// A program, or a commit of this repository to build.
    pub fn other(text: &str) -> Result<Self> {
        let path = Path::new(text);
        if path.is_file() {
            let program = fs::canonicalize(path)?;
            let version = first_line(&program, "--version")?;
            let kind = match version.split_whitespace().next() {
                Some("Firecracker") => Kind::Firecracker,
                Some("cloud-hypervisor") => Kind::CloudHypervisor,
                Some("QEMU") => Kind::Qemu,
                Some("microvm") => Kind::Microvm,
                _ => bail!("{text}: {version:?}: a monitor that this program does not know"),
            };
            return Ok(Self { name: version, program, kind, pci: false });
        }
        let commit = commit(text)?;
        let program = build(&commit)?;
        Ok(Self {
            name: format!("microvm {}", &commit[..10]),
            program,
            kind: Kind::Microvm,
            pci: false,
        })
    }

    /// The same with devices on PCI, where that is a choice.
    pub fn on_pci(&self) -> Option<Self> {
        matches!(self.kind, Kind::Microvm | Kind::Firecracker).then(|| Self {
            name: format!("{}, PCI", self.name),
            program: self.program.clone(),
            kind: self.kind,
            pci: true,
        })
    }

    /// Whether a guest that resets the machine ends it.
    pub fn ends_by_reset(&self) -> bool {
        self.kind != Kind::CloudHypervisor
    }

    /// Whether it has a vsock device of its own.
    pub fn has_vsock(&self) -> bool {
        self.kind != Kind::Qemu
    }

    /// How this monitor is told to run `guest`. Each gets the words that its
    /// own documentation advises and that make it fastest. `scratch` is for
    /// what must be in a file.
    pub fn invocation(&self, guest: &Guest<'_>, scratch: &Path) -> Result<Invocation> {
        let (kernel, root) = (&guest.kit.kernel, &guest.kit.root);
        let mut command = vec![self.program.clone().into_os_string()];
        let mut files = vec![kernel.clone(), root.clone()];
        let mut add = |words: &[&str]| command.extend(words.iter().map(OsString::from));
        let (kernel, root) = (utf8(kernel)?, utf8(root)?);
        let memory = guest.memory_mib.to_string();
        match self.kind {
            Kind::Microvm => {
                add(&["--kernel", kernel, "--rootfs", &format!("{root},readonly=on")]);
                add(&["--memory", &format!("{memory}M")]);
                add(&["--cmdline", &format!("quiet init={}", guest.init)]);
                if self.pci {
                    add(&["--transport", "pci"]);
                }
                if let Some(Peers { disk, tap, uds }) = &guest.peers {
                    add(&["--disk", utf8(disk)?, "--net", &format!("tap={tap}")]);
                    add(&["--vsock", &format!("uds={uds}")]);
                }
            }
            Kind::Firecracker => {
                let line = format!(
                    "quiet console=ttyS0 reboot=k panic=-1 i8042.noaux i8042.nomux \
                     i8042.dumbkbd init={}",
                    guest.init
                );
                let mut configuration = json!({
                    "boot-source": {"kernel_image_path": kernel, "boot_args": line},
                    "drives": [{"drive_id": "root", "path_on_host": root,
                                "is_root_device": true, "is_read_only": true}],
                    "machine-config": {"vcpu_count": 1, "mem_size_mib": guest.memory_mib},
                });
                if let Some(Peers { disk, tap, uds }) = &guest.peers {
                    let drive = json!({"drive_id": "data", "path_on_host": utf8(disk)?,
                                       "is_root_device": false, "is_read_only": false});
                    configuration["drives"].as_array_mut().context("drives")?.push(drive);
                    configuration["network-interfaces"] =
                        json!([{"iface_id": "eth0", "host_dev_name": tap}]);
                    configuration["vsock"] = json!({"guest_cid": 3, "uds_path": uds});
                }
                if self.pci {
                    add(&["--enable-pci"]);
                }
                let name = if self.pci { "firecracker-pci.json" } else { "firecracker.json" };
                let file = scratch.join(name);
                fs::write(&file, configuration.to_string())?;
                add(&["--no-api", "--level", "Error", "--config-file", utf8(&file)?]);
                files.push(file);
            }
            Kind::CloudHypervisor => {
                let line = format!("quiet console=ttyS0 root=/dev/vda ro init={}", guest.init);
                add(&["--kernel", kernel, "--cmdline", &line, "--serial", "tty"]);
                // It has a word to say for each of the guest's marks.
                add(&["--console", "off", "--cpus", "boot=1", "--log-file", "/dev/null"]);
                add(&["--memory", &format!("size={memory}M"), "--disk"]);
                add(&[&format!("path={root},readonly=on,image_type=raw")]);
                if let Some(Peers { disk, tap, uds }) = &guest.peers {
                    add(&[&format!("path={},image_type=raw", utf8(disk)?)]);
                    add(&["--net", &format!("tap={tap}")]);
                    add(&["--vsock", &format!("cid=3,socket={uds}")]);
                }
            }
            Kind::Qemu => {
                let line = format!(
                    "quiet console=ttyS0 root=/dev/vda ro reboot=t panic=-1 pci=off init={}",
                    guest.init
                );
                add(&["-M", QEMU_MACHINE, "-cpu", "host"]);
                add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
                add(&["-m", &memory, "-smp", "1", "-serial", "stdio", "-kernel", kernel]);
                add(&["-append", &line, "-device", "virtio-blk-device,drive=root", "-drive"]);
                add(&[&format!("id=root,file={root},format=raw,if=none,readonly=on")]);
                if let Some(Peers { disk, tap, .. }) = &guest.peers {
                    add(&["-device", "virtio-blk-device,drive=data", "-drive"]);
                    add(&[&format!("id=data,file={},format=raw,if=none", utf8(disk)?)]);
                    add(&["-device", "virtio-net-device,netdev=net", "-netdev"]);
                    add(&[&format!("tap,id=net,ifname={tap},script=no,downscript=no")]);
                }
                files.extend(QEMU_FILES.iter().map(PathBuf::from).filter(|file| file.exists()));
            }
        }
        files.extend(guest.peers.as_ref().map(|peers| peers.disk.to_owned()));
        Ok(Invocation { command, files })
    }

    /// What makes it start where its own tests say that Linux could not run.
    pub fn without_probe(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Microvm => &["--skip-probe"],
            Kind::Firecracker | Kind::CloudHypervisor | Kind::Qemu => &[],
        }
    }
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}: not UTF-8", path.display()))
}

fn first_line(program: &Path, argument: &str) -> Result<String> {
    let output = Command::new(program).arg(argument).output();
    let output = output.with_context(|| format!("starting {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// The full name of a commit.
pub fn commit(text: &str) -> Result<String> {
    let name = format!("{text}^{{commit}}");
    let output = Command::new("git")
        .current_dir(workspace::root())
        .args(["rev-parse", "--verify", "--quiet", &name])
        .output()
        .context("starting git")?;
    if !output.status.success() {
        bail!("{text}: neither a program nor a commit of this repository");
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Builds a commit beside this checkout; keeps the program for the next time.
fn build(commit: &str) -> Result<PathBuf> {
    let directory = workspace::target_directory().join("bench");
    let kept = directory.join(format!("microvm-{commit}"));
    if kept.is_file() {
        return Ok(kept);
    }
    fs::create_dir_all(&directory)?;
    fs::rename(in_worktree(commit, build_in)?, &kept)?;
    Ok(kept)
}

/// Does something in a checkout of `commit`, which is gone afterwards.
pub fn in_worktree<T>(commit: &str, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let tree = workspace::target_directory().join("bench").join(commit);
    let git = |arguments: &[&str]| {
        check(Command::new("git").current_dir(workspace::root()).args(arguments))
    };
    let tree_text = utf8(&tree)?;
    git(&["worktree", "add", "--quiet", "--force", "--detach", tree_text, commit])?;
    let outcome = work(&tree);
    git(&["worktree", "remove", "--force", tree_text])?;
    outcome
}

fn build_in(tree: &Path) -> Result<PathBuf> {
    let target = workspace::target_directory().join("bench/target");
    let mut command = cargo(&workspace::MONITOR);
    command.current_dir(tree).env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", workspace::STATIC);
    check(&mut command)?;
    Ok(target.join(workspace::TARGET).join("release/microvm"))
}
