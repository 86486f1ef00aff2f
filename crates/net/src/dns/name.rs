//! A domain name as on the wire, lower case.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// At most 255 bytes of labels, each with its length before it, the empty label last (RFC 1035 section 3.1).
#[derive(Clone)]
pub struct Name {
    bytes: [u8; 255],
    length: u8,
}

/// The root.
impl Default for Name {
    fn default() -> Self {
        Name { bytes: [0; 255], length: 1 }
    }
}

impl Name {
    /// Reads a name that is spelled out at `at`, as a question's is; returns it and where it ends. A compression
    /// pointer has nothing to point to in a question and is refused.
    pub fn read(packet: &[u8], at: usize) -> Option<(Name, usize)> {
        let mut name = Name::default();
        let mut length = 0;
        loop {
            let size = usize::from(*packet.get(at + length)?);
            if size > 63 || length + size + 1 > 255 {
                return None;
            }
            let label = packet.get(at + length..at + length + 1 + size)?;
            name.bytes[length..=length + size].copy_from_slice(label);
            name.bytes[length + 1..=length + size].make_ascii_lowercase();
            length += size + 1;
            if size == 0 {
                name.length = length as u8;
                return Some((name, at + length));
            }
        }
    }

    /// `web.lazaret`, with or without a last dot; none if a label is empty or too long.
    pub fn from_text(text: &str) -> Option<Name> {
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.strip_suffix('.').unwrap_or(text).split('.') {
            if label.is_empty() || label.len() > 63 {
                return None;
            }
            wire.push(label.len() as u8);
            wire.extend_from_slice(label.as_bytes());
        }
        wire.push(0);
        Name::read(&wire, 0).map(|(name, _)| name)
    }

    /// This name within that zone: `web` below `lazaret` is `web.lazaret`.
    pub fn below(&self, zone: &Name) -> Option<Name> {
        let mut wire = self.bytes()[..self.bytes().len() - 1].to_vec();
        wire.extend_from_slice(zone.bytes());
        Name::read(&wire, 0).map(|(name, _)| name)
    }

    /// The wire form.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The labels, the outermost last, without the root.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        self.offsets().map(|at| &self.bytes[at + 1..=at + usize::from(self.bytes[at])])
    }

    /// Where each label begins in [`Name::bytes`].
    fn offsets(&self) -> impl Iterator<Item = usize> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let here = at;
            let size = usize::from(self.bytes[here]);
            at += size + 1;
            (size > 0).then_some(here)
        })
    }

    /// Where the last `count` labels begin in [`Name::bytes`]; the root if there are fewer.
    pub fn last(&self, count: usize) -> usize {
        let skipped = self.offsets().count().checked_sub(count);
        skipped.and_then(|skipped| self.offsets().nth(skipped)).unwrap_or(usize::from(self.length) - 1)
    }

    /// Where `zone` begins in this name, if the name is the zone's or below it.
    pub fn within(&self, zone: &Name) -> Option<usize> {
        let start = self.bytes().len().checked_sub(zone.bytes().len())?;
        if start == 0 {
            return (self.bytes() == zone.bytes()).then_some(0);
        }
        let at_label = self.offsets().any(|at| at == start) || zone.length == 1;
        (at_label && &self.bytes()[start..] == zone.bytes()).then_some(start)
    }

    /// Whether this is one label, as in `web`.
    pub fn is_single(&self) -> bool {
        self.offsets().count() == 1
    }

    /// What a name below `in-addr.arpa` or `ip6.arpa` asks for; none if it is not such a name.
    pub fn reverse(&self) -> Option<Reverse> {
        let labels: Vec<&[u8]> = self.labels().collect();
        let (digits, kind) = match labels.as_slice() {
            [digits @ .., b"in-addr", b"arpa"] => (digits, Kind::V4),
            [digits @ .., b"ip6", b"arpa"] => (digits, Kind::V6),
            _ => return None,
        };
        let mut number: u128 = 0;
        let (size, bits) = match kind {
            Kind::V4 => (8, 32),
            Kind::V6 => (4, 128),
        };
        let count = digits.len();
        if count * size > bits {
            return Some(Reverse::Nonsense);
        }
        for digit in digits.iter().rev() {
            let Some(value) = number_of(digit, kind) else { return Some(Reverse::Nonsense) };
            number = (number << size) | u128::from(value);
        }
        let missing = (bits - count * size) as u32;
        number = number.checked_shl(missing).unwrap_or(0);
        let address = match kind {
            Kind::V4 => IpAddr::V4(Ipv4Addr::from(number as u32)),
            Kind::V6 => IpAddr::V6(Ipv6Addr::from(number)),
        };
        Some(if missing == 0 { Reverse::Address(address) } else { Reverse::Range(address, (count * size) as u8) })
    }
}

/// What a reverse name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reverse {
    /// One address.
    Address(IpAddr),
    /// All addresses with these leading bits: `10.in-addr.arpa`.
    Range(IpAddr, u8),
    /// Labels that are no numbers, or too many.
    Nonsense,
}

#[derive(Clone, Copy)]
enum Kind {
    V4,
    V6,
}

/// A decimal octet, or one hexadecimal digit.
fn number_of(label: &[u8], kind: Kind) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    match kind {
        Kind::V4 if text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        Kind::V6 if text.len() == 1 && text.bytes().all(|b| b.is_ascii_hexdigit()) => u8::from_str_radix(text, 16).ok(),
        _ => None,
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Name {}

impl std::hash::Hash for Name {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.bytes().hash(state);
    }
}

/// With dots, without the last one; bytes that are no letters, digits or `-_` as `\DDD` (RFC 1035 section 5.1).
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, label) in self.labels().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            for &byte in label {
                match byte {
                    b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => write!(f, "{}", byte as char)?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}
