//! The VT-x rig: Bochs emulates a processor with Intel's virtualization.
//!
//! Nothing but VT-x itself is fast to set up here: no shared files, no virtio.
//! The machine boots a CD, everything the command needs is in the initramfs,
//! and its output comes back through a serial port that Bochs writes to a file.

use crate::initramfs::{self, Plan};
use crate::job::{Job, Line, Root};
use crate::linux::Kernel;
use crate::session::Feed;
use crate::{Options, cache::Scratch, init_binary, tools};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bochs takes the speed of a serial line at its word, so every line the kernel
/// prints costs time.
const CONSOLE: &str = "console=ttyS0,115200 quiet loglevel=2";

/// Everything on disk and the command line of Bochs for one job.
pub fn prepare(options: &Options, mut job: Job, scratch: &Scratch) -> Result<(Command, Feed)> {
    tools::require(tools::VTX)?;
    let kernel = Kernel::prepare()?;
    let init = init_binary::prepare()?;
    job.root = Root::Packed;
    job.line = Line::Serial;
    let mut plan = Plan::new(&init, &kernel);
    let ept = format!("ept={}", u8::from(options.nested_paging));
    job.modules = plan.modules(&["kvm-intel", "tun"], &[("kvm_intel", &ept)])?;
    plan.pack(options, &job)?;

    let tree = scratch.path().join("cd");
    fs::create_dir_all(tree.join("boot/grub"))?;
    let whole = scratch.path().join("initramfs");
    initramfs::write(&plan, &job, &whole)?;
    // The BIOS reads the CD at a crawl, and disk images are mostly zeroes.
    tools::output(
        Command::new("zstd").args(["-q", "-3", "-o"]).arg(tree.join("initramfs")).arg(&whole),
    )?;
    fs::remove_file(&whole)?;
    fs::copy(&kernel.image, tree.join("vmlinuz")).context("copying the kernel")?;
    let parameters = initramfs::kernel_parameters(CONSOLE);
    let menu = format!("set timeout=0\nlinux /vmlinuz {parameters}\ninitrd /initramfs\nboot\n");
    fs::write(tree.join("boot/grub/grub.cfg"), menu)?;
    let image = scratch.path().join("cd.iso");
    make_cd(&tree, &image)?;

    let frames = scratch.path().join("frames");
    let configuration = scratch.path().join("bochsrc");
    fs::write(
        &configuration,
        configure(options, &image, &scratch.path().join("console"), &frames, scratch.path())?,
    )?;
    // Debian's build starts in its debugger: tell that to go on.
    let debugger = scratch.path().join("debugger");
    fs::write(&debugger, "c\n")?;
    let mut command = Command::new(tools::find("bochs").context("bochs is not installed")?);
    command
        .arg("-q")
        .arg("-f")
        .arg(&configuration)
        .arg("-rc")
        .arg(&debugger)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok((command, Feed::File(frames)))
}

fn make_cd(tree: &Path, image: &Path) -> Result<()> {
    tools::output(
        Command::new(tools::find("grub-mkrescue").context("grub-mkrescue is not installed")?)
            .args(["--install-modules=linux normal iso9660 biosdisk"])
            .args(["--fonts=", "--locales=", "--themes=", "-o"])
            .arg(image)
            .arg(tree),
    )?;
    Ok(())
}

fn configure(
    options: &Options,
    cd: &Path,
    console: &Path,
    frames: &Path,
    scratch: &Path,
) -> Result<String> {
    let bios = rom(&["/usr/share/bochs/BIOS-bochs-latest"])?;
    let vga = rom(&["/usr/share/bochs/VGABIOS-lgpl-latest", "/usr/share/vgabios/vgabios.bin"])?;
    Ok(format!(
        "config_interface: textconfig\n\
         display_library: rfb, options=\"timeout=0\"\n\
         cpu: model=corei7_skylake_x, count=1, ips=50000000, \
         reset_on_triple_fault=0, ignore_bad_msrs=1\n\
         megs: {}\n\
         romimage: file={}\n\
         vgaromimage: file={}\n\
         ata0-master: type=cdrom, path=\"{}\", status=inserted\n\
         boot: cdrom\n\
         clock: sync=none, time0=1767225600\n\
         com1: enabled=1, mode=file, dev={}\n\
         com2: enabled=1, mode=file, dev={}\n\
         sound: driver=dummy\n\
         speaker: enabled=0\n\
         mouse: enabled=0\n\
         log: {}\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=ignore\n\
         debug: action=ignore\n",
        options.memory_mib.min(2048),
        bios.display(),
        vga.display(),
        cd.display(),
        console.display(),
        frames.display(),
        scratch.join("log").display(),
    ))
}

fn rom(places: &[&str]) -> Result<PathBuf> {
    places
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .with_context(|| format!("no such ROM image: {}", places.join(" or ")))
}
