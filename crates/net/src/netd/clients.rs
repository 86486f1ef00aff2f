//! Who has called: keepers, which stay, and commands, which ask and go.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::net::{SocketFlags, accept_with, sockopt};

use crate::wire::{self, Answer, Heard, Request};

/// More packets do not wait for a client: one that asks much and listens to nothing is let go.
const MOST_WAITING: usize = 4096;

/// More do not call at once: well below the descriptors that a process may have.
const MOST: usize = 8192;

/// A client by a number that no other ever has.
pub(super) type Id = u64;

/// One connection.
pub(super) struct Client {
    pub id: Id,
    pub pid: i32,
    socket: OwnedFd,
    waiting: VecDeque<Vec<u8>>,
    lost: bool,
}

/// All connections.
#[derive(Default)]
pub(super) struct Clients {
    all: Vec<Client>,
    last: Id,
}

/// What a client says.
pub(super) enum Said {
    /// Something, with a descriptor where one belongs to it.
    Request(Request, Option<OwnedFd>),
    /// Something that makes no sense to us.
    Nonsense(lazaret_base::Error),
    /// Nothing ever again.
    Gone,
}

impl Clients {
    /// Takes in everybody who calls.
    pub fn accept(&mut self, listener: BorrowedFd<'_>) {
        while self.all.len() < MOST
            && let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            // Whose connection it is, by the kernel's word (SO_PEERCRED of unix(7)).
            let pid = sockopt::socket_peercred(&socket).map_or(0, |peer| peer.pid.as_raw_nonzero().get());
            self.last += 1;
            self.all.push(Client { id: self.last, pid, socket, waiting: VecDeque::new(), lost: false });
        }
    }

    /// What to wait for, in the order of [`Clients::served`].
    pub fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.all.iter().map(|client| {
            let more = if client.waiting.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            (client.socket.as_fd(), PollFlags::IN | more)
        })
    }

    /// What those have to say of whom `ready` tells something. Each is heard once: nobody keeps the others waiting.
    pub fn served(&mut self, ready: &[PollFlags]) -> Vec<(Id, Said)> {
        let mut said = Vec::new();
        for (client, ready) in self.all.iter_mut().zip(ready) {
            if ready.contains(PollFlags::OUT) {
                client.flush();
            }
            if !ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                continue;
            }
            match wire::next_request(client.socket.as_fd()) {
                Ok(Heard::Said(request, fd)) => said.push((client.id, Said::Request(request, fd))),
                Ok(Heard::Nonsense(e)) => said.push((client.id, Said::Nonsense(e))),
                Ok(Heard::Nothing) => {}
                Ok(Heard::Gone) | Err(_) => client.lost = true,
            }
        }
        for client in self.all.iter().filter(|client| client.lost) {
            said.push((client.id, Said::Gone));
        }
        self.all.retain(|client| !client.lost);
        said
    }

    /// The process behind a connection; 0 if it is gone.
    pub fn pid(&self, id: Id) -> i32 {
        self.all.iter().find(|client| client.id == id).map_or(0, |client| client.pid)
    }

    /// Says something to a client, now or when it listens.
    pub fn say(&mut self, id: Id, answer: &Answer) {
        if let Some(client) = self.all.iter_mut().find(|client| client.id == id) {
            client.waiting.push_back(wire::packet(answer));
            client.flush();
            client.lost |= client.waiting.len() > MOST_WAITING;
        }
    }

    /// Whether somebody has not heard all yet.
    pub fn has_waiting(&self) -> bool {
        self.all.iter().any(|client| !client.waiting.is_empty())
    }

    /// Says what waits to those who listen.
    pub fn flush(&mut self) {
        self.all.iter_mut().for_each(Client::flush);
        self.all.retain(|client| !client.lost);
    }
}

impl Client {
    fn flush(&mut self) {
        while let Some(packet) = self.waiting.front() {
            match wire::try_answer(self.socket.as_fd(), packet) {
                Ok(true) => drop(self.waiting.pop_front()),
                Ok(false) => return,
                Err(_) => {
                    self.lost = true;
                    self.waiting.clear();
                }
            }
        }
    }
}
