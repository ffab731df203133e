//! How machines end, and with which status.

use crate::guest::{Guest, check};
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use std::fs::File;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("lifecycle::poweroff_is_status_0", || ends("poweroff -f", 0, "guest powered off")),
        trial("lifecycle::reboot_is_status_0", || ends("reboot -f", 0, "guest rebooted")),
        trial("lifecycle::a_panic_told_by_pvpanic_is_status_5", || {
            ends("echo c >/proc/sysrq-trigger", 5, "guest kernel panicked")
        }),
        trial("lifecycle::a_panic_without_pvpanic_is_status_5", silent_panic),
        trial("lifecycle::a_triple_fault_is_status_6_with_its_place", triple_fault),
        trial("lifecycle::signals_end_the_monitor", signals),
        trial("lifecycle::the_end_of_standard_input_changes_nothing", no_stdin),
        trial("lifecycle::a_full_disk_for_the_console_is_status_8", full_console),
        trial("lifecycle::a_closed_pipe_for_the_console_does_not_stop_the_guest", closed_pipe),
        trial("lifecycle::the_console_can_go_to_a_file_or_nowhere", serial_choices),
    ]
}

fn ends(script: &str, status: i32, words: &str) -> Verdict {
    let outcome = Guest::tiny().script(&format!("{script}; sleep 100")).run()?.ended(status)?;
    check(outcome.stderr.contains(words), words, &outcome)?;
    check(outcome.stderr.trim().lines().count() == 1, "one line says how it ended", &outcome)?;
    Ok(Completion::Completed)
}

/// The driver is kept from loading: the warm-boot word tells.
fn silent_panic() -> Verdict {
    let guest = Guest::tiny().word("initcall_blacklist=pvpanic_mmio_init,pvpanic_mmio_driver_init");
    let outcome = guest.script("echo c >/proc/sysrq-trigger; sleep 100").run()?.ended(5)?;
    check(
        outcome.stderr.contains("guest kernel panicked"),
        "a reset after a panic is a panic",
        &outcome,
    )?;
    Ok(Completion::Completed)
}

fn triple_fault() -> Verdict {
    let outcome = Guest::tiny().word("reboot=t").script("reboot -f; sleep 100").run()?.ended(6)?;
    for part in ["vCPU 0", "rip 0x", "triple fault"] {
        check(outcome.stderr.contains(part), part, &outcome)?;
    }
    Ok(Completion::Completed)
}

fn signals() -> Verdict {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let mut guest = Guest::tiny().script("echo up; sleep 1000").start();
        guest.expect("up")?;
        guest.signal(signal);
        let outcome = guest.wait()?.ended(128 + signal)?;
        check(
            outcome.stderr.contains(&format!("signal {signal}")),
            "the signal is named",
            &outcome,
        )?;
    }
    Ok(Completion::Completed)
}

fn no_stdin() -> Verdict {
    let (reader, writer) = std::io::pipe()?;
    let mut guest = Guest::tiny().script("echo up; sleep 2; echo done").stdin(reader).start();
    guest.expect("up")?;
    drop(writer);
    guest.wait()?.script_passed()?;
    let file = File::open("/dev/null")?;
    Guest::tiny().script("true").stdin(file).run()?.script_passed()?;
    // No descriptor 0 at all.
    let closed = Guest::tiny().script("true");
    let mut command = std::process::Command::new("/bin/sh");
    let inner = closed.command();
    command
        .arg("-c")
        .arg("exec \"$@\" <&-")
        .arg("sh")
        .arg(inner.get_program())
        .args(inner.get_args());
    let output = command.output()?;
    match output.status.code() {
        Some(0) => Ok(Completion::Completed),
        other => Err(format!(
            "closed standard input: {other:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into()),
    }
}

fn full_console() -> Verdict {
    let guest = Guest::tiny().script("true");
    let full = File::options().write(true).open("/dev/full")?;
    let output = guest.command().stdin(std::process::Stdio::null()).stdout(full).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(8) if stderr.contains("console output lost") => Ok(Completion::Completed),
        other => Err(format!("status {other:?}: {stderr}").into()),
    }
}

fn closed_pipe() -> Verdict {
    let guest = Guest::tiny().script("echo one; sleep 1; echo two; poweroff -f");
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let output = guest.command().stdin(std::process::Stdio::null()).stdout(writer).output()?;
    match output.status.code() {
        Some(8) => Ok(Completion::Completed),
        other => {
            Err(format!("status {other:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
        }
    }
}

fn serial_choices() -> Verdict {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("console.log");
    let guest = Guest::tiny()
        .script("echo to the file")
        .arg("--serial")
        .arg(format!("file={}", log.display()));
    let outcome = guest.run()?.ended(0)?;
    check(outcome.console.is_empty(), "nothing on standard output", &outcome)?;
    check(std::fs::read_to_string(&log)?.contains("to the file"), "all in the file", &outcome)?;
    let silent = Guest::tiny().script("true").arg("--serial").arg("off").run()?.ended(0)?;
    check(silent.console.is_empty(), "nothing anywhere", &silent)?;
    Ok(Completion::Completed)
}
