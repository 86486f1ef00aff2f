//! A user who is to be there: lines in passwd(5), group(5) and shadow(5), and a home.
//!
//! All of it is done by the container's own root before anything of the container runs. No link of the image is
//! followed, no file of it is written in place; an image that keeps its users otherwise is left as it is.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_base::{Context, Result, error, read_bounded};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, chownat, fchmod, fchown, fdatasync, fstat,
    mkdirat, openat, openat2, renameat, unlinkat,
};
use rustix::io::Errno;

/// More is no file of users, and nothing for a new home.
const LONGEST_FILE: usize = 4 << 20;
/// Files of `/etc/skel` that a new home gets, at most.
const MOST_IN_SKEL: usize = 64;
/// Ids of people (login.defs(5), UID_MIN and UID_MAX).
const FIRST_ID: u32 = 1000;
const LAST_ID: u32 = 60_000;

/// What a new user is to be, by the files that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Newcomer {
    uid: u32,
    gid: u32,
    /// Whether there is no group of that name yet.
    needs_group: bool,
}

/// Makes the user, unless there is one of that name.
pub fn add(name: &str) -> Result<()> {
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let Some(etc) = directory(root.as_fd(), "etc")? else { return Ok(()) };
    let (Some(passwd), Some(group)) = (users(etc.as_fd(), "passwd")?, users(etc.as_fd(), "group")?) else {
        return Ok(());
    };
    let Some(newcomer) = decide(name, &passwd.text, &group.text)? else { return Ok(()) };
    let Newcomer { uid, gid, needs_group } = newcomer;
    make_home(root.as_fd(), etc.as_fd(), name, &newcomer)?;
    if needs_group {
        append(etc.as_fd(), "group", &group, &format!("{name}:x:{gid}:\n"))?;
    }
    // No password fits `*`. A `!` would lock the account, by key, too (sshd(8)).
    for (file, line) in [("gshadow", format!("{name}:!::\n")), ("shadow", format!("{name}:*:::::::\n"))] {
        if let Some(old) = users(etc.as_fd(), file)?.filter(|old| old.is_there() && !names(&old.text, name)) {
            append(etc.as_fd(), file, &old, &line)?;
        }
    }
    let shell = if executable(root.as_fd(), "bin/bash") { "/bin/bash" } else { "/bin/sh" };
    // Last: while it is missing, the next start does what is left.
    append(etc.as_fd(), "passwd", &passwd, &format!("{name}:x:{uid}:{gid}::/home/{name}:{shell}\n"))
}

/// Which ids a new user gets: those of a group of that name if they are free, else the first that are. `None` if the
/// user is there.
fn decide(name: &str, passwd: &[u8], group: &[u8]) -> Result<Option<Newcomer>> {
    if names(passwd, name) {
        return Ok(None);
    }
    let (uids, gids) = (ids(passwd), ids(group));
    let own = fields(group).find(|fields| fields.first() == Some(&name.as_bytes())).and_then(|fields| id(&fields));
    let free = |id: &u32| !uids.contains(id) && (own == Some(*id) || !gids.contains(id));
    let uid = own.filter(|id| *id >= FIRST_ID && free(id)).or_else(|| (FIRST_ID..LAST_ID).find(free));
    let uid = uid.ok_or_else(|| error("no user id is free in the container"))?;
    Ok(Some(Newcomer { uid, gid: own.unwrap_or(uid), needs_group: own.is_none() }))
}

fn fields(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':').collect())
}

fn names(file: &[u8], name: &str) -> bool {
    fields(file).any(|fields| fields.first() == Some(&name.as_bytes()))
}

/// The number in the third field.
fn id(fields: &[&[u8]]) -> Option<u32> {
    std::str::from_utf8(fields.get(2)?).ok()?.parse().ok()
}

fn ids(file: &[u8]) -> std::collections::BTreeSet<u32> {
    fields(file).filter_map(|fields| id(&fields)).collect()
}

/// A file of users as it is.
struct Users {
    text: Vec<u8>,
    /// `None` if it is not there.
    status: Option<Stat>,
}

impl Users {
    fn is_there(&self) -> bool {
        self.status.is_some()
    }
}

/// A directory that is no link. `None` if there is none.
fn directory(at: BorrowedFd<'_>, path: &str) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match openat2(at, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("opening `/{path}` in the container")),
    }
}

/// Reads a file of users. `None` if something else has its name.
fn users(etc: BorrowedFd<'_>, name: &str) -> Result<Option<Users>> {
    let reading = || format!("reading `/etc/{name}` in the container");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match openat(etc, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Some(Users { text: Vec::new(), status: None })),
        Err(Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(e) => return Err(e).with_context(reading),
    };
    let status = fstat(&file).with_context(reading)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let text = read_bounded(File::from(file), LONGEST_FILE).with_context(reading)?;
    Ok(Some(Users { text, status: Some(status) }))
}

/// Puts a file with one line more in the place of the old one: whole, with its owner and mode.
fn append(etc: BorrowedFd<'_>, name: &str, old: &Users, line: &str) -> Result<()> {
    let writing = || format!("writing `/etc/{name}` in the container");
    let mut text = old.text.clone();
    if text.last().is_some_and(|byte| *byte != b'\n') {
        text.push(b'\n');
    }
    text.extend(line.as_bytes());
    let temporary = format!(".{name}.lazaret");
    // Left by a start that was killed.
    let _ = unlinkat(etc, &temporary, AtFlags::empty());
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(etc, &temporary, flags, Mode::from(0o600)).with_context(writing)?;
    if let Some(status) = &old.status {
        fchown(&file, Some(Uid::from_raw(status.st_uid)), Some(Gid::from_raw(status.st_gid))).with_context(writing)?;
    }
    let mode = old.status.as_ref().map_or(0o644, |status| status.st_mode & 0o777);
    fchmod(&file, Mode::from_raw_mode(mode)).with_context(writing)?;
    let mut file = File::from(file);
    file.write_all(&text).with_context(writing)?;
    fdatasync(&file).with_context(writing)?;
    renameat(etc, &temporary, etc, name).with_context(writing)
}

/// Makes the home, with what new homes get. One that is there is left as it is.
fn make_home(root: BorrowedFd<'_>, etc: BorrowedFd<'_>, name: &str, newcomer: &Newcomer) -> Result<()> {
    let making = || format!("making `/home/{name}` in the container");
    match mkdirat(root, "home", Mode::from(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e).with_context(making),
    }
    let Some(homes) = directory(root, "home")? else { return Ok(()) };
    match mkdirat(&homes, name, Mode::from(0o700)) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(e) => return Err(e).with_context(making),
    }
    let owner = (Some(Uid::from_raw(newcomer.uid)), Some(Gid::from_raw(newcomer.gid)));
    chownat(&homes, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).with_context(making)?;
    if let (Some(skel), Some(home)) = (directory(etc, "skel")?, directory(homes.as_fd(), name)?) {
        for entry in Dir::read_from(&skel).with_context(making)?.take(MOST_IN_SKEL).flatten() {
            // What can't be copied is missed by nobody.
            let _ = copy(skel.as_fd(), home.as_fd(), entry.file_name(), owner);
        }
    }
    Ok(())
}

/// Copies a regular file.
fn copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    (uid, gid): (Option<Uid>, Option<Gid>),
) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(from, name, flags, Mode::empty())?;
    let status = fstat(&file)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Ok(());
    }
    let bytes = read_bounded(File::from(file), LONGEST_FILE)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let copy = openat(to, name, flags, Mode::from_raw_mode(status.st_mode & 0o755))?;
    fchown(&copy, uid, gid)?;
    Ok(File::from(copy).write_all(&bytes)?)
}

/// Whether there is such a program; links may lead to it, since it is only looked at.
fn executable(root: BorrowedFd<'_>, path: &str) -> bool {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    file.and_then(fstat).is_ok_and(|status| status.st_mode & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash\n";
    const GROUP: &[u8] = b"root:x:0:\nubuntu:x:1000:\nmail:x:1001:\n";

    fn new(name: &str, passwd: &[u8], group: &[u8]) -> Option<(u32, u32, bool)> {
        decide(name, passwd, group).unwrap().map(|new| (new.uid, new.gid, new.needs_group))
    }

    #[test]
    fn a_new_user_has_an_id_that_is_neither_a_users_nor_a_groups() {
        assert_eq!(new("ann", b"", b""), Some((1000, 1000, true)));
        assert_eq!(new("ann", PASSWD, GROUP), Some((1002, 1002, true)));
        assert_eq!(new("ubuntu", PASSWD, GROUP), None);
    }

    #[test]
    fn a_start_that_was_killed_after_the_group_is_finished_with_the_same_ids() {
        assert_eq!(new("ann", PASSWD, b"ann:x:1003:\n"), Some((1003, 1003, false)));
        // A group of the system's of that name is not a user's id.
        assert_eq!(new("mail", b"", b"mail:x:8:\n"), Some((1000, 8, false)));
    }

    proptest::proptest! {
        #[test]
        fn no_file_of_an_image_makes_us_panic(passwd: Vec<u8>, group: Vec<u8>) {
            let _ = decide("ann", &passwd, &group);
        }
    }
}
