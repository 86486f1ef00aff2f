//! The rules with real packets, in network namespaces of the tests' own.

#[path = "rules/lab.rs"]
mod lab;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::*;
use lazaret_base::Error;
use lazaret_config::{Name, Network, Protocol};
use lazaret_net::check::{Question, evaluate};
use lazaret_net::policy::Loss;
use lazaret_net::{foreign, ruleset};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

fn list<T: std::str::FromStr<Err = Error>>(words: &[&str]) -> Vec<T> {
    words.iter().map(|word| word.parse().unwrap()).collect()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn place(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address(text), port)
}

/// Whether the one that has the name answers; it has all the time if it is expected to.
fn reaches(lab: &Lab, from: &str, protocol: Protocol, to: SocketAddr, who: &str, expected: bool) -> bool {
    let patience = if expected { PATIENCE } else { SILENCE };
    let word = format!("{from} {to}");
    let answer = ask(lab.inside(from), protocol, to, &word, patience);
    if let Some(answer) = &answer {
        assert!(answer == who || answer == "ping", "{answer} answers as {who}");
    }
    answer.is_some()
}

/// Ports that something is asked at.
const PORTS: [u16; 4] = [25, 53, 80, 631];

/// `a` has the default; `b` and `c` are peers, `b` may reach the LAN, `c` only what it names; `d` may reach the host,
/// and names `a`, which does not name it.
fn neighbours() -> Lab {
    let b = Network {
        peers: list(&["c"]),
        lan: true,
        deny: list(&["*:25/tcp", "[2001:db8:1::/64]:631"]),
        ..Network::default()
    };
    let c = Network {
        peers: list(&["b"]),
        internet: false,
        allow: list(&[
            "192.168.1.20:631/tcp",
            "[2001:db8:1::20]:631/udp",
            "198.51.100.0/24/icmp",
            "*:53/udp",
            "10.90.0.1:80",
        ]),
        deny: list(&["b:631"]),
        ..Network::default()
    };
    let d = Network {
        peers: list(&["a"]),
        host: true,
        deny: list(&["2001:db8:5::7", "10.90.0.1:80"]),
        ..Network::default()
    };
    let mut lab = Lab::new(&[("a", Network::default()), ("b", b), ("c", c), ("d", d)]);
    lab.change("c", |world| {
        let b = ["10.90.0.3", "fd12:3456:789a:1::3"].map(address);
        world.names.insert("b".parse().unwrap(), b.into());
    });
    lab
}

#[test]
fn every_cell_of_the_policy_is_as_it_is_told() {
    let lab = neighbours();
    let mut servers = vec![
        ("net", Server::start(&lab.net, "net", &[NET4, NET6].map(address), &PORTS)),
        ("lan", Server::start(&lab.lan, "lan", &[LAN4, LAN6, ROUTED4, ROUTED6].map(address), &PORTS)),
        ("host", Server::start(&lab.host, "host", &[HOST4, HOST6, GATEWAY4, GATEWAY6].map(address), &PORTS)),
    ];
    for (name, inside) in &lab.containers {
        let member = &lab.world.members[name];
        let addresses = [member.address.into(), member.address6.into()];
        servers.push((name.as_str(), Server::start(inside, name.as_str(), &addresses, &PORTS)));
    }

    let mut cells = Vec::new();
    for from in lab.containers.keys() {
        for (who, server) in servers.iter().filter(|(who, _)| *who != from.as_str()) {
            for to in server.places() {
                cells.push((from, *who, *to, Protocol::Tcp));
                cells.push((from, *who, *to, Protocol::Udp));
            }
            for to in server.places().iter().filter(|to| to.port() == PORTS[0]) {
                cells.push((from, *who, *to, Protocol::Icmp));
            }
        }
    }
    let wrong = std::sync::Mutex::new(Vec::new());
    let mut arriving = BTreeSet::new();
    for cells in cells.chunks(64) {
        thread::scope(|scope| {
            for (from, who, to, protocol) in cells {
                let port = (*protocol != Protocol::Icmp).then_some(to.port());
                let answer = evaluate(&lab.world, from, Question { to: to.ip(), protocol: *protocol, port }).unwrap();
                if answer.allowed && *protocol == Protocol::Udp {
                    arriving.insert(format!("{from} {to}"));
                }
                let (lab, wrong) = (&lab, &wrong);
                scope.spawn(move || {
                    if reaches(lab, from.as_str(), *protocol, *to, who, answer.allowed) != answer.allowed {
                        wrong.lock().unwrap().push(format!("{from} -> {who} {to}/{protocol}: not {}", answer.line));
                    }
                });
            }
        });
    }
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {} cells:\n{}", wrong.len(), cells.len(), wrong.join("\n"));
    // What was not answered might still have arrived.
    let arrived: BTreeSet<String> = servers.iter().flat_map(|(_, server)| server.told()).collect();
    assert_eq!(arrived, arriving);
    assert!(cells.len() > 500 && arriving.len() > 50, "the matrix is large enough to mean something");
}

#[test]
fn the_world_does_not_come_in_unasked_and_the_host_always_does() {
    let lab = Lab::new(&[("a", Network::default())]);
    let addresses = [lab.member("a").address.into(), lab.member("a").address6.into()];
    let server = Server::start(lab.inside("a"), "a", &addresses, &[80]);
    // The LAN knows the way, as a neighbour who tries would.
    lab.lan.ip(&format!("route add 10.90.0.0/20 via {HOST4}\nroute add fd12:3456:789a:1::/64 via {HOST6}\n"));
    for to in server.places() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            assert_eq!(ask(&lab.lan, protocol, *to, "lan", SILENCE), None, "{to}/{protocol}");
            assert!(ask(&lab.host, protocol, *to, "host", PATIENCE).is_some(), "{to}/{protocol}");
        }
    }
    assert_eq!(server.told(), ["host".to_string()].into());
}

/// A raw ICMPv6 socket, for messages that a kernel would not send.
fn raw_icmp6(namespace: &Namespace) -> std::os::fd::OwnedFd {
    namespace.run(|| {
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::INET6, SocketType::RAW, flags, Some(ipproto::ICMPV6)).unwrap();
        rustix::net::sockopt::set_ipv6_unicast_hops(&socket, Some(255)).unwrap();
        socket
    })
}

/// Whether a message of that type comes in time, from whatever else comes too.
fn hears(socket: &std::os::fd::OwnedFd, kind: u8, word: &[u8], patience: Duration) -> bool {
    let until = Instant::now() + patience;
    let mut buffer = [0; 256];
    while readable(socket, until.saturating_duration_since(Instant::now())) {
        let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()).unwrap();
        if buffer[0] == kind && buffer[..length].ends_with(word) {
            return true;
        }
    }
    false
}

/// A neighbour advertisement (RFC 4861 section 4.4): "the target is at this hardware address".
fn advertisement(target: &str, mac: [u8; 6]) -> Vec<u8> {
    let IpAddr::V6(target) = address(target) else { unreachable!("an IPv6 address") };
    [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &target.octets(), &[2, 1], &mac].concat()
}

#[test]
fn whoever_calls_himself_what_he_is_not_is_not_heard() {
    // All is allowed that the policy can allow, so that only the port stands in the way.
    let open = || Network { host: true, lan: true, ..Network::default() };
    let lab = Lab::new(&[("a", open()), ("b", open())]);
    let (a, host) = (lab.inside("a"), &lab.host);
    let witness = host.run(|| UdpSocket::bind("0.0.0.0:7000").unwrap());
    let client = host.run(|| UdpSocket::bind("0.0.0.0:68").unwrap());
    let icmp = raw_icmp6(host);
    let from_a = raw_icmp6(a);
    a.run(|| rustix::net::bind(&from_a, &SocketAddr::new(lab.member("a").address6.into(), 0)).unwrap());
    let heard = |socket: &UdpSocket, word: &str, patience: Duration| {
        let mut buffer = [0; 64];
        let until = Instant::now() + patience;
        while readable(socket, until.saturating_duration_since(Instant::now())) {
            let (length, _) = socket.recv_from(&mut buffer).unwrap();
            if &buffer[..length] == word.as_bytes() {
                return true;
            }
        }
        false
    };
    let say = |source: &str, to: &str, word: &str| {
        a.run(|| {
            let socket = UdpSocket::bind(source).unwrap();
            socket.send_to(word.as_bytes(), to).unwrap();
        });
    };
    let gateway = place(GATEWAY6, 0);
    let message = |bytes: &[u8]| a.run(|| rustix::net::sendto(&from_a, bytes, SendFlags::empty(), &gateway).unwrap());
    let neighbour = || host.said(&["ip", "neigh", "show", "10.90.0.3", "dev", "lazaret0"]);
    a.ip("addr add 10.90.0.3/32 dev eth0\naddr add 10.90.9.9/32 dev eth0\naddr add fd12:3456:789a:1::3/128 dev eth0 nodad\n");

    // As it would be if the links did not fix who is where.
    host.ip("neigh del 10.90.0.3 dev lazaret0\nneigh del fd12:3456:789a:1::3 dev lazaret0\n");
    // Each attack is tried without the table first, where it works: the silence afterwards means something.
    for guarded in [false, true] {
        match guarded {
            false => host.run(|| lab.nft.apply("delete table bridge lazaret")).unwrap(),
            true => lab.load(),
        }
        host.ip("neigh flush dev lazaret0\n");
        let patience = if guarded { SILENCE } else { PATIENCE };
        let expect = |heard: bool, attack: &str| assert_eq!(heard, !guarded, "{attack}");

        say("10.90.0.2:0", "10.90.0.1:7000", "honest");
        assert!(heard(&witness, "honest", PATIENCE));
        // A source address that is another's.
        a.ip("neigh flush dev eth0\n");
        say("10.90.0.3:0", "10.90.0.1:7000", "as b");
        expect(heard(&witness, "as b", patience), "an IPv4 source of another container");
        // Of nobody the other table knows, too.
        say("10.90.9.9:0", "10.90.0.1:7000", "as nobody");
        assert!(!heard(&witness, "as nobody", SILENCE));
        // Asking for the gateway as b has told the host where b is.
        expect(neighbour().contains("02:00:00:00:00:02"), "an ARP sender of another container");
        // A server of addresses.
        say("10.90.0.2:67", "10.90.0.1:68", "lease");
        expect(heard(&client, "lease", patience), "an answer of a DHCP server");
        // A router.
        message(b"\x86\0\0\0\x40\0\x07\x08\0\0\0\0\0\0\0\0");
        expect(hears(&icmp, 134, b"", patience), "a router advertisement");
        // A redirect belongs to no connection, so the other table stops it, too.
        message(b"\x89\0\0\0\0\0\0\0REDIRECT");
        assert!(!hears(&icmp, 137, b"REDIRECT", SILENCE));
        // The address of another, by advertisement; one's own is heard.
        message(&advertisement("fd12:3456:789a:1::3", [2, 0, 0, 0, 0, 2]));
        expect(hears(&icmp, 136, &[2, 0, 0, 0, 0, 2], patience), "an advertisement of another's address");
        message(&advertisement("fd12:3456:789a:1::2", [2, 0, 0, 0, 0, 2]));
        assert!(hears(&icmp, 136, &[2, 0, 0, 0, 0, 2], PATIENCE));
        // An IPv6 source of another.
        let socket = a.run(|| UdpSocket::bind("[fd12:3456:789a:1::3]:0").unwrap());
        let witness6 = host.run(|| UdpSocket::bind(place(GATEWAY6, 7001)).unwrap());
        a.run(|| socket.send_to(b"as b", place(GATEWAY6, 7001)).unwrap());
        expect(heard(&witness6, "as b", patience), "an IPv6 source of another container");
    }
    // Another hardware address, with the right addresses behind it.
    say("10.90.0.2:0", "10.90.0.1:7000", "true mac");
    assert!(heard(&witness, "true mac", PATIENCE));
    a.ip("link set eth0 address 02:00:00:00:00:99\n");
    a.run(|| {
        let socket = UdpSocket::bind("10.90.0.2:0").unwrap();
        // The kernel may already say that nobody answers its questions for the gateway.
        let _ = socket.send_to(b"false mac", "10.90.0.1:7000");
    });
    assert!(!heard(&witness, "false mac", SILENCE));
    a.ip("link set eth0 address 02:00:00:00:00:02\nroute replace default via 10.90.0.1\n");
    say("10.90.0.2:0", "10.90.0.1:7000", "true again");
    assert!(heard(&witness, "true again", PATIENCE));
}

#[test]
fn the_loopback_of_the_host_stays_its_own() {
    let lab = Lab::new(&[("a", Network { host: true, lan: true, ..Network::default() })]);
    let secret = Server::start(&lab.host, "host", &[address("127.0.0.1")], &[5432]);
    let a = lab.inside("a");
    // The container routes what is its own loopback to the host, where route_localnet would take it.
    a.sysctl("ipv4/conf/eth0/route_localnet", "1");
    a.ip("route del local 127.0.0.0/8 dev lo table local\nroute del local 127.0.0.1 dev lo table local\nroute add 127.0.0.0/8 via 10.90.0.1\n");
    let to = secret.places()[0];
    assert_eq!(ask(a, Protocol::Udp, to, "attack", SILENCE), None);
    assert!(!secret.is_told("attack", SILENCE));
    lab.host.run(|| lab.nft.apply("flush chain inet lazaret sent")).unwrap();
    ask(a, Protocol::Udp, to, "control", SILENCE);
    assert!(secret.is_told("control", PATIENCE));
}

#[test]
fn a_narrower_policy_cuts_what_is_connected_already() {
    let mut lab = neighbours();
    let _servers = [
        Server::start(&lab.net, "net", &[NET4, NET6].map(address), &[80]),
        Server::start(lab.inside("c"), "c", &[lab.member("c").address.into()], &[80]),
    ];
    let connected = |from: &str, to: SocketAddr| {
        let mut stream = lab.inside(from).run(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(stream.read(&mut [0; 16]).unwrap() > 0);
        stream
    };
    let echoes = |stream: &mut TcpStream, patience: Duration| {
        stream.set_read_timeout(Some(patience)).unwrap();
        stream.write_all(b"still there?").is_ok() && stream.read(&mut [0; 16]).is_ok_and(|length| length > 0)
    };
    let mut streams = [connected("a", place(NET4, 80)), connected("a", place(NET6, 80))];
    let mut peer = connected("b", SocketAddr::new(lab.member("c").address.into(), 80));
    assert!(streams.iter_mut().chain([&mut peer]).all(|stream| echoes(stream, PATIENCE)));
    lab.configure("a", |network| network.internet = false);
    lab.configure("c", |network| network.peers.clear());
    assert!(!streams.iter_mut().chain([&mut peer]).any(|stream| echoes(stream, SILENCE)));
    // A wider policy lets them go on: the lost words are sent again.
    lab.configure("a", |network| network.internet = true);
    streams[0].set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(streams[0].read(&mut [0; 16]).unwrap() > 0);
}

#[test]
fn a_partition_parts_and_heals_and_losses_lose() {
    let mut lab = neighbours();
    let (b, c): (Name, Name) = ("b".parse().unwrap(), "c".parse().unwrap());
    let addresses = [lab.member("c").address.into(), lab.member("c").address6.into()];
    let server = Server::start(lab.inside("c"), "c", &addresses, &[80]);
    let _net = Server::start(&lab.net, "net", &[NET4, NET6].map(address), &[80]);
    let all = |lab: &Lab, expected: bool| {
        for to in server.places() {
            assert_eq!(reaches(lab, "b", Protocol::Udp, *to, "c", expected), expected, "{to}");
        }
        // The rest of the world is not concerned.
        assert!(reaches(lab, "b", Protocol::Udp, place(NET4, 80), "net", true));
        assert!(reaches(lab, "b", Protocol::Udp, place(NET6, 80), "net", true));
    };
    all(&lab, true);
    lab.change("b", |world| world.part(&b, &c));
    all(&lab, false);
    lab.change("c", |world| world.heal(&c));
    all(&lab, true);
    lab.change("c", |world| drop(world.losses.insert(c.clone(), vec![Loss { share: 10_000, to: Some(b.clone()) }])));
    all(&lab, false);
    lab.change("c", |world| world.losses.clear());
    all(&lab, true);
    lab.change("b", |world| drop(world.losses.insert(b.clone(), vec![Loss { share: 10_000, to: None }])));
    assert!(!reaches(&lab, "b", Protocol::Udp, place(NET4, 80), "net", false));
}

#[test]
fn published_ports_lead_inside_from_the_lan_and_from_the_host() {
    let publish = list(&[
        "8080:80",
        "127.0.0.1:8081:81",
        "192.168.1.5:8082:82/udp",
        "[2001:db8:1::5]:8083:83",
        "9000-9001:80-81",
    ]);
    let mut lab = Lab::new(&[
        ("a", Network { publish, ..Network::default() }),
        ("b", Network { host: true, ..Network::default() }),
    ]);
    let addresses = [lab.member("a").address.into(), lab.member("a").address6.into()];
    let _server = Server::start(lab.inside("a"), "a", &addresses, &[80, 81, 82, 83]);
    let answers = |lab: &Lab, from: &Namespace, protocol, to: SocketAddr, expected: bool| {
        let _ = lab;
        let patience = if expected { PATIENCE } else { SILENCE };
        let answer = ask(from, protocol, to, "x", patience);
        assert_eq!(answer.as_deref(), expected.then_some("a"), "{to}/{protocol}");
    };
    use Protocol::{Tcp, Udp};
    for to in [HOST4, HOST6] {
        answers(&lab, &lab.lan, Tcp, place(to, 8080), true);
        answers(&lab, &lab.host, Tcp, place(to, 8080), true);
        answers(&lab, &lab.lan, Tcp, place(to, 9001), true);
        answers(&lab, &lab.lan, Udp, place(to, 8080), false);
    }
    answers(&lab, &lab.lan, Udp, place(HOST4, 8082), true);
    answers(&lab, &lab.lan, Tcp, place(HOST4, 8081), false);
    // The host itself, at its loopback addresses.
    answers(&lab, &lab.host, Tcp, place("127.0.0.1", 8080), true);
    answers(&lab, &lab.host, Tcp, place("127.0.0.1", 8081), true);
    answers(&lab, &lab.host, Udp, place("127.0.0.1", 8082), false);
    answers(&lab, &lab.host, Tcp, place(HOST6, 8083), true);
    answers(&lab, &lab.lan, Tcp, place(HOST6, 8083), true);
    answers(&lab, &lab.lan, Tcp, place(HOST4, 8083), false);
    // Refused at once, so that who tries both addresses of localhost need not wait.
    let begun = Instant::now();
    assert!(lab.host.run(|| TcpStream::connect_timeout(&place("::1", 8080), PATIENCE)).is_err());
    assert!(begun.elapsed() < PATIENCE / 2);
    // Neither is it a way around the wall between containers.
    answers(&lab, lab.inside("b"), Tcp, place(HOST4, 8080), false);
    lab.configure("a", |network| {
        network.publish.remove(0);
    });
    answers(&lab, &lab.lan, Tcp, place(HOST4, 8080), false);
    answers(&lab, &lab.host, Tcp, place("127.0.0.1", 8081), true);
}

#[test]
fn the_lan_is_what_the_host_is_in_at_the_moment() {
    let mut lab =
        Lab::new(&[("a", Network::default()), ("b", Network { lan: true, internet: false, ..Network::default() })]);
    let _server = Server::start(&lab.net, "net", &[NET4, NET6].map(address), &[80]);
    let both = |lab: &Lab, expected: bool| {
        for to in [NET4, NET6] {
            assert_eq!(reaches(lab, "a", Protocol::Tcp, place(to, 80), "net", expected), expected);
            assert_eq!(reaches(lab, "b", Protocol::Tcp, place(to, 80), "net", !expected), !expected);
        }
    };
    both(&lab, true);
    // The laptop moves into a network where these are neighbours.
    let before = lab.world.on_link.clone();
    for prefix in ["198.51.100.0/24", "2001:db8:5::/48"] {
        let prefix = prefix.parse().unwrap();
        lab.world.on_link.push(lazaret_net::policy::OnLink { prefix, interface: None });
    }
    lab.host.run(|| lab.nft.apply(&ruleset::surrounded(&lab.world))).unwrap();
    both(&lab, false);
    lab.world.on_link = before;
    lab.host.run(|| lab.nft.apply(&ruleset::surrounded(&lab.world))).unwrap();
    both(&lab, true);
}

#[test]
fn a_rate_holds_what_is_sent_back() {
    let rate_up = Some("1mbit".parse().unwrap());
    let lab = Lab::new(&[("a", Network { rate_up, ..Network::default() }), ("b", Network::default())]);
    for (from, expected) in [("a", true), ("b", false)] {
        for to in [NET4, NET6] {
            let sink = lab.net.run(|| UdpSocket::bind(place(to, 0)).unwrap());
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&sink, 16 << 20).unwrap();
            let target = sink.local_addr().unwrap();
            lab.inside(from).run(|| {
                let socket = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
                (0..2000).for_each(|_| drop(socket.send_to(&[0; 1000], target)));
            });
            let mut arrived = 0;
            while readable(&sink, SILENCE) {
                arrived += sink.recv(&mut [0; 2000]).unwrap();
            }
            // What may go at once is 256 KiB; the rest of the two megabytes would need 14 seconds.
            assert_eq!(arrived < 1_000_000, expected, "{from}: {arrived} bytes");
        }
    }
}

#[test]
fn the_rules_are_replaced_under_traffic_without_a_gap() {
    let lab = neighbours();
    let server = Server::start(&lab.net, "net", &[NET4, NET6].map(address), &[25, 80]);
    let b = [lab.member("b").address.into(), lab.member("b").address6.into()];
    let forbidden = [
        Server::start(&lab.lan, "lan", &[LAN4, LAN6].map(address), &[80]),
        Server::start(&lab.host, "host", &[HOST4, GATEWAY6].map(address), &[80]),
        Server::start(lab.inside("b"), "b", &b, &[80]),
    ];
    let targets: Vec<SocketAddr> = forbidden.iter().flat_map(Server::places).copied().collect();
    let (done, tries) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        // One who tries what is forbidden, without a pause.
        scope.spawn(|| {
            lab.inside("a").run(|| {
                let v4 = UdpSocket::bind("0.0.0.0:0").unwrap();
                let v6 = UdpSocket::bind("[::]:0").unwrap();
                while !done.load(Ordering::Relaxed) {
                    for to in &targets {
                        // An error tells of an earlier refusal.
                        let _ = if to.is_ipv4() { &v4 } else { &v6 }.send_to(b"forbidden", to);
                    }
                    tries.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        // Others who begin what is allowed, again and again: a lost packet would show as a second's wait.
        for to in [NET4, NET6] {
            let (lab, done) = (&lab, &done);
            scope.spawn(move || {
                lab.inside("b").run(|| {
                    while !done.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        let mut stream = TcpStream::connect_timeout(&place(to, 80), PATIENCE).expect("allowed");
                        assert!(stream.read(&mut [0; 8]).expect("allowed") > 0);
                        assert!(begun.elapsed() < Duration::from_millis(900), "a packet was lost");
                    }
                });
            });
        }
        let replaced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (0..40).for_each(|_| lab.load())));
        done.store(true, Ordering::Relaxed);
        replaced.unwrap();
    });
    assert!(tries.into_inner() > 1000);
    for server in &forbidden {
        assert_eq!(server.told(), BTreeSet::new(), "{:?}", server.places());
    }
    drop(server);
}

#[test]
fn a_sequence_of_changes_ends_where_the_whole_would() {
    let mut lab = Lab::new(&[("a", Network::default())]);
    let words = |lab: &Lab| {
        let text = lab.host.said(&["nft", "-s", "list", "ruleset"]);
        let mut words: Vec<String> = text.split([' ', ',', '\n', '\t']).map(String::from).collect();
        words.sort();
        words.retain(|word| !word.is_empty());
        words
    };
    for (name, number) in [("b.1", 3), ("C_x-9", 4)] {
        let member = planned(name, number, Network::default());
        lab.change(name, |world| drop(world.members.insert(member.name.clone(), member)));
    }
    lab.configure("a", |network| {
        network.peers = list(&["b.1"]);
        network.allow = list(&["192.168.1.20:631/tcp", "nas.local:445", "*:53"]);
        network.deny = list(&["0.0.0.0/0:25/tcp", "::/0/icmp", "10.0.0.0/8", "*/udp"]);
        network.publish = list(&["8080:80", "[2001:db8:1::5]:53:53/udp", "192.168.1.5:1000-1010:1000-1010"]);
        network.rate_up = Some("10mbit".parse().unwrap());
    });
    lab.configure("b.1", |network| network.peers = list(&["a"]));
    lab.configure("a", |network| network.rate_up = Some("1gbit".parse().unwrap()));
    lab.configure("C_x-9", |network| {
        (network.host, network.deny) = (true, list(&["*"]));
        network.rate_up = Some("1kbit".parse().unwrap());
    });
    lab.change("a", |world| {
        let addresses = ["192.168.1.7", "fd00::7"].map(address);
        world.names.insert("nas.local".parse().unwrap(), addresses.into());
    });
    let (a, b): (Name, Name) = ("a".parse().unwrap(), "b.1".parse().unwrap());
    lab.change("a", |world| world.part(&a, &b));
    lab.configure("b.1", |network| (network.host, network.deny) = (true, list(&["10.0.0.0/8"])));
    lab.configure("b.1", |network| network.deny.clear());
    lab.change("a", |world| drop(world.losses.insert(a.clone(), vec![Loss { share: 100, to: None }])));
    lab.change("a", |world| drop(world.losses.remove(&a)));
    lab.change("b.1", |world| drop(world.losses.insert(b.clone(), vec![Loss { share: 50, to: Some(a.clone()) }])));
    lab.configure("a", |network| network.deny.truncate(1));
    let by_steps = words(&lab);
    lab.load();
    assert_eq!(words(&lab), by_steps);
    let text = ruleset::whole(&lab.world);
    lab.host.run(|| lab.nft.check(&text)).unwrap();

    for name in ["b.1", "a", "C_x-9"] {
        let key: Name = name.parse().unwrap();
        lab.change(name, |world| drop(world.members.remove(&key)));
    }
    lab.world.partitions.clear();
    lab.world.losses.clear();
    let by_steps = words(&lab);
    lab.load();
    assert_eq!(words(&lab), by_steps, "nothing is left of anybody");
    lab.host.run(|| lab.nft.apply(&ruleset::gone(&lab.world.site))).unwrap();
    assert_eq!(lab.host.said(&["nft", "list", "ruleset"]), "");
    lab.host.run(|| lab.nft.apply(&ruleset::gone(&lab.world.site))).unwrap();
}

#[test]
fn a_change_of_what_somebody_flushed_is_refused_as_a_whole() {
    let mut lab = Lab::new(&[("a", Network::default())]);
    lab.host.run(|| lab.nft.apply("flush ruleset")).unwrap();
    let name: Name = "a".parse().unwrap();
    let before = ruleset::holdings(&lab.world, &name);
    lab.world.members.get_mut(&name).unwrap().network.lan = true;
    let after = ruleset::holdings(&lab.world, &name);
    let text = ruleset::transition(&lab.world.site, &before, &after).unwrap();
    let e = lab.host.run(|| lab.nft.apply(&text)).unwrap_err();
    assert!(e.to_string().contains("add element inet lazaret lan4"), "{e}");
    lab.load();
}

#[test]
fn a_firewall_that_stops_us_is_found_and_mended() {
    let lab = Lab::new(&[("a", Network::default())]);
    let _server = Server::start(&lab.net, "net", &[NET4, NET6].map(address), &[80]);
    let blockers = || {
        let ruleset = lab.host.run(|| lab.nft.list()).unwrap();
        foreign::blockers(&ruleset, &[], &lab.world.site.bridge).unwrap()
    };
    assert_eq!(blockers(), []);
    // As Docker leaves it, and a workstation's own rules beside.
    let theirs = "
        table ip filter {
            chain DOCKER-USER { }
            chain DOCKER-FORWARD { iifname \"docker0\" accept; }
            chain FORWARD {
                type filter hook forward priority filter; policy drop;
                jump DOCKER-USER
                jump DOCKER-FORWARD
            }
        }
        table inet mine {
            chain forward {
                type filter hook forward priority filter; policy accept;
                ct state vmap { established : accept, related : accept, invalid : drop }
                iifname != { \"lo\", \"wg0\" } meta nfproto ipv6 reject
            }
            chain input {
                type filter hook input priority filter; policy drop;
                iif lo accept
                meta l4proto { icmp, ipv6-icmp } accept
                udp dport { 22, 67 } accept
            }
        }
    ";
    lab.host.run(|| lab.nft.apply(theirs)).unwrap();
    assert!(!reaches(&lab, "a", Protocol::Tcp, place(NET4, 80), "net", false));
    assert!(!reaches(&lab, "a", Protocol::Tcp, place(NET6, 80), "net", false));
    let found = blockers();
    let told: Vec<_> = found.iter().map(|blocker| format!("{:?} {:?}", blocker.software, blocker.stops)).collect();
    assert_eq!(told, ["Nftables [Outgoing]", "Nftables [Names, Addresses]", "Docker [Outgoing, Answers]"]);
    for line in found.iter().flat_map(|blocker| &blocker.mend) {
        match line.strip_prefix("nft ") {
            Some(command) => lab.host.run(|| lab.nft.apply(command)).unwrap(),
            None => {
                assert!(line.starts_with("iptables -I DOCKER-USER "), "{line}");
                let flag = if line.contains(" -i ") { "iifname" } else { "oifname" };
                let rule = format!("insert rule ip filter DOCKER-USER {flag} lazaret0 accept");
                lab.host.run(|| lab.nft.apply(&rule)).unwrap();
            }
        }
    }
    assert_eq!(blockers(), []);
    assert!(reaches(&lab, "a", Protocol::Tcp, place(NET4, 80), "net", true));
    assert!(reaches(&lab, "a", Protocol::Tcp, place(NET6, 80), "net", true));
}
