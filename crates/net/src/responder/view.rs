//! What netd tells the responder, and what it hears back: the types of the control line.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// All that the responder knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// What holds for everybody.
    pub settings: Settings,
    /// The attached containers.
    pub hosts: Vec<Host>,
}

/// What holds for every container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The zone of the containers' names, without dots around it: `lazaret`.
    pub domain: String,
    /// The bridge's IPv4 address: router, name server and DHCP server.
    pub gateway4: Ipv4Addr,
    /// Length of the IPv4 subnet's prefix.
    pub prefix4: u8,
    /// The bridge's unique local address, where IPv6 is on.
    pub gateway6: Option<Ipv6Addr>,
    /// Length of the IPv6 subnet's prefix.
    pub prefix6: u8,
    /// The host's own addresses beside these: it may ask for names by any of them.
    pub own: Vec<IpAddr>,
    /// MTU in bytes, told by DHCP and by router advertisements.
    pub mtu: u16,
    /// How long an address is promised for, in seconds.
    pub lease_seconds: u32,
    /// The name servers that the host uses. The gateway's own addresses among them are skipped: they would be a loop.
    pub upstreams: Vec<SocketAddr>,
    /// The prefixes that are on-link on the host; the ranges that are private by definition need not be named.
    pub lan: Vec<Prefix>,
}

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// Any address of it.
    pub address: IpAddr,
    /// How many leading bits count.
    pub length: u8,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name; upper and lower case are the same.
    pub name: String,
    /// Its station address, which the firewall guarantees; its link-local address follows from it (RFC 4291 appendix
    /// A).
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub address4: Option<Ipv4Addr>,
    /// Its global (unique local) IPv6 address.
    pub address6: Option<Ipv6Addr>,
    /// Names of the containers that it may reach, besides itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sees: Vec<String>,
    /// Whether it may reach the host: `host.DOMAIN` resolves then.
    #[serde(default)]
    pub sees_host: bool,
    /// Whether upstream answers that point into the LAN are passed on to it.
    #[serde(default)]
    pub lan: bool,
    /// Whether it may ask for names outside. Without it, only `lan_names` are asked for.
    #[serde(default)]
    pub internet: bool,
    /// Names that its policy allows one by one: answers for them pass even if they point into the LAN.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lan_names: Vec<String>,
    /// What those of them are that no server is asked for, but the host's own networks (`NAME.local`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub found: BTreeMap<String, Vec<IpAddr>>,
    /// Name servers of its own; empty: those of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<SocketAddr>,
}

/// What netd says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// This is all there is.
    View(View),
    /// What holds for everybody has changed.
    Settings(Settings),
    /// A container was attached or has changed.
    Host(Host),
    /// The container of that name was detached.
    Gone(String),
    /// Asks for the addresses of a name; answered by [`Report::Resolved`].
    Resolve(String),
}

/// What the responder says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The first view is in force.
    Ready,
    /// What a name resolves to. Said after [`Order::Resolve`], and whenever a container is about to be told the
    /// addresses of one of its `lan_names`, so that the firewall can follow.
    Resolved {
        /// The name as it was given.
        name: String,
        /// Its addresses; none if nobody could tell.
        addresses: Vec<IpAddr>,
        /// How long they may be believed.
        seconds: u32,
    },
}

impl Prefix {
    /// Whether the address lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length.min(32))).unwrap_or(0);
                u32::from(ours) & mask == u32::from(theirs) & mask
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length.min(128))).unwrap_or(0);
                u128::from(ours) & mask == u128::from(theirs) & mask
            }
            _ => false,
        }
    }
}
