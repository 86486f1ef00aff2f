//! Connecting containers, changing what holds for them, and disconnecting them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use lazaret_base::{Error, Kind, Result, error};
use lazaret_config::{Interface, Mac, Mode, Name, Network as Settings, Prefix};

use super::clients::Id;
use super::record::{self, Record};
use super::up::{bridge_mac, member};
use super::{Coming, DOMAIN, Netd, narrows, ports};
use crate::conntrack;
use crate::lease::{Lease, Wish};
use crate::link::{
    self, Inside, MacvlanMode, Neighbour, ParentedKind, ParentedSpec, PortKind, PortSpec, Route, attach_parented,
};
use crate::policy::{Member, ROUTER};
use crate::responder::Order;
use crate::shape;
use crate::subnet::{self, HostAddress};
use crate::watch::{Snapshot, Watch};
use crate::wire::{Answer, Attach, Attached};

/// The container's interface, as it sees it.
pub(super) const INSIDE: &str = "eth0";

/// A connected container.
pub(super) struct Attachment {
    pub record: Record,
    /// Its keeper, whose life is the attachment's.
    pub keeper: OwnedFd,
    /// Its keeper's connection; absent after a restart until it has called again, or when it is one that never does.
    pub client: Option<Id>,
    /// Its network namespace; absent as above.
    pub netns: Option<OwnedFd>,
    /// Its ports of the host.
    held: Vec<OwnedFd>,
}

impl Attachment {
    /// One of a netd before us.
    pub fn taken_over(record: Record, keeper: OwnedFd) -> Attachment {
        // Nobody else can have taken the ports but in the moment between; then the rules lead there all the same.
        let held = ports::hold(&record.settings.publish).unwrap_or_default();
        Attachment { record, keeper, client: None, netns: None, held }
    }
}

impl Netd<'_> {
    /// Connects all these containers, in one transaction of the firewall as far as it goes.
    pub(super) fn attach_clients(&mut self, coming: Vec<Coming>) {
        let mut ready = Vec::new();
        for (id, attach, netns) in coming {
            match self.prepare(id, attach, netns) {
                Ok(Prepared::Attached(attached)) => self.clients.say(id, &Answer::Attached(attached)),
                Ok(Prepared::ToDo(name)) => ready.push((id, name)),
                Err(e) => self.clients.say(id, &Answer::Failed(e.into())),
            }
        }
        if ready.is_empty() {
            return;
        }
        let names: Vec<Name> = ready.iter().map(|(_, name)| name.clone()).collect();
        let results = self.connect(&names);
        for ((id, name), result) in ready.into_iter().zip(results) {
            match result {
                Ok(attached) => self.clients.say(id, &Answer::Attached(attached)),
                Err(e) => {
                    self.forget(&name);
                    self.clients.say(id, &Answer::Failed(e.into()));
                }
            }
        }
        self.tell_responder(&names);
        // Nobody waits any more; the next one hears of it.
        self.look_for_foreign_again();
    }

    /// Decides all about a container and records it. Nothing is made yet.
    fn prepare(&mut self, id: Id, attach: Attach, netns: Option<OwnedFd>) -> Result<Prepared> {
        let name: Name = attach.name.parse()?;
        let netns = netns.ok_or_else(|| error("no network namespace came along"))?;
        let keeper = self.clients.pid(id);
        let keeper_started = record::started(keeper).ok_or_else(|| error("the keeper has ended"))?;
        let pidfd = record::open_process(keeper, keeper_started).ok_or_else(|| error("the keeper has ended"))?;
        if self.attached.contains_key(&name) {
            let same = self.attached.get(&name).is_some_and(|one| {
                attach.resume && (one.record.keeper, one.record.keeper_started) == (keeper, keeper_started)
            });
            if same && self.is_wired(&name) {
                return self.go_on(&name, id, netns, *attach.settings).map(Prepared::Attached);
            }
            // A keeper that was killed; its connection's end has not been seen yet.
            self.detach(std::slice::from_ref(&name));
        }
        let held = ports::hold(&attach.settings.publish)?;
        let record = self.decide(&name, &attach, keeper, keeper_started)?;
        if record.lease.is_some_and(|lease| self.stale.contains(&lease.address4.into())) {
            self.forget_stale();
        }
        record::write(&self.place.attachment(name.as_str()), &record)?;
        let one = Attachment { record, keeper: pidfd, client: Some(id), netns: Some(netns), held };
        self.attached.insert(name.clone(), one);
        Ok(Prepared::ToDo(name))
    }

    fn decide(&mut self, name: &Name, attach: &Attach, keeper: i32, keeper_started: u64) -> Result<Record> {
        let settings = (*attach.settings).clone();
        let mut record = Record {
            name: name.to_string(),
            settings: settings.clone(),
            ephemeral: attach.ephemeral,
            keeper,
            keeper_started,
            lease: None,
            link: None,
            lent: None,
            mtu: settings.mtu,
            impaired: Vec::new(),
        };
        match &settings.mode {
            Mode::Internet => {
                let up = self.be_up()?;
                record.mtu = Some(settings.mtu.unwrap_or(up.mtu).min(up.mtu));
                record.lease = Some(self.lease(name, &settings)?);
                record.link = Some(self.link_of(name)?);
            }
            Mode::Bridge(_) => record.link = Some(self.link_of(name)?),
            Mode::Macvlan(_) | Mode::Ipvlan(_) | Mode::Phys(_) => {}
            Mode::None | Mode::Host => return Err(error("a container of this mode is not connected")),
        }
        Ok(record)
    }

    fn link_of(&self, name: &Name) -> Result<String> {
        Ok(subnet::veth_name(&format!("{} {name}", self.salt()?)))
    }

    fn lease(&mut self, name: &Name, settings: &Settings) -> Result<Lease> {
        let numbers = self.be_up()?.numbers.clone();
        let wish = Wish { mac: settings.mac, address4: settings.address, address6: settings.address6 };
        let nets = [numbers.subnet, numbers.prefix];
        let attached: BTreeSet<&str> = self.attached.keys().map(Name::as_str).collect();
        self.leases.take(name.as_str(), &numbers.salt, wish, nets, self.hooks.exists, &|name| attached.contains(name))
    }

    /// Makes the links of prepared containers and sets their rules; what failed is taken back.
    fn connect(&mut self, names: &[Name]) -> Vec<Result<Attached>> {
        let (bridged, others): (Vec<_>, Vec<_>) = names
            .iter()
            .cloned()
            .partition(|name| self.attached.get(name).is_some_and(|one| one.record.settings.mode == Mode::Internet));
        let mut results = BTreeMap::new();
        for name in others {
            let result = self.wire(&name).map(|()| self.attached_as(&name, Vec::new()));
            results.insert(name, result);
        }
        if !bridged.is_empty() {
            results.extend(self.connect_bridged(bridged));
        }
        names.iter().map(|name| results.remove(name).unwrap_or_else(|| Err(error("it was not connected")))).collect()
    }

    /// The rules are on their way into the kernel while the links are made: until they are there, what comes from a
    /// port that they don't know is dropped.
    fn connect_bridged(&mut self, names: Vec<Name>) -> Vec<(Name, Result<Attached>)> {
        let members: Vec<Member> =
            names.iter().filter_map(|name| member(name, &self.attached.get(name)?.record)).collect();
        let begun = self.up.as_mut().map(|up| {
            let text = up.transition(&names, |world| {
                world.members.extend(members.into_iter().map(|member| (member.name.clone(), member)));
            });
            super::faults::apply(&mut up.world, &self.partition, &self.attached);
            text.map(|text| up.begin(&text))
        });
        let wired: Vec<Result<()>> = names.iter().map(|name| self.wire(name)).collect();
        let ruled = match (self.up.as_mut(), begun) {
            (Some(up), Some(begun)) => {
                let applied = begun.map_or(Ok(()), |begun| begun.and_then(|begun| begun.finish()));
                let gone = names.clone();
                up.settle(applied, |world| gone.iter().for_each(|name| drop(world.members.remove(name))))
            }
            _ => Err(error("the network is not up")),
        };
        let ruled = ruled.map_err(lazaret_base::Wire::from);
        let notes = self.up.as_ref().map(|up| up.notes.clone()).unwrap_or_default();
        let each = names.into_iter().zip(wired).map(|(name, wired)| {
            let result = match (wired, &ruled) {
                (Err(e), _) => Err(e),
                (Ok(()), Err(e)) => Err(e.clone().into()),
                (Ok(()), Ok(())) => Ok(self.attached_as(&name, notes.clone())),
            };
            (name, result)
        });
        each.collect()
    }

    /// Makes the link of one container.
    fn wire(&mut self, name: &Name) -> Result<()> {
        let Some(one) = self.attached.get(name) else { return Err(error("it is not known")) };
        let netns = one.netns.as_ref().ok_or_else(|| error("there is no network namespace"))?.try_clone()?;
        let record = one.record.clone();
        let settings = &record.settings;
        match &settings.mode {
            Mode::Internet | Mode::Bridge(_) => {
                let port = self.port(&record)?;
                link::attach(&mut self.host, &port, netns.as_fd())?;
                if let Some(rate) = settings.rate_down {
                    shape::limit_download(&mut self.host, &port.name, Some(rate))?;
                }
                match settings.rate_up {
                    Some(_) => self.shape_upload(name),
                    None => Ok(()),
                }
            }
            Mode::Macvlan(parent) | Mode::Ipvlan(parent) => {
                let kind = match settings.mode {
                    Mode::Ipvlan(_) => ParentedKind::Ipvlan,
                    _ => ParentedKind::Macvlan { mac: self.mac(&record)?, mode: MacvlanMode::Bridge },
                };
                let spec =
                    ParentedSpec { parent: parent.to_string(), kind, inside: self.inside_of_others(&record, parent)? };
                attach_parented(&mut self.host, &spec, netns.as_fd())
            }
            Mode::Phys(device) => {
                let inside = self.inside_of_others(&record, device)?;
                let lent = link::lend(&mut self.host, device.as_str(), &inside, netns.as_fd())?;
                if let Some(one) = self.attached.get_mut(name) {
                    one.record.lent = Some(lent);
                    record::write(&self.place.attachment(name.as_str()), &one.record)?;
                }
                Ok(())
            }
            Mode::None | Mode::Host => Err(error("a container of this mode is not connected")),
        }
    }

    /// Holds a container to its rate, where its packets wait for their turn. While it is impaired its way out has
    /// another queue; then, and where the kernel has no such queue, the firewall's limit is all there is.
    pub(super) fn shape_upload(&self, name: &Name) -> Result<()> {
        let Some(one) = self.attached.get(name) else { return Ok(()) };
        if one.record.link.is_none() || one.record.impaired.iter().any(super::faults::queues) {
            return Ok(());
        }
        let netns = one.netns.as_ref().ok_or_else(|| error_not_called(name))?;
        match shape::limit_upload(netns.as_fd(), INSIDE, one.record.settings.rate_up) {
            Err(e) if e.what() == Kind::Missing => Ok(()),
            done => done,
        }
    }

    /// The container's port of a bridge.
    fn port(&self, record: &Record) -> Result<PortSpec> {
        let name = record.link.clone().ok_or_else(|| error("it has no link"))?;
        let label = format!("{} of Lazaret", record.name);
        let (bridge, kind, inside) = match (&record.settings.mode, record.lease) {
            (Mode::Internet, Some(lease)) => {
                let host_mac = subnet::host_mac(&name);
                (self.place.bridge(), PortKind::Isolated { host_mac }, self.inside(record, &lease)?)
            }
            (Mode::Bridge(bridge), _) => (bridge.to_string(), PortKind::Plain, self.inside_of_others(record, bridge)?),
            _ => return Err(error("it is on no bridge")),
        };
        Ok(PortSpec { name, bridge, mac: self.mac(record)?, kind, inside, label })
    }

    fn mac(&self, record: &Record) -> Result<Mac> {
        match (record.lease, record.settings.mac) {
            (Some(lease), _) => Ok(lease.mac),
            (None, Some(mac)) => Ok(mac),
            (None, None) => Ok(subnet::mac(&format!("{} {}", self.salt()?, record.name))),
        }
    }

    /// On our own bridge: everybody's neighbour is the host alone.
    fn inside(&self, record: &Record, lease: &Lease) -> Result<Inside> {
        let up = self.up.as_ref().ok_or_else(|| error("the network is not up"))?;
        let site = &up.world.site;
        let host = [site.gateway.into(), site.gateway6.into(), IpAddr::from(ROUTER)];
        let mac = bridge_mac(&up.numbers, site.bridge.as_str());
        Ok(Inside {
            name: INSIDE.into(),
            mtu: record.mtu,
            addresses: vec![
                HostAddress { ip: lease.address4.into(), length: site.subnet.length() },
                HostAddress::alone(lease.address6.into()),
            ],
            routes: vec![Route::default_via(site.gateway.into()), Route::default_via(ROUTER.into())],
            // Never asked for, so nobody else can answer, and the first packet need not wait.
            neighbours: host.map(|address| Neighbour { address, mac }).to_vec(),
        })
    }

    /// In somebody else's network: what the user has set, and what the host knows of that network.
    fn inside_of_others(&self, record: &Record, on: &Interface) -> Result<Inside> {
        let settings = &record.settings;
        let mut inside = Inside { name: INSIDE.into(), mtu: record.mtu, ..Inside::default() };
        let wished = [settings.address.map(IpAddr::V4), settings.address6.map(IpAddr::V6)];
        if wished.iter().all(Option::is_none) {
            return Ok(inside);
        }
        let snapshot = Watch::open(|_| false)?.snapshot()?;
        for address in wished.into_iter().flatten() {
            let length =
                neighbours_of(address, &snapshot).map_or(if address.is_ipv4() { 24 } else { 64 }, Prefix::length);
            let address = HostAddress { ip: address, length };
            if let Some(gateway) = gateway_through(on.as_str()).filter(|gateway| address.prefix().contains(*gateway)) {
                inside.routes.push(Route::default_via(gateway));
            }
            inside.addresses.push(address);
        }
        Ok(inside)
    }

    /// What the keeper hears.
    pub(super) fn attached_as(&self, name: &Name, notes: Vec<String>) -> Attached {
        let Some(one) = self.attached.get(name) else { return Attached::default() };
        let record = &one.record;
        let mut attached = Attached {
            link: record.link.clone(),
            inside: INSIDE.into(),
            mac: self.mac(record).ok().filter(|_| record.lent.is_none()).map(|mac| mac.to_string()),
            notes,
            ..Attached::default()
        };
        match (record.lease, self.up.as_ref()) {
            (Some(lease), Some(up)) => {
                attached.addresses = vec![lease.address4.to_string(), lease.address6.to_string()];
                attached.names = vec![format!("{name}.{DOMAIN}")];
                let site = &up.world.site;
                let (one, other) = (site.gateway, site.gateway6);
                attached.resolver = format!("nameserver {one}\nnameserver {other}\nsearch {DOMAIN}\n");
            }
            _ => {
                let settings = &record.settings;
                let wished = [settings.address.map(IpAddr::V4), settings.address6.map(IpAddr::V6)];
                attached.addresses = wished.into_iter().flatten().map(|address| address.to_string()).collect();
                attached.resolver = settings.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
            }
        }
        attached
    }

    /// Whether a container of a netd before us is connected still: its end may have gone with a namespace of which
    /// only the keeper is left.
    fn is_wired(&mut self, name: &Name) -> bool {
        let Some(one) = self.attached.get(name) else { return false };
        match one.record.link.clone() {
            Some(link) => link::find(&mut self.host, &link).is_ok_and(|found| found.is_some()),
            None => true,
        }
    }

    /// A keeper calls again.
    fn go_on(&mut self, name: &Name, id: Id, netns: OwnedFd, settings: Settings) -> Result<Attached> {
        if let Some(one) = self.attached.get_mut(name) {
            one.client = Some(id);
            one.netns = Some(netns);
        }
        self.change(name, settings)?;
        Ok(self.attached_as(name, Vec::new()))
    }

    /// Lets other settings hold, all of them or none.
    pub(super) fn change(&mut self, name: &Name, settings: Settings) -> Result<Vec<String>> {
        let not_connected = || error(format!("`{name}` is not connected")).kind(Kind::NotFound);
        let before = self.attached.get(name).ok_or_else(not_connected)?.record.settings.clone();
        // What can't change while it is connected stays.
        let Settings { mode, address, address6, mac, mtu, .. } = before.clone();
        let after = Settings { mode, address, address6, mac, mtu, ..settings };
        if before == after {
            return Ok(Vec::new());
        }
        if before.rate_up != after.rate_up && self.attached.get(name).is_some_and(|one| one.netns.is_none()) {
            return Err(error_not_called(name));
        }
        let held = match before.publish == after.publish {
            true => None,
            false => Some(self.hold_anew(name, &before, &after)?),
        };
        let mut record = self.attached.get(name).ok_or_else(not_connected)?.record.clone();
        record.settings = after.clone();
        let addresses = self.rewrite_member(name, &record, &before)?;
        if before.rate_down != after.rate_down
            && let Some(link) = &record.link
        {
            shape::limit_download(&mut self.host, link, after.rate_down)?;
        }
        record::write(&self.place.attachment(name.as_str()), &record)?;
        if let Some(one) = self.attached.get_mut(name) {
            one.record = record;
            if let Some(held) = held {
                one.held = held;
            }
        }
        if before.rate_up != after.rate_up {
            self.shape_upload(name)?;
        }
        if narrows(&before, &after)
            && let Some(up) = &self.up
        {
            // The rules hold already; what was begun under the old ones ends.
            up.judge_anew(&addresses);
        }
        let concerned: Vec<Name> = [name.clone()]
            .into_iter()
            .chain(before.peers)
            .chain(after.peers)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        self.tell_responder(&concerned);
        self.ask_for_names();
        Ok(self.up.as_ref().map(|up| up.notes.clone()).unwrap_or_default())
    }

    /// Ports that are published before and after must be let go of first. If another can't be had, all is as before.
    fn hold_anew(&mut self, name: &Name, before: &Settings, after: &Settings) -> Result<Vec<OwnedFd>> {
        let Some(one) = self.attached.get_mut(name) else { return Ok(Vec::new()) };
        one.held.clear();
        ports::hold(&after.publish).inspect_err(|_| one.held = ports::hold(&before.publish).unwrap_or_default())
    }

    /// The member of the rules becomes what the record says. Its addresses come back.
    fn rewrite_member(&mut self, name: &Name, record: &Record, before: &Settings) -> Result<Vec<IpAddr>> {
        let (Some(up), Some(member)) = (&mut self.up, member(name, record)) else { return Ok(Vec::new()) };
        let addresses = member.addresses().to_vec();
        let old = Member { network: before.clone(), ..member.clone() };
        up.rewrite(
            std::slice::from_ref(name),
            |world| drop(world.members.insert(name.clone(), member)),
            |world| drop(world.members.insert(name.clone(), old)),
        )?;
        Ok(addresses)
    }

    /// The responder knows these containers, and those that they have named, as they are now.
    pub(super) fn tell_responder(&mut self, names: &[Name]) {
        let mut concerned: BTreeSet<Name> = names.iter().cloned().collect();
        for name in names {
            concerned.extend(self.attached.get(name).into_iter().flat_map(|one| one.record.settings.peers.clone()));
        }
        let hosts: Vec<_> = concerned.iter().filter_map(|name| self.host_of(name)).collect();
        if let Some(up) = &mut self.up {
            hosts.into_iter().for_each(|host| up.answering.tell(&Order::Host(host)));
        }
        self.ask_for_names();
    }

    /// Those whose connections have ended, or who want to be disconnected: then they hear that they are.
    pub(super) fn detach_clients(&mut self, leaving: &[(Id, bool)]) {
        let of = |id: &Id| {
            let found = self.attached.iter().find(|(_, one)| one.client == Some(*id));
            found.map(|(name, _)| name.clone())
        };
        let names: Vec<Name> = leaving.iter().filter_map(|(id, _)| of(id)).collect();
        self.detach(&names);
        for (id, _) in leaving.iter().filter(|(_, waits)| *waits) {
            self.clients.say(*id, &Answer::Done(Vec::new()));
        }
    }

    /// Keepers that ended before they called again.
    pub(super) fn clean_up_after_the_dead(&mut self, dead: &[Name]) {
        self.detach(dead);
    }

    /// Disconnects containers. Does as much as it can; what it can't is done by whoever comes after.
    pub(super) fn detach(&mut self, names: &[Name]) {
        if names.is_empty() {
            return;
        }
        let mut addresses = Vec::new();
        let begun = self.up.as_mut().and_then(|up| {
            addresses.extend(names.iter().filter_map(|name| up.world.members.get(name)).flat_map(Member::addresses));
            let text = up.transition(names, |world| {
                for name in names {
                    world.members.remove(name);
                    world.losses.remove(name);
                }
            });
            text.map(|text| up.begin(&text))
        });
        self.unwire(names);
        if let (Some(up), Some(begun)) = (self.up.as_mut(), begun) {
            // If it fails, the next one that succeeds sets everything anew.
            let _ = up.settle(begun.and_then(|begun| begun.finish()), |_| {});
        }
        for name in names {
            if let Some(up) = &mut self.up {
                up.answering.tell(&Order::Gone(name.to_string()));
            }
        }
        self.stale.extend(addresses);
        let peers: Vec<Name> = names
            .iter()
            .filter_map(|name| self.attached.get(name))
            .flat_map(|one| one.record.settings.peers.clone())
            .collect();
        names.iter().for_each(|name| self.forget(name));
        let peers: Vec<Name> = peers.into_iter().filter(|peer| self.attached.contains_key(peer)).collect();
        if !peers.is_empty() {
            self.tell_responder(&peers);
        }
    }

    /// Takes away containers' links, or takes back what they were lent.
    fn unwire(&mut self, names: &[Name]) {
        let mut ports = Vec::new();
        for name in names {
            let Some(one) = self.attached.get(name) else { continue };
            // Mostly the interface has gone, or come back, with its namespace.
            if let Some(lent) = &one.record.lent {
                let _ = link::reclaim(&mut self.host, lent, one.netns.as_ref().map(AsFd::as_fd));
            }
            if one.record.link.is_some() {
                ports.extend(self.port(&one.record));
            }
        }
        let _ = link::detach(&mut self.host, &ports);
    }

    /// What the connection tracking knows about containers that are gone is forgotten when nobody waits, as it takes
    /// some milliseconds, and before anybody else has their addresses.
    pub(super) fn forget_stale(&mut self) {
        let _ = conntrack::forget(&std::mem::take(&mut self.stale));
    }

    /// A container that is not connected any more, or could not be.
    fn forget(&mut self, name: &Name) {
        if let Some(one) = self.attached.remove(name)
            && one.record.ephemeral
        {
            self.leases.release(name.as_str());
        }
        record::forget(&self.place.attachment(name.as_str()));
    }
}

/// A netd that has begun anew has no namespaces yet.
pub(super) fn error_not_called(name: &Name) -> Error {
    error(format!("the keeper of `{name}` has not called again since netd began anew")).hint("try again in a moment")
}

/// What is to be done for who wants to be connected.
enum Prepared {
    /// Nothing: it goes on.
    Attached(Attached),
    /// Its link and its rules.
    ToDo(Name),
}

/// The narrowest prefix on a link of the host that an address is in.
fn neighbours_of(address: IpAddr, snapshot: &Snapshot) -> Option<Prefix> {
    snapshot.on_link.iter().copied().filter(|prefix| prefix.contains(address)).max_by_key(|prefix| prefix.length())
}

/// The IPv4 router that the host's default route names on this interface (`/proc/net/route`: little-endian words).
fn gateway_through(interface: &str) -> Option<IpAddr> {
    let text = std::fs::read_to_string("/proc/self/net/route").ok()?;
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, to, via) = (words.next()?, words.next()?, words.next()?);
        (name == interface && to == "00000000" && via != "00000000").then_some(())?;
        let bytes = u32::from_str_radix(via, 16).ok()?.to_ne_bytes();
        Some(IpAddr::from(bytes))
    };
    text.lines().find_map(line)
}
