//! Layers of an overlay as one tree, without mounting it: what overlayfs would show, read by descriptors alone.
//!
//! The rules are those of Documentation/filesystems/overlayfs.rst: a character device 0:0 hides a name below it,
//! and `trusted.overlay.opaque=y` a directory. Redirects and data kept in another layer do not arise, since our
//! mounts switch them off; a tree from elsewhere that has them is refused rather than misread.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_base::{Context, Result, error};
use rustix::fs::{self, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::tree::{self, LIST, STRAIGHT, Spot};

/// Marks a directory whose namesakes below are hidden.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";
/// What overlayfs keeps for itself.
pub(crate) const PRIVATE: &[u8] = b"trusted.overlay.";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";
const METACOPY: &[u8] = b"trusted.overlay.metacopy";

/// Directories over each other, topmost first. They must not change while they are read.
pub struct Stack {
    layers: Vec<OwnedFd>,
    mode: Mode,
}

/// What the marks of overlayfs mean in a stack.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Whole,
    Changes,
    Plain,
}

/// One file, directory or mark of a stack.
pub(crate) struct Node<'a> {
    stack: &'a Stack,
    /// From the root of the stack; empty for the root itself.
    pub path: &'a [u8],
    /// The last component.
    pub name: &'a CStr,
    /// Which layer it is from.
    pub layer: usize,
    pub stat: Stat,
    /// A directory: itself; anything else: the directory that holds it.
    at: BorrowedFd<'a>,
    /// A directory that hides what is below its layers. Set where changes are shown alone.
    pub opaque: bool,
}

/// What is done with the nodes of a stack, directories before what they hold.
pub(crate) trait Visitor {
    /// A directory, before what is in it.
    fn enter(&mut self, node: &Node<'_>) -> Result<()>;
    /// Anything else.
    fn leaf(&mut self, node: &Node<'_>) -> Result<()>;
    /// The same directory, after what is in it.
    fn leave(&mut self, node: &Node<'_>) -> Result<()>;
}

/// A name as the layers of a stack have it.
pub(crate) struct Slot {
    /// The layer of the topmost, and for a directory those whose directories are merged with it.
    pub layers: Vec<usize>,
    pub stat: Stat,
    /// Nothing further down counts.
    closed: bool,
}

/// The layers whose directories of one path are merged, and whether nothing further down counts.
struct Parts {
    layers: Vec<usize>,
    closed: bool,
}

/// A directory of a stack, opened.
pub(crate) struct Merged {
    /// The directories themselves, with the layers they are of.
    fds: Vec<(usize, OwnedFd)>,
    pub opaque: bool,
}

impl Stack {
    /// A tree with nothing below it: what is hidden is just not there.
    pub fn whole(layers: Vec<OwnedFd>) -> Stack {
        Stack { layers, mode: Mode::Whole }
    }

    /// Changes to a tree that is not part of it: what hides something below is a node as well.
    pub fn changes(layers: Vec<OwnedFd>) -> Stack {
        Stack { layers, mode: Mode::Changes }
    }

    /// A single directory as it is: no mark means anything, and all are kept.
    pub fn plain(dir: OwnedFd) -> Stack {
        Stack { layers: vec![dir], mode: Mode::Plain }
    }

    /// The lowest layer: the image, where there is one.
    pub(crate) fn bottom(&self) -> Option<BorrowedFd<'_>> {
        self.layers.last().map(OwnedFd::as_fd)
    }

    /// Whether names of one path in two layers concern each other in this layer.
    fn has_marks(&self, layer: usize) -> bool {
        match self.mode {
            Mode::Plain => false,
            Mode::Changes => true,
            Mode::Whole => layer + 1 < self.layers.len(),
        }
    }

    /// Shows every node to a visitor, each directory's names in the order of their bytes.
    pub(crate) fn walk(&self, visitor: &mut dyn Visitor) -> Result<()> {
        let mut path = Vec::new();
        let mut levels = vec![self.visit(&path, c"", &self.root(), visitor)?];
        while let Some(level) = levels.last_mut() {
            if let Some((name, parts)) = level.todo.pop() {
                push(&mut path, &name);
                let below = self.visit(&path, &name, &parts, visitor)?;
                levels.push(below);
                continue;
            }
            let top = self.reopen(level.layer, &path).with_context(|| place(&path))?;
            let at = top.as_fd();
            let Level { layer, stat, opaque, ref name, .. } = *level;
            let node = Node { stack: self, path: &path, name, layer, stat, at, opaque };
            visitor.leave(&node).with_context(|| place(&path))?;
            levels.pop();
            let length = tree::split(&path).0.len();
            path.truncate(length);
        }
        Ok(())
    }

    /// Shows a directory and all in it that is none; returns its directories.
    fn visit(&self, path: &[u8], name: &CStr, parts: &Parts, visitor: &mut dyn Visitor) -> Result<Level> {
        let merged = self.merge(path, parts).with_context(|| place(path))?;
        let (layer, top) = &merged.fds[0];
        let (layer, opaque, stat) = (*layer, merged.opaque && self.mode == Mode::Changes, fs::fstat(top)?);
        let node = Node { stack: self, path, name, layer, stat, at: top.as_fd(), opaque };
        visitor.enter(&node).with_context(|| place(path))?;
        let mut todo = Vec::new();
        let mut below = path.to_vec();
        for (name, slot) in self.names(&merged).with_context(|| place(path))? {
            if slot.is_directory() {
                todo.push((name, slot.parts()));
                continue;
            }
            if self.mode == Mode::Whole && slot.is_whiteout() {
                continue;
            }
            let layer = slot.layers[0];
            let at = merged.of(layer);
            below.truncate(path.len());
            push(&mut below, &name);
            let node = Node { stack: self, path: &below, name: &name, layer, stat: slot.stat, at, opaque: false };
            visitor.leaf(&node).with_context(|| place(&below))?;
        }
        todo.reverse();
        Ok(Level { name: name.to_owned(), todo, layer, stat, opaque })
    }

    /// The root, which every layer has.
    fn root(&self) -> Parts {
        Parts { layers: (0..self.layers.len()).collect(), closed: false }
    }

    /// Opens the directories that make up one of the stack's.
    fn merge(&self, path: &[u8], parts: &Parts) -> Result<Merged> {
        let mut merged = Merged { fds: Vec::new(), opaque: parts.closed };
        for layer in &parts.layers {
            let fd = self.reopen(*layer, path)?;
            let hides = self.has_marks(*layer) && hides(fd.as_fd())?;
            merged.fds.push((*layer, fd));
            if hides {
                merged.opaque = true;
                break;
            }
        }
        Ok(merged)
    }

    fn reopen(&self, layer: usize, path: &[u8]) -> Result<OwnedFd> {
        tree::open_deep(self.layers[layer].as_fd(), path, LIST).map_err(mounted)
    }

    /// What is in a merged directory, whiteouts included.
    pub(crate) fn names(&self, merged: &Merged) -> Result<BTreeMap<CString, Slot>> {
        let mut names: BTreeMap<CString, Slot> = BTreeMap::new();
        for (layer, fd) in &merged.fds {
            tree::list(fd.as_fd(), |entry| {
                let name = entry.file_name();
                match names.get_mut(name) {
                    Some(slot) if slot.closed => {}
                    Some(slot) => {
                        let is_directory = tree::type_of(fd.as_fd(), entry)?.is_dir();
                        match is_directory {
                            true => slot.layers.push(*layer),
                            false => slot.closed = true,
                        }
                    }
                    None => {
                        let stat = tree::stat(fd, name)?;
                        let closed = !FileType::from_raw_mode(stat.st_mode).is_dir();
                        names.insert(name.to_owned(), Slot { layers: vec![*layer], stat, closed });
                    }
                }
                Ok(())
            })?;
        }
        Ok(names)
    }

    /// The same without what is only there to hide.
    pub(crate) fn visible_names(&self, merged: &Merged) -> Result<BTreeMap<CString, Slot>> {
        let mut names = self.names(merged)?;
        if self.mode != Mode::Plain {
            names.retain(|_, slot| !slot.is_whiteout());
        }
        Ok(names)
    }

    fn shown_xattrs(&self, spot: Spot<'_>, layer: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut xattrs = spot.xattrs().context("reading its attributes")?;
        if self.has_marks(layer) {
            refuse_foreign(xattrs.iter().map(|(name, _)| name.as_slice()))?;
        }
        // SELinux, IMA, Smack: judgements of the host's policy, given when a file is made.
        let label = |name: &[u8]| name.starts_with(b"security.") && name != crate::capability::NAME.as_bytes();
        let private = |name: &[u8]| self.mode != Mode::Plain && name.starts_with(PRIVATE);
        xattrs.retain(|(name, _)| !private(name) && !label(name));
        xattrs.sort();
        Ok(xattrs)
    }

    /// The regular file at a path, if there is one of at most `most` bytes. No link is followed.
    pub(crate) fn read(&self, path: &str, most: usize) -> Result<Option<Vec<u8>>> {
        let Some((merged, name, slot)) = self.find(path)? else { return Ok(None) };
        if !FileType::from_raw_mode(slot.stat.st_mode).is_file() || slot.stat.st_size as usize > most {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = tree::open(merged.of(slot.layers[0]), name.as_c_str(), flags, STRAIGHT)?;
        lazaret_base::read_bounded(File::from(file), most).map(Some)
    }

    /// What the link at a path says, if there is one.
    pub(crate) fn link(&self, path: &str) -> Result<Option<CString>> {
        let Some((merged, name, slot)) = self.find(path)? else { return Ok(None) };
        if !FileType::from_raw_mode(slot.stat.st_mode).is_symlink() {
            return Ok(None);
        }
        Ok(Some(fs::readlinkat(merged.of(slot.layers[0]), &name, Vec::new())?))
    }

    /// What a path leads to. No link is followed.
    pub(crate) fn find(&self, path: &str) -> Result<Option<(Merged, CString, Slot)>> {
        let (above, name) = tree::split(path.as_bytes());
        let name = tree::name(name)?;
        let Some(merged) = self.directory(above)? else { return Ok(None) };
        Ok(self.name(&merged, &name)?.map(|slot| (merged, name, slot)))
    }

    /// The directory at a path; `None` if there is none.
    pub(crate) fn directory(&self, path: &[u8]) -> Result<Option<Merged>> {
        let mut at = Vec::new();
        let mut merged = self.merge(&at, &self.root())?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let name = tree::name(name)?;
            let Some(slot) = self.name(&merged, &name)?.filter(Slot::is_directory) else { return Ok(None) };
            push(&mut at, &name);
            merged = self.merge(&at, &slot.parts())?;
        }
        Ok(Some(merged))
    }

    /// One name of a directory, as [`Stack::names`] has it.
    pub(crate) fn name(&self, merged: &Merged, name: &CStr) -> Result<Option<Slot>> {
        let mut found: Option<Slot> = None;
        for (layer, fd) in &merged.fds {
            let stat = match tree::stat(fd, name) {
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
            match &mut found {
                None => found = Some(Slot { layers: vec![*layer], stat, closed: !is_directory }),
                Some(slot) if is_directory => slot.layers.push(*layer),
                Some(slot) => slot.closed = true,
            }
            if found.as_ref().is_some_and(|slot| slot.closed) {
                break;
            }
        }
        Ok(found.filter(|slot| !(self.mode == Mode::Whole && slot.is_whiteout())))
    }
}

/// A directory that is being walked.
struct Level {
    name: CString,
    /// The directories in it that are still to be visited, the next one last.
    todo: Vec<(CString, Parts)>,
    layer: usize,
    stat: Stat,
    opaque: bool,
}

impl Slot {
    fn parts(&self) -> Parts {
        Parts { layers: self.layers.clone(), closed: self.closed }
    }

    pub(crate) fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode).is_dir()
    }

    pub(crate) fn is_whiteout(&self) -> bool {
        is_whiteout(&self.stat)
    }
}

impl Merged {
    /// The directory of one layer, which must be among those that were merged.
    pub(crate) fn of(&self, layer: usize) -> BorrowedFd<'_> {
        let found = self.fds.iter().find(|(of, _)| *of == layer);
        found.expect("a name is listed in a directory that is open").1.as_fd()
    }

    /// The topmost, whose attributes are those of the whole.
    pub(crate) fn top_stat(&self) -> Result<Stat> {
        Ok(fs::fstat(&self.fds[0].1)?)
    }

    pub(crate) fn top_xattrs(&self, stack: &Stack) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let (layer, fd) = &self.fds[0];
        stack.shown_xattrs(Spot::Open(fd.as_fd()), *layer)
    }

    /// What a stack has by the name of another's node, in this directory.
    pub(crate) fn node<'n>(&'n self, stack: &'n Stack, of: &Node<'n>, slot: &Slot) -> Node<'n> {
        let layer = slot.layers[0];
        let (path, name, stat) = (of.path, of.name, slot.stat);
        Node { stack, path, name, layer, stat, at: self.of(layer), opaque: false }
    }
}

impl Node<'_> {
    /// Where its attributes are.
    pub(crate) fn spot(&self) -> Spot<'_> {
        match self.kind() {
            FileType::Directory => Spot::Open(self.at),
            _ => Spot::Named(self.at, self.name),
        }
    }

    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// A mark that hides what has its name below.
    pub(crate) fn is_whiteout(&self) -> bool {
        self.stack.mode == Mode::Changes && is_whiteout(&self.stat)
    }

    /// What a link says.
    pub(crate) fn target(&self) -> Result<CString> {
        Ok(fs::readlinkat(self.at, self.name, Vec::new())?)
    }

    /// A regular file's content.
    pub(crate) fn open(&self) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(tree::open(self.at, self.name, flags, STRAIGHT).map_err(mounted)?);
        if fs::fstat(&file)?.st_ino != self.stat.st_ino {
            return Err(error("it was replaced meanwhile"));
        }
        Ok(file)
    }

    /// Its attributes, without what overlayfs keeps for itself and without the host's labels.
    pub(crate) fn xattrs(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.stack.shown_xattrs(self.spot(), self.layer)
    }

    /// Whether what is not met in this directory is not there.
    pub(crate) fn hides_rest(&self) -> bool {
        self.opaque || self.stack.mode != Mode::Changes
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether a directory hides its namesakes below.
fn hides(fd: BorrowedFd<'_>) -> Result<bool> {
    let mut value = [0u8; 8];
    let names = Spot::Open(fd).xattr_names().context("reading its attributes")?;
    refuse_foreign(names.split(|byte| *byte == 0))?;
    if !names.split(|byte| *byte == 0).any(|name| name == OPAQUE.as_bytes()) {
        return Ok(false);
    }
    match fs::fgetxattr(fd, OPAQUE, &mut value) {
        Ok(1) if value[0] == b'y' => Ok(true),
        Ok(_) => Err(error("it hides files in a way that is not known here")),
        Err(e) => Err(e.into()),
    }
}

fn refuse_foreign<'n>(names: impl Iterator<Item = &'n [u8]>) -> Result<()> {
    for name in names {
        if name.starts_with(REDIRECT) || name == METACOPY {
            let e = error("a part of it is kept elsewhere (a redirect of overlayfs)");
            return Err(e.hint("no overlay of ours makes such files; copy the tree out of the overlay it belongs to"));
        }
    }
    Ok(())
}

pub(crate) fn mounted(e: Errno) -> lazaret_base::Error {
    match e {
        Errno::XDEV => error("something is mounted there").hint("unmount it first, see `findmnt`"),
        e => e.into(),
    }
}

fn push(path: &mut Vec<u8>, name: &CStr) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.to_bytes());
}

fn place(path: &[u8]) -> String {
    match path {
        b"" => "its root".to_owned(),
        path => format!("`{}`", String::from_utf8_lossy(path)),
    }
}
