//! The sandbox of a gate: of everything on the machine it can reach one X server's socket, and what it holds already.

use std::path::{Path, PathBuf};

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use lazaret_base::{Context, Result, error};
use lazaret_sys::process::{namespace, unshare};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
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

/// What a gate may use up.
const LIMITS: &[(Resource, u64)] = &[
    (Resource::Core, 0),
    (Resource::Fsize, 0),
    (Resource::Nproc, 0),
    (Resource::Memlock, 0),
    (Resource::Nofile, 1024),
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
}

/// Gives up everything that a gate does not need, for ever. The process must have one thread.
///
/// `socket` is the server's; it is the directory that is kept, so that a server that starts again is found. With an
/// `identity`, the process is root's until then; root needs no user namespace, which not every kernel lets others make.
///
/// # Errors
///
/// Of whatever every kernel has. Namespaces and Landlock may be missing; the result says so.
pub fn confine(socket: &Path, identity: Option<Identity>) -> Result<Confinement> {
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(error(format!("`{}` is not a socket's name", socket.display())));
    };
    let alone = match identity {
        Some(identity) => {
            leave_as_root(dir).context("leaving the file system and the network")?;
            become_somebody(identity)?;
            true
        }
        None => leave(dir).is_ok(),
    };
    let socket = if alone { Path::new("/").join(name) } else { socket.to_owned() };
    set_no_new_privs(true).context("setting no_new_privs")?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .context("dropping the capabilities")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("becoming undumpable")?;
    let landlock = deny_files()?;
    for &(resource, most) in LIMITS {
        let most = rustix::process::getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
            .with_context(|| format!("limiting {resource:?}"))?;
    }
    calls::keep_only_ours()?;
    Ok(Confinement { socket, alone, landlock })
}

/// Goes where there is nothing but the directory of the socket: in namespaces of our own, as the same user.
fn leave(dir: &Path) -> Result<(), Errno> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(namespace::USER | namespace::MOUNT | namespace::NET | namespace::IPC)?;
    let write = |file: &str, text: String| std::fs::write(file, text).map_err(|_| Errno::PERM);
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    enter(dir)
}

/// The same by root's own power.
fn leave_as_root(dir: &Path) -> Result<(), Errno> {
    unshare(namespace::MOUNT | namespace::NET | namespace::IPC)?;
    enter(dir)
}

/// Makes the directory the root of what this process sees.
fn enter(dir: &Path) -> Result<(), Errno> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    // The directory itself becomes a mount point, and then the root.
    mount_bind(dir, dir)?;
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
