//! What a container asks of the network: how it is connected, whom it may reach, and who may reach it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use lazaret_base::Error;
use serde::{Deserialize, Serialize};

use crate::decimal;
use crate::name::Name;
use crate::suggest::did_you_mean;
use crate::text::{invalid, printable, quoted};

/// The `[network]` table of a container.
///
/// The policy (`internet` to `publish`) is ours to enforce in [`Mode::Internet`] only; in [`Mode::None`] there is
/// nothing to enforce, and in the others the container stands in somebody else's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// How the container is connected.
    pub mode: Mode,
    /// A fixed IPv4 address; chosen and kept by us if `None`.
    pub address: Option<Ipv4Addr>,
    /// A fixed IPv6 address; chosen and kept by us if `None`.
    pub address6: Option<Ipv6Addr>,
    /// A fixed hardware address; derived from the name if `None`.
    pub mac: Option<Mac>,
    /// The largest packet in bytes, 1280 to 65535; the uplink's if `None`.
    pub mtu: Option<u32>,
    /// Whether what is neither LAN, host nor container may be reached.
    pub internet: bool,
    /// Whether private and on-link addresses may be reached.
    pub lan: bool,
    /// Whether the host's own addresses may be reached.
    pub host: bool,
    /// Containers that may be reached and may reach this one, if they say so too.
    pub peers: Vec<Name>,
    /// Destinations that may be reached whatever `internet`, `lan` and `host` say; containers are never among them.
    pub allow: Vec<Destination>,
    /// Destinations that may not be reached whatever else is said.
    pub deny: Vec<Destination>,
    /// Ports of the host that lead to ports of the container.
    pub publish: Vec<Publish>,
    /// The fastest that the container may send.
    pub rate_up: Option<Rate>,
    /// The fastest that the container may receive.
    pub rate_down: Option<Rate>,
    /// Name servers asked for the container; the host's own if empty.
    pub dns: Vec<IpAddr>,
    /// The second of the two questions that `mode = "host"` asks.
    pub host_mode_confirmed: bool,
}

impl Default for Network {
    fn default() -> Network {
        Network {
            mode: Mode::Internet,
            address: None,
            address6: None,
            mac: None,
            mtu: None,
            internet: true,
            lan: false,
            host: false,
            peers: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            publish: Vec::new(),
            rate_up: None,
            rate_down: None,
            dns: Vec::new(),
            host_mode_confirmed: false,
        }
    }
}

/// How a container is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Our own bridge, behind our rules and address translation.
    #[default]
    Internet,
    /// A loopback interface only.
    None,
    /// No network namespace: all that the host has, its loopback services included.
    Host,
    /// A port of a bridge that the user made.
    Bridge(Interface),
    /// A macvlan interface on the named parent.
    Macvlan(Interface),
    /// An ipvlan interface on the named parent.
    Ipvlan(Interface),
    /// The named interface itself, given back at the end.
    Phys(Interface),
}

pub(crate) const MODE_WORDS: [&str; 7] = ["internet", "none", "host", "bridge:", "macvlan:", "ipvlan:", "phys:"];

impl Mode {
    /// The host's interface that the mode names.
    pub fn interface(&self) -> Option<&Interface> {
        match self {
            Mode::Bridge(name) | Mode::Macvlan(name) | Mode::Ipvlan(name) | Mode::Phys(name) => Some(name),
            Mode::Internet | Mode::None | Mode::Host => None,
        }
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mode, Error> {
        let (word, interface) = match text.split_once(':') {
            Some((word, interface)) => (word, Some(interface)),
            None => (text, None),
        };
        let with: fn(Interface) -> Mode = match (word, interface) {
            ("internet", None) => return Ok(Mode::Internet),
            ("none", None) => return Ok(Mode::None),
            ("host", None) => return Ok(Mode::Host),
            ("bridge", _) => Mode::Bridge,
            ("macvlan", _) => Mode::Macvlan,
            ("ipvlan", _) => Mode::Ipvlan,
            ("phys", _) => Mode::Phys,
            ("internet" | "none" | "host", Some(_)) => {
                return Err(invalid(format!("{} names an interface", quoted(text)), format!("write \"{word}\"")));
            }
            _ => {
                let words = MODE_WORDS.map(|word| word.trim_end_matches(':'));
                let hint = did_you_mean(word, words, || {
                    "write \"internet\", \"none\", \"host\", \"bridge:br0\", \"macvlan:eth0\", \"ipvlan:eth0\" or \
                     \"phys:eth1\""
                        .into()
                });
                return Err(invalid(format!("unknown mode {}", quoted(text)), hint));
            }
        };
        let example = if word == "bridge" { "br0" } else { "eth0" };
        let hint = || format!("write the interface behind a colon, for example \"{word}:{example}\"");
        let named = interface.filter(|interface| !interface.is_empty());
        named.ok_or_else(|| invalid(format!("{} names no interface", quoted(text)), hint()))?.parse().map(with)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Internet => f.pad("internet"),
            Mode::None => f.pad("none"),
            Mode::Host => f.pad("host"),
            Mode::Bridge(name) => write!(f, "bridge:{name}"),
            Mode::Macvlan(name) => write!(f, "macvlan:{name}"),
            Mode::Ipvlan(name) => write!(f, "ipvlan:{name}"),
            Mode::Phys(name) => write!(f, "phys:{name}"),
        }
    }
}

/// The name of a network interface, as net/core/dev.c (dev_valid_name) takes it: 1 to 15 bytes without `/`, `:`
/// and white space, and not `.` or `..`. Control characters and quotes are refused too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface(String);

impl Interface {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Interface {
    type Err = Error;

    fn from_str(text: &str) -> Result<Interface, Error> {
        let bad = |c: char| matches!(c, '/' | ':' | '"' | '\\' | ',' | '*') || c.is_whitespace();
        if !(1..=15).contains(&text.len()) || text.contains(bad) || !printable(text) || matches!(text, "." | "..") {
            let hint = "write a name as `ip link` shows it, 1 to 15 characters, for example eth0";
            return Err(invalid(format!("{} is not the name of an interface", quoted(text)), hint));
        }
        Ok(Interface(text.into()))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for Interface {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The hardware address of one interface: never that of a group, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Refuses addresses of groups (the lowest bit of the first byte is set) and the zero address.
    pub fn new(bytes: [u8; 6]) -> Option<Mac> {
        (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(Mac(bytes))
    }

    /// As they go over the wire.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The link-local IPv6 address that the kernel derives from it (RFC 4291 appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mac, Error> {
        let hint = "write six bytes in hexadecimal, for example 02:00:5e:10:20:30";
        let refuse = |why: &str| invalid(format!("{} {why}", quoted(text)), hint);
        let byte = |part: &str| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten();
        let separator = if text.contains('-') { '-' } else { ':' };
        let digits = text.bytes().all(|b| b.is_ascii_hexdigit() || b == separator as u8);
        let bytes: Option<Vec<u8>> = text.split(separator).map(byte).collect();
        let bytes: [u8; 6] = bytes
            .filter(|_| digits)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| refuse("is not a hardware address"))?;
        Mac::new(bytes).ok_or_else(|| refuse("is not the address of one interface"))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Bits per second, at least one kilobit: `10mbit`, `1.5gbit`, `500kbit`. Units are decimal (1 kbit = 1000 bit).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

/// The largest first.
const RATE_UNITS: [(&str, u64); 5] =
    [("tbit", 1_000_000_000_000), ("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1000), ("bit", 1)];
/// 8 bit less than 2^64 bytes would overflow what the kernel counts; no link is near it.
const FASTEST: u64 = 100 * RATE_UNITS[0].1;

impl Rate {
    /// `None` if it is below 1 kbit or above 100 tbit per second.
    pub fn from_bits(bits: u64) -> Option<Rate> {
        (1000..=FASTEST).contains(&bits).then_some(Rate(bits))
    }

    /// Bits per second.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Bytes per second, rounded down; never zero.
    pub fn bytes(self) -> u64 {
        self.0 / 8
    }
}

impl FromStr for Rate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Rate, Error> {
        let hint = "write a number and kbit, mbit or gbit (per second), for example 10mbit";
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let unit = text[end..].trim_start().to_ascii_lowercase();
        let unit = unit.strip_suffix("/s").unwrap_or(&unit);
        let bits = RATE_UNITS.iter().find(|(name, _)| *name == unit);
        let bits = bits.and_then(|(_, factor)| decimal::times(&text[..end], u128::from(*factor)));
        let bits = bits.ok_or_else(|| invalid(format!("{} is not a rate", quoted(text)), hint))?;
        u64::try_from(bits).ok().and_then(Rate::from_bits).ok_or_else(|| {
            invalid(
                format!("{} is out of range", quoted(text)),
                "write a rate from 1kbit to 100tbit, for example 10mbit",
            )
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_unit = |&(unit, factor): &(&str, u64)| {
            let amount = decimal::exactly(self.0.into(), factor.into(), 3)?;
            (!amount.starts_with("0")).then(|| format!("{amount}{unit}"))
        };
        let shortest = RATE_UNITS.iter().filter_map(in_unit).min_by_key(String::len);
        f.pad(&shortest.unwrap_or_else(|| format!("{}bit", self.0)))
    }
}

/// What rides on IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, and ICMPv6 where the address is one of IPv6.
    Icmp,
}

pub(crate) const PROTOCOL_WORDS: [&str; 3] = ["tcp", "udp", "icmp"];

impl FromStr for Protocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Protocol, Error> {
        match text {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            "icmp" => Ok(Protocol::Icmp),
            _ => {
                let hint = did_you_mean(text, PROTOCOL_WORDS, || "write tcp, udp or icmp".into());
                Err(invalid(format!("unknown protocol {}", quoted(text)), hint))
            }
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
        })
    }
}

/// A port or a range of ports, `80` or `8000-8010`; never 0, the first is not above the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// `None` if the range is empty or has port 0.
    pub fn new(first: u16, last: u16) -> Option<Ports> {
        (first > 0 && first <= last).then_some(Ports { first, last })
    }

    /// The lowest port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port, itself included.
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many ports there are; never zero.
    pub fn count(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    /// Whether the port is one of them.
    pub fn contain(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether there is a port in both.
    pub fn overlap(self, other: Ports) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl FromStr for Ports {
    type Err = Error;

    fn from_str(text: &str) -> Result<Ports, Error> {
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let ports = number(first).zip(number(last)).and_then(|(first, last)| Ports::new(first, last));
        ports.ok_or_else(|| {
            let hint = "write a number from 1 to 65535, or first-last, for example 8000-8010";
            invalid(format!("{} is not a port", quoted(text)), hint)
        })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// A range of addresses that share their first bits; the rest of the bits is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Zeroes the bits behind the first `length`; `None` if the address does not have so many.
    pub fn new(address: IpAddr, length: u8) -> Option<Prefix> {
        if length > Prefix::bits(address) {
            return None;
        }
        let address = match address {
            IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & mask(32, length) as u32).into()),
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & mask(128, length)).into()),
        };
        Some(Prefix { address, length })
    }

    /// The prefix that has this address only.
    pub fn host(address: IpAddr) -> Prefix {
        Prefix { address, length: Prefix::bits(address) }
    }

    /// The first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many bits are shared.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether it is of IPv4.
    pub fn is_v4(self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether it has one address only.
    pub fn is_host(self) -> bool {
        self.length == Prefix::bits(self.address)
    }

    /// Whether the address is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        Prefix::bits(address) == Prefix::bits(self.address) && Prefix::new(address, self.length) == Some(self)
    }

    /// Whether there is an address in both.
    pub fn overlaps(self, other: Prefix) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    fn bits(address: IpAddr) -> u8 {
        if address.is_ipv4() { 32 } else { 128 }
    }
}

/// The highest `length` of the lowest `bits` bits.
fn mask(bits: u32, length: u8) -> u128 {
    let all = if bits == 128 { u128::MAX } else { (1 << bits) - 1 };
    all & all.checked_shl(bits - u32::from(length)).unwrap_or(0)
}

impl FromStr for Prefix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Prefix, Error> {
        let hint = "write an address, or an address and a number of bits, for example 192.168.1.0/24";
        let refuse = |why: String| invalid(why, hint);
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| refuse(format!("{} is not an address", quoted(address))))?;
        let Some(length) = length else { return Ok(Prefix::host(address)) };
        let bits = length.parse().ok().filter(|_| length.bytes().all(|b| b.is_ascii_digit()));
        let prefix = bits.and_then(|bits| Prefix::new(address, bits)).ok_or_else(|| {
            refuse(format!("{} is not a number of bits from 0 to {}", quoted(length), Prefix::bits(address)))
        })?;
        if prefix.address != address {
            let hint = format!("write {prefix} for the network, or {address} for the one address");
            return Err(invalid(format!("{} has bits behind the first {length}", quoted(text)), hint));
        }
        Ok(prefix)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_host() {
            true => write!(f, "{}", self.address),
            false => write!(f, "{}/{}", self.address, self.length),
        }
    }
}

/// A name in the DNS, in lower case and without the final dot: at most 253 bytes in labels of at most 63
/// (RFC 1035 section 2.3.4), of letters, digits, `_` and inner `-`. The last label is not a number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

impl DomainName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = Error;

    fn from_str(text: &str) -> Result<DomainName, Error> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let name = text.strip_suffix('.').unwrap_or(text);
        let last = name.rsplit('.').next().unwrap_or_default();
        if name.len() > 253 || !name.split('.').all(label) || last.bytes().all(|b| b.is_ascii_digit()) {
            let hint = "write an address such as 192.168.1.20 or [fd00::1], or a name such as nas.local";
            return Err(invalid(format!("{} is neither an address nor a name", quoted(text)), hint));
        }
        Ok(DomainName(name.to_ascii_lowercase()))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where a [`Destination`] is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// `*`: in `deny` everything, in `allow` everything in the Internet. A port of the LAN is opened by its address.
    Any,
    /// One address or a range.
    Prefix(Prefix),
    /// All addresses that the name has at the moment.
    Name(DomainName),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Any => f.pad("*"),
            Target::Prefix(prefix) => prefix.fmt(f),
            Target::Name(name) => name.fmt(f),
        }
    }
}

/// Something to be reached: `192.168.1.20`, `192.168.1.0/24:631/tcp`, `nas.local:445`, `[fd00::1]:22`, `*:25/tcp`.
///
/// Without a protocol, ports are those of TCP and of UDP; without ports and protocol it is everything there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Where it is.
    pub target: Target,
    /// Its ports; all if `None`, and always so for ICMP.
    pub ports: Option<Ports>,
    /// The protocol; any if `None`, where ports restrict it to TCP and UDP.
    pub protocol: Option<Protocol>,
}

impl FromStr for Destination {
    type Err = Error;

    fn from_str(text: &str) -> Result<Destination, Error> {
        let (rest, protocol) = protocol_of(text)?;
        let (target, ports) = target_and_ports(rest)?;
        if protocol == Some(Protocol::Icmp) && ports.is_some() {
            return Err(invalid(format!("{} has a port, and ICMP has none", quoted(text)), "leave the port away"));
        }
        let target = match target {
            "*" => Target::Any,
            // What begins with a digit and has digits, dots and bits only was meant to be an address.
            text if text.contains([':', '/']) || !text.contains(|c: char| !c.is_ascii_digit() && c != '.') => {
                Target::Prefix(text.parse()?)
            }
            text => Target::Name(text.parse()?),
        };
        Ok(Destination { target, ports, protocol })
    }
}

/// The protocol at the end of the text, and what is before it. A number behind the slash is one of bits.
fn protocol_of(text: &str) -> Result<(&str, Option<Protocol>), Error> {
    match text.rsplit_once('/') {
        Some((rest, word)) if !word.starts_with(|c: char| c.is_ascii_digit()) => Ok((rest, Some(word.parse()?))),
        _ => Ok((text, None)),
    }
}

/// `target:ports`, where an IPv6 target with ports is in brackets.
fn target_and_ports(text: &str) -> Result<(&str, Option<Ports>), Error> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (target, rest) = bracketed.split_once(']').ok_or_else(|| {
            invalid(format!("{} has no closing bracket", quoted(text)), "write for example [fd00::1]:22")
        })?;
        return match rest.strip_prefix(':') {
            Some(ports) => Ok((target, Some(ports.parse()?))),
            None if rest.is_empty() => Ok((target, None)),
            None => Err(invalid(
                format!("{} stands behind the bracket", quoted(rest)),
                "write a colon and the port there, and the bits inside, for example [fd00::/8]:22",
            )),
        };
    }
    match text.split_once(':') {
        // Two colons are an IPv6 address, and so is the whole.
        Some((_, rest)) if rest.contains(':') => Ok((text, None)),
        Some((target, ports)) => Ok((target, Some(ports.parse()?))),
        None => Ok((text, None)),
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.target, self.ports) {
            (Target::Prefix(prefix), Some(ports)) if !prefix.is_v4() => write!(f, "[{prefix}]:{ports}")?,
            (target, Some(ports)) => write!(f, "{target}:{ports}")?,
            (target, None) => write!(f, "{target}")?,
        }
        self.protocol.map_or(Ok(()), |protocol| write!(f, "/{protocol}"))
    }
}

/// Ports of the host that lead into the container: `8080:80`, `127.0.0.1:8080:80/tcp`, `[2001:db8::5]:5353:53/udp`,
/// `8000-8010:9000-9010`. One port alone is the same on both sides. Without an address it is every address of the
/// host, without a protocol it is TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Publish {
    /// The host's address; every one of IPv4 and IPv6 if `None`.
    pub address: Option<IpAddr>,
    /// The host's ports.
    pub host: Ports,
    /// The container's ports, as many as the host's.
    pub container: Ports,
    /// [`Protocol::Tcp`] or [`Protocol::Udp`].
    pub protocol: Protocol,
}

/// Each port needs a socket that keeps it and an entry of the firewall.
const MOST_PUBLISHED: u32 = 1024;

impl Publish {
    /// Whether no two sockets could serve both: the same protocol, a common port and a common address.
    pub fn clashes(&self, other: &Publish) -> bool {
        let same_place = self.address.is_none() || other.address.is_none() || self.address == other.address;
        self.protocol == other.protocol && same_place && self.host.overlap(other.host)
    }
}

impl FromStr for Publish {
    type Err = Error;

    fn from_str(text: &str) -> Result<Publish, Error> {
        let hint = "write host:container, for example 8080:80 or 127.0.0.1:8080:80/tcp";
        let refuse = |why: &str| invalid(format!("{} {why}", quoted(text)), hint);
        let (rest, protocol) = protocol_of(text)?;
        let protocol = protocol.unwrap_or(Protocol::Tcp);
        if protocol == Protocol::Icmp {
            return Err(refuse("has ICMP, which has no ports"));
        }
        let (address, ports) = match rest.strip_prefix('[') {
            Some(bracketed) => match bracketed.split_once("]:") {
                Some((address, ports)) => (Some(address), ports),
                None => return Err(refuse("has no port behind its address")),
            },
            None => match rest.bytes().filter(|b| *b == b':').count() {
                0 | 1 => (None, rest),
                2 => rest.split_once(':').map_or((None, rest), |(address, ports)| (Some(address), ports)),
                _ => return Err(refuse("has too many colons; an IPv6 address goes in brackets")),
            },
        };
        let address: Option<IpAddr> = match address {
            Some("*") | None => None,
            Some(text) => Some(text.parse().map_err(|_| refuse("does not begin with an address of the host"))?),
        };
        let (host, container) = ports.split_once(':').unwrap_or((ports, ports));
        let (host, container): (Ports, Ports) = (host.parse()?, container.parse()?);
        if host.count() != container.count() {
            let sentence = format!("{} has {} ports here and {} there", quoted(text), host.count(), container.count());
            return Err(invalid(sentence, "write ranges of the same length, for example 8000-8010:9000-9010"));
        }
        if host.count() > MOST_PUBLISHED {
            let hint =
                format!("at most {MOST_PUBLISHED} ports are allowed in one entry; an address of its own serves more");
            return Err(invalid(format!("{} publishes {} ports", quoted(text), host.count()), hint));
        }
        if address.is_some_and(|address| address.is_multicast()) {
            return Err(refuse("does not begin with an address of the host"));
        }
        if address == Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
            return Err(invalid(
                format!("{} is at ::1, and the kernel routes nothing back to that address", quoted(text)),
                "write 127.0.0.1 instead, which the name localhost means too",
            ));
        }
        // The unspecified address means every one, of both families.
        let address = address.filter(|address| !address.is_unspecified());
        Ok(Publish { address, host, container, protocol })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        write!(f, "{}:{}/{}", self.host, self.container, self.protocol)
    }
}

serde_as_string!(Mode, Interface, Mac, Rate, Prefix, DomainName, Destination, Publish, Protocol, Ports);

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use proptest::prelude::*;

    use super::*;

    /// What is said about a bad value, and the advice.
    fn refusal<T: FromStr<Err = Error> + fmt::Debug>(text: &str) -> String {
        let e = text.parse::<T>().expect_err(text);
        assert_eq!(e.what(), lazaret_base::Kind::Invalid);
        format!("{e}\n{}", e.advice().unwrap_or_default())
    }

    fn shown<T: FromStr<Err = Error> + fmt::Display + fmt::Debug>(text: &str) -> String {
        text.parse::<T>().unwrap_or_else(|e| panic!("{text}: {e}")).to_string()
    }

    #[test]
    fn modes_read_back_and_name_their_interface() {
        for text in ["internet", "none", "host", "bridge:br0", "macvlan:eth0", "ipvlan:wlan0", "phys:enp3s0f0"] {
            assert_eq!(shown::<Mode>(text), text);
        }
        assert_eq!("bridge:br0".parse::<Mode>().unwrap().interface().unwrap().as_str(), "br0");
        assert_snapshot!(refusal::<Mode>("bridge"), @r#"
        'bridge' names no interface
        write the interface behind a colon, for example "bridge:br0"
        "#);
        assert_snapshot!(refusal::<Mode>("intrenet"), @"
        unknown mode 'intrenet'
        did you mean 'internet'?
        ");
        assert_snapshot!(refusal::<Mode>("phys:a b"), @"
        'a b' is not the name of an interface
        write a name as `ip link` shows it, 1 to 15 characters, for example eth0
        ");
        assert_snapshot!(refusal::<Mode>("none:eth0"), @r#"
        'none:eth0' names an interface
        write "none"
        "#);
    }

    #[test]
    fn a_destination_reads_back_in_one_spelling() {
        for text in [
            "192.168.1.20:631/tcp",
            "192.168.1.20",
            "192.168.1.0/24",
            "192.168.1.0/24:8000-8010/udp",
            "nas.local:445",
            "_svc.example/tcp",
            "db",
            "fd00::1",
            "fd00::/8",
            "fd00::/8/icmp",
            "[fd00::1]:22",
            "[fd00::/8]:22/tcp",
            "*:25/tcp",
            "*/icmp",
        ] {
            assert_eq!(shown::<Destination>(text), text);
        }
        assert_eq!(shown::<Destination>("NAS.Local.:445"), "nas.local:445");
        assert_eq!(shown::<Destination>("10.0.0.1/32"), "10.0.0.1");
        assert_eq!(shown::<Destination>("[fd00::1]"), "fd00::1");
    }

    #[test]
    fn a_bad_destination_is_refused_with_its_remedy() {
        assert_snapshot!(refusal::<Destination>("192.168.1.300"), @"
        '192.168.1.300' is not an address
        write an address, or an address and a number of bits, for example 192.168.1.0/24
        ");
        assert_snapshot!(refusal::<Destination>("192.168.1.20/24"), @"
        '192.168.1.20/24' has bits behind the first 24
        write 192.168.1.0/24 for the network, or 192.168.1.20 for the one address
        ");
        assert_snapshot!(refusal::<Destination>("nas.local:http"), @"
        'http' is not a port
        write a number from 1 to 65535, or first-last, for example 8000-8010
        ");
        assert_snapshot!(refusal::<Destination>("nas.local:80/tpc"), @"
        unknown protocol 'tpc'
        did you mean 'tcp'?
        ");
        assert_snapshot!(refusal::<Destination>("nas.local:80/icmp"), @"
        'nas.local:80/icmp' has a port, and ICMP has none
        leave the port away
        ");
        assert_snapshot!(refusal::<Destination>("[fd00::]/8:22"), @"
        '/8:22' stands behind the bracket
        write a colon and the port there, and the bits inside, for example [fd00::/8]:22
        ");
        for bad in ["", ":80", "nas local", "a..b", "-a", "10.0.0.0/33", "fd00::/129", "x/8", "a:0", "a:2-1", "a:"] {
            refusal::<Destination>(bad);
        }
    }

    #[test]
    fn published_ports_read_back_in_full() {
        assert_eq!(shown::<Publish>("8080:80"), "8080:80/tcp");
        assert_eq!(shown::<Publish>("80"), "80:80/tcp");
        assert_eq!(shown::<Publish>("*:8080:80"), "8080:80/tcp");
        assert_eq!(shown::<Publish>("0.0.0.0:8080:80"), "8080:80/tcp");
        for text in ["127.0.0.1:8080:80/tcp", "[2001:db8::5]:5353:53/udp", "8000-8010:9000-9010/tcp"] {
            assert_eq!(shown::<Publish>(text), text);
        }
        assert_snapshot!(refusal::<Publish>("8000-8010:80"), @"
        '8000-8010:80' has 11 ports here and 1 there
        write ranges of the same length, for example 8000-8010:9000-9010
        ");
        assert_snapshot!(refusal::<Publish>("::1:8080:80"), @"
        '::1:8080:80' has too many colons; an IPv6 address goes in brackets
        write host:container, for example 8080:80 or 127.0.0.1:8080:80/tcp
        ");
        assert_snapshot!(refusal::<Publish>("[::1]:8080:80"), @"
        '[::1]:8080:80' is at ::1, and the kernel routes nothing back to that address
        write 127.0.0.1 instead, which the name localhost means too
        ");
        assert_snapshot!(refusal::<Publish>("eth0:8080:80"), @"
        'eth0:8080:80' does not begin with an address of the host
        write host:container, for example 8080:80 or 127.0.0.1:8080:80/tcp
        ");
        for bad in ["", "a", "80:", ":80", "80/icmp", "70000:80", "[::1]", "224.0.0.1:80:80", "1:2:3:4", "1-1025"] {
            refusal::<Publish>(bad);
        }
    }

    #[test]
    fn publications_clash_where_one_socket_would_stand_for_both() {
        let clash = |a: &str, b: &str| a.parse::<Publish>().unwrap().clashes(&b.parse().unwrap());
        assert!(clash("8080:80", "127.0.0.1:8080:81"));
        assert!(clash("8000-8010:1-11", "8005:80"));
        assert!(!clash("127.0.0.1:8080:80", "127.0.0.2:8080:80"));
        assert!(!clash("53:53/tcp", "53:53/udp"));
    }

    #[test]
    fn rates_are_decimal_and_shown_shortest() {
        assert_eq!("10mbit".parse::<Rate>().unwrap().bits(), 10_000_000);
        assert_eq!("1.5 Gbit/s".parse::<Rate>().unwrap().bytes(), 187_500_000);
        for text in ["10mbit", "1.5gbit", "500kbit", "1kbit", "100tbit"] {
            assert_eq!(shown::<Rate>(text), text);
        }
        assert_snapshot!(refusal::<Rate>("10M"), @"
        '10M' is not a rate
        write a number and kbit, mbit or gbit (per second), for example 10mbit
        ");
        for bad in ["", "0mbit", "1bit", "101tbit", "-1mbit", "mbit", "1mbps"] {
            refusal::<Rate>(bad);
        }
    }

    #[test]
    fn a_hardware_address_is_that_of_one_interface() {
        assert_eq!(shown::<Mac>("02:00:5E:10:20:30"), "02:00:5e:10:20:30");
        assert_eq!(shown::<Mac>("02-00-5e-10-20-30"), "02:00:5e:10:20:30");
        assert_eq!("02:00:5e:10:20:30".parse::<Mac>().unwrap().link_local().to_string(), "fe80::5eff:fe10:2030");
        for bad in ["", "02:00", "01:00:5e:10:20:30", "00:00:00:00:00:00", "02:00:5e:10:20:+3", "02:00:5e-10:20:30"] {
            refusal::<Mac>(bad);
        }
    }

    #[test]
    fn a_prefix_has_its_addresses_and_no_others() {
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        assert!(prefix("10.0.0.0/8").contains("10.255.255.255".parse().unwrap()));
        assert!(!prefix("10.0.0.0/8").contains("11.0.0.0".parse().unwrap()));
        assert!(!prefix("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(prefix("::/0").contains("fe80::1".parse().unwrap()));
        assert!(
            prefix("10.90.0.0/16").overlaps(prefix("10.0.0.0/8")) && !prefix("fd00::/9").overlaps(prefix("fe80::/10"))
        );
        assert_eq!(Prefix::new("10.90.1.7".parse().unwrap(), 20).unwrap().to_string(), "10.90.0.0/20");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_reads_back(text in "[*a-z0-9.:/\\[\\]_-]{0,24}", any in ".{0,16}") {
            for text in [&text, &any] {
                if let Ok(value) = text.parse::<Destination>() {
                    prop_assert_eq!(value.to_string().parse::<Destination>().unwrap(), value);
                }
                if let Ok(value) = text.parse::<Publish>() {
                    prop_assert_eq!(value.to_string().parse::<Publish>().unwrap(), value);
                }
                let _ = (text.parse::<Mode>(), text.parse::<Mac>(), text.parse::<Rate>(), text.parse::<Interface>());
            }
        }

        #[test]
        fn every_rate_reads_back(bits in 1000..=FASTEST, round in 0u32..14) {
            for bits in [bits, bits / 10u64.pow(round) * 10u64.pow(round)] {
                if let Some(rate) = Rate::from_bits(bits) {
                    prop_assert_eq!(rate.to_string().parse::<Rate>().unwrap(), rate);
                }
            }
        }
    }
}
