//! The SVM rig: QEMU's TCG emulates a processor with AMD's virtualization.

use crate::initramfs::{self, Plan};
use crate::job::{HOST_TAG, Job, Line, PORT_NAME, Root};
use crate::linux::Kernel;
use crate::session::Feed;
use crate::{Options, cache::Scratch, init_binary, tools};
use anyhow::{Context, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Needed to mount the host's files.
const EARLY: &[&str] = &["9p", "9pnet_virtio"];
/// What commands may want besides KVM itself.
const EXTRA: &[&str] = &["tun", "vhost_net", "vhost_vsock", "overlay", "loop", "ext4"];

const CONSOLE: &str = "console=ttyS0 quiet loglevel=4";

/// Everything on disk and the command line of QEMU for one job.
pub fn prepare(options: &Options, mut job: Job, scratch: &Scratch) -> Result<(Command, Feed)> {
    tools::require(tools::SVM)?;
    let kernel = Kernel::prepare()?;
    let init = init_binary::prepare()?;
    let counting = options.count;
    if counting {
        job.root = Root::Packed;
        job.line = Line::Serial;
    }
    let early: &[&str] = if counting { &[] } else { EARLY };
    let kvm = format!("npt={}", u8::from(options.nested_paging));
    let mut wanted = vec!["kvm-amd"];
    wanted.extend(EXTRA);
    let mut plan = Plan::new(&init, &kernel);
    job.early_modules = plan.modules(early, &[])?;
    job.modules = plan.modules(&wanted, &[("kvm_amd", &kvm)])?;
    if counting {
        plan.pack(options, &job)?;
    }
    let initramfs = scratch.path().join("initramfs");
    initramfs::write(&plan, &job, &initramfs)?;

    let mut command = Command::new(
        tools::find("qemu-system-x86_64").context("qemu-system-x86_64 is not installed")?,
    );
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-monitor", "none", "-parallel", "none", "-net", "none", "-nographic"])
        // Five-level page tables and the like only make emulation slower.
        .args(["-cpu", "max,+svm,+npt,-la57,-smap,-smep,-umip,-pku"])
        .arg("-m")
        .arg(format!("{}M", options.memory_mib))
        .arg("-kernel")
        .arg(&kernel.elf)
        .arg("-initrd")
        .arg(&initramfs)
        .arg("-append")
        .arg(initramfs::kernel_parameters(CONSOLE))
        .arg("-chardev")
        .arg(format!("file,id=console,path={}", scratch.path().join("console").display()))
        .args(["-serial", "chardev:console"]);
    let feed = if counting {
        // Everything that varies from run to run is nailed down.
        let frames = scratch.path().join("frames");
        command
            .args(["-machine", "q35,hpet=off,vmport=off,i8042=off"])
            .args(["-accel", "tcg,thread=single,tb-size=512"])
            .args(["-icount", "shift=0,sleep=off", "-smp", "1", "-seed", "1"])
            .args(["-rtc", "base=2026-01-01T00:00:00,clock=vm"])
            .arg("-chardev")
            .arg(format!("file,id=frames,path={}", frames.display()))
            .args(["-serial", "chardev:frames"]);
        Feed::File(frames)
    } else {
        let (ours, theirs) = UnixStream::pair().context("making a socket pair")?;
        let security = if is_root() { "passthrough" } else { "none" };
        command
            .args(["-machine", "q35,hpet=off,vmport=off,i8042=off"])
            .args(["-accel", "tcg,thread=single,tb-size=512", "-smp"])
            .arg(options.cpus.to_string())
            .arg("-fsdev")
            .arg(format!("local,id=host,path=/,security_model={security},multidevs=remap"))
            .arg("-device")
            .arg(format!("virtio-9p-pci,fsdev=host,mount_tag={HOST_TAG}"))
            .args(["-device", "virtio-serial-pci,max_ports=2"])
            .arg("-chardev")
            .arg(format!("socket,id=line,fd={}", theirs.as_raw_fd()))
            .arg("-device")
            .arg(format!("virtserialport,chardev=line,name={PORT_NAME}"));
        hand_over(&mut command, theirs.into());
        Feed::Socket(ours)
    };
    Ok((command, feed))
}

/// Lets the child inherit a descriptor under its own number.
fn hand_over(command: &mut Command, descriptor: OwnedFd) {
    // SAFETY: fcntl is async-signal-safe; the descriptor lives in the closure
    // and is therefore open when it runs.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

fn is_root() -> bool {
    // SAFETY: takes and touches nothing.
    unsafe { libc::geteuid() == 0 }
}
