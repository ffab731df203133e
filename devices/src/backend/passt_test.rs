//! The framing against the other end of a stream, and passt itself where it is
//! installed.

use super::*;
use crate::virtio::queue::IoVecStore;
use std::time::Instant;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 15];

fn pair() -> (Passt, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Passt::over(ours, None).unwrap(), theirs)
}

fn send(passt: &mut Passt, frame: &[u8]) -> io::Result<()> {
    let mut bytes = [&[0; HEADER], frame].concat();
    let mut store = IoVecStore::new();
    passt.send(&mut IoVecs::from_slice(&mut store, &mut bytes))
}

/// A frame without its header, through a buffer of `room` bytes.
fn receive(passt: &mut Passt, room: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0xff; HEADER + MAX_FRAME];
    let mut store = IoVecStore::new();
    let (front, rest) = bytes.split_at_mut(room);
    let len = passt.receive(&mut IoVecs::from_slice(&mut store, front), rest)?;
    Ok(len.map(|len| {
        bytes.truncate(len);
        assert_eq!(bytes[..HEADER], [0; HEADER]);
        bytes.split_off(HEADER)
    }))
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

#[test]
fn a_passt_without_a_version_is_not_relied_on() {
    assert!(!tells_version(b"passt unknown version\nCopyright Red Hat\n"));
    assert!(tells_version(b"passt 0.0~git20250503.587980c-2\nCopyright Red Hat\n"));
    assert!(!tells_version(b""), "a program that says nothing is none");
}

#[test]
fn frames_travel_behind_their_length() {
    let (mut passt, mut far) = pair();
    for len in [1, 60, 9000, MAX_FRAME] {
        let frame: Vec<u8> = (0..len).map(|i| i as u8).collect();
        send(&mut passt, &frame).unwrap();
        let mut got = vec![0; LENGTH + len];
        far.read_exact(&mut got).unwrap();
        assert!(got == framed(&frame));
        for room in [0, 7, 100] {
            assert_eq!(receive(&mut passt, room).unwrap(), None);
            // In two parts, the first of which has not even the whole length.
            let bytes = framed(&frame);
            far.write_all(&bytes[..3]).unwrap();
            assert_eq!(receive(&mut passt, room).unwrap(), None);
            far.write_all(&bytes[3..]).unwrap();
            far.write_all(&framed(b"next")).unwrap();
            assert!(receive(&mut passt, room).unwrap().unwrap() == frame);
            assert_eq!(receive(&mut passt, room).unwrap().unwrap(), b"next");
        }
    }
}

#[test]
fn a_frame_that_was_sent_in_part_is_sent_to_its_end_before_another() {
    let (mut passt, mut far) = pair();
    let frame = vec![7; 60_000];
    let mut sent = 0;
    while send(&mut passt, &frame).is_ok() {
        sent += 1;
        assert!(sent < 1000, "a stream that nobody reads takes only so much");
    }
    assert!(!passt.unsent.is_empty());
    far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for _ in 0..sent {
        let mut got = vec![0; LENGTH + frame.len()];
        let mut have = 0;
        while have < got.len() {
            have += far.read(&mut got[have..]).unwrap();
            assert_eq!(receive(&mut passt, 100).unwrap(), None, "which sends the rest");
        }
        assert!(got == framed(&frame));
    }
    send(&mut passt, b"another").unwrap();
    assert!(passt.unsent.is_empty() && passt.link());
}

#[test]
fn a_child_that_is_gone_or_speaks_nonsense_takes_the_link_down() {
    let (mut passt, far) = pair();
    drop(far);
    assert!(receive(&mut passt, 100).is_err());
    assert!(!passt.link());
    assert!(send(&mut passt, b"frame").is_err());
    assert_eq!(receive(&mut passt, 100).unwrap(), None, "said once");

    let (mut passt, mut far) = pair();
    far.write_all(&(MAX_FRAME as u32 + 1).to_be_bytes()).unwrap();
    assert!(receive(&mut passt, 100).is_err());
    assert!(!passt.link());
}

#[test]
fn a_program_that_ends_at_once_is_named() {
    let error = Passt::start(Path::new("/bin/false"), MAC, &Options::default()).err().unwrap();
    assert!(error.to_string().starts_with("net user: /bin/false: it ended at once"), "{error}");
    let missing = Passt::start(Path::new("/nonexistent/passt"), MAC, &Options::default());
    assert!(missing.is_err());
}

/// Needs passt, and a host with a route to somewhere.
#[test]
fn passt_serves_a_card_and_ends_with_it() {
    let Some(path) = find() else {
        println!("passt is not installed");
        return;
    };
    let mut passt = match Passt::start(&path, MAC, &Options::default()) {
        Ok(passt) => passt,
        Err(e) => {
            println!("passt does not work here: {e}");
            return;
        }
    };
    let pid = passt._child.as_ref().unwrap().id();
    // An echo to the gateway, which is the host no more than it is told to be.
    let mut arp = [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC].concat();
    arp.extend(route::GUEST.octets());
    arp.extend([0; 6]);
    arp.extend(route::NAMES.octets());
    send(&mut passt, &arp).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    let reply = loop {
        assert!(Instant::now() < end && passt.link(), "no answer");
        match receive(&mut passt, 100).unwrap() {
            // An answer to that question.
            Some(frame) if frame[12..14] == [8, 6] && frame[28..32] == arp[38..42] => break frame,
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    assert_eq!(reply[20..22], [0, 2]);
    let mut child = passt._child.take().unwrap();
    drop(passt);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "passt ({pid}) is left behind");
        std::thread::sleep(Duration::from_millis(1));
    }
}
