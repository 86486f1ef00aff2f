//! Which addresses an installation and its containers have. Pure: facts in, addresses out.
//!
//! Everything is derived from a key (the installation and the container's name), so that a container
//! has the same addresses after its lease was lost; what is chosen is recorded all the same.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lazaret_base::{Kind, Result, error};
pub use lazaret_config::{Mac, Prefix};

/// The address of an interface, with the length of the prefix that is on its link: `10.90.0.5/20`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAddress {
    /// The address itself.
    pub ip: IpAddr,
    /// How many bits its neighbours share with it; no more than the address has.
    pub length: u8,
}

impl HostAddress {
    /// An address without neighbours: /32 or /128.
    pub fn alone(ip: IpAddr) -> HostAddress {
        HostAddress { ip, length: Prefix::host(ip).length() }
    }

    /// The prefix that is on the link.
    pub fn prefix(self) -> Prefix {
        Prefix::new(self.ip, self.length).unwrap_or(Prefix::host(self.ip))
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.length)
    }
}

/// The length of the subnet that is chosen: 4094 hosts, more than the 1023 ports of a bridge.
const LENGTH: u8 = 20;

/// Routes for more than a /8 are default routes in disguise (a VPN's 0.0.0.0/1 and 128.0.0.0/1, or its
/// "everything but"): whatever is chosen is inside them, and more specific.
const WIDEST: u8 = 8;

/// Where a subnet is looked for, in this order: corners of the private ranges that few others use (Docker
/// takes 172.17-172.31 and 192.168, libvirt 192.168.122, LXC 10.0.3, home routers 192.168.0/1/178 and
/// 10.0.0), then the rest of them, and at last the range for benchmarks of RFC 2544, which no host
/// should meet in the wild.
const CANDIDATES: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(10, 90, 0, 0), 15),
    (Ipv4Addr::new(10, 64, 0, 0), 10),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
];

/// The first IPv4 subnet that overlaps none of the addresses and routes that the host has.
///
/// Fails, as [`Kind::Exists`], where every candidate is taken.
pub fn choose(taken: impl IntoIterator<Item = Prefix>) -> Result<Prefix> {
    let taken: Vec<Prefix> = taken.into_iter().filter(|prefix| prefix.is_v4() && prefix.length() >= WIDEST).collect();
    // /16 first (10.90, 10.91, ...), then inside a /16: two installations lie apart, and either is
    // recognized at a glance.
    let candidates = CANDIDATES.iter().flat_map(|(first, length)| {
        let sixteens = 1_u32 << (16_u8.saturating_sub(*length));
        let first = first.to_bits();
        (0..1_u32 << (LENGTH - 16))
            .flat_map(move |within| (0..sixteens).map(move |sixteen| first + (sixteen << 16) + (within << 12)))
    });
    candidates
        .filter_map(|bits| Prefix::new(IpAddr::V4(bits.into()), LENGTH))
        .find(|candidate| !taken.iter().any(|prefix| prefix.overlaps(*candidate)))
        .ok_or_else(|| {
            error("every private IPv4 subnet overlaps an address or a route of this host")
                .hint("set the subnet yourself, to one that this host never needs to reach")
                .kind(Kind::Exists)
        })
}

/// The IPv6 prefix of an installation: unique local, of 40 random bits (RFC 4193), subnet 1, a /64.
pub fn unique_local(random: [u8; 5]) -> Prefix {
    let [a, b, c, d, e] = random;
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let first = Ipv6Addr::new(pair(0xfd, a), pair(b, c), pair(d, e), 1, 0, 0, 0, 0);
    Prefix::new(IpAddr::V6(first), 64).expect("an IPv6 address has more than 64 bits")
}

/// The host's own address in a prefix: the first that a host may have.
pub fn gateway(prefix: Prefix) -> IpAddr {
    match prefix.address() {
        IpAddr::V4(first) => IpAddr::V4((first.to_bits() | 1).into()),
        IpAddr::V6(first) => IpAddr::V6((first.to_bits() | 1).into()),
    }
}

/// The hardware address of a container: locally administered (the 2 of the first byte), 40 bits of hash.
pub fn mac(key: &str) -> Mac {
    with_first_byte(0x02, hash(key, "mac"))
}

/// The hardware address of the host's end of a container's link. Never that of the container: a bridge
/// keeps frames for the addresses of its own ports (`br_fdb_add_local`).
pub fn host_mac(key: &str) -> Mac {
    with_first_byte(0xfe, hash(key, "host"))
}

fn with_first_byte(first: u8, hash: u64) -> Mac {
    let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
    Mac::new([first, a, b, c, d, e]).expect("the first byte is even and not zero")
}

/// The name of the host's end of a container's link: `lz-` and 48 bits of hash, all that the 15 bytes of
/// an interface's name have room for.
pub fn veth_name(key: &str) -> String {
    format!("lz-{:012x}", hash(key, "veth") >> 16)
}

/// The IPv4 address of a container: where its hash points to, or the next free one behind it.
///
/// Never the subnet's own address, the gateway's, or the broadcast address. Fails, as [`Kind::Exists`],
/// where all are taken.
pub fn address4(key: &str, subnet: Prefix, taken: impl Fn(Ipv4Addr) -> bool) -> Result<Ipv4Addr> {
    let IpAddr::V4(first) = subnet.address() else {
        return Err(error(format!("`{subnet}` is not an IPv4 subnet")).kind(Kind::Invalid));
    };
    // The subnet, the gateway and the broadcast address are not for containers.
    let hosts = (1_u64 << 32_u8.saturating_sub(subnet.length())).saturating_sub(3);
    let start = hash(key, "address").checked_rem(hosts).unwrap_or_default();
    (0..hosts)
        .map(|step| first.to_bits() + 2 + ((start + step) % hosts) as u32)
        .map(Ipv4Addr::from_bits)
        .find(|address| !taken(*address))
        .ok_or_else(|| {
            error(format!("every address of `{subnet}` is taken")).hint("set a larger subnet").kind(Kind::Exists)
        })
}

/// The IPv6 address of a container: 64 bits of hash behind the prefix, as opaque as those of RFC 7217.
///
/// The universal/local bit is zero, so that it is never the anycast range of RFC 2526 nor anything that
/// is derived from a hardware address; the top bits keep it away from the gateway's `::1`.
pub fn address6(key: &str, prefix: Prefix) -> Ipv6Addr {
    let IpAddr::V6(first) = prefix.address() else { return Ipv6Addr::UNSPECIFIED };
    let own = hash(key, "address6") & !0x0200_0000_0000_0000 | 0x4000_0000_0000_0000;
    let room = (128 - u32::from(prefix.length())).min(64);
    let own = if room == 64 { own } else { own & ((1 << room) - 1) };
    Ipv6Addr::from_bits(first.to_bits() | u128::from(own))
}

/// A hash that stays the same from release to release: FNV-1a of 64 bits, then stirred (the finalizer
/// of SplitMix64), because FNV leaves the high bits of short keys almost alike. Nobody gains by a
/// collision: addresses are probed, names and hardware addresses are refused when they exist.
fn hash(key: &str, purpose: &str) -> u64 {
    let bytes = purpose.bytes().chain([0]).chain(key.bytes());
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn chosen(taken: &[&str]) -> String {
        choose(taken.iter().map(|text| prefix(text))).unwrap().to_string()
    }

    #[test]
    fn the_subnet_avoids_what_the_host_has() {
        assert_eq!(chosen(&[]), "10.90.0.0/20");
        assert_eq!(chosen(&["10.90.3.7"]), "10.91.0.0/20");
        assert_eq!(chosen(&["10.90.0.0/16"]), "10.91.0.0/20");
        assert_eq!(chosen(&["10.90.0.0/24", "10.91.0.0/24"]), "10.90.16.0/20");
        assert_eq!(chosen(&["10.0.0.0/8"]), "172.16.0.0/20");
        assert_eq!(chosen(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]), "198.18.0.0/20");
    }

    #[test]
    fn a_default_route_in_disguise_takes_nothing() {
        assert_eq!(chosen(&["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "8.0.0.0/7", "fc00::/7"]), "10.90.0.0/20");
    }

    #[test]
    fn a_host_that_routes_everything_private_is_told_what_to_do() {
        let all = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15"].map(prefix);
        let e = choose(all).unwrap_err();
        assert_eq!(e.what(), Kind::Exists);
        assert!(e.advice().unwrap().contains("set the subnet"));
    }

    /// What is derived today must be derived by every later release: it is in people's firewalls.
    #[test]
    fn derived_values_never_change() {
        assert_eq!(veth_name("web").len(), 15);
        let derived = format!(
            "{} {} {} {} {}",
            veth_name("web"),
            mac("web"),
            host_mac("web"),
            address4("web", prefix("10.90.0.0/20"), |_| false).unwrap(),
            address6("web", unique_local([1, 2, 3, 4, 5]))
        );
        insta::assert_snapshot!(
            derived,
            @"lz-07faec2f8998 02:88:82:83:79:13 fe:e1:05:1c:dc:c4 10.90.9.184 fd01:203:405:1:d092:1637:e750:cb5c"
        );
    }

    #[test]
    fn the_gateway_is_the_first_host() {
        assert_eq!(gateway(prefix("10.90.16.0/20")).to_string(), "10.90.16.1");
        assert_eq!(gateway(unique_local([0xab; 5])).to_string(), "fdab:abab:abab:1::1");
    }

    #[test]
    fn a_full_or_tiny_subnet_is_said_to_be_full() {
        assert_eq!(address4("web", prefix("10.0.0.0/30"), |_| false).unwrap().to_string(), "10.0.0.2");
        for (subnet, full) in [("10.0.0.0/30", true), ("10.0.0.0/31", false), ("10.0.0.0/32", false)] {
            assert_eq!(address4("web", prefix(subnet), |_| full).unwrap_err().what(), Kind::Exists);
        }
    }

    proptest! {
        #[test]
        fn a_chosen_subnet_overlaps_nothing(routes in proptest::collection::vec((any::<u32>(), 8_u8..=32), 0..200)) {
            let taken: Vec<Prefix> =
                routes.into_iter().filter_map(|(bits, length)| Prefix::new(IpAddr::V4(bits.into()), length)).collect();
            if let Ok(subnet) = choose(taken.iter().copied()) {
                prop_assert_eq!(subnet.length(), LENGTH);
                prop_assert!(taken.iter().all(|prefix| !prefix.overlaps(subnet)));
            }
        }

        #[test]
        fn addresses_are_inside_and_never_reserved(key in ".{0,40}", bits in any::<u32>(), length in 8_u8..=30) {
            let subnet = Prefix::new(IpAddr::V4(bits.into()), length).unwrap();
            let address = address4(&key, subnet, |_| false).unwrap();
            prop_assert!(subnet.contains(address.into()));
            prop_assert_ne!(IpAddr::V4(address), subnet.address());
            prop_assert_ne!(IpAddr::V4(address), gateway(subnet));
            let last = Ipv4Addr::from_bits(match subnet.address() {
                IpAddr::V4(first) => first.to_bits() | (u32::MAX >> length),
                IpAddr::V6(_) => unreachable!(),
            });
            prop_assert_ne!(address, last);
        }

        #[test]
        fn every_address_of_a_subnet_is_found_in_the_end(keys in proptest::collection::vec(".{0,8}", 13)) {
            let subnet = prefix("10.1.2.0/28");
            let mut taken = BTreeSet::new();
            for key in &keys {
                let address = address4(key, subnet, |address| taken.contains(&address)).unwrap();
                prop_assert!(taken.insert(address));
            }
            prop_assert!(address4("late", subnet, |address| taken.contains(&address)).is_err());
        }

        #[test]
        fn an_ipv6_address_is_in_the_prefix_and_not_the_gateway(key in ".{0,40}", random in any::<[u8; 5]>()) {
            let prefix = unique_local(random);
            let address = address6(&key, prefix);
            prop_assert!(prefix.contains(address.into()));
            prop_assert_ne!(IpAddr::V6(address), gateway(prefix));
        }
    }

    #[test]
    fn thousand_containers_share_nothing() {
        let keys: Vec<String> = (0..1000).map(|n| format!("node{n}")).collect();
        let count = |of: &dyn Fn(&str) -> String| keys.iter().map(|key| of(key)).collect::<BTreeSet<_>>().len();
        assert_eq!(count(&|key| mac(key).to_string()), 1000);
        assert_eq!(count(&veth_name), 1000);
        assert_eq!(count(&|key| address6(key, unique_local([0; 5])).to_string()), 1000);
    }
}
