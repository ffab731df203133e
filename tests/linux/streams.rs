//! A thousand connections of a vsock at once.

use crate::guest::{LIMIT, Started, check};
use crate::vsock::{connect, guest, pattern};
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("streams::a_thousand_at_once_each_way", || many("mmio", 1000)),
        trial("streams::two_hundred_at_once_each_way_over_pci", || many("pci", 200)),
    ]
}

const BYTES: u32 = 16 << 10;

/// What is checked: the sum of the sorted sums of all files.
const SUM: &str = "sha256sum * | cut -d' ' -f1 | sort | sha256sum | cut -d' ' -f1";

/// Sets the limit of descriptors, for the monitor that is started next or, with
/// none, to what is allowed.
fn descriptors(soft: Option<u64>) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write the struct alone.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        limit.rlim_cur = soft.unwrap_or(limit.rlim_max);
        match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Each stream gets bytes of its own, which are files beside it.
fn payload(dir: &Path, number: u32) -> io::Result<Vec<u8>> {
    let mut data = pattern(BYTES);
    data.extend(number.to_le_bytes());
    std::fs::write(dir.join(number.to_string()), &data)?;
    Ok(data)
}

/// With all of them connected, hears what each has to say and answers.
fn converse(streams: &mut [UnixStream], dir: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut heard = Vec::new();
    for stream in streams.iter_mut() {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        heard.push(all);
    }
    for (number, stream) in (0..).zip(streams.iter_mut()) {
        stream.write_all(&payload(dir, number)?)?;
        stream.shutdown(Shutdown::Write)?;
    }
    Ok(heard)
}

fn shell(dir: &Path, line: &str) -> Result<String, String> {
    let output = std::process::Command::new("sh").arg("-c").arg(line).current_dir(dir).output();
    let output = output.map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn to_the_host(listener: UnixListener, dir: &Path, count: u32) -> io::Result<Vec<Vec<u8>>> {
    let streams = (0..count).map(|_| listener.accept().map(|(stream, _)| stream));
    let mut streams: Vec<_> = streams.collect::<io::Result<_>>()?;
    converse(&mut streams, dir)
}

fn to_the_guest(
    socket: &Path,
    started: &Started,
    dir: &Path,
    count: u32,
) -> Result<Vec<Vec<u8>>, String> {
    let streams = (0..count).map(|i| connect(socket, 5000 + i, started));
    let mut streams: Vec<_> = streams.collect::<Result<_, _>>()?;
    converse(&mut streams, dir).map_err(|e| e.to_string())
}

fn many(transport: &str, count: u32) -> Verdict {
    let dir = tempfile::tempdir()?;
    let sent = [dir.path().join("a"), dir.path().join("b")];
    sent.iter().try_for_each(std::fs::create_dir)?;
    let script = format!(
        "mkdir /tmp/a /tmp/b; head -c {BYTES} /dev/urandom >/tmp/data; sha256sum </tmp/data
        echo data=$(sha256sum </tmp/data | cut -d' ' -f1)
        i=0; while [ $i -lt {count} ]; do vsock 1000 </tmp/data >/tmp/a/$i & i=$((i + 1)); done
        wait; cd /tmp/a; echo first=$({SUM})
        i=0; while [ $i -lt {count} ]; do
            vsock l$((5000 + i)) </tmp/data >/tmp/b/$i & i=$((i + 1)); done
        echo listening; wait; cd /tmp/b; echo second=$({SUM})"
    );
    let listener = UnixListener::bind(dir.path().join("v_1000"))?;
    // The monitor helps itself to more.
    descriptors(Some(256))?;
    let guest = guest(dir.path(), &script).arg("--transport").arg(transport);
    let started = guest.arg("--memory").arg("512M").arg("--log").arg("info").start();
    descriptors(None)?;
    let mut started = started;
    // Two thousand streams through a host that is emulated itself.
    started.deadline += Duration::from_secs(300);
    let first = to_the_host(listener, &sent[0], count)?;
    started.expect("listening")?;
    let second = to_the_guest(dir.path(), &started, &sent[1], count)?;
    let outcome = started.wait()?.script_passed()?;
    for (heard, name, dir) in [(first, "first", &sent[0]), (second, "second", &sent[1])] {
        check(outcome.value(name)? == shell(dir, SUM)?, "the guest hears it all", &outcome)?;
        check(heard.len() == count as usize, "every stream is heard", &outcome)?;
        let same = heard.iter().all(|data| Some(data) == heard.first());
        check(same && heard[0].len() == BYTES as usize, "as it was said", &outcome)?;
        let file = dir.join("heard");
        std::fs::write(&file, &heard[0])?;
        let sum = shell(dir, "sha256sum <heard | cut -d' ' -f1")?;
        check(sum == outcome.value("data")?, "by the guest", &outcome)?;
    }
    let all = u64::from(count * BYTES) * 2;
    check(outcome.stderr.contains(&format!("bytes_to_host={all}")), "it is counted", &outcome)?;
    Ok(Completion::Completed)
}
