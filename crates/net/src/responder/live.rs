//! The loop: waits for packets, answers and orders, in one thread.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use lazaret_base::{Context, Kind, Result};
use lazaret_sys::packet::{Mailbag, send_ip_frame};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};

use super::directory::{Asker, Directory};
use super::line::Channel;
use super::sockets::{Role, Sockets};
use super::view::{Order, Report};
use crate::dns::forward::{Delivery, Forwarder, Route, Waiter};
use crate::dns::stream::Streams;
use crate::dns::{self, Query, TCP_LIMIT, Verdict};
use crate::{dhcp, router};

/// Packets that are read and answered by one system call each.
const BATCH: usize = 32;

/// Batches of one socket before the others have their turn.
const BATCHES: usize = 4;

/// The longest datagram that is read: longer questions are nobody's, and arrive cut off, which makes them malformed.
const DATAGRAM: usize = 1500;

/// How often what takes too long is looked for.
const SWEEP: Duration = Duration::from_millis(250);

/// The upper byte of an event's token says whose it is, the rest which one.
const CONTROL: u64 = 0;
const SOCKET: u64 = 1 << 56;
const UPSTREAM: u64 = 2 << 56;
const STREAM: u64 = 3 << 56;
const KIND: u64 = 0xff << 56;

/// Answers packets until netd hangs up. Packets are not read before the first view has come: they wait in their
/// sockets.
///
/// # Errors
///
/// Where epoll(7) or the control line fails. A packet never is an error.
pub fn live(sockets: Sockets, control: OwnedFd) -> Result<()> {
    let epoll = Rc::new(epoll::create(CreateFlags::CLOEXEC).context("making an epoll descriptor")?);
    epoll::add(&*epoll, &control, EventData::new_u64(CONTROL), EventFlags::IN).context("watching the control line")?;
    let mut responder = Responder {
        forwarder: Forwarder::new(epoll.clone(), UPSTREAM),
        streams: Streams::new(epoll.clone(), STREAM),
        control: Channel::new(control),
        control_writes: false,
        directory: None,
        next_advertisement: Instant::now(),
        last_advertisement: None,
        scratch: Vec::new(),
        epoll,
        sockets,
    };
    let mut bag = Mailbag::new(BATCH, DATAGRAM);
    match responder.run(&mut bag) {
        Err(e) if e.what() == Kind::NotFound => Ok(()),
        ended => ended,
    }
}

struct Responder {
    epoll: Rc<OwnedFd>,
    sockets: Sockets,
    control: Channel,
    control_writes: bool,
    /// None until netd has said who is there.
    directory: Option<Directory>,
    forwarder: Forwarder,
    streams: Streams,
    next_advertisement: Instant,
    last_advertisement: Option<Instant>,
    scratch: Vec<u8>,
}

impl Responder {
    fn run(&mut self, bag: &mut Mailbag) -> Result<()> {
        let mut events = Vec::with_capacity(64);
        let mut next_sweep = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_sweep {
                next_sweep = now + SWEEP;
                self.sweep(now)?;
            }
            events.clear();
            let timeout = self.timeout(now, next_sweep);
            match epoll::wait(&*self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e).context("waiting for packets"),
            }
            // First of all: who was attached before these packets came is known when they are read.
            self.obey()?;
            for event in events.drain(..) {
                self.handle(event, bag)?;
                self.deliver()?;
            }
        }
    }

    /// How long to wait: for servers and connections that are too slow, and for the next advertisement.
    fn timeout(&self, now: Instant, next_sweep: Instant) -> Timespec {
        let busy = !self.forwarder.is_idle() || !self.streams.is_idle();
        // An advertisement that is due goes out with the next sweep.
        let until = if busy { next_sweep } else { next_sweep.max(self.next_advertisement) };
        // epoll_wait(2) counts milliseconds.
        let wait = until.saturating_duration_since(now).max(Duration::from_millis(1));
        Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() }
    }

    fn sweep(&mut self, now: Instant) -> Result<()> {
        self.streams.sweep(now);
        if let Some(directory) = &self.directory {
            self.forwarder.sweep(directory, now);
        }
        self.deliver()?;
        if now >= self.next_advertisement {
            self.advertise_to_all(now);
        }
        Ok(())
    }

    /// Takes netd's orders.
    fn obey(&mut self) -> Result<()> {
        let orders: Vec<Order> = self.control.receive()?;
        if orders.is_empty() {
            return Ok(());
        }
        for order in orders {
            self.follow(order)?;
        }
        self.deliver()
    }

    fn follow(&mut self, order: Order) -> Result<()> {
        let first = self.directory.is_none();
        let network_changed = match (&order, &self.directory) {
            (Order::View(view), Some(directory)) => view.settings != *directory.settings(),
            (Order::Settings(settings), Some(directory)) => settings != directory.settings(),
            (Order::View(_), None) => true,
            _ => false,
        };
        match (self.directory.take(), order) {
            (directory, Order::Resolve(name)) => {
                self.directory = directory;
                self.resolve(name);
            }
            (None, Order::View(view)) => self.directory = Some(Directory::new(view)),
            // Changes of nothing: the view comes first.
            (None, _) => {}
            (Some(directory), order) => self.directory = Some(directory.after(order)),
        }
        if network_changed {
            self.forwarder.forget();
            self.next_advertisement = Instant::now();
        }
        if first && self.directory.is_some() {
            self.open_doors()?;
            self.control.send(&Report::Ready)?;
        }
        Ok(())
    }

    /// Begins to listen to containers.
    fn open_doors(&self) -> Result<()> {
        for (i, (role, socket)) in self.sockets.all().enumerate() {
            if role != Role::Frames {
                epoll::add(&*self.epoll, socket, EventData::new_u64(SOCKET | i as u64), EventFlags::IN)
                    .context("watching a socket")?;
            }
        }
        Ok(())
    }

    /// Finds out the addresses of a name for netd: both families, one report each.
    fn resolve(&mut self, text: String) {
        let Some((directory, name)) = self.directory.as_ref().zip(dns::Name::from_text(&text)) else { return };
        for kind in [dns::code::A, dns::code::AAAA] {
            let query = Query {
                id: 0,
                flags: dns::code::RD,
                spelled: Box::default(),
                name: name.clone(),
                kind,
                class: dns::code::IN,
                edns: None,
            };
            let netd = IpAddr::V4(directory.settings().gateway4);
            let waiter = Waiter { client: netd, query, route: Route::Netd(text.clone()) };
            self.forwarder.ask(directory, Asker::Machine, waiter);
        }
    }

    fn handle(&mut self, event: Event, bag: &mut Mailbag) -> Result<()> {
        let (token, flags) = (event.data.u64(), event.flags);
        match token & KIND {
            CONTROL => self.flush_control(),
            UPSTREAM => {
                if let Some(directory) = &self.directory {
                    self.forwarder.event(directory, token);
                }
                Ok(())
            }
            STREAM => {
                self.converse(token, flags);
                Ok(())
            }
            _ => self.receive((token & !KIND) as usize, bag),
        }
    }

    fn receive(&mut self, i: usize, bag: &mut Mailbag) -> Result<()> {
        match self.sockets.at(i).0 {
            Role::Names => return self.answer_names(i, bag),
            Role::NameStreams => self.accept(i),
            Role::Dhcp4 => self.answer_dhcp4(i),
            Role::Dhcp6 => self.answer_dhcp6(i),
            Role::Router => self.answer_solicitations(i),
            Role::Frames => {}
        }
        Ok(())
    }

    fn answer_names(&mut self, i: usize, bag: &mut Mailbag) -> Result<()> {
        for _ in 0..BATCHES {
            let count = match bag.receive(self.sockets.at(i).1.as_fd()) {
                Ok(count) => count,
                // EAGAIN, or an ICMP error about an earlier answer, which is nobody's business.
                Err(_) => return Ok(()),
            };
            // A container may have been attached since the last look, and be the one that asks.
            self.obey()?;
            for k in 0..count {
                let (packet, from, out) = bag.packet(k);
                self.answer_name(i, packet, from, out);
            }
            bag.answer(self.sockets.at(i).1.as_fd(), count);
            if count < BATCH {
                return Ok(());
            }
        }
        Ok(())
    }

    fn answer_name(&mut self, i: usize, packet: &[u8], from: Option<SocketAddr>, out: &mut Vec<u8>) {
        let (Some(directory), Some(from)) = (&self.directory, from) else { return };
        let Some(asker) = directory.asker(from.ip()) else { return };
        let Verdict::Forward(query) = dns::answer(directory, asker, packet, false, out) else { return };
        let limit = query.udp_limit();
        if !self.forwarder.remember(directory, asker, &query, limit, out) {
            let waiter = Waiter { client: from.ip(), query, route: Route::Datagram(i, from) };
            self.forwarder.ask(directory, asker, waiter);
        }
    }

    fn accept(&mut self, i: usize) {
        let Some(directory) = &self.directory else { return };
        self.streams.accept(self.sockets.at(i).1, |address| directory.asker(address).is_some());
    }

    /// Answers the questions of a TCP connection.
    fn converse(&mut self, token: u64, flags: EventFlags) {
        let Some((client, questions)) = self.streams.event(token, flags) else { return };
        for question in questions {
            let Some(directory) = &self.directory else { return };
            let Some(asker) = directory.asker(client) else { return self.streams.hang_up(token) };
            let mut out = std::mem::take(&mut self.scratch);
            match dns::answer(directory, asker, &question, true, &mut out) {
                Verdict::Answered => self.streams.reply(token, &out),
                Verdict::Ignored => self.streams.hang_up(token),
                Verdict::Forward(query) => {
                    if self.forwarder.remember(directory, asker, &query, TCP_LIMIT, &mut out) {
                        self.streams.reply(token, &out);
                    } else {
                        let waiter = Waiter { client, query, route: Route::Stream(token) };
                        self.forwarder.ask(directory, asker, waiter);
                    }
                }
            }
            out.shrink_to(4096);
            self.scratch = out;
        }
    }

    /// Hands out what upstream has answered.
    fn deliver(&mut self) -> Result<()> {
        for delivery in self.forwarder.take_deliveries() {
            match delivery {
                Delivery::Report(report) => self.control.send(&report)?,
                Delivery::Packet(Route::Datagram(i, to), packet) => {
                    // A full queue loses a packet, as a network does; the client asks again.
                    let _ = sendto(self.sockets.at(i).1, &packet, SendFlags::DONTWAIT, &to);
                }
                Delivery::Packet(Route::Stream(token), packet) => self.streams.reply(token, &packet),
                Delivery::Packet(Route::Netd(_), _) => {}
            }
        }
        self.flush_control()
    }

    /// Sends reports, and waits for the line to take more only while there is more.
    fn flush_control(&mut self) -> Result<()> {
        if self.control.out.is_empty() && !self.control_writes {
            return Ok(());
        }
        self.control.flush()?;
        let writes = !self.control.out.is_empty();
        if writes != self.control_writes {
            let flags = if writes { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&*self.epoll, &self.control.socket, EventData::new_u64(CONTROL), flags)
                .context("watching the control line")?;
            self.control_writes = writes;
        }
        Ok(())
    }

    fn answer_dhcp4(&mut self, i: usize) {
        let (Some(directory), Some(frames)) = (&self.directory, self.sockets.of(Role::Frames)) else { return };
        datagrams(self.sockets.at(i).1, |message, _| {
            if let Some(reply) = dhcp::v4::answer(directory, message) {
                // Lost like any packet where the queue is full or the container gone; the client asks again.
                let _ = send_ip_frame(frames.as_fd(), self.sockets.bridge, reply.station, &reply.packet);
            }
        });
    }

    fn answer_dhcp6(&mut self, i: usize) {
        let Some(directory) = &self.directory else { return };
        let socket = self.sockets.at(i).1;
        datagrams(socket, |message, from| {
            let SocketAddr::V6(from) = from else { return };
            if let Some(reply) = dhcp::v6::answer(directory, *from.ip(), message) {
                let to = SocketAddrV6::new(*from.ip(), dhcp::v6::CLIENT_PORT, 0, self.sockets.bridge);
                // As above.
                let _ = sendto(socket, &reply, SendFlags::DONTWAIT, &to);
            }
        });
    }

    fn answer_solicitations(&mut self, i: usize) {
        let mut everybody = false;
        if let Some(directory) = &self.directory {
            datagrams(self.sockets.at(i).1, |packet, from| match from {
                SocketAddr::V6(from) if router::is_solicitation(packet) => {
                    let known =
                        from.ip().is_unicast_link_local() && directory.at_address(IpAddr::V6(*from.ip())).is_some();
                    if known { self.advertise(directory, *from.ip()) } else { everybody |= from.ip().is_unspecified() }
                }
                _ => {}
            });
        }
        // Without an address yet it can only be told together with all others, and not at any rate it likes.
        let now = Instant::now();
        if everybody && self.last_advertisement.is_none_or(|last| now.saturating_duration_since(last) >= router::REST) {
            self.advertise_to_all(now);
        }
    }

    fn advertise_to_all(&mut self, now: Instant) {
        const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        self.next_advertisement = now + router::INTERVAL;
        self.last_advertisement = Some(now);
        if let Some(directory) = &self.directory {
            self.advertise(directory, ALL_NODES);
        }
    }

    fn advertise(&self, directory: &Directory, to: Ipv6Addr) {
        let Some(socket) = self.sockets.of(Role::Router) else { return };
        let Some(advertisement) = router::advertisement(directory) else { return };
        let to = SocketAddrV6::new(to, 0, 0, self.sockets.bridge);
        // Best effort: no container is up, or the bridge has no address yet; who needs it asks again.
        let _ = sendto(socket, &advertisement, SendFlags::DONTWAIT, &to);
    }
}

/// Calls for each datagram that waits, up to a turn's worth.
fn datagrams(socket: &OwnedFd, mut each: impl FnMut(&[u8], SocketAddr)) {
    let mut packet = [0; DATAGRAM];
    for _ in 0..BATCH * BATCHES {
        match recvfrom(socket, &mut packet[..], RecvFlags::DONTWAIT) {
            Ok((length, _, Some(from))) => {
                if let Ok(from) = SocketAddr::try_from(from) {
                    each(&packet[..length], from);
                }
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
