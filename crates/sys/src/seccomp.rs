//! seccomp(2): a filter for the calling thread's system calls.

use rustix::io::{Errno, Result};

use crate::check;

/// One instruction of classic BPF, as in linux/filter.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SockFilter {
    /// The operation.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// Loads a filter for the calling thread and all that it starts from now on. It cannot be taken back.
///
/// Needs `CAP_SYS_ADMIN` in the caller's user namespace or `no_new_privs`; else `EACCES`. A program that the kernel
/// does not take (empty, over 4096 instructions, jumps out of itself) is `EINVAL`.
///
/// The process is not additionally slowed down against speculation attacks: since Linux 5.16 that is the kernel's own
/// default, the slowdown being large and the gain small; older kernels are asked for the same
/// (`SECCOMP_FILTER_FLAG_SPEC_ALLOW`, Linux 4.17).
pub fn set_filter(program: &[SockFilter]) -> Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `program` describes a slice borrowed for the whole call; the kernel copies it and does not write to it.
    // SockFilter has the layout of sock_filter.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const program,
        )
    };
    check(result).map(drop)
}

const _: () = assert!(size_of::<SockFilter>() == size_of::<libc::sock_filter>());

/// What the kernel calls this machine's own calls (linux/audit.h).
#[cfg(target_arch = "x86_64")]
pub const AUDIT_ARCH: u32 = 0xc000_003e;
/// What the kernel calls this machine's own calls (linux/audit.h).
#[cfg(target_arch = "aarch64")]
pub const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Numbers of system calls on this machine, of those that somebody allows one by one.
pub mod call {
    macro_rules! numbers {
        ($($(#[$when:meta])* $name:ident $number:ident,)*) => {
            $($(#[$when])* #[doc = concat!("`", stringify!($number), "`.")] pub const $name: u32 = libc::$number as u32;)*
        };
    }
    numbers! {
        ACCEPT4 SYS_accept4,
        BIND SYS_bind,
        BRK SYS_brk,
        CLOCK_GETTIME SYS_clock_gettime,
        CLOSE SYS_close,
        CONNECT SYS_connect,
        EXIT SYS_exit,
        EXIT_GROUP SYS_exit_group,
        FCNTL SYS_fcntl,
        FUTEX SYS_futex,
        GETEGID SYS_getegid,
        GETEUID SYS_geteuid,
        GETPID SYS_getpid,
        GETRANDOM SYS_getrandom,
        LISTEN SYS_listen,
        MADVISE SYS_madvise,
        MMAP SYS_mmap,
        MPROTECT SYS_mprotect,
        MREMAP SYS_mremap,
        MUNMAP SYS_munmap,
        PIPE2 SYS_pipe2,
        #[cfg(target_arch = "x86_64")]
        POLL SYS_poll,
        PPOLL SYS_ppoll,
        READ SYS_read,
        RECVFROM SYS_recvfrom,
        RECVMSG SYS_recvmsg,
        RESTART_SYSCALL SYS_restart_syscall,
        RT_SIGACTION SYS_rt_sigaction,
        RT_SIGPROCMASK SYS_rt_sigprocmask,
        RT_SIGRETURN SYS_rt_sigreturn,
        SENDMSG SYS_sendmsg,
        SENDTO SYS_sendto,
        SHUTDOWN SYS_shutdown,
        SIGALTSTACK SYS_sigaltstack,
        SOCKET SYS_socket,
        SPLICE SYS_splice,
        UNAME SYS_uname,
        WRITE SYS_write,
    }
}
