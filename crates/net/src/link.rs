//! The links of containers: the bridge, its ports, interfaces on a parent, and interfaces lent to a container.
//!
//! Each function here is whole: it returns when the link is up, addressed and guarded, or it has taken
//! back what it made. Nothing here decides which addresses or names there are.

mod bridge;
mod message;
mod parented;
mod phys;
mod port;
mod query;
pub(crate) mod route;
mod settle;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use lazaret_base::{Result, error};
use lazaret_config::{Mac, Prefix};
use rustix::io::Errno;

pub use bridge::{BridgeSpec, Ensured, ensure_bridge};
pub use parented::{MacvlanMode, ParentedKind, ParentedSpec, attach_parented};
pub use phys::{Lent, lend, reclaim};
pub use port::{PortKind, PortSpec, attach, detach};
pub use query::{Count, Link, Traffic, find, links, ports};

use crate::netlink::{self, Message, Socket};
use crate::subnet::HostAddress;
pub(crate) use message::{ip, octets};
pub(crate) use query::{address_event, all_addresses, event, links_without_counters};

use message::ANY_LINK;

/// What a container's interface is, seen from inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// Its name: `eth0`.
    pub name: String,
    /// The largest packet; `None` leaves it to the kernel (1500, or the parent's).
    pub mtu: Option<u32>,
    /// Usable when the function that makes the link returns: without duplicate address detection, since
    /// whoever gives them out knows that they are unique.
    pub addresses: Vec<HostAddress>,
    /// In this order, behind the addresses.
    pub routes: Vec<Route>,
    /// Neighbours that need not be asked for.
    pub neighbours: Vec<Neighbour>,
}

/// A route of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: Prefix,
    /// Through whom; it is taken to be on the link, whatever the addresses say. `None`: `to` itself is.
    pub via: Option<IpAddr>,
}

impl Route {
    /// The route to everywhere else, of the gateway's own family.
    pub fn default_via(gateway: IpAddr) -> Route {
        let everywhere = match gateway {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Route { to: Prefix::new(everywhere, 0).expect("every address has no bits"), via: Some(gateway) }
    }
}

/// Who has an address, as a permanent entry: nobody can claim it by ARP or neighbour discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The address.
    pub address: IpAddr,
    /// Who has it.
    pub mac: Mac,
}

/// Takes a link away; `false` if there was none of this name. Of a veth, both ends go.
pub fn delete(host: &mut Socket, name: &str) -> Result<bool> {
    match host.ask(message::delete_link(name)?) {
        Ok(_) => Ok(true),
        Err(e) if e.errno() == Some(Errno::NODEV) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Sets the loopback of a namespace up: the whole network of a container that has none.
pub fn loopback_up(netns: BorrowedFd<'_>) -> Result<()> {
    Socket::route_in(netns)?.ask(message::up("lo")?).map(drop)
}

/// Sets the loopback and the container's interface up, with everything that it has.
///
/// Two exchanges: the first learns the index of the interface, which addresses and routes need.
fn set_up_inside(socket: &mut Socket, inside: &Inside, mac: Option<Mac>) -> Result<()> {
    let answers = socket.send(&[message::up("lo")?, message::find(&inside.name)?])?;
    let index = query::index_of(&answers).ok_or_else(|| error(format!("`{}` has no index", inside.name)))?;
    let mut messages = Vec::new();
    // The kernel would make the same link-local address itself, and try it on the link for a second
    // before a router could be asked with it.
    let link_local = mac.filter(|_| inside.addresses.iter().any(|address| address.ip.is_ipv6()));
    if link_local.is_some() {
        messages.push(message::no_link_local(index, &inside.name));
    }
    messages.push(message::up_index(index, &inside.name));
    let link_local = link_local.map(|mac| HostAddress { ip: mac.link_local().into(), length: 64 });
    messages.extend(link_local.iter().chain(&inside.addresses).map(|address| message::add_address(index, *address)));
    messages.extend(inside.routes.iter().map(|route| message::add_route(index, route)));
    messages.extend(inside.neighbours.iter().map(|neighbour| message::add_neighbour(index, neighbour)));
    if link_local.is_some() {
        // What the container does with its link later is its own: set down and up, it is to have the address again,
        // by which it hears routers.
        messages.push(message::link_local_from_mac(index, &inside.name));
    }
    socket.send(&messages).map(drop)
}

/// Waits until the container's addresses are taken in.
fn settle_inside(socket: &mut Socket, inside: &Inside, netns: BorrowedFd<'_>) -> Result<()> {
    let listen = || netlink::inside(netns, || Socket::subscribed(settle::ROUTE6_EVENTS))?;
    settle::addresses(socket, listen, inside.addresses.iter().copied())
}

/// The index of a link that must be there.
fn index_of(socket: &mut Socket, name: &str) -> Result<u32> {
    let answers = socket.send(&[message::find(name)?])?;
    query::index_of(&answers).filter(|index| *index != ANY_LINK).ok_or_else(|| error(format!("`{name}` has no index")))
}

/// Undoes as far as it goes: a link that is gone already is as good, and a refusal would only hide the
/// error that led here.
fn abandon(socket: &mut Socket, messages: &[Message]) {
    let _ = socket.send(messages);
}
