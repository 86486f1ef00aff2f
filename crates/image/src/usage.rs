//! How much room a tree takes.

use std::collections::HashSet;
use std::ops::AddAssign;
use std::os::fd::OwnedFd;

use lazaret_base::{Context, Result};

use crate::stack::{Node, Stack, Visitor};

/// What a tree takes on its file system. Content that is shared with other files by the file system itself is counted
/// for each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of allocated blocks, those of directories included. A file of several names is counted once.
    pub bytes: u64,
    /// Files, directories, links and so on, the root included.
    pub entries: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        self.bytes += other.bytes;
        self.entries += other.entries;
    }
}

/// Measures a tree as it is on disk.
pub fn usage(dir: OwnedFd) -> Result<Usage> {
    let mut measuring = Measuring::default();
    Stack::plain(dir).walk(&mut measuring).context("measuring")?;
    Ok(measuring.sum)
}

#[derive(Default)]
struct Measuring {
    sum: Usage,
    /// Files of several names that were counted.
    seen: HashSet<u64>,
}

impl Visitor for Measuring {
    fn enter(&mut self, node: &Node<'_>) -> Result<()> {
        self.count(node);
        Ok(())
    }

    fn leaf(&mut self, node: &Node<'_>) -> Result<()> {
        if node.stat.st_nlink == 1 || self.seen.insert(node.stat.st_ino) {
            self.count(node);
        }
        Ok(())
    }

    fn leave(&mut self, _: &Node<'_>) -> Result<()> {
        Ok(())
    }
}

impl Measuring {
    fn count(&mut self, node: &Node<'_>) {
        self.sum += Usage { bytes: node.stat.st_blocks as u64 * 512, entries: 1 };
    }
}
