//! What system calls cost.

use crate::report;
use crate::timing::Budget;
use guest::system::{check, pipe};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::ptr;

/// Pages that are touched for the first time, in one operation.
pub const PAGES: usize = 512;
const PAGE: usize = 4096;

/// Every operation by its name.
pub fn measure(budget: Budget) {
    report("getpid", getpid(budget));
    report("clock", budget.time(repeat(clock)));
    report(
        "read",
        file_call(budget, "/dev/zero", libc::O_RDONLY, |fd, byte| {
            // SAFETY: the buffer is one byte that outlives the call.
            unsafe { call(libc::read(fd, byte.cast(), 1) as libc::c_long) }
        }),
    );
    report(
        "write",
        file_call(budget, "/dev/null", libc::O_WRONLY, |fd, byte| {
            // SAFETY: as above.
            unsafe { call(libc::write(fd, byte.cast_const().cast(), 1) as libc::c_long) }
        }),
    );
    report("stat", budget.time(repeat(stat)));
    report("open_close", budget.time(repeat(open_close)));
    report("mmap", budget.time(repeat(|| Mapping::new(PAGE).map(drop))));
    report("page_fault", page_fault(budget));
    report("futex", budget.time(repeat(futex)));
    report("signal", signal(budget));
    report("pipe", pipe_alone(budget));
    report("context_switch", context_switch(budget));
    report("fork", budget.time(repeat(|| child(false))));
    report("exec", budget.time(repeat(|| child(true))));
}

/// The least that a system call can be.
pub fn getpid(budget: Budget) -> io::Result<Vec<f64>> {
    // SAFETY: getpid has no preconditions.
    budget.time(repeat(|| unsafe { call(libc::syscall(libc::SYS_getpid)) }))
}

/// An operation as often as it is asked for.
fn repeat(mut once: impl FnMut() -> io::Result<()>) -> impl FnMut(u64) -> io::Result<()> {
    move |count| (0..count).try_for_each(|_| once())
}

fn call(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn clock() -> io::Result<()> {
    std::hint::black_box(super::timing::now(libc::CLOCK_MONOTONIC));
    Ok(())
}

fn file_call(
    budget: Budget,
    path: &str,
    flags: i32,
    once: impl Fn(i32, *mut u8) -> io::Result<()>,
) -> io::Result<Vec<f64>> {
    let read = flags == libc::O_RDONLY;
    let file = File::options().read(read).write(!read).open(path)?;
    let mut byte = 0;
    budget.time(repeat(|| once(file.as_raw_fd(), &mut byte)))
}

fn stat() -> io::Result<()> {
    // SAFETY: stat is plain data; the string ends with NUL; both outlive the call.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        call(libc::stat(c"/".as_ptr(), &mut found).into())
    }
}

fn open_close() -> io::Result<()> {
    // SAFETY: the string ends with NUL; the descriptor is closed once.
    unsafe {
        let fd = check(libc::open(c"/".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC))?;
        call(libc::close(fd).into())
    }
}

/// Anonymous memory of this process.
pub struct Mapping {
    pub start: *mut u8,
    pub len: usize,
}

impl Mapping {
    /// Nothing of it has been touched, and none of it becomes huge pages.
    pub fn new(len: usize) -> io::Result<Self> {
        let (kind, access) =
            (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: an anonymous mapping wherever the kernel likes; the advice only
        // changes what pages it is made of.
        unsafe {
            let start = libc::mmap(ptr::null_mut(), len, access, kind, -1, 0);
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            libc::madvise(start, len, libc::MADV_NOHUGEPAGE);
            Ok(Self { start: start.cast(), len })
        }
    }

    /// Writes a byte at each page.
    pub fn touch(&mut self) {
        for at in (0..self.len).step_by(PAGE) {
            // SAFETY: `at` is inside of the mapping, which is ours alone.
            unsafe { self.start.add(at).write_volatile(1) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

pub fn page_fault(budget: Budget) -> io::Result<Vec<f64>> {
    let times = budget.time(repeat(|| {
        Mapping::new(PAGES * PAGE)?.touch();
        Ok(())
    }))?;
    Ok(times.into_iter().map(|nanoseconds| nanoseconds / PAGES as f64).collect())
}

fn futex() -> io::Result<()> {
    let word = 0u32;
    // SAFETY: the word outlives the call; nobody waits on it.
    unsafe { call(libc::syscall(libc::SYS_futex, &raw const word, libc::FUTEX_WAKE, 1)) }
}

extern "C" fn ignore(_: libc::c_int) {}

fn signal(budget: Budget) -> io::Result<Vec<f64>> {
    let handler = ignore as extern "C" fn(libc::c_int);
    // SAFETY: the handler does nothing, which is safe at any moment.
    unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
    // SAFETY: the signal has a handler by now.
    budget.time(repeat(|| unsafe { call(libc::raise(libc::SIGUSR1).into()) }))
}

fn pipe_alone(budget: Budget) -> io::Result<Vec<f64>> {
    let (read, write) = pipe()?;
    let (mut read, mut write) = (File::from(read), File::from(write));
    budget.time(repeat(|| {
        write.write_all(&[0])?;
        read.read_exact(&mut [0])
    }))
}

/// Half of a byte's way to another process and back, both on one processor.
pub fn context_switch(budget: Budget) -> io::Result<Vec<f64>> {
    let allowed = stay_on_one_processor()?;
    let result = ping_pong(budget);
    // SAFETY: the set is one that the kernel gave.
    unsafe { libc::sched_setaffinity(0, size_of_val(&allowed), &allowed) };
    Ok(result?.into_iter().map(|nanoseconds| nanoseconds / 2.0).collect())
}

/// Which processors there were before.
fn stay_on_one_processor() -> io::Result<libc::cpu_set_t> {
    // SAFETY: cpu_set_t is plain data for which zero is a value, and its size is
    // given; the first processor of the set is inside of it.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of_val(&allowed);
        check(libc::sched_getaffinity(0, size, &mut allowed))?;
        let first = (0..libc::CPU_SETSIZE as usize).find(|cpu| libc::CPU_ISSET(*cpu, &allowed));
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(first.unwrap_or(0), &mut one);
        check(libc::sched_setaffinity(0, size, &one))?;
        Ok(allowed)
    }
}

fn ping_pong(budget: Budget) -> io::Result<Vec<f64>> {
    let ((to_read, to_write), (from_read, from_write)) = (pipe()?, pipe()?);
    // SAFETY: there is one thread; the child uses its own copies of four
    // descriptors and ends by _exit.
    let pid = unsafe { check(libc::fork())? };
    if pid == 0 {
        drop(to_write);
        let (mut read, mut write) = (File::from(to_read), File::from(from_write));
        let mut byte = [0];
        while read.read_exact(&mut byte).is_ok() && write.write_all(&byte).is_ok() {}
        // SAFETY: no preconditions.
        unsafe { libc::_exit(0) };
    }
    drop((to_read, from_write));
    let (mut write, mut read) = (File::from(to_write), File::from(from_read));
    let times = budget.time(repeat(|| {
        write.write_all(&[0])?;
        read.read_exact(&mut [0])
    }));
    drop(write);
    wait(pid)?;
    times
}

/// A child that ends at once, or becomes another program that does.
fn child(exec: bool) -> io::Result<()> {
    let words = [c"agent".as_ptr(), c"true".as_ptr(), ptr::null()];
    let nothing = [ptr::null()];
    // SAFETY: there is one thread; the child makes two system calls on lists that
    // end with a null pointer.
    unsafe {
        let pid = check(libc::fork())?;
        if pid == 0 {
            if exec {
                libc::execve(c"/proc/self/exe".as_ptr(), words.as_ptr(), nothing.as_ptr());
            }
            libc::_exit(if exec { 1 } else { 0 });
        }
        match wait(pid)? {
            0 => Ok(()),
            _ => Err(io::Error::other("the child could not be executed")),
        }
    }
}

fn wait(pid: libc::pid_t) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: the child is ours; the call fills in an int.
    check(unsafe { libc::waitpid(pid, &mut status, 0) })?;
    Ok(status)
}
