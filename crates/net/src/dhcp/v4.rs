//! DHCP for IPv4 (RFC 2131, options of RFC 2132): the answer is a frame for one station alone.

use std::net::Ipv4Addr;

use crate::responder::Directory;

/// An answer: an IP packet for one station.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Whom it is for. Sent on layer 2 to nobody else, so no container hears of another.
    pub station: [u8; 6],
    /// The IP packet: header, UDP, message.
    pub packet: Vec<u8>,
}

/// Offsets in the message (RFC 2131 figure 1).
const XID: usize = 4;
const FLAGS: usize = 10;
const CIADDR: usize = 12;
const YIADDR: usize = 16;
const GIADDR: usize = 24;
const CHADDR: usize = 28;
const COOKIE: usize = 236;
const OPTIONS: usize = 240;

const MAGIC: [u8; 4] = [99, 130, 83, 99];

/// Old clients take nothing shorter (RFC 1542 section 2.1).
const SHORTEST: usize = 300;

/// Kinds of message (option 53).
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

/// Options that are read or written.
mod option {
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const BROADCAST: u8 = 28;
    pub const REQUESTED: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const RENEW: u8 = 58;
    pub const REBIND: u8 = 59;
    pub const CLIENT: u8 = 61;
    pub const RAPID_COMMIT: u8 = 80;
}

/// Answers a message, or does not: to stations that are nobody's, to other servers' clients, to releases.
pub fn answer(directory: &Directory, message: &[u8]) -> Option<Reply> {
    let asked = Asked::read(message)?;
    let i = directory.at_mac(asked.station)?;
    let host = directory.host(i);
    let address = host.address4?;
    let gateway = directory.settings().gateway4;
    if asked.server.is_some_and(|server| server != gateway) {
        // It has chosen another server. There is none that the firewall lets through, but the client's word is enough.
        return None;
    }
    let kind = match asked.kind {
        DISCOVER if asked.rapid => ACK,
        DISCOVER => OFFER,
        // Selecting and rebooting clients name the address in an option, renewing and rebinding ones already have it.
        REQUEST => match asked.requested.or(asked.own) {
            Some(wanted) if wanted == address => ACK,
            Some(_) => NAK,
            None => return None,
        },
        INFORM => ACK,
        // RELEASE and DECLINE change nothing: the address is the container's as long as it lives.
        _ => return None,
    };
    let promised = (asked.kind != INFORM).then_some(address);
    let mut reply = Writer::new(&asked, if kind == NAK { None } else { promised });
    reply.option(option::KIND, &[kind]);
    reply.option(option::SERVER, &gateway.octets());
    if kind != NAK {
        write_facts(&mut reply, directory, &host.name);
        if promised.is_some() {
            write_times(&mut reply, directory.settings().lease_seconds);
        }
        if asked.kind == DISCOVER && asked.rapid {
            reply.option(option::RAPID_COMMIT, &[]);
        }
    }
    // RFC 6842: a client finds itself again by what it called itself.
    if let Some(client) = asked.client {
        reply.option(option::CLIENT, client);
    }
    let to = match asked.own {
        Some(own) if kind != NAK => own,
        _ if kind == NAK || asked.broadcast => Ipv4Addr::BROADCAST,
        _ => address,
    };
    Some(Reply { station: host.mac, packet: datagram(gateway, to, &reply.finish()) })
}

/// What a client said.
struct Asked<'a> {
    message: &'a [u8],
    station: [u8; 6],
    kind: u8,
    /// `ciaddr`: the address that it uses already.
    own: Option<Ipv4Addr>,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client: Option<&'a [u8]>,
    rapid: bool,
    broadcast: bool,
}

impl<'a> Asked<'a> {
    fn read(message: &'a [u8]) -> Option<Self> {
        // A request (1) from an Ethernet station (1, 6 bytes), not by way of a relay: there are none on our bridge.
        let plain = message.get(..3)? == [1, 1, 6] && address(message, GIADDR)?.is_unspecified();
        if !plain || message.get(COOKIE..OPTIONS)? != MAGIC {
            return None;
        }
        let mut asked = Asked {
            message,
            station: message.get(CHADDR..CHADDR + 6)?.try_into().ok()?,
            kind: 0,
            own: address(message, CIADDR).filter(|own| !own.is_unspecified()),
            requested: None,
            server: None,
            client: None,
            rapid: false,
            broadcast: message.get(FLAGS)? & 0x80 != 0,
        };
        let mut at = OPTIONS;
        loop {
            match message.get(at) {
                // A missing end is forgiven: some clients fill the packet to the brim.
                None | Some(255) => break,
                Some(0) => at += 1,
                Some(&code) => {
                    let length = usize::from(*message.get(at + 1)?);
                    asked.note(code, message.get(at + 2..at + 2 + length)?);
                    at += 2 + length;
                }
            }
        }
        Some(asked)
    }

    fn note(&mut self, code: u8, value: &'a [u8]) {
        let as_address = || <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
        match code {
            option::KIND if value.len() == 1 => self.kind = value[0],
            option::REQUESTED => self.requested = as_address(),
            option::SERVER => self.server = as_address(),
            option::CLIENT if !value.is_empty() => self.client = Some(value),
            option::RAPID_COMMIT => self.rapid = true,
            _ => {}
        }
    }
}

fn address(message: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(message.get(at..at + 4)?).ok()?))
}

struct Writer {
    message: Vec<u8>,
}

impl Writer {
    fn new(asked: &Asked<'_>, promised: Option<Ipv4Addr>) -> Self {
        let mut message = vec![0; OPTIONS];
        message[..3].copy_from_slice(&[2, 1, 6]);
        message[XID..XID + 4].copy_from_slice(&asked.message[XID..XID + 4]);
        message[FLAGS..FLAGS + 2].copy_from_slice(&asked.message[FLAGS..FLAGS + 2]);
        if promised.is_some() || asked.kind == INFORM {
            message[CIADDR..CIADDR + 4].copy_from_slice(&asked.message[CIADDR..CIADDR + 4]);
        }
        if let Some(promised) = promised {
            message[YIADDR..YIADDR + 4].copy_from_slice(&promised.octets());
        }
        message[CHADDR..CHADDR + 16].copy_from_slice(&asked.message[CHADDR..CHADDR + 16]);
        message[COOKIE..].copy_from_slice(&MAGIC);
        Writer { message }
    }

    /// Values come from names and numbers of ours, at most 255 bytes, or from an option that was as long.
    fn option(&mut self, code: u8, value: &[u8]) {
        let value = &value[..value.len().min(255)];
        self.message.push(code);
        self.message.push(value.len() as u8);
        self.message.extend_from_slice(value);
    }

    fn finish(mut self) -> Vec<u8> {
        self.message.push(255);
        self.message.resize(self.message.len().max(SHORTEST), 0);
        self.message
    }
}

fn write_facts(reply: &mut Writer, directory: &Directory, name: &str) {
    let settings = directory.settings();
    let host_bits = u32::MAX.checked_shr(u32::from(settings.prefix4)).unwrap_or(0);
    let gateway = settings.gateway4.octets();
    reply.option(option::MASK, &(!host_bits).to_be_bytes());
    reply.option(option::BROADCAST, &(u32::from(settings.gateway4) | host_bits).to_be_bytes());
    reply.option(option::ROUTER, &gateway);
    reply.option(option::DNS, &gateway);
    reply.option(option::MTU, &settings.mtu.to_be_bytes());
    reply.option(option::HOST_NAME, name.as_bytes());
    reply.option(option::DOMAIN, settings.domain.as_bytes());
}

/// When to ask again: after half of the time, and anybody after seven eighths (RFC 2131 section 4.4.5).
fn write_times(reply: &mut Writer, lease: u32) {
    reply.option(option::LEASE, &lease.to_be_bytes());
    reply.option(option::RENEW, &(lease / 2).to_be_bytes());
    reply.option(option::REBIND, &(lease - lease / 8).to_be_bytes());
}

/// Puts a message into UDP (port 67 to 68) and IP.
fn datagram(from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let udp_length = (8 + message.len()) as u16;
    let mut udp = Vec::with_capacity(usize::from(udp_length));
    for word in [67, 68, udp_length, 0] {
        udp.extend_from_slice(&word.to_be_bytes());
    }
    udp.extend_from_slice(message);
    let mut pseudo = Vec::with_capacity(12);
    pseudo.extend_from_slice(&from.octets());
    pseudo.extend_from_slice(&to.octets());
    pseudo.extend_from_slice(&[0, 17]);
    pseudo.extend_from_slice(&udp_length.to_be_bytes());
    // Zero means "none" in UDP; its other spelling is meant (RFC 768).
    let sum = match checksum(&[&pseudo, &udp]) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());

    let mut packet = vec![0x45, 0xc0];
    packet.extend_from_slice(&(20 + udp_length).to_be_bytes());
    // No number, do not fragment, 64 hops, UDP, and the place of the checksum.
    packet.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(&udp);
    packet
}

/// The Internet checksum (RFC 1071) of parts of which all but the last are of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
