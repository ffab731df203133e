//! virtio-net on a user-mode network, from inside and from the host.
//!
//! The monitor has no capabilities here, so that it can do no more than any
//! user's program.

use crate::guest::{Guest, LIMIT, check};
use crate::net::{self, HostTap, limited, serve};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};
use std::ffi::CString;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub fn tests() -> Vec<Trial> {
    vec![
        trial("usernet::a_guest_has_a_network_without_root", network),
        trial("usernet::passt_serves_a_guest_where_it_is_installed", passt),
    ]
}

const BYTES: usize = 4 << 20;
/// Where the test's name server listens, and what it says of any name.
const NAMES: &str = "127.77.0.1:53";
const ANSWER: [u8; 4] = [192, 0, 2, 77];

fn data() -> Vec<u8> {
    (0..BYTES as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Sends all bytes to the guest through `port` of the host, and returns what
/// comes back, once the guest listens.
fn call(port: u16) -> JoinHandle<io::Result<Vec<u8>>> {
    let once = move || {
        let mut stream = limited(TcpStream::connect(("127.0.0.1", port))?)?;
        let mut sender = stream.try_clone()?;
        let sending = std::thread::spawn(move || {
            sender.write_all(&data()).and_then(|()| sender.shutdown(Shutdown::Write))
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        sending.join().map_err(|_| io::Error::other("panicked"))??;
        Ok(back)
    };
    std::thread::spawn(move || {
        let end = Instant::now() + LIMIT;
        loop {
            match once() {
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(200)),
                done => return done,
            }
        }
    })
}

/// Answers every question with [`ANSWER`].
fn name_server() -> io::Result<()> {
    let socket = UdpSocket::bind(NAMES)?;
    std::thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((len, client)) = socket.recv_from(&mut message) {
            let mut reply = message[..len].to_vec();
            // Of what was asked, the header and the question; the type ends it.
            let Some(end) = reply.get(12..).and_then(|q| q.iter().position(|b| *b == 0)) else {
                continue;
            };
            reply.truncate(12 + end + 5);
            let asks_ipv4 = reply.ends_with(&[0, 1, 0, 1]);
            reply[2..4].copy_from_slice(&[0x81, 0x80]);
            reply[6..12].copy_from_slice(&[0, u8::from(asks_ipv4), 0, 0, 0, 0]);
            if asks_ipv4 {
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                reply.extend(ANSWER);
            }
            let _ = socket.send_to(&reply, client);
        }
    });
    Ok(())
}

/// Makes the monitor see `resolv_conf` as the host's own, and takes away all its
/// capabilities, for good.
fn confine(command: &mut Command, resolv_conf: &Path) -> io::Result<()> {
    let file = CString::new(resolv_conf.as_os_str().as_bytes())?;
    let prepare = move || {
        /// `linux/securebits.h`: root has no capabilities of its own.
        const NOROOT: libc::c_ulong = 0b11;
        /// `_LINUX_CAPABILITY_VERSION_3`, this process; two words of three sets.
        const HEADER: [u32; 2] = [0x2008_0522, 0];
        const NONE: [u32; 6] = [0; 6];
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let (root, conf) = (c"/".as_ptr(), c"/etc/resolv.conf".as_ptr());
        let null = std::ptr::null();
        // SAFETY: system calls alone, with C strings and words that outlive them.
        let done = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(null, root, null, private, null.cast()) == 0
                && libc::mount(file.as_ptr(), conf, null, libc::MS_BIND, null.cast()) == 0
                && libc::prctl(libc::PR_SET_SECUREBITS, NOROOT, 0, 0, 0) == 0
                && libc::syscall(libc::SYS_capset, HEADER.as_ptr(), NONE.as_ptr()) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes system calls and nothing else.
    unsafe { command.pre_exec(prepare) };
    Ok(())
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What the guest does: fetch, send back, be called, look up a name, measure.
fn script(served: u16, closed: u16, measured: u16) -> String {
    format!(
        "udhcpc -i eth0 -n -q -t 5 -T 2 -s /etc/udhcpc.script >/dev/null 2>&1 || exit 10\n\
         echo address=$(ip -4 -o addr show dev eth0 | awk '{{print $4}}')\n\
         echo route=$(ip route | awk '/default/ {{print $3}}')\n\
         echo mtu=$(cat /sys/class/net/eth0/mtu) privileges=$(id -u)\n\
         ping -c 2 -W 5 10.0.2.2 >/dev/null || exit 11\n\
         ping -c 1 -W 5 -s 20000 10.0.2.3 >/dev/null || exit 12\n\
         nc 10.0.2.2 {closed} </dev/null && exit 13\n\
         nc 127.0.0.2 {served} </dev/null && exit 14\n\
         nc 10.0.2.2 {served} </dev/null >/tmp/got; echo got=$(stat -c %s /tmp/got)\n\
         nc 10.0.2.2 {served} </tmp/got\n\
         echo name=$(nslookup host.example 10.0.2.3 | awk '/^Address/ {{print $NF}}' | tail -1)\n\
         nc -l -p 7000 </tmp/got >/tmp/in; cmp /tmp/in /tmp/got || exit 15\n\
         mount -t ext4 -o ro /dev/vdc /mnt; mount -t devtmpfs dev /mnt/dev\n\
         mount -t tmpfs tmp /mnt/tmp; mount -t proc proc /mnt/proc\n\
         iperf() {{ chroot /mnt /usr/bin/iperf3 \"$@\"; }}\n\
         iperf -s >/dev/null & sleep 1\n\
         measure() {{ name=$1; shift\n\
           iperf -c 10.0.2.2 -p {measured} \"$@\" >/tmp/measured || exit 16\n\
           echo $name=$(grep receiver /tmp/measured); }}\n\
         measure out -t 2\n\
         measure back -t 2 -R\n\
         measure datagrams -u -b 4M -t 2 -l 1200\n\
         measure datagrams_back -u -b 4M -t 2 -l 8000 -R"
    )
}

fn network() -> Verdict {
    if !is_root() {
        return Ok(Completion::ignored_with("taking a program's capabilities away needs them"));
    }
    name_server()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let served = listener.local_addr()?.port();
    let (closed, called, measured) = (free_port()?, free_port()?, free_port()?);
    let tools = format!("path={},readonly=on", kit::tools().display());
    let card = format!(
        "user,backend=internal,host-loopback=on,hostfwd=tcp::{called}-:7000,\
         hostfwd=tcp::{measured}-:5201,hostfwd=udp::{measured}-:5201"
    );
    let guest = Guest::tiny()
        .script(&script(served, closed, measured))
        .arg("--disk")
        .arg(tools)
        .arg("--net")
        .arg(card);
    let resolv_conf = guest.scratch("resolv.conf");
    std::fs::write(&resolv_conf, "nameserver 127.77.0.1\n")?;
    let (back, called) = (serve(listener, data()), call(called));
    let outcome = guest.start_with(|command| confine(command, &resolv_conf))?.wait()?;
    let outcome = outcome.script_passed()?;
    let expect = |name, value: &str| check(outcome.value(name)? == value, name, &outcome);
    expect("address", "10.0.2.15/24")?;
    expect("route", "10.0.2.2")?;
    expect("mtu", "65520 privileges=0")?;
    expect("name", "192.0.2.77")?;
    check(outcome.count("got")? == BYTES as u64, "all bytes reach the guest", &outcome)?;
    let back = back.join().map_err(|_| "the host's side panicked")??;
    check(back == data(), "and come back as they were", &outcome)?;
    let back = called.join().map_err(|_| "the host's side panicked")??;
    check(back == data(), "a forwarded port gives what the guest sends", &outcome)?;
    for name in ["out", "back", "datagrams", "datagrams_back"] {
        check(!outcome.value(name)?.is_empty(), "iperf3 measured", &outcome)?;
    }
    Ok(Completion::Completed)
}

/// passt takes the addresses' place from a route to somewhere, and in the rig
/// there is none.
fn default_route() -> Option<HostTap> {
    let tap = HostTap::new("mvpasst", 9)?;
    let routes = Command::new("ip").args(["-4", "route", "show", "default"]).output().ok()?;
    if routes.stdout.is_empty() {
        let route = ["route", "add", "default", "via", "10.77.9.2", "dev", "mvpasst"];
        Command::new("ip").args(route).status().ok().filter(ExitStatus::success)?;
    }
    Some(tap)
}

fn passt() -> Verdict {
    if Command::new("passt").arg("--version").output().is_err() {
        return Ok(Completion::ignored_with("passt is not installed"));
    }
    let Some(_tap) = default_route() else { return net::unavailable() };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (served, called) = (listener.local_addr()?.port(), free_port()?);
    // The guest ends no half of a stream while the other one goes on: Debian
    // 12's passt then stalls or repeats itself, behind a plain TAP as well.
    let script = format!(
        "udhcpc -i eth0 -n -q -t 5 -T 2 -s /etc/udhcpc.script >/dev/null 2>&1 || exit 10\n\
         echo address=$(ip -4 -o addr show dev eth0 | awk '{{print $4}}'); mkfifo /tmp/open\n\
         nc 10.0.2.2 {served} <>/tmp/open >/tmp/got; echo got=$(stat -c %s /tmp/got)\n\
         nc 10.0.2.2 {served} </tmp/got\n\
         nc -l -p 7000 <>/tmp/open >/tmp/in; cmp /tmp/in /tmp/got || exit 11\n\
         echo carrier=$(cat /sys/class/net/eth0/carrier); echo kill it\n\
         for i in $(seq 300); do [ $(cat /sys/class/net/eth0/carrier) = 0 ] && exit 0\n\
           usleep 100000; done; exit 12"
    );
    let net = format!("user,backend=passt,host-loopback=on,hostfwd=tcp::{called}-:7000");
    let mut guest = Guest::tiny().script(&script).arg("--net").arg(net).start();
    let (back, called) = (serve(listener, data()), call(called));
    if let Err(error) = guest.expect("kill it") {
        return Err(format!("{error}; {}", guest.wait()?.story()).into());
    }
    let monitor = guest.child.id();
    let children = std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children"))?;
    let child: i32 = children.trim().parse().map_err(|_| format!("one child: {children:?}"))?;
    // SAFETY: the monitor has not waited for its child, whose number it still is.
    unsafe { libc::kill(child, libc::SIGKILL) };
    let outcome = guest.wait()?.script_passed()?;
    check(outcome.value("address")? == "10.0.2.15/24", "its address", &outcome)?;
    check(outcome.value("carrier")? == "1", "the link was up", &outcome)?;
    check(outcome.stderr.contains("the card's link is down"), "and that is said", &outcome)?;
    let back = back.join().map_err(|_| "the host's side panicked")??;
    check(back == data(), "all bytes come back as they were", &outcome)?;
    let nothing = called.join().map_err(|_| "the host's side panicked")??;
    check(nothing.is_empty(), "nothing else comes out of the port", &outcome)?;
    Ok(Completion::Completed)
}
