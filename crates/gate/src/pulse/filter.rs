//! One connection: bytes in, bytes out, in both directions, without a system call.
//!
//! A frame is a head of twenty bytes and a body. On the channel of all ones the body is a command: values that each
//! have a letter before them (pulsecore/tagstruct.c), the first two being its number and a tag by which it is answered.
//! On other channels the body is sound, which passes unseen.

use std::collections::{BTreeMap, BTreeSet};

use super::command::{self, Fate};
use super::values::{self, Values};

/// The head of a frame: length, channel, two words of offset, flags; big endian.
const HEAD: usize = 20;
/// The channel of commands.
const COMMANDS: u32 = u32::MAX;
/// Flags of shared memory (pulsecore/pstream.c, PA_FLAG_SHMMASK).
const SHARED_MEMORY: u32 = 0xff00_0000;
/// No program's command is longer: lists of properties are the longest part.
const MOST_COMMAND: usize = 64 << 10;
/// No frame of a library's is longer (pulsecore/pstream.c, FRAME_SIZE_MAX_ALLOW).
const MOST_FRAME: usize = 16 << 20;
/// Streams of one connection, being made or there.
const MOST_STREAMS: usize = 256;
/// What a server tells of all that can be recorded is not longer.
const MOST_LIST: usize = 256 << 10;
/// Wishes to record about which the server is being asked.
const MOST_WISHES: usize = 8;
/// Answers of ours that nobody has read, in bytes.
const MOST_ANSWERS: usize = 64 << 10;
/// The bits of the protocol's version; those above offer shared memory.
const VERSION: u32 = 0xffff;
/// The version that is known here: that of PulseAudio 14 and later, and of pipewire-pulse.
const LATEST: u32 = 35;
/// The first version in which a stream says all that is looked at here.
const EARLIEST_TO_RECORD: u32 = 13;
/// Events about sinks, sources and the server: `PA_SUBSCRIPTION_MASK_SINK`, `_SOURCE` and `_SERVER`.
const EVENTS: u32 = 0x0083;
const SOURCE_EVENTS: u32 = 0x0002;
/// A source has come, or gone: `PA_SUBSCRIPTION_EVENT_SOURCE` with `_NEW` or `_REMOVE`.
const SOURCE_CAME: u32 = 0x01;
const SOURCE_WENT: u32 = 0x21;
/// From here on up, the tags of what we ask ourselves.
const OURS: u32 = 0xffff_0000;

/// Why a connection ends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// One connection of a program.
#[derive(Debug, Default)]
pub struct Filter {
    introduced: bool,
    /// Of the protocol, as both sides speak it.
    version: u32,
    /// What is left of a body that passes, or of the server's does not.
    client_rest: usize,
    server_rest: usize,
    dropping: bool,
    /// What was asked and not answered, by tag.
    asked: BTreeMap<u32, Asked>,
    /// The last tag of ours, and what the program's next one is at least: two answers of one tag could be taken for
    /// each other.
    last: u32,
    next: u32,
    /// The program's own streams that play, as the server numbers them.
    own: BTreeSet<u32>,
    /// The channels of those that record.
    recording: BTreeSet<u32>,
    /// Whether the microphone is on.
    hears: bool,
    /// Which events the program asked for.
    events: u32,
    /// Answers of ours, until the server is between two frames.
    answers: Vec<u8>,
    /// Questions of ours, until the program is.
    questions: Vec<u8>,
}

/// What becomes of an answer.
#[derive(Debug)]
enum Asked {
    Introduction,
    Playback,
    Recording,
    Source,
    Sources,
    /// About the source that somebody wants to record; the answer decides on this wish.
    Wish(Vec<u8>),
    /// It is nobody's.
    Nothing,
}

impl Asked {
    /// Whether all of the answer must be here.
    fn whole(&self) -> bool {
        !matches!(self, Asked::Introduction | Asked::Playback)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The number behind the letter `L` at this place.
fn number(body: &[u8], at: usize) -> Option<u32> {
    if *body.get(at)? == b'L' { word(body, at + 1) } else { None }
}

/// A whole frame of values.
fn framed(body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend(COMMANDS.to_be_bytes());
    frame.extend([0; 12]);
    frame.extend(body);
    frame
}

fn command(values: &[u32]) -> Vec<u8> {
    let value = |value: &u32| [&[b'L'][..], &value.to_be_bytes()].concat();
    framed(&values.iter().flat_map(value).collect::<Vec<u8>>())
}

impl Filter {
    /// A connection that has just begun, with the microphone on or off.
    pub fn new(hears: bool) -> Filter {
        Filter { hears, last: OURS, ..Filter::default() }
    }

    /// Switches the microphone on or off. Off, nothing more of what is recorded reaches the program, not even what is
    /// on its way; its streams are ended, and it is told so.
    pub fn switch(&mut self, hears: bool) {
        if self.hears == hears {
            return;
        }
        self.hears = hears;
        for channel in std::mem::take(&mut self.recording) {
            self.end_recording(channel);
            self.answers.extend(command(&[command::RECORD_STREAM_KILLED, u32::MAX, channel]));
        }
        if self.events & SOURCE_EVENTS != 0 {
            let what = if hears { SOURCE_CAME } else { SOURCE_WENT };
            self.answers.extend(command(&[command::SUBSCRIBE_EVENT, u32::MAX, what, u32::MAX]));
        }
    }

    /// Whether something is being recorded.
    pub fn is_recording(&self) -> bool {
        !self.recording.is_empty()
    }

    /// Hands out what is ours to say to either side, if it is between two frames.
    pub fn say(&mut self, to_server: &mut Vec<u8>, to_client: &mut Vec<u8>) {
        if self.client_rest == 0 {
            to_server.append(&mut self.questions);
        }
        self.answer(to_client);
    }

    fn end_recording(&mut self, channel: u32) {
        let tag = self.ask(Asked::Nothing);
        self.questions.extend(command(&[command::DELETE_RECORD_STREAM, tag, channel]));
    }

    /// A tag of ours.
    fn ask(&mut self, what: Asked) -> u32 {
        self.last = if self.last == u32::MAX - 1 { OURS } else { self.last + 1 };
        self.asked.insert(self.last, what);
        self.last
    }

    fn refuse(&mut self, tag: u32, why: u32) {
        self.answers.extend(command(&[command::ERROR, tag, why]));
    }

    /// Whether nothing more of the program's is taken until it has read what was answered.
    pub fn waits(&self) -> bool {
        self.answers.len() >= MOST_ANSWERS
    }

    /// Takes what the program has sent; says how many bytes were used. The others are to be offered again, with more.
    ///
    /// # Errors
    ///
    /// What no program would send that is meant well. The connection is to be closed.
    pub fn from_client(
        &mut self,
        input: &[u8],
        to_server: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) -> Result<usize, Broken> {
        let mut at = 0;
        while at < input.len() && !self.waits() {
            let left = &input[at..];
            if self.client_rest == 0 {
                to_server.append(&mut self.questions);
            } else {
                let used = left.len().min(self.client_rest);
                to_server.extend_from_slice(&left[..used]);
                self.client_rest -= used;
                at += used;
                continue;
            }
            let (Some(length), Some(channel), Some(flags)) = (word(left, 0), word(left, 4), word(left, 16)) else {
                break;
            };
            let length = length as usize;
            if flags & SHARED_MEMORY != 0 {
                return Err(Broken("shared memory"));
            }
            if channel != COMMANDS {
                if !self.introduced || length > MOST_FRAME || length == 0 {
                    return Err(Broken("no frame of sound"));
                }
                to_server.extend_from_slice(&left[..HEAD]);
                self.client_rest = length;
                at += HEAD;
                continue;
            }
            if length > MOST_COMMAND || flags != 0 {
                return Err(Broken("no command"));
            }
            let Some(frame) = left.get(..HEAD + length) else { break };
            self.command(frame, to_server)?;
            at += frame.len();
        }
        self.say(to_server, to_client);
        Ok(at)
    }

    /// Decides on one whole command.
    fn command(&mut self, frame: &[u8], to_server: &mut Vec<u8>) -> Result<(), Broken> {
        let body = &frame[HEAD..];
        let (Some(what), Some(tag)) = (number(body, 0), number(body, 5)) else { return Err(Broken("no command")) };
        if tag < self.next || tag >= OURS {
            return Err(Broken("a tag that is taken"));
        }
        self.next = tag + 1;
        let fate = command::fate(what);
        if self.introduced != (fate != Fate::Introduce) {
            return Err(Broken("introduced twice, or not at all"));
        }
        let clean = || values::cleaned(body).map(|body| framed(&body)).ok_or(Broken("no values"));
        let known = self.asked.len() + self.own.len() + self.recording.len();
        match fate {
            Fate::Pass => to_server.extend(clean()?),
            Fate::Introduce => {
                let version = number(body, 10).ok_or(Broken("no version"))?;
                self.version = (version & VERSION).min(LATEST);
                let mut ours = frame.to_vec();
                ours[HEAD + 11..HEAD + 15].copy_from_slice(&self.version.to_be_bytes());
                // The server knows the session's user by the process; what the program says of itself is nothing.
                if body.len() != 276 || body[15] != b'x' || word(body, 16) != Some(256) {
                    return Err(Broken("no credentials"));
                }
                ours[HEAD + 20..].fill(0);
                self.introduced = true;
                self.asked.insert(tag, Asked::Introduction);
                to_server.extend(ours);
            }
            Fate::Create if known < MOST_STREAMS => {
                self.asked.insert(tag, Asked::Playback);
                to_server.extend(clean()?);
            }
            Fate::Record if self.hears && known < MOST_STREAMS => self.wish(tag, body)?,
            Fate::Source | Fate::Sources if self.hears && known < MOST_STREAMS => {
                let asked = if fate == Fate::Source { Asked::Source } else { Asked::Sources };
                self.asked.insert(tag, asked);
                to_server.extend(clean()?);
            }
            Fate::Subscribe => {
                self.events = number(body, 10).ok_or(Broken("no mask"))? & EVENTS;
                let mut fewer = frame.to_vec();
                fewer[HEAD + 11..HEAD + 15].copy_from_slice(&self.events.to_be_bytes());
                to_server.extend(fewer);
            }
            Fate::Own if number(body, 10).is_some_and(|stream| self.own.contains(&stream)) => {
                to_server.extend(clean()?);
            }
            Fate::Empty | Fate::Sources => self.answers.extend(command(&[command::REPLY, tag])),
            Fate::Create | Fate::Own | Fate::Record | Fate::Source | Fate::Deny => {
                self.refuse(tag, command::ACCESS_DENIED);
            }
        }
        Ok(())
    }

    /// A program wants to record. Which source that would be is asked first: the default one may be what others play.
    fn wish(&mut self, tag: u32, body: &[u8]) -> Result<(), Broken> {
        let (number, name) = values::wanted(body).ok_or(Broken("no wish to record"))?;
        let wishes = self.asked.values().filter(|asked| matches!(asked, Asked::Wish(_))).count();
        if self.version < EARLIEST_TO_RECORD || wishes >= MOST_WISHES {
            self.refuse(tag, command::ACCESS_DENIED);
            return Ok(());
        }
        let ours = self.ask(Asked::Wish(body.to_vec()));
        let name: &[u8] = if number == u32::MAX && name.is_empty() { b"@DEFAULT_SOURCE@" } else { &name };
        let mut question = Vec::new();
        for value in [command::GET_SOURCE_INFO, ours, number] {
            question.push(b'L');
            question.extend(value.to_be_bytes());
        }
        match name {
            b"" => question.push(b'N'),
            name => question.extend([b"t", name, b"\0"].concat()),
        }
        self.questions.extend(framed(&question));
        Ok(())
    }

    /// Takes what the server has sent, as [`Filter::from_client`] does.
    ///
    /// # Errors
    ///
    /// What no server sends that was not offered shared memory.
    pub fn from_server(
        &mut self,
        input: &[u8],
        to_client: &mut Vec<u8>,
        to_server: &mut Vec<u8>,
    ) -> Result<usize, Broken> {
        let mut at = 0;
        while at < input.len() {
            let left = &input[at..];
            if self.server_rest > 0 {
                let used = left.len().min(self.server_rest);
                if !self.dropping {
                    to_client.extend_from_slice(&left[..used]);
                }
                self.server_rest -= used;
                at += used;
                continue;
            }
            self.dropping = false;
            self.answer(to_client);
            let (Some(length), Some(channel), Some(flags)) = (word(left, 0), word(left, 4), word(left, 16)) else {
                break;
            };
            let length = length as usize;
            if flags & SHARED_MEMORY != 0 || length > MOST_FRAME {
                return Err(Broken("the server's frame is none"));
            }
            if channel != COMMANDS {
                // What was on its way when the microphone was switched off.
                self.dropping = !self.recording.contains(&channel);
                if !self.dropping {
                    to_client.extend_from_slice(&left[..HEAD]);
                }
                self.server_rest = length;
                at += HEAD;
                continue;
            }
            // The beginning of a reply tells what it is.
            let look = length.min(20);
            let Some(beginning) = left.get(HEAD..HEAD + look) else { break };
            let asked = self.answers_what(beginning);
            let whole = asked.is_some_and(|tag| self.asked.get(&tag).is_some_and(Asked::whole));
            let look = if whole { length } else { look };
            if whole && length > MOST_LIST {
                return Err(Broken("the server tells too much"));
            }
            let Some(body) = left.get(HEAD..HEAD + look) else { break };
            match asked.and_then(|tag| Some((tag, self.asked.remove(&tag)?))) {
                Some((tag, asked)) => self.reply(tag, asked, [&left[..HEAD], body], to_client),
                None => to_client.extend_from_slice(&left[..HEAD + look]),
            }
            self.server_rest = length - look;
            at += HEAD + look;
        }
        self.say(to_server, to_client);
        Ok(at)
    }

    /// The tag that a reply bears, if it is one.
    fn answers_what(&self, body: &[u8]) -> Option<u32> {
        number(body, 0).filter(|what| matches!(*what, command::REPLY | command::ERROR))?;
        number(body, 5)
    }

    /// Learns from a reply, and passes on what the program may know of it.
    fn reply(&mut self, tag: u32, asked: Asked, [head, body]: [&[u8]; 2], to_client: &mut Vec<u8>) {
        let fine = number(body, 0) == Some(command::REPLY);
        let mut ours = body.to_vec();
        match asked {
            Asked::Introduction => {
                let version = number(body, 10).unwrap_or_default();
                if let Some(told) = ours.get_mut(11..15).filter(|_| fine) {
                    told.copy_from_slice(&(version & VERSION).min(LATEST).to_be_bytes());
                }
                self.version = self.version.min(version & VERSION);
            }
            Asked::Playback if fine => self.own.extend(number(body, 15)),
            Asked::Recording if fine && self.hears => self.recording.extend(number(body, 10)),
            // It was switched off meanwhile.
            Asked::Recording if fine => {
                number(body, 10).into_iter().for_each(|channel| self.end_recording(channel));
                return self.refuse(tag, command::ACCESS_DENIED);
            }
            Asked::Source | Asked::Sources if fine => {
                let Some(microphones) = self.microphones(body) else {
                    return self.refuse(tag, command::ACCESS_DENIED);
                };
                if microphones.is_empty() && matches!(asked, Asked::Source) {
                    return self.refuse(tag, command::NO_ENTITY);
                }
                ours.truncate(10);
                ours.extend(microphones);
                to_client.extend(framed(&ours));
                return;
            }
            Asked::Wish(wish) => return self.decide(&wish, body, fine),
            Asked::Nothing => return,
            Asked::Playback | Asked::Recording | Asked::Source | Asked::Sources => {}
        }
        to_client.extend(head);
        to_client.extend(ours);
    }

    /// What of a list of sources is about microphones.
    fn microphones(&self, body: &[u8]) -> Option<Vec<u8>> {
        let mut values = Values::new(body.get(10..)?);
        let mut kept = Vec::new();
        while !values.is_empty() {
            let at = body.len() - values.len();
            let source = values::source(&mut values, self.version)?;
            if !source.is_monitor {
                kept.extend(&body[at..body.len() - values.len()]);
            }
        }
        self.hears.then_some(kept)
    }

    /// The server has said what a program wants to record.
    fn decide(&mut self, wish: &[u8], answer: &[u8], fine: bool) {
        let Some(tag) = number(wish, 5) else { return };
        if !fine {
            return self.refuse(tag, command::NO_ENTITY);
        }
        let mut values = Values::new(answer.get(10..).unwrap_or_default());
        let source = values::source(&mut values, self.version).filter(|source| self.hears && !source.is_monitor);
        match source.and_then(|source| values::recording(wish, source.name)) {
            Some(ours) => {
                self.asked.insert(tag, Asked::Recording);
                self.questions.extend(framed(&ours));
            }
            None => self.refuse(tag, command::ACCESS_DENIED),
        }
    }

    /// Says what is ours to say, if the server is between two frames.
    fn answer(&mut self, to_client: &mut Vec<u8>) {
        if self.server_rest == 0 || self.dropping {
            to_client.append(&mut self.answers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command with more values behind its tag.
    fn with(number: u32, more: &[u32]) -> Vec<u8> {
        command(&[&[number, 7], more].concat())
    }

    fn introduction() -> Vec<u8> {
        let mut frame = with(command::AUTH, &[0xc000_0023]);
        frame.extend(b"x\0\0\x01\0");
        frame.extend([0xaa; 256]);
        let length = (frame.len() - HEAD) as u32;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        frame
    }

    /// A connection past its introduction, to a server that speaks the same version.
    fn introduced() -> Filter {
        with_microphone(false)
    }

    fn with_microphone(on: bool) -> Filter {
        let mut filter = Filter::new(on);
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        assert_eq!(filter.from_client(&introduction(), &mut to_server, &mut to_client), Ok(introduction().len()));
        assert_eq!(number(&to_server[HEAD..], 10), Some(0x23), "no shared memory is offered");
        assert!(to_server[HEAD + 20..].iter().all(|byte| *byte == 0), "no credential passes");
        assert_eq!(answer(&mut filter, &command(&[2, 7, 0xc000_0099])).0, command(&[2, 7, 0x23]), "a later version");
        filter
    }

    /// Passes a command on; its tag is a new one meanwhile.
    fn pass(filter: &mut Filter, frame: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        let tag = filter.next.to_be_bytes();
        let mut tagged = frame.to_vec();
        tagged[HEAD + 6..HEAD + 10].copy_from_slice(&tag);
        assert_eq!(filter.from_client(&tagged, &mut to_server, &mut to_client), Ok(frame.len()));
        for out in [&mut to_server, &mut to_client] {
            if out.get(HEAD + 6..HEAD + 10) == Some(&tag) {
                out[HEAD + 6..HEAD + 10].copy_from_slice(&7u32.to_be_bytes());
            }
        }
        (to_server, to_client)
    }

    /// What the program hears, and the server, of what the server says.
    fn answer(filter: &mut Filter, frames: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
        assert_eq!(filter.from_server(frames, &mut to_client, &mut to_server), Ok(frames.len()));
        (to_client, to_server)
    }

    /// What a server tells of a source, in the latest version.
    fn source(name: &str, monitor_of: u32) -> Vec<u8> {
        let number = |number: u32| [&[b'L'][..], &number.to_be_bytes()].concat();
        let name = [b"t", name.as_bytes(), b"\0"].concat();
        let first = [number(3), name, b"Na\x03\x02\0\0\xac\x44m\x01\x01".to_vec(), number(1)].concat();
        let then = [b"v\x01\0\x01\0\x000".to_vec(), number(monitor_of), b"NU\0\0\0\0\0\0\0\0N".to_vec(), number(0)];
        let last = [b"PNU\0\0\0\0\0\0\0\0V\0\x01\0\0".to_vec(), number(0), number(1), number(0), number(1)];
        let port = [b"tp\0tport\0".to_vec(), number(9), number(1), b"N".to_vec(), number(0), b"tp\0".to_vec()];
        [first, then.concat(), last.concat(), port.concat(), b"B\x01fB\x01PN".to_vec()].concat()
    }

    /// A server's answer with values as they are.
    fn replied(tag: u32, values: &[u8]) -> Vec<u8> {
        framed(&[&command(&[command::REPLY, tag])[HEAD..], values].concat())
    }

    /// A wish to record what comes first.
    fn wish() -> Vec<u8> {
        let device = b"a\x03\x01\0\0\xac\x44m\x01\x01L\xff\xff\xff\xffN";
        let rest = b"L\0\0\x40\x000L\0\0\x10\x00000000000PNL\xff\xff\xff\xff0";
        framed(&[&command(&[5, 7])[HEAD..], device, rest].concat())
    }

    /// A program that records on channel 4.
    fn recording() -> Filter {
        let mut filter = with_microphone(true);
        let (question, nothing) = pass(&mut filter, &wish());
        assert_eq!((number(&question[HEAD..], 0), nothing.len()), (Some(23), 0), "first it is asked what that is");
        let asked = number(&question[HEAD..], 5).unwrap();
        let (nothing, wish) = answer(&mut filter, &replied(asked, &source("mic", u32::MAX)));
        assert!(nothing.is_empty() && wish.windows(5).any(|part| part == b"tmic\0"), "{wish:?}");
        let made = command(&[2, number(&wish[HEAD..], 5).unwrap(), 4, 11]);
        assert_eq!(answer(&mut filter, &made), (made, Vec::new()));
        assert!(filter.is_recording());
        filter
    }

    /// Sound on a channel.
    fn sound(channel: u32) -> Vec<u8> {
        [&4u32.to_be_bytes()[..], &channel.to_be_bytes(), &[0; 12], b"\x11\x12\x13\x14"].concat()
    }

    #[test]
    fn with_the_microphone_off_nothing_more_is_heard() {
        let mut filter = recording();
        assert_eq!(answer(&mut filter, &[sound(4), sound(9)].concat()).0, sound(4), "of its own stream");
        let half = sound(4).len() - 2;
        answer(&mut filter, &sound(4)[..half]);
        filter.switch(false);
        let (told, to_server) = answer(&mut filter, &[&sound(4)[half..], &sound(4), &sound(4)].concat());
        assert_eq!(told[2..], command(&[command::RECORD_STREAM_KILLED, u32::MAX, 4]), "a frame ends, none begins");
        assert_eq!((number(&to_server[HEAD..], 0), number(&to_server[HEAD..], 10)), (Some(6), Some(4)));
        let over = command(&[2, number(&to_server[HEAD..], 5).unwrap()]);
        assert_eq!(answer(&mut filter, &over), (Vec::new(), Vec::new()), "nobody has asked");
        assert_eq!(pass(&mut filter, &wish()), (Vec::new(), command(&[0, 7, 1])));
        filter.switch(true);
        assert_eq!(answer(&mut filter, &sound(4)).0, Vec::new());
        assert_eq!(number(&pass(&mut filter, &wish()).0[HEAD..], 0), Some(23));
    }

    #[test]
    fn a_stream_that_is_made_while_the_switch_goes_off_is_ended() {
        let mut filter = with_microphone(true);
        let asked = number(&pass(&mut filter, &wish()).0[HEAD..], 5).unwrap();
        let (_, made) = answer(&mut filter, &replied(asked, &source("mic", u32::MAX)));
        filter.switch(false);
        let tag = number(&made[HEAD..], 5).unwrap();
        let (told, to_server) = answer(&mut filter, &command(&[2, tag, 4, 11]));
        assert_eq!((told, number(&to_server[HEAD..], 0)), (command(&[0, tag, 1]), Some(6)));
        // Sooner still.
        let mut filter = with_microphone(true);
        let asked = number(&pass(&mut filter, &wish()).0[HEAD..], 5).unwrap();
        filter.switch(false);
        let (told, to_server) = answer(&mut filter, &replied(asked, &source("mic", u32::MAX)));
        assert_eq!((number(&told[HEAD..], 10), to_server.len()), (Some(1), 0));
    }

    #[test]
    fn what_others_play_is_no_microphone() {
        let mut filter = with_microphone(true);
        let asked = number(&pass(&mut filter, &wish()).0[HEAD..], 5).unwrap();
        let (told, to_server) = answer(&mut filter, &replied(asked, &source("out.monitor", 0)));
        assert_eq!((number(&told[HEAD..], 0), number(&told[HEAD..], 10), to_server.len()), (Some(0), Some(1), 0));

        let list = |filter: &mut Filter| number(&pass(filter, &with(24, &[])).0[HEAD..], 5).map(|_| filter.next - 1);
        let tag = list(&mut filter).unwrap();
        let both = [source("mic", u32::MAX), source("out.monitor", 0)].concat();
        assert_eq!(answer(&mut filter, &replied(tag, &both)).0, replied(tag, &source("mic", u32::MAX)));
        let tag = list(&mut filter).unwrap();
        let nonsense = replied(tag, &both[..both.len() - 1]);
        assert_eq!(answer(&mut filter, &nonsense).0, command(&[0, tag, 1]), "what can't be read is not passed");
    }

    #[test]
    fn programs_are_told_that_there_is_a_microphone() {
        let mut filter = introduced();
        pass(&mut filter, &with(command::SUBSCRIBE, &[3]));
        filter.switch(true);
        let none = u32::MAX;
        assert_eq!(answer(&mut filter, &[]).0, command(&[command::SUBSCRIBE_EVENT, none, SOURCE_CAME, none]));
    }

    #[test]
    fn a_tag_is_used_once() {
        let mut filter = introduced();
        let mut nowhere = Vec::new();
        for tag in [7, 3, OURS, u32::MAX] {
            filter.from_client(&command(&[9, tag]), &mut nowhere, &mut Vec::new()).unwrap_err();
        }
        assert!(nowhere.is_empty());
    }

    #[test]
    fn recording_is_answered_with_access_denied() {
        for number in [5, 7, 23, 36, 49, 51, 87, 4711] {
            let (to_server, to_client) = pass(&mut introduced(), &with(number, &[1, 2]));
            assert_eq!((to_server, to_client), (Vec::new(), command(&[0, 7, 1])), "{number}");
        }
        assert_eq!(pass(&mut introduced(), &with(24, &[])), (Vec::new(), command(&[2, 7])));
    }

    #[test]
    fn only_own_streams_are_made_louder() {
        let mut filter = introduced();
        let louder = with(37, &[42]);
        assert_eq!(pass(&mut filter, &louder).1, command(&[0, 7, 1]));
        pass(&mut filter, &with(command::CREATE_PLAYBACK_STREAM, &[]));
        // The channel, and the number of the stream.
        let reply = command(&[2, filter.next - 1, 0, 42]);
        assert_eq!(answer(&mut filter, &reply).0, reply);
        assert_eq!(pass(&mut filter, &louder), (louder.clone(), Vec::new()));
        assert_eq!(pass(&mut filter, &with(37, &[43])).1, command(&[0, 7, 1]));
    }

    #[test]
    fn events_tell_of_no_other_programs() {
        let (to_server, _) = pass(&mut introduced(), &with(command::SUBSCRIBE, &[0xffff]));
        assert_eq!(to_server, with(command::SUBSCRIBE, &[EVENTS]));
    }

    #[test]
    fn nothing_comes_before_the_introduction_and_nothing_in_shared_memory() {
        let refuse = |mut filter: Filter, frame: &[u8]| {
            let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
            filter.from_client(frame, &mut to_server, &mut to_client).unwrap_err();
            assert!(to_server.is_empty());
        };
        refuse(Filter::new(false), &with(9, &[]));
        refuse(introduced(), &introduction());
        let mut shared = command(&[9, 8]);
        shared[16] = 0x80;
        refuse(introduced(), &shared);
        let mut long = command(&[9, 8]);
        long[..4].copy_from_slice(&(MOST_COMMAND as u32 + 1).to_be_bytes());
        refuse(introduced(), &long);
    }

    #[test]
    fn an_answer_of_ours_never_stands_within_a_frame_of_the_servers() {
        let mut filter = introduced();
        let frame = command(&[2, 1, 2, 3, 4, 5, 6, 7]);
        let mut to_client = answer(&mut filter, &frame[..45]).0;
        assert_eq!(pass(&mut filter, &with(5, &[])), (Vec::new(), Vec::new()));
        to_client.extend(answer(&mut filter, &frame[45..]).0);
        assert_eq!(to_client, [frame, command(&[0, filter.next - 1, 1])].concat());
    }

    proptest::proptest! {
        #[test]
        fn the_parts_do_not_matter_and_nothing_panics(
            junk: Vec<u8>,
            cuts in proptest::collection::vec(1usize..40, 1..20),
        ) {
            let own = [command(&[9, 8]), command(&[5, 9]), command(&[command::SUBSCRIBE, 10, 3])].concat();
            let all = [introduction(), own, junk].concat();
            let (mut filter, mut whole, mut answered) = (Filter::new(false), Vec::new(), Vec::new());
            let fine = filter.from_client(&all, &mut whole, &mut answered).is_ok();
            let (mut filter, mut to_server, mut to_client) = (Filter::new(false), Vec::new(), Vec::new());
            let (mut waiting, mut at, mut cuts) = (Vec::new(), 0, cuts.into_iter().cycle());
            while at < all.len() {
                let end = (at + cuts.next().unwrap_or(1)).min(all.len());
                waiting.extend(&all[at..end]);
                at = end;
                match filter.from_client(&waiting, &mut to_server, &mut to_client) {
                    Ok(used) => drop(waiting.drain(..used)),
                    Err(_) => break,
                }
            }
            proptest::prop_assert_eq!(to_server, whole);
            // Who is cut off hears no more.
            proptest::prop_assert!(!fine || to_client == answered);
        }

        #[test]
        fn no_server_makes_us_panic(junk: Vec<u8>) {
            let _ = introduced().from_server(&junk, &mut Vec::new(), &mut Vec::new());
            let mut filter = with_microphone(true);
            let asked = number(&pass(&mut filter, &wish()).0[HEAD..], 5).unwrap();
            let _ = filter.from_server(&replied(asked, &junk), &mut Vec::new(), &mut Vec::new());
        }
    }
}
