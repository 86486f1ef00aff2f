//! The living process: confined, asked by containers over a bridge, asking upstream, flooded.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Message, MessageType};
use dhcproto::{Decodable, Encodable};
use hickory_proto::rr::RecordType;
use lazaret_net::responder::{Host, Order, Report};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};

use crate::view::{GATEWAY6, host, ip, question, render, view};
use crate::world::{Container, GATEWAY, PATIENCE, World, ask_tcp, ask_udp, read_tcp};

#[test]
fn the_responder_has_no_right_at_all() {
    let world = World::new(view().hosts);
    assert_eq!(world.status("Uid"), "65534 65534 65534 65534");
    assert_eq!(world.status("Gid"), "65534 65534 65534 65534");
    assert_eq!(world.status("Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(world.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(world.status("NoNewPrivs"), "1");
    assert_eq!(world.status("Threads"), "1");
    let root = std::fs::read_link(format!("/proc/{}/root", world.responder.id())).unwrap();
    assert_ne!(root, std::path::Path::new("/"));
}

#[test]
fn containers_are_answered_by_their_own_view_and_the_host_by_all() {
    let hosts = view().hosts;
    let world = World::new(hosts.clone());
    let (web, db) = (Container::new(&hosts[0], true), Container::new(&hosts[1], true));
    assert_eq!(web.ask("db.lazaret."), "NoError aa; db.lazaret. 5 A 10.90.0.3");
    assert_eq!(db.ask("web.lazaret."), "NXDomain aa; SOA lazaret.");
    let by_v6 = web.run(|| render(&ask_udp(GATEWAY6.into(), "db.", None)));
    assert_eq!(by_v6, "NoError aa; db. 5 A 10.90.0.3");
    for server in [IpAddr::V4(GATEWAY), GATEWAY6.into()] {
        assert_eq!(render(&ask_udp(server, "web.lazaret.", None)), "NoError aa; web.lazaret. 5 A 10.90.0.2");
        let by_tcp = ask_tcp(&mut TcpStream::connect((server, 53)).unwrap(), "web.lazaret.");
        assert_eq!(render(&by_tcp), "NoError aa; web.lazaret. 5 A 10.90.0.2");
    }
    drop(world);
}

#[test]
fn who_was_attached_is_known_at_once_and_who_was_detached_is_not() {
    let hosts = view().hosts;
    let mut world = World::new(hosts[..1].to_vec());
    let web = Container::new(&hosts[0], true);
    for _ in 0..50 {
        world.line.send(&Order::Host(hosts[1].clone())).unwrap();
        assert_eq!(web.ask("db.lazaret."), "NoError aa; db.lazaret. 5 A 10.90.0.3");
        world.line.send(&Order::Gone("db".into())).unwrap();
        assert_eq!(web.ask("db.lazaret."), "NXDomain aa; SOA lazaret.");
    }
}

#[test]
fn other_names_are_asked_for_at_whichever_server_knows() {
    let hosts = view().hosts;
    let mut world = World::new(hosts.clone());
    let web = Container::new(&hosts[0], true);
    let known = |name: &str| format!("NoError; {name} 60 A 93.184.216.34");
    for name in ["www.example.", "half.example.", "fail.example.", "noedns.example."] {
        assert_eq!(web.ask(name), known(name));
    }
    // Into the LAN: not by any name, by the one that the policy allows, and netd hears of that one.
    assert_eq!(web.ask("nas.example."), "NoError");
    assert_eq!(web.ask("nas.home."), "NoError; nas.home. 60 A 192.168.1.9");
    let heard = Report::Resolved { name: "nas.home".into(), addresses: vec![ip("192.168.1.9")], seconds: 60 };
    assert_eq!(world.report(), heard);
    world.line.send(&Order::Resolve("nas.elsewhere".into())).unwrap();
    let Report::Resolved { name, addresses, .. } = world.report() else { panic!("no answer to netd") };
    assert_eq!((name.as_str(), addresses), ("nas.elsewhere", vec![ip("192.168.1.9")]));
}

#[test]
fn what_is_too_long_for_udp_is_had_by_tcp_on_both_sides() {
    let hosts = view().hosts;
    let _world = World::new(hosts.clone());
    let web = Container::new(&hosts[0], true);
    assert_eq!(web.ask("big.example."), "NoError tc");
    let whole = web.run(|| {
        let mut stream = TcpStream::connect((GATEWAY, 53)).unwrap();
        ask_tcp(&mut stream, "web.");
        ask_tcp(&mut stream, "big.example.").answers.len()
    });
    assert_eq!(whole, 200);
}

#[test]
fn a_successor_answers_what_its_predecessor_left() {
    let hosts = view().hosts;
    let mut world = World::new(hosts.clone());
    let web = Container::new(&hosts[0], true);
    world.responder.kill().unwrap();
    world.responder.wait().unwrap();
    let waiting = web.begin(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(&question("web.", RecordType::A).to_vec().unwrap(), (GATEWAY, 53)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.recv(&mut [0; 512]).is_ok()
    });
    world.restart();
    assert!(waiting.recv().unwrap());
}

/// Sends what no honest client sends until told to stop: garbage, questions that nobody answers, idle connections.
fn flood(until: Instant) -> usize {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect((GATEWAY, 53)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut connections = Vec::new();
    let mut sent = 0;
    while Instant::now() < until {
        let lost = question(&format!("lost{sent}.example."), RecordType::A).to_vec().unwrap();
        for packet in [&lost[..], &lost[..sent % lost.len()], &[0xc0; 1400][..]] {
            sent += usize::from(socket.send(packet).is_ok());
        }
        if sent % 64 == 0 && connections.len() < 400 {
            connections.extend(TcpStream::connect_timeout(&(GATEWAY, 53).into(), Duration::from_millis(100)));
        }
    }
    sent
}

#[test]
fn a_flood_from_one_container_neither_stops_nor_bloats_the_others_service() {
    let hosts = view().hosts;
    let world = World::new(hosts.clone());
    let (web, bad) = (Container::new(&hosts[0], true), Container::new(&hosts[3], true));
    let before = world.memory();
    let until = Instant::now() + Duration::from_secs(4);
    let flooding = bad.begin(move || flood(until));
    let mut served = 0;
    while Instant::now() < until {
        assert_eq!(web.ask("db.lazaret."), "NoError aa; db.lazaret. 5 A 10.90.0.3");
        // Remembered, and older every second.
        let remembered = web.ask("www.example.");
        assert!(remembered.starts_with("NoError; www.example. "), "{remembered}");
        assert_eq!(
            web.run(|| render(&ask_tcp(&mut TcpStream::connect((GATEWAY, 53)).unwrap(), "web."))),
            "NoError aa; web. 5 A 10.90.0.2"
        );
        served += 1;
    }
    let sent = flooding.recv().unwrap();
    let after = world.memory();
    assert!(sent > 10_000 && served > 3, "{sent} hostile packets, {served} rounds served");
    assert!(after < before + 8192, "{before} KiB before, {after} KiB after {sent} packets");
}

#[test]
fn a_client_that_never_reads_is_given_up() {
    let hosts = view().hosts;
    let world = World::new(hosts.clone());
    let (web, bad) = (Container::new(&hosts[0], true), Container::new(&hosts[3], true));
    web.ask("big.example.");
    let before = world.memory();
    bad.run(|| {
        use std::io::Write;
        let packet = question("big.example.", RecordType::A).to_vec().unwrap();
        let framed = [&(packet.len() as u16).to_be_bytes()[..], &packet].concat().repeat(100);
        let mut stream = TcpStream::connect((GATEWAY, 53)).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        // Until it hangs up, or takes no more.
        for _ in 0..2000 {
            if stream.write_all(&framed).is_err() {
                break;
            }
        }
    });
    assert_eq!(web.ask("db."), "NoError aa; db. 5 A 10.90.0.3");
    assert!(world.memory() < before + 4096);
}

#[test]
fn many_questions_on_one_connection_are_all_answered() {
    let hosts = view().hosts;
    let _world = World::new(hosts.clone());
    let web = Container::new(&hosts[0], true);
    let answers = web.run(|| {
        use std::io::Write;
        let mut stream = TcpStream::connect((GATEWAY, 53)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let packet = question("db.", RecordType::A).to_vec().unwrap();
        let framed = [&(packet.len() as u16).to_be_bytes()[..], &packet].concat();
        stream.write_all(&framed.repeat(500)).unwrap();
        (0..500).filter(|_| read_tcp(&mut stream).answers.len() == 1).count()
    });
    assert_eq!(answers, 500);
}

/// Asks for many leases at once, each for a station of its own, and returns what each was acknowledged. Asks again as
/// clients do: the kernel drops packets where all that goes through its queues, of other tests too, is too much.
fn lease_all(stations: Vec<[u8; 6]>) -> HashMap<[u8; 6], Vec<Ipv4Addr>> {
    // 0x0800, in network order: IP packets for whatever station.
    let ip_packets = Protocol::from_raw(0x0008_u32.try_into().unwrap());
    let ears = socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(ip_packets)).unwrap();
    rustix::net::sockopt::set_socket_timeout(&ears, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE / 10)).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&ears, 4 << 20).unwrap();
    let mouth = UdpSocket::bind("0.0.0.0:68").unwrap();
    mouth.set_broadcast(true).unwrap();
    let say = |station: [u8; 6], kind, wanted: Option<Ipv4Addr>| {
        let mut message = Message::default();
        message.set_chaddr(&station);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        if let Some(wanted) = wanted {
            message.opts_mut().insert(DhcpOption::RequestedIpAddress(wanted));
            message.opts_mut().insert(DhcpOption::ServerIdentifier(GATEWAY));
        }
        mouth.send_to(&message.to_vec().unwrap(), "255.255.255.255:67").unwrap();
    };
    stations.iter().for_each(|&station| say(station, MessageType::Discover, None));
    let mut leases: HashMap<[u8; 6], Vec<Ipv4Addr>> = HashMap::new();
    let mut packet = [0; 2048];
    let mut silences = 0;
    while leases.len() < stations.len() {
        let Ok((length, _)) = rustix::net::recv(&ears, &mut packet[..], rustix::net::RecvFlags::empty()) else {
            silences += 1;
            assert!(silences < 10, "{} of {} have an answer", leases.len(), stations.len());
            let unheard = stations.iter().filter(|station| !leases.contains_key(*station));
            unheard.for_each(|&station| say(station, MessageType::Discover, None));
            continue;
        };
        if length < 28 || packet[20..24] != [0, 67, 0, 68] {
            continue;
        }
        let message = Message::from_bytes(&packet[28..length]).unwrap();
        let station: [u8; 6] = message.chaddr().try_into().unwrap();
        match message.opts().msg_type() {
            Some(MessageType::Offer) => say(station, MessageType::Request, Some(message.yiaddr())),
            Some(MessageType::Ack) => leases.entry(station).or_default().push(message.yiaddr()),
            other => panic!("{other:?}"),
        }
    }
    leases
}

#[test]
fn two_hundred_leases_at_once_are_neither_lost_nor_given_twice() {
    let hosts: Vec<Host> = (2..=201).map(|i| host(&format!("c{i}"), i)).collect();
    let _world = World::new(hosts.clone());
    let asker = Container::new(&hosts[0], false);
    let stations: Vec<[u8; 6]> = hosts.iter().map(|host| host.mac).collect();
    let leases = asker.run(move || lease_all_with_a_route(stations));
    assert_eq!(leases.len(), 200);
    for host in hosts {
        let given = &leases[&host.mac];
        assert!(given.iter().all(|address| *address == host.address4.unwrap()), "{}: {given:?}", host.name);
    }
}

/// Broadcasts need a route to leave by.
fn lease_all_with_a_route(stations: Vec<[u8; 6]>) -> HashMap<[u8; 6], Vec<Ipv4Addr>> {
    crate::world::ip("route add default dev eth0");
    lease_all(stations)
}

#[test]
fn udhcpc_gets_its_address() {
    let hosts = view().hosts;
    let _world = World::new(hosts.clone());
    let web = Container::new(&hosts[0], false);
    let said = web.run(|| {
        let script = std::env::temp_dir().join(format!("lazaret-udhcpc-{}", std::process::id()));
        let body =
            "#!/bin/sh\n[ \"$1\" = bound ] && echo \"$ip/$mask $router $dns $hostname $domain $mtu $lease\"\nexit 0\n";
        std::fs::write(&script, body).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut udhcpc = Command::new("busybox");
        udhcpc.args(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-O", "mtu", "-s"]).arg(&script);
        let output = udhcpc.output().unwrap();
        std::fs::remove_file(&script).unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    assert_eq!(said.trim(), "10.90.0.2/20 10.90.0.1 10.90.0.1 web lazaret 1420 3600");
}

#[test]
fn a_kernel_that_listens_to_routers_finds_its_way() {
    let hosts = view().hosts;
    let _world = World::new(hosts.clone());
    let web = Container::new(&hosts[0], false);
    let routes = web.run(|| {
        // Printed as they come; the kernel has solicited when its link-local address was ready.
        let mut monitor =
            Command::new("ip").args(["-6", "monitor", "route"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        crate::world::ip("link set eth0 down");
        crate::world::ip("link set eth0 up");
        let lines = std::io::BufRead::lines(std::io::BufReader::new(monitor.stdout.take().unwrap()));
        let default = lines.map_while(Result::ok).find(|line| line.starts_with("default"));
        monitor.kill().unwrap();
        monitor.wait().unwrap();
        let addresses =
            Command::new("ip").args(["-6", "addr", "show", "dev", "eth0", "scope", "global"]).output().unwrap();
        (default.unwrap(), String::from_utf8(addresses.stdout).unwrap())
    });
    assert!(routes.0.contains("via fe80::1 dev eth0 proto ra"), "{}", routes.0);
    assert_eq!(routes.1, "", "no address of its own making");
}
