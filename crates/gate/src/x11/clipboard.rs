//! The clipboard as a diode, and who has the person's attention.
//!
//! The filter gives a container selections of its own, so copying and pasting inside needs nobody. Two connections of
//! the gate join them with the session's: `outer` is trusted and owns what was copied inside, so that the session's
//! programs can ask for it; `inner` came with the container's cookie and asks the programs inside, which may not write
//! to anything trusted. From outside to inside goes what the person pastes on purpose, or, with
//! [`Clipboard::Both`], everything.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use lazaret_base::Result;

use super::atoms::{Known, fixed};
use super::client::{Link, ORDER};
use super::container::Container;
use super::serve::Clipboard;
use super::wire::{padded, request};

/// How long one program may take to hand over what it has copied.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that is carried over at once.
const MOST_BYTES: usize = 16 << 20;
/// Transfers at once.
const MOST_TRANSFERS: usize = 32;
/// Event masks.
const PROPERTY_CHANGE: u32 = 0x0040_0000;
const FOCUS_CHANGE: u32 = 0x0020_0000;

/// What may be carried over. Not: lists of files, whose names mean something else on the other side.
const KINDS: &[Known] = &[
    Known::Targets,
    Known::Timestamp,
    Known::Utf8,
    Known::Text,
    Known::CompoundText,
    Known::TextPlain,
    Known::TextPlainUtf8,
    Known::TextHtml,
    Known::TextRtf,
    Known::ImagePng,
    Known::ImageJpeg,
    Known::ImageBmp,
    Known::ImageTiff,
];
/// What a paste fetches.
const PASTED: &[Known] = &[Known::Utf8, Known::TextHtml, Known::ImagePng];
/// Other names for UTF-8 text.
const PLAIN: &[Known] = &[Known::TextPlainUtf8, Known::TextPlain, Known::Text];

/// What the loop has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The person has turned to something else: nobody keeps the pointer.
    Release,
    /// A paste has ended; so many kinds of data are inside.
    Pasted(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Outer,
    Inner,
}

/// Why somebody wants to know where the keyboard is.
#[derive(Clone, Copy, Debug)]
enum Why {
    Copied(u32),
    Grabbed,
}

/// A question that the server has not answered.
#[derive(Clone, Copy, Debug)]
enum Question {
    Focus(Why),
    Pointer(Why),
    /// What was put on this window.
    Value(u32),
}

/// Where transferred data go.
#[derive(Clone, Copy, Debug)]
enum Sink {
    Requestor { side: Side, window: u32, selection: u32, target: u32, property: u32, time: u32 },
    Store,
}

#[derive(Debug)]
struct Transfer {
    reader: Side,
    window: u32,
    piecewise: bool,
    data: Data,
    sink: Sink,
    until: Instant,
}

#[derive(Clone, Debug, Default)]
struct Data {
    target: u32,
    kind: u32,
    format: u8,
    bytes: Vec<u8>,
}

/// The two connections and what they are busy with.
#[derive(Debug)]
pub struct Board {
    policy: Clipboard,
    pub outer: Link,
    pub inner: Link,
    /// The windows that own selections.
    outer_window: u32,
    inner_window: u32,
    outer_asked: VecDeque<(u16, Question)>,
    inner_asked: VecDeque<(u16, Question)>,
    /// What the session's programs can ask us for.
    offered: Vec<u32>,
    /// What the person has pasted.
    stored: Vec<Data>,
    /// Transfers of a paste that go on.
    pasting: usize,
    transfers: Vec<Transfer>,
    /// The window whose loss of the keyboard we will hear of, or 0.
    watched: u32,
}

impl Board {
    /// Takes two connections into service.
    pub fn new(policy: Clipboard, mut outer: Link, mut inner: Link, container: &mut Container) -> Board {
        let outer_window = window(&mut outer);
        let inner_window = window(&mut inner);
        container.inner = (inner.base, inner.mask);
        let mut board = Board {
            policy: Clipboard::Out,
            outer,
            inner,
            outer_window,
            inner_window,
            outer_asked: VecDeque::new(),
            inner_asked: VecDeque::new(),
            offered: Vec::new(),
            stored: Vec::new(),
            pasting: 0,
            transfers: Vec::new(),
            watched: 0,
        };
        board.set_policy(policy, container);
        board
    }

    /// Changes the policy. What was pasted or offered already is taken back where the new one does not allow it.
    pub fn set_policy(&mut self, policy: Clipboard, container: &Container) {
        self.policy = policy;
        if policy == Clipboard::Off {
            for selection in std::mem::take(&mut self.offered) {
                self.outer.send(request(ORDER, 22, 0, &[0, selection, 0]));
            }
        }
        // With the window goes all that it owned, and nothing that somebody inside owns by now.
        self.inner.send(request(ORDER, 4, 0, &[self.inner_window]));
        self.inner_window = window(&mut self.inner);
        self.stored.clear();
        if policy != Clipboard::Both {
            return;
        }
        for selection in [fixed::PRIMARY, container.atom(Known::Clipboard)] {
            if !self.offered.contains(&selection) {
                let private = container.private(selection).unwrap_or(0);
                self.inner.send(request(ORDER, 22, 0, &[self.inner_window, private, 0]));
            }
        }
    }

    /// A program inside has something to paste.
    pub fn copied(&mut self, selection: u32) {
        if self.policy != Clipboard::Off {
            self.ask_focus(Why::Copied(selection));
        }
    }

    /// Tells the window manager what a program inside wants of it.
    pub fn wish(&mut self, event: &[u32; 8]) {
        // To those who see to the windows below the root: SubstructureNotify and SubstructureRedirect.
        let mut words = vec![self.outer.root, 0x0018_0000];
        words.extend(event);
        self.outer.send(request(ORDER, 25, 0, &words));
    }

    /// A program inside has the pointer, while this window had the keyboard.
    pub fn grabbed(&mut self, focus: u32) {
        self.watch(focus);
        self.ask_focus(Why::Grabbed);
    }

    /// Fetches the session's clipboard for the container, as it is now. The end is a [`Verdict::Pasted`].
    pub fn paste(&mut self, container: &Container) {
        self.stored.clear();
        let clipboard = container.atom(Known::Clipboard);
        // What was copied inside is there already.
        if self.offered.contains(&clipboard) || self.pasting > 0 {
            return;
        }
        for &kind in PASTED {
            let target = container.atom(kind);
            self.pasting += 1;
            self.start(Side::Outer, clipboard, target, Sink::Store, container);
        }
    }

    /// Whether a paste goes on.
    pub fn is_pasting(&self) -> bool {
        self.pasting > 0
    }

    /// When something has to be given up.
    pub fn due(&self) -> Option<Instant> {
        self.transfers.iter().map(|transfer| transfer.until).min()
    }

    /// Does what there is to do, and sends what can be sent.
    ///
    /// # Errors
    ///
    /// Where the server is gone.
    pub fn turn(&mut self, container: &mut Container) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::new();
        self.outer.fill()?;
        self.inner.fill()?;
        for side in [Side::Outer, Side::Inner] {
            while let Some(message) = self.link(side).next()? {
                self.hear(side, &message, container, &mut verdicts);
            }
        }
        let now = Instant::now();
        while let Some(at) = self.transfers.iter().position(|transfer| transfer.until <= now) {
            let transfer = self.transfers.swap_remove(at);
            self.end(transfer, false, container, &mut verdicts);
        }
        self.outer.flush()?;
        self.inner.flush()?;
        Ok(verdicts)
    }

    fn hear(&mut self, side: Side, message: &[u8], container: &Container, verdicts: &mut Vec<Verdict>) {
        match message[0] & 0x7f {
            kind @ (0 | 1) => {
                let number = ORDER.u16(message, 2);
                let asked = self.asked(side);
                if asked.front().is_none_or(|(asked, _)| *asked != number) {
                    // An error about something that nobody waits for: a window that is gone.
                    return;
                }
                let Some((_, question)) = asked.pop_front() else { return };
                self.answered(side, question, (kind == 1).then_some(message), container, verdicts);
            }
            9 | 10 if side == Side::Outer && ORDER.u32(message, 4) == self.watched => self.ask_focus(Why::Grabbed),
            28 if message[16] == 0 => {
                let window = ORDER.u32(message, 4);
                if self.transfers.iter().any(|t| t.window == window && t.reader == side && t.piecewise) {
                    self.fetch(side, window, container);
                }
            }
            29 => self.lost(side, ORDER.u32(message, 12), container),
            30 => self.requested(side, message, container),
            31 => {
                let window = ORDER.u32(message, 8);
                if ORDER.u32(message, 20) != 0 {
                    self.fetch(side, window, container);
                } else if let Some(transfer) = self.take(side, window) {
                    self.end(transfer, false, container, verdicts);
                }
            }
            _ => {}
        }
    }

    fn answered(
        &mut self,
        side: Side,
        question: Question,
        reply: Option<&[u8]>,
        container: &Container,
        verdicts: &mut Vec<Verdict>,
    ) {
        match (question, reply) {
            (Question::Focus(why), Some(reply)) => match ORDER.u32(reply, 8) {
                // The keyboard follows the pointer.
                1 => self.ask_pointer(why),
                focus => self.attention(why, container.sees(focus), focus, verdicts),
            },
            (Question::Pointer(why), Some(reply)) => {
                self.attention(why, container.sees(ORDER.u32(reply, 12)), 0, verdicts);
            }
            (Question::Value(window), reply) => {
                let Some(mut transfer) = self.take(side, window) else { return };
                match reply.map(|reply| transfer.add(reply, container)) {
                    Some(Progress::More) => self.transfers.push(transfer),
                    Some(Progress::Whole) => self.end(transfer, true, container, verdicts),
                    Some(Progress::TooMuch) | None => self.end(transfer, false, container, verdicts),
                }
            }
            (Question::Focus(_) | Question::Pointer(_), None) => {}
        }
    }

    /// It is known whether the person is working with the container.
    fn attention(&mut self, why: Why, ours: bool, focus: u32, verdicts: &mut Vec<Verdict>) {
        match why {
            Why::Copied(selection) if ours && self.policy != Clipboard::Off => {
                self.outer.send(request(ORDER, 22, 0, &[self.outer_window, selection, 0]));
                if !self.offered.contains(&selection) {
                    self.offered.push(selection);
                }
            }
            Why::Grabbed if ours => self.watch(focus),
            Why::Grabbed => {
                self.watch(0);
                verdicts.push(Verdict::Release);
            }
            Why::Copied(_) => {}
        }
    }

    /// Somebody else owns a selection now.
    fn lost(&mut self, side: Side, selection: u32, container: &Container) {
        match side {
            Side::Outer => {
                self.offered.retain(|&offered| offered != selection);
                if let (Clipboard::Both, Some(private)) = (self.policy, container.private(selection)) {
                    self.inner.send(request(ORDER, 22, 0, &[self.inner_window, private, 0]));
                }
            }
            Side::Inner => self.stored.clear(),
        }
    }

    /// Somebody wants what a selection of ours holds.
    fn requested(&mut self, side: Side, event: &[u8], container: &Container) {
        let [time, _, window, selection, target, property] = [4, 8, 12, 16, 20, 24].map(|at| ORDER.u32(event, at));
        let property = if property == 0 { target } else { property };
        let sink = Sink::Requestor { side, window, selection, target, property, time };
        let allowed = target == fixed::STRING || container.facts.atoms.is_one_of(target, KINDS);
        match (side, container.private(selection), container.public(selection)) {
            (Side::Outer, Some(private), _) if allowed && self.offered.contains(&selection) => {
                self.start(Side::Inner, private, target, sink, container);
            }
            (Side::Inner, ..) if !self.stored.is_empty() => self.serve_stored(target, sink, container),
            (Side::Inner, _, Some(public)) if allowed && self.policy == Clipboard::Both => {
                self.start(Side::Outer, public, target, sink, container);
            }
            _ => self.deliver(sink, None),
        }
    }

    /// Hands out what the person has pasted.
    fn serve_stored(&mut self, target: u32, sink: Sink, container: &Container) {
        let utf8 = container.atom(Known::Utf8);
        let is_text = container.facts.atoms.is_one_of(target, PLAIN);
        if target == container.atom(Known::Targets) {
            let text = self.stored.iter().any(|data| data.target == utf8);
            let aliases = PLAIN.iter().filter(|_| text).map(|&known| container.atom(known));
            let all = [target].into_iter().chain(self.stored.iter().map(|data| data.target)).chain(aliases);
            let bytes = all.flat_map(u32::to_le_bytes).collect();
            return self.deliver(sink, Some(&Data { target, kind: fixed::ATOM, format: 32, bytes }));
        }
        let wanted = if is_text { utf8 } else { target };
        let found = self.stored.iter().find(|data| data.target == wanted).cloned();
        self.deliver(sink, found.map(|data| Data { kind: if is_text { target } else { data.kind }, ..data }).as_ref());
    }

    /// Asks the owner of a selection for its contents.
    fn start(&mut self, reader: Side, selection: u32, target: u32, sink: Sink, container: &Container) {
        if self.transfers.len() >= MOST_TRANSFERS {
            return self.deliver(sink, None);
        }
        let link = self.link(reader);
        let window = window(link);
        link.send(request(ORDER, 24, 0, &[window, selection, target, container.atom(Known::Transfer), 0]));
        let data = Data { target, ..Data::default() };
        let until = Instant::now() + PATIENCE;
        self.transfers.push(Transfer { reader, window, piecewise: false, data, sink, until });
    }

    /// Reads what an owner has put on a window of ours, and takes it off.
    fn fetch(&mut self, side: Side, window: u32, container: &Container) {
        let most = MOST_BYTES as u32 / 4;
        let get = request(ORDER, 20, 1, &[window, container.atom(Known::Transfer), 0, 0, most]);
        let number = self.link(side).send(get) as u16;
        self.asked(side).push_back((number, Question::Value(window)));
    }

    fn end(&mut self, transfer: Transfer, whole: bool, container: &Container, verdicts: &mut Vec<Verdict>) {
        // DestroyWindow
        self.link(transfer.reader).send(request(ORDER, 4, 0, &[transfer.window]));
        let mut data = transfer.data;
        if data.target == container.atom(Known::Targets) {
            let may = |atom: u32| atom == fixed::STRING || container.facts.atoms.is_one_of(atom, KINDS);
            data.bytes = data.bytes.chunks_exact(4).filter(|four| may(ORDER.u32(four, 0))).flatten().copied().collect();
        }
        self.deliver(transfer.sink, whole.then_some(&data));
        if let Sink::Store = transfer.sink {
            self.pasting = self.pasting.saturating_sub(1);
            if self.pasting == 0 {
                verdicts.push(Verdict::Pasted(self.stored.len()));
                if !self.stored.is_empty() {
                    let private = container.private(container.atom(Known::Clipboard)).unwrap_or(0);
                    self.inner.send(request(ORDER, 22, 0, &[self.inner_window, private, 0]));
                }
            }
        }
    }

    /// Gives data to whoever wanted it, or says that there are none.
    fn deliver(&mut self, sink: Sink, data: Option<&Data>) {
        let Sink::Requestor { side, window, selection, target, property, time } = sink else {
            self.stored.extend(data.filter(|data| !data.bytes.is_empty()).cloned());
            return;
        };
        let link = self.link(side);
        let data = data.filter(|data| link.takes(data.bytes.len()) && [8, 16, 32].contains(&data.format));
        if let Some(data) = data {
            let items = data.bytes.len() as u32 / u32::from(data.format / 8);
            let mut change = request(ORDER, 18, 0, &[window, property, data.kind, data.format.into(), items]);
            change.extend(&data.bytes);
            change.resize(24 + padded(data.bytes.len()), 0);
            let length = (change.len() / 4) as u16;
            ORDER.set16(&mut change, 2, length);
            link.send(change);
        }
        let property = if data.is_some() { property } else { 0 };
        // SelectionNotify by SendEvent.
        link.send(request(ORDER, 25, 0, &[window, 0, 31, time, window, selection, target, property, 0, 0]));
    }

    fn ask_focus(&mut self, why: Why) {
        let number = self.outer.send(request(ORDER, 43, 0, &[])) as u16;
        self.outer_asked.push_back((number, Question::Focus(why)));
    }

    fn ask_pointer(&mut self, why: Why) {
        let root = self.outer.root;
        let number = self.outer.send(request(ORDER, 38, 0, &[root])) as u16;
        self.outer_asked.push_back((number, Question::Pointer(why)));
    }

    /// Wants to hear when this window loses the keyboard; 0 for none.
    fn watch(&mut self, window: u32) {
        if self.watched == window {
            return;
        }
        for (window, mask) in [(self.watched, 0), (window, FOCUS_CHANGE)] {
            // 0 and 1 are no windows.
            if window > 1 {
                self.outer.send(request(ORDER, 2, 0, &[window, 1 << 11, mask]));
            }
        }
        self.watched = window;
    }

    fn take(&mut self, side: Side, window: u32) -> Option<Transfer> {
        let at = self.transfers.iter().position(|t| t.window == window && t.reader == side)?;
        Some(self.transfers.swap_remove(at))
    }

    fn link(&mut self, side: Side) -> &mut Link {
        match side {
            Side::Outer => &mut self.outer,
            Side::Inner => &mut self.inner,
        }
    }

    fn asked(&mut self, side: Side) -> &mut VecDeque<(u16, Question)> {
        match side {
            Side::Outer => &mut self.outer_asked,
            Side::Inner => &mut self.inner_asked,
        }
    }
}

enum Progress {
    More,
    Whole,
    TooMuch,
}

impl Transfer {
    /// A piece of what is being transferred (a reply to GetProperty).
    fn add(&mut self, reply: &[u8], container: &Container) -> Progress {
        let (kind, left, items) = (ORDER.u32(reply, 8), ORDER.u32(reply, 12), ORDER.u32(reply, 16) as usize);
        let bytes = &reply[32..(32 + items * usize::from(reply[1]) / 8).min(reply.len())];
        if left > 0 || self.data.bytes.len() + bytes.len() > MOST_BYTES {
            return Progress::TooMuch;
        }
        if !self.piecewise && kind == container.atom(Known::Incr) {
            // It comes in pieces, each when the one before has been taken off; an empty one is the last (ICCCM 2.7.2).
            self.piecewise = true;
            return Progress::More;
        }
        if self.piecewise && kind == 0 {
            // The property was there when we heard of it, and has been read already.
            return Progress::More;
        }
        if !bytes.is_empty() {
            (self.data.kind, self.data.format) = (kind, reply[1]);
            self.data.bytes.extend(bytes);
            self.until = Instant::now() + PATIENCE;
        } else if self.data.format == 0 {
            (self.data.kind, self.data.format) = (kind, reply[1]);
        }
        if self.piecewise && !bytes.is_empty() { Progress::More } else { Progress::Whole }
    }
}

/// A window that is never shown, and hears of its properties.
fn window(link: &mut Link) -> u32 {
    let id = link.id();
    let (one_by_one, input_only) = (1 | 1 << 16, 2 << 16);
    link.send(request(ORDER, 1, 0, &[id, link.root, 0, one_by_one, input_only, 0, 1 << 11, PROPERTY_CHANGE]));
    id
}
