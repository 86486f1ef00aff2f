//! Links in real network namespaces, with real traffic. Needs root.

#[path = "links/world.rs"]
mod world;

#[path = "links/faults.rs"]
mod faults;
#[path = "links/host.rs"]
mod host;
#[path = "links/others.rs"]
mod others;

use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use lazaret_base::Kind;
use lazaret_net::link::{self, Neighbour, PortKind, PortSpec};
use lazaret_net::netlink::Socket;
use lazaret_net::subnet::{self, HostAddress};
use world::{
    BRIDGE, Namespace, addresses, arrives, attached, bridge, converse, eth0, neighbour, port, prefix4, reaches, run,
};

#[test]
fn a_container_is_connected_when_attach_returns() {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let web = attached(&mut host, &port("web"));
    let (v4, v6) = addresses("web");

    // No address may be on trial: IFA_F_TENTATIVE is 0x40, the fifth column.
    let table = web.act(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap());
    let mine: Vec<&str> = table.lines().filter(|line| line.ends_with("eth0")).collect();
    assert_eq!(mine.len(), 2, "{table}");
    for line in &mine {
        let flags = u32::from_str_radix(line.split_whitespace().nth(4).unwrap(), 16).unwrap();
        assert_eq!(flags & 0x40, 0, "{line}");
    }

    let before = Instant::now();
    for (gateway, own) in [(subnet::gateway(prefix4()), v4), (subnet::gateway(world::prefix6()), v6)] {
        let listener = TcpListener::bind((gateway, 0)).unwrap();
        converse(listener, |address| web.act(|| TcpStream::connect_timeout(&address, Duration::from_secs(5))));
        let listener = web.act(|| TcpListener::bind((own, 0)).unwrap());
        converse(listener, |address| TcpStream::connect_timeout(&address, Duration::from_secs(5)));
    }
    // Duplicate address detection alone takes a second, and so does a lost SYN.
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
}

#[test]
fn what_is_inside_is_what_was_asked_for() {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let mut spec = port("web");
    spec.inside.mtu = Some(1420);
    spec.inside.neighbours =
        vec![Neighbour { address: "10.90.0.9".parse().unwrap(), mac: "02:00:00:00:00:09".parse().unwrap() }];
    let web = attached(&mut host, &spec);
    let shown = web.run("ip -d link show eth0");
    assert!(
        shown.contains("mtu 1420") && shown.contains(&spec.mac.to_string()) && shown.contains("state UP"),
        "{shown}"
    );
    assert!(web.run("ip link show lo").contains("LOWER_UP"));
    assert!(web.run("ip -4 route").contains("default via 10.90.0.1 dev eth0"));
    assert!(web.run("ip -6 route").contains("default via fe80::1 dev eth0"));
    assert!(web.run("ip neigh").contains("10.90.0.9 dev eth0 lladdr 02:00:00:00:00:09 PERMANENT"));
    // Down and up, as who sets up the network inside anew does: the address by which routers are heard comes back.
    web.run("ip link set eth0 down");
    web.run("ip link set eth0 up");
    let link_local = spec.mac.link_local().to_string();
    assert!(web.run("ip -6 address show dev eth0 scope link").contains(&link_local), "no {link_local}");
    let shown = run(&format!("ip -d link show {}", spec.name));
    assert!(
        shown.contains("isolated on") && shown.contains("alias lazaret web") && shown.contains("mtu 1420"),
        "{shown}"
    );
    assert!(shown.contains("learning off") && shown.contains(" flood off"), "{shown}");
}

/// Sends between two containers on one subnet that know each other's hardware address: nothing but the
/// bridge can keep them apart.
fn neighbours_talk(kind: impl Fn(&str) -> PortKind) -> bool {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let specs = ["a", "b"].map(|name| PortSpec { kind: kind(name), ..port(name) });
    let [a, b] = specs.each_ref().map(|spec| attached(&mut host, spec));
    let ((a4, _), (b4, _)) = (addresses("a"), addresses("b"));
    a.run(&neighbour(b4, specs[1].mac, "eth0"));
    b.run(&neighbour(a4, specs[0].mac, "eth0"));
    let talk = arrives(&a.udp(a4), &b.udp(b4));
    // The host reaches both in any case.
    let gateway = world::udp(subnet::gateway(prefix4()));
    for (container, address) in [(&a, a4), (&b, b4)] {
        let socket = container.udp(address);
        assert!(reaches(&socket, &gateway) && reaches(&gateway, &socket));
    }
    talk
}

#[test]
fn isolated_ports_do_not_reach_each_other() {
    assert!(!neighbours_talk(|name| PortKind::Isolated { host_mac: subnet::host_mac(name) }));
}

/// The control of the test above: the same frames arrive where the ports are not isolated.
#[test]
fn plain_ports_reach_each_other() {
    assert!(neighbours_talk(|_| PortKind::Plain));
}

#[test]
fn broadcasts_of_a_container_reach_the_host_alone() {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let a = attached(&mut host, &port("a"));
    let _b = attached(&mut host, &port("b"));
    let before = link::find(&mut host, &port("b").name).unwrap().unwrap().traffic.sent.packets;
    // Nobody has this address, so it is asked for by broadcast.
    let socket = a.udp(addresses("a").0);
    let _ = socket.send_to(b"hello", "10.90.1.1:9");
    let gateway = world::udp(subnet::gateway(prefix4()));
    assert!(reaches(&socket, &gateway));
    let after = link::find(&mut host, &port("b").name).unwrap().unwrap().traffic.sent.packets;
    assert_eq!(before, after);
}

#[test]
fn a_borrowed_mac_neither_sends_nor_steals() {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let (a4, b4) = (addresses("a").0, addresses("b").0);
    let a = attached(&mut host, &port("a"));
    let b = attached(&mut host, &port("b"));
    let gateway = world::udp(subnet::gateway(prefix4()));
    assert!(reaches(&a.udp(a4), &gateway));

    // Locked ports are since Linux 5.18; before, the firewall alone keeps such frames out.
    a.run(&format!("ip link set eth0 address {}", port("b").mac));
    assert!(!arrives(&a.udp(a4), &gateway));
    assert!(reaches(&gateway, &b.udp(b4)));

    a.run(&format!("ip link set eth0 address {}", port("a").mac));
    assert!(reaches(&a.udp(a4), &gateway));
}

/// Whatever a container claims about an address, the host knows better.
#[test]
fn an_address_of_another_is_not_claimed_by_arp() {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let (b4, b6) = addresses("b");
    let a = attached(&mut host, &port("a"));
    let b = attached(&mut host, &port("b"));
    a.run(&format!("ip addr add {b4}/20 dev eth0"));
    a.run(&format!("ip addr add {b6}/128 dev eth0 nodad"));
    a.act(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/arp_notify", "1").unwrap());
    let gateway = world::udp(subnet::gateway(prefix4()));
    // Asking for the gateway as `b` is what poisons.
    let _ = arrives(&a.udp(b4), &gateway);
    for (gateway, address) in [(subnet::gateway(prefix4()), b4), (subnet::gateway(world::prefix6()), b6)] {
        assert!(reaches(&world::udp(gateway), &b.udp(address)), "{address}");
    }
}

/// What there is of a container, on the host and inside.
fn traces(host: &mut Socket, spec: &PortSpec, container: &Namespace) -> Vec<String> {
    let mut traces = Vec::new();
    traces.extend(link::find(host, &spec.name).unwrap().map(|link| link.name));
    traces.extend(run(&format!("ip neigh show dev {BRIDGE} nud permanent")).lines().map(str::to_owned));
    traces
        .extend(run("bridge fdb show").lines().filter(|line| line.contains(&spec.mac.to_string())).map(str::to_owned));
    traces.extend(container.run("ip -o link").lines().filter(|line| line.contains("eth0")).map(str::to_owned));
    traces
}

#[test]
fn a_failed_attach_leaves_nothing() {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let container = Namespace::new();
    let refused: [(&str, PortSpec); 4] = [
        ("an address that no host has", {
            let mut spec = port("web");
            spec.inside.addresses.push(HostAddress { ip: "::1".parse().unwrap(), length: 200 });
            spec
        }),
        ("a route through nobody", {
            let mut spec = port("web");
            spec.inside.routes.push(link::Route::default_via("224.0.0.1".parse().unwrap()));
            spec
        }),
        ("an MTU that nothing has", {
            let mut spec = port("web");
            spec.inside.mtu = Some(7);
            spec
        }),
        ("a name that no interface has", {
            let mut spec = port("web");
            spec.inside.name = "eth/0".to_owned();
            spec
        }),
    ];
    for (what, spec) in refused {
        let refusal = link::attach(&mut host, &spec, container.0.as_fd());
        assert!(refusal.is_err(), "{what}");
        assert_eq!(traces(&mut host, &spec, &container), Vec::<String>::new(), "{what}");
    }
    // And what failed can succeed.
    link::attach(&mut host, &port("web"), container.0.as_fd()).unwrap();
}

#[test]
fn errors_say_what_was_done_and_keep_the_errno() {
    let mut host = world::host();
    let container = Namespace::new();
    let e = link::attach(&mut host, &port("web"), container.0.as_fd()).unwrap_err();
    assert_eq!((e.to_string().as_str(), e.what()), ("there is no bridge `lazaret0`", Kind::NotFound));

    link::ensure_bridge(&mut host, &bridge()).unwrap();
    link::attach(&mut host, &port("web"), container.0.as_fd()).unwrap();
    let e = link::attach(&mut host, &port("web"), container.0.as_fd()).unwrap_err();
    assert_eq!(e.what(), Kind::Exists);
    assert_eq!(e.errno(), Some(rustix::io::Errno::EXIST));
    // It is the same container's link, and the failure must not have cut it off.
    assert!(reaches(&container.udp(addresses("web").0), &world::udp(subnet::gateway(prefix4()))));

    let mut spec = port("other");
    spec.bridge = "lo".to_owned();
    let e = link::attach(&mut host, &spec, container.0.as_fd()).unwrap_err();
    assert_eq!((e.to_string().as_str(), e.what()), ("`lo` is not a bridge but an interface", Kind::Invalid));
}

#[test]
fn detach_leaves_nothing_and_may_run_twice() {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let spec = port("web");
    let container = attached(&mut host, &spec);
    assert!(!traces(&mut host, &spec, &container).is_empty());
    for _ in 0..2 {
        link::detach(&mut host, std::slice::from_ref(&spec)).unwrap();
        assert_eq!(traces(&mut host, &spec, &container), Vec::<String>::new());
    }
    link::delete(&mut host, BRIDGE).unwrap();
    link::detach(&mut host, std::slice::from_ref(&spec)).unwrap();
    // The other end goes first, as when root in the container deletes it.
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    link::attach(&mut host, &spec, container.0.as_fd()).unwrap();
    container.run("ip link del eth0");
    link::detach(&mut host, std::slice::from_ref(&spec)).unwrap();
    assert_eq!(traces(&mut host, &spec, &container), Vec::<String>::new());
}

#[test]
fn the_bridge_is_mended_and_its_ports_stay() {
    let mut host = world::host();
    assert!(link::ensure_bridge(&mut host, &bridge()).unwrap().created);
    let web = attached(&mut host, &port("web"));
    run(&format!("ip link set {BRIDGE} down mtu 1400"));
    run(&format!("ip addr flush dev {BRIDGE}"));
    run(&format!("ip addr add 10.77.0.1/24 dev {BRIDGE}"));
    assert!(!link::ensure_bridge(&mut host, &bridge()).unwrap().created);

    let shown = run(&format!("ip addr show {BRIDGE}"));
    assert!(!shown.contains("10.77.0.1") && shown.contains("mtu 1500"), "{shown}");
    for address in bridge().addresses {
        assert!(shown.contains(&address.to_string()), "{shown}");
    }
    let ports = link::ports(&mut host, BRIDGE).unwrap();
    assert_eq!(
        ports.iter().map(|port| (&*port.name, port.isolated)).collect::<Vec<_>>(),
        [(&*port("web").name, Some(true))]
    );
    assert!(reaches(&web.udp(addresses("web").0), &world::udp(subnet::gateway(prefix4()))));
}

#[test]
fn a_bridge_name_that_is_taken_is_left_alone() {
    let mut host = world::host();
    run(&format!("ip link add {BRIDGE} type veth peer name other"));
    let e = link::ensure_bridge(&mut host, &bridge()).unwrap_err();
    assert_eq!(e.what(), Kind::Exists);
    assert!(link::find(&mut host, BRIDGE).unwrap().is_some_and(|link| link.kind.as_deref() == Some("veth")));
}

#[test]
fn a_failed_bridge_leaves_nothing() {
    let mut host = world::host();
    let mut spec = bridge();
    spec.addresses.push(HostAddress { ip: "::1".parse().unwrap(), length: 200 });
    assert!(link::ensure_bridge(&mut host, &spec).is_err());
    assert!(link::find(&mut host, BRIDGE).unwrap().is_none());
}

#[test]
fn traffic_is_counted_from_both_sides() {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let web = attached(&mut host, &port("web"));
    let (socket, gateway) = (web.udp(addresses("web").0), world::udp(subnet::gateway(prefix4())));
    let count = |host: &mut _| link::find(host, &port("web").name).unwrap().unwrap().traffic.seen_from_inside();
    let before = count(&mut host);
    socket.send_to(&[0; 1000], gateway.local_addr().unwrap()).unwrap();
    gateway.recv_from(&mut [0; 1000]).unwrap();
    let after = count(&mut host);
    // 1000 bytes of data, 8 of UDP, 20 of IPv4, 14 of Ethernet; and perhaps an ARP request.
    assert!((1042..1200).contains(&(after.sent.bytes - before.sent.bytes)), "{before:?} {after:?}");
    assert!(after.sent.packets > before.sent.packets);
}

/// The 200th container costs no more than half again as much as the first.
///
/// The machine may be busy, and that only ever adds: one of several hosts that shows it is enough.
#[test]
fn the_cost_of_a_container_does_not_grow() {
    let seen: Vec<_> = (0..6).map(|_| first_and_last()).take_while(|(first, last)| *last > *first * 3 / 2).collect();
    assert!(seen.len() < 6, "{seen:?}");
}

/// The best time of the first five of 200 containers, and that of the last five.
fn first_and_last() -> (Duration, Duration) {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    // Made before: the kernel's work for a namespace goes on in the background.
    let containers: Vec<Namespace> = (0..200).map(|_| Namespace::new()).collect();
    let mut taken = std::collections::BTreeSet::new();
    let mut attach = |(number, container): (usize, &Namespace)| {
        let name = format!("node{number}");
        let mut spec = port(&name);
        let v4 = subnet::address4(&name, prefix4(), |address| taken.contains(&address)).unwrap();
        taken.insert(v4);
        spec.inside.addresses[0].ip = IpAddr::V4(v4);
        let before = Instant::now();
        link::attach(&mut host, &spec, container.0.as_fd()).unwrap();
        before.elapsed()
    };
    let times: Vec<Duration> = containers.iter().enumerate().map(&mut attach).collect();
    assert_eq!(link::ports(&mut host, BRIDGE).unwrap().len(), 200);
    let best = |times: &[Duration]| *times.iter().min().unwrap();
    (best(&times[..5]), best(&times[195..]))
}

#[test]
fn a_users_own_bridge_is_left_as_it_is() {
    let mut host = world::host();
    run("ip link add br0 type bridge");
    run("ip addr add 192.168.9.1/24 dev br0");
    run("ip link set br0 up");
    let before = run("ip -d addr show br0");
    let mut inside = eth0("web");
    inside.addresses = vec![HostAddress { ip: "192.168.9.2".parse().unwrap(), length: 24 }];
    inside.routes = vec![link::Route::default_via("192.168.9.1".parse().unwrap())];
    inside.neighbours.clear();
    let spec = PortSpec { bridge: "br0".to_owned(), kind: PortKind::Plain, inside, ..port("web") };
    let web = attached(&mut host, &spec);
    assert!(reaches(&web.udp("192.168.9.2".parse().unwrap()), &world::udp("192.168.9.1".parse().unwrap())));
    link::detach(&mut host, std::slice::from_ref(&spec)).unwrap();
    let settings =
        |shown: &str| shown.split_whitespace().filter(|word| word.contains('/')).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(settings(&before), settings(&run("ip -d addr show br0")));
    assert!(link::ports(&mut host, "br0").unwrap().is_empty());
}
