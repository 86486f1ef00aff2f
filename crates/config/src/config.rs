//! What a user asks of one container.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use lazaret_base::Error;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use toml_edit::Value;

use crate::capability::Capability;
use crate::cpu::{CpuSet, Cpus};
use crate::desktop::Desktop;
use crate::device::Device;
use crate::io::IoLimit;
use crate::name::Hostname;
use crate::network::Network;
use crate::rlimit::{Resource, Rlimit};
use crate::share::Share;
use crate::signal::Signal;
use crate::size::Size;
use crate::span::Span;
use crate::suggest::did_you_mean;
use crate::table::{self, Written};
use crate::text::{invalid, quoted};

/// One container as its `container.toml` describes it; [`keys`](crate::keys) documents each field.
///
/// Limits that are `None` do not limit. It serializes as the user would write it, defaults included.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What the root file system starts from: `host`, the name of an image, or the path of an archive or a directory.
    pub image: String,
    /// The host name inside; the container's name if `None`.
    pub hostname: Option<Hostname>,
    /// A line for the reader.
    pub description: String,
    /// What runs as process 1.
    pub init: Init,
    /// No user namespace: root inside is root outside.
    pub privileged: bool,
    /// Containers may be run inside.
    pub nesting: bool,
    /// Set-user-ID programs gain nothing (PR_SET_NO_NEW_PRIVS).
    pub no_new_privs: bool,
    /// Memory, not counting swap.
    pub memory: Option<Size>,
    /// Swap; zero for none.
    pub swap: Option<Size>,
    /// Processor time.
    pub cpus: Option<Cpus>,
    /// Share of processor time under contention, 1 to 10000; the kernel's own default is 100.
    pub cpu_weight: Option<u16>,
    /// Processors that may be used.
    pub cpuset: Option<CpuSet>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Rates of block devices, one entry per device.
    pub io: Vec<IoLimit>,
    /// Share of device time under contention, 1 to 10000; the kernel's own default is 100.
    pub io_weight: Option<u16>,
    /// Resource limits of process 1, inherited by all.
    pub rlimits: BTreeMap<Resource, Rlimit>,
    /// Environment of what is started inside.
    pub env: BTreeMap<String, String>,
    /// Variables taken from the caller's environment; an entry of `env` wins.
    pub env_pass: Vec<String>,
    /// Capabilities taken away beyond the default set.
    pub cap_drop: Vec<Capability>,
    /// Capabilities kept although the default set drops them.
    pub cap_add: Vec<Capability>,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// System calls allowed beyond the filter; only their shape has been checked.
    pub seccomp_allow: Vec<String>,
    /// System calls denied beyond the filter; only their shape has been checked.
    pub seccomp_deny: Vec<String>,
    /// Offsets of clocks.
    pub time: ClockOffsets,
    /// AppArmor profile, or `unconfined`; chosen by the runtime if `None`.
    pub apparmor: Option<String>,
    /// SELinux context, or `unconfined`; chosen by the runtime if `None`.
    pub selinux: Option<String>,
    /// How long a stop waits before it kills; never negative.
    pub stop_timeout: Span,
    /// What asks process 1 to stop; chosen by the kind of init if `None`.
    pub stop_signal: Option<Signal>,
    /// How much of the console's output is kept.
    pub console_log: Size,
    /// What is written inside lives in memory and ends with the run.
    pub volatile: bool,
    /// How many snapshots taken before starts are kept; zero for none.
    pub auto_snapshots: u32,
    /// Files of the host that it sees.
    pub shares: Vec<Share>,
    /// Devices of the host that it may use.
    pub devices: Vec<Device>,
    /// The user inside who has what belongs to the person outside; chosen by the image's users if `None`.
    pub person: Option<u32>,
    /// The connection to the network, and its policy.
    pub network: Network,
    /// What it has of the person's graphical session.
    pub desktop: Desktop,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            image: "host".into(),
            hostname: None,
            description: String::new(),
            init: Init::Auto,
            privileged: false,
            nesting: false,
            no_new_privs: false,
            memory: None,
            swap: None,
            cpus: None,
            cpu_weight: None,
            cpuset: None,
            pids: Some(8192),
            io: Vec::new(),
            io_weight: None,
            rlimits: BTreeMap::new(),
            env: BTreeMap::new(),
            env_pass: Vec::new(),
            cap_drop: Vec::new(),
            cap_add: Vec::new(),
            seccomp: Seccomp::Default,
            seccomp_allow: Vec::new(),
            seccomp_deny: Vec::new(),
            time: ClockOffsets::default(),
            apparmor: None,
            selinux: None,
            stop_timeout: Span::from_seconds(30),
            stop_signal: None,
            console_log: Size::mebibytes(1),
            volatile: false,
            auto_snapshots: 0,
            shares: Vec::new(),
            devices: Vec::new(),
            person: None,
            network: Network::default(),
            desktop: Desktop::default(),
        }
    }
}

impl Config {
    /// The value of a key as a user would write it on the command line; `None` if there is none.
    ///
    /// Lists are joined by commas, tables are written as TOML. Fails on a key that does not exist.
    pub fn get(&self, name: &str) -> Result<Option<String>, Error> {
        let (key, entry) = table::find(name)?;
        Ok(key.get(self, entry))
    }

    /// A `container.toml` that says the same: all that differs from the default, in the order of the table.
    pub fn to_toml(&self) -> String {
        let default = Config::default();
        let mut text = String::new();
        let mut section = "";
        for key in table::keys() {
            let (wanted, leaf) = match (key.entries, key.name.split_once('.')) {
                (Some(_), _) => (key.name, ""),
                (None, Some((wanted, leaf))) => (wanted, leaf),
                (None, None) => ("", key.name),
            };
            let lines = match (key.write)(self) {
                Written::One(value) if Some(value.to_string()) != (key.write)(&default).text() => {
                    vec![(leaf.to_string(), value)]
                }
                Written::Entries(entries) => entries,
                Written::One(_) | Written::Nothing => continue,
            };
            if section != wanted && !lines.is_empty() {
                let gap = if text.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}[{wanted}]\n"));
                section = wanted;
            }
            for (leaf, value) in lines {
                text.push_str(&format!("{} = {value}\n", toml_edit::Key::new(leaf)));
            }
        }
        text
    }
}

/// The keys whose values differ: those that can change on a running container, and those that need a restart.
pub fn live_changes(old: &Config, new: &Config) -> (Vec<&'static str>, Vec<&'static str>) {
    let changed = table::keys().iter().filter(|key| (key.write)(old).text() != (key.write)(new).text());
    let (live, restart): (Vec<_>, Vec<_>) = changed.partition(|key| key.live);
    let names = |keys: Vec<&table::Key>| keys.iter().map(|key| key.name).collect();
    (names(live), names(restart))
}

/// What runs as process 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// The image's own init if it has one, else ours.
    #[default]
    Auto,
    /// Ours: reaps, forwards signals, starts nothing.
    Lazaret,
    /// This program with these arguments; never empty.
    Command(Vec<String>),
}

/// A single word: `auto`, `lazaret` or the absolute path of a program without arguments.
impl FromStr for Init {
    type Err = Error;

    fn from_str(text: &str) -> Result<Init, Error> {
        match text {
            "auto" => Ok(Init::Auto),
            "lazaret" => Ok(Init::Lazaret),
            // A path with a space is possible, a command line in one string is likelier.
            path if path.starts_with('/') && !path.contains([' ', '\0']) => Ok(Init::Command(vec![path.into()])),
            path if path.starts_with('/') => Err(invalid(
                format!("{} has arguments", quoted(path)),
                "write each word of the command as one string: [\"/sbin/init\", \"argument\"]",
            )),
            word => {
                let hint = did_you_mean(word, table::INIT_WORDS, || {
                    "write \"auto\", \"lazaret\" or the path of a program, for example \"/sbin/init\"".into()
                });
                Err(invalid(format!("unknown init {}", quoted(word)), hint))
            }
        }
    }
}

/// The system call filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// What system containers need.
    #[default]
    Default,
    /// None.
    Off,
}

impl FromStr for Seccomp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Seccomp, Error> {
        match text {
            "default" => Ok(Seccomp::Default),
            "off" => Ok(Seccomp::Off),
            _ => {
                let hint = did_you_mean(text, table::SECCOMP_WORDS, || "write \"default\" or \"off\"".into());
                Err(invalid(format!("unknown filter {}", quoted(text)), hint))
            }
        }
    }
}

impl fmt::Display for Seccomp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Seccomp::Default => "default",
            Seccomp::Off => "off",
        })
    }
}

/// What is added to the host's clocks (time_namespaces(7)). There is a time namespace when either is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockOffsets {
    /// Added to CLOCK_MONOTONIC.
    pub monotonic: Option<Span>,
    /// Added to CLOCK_BOOTTIME, which uptime(1) shows.
    pub boottime: Option<Span>,
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut section = "";
        for key in table::keys() {
            match key.name.split_once('.') {
                None => map.serialize_entry(key.name, &Shown(&(key.write)(self)))?,
                // The keys of one section stand together in the table.
                Some((name, _)) if name == section => {}
                Some((name, _)) => {
                    section = name;
                    map.serialize_entry(name, &Section { name, config: self })?;
                }
            }
        }
        map.end()
    }
}

/// The keys of the table that begin with a name and a dot.
struct Section<'a> {
    name: &'static str,
    config: &'a Config,
}

impl Serialize for Section<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for key in table::keys() {
            if let Some((_, leaf)) = key.name.split_once('.').filter(|(name, _)| *name == self.name) {
                map.serialize_entry(leaf, &Shown(&(key.write)(self.config)))?;
            }
        }
        map.end()
    }
}

struct Shown<'a>(&'a Written);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Written::Nothing => serializer.serialize_none(),
            Written::One(value) => ShownValue(value).serialize(serializer),
            Written::Entries(entries) => {
                serializer.collect_map(entries.iter().map(|(name, value)| (name, ShownValue(value))))
            }
        }
    }
}

struct ShownValue<'a>(&'a Value);

impl Serialize for ShownValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::String(text) => serializer.serialize_str(text.value()),
            Value::Integer(number) => serializer.serialize_i64(*number.value()),
            Value::Float(number) => serializer.serialize_f64(*number.value()),
            Value::Boolean(flag) => serializer.serialize_bool(*flag.value()),
            Value::Array(list) => {
                let mut seq = serializer.serialize_seq(Some(list.len()))?;
                list.iter().try_for_each(|value| seq.serialize_element(&ShownValue(value)))?;
                seq.end()
            }
            // No key writes dates or tables; their TOML text would be right as well.
            other => serializer.collect_str(other),
        }
    }
}
