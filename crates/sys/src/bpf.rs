//! bpf(2), as far as a cgroup's device filter needs it.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};

use crate::check;

/// One instruction of eBPF, as in linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BpfInsn {
    /// The operation.
    pub code: u8,
    /// The destination register in the lower four bits, the source in the upper (little endian).
    pub registers: u8,
    /// Offset of a jump or of a memory access.
    pub offset: i16,
    /// The operand.
    pub immediate: i32,
}

/// Gives a device filter to the kernel, which checks it and returns a descriptor that keeps it alive.
///
/// Needs `CAP_BPF` and `CAP_NET_ADMIN`, or `CAP_SYS_ADMIN`, in the initial user namespace: else `EPERM`. A program that
/// the kernel's verifier rejects is `EINVAL` or `EACCES`.
pub fn bpf_prog_load_cgroup_device(program: &[BpfInsn]) -> Result<OwnedFd> {
    // The program calls no helper function that is kept for programs under the GPL.
    const LICENSE: &CStr = c"";
    let attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: LICENSE.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"lazaret_devices\0",
    };
    // SAFETY: the two addresses in `attributes` are those of a borrowed slice, whose length goes with it, and of a
    // static string; both outlive the call, and the kernel only reads them.
    let fd = check(unsafe { bpf(BPF_PROG_LOAD, &attributes) })?;
    // SAFETY: the kernel has just made this descriptor (close-on-exec, as all of bpf(2)), so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes a device filter effective for a cgroup and its descendants.
///
/// Filters add up: an access must be allowed by all that are attached here and above. With `replace`, the new filter
/// takes the place of that one in one step, without a moment of neither or both (`BPF_F_REPLACE`, Linux 5.6; `EINVAL`
/// before, `ENOENT` if the other is not attached). The filter stays after the descriptors are closed, until
/// [`bpf_detach`] or the end of the cgroup.
pub fn bpf_attach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>, replace: Option<BorrowedFd<'_>>) -> Result<()> {
    let attributes = ProgramAttach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI | if replace.is_some() { BPF_F_REPLACE } else { 0 },
        replaced: replace.map_or(0, |fd| fd.as_raw_fd() as u32),
    };
    // SAFETY: `attributes` holds no address.
    check(unsafe { bpf(BPF_PROG_ATTACH, &attributes) }).map(drop)
}

/// Takes a device filter off a cgroup; `ENOENT` if it is not attached there.
pub fn bpf_detach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let attributes = ProgramAttach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: 0,
        replaced: 0,
    };
    // SAFETY: `attributes` holds no address.
    check(unsafe { bpf(BPF_PROG_DETACH, &attributes) }).map(drop)
}

/// The device filters that are attached to this very cgroup, as descriptors, in the order in which they were attached.
pub fn bpf_attached(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>> {
    // Somebody who attaches more than this is none of ours.
    let mut ids = [0u32; 64];
    let mut attributes = ProgramQuery {
        target: cgroup.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: ids.len() as u32,
        padding: 0,
    };
    // SAFETY: the address is that of `ids`, which outlives the call and whose length goes with it; the kernel writes
    // the number of ids into `attributes`, which is borrowed for writing.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attributes, size_of::<ProgramQuery>()) })?;
    ids.iter().take(attributes.count as usize).map(|id| program_by_id(*id)).collect()
}

fn program_by_id(id: u32) -> Result<OwnedFd> {
    let attributes = ProgramId { id, next: 0, flags: 0 };
    // SAFETY: `attributes` holds no address.
    let fd = check(unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &attributes) })?;
    // SAFETY: the kernel has just made this descriptor (close-on-exec, as all of bpf(2)), so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

// Numbers of linux/bpf.h.
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes the rest as zero.
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The beginning of `union bpf_attr` for BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[repr(C)]
struct ProgramAttach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

/// The beginning of `union bpf_attr` for BPF_PROG_QUERY.
#[repr(C)]
struct ProgramQuery {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// The beginning of `union bpf_attr` for BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
struct ProgramId {
    id: u32,
    next: u32,
    flags: u32,
}

/// The bare call.
///
/// # Safety
///
/// `attributes` must be the beginning of `union bpf_attr` for `command`, and addresses in it must be valid for the
/// call.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> libc::c_long {
    // SAFETY: the caller vouches for the contents; the length is the structure's own, and it has no padding.
    unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) }
}
