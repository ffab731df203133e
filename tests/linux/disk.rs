//! virtio-blk, seen from both sides.

use crate::guest::{Guest, check};
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("disk::contents_are_read_as_they_are", contents),
        trial("disk::writes_reach_the_file", writes),
        trial("disk::a_flush_reaches_the_file_before_the_monitor_is_killed", flush),
        trial("disk::a_read_only_disk_refuses_writes", read_only),
        trial("disk::four_disks_keep_their_order_and_serial_numbers", four_disks),
        trial("disk::discard_gives_space_back", discard),
        trial("disk::a_full_host_is_an_io_error_and_no_more", full_host),
        trial("disk::two_monitors_never_write_one_image", locked),
    ]
}

/// Bytes that differ everywhere and can be made again.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The sum that `sha256sum` makes on both sides.
fn sha256(bytes: &[u8]) -> Result<String, String> {
    let file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    std::fs::write(file.path(), bytes).map_err(|e| e.to_string())?;
    let output = Command::new("sha256sum").arg(file.path()).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(' ').next().map(str::to_owned).ok_or_else(|| "sha256sum says nothing".to_owned())
}

fn disk(path: &Path, more: &str) -> String {
    format!("path={}{more}", path.display())
}

fn contents() -> Verdict {
    let data = pattern(3 << 20, 1);
    let guest = Guest::tiny().script(
        "echo size=$(blockdev --getsize64 /dev/vdc); echo sum=$(sha256sum </dev/vdc | cut -d' ' -f1)",
    );
    let image = guest.scratch("data");
    std::fs::write(&image, &data)?;
    let outcome = guest.arg("--disk").arg(disk(&image, "")).run()?.script_passed()?;
    check(outcome.count("size")? == data.len() as u64, "the size is the file's", &outcome)?;
    check(outcome.value("sum")? == sha256(&data)?, "the bytes are the file's", &outcome)?;
    Ok(Completion::Completed)
}

fn writes() -> Verdict {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("data");
    File::create(&image)?.set_len(4 << 20)?;
    let guest = Guest::tiny().script("dd if=/dev/urandom of=/tmp/x bs=64k count=32 2>/dev/null; dd if=/tmp/x of=/dev/vdc bs=512 seek=3 2>/dev/null; sync; echo sum=$(sha256sum </tmp/x | cut -d' ' -f1)");
    let outcome = guest.arg("--disk").arg(disk(&image, "")).run()?.script_passed()?;
    let written = std::fs::read(&image)?;
    let part = &written[1536..1536 + (2 << 20)];
    check(outcome.value("sum")? == sha256(part)?, "what was written is in the file", &outcome)?;
    check(written[..1536].iter().all(|b| *b == 0), "and nothing before it", &outcome)?;
    Ok(Completion::Completed)
}

fn flush() -> Verdict {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("data");
    File::create(&image)?.set_len(1 << 20)?;
    let script = "echo precious | dd of=/dev/vdc bs=512 count=1 conv=fsync 2>/dev/null; echo synced; sleep 1000";
    let mut started = Guest::tiny().script(script).arg("--disk").arg(disk(&image, "")).start();
    started.expect("synced")?;
    started.signal(libc::SIGKILL);
    let outcome = started.wait()?.ended(128 + libc::SIGKILL)?;
    check(
        std::fs::read(&image)?.starts_with(b"precious\n"),
        "the write survives the monitor",
        &outcome,
    )?;
    Ok(Completion::Completed)
}

fn read_only() -> Verdict {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("data");
    let data = pattern(1 << 20, 2);
    std::fs::write(&image, &data)?;
    let script = "echo ro=$(cat /sys/block/vdc/ro); dd if=/dev/zero of=/dev/vdc bs=4k count=1 conv=fsync 2>&1 && echo wrote; true";
    let outcome = Guest::tiny()
        .script(script)
        .arg("--disk")
        .arg(disk(&image, ",readonly=on"))
        .run()?
        .script_passed()?;
    check(outcome.value("ro")? == "1", "the guest is told", &outcome)?;
    check(!outcome.console.contains("wrote"), "a write fails", &outcome)?;
    check(std::fs::read(&image)? == data, "the file is untouched", &outcome)?;
    Ok(Completion::Completed)
}

fn four_disks() -> Verdict {
    let dir = tempfile::tempdir()?;
    let script = "for d in c d e f; do echo vd$d=$(dd if=/dev/vd$d bs=8 count=1 2>/dev/null):$(cat /sys/block/vd$d/serial); done";
    let mut guest = Guest::tiny().script(script);
    for i in 0..4 {
        let image = dir.path().join(format!("disk{i}"));
        let mut bytes = format!("content{i}").into_bytes();
        bytes.resize(1 << 20, 0);
        std::fs::write(&image, bytes)?;
        guest = guest.arg("--disk").arg(disk(&image, &format!(",serial=SN-{i}")));
    }
    let outcome = guest.run()?.script_passed()?;
    for (i, letter) in ["c", "d", "e", "f"].iter().enumerate() {
        let value = outcome.value(&format!("vd{letter}"))?;
        check(value == format!("content{i}:SN-{i}"), "each disk is where it was put", &outcome)?;
    }
    Ok(Completion::Completed)
}

fn discard() -> Verdict {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("data");
    std::fs::write(&image, pattern(8 << 20, 3))?;
    let before = std::fs::metadata(&image)?.blocks();
    let script = "blkdiscard -o 1048576 -l 4194304 /dev/vdc && echo sum=$(dd if=/dev/vdc bs=1M skip=1 count=4 2>/dev/null | tr -d '\\0' | wc -c)";
    let outcome =
        Guest::tiny().script(script).arg("--disk").arg(disk(&image, "")).run()?.script_passed()?;
    let after = std::fs::metadata(&image)?;
    check(outcome.count("sum")? == 0, "discarded sectors read as zero", &outcome)?;
    check(after.blocks() < before, "the file has a hole", &outcome)?;
    check(after.len() == 8 << 20, "and its length", &outcome)?;
    Ok(Completion::Completed)
}

/// A 2 MiB file system that holds a sparse 8 MiB image.
fn full_host() -> Verdict {
    let dir = tempfile::tempdir()?;
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2M", "none"])
        .arg(dir.path())
        .status();
    if !mounted.is_ok_and(|s| s.success()) {
        return Ok(Completion::ignored_with("mounting a small tmpfs needs root"));
    }
    let image = dir.path().join("data");
    File::create(&image)?.set_len(8 << 20)?;
    let script = "dd if=/dev/urandom of=/dev/vdc bs=64k count=64 conv=fsync 2>&1 && echo wrote; dd if=/dev/vdc of=/dev/null bs=64k count=1 2>/dev/null && echo alive";
    let outcome = Guest::tiny().script(script).arg("--disk").arg(disk(&image, "")).run();
    let _ = Command::new("umount").arg("-l").arg(dir.path()).status();
    let outcome = outcome?.script_passed()?;
    check(!outcome.console.contains("wrote"), "the guest is told of the failure", &outcome)?;
    check(outcome.console.contains("alive"), "and goes on", &outcome)?;
    Ok(Completion::Completed)
}

fn locked() -> Verdict {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("data");
    File::create(&image)?.set_len(1 << 20)?;
    let mut first =
        Guest::tiny().script("echo ready; sleep 1000").arg("--disk").arg(disk(&image, "")).start();
    first.expect("ready")?;
    for more in ["", ",readonly=on"] {
        let second =
            Guest::tiny().script("true").arg("--disk").arg(disk(&image, more)).run()?.ended(3)?;
        check(second.stderr.contains("locked"), "the second is refused", &second)?;
        check(
            second.stderr.contains(&image.display().to_string()),
            "by the image's name",
            &second,
        )?;
    }
    first.signal(libc::SIGTERM);
    first.wait()?.ended(128 + libc::SIGTERM)?;
    Guest::tiny().script("true").arg("--disk").arg(disk(&image, "")).run()?.script_passed()?;
    Ok(Completion::Completed)
}
