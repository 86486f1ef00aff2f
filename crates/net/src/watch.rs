//! What network the host is in, and word of every change.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use lazaret_base::{Context, Result};
use lazaret_config::Prefix;

use crate::link::route::{self, Route};
use crate::link::{self, Link};
use crate::netlink::{Answer, Kept, Socket};

/// `RTMGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// Room for a burst of events, as when a VPN sets a thousand routes; more is lost, and told.
const ROOM: usize = 1 << 20;

/// Shorter prefixes on a link are default routes in disguise (`0.0.0.0/1` into a tunnel): if they were
/// taken for a LAN, the Internet would be one.
const WIDEST: (u8, u8) = (8, 16);

/// Routes as short as this lead to the Internet: the default route, its halves, and 2000::/3.
const SPLIT: u8 = 3;

/// Hears of changes of the host's network. To be polled for reading.
pub struct Watch {
    events: Socket,
    questions: Socket,
    ours: Box<dyn Fn(&str) -> bool>,
    /// The indexes of our own interfaces, whose events are no news.
    known: HashSet<u32>,
}

/// The host's network at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every prefix that some interface, other than ours and the loopback, reaches without a router.
    pub on_link: BTreeSet<Prefix>,
    /// Every address and every route that the host has, in whichever table, but ours and the default
    /// routes: what a subnet of ours must not overlap.
    pub taken: BTreeSet<Prefix>,
    /// The interfaces that default routes lead through, without repetition.
    pub uplinks: Vec<Uplink>,
    /// The interfaces that are devices of the machine's, and not made by a program.
    pub devices: BTreeSet<String>,
}

/// An interface that leads to the Internet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// The largest packet that its default routes carry, in bytes.
    pub mtu: u32,
}

impl Snapshot {
    /// The MTU that fits every way to the Internet, and IPv6 (at least 1280); `None` without any.
    ///
    /// The smallest, not that of the best route: with a VPN by policy routing the best one is not what
    /// packets take, and a second uplink is there to be switched to.
    pub fn uplink_mtu(&self) -> Option<u32> {
        self.uplinks.iter().map(|uplink| uplink.mtu).min().map(|mtu| mtu.max(1280))
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Watch {
    /// Begins to listen, in the caller's network namespace. `ours` tells our own interfaces by name:
    /// attaching a container is no change of the host's network.
    ///
    /// A snapshot that is taken afterwards misses nothing.
    pub fn open(ours: impl Fn(&str) -> bool + 'static) -> Result<Watch> {
        let events = Socket::subscribed(GROUPS)?;
        // Best effort: without CAP_NET_ADMIN the usual 200 KiB have to do.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(events.as_fd(), ROOM);
        Ok(Watch { events, questions: Socket::route()?, ours: Box::new(ours), known: HashSet::new() })
    }

    /// Reads the events that are waiting, never waits; whether there was one that is not about our own
    /// interfaces, so that it is time for a new snapshot.
    pub fn changed(&mut self) -> Result<bool> {
        let Watch { events, ours, known, .. } = self;
        let mut news = false;
        let whole = events.events(|event| news |= is_news(event, ours, known))?;
        Ok(news || !whole)
    }

    /// What the host's network is now.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        let looking = "looking at the host's network";
        let links = link::links_without_counters(&mut self.questions).context(looking)?;
        let addresses = link::all_addresses(&mut self.questions).context(looking)?;
        let routes = route::routes(&mut self.questions).context(looking)?;
        self.known = links.iter().filter(|link| (self.ours)(&link.name)).map(|link| link.index).collect();
        Ok(survey(&Facts { links: &links, ours: &self.known, addresses: &addresses, routes: &routes }))
    }
}

/// Whether an event is about anything but our own interfaces. Learns which these are.
fn is_news(event: &Answer<'_>, ours: &dyn Fn(&str) -> bool, known: &mut HashSet<u32>) -> bool {
    let kept = Kept { kind: event.kind, body: event.body.to_vec() };
    if let Some((name, index, gone)) = link::event(&kept) {
        if !ours(&name) {
            return !known.contains(&index);
        }
        if gone {
            known.remove(&index);
        } else {
            known.insert(index);
        }
        return false;
    }
    if let Some(index) = link::address_event(&kept) {
        return !known.contains(&index);
    }
    // A route to nowhere is news, and so is what is not understood: better a snapshot too many.
    let hops = route::event(&kept).unwrap_or_default();
    hops.is_empty() || hops.iter().any(|hop| !known.contains(hop))
}

/// What the kernel lists.
struct Facts<'a> {
    links: &'a [Link],
    ours: &'a HashSet<u32>,
    addresses: &'a [(u32, Prefix)],
    routes: &'a [Route],
}

/// What the facts mean. Pure.
fn survey(facts: &Facts<'_>) -> Snapshot {
    let Facts { links, ours, addresses, routes } = facts;
    let loopback = |index: &u32| links.iter().any(|link| link.index == *index && link.name == "lo");
    let foreign = |index: &u32| !ours.contains(index);
    let device = |link: &&Link| link.kind.is_none() && link.name != "lo" && foreign(&link.index);
    let devices = links.iter().filter(device).map(|link| link.name.clone()).collect();
    let mut snapshot = Snapshot { devices, ..Snapshot::default() };
    for (index, prefix) in addresses.iter().filter(|(index, _)| foreign(index)) {
        snapshot.taken.insert(*prefix);
        if !loopback(index) && narrow(*prefix) {
            snapshot.on_link.insert(*prefix);
        }
    }
    for route in routes.iter().filter(|route| route.hops.is_empty() || route.hops.iter().any(foreign)) {
        if route.to.length() <= SPLIT {
            snapshot
                .uplinks
                .extend(route.hops.iter().filter(|hop| foreign(hop)).filter_map(|hop| uplink(links, route, *hop)));
            continue;
        }
        if group(route.to) {
            continue;
        }
        snapshot.taken.insert(route.to);
        if route.on_link && !route.hops.iter().all(loopback) && narrow(route.to) {
            snapshot.on_link.insert(route.to);
        }
    }
    snapshot.uplinks.sort_by_key(|uplink| (uplink.index, uplink.mtu));
    snapshot.uplinks.dedup_by_key(|uplink| uplink.index);
    snapshot
}

fn uplink(links: &[Link], route: &Route, hop: u32) -> Option<Uplink> {
    let link = links.iter().find(|link| link.index == hop && link.up && link.name != "lo")?;
    let mtu = route.mtu.filter(|mtu| *mtu != 0).map_or(link.mtu, |mtu| mtu.min(link.mtu));
    Some(Uplink { name: link.name.clone(), index: hop, mtu })
}

fn narrow(prefix: Prefix) -> bool {
    prefix.length() >= if prefix.is_v4() { WIDEST.0 } else { WIDEST.1 }
}

/// Multicast is on every link and nobody's subnet.
fn group(prefix: Prefix) -> bool {
    match prefix.address() {
        IpAddr::V4(first) => first.is_multicast(),
        IpAddr::V6(first) => first.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, index: u32, mtu: u32) -> Link {
        Link {
            name: name.to_owned(),
            index,
            kind: None,
            master: None,
            port_of: None,
            mac: None,
            mtu,
            up: true,
            isolated: None,
            label: None,
            traffic: link::Traffic::default(),
        }
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn route(to: &str, hop: u32, on_link: bool) -> Route {
        Route { to: prefix(to), hops: vec![hop], on_link, mtu: None }
    }

    /// lo is 1, eth0 2 (1500), wg0 3 (1420), and our bridge 9.
    fn survey_of(addresses: &[(u32, &str)], routes: &[Route]) -> Snapshot {
        let links = [link("lo", 1, 65536), link("eth0", 2, 1500), link("wg0", 3, 1420), link("lazaret0", 9, 1500)];
        let addresses: Vec<_> = addresses.iter().map(|(index, text)| (*index, prefix(text))).collect();
        survey(&Facts { links: &links, ours: &HashSet::from([9]), addresses: &addresses, routes })
    }

    fn texts(prefixes: &BTreeSet<Prefix>) -> Vec<String> {
        prefixes.iter().map(Prefix::to_string).collect()
    }

    #[test]
    fn a_lan_is_what_an_interface_reaches_without_a_router() {
        let snapshot = survey_of(
            &[(1, "127.0.0.0/8"), (2, "192.168.1.0/24"), (9, "10.90.0.0/20")],
            &[
                route("0.0.0.0/0", 2, false),
                route("10.8.0.0/16", 3, true),
                route("10.99.0.0/16", 2, false),
                route("10.90.0.0/20", 9, true),
                route("ff00::/8", 2, true),
            ],
        );
        assert_eq!(texts(&snapshot.on_link), ["10.8.0.0/16", "192.168.1.0/24"]);
        assert_eq!(texts(&snapshot.taken), ["10.8.0.0/16", "10.99.0.0/16", "127.0.0.0/8", "192.168.1.0/24"]);
    }

    /// A WireGuard tunnel that takes everything has a default route, or its halves, without a router.
    #[test]
    fn the_internet_through_a_tunnel_is_no_lan() {
        for split in [vec!["0.0.0.0/0"], vec!["0.0.0.0/1", "128.0.0.0/1"], vec!["2000::/3", "::/0"]] {
            let routes: Vec<Route> = split.iter().map(|to| route(to, 3, true)).collect();
            let snapshot = survey_of(&[], &routes);
            assert!(snapshot.on_link.is_empty() && snapshot.taken.is_empty(), "{split:?}");
            assert_eq!(snapshot.uplink_mtu(), Some(1420));
        }
    }

    #[test]
    fn the_mtu_fits_every_uplink() {
        let both = [route("0.0.0.0/0", 2, false), route("0.0.0.0/0", 3, true)];
        assert_eq!(survey_of(&[], &both).uplink_mtu(), Some(1420));
        let narrow = Route { mtu: Some(1300), ..route("::/0", 2, false) };
        assert_eq!(survey_of(&[], &[narrow]).uplink_mtu(), Some(1300));
        let tiny = Route { mtu: Some(600), ..route("0.0.0.0/0", 2, false) };
        assert_eq!(survey_of(&[], &[tiny]).uplink_mtu(), Some(1280));
        assert_eq!(survey_of(&[], &[route("10.0.0.0/8", 2, false)]).uplink_mtu(), None);
    }

    #[test]
    fn a_route_to_nowhere_takes_its_subnet_all_the_same() {
        let nowhere = Route { to: prefix("10.90.0.0/16"), hops: Vec::new(), on_link: false, mtu: None };
        assert_eq!(texts(&survey_of(&[], &[nowhere]).taken), ["10.90.0.0/16"]);
    }
}
