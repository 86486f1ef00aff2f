//! The names of containers, and everybody else's: reading questions, answering ours, asking upstream for the rest.
//!
//! Pure but for [`forward`] and [`stream`], which own sockets: a question and a directory in, bytes out.

mod cache;
pub(crate) mod forward;
mod local;
mod name;
mod query;
pub(crate) mod stream;
pub mod upstream;

pub use cache::{Cache, Key, tell};
pub use local::{Verdict, answer};
pub use name::Name;
pub use query::{Edns, Query};

/// The largest answer by UDP, in bytes, whatever the client offers: what fits every path without fragments
/// (DNS flag day 2020).
pub const UDP_LIMIT: usize = 1232;

/// The largest answer by TCP: what its length field can say.
pub const TCP_LIMIT: usize = 65535;

/// Codes of RFC 1035, 3596, 6891 and 9460 that are told apart here.
pub(crate) mod code {
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const AAAA: u16 = 28;
    pub const DNAME: u16 = 39;
    pub const OPT: u16 = 41;
    pub const DS: u16 = 43;
    pub const DNSKEY: u16 = 48;
    pub const SVCB: u16 = 64;
    pub const HTTPS: u16 = 65;
    pub const ANY: u16 = 255;

    pub const IN: u16 = 1;

    pub const NO_ERROR: u8 = 0;
    pub const FORMAT_ERROR: u8 = 1;
    pub const SERVER_FAILURE: u8 = 2;
    pub const NO_SUCH_NAME: u8 = 3;
    pub const NOT_IMPLEMENTED: u8 = 4;
    pub const REFUSED: u8 = 5;
    pub const BAD_VERSION: u8 = 16;

    /// Bits of the header's second word.
    pub const QR: u16 = 0x8000;
    pub const AA: u16 = 0x0400;
    pub const TC: u16 = 0x0200;
    pub const RD: u16 = 0x0100;
    pub const RA: u16 = 0x0080;
    pub const AD: u16 = 0x0020;
    pub const CD: u16 = 0x0010;

    /// Extended errors (RFC 8914): the answer was there and is not given.
    pub const FILTERED: u16 = 17;
    pub const PROHIBITED: u16 = 18;
}

/// Big-endian reads that end where the packet ends.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub(crate) fn double_word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
