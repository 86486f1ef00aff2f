//! The host forwards packets for containers, and stays otherwise what it was.
//!
//! IPv4 forwarding is one switch. IPv6 forwarding is one, too, but it turns every interface into a router's, which
//! takes no more router advertisements, and drops the default routes that came by them (addrconf.c of the kernel,
//! `addrconf_fixup_forwarding`). The kernel forwards by the switch alone, so each interface is given back its own
//! setting at once.
//!
//! Who switched it on makes a router of the host: between its own networks, packets that were dropped would pass. So
//! where it was us, our rules drop them ([`unrouted`]).

use std::collections::BTreeSet;
use std::fs;

use lazaret_base::Result;

use super::record::{Base, boot};
use crate::policy::Unrouted;
use crate::sysctl::{self, Previous};

const SWITCH4: &str = "ipv4/ip_forward";
const SWITCH6: &str = "ipv6/conf/all/forwarding";

/// What there is to change on this host, to be recorded before [`begin`].
pub(super) fn before() -> Base {
    let mut base = Base { boot: boot(), ..Base::default() };
    if is(SWITCH4, "0") {
        base.changed.push(Previous { name: SWITCH4.into(), was: "0".into(), now: "1".into() });
    }
    if is(SWITCH6, "0") {
        base.forwarding6 = true;
        // For a moment: routers are listened to whatever else holds.
        let listening = interfaces("ipv6").into_iter().map(|name| format!("ipv6/conf/{name}/accept_ra"));
        let change = |name| Previous { name, was: "1".into(), now: "2".into() };
        base.changed.extend(listening.filter(|name| is(name, "1")).map(change));
    }
    if !base.changed.is_empty() || base.forwarding6 {
        base.there = interfaces("ipv4").into_iter().filter(|name| name != "default" && name != "lo").collect();
    }
    base
}

/// Where the host forwards nothing: between interfaces that were there when nobody forwarded, and devices of the
/// machine's that have come since (a dock, a second card).
///
/// Who has made an interface since then, as Docker its bridge, or a VPN its tunnel, found forwarding switched on, and
/// may count on it.
pub(super) fn unrouted(base: &Base, devices: &BTreeSet<String>, ours: impl Fn(&str) -> bool) -> Unrouted {
    let (v4, v6) = (base.changed.iter().any(|one| one.name == SWITCH4), base.forwarding6);
    if !v4 && !v6 {
        return Unrouted::default();
    }
    let names = base.there.iter().chain(devices).filter(|name| !ours(name));
    Unrouted { v4, v6, between: names.filter_map(|name| name.parse().ok()).collect() }
}

/// Switches forwarding on. `base` is of [`before`]; what needs no undoing any more is taken out of it.
pub(super) fn begin(base: &mut Base) -> Result<()> {
    for Previous { name, now, .. } in &base.changed {
        // An interface may have gone since.
        if name == SWITCH4 { sysctl::set(name, now).map(drop)? } else { drop(sysctl::set(name, now)) }
    }
    if base.forwarding6 {
        switch6("1")?;
    }
    let (kept, momentary) = std::mem::take(&mut base.changed).into_iter().partition(|one| one.name == SWITCH4);
    base.changed = kept;
    // Best effort, as above.
    let _ = sysctl::restore(&momentary);
    Ok(())
}

/// Switches back what was switched on.
pub(super) fn end(base: &Base) -> Result<()> {
    let restored = sysctl::restore(&base.changed);
    if base.forwarding6 && is(SWITCH6, "1") {
        switch6("0")?;
    }
    restored
}

/// Sets the switch, and every interface back to what it was before.
fn switch6(to: &str) -> Result<()> {
    let own = |name: &String| format!("ipv6/conf/{name}/forwarding");
    let names = interfaces("ipv6");
    let before: Vec<_> = names.iter().map(own).map(|name| (sysctl::read(&name).unwrap_or_default(), name)).collect();
    sysctl::set(SWITCH6, to)?;
    for (value, name) in before.iter().filter(|(value, _)| !value.is_empty()) {
        let _ = sysctl::set(name, value.trim());
    }
    Ok(())
}

/// The interfaces that have a family, and what new ones will be like.
fn interfaces(family: &str) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/sys/net/{family}/conf")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name != "all").collect()
}

fn is(name: &str, value: &str) -> bool {
    sysctl::read(name).is_ok_and(|read| read.trim() == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_we_have_switched_it_on_the_host_stays_no_router() {
        let devices = BTreeSet::from(["dock0".to_owned(), "lan0".to_owned()]);
        let mut base = Base { there: vec!["lan0".into(), "lz-1".into()], ..Base::default() };
        let between = |base: &Base| {
            let Unrouted { v4, v6, between } = unrouted(base, &devices, |name| name.starts_with("lz-"));
            (v4, v6, between.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(between(&base), (false, false, vec![]));
        base.changed.push(Previous { name: SWITCH4.into(), was: "0".into(), now: "1".into() });
        assert_eq!(between(&base), (true, false, vec!["dock0".into(), "lan0".into()]));
    }
}
