//! Files copied into a container and out of it, whether it runs or not.
//!
//! Two processes share the work: ours on the host, and one inside, which sees the container's files as the container
//! does and has no more power over them. One walks and sends, the other receives and writes; between them are names of
//! single entries, never paths. So neither a link inside nor one outside leads a copy anywhere.

mod receive;
mod send;
mod wire;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Kind, Lock, Result, error};
use lazaret_config::Name;
use lazaret_image::Progress;
use lazaret_runtime::account;
use lazaret_runtime::inside::{At, spawn};
use rustix::fs::{CWD, FileType};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::exec::{Running, running};
use crate::recover::hold;
use crate::store::Store;
use receive::{Into, Target, receive};
use send::{From, send};
use wire::{Reader, Writer};

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// What was left out, one sentence each.
    pub notes: Vec<String>,
}

/// What is copied in.
pub struct Push<'a> {
    /// Files and directories of the host; `-` is `input`.
    pub sources: &'a [PathBuf],
    /// Where to: a directory that is there, or what the one source is to be called.
    pub target: &'a Path,
    /// Whether missing directories on the way are made.
    pub parents: bool,
    /// Whose it is inside; of whom the directory is that it is put in, if not given.
    pub owner: Option<(u32, u32)>,
    /// For the source `-`.
    pub input: &'a mut dyn Read,
}

/// What is copied out.
pub struct Pull<'a> {
    /// Files and directories of the container.
    pub sources: &'a [PathBuf],
    /// Where to: a directory that is there, or what the one source is to be called; `-` is `output`.
    pub target: &'a Path,
    /// Whether missing directories on the way are made.
    pub parents: bool,
    /// For whom root acts: whose it is outside. Root's own if for nobody.
    pub owner: Option<u32>,
    /// For the target `-`.
    pub output: &'a mut dyn Write,
}

/// Copies files in.
pub fn push(store: &Store, name: &Name, push: Push<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Copied> {
    let several = push.sources.len() > 1;
    let Push { sources, target, parents, owner, input } = push;
    let copying = || format!("copying to `{}` in `{name}`", target.display());
    let place = Place::find(store, name).with_context(copying)?;
    let shift = place.shift;
    let target = Target { path: target, several, parents, owner };
    let spawned = spawn(&place.at(), |root, line| {
        let mut answer = Writer::new(&line);
        let done = root.and_then(|root| {
            let into = Into::inside(root.as_fd(), &target, shift)?;
            receive(&into, &mut Reader::new(&line), &mut |_| {})
        });
        // The other side may be gone.
        let _ = answer.end(done);
    });
    let (child, line) = spawned.with_context(copying)?;
    let sent = push_all(sources, input, &line, progress);
    let _ = line.shutdown(std::net::Shutdown::Write);
    let answer = Reader::new(&line).result();
    let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    // If it could not be written there, that is why it could not be sent.
    let (received, sent) = match (answer, sent) {
        (Err(e), Ok(_)) => return Err(e).with_context(copying),
        (Err(e), Err(sent)) if sent.errno() == Some(Errno::PIPE) => return Err(e).with_context(copying),
        (_, Err(e)) => return Err(e).with_context(copying),
        (Ok(received), Ok(sent)) => (received, sent),
    };
    Ok(Copied { notes: [sent.notes, received.notes].concat(), ..received })
}

fn push_all(
    sources: &[PathBuf],
    input: &mut dyn Read,
    line: &UnixStream,
    progress: &mut dyn FnMut(Progress),
) -> Result<Copied> {
    let mut all = Copied::default();
    let mut out = Writer::new(line);
    for source in sources {
        if source == Path::new("-") {
            send::stream(input, &mut out, &mut all, progress)?;
            continue;
        }
        let opening = || format!("opening `{}`", source.display());
        // What the user names may be a link: it is theirs.
        let found = std::fs::canonicalize(source).with_context(opening)?;
        let from = From::host(&found, source).with_context(opening)?;
        send(from, &mut out, &mut all, progress)?;
    }
    out.flush()?;
    Ok(all)
}

/// Copies files out.
pub fn pull(store: &Store, name: &Name, pull: Pull<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Copied> {
    let several = pull.sources.len() > 1;
    let Pull { sources, target, parents, owner, output } = pull;
    let copying = || format!("copying from `{name}`");
    let owner = owner.unwrap_or(0);
    // A number without a name has the group of the same number.
    let owner = Some((owner, account::look_up(&owner.to_string()).map_or(owner, |account| account.gid)));
    let place = Place::find(store, name).with_context(copying)?;
    let spawned = spawn(&place.at(), |root, line| {
        let mut out = Writer::new(&line);
        let done = root.and_then(|root| {
            let mut all = Copied::default();
            for source in sources {
                let from = From::inside(root.as_fd(), source)
                    .with_context(|| format!("opening `{}` in the container", source.display()))?;
                send(from, &mut out, &mut all, &mut |_| {})?;
            }
            Ok(all)
        });
        let _ = out.end(done);
    });
    let (child, line) = spawned.with_context(copying)?;
    let mut reader = Reader::new(&line);
    let received = if target == Path::new("-") {
        receive::stream(output, &mut reader, progress)
    } else {
        Into::on_host(&Target { path: target, several, parents, owner })
            .and_then(|into| receive(&into, &mut reader, progress))
    };
    // One that still writes is told that nobody reads.
    let received = received.and_then(|received| {
        let sent = reader.result()?;
        Ok(Copied { notes: [sent.notes, received.notes].concat(), ..received })
    });
    drop(line);
    let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    received.with_context(copying)
}

/// A container that is kept as it is while its files are copied.
pub(crate) struct Place {
    running: Option<Running>,
    /// Whether it has a user namespace of its own.
    user_ns: bool,
    root: Option<lazaret_runtime::plan::Root>,
    /// What of the host belongs to it.
    binds: Vec<lazaret_runtime::plan::Bind>,
    /// Where it is mounted, out of everybody's sight.
    scratch: PathBuf,
    /// What its ids have on disk, beside what they are inside.
    shift: u32,
    /// So that a stopped one is not started meanwhile.
    _lock: Option<Lock>,
}

impl Place {
    pub(crate) fn find(store: &Store, name: &Name) -> Result<Place> {
        let lock = hold(store, name)?;
        let record = store.record(name)?;
        let user_ns = record.ids.is_some();
        if store.is_kept(name)? {
            // One that runs needs nobody's patience for a long copy.
            let (scratch, running) = (PathBuf::new(), Some(running(store, name)?));
            let binds = Vec::new();
            return Ok(Place { running, user_ns, root: None, binds, scratch, shift: 0, _lock: None });
        }
        let root = store.root_of(name, &record, false);
        let shift = u32::try_from(-record.shift_to_plain()).unwrap_or(0);
        Ok(Place {
            running: None,
            user_ns,
            root: Some(root),
            binds: record.image.plan_binds(),
            scratch: store.mounting_place(),
            shift,
            _lock: Some(lock),
        })
    }

    pub(crate) fn at(&self) -> At<'_> {
        match (&self.running, &self.root) {
            (None, Some(root)) => At::Stopped { root, binds: &self.binds, scratch: &self.scratch },
            (running, _) => {
                let init = running.as_ref().map_or(CWD, |running| running.init.as_fd());
                At::Running { init, user_ns: self.user_ns }
            }
        }
    }
}

/// A path from a root on.
fn relative(path: &Path) -> &Path {
    let below = path.strip_prefix("/").unwrap_or(path);
    if below.as_os_str().is_empty() { Path::new(".") } else { below }
}

/// Why something that is neither file nor directory nor link is not copied.
fn refused(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "is a FIFO",
        FileType::Socket => "is a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "is a device",
        _ => "is no file",
    }
}

fn not_copied(what: &str, kind: FileType) -> lazaret_base::Error {
    error(format!("`{what}` {}, and only files, directories and links are copied", refused(kind))).kind(Kind::Invalid)
}
