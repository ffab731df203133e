//! TAPs in a network of the test's own, where that is permitted.

use super::*;
use crate::virtio::queue::IoVecStore;
use std::time::{Duration, Instant};

/// An EtherType that nobody uses (IEEE 802, local experimental 1).
pub(crate) const ETHERTYPE: u16 = 0x88b5;
const SIOCSIFFLAGS: c_ulong = 0x8914;

/// Runs `test` on a thread in a network namespace of its own; says so and
/// passes where that or making interfaces is not permitted.
pub(crate) fn in_own_network(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: unshare takes a number; it concerns this thread alone.
        if let Err(e) = check(unsafe { libc::unshare(libc::CLONE_NEWNET) }) {
            println!("skipped: no network namespace: {e}");
            return;
        }
        if let Err(e @ (TapError::Driver { .. } | TapError::Missing { .. })) = Tap::open("probe") {
            println!("skipped: {e}");
            return;
        }
        test();
    });
    thread.join().unwrap();
}

pub(crate) fn bring_up(name: &str) {
    set_up(name, true);
}

fn set_up(name: &str, up: bool) {
    let mut request = query(name, SIOCGIFFLAGS).unwrap();
    let bit = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCGIFFLAGS has filled in the flags, SIOCSIFFLAGS reads them.
    unsafe {
        let flags = request.ifr_ifru.ifru_flags;
        request.ifr_ifru.ifru_flags = if up { flags | bit } else { flags & !bit };
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        check(libc::ioctl(socket.as_raw_fd(), SIOCSIFFLAGS, &request)).unwrap();
    }
}

/// A socket for frames of an interface: it sees those of one EtherType; with 0
/// it sees none, and its own are whatever they say.
pub(crate) fn packet_socket(name: &str, protocol: u16) -> OwnedFd {
    let name = CString::new(name).unwrap();
    // SAFETY: the structure is plain data, and each call gets its true size.
    unsafe {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
        let fd = libc::socket(libc::AF_PACKET, kind, c_int::from(protocol.to_be()));
        check(fd).unwrap();
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let len = size_of_val(&address) as u32;
        check(libc::bind(fd, (&raw const address).cast(), len)).unwrap();
        OwnedFd::from_raw_fd(fd)
    }
}

pub(crate) fn wait<T>(mut f: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(value) = f() {
            return value;
        }
        assert!(Instant::now() < deadline, "nothing came");
        std::thread::yield_now();
    }
}

pub(crate) fn frame(len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|i| i as u8).collect();
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    frame
}

#[test]
fn frames_go_both_ways() {
    in_own_network(|| {
        let mut tap = Tap::open("mvtest0").unwrap();
        assert_eq!(tap.mtu, Some(1500));
        assert!(!is_up("mvtest0").unwrap());
        bring_up("mvtest0");
        let socket = packet_socket("mvtest0", ETHERTYPE);

        let sent = frame(1000);
        let mut with_header = [&[0; 12], sent.as_slice()].concat();
        let mut store = IoVecStore::new();
        tap.send(&mut IoVecs::from_slice(&mut store, &mut with_header)).unwrap();
        let mut got = [0u8; 2000];
        let n = wait(|| {
            // SAFETY: `got` has that many bytes.
            let n = unsafe { libc::recv(socket.as_raw_fd(), got.as_mut_ptr().cast(), 2000, 0) };
            (n > 0).then_some(n as usize)
        });
        assert_eq!(got[..n], sent);

        // A first buffer that is too small: the rest comes in the second.
        // SAFETY: `sent` has that many bytes.
        let n = unsafe { libc::send(socket.as_raw_fd(), sent.as_ptr().cast(), sent.len(), 0) };
        assert_eq!(n, 1000);
        let (mut first, mut rest) = ([0u8; 100], [0u8; 2000]);
        wait(|| {
            let mut buffer = IoVecs::from_slice(&mut store, &mut first);
            // Its own chatter (IPv6) goes by.
            let len = tap.receive(&mut buffer, &mut rest).unwrap()?;
            (first[24..26] == ETHERTYPE.to_be_bytes() && len == 1012).then_some(())
        });
        assert_eq!([&first[12..], &rest[..912]].concat(), sent);
        let mut buffer = IoVecs::from_slice(&mut store, &mut first);
        while tap.receive(&mut buffer, &mut rest).unwrap().is_some() {}
    });
}

#[test]
fn the_link_is_the_interfaces() {
    in_own_network(|| {
        let mut tap = Tap::open("mvtest0").unwrap();
        assert!(!tap.link());
        let source = tap.link_source().unwrap();
        let other = Tap::open("mvtest1").unwrap();
        let news = || {
            let mut poll = libc::pollfd { fd: source, events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            unsafe { libc::poll(&mut poll, 1, 0) == 1 }
        };
        for up in [true, false, true] {
            set_up("mvtest1", up);
            assert!(!news(), "another interface wakes nobody");
            set_up("mvtest0", up);
            assert!(news());
            tap.link_event();
            assert_eq!((tap.link(), news()), (up, false));
        }
        assert!(!other.link());
    });
}

#[test]
fn any_choice_of_offloads_can_be_set() {
    in_own_network(|| {
        use features::*;
        let mut tap = Tap::open("mvtest0").unwrap();
        assert_ne!(tap.features() & HOST_TSO4, 0);
        let bits = [GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_USO4, GUEST_USO6];
        for choice in 0..1 << bits.len() {
            let chosen = |(i, _): &(usize, &u64)| choice >> i & 1 != 0;
            let negotiated = bits.iter().enumerate().filter(chosen).fold(0, |a, (_, b)| a | b);
            tap.set_features(negotiated).unwrap();
        }
    });
}

#[test]
fn an_interface_that_cannot_be_used_is_named() {
    in_own_network(|| {
        let _open = Tap::open("mvtest0").unwrap();
        let error = Tap::open("mvtest0").unwrap_err();
        assert!(matches!(error, TapError::Busy { .. }), "{error}");
        let error = Tap::open("lo").unwrap_err();
        assert!(matches!(error, TapError::Kind { .. }), "{error}");
        assert!(error.to_string().starts_with("net lo: "), "{error}");
    });
}

#[test]
fn an_interface_of_several_queues_gives_as_many_as_are_wanted() {
    in_own_network(|| {
        let mut queues = Tap::open_queues("mvtest0", Queues::UpTo(4)).unwrap();
        assert_eq!(queues.len(), 4);
        bring_up("mvtest0");
        assert!(matches!(Tap::open("mvtest0"), Err(TapError::Busy { .. })), "others can't share");
        let socket = packet_socket("mvtest0", 0);
        let mut store = IoVecStore::new();
        let sent = frame(100);
        let mut came = [0; 4];
        for round in 0..3 {
            // One takes part, then all of them, then two.
            for (i, queue) in queues.iter_mut().enumerate() {
                queue.enable(i < [1, 4, 2][round]).unwrap();
            }
            for flow in 0..64u8 {
                let mut bytes = sent.clone();
                bytes[12..14].copy_from_slice(&[0x08, 0x00]);
                // An IPv4 header, and a UDP one with a port for each flow.
                bytes[14..34].copy_from_slice(&[
                    0x45, 0, 0, 86, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, flow,
                ]);
                bytes[34..42].copy_from_slice(&[1, flow, 2, flow, 0, 66, 0, 0]);
                // SAFETY: `bytes` has that many bytes.
                let n = unsafe {
                    libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0)
                };
                assert_eq!(n, 100);
            }
            came = [0; 4];
            let mut buffer = [0u8; 2000];
            wait(|| {
                for (queue, came) in queues.iter_mut().zip(&mut came) {
                    let mut list = IoVecs::from_slice(&mut store, &mut buffer);
                    while let Some(len) = queue.receive(&mut list, &mut []).unwrap() {
                        *came += i32::from(len == 112);
                    }
                }
                (came.iter().sum::<i32>() == 64).then_some(())
            });
            let busy = came.iter().filter(|n| **n > 0).count();
            match round {
                0 => assert_eq!(came[0], 64, "{came:?}"),
                1 => assert!(busy > 1, "{came:?}"),
                _ => assert_eq!(came[2..], [0, 0], "{came:?}"),
            }
        }
        assert!(came[0] + came[1] == 64);
    });
}

#[test]
fn an_interface_of_one_queue_keeps_working() {
    in_own_network(|| {
        let persist = |tap: &Tap| {
            const TUNSETPERSIST: c_ulong = 0x4004_54cb;
            // SAFETY: TUNSETPERSIST takes its argument by value.
            check(unsafe { libc::ioctl(tap.file.as_raw_fd(), TUNSETPERSIST, 1) }).unwrap();
        };
        persist(&Tap::open("mvone").unwrap());
        assert_eq!(Tap::open_queues("mvone", Queues::UpTo(4)).unwrap().len(), 1);
        let error = Tap::open_queues("mvone", Queues::Exactly(4)).unwrap_err();
        assert!(matches!(error, TapError::OneQueue { .. }), "{error}");
        persist(&Tap::open_queues("mvmany", Queues::UpTo(2)).unwrap()[0]);
        assert_eq!(Tap::open("mvmany").unwrap().mtu, Some(1500), "one of several will do");
        assert_eq!(Tap::open_queues("mvmany", Queues::Exactly(3)).unwrap().len(), 3);
    });
}

#[test]
fn the_mtu_is_the_one_asked_for() {
    in_own_network(|| {
        let mut tap = Tap::open("mvtest0").unwrap();
        tap.require_mtu(9000).unwrap();
        assert_eq!((mtu("mvtest0"), tap.mtu), (Some(9000), Some(9000)));
        tap.require_mtu(9000).unwrap();
        let error = Tap::open("mvtest0").unwrap_err();
        assert!(matches!(error, TapError::Busy { .. }), "{error}");
    });
}

#[test]
fn names_that_no_interface_can_have_are_refused() {
    for name in ["", ".", "..", "a/b", "a b", "tap%d", "a:1", "sixteen-letters!", "t\0", "t\u{e4}"]
    {
        assert!(matches!(Tap::open(name), Err(TapError::Name { .. })), "{name:?}");
    }
    assert!(is_name("fifteen-letters"));
}
