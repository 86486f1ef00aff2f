//! Capabilities by name (capabilities(7), include/uapi/linux/capability.h).

use std::fmt;
use std::str::FromStr;

use lazaret_base::Error;

use crate::suggest::did_you_mean;
use crate::text::{invalid, quoted};

/// One right of root's: `sys_time`, `CAP_SYS_TIME`; shown in lower case without `cap_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(u8);

/// The kernel's names in the kernel's order: the place in the table is the number.
pub(crate) const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

impl Capability {
    /// Every capability that has a name, by rising number.
    pub fn all() -> impl DoubleEndedIterator<Item = Capability> + ExactSizeIterator {
        (0..NAMES.len() as u8).map(Capability)
    }

    /// The capability of that number; `None` if the number has no name yet.
    pub fn from_number(number: u8) -> Option<Capability> {
        (usize::from(number) < NAMES.len()).then_some(Capability(number))
    }

    /// The kernel's number, which is the bit in capability sets.
    pub fn number(self) -> u8 {
        self.0
    }

    /// The name in lower case, without `cap_`.
    pub fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }
}

impl FromStr for Capability {
    type Err = Error;

    fn from_str(text: &str) -> Result<Capability, Error> {
        let lower = text.to_ascii_lowercase();
        let short = lower.strip_prefix("cap_").unwrap_or(&lower);
        match NAMES.iter().position(|name| *name == short) {
            Some(number) => Ok(Capability(number as u8)),
            None => {
                let hint =
                    did_you_mean(short, NAMES, || "the names are in capabilities(7), for example net_raw".into());
                Err(invalid(format!("unknown capability {}", quoted(text)), hint))
            }
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

serde_as_string!(Capability);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_the_kernels() {
        // Known points of the kernel's header: a name left out or swapped would shift one of them.
        for (name, number) in [
            ("chown", 0),
            ("setpcap", 8),
            ("net_raw", 13),
            ("sys_admin", 21),
            ("mknod", 27),
            ("syslog", 34),
            ("checkpoint_restore", 40),
        ] {
            assert_eq!(name.parse::<Capability>().unwrap().number(), number);
        }
        assert_eq!(Capability::all().len(), 41);
        assert_eq!(Capability::from_number(41), None);
        for capability in Capability::all() {
            let upper = format!("CAP_{}", capability.name().to_uppercase());
            assert_eq!(upper.parse::<Capability>().unwrap(), capability);
            assert_eq!(Capability::from_number(capability.number()), Some(capability));
        }
    }

    #[test]
    fn a_mistyped_capability_is_refused_with_the_one_meant() {
        let e = "cap_sys_tim".parse::<Capability>().unwrap_err();
        assert_eq!(e.to_string(), "unknown capability 'cap_sys_tim'");
        assert_eq!(e.advice(), Some("did you mean 'sys_time'?"));
    }
}
