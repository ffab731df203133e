//! One writer or many readers per image, whoever they are.
//!
//! The lock is an open file description lock over what is used of the file: it ends with
//! the last descriptor of it, also when the process is killed, and it is the
//! kind that QEMU and others take, so that they are kept out as well.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Why an image could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it, or another disk of this machine.
    #[error("locked by {}; {}", holder(*pid), advice(*read_only))]
    Held {
        /// The process, where the kernel knows it: it does for classic locks.
        pid: Option<libc::pid_t>,
        /// What was asked for.
        read_only: bool,
    },
    /// The file system can't lock.
    #[error("lock: {0}")]
    Host(#[from] io::Error),
}

fn holder(pid: Option<libc::pid_t>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process or another disk of this one".to_owned(),
    }
}

fn advice(read_only: bool) -> &'static str {
    match read_only {
        true => "it is being written to; stop its user first",
        false => "stop its user first, or share it read-only in both places",
    }
}

/// Locks `len` bytes of `file` from `offset` on, 0: to its end and beyond, until
/// its last descriptor is closed: for reading, which others may do as well, or
/// for writing, which excludes everybody.
pub fn lock(file: &File, read_only: bool, offset: u64, len: u64) -> Result<(), LockError> {
    let range = || range(read_only, offset, len);
    let mut wanted = range()?;
    match fcntl(file, libc::F_OFD_SETLK, &mut wanted) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            let mut held = range()?;
            let found = fcntl(file, libc::F_OFD_GETLK, &mut held);
            let known = found.is_ok() && held.l_type != libc::F_UNLCK as i16 && held.l_pid > 0;
            Err(LockError::Held { pid: known.then_some(held.l_pid), read_only })
        }
        result => Ok(result?),
    }
}

/// Ends such a lock before the last descriptor is closed.
pub fn unlock(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mut range = range(true, offset, len)?;
    range.l_type = libc::F_UNLCK as i16;
    fcntl(file, libc::F_OFD_SETLK, &mut range)
}

fn range(read_only: bool, offset: u64, len: u64) -> io::Result<libc::flock64> {
    let number = |n: u64| i64::try_from(n).map_err(|_| io::ErrorKind::InvalidInput);
    Ok(libc::flock64 {
        l_type: if read_only { libc::F_RDLCK } else { libc::F_WRLCK } as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: number(offset)?,
        l_len: number(len)?,
        l_pid: 0,
    })
}

fn fcntl(file: &File, command: libc::c_int, range: &mut libc::flock64) -> io::Result<()> {
    // SAFETY: both commands read and write one `flock64`, which `range` is.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, range as *mut libc::flock64) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
