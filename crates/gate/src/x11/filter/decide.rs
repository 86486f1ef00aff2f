//! The rules for requests that the table alone does not decide.

use super::{Decision, Expect, Filter, Flow, GET_INPUT_FOCUS, Held, Notice, answer, property};
use crate::x11::atoms::{Known, fixed};
use crate::x11::container::{Container, Top};
use crate::x11::table::{self, Deed, May, code};
use crate::x11::wire::request;

/// Properties of a root window that a program may read: what the desktop is like, nothing about who uses it for what.
const OF_ROOT: &[Known] = &[
    Known::Supported,
    Known::SupportingCheck,
    Known::WorkArea,
    Known::DesktopGeometry,
    Known::DesktopViewport,
    Known::CurrentDesktop,
    Known::NumberOfDesktops,
    Known::ShowingDesktop,
    Known::GtkWorkAreas,
    Known::XkbRules,
];

/// What a program may ask the window manager for one of its own windows.
const WISHES: &[Known] = &[
    Known::NetWmState,
    Known::WmChangeState,
    Known::NetActiveWindow,
    Known::NetCloseWindow,
    Known::NetMoveresize,
    Known::NetMoveresizeWindow,
    Known::NetRequestExtents,
    Known::NetDesktop,
    Known::NetFullscreenMonitors,
    Known::GtkShowMenu,
];

/// PropertyChange and StructureNotify: what a program may hear of the root window.
const EVENTS_OF_ROOT: u32 = 0x0040_0000 | 0x0002_0000;
/// Bits of the value lists of CreateWindow and ChangeWindowAttributes.
const BACKGROUND: u32 = 0;
const BORDER: u32 = 2;
const UNMANAGED: u32 = 9;
const EVENTS: u32 = 11;
const COLORMAP: u32 = 13;
const CURSOR: u32 = 14;
/// A background that is the parent's.
const PARENT_RELATIVE: u32 = 1;
/// The longest name of an atom.
const MOST_NAME: u16 = 1024;

/// The values of a list, as bit numbers and offsets. `None` if the list is not as long as its mask says.
fn values(mask: u32, at: usize, size: usize) -> Option<impl Iterator<Item = (u32, usize)>> {
    let fits = size == at + 4 * mask.count_ones() as usize;
    fits.then(|| (0..32).filter(move |bit| mask >> bit & 1 == 1).zip((at..).step_by(4)))
}

impl Filter {
    /// What becomes of a request of `size` bytes that begins with `head`.
    pub(super) fn decide(
        &mut self,
        head: &[u8],
        size: usize,
        container: &mut Container,
        flow: &mut Flow<'_>,
    ) -> Decision {
        let Some(known) = table::find(head[0]) else { return self.extension(head, size, container) };
        if size < known.size.into() {
            return Decision::Error(code::LENGTH, 0);
        }
        for &(at, may, error) in known.names {
            let id = self.order.u32(head, at.into());
            if !self.may(id, may, container) {
                return Decision::Error(error, id);
            }
        }
        match known.deed {
            Deed::Pass => Decision::Pass(known.reply.then_some(Expect::Pass)),
            Deed::Ignore => Decision::Ignore,
            Deed::Refuse => Decision::Error(code::ACCESS, 0),
            Deed::Look => self.look(head, size, container, flow),
        }
    }

    fn may(&self, id: u32, may: May, container: &Container) -> bool {
        self.owns(id, container)
            || match may {
                May::Own => false,
                May::OwnOrNone => id == 0,
                May::OwnOrRoot => self.is_root(id),
                May::Look => self.is_root(id) || container.frames(id),
                May::Colormap => self.colormaps.contains(&id),
            }
    }

    fn look(&mut self, head: &[u8], size: usize, container: &mut Container, flow: &mut Flow<'_>) -> Decision {
        let order = self.order;
        let (first, second) = (order.u32(head, 4), order.u32(head, 8));
        match head[0] {
            1 => self.create_window(head, size, container),
            2 => self.change_window(head, size, container),
            4 => {
                container.remove_top(first);
                Decision::Pass(None)
            }
            7 => self.reparent(head, container, flow),
            8 => self.map(head, container),
            10 => {
                if let Some(top) = container.top(first) {
                    top.mapped = false;
                }
                Decision::Pass(None)
            }
            12 => self.configure(head, size, container),
            15 => Decision::Pass(Some(Expect::Tree(first))),
            16 => self.intern(head, container),
            18 => self.change_property(head, size, container),
            19 => self.delete_property(head, container),
            20 => self.property(head, container),
            21 if self.owns(first, container) => Decision::Pass(Some(Expect::Pass)),
            21 if self.is_root(first) => Decision::Answer(answer::reply(0)),
            21 => Decision::Error(code::WINDOW, first),
            22 => self.own_selection(head, container, flow),
            23 => self.selection_owner(head, container),
            24 => match container.private(second) {
                Some(private) => Decision::Edit(self.with32(head, 8, private), None),
                None => Decision::Answer(answer::nothing_to_paste(order, head)),
            },
            25 => self.send_event(head, container, flow),
            26 => Decision::Hold(Held::Grab(with_bytes(head, &[(10, 1), (11, 1)]))),
            27 => {
                self.grabbed = false;
                Decision::Pass(None)
            }
            // A synchronous grab would stop the pointer and the keyboard for everybody.
            28 => Decision::Edit(with_bytes(head, &[(10, 1), (11, 1)]), None),
            33 => Decision::Edit(with_bytes(head, &[(11, 1), (12, 1)]), None),
            // The keyboard is where its focus is: a program whose window has it gets the keys without a grab, one
            // whose window has not shall not. So a grab is always granted, and never made.
            31 => Decision::Answer(answer::reply(0)),
            38 => {
                self.inject(request(order, GET_INPUT_FOCUS, 0, &[]), Some(Expect::Engaged), flow);
                Decision::Pass(Some(Expect::Pointer))
            }
            40 => Decision::Pass(Some(Expect::Translated)),
            41 => self.warp(head, container),
            42 if self.owns(first, container) => Decision::Pass(None),
            42 => Decision::Ignore,
            43 => Decision::Pass(Some(Expect::Focus)),
            44 => Decision::Answer(answer::keymap(order)),
            50 => Decision::Pass(Some(Expect::Fonts)),
            55 => self.check_gc(head, order.u32(head, 12), 16, size, container),
            56 => self.check_gc(head, second, 12, size, container),
            98 => match named(order.u16(head, 4), head) {
                b"BIG-REQUESTS" | b"XC-MISC" => Decision::Pass(Some(Expect::Pass)),
                _ => Decision::Answer(answer::reply(0)),
            },
            99 => {
                let facts = &container.facts;
                let all = [("BIG-REQUESTS", facts.big_requests), ("XC-MISC", facts.xc_misc)];
                let there: Vec<_> = all.iter().filter(|(_, major)| major.is_some()).map(|(name, _)| *name).collect();
                Decision::Answer(answer::extensions(order, &there))
            }
            _ => Decision::Error(code::REQUEST, 0),
        }
    }

    /// Requests of extensions: two are harmless.
    fn extension(&mut self, head: &[u8], size: usize, container: &Container) -> Decision {
        let major = Some(head[0]);
        if major == container.facts.big_requests && head[1] == 0 && size == 4 {
            self.big = true;
            return Decision::Pass(Some(Expect::Pass));
        }
        if major == container.facts.xc_misc && head[1] <= 2 {
            return Decision::Pass(Some(Expect::Pass));
        }
        Decision::Error(code::REQUEST, 0)
    }

    fn create_window(&mut self, head: &[u8], size: usize, container: &mut Container) -> Decision {
        let order = self.order;
        let (window, parent, mask) = (order.u32(head, 4), order.u32(head, 8), order.u32(head, 28));
        let mut edited = head.to_vec();
        let Some(list) = values(mask, 32, size) else { return Decision::Error(code::LENGTH, 0) };
        let mut top = Top {
            width: order.u16(head, 16),
            height: order.u16(head, 18),
            border: order.u16(head, 20),
            ..Top::default()
        };
        let is_top = self.is_root(parent);
        for (bit, at) in list {
            let value = order.u32(head, at);
            if let Some(refusal) = self.check_window_value(bit, value, container) {
                return refusal;
            }
            match bit {
                BACKGROUND if is_top && value == PARENT_RELATIVE => order.set32(&mut edited, at, 0),
                UNMANAGED if value & 0xff != 0 && is_top => {
                    top.unmanaged = !container.covers(window, &top, false);
                    // One byte of BOOL, wherever the byte order puts it.
                    order.set32(&mut edited, at, top.unmanaged.into());
                }
                _ => {}
            }
        }
        if is_top && window & !self.mask == self.base {
            if !container.add_top(window, top) {
                return Decision::Error(code::ALLOC, window);
            }
            self.after.extend(property::marks(order, window, container));
        }
        Decision::Edit(edited, None)
    }

    fn change_window(&mut self, head: &[u8], size: usize, container: &mut Container) -> Decision {
        let order = self.order;
        let (window, mask) = (order.u32(head, 4), order.u32(head, 8));
        let Some(list) = values(mask, 12, size) else { return Decision::Error(code::LENGTH, 0) };
        if self.is_root(window) {
            if mask != 1 << EVENTS {
                return Decision::Ignore;
            }
            return Decision::Edit(self.with32(head, 12, order.u32(head, 12) & EVENTS_OF_ROOT), None);
        }
        if !self.owns(window, container) && !container.is_inner(window) {
            // Programs listen to the windows of settings daemons without expecting that it may fail.
            return Decision::Ignore;
        }
        if container.is_inner(window) && mask != 1 << EVENTS {
            return Decision::Error(code::WINDOW, window);
        }
        let mut edited = head.to_vec();
        let mut asks = false;
        for (bit, at) in list {
            let value = order.u32(head, at);
            if let Some(refusal) = self.check_window_value(bit, value, container) {
                return refusal;
            }
            match (bit, container.top(window)) {
                (BACKGROUND, Some(_)) if value == PARENT_RELATIVE => order.set32(&mut edited, at, 0),
                (UNMANAGED, Some(top)) => {
                    asks = value & 0xff != 0;
                    top.unmanaged &= asks;
                }
                _ => {}
            }
        }
        if asks {
            return Decision::Hold(Held::Unmanage(edited));
        }
        Decision::Edit(edited, None)
    }

    /// A window's picture, colours and pointer must be the container's own.
    fn check_window_value(&self, bit: u32, value: u32, container: &Container) -> Option<Decision> {
        let own = self.owns(value, container);
        let (fine, error) = match bit {
            BACKGROUND => (own || value <= PARENT_RELATIVE, code::PIXMAP),
            BORDER => (own || value == 0, code::PIXMAP),
            COLORMAP => (own || value == 0 || self.colormaps.contains(&value), code::COLORMAP),
            CURSOR => (own || value == 0, code::CURSOR),
            _ => (true, 0),
        };
        (!fine).then_some(Decision::Error(error, value))
    }

    /// Tile, stipple, font and clip mask must be the container's own: what is drawn with them could be read.
    fn check_gc(&self, head: &[u8], mask: u32, at: usize, size: usize, container: &Container) -> Decision {
        let Some(list) = values(mask, at, size) else { return Decision::Error(code::LENGTH, 0) };
        for (bit, at) in list {
            let value = self.order.u32(head, at);
            let error = match bit {
                10 | 11 => code::PIXMAP,
                14 => code::FONT,
                19 if value != 0 => code::PIXMAP,
                _ => continue,
            };
            if !self.owns(value, container) {
                return Decision::Error(error, value);
            }
        }
        Decision::Pass(None)
    }

    /// A window that comes to hang below the root is managed, whatever it was.
    fn reparent(&mut self, head: &[u8], container: &mut Container, flow: &mut Flow<'_>) -> Decision {
        let (window, parent) = (self.order.u32(head, 4), self.order.u32(head, 8));
        if self.is_root(parent) && container.top(window).is_none() {
            if !container.add_top(window, Top::default()) {
                return Decision::Error(code::ALLOC, window);
            }
            // Before it: a window that is shown is shown again by ReparentWindow.
            self.inject(request(self.order, 2, 0, &[window, 1 << UNMANAGED, 0]), None, flow);
            self.after.extend(property::marks(self.order, window, container));
        }
        Decision::Pass(None)
    }

    fn map(&mut self, head: &[u8], container: &mut Container) -> Decision {
        let window = self.order.u32(head, 4);
        let Some(&mut top) = container.top(window) else { return Decision::Pass(None) };
        let too_much = top.unmanaged && container.covers(window, &top, true);
        if let Some(top) = container.top(window) {
            top.unmanaged &= !too_much;
            top.mapped = true;
        }
        if too_much {
            // Managed from now on; then it is shown.
            self.after.push(request(self.order, 8, 0, &[window]));
            return Decision::Replace(request(self.order, 2, 0, &[window, 1 << UNMANAGED, 0]));
        }
        Decision::Pass(None)
    }

    fn configure(&mut self, head: &[u8], size: usize, container: &mut Container) -> Decision {
        let order = self.order;
        let (window, mask) = (order.u32(head, 4), order.u16(head, 8));
        let Some(list) = values(mask.into(), 12, size) else { return Decision::Error(code::LENGTH, 0) };
        let list: Vec<_> = list.collect();
        if let Some(&(_, at)) = list.iter().find(|(bit, _)| *bit == 5) {
            let sibling = order.u32(head, at);
            if !self.may(sibling, May::Look, container) {
                return Decision::Error(code::WINDOW, sibling);
            }
        }
        let Some(&mut old) = container.top(window) else { return Decision::Pass(None) };
        let mut new = old;
        for &(bit, at) in &list {
            let value = order.u32(head, at) as u16;
            match bit {
                2 => new.width = value,
                3 => new.height = value,
                4 => new.border = value,
                _ => {}
            }
        }
        if new.unmanaged && container.covers(window, &new, new.mapped) {
            return Decision::Ignore;
        }
        if let Some(top) = container.top(window) {
            *top = new;
        }
        Decision::Pass(None)
    }

    fn intern(&self, head: &[u8], container: &Container) -> Decision {
        if self.order.u16(head, 4) > MOST_NAME {
            return Decision::Error(code::ALLOC, 0);
        }
        let only_known = u8::from(head[1] != 0 || !container.may_make_atoms());
        Decision::Edit(with_bytes(head, &[(1, only_known)]), Some(Expect::Atom))
    }

    fn property(&self, head: &[u8], container: &Container) -> Decision {
        let (window, property) = (self.order.u32(head, 4), self.order.u32(head, 8));
        let is = |names: &[Known]| container.facts.atoms.is_one_of(property, names);
        if self.owns(window, container) {
            let kept = property == fixed::WM_CLIENT_MACHINE || is(&[Known::Hint]);
            let delete = if kept { 0 } else { head[1] };
            return Decision::Edit(with_bytes(head, &[(1, delete)]), Some(Expect::Pass));
        }
        // The settings of the desktop, and how its window manager is recognised, are on windows of other programs.
        let readable = is(&[Known::XsettingsSettings, Known::SupportingCheck])
            || self.is_root(window) && (property == fixed::RESOURCE_MANAGER || is(OF_ROOT))
            || window == container.manager && is(&[Known::NetName])
            || container.frames(window) && is(&[Known::WmState, Known::FrameExtents]);
        if readable {
            let manager = self.is_root(window) && is(&[Known::SupportingCheck]);
            let expect = if manager { Expect::Manager } else { Expect::Pass };
            return Decision::Edit(with_bytes(head, &[(1, 0)]), Some(expect));
        }
        if self.is_root(window) || container.frames(window) || window == container.manager {
            return Decision::Answer(answer::reply(0));
        }
        Decision::Error(code::WINDOW, window)
    }

    fn own_selection(&self, head: &[u8], container: &Container, flow: &mut Flow<'_>) -> Decision {
        let (owner, selection) = (self.order.u32(head, 4), self.order.u32(head, 8));
        // Managers (of windows, of settings, of the tray) are the host's; so are input methods.
        let Some(private) = container.private(selection) else { return Decision::Ignore };
        let offered = [fixed::PRIMARY, container.atom(Known::Clipboard)];
        if owner != 0 && offered.contains(&selection) {
            flow.notices.push(Notice::Copied { selection });
        }
        Decision::Edit(self.with32(head, 8, private), None)
    }

    fn selection_owner(&self, head: &[u8], container: &Container) -> Decision {
        let selection = self.order.u32(head, 4);
        if let Some(private) = container.private(selection) {
            return Decision::Edit(self.with32(head, 4, private), Some(Expect::Owner));
        }
        if container.facts.atoms.is_one_of(selection, &[Known::XsettingsOwner, Known::Compositor]) {
            return Decision::Pass(Some(Expect::Pass));
        }
        Decision::Answer(answer::reply(0))
    }

    fn send_event(&self, head: &[u8], container: &Container, flow: &mut Flow<'_>) -> Decision {
        let to = self.order.u32(head, 4);
        let event = head[12] & 0x7f;
        if self.owns(to, container) || container.is_inner(to) && event == 31 {
            // Never on to the parents of the window: the next one is the window manager's.
            return Decision::Edit(with_bytes(head, &[(1, 0)]), None);
        }
        if self.is_root(to) {
            // The server would drop it without a word: what programs may say to the window manager (SecuritySend in
            // Xext/security.c) is compared with a type in which the bit of sent events has been set already.
            flow.notices.extend(self.wish(&head[12..], container).map(Notice::Wish));
        }
        Decision::Ignore
    }

    /// What a program tells the window manager, through the root window, about its own window. In our byte order.
    fn wish(&self, event: &[u8], container: &Container) -> Option<[u32; 8]> {
        let mut words: [u32; 8] = std::array::from_fn(|at| self.order.u32(event, 4 * at));
        words[0] = u32::from(event[0] & 0x7f) | u32::from(event[1]) << 8;
        let message = words[0] == 33 | 32 << 8;
        let fine = match words[0] & 0xff {
            // UnmapNotify: a window is withdrawn (ICCCM 4.1.4).
            18 => {
                words[3] = event[12].into();
                self.owns(words[2], container)
            }
            33 if message && self.owns(words[1], container) => container.facts.atoms.is_one_of(words[2], WISHES),
            // The answer to the window manager's ping.
            33 if message && self.is_root(words[1]) => {
                words[2] == container.atom(Known::WmProtocols)
                    && words[3] == container.atom(Known::NetPing)
                    && self.owns(words[5], container)
            }
            _ => false,
        };
        if words[2] == container.atom(Known::NetActiveWindow) {
            // From a program, not from a pager: then the window manager decides.
            words[3] = 1;
        }
        fine.then_some(words)
    }

    /// The pointer may be moved within a window of ours, by whoever has it there already.
    fn warp(&self, head: &[u8], container: &Container) -> Decision {
        let order = self.order;
        let (from, to) = (order.u32(head, 4), order.u32(head, 8));
        if !self.owns(to, container) {
            return Decision::Ignore;
        }
        if self.owns(from, container) {
            return Decision::Hold(Held::Warp(head.to_vec()));
        }
        let mut edited = self.with32(head, 4, to);
        // A rectangle of no size is all of the window.
        edited[12..20].fill(0);
        Decision::Hold(Held::Warp(edited))
    }

    fn with32(&self, head: &[u8], at: usize, value: u32) -> Vec<u8> {
        let mut edited = head.to_vec();
        self.order.set32(&mut edited, at, value);
        edited
    }
}

fn with_bytes(head: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut edited = head.to_vec();
    for &(at, value) in changes {
        edited[at] = value;
    }
    edited
}

/// The name in QueryExtension.
fn named(length: u16, head: &[u8]) -> &[u8] {
    head.get(8..8 + usize::from(length)).unwrap_or(b"")
}
