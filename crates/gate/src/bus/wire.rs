//! Messages, as the D-Bus specification has them ("Message Protocol", "Type System").

use super::greeting::Broken;

/// No message is longer. A bus of a session allows more, but nothing of what passes here needs it.
pub const MOST_MESSAGE: usize = 2 << 20;
/// The fields of a head.
const MOST_FIELDS: usize = 64 << 10;
/// Names of the bus, of interfaces and of members.
const MOST_NAME: usize = 255;
const MOST_PATH: usize = 4096;
/// Values within values.
const DEEPEST: usize = 32;
/// What comes before the fields.
const FIXED: usize = 16;

/// `NO_REPLY_EXPECTED`.
pub const NO_REPLY: u8 = 1;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Call,
    Return,
    Error,
    Signal,
}

const KINDS: [Kind; 4] = [Kind::Call, Kind::Return, Kind::Error, Kind::Signal];

/// A message with all that its head says. Empty is what it does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whether its numbers are little endian.
    pub little: bool,
    pub kind: Kind,
    pub flags: u8,
    pub serial: u32,
    pub path: String,
    pub interface: String,
    pub member: String,
    pub error: String,
    /// Zero, if it answers nothing.
    pub reply_serial: u32,
    pub destination: String,
    pub sender: String,
    pub signature: String,
    pub body: Vec<u8>,
}

impl Message {
    fn new(kind: Kind) -> Message {
        Message {
            little: true,
            kind,
            flags: NO_REPLY,
            serial: 1,
            path: String::new(),
            interface: String::new(),
            member: String::new(),
            error: String::new(),
            reply_serial: 0,
            destination: String::new(),
            sender: String::new(),
            signature: String::new(),
            body: Vec::new(),
        }
    }

    /// A call of ours, for which an answer is expected.
    pub fn call(destination: &str, path: &str, interface: &str, member: &str) -> Message {
        Message { flags: 0, destination: destination.into(), ..Message::signal(path, interface, member) }.of(Kind::Call)
    }

    /// A signal.
    pub fn signal(path: &str, interface: &str, member: &str) -> Message {
        let (path, interface, member) = (path.into(), interface.into(), member.into());
        Message { path, interface, member, ..Message::new(Kind::Signal) }
    }

    /// The answer to a call.
    pub fn answer(call: &Message) -> Message {
        let destination = call.sender.clone();
        Message { reply_serial: call.serial, destination, ..Message::new(Kind::Return) }
    }

    /// What a call has come to instead.
    pub fn refusal(call: &Message, error: &str, words: &str) -> Message {
        let error = error.into();
        Message { error, ..Message::answer(call) }.of(Kind::Error).with("s", |body| body.text(words))
    }

    fn of(self, kind: Kind) -> Message {
        Message { kind, ..self }
    }

    /// The same with a body.
    pub fn with(mut self, signature: &str, write: impl FnOnce(&mut Writer)) -> Message {
        let mut body = Writer::new(self.little);
        write(&mut body);
        self.signature = signature.into();
        self.body = body.bytes;
        self
    }

    /// What it says, if it is of this signature.
    pub fn read(&self, signature: &str) -> Option<Reader<'_>> {
        (self.signature == signature).then(|| Reader { little: self.little, bytes: &self.body, at: 0 })
    }

    /// The first message of these bytes, and how many of them it is. `None` while not all of it is there.
    ///
    /// # Errors
    ///
    /// What no message can begin with.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Message, usize)>, Broken> {
        if bytes.len() < FIXED {
            return Ok(None);
        }
        let little = match bytes[0] {
            b'l' => true,
            b'B' => false,
            _ => return Err(Broken("no message")),
        };
        let kind = *KINDS.get(usize::from(bytes[1]).wrapping_sub(1)).ok_or(Broken("no kind of message"))?;
        let mut head = Reader { little, bytes, at: 4 };
        let number = |value: Option<u32>| value.map(|number| number as usize).ok_or(Broken("no message"));
        let body = number(head.number())?;
        let serial = head.number().unwrap_or(0);
        let fields = number(head.number())?;
        if bytes[3] != 1 || serial == 0 || fields > MOST_FIELDS || body > MOST_MESSAGE {
            return Err(Broken("a message of another protocol, or too long"));
        }
        let (start, end) = ((FIXED + fields).next_multiple_of(8), (FIXED + fields).next_multiple_of(8) + body);
        if end > MOST_MESSAGE {
            return Err(Broken("too long"));
        }
        if bytes.len() < end {
            return Ok(None);
        }
        let mut message = Message { little, flags: bytes[2], serial, ..Message::new(kind) };
        let mut reader = Reader { little, bytes: &bytes[..FIXED + fields], at: FIXED };
        while reader.at < FIXED + fields {
            message.field(&mut reader).ok_or(Broken("no field of a head"))?;
        }
        message.body = bytes[start..end].to_vec();
        if message.is_sound() { Ok(Some((message, end))) } else { Err(Broken("a field is missing, or is none")) }
    }

    fn field(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        reader.align(8)?;
        let code = reader.byte()?;
        let signature = reader.signature()?;
        let place = match (code, signature) {
            (1, "o") => &mut self.path,
            (2, "s") => &mut self.interface,
            (3, "s") => &mut self.member,
            (4, "s") => &mut self.error,
            (6, "s") => &mut self.destination,
            (7, "s") => &mut self.sender,
            (5, "u") => {
                self.reply_serial = reader.number()?;
                return Some(());
            }
            (8, "g") => {
                self.signature = reader.signature()?.to_owned();
                return Some(());
            }
            // Descriptors were not agreed on.
            (9, "u") => return (reader.number()? == 0).then_some(()),
            (1..=9, _) => return None,
            _ => return reader.skip(signature),
        };
        *place = reader.text()?.to_owned();
        Some(())
    }

    /// Whether it has what its kind must have, and names are names.
    fn is_sound(&self) -> bool {
        let needed = match self.kind {
            Kind::Call => !self.path.is_empty() && !self.member.is_empty(),
            Kind::Signal => !self.path.is_empty() && !self.interface.is_empty() && !self.member.is_empty(),
            Kind::Return => self.reply_serial != 0,
            Kind::Error => self.reply_serial != 0 && !self.error.is_empty(),
        };
        let names = [&self.interface, &self.member, &self.error, &self.destination];
        needed
            && names.iter().all(|name| name.is_empty() || is_name(name))
            && (self.path.is_empty() || is_path(&self.path))
            && (self.body.is_empty() || !self.signature.is_empty())
    }

    /// As it travels.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Writer::new(self.little);
        let kind = KINDS.iter().position(|kind| *kind == self.kind).unwrap_or(0) as u8 + 1;
        out.bytes.extend([if self.little { b'l' } else { b'B' }, kind, self.flags, 1]);
        out.number(self.body.len() as u32);
        out.number(self.serial);
        out.array(8, |out| {
            let texts = [
                (1, "o", &self.path),
                (2, "s", &self.interface),
                (3, "s", &self.member),
                (4, "s", &self.error),
                (6, "s", &self.destination),
                (7, "s", &self.sender),
            ];
            for (code, signature, text) in texts.into_iter().filter(|(.., text)| !text.is_empty()) {
                out.align(8);
                out.byte(code);
                out.signature(signature);
                out.text(text);
            }
            if self.reply_serial != 0 {
                out.align(8);
                out.byte(5);
                out.signature("u");
                out.number(self.reply_serial);
            }
            if !self.signature.is_empty() {
                out.align(8);
                out.byte(8);
                out.signature("g");
                out.signature(&self.signature);
            }
        });
        out.align(8);
        out.bytes.extend(&self.body);
        out.bytes
    }
}

/// Whether it could be the name of a connection, an interface, an error or a member.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MOST_NAME
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':'))
}

/// Whether it is the path of an object.
pub fn is_path(text: &str) -> bool {
    text.starts_with('/')
        && text.len() <= MOST_PATH
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'/'))
}

/// Reads values, each where it is aligned.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    little: bool,
    bytes: &'a [u8],
    at: usize,
}

/// What a value of this type is aligned to.
fn alignment(letter: u8) -> usize {
    match letter {
        b'y' | b'g' | b'v' => 1,
        b'n' | b'q' => 2,
        b'x' | b't' | b'd' | b'(' | b'{' => 8,
        _ => 4,
    }
}

/// How long the first complete type of a signature is.
fn first_type(signature: &[u8], depth: usize) -> Option<usize> {
    match *signature.first().filter(|_| depth < DEEPEST)? {
        b'a' => Some(1 + first_type(&signature[1..], depth + 1)?),
        open @ (b'(' | b'{') => {
            let close = if open == b'(' { b')' } else { b'}' };
            let mut at = 1;
            while *signature.get(at)? != close {
                at += first_type(&signature[at..], depth + 1)?;
            }
            Some(at + 1)
        }
        letter => b"ybnqiuxtdsogvh".contains(&letter).then_some(1),
    }
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn align(&mut self, to: usize) -> Option<()> {
        let padding = self.at.next_multiple_of(to) - self.at;
        self.take(padding).map(drop)
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    pub fn number(&mut self) -> Option<u32> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().ok()?;
        Some(if self.little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    pub fn signed(&mut self) -> Option<i32> {
        self.number().map(u32::cast_signed)
    }

    pub fn text(&mut self) -> Option<&'a str> {
        let length = self.number()? as usize;
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        (self.byte()? == 0 && !text.contains('\0')).then_some(text)
    }

    pub fn signature(&mut self) -> Option<&'a str> {
        let length = usize::from(self.byte()?);
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        (self.byte()? == 0).then_some(text)
    }

    /// Reads an array, one element after the other.
    pub fn array(&mut self, element: u8, mut read: impl FnMut(&mut Reader<'a>) -> Option<()>) -> Option<()> {
        let length = self.number()? as usize;
        self.align(alignment(element))?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        let mut inner = Reader { bytes: &self.bytes[..end], ..self.clone() };
        while inner.at < end {
            inner.align(alignment(element))?;
            read(&mut inner)?;
        }
        self.at = end;
        Some(())
    }

    /// Reads a table of names and values; `read` has to read the value, whose signature it is told.
    pub fn table(&mut self, mut read: impl FnMut(&'a str, &'a str, &mut Reader<'a>) -> Option<()>) -> Option<()> {
        self.array(b'{', |entry| {
            let name = entry.text()?;
            let signature = entry.signature()?;
            read(name, signature, entry)
        })
    }

    /// Passes over one value.
    pub fn skip(&mut self, signature: &str) -> Option<()> {
        let signature = signature.as_bytes();
        (first_type(signature, 0)? == signature.len()).then_some(())?;
        self.skip_one(signature, 0)
    }

    fn skip_one(&mut self, signature: &[u8], depth: usize) -> Option<()> {
        let letter = *signature.first().filter(|_| depth < DEEPEST)?;
        self.align(alignment(letter))?;
        match letter {
            b'y' => self.take(1).map(drop),
            b'n' | b'q' => self.take(2).map(drop),
            b'x' | b't' | b'd' => self.take(8).map(drop),
            b's' | b'o' => self.text().map(drop),
            b'g' => self.signature().map(drop),
            b'a' => {
                let length = self.number()? as usize;
                self.align(alignment(*signature.get(1)?))?;
                self.take(length).map(drop)
            }
            b'v' => {
                let inner = self.signature()?.as_bytes();
                (first_type(inner, 0)? == inner.len()).then_some(())?;
                self.skip_one(inner, depth + 1)
            }
            b'(' | b'{' => {
                let mut inner = &signature[1..signature.len() - 1];
                while !inner.is_empty() {
                    let (one, rest) = inner.split_at(first_type(inner, 0)?);
                    self.skip_one(one, depth + 1)?;
                    inner = rest;
                }
                Some(())
            }
            _ => self.take(4).map(drop),
        }
    }
}

/// Writes values, each where it is aligned.
#[derive(Debug)]
pub struct Writer {
    little: bool,
    bytes: Vec<u8>,
}

impl Writer {
    fn new(little: bool) -> Writer {
        Writer { little, bytes: Vec::new() }
    }

    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    pub fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    pub fn number(&mut self, number: u32) {
        self.align(4);
        self.bytes.extend(if self.little { number.to_le_bytes() } else { number.to_be_bytes() });
    }

    pub fn text(&mut self, text: &str) {
        self.number(text.len() as u32);
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    pub fn signature(&mut self, signature: &str) {
        self.byte(signature.len() as u8);
        self.bytes.extend(signature.as_bytes());
        self.bytes.push(0);
    }

    /// Writes an array whose elements are aligned so; `write` aligns those after the first.
    pub fn array(&mut self, alignment: usize, write: impl FnOnce(&mut Writer)) {
        self.number(0);
        let length = self.bytes.len() - 4;
        self.align(alignment);
        let start = self.bytes.len();
        write(self);
        let count = (self.bytes.len() - start) as u32;
        let count = if self.little { count.to_le_bytes() } else { count.to_be_bytes() };
        self.bytes[length..length + 4].copy_from_slice(&count);
    }

    pub fn texts<'a>(&mut self, texts: impl IntoIterator<Item = &'a str>) {
        self.array(4, |out| texts.into_iter().for_each(|text| out.text(text)));
    }

    /// Writes one entry of a table: a name, and a value that `write` writes.
    pub fn entry(&mut self, name: &str, signature: &str, write: impl FnOnce(&mut Writer)) {
        self.align(8);
        self.text(name);
        self.signature(signature);
        write(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(little: bool) -> Message {
        let mut message = Message::signal("/a/b", "x.Y", "Z");
        (message.little, message.sender, message.destination) = (little, ":1.1".into(), "a.b".into());
        message.with("sasu", |body| {
            body.text("one");
            body.texts(["two", "three"]);
            body.number(4);
        })
    }

    #[test]
    fn a_message_reads_back_in_either_order() {
        for little in [true, false] {
            let (message, bytes) = (message(little), message(little).bytes());
            assert_eq!(Message::parse(&bytes), Ok(Some((message.clone(), bytes.len()))));
            for cut in 0..bytes.len() {
                assert_eq!(Message::parse(&bytes[..cut]), Ok(None), "{cut}");
            }
            let mut reader = message.read("sasu").unwrap();
            assert_eq!(reader.text(), Some("one"));
            let mut found = Vec::new();
            reader.array(b's', |one| {
                found.push(one.text()?);
                Some(())
            });
            assert_eq!((found, reader.number()), (vec!["two", "three"], Some(4)));
        }
    }

    #[test]
    fn what_no_library_writes_is_refused() {
        let bytes = message(true).bytes();
        let wrong = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            Message::parse(&bytes).is_err()
        };
        for (at, byte) in [(0, b'x'), (1, 0), (1, 5), (3, 2), (7, 0x7f), (8, 0), (15, 0x7f), (17, 9)] {
            assert!(wrong(at, byte), "{at}");
        }
        let nameless = Message { member: String::new(), ..message(true) };
        assert!(Message::parse(&nameless.bytes()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(junk: Vec<u8>, at in 0usize..200, byte: u8, signature in "[ybnqiuxtdsogvha(){}]{0,20}") {
            let _ = Message::parse(&junk);
            let mut bytes = message(true).bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(Some((message, _))) = Message::parse(&bytes) {
                proptest::prop_assert!(Message::parse(&message.bytes()).is_ok());
            }
            let _ = Reader { little: true, bytes: &junk, at: 0 }.skip(&signature);
            let _ = Reader { little: true, bytes: &junk, at: 0 }.table(|_, signature, value| value.skip(signature));
        }
    }
}
