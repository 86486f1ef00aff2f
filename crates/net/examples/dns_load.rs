//! A bounded loader for name servers.
//!
//! `dns_load ask ADDRESS:PORT NAME COUNT` asks one question COUNT times, 64 at a time, and prints answers per second.
//! `dns_load race [ROUNDS]` makes a network namespace with a responder, dnsmasq and an upstream server in it, asks both
//! for a local and for a cached name by turns, and prints the best round of each as JSON. Needs root and dnsmasq.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lazaret_base::{Context, Result, error};
use lazaret_net::responder::{Host, Identity, Line, Order, Report, Settings, Sockets, View, serve};
use lazaret_sys::packet::Mailbag;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Questions under way at a time.
const WINDOW: usize = 64;

/// Answers per measurement of `race`.
const QUESTIONS: usize = 200_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["ask", server, name, count] => {
            let server = server.parse().map_err(|_| error("bad server address"))?;
            let count = count.parse().map_err(|_| error("bad count"))?;
            println!("{:.0}", load(server, name, count)?);
            Ok(())
        }
        ["race"] => race(5),
        ["race", rounds] => race(rounds.parse().map_err(|_| error("bad number of rounds"))?),
        ["respond"] => {
            let control = std::io::stdin().as_fd().try_clone_to_owned()?;
            serve(control, &Identity { uid: 65534, gid: 65534 })
        }
        _ => Err(error("usage: dns_load ask ADDRESS:PORT NAME COUNT | dns_load race [ROUNDS]")),
    }
}

/// Asks `count` times; returns answers per second. A lost question is asked again after a second.
fn load(server: SocketAddr, name: &str, count: usize) -> Result<f64> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("opening a socket")?;
    let question = question(name);
    let mut bag = Mailbag::new(WINDOW, 1500);
    let begun = Instant::now();
    let fill = || -> Result<()> {
        for _ in 0..WINDOW {
            socket.send_to(&question, server).context("asking")?;
        }
        Ok(())
    };
    fill()?;
    let mut answered = 0;
    while answered < count {
        let mut wait = [PollFd::new(&socket, PollFlags::IN)];
        if poll(&mut wait, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }))? == 0 {
            fill()?;
            continue;
        }
        let Ok(heard) = bag.receive(socket.as_fd()) else { continue };
        for i in 0..heard {
            let (answer, _, next) = bag.packet(i);
            if answer.get(3).map(|flags| flags & 15) != Some(0) || answer.get(7) == Some(&0) {
                return Err(error(format!("`{name}` is not answered with an address by {server}")));
            }
            next.extend_from_slice(&question);
        }
        // To where the answers came from: the next question for each.
        bag.answer(socket.as_fd(), heard);
        answered += heard;
    }
    Ok(answered as f64 / begun.elapsed().as_secs_f64())
}

/// A question for the IPv4 address of a name.
fn question(name: &str) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, 1, 0, 1]);
    packet
}

const OURS: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 91, 0, 1);
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

fn race(rounds: usize) -> Result<()> {
    lazaret_sys::process::unshare(rustix::thread::UnshareFlags::NEWNET.bits().into()).context("making a namespace")?;
    lazaret_sys::net::loopback_up().context("setting `lo` up")?;
    ip("link add bench0 type bridge")?;
    ip(&format!("addr add {OURS}/20 dev bench0"))?;
    ip(&format!("addr add {THEIRS}/20 dev bench0"))?;
    ip("link set bench0 up")?;
    let upstream = UdpSocket::bind((UPSTREAM, 53)).context("opening the upstream server")?;
    std::thread::spawn(move || serve_upstream(&upstream));

    let mut running = Running(Vec::new());
    let line = start_responder(&mut running)?;
    start_dnsmasq(&mut running)?;
    let mut best = [[0.0_f64; 2]; 2];
    for _ in 0..rounds {
        for (i, name) in ["web-100.lazaret", "www.example.com"].into_iter().enumerate() {
            for (j, server) in [OURS, THEIRS].into_iter().enumerate() {
                best[i][j] = best[i][j].max(load(SocketAddr::new(server.into(), 53), name, QUESTIONS)?);
            }
        }
    }
    drop(line);
    for (what, [ours, theirs]) in ["local", "cached"].into_iter().zip(best) {
        println!(
            r#"{{"what":"dns {what}","ours_per_second":{ours:.0},"dnsmasq_per_second":{theirs:.0},"ratio":{:.2}}}"#,
            ours / theirs
        );
    }
    Ok(())
}

/// What ends with the race.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Best effort: it may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_responder(running: &mut Running) -> Result<Line> {
    let (mut line, theirs) = Line::pair()?;
    let itself = std::env::current_exe().context("finding this program")?;
    running.0.push(Command::new(itself).arg("respond").stdin(Stdio::from(theirs)).spawn()?);
    let sockets = Sockets::open("bench0", OURS, None)?;
    line.hand_over(&sockets)?;
    let hosts = (1..=200_u8).map(|i| Host {
        name: format!("web-{i}"),
        mac: [2, 0, 0, 0, 0, i],
        address4: Some(Ipv4Addr::new(10, 90, 1, i)),
        address6: None,
        sees: Vec::new(),
        sees_host: false,
        lan: false,
        internet: true,
        lan_names: Vec::new(),
        found: Default::default(),
        upstreams: Vec::new(),
    });
    let settings = Settings {
        domain: "lazaret".into(),
        gateway4: OURS,
        prefix4: 20,
        gateway6: None,
        prefix6: 64,
        mtu: 1500,
        own: Vec::new(),
        lease_seconds: 3600,
        upstreams: vec![SocketAddr::new(UPSTREAM.into(), 53)],
        lan: Vec::new(),
    };
    line.send(&Order::View(View { settings, hosts: hosts.collect() }))?;
    loop {
        let mut wait = [PollFd::new(&line, PollFlags::IN)];
        poll(&mut wait, None)?;
        if line.reports()?.contains(&Report::Ready) {
            return Ok(line);
        }
    }
}

fn start_dnsmasq(running: &mut Running) -> Result<()> {
    let mut dnsmasq = Command::new("dnsmasq");
    dnsmasq.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]);
    dnsmasq.args(["--user=root", "--pid-file=", "--cache-size=10000", "--local=/lazaret/"]);
    dnsmasq.arg(format!("--listen-address={THEIRS}")).arg("--except-interface=lo").arg(format!("--server={UPSTREAM}"));
    for i in 1..=200 {
        dnsmasq.arg(format!("--host-record=web-{i}.lazaret,10.90.1.{i}"));
    }
    running.0.push(dnsmasq.stderr(Stdio::null()).spawn().context("starting dnsmasq")?);
    // It answers when it is up.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        socket.send_to(&question("web-1.lazaret"), (THEIRS, 53))?;
        if socket.recv(&mut [0; 512]).is_ok() {
            return Ok(());
        }
    }
    Err(error("dnsmasq does not answer"))
}

/// Answers every question with one address that lasts an hour.
fn serve_upstream(socket: &UdpSocket) {
    let mut packet = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut packet) {
        let end = packet[12..length].iter().position(|&byte| byte == 0).map_or(length, |root| 12 + root + 5);
        let mut answer = packet[..end].to_vec();
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 93, 184, 216, 34]);
        // A lost answer is asked for again.
        let _ = socket.send_to(&answer, from);
    }
}

fn ip(arguments: &str) -> Result<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status().context("running ip")?;
    if status.success() { Ok(()) } else { Err(error(format!("`ip {arguments}` failed"))) }
}
