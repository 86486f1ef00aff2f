//! The session's bus, as the gate speaks there: notifications, and nothing else. Pure: bytes go in and out.

use std::collections::{BTreeMap, VecDeque};

use super::greeting::Broken;
use super::hub::Out;
use super::note::{self, ABILITIES};
use super::wire::{Kind, Message, is_name};

const BUS: &str = "org.freedesktop.DBus";
/// Wishes of programs that wait for the session.
const MOST_WAITING: usize = 32;
/// Notifications that are remembered: signals about others are not the container's.
const MOST_SHOWN: usize = 64;
/// How many are shown in a while: more than a person can read is noise.
const MOST_IN_A_WHILE: u32 = 12;
const WHILE: std::time::Duration = std::time::Duration::from_secs(10);

/// What an answer of the session's is to.
#[derive(Debug)]
enum Asked {
    Hello,
    Nothing,
    Abilities,
    Show(Message),
    Close(Message),
}

/// What there is to tell on the container's bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The call that it answers; a signal answers none.
    pub to: Option<Message>,
    pub message: Message,
}

impl Told {
    fn answer(call: Message, message: Message) -> Told {
        Told { to: Some(call), message }
    }

    fn signal(message: Message) -> Told {
        Told { to: None, message }
    }
}

/// One life of a connection to the session's bus.
#[derive(Debug)]
pub struct Host {
    name: String,
    greeted: bool,
    asked: BTreeMap<u32, Asked>,
    serial: u32,
    /// What its server of notifications can do, once that is known; the programs' wishes wait for it.
    abilities: Option<Vec<String>>,
    waiting: VecDeque<Out>,
    /// Who the server is: nobody else's signals count.
    server: String,
    /// Those that were shown for this container.
    shown: VecDeque<u32>,
    /// How many since when.
    recent: (u32, Option<std::time::Instant>),
    /// To be written.
    pub to_bus: Vec<u8>,
}

impl Host {
    /// A connection that has just been made by this user, for a container of this name.
    pub fn new(name: &str, uid: u32) -> Host {
        let mut host = Host {
            name: name.into(),
            greeted: false,
            asked: BTreeMap::new(),
            serial: 0,
            abilities: None,
            waiting: VecDeque::new(),
            server: String::new(),
            shown: VecDeque::new(),
            recent: (0, None),
            to_bus: Vec::new(),
        };
        let digits: String = uid.to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        host.to_bus.extend(format!("\0AUTH EXTERNAL {digits}\r\nBEGIN\r\n").as_bytes());
        let path = "/org/freedesktop/DBus";
        host.say(Message::call(BUS, path, BUS, "Hello"), Asked::Hello);
        let rule = format!("type='signal',sender='{0}',interface='{0}'", note::SERVICE);
        host.say(Message::call(BUS, path, BUS, "AddMatch").with("s", |body| body.text(&rule)), Asked::Nothing);
        host.say(Message::call(note::SERVICE, note::PATH, note::SERVICE, "GetCapabilities"), Asked::Abilities);
        host
    }

    fn say(&mut self, mut message: Message, asked: Asked) {
        self.serial = self.serial.checked_add(1).unwrap_or(1);
        message.serial = self.serial;
        self.asked.insert(message.serial, asked);
        self.to_bus.extend(message.bytes());
    }

    /// Passes on what a program wants of the session. What is too much is refused at once.
    pub fn wish(&mut self, wish: Out) -> Vec<Told> {
        let call = match &wish {
            Out::Show(call, _) | Out::Close(call, _) | Out::Abilities(call) => call.clone(),
            Out::Tell(..) | Out::Open(_) => return Vec::new(),
        };
        let full = self.waiting.len() + self.asked.len() >= MOST_WAITING;
        if full || (matches!(wish, Out::Show(..)) && self.is_noise()) {
            return vec![refused(call, "too many at once")];
        }
        match &self.abilities {
            None => {
                self.waiting.push_back(wish);
                Vec::new()
            }
            Some(_) => self.grant(wish),
        }
    }

    fn is_noise(&mut self) -> bool {
        let now = std::time::Instant::now();
        if self.recent.1.is_none_or(|since| now.duration_since(since) > WHILE) {
            self.recent = (0, Some(now));
        }
        self.recent.0 += 1;
        self.recent.0 > MOST_IN_A_WHILE
    }

    fn grant(&mut self, wish: Out) -> Vec<Told> {
        let can = self.abilities.clone().unwrap_or_default();
        match wish {
            Out::Show(call, note) => {
                let replaces = if self.shown.contains(&note.replaces) { note.replaces } else { 0 };
                let markup = can.iter().any(|ability| ability == "body-markup");
                self.say(note.call(&self.name, replaces, markup), Asked::Show(call));
                Vec::new()
            }
            Out::Close(call, id) if self.shown.contains(&id) => {
                let close = Message::call(note::SERVICE, note::PATH, note::SERVICE, "CloseNotification");
                self.say(close.with("u", |body| body.number(id)), Asked::Close(call));
                Vec::new()
            }
            // One that is not there: the specification wants an answer without words.
            Out::Close(call, _) => vec![Told::answer(call.clone(), Message::answer(&call))],
            Out::Abilities(call) => {
                let both = ABILITIES.iter().copied().filter(|known| can.iter().any(|ability| ability == known));
                let answer = Message::answer(&call).with("as", |body| body.texts(both));
                vec![Told::answer(call, answer)]
            }
            Out::Tell(..) | Out::Open(_) => Vec::new(),
        }
    }

    /// Takes what the session's bus says; how many bytes were used comes back.
    ///
    /// # Errors
    ///
    /// What no bus says: the connection is to be closed.
    pub fn hear(&mut self, input: &[u8], told: &mut Vec<Told>) -> Result<usize, Broken> {
        let mut at = 0;
        while !self.greeted {
            let Some(length) = input[at..].windows(2).position(|end| end == b"\r\n") else {
                return if input.len() - at > 1024 { Err(Broken("a long greeting")) } else { Ok(at) };
            };
            self.greeted = input[at..at + length].starts_with(b"OK ");
            at += length + 2;
            if !self.greeted {
                return Err(Broken("not welcome"));
            }
        }
        while let Some((message, length)) = Message::parse(&input[at..])? {
            at += length;
            match message.kind {
                Kind::Return | Kind::Error => self.answered(&message, told),
                Kind::Signal => told.extend(self.signalled(&message)),
                Kind::Call => {}
            }
        }
        Ok(at)
    }

    fn answered(&mut self, answer: &Message, told: &mut Vec<Told>) {
        let fine = answer.kind == Kind::Return;
        match self.asked.remove(&answer.reply_serial) {
            Some(Asked::Abilities) => {
                let mut all = Vec::new();
                if let Some(mut body) = answer.read("as") {
                    body.array(b's', |one| {
                        all.push(one.text()?.to_owned());
                        Some(())
                    });
                }
                self.server.clone_from(&answer.sender);
                self.abilities = fine.then_some(all);
                for wish in std::mem::take(&mut self.waiting) {
                    if fine {
                        told.extend(self.grant(wish));
                    } else if let Out::Show(call, _) | Out::Close(call, _) | Out::Abilities(call) = wish {
                        told.push(refused(call, "nothing in the session shows notifications"));
                    }
                }
                if !fine {
                    // It may be there when it is wanted again.
                    self.abilities = None;
                }
            }
            Some(Asked::Show(call)) => match answer.read("u").and_then(|mut body| body.number()).filter(|_| fine) {
                Some(id) => {
                    self.server.clone_from(&answer.sender);
                    self.shown.retain(|known| *known != id);
                    self.shown.push_back(id);
                    if self.shown.len() > MOST_SHOWN {
                        self.shown.pop_front();
                    }
                    let said = Message::answer(&call).with("u", |body| body.number(id));
                    told.push(Told::answer(call, said));
                }
                None => told.push(refused(call, "the session does not show it")),
            },
            Some(Asked::Close(call)) => {
                let said = Message::answer(&call);
                told.push(Told::answer(call, said));
            }
            Some(Asked::Hello | Asked::Nothing) | None => {}
        }
    }

    /// What has become of one of the container's notifications.
    fn signalled(&mut self, signal: &Message) -> Option<Told> {
        let theirs = signal.interface == note::SERVICE && !self.server.is_empty() && signal.sender == self.server;
        let mut body = signal.read(&signal.signature).filter(|_| theirs)?;
        let id = body.number().filter(|id| self.shown.contains(id))?;
        let ours = Message::signal(note::PATH, note::SERVICE, &signal.member);
        match (signal.member.as_str(), signal.signature.as_str()) {
            ("NotificationClosed", "uu") => {
                self.shown.retain(|known| *known != id);
                let why = body.number()?;
                Some(Told::signal(ours.with("uu", |body| [id, why].iter().for_each(|number| body.number(*number)))))
            }
            ("ActionInvoked", "us") => {
                let key = body.text().filter(|key| is_name(key))?;
                let said = ours.with("us", |body| {
                    body.number(id);
                    body.text(key);
                });
                Some(Told::signal(said))
            }
            _ => None,
        }
    }

    /// The connection is gone: nobody waits any longer.
    pub fn end(self) -> Vec<Told> {
        let asked = self.asked.into_values().filter_map(|asked| match asked {
            Asked::Show(call) | Asked::Close(call) => Some(call),
            Asked::Hello | Asked::Nothing | Asked::Abilities => None,
        });
        let waiting = self.waiting.into_iter().filter_map(|wish| match wish {
            Out::Show(call, _) | Out::Close(call, _) | Out::Abilities(call) => Some(call),
            Out::Tell(..) | Out::Open(_) => None,
        });
        asked.chain(waiting).map(|call| refused(call, "the session's bus is gone")).collect()
    }

    /// Whether it knows that nothing shows notifications: then a new connection asks anew.
    pub fn is_useless(&self) -> bool {
        self.greeted && self.abilities.is_none() && !self.asked.values().any(|asked| matches!(asked, Asked::Abilities))
    }
}

/// Tells a program that its wish is not granted.
pub(super) fn refused(call: Message, why: &str) -> Told {
    let refusal = Message::refusal(&call, "org.freedesktop.DBus.Error.ServiceUnknown", why);
    Told::answer(call, refusal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::note::Note;

    const SERVER: &str = ":1.5";

    fn call() -> Message {
        Message {
            serial: 3,
            sender: ":1.1".into(),
            ..Message::call(note::SERVICE, note::PATH, note::SERVICE, "Notify")
        }
    }

    /// What it has said since the last time, its greeting aside.
    fn said(host: &mut Host) -> Vec<Message> {
        let bytes = std::mem::take(&mut host.to_bus);
        let mut left = match bytes.first() {
            Some(0) => &bytes[bytes.windows(7).position(|part| part == b"BEGIN\r\n").unwrap() + 7..],
            _ => &bytes[..],
        };
        let mut all = Vec::new();
        while let Some((message, length)) = Message::parse(left).unwrap() {
            all.push(message);
            left = &left[length..];
        }
        all
    }

    fn hear(host: &mut Host, message: Message) -> Vec<Told> {
        let mut told = Vec::new();
        let bytes = Message { serial: 1, sender: SERVER.into(), ..message }.bytes();
        assert_eq!(host.hear(&bytes, &mut told), Ok(bytes.len()));
        told
    }

    /// A session whose server takes markup.
    fn host() -> Host {
        let mut host = Host::new("ff", 1000);
        assert!(host.to_bus.starts_with(b"\0AUTH EXTERNAL 31303030\r\n"));
        assert_eq!(host.hear(b"OK 1d\r\n", &mut Vec::new()), Ok(7));
        let asked = said(&mut host).pop().unwrap();
        assert_eq!(asked.member, "GetCapabilities");
        hear(&mut host, Message::answer(&asked).with("as", |body| body.texts(["actions", "body-markup", "sound"])));
        host
    }

    /// One is shown under this number.
    fn show(host: &mut Host, id: u32) {
        assert!(host.wish(Out::Show(call(), Note::default())).is_empty());
        let notify = said(host).pop().unwrap();
        let told = hear(host, Message::answer(&notify).with("u", |body| body.number(id)));
        assert_eq!(told, [Told::answer(call(), Message::answer(&call()).with("u", |body| body.number(id)))]);
    }

    #[test]
    fn only_own_notifications_are_told_of_and_closed() {
        let mut host = host();
        show(&mut host, 42);
        let closed = |id| {
            let signal = Message::signal(note::PATH, note::SERVICE, "NotificationClosed");
            signal.with("uu", |body| {
                body.number(id);
                body.number(2);
            })
        };
        assert!(hear(&mut host, closed(41)).is_empty(), "another program's");
        assert!(!host.wish(Out::Close(call(), 41)).is_empty() && said(&mut host).is_empty());
        host.wish(Out::Close(call(), 42));
        assert_eq!(said(&mut host)[0].member, "CloseNotification");
        let mut foreign = Vec::new();
        let other = Message { serial: 1, sender: ":1.6".into(), ..closed(42) }.bytes();
        host.hear(&other, &mut foreign).unwrap();
        assert!(foreign.is_empty(), "of somebody who is not the server");
        assert_eq!(hear(&mut host, closed(42)).len(), 1);
        assert!(hear(&mut host, closed(42)).is_empty(), "it is gone");
    }

    #[test]
    fn a_foreign_number_replaces_nothing() {
        let mut host = host();
        show(&mut host, 7);
        for (replaces, replaced) in [(7, 7), (8, 0)] {
            let mut note = Note::default();
            note.replaces = replaces;
            host.wish(Out::Show(call(), note));
            let notify = said(&mut host).pop().unwrap();
            let mut body = notify.read("susssasa{sv}i").unwrap();
            assert_eq!((body.text(), body.number()), (Some("[ff] "), Some(replaced)));
        }
    }

    #[test]
    fn programs_know_what_passes_here_and_no_more() {
        let told = host().wish(Out::Abilities(call()));
        assert_eq!(told[0].message.body.len(), 16, "`actions` alone");
    }

    #[test]
    fn noise_and_a_session_that_is_gone_are_told() {
        let mut host = host();
        let refusals = (0..40).filter(|_| !host.wish(Out::Show(call(), Note::default())).is_empty()).count();
        assert_eq!(refusals, 40 - MOST_IN_A_WHILE as usize);
        assert_eq!(host.end().len(), MOST_IN_A_WHILE as usize);
        let mut none = Host::new("ff", 1);
        none.wish(Out::Show(call(), Note::default()));
        none.hear(b"OK 1d\r\n", &mut Vec::new()).unwrap();
        let asked = said(&mut none).pop().unwrap();
        assert_eq!(hear(&mut none, Message::refusal(&asked, "x.Y", "")).len(), 1);
        assert!(none.is_useless());
        assert!(Host::new("ff", 1).hear(b"REJECTED\r\n", &mut Vec::new()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_session_makes_us_panic(junk: Vec<u8>) {
            let mut host = host();
            show(&mut host, 1);
            let _ = host.hear(&junk, &mut Vec::new());
        }
    }
}
