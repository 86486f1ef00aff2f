//! Who may reach what: the one place where the configuration of all containers becomes decisions.
//!
//! Nothing here knows the firewall. [`crate::ruleset`] writes the decisions as rules, [`crate::check`] as sentences.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lazaret_config::{Destination, DomainName, Interface, Mac, Name, Network, Prefix, Target};

/// All that a decision depends on: the installation, the host's networks, and the containers that are attached.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// The installation's own network.
    pub site: Site,
    /// Every prefix that is on-link on an interface of the host, our bridge aside.
    pub on_link: Vec<OnLink>,
    /// The host's own addresses. Only [`crate::check`] asks; the rules ask the kernel's routing table.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Where the host forwards nothing, as it did not before it did for containers.
    pub unrouted: Unrouted,
    /// What the names in `allow` and `deny` resolve to at the moment.
    pub names: BTreeMap<DomainName, BTreeSet<IpAddr>>,
    /// The attached containers of mode `internet`.
    pub members: BTreeMap<Name, Member>,
    /// Pairs that a test has parted, see [`World::part`].
    pub partitions: BTreeSet<(Name, Name)>,
    /// What is lost on the way, for tests, by the container that it was asked for.
    pub losses: BTreeMap<Name, Vec<Loss>>,
}

/// The network of one installation.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Name of our tables in the families `inet` and `bridge`.
    pub table: TableName,
    /// The bridge that the containers are ports of.
    pub bridge: Interface,
    /// The containers' IPv4 addresses.
    pub subnet: Prefix,
    /// The bridge's IPv4 address.
    pub gateway: Ipv4Addr,
    /// The containers' IPv6 addresses.
    pub subnet6: Prefix,
    /// The bridge's IPv6 address; `fe80::1` is another one.
    pub gateway6: Ipv6Addr,
    /// Whether IPv6 leaves under the host's address. Not for a prefix that was delegated to us.
    pub translate6: bool,
}

/// The bridge's link-local address, which is the containers' default router.
pub const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The name of a table: a letter, then letters, digits and `_`, 32 bytes at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableName(String);

impl TableName {
    /// `None` if the text is not such a name.
    pub fn new(text: &str) -> Option<TableName> {
        let good = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let letter = text.starts_with(|c: char| c.is_ascii_alphabetic());
        (good && letter && text.len() <= 32).then(|| TableName(text.into()))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A prefix that the host reaches without a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnLink {
    /// The prefix.
    pub prefix: Prefix,
    /// The host's interface on that link, if it is known; only told, never decided on.
    pub interface: Option<Interface>,
}

/// Interfaces of the host between which nothing is forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unrouted {
    /// Whether that holds for IPv4.
    pub v4: bool,
    /// Whether that holds for IPv6.
    pub v6: bool,
    /// The interfaces, our bridge not among them.
    pub between: BTreeSet<Interface>,
}

/// One attached container.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Its name.
    pub name: Name,
    /// The host's end of its link, a port of the bridge.
    pub port: Interface,
    /// The hardware address inside.
    pub mac: Mac,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Its IPv6 address; the link-local one follows from the hardware address.
    pub address6: Ipv6Addr,
    /// What its configuration asks for.
    pub network: Network,
}

impl Member {
    /// Every address that it may send from.
    pub fn addresses(&self) -> [IpAddr; 3] {
        [self.address.into(), self.address6.into(), self.mac.link_local().into()]
    }
}

/// Packets lost at random between one container and others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// How many of 10000 packets, 1 to 10000, in each direction.
    pub share: u16,
    /// Only those to and from this container.
    pub to: Option<Name>,
}

/// Where an address is, seen from a container.
#[derive(Clone, Debug, PartialEq)]
pub enum Zone<'a> {
    /// Another container's, or an address of the containers' subnet that is free.
    Container(Option<&'a Member>),
    /// One of the host's.
    Host,
    /// Not in the Internet.
    Lan(Private<'a>),
    /// Everything else.
    Internet,
}

/// Why an address counts as LAN.
#[derive(Clone, Debug, PartialEq)]
pub enum Private<'a> {
    /// It is on-link on an interface of the host.
    OnLink(&'a OnLink),
    /// It is of a range that never is in the Internet, which these words name.
    Range(&'static str),
}

impl World {
    /// Where an address is.
    pub fn zone(&self, address: IpAddr) -> Zone<'_> {
        let Site { subnet, gateway, subnet6, gateway6, .. } = self.site;
        if self.host_addresses.contains(&address) || [gateway.into(), gateway6.into(), ROUTER.into()].contains(&address)
        {
            return Zone::Host;
        }
        let of = |member: &&Member| member.addresses().contains(&address);
        let member = self.members.values().find(of);
        if member.is_some() || subnet.contains(address) || subnet6.contains(address) {
            return Zone::Container(member);
        }
        let on_link = self.on_link.iter().filter(|on_link| counts(on_link) && on_link.prefix.contains(address));
        if let Some(on_link) = on_link.max_by_key(|on_link| on_link.prefix.length()) {
            return Zone::Lan(Private::OnLink(on_link));
        }
        match private().into_iter().find(|(prefix, _)| prefix.contains(address)) {
            Some((_, words)) => Zone::Lan(Private::Range(words)),
            None => Zone::Internet,
        }
    }

    /// The host's links as people think of them: without its own addresses, and without what is in another.
    pub fn links(&self) -> Vec<Prefix> {
        let own = |prefix: &Prefix| self.host_addresses.iter().any(|address| Prefix::host(*address) == *prefix);
        disjoint(self.on_link.iter().map(|one| one.prefix).filter(|prefix| !own(prefix)).collect())
    }

    /// Every prefix that counts as LAN: neither sorted nor without overlaps.
    pub fn lan(&self) -> Vec<Prefix> {
        let on_link = self.on_link.iter().filter(|on_link| counts(on_link)).map(|on_link| on_link.prefix);
        let direct: Vec<Prefix> = private().into_iter().map(|(prefix, _)| prefix).chain(on_link).collect();
        let translated = direct.iter().filter_map(|prefix| behind_nat64(*prefix)).collect();
        [direct, translated].concat()
    }

    /// The containers that one has named and that have named it.
    pub fn peers<'a>(&'a self, member: &'a Member) -> impl Iterator<Item = &'a Member> {
        let named = member.network.peers.iter().filter_map(|peer| self.members.get(peer));
        named.filter(|peer| peer.name != member.name && peer.network.peers.contains(&member.name))
    }

    /// Parts two containers: nothing passes between them, whatever their configuration says.
    pub fn part(&mut self, a: &Name, b: &Name) {
        self.partitions.insert(ordered(a, b));
    }

    /// Whether the two are parted.
    pub fn parted(&self, a: &Name, b: &Name) -> bool {
        self.partitions.contains(&ordered(a, b))
    }

    /// Undoes [`World::part`] for one container, with whomever.
    pub fn heal(&mut self, name: &Name) {
        self.partitions.retain(|(a, b)| a != name && b != name);
    }

    /// The prefixes that an entry of `allow` or `deny` means; for a name, those of its addresses.
    ///
    /// `None` for [`Target::Any`]; empty for a name that does not resolve.
    pub fn settled(&self, destination: &Destination) -> Option<Vec<Prefix>> {
        match &destination.target {
            Target::Any => None,
            Target::Prefix(prefix) => Some(vec![*prefix]),
            Target::Name(name) => {
                Some(self.names.get(name).into_iter().flatten().map(|address| Prefix::host(*address)).collect())
            }
        }
    }
}

/// The same addresses in prefixes none of which is in another. Prefixes cannot overlap otherwise.
pub fn disjoint(mut prefixes: Vec<Prefix>) -> Vec<Prefix> {
    prefixes.sort_by_key(|prefix| (prefix.is_v4(), prefix.length(), prefix.address()));
    let mut kept: Vec<Prefix> = Vec::new();
    for prefix in prefixes {
        if !kept.iter().any(|wider| wider.overlaps(prefix)) {
            kept.push(prefix);
        }
    }
    kept.sort_by_key(|prefix| prefix.address());
    kept
}

/// A pair in the one order it is kept in.
fn ordered(a: &Name, b: &Name) -> (Name, Name) {
    if a <= b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
}

/// Prefixes that span much of the address space are default routes in disguise (a VPN's 0.0.0.0/1, a line's
/// 0.0.0.0/0): they say nothing about who is near.
fn counts(on_link: &OnLink) -> bool {
    on_link.prefix.length() >= 4
}

/// What is never in the Internet, and how it is called.
///
/// RFC 6890 and its registry; 198.18.0.0/15 is left out, since VPN clients hand it out in place of public addresses.
const PRIVATE: [(IpAddr, u8, &str); 17] = [
    (v4(0, 0, 0, 0), 8, "this network"),
    (v4(10, 0, 0, 0), 8, "a private address"),
    (v4(100, 64, 0, 0), 10, "a carrier's private address"),
    (v4(127, 0, 0, 0), 8, "a loopback address"),
    (v4(169, 254, 0, 0), 16, "a link-local address"),
    (v4(172, 16, 0, 0), 12, "a private address"),
    (v4(192, 0, 0, 0), 24, "a protocol's own address"),
    (v4(192, 168, 0, 0), 16, "a private address"),
    (v4(224, 0, 0, 0), 4, "a multicast address"),
    (v4(240, 0, 0, 0), 4, "a broadcast or reserved address"),
    (v6(0, 0), 96, "a loopback or unspecified address"),
    (v6(0, 0xffff), 96, "an IPv4 address in disguise"),
    (v6(0x64_ff9b_0001, 0), 48, "a private address behind NAT64"),
    (v6(0xfc00_0000_0000, 0), 7, "a unique local address"),
    (v6(0xfe80_0000_0000, 0), 10, "a link-local address"),
    (v6(0xfec0_0000_0000, 0), 10, "a site-local address"),
    (v6(0xff00_0000_0000, 0), 8, "a multicast address"),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// The first 48 bits, and the 16 in front of the last 32.
const fn v6(first: u128, sixth: u128) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(first << 80 | sixth << 32))
}

fn private() -> Vec<(Prefix, &'static str)> {
    PRIVATE.iter().filter_map(|(ip, length, words)| Prefix::new(*ip, *length).map(|prefix| (prefix, *words))).collect()
}

/// The addresses through which a NAT64 (64:ff9b::/96, RFC 6052 section 2.1) would reach an IPv4 prefix.
fn behind_nat64(prefix: Prefix) -> Option<Prefix> {
    let IpAddr::V4(address) = prefix.address() else { return None };
    let mapped = Ipv6Addr::from_bits(0x64_ff9b << 96 | u128::from(address.to_bits()));
    Prefix::new(mapped.into(), 96 + prefix.length())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A site with `web` (peer of `db`), `db` (peer of `web`), and `alone`.
    pub fn world() -> World {
        let site = Site {
            table: TableName::new("lazaret").unwrap(),
            bridge: "lazaret0".parse().unwrap(),
            subnet: "10.90.0.0/20".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 90, 0, 1),
            subnet6: "fd12:3456:789a:1::/64".parse().unwrap(),
            gateway6: "fd12:3456:789a:1::1".parse().unwrap(),
            translate6: true,
        };
        let on_link = |prefix: &str, interface: &str| OnLink {
            prefix: prefix.parse().unwrap(),
            interface: Some(interface.parse().unwrap()),
        };
        let mut world = World {
            site,
            on_link: vec![
                on_link("192.168.1.0/24", "wlan0"),
                on_link("2001:db8:1::/64", "wlan0"),
                on_link("0.0.0.0/1", "tun0"),
            ],
            host_addresses: ["192.168.1.5".parse().unwrap()].into(),
            names: BTreeMap::new(),
            members: BTreeMap::new(),
            partitions: BTreeSet::new(),
            losses: BTreeMap::new(),
            unrouted: Unrouted::default(),
        };
        for (number, name) in ["web", "db", "alone"].into_iter().enumerate() {
            join(&mut world, name, number as u8 + 2);
        }
        member(&mut world, "web").network.peers = vec!["db".parse().unwrap(), "gone".parse().unwrap()];
        member(&mut world, "db").network.peers = vec!["web".parse().unwrap(), "alone".parse().unwrap()];
        world
    }

    /// Attaches a container whose addresses end in a number.
    pub fn join(world: &mut World, name: &str, number: u8) {
        let name: Name = name.parse().unwrap();
        let new = Member {
            name: name.clone(),
            port: format!("lz-{number:012x}").parse().unwrap(),
            mac: Mac::new([2, 0, 0, 0, 0, number]).unwrap(),
            address: Ipv4Addr::new(10, 90, 0, number),
            address6: Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, number.into()),
            network: Network::default(),
        };
        world.members.insert(name, new);
    }

    pub fn member<'a>(world: &'a mut World, name: &str) -> &'a mut Member {
        world.members.get_mut(name).unwrap()
    }

    fn zone(address: &str) -> String {
        let world = world();
        match world.zone(address.parse().unwrap()) {
            Zone::Container(Some(member)) => format!("container {}", member.name),
            Zone::Container(None) => "container".into(),
            Zone::Host => "host".into(),
            Zone::Lan(Private::OnLink(on_link)) => format!("lan {}", on_link.prefix),
            Zone::Lan(Private::Range(words)) => words.into(),
            Zone::Internet => "internet".into(),
        }
    }

    #[test]
    fn an_address_is_where_it_is_nearest() {
        for (address, expected) in [
            ("10.90.0.3", "container db"),
            ("10.90.5.5", "container"),
            ("10.90.0.1", "host"),
            ("192.168.1.5", "host"),
            ("192.168.1.20", "lan 192.168.1.0/24"),
            ("192.168.2.20", "a private address"),
            ("2001:db8:1::20", "lan 2001:db8:1::/64"),
            ("2001:db8:2::20", "internet"),
            ("8.8.8.8", "internet"),
            ("100.64.0.1", "a carrier's private address"),
            ("255.255.255.255", "a broadcast or reserved address"),
            ("ff02::1", "a multicast address"),
            ("fd00::1", "a unique local address"),
            ("fd12:3456:789a:1::1", "host"),
            ("fd12:3456:789a:1::7", "container"),
            ("::ffff:10.0.0.1", "an IPv4 address in disguise"),
            ("64:ff9b:1::1", "a private address behind NAT64"),
        ] {
            assert_eq!(zone(address), expected, "{address}");
        }
    }

    #[test]
    fn what_nat64_would_reach_in_the_lan_is_lan() {
        let lan = world().lan();
        let lan = |address: &str| lan.iter().any(|prefix| prefix.contains(address.parse().unwrap()));
        assert!(lan("64:ff9b::192.168.1.20") && lan("64:ff9b::10.0.0.1") && !lan("64:ff9b::8.8.8.8"));
        assert!(!lan("8.8.8.8"), "a default route in disguise makes nothing near");
    }

    #[test]
    fn a_link_is_told_once_and_the_hosts_own_addresses_are_none() {
        let mut world = world();
        let more = ["192.168.1.5/32", "192.168.1.128/25", "fe80::/64"];
        world.on_link.extend(more.map(|prefix| OnLink { prefix: prefix.parse().unwrap(), interface: None }));
        let links: Vec<String> = world.links().iter().map(Prefix::to_string).collect();
        assert_eq!(links, ["0.0.0.0/1", "192.168.1.0/24", "2001:db8:1::/64", "fe80::/64"]);
    }

    #[test]
    fn peers_are_those_where_both_say_so() {
        let world = world();
        let peers = |name: &str| world.peers(&world.members[name]).map(|peer| peer.name.as_str()).collect::<Vec<_>>();
        assert_eq!((peers("web"), peers("db"), peers("alone")), (vec!["db"], vec!["web"], vec![]));
    }
}
