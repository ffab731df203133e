//! The conversation, with a guest that is a socket.

use super::*;
use crate::relay::Report;
use guest::protocol::{How, MAX_TO_GUEST, Usage};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use vmm::ending::Ending;

struct Guest {
    socket: UnixStream,
    decoder: Decoder,
    shared: Shared,
    begin: Receiver<()>,
    control: thread::JoinHandle<()>,
}

fn guest() -> Guest {
    let (ours, socket) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let shared = Shared {
        ending: Ending::new().unwrap(),
        report: Default::default(),
        started: Default::default(),
    };
    let (begin, wait) = sync_channel(1);
    let theirs = shared.clone();
    // Signals are blocked on the thread alone, so none is for another test.
    let control = thread::spawn(move || {
        let signals = Signals::take().unwrap();
        let outputs = (EventFd::new(libc::EFD_NONBLOCK).unwrap(), 0);
        Control::new(ours, signals, theirs, outputs, begin, Spec::default()).run();
    });
    Guest { socket, decoder: Decoder::new(MAX_TO_GUEST), shared, begin: wait, control }
}

impl Guest {
    fn say(&mut self, message: ToHost) {
        self.socket.write_all(&message.encode()).unwrap();
    }

    fn hear(&mut self) -> Option<ToGuest> {
        let mut buffer = [0; 256];
        loop {
            if let Some(message) = ToGuest::next(&mut self.decoder).unwrap() {
                return Some(message);
            }
            match self.socket.read(&mut buffer).unwrap_or(0) {
                0 => return None,
                n => self.decoder.push(&buffer[..n]),
            }
        }
    }

    fn end(self) -> Option<Report> {
        self.control.join().unwrap();
        assert!(self.shared.ending.has_ended());
        self.shared.lock().take()
    }
}

#[test]
fn a_job_is_started_and_its_end_is_told() {
    let mut guest = guest();
    guest.say(ToHost::Hello { version: VERSION });
    assert_eq!(guest.hear(), Some(ToGuest::Start(Box::default())));
    assert!(guest.begin.try_recv().is_err(), "input waits for the job");
    guest.say(ToHost::Started);
    guest.begin.recv().unwrap();
    let (how, usage) = (How::Exited(7), Usage::default());
    guest.say(ToHost::Ended { how, usage, input: 3 });
    assert_eq!(guest.end(), Some(Report::Ended { how, usage, input: 3 }));
}

#[test]
fn a_guest_that_does_not_keep_to_the_protocol_is_left() {
    let how = How::Exited(0);
    let ended = ToHost::Ended { how, usage: Usage::default(), input: 0 };
    for wrong in [ToHost::Started, ToHost::Hello { version: VERSION + 1 }, ended] {
        let mut guest = guest();
        guest.say(wrong);
        assert!(matches!(guest.end(), Some(Report::Wrong(_))));
    }
    let mut guest = guest();
    guest.socket.write_all(&[0xff; 64]).unwrap();
    assert!(matches!(guest.end(), Some(Report::Wrong(_))));
}

#[test]
fn a_guest_that_goes_away_has_said_nothing() {
    let guest = guest();
    guest.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(guest.end(), None);
}

#[test]
fn why_there_is_no_job_is_told() {
    let mut guest = guest();
    guest.say(ToHost::Hello { version: VERSION });
    let (kind, text) = (Failure::NotFound, b"x: No such file".to_vec());
    guest.say(ToHost::Failed { kind, text });
    assert_eq!(guest.end(), Some(Report::Failed(kind, "x: No such file".to_owned())));
}
