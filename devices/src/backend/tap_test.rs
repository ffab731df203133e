//! TAPs in a network of the test's own, where that is permitted.

use super::*;
use crate::virtio::queue::IoVecStore;
use std::time::{Duration, Instant};

/// An EtherType that nobody uses (IEEE 802, local experimental 1).
const ETHERTYPE: u16 = 0x88b5;
const SIOCSIFFLAGS: c_ulong = 0x8914;

/// Runs `test` on a thread in a network namespace of its own; says so and
/// passes where that or making interfaces is not permitted.
fn in_own_network(test: impl FnOnce() + Send + 'static) {
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

fn bring_up(name: &str) {
    let mut request = query(name, SIOCGIFFLAGS).unwrap();
    // SAFETY: SIOCGIFFLAGS has filled in the flags, SIOCSIFFLAGS reads them.
    unsafe {
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        check(libc::ioctl(socket.as_raw_fd(), SIOCSIFFLAGS, &request)).unwrap();
    }
}

/// A socket that sees the frames of an interface.
fn packet_socket(name: &str) -> OwnedFd {
    let name = CString::new(name).unwrap();
    // SAFETY: the structure is plain data, and each call gets its true size.
    unsafe {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
        let fd = libc::socket(libc::AF_PACKET, kind, c_int::from(ETHERTYPE.to_be()));
        check(fd).unwrap();
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ETHERTYPE.to_be();
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let len = size_of_val(&address) as u32;
        check(libc::bind(fd, (&raw const address).cast(), len)).unwrap();
        OwnedFd::from_raw_fd(fd)
    }
}

fn wait<T>(mut f: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(value) = f() {
            return value;
        }
        assert!(Instant::now() < deadline, "nothing came");
        std::thread::yield_now();
    }
}

fn frame(len: usize) -> Vec<u8> {
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
        let socket = packet_socket("mvtest0");

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
fn names_that_no_interface_can_have_are_refused() {
    for name in ["", ".", "..", "a/b", "a b", "tap%d", "a:1", "sixteen-letters!", "t\0", "t\u{e4}"]
    {
        assert!(matches!(Tap::open(name), Err(TapError::Name { .. })), "{name:?}");
    }
    assert!(is_name("fifteen-letters"));
}
