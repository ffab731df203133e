//! The host's side of virtio-vsock as connections that were there before the
//! guest: one for each port, made in this process, without a name on the host.
//!
//! A guest that connects to one of these ports of the host gets the stream that
//! was prepared for it, once. There is nothing else to connect to, and nobody of
//! the host can connect to the guest. More may be prepared while the guest runs.

use crate::backend::vsock::{Stream, news, watch};
use crate::virtio::vsock::{HostStream, Readiness, VsockBackend};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::epoll::Epoll;

/// Streams that wait for the guest.
pub struct Prepared {
    streams: Later,
    epoll: Epoll,
}

/// Prepares more streams, on any thread.
#[derive(Debug, Clone, Default)]
pub struct Later(Arc<Mutex<BTreeMap<u32, UnixStream>>>);

impl Later {
    /// The guest that connects to `port` gets `stream`.
    pub fn add(&self, port: u32, stream: UnixStream) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(port, stream);
    }

    /// More than one.
    pub fn extend(&self, streams: impl IntoIterator<Item = (u32, UnixStream)>) {
        streams.into_iter().for_each(|(port, stream)| self.add(port, stream));
    }

    fn take(&self, port: u32) -> Option<UnixStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&port)
    }
}

impl Prepared {
    /// A stream for each port.
    pub fn new(streams: impl IntoIterator<Item = (u32, UnixStream)>) -> io::Result<Self> {
        let all = Later::default();
        all.extend(streams);
        Self::of(all)
    }

    /// Those that are prepared elsewhere, now or while the guest runs.
    pub fn of(streams: Later) -> io::Result<Self> {
        Ok(Self { streams, epoll: Epoll::new()? })
    }
}

impl VsockBackend for Prepared {
    fn connect(&mut self, port: u32, token: u64) -> io::Result<Box<dyn HostStream>> {
        let stream = self.streams.take(port).ok_or(ErrorKind::ConnectionRefused)?;
        stream.set_nonblocking(true)?;
        watch(&self.epoll, stream.as_raw_fd(), token)?;
        Ok(Box::new(Stream(stream)))
    }

    fn accept(&mut self, _token: u64) -> io::Result<Option<Box<dyn HostStream>>> {
        Ok(None)
    }

    fn poll(&mut self, all: &mut Vec<Readiness>) -> io::Result<bool> {
        news(&self.epoll, all)
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::queue::{IoVecStore, IoVecs};
    use std::io::{Read, Write};

    #[test]
    fn each_port_has_one_stream_for_one_connection() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut prepared = Prepared::new([(7, ours)]).unwrap();
        assert!(prepared.connect(8, 1).is_err());
        let mut stream = prepared.connect(7, 1).unwrap();
        assert!(prepared.connect(7, 2).is_err());
        prepared.streams.clone().add(9, UnixStream::pair().unwrap().0);
        assert!(prepared.connect(9, 3).is_ok() && prepared.connect(9, 4).is_err());
        assert!(prepared.accept(3).unwrap().is_none());

        theirs.write_all(b"in").unwrap();
        let mut all = Vec::new();
        assert!(!prepared.poll(&mut all).unwrap());
        assert!(all.iter().any(|one| one.token == 1 && one.readable));
        let (mut store, mut bytes) = (IoVecStore::new(), [0; 8]);
        let n = stream.read(&mut IoVecs::from_slice(&mut store, &mut bytes)).unwrap();
        assert_eq!(&bytes[..n], b"in");
        let read = stream.read(&mut IoVecs::from_slice(&mut store, &mut bytes));
        assert_eq!(read.unwrap_err().kind(), ErrorKind::WouldBlock);

        let mut out = *b"out";
        assert_eq!(stream.write(&IoVecs::from_slice(&mut store, &mut out)).unwrap(), 3);
        drop(stream);
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "out");
    }
}
