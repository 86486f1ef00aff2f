//! What may be said: interfaces, their requests and events, as a table that is read once.

use std::sync::LazyLock;

/// Each interface has a line with its name and, if programs may ask for it by name, the highest version that is known
/// here; then its requests behind `>`, its events behind `<`, both in the order of their numbers. Behind a colon are
/// the arguments (`i`, `u`, `f`, `o`, `n`: a word each; `s`: text; `a`: bytes; `h`: a descriptor), behind `=` the
/// interface of the new object; `!` ends the object.
///
/// What is missing is missing on purpose, such as: pictures of the screen and of other windows (screencopy,
/// image-capture, dmabuf export), the clipboard behind one's back (data-control), typing and clicking (virtual
/// keyboards and pointers, input methods), windows over or under all others (layer-shell, session-lock,
/// fullscreen-shell), other programs' windows (foreign-toplevel, workspaces), what the person does (idle-notify), the
/// compositor's own keys (shortcuts-inhibit), the screen's settings (output management, gamma, leases), and
/// security-context itself.
const TEXT: &str = include_str!("protocol.txt");

/// The number of an interface in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(pub u16);

/// What one side can tell an object of the other.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its name in the protocol.
    pub name: &'static str,
    /// A letter for each argument.
    pub arguments: &'static str,
    /// What the new object is.
    pub makes: Option<Kind>,
    /// The object has ended by it.
    pub ends: bool,
    /// How many descriptors belong to it.
    pub fds: usize,
    /// What is to be done about it.
    pub(super) act: Act,
}

/// What objects can be.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Its name in the protocol.
    pub name: &'static str,
    /// The highest version that programs are offered; `None` for what is made by other objects only.
    pub version: Option<u32>,
    /// What programs tell it.
    pub requests: Vec<Message>,
    /// What it tells programs.
    pub events: Vec<Message>,
}

/// The whole table.
#[derive(Debug)]
pub struct Protocol {
    /// By [`Kind`].
    pub interfaces: Vec<Interface>,
}

/// Messages that need more than to be passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Act {
    #[default]
    Pass,
    /// A program may use what is in the place of the object's id again.
    Freed,
    /// Something can be asked for by name, or not any more.
    Offered,
    Withdrawn,
    Bind,
    /// A window is made, or named.
    Window,
    Title,
    /// A window says what program it belongs to.
    Class,
    /// A program has the keyboard, or not any more.
    Focus,
    Unfocus,
    /// Something is copied: in what forms, and that it is.
    Form,
    Copy,
    /// Somebody wants what was copied.
    Wanted,
    /// Something can be pasted: in what forms, by which clipboard, by the pointer, and that it was let go.
    PasteForm,
    Selection,
    Dragged,
    Left,
    Dropped,
    /// It is asked for.
    Paste,
}

const REQUESTS: &[(&str, &str, Act)] = &[
    ("wl_registry", "bind", Act::Bind),
    ("xdg_surface", "get_toplevel", Act::Window),
    ("xdg_toplevel", "set_title", Act::Title),
    ("xdg_toplevel", "set_app_id", Act::Class),
    ("wl_data_source", "offer", Act::Form),
    ("wl_data_device", "set_selection", Act::Copy),
    ("wl_data_offer", "receive", Act::Paste),
    ("zwp_primary_selection_source_v1", "offer", Act::Form),
    ("zwp_primary_selection_device_v1", "set_selection", Act::Copy),
    ("zwp_primary_selection_offer_v1", "receive", Act::Paste),
];
const EVENTS: &[(&str, &str, Act)] = &[
    ("wl_display", "delete_id", Act::Freed),
    ("wl_registry", "global", Act::Offered),
    ("wl_registry", "global_remove", Act::Withdrawn),
    ("wl_keyboard", "enter", Act::Focus),
    ("wl_keyboard", "leave", Act::Unfocus),
    ("wl_data_source", "target", Act::Wanted),
    ("wl_data_source", "send", Act::Wanted),
    ("zwp_primary_selection_source_v1", "send", Act::Wanted),
    ("wl_data_offer", "offer", Act::PasteForm),
    ("wl_data_device", "enter", Act::Dragged),
    ("wl_data_device", "leave", Act::Left),
    ("wl_data_device", "drop", Act::Dropped),
    ("wl_data_device", "selection", Act::Selection),
    ("zwp_primary_selection_offer_v1", "offer", Act::PasteForm),
    ("zwp_primary_selection_device_v1", "selection", Act::Selection),
];

impl Protocol {
    /// What is known here.
    pub fn known() -> &'static Protocol {
        static KNOWN: LazyLock<Protocol> = LazyLock::new(|| Protocol::parse(TEXT));
        &KNOWN
    }

    fn parse(text: &'static str) -> Protocol {
        let is_name = |line: &&str| !line.starts_with(['>', '<']);
        let names: Vec<&str> = text.lines().filter(is_name).filter_map(|line| line.split_whitespace().next()).collect();
        let kind = |name: &str| names.iter().position(|other| *other == name).map(|at| Kind(at as u16));
        let mut interfaces: Vec<Interface> = Vec::new();
        for line in text.lines() {
            let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
            match (first, interfaces.last_mut()) {
                (">", Some(of)) => of.requests.extend(messages(of.name, rest, REQUESTS, kind)),
                ("<", Some(of)) => of.events.extend(messages(of.name, rest, EVENTS, kind)),
                _ => interfaces.push(Interface {
                    name: first,
                    version: rest.parse().ok(),
                    requests: Vec::new(),
                    events: Vec::new(),
                }),
            }
        }
        Protocol { interfaces }
    }

    /// An interface by its number.
    pub fn of(&self, kind: Kind) -> &Interface {
        &self.interfaces[usize::from(kind.0)]
    }

    /// The number of an interface.
    pub fn kind(&self, name: &[u8]) -> Option<Kind> {
        let at = self.interfaces.iter().position(|interface| interface.name.as_bytes() == name)?;
        Some(Kind(at as u16))
    }
}

fn messages(
    of: &'static str,
    words: &'static str,
    acts: &'static [(&str, &str, Act)],
    kind: impl Fn(&str) -> Option<Kind>,
) -> impl Iterator<Item = Message> {
    words.split_whitespace().map(move |word| {
        let (word, ends) = word.strip_suffix('!').map_or((word, false), |word| (word, true));
        let (word, makes) = word.split_once('=').map_or((word, None), |(word, makes)| (word, kind(makes)));
        let (name, arguments) = word.split_once(':').unwrap_or((word, ""));
        let act = acts.iter().find(|(interface, message, _)| (*interface, *message) == (of, name));
        Message {
            name,
            arguments,
            makes,
            ends,
            fds: arguments.bytes().filter(|&letter| letter == b'h').count(),
            act: act.map_or(Act::Pass, |(_, _, act)| *act),
        }
    })
}

impl Message {
    /// Where the arguments of a message are that name a new object; `None` where it is too short for its arguments.
    pub(super) fn place_of_new(&self, message: &[u8]) -> Option<usize> {
        let mut at = super::wire::HEADER;
        for letter in self.arguments.bytes() {
            match letter {
                b'n' => return (at + 4 <= message.len()).then_some(at),
                b's' | b'a' => at = super::wire::text(message, at)?.1,
                b'h' => {}
                _ => at += 4,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_makes_sense() {
        let protocol = Protocol::known();
        assert_eq!(protocol.of(Kind(0)).name, "wl_display");
        for interface in &protocol.interfaces {
            for message in interface.requests.iter().chain(&interface.events) {
                let says = format!("{}.{}", interface.name, message.name);
                assert!(message.arguments.bytes().all(|letter| b"iufosnah".contains(&letter)), "{says}");
                assert!(message.arguments.bytes().filter(|letter| *letter == b'n').count() <= 1, "{says}");
                let makes = message.arguments.contains('n') && message.act != Act::Bind;
                assert_eq!(message.makes.is_some(), makes, "{says}");
            }
        }
        for (acts, of) in [(REQUESTS, 0), (EVENTS, 1)] {
            for (interface, name, act) in acts {
                let interface = protocol.of(protocol.kind(interface.as_bytes()).unwrap());
                let messages = if of == 0 { &interface.requests } else { &interface.events };
                assert!(messages.iter().any(|message| message.name == *name && message.act == *act), "{name}");
            }
        }
    }

    #[test]
    fn nothing_is_offered_that_is_more_than_windows() {
        let offered: Vec<_> =
            Protocol::known().interfaces.iter().filter(|one| one.version.is_some()).map(|one| one.name).collect();
        let parts = "screencopy capture export data_control virtual input_method zwlr_ foreign session_lock gamma security \
                     idle_notif shortcuts lease fixes";
        for part in parts.split_whitespace() {
            assert!(!offered.iter().any(|name| name.contains(part)), "{part}");
        }
    }
}
