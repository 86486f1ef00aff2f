//! What the responder knows by itself: the zone of the containers, its reverse, and names that mean one thing
//! everywhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Name;
use super::code::{self, AA, RD};
use super::name::Reverse;
use super::query::{Bad, HEADER, Query, complain};
use crate::responder::directory::Owner;
use crate::responder::{Asker, Directory};

/// How long an answer of ours may be believed, in seconds: short, since containers come and go.
const TTL: u32 = 5;

/// What is to be done about a packet.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "taken apart at once, never stored")]
pub enum Verdict {
    /// The answer is written.
    Answered,
    /// Somebody else knows: ask them, on behalf of the asker.
    Forward(Query),
    /// Not a word.
    Ignored,
}

/// Answers a packet from what the directory says, as far as it does; `limit` is the transport's. Pure.
pub fn answer(directory: &Directory, asker: Asker, packet: &[u8], by_tcp: bool, out: &mut Vec<u8>) -> Verdict {
    out.clear();
    let query = match Query::read(packet) {
        Ok(query) => query,
        Err(Bad::Silence) => return Verdict::Ignored,
        Err(Bad::Code(rcode)) => {
            complain(packet, rcode, out);
            return Verdict::Answered;
        }
    };
    let limit = if by_tcp { super::TCP_LIMIT } else { query.udp_limit() };
    match decide(directory, asker, &query) {
        Decision::Addresses(v4, v6) => write_addresses(directory, &query, (v4, v6), limit, out),
        Decision::Pointer(name) => {
            query.begin(out, AA, [1, 0, 0]);
            write_record(out, code::PTR, name.bytes());
            query.finish(out, limit, None);
        }
        Decision::Apex => write_apex(directory, &query, limit, out),
        Decision::Negative(rcode, zone) => write_negative(directory, &query, rcode, zone, limit, out),
        Decision::Refuse(rcode, extended) => query.refuse(out, rcode, extended),
        Decision::Ask => return Verdict::Forward(query),
    }
    Verdict::Answered
}

enum Decision<'a> {
    /// The name has these addresses; those of the type asked for are told.
    Addresses(Option<Ipv4Addr>, Option<Ipv6Addr>),
    Pointer(&'a Name),
    /// The zone's own name.
    Apex,
    /// No such name, or no such record; the zone that says so begins at this place of the name.
    Negative(u8, usize),
    Refuse(u8, Option<u16>),
    Ask,
}

fn decide<'a>(directory: &'a Directory, asker: Asker, query: &Query) -> Decision<'a> {
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return Decision::Refuse(code::BAD_VERSION, None);
    }
    // Zone transfers (251, 252) and the obsolete mail queries (253, 254) are for nobody here.
    if query.class != code::IN || (249..=254).contains(&query.kind) {
        return Decision::Refuse(code::REFUSED, None);
    }
    let name = &query.name;
    if let Some(target) = directory.named(name).filter(|&target| directory.visible(asker, target)) {
        let (v4, v6) = directory.addresses(target);
        return Decision::Addresses(v4, v6);
    }
    if let Some(zone) = name.within(&directory.domain) {
        // An unseen container and an absent one look the same.
        return if zone == 0 { Decision::Apex } else { Decision::Negative(code::NO_SUCH_NAME, zone) };
    }
    if let Some(decision) = special(name) {
        return decision;
    }
    if let Some(reverse) = name.reverse()
        && let Some(decision) = decide_reverse(directory, asker, name, reverse)
    {
        return decision;
    }
    if let Some((v4, v6)) = directory.found(asker, name) {
        return Decision::Addresses(v4, v6);
    }
    // A plain name that is not ours is nobody's: asking outside would tell the world what is looked for here. Only
    // validating resolvers ask for a top-level domain's own records.
    let about_zones = [code::NS, code::SOA, code::DS, code::DNSKEY].contains(&query.kind);
    if name.is_single() && !about_zones {
        return Decision::Negative(code::NO_SUCH_NAME, name.bytes().len() - 1);
    }
    // Without recursion desired the question is what others have asked before: not told.
    if query.flags & RD == 0 || !directory.may_ask(asker, name) {
        return Decision::Refuse(code::REFUSED, Some(code::PROHIBITED));
    }
    Decision::Ask
}

/// `localhost` is here (RFC 6761 section 6.3); `invalid` and `onion` are nowhere (RFC 6761 section 6.4, RFC 7686).
fn special<'a>(name: &Name) -> Option<Decision<'a>> {
    match name.labels().last()? {
        b"localhost" => Some(Decision::Addresses(Some(Ipv4Addr::LOCALHOST), Some(Ipv6Addr::LOCALHOST))),
        b"invalid" | b"onion" => Some(Decision::Negative(code::NO_SUCH_NAME, name.last(1))),
        _ => None,
    }
}

/// Reverse names of our subnets are ours. Those of the LAN are nobody's for containers that must not see the LAN: its
/// hosts' names are as private as its addresses.
fn decide_reverse<'a>(directory: &'a Directory, asker: Asker, name: &Name, what: Reverse) -> Option<Decision<'a>> {
    // `10.in-addr.arpa`, or the same of IPv6.
    let zone = name.last(3);
    match what {
        Reverse::Nonsense => Some(Decision::Negative(code::NO_SUCH_NAME, name.last(2))),
        Reverse::Address(address) => match directory.owner(address) {
            Owner::Named(name, target) if directory.visible(asker, target) => Some(Decision::Pointer(name)),
            Owner::Named(..) | Owner::Nobody => Some(Decision::Negative(code::NO_SUCH_NAME, zone)),
            Owner::Foreign => (directory.is_lan(address) && !directory.has_lan(asker))
                .then_some(Decision::Negative(code::NO_SUCH_NAME, zone)),
        },
        Reverse::Range(address, length) => {
            let ours = directory.owner(address) != Owner::Foreign || holds_gateway(directory, address, length);
            (ours || (directory.is_lan(address) && !directory.has_lan(asker)))
                .then_some(Decision::Negative(code::NO_ERROR, zone))
        }
    }
}

/// Whether a range holds the gateway, and so (a part of) our subnet.
fn holds_gateway(directory: &Directory, address: IpAddr, length: u8) -> bool {
    let range = crate::responder::Prefix { address, length };
    // `in-addr.arpa` itself is the world's.
    let settings = directory.settings();
    length >= 8
        && (range.contains(IpAddr::V4(settings.gateway4))
            || settings.gateway6.is_some_and(|gateway| range.contains(IpAddr::V6(gateway))))
}

fn write_addresses(
    directory: &Directory,
    query: &Query,
    (v4, v6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
    limit: usize,
    out: &mut Vec<u8>,
) {
    let v4 = v4.filter(|_| query.kind == code::A || query.kind == code::ANY);
    let v6 = v6.filter(|_| query.kind == code::AAAA || query.kind == code::ANY);
    let count = u16::from(v4.is_some()) + u16::from(v6.is_some());
    if count == 0 {
        let zone = query.name.within(&directory.domain).unwrap_or(query.name.bytes().len() - 1);
        return write_negative(directory, query, code::NO_ERROR, zone, limit, out);
    }
    query.begin(out, AA, [count, 0, 0]);
    if let Some(v4) = v4 {
        write_record(out, code::A, &v4.octets());
    }
    if let Some(v6) = v6 {
        write_record(out, code::AAAA, &v6.octets());
    }
    query.finish(out, limit, None);
}

fn write_apex(directory: &Directory, query: &Query, limit: usize, out: &mut Vec<u8>) {
    let soa = soa(directory);
    let records: &[(u16, &[u8])] = match query.kind {
        code::SOA => &[(code::SOA, &soa)],
        code::NS => &[(code::NS, directory.gateway.bytes())],
        code::ANY => &[(code::SOA, &soa), (code::NS, directory.gateway.bytes())],
        _ => return write_negative(directory, query, code::NO_ERROR, 0, limit, out),
    };
    query.begin(out, AA, [records.len() as u16, 0, 0]);
    for (kind, value) in records {
        write_record(out, *kind, value);
    }
    query.finish(out, limit, None);
}

/// No such name or record, with the SOA record that lets the client remember it (RFC 2308).
fn write_negative(directory: &Directory, query: &Query, rcode: u8, zone: usize, limit: usize, out: &mut Vec<u8>) {
    query.begin(out, AA | u16::from(rcode), [0, 1, 0]);
    write_owned(out, HEADER + zone, code::SOA, &soa(directory));
    query.finish(out, limit, None);
}

/// A record whose owner is the name asked about.
fn write_record(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    write_owned(out, HEADER, kind, value);
}

fn write_owned(out: &mut Vec<u8>, owner: usize, kind: u16, value: &[u8]) {
    // A name of 255 bytes behind the header: an owner's place always fits the pointer's 14 bits.
    out.extend_from_slice(&(0xc000 | owner as u16).to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&code::IN.to_be_bytes());
    out.extend_from_slice(&TTL.to_be_bytes());
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
}

/// The rdata of the zones' SOA record.
fn soa(directory: &Directory) -> Vec<u8> {
    let mut value = directory.gateway.bytes().to_vec();
    value.extend_from_slice(b"\x0ahostmaster");
    value.extend_from_slice(directory.domain.bytes());
    // Serial, refresh, retry, expire: nobody transfers the zone. The last one is how long a "no" lasts.
    for number in [1, 3600, 600, 86400, TTL] {
        value.extend_from_slice(&number.to_be_bytes());
    }
    value
}
