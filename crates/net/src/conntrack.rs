//! Connection tracking: forgetting what an address has open.
//!
//! A verdict of the firewall that rests on the state of a connection outlives the rule that allowed it.
//! When a container's policy is narrowed, its connections are forgotten, and each is judged anew; all but those
//! that the host has begun, which no policy forbids.

use std::net::IpAddr;

use lazaret_base::{Kind, Result};
use rustix::io::Errno;

use crate::link::{family, ip, octets};
use crate::netlink::{Answer, Message, Socket};

/// `NFNL_SUBSYS_CTNETLINK << 8`, with `IPCTNL_MSG_CT_NEW`, `_GET` and `_DELETE`.
const NEW: u16 = 0x100;
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
/// Bytes of `struct nfgenmsg`.
const HEADER: usize = 4;

/// Attributes (`CTA_*`, include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const V4_SRC: u16 = 1;
const V4_DST: u16 = 2;
const V6_SRC: u16 = 3;
const V6_DST: u16 = 4;
const FILTER_ORIG: u16 = 1;
const FILTER_REPLY: u16 = 2;
/// `CTA_FILTER_F_CTA_IP_SRC`, `CTA_FILTER_F_CTA_IP_DST`.
const BY_SOURCE: u32 = 1;
const BY_DESTINATION: u32 = 2;

/// How many entries are deleted by one datagram: its acknowledgements must fit the socket.
const AT_ONCE: usize = 64;

/// Which end of which direction is looked at.
#[derive(Clone, Copy, Debug)]
struct End {
    tuple: u16,
    by: u32,
}

/// Every place where a connection of an address may have it.
const ENDS: [End; 4] = [
    End { tuple: TUPLE_ORIG, by: BY_SOURCE },
    End { tuple: TUPLE_ORIG, by: BY_DESTINATION },
    End { tuple: TUPLE_REPLY, by: BY_SOURCE },
    End { tuple: TUPLE_REPLY, by: BY_DESTINATION },
];

/// Forgets every connection from or to this address, translated or not, in the caller's network
/// namespace. Success as well if there is none, or if the kernel tracks none at all.
pub fn forget(address: IpAddr) -> Result<()> {
    // The kernel's filter takes IPv6 addresses that differ for equal ones, and the other way round
    // (`ctnetlink_filter_match_tuple`, seen in 6.18): it would forget everybody else's connections.
    if address.is_ipv6() {
        return forget_one_by_one(address);
    }
    let mut socket = Socket::netfilter()?;
    match socket.send(&ENDS.map(|end| flush(address, end))) {
        Ok(_) => Ok(()),
        // Before Linux 6.8 the kernel takes the filter for half a connection and refuses it.
        Err(e) if matches!(e.errno(), Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::AFNOSUPPORT)) => {
            forget_one_by_one(address)
        }
        // Nothing was forgotten because nothing is remembered.
        Err(e) if e.errno() == Some(Errno::NOENT) => Ok(()),
        Err(e) => Err(advise(e)),
    }
}

/// As [`forget`], where the kernel has no filter (before Linux 6.8) or a wrong one: every entry of the
/// address's family is looked at here.
pub fn forget_one_by_one(address: IpAddr) -> Result<()> {
    forget_but(address, |_| false)
}

/// As [`forget`], but what the `spared` have begun with this address goes on: no policy of a container's says
/// whom the host may reach.
pub fn forget_but(address: IpAddr, spared: impl Fn(IpAddr) -> bool) -> Result<()> {
    let mut socket = Socket::netfilter()?;
    delete_found(&mut socket, address, &spared).map_err(advise)
}

fn delete_found(socket: &mut Socket, address: IpAddr, spared: &dyn Fn(IpAddr) -> bool) -> Result<()> {
    let list = Message::new(GET, 0, &header(address), format!("listing the connections of `{address}`"));
    let mut found = Vec::new();
    // An entry that comes twice is deleted once; one that is missed was made after the rules changed,
    // since a change never moves an entry in front of the walk.
    socket.walk(&list, |answer| {
        if !begun_by(answer, address, spared) {
            found.extend(entry_of(answer, address));
        }
    })?;
    for entries in found.chunks(AT_ONCE) {
        socket.send(entries)?;
    }
    Ok(())
}

/// Forget all that have the IPv4 address at this end. One walk through the table, in the kernel.
fn flush(address: IpAddr, end: End) -> Message {
    let place = if end.by == BY_SOURCE { V4_SRC } else { V4_DST };
    let filter = if end.tuple == TUPLE_ORIG { FILTER_ORIG } else { FILTER_REPLY };
    Message::new(DELETE, 0, &header(address), format!("forgetting the connections of `{address}`"))
        .nest(end.tuple, |m| m.nest(TUPLE_IP, |m| m.bytes(place, &octets(address))))
        .nest(FILTER, |m| m.u32(filter, end.by))
}

/// Whether one of these has begun the connection, with the address itself: what was published is somebody else's
/// address until it is translated.
fn begun_by(answer: &Answer<'_>, address: IpAddr, these: &dyn Fn(IpAddr) -> bool) -> bool {
    let ends = answer.attributes(HEADER).inside(TUPLE_ORIG).inside(TUPLE_IP);
    let (from, to) = if address.is_ipv4() { (V4_SRC, V4_DST) } else { (V6_SRC, V6_DST) };
    let end = |attribute| ends.last(attribute).and_then(ip);
    end(to) == Some(address) && end(from).is_some_and(these)
}

/// The request that deletes an entry, if the entry is of this address.
fn entry_of(answer: &Answer<'_>, address: IpAddr) -> Option<Message> {
    if answer.kind != NEW {
        return None;
    }
    let attributes = answer.attributes(HEADER);
    let wanted = octets(address);
    let of = |tuple: u16| attributes.inside(tuple).inside(TUPLE_IP).any(|(_, value)| value == wanted);
    if !of(TUPLE_ORIG) && !of(TUPLE_REPLY) {
        return None;
    }
    let doing = format!("forgetting a connection of `{address}`");
    // The id tells it from a new connection between the same ends.
    let mut message = Message::new(DELETE, 0, &header(address), doing).tolerating(&[Errno::NOENT]);
    for attribute in [TUPLE_ORIG, ID, ZONE] {
        if let Some(value) = attributes.last(attribute) {
            let nested = if attribute == TUPLE_ORIG { 0x8000 } else { 0 };
            message = message.bytes(attribute | nested, value);
        }
    }
    Some(message)
}

/// `struct nfgenmsg`: the family, version 0, and no resource.
fn header(address: IpAddr) -> [u8; HEADER] {
    [family(address), 0, 0, 0]
}

fn advise(e: lazaret_base::Error) -> lazaret_base::Error {
    match e.errno() {
        Some(Errno::INVAL | Errno::OPNOTSUPP) => {
            e.hint("the kernel lacks `nf_conntrack_netlink`: `modprobe nf_conntrack_netlink`").kind(Kind::Missing)
        }
        _ => e,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::{Answers, Attributes};

    /// An entry as the kernel lists it: from 10.0.0.1 to 10.0.0.2, masqueraded as 192.0.2.1.
    fn entry() -> Vec<u8> {
        let ip =
            |m: Message, from: [u8; 4], to: [u8; 4]| m.nest(TUPLE_IP, |m| m.bytes(V4_SRC, &from).bytes(V4_DST, &to));
        Message::new(NEW, 0, &[2, 0, 0, 0], "")
            .nest(TUPLE_ORIG, |m| ip(m, [10, 0, 0, 1], [10, 0, 0, 2]))
            .nest(TUPLE_REPLY, |m| ip(m, [10, 0, 0, 2], [192, 0, 2, 1]))
            .bytes(ID, &[1, 2, 3, 4])
            .encoded()
    }

    fn found(address: &str) -> bool {
        let bytes = entry();
        let answer = Answers(&bytes).next().unwrap();
        entry_of(&answer, address.parse().unwrap()).is_some()
    }

    #[test]
    fn an_entry_belongs_to_all_its_addresses() {
        assert!(found("10.0.0.1") && found("10.0.0.2") && found("192.0.2.1"));
        assert!(!found("10.0.0.3") && !found("fe80::1"));
    }

    #[test]
    fn what_the_spared_have_begun_is_told_from_what_was_begun_with_them() {
        let bytes = entry();
        let answer = Answers(&bytes).next().unwrap();
        let begun = |by: &str, with: &str| {
            let by: IpAddr = by.parse().unwrap();
            begun_by(&answer, with.parse().unwrap(), &|address| address == by)
        };
        assert!(begun("10.0.0.1", "10.0.0.2"));
        assert!(!begun("10.0.0.2", "10.0.0.1") && !begun("10.0.0.3", "10.0.0.2") && !begun("10.0.0.1", "192.0.2.1"));
    }

    #[test]
    fn an_entry_is_deleted_by_its_tuple_and_its_id() {
        let bytes = entry();
        let deletion = entry_of(&Answers(&bytes).next().unwrap(), "10.0.0.1".parse().unwrap()).unwrap().encoded();
        let deletion = Answers(&deletion).next().unwrap();
        assert_eq!(deletion.kind, DELETE);
        let attributes = deletion.attributes(HEADER);
        assert_eq!(attributes.last(ID), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attributes.inside(TUPLE_ORIG).inside(TUPLE_IP).last(V4_SRC), Some(&[10, 0, 0, 1][..]));
    }

    proptest! {
        #[test]
        fn hostile_entries_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0_usize..120) {
            let mut damaged = entry();
            damaged.truncate(cut);
            for bytes in [&bytes, &damaged] {
                for answer in Answers(bytes) {
                    let _ = entry_of(&answer, IpAddr::from([10, 0, 0, 1]));
                    Attributes(answer.body).for_each(drop);
                }
            }
        }
    }
}
