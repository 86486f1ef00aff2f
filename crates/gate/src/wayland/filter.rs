//! One connection: what passes, what does not, and what is changed on the way.
//!
//! A filter knows every object of its connection, since it has seen each of them being made. What a program says to an
//! object that is not there, or of something that was not offered to it, ends the connection, as it does with a
//! compositor.

use std::collections::{BTreeMap, VecDeque};

use super::objects::{FIRST_OF_SERVER, Objects, flag};
use super::protocol::{Act, Kind, Message, Protocol};
use super::wire::{Argument, HEADER, Head, In, Out, text, word, written};
use crate::x11::Clipboard;

/// What has been copied in a container has this form, too, with a secret of the gate's behind it: so that a program
/// may paste what another one of the same container has copied, and nothing else. Nobody inside ever sees it.
pub const MARK: &str = "application/vnd.lazaret.origin-";
/// The longest title that is shown; messages had 4096 bytes at most for long.
const LONGEST_TITLE: usize = 1024;
/// Things that are offered by name at once. Compositors have some fifty.
const MOST_NAMES: usize = 4096;
/// Drags above windows of one program at once: one for each seat.
const MOST_DRAGS: usize = 64;
/// Descriptors that have come before their messages. Libraries send 28 at once.
const MOST_EARLY: usize = 56;

/// What holds for all connections of a container.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The container's name, shown before titles.
    pub name: String,
    /// What its clipboard does.
    pub clipboard: Clipboard,
    /// [`MARK`] and the secret.
    pub mark: String,
    /// The person has asked for a paste: the next program that they turn to may have it. The clipboard, and the one
    /// that is pasted with the middle button.
    pub invited: [bool; 2],
}

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

/// The state of one connection.
#[derive(Debug)]
pub struct Filter {
    protocol: &'static Protocol,
    objects: Objects,
    /// What the program may ask for by name: the interface and the highest version.
    names: BTreeMap<u32, (Kind, u32)>,
    /// What is dragged above windows of the program: by device, what can be pasted.
    drags: BTreeMap<u32, u32>,
}

impl Filter {
    /// The state of a new connection.
    pub fn new() -> Filter {
        let protocol = Protocol::known();
        Filter { protocol, objects: Objects::new(Kind(0)), names: BTreeMap::new(), drags: BTreeMap::new() }
    }

    /// Whether the person types into a window of the program.
    pub fn has_focus(&mut self) -> bool {
        self.objects.all().any(|object| object.flags & flag::FOCUSED != 0)
    }

    /// The person has allowed to paste what is in the clipboards now. False where the program does not know of any.
    pub fn allow_paste(&mut self) -> bool {
        let mut any = false;
        for object in self.objects.all().filter(|object| object.flags & flag::CURRENT != 0) {
            object.flags |= flag::ALLOWED;
            any = true;
        }
        any
    }

    /// Uses all whole messages of a program.
    ///
    /// # Errors
    ///
    /// [`Broken`] if it says what it can't; [`Filter::complaint`] tells it.
    pub fn from_client<F>(
        &mut self,
        from: &mut In<F>,
        rules: &Rules,
        to_server: &mut Out<F>,
        to_client: &mut Out<F>,
    ) -> Result<(), Broken> {
        let bytes = std::mem::take(&mut from.bytes);
        let mut at = 0;
        while let Some(head) = whole(&bytes[at..])? {
            let message = &bytes[at..at + head.length];
            at += head.length;
            let Some(object) = self.objects.alive(head.object) else {
                return Err(Broken(format!("there is no object {}", head.object)));
            };
            let kind = object.kind;
            let interface = self.protocol.of(kind);
            let Some(request) = interface.requests.get(head.number) else {
                return Err(Broken(format!("{} has no request {}", interface.name, head.number)));
            };
            let fds = take(&mut from.fds, request.fds)
                .ok_or_else(|| Broken(format!("{}.{} without a descriptor", interface.name, request.name)))?;
            self.made_by_client(request, message)?;
            match request.act {
                Act::Pass => to_server.push(message, fds),
                act => self.request(act, &head, message, rules, Ways { fds, to_server, to_client })?,
            }
            if request.ends {
                self.end(head.object);
            }
        }
        from.bytes = rest(bytes, at);
        if from.fds.len() > MOST_EARLY {
            return Err(Broken("descriptors without messages".into()));
        }
        Ok(())
    }

    /// Uses all whole messages of the compositor.
    ///
    /// # Errors
    ///
    /// [`Broken`] if they are none.
    pub fn from_server<F>(
        &mut self,
        from: &mut In<F>,
        rules: &mut Rules,
        to_client: &mut Out<F>,
    ) -> Result<(), Broken> {
        let bytes = std::mem::take(&mut from.bytes);
        let mut at = 0;
        while let Some(head) = whole(&bytes[at..])? {
            let message = &bytes[at..at + head.length];
            at += head.length;
            // Of what a program has never been told there is nothing to tell it.
            let Some(object) = self.objects.get(head.object) else { continue };
            let kind = object.kind;
            let Some(event) = self.protocol.of(kind).events.get(head.number) else { continue };
            let fds = take(&mut from.fds, event.fds).ok_or_else(|| Broken("a descriptor is missing".into()))?;
            if let Some(made) = event.makes {
                let id = event.place_of_new(message).map(|at| word(message, at)).unwrap_or_default();
                if !self.objects.add_of_server(id, made) {
                    return Err(Broken(format!("the compositor has made an object {id}")));
                }
            }
            match event.act {
                Act::Pass => to_client.push(message, fds),
                act => {
                    if let Some(changed) = self.event(act, &head, message, rules)? {
                        to_client.push(changed.as_deref().unwrap_or(message), fds);
                    }
                }
            }
            if event.ends {
                self.end(head.object);
            }
        }
        from.bytes = rest(bytes, at);
        Ok(())
    }

    /// How a program is told that its connection is over: an error of the display, as a compositor would say it.
    pub fn complaint(why: &Broken) -> Vec<u8> {
        written(1, 0, &[Argument::Word(1), Argument::Word(0), Argument::Text(why.0.as_bytes())])
    }

    /// The program has ended an object. What the compositor chose the number of is its to choose again.
    fn end(&mut self, id: u32) {
        if let Some(object) = self.objects.get(id) {
            object.alive = false;
            object.flags = 0;
        }
        self.drags.remove(&id);
    }

    /// Notes what a request makes.
    fn made_by_client(&mut self, request: &Message, message: &[u8]) -> Result<(), Broken> {
        let Some(kind) = request.makes else { return Ok(()) };
        let at = request.place_of_new(message).ok_or_else(|| Broken(format!("{} is too short", request.name)))?;
        self.add(word(message, at), kind)
    }

    fn add(&mut self, id: u32, kind: Kind) -> Result<(), Broken> {
        match self.objects.add(id, kind) {
            true => Ok(()),
            false => Err(Broken(format!("object {id} can't be made"))),
        }
    }

    /// A request that is not just passed on.
    fn request<F>(
        &mut self,
        act: Act,
        head: &Head,
        message: &[u8],
        rules: &Rules,
        ways: Ways<'_, F, impl Iterator<Item = F>>,
    ) -> Result<(), Broken> {
        let Ways { fds, to_server, to_client } = ways;
        match act {
            Act::Bind => {
                let id = self.bind(message)?;
                self.add(id.1, id.0)?;
                to_server.push(message, fds);
            }
            Act::Window => {
                to_server.push(message, fds);
                // Until it says how it is called, and if it never does.
                let window = word(message, HEADER);
                let title = format!("[{}]", rules.name);
                to_server.push(&written(window, SET_TITLE, &[Argument::Text(title.as_bytes())]), std::iter::empty());
            }
            Act::Title => {
                let (title, _) = text(message, HEADER).ok_or_else(|| Broken("a title that is none".into()))?;
                let title = titled(&rules.name, title);
                to_server.push(&written(head.object, SET_TITLE, &[Argument::Text(title.as_bytes())]), fds);
            }
            Act::Class => {
                let (class, _) = text(message, HEADER).ok_or_else(|| Broken("a program that has no name".into()))?;
                let class = classed(&rules.name, class);
                to_server.push(&written(head.object, SET_APP_ID, &[Argument::Text(class.as_bytes())]), fds);
            }
            Act::Form if is_mark(message, HEADER) => {}
            Act::Copy => self.copy(message, rules, to_server, to_client),
            Act::Paste => {
                let flags = self.objects.alive(head.object).map_or(0, |object| object.flags);
                let may = rules.clipboard == Clipboard::Both || flags & (flag::OWN | flag::ALLOWED) != 0;
                // Otherwise its end of the pipe is closed: it reads nothing.
                if may && !is_mark(message, HEADER) {
                    to_server.push(message, fds);
                }
            }
            _ => to_server.push(message, fds),
        }
        Ok(())
    }

    /// What is asked for by name, and as which object.
    fn bind(&self, message: &[u8]) -> Result<(Kind, u32), Broken> {
        let name = word(message, HEADER);
        let wrong = || Broken(format!("invalid global ({name})"));
        let (interface, at) = text(message, HEADER + 4).ok_or_else(wrong)?;
        let (version, id) = (word(message, at), word(message, at + 4));
        match self.names.get(&name) {
            Some(&(kind, highest))
                if self.protocol.of(kind).name.as_bytes() == interface && (1..=highest).contains(&version) =>
            {
                Ok((kind, id))
            }
            _ => Err(wrong()),
        }
    }

    /// Something has been copied: what was announced as `source`, or nothing any more.
    fn copy<F>(&mut self, message: &[u8], rules: &Rules, to_server: &mut Out<F>, to_client: &mut Out<F>) {
        let source = word(message, HEADER);
        let of = self.objects.alive(source).filter(|_| source < FIRST_OF_SERVER);
        if rules.clipboard == Clipboard::Off {
            if let Some(object) = of {
                // It is told at once that somebody else has copied something.
                let events = &self.protocol.of(object.kind).events;
                if let Some(at) = events.iter().position(|event| event.name == "cancelled") {
                    to_client.push(&written(source, at as u16, &[]), std::iter::empty());
                }
            }
            return;
        }
        if let Some(object) = of.filter(|object| object.flags & flag::MARKED == 0) {
            object.flags |= flag::MARKED;
            // The first request of both kinds of source.
            to_server.push(&written(source, 0, &[Argument::Text(rules.mark.as_bytes())]), std::iter::empty());
        }
        to_server.push(message, std::iter::empty());
    }

    /// An event that is not just passed on: what to tell instead; `None` for nothing, `Some(None)` for the event.
    fn event(
        &mut self,
        act: Act,
        head: &Head,
        message: &[u8],
        rules: &mut Rules,
    ) -> Result<Option<Option<Vec<u8>>>, Broken> {
        let argument = word(message, HEADER);
        match act {
            Act::Freed => self.objects.free(argument),
            Act::Offered => return Ok(self.offered(head, message).map(Some)),
            Act::Withdrawn if !self.names.contains_key(&argument) => return Ok(None),
            Act::Focus | Act::Unfocus => {
                if let Some(keyboard) = self.objects.alive(head.object) {
                    keyboard.flags = if act == Act::Focus { flag::FOCUSED } else { 0 };
                }
            }
            Act::Wanted if is_mark(message, HEADER) => return Ok(None),
            Act::PasteForm if is_mark(message, HEADER) => {
                let own = text(message, HEADER).is_some_and(|(form, _)| form == rules.mark.as_bytes());
                if let Some(object) = self.objects.get(head.object).filter(|_| own) {
                    object.flags |= flag::OWN;
                }
                return Ok(None);
            }
            Act::Selection => self.selection(argument, rules),
            Act::Dragged => {
                // Serial, surface, two coordinates, what is dragged.
                let dragged = word(message, HEADER + 16);
                if self.drags.len() < MOST_DRAGS {
                    self.drags.insert(head.object, dragged);
                }
            }
            Act::Left => drop(self.drags.remove(&head.object)),
            Act::Dropped => {
                let dragged = self.drags.remove(&head.object).unwrap_or_default();
                // Who lets something go above a window means it.
                if let Some(object) = self.objects.alive(dragged).filter(|_| rules.clipboard != Clipboard::Off) {
                    object.flags |= flag::ALLOWED;
                }
            }
            _ => {}
        }
        Ok(Some(None))
    }

    /// Something can be asked for by name: in the version that we know, if it is for everybody.
    fn offered(&mut self, head: &Head, message: &[u8]) -> Option<Vec<u8>> {
        let name = word(message, HEADER);
        self.names.remove(&name);
        let (interface, at) = text(message, HEADER + 4)?;
        let kind = self.protocol.kind(interface)?;
        let version = word(message, at).min(self.protocol.of(kind).version?);
        if self.names.len() >= MOST_NAMES {
            return None;
        }
        self.names.insert(name, (kind, version));
        let arguments = [Argument::Word(name), Argument::Text(interface), Argument::Word(version)];
        Some(written(head.object, head.number as u16, &arguments))
    }

    /// A clipboard holds something else.
    fn selection(&mut self, offer: u32, rules: &mut Rules) {
        let Some(kind) = self.objects.alive(offer).map(|object| object.kind) else { return };
        for object in self.objects.all().filter(|object| object.kind == kind) {
            object.flags &= !flag::CURRENT;
        }
        let primary = usize::from(self.protocol.of(kind).name.contains("primary"));
        let Some(object) = self.objects.alive(offer) else { return };
        object.flags |= flag::CURRENT;
        // What was copied inside needs no invitation.
        if object.flags & flag::OWN == 0 && std::mem::take(&mut rules.invited[primary]) {
            object.flags |= flag::ALLOWED;
        }
    }
}

impl Default for Filter {
    fn default() -> Filter {
        Filter::new()
    }
}

/// `xdg_toplevel.set_app_id`.
const SET_APP_ID: u16 = 3;
/// `xdg_toplevel.set_title`.
const SET_TITLE: u16 = 2;

/// Where a request leads.
struct Ways<'a, F, I: Iterator<Item = F>> {
    fds: I,
    to_server: &'a mut Out<F>,
    to_client: &'a mut Out<F>,
}

/// The head of the first message, if all of it is there.
fn whole(bytes: &[u8]) -> Result<Option<Head>, Broken> {
    match Head::read(bytes) {
        Some(head) if head.length < HEADER || head.length % 4 != 0 => {
            Err(Broken(format!("a message of {} bytes", head.length)))
        }
        Some(head) if head.length <= bytes.len() => Ok(Some(head)),
        _ => Ok(None),
    }
}

/// What is left of bytes that were used up to here.
fn rest(mut bytes: Vec<u8>, used: usize) -> Vec<u8> {
    bytes.drain(..used);
    match bytes.is_empty() {
        // A connection that is silent holds nothing.
        true => Vec::new(),
        false => bytes,
    }
}

/// The descriptors of a message. `None` if they are not all there.
fn take<F>(fds: &mut VecDeque<F>, count: usize) -> Option<std::vec::IntoIter<F>> {
    match count {
        0 => Some(Vec::new().into_iter()),
        _ if fds.len() < count => None,
        _ => Some(fds.drain(..count).collect::<Vec<F>>().into_iter()),
    }
}

fn is_mark(message: &[u8], at: usize) -> bool {
    text(message, at).is_some_and(|(form, _)| form.starts_with(MARK.as_bytes()))
}

/// The name of a program as one of the container's: desktops group windows by it, and show the picture of the person's
/// own program with those of its name.
fn classed(container: &str, class: &[u8]) -> String {
    let class = String::from_utf8_lossy(class);
    let prefix = crate::class_prefix(container);
    let class = class.strip_prefix(&prefix).unwrap_or(&class);
    let all = prefix.chars().chain(class.chars().filter(|c| !c.is_control())).collect();
    cut(all)
}

/// A title that says whose window it is.
fn titled(container: &str, title: &[u8]) -> String {
    let title = String::from_utf8_lossy(title);
    let shown = title.chars().map(|c| if c.is_control() { ' ' } else { c });
    cut(format!("[{container}] ").chars().chain(shown).collect())
}

/// No more of a text than anybody reads.
fn cut(mut all: String) -> String {
    let end = (0..=LONGEST_TITLE.min(all.len())).rev().find(|&at| all.is_char_boundary(at)).unwrap_or_default();
    all.truncate(end);
    all
}
