//! mount_setattr(2): the part of the mount API that rustix has not yet.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io;

use crate::check;

/// `MOUNT_ATTR_RDONLY` of mount_setattr(2).
pub const READ_ONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`.
pub const NO_SUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`.
pub const NO_DEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`.
pub const NO_EXEC: u64 = 0x8;
/// `MOUNT_ATTR_IDMAP`: show the mount through the id map of a user namespace.
pub const ID_MAP: u64 = 0x0010_0000;
/// `MS_PRIVATE` as propagation type.
pub const PRIVATE: u64 = libc::MS_PRIVATE;
/// `MS_SLAVE` as propagation type.
pub const SLAVE: u64 = libc::MS_SLAVE;
/// `MS_SHARED` as propagation type.
pub const SHARED: u64 = libc::MS_SHARED;

/// What mount_setattr(2) is to change. All zero changes nothing.
#[derive(Clone, Copy, Default)]
pub struct Change<'a> {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// Propagation type, or 0.
    pub propagation: u64,
    /// The user namespace whose map to use with [`ID_MAP`].
    pub user_ns: Option<BorrowedFd<'a>>,
}

/// Changes the mount `path` names below `dir`; with `recursive`, the whole tree, all or nothing.
///
/// `path` may be empty: then the mount that `dir` itself refers to. Symlinks are not followed.
/// Errors as in mount_setattr(2): `EINVAL` where the file system can't be id-mapped.
pub fn set_attributes(dir: BorrowedFd<'_>, path: &CStr, recursive: bool, change: Change<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: change.user_ns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let mut flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `path` ends in NUL and `attributes` lives across the call, its size given beside it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags as libc::c_uint,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}
