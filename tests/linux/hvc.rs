//! The virtio console and its named ports.

use crate::console::{Session, expect_status};
use crate::guest::{Guest, LIMIT, Started, check};
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

pub fn tests() -> Vec<Trial> {
    vec![
        trial("hvc::a_shell_follows_the_size_of_its_terminal", || shell("mmio", false)),
        trial("hvc::a_shell_follows_the_size_of_its_terminal_over_pci", || shell("pci", false)),
        trial("hvc::a_shell_beside_a_port_does_so_too", || shell("mmio", true)),
        trial("hvc::a_shell_beside_a_port_does_so_too_over_pci", || shell("pci", true)),
        trial("hvc::a_named_port_carries_bytes_whole", || port("mmio")),
        trial("hvc::a_named_port_carries_bytes_whole_over_pci", || port("pci")),
        trial("hvc::a_console_on_a_socket_a_pty_or_in_a_file", elsewhere),
        trial("hvc::two_consoles_on_one_terminal_are_refused", both),
    ]
}

fn resize(session: &Session, rows: u16, cols: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads the struct.
    match unsafe { libc::ioctl(session.master.as_raw_fd(), libc::TIOCSWINSZ, &size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// With a named port there are control messages, without one there are none.
fn shell(transport: &str, with_port: bool) -> Verdict {
    let mut guest = Guest::tiny().arg("--transport").arg(transport).arg("--console").arg("stdio");
    if with_port {
        let file = format!("name=log,file={}", guest.scratch("log").display());
        guest = guest.arg("--port").arg(file);
    }
    let mut session = Session::start(guest)?;
    session.expect("# ")?;
    session.send("tty; echo $((6 * 7))-answers\n")?;
    session.expect("/dev/hvc0")?;
    session.expect("42-answers")?;
    for (rows, cols) in [(33, 77), (50, 132)] {
        resize(&session, rows, cols)?;
        std::thread::sleep(Duration::from_secs(1));
        session.send("echo size $(stty size)\n")?;
        session.expect(&format!("size {rows} {cols}"))?;
    }
    session.send("poweroff\n")?;
    session.expect("guest powered off")?;
    expect_status(session.end()?, 0)
}

const BYTES: u32 = 4 << 20;

fn connect(path: &Path, started: &Started) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT))?;
                stream.set_write_timeout(Some(LIMIT))?;
                return Ok(stream);
            }
            Err(e) if Instant::now() > started.deadline => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// 4 MiB there and back, then the host leaves and comes again.
fn port(transport: &str) -> Verdict {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("p");
    let script = format!(
        "for p in /sys/class/virtio-ports/*; do
            [ \"$(cat $p/name)\" = org.agent.0 ] && port=/dev/$(basename $p); done
        [ -c \"$port\" ] || exit 3
        echo ready; read line; exec 3<>$port
        head -c {BYTES} <&3 >/tmp/in; echo sum=$(sha256sum </tmp/in | cut -d' ' -f1)
        cat /tmp/in >&3; cat <&3 >/tmp/rest; echo rest=$(wc -c </tmp/rest)
        echo gone; read line; head -c 6 <&3 >/tmp/word; cat /tmp/word >&3; cat <&3 | wc -c"
    );
    let (input, mut keys) = io::pipe()?;
    let guest = Guest::tiny().script(&script).stdin(input).arg("--transport").arg(transport);
    let ports = [format!("name=org.agent.0,socket={}", socket.display())];
    let guest = guest.arg("--port").arg(&ports[0]).arg("--log").arg("info");
    let mut started = guest.start();
    started.expect("ready")?;
    let mut stream = connect(&socket, &started)?;
    keys.write_all(b"\n")?;
    let data: Vec<u8> = (0..BYTES).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (mut out, sent) = (stream.try_clone()?, data.clone());
    let send = std::thread::spawn(move || out.write_all(&sent));
    let mut back = vec![0; BYTES as usize];
    let start = Instant::now();
    stream.read_exact(&mut back)?;
    eprintln!("port over {transport}: 4 MiB there and back in {:?}", start.elapsed());
    send.join().map_err(|_| "the sending thread panicked")??;
    drop(stream);
    started.expect("gone")?;
    let mut again = connect(&socket, &started)?;
    // The guest has heard of it when its read does not end at once.
    std::thread::sleep(Duration::from_secs(1));
    keys.write_all(b"\n")?;
    again.write_all(b"second")?;
    let mut word = [0; 6];
    again.read_exact(&mut word)?;
    drop(again);
    let outcome = started.wait()?.script_passed()?;
    check(back == data, "the bytes come back as they were", &outcome)?;
    check(outcome.count("rest")? == 0, "and nothing else comes", &outcome)?;
    check(&word == b"second", "the second host is heard", &outcome)?;
    check(!socket.exists(), "the socket goes with the monitor", &outcome)?;
    Ok(Completion::Completed)
}

fn elsewhere() -> Verdict {
    let dir = tempfile::tempdir()?;
    let (socket, file) = (dir.path().join("c"), dir.path().join("out"));
    let guest = Guest::tiny().arg("--console").arg(format!("socket={}", socket.display()));
    let started = guest.start();
    let mut stream = connect(&socket, &started)?;
    let mut console = crate::guest::Reader::new(stream.try_clone()?);
    std::thread::sleep(Duration::from_secs(1));
    stream.write_all(b"\n")?;
    console.expect("# ", started.deadline)?;
    stream.write_all(b"poweroff\n")?;
    started.wait()?.ended(0)?;

    let guest = Guest::tiny().script("echo to-a-file");
    let outcome = guest.arg("--console").arg(format!("file={}", file.display())).run()?.ended(0)?;
    let text = std::fs::read_to_string(&file)?;
    check(text.contains("to-a-file"), &format!("the file has {text:?}"), &outcome)?;

    let outcome = Guest::tiny().script("echo unheard").arg("--console").arg("pty").run()?;
    let outcome = outcome.ended(0)?;
    check(outcome.stderr.contains("console: /dev/pts/"), "the pty has a name", &outcome)?;
    Ok(Completion::Completed)
}

fn both() -> Verdict {
    let guest = Guest::tiny().arg("--console").arg("stdio").arg("--serial").arg("stdio");
    let outcome = guest.run()?.ended(3)?;
    check(outcome.stderr.lines().count() == 1, "the refusal is one line", &outcome)?;
    check(outcome.stderr.contains("--serial off"), "that says what to do", &outcome)?;
    Ok(Completion::Completed)
}
