//! Id maps: which ids of the host a container's ids really are.

use std::os::fd::OwnedFd;
use std::path::Path;

use lazaret_base::{Context, Result};
use lazaret_config::IdRange;
use lazaret_sys::mount::{Change, ID_MAP, set_attributes};
use lazaret_sys::process::{Cloned, clone, exit_now, namespace};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::Pid;

/// Every container gets this many ids: what a distribution's tools take for granted.
pub const COUNT: u32 = 65536;

/// Maps container id 0 and up to the range, for users and groups alike (user_namespaces(7)).
///
/// Written by host root, so no line in `/etc/subuid` is needed.
pub fn write(pid: Pid, range: IdRange) -> Result<()> {
    let line = format!("0 {} {}\n", range.start, range.count);
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
        std::fs::write(&path, &line).with_context(|| format!("writing `{}` to `{path}`", line.trim_end()))?;
    }
    Ok(())
}

/// The user namespace of a process, as a descriptor.
pub fn namespace_of(pid: Pid) -> Result<OwnedFd> {
    let path = format!("/proc/{}/ns/user", pid.as_raw_nonzero());
    open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).with_context(|| format!("opening `{path}`"))
}

/// A user namespace that nobody is in, for an id-mapped mount: lines of `on disk, shown as, count`.
pub fn namespace(users: &str, groups: &str) -> Result<OwnedFd> {
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let child = match clone(namespace::USER, None)? {
        Cloned::Child => {
            // Lives until the parent lets go of its end.
            drop(theirs);
            let _ = rustix::io::read(&ours, &mut [0u8; 1]);
            exit_now(0);
        }
        Cloned::Parent(child) => child,
    };
    drop(ours);
    let made = (|| {
        for (file, lines) in [("uid_map", users), ("gid_map", groups)] {
            let path = format!("/proc/{}/{file}", child.pid.as_raw_nonzero());
            std::fs::write(&path, lines).with_context(|| format!("writing an id map to `{path}`"))?;
        }
        namespace_of(child.pid)
    })();
    drop(theirs);
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&child.pidfd)),
        rustix::process::WaitIdOptions::EXITED,
    );
    made
}

/// Whether the file system below `path` can be shown through an id map: tried, not guessed.
pub fn supported(path: &Path) -> Result<bool> {
    let line = format!("0 {} {COUNT}\n", 1 << 30);
    let user_ns = namespace(&line, &line)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags).with_context(|| format!("opening `{}`", path.display()))?;
    let change = Change { set: ID_MAP, user_ns: Some(std::os::fd::AsFd::as_fd(&user_ns)), ..Change::default() };
    match set_attributes(std::os::fd::AsFd::as_fd(&tree), c"", false, change) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e).context("trying an id-mapped mount"),
    }
}
