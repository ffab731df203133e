//! Connections of ranks in the guest to their PMIx server on this host.

use devices::backend::prepared::Later;
use std::io;
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// The port of the first of them.
const FIRST: u32 = 1 << 24;
/// As many as a guest may ask for: ranks have one each.
const MOST: u32 = 1 << 12;

/// Makes them, to one place and no other.
pub struct Dialer {
    server: SocketAddrV4,
    later: Later,
    made: u32,
}

impl Dialer {
    /// To `server`; the guest finds them in `later`.
    pub fn new(server: SocketAddrV4, later: Later) -> Self {
        Self { server, later, made: 0 }
    }

    /// Makes one. Returns its port; 0 if there is none.
    pub fn dial(&mut self) -> u32 {
        let connect = || -> io::Result<UnixStream> {
            let stream = TcpStream::connect(self.server)?;
            // What is said here is short and waited for.
            stream.set_nodelay(true)?;
            // Streams are read, written and shut down alike whatever their family.
            Ok(OwnedFd::from(stream).into())
        };
        if self.made == MOST {
            return 0;
        }
        match connect() {
            Ok(stream) => {
                let port = FIRST + self.made;
                self.made += 1;
                self.later.add(port, stream);
                port
            }
            Err(error) => {
                log::warn!("PMIx server {}: {}", self.server, vmm::plain(&error));
                0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::backend::prepared::Prepared;
    use devices::virtio::vsock::VsockBackend;
    use std::net::TcpListener;

    #[test]
    fn each_rank_gets_a_connection_and_no_more_than_there_are() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let Ok(std::net::SocketAddr::V4(server)) = listener.local_addr() else { panic!() };
        let later = Later::default();
        let mut prepared = Prepared::of(later.clone()).unwrap();
        let mut dialer = Dialer::new(server, later);
        let ports = [dialer.dial(), dialer.dial()];
        assert_eq!(ports, [FIRST, FIRST + 1]);
        assert!(listener.accept().is_ok() && prepared.connect(FIRST, 1).is_ok());
        drop((listener, prepared));
        assert_eq!(dialer.dial(), 0);
        dialer.made = MOST;
        assert_eq!(dialer.dial(), 0);
    }
}
