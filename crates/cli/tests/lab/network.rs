//! The network of containers, with real packets: a host with two uplinks, a LAN behind one and the Internet behind the
//! other, all of them namespaces of the test's own.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Out, Running, World, bare, busybox, entries, fixture, text};
use crate::network_probe::{How, Namespace};

/// A host with its neighbours.
struct Net {
    world: World,
    host: Namespace,
    /// The Internet: a router's other side, with a server.
    internet: Namespace,
    /// A machine in the LAN.
    lan: Namespace,
    _others: Vec<Running>,
}

/// In the Internet.
const SERVER: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];
/// In the LAN of the second uplink.
const NAS: [&str; 2] = ["192.168.5.7", "fd55::7"];
/// The host itself, on each uplink.
const HOST: [&str; 4] = ["198.51.100.2", "2001:db8:5::2", "192.168.5.2", "fd55::2"];
const PORT: u16 = 4000;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Net {
    fn new() -> Net {
        Net::after("")
    }

    /// With something done on the host before it has a network.
    fn after(setup: &str) -> Net {
        let neighbour = || {
            let mut command = std::process::Command::new("unshare");
            command.args(["--net", "/bin/sh", "-c", "set -e; ip link set lo up; echo ready; exec cat"]);
            let mut running = Running::start(command);
            running.allow(std::time::Duration::from_secs(3600));
            running.expect("ready\n");
            running
        };
        let others = vec![neighbour(), neighbour()];
        let (wide, near) = (others[0].pid(), others[1].pid());
        // Answers for names come from the server in the Internet, where nobody answers unless a test sees to it.
        let world = World::on_a_host_of_its_own(&format!(
            "{setup}
             sysctl -q net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0
             echo nameserver {server} >$SPACE/resolv.conf && mount --bind $SPACE/resolv.conf /etc/resolv.conf
             ip link add wide0 type veth peer name eth0 netns {wide}
             ip link add lan0 type veth peer name eth0 netns {near}
             ip address add {h4}/24 dev wide0 && ip address add {h6}/64 dev wide0 nodad
             ip address add {l4}/24 dev lan0 && ip address add {l6}/64 dev lan0 nodad
             ip link set wide0 up && ip link set lan0 up",
            server = SERVER[0],
            h4 = HOST[0],
            h6 = HOST[1],
            l4 = HOST[2],
            l6 = HOST[3],
        ));
        let host = world.host_pid();
        world.root_sh(&format!(
            "set -e
             on() {{ nsenter --net=/proc/$1/ns/net -- ip $2; }}
             on {wide} 'address add 198.51.100.1/24 dev eth0'; on {wide} 'address add 2001:db8:5::1/64 dev eth0 nodad'
             on {wide} 'address add {s4}/32 dev lo'; on {wide} 'address add {s6}/128 dev lo nodad'
             on {wide} 'link set eth0 up'
             on {near} 'address add {n4}/24 dev eth0'; on {near} 'address add {n6}/64 dev eth0 nodad'
             on {near} 'link set eth0 up'
             on {near} 'route add default via {l4}'; on {near} 'route add default via {l6}'
             on {host} 'route add default via 198.51.100.1'; on {host} 'route add default via 2001:db8:5::1'",
            s4 = SERVER[0],
            s6 = SERVER[1],
            n4 = NAS[0],
            n6 = NAS[1],
            l4 = HOST[2],
            l6 = HOST[3],
        ));
        let net = Net {
            host: Namespace::of(host),
            internet: Namespace::of(wide),
            lan: Namespace::of(near),
            world,
            _others: others,
        };
        SERVER.iter().for_each(|address| net.internet.serve(ip(address), PORT));
        NAS.iter().for_each(|address| net.lan.serve(ip(address), PORT));
        net
    }

    /// Makes a container with these settings and starts it.
    fn start(&self, name: &str, settings: &[&str]) -> Namespace {
        let mut words = vec!["create".to_owned(), name.to_owned(), "--image".into(), text(&bare()).to_owned()];
        settings.iter().for_each(|setting| words.extend(["--set".to_owned(), format!("network.{setting}")]));
        self.world.ok(&words.iter().map(String::as_str).collect::<Vec<_>>());
        self.world.ok(&["start", name]);
        self.inside(name)
    }

    fn inside(&self, name: &str) -> Namespace {
        Namespace::of(self.world.init_pid(name))
    }

    /// The addresses of a container, IPv4 first.
    fn addresses(&self, name: &str) -> [IpAddr; 2] {
        let info = self.world.info(name);
        let address = |at: usize| ip(info["network"]["attached"]["addresses"][at].as_str().unwrap());
        [address(0), address(1)]
    }

    fn set(&self, name: &str, settings: &[&str]) {
        let settings: Vec<_> = settings.iter().map(|setting| format!("network.{setting}")).collect();
        let words: Vec<_> = ["config", name, "set"].into_iter().chain(settings.iter().map(String::as_str)).collect();
        self.world.ok(&words);
    }

    fn netd(&self) -> i32 {
        self.world.ok(&["network", "show", "--json"]).json()["netd"].as_i64().unwrap() as i32
    }

    fn kill_netd(&self) {
        kill_process(Pid::from_raw(self.netd()).unwrap(), Signal::KILL).unwrap();
    }

    /// Waits until something holds: it is asked about again and again, as nobody tells.
    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !holds() {
            assert!(std::time::Instant::now() < end, "time is up waiting until {what}");
            std::thread::yield_now();
        }
    }

    /// The interfaces of the host beside those of its uplinks.
    fn links(&self) -> Vec<String> {
        let out = self.world.sh("ip -o link | cut -d: -f2");
        let names = out.stdout.lines().map(|line| line.trim().split('@').next().unwrap().to_owned());
        names.filter(|name| !["lo", "wide0", "lan0"].contains(&name.as_str())).collect()
    }

    fn ports(&self) -> usize {
        self.links().iter().filter(|name| name.starts_with("lz-")).count()
    }

    fn tables(&self) -> String {
        self.world.sh("nft list tables").stdout
    }
}

/// Every attempt with what it should come to, and in words.
fn matrix(to: &[&str], hows: &[How], expected: bool) -> Vec<(IpAddr, How, bool)> {
    to.iter().flat_map(|to| hows.iter().map(move |how| (ip(to), *how, expected))).collect()
}

#[track_caller]
fn check(who: &str, from: &Namespace, cells: &[(IpAddr, How, bool)]) {
    let attempts: Vec<_> = cells.iter().map(|(to, how, _)| (*to, *how)).collect();
    let reached = from.reach(&attempts);
    let wrong: Vec<String> = cells
        .iter()
        .zip(reached)
        .filter(|((_, _, expected), reached)| expected != reached)
        .map(|((to, how, expected), _)| {
            format!("{who} -> {to} {how:?}: should {}", if *expected { "pass" } else { "not pass" })
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const ALL: &[How] = &[How::Tcp(PORT), How::Udp(PORT), How::Ping];

#[test]
fn the_network_can_be_used_when_start_returns() {
    let net = Net::new();
    let web = net.start("web", &[]);
    check("web", &web, &matrix(&SERVER, ALL, true));
    let shown = net.world.exec_sh("web", "cat /etc/resolv.conf; ip -o address show dev eth0; ip route");
    let [four, six] = net.addresses("web");
    for part in [&four.to_string(), &six.to_string(), "nameserver 10.90.0.1", "default via 10.90.0.1", "search lazaret"]
    {
        assert!(shown.contains(part), "no `{part}` in\n{shown}");
    }
    // Both uplinks see the host, never the container.
    assert_eq!(web.seen_as(ip(SERVER[0]), PORT).as_deref(), Some(HOST[0]));
    assert_eq!(web.seen_as(ip(SERVER[1]), PORT).as_deref(), Some(HOST[1]));
}

#[test]
fn policy_holds_for_every_kind_of_packet_and_both_families() {
    let net = Net::new();
    HOST.iter().for_each(|address| net.host.serve(ip(address), PORT));
    let only = net.start("only", &[]);
    let lan = net.start("lan", &["lan=true"]);
    let host = net.start("host", &["host=true"]);
    let none = net.start("none", &["internet=false"]);
    let near = net.start("near", &["internet=false", "lan=true"]);
    let listed = net
        .start("listed", &["internet=false", "allow=192.168.5.7:4000/tcp,2001:db8:7::7", "deny=192.168.5.7:4000/udp"]);
    let denied = net.start("denied", &["lan=true", "deny=192.168.5.0/24,*:4000/udp"]);
    let everybody: Vec<String> = ["only", "lan", "host", "none", "near", "listed", "denied"]
        .iter()
        .flat_map(|name| net.addresses(name).map(|address| address.to_string()))
        .collect();
    for name in ["only", "lan", "host", "none", "near", "listed", "denied"] {
        let inside = net.inside(name);
        net.addresses(name).into_iter().for_each(|address| inside.serve(address, PORT));
    }
    let gateway = ["10.90.0.1"];
    let other = |than: &str| {
        let own = net.addresses(than).map(|address| address.to_string());
        everybody.iter().filter(|address| !own.contains(address)).cloned().collect::<Vec<_>>()
    };
    let cells = |who: &str, internet: bool, lan: bool, host: bool| {
        let others = other(who);
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        [
            matrix(&SERVER, ALL, internet),
            matrix(&NAS, ALL, lan),
            matrix(&HOST, &[How::Tcp(PORT), How::Udp(PORT)], host),
            matrix(&gateway, &[How::Ping, How::Tcp(53)], true),
            matrix(&gateway, &[How::Tcp(22)], false),
            matrix(&others, ALL, false),
        ]
        .concat()
    };
    check("only", &only, &cells("only", true, false, false));
    check("lan", &lan, &cells("lan", true, true, false));
    check("host", &host, &cells("host", true, false, true));
    check("none", &none, &cells("none", false, false, false));
    check("near", &near, &cells("near", false, true, false));
    check(
        "listed",
        &listed,
        &[
            matrix(&NAS[..1], &[How::Tcp(PORT)], true),
            matrix(&NAS[..1], &[How::Udp(PORT), How::Ping], false),
            matrix(&NAS[1..], ALL, false),
            matrix(&SERVER[1..], ALL, true),
            matrix(&SERVER[..1], ALL, false),
        ]
        .concat(),
    );
    check(
        "denied",
        &denied,
        &[
            matrix(&NAS[..1], ALL, false),
            matrix(&NAS[1..], &[How::Tcp(PORT), How::Ping], true),
            matrix(&SERVER, &[How::Tcp(PORT), How::Ping], true),
            matrix(&SERVER, &[How::Udp(PORT)], false),
        ]
        .concat(),
    );
    // The host reaches them all.
    let all: Vec<&str> = everybody.iter().map(String::as_str).collect();
    check("the host", &net.host, &matrix(&all, ALL, true));
    // Nobody else does, even by way of the host.
    check("the LAN", &net.lan, &matrix(&all, ALL, false));
}

#[test]
fn a_change_of_policy_holds_at_once_also_for_what_was_begun() {
    let net = Net::new();
    let web = net.start("web", &[]);
    check("web", &web, &matrix(&NAS, ALL, false));
    net.set("web", &["lan=true"]);
    check("web, with lan", &web, &matrix(&NAS, ALL, true));
    let mut begun: Vec<_> = NAS.iter().map(|address| web.connect(ip(address), PORT)).collect();
    assert!(begun.iter_mut().all(|connection| connection.works()));
    net.set("web", &["lan=false"]);
    assert!(!begun.iter_mut().any(|connection| connection.works()), "an old connection goes on");
    check("web, without lan", &web, &matrix(&NAS, ALL, false));
    check("web, without lan", &web, &matrix(&SERVER, ALL, true));
    let shown = net.world.ok(&["info", "web"]).stdout;
    assert!(shown.contains("internet only"), "{shown}");
}

#[test]
fn containers_reach_each_other_only_if_both_say_so() {
    let net = Net::new();
    let (a, b) = (net.start("a", &["peers=b"]), net.start("b", &[]));
    for (name, inside) in [("a", &a), ("b", &b)] {
        net.addresses(name).into_iter().for_each(|address| inside.serve(address, PORT));
    }
    let to = |name: &str| net.addresses(name).map(|address| address.to_string());
    let cells = |name: &str, expected: bool| {
        let to = to(name);
        matrix(&[&to[0], &to[1]], ALL, expected)
    };
    check("a, alone in naming b", &a, &cells("b", false));
    check("b, who names nobody", &b, &cells("a", false));
    assert!(!net.world.lazaret(&["exec", "a", "--", "nslookup", "b"]).stdout.contains(&to("b")[0]));
    net.set("b", &["peers=a"]);
    check("a", &a, &cells("b", true));
    check("b", &b, &cells("a", true));
    // Not for a moment only: the kernel learns of shorter ways and takes them.
    check("a, again", &a, &cells("b", true));
    assert!(net.world.exec("a", &["nslookup", "b"]).contains(&to("b")[0]));
    assert!(net.world.exec("b", &["nslookup", "a.lazaret"]).contains(&to("a")[1]));
    net.world.ok(&["network", "partition", "a", "/", "b"]);
    check("a, parted from b", &a, &cells("b", false));
    check("a, parted from b", &a, &matrix(&SERVER, ALL, true));
    net.world.ok(&["network", "heal"]);
    check("a, healed", &a, &cells("b", true));
    net.world.ok(&["network", "impair", "a", "--loss", "100%", "--to", "b"]);
    check("a, with all lost", &a, &cells("b", false));
    check("a, with all lost to b", &a, &matrix(&SERVER, ALL, true));
    net.world.ok(&["network", "heal"]);
    net.set("a", &["peers="]);
    check("b, whom a names no more", &b, &cells("a", false));
}

#[test]
fn published_ports_lead_inside_from_everywhere_they_name() {
    let net = Net::new();
    let web = net.start("web", &["publish=127.0.0.1:8080:4000/tcp,8081:4000/tcp,8081:4000/udp"]);
    net.addresses("web").into_iter().for_each(|address| web.serve(address, PORT));
    let cell = |to: &str, how: How, expected: bool| (ip(to), how, expected);
    check(
        "the host",
        &net.host,
        &[
            cell("127.0.0.1", How::Tcp(8080), true),
            cell("127.0.0.1", How::Tcp(8081), true),
            cell("127.0.0.1", How::Udp(8081), true),
            cell(HOST[2], How::Tcp(8081), true),
            cell(HOST[2], How::Tcp(8080), false),
        ],
    );
    check(
        "the LAN",
        &net.lan,
        &[
            cell(HOST[2], How::Tcp(8081), true),
            cell(HOST[2], How::Udp(8081), true),
            cell(HOST[3], How::Tcp(8081), true),
            cell(HOST[2], How::Tcp(8080), false),
            cell(HOST[2], How::Tcp(PORT), false),
        ],
    );
    // Taken ports are refused with a sentence, by us and by the kernel.
    net.world.ok(&["create", "other", "--image", text(&bare()), "--set", "network.publish=8081:80"]);
    let refused = net.world.lazaret(&["start", "other"]);
    assert!(refused.status == 1 && refused.stderr.contains("port 8081/tcp of the host is taken"), "{refused}");
    let taken = net.host.inside(|| std::net::TcpListener::bind("0.0.0.0:8081").is_err());
    assert!(taken, "somebody else got a published port");
    net.set("web", &["publish=8082:4000"]);
    check(
        "the LAN, after a change",
        &net.lan,
        &[cell(HOST[2], How::Tcp(8082), true), cell(HOST[2], How::Tcp(8081), false)],
    );
    net.world.ok(&["start", "other"]);
}

#[test]
fn a_netd_that_is_killed_cuts_nobody_off() {
    let net = Net::new();
    let web = net.start("web", &[]);
    let before = net.addresses("web");
    let mut connection = web.connect(ip(SERVER[0]), PORT);
    for _ in 0..3 {
        let netd = net.netd();
        net.kill_netd();
        // While there is none, and after: what may pass passes, what may not does not.
        check("web, without netd", &web, &[matrix(&SERVER, ALL, true), matrix(&NAS, ALL, false)].concat());
        assert!(connection.works(), "a connection was cut off");
        net.until("another netd has taken over", || {
            let shown = net.world.ok(&["network", "show", "--json"]).json();
            shown["netd"].as_i64().is_some_and(|now| now != i64::from(netd)) && shown["responder"].as_i64() > Some(0)
        });
        assert!(connection.works(), "a connection was cut off by the new netd");
        check("web, with another netd", &web, &[matrix(&SERVER, ALL, true), matrix(&NAS, ALL, false)].concat());
        assert_eq!(net.addresses("web"), before);
    }
    net.until("names are answered", || {
        net.world.lazaret(&["exec", "web", "--", "nslookup", "web"]).stdout.contains(&before[0].to_string())
    });
    net.set("web", &["lan=true"]);
    check("web, changed under the new netd", &web, &matrix(&NAS, ALL, true));
    net.world.ok(&["network", "restart"]);
    check("web, after a restart", &web, &matrix(&NAS, ALL, true));
    net.world.ok(&["stop", "--kill", "web"]);
    assert_eq!(net.ports(), 0, "{:?}", net.links());
}

#[test]
fn nothing_is_left_of_a_container_whose_keeper_is_killed() {
    let net = Net::new();
    let stays = net.start("stays", &[]);
    net.start("web", &["publish=8080:80"]);
    assert_eq!(net.ports(), 2);
    let [four, _] = net.addresses("web");
    let keeper = Pid::from_raw(net.world.keeper_pid("web")).unwrap();
    kill_process(keeper, Signal::KILL).unwrap();
    net.until("its port is gone", || net.ports() == 1);
    net.until("its rules are gone", || !net.world.ok(&["network", "rules"]).stdout.contains(&four.to_string()));
    net.until("it is forgotten", || entries(&net.world.path("run/netd/attached")) == ["stays"]);
    check("stays", &stays, &matrix(&SERVER, ALL, true));
    // And once more, when nobody is there to see it.
    net.world.ok(&["start", "web"]);
    assert_eq!(net.addresses("web")[0], four, "another address");
    let keeper = Pid::from_raw(net.world.keeper_pid("web")).unwrap();
    let netd = Pid::from_raw(net.netd()).unwrap();
    kill_process(netd, Signal::STOP).unwrap();
    kill_process(keeper, Signal::KILL).unwrap();
    kill_process(netd, Signal::KILL).unwrap();
    net.until("its port is gone", || {
        net.world.ok(&["list"]);
        net.ports() == 1 && !net.world.ok(&["network", "rules"]).stdout.contains(&four.to_string())
    });
}

#[test]
fn down_leaves_no_trace_and_asks_before_it_cuts_somebody_off() {
    let net = Net::new();
    let settings =
        "sysctl -a 2>/dev/null | grep -E '^net\\.ipv[46]\\.(ip_forward|conf\\.)' | grep -v -E 'lzb|stable_secret'";
    let (links, tables, before) = (net.links(), net.tables(), net.world.sh(settings).stdout);
    assert!(
        before.contains("net.ipv4.ip_forward = 0") && before.contains("net.ipv6.conf.all.forwarding = 0"),
        "{before}"
    );
    let web = net.start("web", &[]);
    let during = net.world.sh(settings).stdout;
    let own = |text: &str| {
        text.lines()
            .filter(|line| line.contains(".lan0.") || line.contains(".wide0."))
            .filter(|line| line.contains("ipv6"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(own(&before), own(&during), "an interface of the host is not what it was");
    let refused = net.world.lazaret(&["network", "down"]);
    assert!(refused.status == 1 && refused.stderr.contains("web would be cut off"), "{refused}");
    check("web, after a refusal", &web, &matrix(&SERVER, ALL, true));
    net.world.ok(&["network", "down", "--force"]);
    check("web, cut off", &web, &matrix(&SERVER, ALL, false));
    assert_eq!((net.links(), net.tables()), (links, tables));
    assert_eq!(net.world.sh(settings).stdout, before);
    let processes: Vec<_> =
        net.world.processes().into_iter().filter(|(_, arguments)| arguments.contains("netd")).collect();
    assert!(processes.is_empty(), "{processes:?}");
    // The container goes on without, and has a network again when it is started anew.
    assert_eq!(net.world.state("web"), "running");
    net.world.ok(&["restart", "web"]);
    check("web, started anew", &net.inside("web"), &matrix(&SERVER, ALL, true));
}

#[test]
fn what_is_lan_follows_the_host_into_other_networks() {
    let net = Net::new();
    let web = net.start("web", &[]);
    check("web", &web, &matrix(&SERVER, ALL, true));
    // What was the Internet is the host's LAN from now on.
    net.world.sh_ok(
        "ip address add 203.0.113.2/24 dev lan0; ip address add 2001:db8:7::2/64 dev lan0 nodad; \
                     ip route del 203.0.113.0/24 dev lan0; ip -6 route del 2001:db8:7::/64 dev lan0; \
                     ip route add 203.0.113.0/24 via 198.51.100.1; ip -6 route add 2001:db8:7::/64 via 2001:db8:5::1",
    );
    net.until("it is blocked", || !web.reaches(ip(SERVER[0]), How::Ping) && !web.reaches(ip(SERVER[1]), How::Ping));
    check("web, with the host in its network", &web, &matrix(&SERVER, ALL, false));
    net.world.sh_ok("ip address del 203.0.113.2/24 dev lan0; ip address del 2001:db8:7::2/64 dev lan0");
    net.until("it is open again", || web.reaches(ip(SERVER[0]), How::Ping) && web.reaches(ip(SERVER[1]), How::Ping));
}

#[test]
fn another_firewall_in_the_way_is_named_with_the_line_that_mends_it() {
    let net = Net::after(
        "nft add table ip filter; \
         nft 'add chain ip filter FORWARD { type filter hook forward priority filter; policy drop; }'; \
         nft add chain ip filter DOCKER; nft add chain ip filter DOCKER-USER; \
         nft add rule ip filter FORWARD counter jump DOCKER-USER",
    );
    net.world.create("web", bare());
    let started = net.world.lazaret(&["start", "web"]);
    assert_eq!(started.status, 0, "{started}");
    assert!(started.stderr.contains("FORWARD") && started.stderr.contains("DOCKER-USER"), "{started}");
    let doctor = net.world.lazaret(&["doctor"]).stdout;
    assert!(doctor.contains("FORWARD"), "{doctor}");
    let web = net.inside("web");
    check("web, behind a FORWARD of DROP", &web, &matrix(&SERVER[..1], ALL, false));
    check("web, IPv6", &web, &matrix(&SERVER[1..], ALL, true));
    // The line that was told does mend it.
    let note = started.stderr.lines().find(|line| line.contains("to mend it: ")).unwrap().to_owned();
    let (_, lines) = note.split_once("to mend it: ").unwrap();
    for line in lines.split("; ") {
        net.world.sh_ok(line);
    }
    check("web, after mending", &web, &matrix(&SERVER, ALL, true));
}

#[test]
fn an_address_that_is_not_ones_own_gets_nowhere() {
    let net = Net::new();
    let (a, b) = (net.start("a", &[]), net.start("b", &[]));
    let [b4, _] = net.addresses("b");
    check("b", &b, &matrix(&SERVER, ALL, true));
    net.world.exec_sh(
        "a",
        &format!("ip address flush dev eth0; ip address add {b4}/20 dev eth0; ip route add default via 10.90.0.1"),
    );
    check("a, as b", &a, &matrix(&SERVER[..1], ALL, false));
    check("b, whose address was taken", &b, &matrix(&SERVER, ALL, true));
    let mac = net.world.exec("b", &["cat", "/sys/class/net/eth0/address"]);
    net.world.exec_sh("a", &format!("ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up; ip route add default via 10.90.0.1"));
    check("a, as b to the last byte", &a, &matrix(&SERVER[..1], ALL, false));
    check("b, whose hardware address was taken, too", &b, &matrix(&SERVER, ALL, true));
}

#[test]
fn a_name_of_the_lan_is_found_and_followed_by_those_whose_policy_names_it() {
    let net = Net::new();
    let moved = "192.168.5.8";
    net.lan.inside(|| net.world.root_sh(&format!("ip address add {moved}/24 dev eth0")));
    net.lan.serve(ip(moved), PORT);
    let nas = Arc::new(Mutex::new(NAS[0].parse().unwrap()));
    net.lan.answer_local(NAS[0].parse().unwrap(), "nas.local", nas.clone());
    let web = net.start("web", &["allow=nas.local:4000"]);
    let other = net.start("other", &[]);
    let told = |name: &str| net.world.lazaret(&["exec", name, "--", "nslookup", "nas.local", "10.90.0.1"]).stdout;
    net.until("the name is known", || told("web").contains(NAS[0]));
    check("web", &web, &matrix(&[NAS[0]], &[How::Tcp(PORT), How::Udp(PORT)], true));
    check("web", &web, &matrix(&[NAS[0]], &[How::Ping, How::Tcp(PORT + 1)], false));
    check("web", &web, &matrix(&[moved], ALL, false));
    check("other", &other, &matrix(&[NAS[0]], ALL, false));
    assert!(!told("other").contains(NAS[0]));
    // The machine has another address, and the host comes into one more network.
    *nas.lock().unwrap() = moved.parse().unwrap();
    net.world.sh_ok("ip address add 192.168.77.2/24 dev lan0");
    net.until("the name is followed", || told("web").contains(moved));
    check("web", &web, &matrix(&[moved], &[How::Tcp(PORT)], true));
}

#[test]
fn who_floods_the_resolver_with_questions_keeps_nobody_else_waiting() {
    let net = Net::new();
    let (loud, quiet) = (net.start("loud", &[]), net.start("quiet", &[]));
    let gateway = std::net::SocketAddr::new(ip("10.90.0.1"), 53);
    let question = |name: &str| {
        let labels: Vec<u8> =
            name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
        [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &labels, &[0, 0, 1, 0, 1]].concat()
    };
    let bound = || std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each of them has to be asked for elsewhere, which takes longer than the question.
        for thread in 0..4 {
            let (socket, over) = (loud.inside(bound), &over);
            scope.spawn(move || {
                for number in 0.. {
                    if over.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    let _ = socket.send_to(&question(&format!("{thread}.{number}.example")), gateway);
                }
            });
        }
        let socket = quiet.inside(bound);
        socket.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
        let ask = || {
            socket.send_to(&question("quiet.lazaret"), gateway).unwrap();
            socket.recv(&mut [0; 512]).is_ok()
        };
        let answered = (0..300).filter(|_| ask()).count();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(answered, 300);
    });
}

#[test]
fn some_megabytes_take_as_long_as_the_rate_says() {
    let net = Net::new();
    let web = net.start("web", &["rate_up=32mbit"]);
    let send = |least: f64, most: f64| {
        let began = std::time::Instant::now();
        web.connect(ip(SERVER[0]), PORT).exchanges(2 << 20);
        let took = began.elapsed().as_secs_f64();
        assert!((least..most).contains(&took), "{took} seconds for 2 MiB");
    };
    // Half a second's worth; a busy machine may take longer.
    send(0.48, 1.5);
    net.set("web", &["rate_up=16mbit"]);
    send(0.97, 2.5);
    // An impairment takes the place of the queue and gives it back, also where the kernel has none and it fails.
    net.world.lazaret(&["network", "impair", "web", "--delay", "1ms"]);
    net.world.ok(&["network", "heal"]);
    send(0.97, 2.5);
    net.world.ok(&["config", "web", "unset", "network.rate_up"]);
    net.set("web", &["rate_down=32mbit"]);
    send(0.48, 1.5);
    net.world.ok(&["config", "web", "unset", "network.rate_down"]);
    send(0.0, 0.4);
}

#[test]
fn addresses_stay_and_can_be_chosen() {
    let net = Net::new();
    net.start("web", &[]);
    let before = net.addresses("web");
    net.start("fixed", &["address=10.90.0.20"]);
    assert_eq!(net.addresses("fixed")[0], ip("10.90.0.20"));
    for name in ["web", "fixed"] {
        net.world.ok(&["stop", "--kill", name]);
    }
    net.world.ok(&["network", "down"]);
    net.world.ok(&["rename", "web", "www"]);
    net.world.ok(&["start", "www"]);
    assert_eq!(net.addresses("www"), before);
    net.world.ok(&["create", "clash", "--image", text(&bare()), "--set", &format!("network.address={}", before[0])]);
    let refused = net.world.lazaret(&["start", "clash"]);
    assert!(refused.status == 1 && refused.stderr.contains("in use by `www`"), "{refused}");
    let leases = net.world.ok(&["network", "leases", "--json"]).json();
    let names: Vec<_> =
        leases.as_array().unwrap().iter().map(|lease| lease["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["fixed", "www"]);
    net.world.ok(&["destroy", "fixed"]);
    assert!(!net.world.ok(&["network", "leases"]).stdout.contains("fixed"));
    net.world.ok(&["run", "--image", text(&bare()), "--", "true"]);
    assert_eq!(
        net.world.ok(&["network", "leases", "--json"]).json().as_array().unwrap().len(),
        1,
        "a lease of `run` is left"
    );
}

#[test]
fn the_subnet_collides_with_nothing_that_the_host_has() {
    let net = Net::after(
        "ip link add other0 type veth peer name other1; ip address add 10.90.4.1/24 dev other0; ip link set other0 up; ip link set other1 up; ip route add 10.91.0.0/16 dev other0; ",
    );
    net.start("web", &[]);
    let subnet = net.world.ok(&["network", "show", "--json"]).json()["subnet"].as_str().unwrap().to_owned();
    assert!(!subnet.starts_with("10.90.0.") && !subnet.starts_with("10.91."), "{subnet}");
    let [four, _] = net.addresses("web");
    assert!(!four.to_string().starts_with("10.91."), "{four}");
    net.world.ok(&["stop", "--kill", "web"]);
    net.world.ok(&["network", "up", "--subnet", "172.20.16.0/24", "--prefix", "2001:db8:9::/64"]);
    net.world.ok(&["start", "web"]);
    let [four, six] = net.addresses("web");
    assert!(four.to_string().starts_with("172.20.16.") && six.to_string().starts_with("2001:db8:9:"), "{four} {six}");
    check("web, in a subnet of choice", &net.inside("web"), &matrix(&SERVER[..1], ALL, true));
}

#[test]
fn check_names_the_line_and_proves_it() {
    let net = Net::new();
    net.start("web", &["deny=203.0.113.7:4001/tcp"]);
    let said = |words: &[&str]| net.world.lazaret(&[&["network", "check", "web"], words].concat());
    let allowed = said(&["203.0.113.7:4000"]);
    assert!(
        allowed.status == 0 && allowed.stdout.contains("network.internet") && allowed.stdout.contains("answered"),
        "{allowed}"
    );
    let blocked = said(&["192.168.5.7:4000"]);
    assert!(
        blocked.status == 1 && blocked.stdout.contains("network.lan") && blocked.stdout.contains("proved"),
        "{blocked}"
    );
    let blocked = said(&["203.0.113.7:4001"]);
    assert!(blocked.status == 1 && blocked.stdout.contains("network.deny"), "{blocked}");
    let ping = said(&["2001:db8:7::7", "--json"]);
    assert_eq!(ping.json()[0]["allowed"], true, "{ping}");
    assert!(said(&["no.such.host"]).stderr.contains("nobody knows a host of that name"));
}

#[test]
fn who_shares_the_hosts_network_was_asked_twice_and_is_shown_in_red() {
    let net = Net::new();
    net.host.serve(ip("127.0.0.1"), 4001);
    let refused = net.world.lazaret(&["create", "bold", "--image", text(&bare()), "--network", "host"]);
    assert!(refused.status == 1 && refused.stderr.contains("host_mode_confirmed"), "{refused}");
    net.world.ok(&["create", "bold", "--image", text(&bare()), "--network", "host", "--yes"]);
    net.world.ok(&["start", "bold"]);
    assert!(net.inside("bold").reaches(ip("127.0.0.1"), How::Tcp(4001)));
    let shown = net.world.exec_sh("bold", "cat /etc/resolv.conf; ls /sys/class/net; cat /proc/mounts | grep ' /sys '");
    assert!(shown.contains(SERVER[0]) && shown.contains("sysfs"), "{shown}");
    assert!(shown.contains(" ro"), "the host's sysfs can be written\n{shown}");
    let info = net.world.ok(&["info", "bold"]).stdout;
    assert!(info.contains("shares the host's network"), "{info}");
    for forbidden in ["ip link set wide0 down", "ip address add 10.0.0.1/24 dev lan0", "mount -o remount,rw /sys"] {
        assert_ne!(net.world.lazaret(&["exec", "bold", "--", "sh", "-c", forbidden]).status, 0, "{forbidden}");
    }
}

#[test]
fn a_bridge_of_the_users_and_interfaces_on_a_parent() {
    let net = Net::new();
    net.world.sh_ok("ip link add br9 type bridge; ip address add 192.168.9.1/24 dev br9; ip link set br9 up");
    let on_bridge = net.start("on-bridge", &["mode=bridge:br9", "address=192.168.9.5"]);
    assert!(on_bridge.reaches(ip("192.168.9.1"), How::Ping));
    let macvlan = net.start("mac", &["mode=macvlan:lan0", "address=192.168.5.30"]);
    assert!(macvlan.reaches(ip(NAS[0]), How::Tcp(PORT)));
    assert_eq!(macvlan.seen_as(ip(NAS[0]), PORT).as_deref(), Some("192.168.5.30"));
    net.world.sh_ok(
        "ip link add gift0 type veth peer name gift1; ip link set gift1 up; ip address add 192.168.8.1/24 dev gift1",
    );
    let phys = net.start("phys", &["mode=phys:gift0", "address=192.168.8.2"]);
    assert!(phys.reaches(ip("192.168.8.1"), How::Ping));
    net.world.ok(&["stop", "--kill", "phys"]);
    assert!(net.links().contains(&"gift0".to_owned()), "{:?}", net.links());
    let missing = net.world.lazaret(&["run", "--image", text(&bare()), "--network", "bridge:nope", "--", "true"]);
    assert!(missing.status == 125 && missing.stderr.contains("there is no bridge `nope`"), "{missing}");
    for name in ["on-bridge", "mac"] {
        net.world.ok(&["stop", "--kill", name]);
    }
    assert_eq!(net.ports(), 0);
}

#[test]
fn without_nft_a_start_says_what_is_missing_and_what_can_be_done() {
    let net = Net::after(
        "for nft in /usr/sbin/nft /sbin/nft /usr/bin/nft; do if [ -e $nft ]; then mount --bind /dev/null $nft; fi; done; ",
    );
    net.world.create("web", bare());
    let refused = net.world.lazaret(&["start", "web"]);
    assert_eq!(refused.status, 1, "{refused}");
    assert!(refused.stderr.contains("nft") && refused.stderr.contains("hint: "), "{refused}");
    assert_eq!(refused.stderr.lines().filter(|line| line.starts_with("error:")).count(), 1, "{refused}");
    assert_eq!(net.links(), Vec::<String>::new(), "a bridge is left");
    net.world.ok(&["config", "web", "set", "network.mode=none"]);
    net.world.ok(&["start", "web"]);
}

#[test]
fn a_dhcp_client_gets_the_same_addresses() {
    let net = Net::new();
    net.world.start_container("web", busybox());
    let [four, _] = net.addresses("web");
    let script = "ip address flush dev eth0; ip link set eth0 up; \
                  echo '#!/bin/sh' >/tmp/s; echo 'echo $1 $ip $router $dns' >>/tmp/s; chmod +x /tmp/s; \
                  udhcpc -i eth0 -q -n -t 5 -s /tmp/s 2>/dev/null";
    let said = net.world.exec_sh("web", script);
    assert!(said.contains(&format!("bound {four} 10.90.0.1 10.90.0.1")), "{said}");
}

#[test]
fn networkd_hears_of_the_same_addresses_by_dhcp_and_from_the_router() {
    let net = Net::new();
    for image in ["debian12", "debian13"] {
        net.world.start_container(image, fixture(image));
        let [four, six] = net.addresses(image);
        // What was there from the beginning is there for ever; what a server gives is dynamic. And there is not one
        // more, as it would be none that the firewall knows.
        let expected = [format!("{four} dynamic"), format!("{six} dynamic")];
        net.until("both addresses are a server's", || {
            let shown = net.world.lazaret(&["exec", image, "--", "ip", "-o", "address", "show", "dev", "eth0"]).stdout;
            let global = shown.lines().filter(|line| line.contains("scope global"));
            let addresses = global.filter_map(|line| {
                let address = line.split_whitespace().nth(3)?.split('/').next()?;
                Some(format!("{address} {}", if line.contains(" dynamic ") { "dynamic" } else { "for ever" }))
            });
            addresses.eq(expected.iter().cloned())
        });
        // It asks whether the address is free before it uses it, and then has a route by the router's word.
        net.until("the way is open again", || net.inside(image).reaches(ip(SERVER[1]), How::Tcp(PORT)));
        check(image, &net.inside(image), &matrix(&SERVER, ALL, true));
        // The router's own answer says that it is one.
        net.world.ok(&["exec", image, "--", "ip", "neigh", "flush", "nud", "all", "dev", "eth0"]);
        check(image, &net.inside(image), &matrix(&SERVER, ALL, true));
        check(image, &net.inside(image), &matrix(&SERVER, ALL, true));
    }
}

#[test]
fn a_netd_that_is_killed_in_any_phase_is_mended_by_the_next_command() {
    let net = Net::new();
    net.start("stays", &[]);
    net.world.create("web", bare());
    let attached = net.world.path("run/netd/attached/web");
    // Each time a little later: when the container is recorded, when its link is there, when it is running.
    type Phase<'a> = (&'a str, Box<dyn Fn() -> bool + 'a>);
    let phases: [Phase<'_>; 3] = [
        ("is recorded", Box::new(|| attached.exists())),
        ("has a link", Box::new(|| net.ports() == 2)),
        ("runs", Box::new(|| net.world.state("web") == "running")),
    ];
    for (phase, reached) in phases {
        let netd = Pid::from_raw(net.netd()).unwrap();
        let starting = net.world.spawn(&["start", "web"]);
        net.until(phase, || reached() || starting.has_ended());
        kill_process(netd, Signal::KILL).unwrap();
        let out = starting.wait();
        if out.status != 0 {
            assert!(out.stderr.contains("netd ended"), "{phase}: {out}");
            net.world.ok(&["start", "web"]);
        }
        net.until("both are connected", || {
            net.world.lazaret(&["network", "show", "--json"]).json()["attached"].as_i64() == Some(2)
        });
        let web = net.inside("web");
        check(
            &format!("web, after a kill when it {phase}"),
            &web,
            &[matrix(&SERVER, ALL, true), matrix(&NAS, ALL, false)].concat(),
        );
        net.world.ok(&["stop", "--kill", "web"]);
        net.until("nothing is left", || net.ports() == 1 && entries(&net.world.path("run/netd/attached")) == ["stays"]);
    }
}

#[test]
fn a_container_for_one_command_has_its_netd_mended_too() {
    let net = Net::new();
    let mut running =
        net.world.spawn(&["run", "--name", "one", "--image", text(&bare()), "--", "sh", "-c", "echo ready; cat"]);
    running.expect("ready\n");
    let netd = net.netd();
    net.kill_netd();
    net.until("another netd has taken over", || {
        let shown = net.world.lazaret(&["network", "show", "--json"]).json();
        shown["netd"].as_i64().is_some_and(|now| now != i64::from(netd)) && shown["attached"].as_i64() == Some(1)
    });
    check("one", &net.inside("one"), &[matrix(&SERVER, ALL, true), matrix(&NAS, ALL, false)].concat());
    running.close_input();
    assert_eq!(running.wait().status, 0);
    assert_eq!(net.ports(), 0);
}

#[test]
fn two_hundred_clients_of_dhcp_at_once_all_get_an_address_of_their_own() {
    const CLIENTS: usize = 200;
    let net = Net::new();
    let names: Vec<String> = (0..CLIENTS).map(|number| format!("c{number}")).collect();
    for some in names.chunks(10) {
        some.iter().for_each(|name| net.world.create(name, bare()));
        let starting: Vec<Running> = some.iter().map(|name| net.world.spawn(&["start", name])).collect();
        starting.into_iter().for_each(|one| assert_eq!(one.wait().status, 0));
    }
    let script = net.world.path("space/told");
    fs::write(&script, "#!/bin/sh\n[ -z \"$ip\" ] || echo $1 $ip\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let asking: Vec<(IpAddr, Running)> = names
        .iter()
        .map(|name| {
            let mut client = std::process::Command::new("nsenter");
            client.arg(format!("--net=/proc/{}/ns/net", net.world.init_pid(name)));
            client.args([
                "--",
                "/bin/busybox",
                "udhcpc",
                "-i",
                "eth0",
                "-n",
                "-q",
                "-t",
                "10",
                "-T",
                "2",
                "-s",
                text(&script),
            ]);
            (net.addresses(name)[0], Running::start(client))
        })
        .collect();
    for (address, client) in asking {
        let out = client.wait();
        assert!(out.status == 0 && out.stdout.contains(&format!("bound {address}")), "{address}: {out}");
    }
    for some in names.chunks(20) {
        let stopping: Vec<Running> = some.iter().map(|name| net.world.spawn(&["stop", "--kill", name])).collect();
        stopping.into_iter().for_each(|one| assert_eq!(one.wait().status, 0));
    }
    assert_eq!(net.ports(), 0);
}

#[test]
fn many_at_once_are_all_connected() {
    let net = Net::new();
    let names: Vec<String> = (0..24).map(|number| format!("c{number}")).collect();
    names.iter().for_each(|name| net.world.create(name, bare()));
    let starting: Vec<Running> = names.iter().map(|name| net.world.spawn(&["start", name])).collect();
    for running in starting {
        let out: Out = running.wait();
        assert_eq!(out.status, 0, "{out}");
    }
    let mut addresses: Vec<_> = names.iter().map(|name| net.addresses(name)).collect();
    for name in &names {
        assert!(net.inside(name).reaches(ip(SERVER[0]), How::Tcp(PORT)), "{name}");
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), names.len(), "two have one address");
    let stopping: Vec<Running> = names.iter().map(|name| net.world.spawn(&["stop", "--kill", name])).collect();
    stopping.into_iter().for_each(|running| assert_eq!(running.wait().status, 0));
    assert_eq!(net.ports(), 0);
}

impl World {
    /// A script of the test's own, outside of the world.
    #[track_caller]
    fn root_sh(&self, script: &str) {
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", script]);
        let out = self.run(command, b"");
        assert_eq!(out.status, 0, "{out}");
    }

    /// A script on the host, which must succeed.
    #[track_caller]
    fn sh_ok(&self, script: &str) {
        let out = self.sh(script);
        assert_eq!(out.status, 0, "`{script}`\n{out}");
    }
}

#[test]
fn an_image_that_names_its_name_servers_keeps_them() {
    let net = Net::new();
    let image = net.world.path("space/image");
    net.world.root_sh(&format!("cp -a {} {}", text(&bare()), text(&image)));
    fs::write(image.join("etc/resolv.conf"), "nameserver 9.9.9.9\n").unwrap();
    net.world.start_container("kept", &image);
    assert_eq!(net.world.exec("kept", &["cat", "/etc/resolv.conf"]), "nameserver 9.9.9.9");
    fs::remove_file(image.join("etc/resolv.conf")).unwrap();
    std::os::unix::fs::symlink("/root/elsewhere", image.join("etc/resolv.conf")).unwrap();
    net.world.start_container("link", &image);
    assert_eq!(net.world.exec_sh("link", "ls -A /root; readlink /etc/resolv.conf"), "/root/elsewhere");
    assert!(!Path::new("/root/elsewhere").exists());
}

#[test]
fn the_hosts_place_in_a_container_is_taken_by_nobody() {
    let net = Net::new();
    let (a, b) = (net.start("a", &[]), net.start("b", &[]));
    let known = |name: &str| {
        let init = net.world.init_pid(name);
        net.world.sh(&format!("nsenter --net=/proc/{init}/ns/net -- ip neigh show dev eth0 nud permanent")).stdout
    };
    let bridge = net.world.sh("ip -o link show type bridge").stdout;
    let mac = bridge.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let router = net.world.ok(&["network", "show", "--json"]).json();
    for host in ["10.90.0.1", "fe80::1", router["gateway6"].as_str().unwrap()] {
        let line = format!("{host} lladdr {mac} PERMANENT");
        assert!(known("b").contains(&line), "no `{line}` in\n{}", known("b"));
    }
    // And a lie gets no further than the port of the liar: not to b, and not to the host either.
    let [b4, _] = net.addresses("b");
    let lies = format!(
        "for who in 10.90.0.1 {b4}; do arping -U -c 2 -I eth0 -s $who $who; arping -A -c 2 -I eth0 -s $who $who; done; true"
    );
    net.world.exec_sh("a", &format!("ip address add 10.90.0.1/32 dev eth0; ip address add {b4}/32 dev eth0; {lies}"));
    check("b, with a liar beside it", &b, &matrix(&SERVER, ALL, true));
    b.serve(b4, PORT);
    check("the host, with a liar on its bridge", &net.host, &matrix(&[&b4.to_string()], ALL, true));
    check("a, whose own address is still its own", &a, &matrix(&SERVER[1..], ALL, true));
}

#[test]
fn rules_that_somebody_takes_away_are_back_at_once() {
    let net = Net::new();
    let web = net.start("web", &["publish=8080:4000/tcp"]);
    net.addresses("web").into_iter().for_each(|address| web.serve(address, PORT));
    let table = net.world.ok(&["network", "show", "--json"]).json()["table"].as_str().unwrap().to_owned();
    let rules = net.world.ok(&["network", "rules"]).stdout;
    let counted = |rules: &str| rules.lines().filter(|line| !line.contains("handle")).count();
    for done in [
        "nft flush ruleset".to_owned(),
        format!("nft delete table inet {table}"),
        format!("nft delete table bridge {table}"),
        format!("nft flush table inet {table}"),
        format!("nft flush chain bridge {table} prerouting"),
        format!("nft flush set bridge {table} ports"),
    ] {
        net.world.sh_ok(&done);
        net.until(&format!("the rules are back after `{done}`"), || {
            let now = net.world.lazaret(&["network", "rules"]);
            now.status == 0 && counted(&now.stdout) == counted(&rules)
        });
        check("web", &web, &[matrix(&SERVER, ALL, true), matrix(&NAS, ALL, false)].concat());
        check("the LAN", &net.lan, &matrix(&[HOST[2]], &[How::Tcp(8080)], true));
    }
    // What somebody adds is not ours to judge, and other tables are none of our business.
    net.world.sh_ok(&format!(
        "nft add rule inet {table} forward counter; nft add table inet other; nft delete table inet other"
    ));
    net.set("web", &["lan=true"]);
    check("web, with lan", &web, &matrix(&NAS, ALL, true));
    assert!(net.world.ok(&["network", "rules"]).stdout.contains("counter packets"), "what was added is gone");
    net.world.ok(&["network", "down", "--force"]);
    assert!(!net.tables().contains(&table), "{}", net.tables());
}

#[test]
fn a_host_that_was_no_router_does_not_become_one_between_its_own_networks() {
    // The Internet knows the way back, so that only the host is in the way.
    let back = |net: &Net| {
        let wide = net._others[0].pid();
        net.world.root_sh(&format!(
            "on() {{ nsenter --net=/proc/{wide}/ns/net -- ip $1; }}
             on 'route add 192.168.0.0/16 via {}'; on '-6 route add fd55::/64 via {}'",
            HOST[0], HOST[1]
        ));
    };
    let net = Net::new();
    back(&net);
    check("the LAN, before", &net.lan, &matrix(&SERVER, ALL, false));
    let web = net.start("web", &["lan=true"]);
    let cells = [matrix(&SERVER, ALL, true), matrix(&NAS, ALL, true)].concat();
    check("web", &web, &cells);
    check("the LAN", &net.lan, &matrix(&SERVER, ALL, false));
    net.kill_netd();
    net.until("another netd has taken over", || {
        net.world.lazaret(&["network", "show", "--json"]).json()["attached"] == 1
    });
    check("the LAN, with another netd", &net.lan, &matrix(&SERVER, ALL, false));
    // Who makes an interface now finds a host that forwards, as Docker does.
    let near = net._others[1].pid();
    net.world.sh_ok(&format!(
        "ip link add later0 type veth peer name eth1 netns {near}; ip address add 192.168.77.1/24 dev later0; ip link set later0 up"
    ));
    net.world.root_sh(&format!(
        "on() {{ nsenter --net=/proc/{near}/ns/net -- ip $1; }}
         on 'address add 192.168.77.2/24 dev eth1'; on 'link set eth1 up'; on 'route replace default via 192.168.77.1'"
    ));
    check("what came later", &net.lan, &matrix(&SERVER[..1], ALL, true));
    // A host that was a router before stays one.
    let net = Net::after("");
    back(&net);
    net.world.sh_ok("sysctl -q net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    // The host asks for neighbours once its own link-local addresses are settled.
    net.until("the LAN of a router is through", || net.lan.reaches(ip(SERVER[1]), How::Ping));
    check("the LAN of a router", &net.lan, &matrix(&SERVER, ALL, true));
    net.start("web", &[]);
    check("the LAN of a router with containers", &net.lan, &matrix(&SERVER, ALL, true));
    net.world.ok(&["network", "down", "--force"]);
    check("the LAN of a router without", &net.lan, &matrix(&SERVER, ALL, true));
}

#[test]
fn a_narrower_policy_ends_what_the_host_would_go_on_with() {
    let net = Net::new();
    HOST.iter().for_each(|address| net.host.serve(ip(address), PORT));
    let web = net.start("web", &["host=true", "publish=8080:4000/tcp"]);
    net.addresses("web").into_iter().for_each(|address| web.serve(address, PORT));
    let mut to_host: Vec<_> = HOST.iter().map(|address| web.connect(ip(address), PORT)).collect();
    let mut published = net.lan.connect(ip(HOST[2]), 8080);
    let mut from_host: Vec<_> =
        net.addresses("web").into_iter().map(|address| net.host.connect(address, PORT)).collect();
    let each = to_host.iter_mut().chain([&mut published]).chain(&mut from_host);
    assert!(each.into_iter().all(|connection| connection.works()));
    // What is on its way to the container when the policy changes keeps the host sending.
    net.set("web", &["host=false", "publish="]);
    assert!(!to_host.iter_mut().any(|connection| connection.works()), "a connection to the host goes on");
    assert!(!published.works(), "a connection to a published port goes on");
    assert!(from_host.iter_mut().all(|connection| connection.works()), "the host was cut off from the container");
    // The host is in another network: what it has begun itself goes on.
    net.world.sh_ok("ip address add 172.31.9.1/24 dev lan0");
    net.until("it is seen", || net.world.ok(&["network", "show"]).stdout.contains("172.31.9.0/24"));
    assert!(from_host.iter_mut().all(|connection| connection.works()), "the host's own connections ended");
    let shown = net.world.ok(&["network", "show", "--json"]).json();
    let lan: Vec<_> = shown["lan"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    assert!(lan.contains(&"192.168.5.0/24") && !lan.iter().any(|one| one.starts_with(HOST[2])), "{lan:?}");
}

#[test]
fn the_host_may_ask_for_names_by_any_address_of_its_own() {
    let net = Net::new();
    net.start("web", &[]);
    let [web, _] = net.addresses("web");
    for own in ["10.90.0.1", HOST[0], HOST[2], "127.0.0.1"] {
        let answer = net.host.inside(|| {
            let socket = std::net::UdpSocket::bind((own, 0)).unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
            let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\x07lazaret\0\0\x01\0\x01";
            socket.send_to(query, "10.90.0.1:53").unwrap();
            let mut bytes = [0; 512];
            socket.recv(&mut bytes).map(|length| bytes[..length].to_vec()).unwrap_or_default()
        });
        let IpAddr::V4(web) = web else { unreachable!("IPv4 is first") };
        assert!(answer.ends_with(&web.octets()), "asked from {own}: {answer:?}");
    }
    // Nobody else does, though the host would route the question.
    check("the LAN", &net.lan, &matrix(&["10.90.0.1"], &[How::Tcp(53), How::Ping], false));
}

/// A host whose nft waits, while there is a file `hold` in its space, until somebody writes into `gate`; there is a
/// file `held` then.
fn with_nft_that_waits() -> Net {
    Net::after(
        "cp /usr/sbin/nft $SPACE/real; mkfifo $SPACE/gate
         printf '#!/bin/sh\n[ ! -e %s/hold ] || { : >%s/held; read -r _ <%s/gate; }\nexec %s/real \"$@\"\n' \
             $SPACE $SPACE $SPACE $SPACE >$SPACE/nft
         chmod +x $SPACE/nft; mount --bind $SPACE/nft /usr/sbin/nft;",
    )
}

impl Net {
    fn hold_nft(&self) {
        let _ = fs::remove_file(self.world.path("space/held"));
        fs::write(self.world.path("space/hold"), "").unwrap();
    }

    /// Who waits goes on, and nobody waits any more.
    fn release_nft(&self) {
        fs::remove_file(self.world.path("space/hold")).unwrap();
        fs::write(self.world.path("space/gate"), "go\n").unwrap();
    }
}

#[test]
fn nothing_passes_before_the_rules_know_a_container_and_all_holds_until_a_new_netd_has_its_own() {
    let net = with_nft_that_waits();
    let first = net.start("first", &["peers=web"]);
    net.addresses("first").into_iter().for_each(|address| first.serve(address, PORT));
    HOST.iter().for_each(|address| net.host.serve(ip(address), PORT));
    let to_first = net.addresses("first").map(|address| address.to_string());
    let to_first: Vec<&str> = to_first.iter().map(String::as_str).collect();
    net.world.create("web", bare());
    net.world.ok(&["config", "web", "set", "network.lan=true", "network.host=true", "network.peers=first"]);
    // Asked now: netd says nothing while it waits.
    let known = [net.world.host_pid().to_string(), net.world.init_pid("first").to_string()];
    let netd = net.netd();
    net.hold_nft();
    let starting = net.world.spawn(&["start", "web"]);
    let held = net.world.path("space/held");
    net.until("the rules wait, and the link is there", || held.exists() && net.ports() == 2);
    // Of the namespaces that netd holds, the one that is neither the host's nor the first container's.
    let namespace = |path: &str| fs::read_link(path).ok().filter(|to| to.to_string_lossy().starts_with("net:["));
    let known = known.map(|pid| namespace(&format!("/proc/{pid}/ns/net")));
    let held_by_netd = entries(Path::new(&format!("/proc/{netd}/fd")));
    let mut paths = held_by_netd.into_iter().map(|fd| format!("/proc/{netd}/fd/{fd}"));
    let other = |path: &String| namespace(path).is_some_and(|one| !known.contains(&Some(one)));
    let web = Namespace::at(&paths.find(other).expect("netd holds the new namespace"));
    let everything = |expected: bool| {
        [
            matrix(&SERVER, ALL, expected),
            matrix(&NAS, ALL, expected),
            matrix(&HOST, ALL, expected),
            matrix(&to_first, ALL, expected),
        ]
        .concat()
    };
    check("web, before the rules know it", &web, &everything(false));
    net.release_nft();
    let out = starting.wait();
    assert_eq!(out.status, 0, "{out}");
    let web = net.inside("web");
    check("web", &web, &everything(true));
    // One that begins anew waits before it has set its rules: those of the one before hold.
    net.set("web", &["lan=false", "host=false"]);
    let netd = net.netd();
    net.hold_nft();
    kill_process(Pid::from_raw(netd).unwrap(), Signal::KILL).unwrap();
    net.until("another netd waits", || held.exists());
    let cells =
        [matrix(&SERVER, ALL, true), matrix(&to_first, ALL, true), matrix(&NAS, ALL, false), matrix(&HOST, ALL, false)]
            .concat();
    check("web, while netd begins anew", &web, &cells);
    net.release_nft();
    net.until("another netd has taken over", || {
        net.world.lazaret(&["network", "show", "--json"]).json()["attached"] == 2
    });
    check("web, with another netd", &web, &cells);
}
