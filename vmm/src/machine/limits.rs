//! What the host allows this process.

/// Raises the limit of file descriptors as far as anyone may: each connection of
/// a vsock is one, and the usual limit of 1024 is for programs that use select.
/// Where it stays lower, a device that finds none left says so and goes on.
pub fn raise_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit fills the struct in that it is given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return;
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the struct is initialized.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        log::info!("file descriptors: {}", std::io::Error::last_os_error());
    }
}

/// Has the C library keep one heap for all threads. It gives those of other
/// threads back to the host in a way that reads a file of `/proc`, which system
/// call filters forbid; and one takes less memory than many.
pub fn keep_one_heap() {
    // SAFETY: it takes numbers, and no other thread allocates yet.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } != 1 {
        log::info!("heap: the C library does not know M_ARENA_MAX");
    }
}

/// Gives back the pages of this program's code that only its start has needed.
///
/// Linux maps sixteen around each one that is touched (`fault_around_bytes`), so that
/// by now almost all of them count as this process's memory. What is needed again is
/// mapped again, out of the page cache.
pub fn give_back_code() {
    unsafe extern "C" {
        // Of the linker: the ELF header, and the end of the code.
        static __executable_start: u8;
        static etext: u8;
    }
    const PAGE: usize = 4096;
    let start = (&raw const __executable_start).addr().next_multiple_of(PAGE);
    let end = (&raw const etext).addr() / PAGE * PAGE;
    let Some(len) = end.checked_sub(start) else { return };
    // SAFETY: what lies between is a private mapping of the program's file that nobody
    // writes to (no text relocations), so that it reads the same when it is mapped again.
    if unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED) } != 0 {
        log::info!("code of the start: {}", std::io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn code_that_was_given_back_is_there_again() {
        let resident = || -> usize {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            // Resident pages of files.
            text.split_whitespace().nth(2).unwrap().parse().unwrap()
        };
        let gives_back = || {
            let before = resident();
            super::give_back_code();
            resident() < before
        };
        // Other tests may map files meanwhile.
        assert!((0..10).any(|_| gives_back()));
    }

    #[test]
    fn the_limit_of_descriptors_is_as_high_as_may_be() {
        super::raise_descriptors();
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: getrlimit fills the struct in that it is given.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
        assert_eq!(limit.rlim_cur, limit.rlim_max);
    }
}
