//! What this host can do, probed once: features, not versions.

use std::path::Path;

use lazaret_base::Result;
use serde::Serialize;

use crate::cgroup::Hierarchies;

/// Facts a plan depends on.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Where the cgroup trees are.
    pub cgroups: Hierarchies,
    /// Whether systemd is PID 1, so that cgroups must be asked of it.
    pub systemd: bool,
    /// The security module that labels processes, if one is on.
    pub label: Label,
    /// Whether `/dev/fuse` is there to be shown.
    pub fuse: bool,
    /// Whether `/dev/net/tun` is there to be shown.
    pub tun: bool,
}

/// The security module whose labels a process can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// None that labels processes.
    None,
    /// AppArmor: profiles by name.
    AppArmor,
    /// SELinux: contexts.
    Selinux,
}

impl Host {
    /// Looks around. Reads a handful of files; costs well below a millisecond.
    pub fn probe() -> Result<Host> {
        Ok(Host {
            cgroups: Hierarchies::probe()?,
            systemd: crate::systemd::present(),
            label: label(),
            fuse: Path::new("/dev/fuse").exists(),
            tun: Path::new("/dev/net/tun").exists(),
        })
    }
}

/// AppArmor and SELinux each show themselves without securityfs, which a small host may not mount.
fn label() -> Label {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if enabled.starts_with('Y') {
        Label::AppArmor
    } else if Path::new("/sys/fs/selinux/enforce").exists() {
        Label::Selinux
    } else {
        Label::None
    }
}
