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
}

/// What kind of command line a monitor takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Microvm,
    Firecracker,
    Qemu,
}

/// A monitor.
pub struct Subject {
    /// How it is called in the report.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    kind: Kind,
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
    /// This checkout, built as it is shipped.
    pub fn this_build() -> Result<Self> {
        let program = workspace::build_monitor()?;
        Ok(Self { name: "microvm (this build)".to_owned(), program, kind: Kind::Microvm })
    }

    /// QEMU's machine of the same name, from the distribution.
    pub fn qemu() -> Result<Self> {
        let program = PathBuf::from("/usr/bin/qemu-system-x86_64");
        if !program.is_file() {
            bail!("qemu-system-x86_64 is not installed: install Debian's qemu-system-x86");
        }
        let version = first_line(&program, "--version")?;
        let number = version.split_whitespace().nth(3).unwrap_or("?");
        Ok(Self { name: format!("QEMU {number} -M microvm"), program, kind: Kind::Qemu })
    }

    /// A program, or a commit of this repository to build.
    pub fn other(text: &str) -> Result<Self> {
        let path = Path::new(text);
        if path.is_file() {
            let program = fs::canonicalize(path)?;
            let version = first_line(&program, "--version")?;
            let kind = match version.split_whitespace().next() {
                Some("Firecracker") => Kind::Firecracker,
                Some("QEMU") => Kind::Qemu,
                Some("microvm") => Kind::Microvm,
                _ => bail!("{text}: {version:?}: neither microvm, Firecracker nor QEMU"),
            };
            return Ok(Self { name: version, program, kind });
        }
        let commit = commit(text)?;
        let program = build(&commit)?;
        Ok(Self { name: format!("microvm {}", &commit[..10]), program, kind: Kind::Microvm })
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
            }
            Kind::Firecracker => {
                let line = format!(
                    "quiet console=ttyS0 reboot=k panic=-1 i8042.noaux i8042.nomux \
                     i8042.dumbkbd init={}",
                    guest.init
                );
                let configuration = json!({
                    "boot-source": {"kernel_image_path": kernel, "boot_args": line},
                    "drives": [{"drive_id": "root", "path_on_host": root,
                                "is_root_device": true, "is_read_only": true}],
                    "machine-config": {"vcpu_count": 1, "mem_size_mib": guest.memory_mib},
                });
                let file = scratch.join("firecracker.json");
                fs::write(&file, configuration.to_string())?;
                add(&["--no-api", "--level", "Error", "--config-file", utf8(&file)?]);
                files.push(file);
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
                files.extend(QEMU_FILES.iter().map(PathBuf::from).filter(|file| file.exists()));
            }
        }
        Ok(Invocation { command, files })
    }

    /// What makes it start where its own tests say that Linux could not run.
    pub fn without_probe(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Microvm => &["--skip-probe"],
            Kind::Firecracker | Kind::Qemu => &[],
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
fn commit(text: &str) -> Result<String> {
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
    let tree = directory.join(commit);
    let git = |arguments: &[&str]| {
        check(Command::new("git").current_dir(workspace::root()).args(arguments))
    };
    let tree_text = utf8(&tree)?;
    git(&["worktree", "add", "--quiet", "--force", "--detach", tree_text, commit])?;
    let built = build_in(&tree);
    git(&["worktree", "remove", "--force", tree_text])?;
    fs::rename(built?, &kept)?;
    Ok(kept)
}

fn build_in(tree: &Path) -> Result<PathBuf> {
    let target = workspace::target_directory().join("bench/target");
    let mut command = cargo(&workspace::MONITOR);
    command.current_dir(tree).env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", workspace::STATIC);
    check(&mut command)?;
    Ok(target.join(workspace::TARGET).join("release/microvm"))
}
