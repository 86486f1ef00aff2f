//! The router advertisement (RFC 4861, 8106): here is a router, ask it for everything, and nobody else is on this link.

use std::net::Ipv6Addr;
use std::time::Duration;

use crate::dns::Name;
use crate::responder::Directory;

/// ICMPv6 types.
pub const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;

/// How long the router may be believed in, in seconds.
const LIFETIME: u16 = 1800;

/// How often everybody is told unasked: thrice within the lifetime, and once more.
pub const INTERVAL: Duration = Duration::from_secs(400);

/// The least time between two answers to everybody (`MIN_DELAY_BETWEEN_RAS`, RFC 4861 section 10).
pub const REST: Duration = Duration::from_secs(3);

/// Whether a packet is a solicitation (RFC 4861 section 6.1.1); the kernel has checked its sum, and the bridge its
/// sender.
pub fn is_solicitation(packet: &[u8]) -> bool {
    packet.len() >= 8 && packet[0] == SOLICITATION && packet[1] == 0 && options_are_whole(&packet[8..])
}

fn options_are_whole(mut options: &[u8]) -> bool {
    while let [_, units, ..] = options {
        let length = usize::from(*units) * 8;
        if length == 0 || length > options.len() {
            return false;
        }
        options = &options[length..];
    }
    options.is_empty()
}

/// The advertisement, without its checksum (the kernel fills it in). None where there is no IPv6.
pub fn advertisement(directory: &Directory) -> Option<Vec<u8>> {
    let settings = directory.settings();
    let gateway = settings.gateway6?;
    let mut out = vec![ADVERTISEMENT, 0, 0, 0];
    // 64 hops; addresses (M) and the rest (O) by DHCPv6.
    out.extend_from_slice(&[64, 0xc0]);
    out.extend_from_slice(&LIFETIME.to_be_bytes());
    // Reachable and retransmission times: as the host likes.
    out.extend_from_slice(&[0; 8]);

    out.extend_from_slice(&[5, 1, 0, 0]);
    out.extend_from_slice(&u32::from(settings.mtu).to_be_bytes());
    write_prefix(&mut out, gateway, settings.prefix6);
    write_dns(&mut out, gateway, &directory.domain);
    Some(out)
}

/// The prefix with no flag set: not on this link (all traffic comes by the router, where the policy is), and nobody
/// makes up an address of his own in it.
fn write_prefix(out: &mut Vec<u8>, gateway: Ipv6Addr, length: u8) {
    const VALID: u32 = 30 * 86400;
    const PREFERRED: u32 = 7 * 86400;
    let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
    out.extend_from_slice(&[3, 4, length.min(128), 0]);
    out.extend_from_slice(&VALID.to_be_bytes());
    out.extend_from_slice(&PREFERRED.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(u128::from(gateway) & mask).to_be_bytes());
}

fn write_dns(out: &mut Vec<u8>, gateway: Ipv6Addr, domain: &Name) {
    out.extend_from_slice(&[25, 3, 0, 0]);
    out.extend_from_slice(&u32::from(LIFETIME).to_be_bytes());
    out.extend_from_slice(&gateway.octets());

    let name = domain.bytes();
    let units = (8 + name.len()).div_ceil(8);
    out.extend_from_slice(&[31, units as u8, 0, 0]);
    out.extend_from_slice(&u32::from(LIFETIME).to_be_bytes());
    out.extend_from_slice(name);
    out.resize(out.len() + units * 8 - 8 - name.len(), 0);
}
