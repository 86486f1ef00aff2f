//! Interfaces on a parent, and interfaces that are lent.

use std::os::fd::{AsFd, AsRawFd};

use lazaret_base::Kind;
use lazaret_net::link::{self, Inside, Lent, MacvlanMode, ParentedKind, ParentedSpec};
use lazaret_net::netlink::Socket;
use lazaret_net::subnet::HostAddress;

use crate::world::{self, Namespace, arrives, reaches, run};

fn inside(address: &str) -> Inside {
    Inside {
        name: "eth0".to_owned(),
        addresses: vec![HostAddress { ip: address.parse().unwrap(), length: 24 }],
        ..Inside::default()
    }
}

/// A card of the host, with a LAN at its other end.
fn card() -> Namespace {
    let lan = Namespace::new();
    lan.run("ip link add lan0 type veth peer name card0");
    let home = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    let mut socket = lan.act(|| Socket::route().unwrap());
    let card = link::find(&mut socket, "card0").unwrap().unwrap();
    assert_eq!(card.kind.as_deref(), Some("veth"));
    lan.run("ip addr add 192.168.7.1/24 dev lan0");
    lan.run("ip link set lan0 up");
    lan.run(&format!("ip link set card0 netns {}", path(&home)));
    run("ip link set card0 up");
    lan
}

/// Where ip(8) finds what we have open.
fn path(file: &std::fs::File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

fn macvlan(address: &str, mac: &str, mode: MacvlanMode) -> ParentedSpec {
    ParentedSpec {
        parent: "card0".to_owned(),
        kind: ParentedKind::Macvlan { mac: mac.parse().unwrap(), mode },
        inside: inside(address),
    }
}

fn talk(mode: MacvlanMode) -> bool {
    let mut host = world::host();
    // A host may have one itself.
    run("ip link add eth0 type veth peer name far0");
    let lan = card();
    let [a, b] = ["192.168.7.10", "192.168.7.11"].map(|address| {
        let namespace = Namespace::new();
        let mac = format!("02:00:00:00:00:{}", &address[10..]);
        link::attach_parented(&mut host, &macvlan(address, &mac, mode), namespace.0.as_fd()).unwrap();
        assert!(namespace.run("ip -d link show eth0").contains(&mac));
        let socket = namespace.udp(address.parse().unwrap());
        assert!(reaches(&socket, &lan.udp("192.168.7.1".parse().unwrap())));
        (namespace, socket)
    });
    let heard = arrives(&a.1, &b.1);
    drop((a.0, b.0));
    heard
}

#[test]
fn macvlan_reaches_the_lan_and_its_own_kind_only_where_it_may() {
    assert!(!talk(MacvlanMode::Private));
    assert!(talk(MacvlanMode::Bridge));
}

#[test]
fn a_failed_macvlan_leaves_nothing() {
    let mut host = world::host();
    let _lan = card();
    let container = Namespace::new();
    let mut spec = macvlan("192.168.7.10", "02:00:00:00:00:10", MacvlanMode::Private);
    spec.inside.addresses.push(HostAddress { ip: "::1".parse().unwrap(), length: 200 });
    assert!(link::attach_parented(&mut host, &spec, container.0.as_fd()).is_err());
    assert!(!container.run("ip -o link").contains("eth0"));
    spec.parent = "nosuch0".to_owned();
    let e = link::attach_parented(&mut host, &spec, container.0.as_fd()).unwrap_err();
    assert_eq!((e.to_string().as_str(), e.what()), ("there is no interface `nosuch0`", Kind::NotFound));
}

/// Some kernels have no ipvlan: they must say so.
#[test]
fn ipvlan_reaches_the_lan_or_names_what_is_missing() {
    let mut host = world::host();
    let lan = card();
    let container = Namespace::new();
    let spec = ParentedSpec { parent: "card0".to_owned(), kind: ParentedKind::Ipvlan, inside: inside("192.168.7.10") };
    match link::attach_parented(&mut host, &spec, container.0.as_fd()) {
        Ok(()) => {
            assert!(reaches(&container.udp("192.168.7.10".parse().unwrap()), &lan.udp("192.168.7.1".parse().unwrap())))
        }
        Err(e) => {
            assert_eq!(e.what(), Kind::Missing, "{e}");
            assert!(e.advice().unwrap().contains("modprobe ipvlan"), "{e}");
        }
    }
}

fn lent(host: &mut Socket) -> (Namespace, Namespace, Lent) {
    let lan = card();
    let container = Namespace::new();
    let lent =
        link::lend(host, "card0", &Inside { mtu: Some(1400), ..inside("192.168.7.10") }, container.0.as_fd()).unwrap();
    assert!(link::find(host, "card0").unwrap().is_none());
    assert!(reaches(&container.udp("192.168.7.10".parse().unwrap()), &lan.udp("192.168.7.1".parse().unwrap())));
    (lan, container, lent)
}

fn is_back(host: &mut Socket, lent: &Lent) {
    let card = link::find(host, "card0").unwrap().unwrap();
    assert_eq!((card.mtu, card.up, card.mac.map(|mac| mac.bytes())), (1500, true, lent.mac));
}

#[test]
fn a_lent_card_comes_back_as_it_was() {
    let mut host = world::host();
    let (_lan, container, lent) = lent(&mut host);
    // Root in the container may do this.
    container.run("ip link set eth0 down");
    container.run("ip link set eth0 name mine0");
    container.run("ip link set mine0 address 02:00:00:00:00:66 mtu 1300");
    for _ in 0..2 {
        link::reclaim(&mut host, &lent, Some(container.0.as_fd())).unwrap();
        is_back(&mut host, &lent);
    }
}

/// When a namespace ends, the kernel puts a card of hardware back under the name that it had inside, or
/// as `dev` and its number. (A virtual one ends with it, so its return is acted here.)
#[test]
fn a_card_that_the_kernel_put_back_gets_its_name_again() {
    for name in ["eth0".to_owned(), "dev".to_owned()] {
        let mut host = world::host();
        let (_lan, container, lent) = lent(&mut host);
        let name = if name == "dev" { format!("dev{}", lent.index) } else { name };
        container.run(&format!("ip link set eth0 down name {name}"));
        let home = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        container.run(&format!("ip link set {name} netns {}", path(&home)));
        link::reclaim(&mut host, &lent, None).unwrap();
        is_back(&mut host, &lent);
    }
}

#[test]
fn a_card_that_is_gone_is_said_to_be_gone() {
    let mut host = world::host();
    let (lan, container, lent) = lent(&mut host);
    lan.run("ip link del lan0");
    let e = link::reclaim(&mut host, &lent, Some(container.0.as_fd())).unwrap_err();
    assert_eq!(e.what(), Kind::NotFound, "{e}");
}

#[test]
fn a_card_whose_setup_fails_is_back() {
    let mut host = world::host();
    let _lan = card();
    let container = Namespace::new();
    let wrong =
        Inside { addresses: vec![HostAddress { ip: "::1".parse().unwrap(), length: 200 }], ..inside("192.168.7.10") };
    assert!(link::lend(&mut host, "card0", &wrong, container.0.as_fd()).is_err());
    assert!(link::find(&mut host, "card0").unwrap().is_some_and(|card| card.up));
    assert!(!container.run("ip -o link").contains("eth0"));
}
