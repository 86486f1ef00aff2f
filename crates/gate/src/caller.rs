//! Somebody who tells a gate what to do: lines come in, and each is answered with a line.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with, recv};

use crate::stream::{Over, write_some};

/// The longest line that a caller says.
const MOST_LINE: usize = 256;
/// Callers at once. More are hung up on.
const MOST_CALLERS: usize = 8;

/// A connection of somebody who tells the gate what to do.
#[derive(Debug)]
pub(crate) struct Caller {
    pub stream: OwnedFd,
    /// What was said without the end of the line.
    line: Vec<u8>,
    /// Answers that have not been read.
    answers: Vec<u8>,
    /// An answer comes later.
    pub waits: bool,
}

impl Caller {
    /// Takes one more, if there are not too many.
    pub fn accept(calls: BorrowedFd<'_>, callers: &mut Vec<Caller>) {
        let Ok(stream) = accept_with(calls, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else { return };
        if callers.len() < MOST_CALLERS {
            callers.push(Caller { stream, line: Vec::new(), answers: Vec::new(), waits: false });
        }
    }

    /// What to wait for.
    pub fn wants(&self) -> PollFlags {
        if self.answers.is_empty() { PollFlags::IN } else { PollFlags::OUT }
    }

    /// Hears what is said: whole lines.
    pub fn hear(&mut self) -> Result<Vec<String>, Over> {
        let mut bytes = [0; MOST_LINE];
        let mut lines = Vec::new();
        loop {
            match recv(&self.stream, &mut bytes[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(Over),
                Ok((n, _)) => self.line.extend(&bytes[..n]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(Over),
            }
            while let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                lines.push(String::from_utf8_lossy(&line).trim().to_owned());
            }
            if self.line.len() > MOST_LINE {
                return Err(Over);
            }
        }
        self.say_more().map(|()| lines)
    }

    /// Answers. Whoever doesn't listen is noticed when there is more to hear.
    pub fn say(&mut self, line: &str) {
        self.answers.extend(line.as_bytes());
        self.answers.push(b'\n');
        let _ = self.say_more();
    }

    fn say_more(&mut self) -> Result<(), Over> {
        write_some(self.stream.as_fd(), &mut self.answers)
    }
}

/// What becomes of a line.
pub(crate) enum Reply {
    /// It is answered.
    Say(String),
    /// The gate ends; so does the line, when it has.
    Stop,
}

/// Callers of a gate that answers each line at once.
#[derive(Default)]
pub(crate) struct Callers(Vec<Caller>);

impl Callers {
    /// What to wait for, one for each caller.
    pub fn watched(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.0.iter().map(|caller| PollFd::new(&caller.stream, caller.wants()))
    }

    /// Takes a new one.
    pub fn accept(&mut self, calls: BorrowedFd<'_>) {
        Caller::accept(calls, &mut self.0);
    }

    /// Hears the callers, to each of whom belongs an event. False at the end: then all of them are still on the line.
    pub fn hear(&mut self, ready: &[PollFlags], mut what: impl FnMut(&str) -> Reply) -> bool {
        let (mut goes_on, mut events) = (true, ready.iter());
        self.0.retain_mut(|caller| {
            if events.next().is_none_or(|ready| ready.is_empty()) || !goes_on {
                return true;
            }
            let Ok(lines) = caller.hear() else { return false };
            for line in lines {
                match what(&line) {
                    Reply::Say(answer) => caller.say(&answer),
                    Reply::Stop => {
                        goes_on = false;
                        break;
                    }
                }
            }
            true
        });
        goes_on
    }
}

/// An error in one line: what is wrong, and what to do about it behind a tab.
pub(crate) fn said(e: &lazaret_base::Error) -> String {
    let hint = e.advice().map(|hint| format!("\t{hint}")).unwrap_or_default();
    format!("{e}{hint}").replace('\n', " ")
}
