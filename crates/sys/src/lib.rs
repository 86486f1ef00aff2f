//! The system calls that rustix lacks, one safe function per call. The only crate with `unsafe`.
#![allow(unsafe_code)]

pub mod bpf;
pub mod seccomp;
