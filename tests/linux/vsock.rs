//! virtio-vsock, with Unix sockets of the host at the other end.

use crate::guest::{Guest, LIMIT, Started, check};
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub fn tests() -> Vec<Trial> {
    vec![
        trial("vsock::bytes_arrive_whole_from_and_to_the_host", guest_connects),
        trial("vsock::a_client_of_the_host_reaches_the_guest", host_connects),
        trial("vsock::where_nobody_listens_a_connection_is_refused", refused),
        trial("vsock::a_driver_that_is_taken_away_ends_connections_and_no_more", unbound),
        trial("vsock::the_socket_is_there_while_the_guest_is", lifetime),
    ]
}

core::arch::global_asm!(include_str!("vsock_guest.S"));

/// Where the guest's program is loaded.
const BASE: u64 = 0x40_0000;
/// An ELF header and one program header.
const HEADERS: u64 = 64 + 56;

/// The program of the guest, which has no tool for vsock: an executable file.
fn program() -> Vec<u8> {
    unsafe extern "C" {
        static vsock_guest_start: u8;
        static vsock_guest_end: u8;
    }
    let (start, end) = (&raw const vsock_guest_start, &raw const vsock_guest_end);
    // SAFETY: both are labels of one section, in that order, with code between.
    let code = unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) };
    let len = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2u16, 62].map(u16::to_le_bytes).concat()); // ET_EXEC, EM_X86_64
    elf.extend(1u32.to_le_bytes());
    elf.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).concat()); // entry, phoff, shoff
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    elf.extend([1u32, 5].map(u32::to_le_bytes).concat()); // PT_LOAD, read and execute
    elf.extend([0, BASE, BASE, len, len, 0x1000].map(u64::to_le_bytes).concat());
    elf.extend(code);
    elf
}

/// A guest with a vsock at `dir`/v, whose script finds the program as `vsock`.
pub fn guest(dir: &Path, script: &str) -> Guest {
    let script = format!(
        "mkdir /tmp/bin; cat /dev/vdc >/tmp/bin/vsock; chmod 755 /tmp/bin/vsock\n\
         PATH=$PATH:/tmp/bin\n{script}"
    );
    let guest = Guest::tiny().script(&script);
    let disk = guest.scratch("vsock.disk");
    let mut bytes = program();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    std::fs::write(&disk, bytes).expect("writing the program's disk");
    let disk = format!("path={},readonly=on", disk.display());
    guest.arg("--disk").arg(disk).arg("--vsock").arg(format!("uds={}", dir.join("v").display()))
}

/// Bytes that look like none before.
pub fn pattern(len: u32) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Answers the next client at `path`: sends it `data` and reads what it sends.
fn serve(path: PathBuf, data: Vec<u8>) -> io::Result<JoinHandle<io::Result<Vec<u8>>>> {
    let listener = UnixListener::bind(path)?;
    Ok(std::thread::spawn(move || exchange(listener.accept()?.0, data)))
}

/// Sends and reads at once, each to its end.
fn exchange(mut stream: UnixStream, data: Vec<u8>) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut out = stream.try_clone()?;
    let send = std::thread::spawn(move || {
        out.write_all(&data)?;
        out.shutdown(Shutdown::Write)
    });
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    send.join().map_err(|_| io::Error::other("the sending thread panicked"))??;
    Ok(all)
}

fn joined(thread: JoinHandle<io::Result<Vec<u8>>>) -> Result<Vec<u8>, String> {
    thread.join().map_err(|_| "the host's side panicked")?.map_err(|e| format!("the host: {e}"))
}

const BYTES: u32 = 5 << 20;

/// The host sends 5 MiB, the guest sums them up and sends them back.
fn guest_connects() -> Verdict {
    let dir = tempfile::tempdir()?;
    let data = pattern(BYTES);
    let out = serve(dir.path().join("v_1000"), data.clone())?;
    let back = serve(dir.path().join("v_1001"), Vec::new())?;
    let script = "vsock 1000 </dev/null >/tmp/got && echo got=$(stat -c %s /tmp/got) && vsock 1001 </tmp/got";
    let outcome = guest(dir.path(), script).run()?.script_passed()?;
    check(outcome.count("got")? == u64::from(BYTES), "all bytes reach the guest", &outcome)?;
    check(joined(out)?.is_empty(), "which sent none there", &outcome)?;
    check(joined(back)? == data, "and come back as they were", &outcome)?;
    Ok(Completion::Completed)
}

/// Connects to `port` of the guest, once it listens.
pub fn connect(dir: &Path, port: u32, started: &Started) -> Result<UnixStream, String> {
    while Instant::now() < started.deadline {
        let mut stream = UnixStream::connect(dir.join("v")).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(LIMIT)).map_err(|e| e.to_string())?;
        // One that is refused may be closed before all of it is written.
        let _ = stream.write_all(format!("CONNECT {port}\n").as_bytes());
        let mut line = Vec::new();
        let mut byte = [0];
        while let Ok(1) = stream.read(&mut byte) {
            line.push(byte[0]);
            if byte == *b"\n" {
                let line = String::from_utf8_lossy(&line).into_owned();
                let port = line.trim_end().strip_prefix("OK ").map(str::parse::<u32>);
                return match port {
                    Some(Ok(_)) => Ok(stream),
                    _ => Err(format!("the answer is {line:?}")),
                };
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err("nobody listens in the guest".to_owned())
}

/// The guest sends a file and then hears what the host sends all the while.
fn host_connects() -> Verdict {
    let dir = tempfile::tempdir()?;
    let script = "dd if=/dev/urandom of=/tmp/out bs=64k count=16 2>/dev/null\n\
                  echo listening; vsock l5000 </tmp/out >/tmp/in || exit 1\n\
                  echo sum=$(cat /tmp/out /tmp/in | sha256sum | cut -d' ' -f1)";
    let mut started = guest(dir.path(), script).start();
    started.expect("listening")?;
    let stream = connect(dir.path(), 5000, &started)?;
    let data = pattern(1 << 20);
    let mut all = exchange(stream, data.clone())?;
    let outcome = started.wait()?.script_passed()?;
    check(all.len() == 1 << 20, "what the guest sends arrives", &outcome)?;
    all.extend(data);
    let file = dir.path().join("all");
    std::fs::write(&file, all)?;
    let sum = std::process::Command::new("sha256sum").arg(file).output()?.stdout;
    let sum = String::from_utf8_lossy(&sum);
    check(sum.starts_with(outcome.value("sum")?), "both ways as it was", &outcome)?;
    Ok(Completion::Completed)
}

fn refused() -> Verdict {
    let dir = tempfile::tempdir()?;
    let script = "vsock 77 </dev/null; echo status=$?; echo up; read line; true";
    let (input, mut keys) = io::pipe()?;
    let mut started = guest(dir.path(), script).stdin(input).start();
    started.expect("up")?;
    for line in ["CONNECT 78\n", "CONNECT x\n", "HELLO\n", "0123456789012345678901234567890"] {
        let mut stream = UnixStream::connect(dir.path().join("v"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let _ = stream.write_all(line.as_bytes());
        let mut answer = Vec::new();
        // With bytes of ours unread, the end is a reset.
        let ended = stream.read_to_end(&mut answer);
        let over = !matches!(&ended, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        if !over || !answer.is_empty() {
            return Err(format!("{line:?} got {ended:?}, {answer:?}").into());
        }
    }
    keys.write_all(b"\n")?;
    let outcome = started.wait()?.script_passed()?;
    check(outcome.count("status")? == 104, "the guest is told ECONNRESET", &outcome)?;
    Ok(Completion::Completed)
}

/// The reset closes the host's sockets on a vCPU's thread, under its filter.
fn unbound() -> Verdict {
    let dir = tempfile::tempdir()?;
    let listener = UnixListener::bind(dir.path().join("v_1000"))?;
    let again = serve(dir.path().join("v_1001"), Vec::new())?;
    let script = "cd /sys/bus/virtio/drivers/vmw_vsock_virtio_transport\n\
                  device=$(basename virtio*)\n\
                  (echo there; sleep 1000) | vsock 1000 &\n\
                  echo up; read line\n\
                  echo $device >unbind && echo $device >bind && echo again | vsock 1001";
    let (input, mut keys) = io::pipe()?;
    let mut started = guest(dir.path(), script).stdin(input).start();
    started.expect("up")?;
    let mut first = listener.accept()?.0;
    first.set_read_timeout(Some(LIMIT))?;
    first.read_exact(&mut [0; 6])?;
    keys.write_all(b"\n")?;
    let rest = first.read(&mut [0; 6]);
    let outcome = started.wait()?.script_passed()?;
    check(matches!(rest, Ok(0)), "the first connection ends", &outcome)?;
    check(joined(again)? == b"again\n", "another one can be made", &outcome)?;
    Ok(Completion::Completed)
}

fn lifetime() -> Verdict {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("v");
    let mut first = guest(dir.path(), "echo ready; sleep 1000").start();
    first.expect("ready")?;
    let second = guest(dir.path(), "true").run()?.ended(3)?;
    check(second.stderr.lines().count() == 1, "the refusal is one line", &second)?;
    check(second.stderr.contains("exists"), "that says why", &second)?;
    check(socket.exists(), "and the first keeps its socket", &second)?;
    first.signal(libc::SIGTERM);
    let first = first.wait()?.ended(128 + libc::SIGTERM)?;
    check(!socket.exists(), "a signal removes it", &first)?;
    let outcome = guest(dir.path(), "true").run()?.script_passed()?;
    check(!socket.exists(), "and so does the guest's end", &outcome)?;
    Ok(Completion::Completed)
}
