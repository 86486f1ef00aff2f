//! What netd has made, written down before it is made: whoever comes after finds it here.
//!
//! ```text
//! STATE/network/network.json     addresses of the bridge; the salt of what is derived from names
//! STATE/network/leases/NAME      addresses of a container
//! RUN/netd/base.json             the bridge, the tables, and the host's settings that were changed
//! RUN/netd/attached/NAME         a connected container
//! RUN/netd/faults.json           partitions
//! ```

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Result, error, read_bounded};
use lazaret_config::{Network as Settings, Prefix};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::lease::Lease;
use crate::link::Lent;
use crate::sysctl::Previous;
use crate::wire::Impairment;

/// No file of ours is longer.
const LONGEST: usize = 1 << 20;

/// Where an installation's netd keeps its things, and what it is called.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory of what ends with the machine's run; the socket is in it.
    pub run: PathBuf,
    /// The directory of what is kept.
    pub state: PathBuf,
    /// Tells this installation from others; empty for the system's.
    pub tag: String,
}

impl Place {
    /// The bridge.
    pub fn bridge(&self) -> String {
        match self.tag.as_str() {
            "" => "lazaret0".into(),
            tag => format!("lzb-{tag}"),
        }
    }

    /// The nftables tables, one of them for each family.
    pub fn table(&self) -> String {
        match self.tag.as_str() {
            "" => "lazaret".into(),
            tag => format!("lazaret_{tag}"),
        }
    }

    /// Where the leases are.
    pub fn leases(&self) -> PathBuf {
        self.state.join("leases")
    }

    pub(super) fn numbers(&self) -> PathBuf {
        self.state.join("network.json")
    }

    pub(super) fn base(&self) -> PathBuf {
        self.run.join("base.json")
    }

    pub(super) fn faults(&self) -> PathBuf {
        self.run.join("faults.json")
    }

    fn attached(&self) -> PathBuf {
        self.run.join("attached")
    }

    pub(super) fn attachment(&self, name: &str) -> PathBuf {
        self.attached().join(name)
    }

    /// Makes the directories.
    pub(super) fn prepare(&self) -> Result<()> {
        for dir in [self.attached(), self.leases()] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.with_context(|| format!("making `{}`", dir.display()))?;
        }
        Ok(())
    }

    /// What the files say of connected containers. One that makes no sense is taken away: its links go as strangers.
    pub(super) fn attachments(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(self.attached()).context("reading what is attached")? {
            let path = entry?.path();
            match read::<Record>(&path) {
                Ok(Some(record)) => records.push(record),
                _ => forget(&path),
            }
        }
        Ok(records)
    }
}

/// The addresses of the bridge, chosen once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// The IPv4 subnet.
    pub subnet: Prefix,
    /// Whether the user has set it.
    pub subnet_set: bool,
    /// The IPv6 prefix.
    pub prefix: Prefix,
    /// Makes what is derived from names differ from any other machine's.
    pub salt: String,
}

/// What there is beside the containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Base {
    /// The boot that this is of: after another, nothing of it is there.
    pub boot: String,
    /// Settings of the host that were changed, in that order.
    pub changed: Vec<Previous>,
    /// Whether IPv6 was not forwarded before.
    pub forwarding6: bool,
    /// The interfaces that were there when forwarding was switched on.
    #[serde(default)]
    pub there: Vec<String>,
}

/// A connected container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its name.
    pub name: String,
    /// What holds for it.
    pub settings: Settings,
    /// Whether its lease ends with the connection.
    pub ephemeral: bool,
    /// Its keeper.
    pub keeper: i32,
    /// When its keeper was made, in clock ticks since boot: with the number it names one process for ever.
    pub keeper_started: u64,
    /// Its addresses, on our own bridge.
    pub lease: Option<Lease>,
    /// The interface on the host, if there is one.
    pub link: Option<String>,
    /// The host's interface that it was lent.
    pub lent: Option<Lent>,
    /// The largest packet of its interface.
    pub mtu: Option<u32>,
    /// How its link is made worse.
    #[serde(default)]
    pub impaired: Vec<Impaired>,
}

/// One way in which a link is made worse.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Impaired {
    /// Only what goes to this container.
    pub to: Option<String>,
    /// How.
    pub impairment: Impairment,
}

/// Reads a file of ours; `None` if it is not there.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let reading = || format!("reading `{}`", path.display());
    let file = match fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(reading)?,
    };
    let bytes = read_bounded(file, LONGEST).with_context(reading)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|e| error(e.to_string())).with_context(reading)
}

/// Writes a file whole. Not forced to disk: what is of this run needs none, and the rest can be chosen again.
pub(super) fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).map_err(|e| error(e.to_string()))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(path.file_name().unwrap_or_default());
    // Beside the directory of many files, where nobody takes it for one of them.
    let temporary = path.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join(hidden);
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("writing `{}`", path.display()))
}

/// Removes a file of ours, which may not be there.
pub(super) fn forget(path: &Path) {
    let _ = fs::remove_file(path);
}

/// This boot's own id.
pub(super) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// When a process was made, in clock ticks since boot: field 22 of proc_pid_stat(5).
pub(super) fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses and spaces included.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// The process that had this number at that time, if it still runs.
pub(super) fn open_process(pid: i32, at: u64) -> Option<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Looked at after opening: if the number has the right age now, the descriptor was opened on it.
    (started(pid) == Some(at)).then_some(pidfd)
}
