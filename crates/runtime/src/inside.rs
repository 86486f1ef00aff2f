//! A process of ours that works on a container's files from inside: whether the container runs or not, its root is the
//! process's root file system, known by a descriptor, and what a link in it means ends there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use lazaret_base::{Context, Kind, Result, error};
use lazaret_sys::mount::{self as attributes, Change, set_attributes};
use lazaret_sys::process::{Child, Cloned, clone, exit_now, join, namespace, unshare};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, openat};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::perform::stage;
use crate::plan::{Bind, Root};

/// The container whose files are meant.
pub enum At<'a> {
    /// One that runs, by a pidfd of its init.
    Running {
        /// Its init.
        init: BorrowedFd<'a>,
        /// Whether it has a user namespace of its own.
        user_ns: bool,
    },
    /// One that is stopped, and is kept so by the caller.
    Stopped {
        /// Its root file system.
        root: &'a Root,
        /// Directories of the host that belong to it, read-only.
        binds: &'a [Bind],
        /// An existing directory that may be mounted over, in a namespace of our own.
        scratch: &'a Path,
    },
}

/// Runs `act` in a child that is inside: with the container's root and one end of a connection, whose other end the
/// caller gets. In a running container it has the ids and powers of its root, in a stopped one those of the caller.
///
/// The child does not end with its parent but sees the end of the connection, and keeps what locks the parent has.
pub fn spawn(at: &At<'_>, act: impl FnOnce(Result<OwnedFd>, UnixStream)) -> Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    match clone(0, None).context("making a process that works inside")? {
        Cloned::Child => {
            drop(ours);
            // Whatever happens, nothing of the parent's is undone here.
            let done = catch_unwind(AssertUnwindSafe(|| act(enter(at), theirs)));
            exit_now(i32::from(done.is_err()))
        }
        Cloned::Parent(child) => Ok((child, ours)),
    }
}

fn enter(at: &At<'_>) -> Result<OwnedFd> {
    // Until its end this process is a copy of a process of the host's: nobody inside may look into it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::umask(Mode::from(0o022));
    match at {
        At::Running { init, user_ns } => {
            let spaces = namespace::MOUNT | if *user_ns { namespace::USER } else { 0 };
            join(*init, spaces).map_err(|errno| match errno {
                Errno::SRCH => error("its init has ended").kind(Kind::Stopped),
                e => lazaret_base::Error::from(e).context("entering the container"),
            })?;
            set_thread_groups(&[])?;
            set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
            set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
            set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
            Ok(openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
        }
        At::Stopped { root, binds, scratch } => {
            unshare(namespace::MOUNT)?;
            set_attributes(CWD, c"/", true, Change { propagation: attributes::PRIVATE, ..Change::default() })?;
            let tree = stage::plain(root, scratch).context("mounting its root")?;
            let set = attributes::NO_DEV | attributes::NO_SUID | attributes::NO_EXEC;
            set_attributes(tree.as_fd(), c"", false, Change { set, ..Change::default() })?;
            for bind in *binds {
                stage::show_plainly(tree.as_fd(), bind, set)?;
            }
            Ok(tree)
        }
    }
}
