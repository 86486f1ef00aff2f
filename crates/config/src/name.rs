//! Names of containers and of hosts.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use lazaret_base::Error;

use crate::text::{invalid, quoted};

/// A container's name: also its host name by default, the name of its directory and of its cgroup.
///
/// 1 to 63 bytes (a DNS label, RFC 1035 section 2.3.4), a letter or digit first, then letters, digits, `.`,
/// `_` and `-`; the last is a letter, digit or `_`. Names that our own files (`.lock`, `.tmp`) or the kernel's
/// (`memory.max`, `tasks`) may have in the same directory are refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// What a good name looks like, said wherever one is refused.
const RULE: &str = "use 1 to 63 letters, digits, '.', '_' or '-', a letter or digit first, for example 'web-1'";

/// First words of files that cgroup directories have (Documentation/admin-guide/cgroup-v2.rst and the v1
/// controllers): `mkdir` of such a name fails there.
const CGROUP_FILES: &[&str] = &[
    "blkio",
    "cgroup",
    "cpu",
    "cpuacct",
    "cpuset",
    "debug",
    "devices",
    "dmem",
    "freezer",
    "hugetlb",
    "io",
    "irq",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];
const CGROUP_V1_FILES: &[&str] = &["notify_on_release", "release_agent", "tasks"];

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Name, Error> {
        let refuse = |why: String| Err(invalid(why, RULE));
        let shown = quoted(text);
        if text.is_empty() {
            return refuse("the container name is empty".into());
        }
        let mut chars = text.chars();
        if let Some(first) = chars.next().filter(|c| !c.is_ascii_alphanumeric()) {
            return refuse(format!("container name {shown} starts with {}", quoted(first.encode_utf8(&mut [0; 4]))));
        }
        let bad = |c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c));
        if let Some((i, c)) = text.chars().enumerate().find(|(_, c)| bad(*c)) {
            let c = quoted(c.encode_utf8(&mut [0; 4]));
            return refuse(format!("container name {shown} has {c} at position {}", i + 1));
        }
        if text.len() > 63 {
            return refuse(format!("container name {shown} is {} characters long, 63 are allowed", text.len()));
        }
        if text.ends_with(['.', '-']) {
            return refuse(format!("container name {shown} ends with {}", quoted(&text[text.len() - 1..])));
        }
        if let Some(end) = [".lock", ".tmp"].into_iter().find(|end| text.ends_with(end)) {
            return Err(invalid(
                format!("container name {shown} ends with '{end}', which names our own files"),
                format!("leave the '{end}' away, or write it with '-', for example 'web-{}'", &end[1..]),
            ));
        }
        let first_word = text.split_once('.').map(|(word, _)| word);
        if first_word.is_some_and(|word| CGROUP_FILES.contains(&word)) || CGROUP_V1_FILES.contains(&text) {
            return Err(invalid(
                format!("container name {shown} could be a file of the kernel's in a cgroup"),
                format!(
                    "write '{}' instead",
                    if text.contains('.') { text.replace('.', "-") } else { format!("{text}-1") }
                ),
            ));
        }
        Ok(Name(text.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What `hostname(1)` says inside: labels of letters, digits and inner `-`, joined by `.`.
///
/// At most 64 bytes, as sethostname(2) takes no more, and 63 per label (RFC 1123 section 2.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hostname(String);

impl Hostname {
    /// The host name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Hostname {
    type Err = Error;

    fn from_str(text: &str) -> Result<Hostname, Error> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() > 64 || !text.split('.').all(label) {
            let rule = "use at most 64 letters, digits and '-', in words joined by '.', for example 'web.example'";
            return Err(invalid(format!("{} is not a host name", quoted(text)), rule));
        }
        Ok(Hostname(text.into()))
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for Hostname {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

serde_as_string!(Name, Hostname);

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use lazaret_base::Kind;

    use super::*;

    fn refusal(text: &str) -> String {
        let e = text.parse::<Name>().expect_err(text);
        assert_eq!(e.what(), Kind::Invalid);
        format!("{e}\n{}", e.advice().unwrap())
    }

    #[test]
    fn names_fit_for_a_file_a_host_and_a_cgroup_are_taken() {
        for good in ["a", "7", "web-1", "my_db.v2", "X", "a_", "memory", "web.memory", &"n".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().to_string(), good);
        }
    }

    #[test]
    fn a_bad_name_is_refused_with_place_rule_and_example() {
        assert_snapshot!(refusal("my web"), @"
        container name 'my web' has ' ' at position 3
        use 1 to 63 letters, digits, '.', '_' or '-', a letter or digit first, for example 'web-1'
        ");
        assert_snapshot!(refusal("web.lock"), @"
        container name 'web.lock' ends with '.lock', which names our own files
        leave the '.lock' away, or write it with '-', for example 'web-lock'
        ");
        assert_snapshot!(refusal("cpu.web"), @"
        container name 'cpu.web' could be a file of the kernel's in a cgroup
        write 'cpu-web' instead
        ");
    }

    #[test]
    fn names_that_would_leave_the_directory_or_the_terminal_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "-x", "_x", "a.", "a-", "a.tmp", "tasks", "cgroup.procs", "ä", "a\0"]
        {
            refusal(bad);
        }
        refusal(&"n".repeat(64));
        assert!(!refusal("a\x1b[2J").contains('\x1b'));
    }

    #[test]
    fn host_names_are_labels_joined_by_dots() {
        for good in ["web", "web.example", "7", "A-b"] {
            assert_eq!(good.parse::<Hostname>().unwrap().to_string(), good);
        }
        for bad in ["", ".", "a..b", "a.", "-a", "a-", "a_b", "a b", &"n".repeat(64), &"ab.".repeat(30)] {
            assert!(bad.parse::<Hostname>().is_err(), "{bad}");
        }
    }
}
