//! Who a user name means, by the container's own files, which are not trusted with anything else.

use std::fs::File;

use lazaret_base::{Context, Kind, Result, error, read_bounded};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

/// A user of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The name, or the number where no name is known.
    pub name: String,
    /// User id in the container.
    pub uid: u32,
    /// Group id in the container.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// More is no passwd file.
const LONGEST_FILE: usize = 4 << 20;
/// setgroups(2) takes at most this many (NGROUPS_MAX).
const MOST_GROUPS: usize = 65536;

/// Finds a user in `/etc/passwd` and `/etc/group` of the caller's own root. Call it inside the container.
pub fn look_up(user: &str) -> Result<Account> {
    // Who can be named without the files can still get in to mend them.
    let plain = user == "root" || id(user).is_some();
    let read = |path| read(path).or_else(|e| if plain { Ok(Vec::new()) } else { Err(e) });
    resolve(user, &read("etc/passwd")?, &read("etc/group")?)
}

/// Reads a file of the container: a regular one, bounded, without following a link out of the root and
/// without waiting at a FIFO. An absent file is an empty one.
fn read(path: &str) -> Result<Vec<u8>> {
    let reading = || format!("reading `/{path}` in the container");
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(&root, path, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(reading),
    };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(error("not a regular file")).with_context(reading);
    }
    read_bounded(File::from(file), LONGEST_FILE).with_context(reading)
}

/// Resolves `user`, `user:group`, with names or numbers, by the text of passwd(5) and group(5).
///
/// `root` and `0` need no file. A number without a line in the file is taken as it is, with the group of
/// the same number and `/` as home.
pub fn resolve(user: &str, passwd: &[u8], group: &[u8]) -> Result<Account> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let mut account = find_user(user, passwd)?;
    account.groups = groups_of(&account.name, group);
    if let Some(wanted) = wanted_group {
        account.gid = find_group(wanted, group)?;
    }
    Ok(account)
}

fn find_user(user: &str, passwd: &[u8]) -> Result<Account> {
    let number = id(user);
    for fields in lines(passwd) {
        let [name, _, uid, gid, _, home, shell] = fields[..] else { continue };
        let (Some(uid), Some(gid)) = (id(uid), id(gid)) else { continue };
        if name == user || number == Some(uid) {
            let shell = if shell.is_empty() { "/bin/sh" } else { shell };
            let home = if home.starts_with('/') { home } else { "/" };
            let (name, home, shell) = (name.into(), home.into(), shell.into());
            return Ok(Account { name, uid, gid, groups: Vec::new(), home, shell });
        }
    }
    let plain = |name: &str, id: u32, home: &str| Account {
        name: name.into(),
        uid: id,
        gid: id,
        groups: Vec::new(),
        home: home.into(),
        shell: "/bin/sh".into(),
    };
    match (user, number) {
        ("root", _) | (_, Some(0)) => Ok(plain("root", 0, "/root")),
        (_, Some(id)) => Ok(plain(user, id, "/")),
        _ => Err(error(format!("the container has no user `{user}`"))
            .kind(Kind::NotFound)
            .hint("its users are in its /etc/passwd; a number works without one")),
    }
}

fn find_group(wanted: &str, group: &[u8]) -> Result<u32> {
    let by_name = lines(group).find_map(|fields| match fields[..] {
        [name, _, gid, ..] if name == wanted => id(gid),
        _ => None,
    });
    by_name.or_else(|| id(wanted)).ok_or_else(|| {
        error(format!("the container has no group `{wanted}`"))
            .kind(Kind::NotFound)
            .hint("its groups are in its /etc/group; a number works without one")
    })
}

/// The groups whose list of members has the user.
fn groups_of(user: &str, group: &[u8]) -> Vec<u32> {
    let member_of = |fields: Vec<&str>| match fields[..] {
        [_, _, gid, members] if members.split(',').any(|m| m == user) => id(gid),
        _ => None,
    };
    lines(group).filter_map(member_of).take(MOST_GROUPS).collect()
}

/// A user or group id. The highest number is none: system calls take it for "leave as it is" (setresuid(2)).
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// The lines of a passwd or group file, in fields. What is no text is skipped: such a user can't be named.
fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    file.split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000:Ann:/home/ann:\n\xff\xfe:x:1:1::/:\nbroken\n";
    const GROUP: &[u8] = b"root:x:0:\naudio:x:29:bob,ann\nvideo:x:44:ann\nann:x:1000:\n";

    #[test]
    fn a_user_has_the_groups_of_the_container() {
        let ann = resolve("ann", PASSWD, GROUP).unwrap();
        assert_eq!((ann.uid, ann.gid, ann.groups), (1000, 1000, vec![29, 44]));
        assert_eq!((ann.home.as_str(), ann.shell.as_str()), ("/home/ann", "/bin/sh"));
        assert_eq!(resolve("1000", PASSWD, GROUP).unwrap().name, "ann");
    }

    #[test]
    fn a_group_can_be_chosen_by_name_or_number() {
        assert_eq!(resolve("ann:video", PASSWD, GROUP).unwrap().gid, 44);
        assert_eq!(resolve("ann:7", PASSWD, GROUP).unwrap().gid, 7);
        assert_eq!(resolve("ann:nope", PASSWD, GROUP).unwrap_err().to_string(), "the container has no group `nope`");
    }

    #[test]
    fn numbers_and_root_need_no_file() {
        let someone = resolve("4711", b"", b"").unwrap();
        assert_eq!((someone.uid, someone.gid, someone.home.as_str()), (4711, 4711, "/"));
        assert_eq!(resolve("root", b"", b"").unwrap().home, "/root");
        assert_eq!(resolve("eve", PASSWD, GROUP).unwrap_err().what(), Kind::NotFound);
    }

    proptest::proptest! {
        #[test]
        fn no_file_of_a_container_makes_us_panic(user in ".{0,20}", passwd: Vec<u8>, group: Vec<u8>) {
            let _ = resolve(&user, &passwd, &group);
        }
    }
}
