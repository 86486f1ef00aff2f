//! Locks on open file descriptions that can be looked at without being taken (F_OFD_SETLK of fcntl(2)).

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{self, Errno};

use crate::check;

/// The whole file, for writing. `l_pid` must be 0 for these locks.
fn whole_file() -> libc::flock {
    // SAFETY: all-zero is a valid `flock`: from the start, to the end, whoever asks.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock
}

/// Takes the lock if nobody has it. It is held until the last copy of the descriptor is closed.
pub fn take(file: BorrowedFd<'_>) -> io::Result<bool> {
    let lock = whole_file();
    // SAFETY: F_OFD_SETLK reads one `flock`, which lives across the call.
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }.into()) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether somebody else has the lock. Looking takes nothing, so it gets in nobody's way.
pub fn is_taken(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut lock = whole_file();
    // SAFETY: F_OFD_GETLK reads and writes one `flock`, which lives across the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) }.into())?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}
