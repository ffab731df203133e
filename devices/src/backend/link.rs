//! Whether an interface of the host is up, as the host's kernel tells it
//! (rtnetlink(7)): a message for each change, and nothing in between.

use libc::c_int;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Offsets in a message: `struct nlmsghdr`, then `struct ifinfomsg`.
const TYPE: usize = 4;
const FAMILY: usize = 16;
const INDEX: usize = 20;
const FLAGS: usize = 24;
/// Both of them.
const LEAST: usize = 32;

/// Watches one interface.
#[derive(Debug)]
pub struct LinkWatch {
    socket: File,
    index: u32,
    up: bool,
}

impl LinkWatch {
    /// Begins to watch the interface `name`; `is_up` says how it is now.
    pub fn new(name: &str, is_up: impl FnOnce() -> io::Result<bool>) -> io::Result<Self> {
        let c_name = CString::new(name)?;
        // SAFETY: the name is a C string that outlives the call.
        let index = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket takes numbers, and the descriptor is nobody else's.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE);
            check(fd)?;
            OwnedFd::from_raw_fd(fd)
        };
        listen(&socket, index)?;
        // A change from here on is a message.
        Ok(Self { socket: socket.into(), index, up: is_up()? })
    }

    /// Readable when there is news.
    pub fn source(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whether the interface is up, as of the last look.
    pub fn up(&self) -> bool {
        self.up
    }

    /// Takes the news.
    pub fn look(&mut self) {
        // What does not fit is cut off, and is none of ours.
        let mut message = [0; LEAST];
        loop {
            match self.socket.read(&mut message) {
                Ok(n) => {
                    let seen = message.get(..n).and_then(|message| parse(message, self.index));
                    self.up = seen.unwrap_or(self.up);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: news is lost, which takes more of it about one
                // interface than there ever is.
                Err(e) => return log::warn!("net: following the host's interface: {e}"),
            }
        }
    }
}

/// Subscribes to changes of one interface; those of others wake nobody.
fn listen(socket: &OwnedFd, index: u32) -> io::Result<()> {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let accept = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // Loads are big-endian, netlink is not.
    let mut steps = [
        step(load, 0, 0, INDEX as u32),
        step(equal, 0, 1, index.to_be()),
        step(accept, 0, 0, u32::MAX),
        step(accept, 0, 0, 0),
    ];
    let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: sockaddr_nl is plain data for which zero is a value.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_groups = libc::RTMGRP_LINK as u32;
    // SAFETY: each call reads a structure of the size that it is given, and the
    // filter's steps outlive it.
    unsafe {
        check(libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as u32,
        ))?;
        let len = size_of_val(&address) as u32;
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len))
    }
}

/// What a message says of the interface, if it does.
fn parse(message: &[u8], index: u32) -> Option<bool> {
    let bytes = message.get(..LEAST)?;
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let kind = u16::from_ne_bytes(bytes.get(TYPE..TYPE + 2)?.try_into().ok()?);
    // A bridge tells of its ports under its own family.
    if word(INDEX)? != index || i32::from(bytes[FAMILY]) != libc::AF_UNSPEC {
        return None;
    }
    match kind {
        libc::RTM_NEWLINK => Some(word(FLAGS)? & libc::IFF_UP as u32 != 0),
        libc::RTM_DELLINK => Some(false),
        _ => None,
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, family: u8, index: u32, flags: u32) -> [u8; LEAST] {
        let mut bytes = [0; LEAST];
        bytes[TYPE..TYPE + 2].copy_from_slice(&kind.to_ne_bytes());
        bytes[FAMILY] = family;
        bytes[INDEX..INDEX + 4].copy_from_slice(&index.to_ne_bytes());
        bytes[FLAGS..FLAGS + 4].copy_from_slice(&flags.to_ne_bytes());
        bytes
    }

    #[test]
    fn messages_about_the_interface_count() {
        let (new, gone) = (libc::RTM_NEWLINK, libc::RTM_DELLINK);
        let up = libc::IFF_UP as u32;
        assert_eq!(parse(&message(new, 0, 7, up | 0x1000), 7), Some(true));
        assert_eq!(parse(&message(new, 0, 7, 0x1000), 7), Some(false));
        assert_eq!(parse(&message(gone, 0, 7, up), 7), Some(false));
        assert_eq!(parse(&message(new, 0, 8, up), 7), None);
        let bridge = libc::AF_BRIDGE as u8;
        assert_eq!(parse(&message(gone, bridge, 7, up), 7), None);
        assert_eq!(parse(&message(libc::RTM_NEWADDR, 0, 7, up), 7), None);
        assert_eq!(parse(&message(new, 0, 7, up)[..31], 7), None);
    }

    proptest! {
        #[test]
        fn any_message_is_taken(bytes in prop::collection::vec(any::<u8>(), 0..64), index: u32) {
            parse(&bytes, index);
        }
    }
}
