//! Who sits at the screen: the one who typed the command, before sudo(8) or pkexec(1) made root of them.

use std::fs::File;
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Result, error, read_bounded};

/// More is no passwd file.
const LONGEST_FILE: usize = 16 << 20;

/// A person of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The login name.
    pub name: String,
    /// The user id.
    pub uid: u32,
    /// The login group.
    pub gid: u32,
    /// The home directory, if it is known.
    pub home: Option<PathBuf>,
}

impl Person {
    /// Whoever typed the command that runs as `own` now.
    ///
    /// sudo says it in `SUDO_UID`, doas(1) in `DOAS_USER`, pkexec in `PKEXEC_UID`. They are believed only from root's
    /// own environment: whoever can set it is root already.
    ///
    /// # Errors
    ///
    /// Where a number makes no sense, or `/etc/passwd` can't be read.
    pub fn caller(own: u32, variable: impl Fn(&str) -> Option<String>) -> Result<Person> {
        let file = File::open("/etc/passwd").context("reading `/etc/passwd`")?;
        let passwd = read_bounded(file, LONGEST_FILE).context("reading `/etc/passwd`")?;
        Person::of(own, variable, &passwd)
    }

    /// The same by the text of passwd(5). Who is in no file (a directory service's user) is what sudo says.
    fn of(own: u32, variable: impl Fn(&str) -> Option<String>, passwd: &[u8]) -> Result<Person> {
        let given = |name: &str| variable(name).filter(|_| own == 0).filter(|value| !value.is_empty());
        let number = |name: &str| {
            let parse = |text: String| text.parse::<u32>().map_err(|_| error(format!("`{name}={text}` is no id")));
            given(name).map(parse).transpose()
        };
        if let Some(name) = given("DOAS_USER").filter(|_| given("SUDO_UID").is_none())
            && let Some(person) = lines(passwd).find(|person| person.name == name)
        {
            return Ok(person);
        }
        let uid = number("SUDO_UID")?.or(number("PKEXEC_UID")?).unwrap_or(own);
        if let Some(person) = lines(passwd).find(|person| person.uid == uid) {
            return Ok(person);
        }
        let gid = number("SUDO_GID")?.unwrap_or(uid);
        let name = given("SUDO_USER").unwrap_or_else(|| uid.to_string());
        Ok(Person { name, uid, gid, home: given("SUDO_HOME").map(PathBuf::from) })
    }

    /// What a user of the same name inside is called: `user` where the name is root's, or none that a container takes.
    pub fn name_inside(&self) -> &str {
        let good = |(i, b): (usize, u8)| {
            b == b'_' || b.is_ascii_alphabetic() || (i > 0 && (b.is_ascii_digit() || b == b'-' || b == b'.'))
        };
        let fits = !self.name.is_empty() && self.name.len() <= 32 && self.name.bytes().enumerate().all(good);
        if fits && self.uid != 0 && self.name != "root" { &self.name } else { "user" }
    }
}

fn lines(passwd: &[u8]) -> impl Iterator<Item = Person> {
    passwd.split(|byte| *byte == b'\n').filter_map(|line| {
        let fields: Vec<&str> = std::str::from_utf8(line).ok()?.split(':').collect();
        let [name, _, uid, gid, _, home, _] = fields[..] else { return None };
        let home = Some(PathBuf::from(home)).filter(|home| home.is_absolute() && home != Path::new("/"));
        Some(Person { name: name.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\nann:x:1000:1001:Ann:/home/ann:/bin/bash\nbroken:x:7\n";

    fn of(own: u32, set: &'static [(&str, &str)]) -> Person {
        let variable = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Person::of(own, variable, PASSWD).unwrap()
    }

    #[test]
    fn who_typed_sudo_is_the_person() {
        let ann = of(0, &[("SUDO_UID", "1000"), ("SUDO_USER", "ann")]);
        assert_eq!((ann.name.as_str(), ann.uid, ann.gid), ("ann", 1000, 1001));
        assert_eq!(ann.home.as_deref(), Some(Path::new("/home/ann")));
        assert_eq!(of(0, &[("DOAS_USER", "ann")]), ann);
        assert_eq!(of(0, &[("PKEXEC_UID", "1000")]), ann);
        assert_eq!(of(0, &[]).name, "root");
    }

    #[test]
    fn nobody_but_root_says_who_somebody_is() {
        assert_eq!(of(1000, &[("SUDO_UID", "0")]).name, "ann");
    }

    #[test]
    fn who_is_in_no_file_is_what_sudo_says() {
        let eve = of(0, &[("SUDO_UID", "2000"), ("SUDO_GID", "2001"), ("SUDO_USER", "eve")]);
        assert_eq!((eve.name.as_str(), eve.uid, eve.gid, eve.home), ("eve", 2000, 2001, None));
    }

    #[test]
    fn inside_there_is_a_name_that_every_system_takes() {
        let named = |name: &str, uid| Person { name: name.into(), uid, gid: 0, home: None };
        assert_eq!(named("ann.smith", 1000).name_inside(), "ann.smith");
        for (name, uid) in [("root", 0), ("toor", 0), ("DOMAIN\\ann", 1000), ("", 1000), ("1000", 1000)] {
            assert_eq!(named(name, uid).name_inside(), "user", "{name}");
        }
    }
}
