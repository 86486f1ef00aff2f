//! The sockets that need privilege to open: made by netd, used by the responder.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use lazaret_base::{Context, Result, error};
use lazaret_sys::local::{MOST_ALONG, Received, receive_along, send_along};
use lazaret_sys::packet::{bind_to_interface, hear_icmp6_only, share_by_sender};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, ipproto, listen, netdevice, socket_with, sockopt,
};

use crate::router;

/// All of the responder's sockets. They may be handed to one responder after the other: what arrives in between
/// waits in them.
pub struct Sockets {
    /// The bridge's index.
    pub(crate) bridge: u32,
    roles: Vec<Role>,
    descriptors: Vec<OwnedFd>,
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    /// DNS by UDP: asked by containers, and by the host itself under any address of its own. So it is not bound to the
    /// bridge, or answers to these would be looked for there; that nobody else asks is the firewall's.
    Names,
    /// DNS by TCP, likewise.
    NameStreams,
    /// DHCP, heard.
    Dhcp4,
    /// DHCP, answered: a packet socket, since the client has no address yet.
    Frames,
    Dhcp6,
    /// Router solicitations.
    Router,
}

const ROLES: &[Role] = &[Role::Names, Role::NameStreams, Role::Dhcp4, Role::Frames, Role::Dhcp6, Role::Router];

/// Sockets for questions by UDP, which share them by who asks: a container that floods one of them with questions keeps
/// hardly anybody else from being heard.
const LANES: usize = 64;

/// What each of them holds, in bytes as the kernel counts them: some hundred questions.
const LANE: usize = 128 << 10;

/// The length in bytes of a part of the hand-over: the bridge's index, how many sockets there are and how many come
/// along, the role of each.
const HAND_OVER: usize = 6 + MOST_ALONG;

/// How long a port is waited for that a responder whose netd has died may still hold: it ends when it sees the hang-up.
const PREDECESSOR: Duration = Duration::from_secs(2);

const ALL_DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

impl Sockets {
    /// Opens everything on a bridge and its gateway addresses; IPv6 only where there is an address.
    ///
    /// Needs `CAP_NET_BIND_SERVICE` and `CAP_NET_RAW`. The bridge must exist; its addresses may still be missing.
    ///
    /// # Errors
    ///
    /// Where another program holds one of the ports on these addresses, or on all of them: the sentence names the port.
    pub fn open(bridge: &str, gateway4: Ipv4Addr, gateway6: Option<Ipv6Addr>) -> Result<Self> {
        let any = socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, None)?;
        let bridge =
            netdevice::name_to_index(&any, bridge).with_context(|| format!("finding the interface `{bridge}`"))?;
        let mut sockets = Sockets { bridge, roles: Vec::new(), descriptors: Vec::new() };
        let gateways = std::iter::once(IpAddr::V4(gateway4)).chain(gateway6.map(IpAddr::V6));
        for gateway in gateways {
            let address = SocketAddr::new(gateway, 53);
            lanes(address)?.into_iter().for_each(|lane| sockets.add(Role::Names, lane));
            sockets.add(Role::NameStreams, listener(address)?);
        }
        let everywhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 67);
        sockets.add(Role::Dhcp4, server(everywhere.into(), SocketType::DGRAM, Some(bridge))?);
        // Protocol 0: it hears nothing, it only sends (packet(7)).
        let frames =
            socket_with(AddressFamily::PACKET, SocketType::DGRAM, FLAGS, None).context("opening a packet socket")?;
        sockets.add(Role::Frames, frames);
        if gateway6.is_some() {
            let everywhere = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 547, 0, 0);
            let dhcp6 = server(everywhere.into(), SocketType::DGRAM, Some(bridge))?;
            sockopt::set_ipv6_add_membership(&dhcp6, &ALL_DHCP_SERVERS, bridge).context("joining `ff02::1:2`")?;
            sockets.add(Role::Dhcp6, dhcp6);
            sockets.add(Role::Router, router_socket(bridge).context("opening a socket for router solicitations")?);
        }
        Ok(sockets)
    }

    /// Sends all sockets over a control line, some at a time.
    pub(crate) fn hand_over(&self, line: BorrowedFd<'_>) -> Result<()> {
        for (roles, descriptors) in self.roles.chunks(MOST_ALONG).zip(self.descriptors.chunks(MOST_ALONG)) {
            let mut head = [0; HAND_OVER];
            head[..4].copy_from_slice(&self.bridge.to_ne_bytes());
            (head[4], head[5]) = (self.roles.len() as u8, roles.len() as u8);
            for (place, role) in head[6..].iter_mut().zip(roles) {
                *place = *role as u8;
            }
            let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            if send_along(line, &head, &descriptors)? != HAND_OVER {
                return Err(error("the control line took half a message"));
            }
        }
        Ok(())
    }

    /// Receives what [`Sockets::hand_over`] sent, and waits for it.
    pub(crate) fn take_over(line: &OwnedFd) -> Result<Self> {
        let mut sockets = Sockets { bridge: 0, roles: Vec::new(), descriptors: Vec::new() };
        loop {
            let mut waiting = [PollFd::new(line, PollFlags::IN)];
            while poll(&mut waiting, None) == Err(Errno::INTR) {}
            let mut head = [0; HAND_OVER];
            let Received { bytes: received, fds, .. } = receive_along(line, &mut head, RecvFlags::empty())?;
            let [a, b, c, d, all, some, roles @ ..] = head;
            let role = |byte: &u8| ROLES.iter().copied().find(|&role| role as u8 == *byte);
            let roles: Vec<Role> = roles.iter().take(some.into()).filter_map(role).collect();
            if received != HAND_OVER || roles.is_empty() || roles.len() != fds.len() {
                return Err(error("netd did not hand over its sockets"));
            }
            sockets.bridge = u32::from_ne_bytes([a, b, c, d]);
            sockets.roles.extend(roles);
            sockets.descriptors.extend(fds);
            if sockets.roles.len() >= usize::from(all) {
                return Ok(sockets);
            }
        }
    }

    /// Each socket and its role.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Role, &OwnedFd)> {
        self.roles.iter().copied().zip(&self.descriptors)
    }

    /// The socket at that place.
    pub(crate) fn at(&self, i: usize) -> (Role, &OwnedFd) {
        (self.roles[i], &self.descriptors[i])
    }

    /// The one socket of that role, if there is one.
    pub(crate) fn of(&self, role: Role) -> Option<&OwnedFd> {
        self.all().find(|&(theirs, _)| theirs == role).map(|(_, socket)| socket)
    }

    fn add(&mut self, role: Role, socket: OwnedFd) {
        self.roles.push(role);
        self.descriptors.push(socket);
    }
}

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// The sockets that share a port.
fn lanes(address: SocketAddr) -> Result<Vec<OwnedFd>> {
    // Alone at first: whoever has the port yet, a predecessor for instance, would share it with us.
    drop(server(address, SocketType::DGRAM, None)?);
    let lane = || -> Result<OwnedFd, Errno> {
        let socket = unbound(address, SocketType::DGRAM)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        // Needs CAP_NET_ADMIN to exceed the system's limit, and is a wish.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, LANE);
        bind(&socket, &address)?;
        Ok(socket)
    };
    let sharing = || format!("sharing UDP port {} of `{}`", address.port(), address.ip());
    let lanes = (0..LANES).map(|_| lane()).collect::<Result<Vec<_>, _>>().with_context(sharing)?;
    share_by_sender(lanes[0].as_fd(), address.is_ipv4(), LANES as u32).with_context(sharing)?;
    Ok(lanes)
}

/// A socket bound to a port of an address, perhaps on one interface alone.
fn server(address: SocketAddr, kind: SocketType, interface: Option<u32>) -> Result<OwnedFd> {
    let opened = match open_server(address, kind, interface) {
        Err(Errno::ADDRINUSE) => wait_for_port(address, kind, interface),
        opened => opened,
    };
    let protocol = if kind == SocketType::STREAM { "TCP" } else { "UDP" };
    opened
        .with_context(|| format!("taking {protocol} port {} of `{}`", address.port(), address.ip()))
        .hint("another name or DHCP server listens there; let it listen on its own interfaces only (`bind-interfaces`)")
}

fn open_server(address: SocketAddr, kind: SocketType, interface: Option<u32>) -> Result<OwnedFd, Errno> {
    let socket = unbound(address, kind)?;
    if let Some(interface) = interface {
        bind_to_interface(socket.as_fd(), interface)?;
    }
    if kind == SocketType::STREAM {
        // Connections of a predecessor linger in TIME_WAIT.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    } else {
        // A burst of a few hundred containers; needs CAP_NET_ADMIN to exceed the system's limit, and is a wish.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, 1 << 20);
    }
    bind(&socket, &address)?;
    Ok(socket)
}

fn unbound(address: SocketAddr, kind: SocketType) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, FLAGS, None)?;
    // Also while the address is not there yet.
    match address {
        SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
        SocketAddr::V6(_) => {
            sockopt::set_ipv6_v6only(&socket, true)?;
            sockopt::set_ipv6_freebind(&socket, true)?;
        }
    }
    Ok(socket)
}

fn wait_for_port(address: SocketAddr, kind: SocketType, interface: Option<u32>) -> Result<OwnedFd, Errno> {
    let until = Instant::now() + PREDECESSOR;
    loop {
        // There is no event for a port that becomes free.
        poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }))?;
        match open_server(address, kind, interface) {
            Err(Errno::ADDRINUSE) if Instant::now() < until => {}
            opened => return opened,
        }
    }
}

fn listener(address: SocketAddr) -> Result<OwnedFd> {
    let socket = server(address, SocketType::STREAM, None)?;
    listen(&socket, 128)?;
    Ok(socket)
}

fn router_socket(bridge: u32) -> Result<OwnedFd, Errno> {
    let icmp6: Protocol = ipproto::ICMPV6;
    let socket = socket_with(AddressFamily::INET6, SocketType::RAW, FLAGS, Some(icmp6))?;
    hear_icmp6_only(socket.as_fd(), router::SOLICITATION)?;
    bind_to_interface(socket.as_fd(), bridge)?;
    sockopt::set_ipv6_multicast_if(&socket, bridge)?;
    // Neighbours believe nothing that could have come through a router (RFC 4861 section 6.1.2).
    sockopt::set_ipv6_multicast_hops(&socket, 255)?;
    sockopt::set_ipv6_unicast_hops(&socket, Some(255))?;
    sockopt::set_ipv6_multicast_loop(&socket, false)?;
    sockopt::set_ipv6_add_membership(&socket, &ALL_ROUTERS, bridge)?;
    Ok(socket)
}
