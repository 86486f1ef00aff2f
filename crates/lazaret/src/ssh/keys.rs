//! Keys: one for each container, made on the host and shown to its server, and one for each person, for our containers
//! only.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use lazaret_base::{Context, Error, Kind, Result, error};
use lazaret_config::Name;
use lazaret_desktop::Person;
use lazaret_runtime::inside::{At, spawn};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, fchmod, mkdirat, openat, openat2, renameat, unlinkat};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::exec::Running;
use crate::home;
use crate::store::Store;

/// Where a container's server finds what it needs. `/dev` is in memory in every container, so that neither a snapshot
/// nor an export has a key in it.
pub(super) const INSIDE: &str = "/dev/lazaret-ssh";
/// The server's key there.
pub(super) const HOST_KEY: &str = "host_key";

/// A key of OpenSSH's.
pub(crate) struct KeyPair {
    /// In OpenSSH's own format.
    pub(crate) private: Vec<u8>,
    /// One line, without a comment.
    pub(crate) public: String,
}

/// What a person has for our containers.
pub(super) struct Keys {
    person: Person,
    /// Where it is.
    pub(super) place: PathBuf,
    public: String,
}

impl Keys {
    /// A person's key, which is made if there is none. It is theirs, and has no use without the right to run commands
    /// in a container.
    pub(super) fn of(store: &Store, person: &Person) -> Result<Keys> {
        let place = home::data(person)?.join("lazaret/ssh");
        let _lock = home::enter(person, &place)?;
        let (private, public) = (place.join("key"), place.join("key.pub"));
        let known = match (home::read(person, &private)?, home::read(person, &public)?) {
            (Some(_), Some(public)) => public_half(&public),
            _ => None,
        };
        let public = match known {
            Some(public) => public,
            None => {
                let made = generate(store)?;
                // The private half last: without it the next command makes both anew.
                home::write(person, &public, format!("{}\n", made.public).as_bytes())?;
                home::write(person, &private, &made.private)?;
                made.public
            }
        };
        Ok(Keys { person: person.clone(), place, public })
    }

    /// Has the person's ssh know a host by this key and no other.
    pub(super) fn know(&self, host: &str, public: &str) -> Result<()> {
        let _lock = home::enter(&self.person, &self.place)?;
        let path = self.place.join("known_hosts");
        let known = home::read(&self.person, &path)?.unwrap_or_default();
        let known = String::from_utf8_lossy(&known);
        match with_line(&known, &host.to_ascii_lowercase(), public) {
            Some(text) => home::write(&self.person, &path, text.as_bytes()),
            None => Ok(()),
        }
    }
}

/// The text of known_hosts (sshd(8)) with one host's line as it should be; `None` if it is so already.
fn with_line(known: &str, host: &str, public: &str) -> Option<String> {
    let line = format!("{host} {public}");
    let of_host = |line: &&str| line.split(' ').next() == Some(host);
    if known.lines().filter(of_host).eq([line.as_str()]) {
        return None;
    }
    let others = known.lines().filter(|line| !of_host(line));
    Some(others.chain([line.as_str()]).map(|line| format!("{line}\n")).collect())
}

/// The type and the key of a line, if it is one.
fn public_half(line: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_whitespace();
    let (kind, key) = (words.next()?, words.next()?);
    let is_base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
    (kind == "ssh-ed25519" && key.bytes().all(is_base64)).then(|| format!("{kind} {key}"))
}

/// A container's key, which is made if there is none. The caller holds the container's lock.
pub(super) fn of_host(store: &Store, name: &Name) -> Result<KeyPair> {
    if let Some((private, public)) = store.host_key(name)?
        && let Some(public) = public_half(&public)
    {
        return Ok(KeyPair { private, public });
    }
    let made = generate(store)?;
    store.write_host_key(name, &made.private, made.public.as_bytes())?;
    Ok(made)
}

/// A new key, by OpenSSH's own program, in a directory that nobody else can look into.
fn generate(store: &Store) -> Result<KeyPair> {
    let making = "making a key for ssh";
    let place = store.workshop("key")?;
    let path = place.path().join("key");
    let made = (|| -> Result<KeyPair> {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", "lazaret", "-f"]).arg(&path);
        let output = command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").stdin(Stdio::null()).output();
        let output = output.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => error("there is no `ssh-keygen` on this machine")
                .kind(Kind::Missing)
                .hint("it is in the package openssh-client (Debian, Ubuntu) or openssh"),
            _ => Error::from(e),
        })?;
        if !output.status.success() {
            return Err(error(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let public = public_half(&std::fs::read(path.with_extension("pub"))?);
        let public = public.ok_or_else(|| error("ssh-keygen has made something else"))?;
        Ok(KeyPair { private: std::fs::read(&path)?, public })
    })();
    store.clear(place)?;
    made.context(making)
}

/// Puts both keys where the container's server finds them: written inside, with the powers of the container's own root.
pub(super) fn show(running: &Running, host: &KeyPair, keys: &Keys, user_ns: bool) -> Result<()> {
    let at = At::Running { init: running.init.as_fd(), user_ns };
    let authorized = format!("{}\n", keys.public);
    let files = [
        (HOST_KEY.to_owned(), 0o600, host.private.as_slice()),
        (keys_of(keys.person.uid), 0o644, authorized.as_bytes()),
    ];
    let (child, mut line) = spawn(&at, |root, mut line| {
        if let Err(e) = root.and_then(|root| put(root.as_fd(), &files)) {
            // The other end may be gone.
            let _ = line.write_all(e.to_string().as_bytes());
        }
    })?;
    let mut wrong = String::new();
    let heard = line.read_to_string(&mut wrong);
    let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    heard?;
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(error(wrong).context("putting the keys of sshd into the container")),
    }
}

/// Whose key opens the connections of a person.
pub(super) fn keys_of(person: u32) -> String {
    format!("keys_of_{person}")
}

/// Inside.
fn put(root: BorrowedFd<'_>, files: &[(String, u32, &[u8])]) -> Result<()> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let inside = INSIDE.trim_start_matches('/');
    // The second is empty and has to be there (PRIVSEP_PATH): a service would have made it, or it is in a package.
    for (dir, mode) in [(inside, 0o755), ("run/sshd", 0o755)] {
        match mkdirat(root, dir, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(Errno::NOENT) if dir != inside => {}
            Err(e) => return Err(e).with_context(|| format!("making `/{dir}`")),
        }
    }
    let dir = openat2(root, inside, flags, Mode::empty(), resolve).with_context(|| format!("opening `{INSIDE}`"))?;
    for (name, mode, bytes) in files {
        let new = format!(".{name}");
        let _ = unlinkat(&dir, &new, AtFlags::empty());
        let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&dir, &new, create, Mode::from_raw_mode(0o600))?;
        fchmod(&file, Mode::from_raw_mode(*mode))?;
        File::from(file).write_all(bytes)?;
        renameat(&dir, &new, &dir, name.as_str())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_one_line_and_others_keep_theirs() {
        let known = "b.lazaret ssh-ed25519 B\na.lazaret ssh-ed25519 OLD\na.lazaret ssh-rsa OLDER\n";
        let changed = with_line(known, "a.lazaret", "ssh-ed25519 A").unwrap();
        assert_eq!(changed, "b.lazaret ssh-ed25519 B\na.lazaret ssh-ed25519 A\n");
        assert_eq!(with_line(&changed, "a.lazaret", "ssh-ed25519 A"), None);
        assert_eq!(with_line("", "a.lazaret", "ssh-ed25519 A").unwrap(), "a.lazaret ssh-ed25519 A\n");
    }

    #[test]
    fn what_is_no_key_is_none() {
        assert_eq!(public_half(b"ssh-ed25519 AAAA+/= ann@home\n").as_deref(), Some("ssh-ed25519 AAAA+/="));
        for none in [&b""[..], b"ssh-ed25519", b"ssh-rsa AAAA", b"command=\"x\" ssh-ed25519 AAAA", b"\xff \xff"] {
            assert_eq!(public_half(none), None);
        }
    }
}
