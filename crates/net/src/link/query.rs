//! What links there are, and what went through them.

use std::net::IpAddr;

use lazaret_base::Result;
use lazaret_config::{Mac, Prefix};
use rustix::io::Errno;

use super::message::{self, ADDRESS_HEADER, ANY_LINK, LINK_HEADER, UP, ifa, ifla};
use crate::netlink::{Attributes, Kept, Message, Socket, read_u32, read_u64};
use crate::subnet::HostAddress;

/// `RTEXT_FILTER_SKIP_STATS`: a list without counters is made in half the time.
const WITHOUT_COUNTERS: u32 = 1 << 3;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its number in its namespace.
    pub index: u32,
    /// Its driver (`bridge`, `veth`, `macvlan`, ...); hardware has none.
    pub kind: Option<String>,
    /// The index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// The kind of what it is a port of: `bridge`, `bond`, ...
    pub port_of: Option<String>,
    /// Its hardware address, if it has one as Ethernet has.
    pub mac: Option<Mac>,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Whether it is switched on (not whether anybody is at the other end).
    pub up: bool,
    /// As the port of a bridge: whether it is kept apart from other such ports.
    pub isolated: Option<bool>,
    /// Who it belongs to, as its owner wrote.
    pub label: Option<String>,
    /// What went through it.
    pub traffic: Traffic,
}

/// What went through a link since it was made, as the link itself sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// What came in from the wire.
    pub received: Count,
    /// What went out to the wire.
    pub sent: Count,
}

impl Traffic {
    /// The same from the other end: what the host's end of a veth received, the container has sent.
    pub fn seen_from_inside(self) -> Traffic {
        Traffic { received: self.sent, sent: self.received }
    }
}

/// One direction of a link's traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Bytes, with the Ethernet header.
    pub bytes: u64,
    /// Packets; what the kernel has put together (GRO) counts once.
    pub packets: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// Every link of the namespace, in the kernel's order.
pub fn links(host: &mut Socket) -> Result<Vec<Link>> {
    let message = Message::new(message::GETLINK, 0, &message::link_header(ANY_LINK, 0, 0), "listing interfaces");
    Ok(host.list(message)?.iter().filter_map(link).collect())
}

/// As [`links`], but all counters are zero.
pub fn links_without_counters(host: &mut Socket) -> Result<Vec<Link>> {
    let message = Message::new(message::GETLINK, 0, &message::link_header(ANY_LINK, 0, 0), "listing interfaces")
        .u32(ifla::EXT_MASK, WITHOUT_COUNTERS);
    Ok(host.list(message)?.iter().filter_map(link).collect())
}

/// The ports of a bridge; none if there is no such bridge.
pub fn ports(host: &mut Socket, bridge: &str) -> Result<Vec<Link>> {
    let Some(bridge) = find(host, bridge)? else { return Ok(Vec::new()) };
    let message = Message::new(message::GETLINK, 0, &message::link_header(ANY_LINK, 0, 0), "listing ports")
        .u32(ifla::MASTER, bridge.index);
    let ports = host.list(message)?;
    // A kernel that doesn't know the filter lists everything.
    Ok(ports.iter().filter_map(link).filter(|port| port.master == Some(bridge.index)).collect())
}

/// One link, or `None`.
pub fn find(host: &mut Socket, name: &str) -> Result<Option<Link>> {
    match host.ask(message::find(name)?) {
        Ok(answer) => Ok(answer.as_ref().and_then(link)),
        Err(e) if e.errno() == Some(Errno::NODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The addresses of one interface.
pub fn addresses(host: &mut Socket, index: u32) -> Result<Vec<HostAddress>> {
    let message = Message::new(message::GETADDR, 0, &[0; ADDRESS_HEADER], "listing addresses");
    let listed = host.list(message)?;
    Ok(listed.iter().filter_map(address).filter(|(of, _)| *of == index).map(|(_, address)| address).collect())
}

/// Every address of the namespace and every prefix that an address says to be on its link, with the
/// index of the interface.
pub fn all_addresses(host: &mut Socket) -> Result<Vec<(u32, Prefix)>> {
    let message = Message::new(message::GETADDR, 0, &[0; ADDRESS_HEADER], "listing addresses");
    let mut prefixes = Vec::new();
    for answer in host.list(message)? {
        let Some((index, own)) = address(&answer) else { continue };
        let other_end = answer.attributes(ADDRESS_HEADER).last(ifa::ADDRESS).and_then(message::ip);
        let on_link = other_end.and_then(|ip| Prefix::new(ip, own.length));
        prefixes.push((index, Prefix::host(own.ip)));
        prefixes.extend(on_link.map(|prefix| (index, prefix)));
    }
    Ok(prefixes)
}

/// The name and index of the link that an event is about, and whether the link is gone.
pub fn event(answer: &Kept) -> Option<(String, u32, bool)> {
    if !matches!(answer.kind, message::NEWLINK | message::DELLINK) {
        return None;
    }
    let name = answer.attributes(LINK_HEADER).text(ifla::IFNAME)?;
    Some((name, read_u32(&answer.body, 4)?, answer.kind == message::DELLINK))
}

/// The index of the interface whose addresses an event is about.
pub fn address_event(answer: &Kept) -> Option<u32> {
    matches!(answer.kind, message::NEWADDR | message::DELADDR).then(|| read_u32(&answer.body, 4)).flatten()
}

/// The index of the link that one of the answers describes.
pub fn index_of(answers: &[Kept]) -> Option<u32> {
    answers.iter().find(|answer| answer.kind == message::NEWLINK).and_then(|answer| read_u32(&answer.body, 4))
}

/// A link as the kernel describes it; `None` if the description makes no sense.
pub fn link(answer: &Kept) -> Option<Link> {
    if answer.kind != message::NEWLINK {
        return None;
    }
    let attributes = answer.attributes(LINK_HEADER);
    let info = attributes.inside(ifla::LINKINFO);
    let port_of = info.text(ifla::SLAVE_KIND);
    let isolated =
        (port_of.as_deref() == Some("bridge")).then(|| info.inside(ifla::SLAVE_DATA).u8(ifla::PORT_ISOLATED)).flatten();
    Some(Link {
        name: attributes.text(ifla::IFNAME)?,
        index: read_u32(&answer.body, 4)?,
        kind: info.text(ifla::KIND),
        master: attributes.u32(ifla::MASTER),
        port_of,
        mac: attributes.last(ifla::ADDRESS).and_then(|mac| Mac::new(mac.try_into().ok()?)),
        mtu: attributes.u32(ifla::MTU)?,
        up: read_u32(&answer.body, 8)? & UP != 0,
        isolated: isolated.map(|value| value != 0),
        label: attributes.text(ifla::IFALIAS),
        traffic: traffic(attributes),
    })
}

/// The counters, of `struct rtnl_link_stats64`: packets, bytes, errors, drops; each received, then sent.
fn traffic(attributes: Attributes<'_>) -> Traffic {
    let counters = attributes.last(ifla::STATS64).unwrap_or_default();
    let at = |position: usize| read_u64(counters, position * 8).unwrap_or_default();
    Traffic {
        received: Count { packets: at(0), bytes: at(2), dropped: at(6) },
        sent: Count { packets: at(1), bytes: at(3), dropped: at(7) },
    }
}

/// An address as the kernel describes it, with the index of its interface.
///
/// The host's own address is `IFA_LOCAL`; on a link with one other end, `IFA_ADDRESS` is that end.
pub fn address(answer: &Kept) -> Option<(u32, HostAddress)> {
    let attributes = answer.attributes(ADDRESS_HEADER);
    let ip: IpAddr = attributes.last(ifa::LOCAL).or_else(|| attributes.last(ifa::ADDRESS)).and_then(message::ip)?;
    let length = *answer.body.get(1)?;
    (answer.kind == message::NEWADDR && length <= HostAddress::alone(ip).length)
        .then_some((read_u32(&answer.body, 4)?, HostAddress { ip, length }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn hostile_descriptions_make_no_link_or_some_link(
            kind in 14_u16..24, body in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let answer = Kept { kind, body };
            let _ = link(&answer);
            let _ = address(&answer);
            let _ = index_of(std::slice::from_ref(&answer));
        }

        /// A right description that is cut anywhere.
        #[test]
        fn truncated_descriptions_are_read(cut in 0_usize..200) {
            let message = message::create_bridge("br0", Mac::new([2, 0, 0, 0, 0, 1]).unwrap(), 1500).unwrap();
            let mut body = message.encoded()[16..].to_vec();
            body.truncate(cut);
            let _ = link(&Kept { kind: message::NEWLINK, body });
        }
    }
}
