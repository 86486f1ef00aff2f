//! Waiting for what the kernel does after it has said yes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lazaret_base::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::message;
use crate::netlink::Socket;
use crate::subnet::HostAddress;

/// `RTMGRP_LINK`.
pub const LINK_EVENTS: u32 = 0x1;
/// `RTMGRP_IPV6_ROUTE`.
pub const ROUTE6_EVENTS: u32 = 0x400;

/// How long is waited. It takes some ten microseconds, or as long as the kernel's workers are busy.
const PATIENCE: Duration = Duration::from_secs(3);
/// `RTN_LOCAL`.
const LOCAL: u8 = 2;

/// Waits until something is `ready`, looking again whenever there is an event on the socket that `listen`
/// opens. `false`: it was not, in all that time.
pub fn wait(listen: impl FnOnce() -> Result<Socket>, mut ready: impl FnMut() -> Result<bool>) -> Result<bool> {
    if ready()? {
        return Ok(true);
    }
    // From here on nothing is missed; it may have come before.
    let mut events = listen()?;
    let deadline = Instant::now() + PATIENCE;
    while !ready()? {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut polled = [PollFd::new(&events, PollFlags::IN)];
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        events.events(|_| {})?;
    }
    Ok(true)
}

/// Waits until packets to these addresses are taken in. An IPv6 address is acknowledged at once, but its
/// route and its multicast group are left to a worker, even without duplicate address detection
/// (`addrconf_dad_start`, net/ipv6/addrconf.c).
pub fn addresses(
    socket: &mut Socket,
    listen: impl FnOnce() -> Result<Socket>,
    addresses: impl Iterator<Item = HostAddress>,
) -> Result<()> {
    // A link-local address is told apart by its interface, and `fe80::1` of another would do as well.
    let waited_for = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if !ip.is_unicast_link_local());
    let questions: Vec<_> =
        addresses.map(|address| address.ip).filter(|ip| waited_for(*ip)).map(message::find_route).collect();
    let ready = || {
        let answers = socket.send(&questions)?;
        Ok(answers.iter().filter(|answer| answer.body.get(7) == Some(&LOCAL)).count() == questions.len())
    };
    // If it takes that long, the address is there all the same, and whoever wants to use it tries again.
    wait(listen, ready).map(drop)
}
