//! What the host is asked and told: its network, its switches, its connections.

use std::net::IpAddr;
use std::os::fd::AsFd;

use lazaret_net::link;
use lazaret_net::subnet;
use lazaret_net::watch::Watch;
use lazaret_net::{conntrack, sysctl};

use crate::world::{self, BRIDGE, addresses, attached, bridge, nft, port, prefix4, run};

fn ours(name: &str) -> bool {
    name == BRIDGE || name.starts_with("lz-")
}

fn readable(watch: &Watch) -> bool {
    let mut fds = [rustix::event::PollFd::new(watch, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).unwrap() == 1
}

#[test]
fn a_new_network_is_news_and_a_container_is_not() {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let mut watch = Watch::open(ours).unwrap();
    let before = watch.snapshot().unwrap();
    assert!(before.on_link.is_empty(), "{before:?}");
    assert_eq!(before.uplink_mtu(), None);

    let _web = attached(&mut host, &port("web"));
    link::detach(&mut host, std::slice::from_ref(&port("web"))).unwrap();
    assert!(readable(&watch));
    assert!(!watch.changed().unwrap());

    run("ip link add wlan0 mtu 1400 type veth peer name ap0");
    run("ip addr add 192.168.7.2/24 dev wlan0");
    run("ip addr add 2001:db8:7::2/64 dev wlan0 nodad");
    run("ip addr add 10.8.0.2 peer 10.8.0.1/32 dev ap0");
    run("ip link set wlan0 up");
    run("ip link set ap0 up");
    run("ip route add default via 192.168.7.1 mtu 1380");
    run("ip route add 10.90.32.0/20 via 192.168.7.1");
    run("ip route add 10.91.0.0/16 dev ap0 table 77");
    run("ip route add unreachable 10.92.0.0/16");
    assert!(watch.changed().unwrap());
    assert!(!watch.changed().unwrap());

    let snapshot = watch.snapshot().unwrap();
    let on_link: Vec<String> = snapshot.on_link.iter().map(|prefix| prefix.to_string()).collect();
    for prefix in ["192.168.7.0/24", "2001:db8:7::/64", "10.8.0.1", "10.91.0.0/16"] {
        assert!(on_link.contains(&prefix.to_owned()), "{prefix} of {on_link:?}");
    }
    assert!(
        !on_link.contains(&"10.90.32.0/20".to_owned()) && !on_link.contains(&"10.90.0.0/20".to_owned()),
        "{on_link:?}"
    );
    assert_eq!(snapshot.uplinks.iter().map(|uplink| &*uplink.name).collect::<Vec<_>>(), ["wlan0"]);
    assert_eq!(snapshot.uplink_mtu(), Some(1380));
    // Our own bridge is no obstacle to our own subnet; all the rest is one.
    let chosen = subnet::choose(snapshot.taken.iter().copied()).unwrap();
    assert_eq!(chosen.to_string(), "10.90.0.0/20");
    run("ip route add 10.90.0.0/21 via 192.168.7.1");
    assert!(watch.changed().unwrap());
    let chosen = subnet::choose(watch.snapshot().unwrap().taken).unwrap();
    assert_eq!(chosen.to_string(), "10.90.16.0/20");

    run("ip link del wlan0");
    assert!(watch.changed().unwrap());
    assert!(watch.snapshot().unwrap().on_link.is_empty());
}

/// More events than the socket holds are one event: that much changed.
#[test]
fn lost_events_are_news() {
    let _host = world::host();
    let mut watch = Watch::open(|_| true).unwrap();
    watch.snapshot().unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(watch.as_fd(), 1).unwrap();
    for _ in 0..20 {
        run("ip link set lo down");
        run("ip link set lo up");
    }
    assert!(watch.changed().unwrap());
    assert!(!watch.changed().unwrap());
}

#[test]
fn switches_are_set_and_set_back() {
    let _host = world::host();
    run("ip link add vpn.1 type veth peer name peer");
    run("ip link set vpn.1 up");
    let name = "ipv4/conf/vpn.1/send_redirects";
    let changed = sysctl::set(name, "0").unwrap().unwrap();
    assert_eq!((changed.was.as_str(), sysctl::read(name).unwrap().as_str()), ("1", "0"));
    assert_eq!(sysctl::set(name, "0").unwrap(), None);
    sysctl::restore(std::slice::from_ref(&changed)).unwrap();
    assert_eq!(sysctl::read(name).unwrap(), "1");
    // Somebody else's value is not ours to take back, and a switch may go with its interface.
    sysctl::set(name, "0").unwrap();
    let theirs = sysctl::Previous { now: "5".to_owned(), ..changed.clone() };
    sysctl::restore(&[theirs]).unwrap();
    assert_eq!(sysctl::read(name).unwrap(), "0");
    run("ip link del vpn.1");
    sysctl::restore(&[changed]).unwrap();
}

#[test]
fn switches_that_fail_together_are_all_as_before() {
    let _host = world::host();
    let settings = [("ipv4/ip_forward".to_owned(), "1"), ("ipv4/ip_default_ttl".to_owned(), "no number")];
    let before = sysctl::read("ipv4/ip_forward").unwrap();
    assert!(sysctl::set_all(settings).is_err());
    assert_eq!(sysctl::read("ipv4/ip_forward").unwrap(), before);
}

#[test]
fn another_namespace_has_switches_of_its_own() {
    let _host = world::host();
    let other = world::Namespace::new();
    let before = sysctl::read("ipv4/ip_forward").unwrap();
    let flipped = if before == "1" { "0" } else { "1" };
    assert!(other.act(|| sysctl::set("ipv4/ip_default_ttl", "77")).unwrap().is_some());
    assert_ne!(sysctl::read("ipv4/ip_default_ttl").unwrap(), "77");
    other.act(|| sysctl::set("ipv4/ip_forward", flipped)).unwrap();
    assert_eq!(sysctl::read("ipv4/ip_forward").unwrap(), before);
}

#[test]
fn a_host_that_forwards_goes_on_hearing_its_routers() {
    let _host = world::host();
    run("ip link add wlan0 type veth peer name ap0");
    for (name, value) in [("all/forwarding", "0"), ("wlan0/accept_ra", "1"), ("ap0/accept_ra", "0")] {
        sysctl::set(&format!("ipv6/conf/{name}"), value).unwrap();
    }
    let changed = sysctl::forward6().unwrap();
    let value = |name: &str| sysctl::read(&format!("ipv6/conf/{name}")).unwrap();
    assert_eq!([value("all/forwarding"), value("wlan0/accept_ra"), value("ap0/accept_ra")], ["1", "2", "0"]);
    assert!(sysctl::forward6().unwrap().is_empty());
    sysctl::restore(&changed).unwrap();
    assert_eq!([value("all/forwarding"), value("wlan0/accept_ra"), value("ap0/accept_ra")], ["0", "1", "0"]);
    sysctl::forward4().unwrap();
    assert_eq!(sysctl::read("ipv4/ip_forward").unwrap(), "1");
}

#[test]
fn many_leave_together_and_nobody_else_does() {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let names = ["a", "b", "c", "d"];
    let ports = names.map(port);
    let _containers = ports.clone().map(|port| attached(&mut host, &port));
    for _ in 0..2 {
        link::detach(&mut host, &ports[..3]).unwrap();
        let left = names.map(|name| link::find(&mut host, &port(name).name).unwrap().is_some());
        assert_eq!(left, [false, false, false, true]);
        let neighbours = run("ip neighbour show nud permanent");
        let known = names.map(|name| neighbours.contains(&addresses(name).0.to_string()));
        assert_eq!(known, left);
    }
    link::detach(&mut host, &[]).unwrap();
    assert!(link::find(&mut host, &ports[3].name).unwrap().is_some());
}

#[test]
fn only_the_connections_of_an_address_are_forgotten() {
    let mut host = world::host();
    nft("table inet t { chain c { type filter hook input priority 0; ct state new accept; }; }");
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let containers = ["a", "b"].map(|name| attached(&mut host, &port(name)));
    let count = || sysctl::read("netfilter/nf_conntrack_count").unwrap();
    let connect = || {
        for (container, name) in containers.iter().zip(["a", "b"]) {
            let (v4, v6) = addresses(name);
            for (own, gateway) in [(v4, subnet::gateway(prefix4())), (v6, subnet::gateway(world::prefix6()))] {
                assert!(world::reaches(&container.udp(own), &world::udp(gateway)));
            }
        }
    };
    connect();
    assert_eq!(count(), "4");
    let (v4, v6) = addresses("a");
    let forget = |addresses: &[IpAddr]| conntrack::forget(&addresses.iter().copied().collect()).unwrap();
    forget(&[v4]);
    assert_eq!(count(), "3");
    forget(&[v6]);
    assert_eq!(count(), "2");
    // As the one that is called, too.
    forget(&[subnet::gateway(prefix4())]);
    assert_eq!(count(), "1");
    forget(&["192.0.2.1", "2001:db8::1"].map(|nobody| nobody.parse().unwrap()));
    assert_eq!(count(), "1");
    // Both families at once.
    connect();
    assert_eq!(count(), "5");
    forget(&[v4, v6]);
    assert_eq!(count(), "3");
}
