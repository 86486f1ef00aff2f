//! Connection tracking: forgetting what an address has open.
//!
//! A verdict of the firewall that rests on the state of a connection outlives the rule that allowed it.
//! When a container's policy is narrowed, its connections are forgotten, and each is judged anew; all but those
//! that the host has begun, which no policy forbids.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lazaret_base::{Kind, Result};
use rustix::io::Errno;

use crate::link::ip;
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
const TUPLE_IP: u16 = 1;
const V4_SRC: u16 = 1;
const V4_DST: u16 = 2;
const V6_SRC: u16 = 3;
const V6_DST: u16 = 4;

/// How many entries are deleted by one datagram: its acknowledgements must fit the socket.
const AT_ONCE: usize = 64;

/// Forgets every connection from or to these addresses, translated or not, in the caller's network namespace. Success
/// as well if there is none, or if the kernel tracks none at all.
///
/// One walk through the kernel's table, some milliseconds, however many addresses there are. The kernel could delete
/// by address itself (Linux 6.8), but one address, family and direction for each walk, and it takes IPv6 addresses that
/// differ for equal ones (`ctnetlink_filter_match_tuple`, seen in 6.18): it would forget everybody else's connections.
pub fn forget(addresses: &BTreeSet<IpAddr>) -> Result<()> {
    forget_but(addresses, |_| false)
}

/// As [`forget`], but what the `spared` have begun with one of these addresses goes on: no policy of a container's says
/// whom the host may reach.
pub fn forget_but(addresses: &BTreeSet<IpAddr>, spared: impl Fn(IpAddr) -> bool) -> Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let mut socket = Socket::netfilter()?;
    delete_found(&mut socket, addresses, &spared).map_err(advise)
}

fn delete_found(socket: &mut Socket, addresses: &BTreeSet<IpAddr>, spared: &dyn Fn(IpAddr) -> bool) -> Result<()> {
    let list = Message::new(GET, 0, &header(BOTH_FAMILIES), "listing the connections");
    let mut found = Vec::new();
    // An entry that comes twice is deleted once; one that is missed was made after the rules changed,
    // since a change never moves an entry in front of the walk.
    socket.walk(&list, |answer| {
        if !begun_by(answer, addresses, spared) {
            found.extend(entry_of(answer, addresses));
        }
    })?;
    for entries in found.chunks(AT_ONCE) {
        socket.send(entries)?;
    }
    Ok(())
}

/// Whether one of these has begun the connection, with the address itself: what was published is somebody else's
/// address until it is translated.
fn begun_by(answer: &Answer<'_>, addresses: &BTreeSet<IpAddr>, these: &dyn Fn(IpAddr) -> bool) -> bool {
    let ends = answer.attributes(HEADER).inside(TUPLE_ORIG).inside(TUPLE_IP);
    let end = |v4, v6| ends.last(v4).or_else(|| ends.last(v6)).and_then(ip);
    end(V4_DST, V6_DST).is_some_and(|to| addresses.contains(&to)) && end(V4_SRC, V6_SRC).is_some_and(these)
}

/// The request that deletes an entry, if the entry is of one of these addresses.
fn entry_of(answer: &Answer<'_>, addresses: &BTreeSet<IpAddr>) -> Option<Message> {
    if answer.kind != NEW {
        return None;
    }
    let attributes = answer.attributes(HEADER);
    let of = |tuple: u16| {
        let mut ends = attributes.inside(tuple).inside(TUPLE_IP);
        ends.any(|(_, value)| ip(value).is_some_and(|address| addresses.contains(&address)))
    };
    if !of(TUPLE_ORIG) && !of(TUPLE_REPLY) {
        return None;
    }
    // The id tells it from a new connection between the same ends.
    let mut message =
        Message::new(DELETE, 0, &header(*answer.body.first()?), "forgetting a connection").tolerating(&[Errno::NOENT]);
    for attribute in [TUPLE_ORIG, ID, ZONE] {
        if let Some(value) = attributes.last(attribute) {
            let nested = if attribute == TUPLE_ORIG { 0x8000 } else { 0 };
            message = message.bytes(attribute | nested, value);
        }
    }
    Some(message)
}

/// `AF_UNSPEC`.
const BOTH_FAMILIES: u8 = 0;

/// `struct nfgenmsg`: the family, version 0, and no resource.
fn header(family: u8) -> [u8; HEADER] {
    [family, 0, 0, 0]
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
        entry_of(&answer, &[address.parse().unwrap()].into()).is_some()
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
            begun_by(&answer, &[with.parse().unwrap()].into(), &|address| address == by)
        };
        assert!(begun("10.0.0.1", "10.0.0.2"));
        assert!(!begun("10.0.0.2", "10.0.0.1") && !begun("10.0.0.3", "10.0.0.2") && !begun("10.0.0.1", "192.0.2.1"));
    }

    #[test]
    fn an_entry_is_deleted_by_its_tuple_and_its_id() {
        let bytes = entry();
        let deletion =
            entry_of(&Answers(&bytes).next().unwrap(), &["10.0.0.1".parse().unwrap()].into()).unwrap().encoded();
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
                    let _ = entry_of(&answer, &[IpAddr::from([10, 0, 0, 1])].into());
                    Attributes(answer.body).for_each(drop);
                }
            }
        }
    }
}
