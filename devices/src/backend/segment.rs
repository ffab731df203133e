//! An Ethernet segment among machines of one user on one host: a datagram socket
//! for each station, and no process in between.
//!
//! ```text
//!  station 0 ── PATH.0 ◄──► PATH.1 ── station 1
//!                  ▲          ▲
//!                  └─ PATH.2 ─┴────── station 2
//! ```
//!
//! A frame is a datagram. It goes to the socket of the station that its address
//! names, and to all of them if that is a group's. One whose station is not there,
//! or does not keep up, is lost, as on any Ethernet.

use crate::virtio::net::NetBackend;
use crate::virtio::queue::IoVecs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// The largest packet.
pub const MTU: u16 = 9000;
/// As many stations as a frame for all of them may be sent to.
pub const MAX_STATIONS: u16 = 256;
/// `struct virtio_net_hdr_v1`, which stays on this side.
const HEADER: usize = 12;
/// A packet with its Ethernet header and a VLAN tag.
const MAX_FRAME: usize = MTU as usize + 18;
/// The longest path of a socket (`struct sockaddr_un`).
const MAX_PATH: usize = 107;
/// Locally administered, for one station.
const PREFIX: [u8; 4] = [0x02, b'm', b'v', 0];

/// Why a station can't be there.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The path of its socket is too long.
    #[error("net segment: {path}: a socket's path has at most {MAX_PATH} bytes", path = .0.display())]
    Path(PathBuf),
    /// The socket.
    #[error("net segment: {path}: {source}", path = path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// One station.
pub struct Segment {
    socket: UnixDatagram,
    own: usize,
    stations: Vec<PathBuf>,
    frame: Vec<u8>,
}

/// The socket of a station.
pub fn socket_path(path: &Path, station: u16) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{station}"));
    name.into()
}

/// The address of a station's card.
pub fn mac(station: u16) -> [u8; 6] {
    let ([a, b, c, d], [high, low]) = (PREFIX, station.to_be_bytes());
    [a, b, c, d, high, low]
}

impl Segment {
    /// Takes the place of station `own` of `stations`; who was there is not any more.
    pub fn open(path: &Path, own: u16, stations: u16) -> Result<Self, SegmentError> {
        let place = socket_path(path, own);
        if place.as_os_str().len() > MAX_PATH {
            return Err(SegmentError::Path(place));
        }
        let error = |source| SegmentError::Socket { path: place.clone(), source };
        match std::fs::remove_file(&place) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(error(e)),
            _ => {}
        }
        let socket = UnixDatagram::bind(&place).map_err(error)?;
        socket.set_nonblocking(true).map_err(error)?;
        let stations = (0..stations).map(|station| socket_path(path, station)).collect();
        Ok(Self { socket, own: own.into(), stations, frame: vec![0; MAX_FRAME] })
    }

    /// Sends the first `len` bytes of the frame.
    fn send_to(&self, station: usize, len: usize) -> io::Result<()> {
        let (Some(path), Some(frame)) = (self.stations.get(station), self.frame.get(..len)) else {
            return Err(ErrorKind::NotFound.into());
        };
        self.socket.send_to(frame, path).map(drop)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // Nobody is there any more. Where this may not be done, others do it, or
        // whoever comes to this place next.
        if let Some(path) = self.stations.get(self.own) {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl NetBackend for Segment {
    fn features(&self) -> u64 {
        0
    }

    fn set_features(&mut self, _negotiated: u64) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, frame: &mut IoVecs<'_>) -> io::Result<()> {
        let len = usize::try_from(frame.len()).unwrap_or(usize::MAX).saturating_sub(HEADER);
        if !(14..=MAX_FRAME).contains(&len) {
            return Err(ErrorKind::InvalidInput.into());
        }
        frame.advance(HEADER as u64);
        let bytes = self.frame.get_mut(..len).unwrap_or_default();
        frame.copy_out(bytes);
        match *bytes {
            [first, ..] if first & 1 != 0 => {
                for station in (0..self.stations.len()).filter(|station| *station != self.own) {
                    // Each is there or not.
                    let _ = self.send_to(station, len);
                }
                Ok(())
            }
            [a, b, c, d, high, low, ..] if [a, b, c, d] == PREFIX => {
                self.send_to(u16::from_be_bytes([high, low]).into(), len)
            }
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    fn receive(&mut self, frame: &mut IoVecs<'_>, rest: &mut [u8]) -> io::Result<Option<usize>> {
        let n = loop {
            match self.socket.recv(&mut self.frame) {
                // Nothing that is shorter is a frame.
                Ok(n @ 14..) => break n,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e),
            }
        };
        let bytes = self.frame.get(..n).unwrap_or_default();
        let (mut len, mut over) = (0, rest.iter_mut());
        for part in [&[0; HEADER], bytes] {
            let fits = frame.copy_in(part);
            let rest = part.get(fits..).unwrap_or_default();
            len += fits + rest.iter().zip(&mut over).map(|(from, to)| *to = *from).count();
        }
        Ok(Some(len))
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::queue::IoVecStore;

    fn send(from: &mut Segment, to: [u8; 6], text: &[u8]) -> io::Result<()> {
        let mut bytes = [&[0; HEADER][..], &to, &mac(9), &[8, 0], text].concat();
        let mut store = IoVecStore::new();
        from.send(&mut IoVecs::from_slice(&mut store, &mut bytes))
    }

    fn receive(at: &mut Segment) -> Option<Vec<u8>> {
        let (mut bytes, mut store) = (vec![0xff; HEADER + MAX_FRAME], IoVecStore::new());
        let n = at.receive(&mut IoVecs::from_slice(&mut store, &mut bytes), &mut []).unwrap()?;
        assert!(bytes.starts_with(&[0; HEADER]));
        Some(bytes[HEADER + 14..n].to_vec())
    }

    #[test]
    fn frames_go_to_whom_they_are_for() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("net");
        let mut all: Vec<Segment> = (0..3).map(|n| Segment::open(&path, n, 4).unwrap()).collect();
        let [one, other, third] = &mut all[..] else { panic!() };
        send(one, mac(1), b"for one").unwrap();
        send(one, [0xff; 6], b"for all").unwrap();
        assert_eq!(receive(other).unwrap(), b"for one");
        assert_eq!(receive(other).unwrap(), b"for all");
        assert_eq!(receive(third).unwrap(), b"for all");
        assert_eq!((receive(other), receive(third), receive(one)), (None, None, None));
        // Nobody there, nobody's address, nothing that is a frame, too much for one.
        for (to, len) in [(mac(3), 1), (mac(4), 1), ([2; 6], 1), (mac(1), MAX_FRAME)] {
            assert!(send(one, to, &vec![0; len]).is_err());
        }
        // Whoever comes back takes its place again.
        drop(all.remove(1));
        assert!(!socket_path(&path, 1).exists() && socket_path(&path, 2).exists());
        let [_, third] = &mut all[..] else { panic!() };
        assert!(send(third, mac(1), b"gone").is_err());
        let other = &mut Segment::open(&path, 1, 4).unwrap();
        send(third, mac(1), b"again").unwrap();
        assert_eq!(receive(other).unwrap(), b"again");
    }

    #[test]
    fn one_that_does_not_keep_up_loses_frames_and_holds_nobody_up() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("net");
        let mut one = Segment::open(&path, 0, 2).unwrap();
        let mut other = Segment::open(&path, 1, 2).unwrap();
        let sent = (0..5000).filter(|_| send(&mut one, mac(1), &[0; 1000]).is_ok()).count();
        assert!((1..5000).contains(&sent), "{sent}");
        let got = std::iter::from_fn(|| receive(&mut other)).count();
        assert_eq!(got, sent);
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_told() {
        let path = PathBuf::from("/tmp").join("x".repeat(120));
        assert!(matches!(Segment::open(&path, 0, 2), Err(SegmentError::Path(_))));
    }
}
