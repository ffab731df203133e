//! For `bench io`, inside the rig: the host's end of the guest's network and
//! sockets, and the monitor itself.
//!
//! ```text
//!   bench-io in the guest ── UDP, TCP ── vmbench0 ── 10.0.0.1:7 ─┐
//!                         ── vsock ── monitor ── UDS_1234 ───────┴─ threads here
//! ```
//!
//! It costs instructions, too, and the same for every monitor.

use anyhow::{Context, Result};
use clap::Args;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

/// The interface that the monitor opens.
pub const TAP: &str = "vmbench0";
/// What a guest connects to by vsock.
pub const VSOCK_PORT: u32 = 1234;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const PORT: u16 = 7;
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
/// A write or a read of a stream.
const PIECE: usize = 64 << 10;

/// Arguments of the command.
#[derive(Args)]
pub struct HostArguments {
    /// The monitor's vsock, as a path
    #[arg(long)]
    uds: Option<PathBuf>,
    /// The monitor and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl HostArguments {
    /// Serves until the monitor ends; returns its exit status.
    pub fn run(self) -> Result<u8> {
        make_tap().context("making a TAP")?;
        let datagrams = UdpSocket::bind((ADDRESS, PORT)).context("UDP")?;
        thread::spawn(move || answer_datagrams(&datagrams));
        let connections = TcpListener::bind((ADDRESS, PORT)).context("TCP")?;
        thread::spawn(move || {
            for stream in connections.incoming().flatten() {
                serve(stream);
            }
        });
        if let Some(uds) = &self.uds {
            let path = format!("{}_{VSOCK_PORT}", uds.display());
            let sockets = UnixListener::bind(&path).with_context(|| format!("binding {path}"))?;
            thread::spawn(move || {
                for stream in sockets.incoming().flatten() {
                    serve(stream);
                }
            });
        }
        let (program, arguments) = self.command.split_first().context("no command")?;
        let status = Command::new(program).args(arguments).stdin(Stdio::null()).status();
        let status = status.context("starting the monitor")?;
        Ok(status.code().map_or(1, |code| code as u8))
    }
}

/// A TAP of this machine's, up and with an address, and no IPv6 on it: that
/// would send packets of its own.
fn make_tap() -> Result<()> {
    let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = interface();
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq; TUNSETPERSIST takes a number.
    unsafe {
        check(libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &mut request))?;
        check(libc::ioctl(tun.as_raw_fd(), TUNSETPERSIST, 1))?;
    }
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for (what, address) in [(libc::SIOCSIFADDR, ADDRESS), (libc::SIOCSIFNETMASK, MASK)] {
        let mut request = interface();
        // SAFETY: `sockaddr` is plain data, and all bits that matter are set.
        let mut place: libc::sockaddr = unsafe { std::mem::zeroed() };
        place.sa_family = libc::AF_INET as libc::sa_family_t;
        // The address follows the port.
        for (to, from) in place.sa_data.iter_mut().skip(2).zip(address.octets()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_addr = place;
        // SAFETY: both requests read one ifreq.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), what, &request) })?;
    }
    let mut request = interface();
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })?;
    Ok(())
}

fn interface() -> libc::ifreq {
    // SAFETY: ifreq is plain data for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `q` is for nobody, `a` is answered with itself, `s` with as many packets as
/// its second byte says.
fn answer_datagrams(socket: &UdpSocket) {
    let mut packet = [0; 2048];
    while let Ok((len, from)) = socket.recv_from(&mut packet) {
        let Some(whole) = packet.get(..len) else { continue };
        let answers = match whole {
            [b'a', ..] => 1,
            [b's', number, ..] => *number,
            _ => 0,
        };
        for _ in 0..answers {
            if socket.send_to(whole, from).is_err() {
                break;
            }
        }
    }
}

/// `w` and a number: reads that many MiB and answers with a byte; `r` and a
/// number: writes that many.
fn serve(mut stream: impl Read + Write) {
    let mut data = vec![0; PIECE];
    let mut wish = [0; 2];
    while stream.read_exact(&mut wish).is_ok() {
        let bytes = usize::from(wish[1]) << 20;
        let moved = match wish[0] {
            b'w' => swallow(&mut stream, &mut data, bytes).and_then(|()| stream.write_all(b".")),
            b'r' => (0..bytes / PIECE).try_for_each(|_| stream.write_all(&data)),
            _ => return,
        };
        if moved.is_err() {
            return;
        }
    }
}

fn swallow(stream: &mut impl Read, data: &mut [u8], mut bytes: usize) -> io::Result<()> {
    while bytes > 0 {
        let most = bytes.min(data.len());
        match stream.read(&mut data[..most])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => bytes -= n,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn streams_are_read_and_written_as_the_guest_says() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || serve(host));
        let mut data = vec![1; 2 << 20];
        guest.write_all(b"w\x02").unwrap();
        guest.write_all(&data).unwrap();
        guest.read_exact(&mut data[..1]).unwrap();
        assert_eq!(data[0], b'.');
        guest.write_all(b"r\x01").unwrap();
        guest.read_exact(&mut data[..1 << 20]).unwrap();
        guest.write_all(b"x\0").unwrap();
        server.join().unwrap();
        assert_eq!(guest.read(&mut data).unwrap(), 0);
    }

    #[test]
    fn packets_are_answered_as_the_guest_says() {
        let (guest, host) = (UdpSocket::bind("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0"));
        let (guest, host) = (guest.unwrap(), host.unwrap());
        guest.connect(host.local_addr().unwrap()).unwrap();
        thread::spawn(move || answer_datagrams(&host));
        let mut packet = [0; 64];
        for (wish, answers) in [(b"q\0", 0), (b"a\0", 1), (b"s\x03", 3)] {
            guest.send(wish).unwrap();
            for _ in 0..answers {
                assert_eq!(guest.recv(&mut packet).unwrap(), 2);
                assert_eq!(&packet[..2], wish);
            }
        }
    }
}
