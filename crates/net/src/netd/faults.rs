//! Faults on request, for who tests what a cluster does about them: slow links, lost packets, parted groups.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use lazaret_base::{Kind, Result, error};
use lazaret_config::{Mode, Name, Rate};

use super::Netd;
use super::attach::{Attachment, INSIDE, error_not_called};
use super::record::{self, Impaired};
use crate::policy::{Loss, Member, World};
use crate::shape;
use crate::wire::Impairment;

impl Netd<'_> {
    /// Makes what a container sends worse than it is, to everybody or to one; without an impairment, good again.
    pub(super) fn impair(&mut self, name: &Name, to: Option<Name>, impairment: Option<Impairment>) -> Result<()> {
        let not_connected = |name: &Name| error(format!("`{name}` is not connected")).kind(Kind::NotFound);
        let one = self.attached.get(name).ok_or_else(|| not_connected(name))?;
        if one.record.settings.mode != Mode::Internet {
            return Err(error(format!("`{name}` is in a network that is not ours"))
                .kind(Kind::Invalid)
                .hint("only links on our own bridge can be impaired: network.mode = \"internet\""));
        }
        if let Some(to) = &to
            && !self.attached.contains_key(to)
        {
            return Err(not_connected(to));
        }
        let to = to.map(|to| to.to_string());
        let before = one.record.impaired.clone();
        let mut after = before.clone();
        after.retain(|impaired| impaired.to != to);
        after.extend(impairment.map(|impairment| Impaired { to, impairment }));
        self.impair_as(name, &after).inspect_err(|_| {
            // As it was; what can't be set back is set by the next change.
            let _ = self.impair_as(name, &before);
        })
    }

    fn impair_as(&mut self, name: &Name, impaired: &[Impaired]) -> Result<()> {
        let shaped = impaired.iter().filter_map(|one| self.shaped(one)).collect::<Vec<_>>();
        let Some(one) = self.attached.get_mut(name) else { return Ok(()) };
        let was_shaped = one.record.impaired.iter().any(queues);
        if !shaped.is_empty() || was_shaped {
            let netns = one.netns.as_ref().ok_or_else(|| error_not_called(name))?;
            shape::impair(netns.as_fd(), INSIDE, &shaped)?;
        }
        if let Some(up) = &mut self.up {
            let losses: Vec<Loss> = impaired.iter().filter_map(loss).collect();
            let before = up.world.losses.get(name).cloned();
            let set = |losses: Option<Vec<Loss>>| {
                move |world: &mut World| match losses {
                    Some(losses) if !losses.is_empty() => drop(world.losses.insert(name.clone(), losses)),
                    _ => drop(world.losses.remove(name)),
                }
            };
            up.rewrite(std::slice::from_ref(name), set(Some(losses)), set(before))?;
        }
        one.record.impaired = impaired.to_vec();
        record::write(&self.place.attachment(name.as_str()), &one.record)?;
        match one.record.settings.rate_up {
            Some(_) => self.shape_upload(name),
            None => Ok(()),
        }
    }

    /// What the link's own queue does. Losses are the firewall's, as not every kernel has such a queue.
    fn shaped(&self, impaired: &Impaired) -> Option<shape::Impairment> {
        let impairment = &impaired.impairment;
        is_shaped(impairment).then(|| shape::Impairment {
            delay: Duration::from_micros(impairment.delay_microseconds.unwrap_or(0)),
            jitter: Duration::ZERO,
            loss: 0.0,
            rate: impairment.rate.and_then(Rate::from_bits),
            towards: impaired.to.as_ref().map_or_else(Vec::new, |to| self.addresses_of(to)),
        })
    }

    fn addresses_of(&self, name: &str) -> Vec<IpAddr> {
        let lease = name.parse::<Name>().ok().and_then(|name| self.attached.get(&name)?.record.lease);
        lease.map_or_else(Vec::new, |lease| vec![lease.address4.into(), lease.address6.into()])
    }

    /// Parts groups from each other. A container in none of them is parted from nobody.
    pub(super) fn part(&mut self, groups: Vec<Vec<Name>>) -> Result<()> {
        for (at, group) in groups.iter().enumerate() {
            let twice = group.iter().find(|name| groups[at + 1..].iter().any(|other| other.contains(name)));
            if let Some(name) = twice {
                return Err(error(format!("`{name}` is in two groups")).kind(Kind::Invalid));
            }
        }
        record::write(&self.place.faults(), &groups)?;
        let before = std::mem::replace(&mut self.partition, groups);
        let result = self.apply_partition();
        if result.is_err() {
            self.partition = before;
        }
        result
    }

    fn apply_partition(&mut self) -> Result<()> {
        let Some(up) = &mut self.up else { return Ok(()) };
        let names: Vec<Name> = up.world.members.keys().cloned().collect();
        let before = up.world.partitions.clone();
        let (partition, attached) = (&self.partition, &self.attached);
        up.rewrite(&names, |world| apply(world, partition, attached), |world| world.partitions = before)?;
        let parted = |member: &&Member| partition.iter().flatten().any(|name| *name == member.name);
        let addresses: Vec<_> = up.world.members.values().filter(parted).flat_map(Member::addresses).collect();
        up.judge_anew(&addresses);
        Ok(())
    }

    /// Everything is good again.
    pub(super) fn heal(&mut self) -> Result<()> {
        self.part(Vec::new())?;
        record::forget(&self.place.faults());
        let impaired = self.attached.iter().filter(|(_, one)| !one.record.impaired.is_empty());
        let names: Vec<Name> = impaired.map(|(name, _)| name.clone()).collect();
        let mut result = Ok(());
        for name in names {
            result = result.and(self.impair_as(&name, &[]));
        }
        result
    }
}

/// The partition in force, among those that are attached.
pub(super) fn apply(world: &mut World, groups: &[Vec<Name>], attached: &BTreeMap<Name, Attachment>) {
    world.partitions.clear();
    for (at, group) in groups.iter().enumerate() {
        for (a, b) in group.iter().flat_map(|a| groups[at + 1..].iter().flatten().map(move |b| (a, b))) {
            if attached.contains_key(a) && attached.contains_key(b) {
                world.part(a, b);
            }
        }
    }
}

/// Whether it is a queue of the link's that does it.
pub(super) fn queues(impaired: &Impaired) -> bool {
    is_shaped(&impaired.impairment)
}

fn is_shaped(impairment: &Impairment) -> bool {
    impairment.delay_microseconds.is_some() || impairment.rate.is_some()
}

/// The part of an impairment that is the firewall's, which counts in ten-thousandths.
pub(super) fn loss(impaired: &Impaired) -> Option<Loss> {
    let share = impaired.impairment.loss_per_million?.div_ceil(100).min(10_000) as u16;
    let to = impaired.to.as_ref().and_then(|to| to.parse().ok());
    (share > 0).then_some(Loss { share, to })
}
