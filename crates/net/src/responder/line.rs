//! The control line between netd and its responder: sockets first, then orders one way and reports the other. Each
//! is JSON with its length before it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_base::{Context, Kind, Result, error};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::sockets::Sockets;
use super::view::{Order, Report};

/// The longest message and the longest queue, in bytes: views of tens of thousands of containers.
const LONGEST: usize = 32 << 20;

/// netd's end. Nothing here waits.
pub struct Line {
    channel: Channel,
}

impl Line {
    /// Makes a line: our end, and the descriptor that the responder gets.
    pub fn pair() -> Result<(Line, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).context("making a control line")?;
        Ok((Line { channel: Channel::new(ours) }, theirs))
    }

    /// Gives the responder its sockets; the first thing on the line. They stay open here too, for a successor.
    pub fn hand_over(&mut self, sockets: &Sockets) -> Result<()> {
        sockets.hand_over(self.channel.socket.as_fd()).context("handing over the sockets")
    }

    /// Says something. What the line does not take now is sent by [`Line::flush`].
    ///
    /// # Errors
    ///
    /// `NotFound` if the responder is gone; any other if it has not listened for 32 MiB.
    pub fn send(&mut self, order: &Order) -> Result<()> {
        self.channel.send(order)
    }

    /// Goes on sending, if [`Line::wants_to_write`].
    pub fn flush(&mut self) -> Result<()> {
        self.channel.flush()
    }

    /// Whether to wait for the line to become writable.
    pub fn wants_to_write(&self) -> bool {
        !self.channel.out.is_empty()
    }

    /// What the responder has said.
    ///
    /// # Errors
    ///
    /// `NotFound` if the responder is gone.
    pub fn reports(&mut self) -> Result<Vec<Report>> {
        self.channel.receive()
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.socket.as_fd()
    }
}

/// Either end.
pub(crate) struct Channel {
    pub socket: OwnedFd,
    pub out: Vec<u8>,
    heard: Vec<u8>,
}

impl Channel {
    pub fn new(socket: OwnedFd) -> Self {
        Channel { socket, out: Vec::new(), heard: Vec::new() }
    }

    pub fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec(message).map_err(|e| error(e.to_string())).context("writing a message")?;
        if self.out.len() + text.len() > LONGEST {
            return Err(error("the other end of the control line does not listen"));
        }
        self.out.extend_from_slice(&(text.len() as u32).to_ne_bytes());
        self.out.extend_from_slice(&text);
        self.flush()
    }

    pub fn flush(&mut self) -> Result<()> {
        while !self.out.is_empty() {
            match send(&self.socket, &self.out, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.out.drain(..sent)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(gone()),
                Err(e) => return Err(e).context("writing to the control line"),
            }
        }
        self.out.shrink_to(64 << 10);
        Ok(())
    }

    /// Whole messages that have come. Those before a hang-up are still returned; the next call tells of it.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<Vec<T>> {
        let mut hung_up = false;
        let mut part = [0; 16 << 10];
        loop {
            match recv(&self.socket, &mut part[..], RecvFlags::empty()) {
                Ok((0, _)) | Err(Errno::CONNRESET) => {
                    hung_up = true;
                    break;
                }
                Ok((count, _)) => self.heard.extend_from_slice(&part[..count]),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).context("reading from the control line"),
            }
            // The rest may wait for its turn: somebody talks without end.
            if self.heard.len() > LONGEST {
                break;
            }
        }
        let mut messages = Vec::new();
        let mut at = 0;
        while let Some(head) = self.heard.get(at..at + 4) {
            let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            if length > LONGEST {
                return Err(error("a message on the control line is too long"));
            }
            let Some(text) = self.heard.get(at + 4..at + 4 + length) else { break };
            let message = serde_json::from_slice(text).map_err(|e| error(e.to_string()));
            messages.push(message.context("reading a message on the control line")?);
            at += 4 + length;
        }
        self.heard.drain(..at);
        self.heard.shrink_to(64 << 10);
        if hung_up && messages.is_empty() { Err(gone()) } else { Ok(messages) }
    }
}

fn gone() -> lazaret_base::Error {
    error("the other end of the control line is gone").kind(Kind::NotFound)
}
