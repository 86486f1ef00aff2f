//! Telling one process from a later one with the same number.

use std::os::fd::OwnedFd;

use lazaret_base::{Kind, Result, error};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// When a process was made, in clock ticks since boot: field 22 of proc_pid_stat(5).
pub fn started(pid: Pid) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name in parentheses may hold anything, parentheses and spaces included.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Opens the process that had this number at that time, or tells that it has ended.
pub fn open(pid: i32, at: u64) -> Result<OwnedFd> {
    let ended = || error("its init has ended").kind(Kind::Stopped);
    let pid = Pid::from_raw(pid).ok_or_else(ended)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| ended())?;
    // Looked at after opening: if the number has the right age now, the descriptor was opened on it.
    match started(pid) {
        Some(then) if then == at => Ok(pidfd),
        _ => Err(ended()),
    }
}
