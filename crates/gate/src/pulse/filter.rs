//! One connection: bytes in, bytes out, in both directions, without a system call.
//!
//! A frame is a head of twenty bytes and a body. On the channel of all ones the body is a command: values that each
//! have a letter before them (pulsecore/tagstruct.c), the first two being its number and a tag by which it is answered.
//! On other channels the body is sound, which passes unseen.

use std::collections::BTreeSet;

use super::command::{self, Fate};

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
/// Answers of ours that nobody has read, in bytes.
const MOST_ANSWERS: usize = 64 << 10;
/// The bits of the protocol's version; those above offer shared memory.
const VERSION: u32 = 0xffff;
/// Events about sinks and the server: `PA_SUBSCRIPTION_MASK_SINK` and `_SERVER`.
const EVENTS: u32 = 0x0081;

/// Why a connection ends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// One connection of a program.
#[derive(Debug, Default)]
pub struct Filter {
    introduced: bool,
    /// What is left of a body that passes.
    client_rest: usize,
    server_rest: usize,
    /// Tags of commands that make a stream.
    creating: BTreeSet<u32>,
    /// The program's own streams, as the server numbers them.
    own: BTreeSet<u32>,
    /// Answers of ours, until the server is between two frames.
    answers: Vec<u8>,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The number behind the letter `L` at this place.
fn number(body: &[u8], at: usize) -> Option<u32> {
    if *body.get(at)? == b'L' { word(body, at + 1) } else { None }
}

fn command(values: &[u32]) -> Vec<u8> {
    let mut frame = ((values.len() * 5) as u32).to_be_bytes().to_vec();
    frame.extend(COMMANDS.to_be_bytes());
    frame.extend([0; 12]);
    for value in values {
        frame.push(b'L');
        frame.extend(value.to_be_bytes());
    }
    frame
}

impl Filter {
    /// A connection that has just begun.
    pub fn new() -> Filter {
        Filter::default()
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
            if self.client_rest > 0 {
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
        self.answer(to_client);
        Ok(at)
    }

    /// Decides on one whole command.
    fn command(&mut self, frame: &[u8], to_server: &mut Vec<u8>) -> Result<(), Broken> {
        let body = &frame[HEAD..];
        let (Some(what), Some(tag)) = (number(body, 0), number(body, 5)) else { return Err(Broken("no command")) };
        let fate = command::fate(what);
        if self.introduced != (fate != Fate::Introduce) {
            return Err(Broken("introduced twice, or not at all"));
        }
        match fate {
            Fate::Pass => to_server.extend(frame),
            Fate::Introduce => {
                let version = number(body, 10).ok_or(Broken("no version"))?;
                let mut ours = frame.to_vec();
                ours[HEAD + 11..HEAD + 15].copy_from_slice(&(version & VERSION).to_be_bytes());
                // The server knows the session's user by the process; what the program says of itself is nothing.
                if body.len() != 276 || body[15] != b'x' || word(body, 16) != Some(256) {
                    return Err(Broken("no credentials"));
                }
                ours[HEAD + 20..].fill(0);
                self.introduced = true;
                to_server.extend(ours);
            }
            Fate::Create if self.creating.len() + self.own.len() < MOST_STREAMS => {
                self.creating.insert(tag);
                to_server.extend(frame);
            }
            Fate::Subscribe => {
                let mask = number(body, 10).ok_or(Broken("no mask"))?;
                let mut fewer = frame.to_vec();
                fewer[HEAD + 11..HEAD + 15].copy_from_slice(&(mask & EVENTS).to_be_bytes());
                to_server.extend(fewer);
            }
            Fate::Own if number(body, 10).is_some_and(|stream| self.own.contains(&stream)) => to_server.extend(frame),
            Fate::Empty => self.answers.extend(command(&[command::REPLY, tag])),
            Fate::Create | Fate::Own | Fate::Deny => {
                self.answers.extend(command(&[command::ERROR, tag, command::ACCESS_DENIED]));
            }
        }
        Ok(())
    }

    /// Takes what the server has sent, as [`Filter::from_client`] does.
    ///
    /// # Errors
    ///
    /// What no server sends that was not offered shared memory.
    pub fn from_server(&mut self, input: &[u8], to_client: &mut Vec<u8>) -> Result<usize, Broken> {
        let mut at = 0;
        while at < input.len() {
            let left = &input[at..];
            if self.server_rest > 0 {
                let used = left.len().min(self.server_rest);
                to_client.extend_from_slice(&left[..used]);
                self.server_rest -= used;
                at += used;
                continue;
            }
            self.answer(to_client);
            let (Some(length), Some(channel), Some(flags)) = (word(left, 0), word(left, 4), word(left, 16)) else {
                break;
            };
            let length = length as usize;
            if flags & SHARED_MEMORY != 0 || length > MOST_FRAME {
                return Err(Broken("the server's frame is none"));
            }
            // The beginning of a reply tells the number of a stream.
            let look = if channel == COMMANDS { length.min(20) } else { 0 };
            let Some(beginning) = left.get(HEAD..HEAD + look) else { break };
            self.reply(beginning);
            to_client.extend_from_slice(&left[..HEAD + look]);
            self.server_rest = length - look;
            at += HEAD + look;
        }
        self.answer(to_client);
        Ok(at)
    }

    /// Learns from the beginning of a reply which stream was made.
    fn reply(&mut self, body: &[u8]) {
        let (Some(what), Some(tag)) = (number(body, 0), number(body, 5)) else { return };
        if matches!(what, command::REPLY | command::ERROR)
            && self.creating.remove(&tag)
            && what == command::REPLY
            && let Some(stream) = number(body, 15)
        {
            self.own.insert(stream);
        }
    }

    /// Says what is ours to say, if the server is between two frames.
    fn answer(&mut self, to_client: &mut Vec<u8>) {
        if self.server_rest == 0 {
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

    /// A connection past its introduction.
    fn introduced() -> Filter {
        let mut filter = Filter::new();
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        assert_eq!(filter.from_client(&introduction(), &mut to_server, &mut to_client), Ok(introduction().len()));
        assert_eq!(number(&to_server[HEAD..], 10), Some(0x23), "no shared memory is offered");
        assert!(to_server[HEAD + 20..].iter().all(|byte| *byte == 0), "no credential passes");
        filter
    }

    fn pass(filter: &mut Filter, frame: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        assert_eq!(filter.from_client(frame, &mut to_server, &mut to_client), Ok(frame.len()));
        (to_server, to_client)
    }

    #[test]
    fn recording_is_answered_with_access_denied() {
        for number in [5, 7, 36, 49, 51, 87, 4711] {
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
        let mut to_client = Vec::new();
        // The channel, and the number of the stream.
        let reply = command(&[2, 7, 0, 42]);
        assert_eq!(filter.from_server(&reply, &mut to_client), Ok(reply.len()));
        assert_eq!(to_client, reply);
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
        refuse(Filter::new(), &with(9, &[]));
        refuse(introduced(), &introduction());
        let mut shared = with(9, &[]);
        shared[16] = 0x80;
        refuse(introduced(), &shared);
        let mut long = with(9, &[]);
        long[..4].copy_from_slice(&(MOST_COMMAND as u32 + 1).to_be_bytes());
        refuse(introduced(), &long);
    }

    #[test]
    fn an_answer_of_ours_never_stands_within_a_frame_of_the_servers() {
        let mut filter = introduced();
        let (mut to_client, frame) = (Vec::new(), command(&[2, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(filter.from_server(&frame[..45], &mut to_client), Ok(45));
        assert_eq!(pass(&mut filter, &with(5, &[])), (Vec::new(), Vec::new()));
        assert_eq!(filter.from_server(&frame[45..], &mut to_client), Ok(frame.len() - 45));
        assert_eq!(to_client, [frame, command(&[0, 7, 1])].concat());
    }

    proptest::proptest! {
        #[test]
        fn the_parts_do_not_matter_and_nothing_panics(
            junk: Vec<u8>,
            cuts in proptest::collection::vec(1usize..40, 1..20),
        ) {
            let all = [introduction(), with(9, &[]), with(5, &[]), with(command::SUBSCRIBE, &[3]), junk].concat();
            let (mut filter, mut whole, mut answered) = (Filter::new(), Vec::new(), Vec::new());
            let fine = filter.from_client(&all, &mut whole, &mut answered).is_ok();
            let (mut filter, mut to_server, mut to_client) = (Filter::new(), Vec::new(), Vec::new());
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
            let mut filter = introduced();
            let _ = filter.from_server(&junk, &mut Vec::new());
        }
    }
}
