//! What static programs leave out of the C library.

/// Instead of glibc's, which reads `/proc/self/maps` with `sscanf(3)`: with it come
/// wide characters and every kind of floating point number, a tenth of a small program.
///
/// Only Rust's runtime asks, for where a stack's guard page is, so as to say that it was
/// an overflow when that page is touched. The page is there all the same, and touching
/// it ends the program by `SIGSEGV`.
#[unsafe(no_mangle)]
extern "C" fn pthread_getattr_np(_: libc::pthread_t, _: *mut libc::pthread_attr_t) -> libc::c_int {
    libc::ENOSYS
}
