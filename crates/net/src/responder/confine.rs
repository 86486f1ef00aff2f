//! Giving up every right: what reads the packets of containers has nothing to lose but its sockets.

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use lazaret_base::{Context, Result, error};
use rustix::process::{DumpableBehavior, Resource, Rlimit, chroot, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use rustix::{fs::Gid, fs::Uid, io::Errno};

/// Who the responder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// A user id that owns nothing.
    pub uid: u32,
    /// A group id that owns nothing.
    pub gid: u32,
}

/// What a responder may use up, with room to spare: hostile packets make it neither big nor many.
const LIMITS: &[(Resource, u64)] = &[
    (Resource::Core, 0),
    (Resource::Fsize, 0),
    (Resource::Nproc, 0),
    (Resource::Nofile, 1024),
    (Resource::Memlock, 0),
    (Resource::As, 512 << 20),
];

/// Makes the calling process nobody: no groups, no capabilities, no files, no children, for ever. The process must have
/// one thread and be root (or have `CAP_SETUID`, `CAP_SETGID`, `CAP_SETPCAP` and `CAP_SYS_CHROOT`).
///
/// Without Landlock in the kernel the root directory alone is taken away.
///
/// # Errors
///
/// Any step's: a responder that still has a right does not start.
pub fn confine(identity: &Identity) -> Result<()> {
    // Users, groups and capabilities are the thread's: another one would keep them.
    let threads = std::fs::read_dir("/proc/self/task").context("counting the threads")?.count();
    if threads != 1 {
        return Err(error(format!("there are {threads} threads, and only one could be confined")));
    }
    // Before the user changes: an empty directory that nothing can be made in, not even by root.
    chroot("/proc/self/fdinfo").context("leaving the file system")?;
    rustix::process::chdir("/").context("leaving the file system")?;
    drop_bounding_set().context("dropping the bounding set")?;
    set_thread_groups(&[]).context("dropping the groups")?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    set_thread_res_gid(gid, gid, gid).with_context(|| format!("becoming group {}", identity.gid))?;
    set_thread_res_uid(uid, uid, uid).with_context(|| format!("becoming user {}", identity.uid))?;
    clear_ambient_capability_set().context("dropping the ambient capabilities")?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .context("dropping the capabilities")?;
    set_no_new_privs(true).context("setting no_new_privs")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("becoming undumpable")?;
    deny_files().context("denying all files")?;
    for &(resource, most) in LIMITS {
        let most = rustix::process::getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
            .with_context(|| format!("limiting {resource:?}"))?;
    }
    Ok(())
}

fn drop_bounding_set() -> Result<(), Errno> {
    for bit in 0..64 {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // The last one was the last that this kernel knows.
            Err(Errno::INVAL) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Landlock without a single rule: no file, no TCP port to listen on, no signal and no abstract socket outside.
fn deny_files() -> Result<()> {
    let restrict = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .handle_access(AccessNet::BindTcp)?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .restrict_self()
    };
    let status = restrict().map_err(|e| error(e.to_string()))?;
    match status.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => Ok(()),
    }
}
