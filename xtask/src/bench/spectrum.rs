//! `cargo xtask bench spectrum`: exits of every mode beside QEMU's on the same
//! board, with the same kernel and root, in the counting rig.
//!
//! QEMU starts with SeaBIOS, microvm at the kernel's own entry: what a firmware
//! costs is part of QEMU's figures on a PC.

use super::boot::last_line;
use crate::kit::Kit;
use crate::workspace;
use anyhow::{Context, Result, bail};
use clap::Args;
use rig::Options;
use rig::exits::{Report, cause};
use rig::job::Trace;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments of the command.
#[derive(Args)]
pub struct SpectrumArguments {
    /// The microvm to measure instead of a release build of this checkout
    #[arg(long, value_name = "PROGRAM")]
    program: Option<PathBuf>,
    /// Only this mode; may be repeated
    #[arg(long, value_name = "MODE")]
    mode: Vec<String>,
}

/// A mode, and how QEMU is told to be the same machine.
struct Pair {
    mode: &'static str,
    machine: &'static str,
    processor: &'static str,
    disk: &'static [&'static str],
    root: &'static str,
}

const PC: &str = "pc,accel=kvm,usb=off,vmport=off";
const NO_KVM: &str = "host,kvm=off,hypervisor=off";
const VIRTIO: &[&str] = &["-device", "virtio-blk-pci,drive=root,disable-legacy=on"];

const PAIRS: [Pair; 4] = [
    Pair {
        mode: "hvm",
        machine: PC,
        processor: NO_KVM,
        disk: &["-device", "ide-hd,drive=root"],
        root: "/dev/sda",
    },
    Pair { mode: "hvm-pv", machine: PC, processor: NO_KVM, disk: VIRTIO, root: "/dev/vda" },
    Pair { mode: "pvhvm", machine: PC, processor: "host", disk: VIRTIO, root: "/dev/vda" },
    Pair {
        mode: "pv",
        machine: "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=on,isa-serial=on",
        processor: "host",
        disk: &["-device", "virtio-blk-device,drive=root"],
        root: "/dev/vda",
    },
];

/// Firmware and option ROMs that QEMU looks for.
const QEMU_FILES: [&str; 9] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/bios-256k.bin",
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/qemu/qboot.rom",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/linuxboot.bin",
    "/usr/share/qemu/kvmvapic.bin",
];
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Causes of each pair that are told.
const CAUSES: usize = 6;

impl SpectrumArguments {
    /// Measures and prints the table.
    pub fn run(self) -> Result<u8> {
        let program = match self.program {
            Some(program) => std::fs::canonicalize(&program)
                .with_context(|| format!("finding {}", program.display()))?,
            None => workspace::build_monitor()?,
        };
        if !Path::new(QEMU).is_file() {
            bail!("qemu-system-x86_64 is not installed: install Debian's qemu-system-x86");
        }
        let kit = Kit::prepare()?;
        let chosen =
            |pair: &&Pair| self.mode.is_empty() || self.mode.iter().any(|m| m == pair.mode);
        println!("| | exits | of them to user space | QEMU's exits | of them to user space |");
        println!("| --- | ---: | ---: | ---: | ---: |");
        let mut details = String::new();
        let mut failed = 0;
        for pair in PAIRS.iter().filter(chosen) {
            eprintln!("measuring {} …", pair.mode);
            let both =
                [microvm(pair, &program, &kit), qemu(pair, &kit)].map(|command| count(&command?));
            let cells = both.each_ref().map(|report| match report {
                Ok(report) => {
                    let total = |event| report.total(event);
                    format!("{} | {}", total("kvm_exit"), total("kvm_userspace_exit"))
                }
                Err(_) => "n/a | n/a".to_owned(),
            });
            println!("| `{}` | {} |", pair.mode, cells.join(" | "));
            for (name, report) in ["microvm", "QEMU"].iter().zip(&both) {
                details += &match report {
                    Ok(report) => format!("{} {name}: {}\n", pair.mode, causes(report)),
                    Err(error) => format!("{} {name}: {error:#}\n", pair.mode),
                };
                failed += u8::from(report.is_err());
            }
        }
        print!("\n{details}");
        Ok(failed.min(1))
    }
}

/// The ports, registers and reasons that exits were for most.
fn causes(report: &Report) -> String {
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    for event in ["kvm_exit", "kvm_pio", "kvm_mmio"] {
        for (key, count) in report.events.get(event).into_iter().flatten() {
            let place = match event {
                "kvm_exit" => cause(event, *key),
                "kvm_pio" => format!("port {key:#x}"),
                _ => format!("address {key:#x}"),
            };
            *all.entry(place).or_default() += count;
        }
    }
    let mut sorted: Vec<_> = all.into_iter().collect();
    sorted.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), name.clone()));
    let told = sorted.iter().take(2 * CAUSES).map(|(name, count)| format!("{name} {count}"));
    told.collect::<Vec<_>>().join(", ")
}

type CommandLine = (Vec<OsString>, Vec<PathBuf>);

fn microvm(pair: &Pair, program: &Path, kit: &Kit) -> Result<CommandLine> {
    let root = format!("{},readonly=on", kit.root.display());
    let mut command = vec![program.into(), "--kernel".into(), kit.kernel.clone().into_os_string()];
    let words = [
        "--rootfs",
        &root,
        "--memory",
        "256M",
        "--mode",
        pair.mode,
        "--cmdline",
        "quiet init=/sbin/bench-init",
    ];
    command.extend(words.map(OsString::from));
    Ok((command, vec![kit.kernel.clone(), kit.root.clone()]))
}

fn qemu(pair: &Pair, kit: &Kit) -> Result<CommandLine> {
    let line = format!("quiet console=ttyS0 root={} ro panic=-1 init=/sbin/bench-init", pair.root);
    // A drive of a PC can't be read-only; what is written goes elsewhere.
    let drive = format!("id=root,file={},format=raw,if=none,snapshot=on", kit.root.display());
    let mut command = vec![OsString::from(QEMU)];
    let words = [
        "-M",
        pair.machine,
        "-cpu",
        pair.processor,
        "-nodefaults",
        "-no-user-config",
        "-vga",
        "none",
        "-display",
        "none",
        "-no-reboot",
        "-m",
        "256",
        "-smp",
        "1",
        "-serial",
        "stdio",
        "-append",
        &line,
        "-drive",
        &drive,
    ];
    command.extend(words.map(OsString::from));
    command.extend(pair.disk.iter().map(OsString::from));
    command.extend(["-kernel".into(), kit.kernel.clone().into_os_string()]);
    let mut files: Vec<PathBuf> = QEMU_FILES.iter().map(PathBuf::from).collect();
    files.retain(|file| file.exists());
    files.extend([kit.kernel.clone(), kit.root.clone()]);
    Ok((command, files))
}

fn count((command, files): &CommandLine) -> Result<Report> {
    let options = Options {
        count: true,
        trace: Trace::Exits,
        files: files.clone(),
        limit: Some(Duration::from_secs(600)),
        ..Options::default()
    };
    let output = options.output(command)?;
    if output.status != 0 {
        bail!("status {}: {}", output.status, last_line(&output.stderr));
    }
    output.report.context("the rig sent no report")
}
