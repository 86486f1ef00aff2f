//! The session: its variables, from the caller's environment or else from the person's processes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use lazaret_base::{Kind, Result, error, read_bounded};

use crate::display::Display;
use crate::follow::{LANGUAGE, LOOKS, MESSAGES, ZONE};
use crate::person::Person;

/// What of an environment tells where the session is.
const PLACE: &[&str] =
    &["DISPLAY", "XAUTHORITY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "PULSE_SERVER"];
/// What the person's own programs need beside, when one is begun for them.
const OWN: &[&str] = &[
    "BROWSER",
    "DBUS_SESSION_BUS_ADDRESS",
    "DESKTOP_SESSION",
    "PATH",
    "XDG_CURRENT_DESKTOP",
    "XDG_DATA_DIRS",
    "XDG_SESSION_TYPE",
];
/// What is taken of an environment.
fn wanted() -> impl Iterator<Item = &'static str> {
    [PLACE, OWN, LANGUAGE, MESSAGES, ZONE, LOOKS].into_iter().flatten().copied()
}

/// An environment that is longer is cut off (`ARG_MAX` is less).
const LONGEST_ENVIRONMENT: usize = 4 << 20;

/// A session of a person's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Whose.
    pub person: Person,
    variables: BTreeMap<String, String>,
}

impl Session {
    /// The session that a command was typed in.
    ///
    /// What sudo has stripped is found with the person's own processes. The caller's words count before theirs.
    pub fn find(person: Person, variable: impl Fn(&str) -> Option<String>) -> Session {
        let given = wanted().filter_map(|name| Some((name.to_owned(), variable(name)?)));
        let mut variables: BTreeMap<_, _> = given.filter(|(_, value)| !value.is_empty()).collect();
        let has_screen = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| variables.contains_key(*name));
        if !has_screen && person.uid != 0 {
            let found = most_common(environments(person.uid));
            // Half of one session and half of another would fit nowhere.
            variables.retain(|name, _| name != "XAUTHORITY");
            for (name, value) in found {
                variables.entry(name).or_insert(value);
            }
        }
        Session { person, variables }
    }

    /// A variable of the session's.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// The X display.
    ///
    /// # Errors
    ///
    /// [`Kind::Missing`] where the session has none, [`Kind::Invalid`] for one of another machine's.
    pub fn display(&self) -> Result<Display> {
        if let Some(display) = self.variable("DISPLAY") {
            return Display::parse(display);
        }
        let name = &self.person.name;
        let what = match self.variable("WAYLAND_DISPLAY") {
            Some(_) => format!("the session of `{name}` has a Wayland display that is not there, and no X display"),
            None => {
                format!("`{name}` has no graphical session here: DISPLAY is not set, and no process of theirs has it")
            }
        };
        let hint = "type it in a terminal of the session, as `sudo -E lazaret app …`";
        Err(error(what).kind(Kind::Missing).hint(hint))
    }

    /// The socket of the Wayland compositor, if the session has one (wl_display_connect(3)).
    pub fn wayland(&self) -> Option<PathBuf> {
        let name = self.variable("WAYLAND_DISPLAY")?;
        // An absolute name is taken as it is.
        Some(self.runtime_directory().join(name)).filter(|path| path.is_absolute())
    }

    /// Where sockets of the session lie.
    fn runtime_directory(&self) -> PathBuf {
        let own = self.variable("XDG_RUNTIME_DIR").map(PathBuf::from);
        // sudo keeps the person's variable sometimes, and sometimes has root's.
        let own = own.filter(|dir| dir.ends_with(self.person.uid.to_string()) || !dir.starts_with("/run/user"));
        own.unwrap_or_else(|| PathBuf::from(format!("/run/user/{}", self.person.uid)))
    }

    /// Where the credentials for the display are.
    pub fn authority(&self) -> Option<PathBuf> {
        let set = self.variable("XAUTHORITY").map(PathBuf::from);
        set.or_else(|| self.person.home.as_ref().map(|home| home.join(".Xauthority")))
    }
}

impl Session {
    /// The socket of the sound server: where `PULSE_SERVER` says, or where PulseAudio and pipewire-pulse are found
    /// without. `None` for one that is reached over a network.
    pub fn sound(&self) -> Option<PathBuf> {
        if let Some(server) = self.variable("PULSE_SERVER") {
            // A machine's id in braces may stand before it (PulseAudio's client.conf).
            let server = server.rsplit('}').next().unwrap_or_default();
            let path = server.strip_prefix("unix:").unwrap_or(server);
            return Some(PathBuf::from(path)).filter(|path| path.is_absolute());
        }
        Some(self.runtime_directory().join("pulse/native")).filter(|path| path.is_absolute())
    }

    /// The socket of the session's bus. `None` for one that has no place in the file system.
    pub fn bus(&self) -> Option<PathBuf> {
        if let Some(address) = self.variable("DBUS_SESSION_BUS_ADDRESS") {
            let first = address.split(';').next().unwrap_or_default().strip_prefix("unix:")?;
            let path = first.split(',').find_map(|pair| pair.strip_prefix("path="))?;
            // What is escaped (D-Bus specification, "Server Addresses") is no usual path.
            return Some(PathBuf::from(path)).filter(|path| path.is_absolute() && !first.contains('%'));
        }
        Some(self.runtime_directory().join("bus")).filter(|path| path.is_absolute())
    }

    /// The environment of a program that is begun for the person, outside.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut all: Vec<_> = self.variables.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let mut add = |name: &str, value: String| {
            if !all.iter().any(|(known, _)| known == name) {
                all.push((name.to_owned(), value));
            }
        };
        add("PATH", "/usr/local/bin:/usr/bin:/bin".into());
        add("USER", self.person.name.clone());
        add("LOGNAME", self.person.name.clone());
        let text = |path: PathBuf| path.to_str().map(str::to_owned);
        if let Some(home) = self.person.home.clone().and_then(text) {
            add("HOME", home);
        }
        if let Some(dir) = text(self.runtime_directory()) {
            all.retain(|(name, _)| name != "XDG_RUNTIME_DIR");
            all.push(("XDG_RUNTIME_DIR".into(), dir));
        }
        all
    }
}

/// The environments of a user's processes, as far as we want to know them. Processes in other mount namespaces are
/// somebody's container or sandbox: what they say of displays is not meant for us.
fn environments(uid: u32) -> Vec<BTreeMap<String, String>> {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let of = |entry: fs::DirEntry| {
        let path = entry.path();
        let is_process = entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
        let is_theirs = is_process && entry.metadata().is_ok_and(|status| status.uid() == uid);
        if !is_theirs || fs::read_link(path.join("ns/mnt")).ok() != own {
            return None;
        }
        let text = read_bounded(File::open(path.join("environ")).ok()?, LONGEST_ENVIRONMENT).ok()?;
        let environment = parse(&text);
        let has_screen = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| environment.contains_key(*name));
        has_screen.then_some(environment)
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(of).collect()
}

fn parse(text: &[u8]) -> BTreeMap<String, String> {
    let pairs = text.split(|byte| *byte == 0).filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='));
    let of_use = pairs.filter(|(name, value)| wanted().any(|one| one == *name) && !value.is_empty());
    of_use.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The environment whose display and credentials most others have, too. Of several that say so, the richest.
fn most_common(all: Vec<BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let session = |one: &BTreeMap<String, String>| {
        ["DISPLAY", "XAUTHORITY", "WAYLAND_DISPLAY"].map(|name| one.get(name).cloned())
    };
    let votes = |one: &BTreeMap<String, String>| all.iter().filter(|other| session(other) == session(one)).count();
    all.iter().max_by_key(|one| (votes(one), one.len())).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ann() -> Person {
        Person { name: "ann".into(), uid: u32::MAX - 7, gid: 1000, home: Some("/home/ann".into()) }
    }

    fn of(pairs: &'static [(&str, &str)]) -> Session {
        Session::find(ann(), |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_callers_words_are_the_session() {
        let session = of(&[("DISPLAY", ":1"), ("LANG", "de_DE.UTF-8"), ("SECRET", "x")]);
        assert_eq!(session.display().unwrap(), Display { number: 1 });
        assert_eq!((session.variable("LANG"), session.variable("SECRET")), (Some("de_DE.UTF-8"), None));
        assert_eq!(session.authority(), Some("/home/ann/.Xauthority".into()));
    }

    #[test]
    fn a_sound_server_has_a_socket_of_this_machine() {
        let socket = |pairs| of(pairs).sound().map(|path| path.display().to_string());
        let usual = Some(format!("/run/user/{}/pulse/native", u32::MAX - 7));
        assert_eq!(socket(&[]), usual);
        assert_eq!(socket(&[("XDG_RUNTIME_DIR", "/run/user/0")]), usual, "that is root's");
        assert_eq!(socket(&[("XDG_RUNTIME_DIR", "/x")]).as_deref(), Some("/x/pulse/native"));
        assert_eq!(socket(&[("PULSE_SERVER", "{a1b2}unix:/y/native")]).as_deref(), Some("/y/native"));
        assert_eq!(socket(&[("PULSE_SERVER", "tcp:host:4713")]), None);
    }

    #[test]
    fn a_bus_has_a_socket_of_this_machine() {
        let socket = |pairs| of(pairs).bus().map(|path| path.display().to_string());
        assert_eq!(socket(&[]), Some(format!("/run/user/{}/bus", u32::MAX - 7)));
        let of_address = |address: &'static str| {
            let pairs: &'static [(&str, &str)] = vec![("DBUS_SESSION_BUS_ADDRESS", address)].leak();
            socket(pairs)
        };
        let found = of_address("unix:path=/run/user/1/bus,guid=ab;tcp:host=x");
        assert_eq!(found.as_deref(), Some("/run/user/1/bus"));
        for other in ["unix:abstract=/tmp/x", "tcp:host=x", "unix:path=x", "unix:path=/a%20b"] {
            assert_eq!(of_address(other), None, "{other}");
        }
    }

    #[test]
    fn a_program_of_the_persons_has_the_sessions_environment() {
        let environment = of(&[("DISPLAY", ":1"), ("XDG_RUNTIME_DIR", "/run/user/0"), ("SECRET", "x")]).environment();
        let value = |name: &str| environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!([value("DISPLAY"), value("HOME"), value("USER")], [Some(":1"), Some("/home/ann"), Some("ann")]);
        assert_eq!(value("XDG_RUNTIME_DIR"), Some(&*format!("/run/user/{}", u32::MAX - 7)), "not root's");
        assert_eq!(value("SECRET"), None);
    }

    #[test]
    fn who_has_no_session_is_told_what_is_missing() {
        let e = of(&[]).display().unwrap_err();
        assert_eq!(e.what(), Kind::Missing);
        assert!(e.to_string().contains("DISPLAY") && e.advice().unwrap().contains("sudo -E"), "{e}");
        let e = of(&[("WAYLAND_DISPLAY", "wayland-0")]).display().unwrap_err();
        assert!(e.to_string().contains("Wayland"), "{e}");
    }

    #[test]
    fn a_compositor_is_where_its_library_looks_for_it() {
        let socket = |pairs| of(pairs).wayland().map(|path| path.display().to_string());
        assert_eq!(socket(&[]), None);
        let usual = format!("/run/user/{}/wayland-1", u32::MAX - 7);
        assert_eq!(socket(&[("WAYLAND_DISPLAY", "wayland-1")]).as_deref(), Some(&*usual));
        assert_eq!(socket(&[("WAYLAND_DISPLAY", "w"), ("XDG_RUNTIME_DIR", "/x")]).as_deref(), Some("/x/w"));
        assert_eq!(socket(&[("WAYLAND_DISPLAY", "/y/w"), ("XDG_RUNTIME_DIR", "/x")]).as_deref(), Some("/y/w"));
    }

    #[test]
    fn of_several_sessions_the_one_with_most_processes_counts() {
        let one = |display: &str, more: &str| parse(format!("DISPLAY={display}\0{more}\0JUNK\0=\0X=1").as_bytes());
        let chosen = most_common(vec![one(":5", "LANG=C"), one(":0", ""), one(":0", "TZ=UTC"), one(":0", "")]);
        assert_eq!((chosen["DISPLAY"].as_str(), chosen["TZ"].as_str()), (":0", "UTC"));
        assert!(most_common(Vec::new()).is_empty());
    }
}
