//! A container's port of a bridge: a veth, one end here, the other born in the container.

use std::os::fd::BorrowedFd;

use lazaret_base::{Error, Kind, Result, error};
use lazaret_config::Mac;
use rustix::io::Errno;

use super::message::{self, LINK_HEADER, Veth, ifla};
use super::query::{self, Link};
use super::{Inside, Neighbour, abandon, set_up_inside, settle, settle_inside};
use crate::netlink::{Message, Socket};

/// A container on a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// The host's end, as [`veth_name`](crate::subnet::veth_name) makes it.
    pub name: String,
    /// The bridge; it must be there.
    pub bridge: String,
    /// The container's hardware address.
    pub mac: Mac,
    /// What the port may.
    pub kind: PortKind,
    /// The container's end.
    pub inside: Inside,
    /// Whose it is, for `ip link`.
    pub label: String,
}

/// What a port may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// On our bridge: it hears and reaches the host alone, under its own MAC alone.
    Isolated {
        /// The hardware address of the host's end, as [`host_mac`](crate::subnet::host_mac) makes it.
        host_mac: Mac,
    },
    /// On a bridge of the user's: a port like any other.
    Plain,
}

/// Connects a container: the link is up, addressed and routed, and its port guarded, when this returns.
///
/// The port is set up only after it was read back that it is isolated. Nothing is left on failure.
/// `netns` is the container's network namespace. About 0.4 ms, however many ports the bridge has.
pub fn attach(host: &mut Socket, spec: &PortSpec, netns: BorrowedFd<'_>) -> Result<()> {
    let bridge = bridge_of(host, spec)?;
    let host_mac = match spec.kind {
        PortKind::Isolated { host_mac } => Some(host_mac),
        PortKind::Plain => None,
    };
    let veth = Veth {
        name: &spec.name,
        mac: host_mac,
        bridge: bridge.index,
        inside: &Inside { mtu: spec.inside.mtu.or(Some(bridge.mtu)), ..spec.inside.clone() },
        inside_mac: spec.mac,
        netns,
    };
    host.ask(message::create_veth(&veth)?).map_err(advise)?;
    let done = connect(host, spec, &bridge, netns);
    if done.is_err() {
        abandon(host, &removal(spec, Some(bridge.index))?);
    }
    done
}

/// Disconnects containers: their links, and what the bridges knew about them. May run twice, and when a link has gone
/// with its namespace.
///
/// Some 10 to 20 ms if a link is there, while the kernel waits for every processor to let go of it
/// (`synchronize_net`); some microseconds if they went with their namespaces. It waits for all of a group together, so
/// many take hardly longer than one.
pub fn detach(host: &mut Socket, specs: &[PortSpec]) -> Result<()> {
    if specs.is_empty() {
        return Ok(());
    }
    let mut messages = Vec::new();
    for spec in specs {
        let bridge = query::find(host, &spec.bridge)?.map(|bridge| bridge.index);
        messages.extend(forgotten_neighbours(spec, bridge));
    }
    match specs {
        [one] => messages.push(message::delete_link(&one.name)?.tolerating(&[Errno::NODEV])),
        many => {
            for spec in many {
                messages.push(message::join_group(&spec.name, leaving_group())?.tolerating(&[Errno::NODEV]));
            }
            messages.push(message::delete_group(leaving_group()).tolerating(&[Errno::NODEV]));
        }
    }
    messages.chunks(AT_ONCE).try_for_each(|some| host.send(some).map(drop))
}

/// How many requests go in one datagram: their acknowledgements must fit the socket.
const AT_ONCE: usize = 64;

/// A group of links that nobody else has: it is named after this process.
fn leaving_group() -> u32 {
    0x4c00_0000 | rustix::process::getpid().as_raw_nonzero().get().cast_unsigned()
}

fn bridge_of(host: &mut Socket, spec: &PortSpec) -> Result<Link> {
    let bridge = query::find(host, &spec.bridge)?.ok_or_else(|| {
        error(format!("there is no bridge `{}`", spec.bridge))
            .hint("make it, or choose another `network.mode`")
            .kind(Kind::NotFound)
    })?;
    match bridge.kind.as_deref() {
        Some("bridge") => Ok(bridge),
        other => Err(error(format!("`{}` is not a bridge but {}", spec.bridge, other.unwrap_or("an interface")))
            .hint("for an interface of the host's, `macvlan:` or `ipvlan:` are the modes")
            .kind(Kind::Invalid)),
    }
}

/// Everything behind the making of the veth.
fn connect(host: &mut Socket, spec: &PortSpec, bridge: &Link, netns: BorrowedFd<'_>) -> Result<()> {
    let port = match spec.kind {
        PortKind::Isolated { .. } => guard(host, spec)?,
        PortKind::Plain => super::index_of(host, &spec.name)?,
    };
    let mut inside = Socket::route_in(netns)?;
    // The host's end first: the container's has a carrier, and its addresses are usable, when it is up.
    host.send(&host_side(spec, port, bridge.index))?;
    set_up_inside(&mut inside, &spec.inside, Some(spec.mac))?;
    // A carrier comes up in the kernel's own time (net/core/link_watch.c): first the port's, then that of
    // a bridge that had no other port. Until then both drop what they should send, and who asked for a
    // neighbour asks again after a second.
    settle::wait(|| Socket::subscribed(settle::LINK_EVENTS), || forwards(host, spec))?;
    settle_inside(&mut inside, &spec.inside, netns)
}

/// Whether the port is through with coming up. One that has to listen first, on a user's bridge with a
/// spanning tree, is through: that takes half a minute.
fn forwards(host: &mut Socket, spec: &PortSpec) -> Result<bool> {
    const DISABLED: u8 = 0;
    const FORWARDING: u8 = 3;
    const OPERATIONAL: u8 = 6;
    let answers = host.send(&[message::find(&spec.name)?, message::find(&spec.bridge)?])?;
    let [port, bridge] = answers.as_slice() else { return Ok(true) };
    let state = port.attributes(LINK_HEADER).inside(ifla::LINKINFO).inside(ifla::SLAVE_DATA).u8(ifla::PORT_STATE);
    let operational = bridge.attributes(LINK_HEADER).u8(ifla::OPERSTATE) == Some(OPERATIONAL);
    Ok(match state {
        Some(DISABLED) => false,
        Some(FORWARDING) => operational,
        _ => true,
    })
}

/// Guards the port and reads back that it is guarded; its index.
fn guard(host: &mut Socket, spec: &PortSpec) -> Result<u32> {
    let answers = host.send(&[message::guard_port(&spec.name)?, message::find(&spec.name)?])?;
    let port = answers.iter().find_map(query::link);
    match port {
        Some(port) if port.isolated == Some(true) => Ok(port.index),
        _ => Err(error(format!("the kernel did not isolate the port `{}` of the bridge", spec.name))
            .hint("isolated bridge ports need Linux 4.18")
            .kind(Kind::Missing)),
    }
}

/// The host's end of the link, and what the bridge has to know about the container.
fn host_side(spec: &PortSpec, port: u32, bridge: u32) -> Vec<Message> {
    let mut messages = Vec::new();
    // A port has no business with IP of its own: a link-local address there would only be announced.
    messages.push(message::no_link_local(port, &spec.name));
    if matches!(spec.kind, PortKind::Isolated { .. }) {
        messages.push(message::add_forwarding(port, spec.mac));
        messages.extend(neighbours(spec).map(|neighbour| message::add_neighbour(bridge, &neighbour)));
    }
    messages.extend(message::label(&spec.name, &spec.label));
    messages.push(message::up_index(port, &spec.name));
    messages
}

/// What takes the link and its neighbours away, each content if it is gone.
fn removal(spec: &PortSpec, bridge: Option<u32>) -> Result<Vec<Message>> {
    let mut messages = forgotten_neighbours(spec, bridge);
    messages.push(message::delete_link(&spec.name)?.tolerating(&[Errno::NODEV]));
    Ok(messages)
}

fn forgotten_neighbours(spec: &PortSpec, bridge: Option<u32>) -> Vec<Message> {
    match (bridge, spec.kind) {
        (Some(bridge), PortKind::Isolated { .. }) => {
            neighbours(spec).map(|neighbour| message::delete_neighbour(bridge, &neighbour)).collect()
        }
        _ => Vec::new(),
    }
}

/// The container's addresses as the host knows them: never asked for, so never answered by another.
fn neighbours(spec: &PortSpec) -> impl Iterator<Item = Neighbour> {
    let link_local = std::iter::once(spec.mac.link_local().into());
    // Without IPv6 there is no table to put it into.
    let link_local = link_local.filter(|_| spec.inside.addresses.iter().any(|address| address.ip.is_ipv6()));
    let addresses = spec.inside.addresses.iter().map(|address| address.ip);
    addresses.chain(link_local).map(|address| Neighbour { address, mac: spec.mac })
}

/// What to do about a veth that could not be made.
fn advise(e: Error) -> Error {
    match e.errno() {
        Some(Errno::OPNOTSUPP) => e.hint("the kernel module `veth` is needed: `modprobe veth`").kind(Kind::Missing),
        // `find_portno`, net/bridge/br_if.c.
        Some(Errno::XFULL) => e.hint("a bridge has room for 1023 containers"),
        Some(Errno::EXIST) => e.kind(Kind::Exists),
        _ => e,
    }
}
