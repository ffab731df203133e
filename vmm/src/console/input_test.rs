//! Input from every kind of file, through a port that takes a few bytes at a
//! time.

use super::*;
use event_manager::{EventManager, SubscriberOps};
use proptest::prelude::*;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

const FIFO: usize = 16;

/// A port: a FIFO that tells when it has become empty.
struct Port {
    fifo: Arc<Mutex<Vec<u8>>>,
    room: EventFd,
}

impl InputSink for Port {
    fn enqueue(&mut self, bytes: &[u8]) -> usize {
        let mut fifo = self.fifo.lock().unwrap();
        let n = bytes.len().min(FIFO - fifo.len());
        fifo.extend_from_slice(&bytes[..n]);
        n
    }

    fn room(&self) -> &EventFd {
        &self.room
    }
}

struct Rig<F: AsRawFd> {
    manager: EventManager<Input<Port, F>>,
    fifo: Arc<Mutex<Vec<u8>>>,
    room: EventFd,
    quit: Arc<AtomicBool>,
    rounds: usize,
}

impl<F: AsRawFd> Rig<F> {
    fn new(source: F) -> Self {
        let fifo = Arc::new(Mutex::new(Vec::new()));
        let room = EventFd::new(EFD_NONBLOCK).unwrap();
        let port = Port { fifo: fifo.clone(), room: room.try_clone().unwrap() };
        let quit = Arc::new(AtomicBool::new(false));
        let left = quit.clone();
        let quit_now = Box::new(move || left.store(true, Ordering::SeqCst));
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(Input::new(source, port, false, quit_now));
        Self { manager, fifo, room, quit, rounds: 0 }
    }

    /// Lets the event loop handle all that is ready; whether there was anything.
    fn settle(&mut self) -> usize {
        let mut events = 0;
        for _ in 0..100 {
            match self.manager.run_with_timeout(0).unwrap() {
                0 => break,
                n => events += n,
            }
        }
        self.rounds += events;
        events
    }

    /// The guest reads all that the port has.
    fn guest_reads(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(&mut *self.fifo.lock().unwrap());
        if !bytes.is_empty() {
            self.room.write(1).unwrap();
        }
        bytes
    }

    /// The guest reads until no more comes.
    fn guest_reads_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            self.settle();
            let bytes = self.guest_reads();
            if bytes.is_empty() {
                return all;
            }
            all.extend(bytes);
        }
    }
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn a_pipe_is_passed_whole_and_its_end_ends_nothing() {
    let (reader, mut writer) = io::pipe().unwrap();
    let mut rig = Rig::new(reader);
    writer.write_all(&bytes(40_000)).unwrap();
    drop(writer);
    assert_eq!(rig.guest_reads_all(), bytes(40_000));
    assert_eq!(rig.settle(), 0, "the hang-up is not reported any more");
    assert!(!rig.quit.load(Ordering::SeqCst));
}

#[test]
fn a_full_port_holds_the_writer_back_without_spinning() {
    let (reader, mut writer) = io::pipe().unwrap();
    let mut rig = Rig::new(reader);
    writer.write_all(&bytes(10_000)).unwrap();
    drop(writer);
    rig.settle();
    assert!(rig.rounds < 5, "{}", rig.rounds);
    assert_eq!(rig.settle(), 0, "readable and hung up, but nobody asks");
    assert_eq!(rig.guest_reads(), bytes(FIFO));
    rig.settle();
    assert_eq!(rig.guest_reads().len(), FIFO);
}

#[test]
fn the_escape_key_is_only_the_terminals() {
    let (reader, mut writer) = io::pipe().unwrap();
    let mut rig = Rig::new(reader);
    writer.write_all(b"\x01x\x01h").unwrap();
    assert_eq!(rig.guest_reads_all(), b"\x01x\x01h");
    assert!(!rig.quit.load(Ordering::SeqCst));
}

#[test]
fn files_are_read_as_the_guest_takes_them() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes(9_000)).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    let mut rig = Rig::new(file);
    assert_eq!(rig.guest_reads_all(), bytes(9_000));
    assert_eq!(rig.settle(), 0);
}

#[test]
fn endless_files_do_not_run_away() {
    let mut rig = Rig::new(File::open("/dev/zero").unwrap());
    rig.settle();
    assert_eq!(rig.guest_reads().len(), FIFO);
}

#[test]
fn nothing_comes_from_dev_null_or_from_no_file_at_all() {
    struct Closed;
    impl AsRawFd for Closed {
        fn as_raw_fd(&self) -> RawFd {
            1 << 20
        }
    }
    assert_eq!(Rig::new(File::open("/dev/null").unwrap()).guest_reads_all(), b"");
    assert_eq!(Rig::new(Closed).guest_reads_all(), b"");
    let write_only = File::options().write(true).open("/dev/null").unwrap();
    assert_eq!(Rig::new(write_only).guest_reads_all(), b"");
}

#[test]
fn a_socket_is_read_and_its_flags_stay() {
    let (mut near, far) = UnixStream::pair().unwrap();
    let fd = far.as_raw_fd();
    let mut rig = Rig::new(OwnedFd::from(far));
    near.write_all(b"hello").unwrap();
    assert_eq!(rig.guest_reads_all(), b"hello");
    // SAFETY: only asks for the flags of an open descriptor.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    assert_eq!(flags & libc::O_NONBLOCK, 0);
    near.write_all(b"again").unwrap();
    assert_eq!(rig.guest_reads_all(), b"again");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// However writer and guest take turns, bytes stay whole and in order.
    #[test]
    fn no_byte_is_lost_or_overtaken(turns in proptest::collection::vec((0usize..6000, 0usize..4), 0..12)) {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut rig = Rig::new(reader);
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for (size, reads) in turns {
            if sent.len() - got.len() + size < 60_000 {
                let chunk = bytes(size);
                writer.write_all(&chunk).unwrap();
                sent.extend(chunk);
            }
            for _ in 0..reads {
                rig.settle();
                got.extend(rig.guest_reads());
            }
        }
        got.extend(rig.guest_reads_all());
        prop_assert_eq!(got, sent);
    }
}
