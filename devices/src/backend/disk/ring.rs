//! Raw disks through io_uring (`io_uring(7)`): many requests in one system call,
//! and nobody waits for them.
//!
//! ```text
//!  Ring::start ─► submission queue ─ Ring::submit ─► kernel ─► completion queue ─► Ring::finished
//!                                                                 └─ Ring::source is readable
//! ```
//!
//! The ring can do three things with one file, and nothing else: it is
//! restricted to that before it is enabled. A seccomp filter sees none of what
//! goes through a ring, so this is what holds a monitor that a guest has taken
//! over.
//!
//! A request that is under way reads or writes guest memory. The ring keeps
//! that memory mapped, and dropping or emptying the ring waits.

use super::Backing;
use crate::virtio::Ram;
use crate::virtio::queue::IoVecs;
use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, types};
use libc::iovec;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// The one file of the ring.
const FILE: types::Fixed = types::Fixed(0);
/// How often an emptying ring looks: no system call for waiting is needed, so a
/// vCPU thread can do it behind its filter.
const LOOK: Duration = Duration::from_micros(50);
/// What [`Ring::submit`] tries when the kernel is out of memory for requests.
const TRIES: u32 = 1000;

/// What is done with the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Fill the buffers.
    Read,
    /// Write them; durably if `true`.
    Write(bool),
    /// Make all that has been written durable.
    Flush,
}

/// A request that is under way.
#[derive(Debug)]
struct Slot {
    op: Op,
    /// What is left to move. The kernel looks at it until the request is done,
    /// so it is not touched meanwhile, and the heap keeps it where it is.
    vecs: Vec<iovec>,
    first: usize,
    left: u64,
    offset: u64,
}

/// Requests to one disk.
pub struct Ring {
    ring: IoUring,
    backing: Backing,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Entries that the kernel has taken and not answered.
    in_kernel: usize,
    /// Requests whose entry waits for [`Ring::submit`].
    again: Vec<usize>,
    memory: Option<Ram>,
    /// Whether the kernel has refused entries. They can't be taken back, so
    /// nothing may ever be submitted again.
    broken: bool,
}

// SAFETY: the pointers in the slots are read by the kernel alone, whatever
// thread owns the ring.
unsafe impl Send for Ring {}

impl Ring {
    /// A ring for so many requests at once (a power of two). Fails where the
    /// host has no io_uring, or doesn't let us.
    pub fn new(backing: Backing, requests: u32) -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(requests)?;
        let submitter = ring.submitter();
        submitter.register_files(&[backing.file])?;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()),
        ])?;
        submitter.register_enable_rings()?;
        let slot = || Slot { op: Op::Flush, vecs: Vec::new(), first: 0, left: 0, offset: 0 };
        let slots = std::iter::repeat_with(slot).take(requests as usize).collect();
        let free = (0..requests as usize).rev().collect();
        let again = Vec::with_capacity(requests as usize);
        Ok(Self { ring, backing, slots, free, in_kernel: 0, again, memory: None, broken: false })
    }

    /// The descriptor that is readable while there are answers.
    pub fn source(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// What buffers must be aligned to.
    pub fn align(&self) -> usize {
        self.backing.align
    }

    /// Whether there is room for another request.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether no request is under way.
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// The memory that buffers are in from now on.
    pub fn keep(&mut self, memory: Ram) {
        self.memory = Some(memory);
    }

    /// Prepares a request; returns the number by which its end is told, `None`
    /// without room. `offset` is the disk's. The buffers are in the memory that
    /// the ring keeps.
    pub fn start(&mut self, op: Op, buffers: &IoVecs<'_>, offset: u64) -> Option<usize> {
        let number = self.free.pop()?;
        let slot = self.slots.get_mut(number)?;
        slot.op = op;
        slot.vecs.clear();
        slot.vecs.extend_from_slice(buffers.as_slice());
        slot.first = 0;
        slot.left = buffers.len();
        slot.offset = offset.saturating_add(self.backing.offset);
        self.again.push(number);
        Some(number)
    }

    /// Hands all that is prepared to the kernel.
    pub fn submit(&mut self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the ring has failed before"));
        }
        for number in std::mem::take(&mut self.again) {
            let Some(slot) = self.slots.get(number) else { continue };
            let entry = entry(slot).user_data(number as u64);
            // SAFETY: the slot and its buffers stay until the answer: a slot is
            // reused only after it, guest memory is kept by `memory`, and the
            // ring waits before it goes away. There is room, as the queue has
            // as many entries as there are slots.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                return Err(io::Error::other("no room in the submission queue"));
            }
            self.in_kernel += 1;
        }
        let pushed = self.push_through();
        if pushed.is_err() {
            self.broken = true;
            self.in_kernel -= self.ring.submission().len().min(self.in_kernel);
        }
        pushed
    }

    fn push_through(&mut self) -> io::Result<()> {
        let mut tries = 0;
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    tries += 1;
                    if tries == TRIES {
                        return Err(e);
                    }
                    std::thread::sleep(LOOK);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The next request that has ended, and how.
    pub fn finished(&mut self) -> Option<(usize, io::Result<()>)> {
        loop {
            let answer = self.ring.completion().next()?;
            self.in_kernel = self.in_kernel.saturating_sub(1);
            let number = answer.user_data() as usize;
            let Some(slot) = self.slots.get_mut(number) else { continue };
            match slot.advance(answer.result()) {
                Step::Done(outcome) => {
                    self.free.push(number);
                    return Some((number, outcome));
                }
                // It goes on with the rest at the next `submit`.
                Step::More => self.again.push(number),
            }
        }
    }

    /// Whether requests wait for [`Ring::submit`].
    pub fn has_more(&self) -> bool {
        !self.again.is_empty()
    }

    /// Waits until the kernel has answered everything, and forgets the answers.
    pub fn empty(&mut self) {
        while self.in_kernel > 0 {
            if self.finished().is_none() {
                std::thread::sleep(LOOK);
            }
        }
        self.again.clear();
        self.free = (0..self.slots.len()).rev().collect();
        self.memory = None;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.empty();
    }
}

/// What an answer means.
enum Step {
    Done(io::Result<()>),
    More,
}

impl Slot {
    fn advance(&mut self, result: i32) -> Step {
        let error = |code| Step::Done(Err(io::Error::from_raw_os_error(code)));
        match (u64::try_from(result), self.op) {
            (Err(_), _) if matches!(-result, libc::EINTR | libc::EAGAIN) => Step::More,
            (Err(_), _) => error(-result),
            (Ok(_), Op::Flush) => Step::Done(Ok(())),
            // The image has become shorter.
            (Ok(0), _) if self.left > 0 => error(libc::EIO),
            (Ok(done), _) => {
                self.skip(done.min(self.left));
                if self.left == 0 { Step::Done(Ok(())) } else { Step::More }
            }
        }
    }

    fn skip(&mut self, done: u64) {
        self.left -= done;
        self.offset = self.offset.saturating_add(done);
        let mut rest = done;
        while let Some(v) = self.vecs.get_mut(self.first) {
            let step = rest.min(v.iov_len as u64) as usize;
            v.iov_base = v.iov_base.wrapping_byte_add(step);
            v.iov_len -= step;
            rest -= step as u64;
            if v.iov_len > 0 {
                return;
            }
            self.first += 1;
        }
    }
}

fn entry(slot: &Slot) -> io_uring::squeue::Entry {
    let vecs = slot.vecs.get(slot.first..).unwrap_or_default();
    let count = vecs.len().min(libc::UIO_MAXIOV as usize) as u32;
    match slot.op {
        Op::Read => opcode::Readv::new(FILE, vecs.as_ptr(), count).offset(slot.offset).build(),
        Op::Write(durable) => opcode::Writev::new(FILE, vecs.as_ptr(), count)
            .offset(slot.offset)
            .rw_flags(if durable { libc::RWF_DSYNC } else { 0 } as _)
            .build(),
        Op::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::disk::{Disk, RawDisk, RawOptions};
    use crate::virtio::queue::IoVecStore;

    fn wait(ring: &mut Ring) -> (usize, io::Result<()>) {
        loop {
            ring.submit().unwrap();
            if let Some(end) = ring.finished() {
                return end;
            }
            std::thread::sleep(LOOK);
        }
    }

    #[test]
    fn what_is_written_is_read_and_ends_are_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = RawDisk::open(file.path(), RawOptions { offset: 4096, ..Default::default() });
        let disk = disk.unwrap();
        let Ok(mut ring) = Ring::new(disk.backing().unwrap(), 4) else {
            eprintln!("skipped: no io_uring here");
            return;
        };
        let mut data = vec![7; 3 << 10];
        let mut store = IoVecStore::new();
        let buffers = IoVecs::from_slice(&mut store, &mut data);
        let number = ring.start(Op::Write(true), &buffers, 512).unwrap();
        assert!(!ring.is_idle());
        let (ended, outcome) = wait(&mut ring);
        assert_eq!((ended, outcome.is_ok()), (number, true));
        assert_eq!(&std::fs::read(file.path()).unwrap()[4608..7680], &[7; 3 << 10]);
        let mut back = vec![0; 3 << 10];
        let mut store = IoVecStore::new();
        let buffers = IoVecs::from_slice(&mut store, &mut back);
        ring.start(Op::Read, &buffers, 512).unwrap();
        wait(&mut ring).1.unwrap();
        ring.start(Op::Flush, &IoVecs::from_slice(&mut store, &mut []), 0).unwrap();
        wait(&mut ring).1.unwrap();
        assert_eq!(back, data);
        assert!(ring.is_idle());
        // Past the end of the file.
        let buffers = IoVecs::from_slice(&mut store, &mut back);
        ring.start(Op::Read, &buffers, 1 << 30).unwrap();
        assert_eq!(wait(&mut ring).1.unwrap_err().raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn a_ring_does_nothing_but_what_it_is_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let backing = Backing { file: file.as_raw_fd(), offset: 0, align: 1 };
        let Ok(mut ring) = Ring::new(backing, 4) else {
            eprintln!("skipped: no io_uring here");
            return;
        };
        let path = c"/dev/null";
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        let other = opcode::Fsync::new(types::Fd(file.as_raw_fd())).build();
        for entry in [open, other] {
            // SAFETY: the path is a C string that lives as long as the program.
            unsafe { ring.ring.submission().push(&entry) }.unwrap();
            ring.ring.submit_and_wait(1).unwrap();
            let answer = ring.ring.completion().next().unwrap();
            assert_eq!(answer.result(), -libc::EACCES);
        }
    }
}
