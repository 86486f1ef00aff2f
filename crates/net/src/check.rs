//! What the policy says to one packet, in a sentence that names the line of the configuration.
//!
//! This is the same order of decisions as the rules have, in words; the tests hold the two against each other with
//! real packets.

use std::net::IpAddr;

use lazaret_base::{Kind, Result, error};
use lazaret_config::{Destination, Name, Protocol, Target};

use crate::policy::{Member, Private, ROUTER, World, Zone};

/// Whether something may be reached, and which line decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether the packet may go.
    pub allowed: bool,
    /// ``blocked by `network.lan = false` (192.168.1.20 is on-link on wlan0)``.
    pub line: String,
}

/// What a container asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The address it wants to reach.
    pub to: IpAddr,
    /// How.
    pub protocol: Protocol,
    /// The port there; none for ICMP.
    pub port: Option<u16>,
}

/// Decides about the first packet of what a container begins.
///
/// Fails, as [`Kind::NotFound`], if the container is not attached.
pub fn evaluate(world: &World, from: &Name, question: Question) -> Result<Answer> {
    let member = world.members.get(from).ok_or_else(|| {
        error(format!("container `{from}` is not attached to our network"))
            .hint("only a running container of `network.mode = \"internet\"` has a policy")
            .kind(Kind::NotFound)
    })?;
    let to = question.to;
    if to.is_loopback() {
        return Ok(allowed(format!("allowed: {to} is inside the container")));
    }
    Ok(match world.zone(to) {
        Zone::Container(other) => to_container(world, member, other, question),
        Zone::Host => to_host(world, member, question),
        Zone::Lan(why) => to_lan(world, member, why, question),
        Zone::Internet => to_internet(world, member, question),
    })
}

fn to_container(world: &World, member: &Member, other: Option<&Member>, question: Question) -> Answer {
    let (name, to) = (&member.name, question.to);
    let Some(other) = other else {
        return blocked(format!("blocked: no container that is running has the address {to}"));
    };
    let peer = &other.name;
    if peer == name {
        return allowed(format!("allowed: {to} is the container itself"));
    }
    if world.parted(name, peer) {
        return blocked(format!("blocked by the partition of {name} and {peer}; `lazaret network heal` ends it"));
    }
    match (member.network.peers.contains(peer), other.network.peers.contains(name)) {
        (true, true) => {}
        (true, false) => return blocked(format!("blocked: `network.peers` of {peer} does not name {name}")),
        (false, true) => return blocked(format!("blocked: `network.peers` of {name} does not name {peer}")),
        (false, false) => {
            return blocked(format!("blocked: `network.peers` of {name} and of {peer} do not name each other"));
        }
    }
    denied(world, member, question)
        .unwrap_or_else(|| allowed(format!("allowed by `network.peers` of {name} and of {peer}")))
}

fn to_host(world: &World, member: &Member, question: Question) -> Answer {
    let Question { to, protocol, port } = question;
    let site = &world.site;
    if let Some(answer) = denied(world, member, question) {
        return answer;
    }
    let ours = [site.gateway.into(), site.gateway6.into(), ROUTER.into()].contains(&to);
    let service = match (protocol, port) {
        (Protocol::Icmp, _) => Some("ping"),
        (Protocol::Tcp | Protocol::Udp, Some(53)) => Some("names"),
        _ => None,
    };
    if let Some(service) = service.filter(|_| ours) {
        return allowed(format!("allowed: {to} answers every container's {service}"));
    }
    if member.network.host {
        return allowed(format!("allowed by `network.host = true` ({to} is the host)"));
    }
    let near = |entry: &&Destination| entry.target != Target::Any;
    granted(world, member, question, near)
        .unwrap_or_else(|| blocked(format!("blocked by `network.host = false` ({to} is the host)")))
}

fn to_lan(world: &World, member: &Member, why: Private<'_>, question: Question) -> Answer {
    let to = question.to;
    let why = match why {
        Private::Range(words) => format!("{to} is {words}"),
        Private::OnLink(on_link) => match &on_link.interface {
            Some(interface) => format!("{to} is on-link on {interface}"),
            None => format!("{to} is on-link in {}", on_link.prefix),
        },
    };
    let near = |entry: &&Destination| entry.target != Target::Any;
    denied(world, member, question).or_else(|| granted(world, member, question, near)).unwrap_or_else(|| {
        match member.network.lan {
            true => allowed(format!("allowed by `network.lan = true` ({why})")),
            false => blocked(format!("blocked by `network.lan = false` ({why})")),
        }
    })
}

fn to_internet(world: &World, member: &Member, question: Question) -> Answer {
    denied(world, member, question).or_else(|| granted(world, member, question, |_| true)).unwrap_or_else(|| {
        match member.network.internet {
            true => allowed("allowed by `network.internet = true`".into()),
            false => blocked("blocked by `network.internet = false`".into()),
        }
    })
}

/// The answer of the first entry of `deny` that means the packet.
fn denied(world: &World, member: &Member, question: Question) -> Option<Answer> {
    let entry = member.network.deny.iter().find(|entry| means(world, entry, question))?;
    Some(blocked(format!("blocked by `network.deny = [\"{entry}\"]`")))
}

/// The answer of the first entry of `allow` that means the packet and counts here.
fn granted(
    world: &World,
    member: &Member,
    question: Question,
    counts: impl Fn(&&Destination) -> bool,
) -> Option<Answer> {
    let entry = member.network.allow.iter().filter(counts).find(|entry| means(world, entry, question))?;
    Some(allowed(format!("allowed by `network.allow = [\"{entry}\"]`")))
}

fn means(world: &World, entry: &Destination, Question { to, protocol, port }: Question) -> bool {
    let there = world.settled(entry).is_none_or(|prefixes| prefixes.iter().any(|prefix| prefix.contains(to)));
    let how = match (entry.protocol, entry.ports) {
        (None, None) => true,
        (Some(wanted), None) => wanted == protocol,
        (wanted, Some(ports)) => {
            let transport = wanted.map_or(protocol != Protocol::Icmp, |wanted| wanted == protocol);
            transport && port.is_some_and(|port| ports.contain(port))
        }
    };
    there && how
}

fn allowed(line: String) -> Answer {
    Answer { allowed: true, line }
}

fn blocked(line: String) -> Answer {
    Answer { allowed: false, line }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::policy::tests::{member, world};

    /// The lines for `FROM ADDRESS[ PROTOCOL[ PORT]]`, one each.
    fn said(world: &World, questions: &[&str]) -> String {
        let line = |question: &&str| {
            let mut words = question.split(' ');
            let from: Name = words.next().unwrap().parse().unwrap();
            let to = words.next().unwrap().parse().unwrap();
            let protocol = words.next().unwrap_or("icmp").parse().unwrap();
            let port = words.next().map(|port| port.parse().unwrap());
            evaluate(world, &from, Question { to, protocol, port }).unwrap().line
        };
        questions.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_default_is_the_internet_and_nothing_else() {
        let questions = [
            "alone 9.9.9.9 tcp 443",
            "alone 2620:fe::fe tcp 443",
            "alone 192.168.1.20 tcp 631",
            "alone 192.168.7.7 tcp 631",
            "alone 2001:db8:1::20 udp 5353",
            "alone 224.0.0.251 udp 5353",
            "alone 192.168.1.5 tcp 22",
            "alone 10.90.0.1 tcp 22",
            "alone 10.90.0.1 udp 53",
            "alone fe80::1 icmp",
            "alone 10.90.0.2 tcp 80",
            "alone 10.90.0.3 tcp 80",
            "alone 10.90.7.7",
            "alone 127.0.0.1 tcp 80",
            "alone 10.90.0.4 tcp 80",
            "web 10.90.0.3 tcp 5432",
            "db fd12:3456:789a:1::2 tcp 80",
        ];
        assert_snapshot!(said(&world(), &questions), @"
        allowed by `network.internet = true`
        allowed by `network.internet = true`
        blocked by `network.lan = false` (192.168.1.20 is on-link on wlan0)
        blocked by `network.lan = false` (192.168.7.7 is a private address)
        blocked by `network.lan = false` (2001:db8:1::20 is on-link on wlan0)
        blocked by `network.lan = false` (224.0.0.251 is a multicast address)
        blocked by `network.host = false` (192.168.1.5 is the host)
        blocked by `network.host = false` (10.90.0.1 is the host)
        allowed: 10.90.0.1 answers every container's names
        allowed: fe80::1 answers every container's ping
        blocked: `network.peers` of alone and of web do not name each other
        blocked: `network.peers` of alone does not name db
        blocked: no container that is running has the address 10.90.7.7
        allowed: 127.0.0.1 is inside the container
        allowed: 10.90.0.4 is the container itself
        allowed by `network.peers` of web and of db
        allowed by `network.peers` of db and of web
        ");
    }

    #[test]
    fn entries_are_named_and_denials_win() {
        let mut world = world();
        let web = member(&mut world, "web");
        web.network.internet = false;
        web.network.lan = true;
        web.network.host = true;
        web.network.allow = ["*:443/tcp", "nas.local:445"].map(|entry| entry.parse().unwrap()).into();
        web.network.deny = ["192.168.1.7", "db:22", "*/icmp"].map(|entry| entry.parse().unwrap()).into();
        world.names.insert("nas.local".parse().unwrap(), ["192.168.1.7".parse().unwrap()].into());
        world.names.insert("db".parse().unwrap(), ["10.90.0.3".parse().unwrap()].into());
        let questions = [
            "web 9.9.9.9 tcp 443",
            "web 9.9.9.9 tcp 80",
            "web 9.9.9.9 icmp",
            "web 192.168.1.7 tcp 445",
            "web 192.168.1.20 tcp 443",
            "web 192.168.1.5 tcp 22",
            "web 10.90.0.3 tcp 22",
            "web 10.90.0.3 tcp 23",
        ];
        assert_snapshot!(said(&world, &questions), @r#"
        allowed by `network.allow = ["*:443/tcp"]`
        blocked by `network.internet = false`
        blocked by `network.deny = ["*/icmp"]`
        blocked by `network.deny = ["192.168.1.7"]`
        allowed by `network.lan = true` (192.168.1.20 is on-link on wlan0)
        allowed by `network.host = true` (192.168.1.5 is the host)
        blocked by `network.deny = ["db:22"]`
        allowed by `network.peers` of web and of db
        "#);
        member(&mut world, "web").network.deny.clear();
        member(&mut world, "web").network.lan = false;
        let (web, db) = ("web".parse().unwrap(), "db".parse().unwrap());
        world.part(&web, &db);
        let questions = ["web 192.168.1.7 udp 445", "web 192.168.1.20 tcp 443", "db 10.90.0.2 tcp 80"];
        assert_snapshot!(said(&world, &questions), @r#"
        allowed by `network.allow = ["nas.local:445"]`
        blocked by `network.lan = false` (192.168.1.20 is on-link on wlan0)
        blocked by the partition of db and web; `lazaret network heal` ends it
        "#);
    }

    #[test]
    fn a_container_that_is_not_attached_has_no_answer() {
        let question = Question { to: "9.9.9.9".parse().unwrap(), protocol: Protocol::Tcp, port: Some(443) };
        assert_eq!(evaluate(&world(), &"gone".parse().unwrap(), question).unwrap_err().what(), Kind::NotFound);
    }
}
