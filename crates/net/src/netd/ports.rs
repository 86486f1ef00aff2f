//! Ports of the host that lead to containers, held so that nobody else takes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use lazaret_base::{Context, Error, Kind, Result, error};
use lazaret_config::{Protocol, Publish};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

/// More ports are not held for one container: each costs a descriptor.
const MOST: u32 = 1024;

/// Holds every port of these publications: a socket that is bound and never listens. Connections never come to it, as
/// they are led away before; but who else wants the port is refused, and so are we if somebody has it.
pub(super) fn hold(publish: &[Publish]) -> Result<Vec<OwnedFd>> {
    let wanted: u32 = publish.iter().map(|one| one.host.count()).sum();
    if wanted > MOST {
        return Err(error(format!("{wanted} ports of the host are to be published; {MOST} are the most"))
            .kind(Kind::Invalid)
            .hint(
                "publish fewer, or give the container a network where it is reached directly: mode = \"bridge:br0\"",
            ));
    }
    let mut held = Vec::new();
    for one in publish {
        for port in one.host.first()..=one.host.last() {
            held.push(hold_one(one, port).with_context(|| format!("publishing `{one}`"))?);
        }
    }
    Ok(held)
}

fn hold_one(publish: &Publish, port: u16) -> Result<OwnedFd> {
    let address = match publish.address {
        Some(address) => address,
        None => Ipv6Addr::UNSPECIFIED.into(),
    };
    match (bound(address, publish.protocol, port), publish.address) {
        // A host without IPv6.
        (Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL), None) => {
            bound(Ipv4Addr::UNSPECIFIED.into(), publish.protocol, port)
        }
        (other, _) => other,
    }
    .map_err(|errno| refused(errno, publish, port))
}

fn bound(address: IpAddr, protocol: Protocol, port: u16) -> std::result::Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Udp => SocketType::DGRAM,
        Protocol::Tcp | Protocol::Icmp => SocketType::STREAM,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if family == AddressFamily::INET6 {
        // Without an address: of both families at once.
        sockopt::set_ipv6_v6only(&socket, !address.is_unspecified())?;
    }
    bind(&socket, &SocketAddr::new(address, port))?;
    Ok(socket)
}

fn refused(errno: Errno, publish: &Publish, port: u16) -> Error {
    let where_ = publish.address.map_or_else(String::new, |address| format!(" on {address}"));
    match errno {
        Errno::ADDRINUSE => error(format!("port {port}/{}{where_} of the host is taken", publish.protocol))
            .kind(Kind::Exists)
            .hint(format!("`ss -lp 'sport = {port}'` tells by whom, unless another container publishes it")),
        Errno::ADDRNOTAVAIL => error(format!("the host has no address{}", where_.replace(" on", "")))
            .kind(Kind::Invalid)
            .hint("`ip address` shows those it has"),
        errno => Error::from(errno).context(format!("taking port {port}/{}{where_} of the host", publish.protocol)),
    }
}
