//! What there is to tell: the network, who is connected, and whether a way is open.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lazaret_base::{Error, Kind, Result, error};
use lazaret_config::{DomainName, Mode, Name, Network as Settings, Protocol};

use super::clients::Id;
use super::record::Numbers;
use super::{Netd, record};
use crate::check::{self, Question};
use crate::link;
use crate::policy;
use crate::wire::{Answer, Attachment, Network, Verdict};

impl Netd<'_> {
    /// Tells of the network and all containers, or of one container.
    pub(super) fn show(&mut self, id: Id, name: Option<&Name>) -> Result<()> {
        match name {
            Some(name) => {
                let attachment = self.attachment(name)?;
                self.clients.say(id, &Answer::Attachment(Box::new(attachment)));
            }
            None => {
                self.look_for_foreign();
                let network = self.network();
                self.clients.say(id, &Answer::Network(Box::new(network)));
                let names: Vec<Name> = self.attached.keys().cloned().collect();
                for name in names {
                    let attachment = self.attachment(&name)?;
                    self.clients.say(id, &Answer::Attachment(Box::new(attachment)));
                }
            }
        }
        self.clients.say(id, &Answer::End);
        Ok(())
    }

    fn network(&self) -> Network {
        let numbers: Option<Numbers> = record::read(&self.place.numbers()).unwrap_or_default();
        let mut network = Network {
            bridge: self.place.bridge(),
            table: self.place.table(),
            upstreams: self.upstream.servers().iter().map(|server| server.ip().to_string()).collect(),
            partition: self.partition.iter().map(|group| group.iter().map(Name::to_string).collect()).collect(),
            netd: std::process::id() as i32,
            attached: self.attached.len(),
            ..Network::default()
        };
        if let Some(numbers) = numbers {
            network.subnet = numbers.subnet.to_string();
            network.prefix = numbers.prefix.to_string();
        }
        if let Some(up) = &self.up {
            let site = &up.world.site;
            network.up = true;
            network.gateway = site.gateway.to_string();
            network.gateway6 = site.gateway6.to_string();
            network.translated6 = site.translate6;
            network.mtu = up.mtu;
            network.lan = up.world.links().iter().map(ToString::to_string).collect();
            network.responder = up.answering.pid();
            network.notes = up.notes.clone();
        }
        network
    }

    fn attachment(&mut self, name: &Name) -> Result<Attachment> {
        let one = self.attached.get(name);
        let one = one.ok_or_else(|| error(format!("`{name}` is not connected")).kind(Kind::NotFound))?;
        let record = one.record.clone();
        let found = record.link.as_ref().and_then(|link| link::find(&mut self.host, link).ok().flatten());
        let traffic = found.map(|link| link.traffic.seen_from_inside()).unwrap_or_default();
        let peers = self.up.as_ref().and_then(|up| {
            let member = up.world.members.get(name)?;
            Some(up.world.peers(member).map(|peer| peer.name.to_string()).collect())
        });
        Ok(Attachment {
            name: name.to_string(),
            mode: record.settings.mode.to_string(),
            attached: self.attached_as(name, Vec::new()),
            policy: match record.settings.mode {
                Mode::Internet => policy_in_words(&record.settings),
                _ => vec!["none of ours: it stands in the network that its mode names".into()],
            },
            peers: peers.unwrap_or_default(),
            received: traffic.received.bytes,
            sent: traffic.sent.bytes,
            dropped: traffic.received.dropped + traffic.sent.dropped,
            impairments: record.impaired.iter().map(in_words).collect(),
        })
    }

    /// Whether a container may send somewhere, for each address that the host has. A name of the world outside is
    /// looked up first: then the answer comes later.
    pub(super) fn check(&mut self, id: Id, name: &Name, asked: Asked) -> Result<()> {
        let not_connected = || error(format!("`{name}` is not connected to our network")).kind(Kind::NotFound);
        let up = self.up.as_ref().ok_or_else(not_connected)?;
        if !up.world.members.contains_key(name) {
            return Err(not_connected());
        }
        match addresses_of(&asked.host, &up.world) {
            Some(addresses) => self.tell_verdicts(id, name, &asked, &addresses),
            None => {
                let wanted = asked.host.parse::<DomainName>().map_err(|_| unknown_host(&asked.host))?;
                self.look_up(&wanted);
                let until = Instant::now() + LOOKED_UP_WITHIN;
                self.checks.push(Pending { id, name: name.clone(), asked, until });
                Ok(())
            }
        }
    }

    fn tell_verdicts(&mut self, id: Id, name: &Name, asked: &Asked, addresses: &[IpAddr]) -> Result<()> {
        let up = self.up.as_ref().ok_or_else(|| error("the network is not up"))?;
        let protocol = match (asked.port, asked.udp) {
            (Some(_), true) => Protocol::Udp,
            (Some(_), false) => Protocol::Tcp,
            (None, _) => Protocol::Icmp,
        };
        let mut verdicts = Vec::new();
        for address in addresses {
            let question = Question { to: *address, protocol, port: asked.port };
            let check::Answer { allowed, line } = check::evaluate(&up.world, name, question)?;
            verdicts.push(Verdict { allowed, line, addresses: vec![address.to_string()] });
        }
        verdicts.into_iter().for_each(|verdict| self.clients.say(id, &Answer::Verdict(verdict)));
        self.clients.say(id, &Answer::End);
        Ok(())
    }

    /// A name was looked up: whoever waits for it hears the verdicts.
    pub(super) fn checks_resolved(&mut self, host: &str, addresses: &[IpAddr]) {
        let is_it = |pending: &Pending| pending.asked.host.eq_ignore_ascii_case(host);
        let (ready, waiting) = std::mem::take(&mut self.checks).into_iter().partition(is_it);
        self.checks = waiting;
        for Pending { id, name, asked, .. } in ready {
            let told = match addresses {
                [] => Err(unknown_host(&asked.host)),
                addresses => self.tell_verdicts(id, &name, &asked, addresses),
            };
            if let Err(e) = told {
                self.clients.say(id, &Answer::Failed(e.into()));
            }
        }
    }

    /// Nobody waits for ever.
    pub(super) fn checks_expired(&mut self) {
        let now = Instant::now();
        let (late, waiting): (Vec<_>, _) =
            std::mem::take(&mut self.checks).into_iter().partition(|one| one.until <= now);
        self.checks = waiting;
        for Pending { id, asked, .. } in late {
            self.clients.say(id, &Answer::Failed(unknown_host(&asked.host).into()));
        }
    }
}

/// What a check is about.
pub(super) struct Asked {
    pub host: String,
    pub port: Option<u16>,
    pub udp: bool,
}

/// A check that waits for the addresses of a name.
pub(super) struct Pending {
    id: Id,
    name: Name,
    asked: Asked,
    pub until: Instant,
}

/// How long a name may take.
const LOOKED_UP_WITHIN: Duration = Duration::from_secs(6);

fn unknown_host(host: &str) -> Error {
    error(format!("`{host}` is neither an address nor a container, and nobody knows a host of that name"))
        .kind(Kind::NotFound)
        .hint("`lazaret network show` tells who is asked for names")
}

/// An address, or those of a container or of the host. Other names are looked up by whoever asks.
fn addresses_of(host: &str, world: &policy::World) -> Option<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Some(vec![address]);
    }
    let name = host.strip_suffix(".lazaret").unwrap_or(host);
    if matches!(name, "gateway" | "host") {
        return Some(vec![world.site.gateway.into(), world.site.gateway6.into()]);
    }
    let member = world.members.get(name)?;
    Some(vec![member.address.into(), member.address6.into()])
}

/// What a container may, one sentence for each thing that differs from nothing.
fn policy_in_words(settings: &Settings) -> Vec<String> {
    let mut words = Vec::new();
    let list = |items: Vec<String>| items.join(", ");
    match (settings.internet, settings.lan, settings.host) {
        (true, false, false) => words.push("internet only".into()),
        (internet, lan, host) => {
            let yes = |is: bool| if is { "yes" } else { "no" };
            words.push(format!("internet: {}, LAN: {}, host: {}", yes(internet), yes(lan), yes(host)));
        }
    }
    if !settings.peers.is_empty() {
        words.push(format!("names as peers: {}", list(settings.peers.iter().map(ToString::to_string).collect())));
    }
    if !settings.allow.is_empty() {
        words.push(format!("may also reach: {}", list(settings.allow.iter().map(ToString::to_string).collect())));
    }
    if !settings.deny.is_empty() {
        words.push(format!("may not reach: {}", list(settings.deny.iter().map(ToString::to_string).collect())));
    }
    if !settings.publish.is_empty() {
        words.push(format!("published: {}", list(settings.publish.iter().map(ToString::to_string).collect())));
    }
    if let Some(rate) = settings.rate_up {
        words.push(format!("sends at most {rate}"));
    }
    if let Some(rate) = settings.rate_down {
        words.push(format!("receives at most {rate}"));
    }
    words
}

fn in_words(impaired: &record::Impaired) -> String {
    let mut parts = Vec::new();
    let impairment = &impaired.impairment;
    if let Some(delay) = impairment.delay_microseconds {
        parts.push(format!("{} ms later", delay as f64 / 1000.0));
    }
    if let Some(loss) = impairment.loss_per_million {
        parts.push(format!("{} % lost", f64::from(loss) / 10_000.0));
    }
    if let Some(rate) = impairment.rate.and_then(lazaret_config::Rate::from_bits) {
        parts.push(format!("{rate} at most"));
    }
    let to = impaired.to.as_ref().map_or_else(String::new, |to| format!(" to {to}"));
    format!("what it sends{to}: {}", parts.join(", "))
}
