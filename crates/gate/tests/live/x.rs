//! A small X client that says exactly what it is told to.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const PRIMARY: u32 = 1;
pub const ATOM: u32 = 4;
pub const CUT_BUFFER0: u32 = 9;
pub const STRING: u32 = 31;
pub const WM_NAME: u32 = 39;

pub struct X {
    stream: UnixStream,
    sent: u16,
    events: VecDeque<Vec<u8>>,
    pub base: u32,
    pub root: u32,
    pub visual_depth: u8,
    pub width: u16,
    pub height: u16,
    next: u32,
}

/// What the server answered.
pub type Answer = Result<Vec<u8>, u8>;

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl X {
    /// Connects; `None` where the server does not want it.
    pub fn try_connect(socket: &Path, cookie: Option<[u8; 16]>) -> Option<X> {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut hello = vec![b'l', 0, 11, 0, 0, 0];
        match cookie {
            Some(cookie) => {
                hello.extend([18, 0, 16, 0, 0, 0]);
                hello.extend(b"MIT-MAGIC-COOKIE-1\0\0");
                hello.extend(cookie);
            }
            None => hello.extend([0; 6]),
        }
        stream.write_all(&hello).ok()?;
        let mut head = [0; 8];
        stream.read_exact(&mut head).ok()?;
        let mut rest = vec![0; 4 * usize::from(u16_at(&head, 6))];
        stream.read_exact(&mut rest).ok()?;
        if head[0] != 1 {
            return None;
        }
        let all = [&head[..], &rest].concat();
        let screen = 40 + usize::from(u16_at(&all, 24)).next_multiple_of(4) + 8 * usize::from(all[29]);
        Some(X {
            stream,
            sent: 0,
            events: VecDeque::new(),
            base: u32_at(&all, 12),
            root: u32_at(&all, screen),
            visual_depth: all[screen + 38],
            width: u16_at(&all, screen + 20),
            height: u16_at(&all, screen + 22),
            next: 0,
        })
    }

    pub fn connect(socket: &Path, cookie: Option<[u8; 16]>) -> X {
        X::try_connect(socket, cookie).expect("the server lets us in")
    }

    pub fn id(&mut self) -> u32 {
        self.next += 1;
        self.base | self.next
    }

    pub fn raw(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Sends one request of words; says its number.
    pub fn send(&mut self, opcode: u8, second: u8, words: &[u32]) -> u16 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.send_bytes(opcode, second, &bytes)
    }

    /// Requests that were sent by hand.
    pub fn skip(&mut self, count: u16) {
        self.sent = self.sent.wrapping_add(count);
    }

    pub fn send_bytes(&mut self, opcode: u8, second: u8, bytes: &[u8]) -> u16 {
        let length = bytes.len().next_multiple_of(4);
        let mut all = vec![opcode, second];
        all.extend(((1 + length / 4) as u16).to_le_bytes());
        all.extend(bytes);
        all.resize(4 + length, 0);
        self.stream.write_all(&all).unwrap();
        self.sent = self.sent.wrapping_add(1);
        self.sent
    }

    fn message(&mut self) -> Option<Vec<u8>> {
        let mut head = vec![0; 32];
        match self.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(e) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&e.kind()) => return None,
            Err(e) => panic!("the connection broke: {e}"),
        }
        if head[0] == 1 {
            let mut rest = vec![0; 4 * u32_at(&head, 4) as usize];
            self.stream.read_exact(&mut rest).unwrap();
            head.extend(rest);
        }
        Some(head)
    }

    fn answer(&mut self, number: u16) -> Option<Answer> {
        loop {
            let message = self.message()?;
            match message[0] {
                0 | 1 if u16_at(&message, 2) == number => {
                    return Some(if message[0] == 1 { Ok(message) } else { Err(message[1]) });
                }
                0 | 1 => self.events.push_back(message),
                _ => self.events.push_back(message),
            }
        }
    }

    /// A request and its reply, or the error's code.
    pub fn ask(&mut self, opcode: u8, second: u8, words: &[u32]) -> Answer {
        let number = self.send(opcode, second, words);
        self.answer(number).expect("an answer in time")
    }

    pub fn ask_bytes(&mut self, opcode: u8, second: u8, bytes: &[u8]) -> Answer {
        let number = self.send_bytes(opcode, second, bytes);
        self.answer(number).expect("an answer in time")
    }

    /// Whether the server answers within `time`; if not, the answer is taken later by [`X::sync`].
    pub fn answers_within(&mut self, time: Duration) -> bool {
        let number = self.send(43, 0, &[]);
        self.stream.set_read_timeout(Some(time)).unwrap();
        let answered = self.answer(number).is_some();
        self.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        answered
    }

    /// A request without a reply: the error it causes, if any.
    pub fn try_send(&mut self, opcode: u8, second: u8, words: &[u32]) -> Result<(), u8> {
        let number = self.send(opcode, second, words);
        self.outcome(number)
    }

    pub fn try_send_bytes(&mut self, opcode: u8, second: u8, bytes: &[u8]) -> Result<(), u8> {
        let number = self.send_bytes(opcode, second, bytes);
        self.outcome(number)
    }

    fn outcome(&mut self, number: u16) -> Result<(), u8> {
        self.sync();
        match self.events.iter().position(|event| event[0] == 0 && u16_at(event, 2) == number) {
            Some(at) => Err(self.events.remove(at).unwrap()[1]),
            None => Ok(()),
        }
    }

    /// Everything that was sent has been done, and its events are here.
    pub fn sync(&mut self) {
        self.ask(43, 0, &[]).unwrap();
    }

    /// The events of this kind that have come, once all is done that was sent.
    pub fn events(&mut self, kind: u8) -> Vec<Vec<u8>> {
        self.sync();
        let (these, others) = self.events.drain(..).partition(|event: &Vec<u8>| event[0] & 0x7f == kind);
        self.events = others;
        Vec::from(these)
    }

    /// The next event of this kind, which has to come.
    pub fn wait_for(&mut self, kind: u8) -> Vec<u8> {
        loop {
            if let Some(at) = self.events.iter().position(|event| event[0] & 0x7f == kind) {
                return self.events.remove(at).unwrap();
            }
            let message = self.message().unwrap_or_else(|| panic!("no event {kind} in time"));
            self.events.push_back(message);
        }
    }

    pub fn atom(&mut self, name: &str) -> u32 {
        let mut bytes = (name.len() as u32).to_le_bytes().to_vec();
        bytes.extend(name.as_bytes());
        u32_at(&self.ask_bytes(16, 0, &bytes).unwrap(), 8)
    }

    pub fn extension(&mut self, name: &str) -> Option<u8> {
        let mut bytes = (name.len() as u32).to_le_bytes().to_vec();
        bytes.extend(name.as_bytes());
        let reply = self.ask_bytes(98, 0, &bytes).unwrap();
        (reply[8] != 0).then_some(reply[9])
    }

    /// A window below the root; `values` by rising bit of `mask`.
    pub fn window(&mut self, place: (i16, i16, u16, u16), mask: u32, values: &[u32]) -> u32 {
        let id = self.id();
        let (x, y, width, height) = place;
        let pair = |a: u16, b: u16| u32::from(a) | u32::from(b) << 16;
        let mut words = vec![id, self.root, pair(x as u16, y as u16), pair(width, height), 1 << 16, 0, mask];
        words.extend(values);
        self.send(1, 0, &words);
        id
    }

    /// A mapped window that hears of keys, buttons, focus and properties.
    pub fn shown(&mut self, place: (i16, i16, u16, u16)) -> u32 {
        // Keys, buttons, the pointer coming in and moving, StructureNotify, FocusChange, PropertyChange.
        let events = 0x1f | 0x40 | 0x0002_0000 | 0x0020_0000 | 0x0040_0000;
        let id = self.window(place, 1 << 11, &[events]);
        self.send(8, 0, &[id]);
        self.wait_for(19);
        id
    }

    pub fn set_text(&mut self, window: u32, property: u32, kind: u32, text: &[u8]) -> Result<(), u8> {
        let mut bytes: Vec<u8> =
            [window, property, kind, 8, text.len() as u32].iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(text);
        self.try_send_bytes(18, 0, &bytes)
    }

    pub fn text(&mut self, window: u32, property: u32) -> Result<Vec<u8>, u8> {
        let reply = self.ask(20, 0, &[window, property, 0, 0, 1 << 20])?;
        let length = u32_at(&reply, 16) as usize * usize::from(reply[1] / 8);
        Ok(reply[32..32 + length].to_vec())
    }

    pub fn focus(&mut self, window: u32) {
        self.send(42, 0, &[window, 0]);
        self.sync();
    }

    pub fn pointer(&mut self) -> (i16, i16) {
        let reply = self.ask(38, 0, &[self.root]).unwrap();
        (u16_at(&reply, 16) as i16, u16_at(&reply, 18) as i16)
    }

    /// XTEST: presses (2), releases (3), presses a button (4), releases it (5), moves the pointer (6).
    pub fn fake(&mut self, kind: u8, detail: u8, x: i16, y: i16) {
        let major = self.extension("XTEST").unwrap();
        let mut bytes = vec![kind, detail, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([0; 8]);
        bytes.extend(x.to_le_bytes());
        bytes.extend(y.to_le_bytes());
        bytes.extend([0; 8]);
        self.send_bytes(major, 2, &bytes);
        self.sync();
    }

    pub fn owner(&mut self, selection: u32) -> u32 {
        u32_at(&self.ask(23, 0, &[selection]).unwrap(), 8)
    }

    pub fn children(&mut self, window: u32) -> Vec<u32> {
        let reply = self.ask(15, 0, &[window]).unwrap();
        reply[32..].chunks_exact(4).map(|id| u32_at(id, 0)).collect()
    }
}
