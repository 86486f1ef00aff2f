//! How the sides of a start take turns.
//!
//! Host, stage and guest hold the same plan. A run of steps of one side is a turn; the host tells a side
//! to begin and hears that it has ended, or which step failed. Descriptors that one side made and another
//! needs travel with these messages, each under a name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_base::{Context, Error, Result, Wire, error};
use lazaret_sys::local::{receive_along, send_along};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

/// What a descriptor that crosses sides is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Slot {
    /// The container's user namespace.
    UserNs,
    /// A detached mount, by its place in [`crate::plan::Api::ALL`].
    Api(u8),
    /// Our end of the console.
    Console,
    /// The finished mount namespace.
    Mounts,
    /// What `/etc/resolv.conf` is to say.
    Resolver,
    /// A mount namespace that nobody needs any more, held so that its end does not hold up the start.
    Outgrown,
}

/// Named descriptors.
#[derive(Default)]
pub struct Fds(Vec<(Slot, OwnedFd)>);

impl Fds {
    /// Keeps `fd` under its name.
    pub fn put(&mut self, slot: Slot, fd: OwnedFd) {
        self.0.push((slot, fd));
    }

    /// The descriptor of that name. Its absence is a mistake in the plan.
    pub fn get(&self, slot: Slot) -> Result<BorrowedFd<'_>> {
        let found = self.0.iter().find(|(s, _)| *s == slot).map(|(_, fd)| fd.as_fd());
        found.ok_or_else(|| error(format!("no descriptor {slot:?}: a step that makes it is missing from the plan")))
    }

    /// Takes the descriptor of that name away.
    pub fn take(&mut self, slot: Slot) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(s, _)| *s == slot)?;
        Some(self.0.swap_remove(at).1)
    }
}

/// What is said on the way.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// Begin the next turn; the descriptors sent along have these names.
    Begin(Vec<Slot>),
    /// The turn has ended well.
    Done(Vec<Slot>),
    /// Step `index` failed.
    Failed { index: usize, error: Wire },
}

/// One end of the line between the host and another side.
pub struct Line(OwnedFd);

/// What the host hears at the end of a turn.
pub enum End {
    /// All steps done.
    Done,
    /// A step failed.
    Failed(usize, Error),
    /// The other side is gone: it executed the container's program, or it died.
    Gone,
}

/// No message is longer: the longest is an error.
const LONGEST: usize = 16 * 1024;

impl Line {
    /// Both ends of a new line.
    pub fn pair() -> Result<(Line, Line)> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Line(a), Line(b)))
    }

    /// Host: lets the other side begin its turn with these descriptors.
    pub fn begin(&self, slots: &[Slot], fds: &Fds) -> Result<()> {
        let borrowed = slots.iter().map(|slot| fds.get(*slot)).collect::<Result<Vec<_>>>()?;
        self.say(&Word::Begin(slots.to_vec()), &borrowed).context("handing over the turn")
    }

    /// Other side: waits for its turn. `false` if the host is gone.
    pub fn wait(&self, fds: &mut Fds) -> Result<bool> {
        Ok(matches!(self.hear(fds)?, Some(Word::Begin(_))))
    }

    /// Other side: the turn is over, and these descriptors came of it.
    pub fn done(&self, made: Fds) -> Result<()> {
        let slots = made.0.iter().map(|(slot, _)| *slot).collect();
        let fds: Vec<_> = made.0.iter().map(|(_, fd)| fd.as_fd()).collect();
        self.say(&Word::Done(slots), &fds)
    }

    /// Other side: step `index` failed.
    pub fn failed(&self, index: usize, error: Error) -> Result<()> {
        self.say(&Word::Failed { index, error: error.into() }, &[])
    }

    /// Host: waits until the other side's turn is over.
    pub fn end(&self, fds: &mut Fds) -> Result<End> {
        match self.hear(fds)? {
            Some(Word::Done(_)) => Ok(End::Done),
            Some(Word::Failed { index, error }) => Ok(End::Failed(index, error.into())),
            Some(Word::Begin(_)) => Err(error("the other side spoke out of turn")),
            None => Ok(End::Gone),
        }
    }

    fn say(&self, word: &Word, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = serde_json::to_vec(word).map_err(|e| error(e.to_string()))?;
        send_along(&self.0, &bytes, fds)?;
        Ok(())
    }

    fn hear(&self, fds: &mut Fds) -> Result<Option<Word>> {
        let mut bytes = vec![0; LONGEST];
        let received = match receive_along(&self.0, &mut bytes, RecvFlags::empty()) {
            // A side that was killed with words of ours unread resets the line.
            Err(Errno::CONNRESET) => return Ok(None),
            other => other?,
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.cut {
            return Err(error("a message between the sides of a start was cut short"));
        }
        let word = serde_json::from_slice(&bytes[..received.bytes]).map_err(|e| error(e.to_string()))?;
        if let Word::Begin(slots) | Word::Done(slots) = &word {
            for (slot, fd) in slots.iter().zip(received.fds) {
                fds.put(*slot, fd);
            }
        }
        Ok(Some(word))
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
