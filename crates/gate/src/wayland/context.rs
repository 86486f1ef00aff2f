//! The door that a compositor itself makes for programs it does not trust (security-context-v1).
//!
//! The compositor gets a listening socket and is told for whom it is. Whoever connects there is offered less, whatever
//! the compositor holds to be too much. It listens for as long as the other end of a pipe is open.
//!
//! The gate's filter stays before it: what compositors leave out differs, and titles, the clipboard and descriptors
//! that nobody asked for are no matter of this protocol.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use lazaret_base::{Context as _, Kind, Result, error};
use lazaret_sys::local::{self, send_along};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen, recv};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::stream::open;

use super::wire::{Argument, HEADER, Head, text, word, written};

const MANAGER: &[u8] = b"wp_security_context_manager_v1";
/// What the compositor is told we are.
const ENGINE: &[u8] = b"lazaret";
/// How long a compositor may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// What it may say about itself at most.
const MOST_SAID: usize = 1 << 20;

/// A door of the compositor's own making. It is closed with this.
#[derive(Debug)]
pub(super) struct Context {
    /// A name without a file, in our own network namespace: nobody else can reach it.
    pub address: SocketAddrUnix,
    _open: OwnedFd,
}

/// Has a compositor make such a door. `None` if it can't.
///
/// # Errors
///
/// [`Kind::NotFound`] where no compositor listens; what it says if it refuses.
pub(super) fn ask(socket: &Path, container: &str, count: u64) -> Result<Option<Context>> {
    let mut link = Link::connect(socket)?;
    // wl_display.get_registry, wl_display.sync.
    link.send(&[written(1, 1, &[Argument::Word(2)]), written(1, 0, &[Argument::Word(3)])].concat(), &[])?;
    let mut manager = None;
    link.hear(3, |head, message| {
        if (head.object, head.number) == (2, 0) && text(message, HEADER + 4).is_some_and(|(name, _)| name == MANAGER) {
            manager = Some(word(message, HEADER));
        }
    })?;
    let Some(name) = manager else { return Ok(None) };

    let address = SocketAddrUnix::new_abstract_name(format!("wayland-{count}").as_bytes())?;
    let listener = local::socket(SocketType::STREAM, SocketFlags::empty())?;
    bind(&listener, &address).and_then(|()| listen(&listener, 128)).context("listening for the compositor")?;
    let (closes, open) = pipe_with(PipeFlags::CLOEXEC)?;
    let requests = [
        // wl_registry.bind, as object 4.
        written(2, 0, &[Argument::Word(name), Argument::Text(MANAGER), Argument::Word(1), Argument::Word(4)]),
        // create_listener, as object 5, with both descriptors.
        written(4, 1, &[Argument::Word(5)]),
        written(5, 1, &[Argument::Text(ENGINE)]),
        written(5, 2, &[Argument::Text(container.as_bytes())]),
        written(5, 3, &[Argument::Text(container.as_bytes())]),
        // commit, and wl_display.sync.
        written(5, 4, &[]),
        written(1, 0, &[Argument::Word(6)]),
    ];
    link.send(&requests.concat(), &[&listener, &closes])?;
    link.hear(6, |_, _| {})?;
    Ok(Some(Context { address, _open: open }))
}

/// Whether somebody listens, and says something.
pub(super) fn greet(socket: &Path) -> Result<()> {
    let mut link = Link::connect(socket)?;
    link.send(&written(1, 0, &[Argument::Word(2)]), &[])?;
    link.hear(2, |_, _| {})
}

/// The gate's own connection.
struct Link(OwnedFd);

impl Link {
    fn connect(socket: &Path) -> Result<Link> {
        let connecting = || format!("connecting to the compositor at `{}`", socket.display());
        let stream = SocketAddrUnix::new(socket).and_then(|address| open(&address));
        stream.map(Link).map_err(|e| lazaret_base::Error::from(e).kind(Kind::NotFound)).with_context(connecting)
    }

    /// A new connection takes this much at once.
    fn send(&mut self, bytes: &[u8], fds: &[&OwnedFd]) -> Result<()> {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        match send_along(&self.0, bytes, &fds)? {
            n if n == bytes.len() => Ok(()),
            _ => Err(error("the compositor takes nothing")),
        }
    }

    /// Hears what the compositor says until the callback `done` is called.
    fn hear(&mut self, done: u32, mut each: impl FnMut(&Head, &[u8])) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut bytes = Vec::new();
        let (mut chunk, mut said) = (vec![0; 4096], 0);
        loop {
            while let Some(head) = Head::read(&bytes).filter(|head| (HEADER..=bytes.len()).contains(&head.length)) {
                let message: Vec<u8> = bytes.drain(..head.length).collect();
                match (head.object, head.number) {
                    (1, 0) => {
                        let words = text(&message, HEADER + 8).map_or(&b"an error"[..], |(words, _)| words);
                        return Err(error(format!("the compositor says: {}", String::from_utf8_lossy(words))));
                    }
                    (object, 0) if object == done => return Ok(()),
                    _ => each(&head, &message),
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(error("the compositor does not answer")),
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            match recv(&self.0, &mut chunk[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(error("the compositor hangs up").kind(Kind::NotFound)),
                Ok((n, _)) if said + n <= MOST_SAID => {
                    said += n;
                    bytes.extend(&chunk[..n]);
                }
                Ok(_) => return Err(error("the compositor says too much")),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
