//! The system calls that rustix lacks, one safe function per call. The only crate with `unsafe`.
#![allow(unsafe_code)]

pub mod bpf;
pub mod local;
pub mod lock;
pub mod mount;
pub mod net;
pub mod packet;
pub mod process;
pub mod seccomp;
pub mod signal;

use rustix::io::{self, Errno};

/// The result of a raw system call, as a value or an errno.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        // errno of this thread was just set by the failed call.
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(result)
}
