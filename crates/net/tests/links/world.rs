//! A host and containers, each a network namespace; all traffic stays inside them. Needs root.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use lazaret_config::{Mac, Prefix};
use lazaret_net::link::{self, BridgeSpec, Inside, Neighbour, PortKind, PortSpec, Route};
use lazaret_net::netlink::{Socket, inside};
use lazaret_net::subnet::{self, HostAddress};
use lazaret_sys::process::{namespace, unshare};

/// The bridge of every test.
pub const BRIDGE: &str = "lazaret0";

/// A network namespace of the test's own.
pub struct Namespace(pub OwnedFd);

impl Namespace {
    /// A new one, with nothing in it but a loopback that is down.
    pub fn new() -> Namespace {
        let made = thread::spawn(|| {
            unshare(namespace::NET).expect("network namespaces need root");
            std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
        });
        Namespace(made.join().unwrap())
    }

    /// Acts inside.
    pub fn act<T>(&self, act: impl FnOnce() -> T) -> T {
        inside(self.0.as_fd(), act).unwrap()
    }

    /// A command inside, which must succeed; what it says.
    pub fn run(&self, command: &str) -> String {
        self.act(|| run(command))
    }

    /// A UDP socket inside that gives up soon.
    pub fn udp(&self, address: IpAddr) -> UdpSocket {
        self.act(|| udp(address))
    }
}

/// Makes the calling thread the host: a namespace with a loopback.
pub fn host() -> Socket {
    unshare(namespace::NET).expect("network namespaces need root");
    let mut socket = Socket::route().unwrap();
    run("ip link set lo up");
    assert!(link::links(&mut socket).unwrap().iter().all(|link| link.name == "lo" || link.kind.is_some()));
    socket
}

/// Runs a command of a peer's in the calling thread's namespace.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Loads rules of the firewall in the calling thread's namespace.
pub fn nft(rules: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// The ULA prefix of every test.
pub fn prefix6() -> Prefix {
    subnet::unique_local([1, 2, 3, 4, 5])
}

/// The subnet of every test.
pub fn prefix4() -> Prefix {
    "10.90.0.0/20".parse().unwrap()
}

/// The bridge as an installation has it.
pub fn bridge() -> BridgeSpec {
    BridgeSpec {
        name: BRIDGE.to_owned(),
        mac: subnet::host_mac("bridge"),
        mtu: 1500,
        addresses: vec![
            HostAddress { ip: subnet::gateway(prefix4()), length: prefix4().length() },
            HostAddress { ip: subnet::gateway(prefix6()), length: 64 },
            HostAddress { ip: "fe80::1".parse().unwrap(), length: 64 },
        ],
        label: "lazaret".to_owned(),
    }
}

/// The addresses of a container.
pub fn addresses(name: &str) -> (IpAddr, IpAddr) {
    let v4 = subnet::address4(name, prefix4(), |_| false).unwrap();
    (v4.into(), subnet::address6(name, prefix6()).into())
}

/// The container's end, as an installation has it.
pub fn eth0(name: &str) -> Inside {
    let (v4, v6) = addresses(name);
    Inside {
        name: "eth0".to_owned(),
        mtu: None,
        addresses: vec![HostAddress { ip: v4, length: 20 }, HostAddress::alone(v6)],
        routes: vec![Route::default_via(subnet::gateway(prefix4())), Route::default_via("fe80::1".parse().unwrap())],
        neighbours: [subnet::gateway(prefix4()), subnet::gateway(prefix6()), "fe80::1".parse().unwrap()]
            .map(|address| Neighbour { address, mac: bridge().mac })
            .to_vec(),
    }
}

/// A container's port, as an installation has it.
pub fn port(name: &str) -> PortSpec {
    PortSpec {
        name: subnet::veth_name(name),
        bridge: BRIDGE.to_owned(),
        mac: subnet::mac(name),
        kind: PortKind::Isolated { host_mac: subnet::host_mac(name) },
        inside: eth0(name),
        label: format!("lazaret {name}"),
    }
}

/// A container that is attached.
pub fn attached(socket: &mut Socket, spec: &PortSpec) -> Namespace {
    let namespace = Namespace::new();
    link::attach(socket, spec, namespace.0.as_fd()).unwrap();
    namespace
}

/// A UDP socket that gives up soon.
pub fn udp(address: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket
}

/// Whether one of two datagrams arrives.
pub fn arrives(from: &UdpSocket, to: &UdpSocket) -> bool {
    tries(from, to, 2)
}

/// Waits until a datagram arrives that must arrive, however busy the machine is.
pub fn reaches(from: &UdpSocket, to: &UdpSocket) -> bool {
    tries(from, to, 50)
}

fn tries(from: &UdpSocket, to: &UdpSocket, count: usize) -> bool {
    let address = to.local_addr().unwrap();
    let mut buffer = [0; 16];
    (0..count).any(|_| {
        // Refused where the sender knows no way: it didn't arrive then.
        let _ = from.send_to(b"hello", address);
        to.recv_from(&mut buffer).is_ok_and(|(length, sender)| length == 5 && sender == from.local_addr().unwrap())
    })
}

/// A conversation over TCP: it must come about at once.
pub fn converse(listener: TcpListener, connect: impl FnOnce(SocketAddr) -> std::io::Result<TcpStream>) {
    let mut caller = connect(listener.local_addr().unwrap()).unwrap();
    let (mut called, _) = listener.accept().unwrap();
    caller.write_all(b"ping").unwrap();
    let mut said = [0; 4];
    called.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"ping");
}

/// A neighbour, as `ip neigh` adds it.
pub fn neighbour(address: IpAddr, mac: Mac, device: &str) -> String {
    format!("ip neigh replace {address} lladdr {mac} dev {device} nud permanent")
}
