//! Signals as events, and a clean signal state for the program that is about to be executed.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io;

use crate::check;

/// The number of `SIGRTMIN+n` as programs count them: glibc and musl keep 32 to 34 for themselves
/// (signal(7)), glibc two, so that SIGRTMIN is 34 for every program that systemd or sysvinit is.
pub fn real_time(n: i32) -> i32 {
    34 + n
}

/// Blocks `signals` in this thread and makes them readable from a descriptor (signalfd(2)).
pub fn watch(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = set_of(signals);
    // SAFETY: `set` is a filled signal set that lives across the call; no old set is asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) }.into())?;
    // SAFETY: as above; -1 asks for a new descriptor.
    let fd = check(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }.into())?;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Reads the number of the next signal from a descriptor of [`watch`]; `None` if there is none.
pub fn next(watched: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut bytes = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(watched, &mut bytes) {
        // ssi_signo is the first field (signalfd(2)).
        Ok(n) if n == bytes.len() => Ok(Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as i32)),
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Every signal to its default action, none blocked: what a program may expect at its start.
///
/// Rust's runtime ignores SIGPIPE and callers block what they watch; both would be inherited by execve(2).
pub fn reset() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL needs no handler; KILL, STOP and libc's own numbers answer EINVAL, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let none = set_of(&[]);
    // SAFETY: `none` is a valid, empty set that lives across the call.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
}

/// Sends signal `number` through a pidfd, real-time signals included (pidfd_send_signal(2)).
pub fn send(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: no siginfo is passed, so the kernel reads no memory of ours.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    check(result).map(drop)
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set before anything reads it.
    let mut set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    };
    for &signal in signals {
        // SAFETY: `set` is initialised; a bad number answers EINVAL and changes nothing.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}
