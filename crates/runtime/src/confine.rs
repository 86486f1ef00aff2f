//! What holds a container in: capabilities, masked paths, labels. Tables; the table is the documentation.

use crate::devices::{DEFAULT_RULES, NESTING_RULES, Rule};
use lazaret_config::{Capability, Config};
use serde::{Deserialize, Serialize};

/// Capabilities that no system container needs, each with the reason.
///
/// In a container with a user namespace of its own most of them are powerless anyway; they are dropped so
/// that a kernel mistake in one of these corners is out of reach, and so that programs which check for the
/// capability (systemd's `ConditionCapability=`) know that they need not try.
pub const DROPPED: &[(&str, &str)] = &[
    ("sys_module", "loads code into the host's kernel"),
    ("sys_rawio", "talks to hardware: ports, /dev/mem, SCSI commands"),
    ("sys_time", "sets the clock, which all share; the time key gives a container an offset of its own"),
    ("mac_admin", "changes the policy of the host's security module"),
    ("mac_override", "ignores the policy of the host's security module"),
    ("syslog", "reads and clears the host's kernel log"),
    ("wake_alarm", "wakes the host from sleep"),
    ("block_suspend", "keeps the host from sleeping"),
    ("audit_read", "reads the host's audit log"),
    ("bpf", "loads programs into the host's kernel"),
    ("perfmon", "watches the host's processors"),
    ("checkpoint_restore", "rewrites what the kernel knows of processes"),
    ("sys_pacct", "writes the host's process accounting"),
];

/// Files of proc that are covered by a null device, and the reason. Directories by an empty one.
pub const MASKED: &[(&str, &str)] = &[
    ("proc/kcore", "the host's memory"),
    ("proc/keys", "keys of other users of the host"),
    ("proc/timer_list", "what the host's processes wait for"),
    ("proc/sched_debug", "the host's processes by name"),
    ("proc/latency_stats", "the host's processes by name"),
    ("proc/kallsyms", "where the host's kernel is in memory"),
    ("proc/kmsg", "the host's kernel log"),
    ("proc/vmallocinfo", "where the host's kernel is in memory"),
    ("proc/kpagecount", "the host's memory"),
    ("proc/kpageflags", "the host's memory"),
    ("proc/acpi", "the host's power management"),
    ("proc/scsi", "the host's disks"),
    ("proc/asound", "the host's sound cards"),
];

/// Parts of proc that stay readable but can't be written, and the reason.
pub const READ_ONLY: &[(&str, &str)] = &[
    ("proc/sys", "settings of the host's kernel, core_pattern among them"),
    ("proc/sysrq-trigger", "reboots or crashes the host"),
    ("proc/irq", "which processor serves which device"),
    ("proc/bus", "registers of devices"),
    ("proc/fs", "settings of mounted file systems"),
];

/// Part of a read-only path that a container's root may write, since the kernel keeps it per namespace.
pub const WRITABLE: &[(&str, &str)] = &[("proc/sys/net", "belongs to the container's network namespace")];

/// A capability set, bit N for capability N (capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// The bounding set that `config` asks for: all, but those in [`DROPPED`] and `cap_drop`, and with `cap_add`.
    pub fn of(config: &Config) -> Capabilities {
        let by_default = Capability::all().filter(|c| !DROPPED.iter().any(|(name, _)| *name == c.name()));
        let all = by_default.chain(config.cap_add.iter().copied());
        let kept = all.filter(|c| !config.cap_drop.contains(c));
        Capabilities(kept.fold(0, |set, capability| set | 1 << capability.number()))
    }

    /// The numbers that are not in the set, up to `last`, the kernel's highest.
    pub fn missing(self, last: u32) -> impl Iterator<Item = u32> {
        (0..=last).filter(move |n| self.0 & (1 << n) == 0)
    }
}

/// The highest capability that the running kernel knows; the table's highest where it does not say.
pub fn last_capability() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    text.trim().parse().unwrap_or(Capability::all().len() as u32 - 1)
}

/// What the device filter lets a container open.
pub fn device_rules(nesting: bool) -> Vec<Rule> {
    let more: &[Rule] = if nesting { NESTING_RULES } else { &[] };
    [DEFAULT_RULES, more].concat()
}
