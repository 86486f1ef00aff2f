//! A view, indexed: who is asking, what does a name mean, which addresses are the LAN's.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use super::view::{Host, Order, Prefix, Settings, View};
use crate::dns::Name;

/// A [`View`] made ready for lookups. Values only; it is built anew when the view changes.
pub struct Directory {
    view: View,
    hosts: Vec<Known>,
    by_name: HashMap<Box<[u8]>, Target>,
    by_address: HashMap<IpAddr, usize>,
    by_mac: HashMap<[u8; 6], usize>,
    /// The zone's name, as on the wire.
    pub domain: Name,
    /// The name of the gateway in it.
    pub gateway: Name,
    upstreams: Rc<[SocketAddr]>,
}

/// What of a host is looked up while answering.
struct Known {
    /// `NAME.DOMAIN`, the answer to a reverse question.
    full_name: Option<Name>,
    sees: HashSet<usize>,
    lan_names: HashSet<Box<[u8]>>,
    /// The first address of each family.
    found: HashMap<Box<[u8]>, Pair>,
    upstreams: Rc<[SocketAddr]>,
}

/// Addresses of one machine.
type Pair = (Option<Ipv4Addr>, Option<Ipv6Addr>);

/// Who asks, and therefore what is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The host itself: sees all.
    Machine,
    /// The container at this place of the directory.
    Host(usize),
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A container.
    Host(usize),
    /// The bridge's own addresses, by the name that everybody sees.
    Gateway,
    /// The same, by the name that only those see who may reach the host.
    Machine,
}

/// Whose an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// One of ours, with its full name.
    Named(&'a Name, Target),
    /// It lies in our subnets, and nobody has it.
    Nobody,
    /// It is none of ours.
    Foreign,
}

/// Addresses that are of no business to a container without `lan`: special by RFC 6890 and its successors.
const PRIVATE: &[(IpAddr, u8)] = &[
    (v4(0, 0, 0, 0), 8),
    (v4(10, 0, 0, 0), 8),
    (v4(100, 64, 0, 0), 10),
    (v4(127, 0, 0, 0), 8),
    (v4(169, 254, 0, 0), 16),
    (v4(172, 16, 0, 0), 12),
    (v4(192, 168, 0, 0), 16),
    (v4(198, 18, 0, 0), 15),
    (v4(224, 0, 0, 0), 3),
    // `::`, `::1` and the obsolete IPv4-compatible addresses.
    (v6(0, 0), 96),
    (v6(0xfc00, 0), 7),
    (v6(0xfe80, 0), 10),
    (v6(0xfec0, 0), 10),
    (v6(0xff00, 0), 8),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(a: u16, b: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0))
}

impl Directory {
    /// Indexes a view. Of two hosts with one name, address or MAC, the later one counts; a name that DNS cannot
    /// spell is served by DHCP all the same.
    pub fn new(view: View) -> Self {
        let domain = Name::from_text(&view.settings.domain).unwrap_or_default();
        let gateway = Name::from_text("gateway").unwrap_or_default().below(&domain).unwrap_or_default();
        let own = [Some(IpAddr::V4(view.settings.gateway4)), view.settings.gateway6.map(IpAddr::V6)];
        let foreign = |servers: &[SocketAddr]| -> Rc<[SocketAddr]> {
            servers.iter().copied().filter(|server| !own.contains(&Some(server.ip()))).collect()
        };
        let upstreams = foreign(&view.settings.upstreams);

        let mut by_name = HashMap::new();
        let mut enter = |name: &str, target| -> Option<Name> {
            let plain = Name::from_text(name)?;
            let full = plain.below(&domain)?;
            by_name.insert(plain.bytes().into(), target);
            by_name.insert(full.bytes().into(), target);
            Some(full)
        };
        // First, so that a container of that name wins.
        enter("gateway", Target::Gateway);
        enter("host", Target::Machine);
        let full_names: Vec<Option<Name>> =
            view.hosts.iter().enumerate().map(|(i, host)| enter(&host.name, Target::Host(i))).collect();

        let place = |name: &String| match by_name.get(Name::from_text(name)?.bytes()) {
            Some(Target::Host(i)) => Some(*i),
            _ => None,
        };
        let mut hosts = Vec::with_capacity(view.hosts.len());
        for (host, full_name) in view.hosts.iter().zip(full_names) {
            let spelled = |name: &String| Some(Name::from_text(name)?.bytes().into());
            hosts.push(Known {
                full_name,
                sees: host.sees.iter().filter_map(place).collect(),
                lan_names: host.lan_names.iter().filter_map(spelled).collect(),
                found: host.found.iter().filter_map(|(name, all)| Some((spelled(name)?, of_each(all)))).collect(),
                upstreams: if host.upstreams.is_empty() { upstreams.clone() } else { foreign(&host.upstreams) },
            });
        }

        let mut by_address = HashMap::new();
        let mut by_mac = HashMap::new();
        for (i, host) in view.hosts.iter().enumerate() {
            by_mac.insert(host.mac, i);
            by_address.insert(IpAddr::V6(link_local(host.mac)), i);
            by_address.extend(host.address4.map(|address| (IpAddr::V4(address), i)));
            by_address.extend(host.address6.map(|address| (IpAddr::V6(address), i)));
        }
        Directory { view, hosts, by_name, by_address, by_mac, domain, gateway, upstreams }
    }

    /// The directory after an order.
    pub fn after(self, order: Order) -> Self {
        let mut view = self.view;
        match order {
            Order::View(whole) => view = whole,
            Order::Settings(settings) => view.settings = settings,
            Order::Gone(name) => view.hosts.retain(|host| !host.name.eq_ignore_ascii_case(&name)),
            Order::Host(host) => match view.hosts.iter().position(|old| old.name.eq_ignore_ascii_case(&host.name)) {
                Some(i) => view.hosts[i] = host,
                None => view.hosts.push(host),
            },
            Order::Resolve(_) => {}
        }
        Directory::new(view)
    }

    /// What holds for everybody.
    pub fn settings(&self) -> &Settings {
        &self.view.settings
    }

    /// The container at that place.
    pub fn host(&self, i: usize) -> &Host {
        &self.view.hosts[i]
    }

    /// Who asks from this address; none for strangers, whom the firewall does not let through. The kernel takes no
    /// packet that claims an address of the host's own from outside, nor does the bridge from a container. Which one
    /// the host takes is its choice: a resolver that asks by way of a link (systemd-resolved) may have any.
    pub fn asker(&self, from: IpAddr) -> Option<Asker> {
        if self.is_gateway(from) || self.settings().own.contains(&from) {
            return Some(Asker::Machine);
        }
        self.at_address(from).map(Asker::Host)
    }

    fn is_gateway(&self, address: IpAddr) -> bool {
        let settings = self.settings();
        address == IpAddr::V4(settings.gateway4) || Some(address) == settings.gateway6.map(IpAddr::V6)
    }

    /// Which container has this IPv4, IPv6 or link-local address.
    pub fn at_address(&self, address: IpAddr) -> Option<usize> {
        self.by_address.get(&address).copied()
    }

    /// Who has this station address.
    pub fn at_mac(&self, mac: [u8; 6]) -> Option<usize> {
        self.by_mac.get(&mac).copied()
    }

    /// What a name means, plain or within the domain, whoever asks.
    pub fn named(&self, name: &Name) -> Option<Target> {
        self.by_name.get(name.bytes()).copied()
    }

    /// Whether the asker may know of the target at all.
    pub fn visible(&self, asker: Asker, target: Target) -> bool {
        match (asker, target) {
            (Asker::Machine, _) | (_, Target::Gateway) => true,
            (Asker::Host(i), Target::Machine) => self.host(i).sees_host,
            (Asker::Host(i), Target::Host(j)) => i == j || self.hosts[i].sees.contains(&j),
        }
    }

    /// The addresses of a target.
    pub fn addresses(&self, target: Target) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        match target {
            Target::Host(i) => (self.host(i).address4, self.host(i).address6),
            Target::Gateway | Target::Machine => (Some(self.view.settings.gateway4), self.view.settings.gateway6),
        }
    }

    /// Whose an address is.
    pub fn owner(&self, address: IpAddr) -> Owner<'_> {
        let settings = &self.view.settings;
        if self.is_gateway(address) {
            return Owner::Named(&self.gateway, Target::Gateway);
        }
        if let Some(i) = self.at_address(address) {
            return self.hosts[i].full_name.as_ref().map_or(Owner::Nobody, |name| Owner::Named(name, Target::Host(i)));
        }
        let ours4 = Prefix { address: IpAddr::V4(settings.gateway4), length: settings.prefix4 };
        let ours6 = settings.gateway6.map(|gateway| Prefix { address: IpAddr::V6(gateway), length: settings.prefix6 });
        let ours = ours4.contains(address) || ours6.is_some_and(|prefix| prefix.contains(address));
        if ours { Owner::Nobody } else { Owner::Foreign }
    }

    /// Whether an address lies in the LAN as containers without `lan` must not see it, in whatever disguise.
    pub fn is_lan(&self, address: IpAddr) -> bool {
        let inside = |address: IpAddr| {
            PRIVATE.iter().any(|&(range, length)| Prefix { address: range, length }.contains(address))
                || self.view.settings.lan.iter().any(|prefix| prefix.contains(address))
        };
        inside(address) || embedded(address).is_some_and(|v4| inside(IpAddr::V4(v4)))
    }

    /// Whether the asker may ask for this name outside.
    pub fn may_ask(&self, asker: Asker, name: &Name) -> bool {
        match asker {
            Asker::Machine => true,
            Asker::Host(i) => self.host(i).internet || self.allows_name(asker, name),
        }
    }

    /// Whether the asker may have answers that point into the LAN, for any name.
    pub fn has_lan(&self, asker: Asker) -> bool {
        match asker {
            Asker::Machine => true,
            Asker::Host(i) => self.host(i).lan,
        }
    }

    /// Whether the asker's policy names this very name.
    pub fn allows_name(&self, asker: Asker, name: &Name) -> bool {
        match asker {
            Asker::Machine => false,
            Asker::Host(i) => self.hosts[i].lan_names.contains(name.bytes()),
        }
    }

    /// What was found in the host's own networks under a name that the asker's policy names.
    pub fn found(&self, asker: Asker, name: &Name) -> Option<Pair> {
        match asker {
            Asker::Machine => None,
            Asker::Host(i) => self.hosts[i].found.get(name.bytes()).copied(),
        }
    }

    /// The name servers that are asked on the asker's behalf.
    pub fn upstreams(&self, asker: Asker) -> &Rc<[SocketAddr]> {
        match asker {
            Asker::Machine => &self.upstreams,
            Asker::Host(i) => &self.hosts[i].upstreams,
        }
    }
}

/// The first address of each family.
fn of_each(addresses: &[IpAddr]) -> Pair {
    let v4 = |address: &IpAddr| if let IpAddr::V4(v4) = address { Some(*v4) } else { None };
    let v6 = |address: &IpAddr| if let IpAddr::V6(v6) = address { Some(*v6) } else { None };
    (addresses.iter().find_map(v4), addresses.iter().find_map(v6))
}

/// The link-local address that a kernel makes of a station address (modified EUI-64, RFC 4291 appendix A).
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

/// The IPv4 address within an IPv6 one: IPv4-mapped, NAT64 (RFC 6052), 6to4.
fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else { return None };
    let o = v6.octets();
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(Ipv4Addr::new(o[12], o[13], o[14], o[15])),
        [0x2002, ..] => Some(Ipv4Addr::new(o[2], o[3], o[4], o[5])),
        _ => None,
    }
}
