//! The bridge and all that belongs to it: made when somebody first needs it, taken over from a netd that went,
//! and taken away without a trace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use lazaret_base::{Context, Kind, Result, Undo, error};
use lazaret_config::{DomainName, Interface, Mac, Mode, Name, Prefix, Target};

use super::answering::{Answering, servers};
use super::attach::Attachment;
use super::mdns::Mdns;
use super::record::{self, Base, Numbers, Record, boot};
use super::{DOMAIN, HostNames, Netd, forwarding};
use crate::foreign::{self, Blocker};
use crate::guard::Guard;
use crate::link::{self, BridgeSpec};
use crate::nft::{Begun, Nft};
use crate::policy::{Member, OnLink, ROUTER, Site, TableName, Unrouted, World};
use crate::responder::{self, Order, Report, View};
use crate::ruleset::{self, Holdings};
use crate::subnet::{self, HostAddress};
use crate::sysctl::Previous;
use crate::watch::{Snapshot, Watch};
use crate::wire::Answer;
use crate::{conntrack, sysctl};

/// The largest packet of a link, where the host has no uplink.
const MTU: u32 = 1500;

/// How long DHCP promises an address for. It stays the same for ever; this is how soon a client hears of a change.
const LEASE_SECONDS: u32 = 12 * 3600;

/// A name of a policy is asked for again when its answer is old, but not more often.
const SOONEST: Duration = Duration::from_secs(30);
const LATEST: Duration = Duration::from_secs(3600);

/// An address that a name had stays allowed for a while: who has looked it up may be about to use it.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Addresses of one name are not remembered beyond this many, the oldest go first: some names have another at each
/// answer.
const MOST_ADDRESSES: usize = 64;

/// The network while it is up.
pub(super) struct Up {
    pub base: Base,
    pub world: World,
    pub answering: Answering,
    pub watch: Watch,
    pub snapshot: Snapshot,
    pub nft: Nft,
    pub guard: Guard,
    /// When the tables are set anew, if that failed.
    pub torn: Option<Instant>,
    pub mtu: u32,
    pub numbers: Numbers,
    pub names: Names,
    pub mdns: Mdns,
    /// What is in the way, one sentence each.
    pub notes: Vec<String>,
    /// When other firewalls were looked at last.
    pub looked: Instant,
}

/// What the names in policies resolve to.
#[derive(Default)]
pub(super) struct Names(BTreeMap<DomainName, Known>);

struct Known {
    addresses: BTreeMap<IpAddr, Instant>,
    again: Instant,
}

impl Known {
    fn latest_first(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<_> = self.addresses.iter().collect();
        addresses.sort_by_key(|(_, until)| std::cmp::Reverse(**until));
        addresses.into_iter().map(|(address, _)| *address).collect()
    }
}

impl Names {
    /// When a name is to be asked for again.
    pub fn due(&self) -> Option<Instant> {
        self.0.values().map(|known| known.again).min()
    }
}

impl Netd<'_> {
    /// What a netd before us has left: taken over where its keeper lives, taken away where not.
    pub(super) fn take_over(&mut self) -> Result<()> {
        for record in self.place.attachments()? {
            let Ok(name) = record.name.parse::<Name>() else { continue };
            if self.attached.contains_key(&name) {
                continue;
            }
            match record::open_process(record.keeper, record.keeper_started) {
                Some(keeper) => drop(self.attached.insert(name, Attachment::taken_over(record, keeper))),
                None => self.remove_what_was(&record),
            }
        }
        self.partition = record::read(&self.place.faults()).unwrap_or_default().unwrap_or_default();
        let base: Option<Base> = record::read(&self.place.base()).unwrap_or_default();
        if base.is_some_and(|base| base.boot == boot()) {
            self.be_up().map(drop)?;
        }
        Ok(())
    }

    /// Takes away what is recorded of a container whose keeper is gone.
    fn remove_what_was(&mut self, record: &Record) {
        if let Some(link) = &record.link {
            // Mostly it has gone with its namespace.
            let _ = link::delete(&mut self.host, link);
        }
        if let Some(lent) = &record.lent {
            let _ = link::reclaim(&mut self.host, lent, None);
        }
        if record.ephemeral {
            self.leases.release(&record.name);
        }
        record::forget(&self.place.attachment(&record.name));
    }

    /// The network, made if it is not there.
    pub(super) fn be_up(&mut self) -> Result<&mut Up> {
        if self.up.is_none() {
            let up = self
                .make_up()
                .context("making the containers' network")
                .hint("`lazaret doctor` tells what is missing; a container can do without: network.mode = \"none\"")?;
            self.up = Some(up);
            self.tell_host_names();
            self.look_for_foreign();
        }
        self.up.as_mut().ok_or_else(|| error("the network is not up"))
    }

    fn make_up(&mut self) -> Result<Up> {
        let nft = Nft::find()?;
        let bridge = self.place.bridge();
        let mut watch = self.watch()?;
        let snapshot = watch.snapshot()?;
        let numbers = self.numbers(&snapshot)?;
        let before: Option<Base> = record::read(&self.place.base()).unwrap_or_default();
        let mut base = match before.filter(|base| base.boot == boot()) {
            Some(before) => merged(before, forwarding::before()),
            None => forwarding::before(),
        };
        // From here on there is something to undo, and whoever comes after knows.
        record::write(&self.place.base(), &base)?;
        let mut undo = Undo::new();
        let fresh = self.attached.is_empty();
        let place = self.place.clone();
        let undone = base.clone();
        undo.push(move || {
            if fresh {
                // Best effort: what can't be undone is recorded still.
                let _ = forwarding::end(&undone);
                record::forget(&place.base());
            }
        });
        let mtu = snapshot.uplink_mtu().unwrap_or(MTU);
        let (gateway, gateway6) = (subnet::gateway(numbers.subnet), subnet::gateway(numbers.prefix));
        let on_bridge = |ip, length| HostAddress { ip, length };
        let spec = BridgeSpec {
            name: bridge.clone(),
            mac: bridge_mac(&numbers, &bridge),
            mtu,
            addresses: vec![
                on_bridge(gateway, numbers.subnet.length()),
                on_bridge(gateway6, numbers.prefix.length()),
                on_bridge(ROUTER.into(), 64),
            ],
            label: "the bridge of Lazaret's containers; `lazaret network show`".into(),
        };
        link::ensure_bridge(&mut self.host, &spec)?;
        let (undone_bridge, fresh_bridge) = (bridge.clone(), fresh);
        undo.push(move || {
            if fresh_bridge && let Ok(mut host) = crate::netlink::Socket::route() {
                let _ = link::delete(&mut host, &undone_bridge);
            }
        });
        for (name, value) in bridge_settings(&bridge) {
            // The bridge's own, which go with it. A host without IPv6 lacks some.
            let set = sysctl::set(&name, value);
            if name.starts_with("ipv4/") {
                set?;
            }
        }
        let site = site(&self.place.table(), &bridge, &numbers)?;
        let mut guard = Guard::open(&site.table)?;
        let mut world = World {
            site,
            on_link: on_link(&snapshot),
            host_addresses: host_addresses(),
            names: BTreeMap::new(),
            members: BTreeMap::new(),
            partitions: BTreeSet::new(),
            losses: BTreeMap::new(),
            unrouted: unrouted(&base, &snapshot, &bridge),
        };
        self.sweep_ports(&bridge);
        for (name, one) in &self.attached {
            if let Some(member) = member(name, &one.record) {
                world.members.insert(name.clone(), member);
            }
        }
        super::faults::apply(&mut world, &self.partition, &self.attached);
        // Before anything is forwarded: the rules.
        let begun = nft.begin(&ruleset::whole(&world))?;
        guard.expect(&begun);
        begun.finish()?;
        let (tables, undone_nft) = (ruleset::gone(&world.site), Nft::find()?);
        undo.push(move || {
            if fresh {
                let _ = undone_nft.apply(&tables);
            }
        });
        forwarding::begin(&mut base)?;
        record::write(&self.place.base(), &base)?;
        let answering = Answering::new(&bridge, gateway, gateway6)?;
        let names = Names::default();
        let notes = Vec::new();
        undo.keep();
        let looked = Instant::now();
        let mdns = Mdns::new()?;
        let torn = None;
        Ok(Up { base, world, answering, watch, snapshot, nft, guard, torn, mtu, numbers, names, mdns, notes, looked })
    }

    /// The addresses of the bridge: as recorded, unless the host has come to use them otherwise and nobody is attached.
    fn numbers(&self, snapshot: &Snapshot) -> Result<Numbers> {
        let before: Option<Numbers> = record::read(&self.place.numbers()).unwrap_or_default();
        let clashes = |subnet: Prefix| snapshot.taken.iter().any(|taken| taken.length() >= 8 && taken.overlaps(subnet));
        let numbers = match before {
            Some(before) if before.subnet_set || !self.attached.is_empty() || !clashes(before.subnet) => {
                return Ok(before);
            }
            Some(before) => Numbers { subnet: subnet::choose(snapshot.taken.iter().copied())?, ..before },
            None => {
                let mut random = [0; 13];
                rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
                let [a, b, c, d, e, salt @ ..] = random;
                Numbers {
                    subnet: subnet::choose(snapshot.taken.iter().copied())?,
                    subnet_set: false,
                    prefix: subnet::unique_local([a, b, c, d, e]),
                    salt: salt.iter().map(|byte| format!("{byte:02x}")).collect(),
                }
            }
        };
        record::write(&self.place.numbers(), &numbers)?;
        Ok(numbers)
    }

    /// The salt of what is derived from names, with or without a bridge.
    pub(super) fn salt(&self) -> Result<String> {
        if let Some(up) = &self.up {
            return Ok(up.numbers.salt.clone());
        }
        Ok(self.numbers(&self.watch()?.snapshot()?)?.salt)
    }

    /// Looks at the host's network, ours aside.
    fn watch(&self) -> Result<Watch> {
        let bridge = self.place.bridge();
        Watch::open(move |name| name == bridge || name.starts_with("lz-"))
    }

    /// Ports of our bridge that nobody is behind.
    fn sweep_ports(&mut self, bridge: &str) {
        let known: BTreeSet<&str> = self.attached.values().filter_map(|one| one.record.link.as_deref()).collect();
        for port in link::ports(&mut self.host, bridge).unwrap_or_default() {
            if !known.contains(port.name.as_str()) {
                let _ = link::delete(&mut self.host, &port.name);
            }
        }
    }

    /// `up` with addresses that the user has chosen.
    pub(super) fn go_up(&mut self, subnet: Option<&str>, prefix: Option<&str>) -> Result<Vec<String>> {
        if subnet.is_some() || prefix.is_some() {
            if !self.attached.is_empty() {
                return Err(error(format!("{} containers are connected by the addresses of now", self.attached.len()))
                    .kind(Kind::Running)
                    .hint("stop them first: `lazaret list` shows those that run"));
            }
            let before = match &self.up {
                Some(up) => up.numbers.clone(),
                None => self.numbers(&self.watch()?.snapshot()?)?,
            };
            let mut numbers = before.clone();
            if let Some(subnet) = subnet {
                numbers.subnet = parsed_prefix(subnet, true, 8..=28)?;
                numbers.subnet_set = true;
            }
            if let Some(prefix) = prefix {
                numbers.prefix = parsed_prefix(prefix, false, 48..=64)?;
            }
            if self.up.is_some() {
                self.take_down()?;
            }
            record::write(&self.place.numbers(), &numbers)?;
            if let Err(e) = self.be_up().map(drop) {
                record::write(&self.place.numbers(), &before)?;
                return Err(e);
            }
        }
        Ok(self.be_up()?.notes.clone())
    }

    /// Removes every trace.
    pub(super) fn go_down(&mut self, force: bool) -> Result<Vec<String>> {
        if !self.attached.is_empty() && !force {
            let names: Vec<_> = self.attached.keys().take(5).map(Name::to_string).collect();
            let more = if self.attached.len() > 5 { ", …" } else { "" };
            return Err(error(format!("{}{more} would be cut off", names.join(", ")))
                .kind(Kind::Running)
                .hint("stop them first, or cut them off: lazaret network down --force"));
        }
        let farewell = Answer::Farewell("the network was taken down".into());
        let clients: Vec<_> = self.attached.values().filter_map(|one| one.client).collect();
        clients.into_iter().for_each(|id| self.clients.say(id, &farewell));
        let names: Vec<Name> = self.attached.keys().cloned().collect();
        self.detach(&names);
        // What a netd before us left, if we could not take it over.
        for record in self.place.attachments()? {
            self.remove_what_was(&record);
        }
        self.take_down()?;
        record::forget(&self.place.faults());
        Ok(Vec::new())
    }

    /// Takes away the bridge, the tables and the settings. Does as much as it can.
    fn take_down(&mut self) -> Result<()> {
        let (base, tables) = match self.up.take() {
            Some(up) => {
                let Up { base, world, answering, nft, .. } = up;
                drop(answering);
                (Some(base), nft.apply(&ruleset::gone(&world.site)))
            }
            None => match record::read(&self.place.base()).unwrap_or_default() {
                Some(base) => (Some(base), self.remove_tables()),
                // Without a record nothing was made.
                None => (None, Ok(())),
            },
        };
        let bridge = link::delete(&mut self.host, &self.place.bridge());
        let base = base.filter(|base: &Base| base.boot == boot());
        let forwarding = base.map_or(Ok(()), |base| forwarding::end(&base));
        tables.context("removing the tables of the firewall")?;
        bridge.context("removing the bridge")?;
        forwarding.context("setting the host's forwarding back")?;
        record::forget(&self.place.base());
        Ok(())
    }

    /// Tables of a netd that was killed, where ours never came up.
    fn remove_tables(&self) -> Result<()> {
        let Ok(nft) = Nft::find() else { return Ok(()) };
        let numbers: Option<Numbers> = record::read(&self.place.numbers()).unwrap_or_default();
        match numbers {
            Some(numbers) => nft.apply(&ruleset::gone(&site(&self.place.table(), &self.place.bridge(), &numbers)?)),
            None => Ok(()),
        }
    }

    fn tell_host_names(&mut self) {
        let index = link::find(&mut self.host, &self.place.bridge()).ok().flatten().map(|link| link.index);
        let (Some(up), Some(index)) = (&mut self.up, index) else { return };
        let servers = [up.world.site.gateway.into(), up.world.site.gateway6.into()];
        up.notes.extend((self.hooks.host_names)(&HostNames { index, servers, domain: DOMAIN }));
    }

    /// Looks whether another firewall drops what ours lets through.
    pub(super) fn look_for_foreign(&mut self) {
        let Some(up) = &mut self.up else { return };
        let legacy = ["ip_tables_names", "ip6_tables_names"].map(|file| {
            let text = fs::read_to_string(format!("/proc/self/net/{file}")).unwrap_or_default();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        });
        let blockers = up.nft.list().and_then(|list| foreign::blockers(&list, &legacy.concat(), &up.world.site.bridge));
        up.notes.retain(|note| !note.starts_with(FOREIGN));
        for Blocker { what, mend, .. } in blockers.unwrap_or_default() {
            let mend = if mend.is_empty() { String::new() } else { format!("; to mend it: {}", mend.join("; ")) };
            up.notes.push(format!("{FOREIGN} {what}{mend}"));
        }
        up.looked = Instant::now();
    }

    /// The same, if it was long ago.
    pub(super) fn look_for_foreign_again(&mut self) {
        if self.up.as_ref().is_some_and(|up| up.looked.elapsed() > LOOKED_AT_EVERY) {
            self.look_for_foreign();
        }
    }

    /// The host is in another network, or in one more: what counts as LAN has changed.
    pub(super) fn host_changed(&mut self) {
        let Some(up) = &mut self.up else { return };
        if !up.watch.changed().unwrap_or(true) {
            return;
        }
        let Ok(snapshot) = up.watch.snapshot() else { return };
        up.world.host_addresses = host_addresses();
        let on_link = on_link(&snapshot);
        let unrouted = unrouted(&up.base, &snapshot, up.world.site.bridge.as_str());
        let others = up.world.on_link != on_link || up.world.unrouted != unrouted;
        up.snapshot = snapshot;
        if others {
            (up.world.on_link, up.world.unrouted) = (on_link, unrouted);
            if up.apply(&ruleset::surrounded(&up.world)).is_err() {
                // Somebody flushed everything.
                up.set_anew();
            }
            // What was allowed a moment ago may lead into a LAN now.
            let addresses: Vec<IpAddr> = up.world.members.values().flat_map(Member::addresses).collect();
            up.judge_anew(&addresses);
            // Another network may have another machine of that name.
            let now = Instant::now();
            let of_neighbours = up.names.0.iter_mut().filter(|(name, _)| Mdns::is_for(name));
            of_neighbours.for_each(|(_, known)| known.again = now);
        }
        self.settings_changed();
        self.refresh_names();
    }

    /// Somebody else has touched our tables, or they could not be set when they were to be.
    pub(super) fn tables_touched(&mut self) {
        let Some(up) = &mut self.up else { return };
        let due = up.torn.is_some_and(|at| at <= Instant::now());
        if up.guard.disturbed().unwrap_or(true) || due {
            up.set_anew();
        }
    }

    /// The responder hears what holds for all.
    pub(super) fn settings_changed(&mut self) {
        let settings = self.settings();
        if let (Some(up), Some(settings)) = (&mut self.up, settings) {
            up.answering.tell(&Order::Settings(settings));
        }
    }

    fn settings(&self) -> Option<responder::Settings> {
        let up = self.up.as_ref()?;
        let site = &up.world.site;
        Some(responder::Settings {
            domain: DOMAIN.into(),
            gateway4: site.gateway,
            prefix4: site.subnet.length(),
            gateway6: Some(site.gateway6),
            prefix6: site.subnet6.length(),
            own: up.world.host_addresses.iter().copied().take(MOST_OWN).collect(),
            mtu: up.mtu.try_into().unwrap_or(u16::MAX),
            lease_seconds: LEASE_SECONDS,
            upstreams: self.upstream.servers().to_vec(),
            lan: up.world.on_link.iter().map(|one| prefix_of(one.prefix)).collect(),
        })
    }

    /// Begins a responder if none runs and it is time.
    pub(super) fn keep_responder_running(&mut self) {
        if self.up.as_ref().and_then(|up| up.answering.due()).is_none_or(|at| at > Instant::now()) {
            return;
        }
        let hosts = self.attached.keys().filter_map(|name| self.host_of(name)).collect();
        let Some(settings) = self.settings() else { return };
        let program = (self.hooks.responder)();
        if let Some(up) = &mut self.up {
            // Tried again before long if it fails.
            let _ = up.answering.begin(program, View { settings, hosts });
        }
        self.ask_for_names();
    }

    /// A container as the responder knows it.
    pub(super) fn host_of(&self, name: &Name) -> Option<responder::Host> {
        let up = self.up.as_ref()?;
        let member = up.world.members.get(name)?;
        let network = &member.network;
        let lan_names = network.allow.iter().filter_map(|one| match &one.target {
            Target::Name(name) => Some(name.to_string()),
            Target::Any | Target::Prefix(_) => None,
        });
        let lan_names: Vec<String> = lan_names.collect();
        let found = |name: &String| {
            let known = up.names.0.get(&name.parse::<DomainName>().ok().filter(Mdns::is_for)?)?;
            (!known.addresses.is_empty()).then(|| (name.clone(), known.latest_first()))
        };
        let found = lan_names.iter().filter_map(found).collect();
        Some(responder::Host {
            name: name.to_string(),
            mac: member.mac.bytes(),
            address4: Some(member.address),
            address6: Some(member.address6),
            sees: up.world.peers(member).map(|peer| peer.name.to_string()).collect(),
            sees_host: network.host,
            lan: network.lan,
            internet: network.internet,
            lan_names,
            found,
            upstreams: servers(&network.dns),
        })
    }

    /// What the responder has to say.
    pub(super) fn hear_responder(&mut self) {
        let reports = self.up.as_mut().map(|up| up.answering.hear()).unwrap_or_default();
        for report in reports {
            match report {
                Report::Ready => {}
                Report::Resolved { name, addresses, seconds } => self.resolved(&name, &addresses, seconds),
            }
        }
    }

    /// What machines in the host's networks have to say of their names.
    pub(super) fn hear_mdns(&mut self) {
        let Some(up) = &mut self.up else { return };
        let on_link: Vec<Prefix> = up.snapshot.on_link.iter().copied().collect();
        for report in up.mdns.hear(&on_link) {
            if let Report::Resolved { name, addresses, seconds } = report {
                self.resolved(&name, &addresses, seconds);
            }
        }
    }

    /// The host's interfaces that may have neighbours, by index.
    fn lan_interfaces(&mut self) -> Vec<u32> {
        let bridge = self.place.bridge();
        let links = link::links(&mut self.host).unwrap_or_default();
        let ours = |name: &str| name == "lo" || name == bridge || name.starts_with("lz-");
        links
            .iter()
            .filter(|link| link.up && link.master.is_none() && !ours(&link.name))
            .map(|link| link.index)
            .collect()
    }

    /// Asks for every name in the policies that is not known yet, and forgets those that are in none.
    pub(super) fn ask_for_names(&mut self) {
        let Some(up) = &mut self.up else { return };
        let lists = up.world.members.values().flat_map(|one| one.network.allow.iter().chain(&one.network.deny));
        let wanted: BTreeSet<DomainName> = lists
            .filter_map(|one| match &one.target {
                Target::Name(name) => Some(name.clone()),
                Target::Any | Target::Prefix(_) => None,
            })
            .collect();
        up.names.0.retain(|name, _| wanted.contains(name));
        let mut due = Vec::new();
        for name in wanted {
            let now = Instant::now();
            let known =
                up.names.0.entry(name.clone()).or_insert_with(|| Known { addresses: BTreeMap::new(), again: now });
            if known.again <= now {
                known.again = now + SOONEST;
                due.push(name);
            }
        }
        due.iter().for_each(|name| self.look_up(name));
    }

    /// Asks for a name; the answer is a report, if there is one.
    pub(super) fn look_up(&mut self, name: &DomainName) {
        let interfaces = if Mdns::is_for(name) { self.lan_interfaces() } else { Vec::new() };
        let Some(up) = &mut self.up else { return };
        if Mdns::is_for(name) {
            up.mdns.ask(name, &interfaces);
        }
        // The host's own resolver may know such names, too.
        up.answering.tell(&Order::Resolve(name.to_string()));
    }

    /// Asks again for names whose answers are old.
    pub(super) fn refresh_names(&mut self) {
        if self.up.as_ref().and_then(|up| up.names.due()).is_some_and(|at| at <= Instant::now()) {
            self.ask_for_names();
        }
    }

    fn resolved(&mut self, name: &str, addresses: &[IpAddr], seconds: u32) {
        let Ok(wanted) = name.parse::<DomainName>() else { return };
        // Of two who are asked, one who knows nothing is no answer.
        if !addresses.is_empty() || !Mdns::is_for(&wanted) {
            self.checks_resolved(name, addresses);
        }
        let (Some(up), name) = (&mut self.up, wanted) else { return };
        let Some(known) = up.names.0.get_mut(&name) else { return };
        let now = Instant::now();
        known.again = now + Duration::from_secs(seconds.into()).clamp(SOONEST, LATEST);
        known.addresses.retain(|_, until| *until > now);
        let until = now + REMEMBERED.max(Duration::from_secs(seconds.into()).min(LATEST));
        known.addresses.extend(addresses.iter().map(|address| (*address, until)));
        while known.addresses.len() > MOST_ADDRESSES {
            let oldest = known.addresses.iter().min_by_key(|(_, until)| **until).map(|(address, _)| *address);
            oldest.and_then(|oldest| known.addresses.remove(&oldest));
        }
        let now: BTreeSet<IpAddr> = known.addresses.keys().copied().collect();
        if up.world.names.get(&name) == Some(&now) {
            return;
        }
        let mentions = |member: &&Member| {
            let lists = member.network.allow.iter().chain(&member.network.deny);
            lists.into_iter().any(|one| matches!(&one.target, Target::Name(other) if *other == name))
        };
        let concerned: Vec<Name> = up.world.members.values().filter(mentions).map(|one| one.name.clone()).collect();
        // The next answer brings it again, should it fail.
        let _ = up.rewrite(
            &concerned,
            |world| drop(world.names.insert(name.clone(), now)),
            |world| drop(world.names.remove(&name)),
        );
        // The rules have it: now the containers may hear it.
        if Mdns::is_for(&name) {
            self.tell_responder(&concerned);
        }
    }
}

/// Listing all rules takes longer than connecting a container, so it is not done for each.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(30);

/// The responder is told no more addresses of the host's: what it is told has to fit one message.
const MOST_OWN: usize = 256;

/// When tables are set again that could not be.
const TORN_AGAIN: Duration = Duration::from_secs(1);

/// How notes on other firewalls begin.
const FOREIGN: &str = "another firewall is in the way:";

impl Up {
    /// Changes what concerns these containers, and the rules with it, in one transaction. If that fails, `undo` is what
    /// was changed.
    pub fn rewrite(
        &mut self,
        concerned: &[Name],
        change: impl FnOnce(&mut World),
        undo: impl FnOnce(&mut World),
    ) -> Result<()> {
        match self.transition(concerned, change) {
            None => Ok(()),
            Some(text) => {
                let applied = self.apply(&text);
                self.settle(applied, undo)
            }
        }
    }

    /// Begins a transaction of ours.
    pub fn begin(&mut self, text: &str) -> Result<Begun> {
        let begun = self.nft.begin(text)?;
        self.guard.expect(&begun);
        Ok(begun)
    }

    /// Carries out a transaction of ours.
    fn apply(&mut self, text: &str) -> Result<()> {
        self.begin(text)?.finish()
    }

    /// Sets both tables as they are to be; tried again in a moment if that fails.
    fn set_anew(&mut self) {
        // Somebody who takes our tables away all the time is not raced with: the next event brings us back.
        const TIMES: usize = 3;
        for _ in 0..TIMES {
            let applied = self.apply(&ruleset::whole(&self.world));
            self.torn = applied.is_err().then(|| Instant::now() + TORN_AGAIN);
            if applied.is_err() || !self.guard.disturbed().unwrap_or(true) {
                return;
            }
        }
    }

    /// What these addresses of containers have open is judged by the rules of now.
    pub fn judge_anew(&self, addresses: &[IpAddr]) {
        let site = &self.world.site;
        let bridge = [site.gateway.into(), site.gateway6.into(), IpAddr::from(ROUTER)];
        let host = |address| bridge.contains(&address) || self.world.host_addresses.contains(&address);
        // The rules hold in any case; a connection that goes on one-sidedly ends by itself.
        let _ = conntrack::forget_but(&addresses.iter().copied().collect(), host);
    }

    /// Changes the world, and tells which transaction makes the rules follow.
    pub fn transition(&mut self, concerned: &[Name], change: impl FnOnce(&mut World)) -> Option<String> {
        let before: Vec<_> = concerned.iter().map(|name| ruleset::holdings(&self.world, name)).collect();
        change(&mut self.world);
        let text = together(&self.world, concerned, &before);
        (!text.is_empty()).then_some(text)
    }

    /// What became of a transaction: if it was refused, somebody may have flushed our tables, and all is set anew.
    pub fn settle(&mut self, applied: Result<()>, undo: impl FnOnce(&mut World)) -> Result<()> {
        let Err(first) = applied else { return Ok(()) };
        match self.apply(&ruleset::whole(&self.world)) {
            Ok(()) => Ok(()),
            Err(_) => {
                undo(&mut self.world);
                Err(first.context("setting the rules of the firewall"))
            }
        }
    }
}

/// The transactions of several containers as one. What a pair of them shares is in the holdings of both, and changes
/// once.
fn together(world: &World, concerned: &[Name], before: &[Holdings]) -> String {
    let all =
        |holdings: &mut dyn Iterator<Item = Holdings>| holdings.fold(Holdings::default(), |all, one| all.with(one));
    let old = all(&mut before.iter().cloned());
    let new = all(&mut concerned.iter().map(|name| ruleset::holdings(world, name)));
    ruleset::transition(&world.site, &old, &new).unwrap_or_default()
}

/// What was changed before us is still to be undone.
fn merged(mut before: Base, now: Base) -> Base {
    before.changed.retain(|one| !now.changed.iter().any(|other: &Previous| other.name == one.name));
    before.changed.extend(now.changed);
    before.forwarding6 |= now.forwarding6;
    before.there.extend(now.there.into_iter().filter(|name| !before.there.contains(name)).collect::<Vec<_>>());
    before
}

/// Settings of the bridge itself.
fn bridge_settings(bridge: &str) -> Vec<(String, &'static str)> {
    const TABLE: &[(&str, &str)] = &[
        // Answers ARP for containers that are asked for by others: they reach each other through the host, if at all.
        ("ipv4/conf/{}/proxy_arp_pvlan", "1"),
        // At once; the kernel would wait up to a second, for the case that somebody else does.
        ("ipv4/neigh/{}/proxy_delay", "0"),
        ("ipv4/conf/{}/send_redirects", "0"),
        ("ipv4/conf/{}/accept_redirects", "0"),
        ("ipv4/conf/{}/arp_ignore", "1"),
        ("ipv4/conf/{}/rp_filter", "1"),
        // Published ports of 127.0.0.1; what containers send there is dropped by a rule.
        ("ipv4/conf/{}/route_localnet", "1"),
        ("ipv6/conf/{}/accept_ra", "0"),
        ("ipv6/conf/{}/accept_redirects", "0"),
        ("ipv6/conf/{}/autoconf", "0"),
        // What it answers says then that it is a router: who learns of one that is none any more forgets the routes
        // through it (RFC 4861, section 7.2.5), as systemd-networkd does.
        ("ipv6/conf/{}/forwarding", "1"),
    ];
    TABLE.iter().map(|(name, value)| (name.replace("{}", bridge), *value)).collect()
}

fn site(table: &str, bridge: &str, numbers: &Numbers) -> Result<Site> {
    let (IpAddr::V4(gateway), IpAddr::V6(gateway6)) =
        (subnet::gateway(numbers.subnet), subnet::gateway(numbers.prefix))
    else {
        return Err(error("the subnet and the prefix are of the wrong families"));
    };
    let IpAddr::V6(prefix) = numbers.prefix.address() else { return Err(error("the prefix is none of IPv6")) };
    Ok(Site {
        table: TableName::new(table).ok_or_else(|| error(format!("`{table}` can't be a table's name")))?,
        bridge: bridge.parse::<Interface>()?,
        subnet: numbers.subnet,
        gateway,
        subnet6: numbers.prefix,
        gateway6,
        translate6: prefix.is_unique_local(),
    })
}

/// A container on our bridge, as the rules know it.
pub(super) fn member(name: &Name, record: &Record) -> Option<Member> {
    let (lease, link) = (record.lease?, record.link.as_ref()?);
    (record.settings.mode == Mode::Internet).then_some(())?;
    Some(Member {
        name: name.clone(),
        port: link.parse().ok()?,
        mac: lease.mac,
        address: lease.address4,
        address6: lease.address6,
        network: record.settings.clone(),
    })
}

/// The bridge's hardware address: the same for ever, as containers keep it as that of their neighbour.
pub(super) fn bridge_mac(numbers: &Numbers, bridge: &str) -> Mac {
    subnet::host_mac(&format!("{} {bridge}", numbers.salt))
}

fn on_link(snapshot: &Snapshot) -> Vec<OnLink> {
    snapshot.on_link.iter().map(|prefix| OnLink { prefix: *prefix, interface: None }).collect()
}

fn unrouted(base: &Base, snapshot: &Snapshot, bridge: &str) -> Unrouted {
    forwarding::unrouted(base, &snapshot.devices, |name| name == bridge || name.starts_with("lz-"))
}

fn prefix_of(prefix: Prefix) -> responder::Prefix {
    responder::Prefix { address: prefix.address(), length: prefix.length() }
}

fn parsed_prefix(text: &str, v4: bool, lengths: std::ops::RangeInclusive<u8>) -> Result<Prefix> {
    let prefix: Prefix = text.parse()?;
    let family = if v4 { "IPv4" } else { "IPv6" };
    if prefix.is_v4() != v4 || !lengths.contains(&prefix.length()) {
        return Err(error(format!("`{text}` is no {family} network of /{} to /{}", lengths.start(), lengths.end()))
            .kind(Kind::Invalid)
            .hint(if v4 { "for example 10.90.0.0/20" } else { "for example fd12:3456:789a:1::/64" }));
    }
    Ok(prefix)
}

/// The host's own addresses, as the kernel's routing table has them (fib_trie) and as its interfaces do (if_inet6).
fn host_addresses() -> BTreeSet<IpAddr> {
    let trie = fs::read_to_string("/proc/self/net/fib_trie").unwrap_or_default();
    let mut found = BTreeSet::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in trie.lines() {
        match line.split_once("|-- ") {
            Some((_, address)) => last = address.trim().parse().ok(),
            None if line.contains("/32 host LOCAL") => found.extend(last.map(IpAddr::V4)),
            None => {}
        }
    }
    let inet6 = fs::read_to_string("/proc/self/net/if_inet6").unwrap_or_default();
    let six = |line: &str| u128::from_str_radix(line.split_whitespace().next()?, 16).ok();
    found.extend(inet6.lines().filter_map(six).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))));
    found
}
