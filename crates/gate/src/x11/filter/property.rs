//! Properties: titles say where a window comes from, and what would deceive the window manager stays out.

use super::{Decision, Filter, MOST_TITLE};
use crate::x11::atoms::{Known, fixed};
use crate::x11::container::Container;
use crate::x11::table::code;
use crate::x11::wire::{Order, padded, set_bytes};

/// Fixed part of ChangeProperty.
const HEAD: usize = 24;
const TITLES: &[Known] = &[Known::NetName, Known::NetIconName];
/// What belongs to us, what would name a process of the host's, what takes room away from other windows.
const DROPPED: &[Known] = &[Known::Hint, Known::NetPid, Known::NetStrut, Known::NetStrutPartial];

/// How much of a ChangeProperty is looked at, if it is one that we change. `extra` bytes of BIG-REQUESTS stand between
/// the first word and the others.
pub(super) fn wanted(order: Order, input: &[u8], extra: usize, size: usize, container: &Container) -> Option<usize> {
    if input[0] != 18 || input.len() < extra + HEAD {
        return None;
    }
    let property = order.u32(input, extra + 8);
    let ours = is_title(property, container)
        || [fixed::WM_CLASS, fixed::WM_CLIENT_MACHINE, fixed::WM_TRANSIENT_FOR, container.atom(Known::WindowType)]
            .contains(&property);
    ours.then_some(size.min(HEAD + MOST_TITLE))
}

/// Requests that say where a new window comes from, for window managers and for people.
pub(super) fn marks(order: Order, window: u32, container: &Container) -> [Vec<u8>; 2] {
    let name = container.name.as_bytes();
    [
        set_bytes(order, window, container.atom(Known::Hint), container.atom(Known::Utf8), name),
        set_bytes(order, window, fixed::WM_CLIENT_MACHINE, fixed::STRING, name),
    ]
}

fn is_title(property: u32, container: &Container) -> bool {
    [fixed::WM_NAME, fixed::WM_ICON_NAME].contains(&property) || container.facts.atoms.is_one_of(property, TITLES)
}

impl Filter {
    pub(super) fn change_property(&self, head: &[u8], size: usize, container: &Container) -> Decision {
        let order = self.order;
        let (window, property, kind) = (order.u32(head, 4), order.u32(head, 8), order.u32(head, 12));
        if !self.owns(window, container) && !container.is_inner(window) {
            // Some programs leave something on the root window, and do not expect that they may not.
            let root = self.is_root(window);
            return if root { Decision::Ignore } else { Decision::Error(code::WINDOW, window) };
        }
        let format = head[16];
        if ![8, 16, 32].contains(&format) {
            return Decision::Error(code::VALUE, format.into());
        }
        let length = (order.u32(head, 20) as usize).saturating_mul(usize::from(format) / 8);
        if size - HEAD != padded(length.min(usize::MAX - 4)) {
            return Decision::Error(code::LENGTH, 0);
        }
        let value = &head[HEAD..(HEAD + length).min(head.len())];
        if is_title(property, container) {
            return match format {
                8 => Decision::Replace(set_bytes(order, window, property, kind, &titled(value, kind, container))),
                _ => Decision::Ignore,
            };
        }
        if container.facts.atoms.is_one_of(property, DROPPED) {
            return Decision::Ignore;
        }
        match property {
            fixed::WM_CLASS if format == 8 => {
                let class = classed(value, &container.name);
                Decision::Replace(set_bytes(order, window, property, fixed::STRING, &class))
            }
            fixed::WM_CLASS => Decision::Ignore,
            fixed::WM_CLIENT_MACHINE => {
                Decision::Replace(set_bytes(order, window, property, fixed::STRING, container.name.as_bytes()))
            }
            fixed::WM_TRANSIENT_FOR => self.transient(value, format, container),
            _ if property == container.atom(Known::WindowType) => self.window_type(head, size, format, container),
            _ => Decision::Pass(None),
        }
    }

    pub(super) fn delete_property(&self, head: &[u8], container: &Container) -> Decision {
        let (window, property) = (self.order.u32(head, 4), self.order.u32(head, 8));
        if !self.owns(window, container) {
            let root = self.is_root(window);
            return if root { Decision::Ignore } else { Decision::Error(code::WINDOW, window) };
        }
        match property == fixed::WM_CLIENT_MACHINE || property == container.atom(Known::Hint) {
            true => Decision::Ignore,
            false => Decision::Pass(None),
        }
    }

    /// A dialog belongs to a window of its own container, or to the whole screen.
    fn transient(&self, value: &[u8], format: u8, container: &Container) -> Decision {
        let fine = |id: u32| id == 0 || self.is_root(id) || self.owns(id, container);
        let whole = format == 32 && value.len() <= MOST_TITLE;
        match whole && value.chunks_exact(4).all(|id| fine(self.order.u32(id, 0))) {
            true => Decision::Pass(None),
            false => Decision::Ignore,
        }
    }

    /// A dock or a desktop lies above or below everything else and has no title: it becomes a plain window.
    fn window_type(&self, head: &[u8], size: usize, format: u8, container: &Container) -> Decision {
        if format != 32 || size > head.len() {
            return Decision::Ignore;
        }
        let mut edited = head.to_vec();
        for atom in edited[HEAD..].chunks_exact_mut(4) {
            if container.facts.atoms.is_one_of(self.order.u32(atom, 0), &[Known::TypeDock, Known::TypeDesktop]) {
                self.order.set32(atom, 0, container.atom(Known::TypeNormal));
            }
        }
        Decision::Edit(edited, None)
    }
}

/// What kind of program it is (ICCCM 4.1.2.5: an instance and a class, each with a zero behind it), as one of the
/// container's: desktops group windows by it, and show the person's own program's picture with those of its class.
fn classed(value: &[u8], container: &str) -> Vec<u8> {
    let prefix = crate::class_prefix(container);
    let names = value.split(|byte| *byte == 0).chain([&b""[..]; 2]).take(2);
    let mut class = Vec::new();
    for name in names {
        // A program that reads its class and sets it again.
        let name = name.strip_prefix(prefix.as_bytes()).unwrap_or(name);
        class.extend(prefix.bytes());
        class.extend(name.iter().filter(|byte| **byte >= b' ' && **byte != 0x7f));
        class.push(0);
    }
    class
}

/// The title with the container's name before it, and without what would change how that is read.
fn titled(value: &[u8], kind: u32, container: &Container) -> Vec<u8> {
    let prefix = format!("[{}] ", container.name);
    // A program that reads its title and sets it again.
    let value = value.strip_prefix(prefix.as_bytes()).unwrap_or(value);
    let mut title = prefix.into_bytes();
    if kind == container.atom(Known::Utf8) {
        let plain = |c: char| match c {
            // What turns the direction of writing would move the name to another place.
            '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            '\u{2028}' | '\u{2029}' => ' ',
            c if c.is_control() => ' ',
            c => c,
        };
        title.extend(String::from_utf8_lossy(value).chars().map(plain).collect::<String>().into_bytes());
    } else {
        // Latin 1, or compound text, which needs its escapes.
        title.extend(value.iter().map(|&byte| if byte < 0x20 && byte != 0x1b || byte == 0x7f { b' ' } else { byte }));
    }
    title
}
