//! The firewall of one installation, as nft text: the whole of it, and what changes with one container.
//!
//! The rules are the same for every container and do not grow: what differs is in sets and maps, keyed by address
//! or port, so that attaching or changing one container costs the same whether there are two or a thousand. Only
//! `allow`, `deny` and losses need chains of a container's own.
//!
//! Two tables share the work. The one of family `bridge` sees to it at the container's port that every address is
//! true; the one of family `inet` decides by these addresses. Ports are isolated from each other, so that every
//! packet, also one to another container, is routed by the host and passes here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr};

use lazaret_config::{Destination, Name, Prefix, Protocol, Publish, Target};

use crate::policy::{Member, ROUTER, Site, Unrouted, World, disjoint};

/// Both tables, which replace whatever has their names, in one transaction.
pub fn whole(world: &World) -> String {
    let mut all = Holdings::default();
    for name in world.members.keys() {
        let Holdings { chains, limits, elements } = holdings(world, name);
        all.chains.extend(chains);
        all.limits.extend(limits);
        all.elements.extend(elements);
    }
    all.chains.extend(surroundings(world));
    let site = &world.site;
    format!("{}{}\n{}", replaced(site), inet_table(site, &all), bridge_table(site, &all))
}

/// Both tables taken away.
pub fn gone(site: &Site) -> String {
    replaced(site)
}

/// What counts as LAN, and where the host forwards nothing, after the host's networks have changed.
pub fn surrounded(world: &World) -> String {
    let table = &world.site.table;
    let mut text = String::new();
    for (chain, rules) in surroundings(world) {
        push(&mut text, format!("flush chain inet {table} {chain}"));
        rules.iter().for_each(|rule| push(&mut text, format!("add rule inet {table} {chain} {rule}")));
    }
    text
}

/// What one container has in the tables: its elements of the shared sets, and chains of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Holdings {
    /// Rules by chain.
    chains: BTreeMap<String, Vec<String>>,
    /// Limits by name; one that changes gets another name.
    limits: BTreeMap<String, String>,
    elements: BTreeSet<Element>,
}

/// What the container has in the tables of this world; nothing if it is not attached.
///
/// What a pair shares is in the holdings of both.
pub fn holdings(world: &World, name: &Name) -> Holdings {
    let mut all = Holdings::default();
    if let Some(member) = world.members.get(name) {
        all.hold_port(member);
        all.hold_zones(member);
        all.hold_peers(world, member);
        all.hold_exceptions(world, member);
        all.hold_publications(member);
        all.hold_sent(world, member);
    }
    all
}

/// The transaction from one state of a container to another; `None` if they are the same.
///
/// It fails as a whole if the tables do not hold what `before` says, for instance since somebody flushed them.
pub fn transition(site: &Site, before: &Holdings, after: &Holdings) -> Option<String> {
    let table = &site.table;
    let mut text = String::new();
    // First what refers, then what is referred to; and the other way round for what is new.
    for (set, elements) in by_set(before.elements.difference(&after.elements)) {
        let keys: Vec<&str> = elements.iter().map(|element| &*element.key).collect();
        push(&mut text, format!("delete element {} {table} {} {{ {} }}", set.family, set.name, keys.join(", ")));
    }
    let changed = before.chains.iter().filter(|(chain, rules)| after.chains.get(*chain) != Some(*rules));
    changed.for_each(|(chain, _)| push(&mut text, format!("flush chain inet {table} {chain}")));
    for chain in before.chains.keys().filter(|chain| !after.chains.contains_key(*chain)) {
        push(&mut text, format!("delete chain inet {table} {chain}"));
    }
    for limit in before.limits.keys().filter(|limit| !after.limits.contains_key(*limit)) {
        push(&mut text, format!("delete limit inet {table} {limit}"));
    }
    for (limit, rate) in after.limits.iter().filter(|(limit, _)| !before.limits.contains_key(*limit)) {
        push(&mut text, format!("add limit inet {table} {limit} {{ {rate}; }}"));
    }
    for (chain, rules) in after.chains.iter().filter(|(chain, rules)| before.chains.get(*chain) != Some(rules)) {
        push(&mut text, format!("add chain inet {table} {chain}"));
        for rule in rules {
            push(&mut text, format!("add rule inet {table} {chain} {rule}"));
        }
    }
    for (set, elements) in by_set(after.elements.difference(&before.elements)) {
        let elements: Vec<String> = elements.into_iter().map(Element::text).collect();
        push(&mut text, format!("add element {} {table} {} {{ {} }}", set.family, set.name, elements.join(", ")));
    }
    (!text.is_empty()).then_some(text)
}

/// One set or map of the tables.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Set {
    family: &'static str,
    kind: &'static str,
    name: &'static str,
    about: &'static str,
    /// What its elements are, as nft says it.
    of: &'static str,
}

/// A set of addresses, or of what else the words name.
const fn set(name: &'static str, of: &'static str, about: &'static str) -> Set {
    Set { family: "inet", kind: "set", name, about, of }
}

const fn map(name: &'static str, of: &'static str, about: &'static str) -> Set {
    Set { family: "inet", kind: "map", name, about, of }
}

const fn at_port(name: &'static str, of: &'static str, about: &'static str) -> Set {
    Set { family: "bridge", kind: "set", name, about, of }
}

// No set has intervals. Hashed sets take an element at the same cost however large they are, while sets with
// intervals are copied (nft_set_pipapo) or walked (nft_set_rbtree) by each transaction; and while a transaction that
// brings a new rbtree is committed, lookups in it miss (measured on 6.18): packets that it should stop would pass.
const INTERNET4: Set = set("internet4", "type ipv4_addr", "Containers that may reach the Internet.");
const INTERNET6: Set = set("internet6", "type ipv6_addr", "");
const LAN4: Set = set("lan4", "type ipv4_addr", "Containers that may reach the LAN.");
const LAN6: Set = set("lan6", "type ipv6_addr", "");
const HOST4: Set = map("host4", "type ipv4_addr : verdict", "Containers that may reach the host.");
const HOST6: Set = map("host6", "type ipv6_addr : verdict", "");
const PEERS4: Set = set("peers4", "type ipv4_addr . ipv4_addr", "Pairs of containers that have named each other.");
const PEERS6: Set = set("peers6", "type ipv6_addr . ipv6_addr", "");
const PARTED4: Set = set("parted4", "type ipv4_addr . ipv4_addr", "Pairs of containers that a test has parted.");
const PARTED6: Set = set("parted6", "type ipv6_addr . ipv6_addr", "");
const DENY4: Set = map("deny4", "type ipv4_addr : verdict", "Destinations that a container may not reach.");
const DENY6: Set = map("deny6", "type ipv6_addr : verdict", "");
const ALLOW4: Set = map("allow4", "type ipv4_addr : verdict", "Destinations that a container may reach beside.");
const ALLOW6: Set = map("allow6", "type ipv6_addr : verdict", "");
const ANYWHERE4: Set =
    map("anywhere4", "type ipv4_addr : verdict", "What a container may reach anywhere in the Internet.");
const ANYWHERE6: Set = map("anywhere6", "type ipv6_addr : verdict", "");
const SENT4: Set = map("sent4", "type ipv4_addr : verdict", "Containers that send slowly, or lose what they send.");
const SENT6: Set = map("sent6", "type ipv6_addr : verdict", "");
const LOSS4: Set = map("loss4", "type ipv4_addr : verdict", "Containers that lose what is sent to them, for tests.");
const LOSS6: Set = map("loss6", "type ipv6_addr : verdict", "");
const PUBLISHED4: Set = map(
    "published4",
    "type inet_proto . inet_service : ipv4_addr . inet_service",
    "Ports of every address of the host.",
);
const PUBLISHED6: Set = map("published6", "type inet_proto . inet_service : ipv6_addr . inet_service", "");
const PUBLISHED_AT4: Set = map(
    "published_at4",
    "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
    "Ports of one address of the host.",
);
const PUBLISHED_AT6: Set =
    map("published_at6", "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service", "");
const PORTS: Set = at_port("ports", "type ifname", "The containers' ports, and what each may call itself.");
const MACS: Set = at_port("macs", "type ifname . ether_addr", "");
const STATIONS4: Set = at_port("stations4", "type ifname . ether_addr . ipv4_addr", "");
const STATIONS6: Set = at_port("stations6", "type ifname . ether_addr . ipv6_addr", "");
// The same addresses as an offset into a neighbour advertisement, which nft 1.0.6 has no name for.
const TARGETS6: Set = at_port("targets6", "typeof iifname . @th,64,128", "");

const INET: [&Set; 24] = [
    &INTERNET4,
    &INTERNET6,
    &LAN4,
    &LAN6,
    &HOST4,
    &HOST6,
    &PEERS4,
    &PEERS6,
    &PARTED4,
    &PARTED6,
    &DENY4,
    &DENY6,
    &ALLOW4,
    &ALLOW6,
    &ANYWHERE4,
    &ANYWHERE6,
    &SENT4,
    &SENT6,
    &LOSS4,
    &LOSS6,
    &PUBLISHED4,
    &PUBLISHED6,
    &PUBLISHED_AT4,
    &PUBLISHED_AT6,
];
const BRIDGE: [&Set; 5] = [&PORTS, &MACS, &STATIONS4, &STATIONS6, &TARGETS6];

/// One element of a set, or one entry of a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Element {
    set: &'static Set,
    key: String,
    value: Option<String>,
}

impl Element {
    fn new(set: &'static Set, key: impl ToString) -> Element {
        Element { set, key: key.to_string(), value: None }
    }

    fn text(&self) -> String {
        match &self.value {
            Some(value) => format!("{} : {value}", self.key),
            None => self.key.clone(),
        }
    }
}

fn by_set<'a>(elements: impl Iterator<Item = &'a Element>) -> BTreeMap<&'static Set, Vec<&'a Element>> {
    let mut sets: BTreeMap<_, Vec<_>> = BTreeMap::new();
    elements.for_each(|element| sets.entry(element.set).or_default().push(element));
    sets
}

impl Holdings {
    /// These and those of another container. What the two share is there once.
    pub fn with(mut self, other: Holdings) -> Holdings {
        self.chains.extend(other.chains);
        self.limits.extend(other.limits);
        self.elements.extend(other.elements);
        self
    }

    fn hold(&mut self, set: &'static Set, key: impl ToString) {
        self.elements.insert(Element::new(set, key));
    }

    /// The address in the set of its family.
    fn hold_address(&mut self, [set4, set6]: [&'static Set; 2], address: IpAddr) {
        self.hold(if address.is_ipv4() { set4 } else { set6 }, address);
    }

    /// The entry in the map of the address's family.
    fn hold_entry(&mut self, [map4, map6]: [&'static Set; 2], address: IpAddr, value: String) {
        let set = if address.is_ipv4() { map4 } else { map6 };
        self.elements.insert(Element { set, key: address.to_string(), value: Some(value) });
    }

    fn hold_port(&mut self, member: &Member) {
        let port = format!("\"{}\"", member.port);
        self.hold(&PORTS, &port);
        self.hold(&MACS, format!("{port} . {}", member.mac));
        for address in member.addresses() {
            match address {
                IpAddr::V4(v4) => self.hold(&STATIONS4, format!("{port} . {} . {v4}", member.mac)),
                IpAddr::V6(v6) => {
                    self.hold(&STATIONS6, format!("{port} . {} . {v6}", member.mac));
                    self.hold(&TARGETS6, format!("{port} . {:#034x}", v6.to_bits()));
                }
            }
        }
    }

    fn hold_zones(&mut self, member: &Member) {
        let network = &member.network;
        for address in [IpAddr::from(member.address), member.address6.into()] {
            if network.internet {
                self.hold_address([&INTERNET4, &INTERNET6], address);
            }
            if network.lan {
                self.hold_address([&LAN4, &LAN6], address);
            }
        }
    }

    fn hold_peers(&mut self, world: &World, member: &Member) {
        for peer in world.peers(member) {
            self.hold_pair([&PEERS4, &PEERS6], member, peer);
        }
        let of_pair = world.partitions.iter().filter_map(|(a, b)| match &member.name {
            name if name == a => Some(b),
            name if name == b => Some(a),
            _ => None,
        });
        for other in of_pair.filter_map(|other| world.members.get(other)) {
            self.hold_pair([&PARTED4, &PARTED6], member, other);
        }
    }

    /// Both directions of a pair.
    fn hold_pair(&mut self, [set4, set6]: [&'static Set; 2], a: &Member, b: &Member) {
        for (from, to) in [(a, b), (b, a)] {
            self.hold(set4, format!("{} . {}", from.address, to.address));
            self.hold(set6, format!("{} . {}", from.address6, to.address6));
        }
    }

    fn hold_exceptions(&mut self, world: &World, member: &Member) {
        let rules = |entries: &[Destination], verdict| {
            entries.iter().flat_map(|entry| entry_rules(world, entry, verdict)).collect::<Vec<_>>()
        };
        let network = &member.network;
        let deny = rules(&network.deny, Verdict::Deny);
        if network.host {
            self.hold_host(member, !deny.is_empty());
        }
        let (any, named): (Vec<_>, Vec<_>) =
            network.allow.iter().cloned().partition(|entry| entry.target == Target::Any);
        let lists = [
            ("deny", [&DENY4, &DENY6], deny),
            ("allow", [&ALLOW4, &ALLOW6], rules(&named, Verdict::Allow)),
            ("anywhere", [&ANYWHERE4, &ANYWHERE6], rules(&any, Verdict::Allow)),
        ];
        for (word, maps, rules) in lists.into_iter().filter(|(.., rules)| !rules.is_empty()) {
            let verdict = self.jump("jump", word, member, |_| rules);
            member.addresses().into_iter().for_each(|address| self.hold_entry(maps, address, verdict.clone()));
        }
    }

    /// All of the host, but what is denied: then in the order in which everybody else is judged.
    fn hold_host(&mut self, member: &Member, denied: bool) {
        let rules = |name: &Name| vec!["jump offered".into(), format!("jump deny_{name}"), "accept".into()];
        let verdict = if denied { self.jump("goto", "host", member, rules) } else { "accept".into() };
        member.addresses().into_iter().for_each(|address| self.hold_entry([&HOST4, &HOST6], address, verdict.clone()));
    }

    fn hold_publications(&mut self, member: &Member) {
        for publish in &member.network.publish {
            for (host, container) in (publish.host.first()..=publish.host.last()).zip(publish.container.first()..) {
                self.hold_published(member, publish, host, container);
            }
        }
    }

    fn hold_published(&mut self, member: &Member, publish: &Publish, host: u16, container: u16) {
        let mut hold = |set, key, value| {
            self.elements.insert(Element { set, key, value: Some(value) });
        };
        let place = format!("{} . {host}", publish.protocol);
        let (value4, value6) =
            (format!("{} . {container}", member.address), format!("{} . {container}", member.address6));
        match publish.address {
            Some(IpAddr::V4(address)) => hold(&PUBLISHED_AT4, format!("{address} . {place}"), value4),
            Some(IpAddr::V6(address)) => hold(&PUBLISHED_AT6, format!("{address} . {place}"), value6),
            None => {
                hold(&PUBLISHED4, place.clone(), value4);
                hold(&PUBLISHED6, place, value6);
            }
        }
    }

    /// What is done to packets of a container: too many are dropped, and some are lost on purpose.
    fn hold_sent(&mut self, world: &World, member: &Member) {
        let mut rules = Vec::new();
        if let Some(rate) = member.network.rate_up {
            let bytes = rate.bytes();
            let limit = format!("upload_{}_{bytes}", member.name);
            rules.push(format!("limit name \"{limit}\" drop"));
            // The kernel adds what a second lets through (`nft_limit_init`). So it only stops who gets around the queue
            // in the container, which keeps the rate exactly ([`limit_upload`](crate::shape::limit_upload)).
            let burst = (bytes / 10).clamp(256 << 10, u64::from(u32::MAX));
            self.limits.insert(limit, format!("rate over {bytes} bytes/second burst {burst} bytes"));
        }
        let losses = losses(world, member);
        if !losses.is_empty() {
            let verdict = self.jump("jump", "loss", member, |_| losses);
            rules.push(verdict.clone());
            for address in [IpAddr::from(member.address), member.address6.into()] {
                self.hold_entry([&LOSS4, &LOSS6], address, verdict.clone());
            }
        }
        if !rules.is_empty() {
            let verdict = self.jump("jump", "sent", member, |_| rules);
            for address in member.addresses() {
                self.hold_entry([&SENT4, &SENT6], address, verdict.clone());
            }
        }
    }

    /// A chain of the container's own, and the verdict that leads there.
    fn jump(&mut self, how: &str, word: &str, member: &Member, rules: impl FnOnce(&Name) -> Vec<String>) -> String {
        let chain = format!("{word}_{}", member.name);
        let verdict = format!("{how} {chain}");
        self.chains.insert(chain, rules(&member.name));
        verdict
    }
}

/// What drops the packets that a container loses.
fn losses(world: &World, member: &Member) -> Vec<String> {
    let mut rules = Vec::new();
    for loss in world.losses.get(&member.name).map_or(&[][..], Vec::as_slice) {
        let lose = match loss.share {
            10_000.. => "drop".into(),
            share => format!("numgen random mod 10000 < {share} drop"),
        };
        match loss.to.as_ref().map(|to| world.members.get(to)) {
            None => rules.push(lose),
            Some(Some(other)) => {
                for address in [IpAddr::from(other.address), other.address6.into()] {
                    let ip = family(address);
                    rules.push(format!("{ip} saddr {address} {lose}"));
                    rules.push(format!("{ip} daddr {address} {lose}"));
                }
            }
            // Nothing is lost on the way to a container that is not there.
            Some(None) => {}
        }
    }
    rules
}

#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Allow,
    Deny,
}

/// The rules of one entry of `allow` or `deny`, each with the entry as its comment.
fn entry_rules(world: &World, entry: &Destination, verdict: Verdict) -> Vec<String> {
    let wheres: Vec<Place> = match world.settled(entry) {
        Some(prefixes) => prefixes.into_iter().map(place).collect(),
        None => vec![Place { is_v4: None, text: String::new() }],
    };
    let word = match verdict {
        Verdict::Allow => "accept",
        Verdict::Deny => "goto refuse",
    };
    let comment = entry.to_string();
    // nft takes 128 bytes of comment (NFTNL_UDATA_COMMENT_MAXLEN), and names may have 253.
    let comment = if comment.len() <= 100 { format!(" comment \"{comment}\"") } else { String::new() };
    wheres.iter().map(|place| format!("{}{}{word}{comment}", place.text, service(entry, place.is_v4))).collect()
}

/// The half of a rule that says where to, with a space behind it.
struct Place {
    is_v4: Option<bool>,
    text: String,
}

fn place(prefix: Prefix) -> Place {
    let text = match (prefix.length(), prefix.is_v4()) {
        (0, true) => "meta nfproto ipv4 ".into(),
        (0, false) => "meta nfproto ipv6 ".into(),
        _ => format!("{} daddr {prefix} ", family(prefix.address())),
    };
    Place { is_v4: Some(prefix.is_v4()), text }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

/// The half of a rule that says what for, with a space behind it.
fn service(entry: &Destination, is_v4: Option<bool>) -> String {
    match (entry.protocol, entry.ports) {
        (None, None) => String::new(),
        (None, Some(ports)) => format!("meta l4proto {{ tcp, udp }} th dport {ports} "),
        (Some(Protocol::Icmp), _) => match is_v4 {
            Some(true) => "meta l4proto icmp ".into(),
            Some(false) => "meta l4proto ipv6-icmp ".into(),
            None => "meta l4proto { icmp, ipv6-icmp } ".into(),
        },
        (Some(protocol), None) => format!("meta l4proto {protocol} "),
        (Some(protocol), Some(ports)) => format!("{protocol} dport {ports} "),
    }
}

/// The chains that know what is around the host: what is LAN (what else an address may be returns), and between which
/// interfaces it is no router.
fn surroundings(world: &World) -> [(String, Vec<String>); 4] {
    let (v4, v6): (Vec<_>, Vec<_>) = disjoint(world.lan()).into_iter().partition(|prefix| prefix.is_v4());
    let (global, special): (Vec<_>, Vec<_>) = v6.into_iter().partition(is_global);
    let rules = |prefixes: Vec<Prefix>| -> Vec<String> {
        prefixes.into_iter().map(|prefix| format!("{}goto lan", place(prefix).text)).collect()
    };
    // Most of what is asked for is in the one range that the Internet's IPv6 addresses are of.
    let split = "ip6 daddr 2000::/3 goto near6_global".into();
    [
        ("near4".into(), rules(v4)),
        ("near6_global".into(), rules(global)),
        ("near6".into(), [vec![split], rules(special)].concat()),
        ("elsewhere".into(), unrouted(&world.unrouted)),
    ]
}

/// What is neither from nor to a container.
fn unrouted(Unrouted { v4, v6, between }: &Unrouted) -> Vec<String> {
    if between.is_empty() {
        return Vec::new();
    }
    let names: Vec<String> = between.iter().map(|name| format!("\"{name}\"")).collect();
    let names = names.join(", ");
    let families = [(*v4, "ipv4"), (*v6, "ipv6")].into_iter().filter(|(is, _)| *is);
    families
        .map(|(_, family)| format!("meta nfproto {family} iifname {{ {names} }} oifname {{ {names} }} drop"))
        .collect()
}

/// Whether it is in 2000::/3; nothing that is as wide counts as LAN.
fn is_global(prefix: &Prefix) -> bool {
    matches!(prefix.address(), IpAddr::V6(address) if address.to_bits() >> 125 == 0b001)
}

/// "Add, delete, define" replaces a table whether or not it is there.
fn replaced(site: &Site) -> String {
    let table = &site.table;
    format!(
        "\
add table inet {table}
delete table inet {table}
add table bridge {table}
delete table bridge {table}
"
    )
}

/// Decides where a container's packets may go, and translates addresses.
fn inet_table(site: &Site, all: &Holdings) -> String {
    let Site { table, bridge, subnet, gateway, subnet6, gateway6, .. } = site;
    let sets = declared(&INET, all);
    let chains = chains(all);
    let translate6 = match site.translate6 {
        true => format!("\n        ip6 saddr {subnet6} oifname != \"{bridge}\" masquerade"),
        false => String::new(),
    };
    let all_routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let all_dhcp = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    format!(
        r#"table inet {table} {{
{sets}
    # What a container sends, wherever it goes.
    chain prerouting {{
        type filter hook prerouting priority mangle; policy accept;
        iifname "{bridge}" jump sent
    }}

    chain sent {{
        # Else route_localnet, which publishing on 127.0.0.1 needs, would open the host's loopback.
        ip daddr 127.0.0.0/8 drop
        ip saddr vmap @sent4
        ip6 saddr vmap @sent6
    }}

    chain postrouting {{
        type filter hook postrouting priority mangle; policy accept;
        oifname "{bridge}" ip daddr vmap @loss4
        oifname "{bridge}" ip6 daddr vmap @loss6
    }}

    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{bridge}" oifname "{bridge}" goto between
        iifname "{bridge}" goto outgoing
        oifname "{bridge}" goto incoming
        goto elsewhere
    }}

    # From a container into the world. Each packet of what a container began is decided anew, so that a change of
    # the policy takes effect at once.
    chain outgoing {{
        ct state invalid drop
        ct direction reply ct state established,related accept
        ip saddr vmap @deny4
        ip6 saddr vmap @deny6
        ip saddr vmap @allow4
        ip6 saddr vmap @allow6
        meta nfproto ipv4 jump near4
        meta nfproto ipv6 jump near6
        ip saddr vmap @anywhere4
        ip6 saddr vmap @anywhere6
        ip saddr @internet4 accept
        ip6 saddr @internet6 accept
        goto refuse
    }}

    chain lan {{
        ip saddr @lan4 accept
        ip6 saddr @lan6 accept
        goto refuse
    }}

    # From one container to another.
    chain between {{
        ct state invalid drop
        ip saddr . ip daddr @parted4 drop
        ip6 saddr . ip6 daddr @parted6 drop
        ip saddr . ip daddr @peers4 goto consented
        ip6 saddr . ip6 daddr @peers6 goto consented
        goto refuse
    }}

    chain consented {{
        ct direction reply ct state established,related accept
        ip saddr vmap @deny4
        ip6 saddr vmap @deny6
        accept
    }}

    # From the world to a container: answers, and what was published.
    chain incoming {{
        ct direction reply ct state established,related accept
        ct status dnat accept
        drop
    }}

    chain input {{
        type filter hook input priority filter; policy accept;
        iifname "{bridge}" goto to_host
        # The bridge's addresses are for containers and for the host.
        iifname != "lo" ip daddr {gateway} drop
        iifname != "lo" ip6 daddr {gateway6} drop
    }}

    # From a container to the host: neighbours, addresses, names and ping; the rest if it may.
    chain to_host {{
        ct state invalid drop
        ct direction reply ct state established,related accept
        ip saddr vmap @host4
        ip6 saddr vmap @host6
        jump offered
        ip saddr vmap @deny4
        ip6 saddr vmap @deny6
        ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
        ip6 daddr {{ {ROUTER}, {gateway6} }} meta l4proto {{ tcp, udp }} th dport 53 accept
        ip daddr {gateway} icmp type echo-request accept
        ip6 daddr {{ {ROUTER}, {gateway6} }} icmpv6 type echo-request accept
        ip saddr vmap @allow4
        ip6 saddr vmap @allow6
        goto refuse
    }}

    chain offered {{
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        ip6 daddr {{ {ROUTER}, {all_routers} }} icmpv6 type nd-router-solicit accept
        ip daddr {{ {gateway}, 255.255.255.255 }} udp sport 68 udp dport 67 accept
        ip6 daddr {{ {ROUTER}, {all_dhcp} }} udp sport 546 udp dport 547 accept
    }}

    # The way from container to container leads in and out of the bridge, and there is no shorter one.
    chain output {{
        type filter hook output priority filter; policy accept;
        icmpv6 type nd-redirect oifname "{bridge}" drop
        # What a container had begun with the host and may no more does not become the host's own by its answer.
        ct state new oifname "{bridge}" tcp flags & (fin | syn | rst | ack) != syn drop
    }}

    # Said rather than kept silent, so that programs need not wait.
    chain refuse {{
        fib daddr type {{ broadcast, multicast }} drop
        reject with icmpx admin-prohibited
    }}
{chains}
    # Published ports: for others, and for the host itself.
    chain translate_in {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname != "{bridge}" fib daddr type local goto published
    }}

    chain translate_local {{
        type nat hook output priority -100; policy accept;
        # No answer would be routed back to ::1 from a link; localhost is 127.0.0.1, too.
        ip6 daddr ::1 accept
        fib daddr type local goto published
    }}

    chain published {{
        dnat ip to ip daddr . meta l4proto . th dport map @published_at4
        dnat ip6 to ip6 daddr . meta l4proto . th dport map @published_at6
        dnat ip to meta l4proto . th dport map @published4
        dnat ip6 to meta l4proto . th dport map @published6
    }}

    chain translate_out {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 127.0.0.0/8 oifname "{bridge}" masquerade
        ip saddr {subnet} oifname != "{bridge}" masquerade{translate6}
    }}
}}
"#
    )
}

/// Makes sure at the port that nobody calls himself what he is not, and that nobody but us is a router or a server
/// of addresses.
fn bridge_table(site: &Site, all: &Holdings) -> String {
    let table = &site.table;
    let sets = declared(&BRIDGE, all);
    format!(
        r#"table bridge {table} {{
{sets}
    chain prerouting {{
        type filter hook prerouting priority -300; policy accept;
        # Most of what there is, at the price of one look.
        ip protocol tcp iifname . ether saddr . ip saddr @stations4 accept
        ip6 nexthdr tcp iifname . ether saddr . ip6 saddr @stations6 accept
        iifname @ports goto port
    }}

    chain port {{
        ether type ip goto port_ip
        ether type ip6 goto port_ip6
        ether type arp goto port_arp
        drop
    }}

    chain port_arp {{
        iifname . ether saddr != @macs drop
        arp operation != {{ request, reply }} drop
        iifname . arp saddr ether . arp saddr ip @stations4 accept
        iifname . arp saddr ether != @macs drop
        # Asks whether an address is free (RFC 5227).
        arp operation request arp saddr ip 0.0.0.0 accept
        drop
    }}

    chain port_ip {{
        udp sport 67 drop
        iifname . ether saddr . ip saddr @stations4 accept
        iifname . ether saddr != @macs drop
        ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
        drop
    }}

    chain port_ip6 {{
        udp sport 547 drop
        icmpv6 type {{ nd-router-advert, nd-redirect }} drop
        icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @targets6 drop
        iifname . ether saddr . ip6 saddr @stations6 accept
        iifname . ether saddr != @macs drop
        # Asks whether an address is free (RFC 4862), and what goes with it (RFC 3810).
        ip6 saddr :: icmpv6 type {{ nd-neighbor-solicit, nd-router-solicit, mld2-listener-report }} accept
        drop
    }}
}}
"#
    )
}

/// The sets with their elements.
fn declared(sets: &[&'static Set], all: &Holdings) -> String {
    let elements = by_set(all.elements.iter());
    let mut text = String::new();
    for set in sets {
        if !set.about.is_empty() {
            push(&mut text, format!("    # {}", set.about));
        }
        push(&mut text, format!("    {} {} {{", set.kind, set.name));
        set.of.split("; ").for_each(|line| push(&mut text, format!("        {line}")));
        if let Some(elements) = elements.get(set) {
            let elements: Vec<String> = elements.iter().map(|element| element.text()).collect();
            push(&mut text, format!("        elements = {{ {} }}", elements.join(", ")));
        }
        text.push_str("    }\n");
    }
    for (limit, rate) in all.limits.iter().filter(|_| sets.contains(&&SENT4)) {
        push(&mut text, format!("    limit {limit} {{ {rate}; }}"));
    }
    text
}

/// The containers' own chains.
fn chains(all: &Holdings) -> String {
    let mut text = String::new();
    for (chain, rules) in &all.chains {
        push(&mut text, format!("\n    chain {chain} {{"));
        rules.iter().for_each(|rule| push(&mut text, format!("        {rule}")));
        text.push_str("    }\n");
    }
    text
}

fn push(text: &mut String, line: String) {
    // Writing into a string cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::policy::Loss;
    use crate::policy::tests::{join, member, world};

    /// What a change of one container would be, as text.
    fn changed(world: &mut World, name: &str, change: impl FnOnce(&mut World)) -> String {
        let name: Name = name.parse().unwrap();
        let before = holdings(world, &name);
        change(world);
        transition(&world.site, &before, &holdings(world, &name)).unwrap_or_default()
    }

    fn list<T: std::str::FromStr<Err = lazaret_base::Error>>(words: &[&str]) -> Vec<T> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn the_whole_reads_like_a_firewall() {
        let mut world = world();
        let web = member(&mut world, "web");
        web.network.allow = list(&["192.168.1.20:631/tcp", "nas.local:445"]);
        web.network.deny = list(&["*:25/tcp"]);
        web.network.publish = list(&["127.0.0.1:8080:80/tcp"]);
        web.network.rate_up = Some("10mbit".parse().unwrap());
        member(&mut world, "db").network.lan = true;
        member(&mut world, "db").network.host = true;
        world.members.remove("alone");
        world.names.insert("nas.local".parse().unwrap(), ["192.168.1.7".parse().unwrap()].into());
        assert_snapshot!(whole(&world), @r#"
        add table inet lazaret
        delete table inet lazaret
        add table bridge lazaret
        delete table bridge lazaret
        table inet lazaret {
            # Containers that may reach the Internet.
            set internet4 {
                type ipv4_addr
                elements = { 10.90.0.2, 10.90.0.3 }
            }
            set internet6 {
                type ipv6_addr
                elements = { fd12:3456:789a:1::2, fd12:3456:789a:1::3 }
            }
            # Containers that may reach the LAN.
            set lan4 {
                type ipv4_addr
                elements = { 10.90.0.3 }
            }
            set lan6 {
                type ipv6_addr
                elements = { fd12:3456:789a:1::3 }
            }
            # Containers that may reach the host.
            map host4 {
                type ipv4_addr : verdict
                elements = { 10.90.0.3 : accept }
            }
            map host6 {
                type ipv6_addr : verdict
                elements = { fd12:3456:789a:1::3 : accept, fe80::ff:fe00:3 : accept }
            }
            # Pairs of containers that have named each other.
            set peers4 {
                type ipv4_addr . ipv4_addr
                elements = { 10.90.0.2 . 10.90.0.3, 10.90.0.3 . 10.90.0.2 }
            }
            set peers6 {
                type ipv6_addr . ipv6_addr
                elements = { fd12:3456:789a:1::2 . fd12:3456:789a:1::3, fd12:3456:789a:1::3 . fd12:3456:789a:1::2 }
            }
            # Pairs of containers that a test has parted.
            set parted4 {
                type ipv4_addr . ipv4_addr
            }
            set parted6 {
                type ipv6_addr . ipv6_addr
            }
            # Destinations that a container may not reach.
            map deny4 {
                type ipv4_addr : verdict
                elements = { 10.90.0.2 : jump deny_web }
            }
            map deny6 {
                type ipv6_addr : verdict
                elements = { fd12:3456:789a:1::2 : jump deny_web, fe80::ff:fe00:2 : jump deny_web }
            }
            # Destinations that a container may reach beside.
            map allow4 {
                type ipv4_addr : verdict
                elements = { 10.90.0.2 : jump allow_web }
            }
            map allow6 {
                type ipv6_addr : verdict
                elements = { fd12:3456:789a:1::2 : jump allow_web, fe80::ff:fe00:2 : jump allow_web }
            }
            # What a container may reach anywhere in the Internet.
            map anywhere4 {
                type ipv4_addr : verdict
            }
            map anywhere6 {
                type ipv6_addr : verdict
            }
            # Containers that send slowly, or lose what they send.
            map sent4 {
                type ipv4_addr : verdict
                elements = { 10.90.0.2 : jump sent_web }
            }
            map sent6 {
                type ipv6_addr : verdict
                elements = { fd12:3456:789a:1::2 : jump sent_web, fe80::ff:fe00:2 : jump sent_web }
            }
            # Containers that lose what is sent to them, for tests.
            map loss4 {
                type ipv4_addr : verdict
            }
            map loss6 {
                type ipv6_addr : verdict
            }
            # Ports of every address of the host.
            map published4 {
                type inet_proto . inet_service : ipv4_addr . inet_service
            }
            map published6 {
                type inet_proto . inet_service : ipv6_addr . inet_service
            }
            # Ports of one address of the host.
            map published_at4 {
                type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
                elements = { 127.0.0.1 . tcp . 8080 : 10.90.0.2 . 80 }
            }
            map published_at6 {
                type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service
            }
            limit upload_web_1250000 { rate over 1250000 bytes/second burst 262144 bytes; }

            # What a container sends, wherever it goes.
            chain prerouting {
                type filter hook prerouting priority mangle; policy accept;
                iifname "lazaret0" jump sent
            }

            chain sent {
                # Else route_localnet, which publishing on 127.0.0.1 needs, would open the host's loopback.
                ip daddr 127.0.0.0/8 drop
                ip saddr vmap @sent4
                ip6 saddr vmap @sent6
            }

            chain postrouting {
                type filter hook postrouting priority mangle; policy accept;
                oifname "lazaret0" ip daddr vmap @loss4
                oifname "lazaret0" ip6 daddr vmap @loss6
            }

            chain forward {
                type filter hook forward priority filter; policy accept;
                iifname "lazaret0" oifname "lazaret0" goto between
                iifname "lazaret0" goto outgoing
                oifname "lazaret0" goto incoming
                goto elsewhere
            }

            # From a container into the world. Each packet of what a container began is decided anew, so that a change of
            # the policy takes effect at once.
            chain outgoing {
                ct state invalid drop
                ct direction reply ct state established,related accept
                ip saddr vmap @deny4
                ip6 saddr vmap @deny6
                ip saddr vmap @allow4
                ip6 saddr vmap @allow6
                meta nfproto ipv4 jump near4
                meta nfproto ipv6 jump near6
                ip saddr vmap @anywhere4
                ip6 saddr vmap @anywhere6
                ip saddr @internet4 accept
                ip6 saddr @internet6 accept
                goto refuse
            }

            chain lan {
                ip saddr @lan4 accept
                ip6 saddr @lan6 accept
                goto refuse
            }

            # From one container to another.
            chain between {
                ct state invalid drop
                ip saddr . ip daddr @parted4 drop
                ip6 saddr . ip6 daddr @parted6 drop
                ip saddr . ip daddr @peers4 goto consented
                ip6 saddr . ip6 daddr @peers6 goto consented
                goto refuse
            }

            chain consented {
                ct direction reply ct state established,related accept
                ip saddr vmap @deny4
                ip6 saddr vmap @deny6
                accept
            }

            # From the world to a container: answers, and what was published.
            chain incoming {
                ct direction reply ct state established,related accept
                ct status dnat accept
                drop
            }

            chain input {
                type filter hook input priority filter; policy accept;
                iifname "lazaret0" goto to_host
                # The bridge's addresses are for containers and for the host.
                iifname != "lo" ip daddr 10.90.0.1 drop
                iifname != "lo" ip6 daddr fd12:3456:789a:1::1 drop
            }

            # From a container to the host: neighbours, addresses, names and ping; the rest if it may.
            chain to_host {
                ct state invalid drop
                ct direction reply ct state established,related accept
                ip saddr vmap @host4
                ip6 saddr vmap @host6
                jump offered
                ip saddr vmap @deny4
                ip6 saddr vmap @deny6
                ip daddr 10.90.0.1 meta l4proto { tcp, udp } th dport 53 accept
                ip6 daddr { fe80::1, fd12:3456:789a:1::1 } meta l4proto { tcp, udp } th dport 53 accept
                ip daddr 10.90.0.1 icmp type echo-request accept
                ip6 daddr { fe80::1, fd12:3456:789a:1::1 } icmpv6 type echo-request accept
                ip saddr vmap @allow4
                ip6 saddr vmap @allow6
                goto refuse
            }

            chain offered {
                icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
                ip6 daddr { fe80::1, ff02::2 } icmpv6 type nd-router-solicit accept
                ip daddr { 10.90.0.1, 255.255.255.255 } udp sport 68 udp dport 67 accept
                ip6 daddr { fe80::1, ff02::1:2 } udp sport 546 udp dport 547 accept
            }

            # The way from container to container leads in and out of the bridge, and there is no shorter one.
            chain output {
                type filter hook output priority filter; policy accept;
                icmpv6 type nd-redirect oifname "lazaret0" drop
                # What a container had begun with the host and may no more does not become the host's own by its answer.
                ct state new oifname "lazaret0" tcp flags & (fin | syn | rst | ack) != syn drop
            }

            # Said rather than kept silent, so that programs need not wait.
            chain refuse {
                fib daddr type { broadcast, multicast } drop
                reject with icmpx admin-prohibited
            }

            chain allow_web {
                ip daddr 192.168.1.20 tcp dport 631 accept comment "192.168.1.20:631/tcp"
                ip daddr 192.168.1.7 meta l4proto { tcp, udp } th dport 445 accept comment "nas.local:445"
            }

            chain deny_web {
                tcp dport 25 goto refuse comment "*:25/tcp"
            }

            chain elsewhere {
            }

            chain near4 {
                ip daddr 0.0.0.0/8 goto lan
                ip daddr 10.0.0.0/8 goto lan
                ip daddr 100.64.0.0/10 goto lan
                ip daddr 127.0.0.0/8 goto lan
                ip daddr 169.254.0.0/16 goto lan
                ip daddr 172.16.0.0/12 goto lan
                ip daddr 192.0.0.0/24 goto lan
                ip daddr 192.168.0.0/16 goto lan
                ip daddr 224.0.0.0/4 goto lan
                ip daddr 240.0.0.0/4 goto lan
            }

            chain near6 {
                ip6 daddr 2000::/3 goto near6_global
                ip6 daddr ::/96 goto lan
                ip6 daddr ::ffff:0.0.0.0/96 goto lan
                ip6 daddr 64:ff9b::/104 goto lan
                ip6 daddr 64:ff9b::a00:0/104 goto lan
                ip6 daddr 64:ff9b::6440:0/106 goto lan
                ip6 daddr 64:ff9b::7f00:0/104 goto lan
                ip6 daddr 64:ff9b::a9fe:0/112 goto lan
                ip6 daddr 64:ff9b::ac10:0/108 goto lan
                ip6 daddr 64:ff9b::c000:0/120 goto lan
                ip6 daddr 64:ff9b::c0a8:0/112 goto lan
                ip6 daddr 64:ff9b::e000:0/100 goto lan
                ip6 daddr 64:ff9b::f000:0/100 goto lan
                ip6 daddr 64:ff9b:1::/48 goto lan
                ip6 daddr fc00::/7 goto lan
                ip6 daddr fe80::/10 goto lan
                ip6 daddr fec0::/10 goto lan
                ip6 daddr ff00::/8 goto lan
            }

            chain near6_global {
                ip6 daddr 2001:db8:1::/64 goto lan
            }

            chain sent_web {
                limit name "upload_web_1250000" drop
            }

            # Published ports: for others, and for the host itself.
            chain translate_in {
                type nat hook prerouting priority dstnat; policy accept;
                iifname != "lazaret0" fib daddr type local goto published
            }

            chain translate_local {
                type nat hook output priority -100; policy accept;
                # No answer would be routed back to ::1 from a link; localhost is 127.0.0.1, too.
                ip6 daddr ::1 accept
                fib daddr type local goto published
            }

            chain published {
                dnat ip to ip daddr . meta l4proto . th dport map @published_at4
                dnat ip6 to ip6 daddr . meta l4proto . th dport map @published_at6
                dnat ip to meta l4proto . th dport map @published4
                dnat ip6 to meta l4proto . th dport map @published6
            }

            chain translate_out {
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr 127.0.0.0/8 oifname "lazaret0" masquerade
                ip saddr 10.90.0.0/20 oifname != "lazaret0" masquerade
                ip6 saddr fd12:3456:789a:1::/64 oifname != "lazaret0" masquerade
            }
        }

        table bridge lazaret {
            # The containers' ports, and what each may call itself.
            set ports {
                type ifname
                elements = { "lz-000000000002", "lz-000000000003" }
            }
            set macs {
                type ifname . ether_addr
                elements = { "lz-000000000002" . 02:00:00:00:00:02, "lz-000000000003" . 02:00:00:00:00:03 }
            }
            set stations4 {
                type ifname . ether_addr . ipv4_addr
                elements = { "lz-000000000002" . 02:00:00:00:00:02 . 10.90.0.2, "lz-000000000003" . 02:00:00:00:00:03 . 10.90.0.3 }
            }
            set stations6 {
                type ifname . ether_addr . ipv6_addr
                elements = { "lz-000000000002" . 02:00:00:00:00:02 . fd12:3456:789a:1::2, "lz-000000000002" . 02:00:00:00:00:02 . fe80::ff:fe00:2, "lz-000000000003" . 02:00:00:00:00:03 . fd12:3456:789a:1::3, "lz-000000000003" . 02:00:00:00:00:03 . fe80::ff:fe00:3 }
            }
            set targets6 {
                typeof iifname . @th,64,128
                elements = { "lz-000000000002" . 0xfd123456789a00010000000000000002, "lz-000000000002" . 0xfe80000000000000000000fffe000002, "lz-000000000003" . 0xfd123456789a00010000000000000003, "lz-000000000003" . 0xfe80000000000000000000fffe000003 }
            }

            chain prerouting {
                type filter hook prerouting priority -300; policy accept;
                # Most of what there is, at the price of one look.
                ip protocol tcp iifname . ether saddr . ip saddr @stations4 accept
                ip6 nexthdr tcp iifname . ether saddr . ip6 saddr @stations6 accept
                iifname @ports goto port
            }

            chain port {
                ether type ip goto port_ip
                ether type ip6 goto port_ip6
                ether type arp goto port_arp
                drop
            }

            chain port_arp {
                iifname . ether saddr != @macs drop
                arp operation != { request, reply } drop
                iifname . arp saddr ether . arp saddr ip @stations4 accept
                iifname . arp saddr ether != @macs drop
                # Asks whether an address is free (RFC 5227).
                arp operation request arp saddr ip 0.0.0.0 accept
                drop
            }

            chain port_ip {
                udp sport 67 drop
                iifname . ether saddr . ip saddr @stations4 accept
                iifname . ether saddr != @macs drop
                ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
                drop
            }

            chain port_ip6 {
                udp sport 547 drop
                icmpv6 type { nd-router-advert, nd-redirect } drop
                icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @targets6 drop
                iifname . ether saddr . ip6 saddr @stations6 accept
                iifname . ether saddr != @macs drop
                # Asks whether an address is free (RFC 4862), and what goes with it (RFC 3810).
                ip6 saddr :: icmpv6 type { nd-neighbor-solicit, nd-router-solicit, mld2-listener-report } accept
                drop
            }
        }
        "#);
    }

    #[test]
    fn attaching_touches_only_sets() {
        let mut world = world();
        assert_snapshot!(changed(&mut world, "new", |world| join(world, "new", 9)), @r#"
        add element bridge lazaret macs { "lz-000000000009" . 02:00:00:00:00:09 }
        add element bridge lazaret ports { "lz-000000000009" }
        add element bridge lazaret stations4 { "lz-000000000009" . 02:00:00:00:00:09 . 10.90.0.9 }
        add element bridge lazaret stations6 { "lz-000000000009" . 02:00:00:00:00:09 . fd12:3456:789a:1::9, "lz-000000000009" . 02:00:00:00:00:09 . fe80::ff:fe00:9 }
        add element bridge lazaret targets6 { "lz-000000000009" . 0xfd123456789a00010000000000000009, "lz-000000000009" . 0xfe80000000000000000000fffe000009 }
        add element inet lazaret internet4 { 10.90.0.9 }
        add element inet lazaret internet6 { fd12:3456:789a:1::9 }
        "#);
        assert_snapshot!(changed(&mut world, "new", |world| drop(world.members.remove("new"))), @r#"
        delete element bridge lazaret macs { "lz-000000000009" . 02:00:00:00:00:09 }
        delete element bridge lazaret ports { "lz-000000000009" }
        delete element bridge lazaret stations4 { "lz-000000000009" . 02:00:00:00:00:09 . 10.90.0.9 }
        delete element bridge lazaret stations6 { "lz-000000000009" . 02:00:00:00:00:09 . fd12:3456:789a:1::9, "lz-000000000009" . 02:00:00:00:00:09 . fe80::ff:fe00:9 }
        delete element bridge lazaret targets6 { "lz-000000000009" . 0xfd123456789a00010000000000000009, "lz-000000000009" . 0xfe80000000000000000000fffe000009 }
        delete element inet lazaret internet4 { 10.90.0.9 }
        delete element inet lazaret internet6 { fd12:3456:789a:1::9 }
        "#);
    }

    #[test]
    fn a_change_of_policy_is_what_differs() {
        let mut world = world();
        assert_snapshot!(changed(&mut world, "web", |world| member(world, "web").network.lan = true), @"
        add element inet lazaret lan4 { 10.90.0.2 }
        add element inet lazaret lan6 { fd12:3456:789a:1::2 }
        ");
        assert_snapshot!(changed(&mut world, "web", |world| {
            member(world, "web").network.allow = list(&["192.168.1.20:631/tcp", "*:443/tcp", "[fd00::/8]:8000-8010"]);
        }), @r#"
        add chain inet lazaret allow_web
        add rule inet lazaret allow_web ip daddr 192.168.1.20 tcp dport 631 accept comment "192.168.1.20:631/tcp"
        add rule inet lazaret allow_web ip6 daddr fd00::/8 meta l4proto { tcp, udp } th dport 8000-8010 accept comment "[fd00::/8]:8000-8010"
        add chain inet lazaret anywhere_web
        add rule inet lazaret anywhere_web tcp dport 443 accept comment "*:443/tcp"
        add element inet lazaret allow4 { 10.90.0.2 : jump allow_web }
        add element inet lazaret allow6 { fd12:3456:789a:1::2 : jump allow_web, fe80::ff:fe00:2 : jump allow_web }
        add element inet lazaret anywhere4 { 10.90.0.2 : jump anywhere_web }
        add element inet lazaret anywhere6 { fd12:3456:789a:1::2 : jump anywhere_web, fe80::ff:fe00:2 : jump anywhere_web }
        "#);
        assert_snapshot!(changed(&mut world, "web", |world| {
            member(world, "web").network.allow = list(&["192.168.1.20/icmp"]);
        }), @r#"
        delete element inet lazaret anywhere4 { 10.90.0.2 }
        delete element inet lazaret anywhere6 { fd12:3456:789a:1::2, fe80::ff:fe00:2 }
        flush chain inet lazaret allow_web
        flush chain inet lazaret anywhere_web
        delete chain inet lazaret anywhere_web
        add chain inet lazaret allow_web
        add rule inet lazaret allow_web ip daddr 192.168.1.20 meta l4proto icmp accept comment "192.168.1.20/icmp"
        "#);
        assert_snapshot!(changed(&mut world, "web", |world| member(world, "web").network.allow.clear()), @"
        delete element inet lazaret allow4 { 10.90.0.2 }
        delete element inet lazaret allow6 { fd12:3456:789a:1::2, fe80::ff:fe00:2 }
        flush chain inet lazaret allow_web
        delete chain inet lazaret allow_web
        ");
        assert_snapshot!(changed(&mut world, "web", |world| {
            member(world, "web").network.publish = list(&["8000-8001:80-81", "[2001:db8:1::5]:53:53/udp"]);
        }), @"
        add element inet lazaret published4 { tcp . 8000 : 10.90.0.2 . 80, tcp . 8001 : 10.90.0.2 . 81 }
        add element inet lazaret published6 { tcp . 8000 : fd12:3456:789a:1::2 . 80, tcp . 8001 : fd12:3456:789a:1::2 . 81 }
        add element inet lazaret published_at6 { 2001:db8:1::5 . udp . 53 : fd12:3456:789a:1::2 . 53 }
        ");
        assert_eq!(changed(&mut world, "web", |_| {}), "");
    }

    #[test]
    fn a_rate_is_replaced_by_another() {
        let mut world = world();
        changed(&mut world, "web", |world| member(world, "web").network.rate_up = Some("10mbit".parse().unwrap()));
        assert_snapshot!(changed(&mut world, "web", |world| {
            member(world, "web").network.rate_up = Some("1gbit".parse().unwrap());
        }), @r#"
        flush chain inet lazaret sent_web
        delete limit inet lazaret upload_web_1250000
        add limit inet lazaret upload_web_125000000 { rate over 125000000 bytes/second burst 12500000 bytes; }
        add chain inet lazaret sent_web
        add rule inet lazaret sent_web limit name "upload_web_125000000" drop
        "#);
    }

    #[test]
    fn peers_are_opened_when_the_second_says_so_and_closed_when_one_leaves() {
        let mut world = world();
        assert_snapshot!(changed(&mut world, "alone", |world| {
            member(world, "alone").network.peers = list(&["web", "db"]);
        }), @"
        add element inet lazaret peers4 { 10.90.0.3 . 10.90.0.4, 10.90.0.4 . 10.90.0.3 }
        add element inet lazaret peers6 { fd12:3456:789a:1::3 . fd12:3456:789a:1::4, fd12:3456:789a:1::4 . fd12:3456:789a:1::3 }
        ");
        assert!(
            changed(&mut world, "db", |world| drop(world.members.remove("db")))
                .contains("delete element inet lazaret peers4 { 10.90.0.2 . 10.90.0.3")
        );
        assert!(!changed(&mut world, "web", |world| member(world, "web").network.lan = true).contains("peers"));
    }

    #[test]
    fn a_partition_and_a_loss_are_made_and_healed() {
        let mut world = world();
        let (web, db) = ("web".parse().unwrap(), "db".parse().unwrap());
        assert_snapshot!(changed(&mut world, "web", |world| world.part(&web, &db)), @"
        add element inet lazaret parted4 { 10.90.0.2 . 10.90.0.3, 10.90.0.3 . 10.90.0.2 }
        add element inet lazaret parted6 { fd12:3456:789a:1::2 . fd12:3456:789a:1::3, fd12:3456:789a:1::3 . fd12:3456:789a:1::2 }
        ");
        assert!(
            changed(&mut world, "web", |world| world.heal(&web)).starts_with("delete element inet lazaret parted4")
        );
        assert_snapshot!(changed(&mut world, "web", |world| {
            let losses = vec![Loss { share: 100, to: Some(db.clone()) }, Loss { share: 5, to: None }];
            world.losses.insert(web.clone(), losses);
        }), @"
        add chain inet lazaret loss_web
        add rule inet lazaret loss_web ip saddr 10.90.0.3 numgen random mod 10000 < 100 drop
        add rule inet lazaret loss_web ip daddr 10.90.0.3 numgen random mod 10000 < 100 drop
        add rule inet lazaret loss_web ip6 saddr fd12:3456:789a:1::3 numgen random mod 10000 < 100 drop
        add rule inet lazaret loss_web ip6 daddr fd12:3456:789a:1::3 numgen random mod 10000 < 100 drop
        add rule inet lazaret loss_web numgen random mod 10000 < 5 drop
        add chain inet lazaret sent_web
        add rule inet lazaret sent_web jump loss_web
        add element inet lazaret loss4 { 10.90.0.2 : jump loss_web }
        add element inet lazaret loss6 { fd12:3456:789a:1::2 : jump loss_web }
        add element inet lazaret sent4 { 10.90.0.2 : jump sent_web }
        add element inet lazaret sent6 { fd12:3456:789a:1::2 : jump sent_web, fe80::ff:fe00:2 : jump sent_web }
        ");
    }

    #[test]
    fn a_name_that_resolves_anew_changes_its_rules() {
        let mut world = world();
        member(&mut world, "web").network.allow = list(&["nas.local:445"]);
        assert_snapshot!(changed(&mut world, "web", |world| {
            world.names.insert("nas.local".parse().unwrap(), ["192.168.1.7".parse().unwrap(), "fd00::7".parse().unwrap()].into());
        }), @r#"
        add chain inet lazaret allow_web
        add rule inet lazaret allow_web ip daddr 192.168.1.7 meta l4proto { tcp, udp } th dport 445 accept comment "nas.local:445"
        add rule inet lazaret allow_web ip6 daddr fd00::7 meta l4proto { tcp, udp } th dport 445 accept comment "nas.local:445"
        add element inet lazaret allow4 { 10.90.0.2 : jump allow_web }
        add element inet lazaret allow6 { fd12:3456:789a:1::2 : jump allow_web, fe80::ff:fe00:2 : jump allow_web }
        "#);
    }

    #[test]
    fn what_is_lan_is_replaced_as_a_whole() {
        let mut world = world();
        world.on_link.truncate(1);
        world.unrouted =
            Unrouted { v4: true, v6: true, between: ["wlan0", "eth0"].map(|name| name.parse().unwrap()).into() };
        assert_snapshot!(surrounded(&world), @r#"
        flush chain inet lazaret near4
        add rule inet lazaret near4 ip daddr 0.0.0.0/8 goto lan
        add rule inet lazaret near4 ip daddr 10.0.0.0/8 goto lan
        add rule inet lazaret near4 ip daddr 100.64.0.0/10 goto lan
        add rule inet lazaret near4 ip daddr 127.0.0.0/8 goto lan
        add rule inet lazaret near4 ip daddr 169.254.0.0/16 goto lan
        add rule inet lazaret near4 ip daddr 172.16.0.0/12 goto lan
        add rule inet lazaret near4 ip daddr 192.0.0.0/24 goto lan
        add rule inet lazaret near4 ip daddr 192.168.0.0/16 goto lan
        add rule inet lazaret near4 ip daddr 224.0.0.0/4 goto lan
        add rule inet lazaret near4 ip daddr 240.0.0.0/4 goto lan
        flush chain inet lazaret near6_global
        flush chain inet lazaret near6
        add rule inet lazaret near6 ip6 daddr 2000::/3 goto near6_global
        add rule inet lazaret near6 ip6 daddr ::/96 goto lan
        add rule inet lazaret near6 ip6 daddr ::ffff:0.0.0.0/96 goto lan
        add rule inet lazaret near6 ip6 daddr 64:ff9b::/104 goto lan
        add rule inet lazaret near6 ip6 daddr 64:ff9b::a00:0/104 goto lan
        add rule inet lazaret near6 ip6 daddr 64:ff9b::6440:0/106 goto lan
        add rule inet lazaret near6 ip6 daddr 64:ff9b::7f00:0/104 goto lan
        add rule inet lazaret near6 ip6 daddr 64:ff9b::a9fe:0/112 goto lan
        add rule inet lazaret near6 ip6 daddr 64:ff9b::ac10:0/108 goto lan
        add rule inet lazaret near6 ip6 daddr 64:ff9b::c000:0/120 goto lan
        add rule inet lazaret near6 ip6 daddr 64:ff9b::c0a8:0/112 goto lan
        add rule inet lazaret near6 ip6 daddr 64:ff9b::e000:0/100 goto lan
        add rule inet lazaret near6 ip6 daddr 64:ff9b::f000:0/100 goto lan
        add rule inet lazaret near6 ip6 daddr 64:ff9b:1::/48 goto lan
        add rule inet lazaret near6 ip6 daddr fc00::/7 goto lan
        add rule inet lazaret near6 ip6 daddr fe80::/10 goto lan
        add rule inet lazaret near6 ip6 daddr fec0::/10 goto lan
        add rule inet lazaret near6 ip6 daddr ff00::/8 goto lan
        flush chain inet lazaret elsewhere
        add rule inet lazaret elsewhere meta nfproto ipv4 iifname { "eth0", "wlan0" } oifname { "eth0", "wlan0" } drop
        add rule inet lazaret elsewhere meta nfproto ipv6 iifname { "eth0", "wlan0" } oifname { "eth0", "wlan0" } drop
        "#);
    }
}
