//! The process that answers DNS and DHCP: begun, told, and begun again should it end.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lazaret_base::{Context, Result};
use rustix::event::PollFlags;

use crate::responder::{Line, Order, Report, Sockets, View};

/// A responder that ends sooner than this is not begun again at once.
const SHORTEST_LIFE: Duration = Duration::from_secs(2);

/// The responder and its sockets, which outlive it.
pub(super) struct Answering {
    sockets: Sockets,
    running: Option<Running>,
    /// When it was begun last.
    begun: Instant,
}

struct Running {
    line: Line,
    child: Child,
}

impl Answering {
    /// Opens the sockets. Nobody answers yet.
    pub fn new(bridge: &str, gateway4: IpAddr, gateway6: IpAddr) -> Result<Answering> {
        let (IpAddr::V4(gateway4), IpAddr::V6(gateway6)) = (gateway4, gateway6) else {
            return Err(lazaret_base::error("a gateway is of the wrong family"));
        };
        let sockets = Sockets::open(bridge, gateway4, Some(gateway6)).context("opening the sockets of DNS and DHCP")?;
        let long_ago = Instant::now().checked_sub(SHORTEST_LIFE).unwrap_or_else(Instant::now);
        Ok(Answering { sockets, running: None, begun: long_ago })
    }

    /// Begins a responder that knows this.
    pub fn begin(&mut self, mut program: Command, view: View) -> Result<()> {
        self.end();
        self.begun = Instant::now();
        let (mut line, theirs) = Line::pair()?;
        let child = program
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .current_dir("/")
            .spawn()
            .context("beginning the responder")?;
        line.hand_over(&self.sockets)?;
        line.send(&Order::View(view))?;
        self.running = Some(Running { line, child });
        Ok(())
    }

    /// Tells it something. If that fails, it has ended, and the next one is told everything.
    pub fn tell(&mut self, order: &Order) {
        if self.running.as_mut().is_some_and(|running| running.line.send(order).is_err()) {
            self.end();
        }
    }

    /// What it says.
    pub fn hear(&mut self) -> Vec<Report> {
        let Some(running) = &mut self.running else { return Vec::new() };
        match running.line.reports() {
            Ok(reports) if running.line.flush().is_ok() => reports,
            _ => {
                self.end();
                Vec::new()
            }
        }
    }

    /// What to wait for.
    pub fn watched(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let line = &self.running.as_ref()?.line;
        let more = if line.wants_to_write() { PollFlags::OUT } else { PollFlags::empty() };
        Some((line.as_fd(), PollFlags::IN | more))
    }

    /// When one is to be begun, if none runs.
    pub fn due(&self) -> Option<Instant> {
        match self.running {
            Some(_) => None,
            None => Some(self.begun + SHORTEST_LIFE),
        }
    }

    /// Its process; 0 if it does not run.
    pub fn pid(&self) -> i32 {
        self.running.as_ref().map_or(0, |running| running.child.id() as i32)
    }

    /// Ends it and waits for its end.
    pub fn end(&mut self) {
        if let Some(Running { line, mut child }) = self.running.take() {
            drop(line);
            // It has nothing to lose.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.end();
    }
}

/// Servers of a container's own, as the responder asks them.
pub(super) fn servers(addresses: &[IpAddr]) -> Vec<SocketAddr> {
    addresses.iter().map(|address| SocketAddr::new(*address, 53)).collect()
}
