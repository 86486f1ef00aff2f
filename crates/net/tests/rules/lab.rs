//! A world of network namespaces: a host with two uplinks, a LAN, an Internet, and containers on the host's bridge.
//!
//! ```text
//!   a b c d ──── lazaret0 [host] ── up0 ── [lan]  192.168.1.20, and 10.77.0.9 behind it
//!                                └─ up1 ── [net]  198.51.100.7, 2001:db8:5::7
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lazaret_config::{Mac, Name, Network, Protocol};
use lazaret_net::nft::Nft;
use lazaret_net::policy::{Member, OnLink, Site, TableName, World};
use lazaret_net::ruleset::{self, Holdings};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

const NEW_NET: u64 = 0x4000_0000;

/// How long a packet that must not arrive is waited for; what must arrive is waited for much longer.
pub const SILENCE: Duration = Duration::from_millis(250);
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace that lives as long as the value.
pub struct Namespace {
    file: OwnedFd,
}

impl Namespace {
    pub fn new() -> Namespace {
        let made = thread::spawn(|| {
            lazaret_sys::process::unshare(NEW_NET).expect("root makes network namespaces");
            fs::File::open("/proc/thread-self/ns/net").unwrap().into()
        });
        let namespace = Namespace { file: made.join().unwrap() };
        namespace.run(|| {
            // Duplicate address detection would only delay the tests; ping sockets need no privilege then.
            for (name, value) in [
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv4/ping_group_range", "0 2147483647"),
            ] {
                fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
            }
        });
        namespace.ip("link set lo up");
        namespace
    }

    /// Does something inside. Sockets that it makes stay there; processes that it starts are there.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                lazaret_sys::process::join(self.file.as_fd(), NEW_NET).expect("the namespace is open");
                act()
            });
            inside.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
        })
    }

    /// Commands of ip(8), one per line.
    pub fn ip(&self, commands: &str) {
        let mut ip = self.run(|| {
            Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip(8) builds the world")
        });
        ip.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        assert!(ip.wait().unwrap().success(), "ip: {commands}");
    }

    /// What a command prints; it must succeed.
    pub fn said(&self, command: &[&str]) -> String {
        let output = self.run(|| Command::new(command[0]).args(&command[1..]).output().unwrap());
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn sysctl(&self, name: &str, value: &str) {
        self.run(|| fs::write(format!("/proc/sys/net/{name}"), value).unwrap());
    }

    /// The path by which ip(8) finds it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// The world, and what is believed of it.
pub struct Lab {
    pub host: Namespace,
    pub lan: Namespace,
    pub net: Namespace,
    pub containers: BTreeMap<Name, Namespace>,
    pub world: World,
    pub nft: Nft,
}

pub const LAN4: &str = "192.168.1.20";
pub const LAN6: &str = "2001:db8:1::20";
pub const ROUTED4: &str = "10.77.0.9";
pub const ROUTED6: &str = "fd77::9";
pub const NET4: &str = "198.51.100.7";
pub const NET6: &str = "2001:db8:5::7";
pub const HOST4: &str = "192.168.1.5";
pub const HOST6: &str = "2001:db8:1::5";
pub const GATEWAY4: &str = "10.90.0.1";
pub const GATEWAY6: &str = "fd12:3456:789a:1::1";

impl Lab {
    /// The world with these containers, and our rules in force.
    pub fn new(containers: &[(&str, Network)]) -> Lab {
        let (host, lan, net) = (Namespace::new(), Namespace::new(), Namespace::new());
        host.ip(&format!(
            "\
link add up0 type veth peer name eth0 netns {lan}
link add up1 type veth peer name eth0 netns {net}
link add lazaret0 type bridge mcast_snooping 0
addr add {HOST4}/24 dev up0
addr add {HOST6}/64 dev up0 nodad
addr add 203.0.113.2/30 dev up1
addr add 2001:db8:ffff::2/64 dev up1 nodad
addr add {GATEWAY4}/20 dev lazaret0
addr add {GATEWAY6}/64 dev lazaret0 nodad
addr add fe80::1/64 dev lazaret0 nodad
link set up0 up
link set up1 up
link set lazaret0 up
route add default via 203.0.113.1
route add default via 2001:db8:ffff::1
route add {ROUTED4}/32 via {LAN4}
route add {ROUTED6}/128 via {LAN6}
",
            lan = lan.path(),
            net = net.path()
        ));
        for (name, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/lazaret0/proxy_arp_pvlan", "1"),
            ("ipv4/conf/lazaret0/route_localnet", "1"),
            ("ipv4/conf/lazaret0/send_redirects", "0"),
        ] {
            host.sysctl(name, value);
        }
        lan.ip(&format!(
            "\
link set eth0 up
addr add {LAN4}/24 dev eth0
addr add {LAN6}/64 dev eth0 nodad
addr add {ROUTED4}/32 dev lo
addr add {ROUTED6}/128 dev lo nodad
"
        ));
        net.ip(&format!(
            "\
link set eth0 up
addr add 203.0.113.1/30 dev eth0
addr add 2001:db8:ffff::1/64 dev eth0 nodad
addr add {NET4}/32 dev lo
addr add {NET6}/128 dev lo nodad
"
        ));
        let mut lab = Lab { host, lan, net, containers: BTreeMap::new(), world: empty(), nft: Nft::find().unwrap() };
        for (number, (name, network)) in (2..).zip(containers) {
            let member = planned(name, number, network.clone());
            lab.connect(&member);
            lab.world.members.insert(member.name.clone(), member);
        }
        lab.load();
        lab
    }

    /// The container's namespace and link, without any rules for it.
    pub fn connect(&mut self, member: &Member) {
        let inside = Namespace::new();
        let Member { name, port, mac, address, address6, .. } = member;
        self.host.ip(&format!(
            "\
link add {port} type veth peer name eth0 address {mac} netns {}
link set {port} master lazaret0
link set {port} type bridge_slave isolated on
link set {port} up
neigh replace {address} lladdr {mac} dev lazaret0 nud permanent
neigh replace {address6} lladdr {mac} dev lazaret0 nud permanent
",
            inside.path()
        ));
        inside.ip(&format!(
            "\
link set eth0 up
addr add {address}/20 dev eth0
addr add {address6}/128 dev eth0 nodad
route add default via {GATEWAY4}
route add default via fe80::1 dev eth0
"
        ));
        self.containers.insert(name.clone(), inside);
    }

    /// Both tables, anew.
    pub fn load(&self) {
        let text = ruleset::whole(&self.world);
        self.host.run(|| self.nft.apply(&text)).unwrap_or_else(|e| panic!("{e}\n{text}"));
    }

    /// Changes what concerns one container, in one transaction.
    pub fn change(&mut self, name: &str, change: impl FnOnce(&mut World)) {
        let name = name.parse().unwrap();
        let before: Holdings = ruleset::holdings(&self.world, &name);
        change(&mut self.world);
        let after = ruleset::holdings(&self.world, &name);
        let text = ruleset::transition(&self.world.site, &before, &after).expect("something changes");
        self.host.run(|| self.nft.apply(&text)).unwrap_or_else(|e| panic!("{e}\n{text}"));
    }

    pub fn configure(&mut self, name: &str, change: impl FnOnce(&mut Network)) {
        let key: Name = name.parse().unwrap();
        self.change(name, |world| change(&mut world.members.get_mut(&key).unwrap().network));
    }

    pub fn inside(&self, name: &str) -> &Namespace {
        &self.containers[name]
    }

    pub fn member(&self, name: &str) -> &Member {
        &self.world.members[name]
    }
}

/// The network before anybody is attached.
fn empty() -> World {
    let on_link = |prefix: &str, interface: &str| OnLink {
        prefix: prefix.parse().unwrap(),
        interface: Some(interface.parse().unwrap()),
    };
    World {
        unrouted: Default::default(),
        site: Site {
            table: TableName::new("lazaret").unwrap(),
            bridge: "lazaret0".parse().unwrap(),
            subnet: "10.90.0.0/20".parse().unwrap(),
            gateway: GATEWAY4.parse().unwrap(),
            subnet6: "fd12:3456:789a:1::/64".parse().unwrap(),
            gateway6: GATEWAY6.parse().unwrap(),
            translate6: true,
        },
        on_link: vec![
            on_link("192.168.1.0/24", "up0"),
            on_link("2001:db8:1::/64", "up0"),
            on_link("203.0.113.0/30", "up1"),
            on_link("2001:db8:ffff::/64", "up1"),
        ],
        host_addresses: [HOST4, HOST6, "203.0.113.2", "2001:db8:ffff::2"].map(|text| text.parse().unwrap()).into(),
        names: BTreeMap::new(),
        members: BTreeMap::new(),
        partitions: BTreeSet::new(),
        losses: BTreeMap::new(),
    }
}

/// A container whose addresses end in a number.
pub fn planned(name: &str, number: u8, network: Network) -> Member {
    Member {
        name: name.parse().unwrap(),
        port: format!("lz-{number:012x}").parse().unwrap(),
        mac: Mac::new([2, 0, 0, 0, 0, number]).unwrap(),
        address: format!("10.90.0.{number}").parse().unwrap(),
        address6: Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, number.into()),
        network,
    }
}

/// Answers on TCP and UDP ports of some addresses until it is dropped, and remembers what it was told over UDP.
pub struct Server {
    told: Arc<(Mutex<BTreeSet<String>>, Condvar)>,
    stop: Vec<SocketAddr>,
}

impl Server {
    /// Says its name to whoever connects, then echoes; answers datagrams with its name.
    pub fn start(namespace: &Namespace, name: &str, addresses: &[IpAddr], ports: &[u16]) -> Server {
        let told = Arc::new((Mutex::new(BTreeSet::new()), Condvar::new()));
        let mut stop = Vec::new();
        for place in addresses.iter().flat_map(|address| ports.iter().map(|port| SocketAddr::new(*address, *port))) {
            let (listener, socket) = namespace.run(|| {
                let listener = TcpListener::bind(place).unwrap_or_else(|e| panic!("{place}: {e}"));
                (listener, UdpSocket::bind(place).unwrap())
            });
            stop.push(place);
            let greeting = name.to_string();
            // These end with the process: a blocked accept is the cheapest server there is.
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let greeting = greeting.clone();
                    thread::spawn(move || echo(stream, &greeting));
                }
            });
            let (told, answer) = (told.clone(), name.to_string());
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    told.0.lock().unwrap().insert(String::from_utf8_lossy(&buffer[..length]).into_owned());
                    told.1.notify_all();
                    let _ = socket.send_to(answer.as_bytes(), from);
                }
            });
        }
        Server { told, stop }
    }

    /// The words of all datagrams that have arrived.
    pub fn told(&self) -> BTreeSet<String> {
        self.told.0.lock().unwrap().clone()
    }

    /// Whether a datagram with this word has arrived, or does in time.
    pub fn is_told(&self, word: &str, patience: Duration) -> bool {
        let (told, news) = &*self.told;
        let waiting = |told: &mut BTreeSet<String>| !told.contains(word);
        let (told, _) = news.wait_timeout_while(told.lock().unwrap(), patience, waiting).unwrap();
        told.contains(word)
    }

    pub fn places(&self) -> &[SocketAddr] {
        &self.stop
    }
}

fn echo(mut stream: TcpStream, greeting: &str) {
    let mut buffer = [0; 4096];
    let mut length = greeting.len();
    buffer[..length].copy_from_slice(greeting.as_bytes());
    while length > 0 && stream.write_all(&buffer[..length]).is_ok() {
        length = stream.read(&mut buffer).unwrap_or_default();
    }
}

/// Who answers, if anybody does in time. `word` is what a datagram carries.
pub fn ask(from: &Namespace, protocol: Protocol, to: SocketAddr, word: &str, patience: Duration) -> Option<String> {
    from.run(|| match protocol {
        Protocol::Tcp => greeted(to, patience),
        Protocol::Udp => answered(to, word, patience),
        Protocol::Icmp => pinged(to.ip(), patience).then(|| "ping".to_string()),
    })
}

fn greeted(to: SocketAddr, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut buffer = [0; 64];
    let length = stream.read(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn answered(to: SocketAddr, word: &str, patience: Duration) -> Option<String> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(to).ok()?;
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send(word.as_bytes()).ok()?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// An echo request and its reply, over the kernel's ping sockets (icmp(7), net/ipv4/ping.c).
fn pinged(to: IpAddr, patience: Duration) -> bool {
    let (family, protocol, request) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let socket =
        rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(protocol)).expect("ping socket");
    rustix::net::connect(&socket, &SocketAddr::new(to, 0)).is_ok()
        && rustix::net::send(&socket, &[request, 0, 0, 0, 0, 0, 0, 1], SendFlags::empty()).is_ok()
        && readable(&socket, patience)
        && rustix::net::recv(&socket, &mut [0; 64][..], RecvFlags::empty()).is_ok()
}

/// Whether something comes in time.
pub fn readable(socket: impl AsFd, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("poll: {e}"),
        }
    }
}
