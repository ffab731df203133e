//! A system call filter as container engines have by default: everything that is
//! not about the whole machine, about other programs' memory or about making new
//! namespaces.

/// One more than the last number that is looked at.
const LAST: u32 = 470;

/// What is refused with `EPERM`: those that Docker's and Podman's default profiles
/// refuse to a process without capabilities.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_clone3,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS__sysctl,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_uselib,
    libc::SYS_userfaultfd,
    libc::SYS_ustat,
    libc::SYS_vhangup,
];

/// How many of x86-64's numbers are let through: 0 to 334 and 424 to 469 are in use.
pub const ALLOWED: usize = 335 + (LAST as usize - 424) - REFUSED.len();

/// `AUDIT_ARCH_X86_64`.
const ARCHITECTURE: u32 = 0xc000_003e;
/// Bit of the other numbering (x32).
const X32: u32 = 0x4000_0000;

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Goes on after the next one if equal, or greater or equal.
const fn unless(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | code | libc::BPF_K) as u16, jt: 0, jf: 1, k }
}

/// The program (`Documentation/userspace-api/seccomp_filter.rst`).
pub fn program() -> Vec<libc::sock_filter> {
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let end = |value| statement(libc::BPF_RET | libc::BPF_K, value);
    let refuse = |error: libc::c_int| end(libc::SECCOMP_RET_ERRNO | error as u32);
    // struct seccomp_data: the number, then the architecture.
    let mut program = vec![load(4)];
    program.push(libc::sock_filter { jt: 1, jf: 0, ..unless(libc::BPF_JEQ, ARCHITECTURE) });
    program.extend([end(libc::SECCOMP_RET_KILL_PROCESS), load(0)]);
    program.extend([unless(libc::BPF_JGE, X32), refuse(libc::ENOSYS)]);
    for number in REFUSED {
        // C libraries go back to clone, whose flags a filter can read.
        let error = if *number == libc::SYS_clone3 { libc::ENOSYS } else { libc::EPERM };
        program.extend([unless(libc::BPF_JEQ, *number as u32), refuse(error)]);
    }
    // New namespaces by clone: the flags are its first argument.
    let namespaces = 0x7e02_0000u32;
    program.push(libc::sock_filter {
        jt: 0,
        jf: 3,
        ..unless(libc::BPF_JEQ, libc::SYS_clone as u32)
    });
    program.push(load(16));
    program.push(libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16,
        jt: 0,
        jf: 1,
        k: namespaces,
    });
    program.push(refuse(libc::EPERM));
    program.push(end(libc::SECCOMP_RET_ALLOW));
    program
}

/// Installs it for the calling thread. System calls only.
pub fn install(program: &[libc::sock_filter]) -> Result<(), ()> {
    let program =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call, which only reads it.
    let installed = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    if installed == 0 { Ok(()) } else { Err(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_there_once_and_jumps_stay_inside() {
        let mut numbers = REFUSED.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), REFUSED.len());
        assert!(numbers.iter().all(|n| (0..335).contains(n) || (424..i64::from(LAST)).contains(n)));
        let program = program();
        for (at, step) in program.iter().enumerate() {
            assert!(at + 1 + usize::from(step.jt.max(step.jf)) <= program.len());
        }
        assert!(program.len() < 4096);
    }
}
