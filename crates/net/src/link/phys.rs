//! An interface of the host that is handed over to a container, and taken back.

use std::os::fd::{AsFd, BorrowedFd};

use lazaret_base::{Context, Error, Kind, Result, error};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::message::{self, ANY_LINK, LINK_HEADER, ifla};
use super::query::{self, Link};
use super::{Inside, set_up_inside, settle_inside};
use crate::netlink::{Attributes, Message, Socket};

/// What an interface was before it was lent. To be recorded before the container runs: when its
/// namespace ends, the kernel gives the interface back to the first namespace of the machine, under the
/// name that it then has or, if that is taken, as `dev` and its index (`default_device_exit_net`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lent {
    /// Its name here.
    pub name: String,
    /// Its index here; it keeps it wherever it is free.
    pub index: u32,
    /// Its name in the container at first; root there may have given it another.
    pub inside_name: String,
    /// Its index in the container.
    pub inside_index: u32,
    /// Its hardware address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// The hardware address that it was built with, if it was built.
    pub permanent_mac: Option<Vec<u8>>,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it was up.
    pub up: bool,
}

/// Hands an interface over, named and set up as `inside` says. On failure it is back.
///
/// The addresses that it had here are gone: they belong to whoever configures the host's interfaces.
pub fn lend(host: &mut Socket, device: &str, inside: &Inside, netns: BorrowedFd<'_>) -> Result<Lent> {
    let (link, permanent_mac) = described(host, device)?.ok_or_else(|| {
        error(format!("there is no interface `{device}`"))
            .hint("`ip link` lists those that there are")
            .kind(Kind::NotFound)
    })?;
    host.ask(message::move_link(link.index, device, &inside.name, netns)?).map_err(advise)?;
    let mut lent = Lent {
        name: link.name,
        index: link.index,
        inside_name: inside.name.clone(),
        inside_index: link.index,
        mac: link.mac.map(|mac| mac.bytes()),
        permanent_mac,
        mtu: link.mtu,
        up: link.up,
    };
    let done = Socket::route_in(netns).and_then(|mut socket| {
        lent.inside_index = super::index_of(&mut socket, &inside.name)?;
        let mtu = inside.mtu.map(|mtu| message::set_mtu(lent.inside_index, &inside.name, mtu));
        socket.send(mtu.as_slice())?;
        set_up_inside(&mut socket, inside, None)?;
        settle_inside(&mut socket, inside, netns)
    });
    match done {
        Ok(()) => Ok(lent),
        Err(e) => {
            // Best effort: the first error is the one to tell.
            let _ = reclaim(host, &lent, Some(netns));
            Err(e.context(format!("lending `{device}`")))
        }
    }
}

/// Takes a lent interface back, under its old name and with its old settings: out of the namespace if
/// that is still there, or from where the kernel put it.
///
/// May run twice. Fails, as [`Kind::NotFound`], where it is nowhere: perhaps the namespace is only just
/// ending (a kernel thread does that), perhaps it was unplugged.
pub fn reclaim(host: &mut Socket, lent: &Lent, netns: Option<BorrowedFd<'_>>) -> Result<()> {
    let back = || format!("taking `{}` back", lent.name);
    let fetched = match netns {
        Some(netns) => fetch(lent, netns).with_context(back)?,
        None => false,
    };
    let link = stray(host, lent, fetched).with_context(back)?.ok_or_else(|| {
        error(format!("the interface `{}` is nowhere", lent.name))
            .hint("it comes back when nothing of the container runs any more, unless it was unplugged")
            .kind(Kind::NotFound)
    })?;
    // It must be down to be renamed (before Linux 6.2); MTU and MAC are also those of the host again.
    let mut messages = Vec::new();
    if link.name != lent.name || link.mtu != lent.mtu || link.mac.map(|mac| mac.bytes()) != lent.mac {
        messages.push(message::restore_link(link.index, &lent.name, lent.mtu, lent.mac)?);
    }
    if lent.up {
        messages.push(message::up_index(link.index, &lent.name));
    }
    host.send(&messages).map(drop).with_context(back)
}

/// Moves the interface out of the container's namespace; `false` if it is not in there.
fn fetch(lent: &Lent, netns: BorrowedFd<'_>) -> Result<bool> {
    let mut inside = Socket::route_in(netns)?;
    // By index: root of the container may have renamed it.
    let by_index = Message::new(message::GETLINK, 0, &message::link_header(lent.inside_index, 0, 0), "looking for it");
    let link = match inside.ask(by_index) {
        Ok(answer) => answer.as_ref().and_then(query::link),
        Err(e) if e.errno() == Some(Errno::NODEV) => None,
        Err(e) => return Err(e),
    };
    let Some(link) = link else { return Ok(false) };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let home = rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())
        .context("opening our own network namespace")?;
    let moved = inside.ask(message::move_link(link.index, &link.name, &lent.name, home.as_fd())?);
    // Its old name may have been taken in the meantime: better back under another than not at all.
    match moved {
        Err(e) if e.errno() == Some(Errno::EXIST) => {
            let spare = format!("dev{}", lent.index);
            inside.ask(message::move_link(link.index, &link.name, &spare, home.as_fd())?)?;
            Err(error(format!("the name `{}` is taken; it is back as `{spare}`", lent.name)).kind(Kind::Exists))
        }
        other => other.map(|_| true),
    }
}

/// The interface on this side: under its own name, or under whichever name the kernel gave it.
fn stray(host: &mut Socket, lent: &Lent, fetched: bool) -> Result<Option<Link>> {
    if let Some((link, permanent)) = described(host, &lent.name)?
        && (fetched || resembles(&link, permanent.as_deref(), lent))
    {
        return Ok(Some(link));
    }
    let message = Message::new(message::GETLINK, 0, &message::link_header(ANY_LINK, 0, 0), "listing interfaces");
    let links = host.list(message)?;
    let mut links =
        links.iter().filter_map(|answer| Some((query::link(answer)?, permanent(answer.attributes(LINK_HEADER)))));
    Ok(links.find(|(link, permanent)| resembles(link, permanent.as_deref(), lent)).map(|(link, _)| link))
}

/// Whether it is the interface that was lent. What it was built with decides; where it was not built, its
/// index together with the names that it may have.
fn resembles(link: &Link, permanent: Option<&[u8]>, lent: &Lent) -> bool {
    if let (Some(permanent), Some(recorded)) = (permanent, &lent.permanent_mac) {
        return permanent == recorded;
    }
    let names = [&lent.name, &lent.inside_name, &format!("dev{}", link.index)];
    let indexes = [lent.index, lent.inside_index];
    names.contains(&&link.name) && indexes.contains(&link.index) && link.kind.as_deref() != Some("bridge")
}

fn described(host: &mut Socket, name: &str) -> Result<Option<(Link, Option<Vec<u8>>)>> {
    match host.ask(message::find(name)?) {
        Ok(answer) => {
            Ok(answer.and_then(|answer| Some((query::link(&answer)?, permanent(answer.attributes(LINK_HEADER))))))
        }
        Err(e) if e.errno() == Some(Errno::NODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The address that a card was built with (Linux 5.5); zeroes are none.
fn permanent(attributes: Attributes<'_>) -> Option<Vec<u8>> {
    attributes.last(ifla::PERM_ADDRESS).filter(|mac| mac.iter().any(|byte| *byte != 0)).map(<[u8]>::to_vec)
}

/// What to do about an interface that does not go.
fn advise(e: Error) -> Error {
    match e.errno() {
        // NETIF_F_NETNS_LOCAL: bridges, tunnels' fallback devices, and Wi-Fi, which moves by its radio.
        Some(Errno::INVAL) => e.hint("bridges, the loopback and Wi-Fi cards can't be handed over"),
        Some(Errno::EXIST) => e.hint("the container has an interface of that name already"),
        _ => e,
    }
}
