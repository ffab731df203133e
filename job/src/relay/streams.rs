//! The runner's standard streams: a thread for each, between a descriptor that may
//! be shared with anybody and a socket of ours.
//!
//! The descriptors stay as they are: made non-blocking they would be so for whoever
//! else has them open. So the threads wait in `poll`, `read` and `write`, and end
//! when the other side of their socket goes away.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vmm::console::terminal;

/// What is moved at once.
const CHUNK: usize = 64 << 10;
/// How often a job in the background looks whether it has the terminal.
const BACKGROUND: Duration = Duration::from_millis(200);

/// A descriptor that is not ours to close.
fn borrowed(fd: RawFd) -> ManuallyDrop<File> {
    // SAFETY: the descriptor is open for the life of the process, and this File
    // never closes it.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd) })
}

/// Puts `/dev/null` in a descriptor's place, so that whoever is at its other end
/// sees it closed. A file has no other end, but a position, which is looked at
/// later.
fn close(fd: RawFd, null: &File) {
    if borrowed(fd).metadata().is_ok_and(|meta| meta.is_file()) {
        return;
    }
    // SAFETY: dup2 takes numbers. It can only fail where it changes nothing.
    unsafe { libc::dup2(null.as_raw_fd(), fd) };
}

fn poll(all: &mut [libc::pollfd], timeout: i32) -> io::Result<()> {
    // SAFETY: the list outlives the call, and its length is given.
    match unsafe { libc::poll(all.as_mut_ptr(), all.len() as libc::nfds_t, timeout) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn watched(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// Whether a terminal may be read: in the background that would stop us.
fn may_read(raw: bool) -> bool {
    if raw {
        return terminal::engage();
    }
    // SAFETY: neither call has preconditions.
    unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp() }
}

/// Standard input to the job, until either has enough. `raw`: it is the job's
/// terminal.
pub fn input(mut to: UnixStream, raw: bool, null: &File) {
    let fd = libc::STDIN_FILENO;
    let is_terminal = terminal::is_terminal(fd);
    let mut from = borrowed(fd);
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut all = [watched(to.as_raw_fd(), 0), watched(fd, libc::POLLIN)];
        let background = is_terminal && !may_read(raw);
        let (list, timeout) = match background {
            true => (&mut all[..1], BACKGROUND.as_millis() as i32),
            false => (&mut all[..], -1),
        };
        match poll(list, timeout) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
            Ok(()) => {}
        }
        let [socket, input] = all;
        if socket.revents != 0 {
            // Nobody reads it: not of us, either.
            return close(fd, null);
        }
        if background || input.revents == 0 {
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                if to.write_all(buffer.get(..n).unwrap_or_default()).is_err() {
                    return close(fd, null);
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(_) => break,
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// The job's output to descriptor `fd`, until its end. An error is one that the
/// job was not told of, as it would have been if it had written there itself.
pub fn output(mut from: UnixStream, fd: RawFd, null: &File) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let result = loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            // The machine was torn down.
            Err(_) => break Ok(()),
        };
        if let Err(error) = write_all(fd, buffer.get(..n).unwrap_or_default()) {
            // The job gets SIGPIPE, which is all that there is to say of EPIPE.
            let _ = from.shutdown(Shutdown::Both);
            break match error.kind() {
                ErrorKind::BrokenPipe => Ok(()),
                _ => Err(error),
            };
        }
    };
    // What the runner itself may have to say still goes to standard error.
    if fd == libc::STDOUT_FILENO {
        close(fd, null);
    }
    result
}

fn write_all(fd: RawFd, mut bytes: &[u8]) -> io::Result<()> {
    let mut to = borrowed(fd);
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // Somebody else has made it non-blocking.
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let _ = poll(&mut [watched(fd, libc::POLLOUT)], -1);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::thread;

    fn null() -> File {
        File::options().read(true).write(true).open("/dev/null").unwrap()
    }

    fn pipe() -> (File, File) {
        let (read, write) = io::pipe().unwrap();
        (File::from(OwnedFd::from(read)), File::from(OwnedFd::from(write)))
    }

    #[test]
    fn output_arrives_in_full_whatever_the_reader_does() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (mut read, write) = pipe();
        // SAFETY: the descriptor is open.
        unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let sent = data.clone();
        let guest = thread::spawn(move || theirs.write_all(&sent));
        let relay = thread::spawn(move || output(ours, write.as_raw_fd(), &null()));
        thread::sleep(Duration::from_millis(50));
        let mut got = vec![0; data.len()];
        read.read_exact(&mut got).unwrap();
        assert!(got == data);
        guest.join().unwrap().unwrap();
        relay.join().unwrap().unwrap();
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error_of_ours_but_the_jobs() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (read, write) = pipe();
        drop(read);
        theirs.write_all(b"x").unwrap();
        output(ours, write.as_raw_fd(), &null()).unwrap();
        assert_eq!(theirs.write_all(b"y").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_full_disk_is_told() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        theirs.write_all(b"x").unwrap();
        let error = output(ours, full.as_raw_fd(), &null()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
}
