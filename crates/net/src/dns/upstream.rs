//! Questions to upstream servers, and what of their answers is believed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::cache::Key;
use super::code::{self, AD, CD, QR, RD, TC};
use super::query::HEADER;
use super::{Name, UDP_LIMIT, double_word, word};

/// The longest that an answer is remembered, in seconds, whatever it says of itself.
const LONGEST: u32 = 86400;

/// The longest that a "no" is remembered, in seconds (RFC 2308 section 5 advises one to three hours).
const LONGEST_NO: u32 = 3600;

/// More records than any honest message holds: the sections are walked no further.
const MOST_RECORDS: usize = 4096;

/// Writes the question of a key. With `edns` it offers the size that passes everywhere and asks for DNSSEC records
/// if the key does; without, it is for servers that do not know EDNS.
pub fn ask(key: &Key, id: u16, edns: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + key.name.bytes().len() + 15);
    let flags = RD | if key.checking_disabled { CD } else { 0 };
    for word in [id, flags, 1, 0, 0, u16::from(edns)] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(key.name.bytes());
    out.extend_from_slice(&key.kind.to_be_bytes());
    out.extend_from_slice(&code::IN.to_be_bytes());
    if edns {
        out.push(0);
        out.extend_from_slice(&code::OPT.to_be_bytes());
        out.extend_from_slice(&(UDP_LIMIT as u16).to_be_bytes());
        out.extend_from_slice(&[0, 0, u8::from(key.dnssec) << 7, 0, 0, 0]);
    }
    out
}

/// An answer that was understood in whole, ready to be told to clients.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The message without number and OPT record. Its question is as long as that of any client with the same name.
    pub bytes: Box<[u8]>,
    /// Where the times to live are, to be counted down.
    ttls: Box<[u16]>,
    /// How long it may be believed, in seconds; 0: not to be remembered.
    pub seconds: u32,
    /// Its code.
    pub rcode: u8,
    /// Whether it was cut off, and is to be had by TCP.
    pub truncated: bool,
    /// The addresses in it.
    pub addresses: Box<[IpAddr]>,
}

/// Reads an answer to the question of that key; none for what is malformed, or answers something else.
pub fn read(packet: &[u8], key: &Key, id: u16) -> Option<Answer> {
    let flags = word(packet, 2)?;
    if word(packet, 0)? != id || flags & QR == 0 || flags & 0x7800 != 0 || packet.len() > super::TCP_LIMIT {
        return None;
    }
    // Some servers say FORMERR with nothing but the header.
    let rcode = (flags & 15) as u8;
    if word(packet, 4)? == 0 && rcode != code::NO_ERROR && rcode != code::NO_SUCH_NAME {
        return Some(Answer {
            bytes: Box::default(),
            ttls: Box::default(),
            seconds: 0,
            rcode,
            truncated: false,
            addresses: Box::default(),
        });
    }
    let (name, end) = Name::read(packet, HEADER)?;
    let asked = (word(packet, end)?, word(packet, end + 2)?);
    if word(packet, 4)? != 1 || name != key.name || asked != (key.kind, code::IN) {
        return None;
    }
    let mut walk = Walk { packet, at: end + 4 };
    let truncated = flags & TC != 0;
    let sections = [word(packet, 6)?, word(packet, 8)?, word(packet, 10)?];
    let mut reading = Reading::default();
    let mut kept = [0_u16; 3];
    let mut cut = packet.len();
    'sections: for (i, &count) in sections.iter().enumerate() {
        for _ in 0..count {
            let start = walk.at;
            if reading.records >= MOST_RECORDS {
                return None;
            }
            let record = match walk.next() {
                Some(record) => record,
                // A truncated message may end anywhere: what matters of it is that it is.
                None if truncated => break 'sections,
                None => return None,
            };
            // The last thing a sane server writes; what might follow would hang on offsets that no longer hold.
            if record.kind == code::OPT {
                cut = start;
                break 'sections;
            }
            reading.note(packet, &record, i)?;
            kept[i] += 1;
            cut = walk.at;
        }
    }
    let mut bytes: Box<[u8]> = packet[..cut].into();
    bytes[..2].fill(0);
    bytes[2..4].copy_from_slice(&(flags & !(AD | TC)).to_be_bytes());
    for (i, count) in kept.iter().enumerate() {
        bytes[6 + 2 * i..8 + 2 * i].copy_from_slice(&count.to_be_bytes());
    }
    let seconds = if truncated { 0 } else { reading.seconds(rcode, kept[0]) };
    let Reading { ttls, addresses, .. } = reading;
    Some(Answer { bytes, ttls: ttls.into(), seconds, rcode, truncated, addresses: addresses.into() })
}

impl Answer {
    /// Appends the message to nothing: writes it into `out` with the times to live `age` seconds lower.
    pub(crate) fn write(&self, age: u32, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.bytes);
        for &at in &self.ttls {
            let at = usize::from(at);
            if let (Some(ttl), Some(place)) = (double_word(&self.bytes, at), out.get_mut(at..at + 4)) {
                place.copy_from_slice(&ttl.min(LONGEST).saturating_sub(age).to_be_bytes());
            }
        }
    }
}

/// What is learnt of the records on the way.
#[derive(Default)]
struct Reading {
    records: usize,
    ttls: Vec<u16>,
    addresses: Vec<IpAddr>,
    shortest: Option<u32>,
    negative: Option<u32>,
}

impl Reading {
    fn note(&mut self, packet: &[u8], record: &Record, section: usize) -> Option<()> {
        self.records += 1;
        self.ttls.push(u16::try_from(record.ttl_at).ok()?);
        // A time to live with the top bit set is zero (RFC 2181 section 8).
        let ttl = if record.ttl > i32::MAX as u32 { 0 } else { record.ttl };
        if section < 2 {
            self.shortest = Some(self.shortest.map_or(ttl, |shortest| shortest.min(ttl)));
        }
        let value = packet.get(record.value.clone())?;
        match record.kind {
            code::A => self.addresses.push(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?))),
            code::AAAA => self.addresses.push(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?))),
            code::SVCB | code::HTTPS => hints(packet, record.value.clone(), &mut self.addresses)?,
            code::NS | code::CNAME | code::PTR | code::DNAME => {
                (skip_name(packet, record.value.start)? == record.value.end).then_some(())?;
            }
            code::SOA => {
                let numbers = skip_name(packet, skip_name(packet, record.value.start)?)?;
                (numbers + 20 == record.value.end).then_some(())?;
                if section == 1 {
                    self.negative = Some(ttl.min(double_word(packet, numbers + 16)?));
                }
            }
            _ => {}
        }
        Some(())
    }

    /// How long the message may be believed.
    fn seconds(&self, rcode: u8, answers: u16) -> u32 {
        match rcode {
            code::NO_ERROR if answers > 0 && self.negative.is_none() => self.shortest.unwrap_or(0).min(LONGEST),
            // Aliases that lead to nothing, names that are not, and types that are not there: RFC 2308 section 5.
            code::NO_ERROR | code::NO_SUCH_NAME => {
                self.negative.unwrap_or(0).min(self.shortest.unwrap_or(0)).min(LONGEST_NO)
            }
            _ => 0,
        }
    }
}

struct Record {
    kind: u16,
    ttl: u32,
    ttl_at: usize,
    value: Range<usize>,
}

struct Walk<'a> {
    packet: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    fn next(&mut self) -> Option<Record> {
        let fixed = skip_name(self.packet, self.at)?;
        let kind = word(self.packet, fixed)?;
        let ttl = double_word(self.packet, fixed + 4)?;
        let start = fixed + 10;
        let end = start + usize::from(word(self.packet, fixed + 8)?);
        if end > self.packet.len() {
            return None;
        }
        self.at = end;
        Some(Record { kind, ttl, ttl_at: fixed + 4, value: start..end })
    }
}

/// Where a name that may be compressed ends. It is followed to its root: every pointer must lead to before the
/// labels it was met among, so a loop cannot be, and the whole is no longer than a name.
fn skip_name(packet: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    let mut floor = start;
    let mut end = None;
    let mut length = 0;
    loop {
        let size = usize::from(*packet.get(at)?);
        match size {
            0 => return Some(end.unwrap_or(at + 1)),
            1..=63 => {
                length += size + 1;
                at += size + 1;
                if length > 254 || at > packet.len() {
                    return None;
                }
            }
            0xc0.. => {
                let target = usize::from(word(packet, at)? & 0x3fff);
                end.get_or_insert(at + 2);
                if target >= floor || target < HEADER {
                    return None;
                }
                floor = target;
                at = target;
            }
            _ => return None,
        }
    }
}

/// The addresses that a service binding hints at (RFC 9460 section 7.3): a browser connects to them as to any other.
fn hints(packet: &[u8], value: Range<usize>, addresses: &mut Vec<IpAddr>) -> Option<()> {
    const IPV4_HINT: u16 = 4;
    const IPV6_HINT: u16 = 6;
    let mut at = skip_name(packet, value.start + 2)?;
    while at < value.end {
        let (key, length) = (word(packet, at)?, usize::from(word(packet, at + 2)?));
        let parameter = packet.get(at + 4..at + 4 + length)?;
        match key {
            IPV4_HINT => {
                let (each, []) = parameter.as_chunks::<4>() else { return None };
                addresses.extend(each.iter().map(|&octets| IpAddr::V4(Ipv4Addr::from(octets))));
            }
            IPV6_HINT => {
                let (each, []) = parameter.as_chunks::<16>() else { return None };
                addresses.extend(each.iter().map(|&octets| IpAddr::V6(Ipv6Addr::from(octets))));
            }
            _ => {}
        }
        at += 4 + length;
    }
    (at == value.end).then_some(())
}
