//! A host with a bridge, a confined responder and containers, each in a network namespace of its own. Needs root.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use lazaret_base::Kind;
use lazaret_net::responder::{Host, Line, Order, Report, Sockets, View};
use rustix::event::{PollFd, PollFlags, poll};

use crate::view::{GATEWAY6, question, render, settings, with_edns};

pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 10);

/// Longer than anything here takes; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct World {
    pub line: Line,
    pub responder: Child,
    sockets: Sockets,
    view: View,
}

impl World {
    /// Leaves the thread's network for a new one that has a bridge, two upstream servers and a running responder.
    pub fn new(hosts: Vec<Host>) -> World {
        leave_network();
        ip("link add br0 type bridge mcast_snooping 0");
        ip("link set br0 addrgenmode none");
        ip("link set br0 up");
        ip("addr add 10.90.0.1/20 dev br0");
        ip(&format!("addr add {GATEWAY6}/64 dev br0 nodad"));
        ip("addr add fe80::1/64 dev br0 nodad");
        serve_upstream(FIRST);
        serve_upstream(SECOND);
        let upstreams = [FIRST, SECOND].map(|server| SocketAddr::new(server.into(), 53)).into();
        let view = View { settings: lazaret_net::responder::Settings { upstreams, ..settings() }, hosts };
        let sockets = Sockets::open("br0", GATEWAY, Some(GATEWAY6)).unwrap();
        let (line, responder) = start(&sockets, &view);
        World { line, responder, sockets, view }
    }

    /// Puts another responder onto the same sockets.
    pub fn restart(&mut self) {
        (self.line, self.responder) = start(&self.sockets, &self.view);
    }

    /// Waits for a report.
    pub fn report(&mut self) -> Report {
        loop {
            if let Some(report) = self.line.reports().unwrap().pop() {
                return report;
            }
            poll(&mut [PollFd::new(&self.line, PollFlags::IN)], None).unwrap();
        }
    }

    /// A line of the responder's /proc/PID/status, without its name.
    pub fn status(&self, field: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.responder.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap().trim().replace('\t', " ")
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> usize {
        self.status("VmRSS").split(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.responder.kill();
        let _ = self.responder.wait();
    }
}

fn start(sockets: &Sockets, view: &View) -> (Line, Child) {
    let (mut line, theirs) = Line::pair().unwrap();
    let child = Command::new(program()).arg("respond").stdin(Stdio::from(theirs)).spawn().unwrap();
    line.hand_over(sockets).unwrap();
    line.send(&Order::View(view.clone())).unwrap();
    loop {
        while line.wants_to_write() {
            poll(&mut [PollFd::new(&line, PollFlags::OUT)], None).unwrap();
            line.flush().unwrap();
        }
        poll(&mut [PollFd::new(&line, PollFlags::IN)], None).unwrap();
        match line.reports() {
            Ok(reports) if reports.contains(&Report::Ready) => return (line, child),
            Ok(_) => {}
            Err(e) if e.what() == Kind::NotFound => panic!("the responder ended before it was ready"),
            Err(e) => panic!("{e}"),
        }
    }
}

/// A program that can be a responder: it must have one thread, and a test has two. `cargo test` builds the examples
/// too.
fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/dns_load");
    assert!(program.exists(), "build the example `dns_load` first: `cargo build -p lazaret-net --examples`");
    program
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own, with `eth0` on the bridge.
pub struct Container {
    jobs: Sender<Job>,
}

impl Container {
    /// With the addresses of the host, or with none.
    pub fn new(host: &Host, addressed: bool) -> Container {
        let (jobs, inbox) = channel::<Job>();
        let (born, birth) = channel();
        std::thread::spawn(move || {
            leave_network();
            born.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        let [.., i] = host.mac;
        let mac = host.mac.map(|byte| format!("{byte:02x}")).join(":");
        let thread = birth.recv().unwrap();
        ip(&format!("link add v{i} type veth peer name eth0 address {mac} netns {thread}"));
        ip(&format!("link set v{i} master br0 up"));
        let (v4, v6) = (host.address4.unwrap(), host.address6);
        let container = Container { jobs };
        container.run(move || {
            ip("link set eth0 up");
            if addressed {
                ip(&format!("addr add {v4}/20 dev eth0"));
                v6.iter().for_each(|v6| ip(&format!("addr add {v6}/64 dev eth0 nodad")));
            }
        });
        container
    }

    /// Runs something in the container and waits for it.
    pub fn run<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        self.jobs.send(Box::new(move || drop(done.send(act())))).unwrap();
        result.recv().expect("the container's thread has panicked")
    }

    /// Runs something in the container; what it returns is to be waited for.
    pub fn begin<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> std::sync::mpsc::Receiver<T> {
        let (done, result) = channel();
        self.jobs.send(Box::new(move || drop(done.send(act())))).unwrap();
        result
    }

    pub fn ask(&self, name: &'static str) -> String {
        self.run(move || render(&ask_udp(GATEWAY.into(), name, None)))
    }
}

fn leave_network() {
    lazaret_sys::process::unshare(rustix::thread::UnshareFlags::NEWNET.bits().into()).expect("this test needs root");
    lazaret_sys::net::loopback_up().unwrap();
}

pub fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

/// Asks by UDP from where the caller is; with EDNS where a size is given. Asks again as clients do.
pub fn ask_udp(server: IpAddr, name: &str, edns: Option<u16>) -> Message {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE / 20)).unwrap();
    let mut asked = question(name, RecordType::A);
    if let Some(size) = edns {
        asked = with_edns(asked, size, false);
    }
    let mut packet = [0; 4096];
    for _ in 0..20 {
        socket.send_to(&asked.to_vec().unwrap(), (server, 53)).unwrap();
        if let Ok((length, from)) = socket.recv_from(&mut packet) {
            assert_eq!(from, SocketAddr::new(server, 53));
            return Message::from_vec(&packet[..length]).unwrap();
        }
    }
    panic!("{server} does not answer to `{name}`");
}

pub fn ask_tcp(stream: &mut TcpStream, name: &str) -> Message {
    let packet = question(name, RecordType::A).to_vec().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[&(packet.len() as u16).to_be_bytes()[..], &packet].concat()).unwrap();
    read_tcp(stream)
}

pub fn read_tcp(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut packet = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut packet).unwrap();
    Message::from_vec(&packet).unwrap()
}

/// A server that behaves by the name that is asked for.
fn serve_upstream(at: Ipv4Addr) {
    let datagrams = UdpSocket::bind((at, 53)).unwrap();
    let listener = TcpListener::bind((at, 53)).unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 4096];
        while let Ok((length, from)) = datagrams.recv_from(&mut packet) {
            if let Some(answer) = upstream_answer(at, &packet[..length], false) {
                let _ = datagrams.send_to(&answer, from);
            }
        }
    });
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let asked = read_tcp(&mut stream).to_vec().unwrap();
            if let Some(answer) = upstream_answer(at, &asked, true) {
                let _ = stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat());
            }
        }
    });
}

fn upstream_answer(at: Ipv4Addr, packet: &[u8], by_tcp: bool) -> Option<Vec<u8>> {
    let mut message = Message::from_vec(packet).unwrap();
    let name = message.queries[0].name.clone();
    message.metadata.message_type = MessageType::Response;
    let first = at == FIRST;
    let ordinary = vec![Ipv4Addr::new(93, 184, 216, 34)];
    let (code, addresses) = match name.to_string().split('.').next().unwrap() {
        label if label.starts_with("lost") => return None,
        "half" if first => return None,
        "fail" if first => (ResponseCode::ServFail, Vec::new()),
        "noedns" if message.edns.is_some() => (ResponseCode::FormErr, Vec::new()),
        "big" if by_tcp => (ResponseCode::NoError, (0..200).map(|i| Ipv4Addr::new(93, 184, 216, i)).collect()),
        "big" => (ResponseCode::NoError, Vec::new()),
        "nas" => (ResponseCode::NoError, vec![Ipv4Addr::new(192, 168, 1, 9)]),
        _ => (ResponseCode::NoError, ordinary),
    };
    message.metadata.response_code = code;
    message.metadata.truncation = !by_tcp && name.to_string().starts_with("big.");
    for address in addresses {
        message.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A(address))));
    }
    Some(message.to_vec().unwrap())
}
