//! A client's question, and the answers that need no thought.

use super::code::{self, AA, CD, QR, RA, RD, TC};
use super::{Name, UDP_LIMIT, word};

/// The header of every message, in bytes.
pub(crate) const HEADER: usize = 12;

/// A well-formed question.
#[derive(Clone, Debug)]
pub struct Query {
    /// The client's number for it.
    pub id: u16,
    /// The client's flags.
    pub flags: u16,
    /// What is asked about, lower case.
    pub name: Name,
    /// The type of record asked for.
    pub kind: u16,
    /// The class, nearly always `IN`.
    pub class: u16,
    /// The question as it was spelled, with type and class: answers repeat it to the letter.
    pub spelled: Box<[u8]>,
    /// What the client said about itself, if it speaks EDNS.
    pub edns: Option<Edns>,
}

/// What an OPT record says (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest answer by UDP that it takes, in bytes.
    pub size: u16,
    /// Whether it wants DNSSEC records.
    pub dnssec: bool,
    /// The version it speaks; there is only 0.
    pub version: u8,
}

/// A packet that is no question that could be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Too short to answer, or an answer itself: answering would start a loop between two servers.
    Silence,
    /// Understood as far as the header: say so.
    Code(u8),
}

impl Query {
    /// Reads a question.
    ///
    /// # Errors
    ///
    /// [`Bad`], where there is nothing to answer or only a code.
    pub fn read(packet: &[u8]) -> Result<Query, Bad> {
        let header = |at| word(packet, at).ok_or(Bad::Silence);
        let (id, flags) = (header(0)?, header(2)?);
        let [questions, answers, authorities, additionals] = [header(4)?, header(6)?, header(8)?, header(10)?];
        if flags & QR != 0 {
            return Err(Bad::Silence);
        }
        if flags & 0x7800 != 0 {
            return Err(Bad::Code(code::NOT_IMPLEMENTED));
        }
        if questions != 1 || answers != 0 || authorities != 0 {
            return Err(Bad::Code(code::FORMAT_ERROR));
        }
        let malformed = Bad::Code(code::FORMAT_ERROR);
        let (name, end) = Name::read(packet, HEADER).ok_or(malformed)?;
        let kind = word(packet, end).ok_or(malformed)?;
        let class = word(packet, end + 2).ok_or(malformed)?;
        let edns = read_edns(packet, end + 4, additionals).ok_or(malformed)?;
        Ok(Query { id, flags, name, kind, class, spelled: packet[HEADER..end + 4].into(), edns })
    }

    /// Whether the client wants DNSSEC records.
    pub fn wants_dnssec(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec)
    }

    /// How long an answer by UDP may be, in bytes.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(512, |edns| usize::from(edns.size).clamp(512, UDP_LIMIT))
    }

    /// Opens an answer: header and question. The counts are those of the three sections that follow.
    pub(crate) fn begin(&self, out: &mut Vec<u8>, flags: u16, counts: [u16; 3]) {
        let flags = QR | RA | (self.flags & (RD | CD)) | flags;
        out.clear();
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&1_u16.to_be_bytes());
        for count in counts {
            out.extend_from_slice(&count.to_be_bytes());
        }
        out.extend_from_slice(&self.spelled);
    }

    /// Closes an answer: the OPT record for those who sent one, with an extended error where there is one to tell. What
    /// became longer than `limit` is cut down to the question with the bit that sends the client to TCP.
    pub(crate) fn finish(&self, out: &mut Vec<u8>, limit: usize, extended: Option<u16>) {
        let opt = if self.edns.is_some() { 11 + extended.map_or(0, |_| 6) } else { 0 };
        if out.len() + opt > limit {
            let flags = word(out, 2).unwrap_or_default() & !AA | TC;
            out.truncate(HEADER + self.spelled.len());
            out[2..4].copy_from_slice(&flags.to_be_bytes());
            out[6..12].fill(0);
        }
        self.write_edns(out, 0, extended);
    }

    /// A whole answer that is nothing but a code.
    pub(crate) fn refuse(&self, out: &mut Vec<u8>, rcode: u8, extended: Option<u16>) {
        self.begin(out, u16::from(rcode & 15), [0; 3]);
        self.write_edns(out, rcode >> 4, extended);
    }

    fn write_edns(&self, out: &mut Vec<u8>, high_code: u8, extended: Option<u16>) {
        let Some(edns) = self.edns else { return };
        out.push(0);
        out.extend_from_slice(&code::OPT.to_be_bytes());
        out.extend_from_slice(&(UDP_LIMIT as u16).to_be_bytes());
        out.extend_from_slice(&[high_code, 0, u8::from(edns.dnssec) << 7, 0]);
        match extended {
            // Option 15, two bytes long.
            Some(info) => out.extend_from_slice(&[0, 6, 0, 15, 0, 2, (info >> 8) as u8, info as u8]),
            None => out.extend_from_slice(&[0, 0]),
        }
        let additionals = word(out, 10).unwrap_or_default().saturating_add(1);
        out[10..12].copy_from_slice(&additionals.to_be_bytes());
    }
}

/// Says a code to somebody whose question could not be read: header alone.
pub(crate) fn complain(packet: &[u8], rcode: u8, out: &mut Vec<u8>) {
    let flags = word(packet, 2).unwrap_or_default();
    out.clear();
    out.extend_from_slice(packet.get(..2).unwrap_or(&[0, 0]));
    out.extend_from_slice(&(QR | (flags & (0x7800 | RD)) | u16::from(rcode)).to_be_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// The OPT record among the additional ones: `None` is malformed, `Some(None)` is absent.
fn read_edns(packet: &[u8], mut at: usize, count: u16) -> Option<Option<Edns>> {
    let mut found = None;
    // OPT, and perhaps a signature or a cookie carrier; more is nobody's honest question.
    if count > 4 {
        return None;
    }
    for _ in 0..count {
        let (owner, end) = Name::read(packet, at)?;
        let (kind, size) = (word(packet, end)?, word(packet, end + 2)?);
        let (version, flags) = (*packet.get(end + 5)?, word(packet, end + 6)?);
        let length = usize::from(word(packet, end + 8)?);
        at = end + 10 + length;
        if at > packet.len() {
            return None;
        }
        if kind == code::OPT {
            if found.is_some() || owner != Name::default() {
                return None;
            }
            found = Some(Edns { size, dnssec: flags & 0x8000 != 0, version });
        }
    }
    Some(found)
}
