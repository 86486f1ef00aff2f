//! What containers' networks depend on: rules, a bridge, other firewalls, and names on the host.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use lazaret_base::{Context, Result};
use lazaret_config::Interface;
use lazaret_net::foreign::{self, Blocker};
use lazaret_net::netlink::Socket;
use lazaret_net::nft::Nft;
use lazaret_net::{link, netd, subnet};
use lazaret_sys::process::{Cloned, clone, exit_now, namespace};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::{Check, Grade, good, worse};
use crate::store::Store;

/// All checks of the network.
pub(super) fn examine(store: &Store) -> Vec<Check> {
    let mut checks = vec![rules_and_bridge()];
    if checks.iter().any(|check| check.grade != Grade::Good) {
        return checks;
    }
    checks.extend(firewalls(store));
    checks.extend(clash(store));
    checks.push(names(store));
    checks
}

const WITHOUT: &str = "containers can do without a network: --network none";

/// Tried in a network namespace of its own, where nothing of the host's is touched.
fn rules_and_bridge() -> Check {
    let lacking = |found: String, remedy: &str| worse("network", Grade::Lacking, found, format!("{remedy}; {WITHOUT}"));
    if let Err(e) = Nft::find() {
        return lacking(e.to_string(), e.advice().unwrap_or("install nftables"));
    }
    const BRIDGE: i32 = 3;
    const RULES: i32 = 4;
    let status = match clone(namespace::NET, None) {
        Ok(Cloned::Child) => exit_now(match (try_bridge(), try_rules()) {
            (Ok(()), Ok(())) => 0,
            (Err(_), _) => BRIDGE,
            (_, Err(_)) => RULES,
        }),
        Ok(Cloned::Parent(child)) => waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
            .ok()
            .flatten()
            .and_then(|status| status.exit_status()),
        Err(e) => {
            return lacking(format!("no network namespace can be made: {}", lazaret_base::Error::from(e)), "see above");
        }
    };
    match status {
        Some(0) => good("network", "a bridge can be made, and nft sets rules"),
        Some(BRIDGE) => lacking(
            "no bridge can be made".into(),
            "modprobe bridge veth, or a kernel with CONFIG_BRIDGE and CONFIG_VETH",
        ),
        _ => lacking(
            "nft can't set rules".into(),
            "modprobe nf_tables nft_ct nft_nat, or a kernel with CONFIG_NF_TABLES, _INET, _BRIDGE, NFT_CT and NFT_NAT",
        ),
    }
}

fn try_bridge() -> Result<()> {
    let spec = link::BridgeSpec {
        name: "try".into(),
        mac: subnet::host_mac("try"),
        mtu: 1500,
        addresses: Vec::new(),
        label: String::new(),
    };
    link::ensure_bridge(&mut Socket::route()?, &spec).map(drop)
}

fn try_rules() -> Result<()> {
    Nft::find()?.apply(
        "table inet try {\n  chain one {\n    type nat hook postrouting priority srcnat\n    ct state new masquerade\n  }\n}\n\
         table bridge try {\n  set ports {\n    type ifname\n  }\n}\n",
    )
}

/// Other firewalls that drop what ours lets through.
fn firewalls(store: &Store) -> Vec<Check> {
    let found = (|| -> Result<Vec<Blocker>> {
        let bridge: Interface = store.network().bridge().parse()?;
        let legacy =
            ["ip_tables_names", "ip6_tables_names"].map(|file| fs::read_to_string(format!("/proc/self/net/{file}")));
        let legacy: Vec<String> =
            legacy.into_iter().flatten().flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        foreign::blockers(&Nft::find()?.list()?, &legacy, &bridge)
    })()
    .context("looking at other firewalls");
    match found {
        Ok(blockers) if blockers.is_empty() => vec![good("firewalls", "none is in the containers' way")],
        Ok(blockers) => blockers
            .into_iter()
            .map(|Blocker { what, mend, .. }| {
                let remedy = if mend.is_empty() { "ask whoever set it".to_owned() } else { mend.join("; ") };
                worse("firewalls", Grade::Lacking, what, remedy)
            })
            .collect(),
        Err(e) => vec![worse("firewalls", Grade::Lacking, e.to_string(), "run this as root")],
    }
}

/// Whether the host has come into a network that overlaps ours.
fn clash(store: &Store) -> Option<Check> {
    let numbers = netd::numbers(&store.network()).ok().flatten()?;
    let bridge = store.network().bridge();
    let ours = move |name: &str| name == bridge || name.starts_with("lz-");
    let taken = lazaret_net::watch::Watch::open(ours).and_then(|mut watch| watch.snapshot());
    let taken = taken.ok()?.taken;
    let other = taken.iter().find(|taken| taken.length() >= 8 && taken.overlaps(numbers.subnet))?;
    Some(worse(
        "subnet",
        Grade::Lacking,
        format!("the containers' network {} and the host's {other} overlap", numbers.subnet),
        "stop all containers, then `lazaret network up --subnet 10.91.0.0/20`, or another that is free",
    ))
}

/// How names of containers resolve on the host. Nothing is edited behind anybody's back: the recipe is told.
fn names(store: &Store) -> Check {
    let gateway = match netd::numbers(&store.network()).ok().flatten() {
        Some(numbers) => subnet::gateway(numbers.subnet).to_string(),
        None => return good("names", "containers will be known by name; ask again when one has run"),
    };
    let resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if resolver.lines().any(|line| line.split_whitespace().eq(["nameserver", &gateway])) {
        return good("names", format!("this host asks {gateway} for names"));
    }
    if Path::new("/run/systemd/resolve").is_dir() && resolver.contains("127.0.0.53") {
        return good("names", "systemd-resolved asks us for NAME.lazaret while a container is connected");
    }
    let recipe = recipe(&gateway, &resolver, &store.network().bridge(), &Host::look());
    worse("names", Grade::Lacking, "names of containers do not resolve on this host; in containers they do", recipe)
}

/// What of this host says how it resolves names.
struct Host {
    network_manager_dnsmasq: bool,
    dnsmasq: bool,
    resolvconf: bool,
    resolved: bool,
}

impl Host {
    fn look() -> Host {
        let configured = |dir: &str, word: &str| {
            let files = fs::read_dir(dir).into_iter().flatten().flatten();
            files
                .filter_map(|file| fs::read_to_string(file.path()).ok())
                .any(|text| text.lines().any(|line| line.trim() == word))
        };
        let main = fs::read_to_string("/etc/NetworkManager/NetworkManager.conf").unwrap_or_default();
        Host {
            network_manager_dnsmasq: main.lines().any(|line| line.trim() == "dns=dnsmasq")
                || configured("/etc/NetworkManager/conf.d", "dns=dnsmasq"),
            dnsmasq: Path::new("/run/dnsmasq").is_dir() || Path::new("/var/run/dnsmasq.pid").exists(),
            resolvconf: Path::new("/sbin/resolvconf").exists() || Path::new("/usr/sbin/resolvconf").exists(),
            resolved: Path::new("/run/systemd/resolve").is_dir(),
        }
    }
}

/// The lines that make the host ask us. Pure.
fn recipe(gateway: &str, resolver: &str, bridge: &str, host: &Host) -> String {
    let domain = netd::DOMAIN;
    if host.network_manager_dnsmasq {
        return format!(
            "echo server=/{domain}/{gateway} | sudo tee /etc/NetworkManager/dnsmasq.d/{domain}.conf; sudo systemctl reload NetworkManager"
        );
    }
    if host.dnsmasq && resolver.contains("127.0.0.1") {
        return format!(
            "echo server=/{domain}/{gateway} | sudo tee /etc/dnsmasq.d/{domain}.conf; sudo systemctl restart dnsmasq"
        );
    }
    if host.resolved {
        return "sudo ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf".into();
    }
    if host.resolvconf {
        return format!("printf 'nameserver {gateway}\\nsearch {domain}\\n' | sudo resolvconf -a {bridge}.{domain}");
    }
    format!(
        "put `nameserver {gateway}` first in /etc/resolv.conf, and `{domain}` into its `search`; all other names are asked for where they were"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_resolving_names_has_its_recipe() {
        let none = Host { network_manager_dnsmasq: false, dnsmasq: false, resolvconf: false, resolved: false };
        let said = |resolver: &str, host: Host| recipe("10.90.0.1", resolver, "lazaret0", &host);
        assert!(
            said("", Host { network_manager_dnsmasq: true, ..none })
                .contains("/etc/NetworkManager/dnsmasq.d/lazaret.conf")
        );
        let none = || Host { network_manager_dnsmasq: false, dnsmasq: false, resolvconf: false, resolved: false };
        assert!(said("nameserver 127.0.0.1\n", Host { dnsmasq: true, ..none() }).contains("server=/lazaret/10.90.0.1"));
        assert!(
            said("nameserver 9.9.9.9\n", Host { resolvconf: true, ..none() })
                .contains("resolvconf -a lazaret0.lazaret")
        );
        assert!(said("nameserver 9.9.9.9\n", Host { resolved: true, ..none() }).contains("stub-resolv.conf"));
        assert!(said("nameserver 9.9.9.9\n", none()).contains("nameserver 10.90.0.1"));
    }
}
