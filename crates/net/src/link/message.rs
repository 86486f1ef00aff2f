//! The rtnetlink requests for links, addresses, routes and neighbours: values in, bytes out (rtnetlink(7),
//! include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,if_bridge}.h).

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use lazaret_base::{Kind, Result, error};
use lazaret_config::{Mac, Prefix};
use rustix::io::Errno;

use super::{Inside, Neighbour, Route};
use crate::netlink::{CREATE, EXCLUSIVE, Message, REPLACE};
use crate::subnet::HostAddress;

/// An interface by whichever name the request has.
pub const ANY_LINK: u32 = 0;

/// Bytes of `struct ifinfomsg`.
pub const LINK_HEADER: usize = 16;
/// Bytes of `struct ifaddrmsg`.
pub const ADDRESS_HEADER: usize = 8;
/// Bytes of `struct rtmsg`.
pub const ROUTE_HEADER: usize = 12;

pub const NEWLINK: u16 = 16;
pub const DELLINK: u16 = 17;
pub const GETLINK: u16 = 18;
pub const NEWADDR: u16 = 20;
pub const DELADDR: u16 = 21;
pub const GETADDR: u16 = 22;
pub const NEWROUTE: u16 = 24;
pub const DELROUTE: u16 = 25;
pub const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;

/// Attributes of links (`IFLA_*`).
pub mod ifla {
    pub const ADDRESS: u16 = 1;
    pub const IFNAME: u16 = 3;
    pub const MTU: u16 = 4;
    pub const LINK: u16 = 5;
    pub const MASTER: u16 = 10;
    pub const OPERSTATE: u16 = 16;
    pub const LINKINFO: u16 = 18;
    pub const IFALIAS: u16 = 20;
    pub const STATS64: u16 = 23;
    pub const AF_SPEC: u16 = 26;
    pub const GROUP: u16 = 27;
    pub const NET_NS_FD: u16 = 28;
    pub const EXT_MASK: u16 = 29;
    pub const NUM_TX_QUEUES: u16 = 31;
    pub const NUM_RX_QUEUES: u16 = 32;
    pub const PERM_ADDRESS: u16 = 54;
    // Inside LINKINFO (`IFLA_INFO_*`).
    pub const KIND: u16 = 1;
    pub const DATA: u16 = 2;
    pub const SLAVE_KIND: u16 = 4;
    pub const SLAVE_DATA: u16 = 5;
    // Inside DATA of a bridge (`IFLA_BR_*`).
    pub const BR_FORWARD_DELAY: u16 = 1;
    pub const BR_STP_STATE: u16 = 5;
    pub const BR_MCAST_SNOOPING: u16 = 23;
    // Inside SLAVE_DATA of a bridge's port (`IFLA_BRPORT_*`).
    pub const PORT_STATE: u16 = 1;
    pub const PORT_HAIRPIN: u16 = 4;
    pub const PORT_GUARD: u16 = 5;
    pub const PORT_LEARNING: u16 = 8;
    pub const PORT_UNICAST_FLOOD: u16 = 9;
    pub const PORT_ISOLATED: u16 = 33;
    pub const PORT_LOCKED: u16 = 39;
    // Inside DATA of a veth, a macvlan, an ipvlan.
    pub const VETH_PEER: u16 = 1;
    pub const MACVLAN_MODE: u16 = 1;
    pub const IPVLAN_MODE: u16 = 1;
    // Inside AF_SPEC of IPv6 (`IFLA_INET6_*`).
    pub const INET6_ADDR_GEN_MODE: u16 = 8;
}

/// Attributes of addresses (`IFA_*`).
pub mod ifa {
    pub const ADDRESS: u16 = 1;
    pub const LOCAL: u16 = 2;
    pub const BROADCAST: u16 = 4;
    pub const FLAGS: u16 = 8;
}

/// Attributes of routes (`RTA_*`).
pub mod rta {
    pub const DST: u16 = 1;
    pub const OIF: u16 = 4;
    pub const GATEWAY: u16 = 5;
    pub const METRICS: u16 = 8;
    pub const MULTIPATH: u16 = 9;
    pub const VIA: u16 = 18;
    // Inside METRICS (`RTAX_*`).
    pub const MTU: u16 = 2;
}

/// Address families.
pub const INET: u8 = 2;
pub const BRIDGE: u8 = 7;
pub const INET6: u8 = 10;

/// `IFF_UP`.
pub const UP: u32 = 1;
/// `IN6_ADDR_GEN_MODE_NONE`.
const NO_LINK_LOCAL: u8 = 1;
/// `IFA_F_NODAD`.
const NODAD: u32 = 0x02;
/// `RTNH_F_ONLINK`: the gateway is on the link, whatever the addresses say.
const ONLINK: u32 = 4;
/// `RT_TABLE_MAIN`, `RTPROT_STATIC`, `RTN_UNICAST`, `RT_SCOPE_LINK`.
const MAIN: u8 = 254;
const STATIC: u8 = 4;
const UNICAST: u8 = 1;
const SCOPE_LINK: u8 = 253;
/// `NUD_PERMANENT`; in a bridge's table, `NUD_NOARP` is a static entry.
const PERMANENT: u16 = 0x80;
const NOARP: u16 = 0x40;
/// `NTF_MASTER`: the table of the bridge, not that of the port's driver.
const MASTER_TABLE: u8 = 0x04;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

/// `struct ifinfomsg` of an interface, by index or, if that is [`ANY_LINK`], by a name in the attributes.
pub fn link_header(index: u32, flags: u32, change: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// A name that the kernel takes: 1 to 15 bytes, without spaces and slashes (`dev_valid_name`).
///
/// Checked here because the kernel's own answer to a long one is a bare "numerical result out of range".
pub fn valid(name: &str) -> Result<&str> {
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
        return Err(error(format!("`{name}` is not a name of a network interface"))
            .hint("1 to 15 bytes, without spaces, slashes and colons")
            .kind(Kind::Invalid));
    }
    Ok(name)
}

/// Asks for one link.
pub fn find(name: &str) -> Result<Message> {
    let header = link_header(ANY_LINK, 0, 0);
    Ok(Message::new(GETLINK, 0, &header, format!("looking for the interface `{name}`"))
        .text(ifla::IFNAME, valid(name)?))
}

/// Takes a link away.
pub fn delete_link(name: &str) -> Result<Message> {
    let header = link_header(ANY_LINK, 0, 0);
    Ok(Message::new(DELLINK, 0, &header, format!("deleting the interface `{name}`")).text(ifla::IFNAME, valid(name)?))
}

/// Puts a link into a group of links.
pub fn join_group(name: &str, group: u32) -> Result<Message> {
    Ok(change(name, 0, format!("grouping the interface `{name}`"))?.u32(ifla::GROUP, group))
}

/// Takes all links of a group away, at the price of one (`rtnl_group_dellink`).
pub fn delete_group(group: u32) -> Message {
    Message::new(DELLINK, 0, &link_header(ANY_LINK, 0, 0), "deleting interfaces").u32(ifla::GROUP, group)
}

/// Changes a link that is there. RTM_NEWLINK, because RTM_SETLINK acknowledges the settings of a bridge's
/// port and ignores them (`rtnl_setlink` never looks at `IFLA_INFO_SLAVE_DATA`).
fn change(name: &str, flags: u32, doing: String) -> Result<Message> {
    Ok(Message::new(NEWLINK, 0, &link_header(ANY_LINK, flags, flags), doing).text(ifla::IFNAME, valid(name)?))
}

/// Sets a link up.
pub fn up(name: &str) -> Result<Message> {
    change(name, UP, format!("setting the interface `{name}` up"))
}

/// Sets a link up, by its index; `name` is for the error.
pub fn up_index(index: u32, name: &str) -> Message {
    Message::new(NEWLINK, 0, &link_header(index, UP, UP), format!("setting the interface `{name}` up"))
}

/// Keeps the kernel from making up link-local addresses. Success as well where there is no IPv6.
pub fn no_link_local(index: u32, name: &str) -> Message {
    let doing = format!("turning automatic link-local addresses of `{name}` off");
    link_local_made(NO_LINK_LOCAL, Message::new(NEWLINK, 0, &link_header(index, 0, 0), doing))
}

/// Has the kernel make the link-local address that follows from the MAC, whenever the link comes up from now on
/// (`IN6_ADDR_GEN_MODE_EUI64`). Success as well where there is no IPv6.
pub fn link_local_from_mac(index: u32, name: &str) -> Message {
    const FROM_MAC: u8 = 0;
    let doing = format!("turning automatic link-local addresses of `{name}` on");
    link_local_made(FROM_MAC, Message::new(NEWLINK, 0, &link_header(index, 0, 0), doing))
}

fn link_local_made(how: u8, message: Message) -> Message {
    message.nest(ifla::AF_SPEC, |m| m.nest(u16::from(INET6), |m| m.u8(ifla::INET6_ADDR_GEN_MODE, how))).tolerating(&[
        Errno::AFNOSUPPORT,
        Errno::OPNOTSUPP,
        Errno::INVAL,
    ])
}

/// Makes a bridge.
pub fn create_bridge(name: &str, mac: Mac, mtu: u32) -> Result<Message> {
    let doing = format!("making the bridge `{name}`");
    let message = Message::new(NEWLINK, CREATE | EXCLUSIVE, &link_header(ANY_LINK, 0, 0), doing);
    Ok(bridge_settings(message.text(ifla::IFNAME, valid(name)?), mac, mtu))
}

/// Gives a bridge that is there the settings of ours.
pub fn change_bridge(name: &str, mac: Mac, mtu: u32) -> Result<Message> {
    Ok(bridge_settings(change(name, 0, format!("setting the bridge `{name}`"))?, mac, mtu))
}

/// An explicit MAC stays whatever ports come and go, an explicit MTU too. No spanning tree, because there
/// is no second bridge behind a container; so no delay before a port forwards. No snooping: the ports
/// can't hear each other anyway, and a table of groups is one more thing to fill.
fn bridge_settings(message: Message, mac: Mac, mtu: u32) -> Message {
    message.bytes(ifla::ADDRESS, &mac.bytes()).u32(ifla::MTU, mtu).nest(ifla::LINKINFO, |m| {
        m.text(ifla::KIND, "bridge").nest(ifla::DATA, |m| {
            m.u32(ifla::BR_STP_STATE, 0).u32(ifla::BR_FORWARD_DELAY, 0).u8(ifla::BR_MCAST_SNOOPING, 0)
        })
    })
}

/// Names the owner of a link where `ip link` shows it.
pub fn label(name: &str, label: &str) -> Result<Message> {
    // IFALIASZ is 256 with its NUL; a label is for people and may be shortened.
    let end = (0..=label.len().min(255)).rev().find(|end| label.is_char_boundary(*end)).unwrap_or_default();
    Ok(change(name, 0, format!("labelling the interface `{name}`"))?.text(ifla::IFALIAS, &label[..end]))
}

/// The two ends of a link between the host and a container.
pub struct Veth<'a> {
    pub name: &'a str,
    pub mac: Option<Mac>,
    pub bridge: u32,
    pub inside: &'a Inside,
    pub inside_mac: Mac,
    pub netns: BorrowedFd<'a>,
}

/// Makes a veth as a port of a bridge, down; the other end is born in the container under its name.
pub fn create_veth(veth: &Veth<'_>) -> Result<Message> {
    let doing = format!("making the link `{}` into the container", veth.name);
    let message = Message::new(NEWLINK, CREATE | EXCLUSIVE, &link_header(ANY_LINK, 0, 0), doing)
        .text(ifla::IFNAME, valid(veth.name)?)
        .u32(ifla::MASTER, veth.bridge);
    let message = match veth.mac {
        Some(mac) => message.bytes(ifla::ADDRESS, &mac.bytes()),
        None => message,
    };
    let peer = valid(&veth.inside.name)?;
    Ok(one_queue(with_mtu(message, veth.inside.mtu)).nest(ifla::LINKINFO, |m| {
        m.text(ifla::KIND, "veth").nest(ifla::DATA, |m| {
            m.compound(ifla::VETH_PEER, &link_header(ANY_LINK, 0, 0), |m| {
                one_queue(with_mtu(m, veth.inside.mtu))
                    .text(ifla::IFNAME, peer)
                    .bytes(ifla::ADDRESS, &veth.inside_mac.bytes())
                    .u32(ifla::NET_NS_FD, veth.netns.as_raw_fd().cast_unsigned())
            })
        })
    }))
}

/// One queue in each direction. Left to itself, a veth registers a queue for each processor, uses one, and
/// waits for every processor to let go of the rest (`veth_init_queues`): more than all else together.
fn one_queue(message: Message) -> Message {
    message.u32(ifla::NUM_TX_QUEUES, 1).u32(ifla::NUM_RX_QUEUES, 1)
}

fn with_mtu(message: Message, mtu: Option<u32>) -> Message {
    match mtu {
        Some(mtu) => message.u32(ifla::MTU, mtu),
        None => message,
    }
}

/// What a port of our bridge may: send what comes from its own MAC, to the host alone.
///
/// `isolated`: frames pass to ports that are not, and there is none (Linux 4.18). `locked`: frames with
/// a source that is not this port's own entry in the table are dropped (Linux 5.18; older kernels pass
/// over it, and the firewall's table says the same). Without learning and flooding, frames for a MAC go
/// to the port that has its static entry, and to no other.
pub fn guard_port(name: &str) -> Result<Message> {
    let message = change(name, 0, format!("guarding the port `{name}` of the bridge"))?;
    let message = message.nest(ifla::LINKINFO, |m| {
        m.text(ifla::SLAVE_KIND, "bridge").nest(ifla::SLAVE_DATA, |m| {
            m.u8(ifla::PORT_ISOLATED, 1)
                .u8(ifla::PORT_LOCKED, 1)
                .u8(ifla::PORT_LEARNING, 0)
                .u8(ifla::PORT_UNICAST_FLOOD, 0)
                .u8(ifla::PORT_GUARD, 1)
                .u8(ifla::PORT_HAIRPIN, 0)
        })
    });
    Ok(message)
}

/// An interface on a parent, born in the container.
pub struct Parented<'a> {
    pub name: &'a str,
    pub parent: u32,
    pub parent_name: &'a str,
    pub kind: &'a str,
    pub mac: Option<Mac>,
    pub inside: &'a Inside,
    pub netns: BorrowedFd<'a>,
}

/// Gives a link, down, another name.
pub fn rename(index: u32, from: &str, to: &str) -> Result<Message> {
    let doing = format!("calling the interface `{from}` `{to}`");
    Ok(Message::new(NEWLINK, 0, &link_header(index, 0, 0), doing).text(ifla::IFNAME, valid(to)?))
}

/// Makes an interface on a parent, under a name for the moment; `settings` are its driver's.
pub fn create_parented(parented: &Parented<'_>, settings: impl FnOnce(Message) -> Message) -> Result<Message> {
    let doing = format!("making a {} on `{}`", parented.kind, parented.parent_name);
    let message = Message::new(NEWLINK, CREATE | EXCLUSIVE, &link_header(ANY_LINK, 0, 0), doing)
        .text(ifla::IFNAME, valid(parented.name)?)
        .u32(ifla::LINK, parented.parent)
        .u32(ifla::NET_NS_FD, parented.netns.as_raw_fd().cast_unsigned());
    let message = match parented.mac {
        Some(mac) => message.bytes(ifla::ADDRESS, &mac.bytes()),
        None => message,
    };
    let message = with_mtu(message, parented.inside.mtu);
    Ok(message.nest(ifla::LINKINFO, |m| m.text(ifla::KIND, parented.kind).nest(ifla::DATA, settings)))
}

/// Moves a link into another namespace; it arrives down, without addresses (`__dev_change_net_namespace`).
pub fn move_link(index: u32, name: &str, new_name: &str, netns: BorrowedFd<'_>) -> Result<Message> {
    let doing = format!("moving the interface `{name}` to where it is `{new_name}`");
    Ok(Message::new(NEWLINK, 0, &link_header(index, 0, 0), doing)
        .text(ifla::IFNAME, valid(new_name)?)
        .u32(ifla::NET_NS_FD, netns.as_raw_fd().cast_unsigned()))
}

/// Gives a link, down, another name, MTU and MAC.
pub fn restore_link(index: u32, name: &str, mtu: u32, mac: Option<[u8; 6]>) -> Result<Message> {
    let doing = format!("giving the interface `{name}` back its settings");
    let message = Message::new(NEWLINK, 0, &link_header(index, 0, UP), doing)
        .text(ifla::IFNAME, valid(name)?)
        .u32(ifla::MTU, mtu);
    Ok(match mac {
        Some(mac) => message.bytes(ifla::ADDRESS, &mac),
        None => message,
    })
}

/// Sets the MTU of a link.
pub fn set_mtu(index: u32, name: &str, mtu: u32) -> Message {
    let doing = format!("setting the MTU of `{name}` to {mtu}");
    Message::new(NEWLINK, 0, &link_header(index, 0, 0), doing).u32(ifla::MTU, mtu)
}

/// Adds an address, usable at once; success as well if it is there.
pub fn add_address(index: u32, address: HostAddress) -> Message {
    let message = address_message(NEWADDR, CREATE | REPLACE, index, address, format!("adding the address `{address}`"));
    match address.ip {
        // A /31 and a /32 have no broadcast address (RFC 3021).
        IpAddr::V4(ip) if address.length < 31 => {
            message.bytes(ifa::BROADCAST, &(ip.to_bits() | (u32::MAX >> address.length)).to_be_bytes())
        }
        IpAddr::V4(_) => message,
        IpAddr::V6(_) => message.u32(ifa::FLAGS, NODAD),
    }
}

/// Takes an address away; success as well if it is not there.
pub fn delete_address(index: u32, address: HostAddress) -> Message {
    address_message(DELADDR, 0, index, address, format!("removing the address `{address}`"))
        .tolerating(&[Errno::ADDRNOTAVAIL])
}

fn address_message(kind: u16, flags: u16, index: u32, address: HostAddress, doing: String) -> Message {
    let mut header = [0; ADDRESS_HEADER];
    header[0] = family(address.ip);
    header[1] = address.length;
    header[3] = if link_local(address.ip) { SCOPE_LINK } else { 0 };
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let bytes = octets(address.ip);
    Message::new(kind, flags, &header, doing).bytes(ifa::LOCAL, &bytes).bytes(ifa::ADDRESS, &bytes)
}

/// Adds a route.
pub fn add_route(index: u32, route: &Route) -> Message {
    let mut header = [0; ROUTE_HEADER];
    header[0] = family(route.to.address());
    header[1] = route.to.length();
    header[4..8].copy_from_slice(&[MAIN, STATIC, if route.via.is_some() { 0 } else { SCOPE_LINK }, UNICAST]);
    if route.via.is_some() {
        header[8..12].copy_from_slice(&ONLINK.to_ne_bytes());
    }
    let doing = match route.via {
        Some(via) => format!("adding the route to `{}/{}` through `{via}`", route.to.address(), route.to.length()),
        None => format!("adding the route to `{}/{}`", route.to.address(), route.to.length()),
    };
    let message = Message::new(NEWROUTE, CREATE | REPLACE, &header, doing)
        .bytes(rta::DST, &octets(route.to.address()))
        .u32(rta::OIF, index);
    match route.via {
        Some(via) if via.is_ipv4() == route.to.is_v4() => message.bytes(rta::GATEWAY, &octets(via)),
        // An IPv4 route through an IPv6 neighbour (RFC 5549): `struct rtvia`.
        Some(via) => {
            let mut value = u16::from(family(via)).to_ne_bytes().to_vec();
            value.extend(octets(via));
            message.bytes(rta::VIA, &value)
        }
        None => message,
    }
}

/// Asks which way an address is; no answer where there is none.
pub fn find_route(to: IpAddr) -> Message {
    let mut header = [0; ROUTE_HEADER];
    (header[0], header[1]) = (family(to), Prefix::host(to).length());
    Message::new(GETROUTE, 0, &header, format!("looking for the way to `{to}`"))
        .tolerating(&[Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::ACCESS, Errno::INVAL])
        .bytes(rta::DST, &octets(to))
}

/// Adds a permanent neighbour.
pub fn add_neighbour(index: u32, neighbour: &Neighbour) -> Message {
    let doing = format!("adding the neighbour `{}`", neighbour.address);
    neighbour_message(NEWNEIGH, CREATE | REPLACE, index, neighbour, doing)
}

/// Takes a neighbour away; success as well if it is not there.
pub fn delete_neighbour(index: u32, neighbour: &Neighbour) -> Message {
    let doing = format!("removing the neighbour `{}`", neighbour.address);
    neighbour_message(DELNEIGH, 0, index, neighbour, doing).tolerating(&[Errno::NOENT])
}

fn neighbour_message(kind: u16, flags: u16, index: u32, neighbour: &Neighbour, doing: String) -> Message {
    let header = neighbour_header(family(neighbour.address), index, PERMANENT, 0);
    Message::new(kind, flags, &header, doing)
        .bytes(NDA_DST, &octets(neighbour.address))
        .bytes(NDA_LLADDR, &neighbour.mac.bytes())
}

/// Tells the bridge which port a MAC is behind, for ever.
pub fn add_forwarding(port: u32, mac: Mac) -> Message {
    let header = neighbour_header(BRIDGE, port, NOARP, MASTER_TABLE);
    Message::new(NEWNEIGH, CREATE | REPLACE, &header, format!("telling the bridge where `{mac}` is"))
        .bytes(NDA_LLADDR, &mac.bytes())
}

fn neighbour_header(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// The family of an address.
pub fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { INET } else { INET6 }
}

/// The bytes of an address, in the order of the wire.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The address in an attribute, if it has the length of one.
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::V4(v4.into()));
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| IpAddr::V6(v6.into()))
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_misread_are_refused() {
        for name in ["", ".", "..", "a b", "a/b", "eth0:1", "lz%d", "sixteen-bytes-xx", "a\0b"] {
            assert_eq!(valid(name).unwrap_err().what(), Kind::Invalid, "{name}");
        }
        assert!(valid("fifteen-bytes-x").is_ok());
    }

    #[test]
    fn a_long_label_is_cut_between_letters() {
        let message = label("br0", &"ä".repeat(200)).unwrap();
        let bytes = message.encoded();
        let answer = crate::netlink::Answers(&bytes).next().unwrap();
        assert_eq!(answer.attributes(LINK_HEADER).text(ifla::IFALIAS).unwrap(), "ä".repeat(127));
    }
}
