//! System call filters (seccomp), one for each kind of thread.
//!
//! A guest that takes over a thread of the monitor is left with the few system
//! calls that the thread needs anyway. Anything else ends the process. Filters
//! are installed after the machine is built and before the guest runs; they
//! also set `no_new_privs`.

mod bpf;

use crate::intr::KVM_INTERRUPT;
use crate::vm::Chips;
use bpf::Call;
use seccompiler::BpfProgram;

/// Why a filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
#[error("seccomp filter of the {thread} thread: {reason}")]
pub struct SandboxError {
    thread: &'static str,
    reason: String,
}

/// What Rust and the C library do on any thread: memory, locks, signals, the
/// end of the thread and of the process.
const COMMON: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Beside those: the event loop with its devices, and the terminal.
const EVENT_LOOP: &[i64] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_getpgrp,
    libc::SYS_getrandom,
    libc::SYS_io_uring_enter,
    libc::SYS_ioctl,
    libc::SYS_kill,
    libc::SYS_lseek,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readv,
    libc::SYS_timerfd_settime,
];

/// Beside those, on the event loop of a machine that listens on a Unix socket of
/// its own, which it removes at the end.
const LISTENING: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_unlink,
];

/// Beside those, on the event loop of a machine with a control socket: clients
/// and what they hand over, and what a device that is added needs. Nothing is
/// opened: descriptors come over the socket.
const CONTROL: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_eventfd2,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_statx,
    libc::SYS_timerfd_create,
    libc::SYS_unlink,
];

/// Beside those, on the event loop of a machine with a vsock or a console's
/// socket: connections of
/// Unix sockets, and the end of the listening one, which may be another's file
/// by then. Making sockets has a rule of its own.
const VSOCK: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_statx,
    libc::SYS_unlink,
];

/// Beside those, on the event loop of a machine with a user-mode network:
/// connections and datagrams of the user's own. Making sockets has a rule of
/// its own.
const NETWORKS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];
/// Beside those, on the event loop of a machine in an Ethernet segment: its frames,
/// and the end of its socket.
const SEGMENTS: &[i64] = &[libc::SYS_recvfrom, libc::SYS_sendto, libc::SYS_unlink];
/// Beside those, on the event loop of a machine with streams that were prepared:
/// there is nothing to connect to.
const STREAMS: &[i64] = &[libc::SYS_sendmsg, libc::SYS_shutdown];

/// Beside those, on the event loop of a machine that shares directories: what
/// can be done to files. That none outside is reached is the share's own doing.
const SHARES: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_geteuid,
    libc::SYS_getxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_removexattr,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_symlinkat,
    libc::SYS_syncfs,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// Beside those: a driver that turns a disk's write cache off makes its vCPU
/// flush what is in it; and a thread that crashes gives the terminal back. (A
/// ring is restricted to its own disk: `devices::backend::disk::ring`.)
const VCPU: &[i64] = &[libc::SYS_fdatasync, libc::SYS_getpgrp, libc::SYS_io_uring_enter];

/// The ioctls of every vCPU thread, and more: running the guest, reading its
/// registers when it crashes, the offloads of a TAP when its driver starts, and
/// restoring the terminal.
macro_rules! vcpu_ioctls {
    ($($more:ident),*) => {
        &[KVM_RUN, KVM_GET_REGS, TUNSETOFFLOAD, TUNSETVNETHDRSZ, TCGETS, TCSETS, TIOCGPGRP, $($more),*]
    };
}

/// What a PCI driver does to interrupts and BARs; and stopping the kernel's data
/// path of a network card, and telling it about interrupts.
const VCPU_IOCTLS: &[u32] =
    vcpu_ioctls![KVM_SET_GSI_ROUTING, KVM_IOEVENTFD, VHOST_SET_VRING_CALL, VHOST_NET_SET_BACKEND];

/// In a machine with a motherboard: PCI cards have interrupt lines, whose level
/// changes when their registers are read and written.
const BOARD_IOCTLS: &[u32] = vcpu_ioctls![
    KVM_SET_GSI_ROUTING,
    KVM_IOEVENTFD,
    KVM_IRQ_LINE,
    VHOST_SET_VRING_CALL,
    VHOST_NET_SET_BACKEND
];

/// Where interrupt controllers are the monitor's: they inject interrupts.
const CONTROLLERS_IOCTLS: &[u32] = vcpu_ioctls![KVM_INTERRUPT, KVM_NMI];

/// Where local APICs are KVM's: they send messages as well, which KVM is told of
/// before; and PCI drivers do all that they do elsewhere.
const SPLIT_IOCTLS: &[u32] = vcpu_ioctls![
    KVM_INTERRUPT,
    KVM_SIGNAL_MSI,
    KVM_SET_GSI_ROUTING,
    KVM_IOEVENTFD,
    VHOST_SET_VRING_CALL,
    VHOST_NET_SET_BACKEND
];

/// Beside the common ones: writing what the guest says, and the terminal.
const CONSOLE: &[i64] = &[libc::SYS_getpgrp, libc::SYS_poll];
const CONSOLE_IOCTLS: &[u32] = &[TCGETS, TCSETS, TIOCGPGRP];

/// Beside the common ones: the streams and signals of a job's runner.
const RELAY: &[i64] = &[
    libc::SYS_dup2,
    libc::SYS_fstat,
    libc::SYS_getpgrp,
    libc::SYS_poll,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_statx,
];
const RELAY_IOCTLS: &[u32] = &[TCGETS, TCSETS, TIOCGPGRP, TIOCGWINSZ];

/// The C library looks at what it has set.
const TCGETS: u32 = libc::TCGETS as u32;
const TCSETS: u32 = libc::TCSETS as u32;
const TIOCGPGRP: u32 = libc::TIOCGPGRP as u32;
const TIOCGWINSZ: u32 = libc::TIOCGWINSZ as u32;
const KVM_RUN: u32 = 0xae80;
const KVM_NMI: u32 = 0xae9a;
const KVM_SIGNAL_MSI: u32 = 0x4020_aea5;
const KVM_IRQ_LINE: u32 = 0x4008_ae61;
const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const KVM_IOEVENTFD: u32 = 0x4040_ae79;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
const VHOST_SET_VRING_CALL: u32 = 0x4008_af21;
const VHOST_NET_SET_BACKEND: u32 = 0x4008_af30;

/// A compiled filter, to be installed on the thread that it is for.
pub struct Filter {
    thread: &'static str,
    program: BpfProgram,
    numbers: Vec<u32>,
}

/// What is done on vCPU threads beside what is always done there.
#[derive(Debug, Clone, Copy, Default)]
pub struct VcpuNeeds {
    /// A motherboard's interrupt lines.
    pub board: bool,
    /// Which interrupt controllers are KVM's.
    pub chips: Chips,
    /// KVM's statistics are read, because somebody measures.
    pub statistics: bool,
}

/// The filter of a vCPU thread.
pub fn vcpu(needs: VcpuNeeds) -> Filter {
    let ioctls = match (needs.chips, needs.board) {
        (Chips::User, _) => CONTROLLERS_IOCTLS,
        (Chips::Split, _) => SPLIT_IOCTLS,
        (Chips::Kernel, true) => BOARD_IOCTLS,
        (Chips::Kernel, false) => VCPU_IOCTLS,
    };
    let timers: &[i64] = match needs.chips {
        Chips::Kernel => &[],
        Chips::Split | Chips::User => &[libc::SYS_timerfd_settime],
    };
    let reading: &[i64] = if needs.statistics { &[libc::SYS_pread64] } else { &[] };
    filter("vCPU", &[COMMON, VCPU, timers, reading], &[only(libc::SYS_ioctl, 1, ioctls), CLOSING])
}

/// The filter of the thread that writes the console's output.
pub fn console() -> Filter {
    filter("console", &[COMMON, CONSOLE], &[only(libc::SYS_ioctl, 1, CONSOLE_IOCTLS), CLOSING])
}

/// The filter of the threads that a job's runner has beside its machine.
pub fn relay() -> Filter {
    control(false, false)
}

/// Visitors of a job that has a name: their requests, what they hand over, and the
/// end of the name.
const DESK: &[i64] = &[libc::SYS_accept4, libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_unlink];

/// Connections to the server of a parallel program's ranks.
const DIAL: &[i64] = &[libc::SYS_connect, libc::SYS_setsockopt];

/// The same for the thread that talks with the guest: visitors may come to it, and it
/// may connect to one server.
pub fn control(visitors: bool, server: bool) -> Filter {
    let mut lists = vec![COMMON, RELAY];
    let mut conditional = vec![only(libc::SYS_ioctl, 1, RELAY_IOCTLS), CLOSING];
    if visitors {
        lists.push(DESK);
    }
    if server {
        lists.push(DIAL);
        conditional.push(only(libc::SYS_socket, 0, &[INET]));
    }
    filter("relay", &lists, &conditional)
}

/// What is on the event loop beside what is always there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Needs {
    /// Connections between Unix sockets and the guest.
    pub local_sockets: bool,
    /// A Unix socket for metrics.
    pub listening: bool,
    /// A Unix socket over which devices are added and removed.
    pub control: bool,
    /// Directories of the host in the guest.
    pub shares: bool,
    /// The host's networks, as the user reaches them.
    pub networks: bool,
    /// Streams between the guest and this process.
    pub streams: bool,
    /// A station of a segment.
    pub segments: bool,
}

/// The filter of the thread that runs the event loop.
pub fn event_loop(needs: Needs) -> Filter {
    let mut lists = vec![COMMON, EVENT_LOOP];
    let mut conditional = Vec::new();
    if needs.local_sockets {
        lists.push(VSOCK);
    }
    if needs.networks {
        lists.push(NETWORKS);
    }
    let families: &[u32] = match (needs.local_sockets, needs.networks) {
        (false, false) => &[],
        (true, false) => &[UNIX],
        (false, true) => &[INET, INET6],
        (true, true) => &[UNIX, INET, INET6],
    };
    if !families.is_empty() {
        conditional.push(only(libc::SYS_socket, 0, families));
    }
    if needs.shares {
        lists.push(SHARES);
    }
    if needs.control {
        lists.push(CONTROL);
    }
    if needs.streams {
        lists.push(STREAMS);
    }
    if needs.segments {
        lists.push(SEGMENTS);
    }
    if needs.listening {
        lists.push(LISTENING);
    }
    filter("event loop", &lists, &conditional)
}

/// Rust built with its checks asks whether a descriptor is open before it
/// closes it: sockets of a vsock that is reset, the console's output.
const CLOSING: Call = only(libc::SYS_fcntl, 1, &[libc::F_GETFD as u32]);

/// The families of sockets that are made while the guest runs.
const UNIX: u32 = libc::AF_UNIX as u32;
const INET: u32 = libc::AF_INET as u32;
const INET6: u32 = libc::AF_INET6 as u32;

/// A call that is allowed for some values of an argument.
const fn only(number: i64, argument: u32, values: &'static [u32]) -> Call {
    Call { number: number as u32, argument, values }
}

/// A filter with some calls, and others with conditions.
fn filter(thread: &'static str, lists: &[&[i64]], conditional: &[Call]) -> Filter {
    let free = lists.iter().flat_map(|list| list.iter()).map(|number| only(*number, 0, &[]));
    let mut calls: Vec<Call> = free.chain(conditional.iter().copied()).collect();
    calls.sort_by_key(|call| call.number);
    calls.dedup_by_key(|call| call.number);
    let numbers = calls.iter().map(|call| call.number).collect();
    Filter { thread, program: bpf::program(&calls), numbers }
}

impl Filter {
    /// The system calls that it lets through, for some arguments at least.
    pub fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    /// Installs the filter on the calling thread, for good.
    pub fn install(&self) -> Result<(), SandboxError> {
        let reason = |e: seccompiler::Error| e.to_string();
        seccompiler::apply_filter(&self.program)
            .map_err(|e| SandboxError { thread: self.thread, reason: reason(e) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::backend::vsock::UnixSockets;
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::sync::Mutex;

    /// Runs `body` under `filter` in a child and returns its wait status.
    fn in_child(filter: &Filter, body: fn()) -> i32 {
        // SAFETY: the child only makes system calls and leaves by _exit.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                if filter.install().is_err() {
                    libc::_exit(99);
                }
                body();
                libc::_exit(0);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
            status
        }
    }

    fn killed(status: i32) -> bool {
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS
    }

    #[test]
    fn what_a_thread_needs_is_allowed_and_the_rest_ends_the_process() {
        let harmless = || {
            // SAFETY: no memory is touched.
            unsafe { libc::sched_yield() };
        };
        let close = || {
            // SAFETY: nothing in this child needs it any more.
            drop(unsafe { OwnedFd::from_raw_fd(libc::STDIN_FILENO) });
        };
        let open = || {
            // SAFETY: the path is a C string.
            unsafe { libc::open(c"/dev/null".as_ptr(), 0) };
        };
        let other_ioctl = || {
            // SAFETY: FIONREAD on a closed descriptor writes nothing.
            unsafe { libc::ioctl(-1, libc::FIONREAD, 0) };
        };
        let all = [
            vcpu(VcpuNeeds::default()),
            vcpu(VcpuNeeds { board: true, ..VcpuNeeds::default() }),
            vcpu(VcpuNeeds { board: true, chips: Chips::Split, statistics: true }),
            vcpu(VcpuNeeds { board: true, chips: Chips::User, statistics: true }),
            console(),
            relay(),
            control(true, false),
            control(true, true),
            event_loop(Needs::default()),
            event_loop(Needs { local_sockets: true, ..Needs::default() }),
            event_loop(Needs { control: true, ..Needs::default() }),
            event_loop(Needs { segments: true, ..Needs::default() }),
        ];
        for filter in all {
            assert_eq!(in_child(&filter, harmless), 0);
            assert_eq!(in_child(&filter, close), 0);
            assert!(killed(in_child(&filter, open)));
        }
        assert!(killed(in_child(&vcpu(VcpuNeeds::default()), other_ioctl)));
        assert_eq!(in_child(&event_loop(Needs::default()), other_ioctl), 0);
        let irq_line = || {
            // SAFETY: KVM_IRQ_LINE on a closed descriptor reads nothing.
            unsafe { libc::ioctl(-1, u64::from(KVM_IRQ_LINE), 0) };
        };
        let board = VcpuNeeds { board: true, ..VcpuNeeds::default() };
        assert_eq!(in_child(&vcpu(board), irq_line), 0);
        assert!(killed(in_child(&vcpu(VcpuNeeds::default()), irq_line)));
        // A card of the kernel's can be on any bus that has messages.
        let call = || {
            // SAFETY: the request on a closed descriptor reads nothing.
            unsafe { libc::ioctl(-1, u64::from(VHOST_SET_VRING_CALL), 0) };
        };
        let stop = || {
            // SAFETY: the request on a closed descriptor reads nothing.
            unsafe { libc::ioctl(-1, u64::from(VHOST_NET_SET_BACKEND), 0) };
        };
        for body in [call, stop] {
            for chips in [Chips::Kernel, Chips::Split] {
                let needs = VcpuNeeds { board: true, chips, ..VcpuNeeds::default() };
                assert_eq!(in_child(&vcpu(needs), body), 0);
            }
            let needs = VcpuNeeds { board: true, chips: Chips::User, ..VcpuNeeds::default() };
            assert!(killed(in_child(&vcpu(needs), body)));
        }
    }

    #[test]
    fn only_a_machine_with_a_vsock_makes_sockets_and_only_local_ones() {
        let unix = || {
            // SAFETY: socket takes numbers.
            unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
        };
        let inet = || {
            // SAFETY: socket takes numbers.
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        };
        let unlink = || {
            // SAFETY: the path is a C string.
            unsafe { libc::unlink(c"/nonexistent/file".as_ptr()) };
        };
        static OPEN: Mutex<Option<UnixSockets>> = Mutex::new(None);
        let end = || drop(OPEN.lock().unwrap().take());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        *OPEN.lock().unwrap() = Some(UnixSockets::listen(&path).unwrap());
        assert_eq!(
            in_child(&event_loop(Needs { local_sockets: true, ..Needs::default() }), end),
            0
        );
        assert!(!path.exists());
        let (with, without) = (
            event_loop(Needs { local_sockets: true, ..Needs::default() }),
            event_loop(Needs::default()),
        );
        assert_eq!(in_child(&with, unix), 0);
        assert_eq!(in_child(&with, unlink), 0);
        assert!(killed(in_child(&with, inet)));
        assert!(killed(in_child(&without, unix)));
        assert!(killed(in_child(&without, unlink)));
    }

    #[test]
    fn only_a_machine_with_a_user_mode_network_makes_sockets_of_the_internet() {
        let inet = || {
            // SAFETY: socket takes numbers.
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP) };
        };
        let inet6 = || {
            // SAFETY: socket takes numbers.
            unsafe { libc::socket(libc::AF_INET6, libc::SOCK_DGRAM, 0) };
        };
        let unix = || {
            // SAFETY: socket takes numbers.
            unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
        };
        let packet = || {
            // SAFETY: socket takes numbers.
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
        };
        let network = Needs { networks: true, ..Needs::default() };
        let both = Needs { local_sockets: true, ..network };
        assert_eq!(in_child(&event_loop(network), inet), 0);
        assert_eq!(in_child(&event_loop(network), inet6), 0);
        assert!(killed(in_child(&event_loop(network), unix)));
        assert!(killed(in_child(&event_loop(network), packet)));
        for allowed in [inet, inet6, unix] {
            assert_eq!(in_child(&event_loop(both), allowed), 0);
        }
        assert!(killed(in_child(&event_loop(both), packet)));
    }
}
