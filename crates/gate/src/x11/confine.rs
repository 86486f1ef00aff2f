//! The sandbox of a gate: of everything on the machine it can reach one server's socket, and what it holds already.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use lazaret_base::{Context, Result, error};
use lazaret_sys::process::{namespace, unshare, with_file_ids};
use rustix::fs::{Gid, Mode, OFlags, Uid, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};
use rustix::process::{DumpableBehavior, Resource, Rlimit, chroot, getegid, geteuid, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::calls;

/// Who a gate that root has begun is from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What a gate sees of the machine, and what it needs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The directory of the server's socket. A server that starts again is found; what else is in it, too.
    Directory,
    /// The socket and nothing else, where others in its directory are more than it. A gate that sees so little can
    /// listen under names of its own, and have more descriptors.
    Socket,
}

/// What a gate may use up, beside descriptors.
const LIMITS: &[(Resource, u64)] = &[
    (Resource::Core, 0),
    (Resource::Fsize, 0),
    (Resource::Nproc, 0),
    (Resource::Memlock, 0),
    // Of which a gate without connections uses a hundredth.
    (Resource::As, 1 << 30),
];

/// What of the sandbox could be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// The server's socket, as it is named from now on.
    pub socket: PathBuf,
    /// The process sees a file system of one socket, and no network. Without, it can still connect to other sockets of
    /// the session, which Landlock does not prevent.
    pub alone: bool,
    /// Landlock is in force: no file can be opened or made.
    pub landlock: bool,
    /// How many descriptors the process may have.
    pub descriptors: u64,
}

/// What a socket is called where nothing else is.
const ALONE: &str = "server";

/// Gives up everything that a gate does not need, for ever. The process must have one thread.
///
/// `socket` is the server's. With an `identity`, the process is root's until then; root needs no user namespace, which
/// not every kernel lets others make.
///
/// # Errors
///
/// Of whatever every kernel has. Namespaces and Landlock may be missing; the result says so.
pub fn confine(socket: &Path, sight: Sight, identity: Option<Identity>) -> Result<Confinement> {
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(error(format!("`{}` is not a socket's name", socket.display())));
    };
    let alone = match identity {
        Some(identity) => {
            leave_as_root(dir, name, sight, identity).context("leaving the file system and the network")?;
            become_somebody(identity)?;
            true
        }
        None => leave(dir, name, sight).is_ok(),
    };
    let socket = match (alone, sight) {
        (true, Sight::Directory) => Path::new("/").join(name),
        (true, Sight::Socket) => Path::new("/").join(ALONE),
        (false, _) => socket.to_owned(),
    };
    set_no_new_privs(true).context("setting no_new_privs")?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .context("dropping the capabilities")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("becoming undumpable")?;
    let landlock = deny_files()?;
    for &(resource, most) in LIMITS {
        limit(resource, most)?;
    }
    let (descriptors, more) = match sight {
        Sight::Directory => (limit(Resource::Nofile, 1024)?, &[][..]),
        Sight::Socket => (limit(Resource::Nofile, 8192)?, calls::LISTENING),
    };
    calls::keep_only_ours(more)?;
    Ok(Confinement { socket, alone, landlock, descriptors })
}

/// Limits what may be used up, for ever; where less is allowed already, to that.
fn limit(resource: Resource, most: u64) -> Result<u64> {
    let most = rustix::process::getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
        .with_context(|| format!("limiting {resource:?}"))?;
    Ok(most)
}

/// Goes where there is nothing but the directory of the socket: in namespaces of our own, as the same user.
fn leave(dir: &Path, name: &OsStr, sight: Sight) -> Result<(), Errno> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(namespace::USER | namespace::MOUNT | namespace::NET | namespace::IPC)?;
    let write = |file: &str, text: String| std::fs::write(file, text).map_err(|_| Errno::PERM);
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    enter(dir, sight, || path_only(&dir.join(name)))
}

/// The same by root's own power.
fn leave_as_root(dir: &Path, name: &OsStr, sight: Sight, Identity { uid, gid }: Identity) -> Result<(), Errno> {
    unshare(namespace::MOUNT | namespace::NET | namespace::IPC)?;
    // The name is of the session's making: root does not go where its user may not.
    enter(dir, sight, || with_file_ids(uid, gid, || path_only(&dir.join(name))))
}

fn path_only(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Makes the directory, or one that has nothing but the socket, the root of what this process sees.
fn enter(dir: &Path, sight: Sight, socket: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<(), Errno> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    match sight {
        // The directory itself becomes a mount point, and then the root.
        Sight::Directory => mount_bind(dir, dir)?,
        Sight::Socket => {
            // Held before it is covered.
            let socket = socket()?;
            mount("lazaret", dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"size=4k,nr_inodes=4,mode=0555")?;
            let alone = dir.join(ALONE);
            drop(open(&alone, OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o444))?);
            mount_bind(format!("/proc/self/fd/{}", socket.as_raw_fd()), &alone)?;
        }
    }
    // Best effort: where the mount has flags that we may not take away, Landlock is what forbids to write.
    let _ = mount_remount(dir, MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, "");
    chroot(dir)?;
    rustix::process::chdir("/")
}

/// Gives root's ids up; with them go root's capabilities (capabilities(7)).
fn become_somebody(Identity { uid, gid }: Identity) -> Result<()> {
    let becoming = || format!("becoming user {uid} and group {gid}");
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[]).with_context(becoming)?;
    set_thread_res_gid(gid, gid, gid).with_context(becoming)?;
    set_thread_res_uid(uid, uid, uid).with_context(becoming)
}

/// Landlock without a single rule: no file, no TCP, no signal to and no abstract socket of anybody else.
fn deny_files() -> Result<bool> {
    let restrict = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .handle_access(AccessNet::from_all(ABI::V5))?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .restrict_self()
    };
    let status = restrict().map_err(|e| error(e.to_string()))?;
    Ok(status.ruleset != landlock::RulesetStatus::NotEnforced)
}
