//! Counters, read from outside while a guest does what they count.

use crate::guest::{Guest, check};
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use serde_json::Value;
use std::io::Read;
use std::os::unix::net::UnixStream;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("metrics::a_file_gets_a_line_of_json_at_the_end", file),
        trial("metrics::a_socket_tells_whoever_connects", socket),
    ]
}

fn file() -> Verdict {
    let dir = tempfile::tempdir()?;
    let (report, image) = (dir.path().join("report"), dir.path().join("data"));
    std::fs::write(&image, vec![1; 1 << 20])?;
    let script = "dd if=/dev/vdc of=/dev/null bs=64k 2>/dev/null; \
                  dd if=/dev/zero of=/dev/vdc bs=4k count=8 conv=fsync 2>/dev/null";
    let outcome = Guest::tiny()
        .script(script)
        .arg("--disk")
        .arg(format!("path={}", image.display()))
        .arg("--metrics")
        .arg(&report)
        .arg("--cpus=2")
        .run()?
        .script_passed()?;
    let text = std::fs::read_to_string(&report)?;
    let last = text.lines().last().unwrap_or_default();
    let all: Value = serde_json::from_str(last)?;
    let number = |path: &str| all.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    for (path, least) in [
        ("/uptime_ms", 1),
        ("/devices/block2/bytes_read", 1 << 20),
        ("/devices/block2/bytes_written", 32 << 10),
        ("/devices/block2/flushes", 1),
        ("/devices/block2/queues/0/doorbells", 1),
        ("/devices/block2/queues/0/interrupts", 1),
        ("/vcpus/0/exits_port_out", 1),
        ("/kvm/0/exits", 100),
        ("/kvm/1/exits", 10),
    ] {
        check(number(path) >= least, &format!("{path} of {last}"), &outcome)?;
    }
    check(number("/devices/block2/errors") == 0, "no errors", &outcome)?;
    Ok(Completion::Completed)
}

fn socket() -> Verdict {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("metrics");
    let mut started = Guest::tiny()
        .script("echo ready; sleep 1000")
        .arg("--metrics")
        .arg(format!("socket={},format=prometheus", path.display()))
        .start();
    started.expect("ready")?;
    for _ in 0..3 {
        let mut text = String::new();
        UnixStream::connect(&path)?.read_to_string(&mut text)?;
        for part in [
            "microvm_uptime_seconds ",
            "\nmicrovm_device_reads{device=\"block0\"} ",
            "\nmicrovm_queue_interrupts{device=\"block0\",queue=\"0\"} ",
            "\nmicrovm_vcpu_exits_port_out{vcpu=\"0\"} ",
            "\n# TYPE microvm_kvm_exits counter\n",
        ] {
            if !text.contains(part) {
                return Err(format!("no {part:?} in {text}").into());
            }
        }
    }
    started.signal(libc::SIGTERM);
    started.wait()?.ended(128 + libc::SIGTERM)?;
    if path.exists() {
        return Err("the socket is still there".into());
    }
    Ok(Completion::Completed)
}
