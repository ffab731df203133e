//! Whom the guest talks to: a port of this host's loopback address that sends
//! packets back and takes streams.

use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;

/// How often a port is looked for that both protocols have free.
const ATTEMPTS: usize = 16;

/// The peer; its threads end with the process.
pub struct Peer {
    /// Where it listens.
    pub port: u16,
}

impl Peer {
    /// Starts to listen.
    pub fn start() -> io::Result<Self> {
        let (streams, packets) = bind()?;
        let port = packets.local_addr()?.port();
        thread::Builder::new().name("packets".to_owned()).spawn(move || echo(&packets))?;
        thread::Builder::new().name("streams".to_owned()).spawn(move || swallow(&streams))?;
        Ok(Self { port })
    }
}

fn bind() -> io::Result<(TcpListener, UdpSocket)> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let streams = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        match UdpSocket::bind(streams.local_addr()?) {
            Ok(packets) => return Ok((streams, packets)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

fn echo(packets: &UdpSocket) {
    let mut buffer = [0; 2048];
    // An error is that of a packet to somebody who has gone.
    loop {
        if let Ok((len, from)) = packets.recv_from(&mut buffer) {
            let _ = packets.send_to(buffer.get(..len).unwrap_or_default(), from);
        }
    }
}

/// Reads each stream to its end, then closes it.
fn swallow(streams: &TcpListener) {
    let mut buffer = vec![0; 256 << 10];
    for mut stream in streams.incoming().flatten() {
        while let Ok(1..) = stream.read(&mut buffer) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpStream};

    #[test]
    fn packets_come_back_and_streams_end() {
        let address = (Ipv4Addr::LOCALHOST, Peer::start().unwrap().port);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.send_to(b"there", address).unwrap();
        let mut back = [0; 8];
        assert_eq!(socket.recv(&mut back).unwrap(), 5);
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&[0; 100_000]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut back).unwrap(), 0);
        }
    }
}
