//! virtio-blk's engines, formats and limits, driven by fio in the guest.

use crate::guest::{Guest, Outcome, check};
use crate::kit;
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use std::fs::File;
use std::path::Path;
use std::process::Command;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("block::fio_verifies_every_engine_and_format_over_mmio", || engines("mmio")),
        trial("block::fio_verifies_every_engine_and_format_over_pci", || engines("pci")),
        trial("block::a_killed_monitor_leaves_what_was_flushed", killed),
        trial("block::a_queue_for_each_processor", queues),
        trial("block::a_range_of_an_image_is_a_disk", range),
        trial("block::limits_hold_within_5_percent", limits),
        trial("block::a_qcow2_disk_stands_on_its_backing_file", qcow2),
    ]
}

/// Mounts the disk with the tools as the root of fio.
const FIO: &str = "mount -t ext4 -o ro /dev/vdc /mnt; mount -t devtmpfs dev /mnt/dev; \
    mount -t tmpfs tmp /mnt/tmp; mount -t proc proc /mnt/proc; mount -t sysfs sys /mnt/sys; \
    fio() { chroot /mnt /usr/bin/fio --minimal --thread --allow_file_create=0 \"$@\"; }; ";

/// Random writes of all sizes, each block with a checksum that is read back.
const VERIFY: &str = "--rw=randwrite --bsrange=4k-64k --direct=1 --ioengine=libaio --iodepth=16 \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --size=4m --fsync=32 --randseed=7";

/// A guest with a script, the tools as `/dev/vdc`, and room for disks from
/// `/dev/vdd` on.
fn guest(script: &str) -> Guest {
    let tools = format!("path={},readonly=on", kit::tools().display());
    Guest::tiny().script(&format!("{FIO}{script}")).arg("--memory=256M").arg("--disk").arg(tools)
}

fn image(path: &Path, len: u64) -> Result<(), String> {
    let file = File::create(path).map_err(|e| e.to_string())?;
    file.set_len(len).map_err(|e| e.to_string())
}

/// An empty qcow2 image, made by the guest kit's own few bytes: a header, one
/// cluster of refcounts for itself, and no data.
pub fn empty_qcow2(path: &Path, len: u64, backing: Option<&Path>) -> Result<(), String> {
    const CLUSTER: usize = 64 << 10;
    let entries = len.div_ceil((CLUSTER as u64 / 8) * CLUSTER as u64);
    let name = backing.map(|b| b.display().to_string()).unwrap_or_default();
    let mut image = vec![0u8; 4 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    if !name.is_empty() {
        put(8, &0x400u64.to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(0x400, name.as_bytes());
        // A header extension names the format of the backing file.
        put(104, &0xe279_2acau32.to_be_bytes());
        put(108, &3u32.to_be_bytes());
        put(112, b"raw");
    }
    put(20, &16u32.to_be_bytes()); // cluster_bits
    put(24, &len.to_be_bytes());
    put(36, &(entries as u32).to_be_bytes()); // l1_size
    put(40, &(3 * CLUSTER as u64).to_be_bytes()); // l1_table_offset
    put(48, &(CLUSTER as u64).to_be_bytes()); // refcount_table_offset
    put(56, &1u32.to_be_bytes()); // refcount_table_clusters
    put(96, &4u32.to_be_bytes()); // refcount_order
    put(100, &104u32.to_be_bytes()); // header_length
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..4 {
        put(2 * CLUSTER + cluster * 2, &1u16.to_be_bytes());
    }
    std::fs::write(path, image).map_err(|e| e.to_string())
}

/// One guest, a disk of each kind.
fn engines(transport: &str) -> Verdict {
    let script = format!(
        "for d in d e f g; do fio --name=$d --filename=/dev/vd$d {VERIFY} >/tmp/out || exit 1; \
         echo vd$d=verified; done"
    );
    let guest = guest(&script).arg("--transport").arg(transport);
    let at = |name: &str| guest.scratch(name);
    for name in ["sync", "uring", "direct"] {
        image(&at(name), 8 << 20)?;
    }
    empty_qcow2(&at("qcow2"), 8 << 20, None)?;
    // In memory there is no direct I/O before Linux 6.6.
    let direct = match File::options().write(true).open(at("direct")) {
        Ok(_) if can_direct(&at("direct")) => ",direct=on",
        _ => "",
    };
    let disks = [
        format!("path={},engine=sync", at("sync").display()),
        format!("path={},engine=uring", at("uring").display()),
        format!("path={},engine=uring{direct}", at("direct").display()),
        format!("path={},format=qcow2", at("qcow2").display()),
    ];
    let guest = disks.iter().fold(guest, |guest, disk| guest.arg("--disk").arg(disk));
    let outcome = guest.run()?.script_passed()?;
    for disk in ["vdd", "vde", "vdf", "vdg"] {
        check(outcome.value(disk)? == "verified", disk, &outcome)?;
    }
    Ok(Completion::Completed)
}

fn can_direct(path: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_DIRECT).open(path).is_ok()
}

/// Killed in the middle of writing: the file system has no error, what was
/// flushed before is there, and a qcow2 image is still one.
fn killed() -> Verdict {
    for kind in ["engine=sync", "engine=uring", "format=qcow2"] {
        let script = "mkdir /tmp/d; mount /dev/vdd /tmp/d; echo precious >/tmp/d/kept; sync; umount /tmp/d; \
             fio --name=w --filename=/dev/vde --rw=randwrite --bs=4k --direct=1 \
             --ioengine=libaio --iodepth=16 --size=2m --verify=crc32c --do_verify=0 \
             --randseed=3 --fsync=1 >/dev/null; echo written; \
             fio --name=w --filename=/dev/vde --rw=randwrite --bs=4k --direct=1 --offset=2m \
             --ioengine=libaio --iodepth=16 --size=4m --time_based --runtime=100";
        let dir = tempfile::tempdir()?;
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        image(&a, 8 << 20)?;
        image(&b, 8 << 20)?;
        let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&a).status();
        if !made.is_ok_and(|status| status.success()) {
            return Ok(Completion::ignored_with("mke2fs is missing"));
        }
        let (a, b) = match kind {
            "format=qcow2" => {
                let (top, empty) = (dir.path().join("a.qcow2"), dir.path().join("b.qcow2"));
                empty_qcow2(&top, 8 << 20, Some(&a))?;
                empty_qcow2(&empty, 8 << 20, None)?;
                (top, empty)
            }
            _ => (a, b),
        };
        let disk = |path: &Path| format!("path={},{kind}", path.display());
        let guest = guest(script).arg("--disk").arg(disk(&a)).arg("--disk").arg(disk(&b));
        let mut started = guest.start();
        started.expect("written")?;
        std::thread::sleep(std::time::Duration::from_millis(500));
        started.signal(libc::SIGKILL);
        started.wait()?.ended(128 + libc::SIGKILL)?;
        if kind == "format=qcow2" {
            whole_qcow2(&a)?;
            whole_qcow2(&b)?;
        }
        let script = "mkdir /tmp/d; mount -o ro /dev/vdd /tmp/d && echo kept=$(cat /tmp/d/kept); \
             fio --name=w --filename=/dev/vde --rw=randwrite --bs=4k --direct=1 \
             --ioengine=libaio --iodepth=16 --size=2m --verify=crc32c --verify_only=1 \
             --verify_fatal=1 --randseed=3 >/dev/null && echo flushed=whole";
        let guest = self::guest(script).arg("--disk").arg(disk(&a)).arg("--disk").arg(disk(&b));
        let outcome = guest.run()?.script_passed()?;
        check(outcome.value("kept")? == "precious", "the file system is whole", &outcome)?;
        check(outcome.value("flushed")? == "whole", "what was flushed is there", &outcome)?;
    }
    Ok(Completion::Completed)
}

/// QEMU's own opinion, where it is installed. Clusters that nothing refers to
/// are lost space and no damage: its status 3.
fn whole_qcow2(path: &Path) -> Result<(), String> {
    let Ok(output) = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(path).output()
    else {
        eprintln!("qemu-img is missing: {} is not checked", path.display());
        return Ok(());
    };
    match output.status.code() {
        Some(0 | 3) => Ok(()),
        _ => Err(format!("qemu-img check: {}", String::from_utf8_lossy(&output.stdout))),
    }
}

fn queues() -> Verdict {
    for transport in ["mmio", "pci"] {
        let script = format!(
            "echo all=$(ls /sys/block/vdd/mq | wc -l); echo two=$(ls /sys/block/vde/mq | wc -l); \
             fio --name=q --filename=/dev/vdd {VERIFY} --numjobs=4 --size=1m --offset_increment=1m \
             >/dev/null && echo verified"
        );
        let guest = guest(&script).arg("--cpus=4").arg("--transport").arg(transport);
        let (a, b) = (guest.scratch("a"), guest.scratch("b"));
        image(&a, 8 << 20)?;
        image(&b, 8 << 20)?;
        let outcome = guest
            .arg("--disk")
            .arg(format!("path={},engine=uring", a.display()))
            .arg("--disk")
            .arg(format!("path={},queues=2", b.display()))
            .run()?
            .script_passed()?;
        check(outcome.count("all")? == 4, "a queue for each vCPU", &outcome)?;
        check(outcome.count("two")? == 2, "or as many as asked for", &outcome)?;
        check(outcome.console.contains("verified"), "all of them work", &outcome)?;
    }
    Ok(Completion::Completed)
}

fn range() -> Verdict {
    let guest = Guest::tiny()
        .script("echo size=$(blockdev --getsize64 /dev/vdc); head -c 4 /dev/vdc | sed s/^/is=/; echo; echo here | dd of=/dev/vdd conv=notrunc,fsync 2>/dev/null");
    let data = guest.scratch("data");
    let mut bytes = vec![b'.'; 3 << 20];
    bytes[1 << 20..(1 << 20) + 4].copy_from_slice(b"part");
    std::fs::write(&data, &bytes)?;
    let part = |offset: &str| format!("path={},offset={offset},size=1M", data.display());
    let path = data.clone();
    let first = part("1M");
    let second = part("2M");
    let started = guest.arg("--disk").arg(first).arg("--disk").arg(second).start();
    // The scratch directory is gone after the end.
    let copy = tempfile::tempdir()?;
    let link = copy.path().join("data");
    std::fs::hard_link(&path, &link).or_else(|_| std::os::unix::fs::symlink(&path, &link))?;
    let outcome = started.wait()?.script_passed()?;
    check(outcome.count("size")? == 1 << 20, "it is as long as the range", &outcome)?;
    check(outcome.value("is")? == "part", "and begins where the range does", &outcome)?;
    let after = std::fs::read(&link)?;
    check(after[2 << 20..].starts_with(b"here\n"), "writes land in the range", &outcome)?;
    check(after[..1 << 20].iter().all(|b| *b == b'.'), "and nowhere else", &outcome)?;
    Ok(Completion::Completed)
}

/// fio's own figures: 7 is bandwidth in KiB/s and 8 is IOPS of its reads in the
/// terse output, version 3.
fn limits() -> Verdict {
    let read = "--rw=randread --direct=1 --ioengine=libaio --iodepth=8 --time_based --runtime=6 \
                --ramp_time=1 --terse-version=3";
    let script = format!(
        "echo bytes=$(fio --name=b --filename=/dev/vdd --bs=16k {read} | cut -d';' -f7); \
         echo ops=$(fio --name=o --filename=/dev/vde --bs=4k {read} | cut -d';' -f8)"
    );
    let guest = guest(&script);
    let (a, b) = (guest.scratch("a"), guest.scratch("b"));
    image(&a, 32 << 20)?;
    image(&b, 32 << 20)?;
    let outcome = guest
        .arg("--disk")
        .arg(format!("path={},rate=1M", a.display()))
        .arg("--disk")
        .arg(format!("path={},ops=64", b.display()))
        .run()?
        .script_passed()?;
    near(&outcome, "bytes", 1024)?;
    near(&outcome, "ops", 64)?;
    Ok(Completion::Completed)
}

fn near(outcome: &Outcome, name: &str, wanted: u64) -> Result<(), String> {
    let got = outcome.count(name)?;
    let holds = got * 100 <= wanted * 105 && got * 100 >= wanted * 95;
    check(holds, &format!("{name}: {got} is within 5 % of {wanted}"), outcome)
}

fn qcow2() -> Verdict {
    let dir = tempfile::tempdir()?;
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    std::fs::write(&base, vec![b'b'; 4 << 20])?;
    empty_qcow2(&top, 4 << 20, Some(&base))?;
    let disk = format!("path={},format=qcow2", top.display());
    let script = "head -c 4 /dev/vdc | sed s/^/is=/; echo; printf new. | dd of=/dev/vdc seek=1 bs=1M conv=notrunc,fsync 2>/dev/null; sync";
    let outcome = Guest::tiny().script(script).arg("--disk").arg(&disk).run()?.script_passed()?;
    check(outcome.value("is")? == "bbbb", "what is not written is the backing file's", &outcome)?;
    let script = "dd if=/dev/vdc bs=1M skip=1 count=1 2>/dev/null | head -c 6 | sed s/^/is=/; echo";
    let outcome = Guest::tiny()
        .script(script)
        .arg("--disk")
        .arg(format!("{disk},readonly=on"))
        .run()?
        .script_passed()?;
    check(outcome.value("is")? == "new.bb", "what is written stays", &outcome)?;
    check(std::fs::read(&base)? == vec![b'b'; 4 << 20], "which is as it was", &outcome)?;
    let found = Command::new("qemu-img").arg("check").arg(&top).output();
    if let Ok(found) = found {
        check(found.status.success(), "qemu-img finds no fault", &outcome)?;
    }
    Ok(Completion::Completed)
}
