//! Devices that come, change and go while a guest runs, over the control socket
//! and `microvm ctl`.

use crate::block::empty_qcow2;
use crate::guest::{Guest, Started};
use crate::net::{self, HostTap};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};
use std::path::Path;
use std::process::Command;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("plug::disks_and_cards_come_change_and_go", come_and_go),
        trial("plug::debian_6_12_cloud_finds_a_new_disk", debian),
        trial("plug::a_motherboard_has_a_power_button_and_soldered_slots", board),
        trial("plug::over_mmio_disks_change_size_and_stay", mmio),
    ]
}

/// Waits for something to hold in the guest.
const AWAIT: &str = "await() { n=0; while ! eval \"$1\"; do n=$((n + 1))
    [ $n -lt 900 ] || { echo \"never: $1\"; exit 9; }; usleep 50000; done; }\n";

fn guest(guest: Guest, transport: &str, script: &str) -> Guest {
    let socket = guest.scratch("control");
    let script = format!("{AWAIT}{script}");
    guest.script(&script).arg("--transport").arg(transport).arg("--control").arg(socket)
}

/// `microvm ctl` with these words; its answer, or why not.
fn ctl(socket: &Path, words: &str) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
    let output = command.arg("ctl").arg(socket).args(words.split(' ')).output();
    let output = output.map_err(|e| e.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(text(&output.stdout)),
        Some(3) => Err(text(&output.stderr)),
        other => Err(format!("ctl {words}: {other:?}: {}", text(&output.stderr))),
    }
}

fn has(text: &str, part: &str) -> Result<(), String> {
    if text.contains(part) { Ok(()) } else { Err(format!("no {part:?} in {text:?}")) }
}

fn come_and_go() -> Verdict {
    let Some(tap) = HostTap::new("vmplug", 11) else { return net::unavailable() };
    let script = format!(
        "echo ready; await '[ -b /dev/vdc ]'; head -c 4 /dev/vdc; echo =read
        printf kept | dd of=/dev/vdc bs=512 conv=fsync,notrunc 2>/dev/null; echo wrote
        await '[ $(cat /sys/block/vdc/size) = 8192 ]'; dd if=/dev/vdc of=/dev/null bs=1M || exit 2
        echo grown; await '[ ! -e /sys/block/vdc ]'; echo gone
        await '[ -b /dev/vdc ]'; head -c 4 /dev/vdc; echo =again
        await '[ -e /sys/class/net/eth0 ]'; ip addr add 10.77.11.2/24 dev eth0
        ip link set eth0 up; ping -c 2 -W 10 {} || exit 3; echo pinged
        await '[ ! -e /sys/class/net/eth0 ]'; echo deaf
        await '[ $(grep MemTotal /proc/meminfo | tr -dc 0-9) -lt 180000 ]'; echo less
        ged() {{ awk '/ACPI:Ged/ {{print $2}}' /proc/interrupts; }}; before=$(ged)
        echo waiting; await '[ $(ged) -gt $before ]'; echo pressed",
        tap.host()
    );
    let guest = guest(Guest::tiny(), "pci", &script).arg("--balloon").arg("size=0");
    let (socket, image) = (guest.scratch("control"), guest.scratch("data.img"));
    let mut bytes = b"here".to_vec();
    bytes.resize(1 << 20, 0);
    std::fs::write(&image, bytes)?;
    let disk = format!("add-disk path={}", image.display());
    let mut started = guest.start();
    let ctl = |words: &str| ctl(&socket, words);
    started.expect("ready")?;
    has(&ctl(&disk)?, "\"name\":\"block2\"")?;
    started.expect("here=read")?;
    started.expect("wrote")?;
    has(&ctl("status")?, "\"name\":\"block2\",\"size\":1048576,\"slot\":5,\"state\":\"in use\"")?;
    has(&ctl(&disk).unwrap_err(), "locked by")?;
    has(&ctl("resize-disk block2 4M")?, "4194304")?;
    started.expect("grown")?;
    let len = std::fs::metadata(&image)?.len();
    has(&format!("the image has {len} bytes"), " 4194304 ")?;
    has(&ctl("remove block2 --timeout 60")?, "\"forced\":false")?;
    started.expect("gone")?;
    has(&ctl(&format!("{disk},engine=uring"))?, "\"slot\":5")?;
    started.expect("kept=again")?;
    has(&ctl("add-net tap=vmplug")?, "net0")?;
    started.expect("pinged")?;
    has(&ctl("remove net0 --timeout 60")?, "\"forced\":false")?;
    started.expect("deaf")?;
    ctl("balloon 96M")?;
    started.expect("waiting")?;
    ctl("power-button")?;
    started.wait()?.script_passed()?;
    Ok(Completion::Completed)
}

fn debian() -> Verdict {
    let (kernel, initrd) = kit::debian("6_12_CLOUD");
    let root = Guest::with_kernel(&kernel).rooted().arg("--initrd").arg(initrd);
    let script = "echo ready; await '[ -b /dev/vdc ]'; head -c 4 /dev/vdc; echo =read
        await '[ ! -e /sys/block/vdc ]'; echo gone";
    let guest = guest(root.arg("--memory").arg("512M"), "pci", script);
    let (socket, image) = (guest.scratch("control"), guest.scratch("data.qcow2"));
    let base = guest.scratch("base.img");
    std::fs::write(&base, b"here".repeat(1024))?;
    empty_qcow2(&image, 1 << 20, Some(&base))?;
    let mut started = guest.start();
    started.expect("ready")?;
    ctl(&socket, &format!("add-disk {},format=qcow2", image.display()))?;
    started.expect("here=read")?;
    ctl(&socket, "remove block2 --timeout 60")?;
    started.wait()?.script_passed()?;
    Ok(Completion::Completed)
}

fn board() -> Verdict {
    let script = "echo ready; await '[ $(cat /sys/block/vdc/size) = 4096 ]'; echo grown
        sci() { awk '$NF == \"acpi\" {print $2}' /proc/interrupts; }; before=$(sci)
        echo waiting; await '[ $(sci) -gt $before ]'; echo pressed";
    let guest = guest(Guest::tiny(), "pci", script).arg("--mode").arg("hvm-pv");
    let (socket, image) = (guest.scratch("control"), guest.scratch("data.img"));
    std::fs::write(&image, vec![0; 1 << 20])?;
    let mut started = guest.arg("--disk").arg(&image).start();
    started.expect("ready")?;
    let other = socket.with_file_name("other.img");
    std::fs::write(&other, vec![0; 4096])?;
    let add = format!("add-disk {}", other.display());
    has(&ctl(&socket, &add).unwrap_err(), "not for motherboards")?;
    has(&ctl(&socket, "remove block2").unwrap_err(), "not for motherboards")?;
    has(&ctl(&socket, "resize-disk block2 2M")?, "2097152")?;
    started.expect("waiting")?;
    ctl(&socket, "power-button")?;
    started.wait()?.script_passed()?;
    Ok(Completion::Completed)
}

fn mmio() -> Verdict {
    let script = "echo ready; await '[ $(cat /sys/block/vdc/size) = 4096 ]'; echo grown; read line";
    let guest = guest(Guest::tiny(), "mmio", script);
    let (socket, image) = (guest.scratch("control"), guest.scratch("data.img"));
    std::fs::write(&image, vec![0; 1 << 20])?;
    let mut started: Started = guest.arg("--disk").arg(&image).start();
    started.expect("ready")?;
    let other = socket.with_file_name("other.img");
    std::fs::write(&other, vec![0; 4096])?;
    let add = format!("add-disk {}", other.display());
    has(&ctl(&socket, &add).unwrap_err(), "--transport pci")?;
    has(&ctl(&socket, "remove block2").unwrap_err(), "--transport pci")?;
    // The image grows first, and the disk with it.
    std::fs::File::options().write(true).open(&image)?.set_len(2 << 20)?;
    has(&ctl(&socket, "resize-disk block2")?, "2097152")?;
    started.expect("grown")?;
    ctl(&socket, "quit")?;
    started.wait()?.ended(0)?;
    Ok(Completion::Completed)
}
