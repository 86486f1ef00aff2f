//! The system calls of a gate: those that its loop makes, and no other.
//!
//! What is not on the list is refused with `EPERM`, not punished: a C library that one day asks for something else is
//! no attack, and whoever has broken in gets nothing by it.

use lazaret_base::{Context, Result};
use lazaret_sys::seccomp::{AUDIT_ARCH, SockFilter, call, set_filter};

/// Calls that are allowed whatever they are asked for: none opens, makes or names anything.
const ALLOWED: &[u32] = &[
    // The loop.
    call::PPOLL,
    #[cfg(target_arch = "x86_64")]
    call::POLL,
    call::ACCEPT4,
    call::CONNECT,
    call::RECVFROM,
    call::RECVMSG,
    call::SENDTO,
    call::SENDMSG,
    call::READ,
    call::WRITE,
    call::SPLICE,
    call::SHUTDOWN,
    call::CLOSE,
    call::FCNTL,
    call::PIPE2,
    call::UNAME,
    // Who we are, which is said to a sound server.
    call::GETPID,
    call::GETEUID,
    call::GETEGID,
    // Memory.
    call::BRK,
    call::MUNMAP,
    call::MREMAP,
    call::MADVISE,
    // Time, chance, and the end.
    call::CLOCK_GETTIME,
    call::GETRANDOM,
    call::FUTEX,
    call::RT_SIGACTION,
    call::RT_SIGPROCMASK,
    call::RT_SIGRETURN,
    call::RESTART_SYSCALL,
    call::SIGALTSTACK,
    call::EXIT,
    call::EXIT_GROUP,
];

/// What a gate needs in addition that listens under a name of its own: in its file system and network nobody else is.
pub(crate) const LISTENING: &[u32] = &[call::BIND, call::LISTEN];

/// Calls of which one argument decides: number, argument, mask, and what must be left of it under the mask.
const CHECKED: &[(u32, u32, u32, u32)] = &[
    // Sockets of this machine only (AF_UNIX).
    (call::SOCKET, 0, u32::MAX, 1),
    // No memory that can be executed (PROT_EXEC).
    (call::MMAP, 2, 4, 0),
    (call::MPROTECT, 2, 4, 0),
];

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const EQUAL: u16 = 0x15;
const AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ERRNO` with `EPERM`.
const REFUSE: u32 = 0x0005_0000 | 1;
/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// `__X32_SYSCALL_BIT`: numbers that mean something else.
const X32: u32 = 0x4000_0000;

/// Allows the list, and `more`, from here on, for ever.
pub(crate) fn keep_only_ours(more: &[u32]) -> Result<()> {
    set_filter(&filter(more)).context("loading the system call filter")
}

fn filter(more: &[u32]) -> Vec<SockFilter> {
    let plain = |code, k| SockFilter { code, jt: 0, jf: 0, k };
    let skip = |code, k, jt, jf| SockFilter { code, jt, jf, k };
    let mut code = vec![
        plain(LOAD, ARCH),
        skip(EQUAL, AUDIT_ARCH, 1, 0),
        plain(RETURN, REFUSE),
        plain(LOAD, NUMBER),
        skip(AT_LEAST, X32, 0, 1),
        plain(RETURN, REFUSE),
    ];
    for &number in ALLOWED.iter().chain(more) {
        code.extend([skip(EQUAL, number, 0, 1), plain(RETURN, ALLOW)]);
    }
    for &(number, argument, mask, left) in CHECKED {
        // The arguments are ints: what is in the upper half means nothing to the kernel.
        code.extend([
            skip(EQUAL, number, 0, 5),
            plain(LOAD, ARGUMENTS + 8 * argument),
            plain(AND, mask),
            skip(EQUAL, left, 0, 1),
            plain(RETURN, ALLOW),
            plain(RETURN, REFUSE),
        ]);
    }
    code.push(plain(RETURN, REFUSE));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would say (filter.rst of the kernel's documentation).
    fn verdict(number: u32, argument: (u32, u32)) -> bool {
        judge(&filter(&[]), number, argument)
    }

    fn judge(code: &[SockFilter], number: u32, argument: (u32, u32)) -> bool {
        let (mut at, mut a) = (0, 0);
        loop {
            let SockFilter { code, jt, jf, k } = code[at];
            at += 1;
            match code {
                LOAD if k == NUMBER => a = number,
                LOAD if k == ARCH => a = AUDIT_ARCH,
                LOAD => a = if k == ARGUMENTS + 8 * argument.0 { argument.1 } else { 0 },
                AND => a &= k,
                EQUAL => at += usize::from(if a == k { jt } else { jf }),
                AT_LEAST => at += usize::from(if a >= k { jt } else { jf }),
                _ => return k == ALLOW,
            }
        }
    }

    #[test]
    fn a_gate_may_what_it_does_and_nothing_else() {
        for &number in ALLOWED {
            assert!(verdict(number, (0, 0)), "{number}");
        }
        let others = (0..500).filter(|n| !ALLOWED.contains(n) && !CHECKED.iter().any(|(number, ..)| number == n));
        for number in others.chain([X32 | call::READ, u32::MAX]) {
            assert!(!verdict(number, (0, 0)), "{number}");
        }
        let listening = filter(LISTENING);
        assert!(!verdict(call::BIND, (0, 0)) && judge(&listening, call::BIND, (0, 0)));
        assert!(judge(&listening, call::READ, (0, 0)) && !judge(&listening, call::SOCKET, (0, 2)));
    }

    #[test]
    fn sockets_are_of_this_machine_and_memory_is_not_executed() {
        assert!(verdict(call::SOCKET, (0, 1)) && !verdict(call::SOCKET, (0, 2)) && !verdict(call::SOCKET, (0, 16)));
        for number in [call::MMAP, call::MPROTECT] {
            assert!(verdict(number, (2, 3)) && !verdict(number, (2, 5)) && !verdict(number, (2, 4)));
        }
    }
}
