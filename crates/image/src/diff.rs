//! What is different between a tree and the one it began as.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::fs::FileExt;

use lazaret_base::{Context, Result};
use rustix::fs::{FileType, Stat};

use crate::shift::{shifted, shifted_xattrs};
use crate::stack::{Merged, Node, Slot, Stack, Visitor};

/// Something that is different.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// From the root, without a slash before it; empty for the root.
    pub path: Vec<u8>,
    /// How it is different.
    pub what: Difference,
    /// Whether it is a directory, or was one if it is gone.
    pub directory: bool,
}

/// How a file is different.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// It was not there.
    Added,
    /// Its content, its kind, or what is known of it: owner, mode, attributes. A new time alone makes no directory
    /// different.
    Changed,
    /// It is there no more, and nothing that was in it.
    Removed,
}

/// Compares a tree with the one it began as, in the order of the paths. The ids of `now` are `shift` too low.
///
/// `now` is a whole tree, or the changes above `before`; then only those are looked at.
pub fn diff(now: &Stack, before: &Stack, shift: i64) -> Result<Vec<Change>> {
    let mut comparing = Comparing { before, shift, levels: Vec::new(), open: None, changes: Vec::new() };
    now.walk(&mut comparing).context("comparing")?;
    comparing.changes.sort();
    Ok(comparing.changes)
}

struct Comparing<'a> {
    before: &'a Stack,
    shift: i64,
    levels: Vec<Level>,
    /// The directory of before whose files are being compared.
    open: Option<Merged>,
    changes: Vec<Change>,
}

/// A directory that is being walked: what was in it and was not met yet.
struct Level {
    left: BTreeMap<CString, Slot>,
    /// Whether what is not met is gone.
    hides: bool,
}

impl Visitor for Comparing<'_> {
    fn enter(&mut self, node: &Node<'_>) -> Result<()> {
        let slot = self.take(node);
        self.open = match slot.as_ref().is_none_or(Slot::is_directory) {
            true => self.before.directory(node.path)?,
            false => None,
        };
        match (&self.open, &slot) {
            (Some(merged), _) => {
                let before = merged.top_stat()?;
                if self.is_dressed_otherwise(node, &before, merged.top_xattrs(self.before)?)? {
                    self.push(node, Difference::Changed, true);
                }
            }
            (None, Some(_)) => self.push(node, Difference::Changed, true),
            (None, None) => self.push(node, Difference::Added, true),
        }
        let left = match &self.open {
            Some(merged) => self.before.visible_names(merged)?,
            None => BTreeMap::new(),
        };
        self.levels.push(Level { left, hides: node.hides_rest() });
        Ok(())
    }

    fn leaf(&mut self, node: &Node<'_>) -> Result<()> {
        let slot = self.take(node);
        match slot {
            // It hides something that is not there.
            None if node.is_whiteout() => {}
            None => self.push(node, Difference::Added, false),
            Some(slot) if node.is_whiteout() => self.push(node, Difference::Removed, slot.is_directory()),
            Some(slot) => {
                if self.differs(node, &slot)? {
                    self.push(node, Difference::Changed, false);
                }
            }
        }
        Ok(())
    }

    fn leave(&mut self, node: &Node<'_>) -> Result<()> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        if level.hides {
            for (name, slot) in level.left {
                let path = if node.path.is_empty() {
                    name.to_bytes().to_vec()
                } else {
                    [node.path, name.to_bytes()].join(&b'/')
                };
                self.changes.push(Change { path, what: Difference::Removed, directory: slot.is_directory() });
            }
        }
        Ok(())
    }
}

impl Comparing<'_> {
    /// What had the name of a node, which is met by that. The root is not in any directory.
    fn take(&mut self, node: &Node<'_>) -> Option<Slot> {
        self.levels.last_mut().and_then(|level| level.left.remove(node.name))
    }

    fn push(&mut self, node: &Node<'_>, what: Difference, directory: bool) {
        self.changes.push(Change { path: node.path.to_vec(), what, directory });
    }

    fn differs(&self, node: &Node<'_>, slot: &Slot) -> Result<bool> {
        let Some(open) = &self.open else { return Ok(true) };
        let before = open.node(self.before, node, slot);
        let (a, b) = (&node.stat, &slot.stat);
        if FileType::from_raw_mode(a.st_mode) != FileType::from_raw_mode(b.st_mode)
            || self.is_dressed_otherwise(node, b, before.xattrs()?)?
        {
            return Ok(true);
        }
        Ok(match node.kind() {
            FileType::Symlink => node.target()? != before.target()?,
            FileType::RegularFile => {
                let of = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
                // Of the same time and size, it was copied up for something that was taken back, or is the very same.
                of(a) != of(b) || !node.hides_rest() && !same_content(node, &before)?
            }
            FileType::CharacterDevice | FileType::BlockDevice => a.st_rdev != b.st_rdev,
            _ => false,
        })
    }

    fn is_dressed_otherwise(&self, node: &Node<'_>, before: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<bool> {
        let stat = &node.stat;
        let owner = (shifted(stat.st_uid, self.shift)?, shifted(stat.st_gid, self.shift)?);
        // Links have no mode of their own.
        let same_mode = node.kind().is_symlink() || stat.st_mode & 0o7777 == before.st_mode & 0o7777;
        Ok(owner != (before.st_uid, before.st_gid)
            || !same_mode
            || plain(shifted_xattrs(node.xattrs()?, self.shift)?) != plain(xattrs))
    }
}

/// Capabilities in the one form, so that they can be compared.
fn plain(mut xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    for (name, value) in &mut xattrs {
        if name == crate::capability::NAME.as_bytes() {
            *value = crate::capability::plain(value);
        }
    }
    xattrs
}

fn same_content(a: &Node<'_>, b: &Node<'_>) -> Result<bool> {
    let (a, b) = (a.open()?, b.open()?);
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut at = 0;
    loop {
        let n = a.read_at(&mut left, at)?;
        if n == 0 {
            return Ok(b.read_at(&mut right[..1], at)? == 0);
        }
        if b.read_exact_at(&mut right[..n], at).is_err() || left[..n] != right[..n] {
            return Ok(false);
        }
        at += n as u64;
    }
}
