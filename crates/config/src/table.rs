//! The one table of keys: what the parser reads, the editor writes, and the documentation says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lazaret_base::Error;
use toml_edit::{Array, InlineTable, Value};

use crate::capability;
use crate::config::{Config, Init};
use crate::desktop::{CLIPBOARD_WORDS, DISPLAY_WORDS, OPEN_URLS_WORDS, SOUND_WORDS};
use crate::diagnostic::Fault;
use crate::given::{Given, Read, whole};
use crate::network::MODE_WORDS;
use crate::rlimit::{self, Resource};
use crate::signal;
use crate::size::Size;
use crate::span::Span;
use crate::suggest::nearest;
use crate::text::{invalid, printable, quoted};

/// One key of `container.toml`.
#[derive(Debug)]
pub struct Key {
    /// As it is written, with a dot for keys of a table: `memory`, `env`, `time.monotonic`.
    pub name: &'static str,
    /// The value it takes, in words that continue "takes".
    pub shape: &'static str,
    /// What holds if it is not written, in words.
    pub default: &'static str,
    /// Whether a running container follows a change.
    pub live: bool,
    /// What it is for, one sentence.
    pub doc: &'static str,
    /// One line as it stands in a file (in its table, where it is of one).
    pub example: &'static str,
    /// How the command line writes a value, or an entry's value.
    pub form: Form,
    /// Words that a value may be or contain, for completion.
    pub words: &'static [&'static str],
    /// For a key that is a table with names of the user's choice: those that are known, for completion.
    pub entries: Option<&'static [&'static str]>,
    pub(crate) read: fn(&mut Config, &Given<'_>) -> Read,
    pub(crate) write: fn(&Config) -> Written,
}

/// How a value is written on the command line, where quotes are a nuisance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `true`, `false`, `yes`, `no`, `on`, `off`.
    Flag,
    /// A number or a word.
    Number,
    /// Text in a form of its own; TOML quotes are taken off.
    Text,
    /// Any text, taken as it is.
    Free,
    /// `a,b`, or a TOML list.
    List,
    /// A word, or a TOML list.
    Command,
}

/// What a configuration says for a key.
pub(crate) enum Written {
    Nothing,
    One(Value),
    Entries(Vec<(String, Value)>),
}

impl Written {
    /// The same as TOML, for comparison; `None` for nothing.
    pub fn text(&self) -> Option<String> {
        match self {
            Written::Nothing => None,
            Written::One(value) => Some(value.to_string()),
            Written::Entries(entries) => Some(InlineTable::from_iter(entries.iter().cloned()).to_string()),
        }
    }
}

/// Every key, in the order of documentation and of written files; those of tables come last.
pub fn keys() -> &'static [Key] {
    TABLE
}

/// The key of a dotted name, and the entry's name where the key is a table (`env.LANG`), else an empty one.
///
/// Fails on a name that is not in the table, with the name that was probably meant.
pub fn find(name: &str) -> Result<(&'static Key, &str), Error> {
    if let Some(key) = TABLE.iter().find(|key| key.name == name) {
        return Ok((key, ""));
    }
    let (section, entry) = name.split_once('.').unwrap_or((name, ""));
    match TABLE.iter().find(|key| key.name == section && key.entries.is_some()) {
        Some(key) if !entry.is_empty() => Ok((key, entry)),
        _ if is_section(name) => Err(is_a_table(name)),
        _ => Err(unknown_key(name)),
    }
}

/// Whether the table has keys `name.something`.
pub(crate) fn is_section(name: &str) -> bool {
    TABLE.iter().any(|key| key.name.split_once('.').is_some_and(|(section, _)| section == name))
}

/// The error of a table where one of its entries was needed.
pub(crate) fn is_a_table(name: &str) -> Error {
    let inside = TABLE.iter().filter(|key| key.name.split_once('.').is_some_and(|(section, _)| section == name));
    let inside: Vec<_> = inside.map(|key| key.name).collect();
    let hint = match inside.is_empty() {
        true => format!("name one of its entries: {name}.NAME"),
        false => format!("name one of its entries: {}", inside.join(", ")),
    };
    invalid(format!("{} is a table", quoted(name)), hint)
}

/// The error of a key that is not in the table.
pub(crate) fn unknown_key(name: &str) -> Error {
    let names = || TABLE.iter().map(|key| key.name);
    // Someone who forgot the table wrote the last word of `time.monotonic` or `rlimits.nofile` right.
    let last = name.rsplit('.').next().unwrap_or(name);
    let misplaced = names().find(|key| key.rsplit_once('.').is_some_and(|(_, leaf)| leaf == last)).map(String::from);
    let limit = rlimit::NAMES.contains(&last).then(|| format!("rlimits.{last}"));
    // Only variables are written in capitals.
    let capitals = last.len() > 1 && last.bytes().all(|b| b == b'_' || b.is_ascii_uppercase() || b.is_ascii_digit());
    let env = (capitals && variable(last).is_ok()).then(|| format!("env.{last}"));
    let hint = match env.or(nearest(name, names()).map(String::from)).or(misplaced).or(limit) {
        Some(meant) => format!("did you mean '{meant}'?"),
        None => "remove it, or put '#' before it".into(),
    };
    invalid(format!("unknown key {}", quoted(name)), hint)
}

impl Key {
    /// The value as the command line takes it: lists joined by commas, tables as TOML; `None` if there is none.
    pub(crate) fn get(&self, config: &Config, entry: &str) -> Option<String> {
        match (self.write)(config) {
            Written::Nothing => None,
            Written::One(value) => Some(self.plain(&value)),
            Written::Entries(entries) if entry.is_empty() => {
                (!entries.is_empty()).then(|| InlineTable::from_iter(entries).to_string().trim().to_string())
            }
            Written::Entries(entries) => {
                entries.iter().find(|(name, _)| name == entry).map(|(_, value)| self.plain(value))
            }
        }
    }

    fn plain(&self, value: &Value) -> String {
        match value {
            Value::String(text) => text.value().clone(),
            Value::Array(list) if self.form == Form::List => {
                list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
            }
            other => other.to_string(),
        }
    }

    /// The TOML value of what was typed on a command line; what it means is checked with the whole file.
    pub(crate) fn typed(&self, text: &str) -> Result<Value, Error> {
        let toml = || text.parse::<Value>().ok();
        let list = |text: &str| {
            let parsed = text.trim().parse::<Value>().ok().filter(Value::is_array);
            parsed.ok_or_else(|| {
                let hint = format!("write for example {}", self.example);
                invalid(format!("{} is not a TOML list", quoted(text)), hint)
            })
        };
        Ok(match self.form {
            Form::Flag => match text {
                "true" | "yes" | "on" | "1" => true.into(),
                "false" | "no" | "off" | "0" => false.into(),
                _ => {
                    let sentence = format!("{} takes true or false, not {}", quoted(self.name), quoted(text));
                    return Err(invalid(sentence, format!("write for example {}=true", self.name)));
                }
            },
            Form::Number => {
                toml().filter(|value| value.is_integer() || value.is_float()).unwrap_or_else(|| text.into())
            }
            Form::List | Form::Command if text.trim_start().starts_with('[') => list(text)?,
            Form::List => {
                let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
                Value::Array(Array::from_iter(words))
            }
            Form::Text | Form::Command if text.starts_with(['"', '\'']) => {
                toml().filter(Value::is_str).unwrap_or_else(|| text.into())
            }
            Form::Text | Form::Command | Form::Free => text.into(),
        })
    }
}

pub(crate) const INIT_WORDS: [&str; 2] = ["auto", "lazaret"];
pub(crate) const SECCOMP_WORDS: [&str; 2] = ["default", "off"];
const FLAG_WORDS: &[&str] = &["true", "false"];
const LABEL_WORDS: &[&str] = &["unconfined"];
const LIMIT_WORDS: &[&str] = &["max"];

/// The kernel allows no more processes than this (include/linux/threads.h, PID_MAX_LIMIT).
const MOST_PIDS: u32 = 4 << 20;
/// The longest string execve(2) takes, its NUL included (include/uapi/linux/binfmts.h, MAX_ARG_STRLEN).
const LONGEST_ARGUMENT: usize = 128 << 10;
/// Less could not even hold process 1; a smaller number has surely lost its unit.
const LEAST_MEMORY: Size = Size::mebibytes(1);
/// More belongs into a log of the container's own.
const LARGEST_CONSOLE_LOG: Size = Size::mebibytes(1024);
/// Beyond this many the layers of a container would have to be merged again and again.
const MOST_AUTO_SNAPSHOTS: u32 = 30;
/// Half of what the kernel's clocks can count (kernel/time/namespace.c, KTIME_SEC_MAX / 2), in nanoseconds.
const FARTHEST_CLOCK: u64 = i64::MAX as u64 / 2;

/// A container has this many ids, less one.
const LARGEST_ID: u32 = 65_535;

/// IPv6 needs links that carry this (RFC 8200 section 5).
const LEAST_MTU: u32 = 1280;

const TABLE: &[Key] = &[
    Key {
        name: "image",
        shape: "text in quotes",
        default: "\"host\", the running system's own /usr",
        live: false,
        doc: "What the root file system starts from: \"host\", the name of an image, an archive, or a directory.",
        example: "image = \"/srv/images/debian.tar.zst\"",
        form: Form::Free,
        words: &["host"],
        entries: None,
        read: |config, given| given.checked(line(1..=512)).map(|value| config.image = value),
        write: |config| one(&*config.image),
    },
    Key {
        name: "hostname",
        shape: "a host name",
        default: "the container's name",
        live: false,
        doc: "The host name inside.",
        example: "hostname = \"web.example\"",
        form: Form::Free,
        words: &[],
        entries: None,
        read: |config, given| given.parsed().map(|value| config.hostname = Some(value)),
        write: |config| optional(config.hostname.as_ref().map(|name| name.as_str())),
    },
    Key {
        name: "description",
        shape: "text in quotes",
        default: "empty",
        live: true,
        doc: "A line that says what the container is for.",
        example: "description = \"the mail server\"",
        form: Form::Free,
        words: &[],
        entries: None,
        read: |config, given| given.checked(line(0..=1024)).map(|value| config.description = value),
        write: |config| one(&*config.description),
    },
    Key {
        name: "init",
        shape: "text or a list of words",
        default: "\"auto\"",
        live: false,
        doc: "What runs as process 1: \"auto\" (the image's init, else ours), \"lazaret\" (ours), a path, or a command as a list.",
        example: "init = [\"/sbin/init\", \"--log-level=debug\"]",
        form: Form::Command,
        words: &INIT_WORDS,
        entries: None,
        read: read_init,
        write: |config| match &config.init {
            Init::Auto => one("auto"),
            Init::Lazaret => one("lazaret"),
            Init::Command(words) => match words.as_slice() {
                // Only what would be read back as this command may be written as one word.
                [path] if path.parse::<Init>().is_ok_and(|init| init == config.init) => one(&**path),
                words => list(words),
            },
        },
    },
    Key {
        name: "privileged",
        shape: "true or false",
        default: "false",
        live: false,
        doc: "Whether root inside is root outside: without a user namespace, a break-out owns the machine.",
        example: "privileged = true",
        form: Form::Flag,
        words: FLAG_WORDS,
        entries: None,
        read: |config, given| given.flag().map(|value| config.privileged = value),
        write: |config| one(config.privileged),
    },
    Key {
        name: "nesting",
        shape: "true or false",
        default: "false",
        live: false,
        doc: "Whether containers may be run inside.",
        example: "nesting = true",
        form: Form::Flag,
        words: FLAG_WORDS,
        entries: None,
        read: |config, given| given.flag().map(|value| config.nesting = value),
        write: |config| one(config.nesting),
    },
    Key {
        name: "no_new_privs",
        shape: "true or false",
        default: "false",
        live: false,
        doc: "Whether set-user-ID programs such as sudo gain nothing inside.",
        example: "no_new_privs = true",
        form: Form::Flag,
        words: FLAG_WORDS,
        entries: None,
        read: |config, given| given.flag().map(|value| config.no_new_privs = value),
        write: |config| one(config.no_new_privs),
    },
    Key {
        name: "memory",
        shape: "a size or \"max\"",
        default: "\"max\", no limit",
        live: true,
        doc: "How much memory may be used before processes inside are killed, swap not counted.",
        example: "memory = \"1G\"",
        form: Form::Text,
        words: LIMIT_WORDS,
        entries: None,
        read: |config, given| given.limit(sized(LEAST_MEMORY, Size(u64::MAX))).map(|value| config.memory = value),
        write: |config| limit(&config.memory),
    },
    Key {
        name: "swap",
        shape: "a size or \"max\"",
        default: "\"max\", no limit",
        live: true,
        doc: "How much swap may be used beside memory; \"0\" for none. It needs a limit of memory.",
        example: "swap = \"512M\"",
        form: Form::Text,
        words: LIMIT_WORDS,
        entries: None,
        read: |config, given| given.limit(str::parse).map(|value| config.swap = value),
        write: |config| limit(&config.swap),
    },
    Key {
        name: "cpus",
        shape: "a number or \"max\"",
        default: "\"max\", no limit",
        live: true,
        doc: "How many processors' time may be used; 1.5 is one and a half.",
        example: "cpus = 1.5",
        form: Form::Number,
        words: LIMIT_WORDS,
        entries: None,
        read: |config, given| given.limit(str::parse).map(|value| config.cpus = value),
        write: |config| match &config.cpus {
            Some(cpus) => number(cpus.to_string()),
            None => one("max"),
        },
    },
    Key {
        name: "cpu_weight",
        shape: "a number from 1 to 10000",
        default: "the kernel's, 100",
        live: true,
        doc: "The share of processor time when there is not enough, beside others' 100.",
        example: "cpu_weight = 50",
        form: Form::Number,
        words: &[],
        entries: None,
        read: |config, given| given.checked(weight).map(|value| config.cpu_weight = Some(value)),
        write: |config| optional(config.cpu_weight.map(i64::from)),
    },
    Key {
        name: "cpuset",
        shape: "CPU numbers and ranges",
        default: "all processors",
        live: true,
        doc: "Which processors may be used.",
        example: "cpuset = \"0-3,5\"",
        form: Form::Text,
        words: &[],
        entries: None,
        read: |config, given| given.parsed().map(|value| config.cpuset = Some(value)),
        write: |config| optional(config.cpuset.as_ref().map(|set| set.to_string())),
    },
    Key {
        name: "pids",
        shape: "a number or \"max\"",
        default: "8192",
        live: true,
        doc: "How many processes and threads there may be.",
        example: "pids = 4096",
        form: Form::Number,
        words: LIMIT_WORDS,
        entries: None,
        read: |config, given| given.limit(whole(1..=MOST_PIDS)).map(|value| config.pids = value),
        write: |config| config.pids.map_or_else(|| one("max"), |pids| one(i64::from(pids))),
    },
    Key {
        name: "io",
        shape: "a list of texts, each a device and its rates",
        default: "no limits",
        live: true,
        doc: "How fast block devices may be used: bytes (read, write) and operations (read_iops, write_iops) per second.",
        example: "io = [\"/dev/sda read=10M write=5M read_iops=100 write_iops=50\"]",
        form: Form::List,
        words: &[],
        entries: None,
        read: |config, given| given.list(str::parse).map(|value| config.io = value),
        write: |config| list(&config.io),
    },
    Key {
        name: "io_weight",
        shape: "a number from 1 to 10000",
        default: "the kernel's, 100",
        live: true,
        doc: "The share of device time when there is not enough, beside others' 100.",
        example: "io_weight = 50",
        form: Form::Number,
        words: &[],
        entries: None,
        read: |config, given| given.checked(weight).map(|value| config.io_weight = Some(value)),
        write: |config| optional(config.io_weight.map(i64::from)),
    },
    Key {
        name: "env_pass",
        shape: "a list of names",
        default: "none",
        live: true,
        doc: "Variables handed in from the caller's environment, by name; an entry of env wins. The next command sees it.",
        example: "env_pass = [\"LANG\", \"TZ\"]",
        form: Form::List,
        words: &["LANG", "TERM", "TZ"],
        entries: None,
        read: |config, given| given.list(variable).map(|value| config.env_pass = value),
        write: |config| list(&config.env_pass),
    },
    Key {
        name: "cap_drop",
        shape: "a list of capabilities",
        default: "none",
        live: false,
        doc: "Capabilities taken away beyond those that no container has.",
        example: "cap_drop = [\"sys_time\", \"net_raw\"]",
        form: Form::List,
        words: &capability::NAMES,
        entries: None,
        read: |config, given| given.list(str::parse).map(|value| config.cap_drop = value),
        write: |config| list(&config.cap_drop),
    },
    Key {
        name: "cap_add",
        shape: "a list of capabilities",
        default: "none",
        live: false,
        doc: "Capabilities kept although containers usually lose them.",
        example: "cap_add = [\"sys_nice\"]",
        form: Form::List,
        words: &capability::NAMES,
        entries: None,
        read: |config, given| given.list(str::parse).map(|value| config.cap_add = value),
        write: |config| list(&config.cap_add),
    },
    Key {
        name: "seccomp",
        shape: "\"default\" or \"off\"",
        default: "\"default\"",
        live: false,
        doc: "Whether system calls are filtered.",
        example: "seccomp = \"off\"",
        form: Form::Text,
        words: &SECCOMP_WORDS,
        entries: None,
        read: |config, given| given.parsed().map(|value| config.seccomp = value),
        write: |config| one(config.seccomp.to_string()),
    },
    Key {
        name: "seccomp_allow",
        shape: "a list of system calls",
        default: "none",
        live: false,
        doc: "System calls let through although the filter denies them.",
        example: "seccomp_allow = [\"bpf\"]",
        form: Form::List,
        words: &[],
        entries: None,
        read: |config, given| given.list(system_call).map(|value| config.seccomp_allow = value),
        write: |config| list(&config.seccomp_allow),
    },
    Key {
        name: "seccomp_deny",
        shape: "a list of system calls",
        default: "none",
        live: false,
        doc: "System calls denied although the filter lets them through.",
        example: "seccomp_deny = [\"io_uring_setup\"]",
        form: Form::List,
        words: &[],
        entries: None,
        read: |config, given| given.list(system_call).map(|value| config.seccomp_deny = value),
        write: |config| list(&config.seccomp_deny),
    },
    Key {
        name: "apparmor",
        shape: "text in quotes",
        default: "chosen by the runtime where AppArmor is enabled",
        live: false,
        doc: "The AppArmor profile of what runs inside, or \"unconfined\".",
        example: "apparmor = \"unconfined\"",
        form: Form::Free,
        words: LABEL_WORDS,
        entries: None,
        read: |config, given| given.checked(line(1..=4095)).map(|value| config.apparmor = Some(value)),
        write: |config| optional(config.apparmor.as_deref()),
    },
    Key {
        name: "selinux",
        shape: "text in quotes",
        default: "chosen by the runtime where SELinux is enabled",
        live: false,
        doc: "The SELinux context of what runs inside, or \"unconfined\".",
        example: "selinux = \"system_u:system_r:container_t:s0:c1,c2\"",
        form: Form::Free,
        words: LABEL_WORDS,
        entries: None,
        read: |config, given| given.checked(line(1..=4095)).map(|value| config.selinux = Some(value)),
        write: |config| optional(config.selinux.as_deref()),
    },
    Key {
        name: "stop_timeout",
        shape: "a span of time",
        default: "\"30s\"",
        live: true,
        doc: "How long a stop waits for the processes inside before it kills them.",
        example: "stop_timeout = \"2m\"",
        form: Form::Text,
        words: &[],
        entries: None,
        read: |config, given| given.checked(timeout).map(|value| config.stop_timeout = value),
        write: |config| one(config.stop_timeout.to_string()),
    },
    Key {
        name: "stop_signal",
        shape: "a signal",
        default: "chosen by the kind of init",
        live: true,
        doc: "The signal that asks process 1 to stop, by name or number.",
        example: "stop_signal = \"SIGRTMIN+3\"",
        form: Form::Text,
        words: &signal::NAMES,
        entries: None,
        read: |config, given| given.parsed().map(|value| config.stop_signal = Some(value)),
        write: |config| optional(config.stop_signal.map(|signal| signal.to_string())),
    },
    Key {
        name: "console_log",
        shape: "a size",
        default: "\"1M\"",
        live: false,
        doc: "How much of the console's output is kept; \"0\" for none.",
        example: "console_log = \"4M\"",
        form: Form::Text,
        words: &[],
        entries: None,
        read: |config, given| {
            given.checked(sized(Size(0), LARGEST_CONSOLE_LOG)).map(|value| config.console_log = value)
        },
        write: |config| one(config.console_log.to_string()),
    },
    Key {
        name: "volatile",
        shape: "true or false",
        default: "false",
        live: false,
        doc: "Whether what is written to the root file system lives in memory and ends with the run.",
        example: "volatile = true",
        form: Form::Flag,
        words: FLAG_WORDS,
        entries: None,
        read: |config, given| given.flag().map(|value| config.volatile = value),
        write: |config| one(config.volatile),
    },
    Key {
        name: "auto_snapshots",
        shape: "a number from 0 to 30",
        default: "0, none",
        live: true,
        doc: "How many snapshots from before a start are kept; one is taken if something was written since the last.",
        example: "auto_snapshots = 3",
        form: Form::Number,
        words: &[],
        entries: None,
        read: |config, given| given.checked(whole(0..=MOST_AUTO_SNAPSHOTS)).map(|value| config.auto_snapshots = value),
        write: |config| one(i64::from(config.auto_snapshots)),
    },
    Key {
        name: "shares",
        shape: "a list of texts, each HOST:GUEST and options",
        default: "none",
        live: true,
        doc: "Directories, files and sockets of the host that are shown inside; `lazaret share` adds them and checks them.",
        example: "shares = [\"/home/me/in:/mnt/in:ro:noexec:optional\"]",
        form: Form::List,
        words: &[],
        entries: None,
        read: |config, given| given.list(str::parse).map(|value| config.shares = value),
        write: |config| list(&config.shares),
    },
    Key {
        name: "devices",
        shape: "a list of texts, each a device and options",
        default: "none",
        live: true,
        doc: "Devices of the host that may be used, by class, USB id or path; `lazaret device` adds them and checks them.",
        example: "devices = [\"camera\", \"usb:046d:0825\", \"/dev/ttyUSB0 ro\"]",
        form: Form::List,
        words: &crate::device::CLASSES,
        entries: None,
        read: |config, given| given.list(str::parse).map(|value| config.devices = value),
        write: |config| list(&config.devices),
    },
    Key {
        name: "person",
        shape: "a user's number",
        default: "1000 if the container has such a user, else 0 (root)",
        live: false,
        doc: "The user inside who owns what belongs to the person outside, in shares and among devices.",
        example: "person = 1000",
        form: Form::Number,
        words: &[],
        entries: None,
        read: |config, given| given.checked(whole(0..=LARGEST_ID)).map(|value| config.person = Some(value)),
        write: |config| optional(config.person.map(i64::from)),
    },
    Key {
        name: "rlimits",
        shape: "a number, soft:hard or \"unlimited\"",
        default: "inherited",
        live: false,
        doc: "Resource limits of the processes inside, as soft:hard or one number for both; see getrlimit(2).",
        example: "nofile = \"1024:524288\"",
        form: Form::Number,
        words: &["unlimited"],
        entries: Some(rlimit::NAMES),
        read: |config, given| {
            let resource: Resource = given.entry.parse().map_err(|e| vec![Fault { span: None, ..given.fault(&e) }])?;
            config.rlimits.insert(resource, given.parsed()?);
            Ok(())
        },
        write: |config| {
            let entry = |(resource, limit): (&Resource, &rlimit::Rlimit)| {
                (resource.to_string(), number_or_text(limit.to_string()))
            };
            Written::Entries(config.rlimits.iter().map(entry).collect())
        },
    },
    Key {
        name: "env",
        shape: "text in quotes",
        default: "none beside PATH, HOME, USER, TERM and their like",
        live: true,
        doc: "Variables of the environment inside. The next command sees a change.",
        example: "LANG = \"C.UTF-8\"",
        form: Form::Free,
        words: &[],
        entries: Some(&[]),
        read: |config, given| {
            let name = variable(given.entry).map_err(|e| vec![Fault { span: None, ..given.fault(&e) }])?;
            let value = given.text()?;
            let whole = argument(&format!("{name}={value}")).map_err(|e| vec![given.fault(&e)]);
            whole.map(|_| drop(config.env.insert(name, value.into())))
        },
        write: |config| {
            let entry = |(name, value): (&String, &String)| (name.clone(), Value::from(value));
            Written::Entries(config.env.iter().map(entry).collect())
        },
    },
    Key {
        name: "time.monotonic",
        shape: "a span of time",
        default: "the host's clock",
        live: false,
        doc: "What is added to the monotonic clock inside; may be negative.",
        example: "monotonic = \"-1h\"",
        form: Form::Text,
        words: &[],
        entries: None,
        read: |config, given| given.checked(offset).map(|value| config.time.monotonic = Some(value)),
        write: |config| optional(config.time.monotonic.map(|span| span.to_string())),
    },
    Key {
        name: "time.boottime",
        shape: "a span of time",
        default: "the host's clock",
        live: false,
        doc: "What is added to the time since boot inside, which uptime shows; may be negative.",
        example: "boottime = \"30d\"",
        form: Form::Text,
        words: &[],
        entries: None,
        read: |config, given| given.checked(offset).map(|value| config.time.boottime = Some(value)),
        write: |config| optional(config.time.boottime.map(|span| span.to_string())),
    },
    Key {
        name: "network.mode",
        shape: "a mode",
        default: "\"internet\", behind our own bridge and rules",
        live: false,
        doc: "How it is connected: \"internet\", \"none\", \"host\", \"bridge:NAME\", \"macvlan:NAME\", \"ipvlan:NAME\" or \"phys:NAME\".",
        example: "mode = \"bridge:br0\"",
        form: Form::Text,
        words: &MODE_WORDS,
        entries: None,
        read: |config, given| given.parsed().map(|value| config.network.mode = value),
        write: |config| one(config.network.mode.to_string()),
    },
    Key {
        name: "network.address",
        shape: "an IPv4 address",
        default: "chosen by name, and kept",
        live: false,
        doc: "A fixed IPv4 address in the containers' subnet.",
        example: "address = \"10.90.0.20\"",
        form: Form::Text,
        words: &[],
        entries: None,
        read: |config, given| given.checked(own_address).map(|value| config.network.address = Some(value)),
        write: |config| optional(config.network.address.map(|address| address.to_string())),
    },
    Key {
        name: "network.address6",
        shape: "an IPv6 address",
        default: "chosen by name, and kept",
        live: false,
        doc: "A fixed IPv6 address in the containers' prefix.",
        example: "address6 = \"fd12:3456:789a:1::20\"",
        form: Form::Text,
        words: &[],
        entries: None,
        read: |config, given| given.checked(own_address6).map(|value| config.network.address6 = Some(value)),
        write: |config| optional(config.network.address6.map(|address| address.to_string())),
    },
    Key {
        name: "network.mac",
        shape: "a hardware address",
        default: "derived from the name",
        live: false,
        doc: "A fixed hardware address.",
        example: "mac = \"02:00:5e:10:20:30\"",
        form: Form::Text,
        words: &[],
        entries: None,
        read: |config, given| given.parsed().map(|value| config.network.mac = Some(value)),
        write: |config| optional(config.network.mac.map(|mac| mac.to_string())),
    },
    Key {
        name: "network.mtu",
        shape: "a number from 1280 to 65535",
        default: "the uplink's",
        live: false,
        doc: "The largest packet, in bytes.",
        example: "mtu = 1400",
        form: Form::Number,
        words: &[],
        entries: None,
        read: |config, given| given.checked(whole(LEAST_MTU..=65_535)).map(|value| config.network.mtu = Some(value)),
        write: |config| optional(config.network.mtu.map(i64::from)),
    },
    Key {
        name: "network.internet",
        shape: "true or false",
        default: "true",
        live: true,
        doc: "Whether the Internet may be reached: all that is neither LAN, host nor container.",
        example: "internet = false",
        form: Form::Flag,
        words: FLAG_WORDS,
        entries: None,
        read: |config, given| given.flag().map(|value| config.network.internet = value),
        write: |config| one(config.network.internet),
    },
    Key {
        name: "network.lan",
        shape: "true or false",
        default: "false",
        live: true,
        doc: "Whether private and link-local addresses, and those on any network the host is in, may be reached.",
        example: "lan = true",
        form: Form::Flag,
        words: FLAG_WORDS,
        entries: None,
        read: |config, given| given.flag().map(|value| config.network.lan = value),
        write: |config| one(config.network.lan),
    },
    Key {
        name: "network.host",
        shape: "true or false",
        default: "false; addresses, names and ping are answered all the same",
        live: true,
        doc: "Whether services of the host may be reached.",
        example: "host = true",
        form: Form::Flag,
        words: FLAG_WORDS,
        entries: None,
        read: |config, given| given.flag().map(|value| config.network.host = value),
        write: |config| one(config.network.host),
    },
    Key {
        name: "network.peers",
        shape: "a list of containers",
        default: "none",
        live: true,
        doc: "Containers to be reached and to be reached by, where both name each other.",
        example: "peers = [\"db\", \"web\"]",
        form: Form::List,
        words: &[],
        entries: None,
        read: |config, given| given.list(str::parse).map(|value| config.network.peers = value),
        write: |config| list(&config.network.peers),
    },
    Key {
        name: "network.allow",
        shape: "a list of destinations",
        default: "none",
        live: true,
        doc: "What may be reached beside: an address, a range or a name, with ports or without; never a container.",
        example: "allow = [\"192.168.1.20:631/tcp\", \"nas.local:445\"]",
        form: Form::List,
        words: &[],
        entries: None,
        read: |config, given| given.list(str::parse).map(|value| config.network.allow = value),
        write: |config| list(&config.network.allow),
    },
    Key {
        name: "network.deny",
        shape: "a list of destinations",
        default: "none",
        live: true,
        doc: "What may not be reached, whatever else is said.",
        example: "deny = [\"203.0.113.0/24\", \"*:25/tcp\"]",
        form: Form::List,
        words: &[],
        entries: None,
        read: |config, given| given.list(str::parse).map(|value| config.network.deny = value),
        write: |config| list(&config.network.deny),
    },
    Key {
        name: "network.publish",
        shape: "a list of host:container ports",
        default: "none",
        live: true,
        doc: "Ports of the host that lead to ports inside; without an address, on every address of the host.",
        example: "publish = [\"127.0.0.1:8080:80/tcp\"]",
        form: Form::List,
        words: &[],
        entries: None,
        read: |config, given| given.list(str::parse).map(|value| config.network.publish = value),
        write: |config| list(&config.network.publish),
    },
    Key {
        name: "network.rate_up",
        shape: "a rate or \"max\"",
        default: "\"max\", no limit",
        live: true,
        doc: "How fast it may send.",
        example: "rate_up = \"10mbit\"",
        form: Form::Text,
        words: LIMIT_WORDS,
        entries: None,
        read: |config, given| given.limit(str::parse).map(|value| config.network.rate_up = value),
        write: |config| limit(&config.network.rate_up),
    },
    Key {
        name: "network.rate_down",
        shape: "a rate or \"max\"",
        default: "\"max\", no limit",
        live: true,
        doc: "How fast it may receive.",
        example: "rate_down = \"100mbit\"",
        form: Form::Text,
        words: LIMIT_WORDS,
        entries: None,
        read: |config, given| given.limit(str::parse).map(|value| config.network.rate_down = value),
        write: |config| limit(&config.network.rate_down),
    },
    Key {
        name: "network.dns",
        shape: "a list of addresses",
        default: "what the host uses",
        live: true,
        doc: "Name servers that are asked for it.",
        example: "dns = [\"9.9.9.9\", \"2620:fe::fe\"]",
        form: Form::List,
        words: &[],
        entries: None,
        read: |config, given| given.list(name_server).map(|value| config.network.dns = value),
        write: |config| list(&config.network.dns),
    },
    Key {
        name: "network.host_mode_confirmed",
        shape: "true or false",
        default: "false",
        live: true,
        doc: "Says once more that mode = \"host\" is meant: all of the host's network, what listens on 127.0.0.1 included.",
        example: "host_mode_confirmed = true",
        form: Form::Flag,
        words: FLAG_WORDS,
        entries: None,
        read: |config, given| given.flag().map(|value| config.network.host_mode_confirmed = value),
        write: |config| one(config.network.host_mode_confirmed),
    },
    Key {
        name: "desktop.display",
        shape: "a level",
        default: "\"none\"",
        live: false,
        doc: "How programs draw on the person's screen: \"none\", \"isolated\" (through a gate), \"nested\" (on a server of their own, in one window: for GTK 4, GLX or XInput on an X server) or \"trusted\" (they see and steer all of it).",
        example: "display = \"isolated\"",
        form: Form::Text,
        words: DISPLAY_WORDS,
        entries: None,
        read: |config, given| given.parsed().map(|value| config.desktop.display = value),
        write: |config| one(config.desktop.display.to_string()),
    },
    Key {
        name: "desktop.user",
        shape: "the name of a user",
        default: "root",
        live: false,
        doc: "Who programs of the desktop run as inside; made at the start if there is no such user.",
        example: "user = \"ann\"",
        form: Form::Text,
        words: &[],
        entries: None,
        read: |config, given| given.parsed().map(|value| config.desktop.user = Some(value)),
        write: |config| optional(config.desktop.user.as_ref().map(ToString::to_string)),
    },
    Key {
        name: "desktop.clipboard",
        shape: "a direction",
        default: "\"out\"",
        live: true,
        doc: "What passes between the clipboards: \"off\" (nothing), \"out\" (what is copied inside; the other way by `lazaret paste`) or \"both\".",
        example: "clipboard = \"both\"",
        form: Form::Text,
        words: CLIPBOARD_WORDS,
        entries: None,
        read: |config, given| given.parsed().map(|value| config.desktop.clipboard = value),
        write: |config| one(config.desktop.clipboard.to_string()),
    },
    Key {
        name: "desktop.sound",
        shape: "\"off\", \"play\" or \"play+record\"",
        default: "\"off\"",
        live: true,
        doc: "Whether programs of the desktop play sound, and may record while the microphone is switched on (`lazaret device NAME microphone on`). Taken away, it ends at once.",
        example: "sound = \"play\"",
        form: Form::Text,
        words: SOUND_WORDS,
        entries: None,
        read: |config, given| given.parsed().map(|value| config.desktop.sound = value),
        write: |config| one(config.desktop.sound.to_string()),
    },
    Key {
        name: "desktop.notifications",
        shape: "true or false",
        default: "true",
        live: true,
        doc: "Whether notifications of programs of the desktop are shown, with the container's name.",
        example: "notifications = false",
        form: Form::Flag,
        words: FLAG_WORDS,
        entries: None,
        read: |config, given| given.flag().map(|value| config.desktop.notifications = value),
        write: |config| one(config.desktop.notifications),
    },
    Key {
        name: "desktop.open_urls",
        shape: "\"ask\", \"allow\" or \"deny\"",
        default: "\"ask\"",
        live: true,
        doc: "Whether addresses of the web that programs of the desktop open are opened outside: the person is asked, or not.",
        example: "open_urls = \"allow\"",
        form: Form::Text,
        words: OPEN_URLS_WORDS,
        entries: None,
        read: |config, given| given.parsed().map(|value| config.desktop.open_urls = value),
        write: |config| one(config.desktop.open_urls.to_string()),
    },
    Key {
        name: "desktop.trusted_confirmed",
        shape: "true or false",
        default: "false",
        live: true,
        doc: "Whether display = \"trusted\" is meant: every program inside may then read and type all that the person does.",
        example: "trusted_confirmed = true",
        form: Form::Flag,
        words: FLAG_WORDS,
        entries: None,
        read: |config, given| given.flag().map(|value| config.desktop.trusted_confirmed = value),
        write: |config| one(config.desktop.trusted_confirmed),
    },
];

fn one(value: impl Into<Value>) -> Written {
    Written::One(value.into())
}

fn optional(value: Option<impl Into<Value>>) -> Written {
    value.map_or(Written::Nothing, one)
}

fn limit(value: &Option<impl ToString>) -> Written {
    one(value.as_ref().map_or("max".into(), ToString::to_string))
}

fn list(values: &[impl ToString]) -> Written {
    one(Array::from_iter(values.iter().map(ToString::to_string)))
}

fn number(text: String) -> Written {
    one(number_or_text(text))
}

/// A TOML number if the text is one.
fn number_or_text(text: String) -> Value {
    text.parse::<Value>().ok().filter(|value| value.is_integer() || value.is_float()).unwrap_or_else(|| text.into())
}

fn read_init(config: &mut Config, given: &Given<'_>) -> Read {
    if !given.item.is_array() {
        config.init = given.parsed()?;
        return Ok(());
    }
    let words = given.list(argument)?;
    match words.first() {
        Some(program) if !program.is_empty() => config.init = Init::Command(words),
        _ => {
            let e = invalid("the command names no program", "write for example [\"/sbin/init\"], or \"auto\"");
            return Err(vec![given.fault(&e)]);
        }
    }
    Ok(())
}

/// One line of text without control characters.
fn line(length: std::ops::RangeInclusive<usize>) -> impl Fn(&str) -> Result<String, Error> {
    move |text| match text {
        _ if text.len() < *length.start() => Err(invalid("the text is empty", "write something, or remove the key")),
        _ if text.len() > *length.end() => {
            let hint = format!("at most {} bytes are allowed", length.end());
            Err(invalid(format!("{} is too long", quoted(text)), hint))
        }
        _ if !printable(text) => {
            Err(invalid(format!("{} has control characters", quoted(text)), "write one line of plain text"))
        }
        _ => Ok(text.into()),
    }
}

/// A string that execve(2) takes.
fn argument(text: &str) -> Result<String, Error> {
    match text {
        _ if text.contains('\0') => Err(invalid(format!("{} has a NUL byte", quoted(text)), "remove the \\u0000")),
        _ if text.len() >= LONGEST_ARGUMENT => Err(invalid(
            format!("{} is too long", quoted(text)),
            "the kernel takes at most 131071 bytes, name included; put the rest in a file",
        )),
        _ => Ok(text.into()),
    }
}

/// The name of an environment variable (environ(7) and POSIX.1 section 8.1; lower case is common enough).
fn variable(name: &str) -> Result<String, Error> {
    let good = |(i, b): (usize, u8)| b == b'_' || b.is_ascii_alphabetic() || (i > 0 && b.is_ascii_digit());
    if name.is_empty() || name.len() > 255 || !name.bytes().enumerate().all(good) {
        let hint = "use letters, digits and '_', no digit first, for example MY_VAR";
        return Err(invalid(format!("{} is not the name of a variable", quoted(name)), hint));
    }
    Ok(name.into())
}

/// What looks like a system call; whether there is one of that name is the runtime's to know.
fn system_call(name: &str) -> Result<String, Error> {
    let good = |b: u8| b == b'_' || b.is_ascii_lowercase() || b.is_ascii_digit();
    if name.is_empty() || name.len() > 64 || !name.bytes().all(good) {
        let hint = "write names as in syscalls(2), for example io_uring_setup";
        return Err(invalid(format!("{} is not the name of a system call", quoted(name)), hint));
    }
    Ok(name.into())
}

fn sized(least: Size, most: Size) -> impl Fn(&str) -> Result<Size, Error> {
    move |text| match text.parse()? {
        size if size < least => {
            let hint = format!("at least {least} is needed; a number without a unit counts bytes");
            Err(invalid(format!("{} is too little", quoted(text)), hint))
        }
        size if size > most => {
            Err(invalid(format!("{} is too much", quoted(text)), format!("at most {most} is allowed")))
        }
        size => Ok(size),
    }
}

fn weight(text: &str) -> Result<u16, Error> {
    // The range is far below 65536.
    whole(1..=10_000)(text).map(|weight| weight as u16)
}

fn timeout(text: &str) -> Result<Span, Error> {
    let span: Span = text.parse()?;
    match span.duration() {
        Some(_) => Ok(span),
        None => Err(invalid(format!("{} is negative", quoted(text)), "write how long to wait, for example 30s")),
    }
}

fn offset(text: &str) -> Result<Span, Error> {
    let span: Span = text.parse()?;
    if span.nanoseconds().unsigned_abs() > FARTHEST_CLOCK {
        return Err(invalid(format!("{} is too far", quoted(text)), "the kernel's clocks reach 146 years"));
    }
    Ok(span)
}

/// An address that an interface may have.
fn own_address(text: &str) -> Result<Ipv4Addr, Error> {
    let address = text.parse().ok().filter(|address: &Ipv4Addr| {
        !(address.is_unspecified() || address.is_multicast() || address.is_broadcast() || address.is_loopback())
    });
    address.ok_or_else(|| {
        let hint = "write an address in the containers' subnet without its bits, for example 10.90.0.20";
        invalid(format!("{} is not an IPv4 address for a container", quoted(text)), hint)
    })
}

/// An address that an interface may have beside its link-local one.
fn own_address6(text: &str) -> Result<Ipv6Addr, Error> {
    let address = text.parse().ok().filter(|address: &Ipv6Addr| {
        !(address.is_unspecified()
            || address.is_multicast()
            || address.is_loopback()
            || address.is_unicast_link_local()
            || address.to_ipv4_mapped().is_some())
    });
    address.ok_or_else(|| {
        let hint = "write an address in the containers' prefix without its bits, for example fd12:3456:789a:1::20";
        invalid(format!("{} is not an IPv6 address for a container", quoted(text)), hint)
    })
}

fn name_server(text: &str) -> Result<IpAddr, Error> {
    let address = text.parse().ok().filter(|address: &IpAddr| !(address.is_unspecified() || address.is_multicast()));
    address.ok_or_else(|| {
        let hint = "write addresses without ports, for example 9.9.9.9";
        invalid(format!("{} is not the address of a name server", quoted(text)), hint)
    })
}
