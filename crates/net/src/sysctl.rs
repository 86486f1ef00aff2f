//! The kernel's switches under `/proc/sys/net`: read, set, and set back to what they were.
//!
//! Names are relative to that directory and divided by slashes (`ipv4/conf/br.1/forwarding`), because
//! interfaces may have dots in their names. Which namespace's switches these are is decided when the
//! file is opened, by the namespace of the caller: another's are set with
//! [`inside`](crate::netlink::inside).

use std::fs;
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Kind, Result, error};
use serde::{Deserialize, Serialize};

/// A switch that was set, to be recorded where it must be set back by another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Which one.
    pub name: String,
    /// Its value before.
    pub was: String,
    /// Its value since.
    pub now: String,
}

/// The value of a switch, without the newline. [`Kind::NotFound`] where there is none of this name.
pub fn read(name: &str) -> Result<String> {
    let path = path_of(name)?;
    match fs::read_to_string(&path) {
        Ok(value) => Ok(value.trim_end().to_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("reading `{}`", path.display())).map_err(|e| e.kind(Kind::NotFound))
        }
        Err(e) => Err(e).with_context(|| format!("reading `{}`", path.display())),
    }
}

/// Sets a switch; what it was, or `None` if it was so already.
pub fn set(name: &str, value: &str) -> Result<Option<Previous>> {
    let was = read(name)?;
    if was == value {
        return Ok(None);
    }
    write(name, value)?;
    Ok(Some(Previous { name: name.to_owned(), was, now: value.to_owned() }))
}

/// Sets switches in this order; those that were changed. On failure, all are as before.
pub fn set_all<'a>(settings: impl IntoIterator<Item = (String, &'a str)>) -> Result<Vec<Previous>> {
    let mut changed = Vec::new();
    for (name, value) in settings {
        match set(&name, value) {
            Ok(previous) => changed.extend(previous),
            Err(e) => {
                // Best effort: the first error is the one to tell.
                let _ = restore(&changed);
                return Err(e);
            }
        }
    }
    Ok(changed)
}

/// Sets switches back, the last first. One that somebody else has set since stays as it is, one that is
/// gone with its interface is no failure, and the first failure stops none behind it.
pub fn restore(changed: &[Previous]) -> Result<()> {
    let mut failure = None;
    for previous in changed.iter().rev() {
        let done = match read(&previous.name) {
            Ok(now) if now == previous.now => write(&previous.name, &previous.was),
            Ok(_) => Ok(()),
            Err(e) if e.what() == Kind::NotFound => Ok(()),
            Err(e) => Err(e),
        };
        failure = failure.or(done.err());
    }
    failure.map_or(Ok(()), Err)
}

/// Lets IPv4 packets pass from one interface to another.
pub fn forward4() -> Result<Vec<Previous>> {
    set_all([("ipv4/ip_forward".to_owned(), "1")])
}

/// Lets IPv6 packets pass from one interface to another, and keeps what the host has learned from its
/// routers: a host that forwards believes router advertisements no more, and drops the routes it has
/// from them, unless `accept_ra` is 2 (Documentation/networking/ip-sysctl.rst; `rt6_purge_dflt_routers`,
/// net/ipv6/route.c). Nothing to do where the kernel has no IPv6.
pub fn forward6() -> Result<Vec<Previous>> {
    let forwarding = "ipv6/conf/all/forwarding".to_owned();
    match read(&forwarding) {
        Ok(value) if value != "0" => return Ok(Vec::new()),
        Err(e) if e.what() == Kind::NotFound => return Ok(Vec::new()),
        other => drop(other?),
    }
    let mut settings = Vec::new();
    for interface in fs::read_dir("/proc/sys/net/ipv6/conf").context("listing `/proc/sys/net/ipv6/conf`")? {
        let interface = interface?.file_name();
        // An interface of ours or of hardware has a name in UTF-8; of another name nothing is known.
        let Some(interface) = interface.to_str().filter(|interface| *interface != "all") else { continue };
        let accept = format!("ipv6/conf/{interface}/accept_ra");
        // An interface may vanish between the list and the look.
        if read(&accept).is_ok_and(|value| value == "1") {
            settings.push((accept, "2"));
        }
    }
    settings.push((forwarding, "1"));
    set_all(settings)
}

fn write(name: &str, value: &str) -> Result<()> {
    let path = path_of(name)?;
    fs::write(&path, value).with_context(|| format!("setting `{}` to `{value}`", path.display()))
}

fn path_of(name: &str) -> Result<PathBuf> {
    let inside = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !inside || name.is_empty() {
        return Err(error(format!("`{name}` is not a name of a switch")).kind(Kind::Invalid));
    }
    Ok(Path::new("/proc/sys/net").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leaves_the_directory() {
        for name in ["", "../kernel/hostname", "ipv4/../../kernel/hostname", "/etc/passwd", "."] {
            assert_eq!(read(name).unwrap_err().what(), Kind::Invalid, "{name}");
        }
    }
}
