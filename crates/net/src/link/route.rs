//! The routes of the host, as the kernel lists them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lazaret_base::Result;
use lazaret_config::Prefix;

use super::message::{self, INET6, ROUTE_HEADER, rta};
use crate::netlink::{Answer, Attributes, Kept, Message, Socket, read_u16, read_u32};

/// `RTN_BROADCAST`, `RTN_ANYCAST`, `RTN_MULTICAST`: parts of other routes.
const PARTS: [u8; 3] = [3, 4, 5];
/// `RTN_UNICAST`.
const UNICAST: u8 = 1;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: Prefix,
    /// The interfaces that it leads through; none, or the loopback, if it leads nowhere.
    pub hops: Vec<u32>,
    /// Whether some interface reaches others in it without a router.
    pub on_link: bool,
    /// The largest packet that it carries, where that is less than the interface's.
    pub mtu: Option<u32>,
}

/// Every route, of both families and in all tables.
pub fn routes(socket: &mut Socket) -> Result<Vec<Route>> {
    let message = Message::new(message::GETROUTE, 0, &[0; ROUTE_HEADER], "listing routes");
    let mut routes = Vec::new();
    // A router of the Internet has a million: they are not kept as the kernel wrote them. A change in
    // the middle of the list is an event, and makes the next list.
    socket.walk(&message, |answer| routes.extend(parse(answer)))?;
    Ok(routes)
}

/// The interfaces that the route of an event leads through, whatever kind of route it is.
pub fn event(answer: &Kept) -> Option<Vec<u32>> {
    if !matches!(answer.kind, message::NEWROUTE | message::DELROUTE) {
        return None;
    }
    let attributes = answer.attributes(ROUTE_HEADER);
    let several = next_hops(attributes.last(rta::MULTIPATH).unwrap_or_default());
    Some(attributes.u32(rta::OIF).into_iter().chain(several.map(|(hop, _)| hop)).collect())
}

fn parse(answer: &Answer<'_>) -> Option<Route> {
    read(answer.kind, answer.body)
}

/// From `struct rtmsg` and its attributes. `None`: not a route, or part of another.
fn read(kind: u16, body: &[u8]) -> Option<Route> {
    let (family, length, kind_of) = (*body.first()?, *body.get(1)?, *body.get(7)?);
    if !matches!(kind, message::NEWROUTE | message::DELROUTE) || PARTS.contains(&kind_of) {
        return None;
    }
    let attributes = Attributes(body.get(ROUTE_HEADER..)?);
    let anywhere = match family {
        message::INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let to = match attributes.last(rta::DST) {
        Some(address) => message::ip(address)?,
        None => anywhere,
    };
    let mut route = Route { to: Prefix::new(to, length)?, hops: Vec::new(), on_link: false, mtu: None };
    route.mtu = attributes.inside(rta::METRICS).u32(rta::MTU);
    if let Some(hop) = attributes.u32(rta::OIF) {
        route.hops.push(hop);
        route.on_link = kind_of == UNICAST && direct(attributes);
    }
    for (hop, attributes) in next_hops(attributes.last(rta::MULTIPATH).unwrap_or_default()) {
        route.hops.push(hop);
        route.on_link |= kind_of == UNICAST && direct(attributes);
    }
    Some(route)
}

/// Whether there is no router on the way.
fn direct(mut attributes: Attributes<'_>) -> bool {
    !attributes.any(|(kind, _)| kind == rta::GATEWAY || kind == rta::VIA)
}

/// The ways of a route that has several: a run of `struct rtnexthop`, each with attributes.
fn next_hops(mut bytes: &[u8]) -> impl Iterator<Item = (u32, Attributes<'_>)> {
    std::iter::from_fn(move || {
        let length = usize::from(read_u16(bytes, 0)?);
        let hop = read_u32(bytes, 4)?;
        let attributes = Attributes(bytes.get(8..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((hop, attributes))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listed(length: u8, kind: u8, fill: impl FnOnce(Message) -> Message) -> Option<Route> {
        let mut header = [0; ROUTE_HEADER];
        (header[0], header[1], header[7]) = (message::INET, length, kind);
        let bytes = fill(Message::new(message::NEWROUTE, 0, &header, "")).encoded();
        read(message::NEWROUTE, &bytes[16..])
    }

    #[test]
    fn several_ways_are_all_seen() {
        let mut hops = Vec::new();
        for (index, gateway) in [(7_u32, true), (9, false)] {
            let attributes = if gateway { 8_u16 } else { 0 };
            hops.extend((8 + attributes).to_ne_bytes());
            hops.extend([0; 2]);
            hops.extend(index.to_ne_bytes());
            if gateway {
                hops.extend([8, 0, 5, 0, 10, 0, 0, 1]);
            }
        }
        let route = listed(0, UNICAST, |m| m.bytes(rta::MULTIPATH, &hops)).unwrap();
        assert_eq!((route.hops, route.on_link), (vec![7, 9], true));
    }

    #[test]
    fn a_route_to_nowhere_reaches_nobody() {
        let route = listed(8, 7, |m| m.bytes(rta::DST, &[10, 0, 0, 0]).u32(rta::OIF, 1)).unwrap();
        assert_eq!((route.to.to_string().as_str(), route.on_link), ("10.0.0.0/8", false));
        assert_eq!(listed(32, 3, |m| m.bytes(rta::DST, &[10, 0, 0, 255])), None);
    }

    proptest! {
        #[test]
        fn hostile_routes_are_read(kind in 22_u16..28, body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(kind, &body);
        }

        #[test]
        fn hostile_ways_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            next_hops(&bytes).for_each(drop);
        }
    }
}
