//! Bad input: one line with what, where and what to do, and the right status.

use crate::guest::{Guest, Outcome, check};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};

pub fn tests() -> Vec<Trial> {
    vec![
        trial("input::bad_kernels_are_named", kernels),
        trial("input::too_little_memory_is_said", memory),
        trial("input::missing_and_wrong_disks_are_named", disks),
        trial("input::missing_taps_are_named", taps),
    ]
}

/// Status 3 and one line that names the thing.
fn refused(guest: Guest, words: &[&str]) -> Result<Outcome, String> {
    let outcome = guest.run()?.ended(3)?;
    for word in words {
        check(outcome.stderr.contains(word), &format!("{word:?} is said"), &outcome)?;
    }
    check(outcome.stderr.trim_end().lines().count() == 1, "in one line", &outcome)?;
    check(outcome.console.is_empty(), "before the guest ran", &outcome)?;
    Ok(outcome)
}

fn kernels() -> Verdict {
    let dir = tempfile::tempdir()?;
    let whole = std::fs::read(kit::vmlinux())?;
    let cases: [(&str, &[u8], &str); 4] = [
        ("empty", b"", "the file is empty"),
        ("text", b"not a kernel at all", "neither a bzImage nor an ELF vmlinux"),
        ("half", &whole[..whole.len() / 2], "truncated"),
        ("gzip", b"\x1f\x8b\x08\0", "unpack it first"),
    ];
    for (name, bytes, words) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes)?;
        refused(Guest::with_kernel(&path), &[words, name])?;
    }
    refused(Guest::with_kernel(dir.path()), &["is a directory"])?;
    refused(Guest::with_kernel(&dir.path().join("none")), &["none: No such file"])?;
    Ok(Completion::Completed)
}

fn memory() -> Verdict {
    refused(
        Guest::with_kernel(&kit::debian("6_1_CLOUD").0).arg("--memory").arg("32M"),
        &["raise --memory"],
    )?;
    let dir = tempfile::tempdir()?;
    let big = dir.path().join("big.cpio");
    std::fs::File::create(&big)?.set_len(60 << 20)?;
    let guest = Guest::bare().arg("--memory").arg("64M").arg("--initrd").arg(&big);
    refused(guest, &["big.cpio", "raise --memory"])?;
    Ok(Completion::Completed)
}

fn disks() -> Verdict {
    let dir = tempfile::tempdir()?;
    refused(
        Guest::bare().arg("--rootfs").arg("/nonexistent/img"),
        &["/nonexistent/img", "No such file"],
    )?;
    refused(Guest::bare().arg("--rootfs").arg(dir.path()), &["a directory"])?;
    let empty = dir.path().join("empty");
    std::fs::write(&empty, b"")?;
    refused(Guest::bare().arg("--disk").arg(format!("path={}", empty.display())), &["empty"])?;
    Ok(Completion::Completed)
}

fn taps() -> Verdict {
    let outcome = Guest::bare().arg("--net").arg("tap=lo").run()?;
    check(outcome.status == 3, "a name that is no TAP is refused", &outcome)?;
    check(outcome.stderr.contains("net lo"), "by its name", &outcome)?;
    Ok(Completion::Completed)
}
