//! The Unix sockets, without a guest.

use super::*;
use crate::virtio::queue::IoVecStore;
use std::io::{Read, Write};

fn sockets() -> (tempfile::TempDir, PathBuf, UnixSockets) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let sockets = UnixSockets::listen(&path).unwrap();
    (dir, path, sockets)
}

fn news(sockets: &mut UnixSockets) -> Vec<Readiness> {
    let mut news = Vec::new();
    while sockets.poll(&mut news).unwrap() {}
    news
}

fn read(stream: &mut dyn HostStream, len: usize) -> io::Result<Vec<u8>> {
    let (mut store, mut data) = (IoVecStore::new(), vec![0; len]);
    let n = stream.read(&mut IoVecs::from_slice(&mut store, &mut data))?;
    data.truncate(n);
    Ok(data)
}

fn write(stream: &mut dyn HostStream, data: &[u8]) -> io::Result<usize> {
    let (mut store, mut data) = (IoVecStore::new(), data.to_vec());
    stream.write(&IoVecs::from_slice(&mut store, &mut data))
}

#[test]
fn a_path_that_is_taken_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "precious").unwrap();
    let error = UnixSockets::listen(&path).unwrap_err();
    assert!(matches!(error, VsockError::Exists { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let error = UnixSockets::listen(&dir.path().join("no/dir")).unwrap_err();
    assert!(matches!(error, VsockError::Io { .. }), "{error}");
    for bad in ["", &"x".repeat(MAX_PATH + 1)] {
        let error = UnixSockets::listen(Path::new(bad)).unwrap_err();
        assert!(matches!(error, VsockError::Path { .. }), "{error}");
    }
}

#[test]
fn the_socket_goes_with_its_owner_but_nobody_elses_does() {
    let (_dir, path, sockets) = sockets();
    assert!(matches!(UnixSockets::listen(&path), Err(VsockError::Exists { .. })));
    drop(sockets);
    assert!(!path.exists());
    let first = UnixSockets::listen(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "another's").unwrap();
    drop(first);
    assert!(path.exists());
}

#[test]
fn clients_are_accepted_and_their_bytes_come_and_go() {
    let (_dir, path, mut sockets) = sockets();
    assert!(sockets.accept(7).unwrap().is_none());
    news(&mut sockets);
    let mut client = UnixStream::connect(&path).unwrap();
    assert!(news(&mut sockets).iter().any(|n| n.token == CLIENTS && n.readable));
    let mut stream = sockets.accept(7).unwrap().unwrap();
    assert_eq!(read(&mut *stream, 9).unwrap_err().kind(), ErrorKind::WouldBlock);
    client.write_all(b"hello").unwrap();
    assert!(news(&mut sockets).iter().any(|n| n.token == 7 && n.readable && !n.hung_up));
    assert_eq!(read(&mut *stream, 9).unwrap(), b"hello");
    assert_eq!(write(&mut *stream, b"you").unwrap(), 3);
    stream.shutdown(Shutdown::Write);
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"you");
    client.shutdown(Shutdown::Write).unwrap();
    drop(client);
    assert!(news(&mut sockets).iter().any(|n| n.token == 7 && n.hung_up));
    assert_eq!(read(&mut *stream, 9).unwrap(), b"");
    assert!(write(&mut *stream, b"x").is_err(), "an error and no signal");
}

#[test]
fn a_full_stream_tells_when_there_is_room_again() {
    let (_dir, path, mut sockets) = sockets();
    let mut client = UnixStream::connect(&path).unwrap();
    let mut stream = sockets.accept(7).unwrap().unwrap();
    let mut sent = 0;
    let error = loop {
        match write(&mut *stream, &[1; 10_000]) {
            Ok(n) => sent += n,
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    news(&mut sockets);
    client.read_exact(&mut vec![0; sent]).unwrap();
    assert!(news(&mut sockets).iter().any(|n| n.token == 7 && n.writable));
}

#[test]
fn ports_of_the_host_are_files_beside_it() {
    let (dir, _path, mut sockets) = sockets();
    assert!(sockets.connect(52, 9).is_err());
    let server = UnixListener::bind(dir.path().join("v_52")).unwrap();
    let mut stream = sockets.connect(52, 9).unwrap();
    assert_eq!(write(&mut *stream, b"hi").unwrap(), 2);
    let mut peer = server.accept().unwrap().0;
    peer.write_all(b"ho").unwrap();
    assert!(news(&mut sockets).iter().any(|n| n.token == 9 && n.readable));
    assert_eq!(read(&mut *stream, 9).unwrap(), b"ho");
    let clients: Vec<_> = (0..10_000).map_while(|i| sockets.connect(52, 10 + i).ok()).collect();
    assert!(clients.len() < 10_000, "a server that does not answer makes nobody wait");
}
