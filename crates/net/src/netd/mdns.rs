//! Names that end with `.local`, asked for in the host's own networks: one-shot queries of multicast DNS (RFC 6762
//! section 5.1), whose answers come straight back.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use lazaret_base::{Context, Result};
use lazaret_config::{DomainName, Prefix};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, sendto, socket_with, sockopt,
};

use crate::dns::{self, Key, code};
use crate::responder::Report;

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const PORT: u16 = 5353;

/// Answers are believed for no longer, in seconds: a machine that was moved is found again.
const LONGEST: u32 = 600;

/// The one socket for all questions.
pub(super) struct Mdns {
    socket: OwnedFd,
    /// What was asked under which number.
    asked: BTreeMap<u16, (DomainName, Key)>,
    last: u16,
}

impl Mdns {
    /// A socket with a port of its own, as these questions have it.
    pub fn new() -> Result<Mdns> {
        let making = "making a socket for multicast DNS";
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None).context(making)?;
        bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).context(making)?;
        Ok(Mdns { socket, asked: BTreeMap::new(), last: 0 })
    }

    /// Whether a name is to be asked for here.
    pub fn is_for(name: &DomainName) -> bool {
        name.as_str().ends_with(".local")
    }

    /// Asks on each of these interfaces, by their indexes. Who has no answer says nothing.
    pub fn ask(&mut self, name: &DomainName, interfaces: &[u32]) {
        self.asked.retain(|_, (other, _)| other != name);
        let Some(asked) = dns::Name::from_text(name.as_str()) else { return };
        for kind in [code::A, code::AAAA] {
            self.last = self.last.wrapping_add(1);
            let servers: Rc<[SocketAddr]> = Rc::default();
            let key = Key { name: asked.clone(), kind, dnssec: false, checking_disabled: false, servers };
            let packet = dns::upstream::ask(&key, self.last, false);
            for index in interfaces {
                let group = SocketAddr::from((GROUP, PORT));
                // An interface may have gone, or know no multicast.
                let _ = sockopt::set_ip_multicast_if_with_ifindex(&self.socket, &GROUP, &Ipv4Addr::UNSPECIFIED, *index)
                    .and_then(|()| sendto(&self.socket, &packet, SendFlags::NOSIGNAL, &group).map(drop));
            }
            self.asked.insert(self.last, (name.clone(), key));
        }
    }

    /// What was answered, by machines on these links alone.
    pub fn hear(&mut self, on_link: &[Prefix]) -> Vec<Report> {
        let mut reports = Vec::new();
        let mut bytes = [0; 9000];
        while let Ok((received, _, from)) = recvfrom(&self.socket, &mut bytes[..], RecvFlags::empty()) {
            let from = from.and_then(|from| SocketAddr::try_from(from).ok());
            let near = from.is_some_and(|from| on_link.iter().any(|prefix| prefix.contains(from.ip())));
            if let Some(report) = bytes.get(..received).filter(|_| near).and_then(|packet| self.read(packet)) {
                reports.push(report);
            }
        }
        reports
    }

    fn read(&self, packet: &[u8]) -> Option<Report> {
        let id = u16::from_be_bytes([*packet.first()?, *packet.get(1)?]);
        let (name, key) = self.asked.get(&id)?;
        let answer = dns::upstream::read(packet, key, id)?;
        // A link-local address means nothing without its link.
        let addresses: Vec<IpAddr> =
            answer.addresses.iter().copied().filter(|address| !is_link_local(*address)).collect();
        let seconds = answer.seconds.min(LONGEST);
        (!addresses.is_empty()).then(|| Report::Resolved { name: name.to_string(), addresses, seconds })
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(six) if six.is_unicast_link_local())
}

impl AsFd for Mdns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
