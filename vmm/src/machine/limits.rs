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

#[cfg(test)]
mod tests {
    #[test]
    fn the_limit_of_descriptors_is_as_high_as_may_be() {
        super::raise_descriptors();
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: getrlimit fills the struct in that it is given.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
        assert_eq!(limit.rlim_cur, limit.rlim_max);
    }
}
