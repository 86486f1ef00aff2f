//! DHCP and router advertisements: the recorded address, for its owner alone.

use std::net::{Ipv4Addr, Ipv6Addr};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Encodable, v6};
use lazaret_net::responder::directory::link_local;
use lazaret_net::{dhcp, router};

use crate::view::{GATEWAY6, directory};

const WEB: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
const MINE: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 2);

fn request(kind: MessageType, mac: [u8; 6], change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::default();
    message.set_chaddr(&mac);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    change(&mut message);
    message.to_vec().unwrap()
}

/// The answer, out of its frame: destination, station, message.
fn reply(packet: &[u8]) -> Option<(Ipv4Addr, [u8; 6], Message)> {
    let reply = dhcp::v4::answer(&directory(), packet)?;
    assert_eq!((reply.packet[0], reply.packet[9]), (0x45, 17));
    assert_eq!(u16::from_be_bytes([reply.packet[2], reply.packet[3]]) as usize, reply.packet.len());
    assert_eq!(&reply.packet[20..24], &[0, 67, 0, 68]);
    assert_eq!(sum(&reply.packet[..20]), 0xffff);
    let mut pseudo = reply.packet[12..20].to_vec();
    pseudo.extend_from_slice(&[0, 17, reply.packet[24], reply.packet[25]]);
    pseudo.extend_from_slice(&reply.packet[20..]);
    assert_eq!(sum(&pseudo), 0xffff);
    let to: [u8; 4] = reply.packet[16..20].try_into().unwrap();
    Some((to.into(), reply.station, Message::from_bytes(&reply.packet[28..]).unwrap()))
}

fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum: u32 = words.sum();
    (sum & 0xffff) + (sum >> 16)
}

fn kind_of(packet: &[u8]) -> Option<MessageType> {
    reply(packet).and_then(|(_, _, message)| message.opts().msg_type())
}

#[test]
fn a_discover_is_offered_the_recorded_address_with_all_it_needs() {
    let (to, station, offer) = reply(&request(MessageType::Discover, WEB, |_| {})).unwrap();
    assert_eq!((to, station, offer.yiaddr()), (MINE, WEB, MINE));
    let option = |code| offer.opts().get(code).cloned();
    assert_eq!(option(OptionCode::MessageType), Some(DhcpOption::MessageType(MessageType::Offer)));
    assert_eq!(option(OptionCode::ServerIdentifier), Some(DhcpOption::ServerIdentifier(GATEWAY)));
    assert_eq!(option(OptionCode::SubnetMask), Some(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 240, 0))));
    assert_eq!(option(OptionCode::BroadcastAddr), Some(DhcpOption::BroadcastAddr(Ipv4Addr::new(10, 90, 15, 255))));
    assert_eq!(option(OptionCode::Router), Some(DhcpOption::Router(vec![GATEWAY])));
    assert_eq!(option(OptionCode::DomainNameServer), Some(DhcpOption::DomainNameServer(vec![GATEWAY])));
    assert_eq!(option(OptionCode::InterfaceMtu), Some(DhcpOption::InterfaceMtu(1420)));
    assert_eq!(option(OptionCode::Hostname), Some(DhcpOption::Hostname("web".into())));
    assert_eq!(option(OptionCode::DomainName), Some(DhcpOption::DomainName("lazaret".into())));
    assert_eq!(option(OptionCode::AddressLeaseTime), Some(DhcpOption::AddressLeaseTime(3600)));
}

#[test]
fn only_the_own_address_is_acknowledged() {
    let selecting = |wanted| {
        request(MessageType::Request, WEB, |message| {
            message.opts_mut().insert(DhcpOption::ServerIdentifier(GATEWAY));
            message.opts_mut().insert(DhcpOption::RequestedIpAddress(wanted));
        })
    };
    assert_eq!(kind_of(&selecting(MINE)), Some(MessageType::Ack));
    let (to, station, nak) = reply(&selecting(Ipv4Addr::new(10, 90, 0, 3))).unwrap();
    assert_eq!((to, station, nak.yiaddr()), (Ipv4Addr::BROADCAST, WEB, Ipv4Addr::UNSPECIFIED));
    assert_eq!(nak.opts().msg_type(), Some(MessageType::Nak));
    let renewing = |own: Ipv4Addr| {
        request(MessageType::Request, WEB, |message| {
            message.set_ciaddr(own);
        })
    };
    assert_eq!(reply(&renewing(MINE)).unwrap().0, MINE);
    assert_eq!(kind_of(&renewing(Ipv4Addr::new(192, 168, 1, 2))), Some(MessageType::Nak));
}

#[test]
fn strangers_and_clients_of_other_servers_hear_nothing() {
    assert_eq!(kind_of(&request(MessageType::Discover, [2, 0, 0, 0, 0, 99], |_| {})), None);
    let elsewhere = request(MessageType::Request, WEB, |message| {
        message.opts_mut().insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 90, 0, 77)));
        message.opts_mut().insert(DhcpOption::RequestedIpAddress(MINE));
    });
    assert_eq!(kind_of(&elsewhere), None);
    assert_eq!(kind_of(&request(MessageType::Release, WEB, |_| {})), None);
    assert_eq!(kind_of(&request(MessageType::Decline, WEB, |_| {})), None);
}

#[test]
fn one_who_cannot_hear_otherwise_is_answered_by_broadcast_on_its_own_station() {
    let packet = request(MessageType::Discover, WEB, |message| {
        message.set_flags(Flags::default().set_broadcast());
    });
    let (to, station, _) = reply(&packet).unwrap();
    assert_eq!((to, station), (Ipv4Addr::BROADCAST, WEB));
}

#[test]
fn one_who_has_an_address_is_informed_without_a_lease() {
    let packet = request(MessageType::Inform, WEB, |message| {
        message.set_ciaddr(MINE);
    });
    let (to, _, ack) = reply(&packet).unwrap();
    assert_eq!((to, ack.yiaddr(), ack.opts().msg_type()), (MINE, Ipv4Addr::UNSPECIFIED, Some(MessageType::Ack)));
    assert!(ack.opts().get(OptionCode::AddressLeaseTime).is_none());
    assert!(ack.opts().get(OptionCode::Router).is_some());
}

#[test]
fn a_lying_hardware_length_is_dropped() {
    let mut packet = request(MessageType::Discover, WEB, |_| {});
    for length in [0, 5, 7, 16, 17, 255] {
        packet[2] = length;
        assert_eq!(kind_of(&packet), None);
    }
}

fn ask6(kind: v6::MessageType, from: Ipv6Addr, change: impl FnOnce(&mut v6::DhcpOptions)) -> Option<v6::Message> {
    let mut message = v6::Message::new(kind);
    message.opts_mut().insert(v6::DhcpOption::ClientId(vec![0, 3, 0, 1, 2, 0, 0, 0, 0, 2]));
    change(message.opts_mut());
    let reply = dhcp::v6::answer(&directory(), from, &message.to_vec().unwrap())?;
    let reply = v6::Message::from_bytes(&reply).unwrap();
    assert_eq!(reply.xid(), message.xid());
    Some(reply)
}

fn identity() -> v6::DhcpOption {
    v6::DhcpOption::IANA(v6::IANA { id: 7, t1: 0, t2: 0, opts: v6::DhcpOptions::default() })
}

/// The addresses that a reply gives, with their valid lifetimes.
fn given(reply: &v6::Message) -> Vec<(Ipv6Addr, u32)> {
    let mut given = Vec::new();
    for option in reply.opts().iter() {
        let v6::DhcpOption::IANA(identity) = option else { continue };
        for inner in identity.opts.iter() {
            if let v6::DhcpOption::IAAddr(address) = inner {
                given.push((address.addr, address.valid_life));
            }
        }
    }
    given
}

#[test]
fn dhcpv6_gives_the_recorded_address_to_its_link_local_owner() {
    let mine: Ipv6Addr = "fd12:3456:789a:1::2".parse().unwrap();
    let advertise = ask6(v6::MessageType::Solicit, link_local(WEB), |options| options.insert(identity())).unwrap();
    assert_eq!(advertise.msg_type(), v6::MessageType::Advertise);
    assert_eq!(given(&advertise), [(mine, 3600)]);
    let server = advertise.opts().get(v6::OptionCode::ServerId).cloned().unwrap();
    let reply = ask6(v6::MessageType::Request, link_local(WEB), |options| {
        options.insert(server.clone());
        options.insert(identity());
    })
    .unwrap();
    assert_eq!((reply.msg_type(), given(&reply)), (v6::MessageType::Reply, vec![(mine, 3600)]));
    assert_eq!(
        reply.opts().get(v6::OptionCode::DomainNameServers),
        Some(&v6::DhcpOption::DomainNameServers(vec![GATEWAY6]))
    );
    // From anywhere else, and for another server, there is no answer.
    assert!(
        ask6(v6::MessageType::Solicit, "fe80::99".parse().unwrap(), |options| options.insert(identity())).is_none()
    );
    assert!(ask6(v6::MessageType::Solicit, mine, |options| options.insert(identity())).is_none());
    let other = v6::DhcpOption::ServerId(vec![1, 2, 3]);
    assert!(ask6(v6::MessageType::Request, link_local(WEB), |options| options.insert(other)).is_none());
}

#[test]
fn dhcpv6_takes_a_stale_address_away() {
    let stale: Ipv6Addr = "fd00::dead".parse().unwrap();
    let mut inner = v6::DhcpOptions::default();
    inner.insert(v6::DhcpOption::IAAddr(v6::IAAddr {
        addr: stale,
        preferred_life: 9,
        valid_life: 9,
        opts: v6::DhcpOptions::default(),
    }));
    let reply = ask6(v6::MessageType::Rebind, link_local(WEB), |options| {
        options.insert(v6::DhcpOption::IANA(v6::IANA { id: 7, t1: 0, t2: 0, opts: inner }));
    });
    assert_eq!(given(&reply.unwrap()), [("fd12:3456:789a:1::2".parse().unwrap(), 3600), (stale, 0)]);
}

#[test]
fn dhcpv6_informs_without_an_address() {
    let reply = ask6(v6::MessageType::InformationRequest, link_local(WEB), |_| {}).unwrap();
    assert!(given(&reply).is_empty());
    assert!(reply.opts().get(v6::OptionCode::DomainNameServers).is_some());
}

#[test]
fn the_router_sends_all_traffic_through_itself() {
    let packet = router::advertisement(&directory()).unwrap();
    // Type 134, 64 hops, managed and other, 1800 seconds.
    assert_eq!((packet[0], packet[4], packet[5], &packet[6..8]), (134, 64, 0xc0, &1800_u16.to_be_bytes()[..]));
    let mut options = Vec::new();
    let mut at = 16;
    while at < packet.len() {
        let length = usize::from(packet[at + 1]) * 8;
        options.push((packet[at], &packet[at..at + length]));
        at += length;
    }
    assert_eq!(options.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [5, 3, 25, 31]);
    assert_eq!(options[0].1[4..8], 1420_u32.to_be_bytes());
    // The prefix: length 64, neither on-link nor for addresses of one's own making.
    assert_eq!(options[1].1[2..4], [64, 0]);
    assert_eq!(options[1].1[16..], "fd12:3456:789a:1::".parse::<Ipv6Addr>().unwrap().octets());
    assert_eq!(options[2].1[8..24], GATEWAY6.octets());
    assert_eq!(options[3].1[8..], *b"\x07lazaret\0\0\0\0\0\0\0\0");
}
