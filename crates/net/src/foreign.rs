//! Other firewalls of the host: which of their rules would stop our packets, and what mends it.
//!
//! An `accept` of ours cannot undo a `drop` of theirs, since every base chain of a hook has its say. So their chains
//! are walked with packets of ours. What a rule asks that cannot be known here (an xtables match, a set of its own)
//! counts as not matching.

use std::collections::BTreeMap;
use std::fmt;

use lazaret_base::{Context, Result, error};
use lazaret_config::Interface;
use serde_json::Value;

/// Who made a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Software {
    /// Docker, whose chains are called `DOCKER`.
    Docker,
    /// ufw, whose chains are called `ufw-`, and `ufw6-` for IPv6.
    Ufw,
    /// firewalld, whose table has its name.
    Firewalld,
    /// libvirt, whose chains are called `LIBVIRT_` and whose table `libvirt_network`.
    Libvirt,
    /// LXC's own bridge script, whose table is called `lxc`.
    LxcNet,
    /// iptables rules of somebody's.
    Iptables,
    /// nft rules of somebody's.
    Nftables,
}

impl fmt::Display for Software {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Software::Docker => "Docker",
            Software::Ufw => "ufw",
            Software::Firewalld => "firewalld",
            Software::Libvirt => "libvirt",
            Software::LxcNet => "lxc-net",
            Software::Iptables => "iptables",
            Software::Nftables => "nftables",
        })
    }
}

/// Which of our packets are stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stopped {
    /// What containers send into the world.
    Outgoing,
    /// What the world answers.
    Answers,
    /// The containers' questions for addresses (DHCP).
    Addresses,
    /// The containers' questions for names (DNS).
    Names,
    /// Nobody knows: the rules cannot be read from here.
    Unknown,
}

/// A rule or a policy that stops packets of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// Whose it is.
    pub software: Software,
    /// What it stops; never empty.
    pub stops: Vec<Stopped>,
    /// It, as a sentence.
    pub what: String,
    /// The command lines that mend it; none where only its owner knows.
    pub mend: Vec<String>,
}

/// Finds what stops packets of our bridge.
///
/// `ruleset` is what [`crate::nft::Nft::list`] says; `legacy` are the names in `/proc/net/ip_tables_names` and
/// `/proc/net/ip6_tables_names`, whose rules nft does not see. Fails if the ruleset is not nft's JSON.
pub fn blockers(ruleset: &str, legacy: &[String], bridge: &Interface) -> Result<Vec<Blocker>> {
    let ruleset = Ruleset::read(ruleset)?;
    let mut found: Vec<Blocker> = Vec::new();
    for (place, chain) in &ruleset.chains {
        for packet in packets(place, chain, bridge) {
            let Some(cause) = ruleset.stopped(place, chain, &packet) else { continue };
            let software = ruleset.author(&cause);
            let lines = ruleset.mend(software, place, packet.is, bridge);
            note(&mut found, Blocker { software, stops: vec![packet.is], what: cause.sentence(software), mend: lines });
        }
    }
    if legacy.iter().any(|table| table == "filter") {
        found.push(Blocker {
            software: Software::Iptables,
            stops: vec![Stopped::Unknown],
            what: "there are rules of the old iptables, which cannot be read from here".into(),
            mend: vec![
                format!("iptables-legacy -I FORWARD -i {bridge} -j ACCEPT"),
                format!("iptables-legacy -I FORWARD -o {bridge} -j ACCEPT"),
            ],
        });
    }
    Ok(found)
}

/// Adds a blocker, or what it adds to one that is known.
fn note(found: &mut Vec<Blocker>, new: Blocker) {
    let Some(known) = found.iter_mut().find(|blocker| blocker.what == new.what) else { return found.push(new) };
    let Blocker { stops, mend, .. } = new;
    known.stops.extend(stops.into_iter().filter(|stopped| !known.stops.contains(stopped)).collect::<Vec<_>>());
    known.mend.extend(mend.into_iter().filter(|line| !known.mend.contains(line)).collect::<Vec<_>>());
}

/// A packet of ours, as far as rules may ask for it.
#[derive(Debug)]
struct Packet<'a> {
    is: Stopped,
    v6: bool,
    comes_from: Option<&'a str>,
    goes_to: Option<&'a str>,
    state: &'static str,
    protocol: &'static str,
    /// `None` if it may be any.
    port: Option<u64>,
}

/// The packets that a base chain would see; none for another chain, or one of ours.
fn packets<'a>(place: &Place, chain: &Chain, bridge: &'a Interface) -> Vec<Packet<'a>> {
    let bridge = Some(bridge.as_str());
    let ours = place.table == "lazaret" || place.table.starts_with("lazaret_");
    let versions: &[bool] = match &*place.family {
        _ if ours => &[],
        "ip" => &[false],
        "ip6" => &[true],
        "inet" => &[false, true],
        _ => &[],
    };
    let to_host = |is, v6, port| Packet {
        is,
        v6,
        comes_from: bridge,
        goes_to: None,
        state: "new",
        protocol: "udp",
        port: Some(port),
    };
    let of = |v6| match chain.hook.as_deref() {
        Some("forward") => {
            let outgoing = Packet {
                is: Stopped::Outgoing,
                v6,
                comes_from: bridge,
                goes_to: None,
                state: "new",
                protocol: "tcp",
                port: None,
            };
            let answer =
                Packet { is: Stopped::Answers, comes_from: None, goes_to: bridge, state: "established", ..outgoing };
            vec![outgoing, answer]
        }
        Some("input") => {
            let dhcp = if v6 { 547 } else { 67 };
            vec![to_host(Stopped::Addresses, v6, dhcp), to_host(Stopped::Names, v6, 53)]
        }
        _ => vec![],
    };
    versions.iter().flat_map(|v6| of(*v6)).collect()
}

/// Where a chain is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    family: String,
    table: String,
    chain: String,
}

/// A chain as nft lists it.
#[derive(Debug, Default)]
struct Chain {
    /// For a base chain, where packets enter it.
    hook: Option<String>,
    /// Whether the base chain drops what no rule decided.
    drops: bool,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    handle: u64,
    statements: Vec<Value>,
}

#[derive(Debug)]
struct Ruleset {
    chains: BTreeMap<Place, Chain>,
}

/// What stopped a packet.
#[derive(Debug)]
struct Cause {
    place: Place,
    /// The policy of the chain if `None`.
    rule: Option<u64>,
}

impl Cause {
    fn sentence(&self, software: Software) -> String {
        let Place { family, table, chain } = &self.place;
        match self.rule {
            Some(handle) => format!("{software}: rule {handle} of the chain `{chain}` in the table `{family} {table}`"),
            None => format!("{software}: the policy of the chain `{chain}` in the table `{family} {table}` is drop"),
        }
    }
}

/// How a walk through a chain ended.
enum End {
    Accepted,
    Stopped(Cause),
    /// No rule decided.
    Returned,
}

/// The kernel allows no deeper jumps (NFT_JUMP_STACK_SIZE).
const DEEPEST: usize = 16;

impl Ruleset {
    fn read(json: &str) -> Result<Ruleset> {
        let parsed: Value = serde_json::from_str(json)
            .map_err(|e| error(e.to_string()))
            .context("reading the list of rules that nft gave")?;
        let objects = parsed["nftables"].as_array().ok_or_else(|| error("nft's list of rules has no `nftables`"))?;
        let mut chains: BTreeMap<Place, Chain> = BTreeMap::new();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        for object in objects {
            if let Some(chain) = object.get("chain") {
                let place =
                    Place { family: text(&chain["family"]), table: text(&chain["table"]), chain: text(&chain["name"]) };
                let entry = chains.entry(place).or_default();
                entry.hook = chain["hook"].as_str().map(String::from);
                entry.drops = chain["policy"] == "drop";
            }
            if let Some(rule) = object.get("rule") {
                let place =
                    Place { family: text(&rule["family"]), table: text(&rule["table"]), chain: text(&rule["chain"]) };
                let statements = rule["expr"].as_array().cloned().unwrap_or_default();
                let handle = rule["handle"].as_u64().unwrap_or_default();
                chains.entry(place).or_default().rules.push(Rule { handle, statements });
            }
        }
        Ok(Ruleset { chains })
    }

    /// What stops the packet in this base chain.
    fn stopped(&self, place: &Place, chain: &Chain, packet: &Packet<'_>) -> Option<Cause> {
        match self.walk(place, chain, packet, 0) {
            End::Stopped(cause) => Some(cause),
            End::Returned if chain.drops => Some(Cause { place: place.clone(), rule: None }),
            End::Accepted | End::Returned => None,
        }
    }

    fn walk(&self, place: &Place, chain: &Chain, packet: &Packet<'_>, depth: usize) -> End {
        for rule in &chain.rules {
            let (target, comes_back) = match verdict(rule, packet) {
                Verdict::Accept => return End::Accepted,
                Verdict::Drop => return End::Stopped(Cause { place: place.clone(), rule: Some(rule.handle) }),
                Verdict::Return => return End::Returned,
                Verdict::Continue => continue,
                Verdict::Jump(target) => (target, true),
                Verdict::Goto(target) => (target, false),
            };
            let there = Place { chain: target, ..place.clone() };
            let end = match self.chains.get(&there) {
                Some(next) if depth < DEEPEST => self.walk(&there, next, packet, depth + 1),
                _ => End::Returned,
            };
            if !matches!(end, End::Returned) || !comes_back {
                return end;
            }
        }
        End::Returned
    }

    /// Whose rule or policy it is, by the names around it.
    fn author(&self, cause: &Cause) -> Software {
        let Place { family, table, chain } = &cause.place;
        let has = |begin: &str| {
            let same = |place: &&Place| place.family == *family && place.table == *table;
            self.chains.keys().filter(same).any(|place| place.chain.starts_with(begin))
        };
        match &**table {
            "firewalld" => return Software::Firewalld,
            "libvirt_network" => return Software::Libvirt,
            "lxc" => return Software::LxcNet,
            _ => {}
        }
        let by_chain = [("ufw", Software::Ufw), ("DOCKER", Software::Docker), ("LIBVIRT_", Software::Libvirt)];
        if let Some((_, software)) = by_chain.iter().find(|(begin, _)| chain.starts_with(begin)) {
            return *software;
        }
        // The policies of these are set by whoever has chains there; ufw does so always, Docker for forwarding.
        match &**chain {
            "FORWARD" | "INPUT" if has("ufw-") || has("ufw6-") => Software::Ufw,
            "FORWARD" if has("DOCKER") => Software::Docker,
            "FORWARD" | "INPUT" => Software::Iptables,
            _ => Software::Nftables,
        }
    }

    /// What the software's own documentation says to let an interface through.
    fn mend(&self, software: Software, base: &Place, stopped: Stopped, bridge: &Interface) -> Vec<String> {
        let Place { family, table, chain } = base;
        let forwarded = matches!(stopped, Stopped::Outgoing | Stopped::Answers);
        let (word, flag, key) = match stopped {
            Stopped::Answers => ("out", "-o", "oifname"),
            _ => ("in", "-i", "iifname"),
        };
        let tool = if family == "ip6" { "ip6tables" } else { "iptables" };
        let docker_user = Place { chain: "DOCKER-USER".into(), ..base.clone() };
        match software {
            Software::Ufw if forwarded => vec![format!("ufw route allow {word} on {bridge}")],
            Software::Ufw => vec![format!("ufw allow in on {bridge}")],
            Software::Firewalld => vec![
                format!("firewall-cmd --permanent --zone=trusted --add-interface={bridge}"),
                "firewall-cmd --reload".into(),
            ],
            Software::Docker if self.chains.contains_key(&docker_user) => {
                vec![format!("{tool} -I DOCKER-USER {flag} {bridge} -j ACCEPT")]
            }
            Software::Docker | Software::Iptables => vec![format!("{tool} -I {chain} {flag} {bridge} -j ACCEPT")],
            Software::Libvirt | Software::LxcNet | Software::Nftables => {
                vec![format!("nft insert rule {family} {table} {chain} {key} \"{bridge}\" accept")]
            }
        }
    }
}

/// What a rule says to a packet.
enum Verdict {
    Accept,
    Drop,
    Return,
    Continue,
    Jump(String),
    Goto(String),
}

/// Reads a rule from left to right, as the kernel does: the first match that fails ends it.
fn verdict(rule: &Rule, packet: &Packet<'_>) -> Verdict {
    for statement in &rule.statements {
        let Some((word, value)) = statement.as_object().and_then(|object| object.iter().next()) else { continue };
        match &**word {
            "match" if matches(value, packet) != Some(true) => return Verdict::Continue,
            "match" | "counter" | "log" | "mangle" | "ct helper" | "ct timeout" => {}
            "vmap" => match mapped(value, packet) {
                Some(found) => return found,
                None => return Verdict::Continue,
            },
            "xt" if value["type"] == "target" => match value["name"].as_str() {
                Some("REJECT") => return Verdict::Drop,
                Some("LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS") => {}
                _ => return Verdict::Continue,
            },
            _ => return decided(statement).unwrap_or(Verdict::Continue),
        }
    }
    Verdict::Continue
}

/// A verdict as a statement, or as the value of a verdict map.
fn decided(statement: &Value) -> Option<Verdict> {
    let (word, value) = statement.as_object()?.iter().next()?;
    let target = || value["target"].as_str().map(String::from);
    match &**word {
        "accept" => Some(Verdict::Accept),
        "drop" | "reject" => Some(Verdict::Drop),
        "return" => Some(Verdict::Return),
        "continue" => Some(Verdict::Continue),
        "jump" => target().map(Verdict::Jump),
        "goto" => target().map(Verdict::Goto),
        _ => None,
    }
}

/// The verdict of a map for the packet.
fn mapped(map: &Value, packet: &Packet<'_>) -> Option<Verdict> {
    let entries = map["data"]["set"].as_array()?;
    let entry = entries.iter().find(|entry| is(&map["key"], &entry[0], packet) == Some(true))?;
    decided(&entry[1])
}

/// Whether a match holds; `None` if that cannot be known here.
fn matches(value: &Value, packet: &Packet<'_>) -> Option<bool> {
    let holds = is(&value["left"], &value["right"], packet);
    match value["op"].as_str() {
        Some("==" | "in") => holds,
        Some("!=") => holds.map(|holds| !holds),
        _ => None,
    }
}

/// Whether the packet has the right side in the field that the left side names.
fn is(left: &Value, right: &Value, packet: &Packet<'_>) -> Option<bool> {
    let any = |values: &Vec<Value>| {
        let results: Vec<_> = values.iter().map(|value| is(left, value, packet)).collect();
        match results.contains(&Some(true)) {
            true => Some(true),
            false => results.into_iter().collect::<Option<Vec<_>>>().map(|_| false),
        }
    };
    if let Some(values) = right.as_array().or(right["set"].as_array()) {
        return any(values);
    }
    let text = |have: &str| right.as_str().map(|wanted| fits(wanted, have));
    match (left["meta"]["key"].as_str(), left["ct"]["key"].as_str()) {
        (Some("iifname" | "iif"), _) => return packet.comes_from.and_then(text),
        (Some("oifname" | "oif"), _) => return packet.goes_to.and_then(text),
        (Some("nfproto"), _) => return text(if packet.v6 { "ipv6" } else { "ipv4" }),
        (Some("l4proto"), _) => return text(packet.protocol),
        (_, Some("state")) => return text(packet.state),
        _ => {}
    }
    if left["fib"]["result"] == "type" {
        return text(destination(&left["fib"]["flags"], packet)?);
    }
    match (left["payload"]["protocol"].as_str()?, left["payload"]["field"].as_str()?) {
        ("ip", "protocol") | ("ip6", "nexthdr") => text(packet.protocol),
        (protocol @ ("tcp" | "udp" | "th"), field) => match field {
            _ if protocol != "th" && protocol != packet.protocol => Some(false),
            "dport" => number(right, packet.port?),
            _ => None,
        },
        ("icmp" | "icmpv6", _) => Some(false),
        _ => None,
    }
}

/// What kind of address the packet goes to, if it is that which is asked for.
fn destination(flags: &Value, packet: &Packet<'_>) -> Option<&'static str> {
    let asked = |flag: &str| flags == flag || flags.as_array().is_some_and(|flags| flags.iter().any(|one| one == flag));
    if asked("saddr") {
        return None;
    }
    Some(match packet.is {
        Stopped::Names => "local",
        Stopped::Addresses if packet.v6 => "multicast",
        Stopped::Addresses => "broadcast",
        Stopped::Outgoing | Stopped::Answers | Stopped::Unknown => "unicast",
    })
}

/// A name of an interface may end in `*`.
fn fits(wanted: &str, have: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(begin) => have.starts_with(begin),
        None => wanted == have,
    }
}

fn number(right: &Value, have: u64) -> Option<bool> {
    match right["range"].as_array() {
        Some(range) => Some((range.first()?.as_u64()?..=range.get(1)?.as_u64()?).contains(&have)),
        None => right.as_u64().map(|wanted| wanted == have),
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use serde_json::json;

    use super::*;

    /// What is found, and what mends it, for chains and rules in the order that nft lists them.
    fn found(objects: Vec<Value>) -> String {
        let ruleset = json!({ "nftables": objects }).to_string();
        let found = blockers(&ruleset, &[], &"lazaret0".parse().unwrap()).unwrap();
        let lines = found.iter().map(|Blocker { stops, what, mend, .. }| {
            format!("{what}, stops {stops:?}{}", mend.iter().map(|line| format!("\n  {line}")).collect::<String>())
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn base(family: &str, table: &str, name: &str, hook: &str, policy: &str) -> Value {
        json!({"chain": {"family": family, "table": table, "name": name, "handle": 1, "type": "filter",
            "hook": hook, "prio": 0, "policy": policy}})
    }

    fn chain(family: &str, table: &str, name: &str) -> Value {
        json!({"chain": {"family": family, "table": table, "name": name, "handle": 1}})
    }

    fn rule(family: &str, table: &str, chain: &str, expr: Value) -> Value {
        json!({"rule": {"family": family, "table": table, "chain": chain, "handle": 7, "expr": expr}})
    }

    fn interface(key: &str, name: &str) -> Value {
        json!({"match": {"op": "==", "left": {"meta": {"key": key}}, "right": name}})
    }

    #[test]
    fn an_empty_ruleset_and_our_own_tables_stop_nothing() {
        let ours = base("inet", "lazaret", "forward", "forward", "drop");
        let other = base("inet", "lazaret_00c0ffee", "input", "input", "drop");
        assert_eq!(found(vec![ours, other]), "");
        assert!(blockers("[]", &[], &"lazaret0".parse().unwrap()).is_err());
    }

    #[test]
    fn dockers_policy_is_found_and_its_users_chain_mends_it() {
        let docker = |v: &str| {
            vec![
                base(v, "filter", "FORWARD", "forward", "drop"),
                chain(v, "filter", "DOCKER-USER"),
                chain(v, "filter", "DOCKER-FORWARD"),
                rule(
                    v,
                    "filter",
                    "FORWARD",
                    json!([{"counter": {"packets": 0, "bytes": 0}}, {"jump": {"target": "DOCKER-USER"}}]),
                ),
                rule(v, "filter", "FORWARD", json!([{"jump": {"target": "DOCKER-FORWARD"}}])),
                rule(
                    v,
                    "filter",
                    "DOCKER-FORWARD",
                    json!([interface("oifname", "docker0"), {"xt": {"type": "match", "name": "conntrack"}}, {"accept": null}]),
                ),
                rule(v, "filter", "DOCKER-FORWARD", json!([interface("iifname", "docker0"), {"accept": null}])),
                rule(v, "filter", "DOCKER-USER", json!([{"return": null}])),
            ]
        };
        assert_snapshot!(found([docker("ip"), docker("ip6")].concat()), @"
        Docker: the policy of the chain `FORWARD` in the table `ip filter` is drop, stops [Outgoing, Answers]
          iptables -I DOCKER-USER -i lazaret0 -j ACCEPT
          iptables -I DOCKER-USER -o lazaret0 -j ACCEPT
        Docker: the policy of the chain `FORWARD` in the table `ip6 filter` is drop, stops [Outgoing, Answers]
          ip6tables -I DOCKER-USER -i lazaret0 -j ACCEPT
          ip6tables -I DOCKER-USER -o lazaret0 -j ACCEPT
        ");
        let mut mended = docker("ip");
        mended.insert(
            3,
            rule("ip", "filter", "DOCKER-USER", json!([interface("iifname", "lazaret0"), {"accept": null}])),
        );
        mended.insert(
            3,
            rule("ip", "filter", "DOCKER-USER", json!([interface("oifname", "lazaret*"), {"accept": null}])),
        );
        assert_eq!(found(mended), "");
    }

    #[test]
    fn ufw_is_asked_for_routes_and_for_services() {
        let ufw = vec![
            base("ip", "filter", "INPUT", "input", "drop"),
            base("ip", "filter", "FORWARD", "forward", "drop"),
            base("ip6", "filter", "FORWARD", "forward", "drop"),
            chain("ip", "filter", "ufw-before-input"),
            chain("ip6", "filter", "ufw6-before-forward"),
            rule("ip", "filter", "INPUT", json!([{"jump": {"target": "ufw-before-input"}}])),
            rule(
                "ip",
                "filter",
                "ufw-before-input",
                json!([
                {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "sport"}}, "right": 67}},
                {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 68}},
                {"accept": null}]),
            ),
        ];
        assert_snapshot!(found(ufw), @"
        ufw: the policy of the chain `FORWARD` in the table `ip filter` is drop, stops [Outgoing, Answers]
          ufw route allow in on lazaret0
          ufw route allow out on lazaret0
        ufw: the policy of the chain `INPUT` in the table `ip filter` is drop, stops [Addresses, Names]
          ufw allow in on lazaret0
        ufw: the policy of the chain `FORWARD` in the table `ip6 filter` is drop, stops [Outgoing, Answers]
          ufw route allow in on lazaret0
          ufw route allow out on lazaret0
        ");
    }

    /// ufw drops early what is for others, and later what nobody has allowed.
    #[test]
    fn what_is_for_the_host_is_told_from_what_is_for_others() {
        let of_kind = |kind: &str| {
            json!({"match": {"op": "==",
            "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": kind}})
        };
        let not_local = |kinds: &[&str]| {
            let kinds = kinds
                .iter()
                .map(|kind| rule("ip", "filter", "ufw-not-local", json!([of_kind(kind), {"return": null}])));
            let mut ufw = vec![
                base("ip", "filter", "INPUT", "input", "accept"),
                chain("ip", "filter", "ufw-not-local"),
                rule("ip", "filter", "INPUT", json!([{"jump": {"target": "ufw-not-local"}}])),
            ];
            ufw.extend(kinds);
            ufw.push(rule("ip", "filter", "ufw-not-local", json!([{"drop": null}])));
            found(ufw)
        };
        assert_eq!(not_local(&["local", "broadcast"]), "");
        assert!(not_local(&["local"]).contains("stops [Addresses]"));
        assert!(not_local(&["broadcast"]).contains("stops [Names]"));
    }

    #[test]
    fn firewalld_lets_through_what_is_in_a_trusted_zone() {
        let at = |chain: &str, expr: Value| rule("inet", "firewalld", chain, expr);
        let firewalld = |zones: Value| {
            vec![
                base("inet", "firewalld", "filter_FORWARD", "forward", "accept"),
                chain("inet", "firewalld", "filter_FORWARD_ZONES"),
                chain("inet", "firewalld", "filter_FWD_trusted"),
                at(
                    "filter_FORWARD",
                    json!([{"vmap": {"key": {"ct": {"key": "state"}},
                    "data": {"set": [["established", {"accept": null}], ["invalid", {"drop": null}]]}}}]),
                ),
                at("filter_FORWARD", json!([{"jump": {"target": "filter_FORWARD_ZONES"}}])),
                at("filter_FORWARD", json!([{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}])),
                at("filter_FORWARD_ZONES", zones),
                at("filter_FWD_trusted", json!([{"accept": null}])),
            ]
        };
        assert_snapshot!(found(firewalld(json!([interface("iifname", "eth0"), {"goto": {"target": "filter_FWD_trusted"}}]))), @"
        firewalld: rule 7 of the chain `filter_FORWARD` in the table `inet firewalld`, stops [Outgoing]
          firewall-cmd --permanent --zone=trusted --add-interface=lazaret0
          firewall-cmd --reload
        ");
        assert_eq!(
            found(firewalld(json!([interface("iifname", "lazaret0"), {"goto": {"target": "filter_FWD_trusted"}}]))),
            ""
        );
    }

    #[test]
    fn a_workstations_own_firewall_is_told_rule_by_rule() {
        let dports = json!({"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}},
            "right": {"set": [53, {"range": [60, 70]}]}}});
        let own = vec![
            base("inet", "filter", "input", "input", "drop"),
            base("inet", "filter", "forward", "forward", "accept"),
            rule(
                "inet",
                "filter",
                "input",
                json!([dports, {"match": {"op": "==",
                "left": {"meta": {"key": "nfproto"}}, "right": "ipv4"}}, {"accept": null}]),
            ),
            rule(
                "inet",
                "filter",
                "forward",
                json!([{"match": {"op": "!=", "left": {"meta": {"key": "iifname"}},
                "right": {"set": ["lo", "virbr0"]}}}, {"log": null}, {"drop": null}]),
            ),
        ];
        assert_snapshot!(found(own), @r#"
        nftables: rule 7 of the chain `forward` in the table `inet filter`, stops [Outgoing]
          nft insert rule inet filter forward iifname "lazaret0" accept
        nftables: the policy of the chain `input` in the table `inet filter` is drop, stops [Addresses, Names]
          nft insert rule inet filter input iifname "lazaret0" accept
        "#);
    }

    #[test]
    fn rules_of_the_old_iptables_are_told_though_unread() {
        let found = blockers(r#"{"nftables": []}"#, &["nat".into(), "filter".into()], &"lazaret0".parse().unwrap());
        assert_eq!(found.unwrap()[0].stops, [Stopped::Unknown]);
    }

    #[test]
    fn a_loop_of_jumps_ends() {
        let objects = vec![
            base("ip", "t", "a", "forward", "drop"),
            rule("ip", "t", "a", json!([{"jump": {"target": "b"}}])),
            rule("ip", "t", "b", json!([{"jump": {"target": "b"}}])),
        ];
        assert!(found(objects).contains("policy of the chain `a`"));
    }
}
