//! DHCP for IPv6 (RFC 8415): one address for the container, and where its name server is.

use std::net::Ipv6Addr;

use crate::dns::Name;
use crate::responder::Directory;

/// The port that clients hear on.
pub const CLIENT_PORT: u16 = 546;

/// Kinds of message.
const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION: u8 = 11;

mod option {
    pub const CLIENT: u16 = 1;
    pub const SERVER: u16 = 2;
    pub const IA_NA: u16 = 3;
    pub const IA_TA: u16 = 4;
    pub const ADDRESS: u16 = 5;
    pub const PREFERENCE: u16 = 7;
    pub const STATUS: u16 = 13;
    pub const RAPID_COMMIT: u16 = 14;
    pub const DNS: u16 = 23;
    pub const DOMAINS: u16 = 24;
    pub const IA_PD: u16 = 25;
}

/// Status codes (RFC 8415 section 21.13).
const SUCCESS: u16 = 0;
const NO_ADDRESS: u16 = 2;
const NOT_ON_LINK: u16 = 4;
const NO_PREFIX: u16 = 6;

/// Identities that are answered in one message; more is nobody's honest wish.
const MOST_IDENTITIES: usize = 8;

/// The longest identifier of a client, in bytes (RFC 8415 section 11.1).
const LONGEST_DUID: usize = 130;

/// Answers a message that came from a container's link-local address; the answer goes back there, to [`CLIENT_PORT`].
pub fn answer(directory: &Directory, from: Ipv6Addr, message: &[u8]) -> Option<Vec<u8>> {
    if !from.is_unicast_link_local() {
        return None;
    }
    let host = directory.host(directory.at_address(from.into())?);
    let address = host.address6?;
    let gateway = directory.settings().gateway6?;
    let asked = Asked::read(message)?;
    let ours = server_id(gateway);
    // Who must name a server and who must not: RFC 8415 section 16.
    let named = match asked.kind {
        SOLICIT | CONFIRM | REBIND => asked.server.is_none(),
        REQUEST | RENEW | RELEASE | DECLINE => asked.server == Some(&ours[..]),
        INFORMATION => asked.server.is_none_or(|server| server == ours) && asked.identities.is_empty(),
        _ => return None,
    };
    if !named || (asked.client.is_none() && asked.kind != INFORMATION) {
        return None;
    }
    let rapid = asked.kind == SOLICIT && asked.rapid;
    let mut out = vec![if asked.kind == SOLICIT && !rapid { ADVERTISE } else { REPLY }];
    out.extend_from_slice(message.get(1..4)?);
    write_option(&mut out, option::SERVER, &ours);
    if let Some(client) = asked.client {
        write_option(&mut out, option::CLIENT, client);
    }
    match asked.kind {
        CONFIRM => {
            // Nothing to confirm, nothing to say.
            asked.addresses.first()?;
            let at_home = asked.addresses.iter().all(|&theirs| theirs == address);
            write_option(&mut out, option::STATUS, &(if at_home { SUCCESS } else { NOT_ON_LINK }).to_be_bytes());
            return Some(out);
        }
        RELEASE | DECLINE => {
            write_option(&mut out, option::STATUS, &SUCCESS.to_be_bytes());
            return Some(out);
        }
        INFORMATION => {}
        _ => write_identities(&mut out, &asked, address, directory.settings().lease_seconds),
    }
    if rapid {
        write_option(&mut out, option::RAPID_COMMIT, &[]);
    }
    if asked.kind == SOLICIT {
        // There is no other server to wait for.
        write_option(&mut out, option::PREFERENCE, &[255]);
    }
    write_option(&mut out, option::DNS, &gateway.octets());
    write_option(&mut out, option::DOMAINS, Name::bytes(&directory.domain));
    Some(out)
}

/// What a client said.
struct Asked<'a> {
    kind: u8,
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    /// Kind and number of each thing that it wants addresses or prefixes for.
    identities: Vec<(u16, [u8; 4])>,
    /// The addresses that it named within them.
    addresses: Vec<Ipv6Addr>,
    rapid: bool,
}

impl<'a> Asked<'a> {
    fn read(message: &'a [u8]) -> Option<Self> {
        let mut asked = Asked {
            kind: *message.first()?,
            client: None,
            server: None,
            identities: Vec::new(),
            addresses: Vec::new(),
            rapid: false,
        };
        for (code, value) in options(message.get(4..)?)? {
            match code {
                option::CLIENT if (1..=LONGEST_DUID).contains(&value.len()) => asked.client = Some(value),
                option::CLIENT => return None,
                option::SERVER => asked.server = Some(value),
                option::RAPID_COMMIT => asked.rapid = true,
                option::IA_NA | option::IA_TA | option::IA_PD => asked.note_identity(code, value)?,
                _ => {}
            }
        }
        Some(asked)
    }

    fn note_identity(&mut self, code: u16, value: &[u8]) -> Option<()> {
        if self.identities.len() == MOST_IDENTITIES {
            return Some(());
        }
        self.identities.push((code, value.get(..4)?.try_into().ok()?));
        let inner = value.get(if code == option::IA_TA { 4 } else { 12 }..)?;
        for (code, value) in options(inner)? {
            if code == option::ADDRESS {
                let octets: [u8; 16] = value.get(..16)?.try_into().ok()?;
                self.addresses.push(octets.into());
            }
        }
        Some(())
    }
}

/// The options of a message or of an option; none if one is cut off.
fn options(mut bytes: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut found = Vec::new();
    while let [a, b, c, d, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        found.push((u16::from_be_bytes([*a, *b]), rest.get(..length)?));
        bytes = &rest[length..];
    }
    bytes.is_empty().then_some(found)
}

/// The first identity gets the container's one address; addresses that it named and that are not its own are taken from
/// it by a lifetime of zero (RFC 8415 section 18.3.4).
fn write_identities(out: &mut Vec<u8>, asked: &Asked<'_>, address: Ipv6Addr, lease: u32) {
    let mut given = false;
    for &(code, number) in &asked.identities {
        let mut value = number.to_vec();
        if code != option::IA_TA {
            for time in [lease / 2, lease - lease / 8] {
                value.extend_from_slice(&time.to_be_bytes());
            }
        }
        if code == option::IA_NA && !given {
            given = true;
            let stale = asked.addresses.iter().filter(|&&theirs| theirs != address).map(|&theirs| (theirs, 0));
            for (address, time) in std::iter::once((address, lease)).chain(stale.take(MOST_IDENTITIES)) {
                let mut inner = address.octets().to_vec();
                // Preferred and valid.
                inner.extend_from_slice(&time.to_be_bytes());
                inner.extend_from_slice(&time.to_be_bytes());
                write_option(&mut value, option::ADDRESS, &inner);
            }
        } else {
            let status = if code == option::IA_PD { NO_PREFIX } else { NO_ADDRESS };
            write_option(&mut value, option::STATUS, &status.to_be_bytes());
        }
        write_option(out, code, &value);
    }
}

fn write_option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
}

/// Who we are, the same for the life of an installation: a DUID of link-layer kind (RFC 8415 section 11.4), its station
/// address made of the 40 random bits of the gateway's unique local prefix.
fn server_id(gateway: Ipv6Addr) -> [u8; 10] {
    let o = gateway.octets();
    [0, 3, 0, 1, 2, o[1], o[2], o[3], o[4], o[5]]
}
