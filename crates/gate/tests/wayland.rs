//! The Wayland filter on its own: what programs have said to a compositor, cut and changed anywhere.

use lazaret_gate::wayland::{Filter, In, Interface, MARK, Out, Protocol, Rules, message};
use lazaret_gate::x11::Clipboard;
use proptest::prelude::*;

/// What foot and a program of GTK said to sway 1.7, and it to them, the second of which was told of windows only:
/// records of a direction (0 is the program's), a count of descriptors, a length, and bytes.
const CAPTURES: &[&[u8]] = &[include_bytes!("captures/foot"), include_bytes!("captures/gtk")];

/// One piece of a conversation.
#[derive(Clone, Debug)]
struct Piece {
    from_client: bool,
    fds: usize,
    bytes: Vec<u8>,
}

fn pieces(mut capture: &[u8]) -> Vec<Piece> {
    let mut all = Vec::new();
    while let [direction, fds, a, b, c, d, rest @ ..] = capture {
        let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let (bytes, rest) = rest.split_at(length);
        all.push(Piece { from_client: *direction == 0, fds: usize::from(*fds), bytes: bytes.to_vec() });
        capture = rest;
    }
    all
}

/// A connection, whose descriptors are numbers.
struct Wire {
    filter: Filter,
    rules: Rules,
    from: [In<u32>; 2],
    to_server: Out<u32>,
    to_client: Out<u32>,
    fds: u32,
}

impl Wire {
    fn new(clipboard: Clipboard) -> Wire {
        let rules = Rules { name: "ff".into(), clipboard, mark: format!("{MARK}secret"), invited: [false; 2] };
        let from = [In::default(), In::default()];
        Wire { filter: Filter::new(), rules, from, to_server: Out::default(), to_client: Out::default(), fds: 0 }
    }

    fn give(&mut self, from_client: bool, bytes: &[u8], fds: usize) -> bool {
        let from = &mut self.from[usize::from(!from_client)];
        from.bytes.extend(bytes);
        for _ in 0..fds {
            from.fds.push_back(self.fds);
            self.fds += 1;
        }
        match from_client {
            true => self.filter.from_client(from, &self.rules, &mut self.to_server, &mut self.to_client).is_ok(),
            false => self.filter.from_server(from, &mut self.rules, &mut self.to_client).is_ok(),
        }
    }

    fn client(&mut self, bytes: &[u8]) -> bool {
        self.give(true, bytes, 0)
    }

    fn server(&mut self, bytes: &[u8]) -> bool {
        self.give(false, bytes, 0)
    }

    /// What has been told since the last time.
    fn told(&mut self, client: bool) -> Vec<u8> {
        let out = if client { &mut self.to_client } else { &mut self.to_server };
        let (bytes, fds) = (out.bytes.clone(), out.fds.len());
        out.sent(bytes.len(), fds);
        bytes
    }
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32 + 1).to_ne_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn said(object: u32, number: u16, parts: &[&[u8]]) -> Vec<u8> {
    let words: Vec<u32> = parts.concat().chunks(4).map(|four| u32::from_ne_bytes(four.try_into().unwrap())).collect();
    message(object, number, &words)
}

fn global(name: u32, interface: &str, version: u32) -> Vec<u8> {
    said(2, 0, &[&name.to_ne_bytes(), &text(interface), &version.to_ne_bytes()])
}

fn bind(name: u32, interface: &str, version: u32, id: u32) -> Vec<u8> {
    said(2, 0, &[&name.to_ne_bytes(), &text(interface), &version.to_ne_bytes(), &id.to_ne_bytes()])
}

/// A program that has asked what there is, and a compositor that has answered.
fn introduced(clipboard: Clipboard, offers: &[(&str, u32)]) -> Wire {
    let mut wire = Wire::new(clipboard);
    assert!(wire.client(&message(1, 1, &[2])));
    for (at, (interface, version)) in offers.iter().enumerate() {
        assert!(wire.server(&global(at as u32 + 1, interface, *version)));
    }
    wire
}

#[test]
fn real_programs_pass_as_they_are() {
    for capture in CAPTURES {
        let mut wire = Wire::new(Clipboard::Both);
        let (mut asked, mut answered) = (0, 0);
        for piece in pieces(capture) {
            assert!(wire.give(piece.from_client, &piece.bytes, piece.fds), "{piece:x?}");
            *(if piece.from_client { &mut asked } else { &mut answered }) += piece.bytes.len();
        }
        assert_eq!(wire.fds as usize, wire.to_server.fds.len() + wire.to_client.fds.len());
        // Its titles are longer now, and it hears less of what there is.
        assert!((asked..asked + 200).contains(&wire.to_server.bytes.len()));
        assert!(wire.to_client.bytes.len() <= answered && wire.to_client.bytes.len() * 3 > answered);
        let heard = String::from_utf8_lossy(&wire.to_client.bytes).into_owned();
        assert!(heard.contains("wl_compositor") && heard.contains("xdg_wm_base"));
        for hidden in ["screencopy", "data_control", "virtual", "layer_shell", "input_method", "foreign"] {
            assert!(!heard.contains(hidden), "{hidden}");
        }
        assert!(String::from_utf8_lossy(&wire.to_server.bytes).contains("[ff]"));
    }
}

#[test]
fn only_what_was_offered_can_be_asked_for() {
    let offers = [("wl_compositor", 9), ("zwlr_screencopy_manager_v1", 3), ("wl_seat", 7)];
    for (bytes, fine) in [
        (bind(1, "wl_compositor", 6, 3), true),
        (bind(3, "wl_seat", 7, 3), true),
        // It is offered in the version that is known here.
        (bind(1, "wl_compositor", 7, 3), false),
        (bind(1, "wl_compositor", 0, 3), false),
        (bind(3, "wl_seat", 8, 3), false),
        (bind(2, "zwlr_screencopy_manager_v1", 1, 3), false),
        (bind(2, "wl_compositor", 1, 3), false),
        (bind(1, "zwlr_screencopy_manager_v1", 1, 3), false),
        (bind(9, "wl_compositor", 1, 3), false),
        // Numbers that are taken, leave a gap, or are the compositor's.
        (bind(1, "wl_compositor", 6, 2), false),
        (bind(1, "wl_compositor", 6, 4), false),
        (bind(1, "wl_compositor", 6, 0xff00_0000), false),
        // Objects that are not there, and requests that nobody knows.
        (message(3, 0, &[4]), false),
        (message(0, 0, &[]), false),
        (message(1, 7, &[]), false),
        (message(2, 1, &[]), false),
        (message(1, 1, &[]), false),
        (vec![1, 0, 0, 0, 0, 0, 4, 0], false),
        (vec![1, 0, 0, 0, 0, 0, 9, 0, 0], false),
    ] {
        let mut wire = introduced(Clipboard::Out, &offers);
        let heard = String::from_utf8_lossy(&wire.told(true)).into_owned();
        assert!(heard.contains("wl_seat") && !heard.contains("screencopy"), "{heard}");
        wire.told(false);
        assert_eq!(wire.client(&bytes), fine, "{bytes:x?}");
        let passed = wire.told(false);
        assert_eq!(passed, if fine { bytes } else { Vec::new() });
    }
}

#[test]
fn a_number_is_used_again_when_the_compositor_says_so() {
    let mut wire = introduced(Clipboard::Out, &[("wl_compositor", 6)]);
    assert!(wire.client(&bind(1, "wl_compositor", 6, 3)) && wire.client(&message(3, 0, &[4])));
    // wl_surface.destroy, and then by the same number a region.
    assert!(wire.client(&message(4, 0, &[])));
    assert!(wire.server(&message(1, 1, &[4])) && wire.client(&message(3, 1, &[4])));
    assert!(wire.client(&message(4, 1, &[0, 0, 1, 1])));
    assert!(wire.client(&message(4, 0, &[])) && !wire.client(&message(3, 0, &[4])));
}

#[test]
fn descriptors_go_with_their_messages_only() {
    let pool = |wire: &mut Wire, fds| wire.give(true, &message(3, 0, &[4, 4096]), fds);
    let new = || {
        let mut wire = introduced(Clipboard::Out, &[("wl_shm", 1)]);
        assert!(wire.client(&bind(1, "wl_shm", 1, 3)));
        wire
    };
    let mut wire = new();
    assert!(pool(&mut wire, 1) && wire.to_server.fds.len() == 1);
    assert!(!pool(&mut new(), 0), "there is none");
    // Some come early; many are a flood.
    let mut wire = new();
    assert!(wire.give(true, &[], 28) && pool(&mut wire, 0) && wire.to_server.fds.len() == 1);
    assert!(!wire.give(true, &message(1, 0, &[5]), 30));
}

/// A program with a data device (4), which has been offered `offer` as the selection in these forms.
fn offered(wire: &mut Wire, offer: u32, forms: &[&str]) {
    assert!(wire.server(&message(4, 0, &[offer])));
    for form in forms {
        assert!(wire.server(&said(offer, 0, &[&text(form)])));
    }
    assert!(wire.server(&message(4, 5, &[offer])));
}

fn with_clipboard(clipboard: Clipboard) -> Wire {
    let mut wire = introduced(clipboard, &[("wl_data_device_manager", 3), ("wl_seat", 7)]);
    assert!(wire.client(&bind(1, "wl_data_device_manager", 3, 3)));
    // No seat is made: whether there is one is the compositor's to say.
    assert!(wire.client(&message(3, 1, &[4, 99])));
    wire.told(false);
    wire.told(true);
    wire
}

/// Whether asking for the content reaches the compositor.
fn pastes(wire: &mut Wire, offer: u32) -> bool {
    let before = wire.to_server.fds.len();
    assert!(wire.give(true, &said(offer, 1, &[&text("text/plain")]), 1));
    let passed = wire.to_server.fds.len() > before;
    assert_eq!(!wire.told(false).is_empty(), passed);
    passed
}

const OFFER: u32 = 0xff00_0000;

#[test]
fn what_was_copied_outside_is_pasted_when_it_is_allowed() {
    for (clipboard, expected) in [(Clipboard::Off, false), (Clipboard::Out, false), (Clipboard::Both, true)] {
        let mut wire = with_clipboard(clipboard);
        offered(&mut wire, OFFER, &["text/plain"]);
        assert_eq!(pastes(&mut wire, OFFER), expected, "{clipboard:?}");
    }
    // By an explicit act: what is there now, and nothing later.
    let mut wire = with_clipboard(Clipboard::Out);
    offered(&mut wire, OFFER, &["text/plain"]);
    assert!(wire.filter.allow_paste() && pastes(&mut wire, OFFER));
    offered(&mut wire, OFFER + 1, &["text/plain"]);
    assert!(!pastes(&mut wire, OFFER + 1));
    // The next one, if the person is on the way; and only that one.
    wire.rules.invited = [true; 2];
    offered(&mut wire, OFFER + 2, &["text/plain"]);
    assert!(pastes(&mut wire, OFFER + 2) && wire.rules.invited == [false, true]);
    offered(&mut wire, OFFER, &["text/plain"]);
    assert!(!pastes(&mut wire, OFFER), "a number that is used again says nothing");
}

#[test]
fn what_was_copied_inside_is_pasted_inside_by_a_mark_that_nobody_sees() {
    let mut wire = with_clipboard(Clipboard::Out);
    // A source, its form, and a forged mark; then it is copied.
    assert!(wire.client(&message(3, 0, &[5])) && wire.client(&said(5, 0, &[&text("text/plain")])));
    assert!(wire.client(&said(5, 0, &[&text(&format!("{MARK}forged"))])));
    assert!(wire.client(&message(4, 1, &[5, 77])));
    let told = String::from_utf8_lossy(&wire.told(false)).into_owned();
    assert!(told.contains(&wire.rules.mark) && !told.contains("forged"), "{told}");
    // The compositor offers it to another program of the container.
    let mut other = with_clipboard(Clipboard::Out);
    offered(&mut other, OFFER, &["text/plain", &format!("{MARK}secret")]);
    let told = String::from_utf8_lossy(&other.told(true)).into_owned();
    assert!(told.contains("text/plain") && !told.contains(MARK), "{told}");
    assert!(pastes(&mut other, OFFER));
    // Another container's is foreign.
    offered(&mut other, OFFER + 1, &["text/plain", &format!("{MARK}another")]);
    assert!(!pastes(&mut other, OFFER + 1));
    // Whoever wants the mark itself gets nothing, on either side.
    assert!(wire.give(false, &said(5, 1, &[&text(&format!("{MARK}secret"))]), 1));
    assert!(wire.told(true).is_empty());
    let before = other.to_server.fds.len();
    assert!(other.give(true, &said(OFFER, 1, &[&text(&format!("{MARK}secret"))]), 1));
    assert_eq!(other.to_server.fds.len(), before);
}

#[test]
fn a_closed_clipboard_lets_nothing_out() {
    let mut wire = with_clipboard(Clipboard::Off);
    assert!(wire.client(&message(3, 0, &[5])));
    wire.told(false);
    assert!(wire.client(&message(4, 1, &[5, 77])));
    assert_eq!(wire.told(false), Vec::<u8>::new());
    // wl_data_source.cancelled
    assert_eq!(wire.told(true), message(5, 2, &[]));
}

#[test]
fn what_is_dragged_is_read_when_it_is_let_go() {
    let mut wire = with_clipboard(Clipboard::Out);
    assert!(wire.server(&message(4, 0, &[OFFER])) && wire.server(&said(OFFER, 0, &[&text("text/plain")])));
    assert!(wire.server(&message(4, 1, &[1, 6, 0, 0, OFFER])));
    assert!(!pastes(&mut wire, OFFER), "it only passes above the window");
    assert!(wire.server(&message(4, 4, &[])));
    assert!(pastes(&mut wire, OFFER));
}

#[test]
fn titles_say_whose_they_are() {
    let mut wire = introduced(Clipboard::Out, &[("xdg_wm_base", 6), ("wl_compositor", 4)]);
    assert!(wire.client(&bind(1, "xdg_wm_base", 6, 3)) && wire.client(&bind(2, "wl_compositor", 4, 4)));
    assert!(wire.client(&message(4, 0, &[5])) && wire.client(&message(3, 2, &[6, 5])));
    wire.told(false);
    assert!(wire.client(&message(6, 1, &[7])));
    assert_eq!(wire.told(false), [message(6, 1, &[7]), said(7, 2, &[&text("[ff]")])].concat());
    assert!(wire.client(&said(7, 2, &[&text("a\nb")])));
    assert_eq!(wire.told(false), said(7, 2, &[&text("[ff] a b")]));
    let long = "ä".repeat(1500);
    assert!(wire.client(&said(7, 2, &[&text(&long)])));
    assert!(wire.told(false).len() <= 8 + 4 + 1028);
    assert!(!wire.client(&message(7, 2, &[4000])), "a title that does not fit");
}

/// What the protocol's own files say of every interface that Debian has them for.
#[test]
fn the_table_agrees_with_the_protocols() {
    let mut compared = 0;
    for (interface, [requests, events]) in described() {
        let Some(kind) = Protocol::known().kind(interface.as_bytes()) else { continue };
        let Interface { requests: our_requests, events: our_events, .. } = Protocol::known().of(kind);
        for (theirs, ours) in [(requests, our_requests), (events, our_events)] {
            // A newer file may have more at the end; an older one less.
            for (their, our) in theirs.iter().zip(ours) {
                let made = our.makes.map(|kind| Protocol::known().of(kind).name.to_owned());
                let our = (our.name.to_owned(), our.arguments.to_owned(), made, our.ends);
                assert_eq!(*their, our, "{interface}");
                compared += 1;
            }
        }
    }
    assert!(compared > 250, "the files of wayland-protocols and libwayland-dev are there: {compared}");
}

type Described = (String, String, Option<String>, bool);

/// Requests and events of each interface: name, arguments, what is made, and whether the object ends.
fn described() -> Vec<(String, [Vec<Described>; 2])> {
    let mut files = vec![std::path::PathBuf::from("/usr/share/wayland/wayland.xml")];
    let mut dirs = vec![std::path::PathBuf::from("/usr/share/wayland-protocols")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                // An attempt from before there was an agreement, with names that mean something else now.
                true if entry.path().ends_with("unstable/xdg-shell") => {}
                true => dirs.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    let mut all: Vec<(String, [Vec<Described>; 2])> = Vec::new();
    let mut side = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        for tag in text.split('<').filter_map(|rest| rest.split('>').next()) {
            let tag = tag.replace(['\n', '\t'], " ");
            let attribute = |name: &str| {
                let rest = tag.split_once(&format!(" {name}=\""))?.1;
                Some(rest.split('"').next()?.to_owned())
            };
            let word = tag.split(' ').next().unwrap_or_default();
            let name = attribute("name").unwrap_or_default();
            match (word, all.last_mut()) {
                ("interface", _) => all.push((name, [Vec::new(), Vec::new()])),
                ("request" | "event", Some((_, sides))) => {
                    let ends = attribute("type").as_deref() == Some("destructor");
                    sides[usize::from(word == "event")].push((name, String::new(), None, ends));
                    side = usize::from(word == "event");
                }
                ("arg", Some((_, sides))) => {
                    let Some((_, arguments, makes, _)) = sides[side].last_mut() else { continue };
                    let of = attribute("interface");
                    arguments.push_str(match attribute("type").as_deref() {
                        Some("int") => "i",
                        Some("uint") => "u",
                        Some("fixed") => "f",
                        Some("string") => "s",
                        Some("object") => "o",
                        Some("array") => "a",
                        Some("fd") => "h",
                        // What is asked for by name says what it is.
                        Some("new_id") if of.is_none() => "sun",
                        Some("new_id") => {
                            *makes = of;
                            "n"
                        }
                        other => panic!("{other:?}"),
                    });
                }
                _ => {}
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn where_it_is_cut_makes_no_difference(
        which in 0..CAPTURES.len(),
        cuts in prop::collection::vec(1usize..64, 1..40),
    ) {
        let mut whole = Wire::new(Clipboard::Out);
        let mut cut = Wire::new(Clipboard::Out);
        let mut at = 0;
        for piece in pieces(CAPTURES[which]) {
            prop_assert!(whole.give(piece.from_client, &piece.bytes, piece.fds));
            prop_assert!(cut.give(piece.from_client, &[], piece.fds));
            let mut bytes = &piece.bytes[..];
            while !bytes.is_empty() {
                let (some, rest) = bytes.split_at(cuts[at % cuts.len()].min(bytes.len()));
                prop_assert!(cut.give(piece.from_client, some, 0));
                bytes = rest;
                at += 1;
            }
        }
        prop_assert_eq!(whole.told(false), cut.told(false));
        prop_assert_eq!(whole.told(true), cut.told(true));
    }

    /// Whatever a program says: what reaches the compositor are whole messages to objects, nothing hidden is named, and
    /// each descriptor goes once.
    #[test]
    fn changed_conversations_do_no_harm(
        which in 0..CAPTURES.len(),
        changes in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index, u8)>(), 1..20),
        drop_fds in any::<bool>(),
    ) {
        let mut all = pieces(CAPTURES[which]);
        for (piece, byte, value) in changes {
            let piece = piece.get(&all).bytes.len().checked_sub(1).map(|_| piece.index(all.len()));
            let Some(piece) = piece.filter(|&at| all[at].from_client) else { continue };
            let at = byte.index(all[piece].bytes.len());
            all[piece].bytes[at] ^= value;
        }
        let mut wire = Wire::new(Clipboard::Out);
        for piece in all {
            let fds = if drop_fds && piece.from_client { 0 } else { piece.fds };
            if !wire.give(piece.from_client, &piece.bytes, fds) {
                break;
            }
        }
        let mut seen: Vec<u32> = wire.to_server.fds.iter().chain(&wire.to_client.fds).map(|(_, fd)| *fd).collect();
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len(), count);
        let told = wire.told(false);
        let mut rest = &told[..];
        while !rest.is_empty() {
            prop_assert!(rest.len() >= 8);
            let second = u32::from_ne_bytes(rest[4..8].try_into().unwrap());
            let length = (second >> 16) as usize;
            prop_assert!(length >= 8 && length <= rest.len());
            rest = &rest[length..];
        }
    }

    #[test]
    fn noise_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        fds in 0usize..40,
        client in any::<bool>(),
    ) {
        let mut wire = introduced(Clipboard::Out, &[("wl_compositor", 6), ("wl_shm", 1)]);
        wire.give(client, &bytes, fds);
    }
}
