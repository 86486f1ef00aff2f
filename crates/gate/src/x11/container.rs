//! What the connections of one container share: who owns what, which windows stay above all others, the clipboards.

use std::collections::BTreeMap;

use super::atoms::{Atoms, Known, fixed};

/// Windows that hang directly below a root window, at most.
const MOST_TOPS: usize = 4096;
/// Frames that are remembered, at most.
const MOST_FRAMES: usize = 1024;
/// Names a container may add to the server, which never forgets one.
const MOST_ATOMS: u32 = 32_768;
/// What windows that no window manager minds may cover of the screen, in hundredths.
const MOST_COVERED: u64 = 90;

/// What the gate has asked the server.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The numbers of names.
    pub atoms: Atoms,
    /// The major opcode of BIG-REQUESTS, if the server has it.
    pub big_requests: Option<u8>,
    /// The major opcode of XC-MISC, if the server has it.
    pub xc_misc: Option<u8>,
    /// The container's own atoms for PRIMARY, SECONDARY, CLIPBOARD and XdndSelection.
    pub private: [u32; 4],
}

/// What the connections of one container share.
#[derive(Debug)]
pub struct Container {
    /// Stands before each title, and in the hint.
    pub name: String,
    /// About the server.
    pub facts: Facts,
    /// Base and mask of the ids of the gate's own connection that takes part in the container's clipboards, or zeros.
    pub inner: (u32, u32),
    /// Resource ids: key, base, mask.
    ranges: Vec<(u64, u32, u32)>,
    /// Frames that the window manager has put around our windows.
    frames: BTreeMap<u32, u32>,
    tops: BTreeMap<u32, Top>,
    /// The window manager's own window, by which programs know what it supports, or 0.
    pub manager: u32,
    /// Width and height of the largest screen.
    pub screen: (u16, u16),
    highest_atom: u32,
    atoms_made: u32,
}

/// A window directly below a root window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Top {
    /// No window manager minds it.
    pub unmanaged: bool,
    /// It is shown.
    pub mapped: bool,
    /// Without the border.
    pub width: u16,
    /// Without the border.
    pub height: u16,
    /// Width of the border.
    pub border: u16,
}

impl Container {
    /// A container without a connection.
    pub fn new(name: &str, facts: Facts) -> Container {
        Container {
            name: name.to_owned(),
            facts,
            inner: (0, 0),
            ranges: Vec::new(),
            frames: BTreeMap::new(),
            tops: BTreeMap::new(),
            manager: 0,
            screen: (0, 0),
            highest_atom: 0,
            atoms_made: 0,
        }
    }

    /// The number of a name.
    pub fn atom(&self, known: Known) -> u32 {
        self.facts.atoms.of(known)
    }

    /// A connection has its range of ids.
    pub fn join(&mut self, key: u64, base: u32, mask: u32) {
        self.ranges.push((key, base, mask));
    }

    /// A connection has ended, and with it all that it had made.
    pub fn leave(&mut self, key: u64) {
        let Some(at) = self.ranges.iter().position(|range| range.0 == key) else { return };
        let (_, base, mask) = self.ranges.swap_remove(at);
        self.tops.retain(|&id, _| id & !mask != base);
        self.frames.retain(|_, inside| *inside & !mask != base);
    }

    /// Whether one of the container's connections made this.
    pub fn owns(&self, id: u32) -> bool {
        self.ranges.iter().any(|&(_, base, mask)| id & !mask == base)
    }

    /// Whether it is a window of the gate's own, to which programs hand what they have copied.
    pub fn is_inner(&self, id: u32) -> bool {
        let (base, mask) = self.inner;
        base != 0 && id & !mask == base
    }

    /// Whether it is a frame around one of our windows.
    pub fn frames(&self, id: u32) -> bool {
        self.frames.contains_key(&id)
    }

    /// Ours, or a frame around ours.
    pub fn sees(&self, id: u32) -> bool {
        self.owns(id) || self.frames(id)
    }

    /// `outer`, which is not ours, was put around `inside`, which is ours or a frame of ours.
    pub fn framed(&mut self, inside: u32, outer: u32) {
        let inside = self.frames.get(&inside).copied().unwrap_or(inside);
        if self.frames.len() < MOST_FRAMES {
            self.frames.insert(outer, inside);
        }
    }

    /// Nothing is around `inside` any more.
    pub fn unframed(&mut self, inside: u32) {
        self.frames.retain(|_, of| *of != inside);
    }

    /// The window, if it is known to be directly below a root window.
    pub fn top(&mut self, id: u32) -> Option<&mut Top> {
        self.tops.get_mut(&id)
    }

    /// Remembers a window below a root window, unless it is known. False if there are too many.
    pub fn add_top(&mut self, id: u32, top: Top) -> bool {
        if self.tops.contains_key(&id) {
            // The server refuses to make it twice.
            return true;
        }
        if self.tops.len() >= MOST_TOPS {
            return false;
        }
        self.tops.insert(id, top);
        true
    }

    /// A window is gone.
    pub fn remove_top(&mut self, id: u32) {
        self.tops.remove(&id);
        self.unframed(id);
    }

    /// Whether unmanaged windows would cover too much of the screen if window `id` were `top`, and shown if `shown`.
    pub fn covers(&self, id: u32, top: &Top, shown: bool) -> bool {
        let (width, height) = self.screen;
        let area = |top: &Top| {
            let side = |length: u16, most: u16| u64::from(length.saturating_add(2 * top.border.min(9999)).min(most));
            side(top.width, width) * side(top.height, height)
        };
        let others = self.tops.iter().filter(|(other, top)| **other != id && top.unmanaged && top.mapped);
        let others: u64 = if shown { others.map(|(_, top)| area(top)).sum() } else { 0 };
        (area(top) + others) * 100 > u64::from(width) * u64::from(height) * MOST_COVERED
    }

    /// Notes an atom that the server has named. Only a new one has a number above all others.
    pub fn saw_atom(&mut self, atom: u32) {
        if atom > self.highest_atom {
            // The first one tells how many there were before us.
            self.atoms_made += u32::from(self.highest_atom > 0);
            self.highest_atom = atom;
        }
    }

    /// Whether the container may still make names.
    pub fn may_make_atoms(&self) -> bool {
        self.atoms_made < MOST_ATOMS
    }

    /// The container's own atom for a selection that programs share, if it is one.
    pub fn private(&self, selection: u32) -> Option<u32> {
        let shared = self.shared();
        let at = shared.iter().position(|&atom| atom == selection)?;
        Some(self.facts.private[at])
    }

    /// The selection that programs mean by one of the container's own atoms.
    pub fn public(&self, private: u32) -> Option<u32> {
        let at = self.facts.private.iter().position(|&atom| atom == private)?;
        Some(self.shared()[at])
    }

    fn shared(&self) -> [u32; 4] {
        [fixed::PRIMARY, fixed::SECONDARY, self.atom(Known::Clipboard), self.atom(Known::XdndSelection)]
    }
}
