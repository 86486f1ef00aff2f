//! The init of containers that bring none, as the bytes of a static executable.

/// `lazaret-init`, to be written to a sealed memfd and executed as PID 1 (source and command line: `init/main.rs`).
///
/// It is ready for signals as soon as SigBlk in `/proc/PID/status` has the bit of SIGRTMIN+3 (glibc's: 37).
pub const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lazaret-init"));
