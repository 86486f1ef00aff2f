//! Files of the host that a container sees: asked for, checked, shown at once, and taken away again.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use lazaret_base::{Context, Kind, Result, error, read_bounded};
use lazaret_config::{Config, Name, Share};
use lazaret_runtime::account;
use lazaret_runtime::cgroup;
use lazaret_runtime::share::{Gone, Into, Person, Shown, attach, detach, open_source, place_of};
use rustix::fs::{FileType, Mode, OFlags, open};
use serde::Serialize;

use crate::exec::{Running, running};
use crate::limit::edit;
use crate::store::{Record, Store};

/// A share as it is asked for.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Where it is on the host, as it was typed.
    pub source: &'a Path,
    /// Where it shall appear; where it is outside, if not given.
    pub target: Option<&'a Path>,
    /// Nothing in it can be changed from inside.
    pub read_only: bool,
    /// No program in it can be executed from inside.
    pub no_exec: bool,
    /// A start goes on without it.
    pub optional: bool,
    /// Whose files belong to the container's user, if not the source's owner's.
    pub owner: Option<u32>,
    /// Whether a source that opens the host wide is meant.
    pub really: bool,
    /// What the target has to be, if the caller cares.
    pub create: Option<Create>,
}

/// What is made where a target is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// A directory.
    Directory,
    /// A file.
    File,
}

/// A share that was made.
#[derive(Clone, Debug)]
pub struct Shared {
    /// As it is written down.
    pub share: Share,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
}

/// Adds a share, at once if the container runs.
///
/// `caller` is the person on whose behalf root acts, if there is one: what is root's on the host is theirs inside no
/// more than outside, but files that they may not even name are not opened by accident.
pub fn add(store: &Store, name: &Name, wanted: &Wanted<'_>, caller: Option<u32>) -> Result<Shared> {
    let sharing = || format!("sharing `{}` with `{name}`", wanted.source.display());
    let source = fs::canonicalize(wanted.source)
        .with_context(|| format!("looking for `{}`", wanted.source.display()))
        .hint("what is shared must be there; make it first")
        .with_context(sharing)?;
    let (_, status) = open_source(&source).with_context(sharing)?;
    let is_directory = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
    if wanted.create.is_some_and(|create| (create == Create::Directory) != is_directory) {
        let what = if is_directory { "a directory" } else { "no directory" };
        return Err(error(format!("it is {what}")).kind(Kind::Invalid).hint("leave `--create` away"))
            .with_context(sharing);
    }
    let absolute = std::path::absolute(wanted.source).unwrap_or_else(|_| source.clone());
    let share = Share {
        read_only: wanted.read_only,
        no_exec: wanted.no_exec,
        optional: wanted.optional,
        // The person who asks is who is meant where the owner can't be.
        owner: wanted.owner.or(caller.filter(|caller| status.st_uid == 0 && *caller != 0)),
        confirmed: wanted.really,
        ..Share::new(&source, wanted.target.unwrap_or(&absolute)).with_context(sharing)?
    };
    if share.owner == Some(0) && !wanted.really {
        return Err(error("files of root's would be the container's to write, with root's set-user-ID bit, too")
            .kind(Kind::Invalid)
            .hint("say `--yes-really` if that is meant"))
        .with_context(sharing);
    }
    let mut notes = Vec::new();
    if absolute.components().ne(source.components()) {
        notes.push(format!("`{}` is `{}`", wanted.source.display(), source.display()));
    }
    if let Some(sentence) = foreign_socket(&source, &status) {
        notes.push(sentence);
    }
    let changed = edit(store, name, |document| {
        let mut shares = document.config().shares.clone();
        if let Some(there) = shares.iter().find(|there| there.target == share.target) {
            return Err(error(format!("`{}` is at `{}` already", there.source.display(), share.target.display()))
                .kind(Kind::Exists)
                .hint(format!("take it away first: lazaret unshare {name} {}", share.target.display())));
        }
        shares.push(share.clone());
        document.set_list("shares", &shares)
    })
    .with_context(sharing)?;
    notes.extend(changed.notes);
    Ok(Shared { share, notes })
}

/// A socket that is shared alone goes stale when its server makes a new one.
fn foreign_socket(source: &Path, status: &rustix::fs::Stat) -> Option<String> {
    let is_socket = FileType::from_raw_mode(status.st_mode) == FileType::Socket;
    is_socket.then(|| {
        let parent = source.parent().unwrap_or(Path::new("/"));
        format!("when its server starts anew, share it anew, or share its directory `{}`", parent.display())
    })
}

/// Takes a share away: the one at this path inside, or of this path outside. Says which it was.
pub fn remove(store: &Store, name: &Name, path: &Path) -> Result<Share> {
    let outside = fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned());
    let inside: PathBuf = path.components().collect();
    let mut removed = None;
    edit(store, name, |document| {
        let mut shares = document.config().shares.clone();
        let at = match shares.iter().position(|share| share.target == inside) {
            Some(at) => at,
            None => {
                let of: Vec<_> = (0..shares.len()).filter(|at| shares[*at].source == outside).collect();
                match of[..] {
                    [at] => at,
                    [] => return Err(no_such_share(name, path, &shares)),
                    _ => {
                        return Err(error(format!("`{}` is shared more than once", outside.display()))
                            .kind(Kind::Invalid)
                            .hint("name the place inside"));
                    }
                }
            }
        };
        removed = Some(shares.remove(at));
        document.set_list("shares", &shares)
    })
    .with_context(|| format!("taking `{}` away from `{name}`", path.display()))?;
    removed.ok_or_else(|| error("nothing was taken away"))
}

fn no_such_share(name: &Name, path: &Path, shares: &[Share]) -> lazaret_base::Error {
    let known: Vec<_> = shares.iter().map(|share| share.target.display().to_string()).collect();
    let hint = match known.is_empty() {
        true => format!("`{name}` has no shares"),
        false => format!("its shares are at {}", known.join(", ")),
    };
    error(format!("`{}` is not shared", path.display())).kind(Kind::NotFound).hint(hint)
}

// --- what opens the host wide ---

/// What is never shared by accident, with the reason. Neither is what holds one of these, nor what is in one.
const DANGEROUS: &[(&str, &str)] = &[
    ("/etc", "the host's settings and passwords"),
    ("/root", "the home of root"),
    ("/boot", "what the host starts with"),
    ("/proc", "the host's processes"),
    ("/sys", "the host's kernel and devices"),
    ("/dev", "the host's devices"),
    ("/run/user", "the sockets of sessions: who has one is in the session"),
    ("/run/dbus", "the socket of the system bus"),
    ("/run/systemd", "the sockets of systemd"),
    ("/run/docker.sock", "the socket of docker: who has it is root"),
    ("/run/podman", "the socket of podman: who has it is root"),
    ("/run/containerd", "the socket of containerd: who has it is root"),
    ("/run/crio", "the socket of CRI-O: who has it is root"),
    ("/tmp/.X11-unix", "the sockets of X servers: who has one sees and types everything"),
    ("/var/lib/docker", "the containers of docker"),
    ("/var/lib/containers", "the containers of podman"),
    ("/var/lib/containerd", "the containers of containerd"),
    ("/var/spool/cron", "what the host executes by itself"),
];

/// How sockets are called that give their owner away, wherever they lie.
const SOCKETS: &[&str] = &[
    "docker.sock",
    "podman.sock",
    "containerd.sock",
    "crio.sock",
    "system_bus_socket",
    "bus",
    "native",
    "pipewire-",
    "wayland-",
    "X0",
    "X1",
    "S.gpg-agent",
    "agent.",
    "keyring",
];

/// Why sharing a path would open the host wide, in words that continue "it is".
fn danger(path: &Path, homes: &[PathBuf], own: &[PathBuf]) -> Option<String> {
    if path == Path::new("/") {
        return Some("it is the whole host".into());
    }
    for (dangerous, what) in DANGEROUS {
        if path.starts_with(dangerous) {
            return Some(format!("it is in `{dangerous}`: {what}"));
        }
        if Path::new(dangerous).starts_with(path) {
            return Some(format!("it holds `{dangerous}`: {what}"));
        }
    }
    for home in homes {
        if home.starts_with(path) {
            return Some(format!("it is, or holds, the whole home `{}`", home.display()));
        }
        let first = path.strip_prefix(home).ok().and_then(|below| below.components().next());
        if let Some(Component::Normal(name)) = first
            && name.as_encoded_bytes().starts_with(b".")
        {
            let shown = home.join(name);
            return Some(format!("it is in `{}`: keys, settings and what runs at login", shown.display()));
        }
    }
    own.iter()
        .find(|own| path.starts_with(own) || own.starts_with(path))
        .map(|_| "it is where containers are kept".into())
}

/// A socket by which a session or the host is given away: the source itself, or one that lies in it.
fn dangerous_socket(source: &Path) -> Option<String> {
    let known = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_socket = fs::symlink_metadata(path).is_ok_and(|status| status.file_type().is_socket());
        is_socket && SOCKETS.iter().any(|known| name == *known || (!known.starts_with('X') && name.starts_with(known)))
    };
    if known(source) {
        return Some("it is a socket that gives a session, or the host, away".into());
    }
    // One who hides a socket among more files than this has other ways.
    const MOST: usize = 4096;
    let found =
        fs::read_dir(source).into_iter().flatten().flatten().take(MOST).map(|entry| entry.path()).find(|p| known(p));
    found.map(|socket| format!("it holds `{}`, a socket that gives a session, or the host, away", socket.display()))
}

/// The homes of people, by the host's own list of users.
fn homes() -> Vec<PathBuf> {
    const LONGEST: usize = 4 << 20;
    const PEOPLE: std::ops::Range<u32> = 1000..60_000;
    let text =
        fs::File::open("/etc/passwd").map_err(lazaret_base::Error::from).and_then(|file| read_bounded(file, LONGEST));
    let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
    let home = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        let (uid, home) = (fields.get(2)?.parse::<u32>().ok()?, *fields.get(5)?);
        let of_a_person = (uid == 0 || PEOPLE.contains(&uid)) && home.starts_with('/') && home.len() > 1;
        of_a_person.then(|| fs::canonicalize(home).unwrap_or_else(|_| home.into()))
    };
    text.lines().filter_map(home).collect()
}

/// Refuses what opens the host wide, unless it was said to be meant.
pub(crate) fn check(store: &Store, name: &Name, shares: &[Share]) -> Result<()> {
    let doubtful: Vec<_> = shares.iter().filter(|share| !share.confirmed).collect();
    if doubtful.is_empty() {
        return Ok(());
    }
    let (homes, own) = (homes(), store.own_places());
    for share in doubtful {
        if let Some(why) = danger(&share.source, &homes, &own).or_else(|| dangerous_socket(&share.source)) {
            let (source, target) = (share.source.display(), share.target.display());
            return Err(error(format!("`{source}` is not shared by accident: {why}"))
                .kind(Kind::Invalid)
                .hint(format!("if that is meant: lazaret share {name} {source}:{target} --yes-really")));
        }
    }
    Ok(())
}

// --- a running container ---

/// The user inside who has what is the person's outside, and their group.
pub(crate) fn person(store: &Store, name: &Name, record: &Record, config: &Config) -> (u32, u32) {
    const USUAL: u32 = 1000;
    let passwd = store.own_file(name, record, Path::new("etc/passwd")).unwrap_or_default();
    let known = |uid: u32| {
        let account = account::resolve(&uid.to_string(), &passwd, &[]).ok()?;
        // A number without a line goes by its number.
        (account.name != uid.to_string()).then_some((account.uid, account.gid))
    };
    match config.person {
        Some(uid) => known(uid).unwrap_or((uid, uid)),
        None => known(USUAL).unwrap_or((0, 0)),
    }
}

/// Has a running container see what is wanted now. On failure it sees what it saw before. What was begun is noted until
/// [`Store::forget_change_of_shares`].
pub(crate) fn change(
    store: &Store,
    name: &Name,
    running: &Running,
    before: &[Share],
    wanted: &[Share],
) -> Result<Vec<String>> {
    let less: Vec<Share> = before.iter().filter(|share| !wanted.contains(share)).cloned().collect();
    let more: Vec<Share> = wanted.iter().filter(|share| !before.contains(share)).cloned().collect();
    if less.is_empty() && more.is_empty() {
        return Ok(Vec::new());
    }
    // Recorded before it is done: should we be killed, the next command takes it back.
    let touched: Vec<Share> = less.iter().chain(&more).cloned().collect();
    store.note_change_of_shares(name, &touched)?;
    let moved = take_away(running, &less, wanted).and_then(|()| show(store, name, running, &more));
    moved.inspect_err(|_| {
        // As far as it goes.
        let _ = take_away(running, &more, before).and_then(|()| show(store, name, running, &less));
        store.forget_change_of_shares(name);
    })
}

/// Takes back what a killed command had begun: the container sees again what its configuration says.
pub(crate) fn settle(store: &Store, name: &Name) -> Result<()> {
    let Some(touched) = store.change_of_shares(name)? else { return Ok(()) };
    if let Ok(running) = running(store, name) {
        let wanted = store.document(name)?.config().shares.clone();
        let back: Vec<Share> = touched.iter().filter(|share| wanted.contains(share)).cloned().collect();
        take_away(&running, &touched, &wanted)?;
        // One that is gone from the host by now is no reason to keep every other command from its work.
        let _ = show(store, name, &running, &back);
        let mut now = running.config.clone();
        now.shares.retain(|share| !touched.contains(share));
        now.shares.extend(back);
        store.write_running_config(name, &now)?;
    }
    store.forget_change_of_shares(name);
    Ok(())
}

fn show(store: &Store, name: &Name, running: &Running, shares: &[Share]) -> Result<Vec<String>> {
    let mut shares = shares.to_vec();
    // What is above others comes first.
    shares.sort_by(|a, b| a.target.cmp(&b.target));
    let record = store.record(name)?;
    let (uid, gid) = person(store, name, &record, &running.config);
    let person = record.ids.map(|ids| Person { uid, gid, ids: ids.into() });
    let into = Into { user: person.map(|_| running.init.as_fd()), mounts: running.init.as_fd() };
    let mut notes = Vec::new();
    for share in shares {
        let shown = Shown { share, person, scratch: store.scratch(name) };
        let made = attach(&shown, into, &[]).with_context(|| shown.to_string())?;
        notes.extend(made.notes(&shown.share));
    }
    Ok(notes)
}

fn take_away(running: &Running, shares: &[Share], kept: &[Share]) -> Result<()> {
    if shares.is_empty() {
        return Ok(());
    }
    let gone =
        |share: &Share| Gone { target: share.target.clone(), place: place_of(&share.source).unwrap_or_default() };
    let gone: Vec<Gone> = shares.iter().map(gone).collect();
    let kept: Vec<PathBuf> = kept.iter().map(|share| share.target.clone()).collect();
    let user = (!running.config.privileged).then(|| running.init.as_fd());
    detach(&gone, &kept, user, &mount_namespaces(running)?, &[])
}

/// Every mount namespace that a process of the container is in, its init's first.
fn mount_namespaces(running: &Running) -> Result<Vec<OwnedFd>> {
    let pids = cgroup::processes(&running.state.group.payload(&running.host.cgroups));
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    for pid in [running.state.init].into_iter().chain(pids) {
        let path = format!("/proc/{pid}/ns/mnt");
        // It may have ended.
        let Ok(link) = fs::read_link(&path) else { continue };
        if seen.insert(link)
            && let Ok(fd) = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        {
            found.push(fd);
        }
    }
    Ok(found)
}

// --- what can be said of it ---

/// A share as `info` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Where it appears inside.
    pub target: PathBuf,
    /// Nothing in it can be changed from inside.
    pub read_only: bool,
    /// No program in it can be executed from inside.
    pub no_exec: bool,
    /// A start goes on without it.
    pub optional: bool,
    /// Why it can't be shared now; `None` if it can.
    pub fault: Option<String>,
}

/// All shares of a configuration.
pub fn lines(config: &Config) -> Vec<Line> {
    let line = |share: &Share| Line {
        source: share.source.clone(),
        target: share.target.clone(),
        read_only: share.read_only,
        no_exec: share.no_exec,
        optional: share.optional,
        fault: open_source(&share.source).err().map(|e| e.to_string()),
    };
    config.shares.iter().map(line).collect()
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "shares `{}` at `{}`", self.source.display(), self.target.display())?;
        f.write_str(if self.fault.is_some() { ", which is not there now" } else { "" })?;
        f.write_str(if self.no_exec { ", without executing" } else { "" })?;
        f.write_str(if self.read_only { ", read-only" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(path: &str) -> Option<String> {
        danger(
            Path::new(path),
            &["/home/me".into(), "/root".into()],
            &["/var/lib/lazaret".into(), "/run/lazaret".into()],
        )
    }

    #[test]
    fn what_opens_the_host_wide_is_known() {
        for path in [
            "/",
            "/etc",
            "/etc/ssh",
            "/root",
            "/root/x",
            "/home",
            "/home/me",
            "/home/me/.ssh",
            "/home/me/.config/autostart",
            "/run",
            "/run/user/1000/pulse/native",
            "/run/docker.sock",
            "/tmp",
            "/tmp/.X11-unix/X0",
            "/proc/1",
            "/dev/dri",
            "/var",
            "/var/lib",
            "/var/lib/lazaret/containers/web",
        ] {
            assert!(judged(path).is_some(), "{path}");
        }
    }

    #[test]
    fn what_people_share_is_not_in_the_way() {
        for path in [
            "/home/me/Downloads",
            "/home/me/a/.git",
            "/srv/data",
            "/media/me/stick",
            "/tmp/x",
            "/homework",
            "/etcetera",
        ] {
            assert_eq!(judged(path), None, "{path}");
        }
    }
}
