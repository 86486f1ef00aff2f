//! Messages as bytes: the object, then length and number in one word, then the arguments, all as this machine writes
//! numbers. Descriptors travel beside them.

use std::collections::VecDeque;

/// Object and length: no message is shorter.
pub(super) const HEADER: usize = 8;

/// What came from one side and is not used yet.
#[derive(Debug)]
pub struct In<F> {
    /// Bytes.
    pub bytes: Vec<u8>,
    /// Descriptors: each came with the message it belongs to, or before.
    pub fds: VecDeque<F>,
}

/// What goes to one side and is not taken yet.
#[derive(Debug)]
pub struct Out<F> {
    /// Whole messages, but for the first, of which a part may have been taken.
    pub bytes: Vec<u8>,
    /// Descriptors, each with the place in the whole stream at which its message begins.
    pub fds: VecDeque<(u64, F)>,
    /// How many bytes have been taken.
    taken: u64,
}

impl<F> Default for In<F> {
    fn default() -> In<F> {
        In { bytes: Vec::new(), fds: VecDeque::new() }
    }
}

impl<F> Default for Out<F> {
    fn default() -> Out<F> {
        Out { bytes: Vec::new(), fds: VecDeque::new(), taken: 0 }
    }
}

impl<F> Out<F> {
    /// Adds a message and the descriptors that belong to it.
    pub fn push(&mut self, bytes: &[u8], fds: impl Iterator<Item = F>) {
        let at = self.taken + self.bytes.len() as u64;
        self.fds.extend(fds.map(|fd| (at, fd)));
        self.bytes.extend_from_slice(bytes);
    }

    /// What can be written at once with `most` descriptors: how many bytes and descriptors. No descriptor comes later
    /// than the message it belongs to.
    pub fn sendable(&self, most: usize) -> (usize, usize) {
        let bytes = match self.fds.get(most) {
            // From this message on they need another round.
            Some((at, _)) => usize::try_from(at.saturating_sub(self.taken)).unwrap_or(usize::MAX),
            None => self.bytes.len(),
        };
        // Descriptors travel with a byte at least.
        (bytes.max(1).min(self.bytes.len()), self.fds.len().min(most))
    }

    /// As many bytes and descriptors have been written.
    pub fn sent(&mut self, bytes: usize, fds: usize) {
        self.bytes.drain(..bytes);
        self.fds.drain(..fds);
        self.taken += bytes as u64;
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// The number at a place; 0 behind the end.
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |four| u32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
}

/// The first message of what is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub object: u32,
    pub number: usize,
    pub length: usize,
}

impl Head {
    /// `None` while not even that has come.
    pub fn read(bytes: &[u8]) -> Option<Head> {
        if bytes.len() < HEADER {
            return None;
        }
        let second = word(bytes, 4);
        Some(Head { object: word(bytes, 0), number: (second & 0xffff) as usize, length: (second >> 16) as usize })
    }
}

/// The text at a place of a message, without its end, and the place behind it. `None` where it does not fit.
pub(super) fn text(message: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let length = word(message, at) as usize;
    let bytes = message.get(at + 4..)?.get(..length)?;
    // No text at all has length 0; the shortest one is its end.
    let text = bytes.split_last().map_or(bytes, |(_, text)| text);
    Some((text, at + 4 + length.next_multiple_of(4)))
}

/// An argument of a message that we make.
pub(super) enum Argument<'a> {
    Word(u32),
    Text(&'a [u8]),
}

/// A message of our own, of numbers.
pub fn message(object: u32, number: u16, words: &[u32]) -> Vec<u8> {
    let words: Vec<Argument<'_>> = words.iter().map(|&word| Argument::Word(word)).collect();
    written(object, number, &words)
}

/// A message of our own.
pub(super) fn written(object: u32, number: u16, arguments: &[Argument<'_>]) -> Vec<u8> {
    let mut bytes = object.to_ne_bytes().to_vec();
    bytes.extend([0; 4]);
    for argument in arguments {
        match argument {
            Argument::Word(word) => bytes.extend(word.to_ne_bytes()),
            Argument::Text(text) => {
                bytes.extend((text.len() as u32 + 1).to_ne_bytes());
                bytes.extend(*text);
                bytes.push(0);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
        }
    }
    let second = (bytes.len() as u32) << 16 | u32::from(number);
    bytes[4..8].copy_from_slice(&second.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_they_are_written() {
        for text in [&b""[..], b"a", b"abc", b"abcd"] {
            let bytes = written(3, 1, &[Argument::Text(text), Argument::Word(7)]);
            let head = Head::read(&bytes).unwrap();
            assert_eq!((head.object, head.number, head.length), (3, 1, bytes.len()));
            let (read, next) = super::text(&bytes, HEADER).unwrap();
            assert_eq!((read, word(&bytes, next)), (text, 7));
        }
        assert_eq!(super::text(&message(1, 0, &[9, 0]), HEADER), None);
        assert_eq!(super::text(&message(1, 0, &[u32::MAX]), HEADER), None);
        assert_eq!(super::text(&message(1, 0, &[0]), HEADER), Some((&b""[..], 12)));
    }

    #[test]
    fn descriptors_go_not_later_than_their_messages() {
        let mut out = Out::default();
        for fd in 0..5 {
            out.push(&[0; 12], [fd].into_iter());
            out.push(&[0; 8], std::iter::empty());
        }
        assert_eq!(out.sendable(28), (100, 5));
        assert_eq!(out.sendable(2), (40, 2));
        out.sent(15, 2);
        // The third one's message begins at 40, the fifth's at 80.
        assert_eq!(out.sendable(2), (65, 2));
        out.sent(65, 2);
        assert_eq!(out.sendable(2), (20, 1));
        out.sent(20, 1);
        assert!(out.is_empty() && out.fds.is_empty());
    }
}
