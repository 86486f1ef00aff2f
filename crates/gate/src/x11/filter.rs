//! One connection: bytes in, bytes and notices out, in both directions, without a system call.
//!
//! A request is passed on, changed, or refused. A refused request travels as something harmless, so that the server
//! counts it too: as NoOperation where the program shall see nothing, as GetInputFocus where it shall see an error or
//! an answer of ours, which then takes the place of GetInputFocus's reply. So everything the program gets is in the
//! order that the protocol promises. The gate's own requests are taken out of the count of sequence numbers again.

mod answer;
mod decide;
mod message;
mod property;

use std::borrow::Cow;
use std::collections::VecDeque;

use super::authority::{COOKIE_NAME, Cookie};
use super::container::Container;
use super::table::code;
use super::wire::{Order, padded, request};

/// What of a request is looked at before it is passed on.
const HEAD: usize = 128;
/// The longest title; what is longer is cut.
const MOST_TITLE: usize = 4096;
/// The longest request in bytes: what a server allows with BIG-REQUESTS if nobody told it otherwise.
const MOST_REQUEST: usize = 4 * 4_194_303;
/// Questions on their way, at most: the server keeps the answers for a client that doesn't read.
const MOST_PENDING: usize = 1024;
/// Requests without an answer, at most: sequence numbers have 16 bits.
const MOST_SILENT: u64 = 0x3fff;
/// Opcodes that stand in for others.
const GET_INPUT_FOCUS: u8 = 43;
const NO_OPERATION: u8 = 127;

/// Why a connection ends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// Where output goes.
pub struct Flow<'a> {
    /// Bytes for the server.
    pub to_server: &'a mut Vec<u8>,
    /// Bytes for the program.
    pub to_client: &'a mut Vec<u8>,
    /// What the loop has to know.
    pub notices: &'a mut Vec<Notice>,
}

/// What the loop has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The program has the pointer, and will see all of its movements until it lets go. This window had the keyboard.
    Grabbed {
        /// The window with the keyboard focus.
        focus: u32,
    },
    /// A program has something to paste: it owns this selection now (`PRIMARY` or `CLIPBOARD`).
    Copied {
        /// The selection's atom, as everybody else knows it.
        selection: u32,
    },
    /// A program wants something of the window manager, for a window of its own: an event for the root window, as words
    /// of the gate's own byte order.
    Wish([u32; 8]),
}

/// One connection of a program.
#[derive(Debug)]
pub struct Filter {
    key: u64,
    cookie: Cookie,
    trusted: bool,
    phase: Phase,
    order: Order,
    /// BIG-REQUESTS are on.
    big: bool,
    /// The rest of a request that has been decided on.
    rest: Rest,
    /// The rest of a reply.
    reply_rest: Rest,
    base: u32,
    mask: u32,
    roots: Vec<u32>,
    colormaps: Vec<u32>,
    /// The number of the last request that was sent.
    sent: u64,
    /// The number of the last one that the server has answered or mentioned.
    heard: u64,
    /// The number of the last one that was sent and has an answer.
    asked: u64,
    /// Our own requests that the server has not come to yet.
    injected: VecDeque<u64>,
    /// How many of our own it is past.
    shift: u64,
    pending: VecDeque<Pending>,
    held: Option<Held>,
    /// Requests to send right after the one that is being decided on.
    after: Vec<Vec<u8>>,
    grabbed: bool,
    /// The window that last was known to have the keyboard.
    focus: u32,
    /// Where the program last saw the pointer.
    pointer: (i16, i16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The program introduces itself.
    Hello,
    /// Its credentials are thrown away.
    Credentials(usize),
    /// The server answers.
    Waiting,
    Running,
    /// The server trusts it: nothing is looked at.
    Trusted,
    /// The server does not want it. Its reasons are passed on.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Pass(usize),
    Skip(usize),
}

const DONE: Rest = Rest::Pass(0);

impl Rest {
    /// Takes what belongs to it of the input, and says how many bytes that is; `None` if nothing is left to be taken.
    fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        let (Rest::Pass(left) | Rest::Skip(left)) = *self;
        if *self == DONE {
            return None;
        }
        let used = left.min(input.len());
        *self = match *self {
            Rest::Pass(_) => {
                out.extend_from_slice(&input[..used]);
                Rest::Pass(left - used)
            }
            Rest::Skip(_) if used == left => DONE,
            Rest::Skip(_) => Rest::Skip(left - used),
        };
        Some(used)
    }
}

/// A question that the server has not answered.
#[derive(Debug)]
struct Pending {
    number: u64,
    /// As it was sent.
    opcode: u8,
    expect: Expect,
}

/// What is done with the answer.
#[derive(Debug)]
enum Expect {
    Pass,
    /// It was only asked to hear something.
    Drop,
    /// Ours takes its place.
    Answer(Vec<u8>),
    Fonts,
    Tree(u32),
    Translated,
    Focus,
    /// Before QueryPointer: who has the keyboard?
    Engaged,
    Pointer,
    Owner,
    Atom,
    Manager,
    Grab,
    /// For the request that is being held.
    HeldFocus,
    HeldPointer,
    HeldGeometry,
}

/// A request that waits for what the server says about it.
#[derive(Debug)]
enum Held {
    Grab(Vec<u8>),
    Warp(Vec<u8>),
    /// A window that exists already shall be unmanaged from now on.
    Unmanage(Vec<u8>),
}

/// What becomes of a request.
#[derive(Debug)]
enum Decision {
    Pass(Option<Expect>),
    /// Its beginning is replaced by as many bytes.
    Edit(Vec<u8>, Option<Expect>),
    /// All of it is replaced.
    Replace(Vec<u8>),
    Ignore,
    Error(u8, u32),
    /// It is answered by us; the sequence number is filled in.
    Answer(Vec<u8>),
    Hold(Held),
}

impl Filter {
    /// A connection that has just begun. `key` is how the container knows it; `cookie` is shown to the server.
    pub fn new(key: u64, cookie: Cookie) -> Filter {
        Filter {
            key,
            cookie,
            trusted: false,
            phase: Phase::Hello,
            order: Order::Little,
            big: false,
            rest: DONE,
            reply_rest: DONE,
            base: 0,
            mask: 0,
            roots: Vec::new(),
            colormaps: Vec::new(),
            sent: 0,
            heard: 0,
            asked: 0,
            injected: VecDeque::new(),
            shift: 0,
            pending: VecDeque::new(),
            held: None,
            after: Vec::new(),
            grabbed: false,
            focus: 0,
            pointer: (0, 0),
        }
    }

    /// A connection of which nothing is changed but its credentials: the cookie is one that the server trusts.
    pub fn trusted(key: u64, cookie: Cookie) -> Filter {
        Filter { trusted: true, ..Filter::new(key, cookie) }
    }

    /// Whether the connection is one of [`Filter::trusted`].
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// What comes after the introduction.
    fn introduced(&self) -> Phase {
        if self.trusted { Phase::Trusted } else { Phase::Waiting }
    }

    /// Whether nothing more of the program's is taken until the server has said something.
    pub fn waits(&self) -> bool {
        match self.phase {
            Phase::Hello | Phase::Credentials(_) | Phase::Trusted => false,
            Phase::Waiting | Phase::Refused => true,
            Phase::Running => self.held.is_some() || self.pending.len() >= MOST_PENDING,
        }
    }

    /// Takes what the program has sent; says how many bytes were used. The others are to be offered again, with more
    /// after them or after the server has said something.
    ///
    /// # Errors
    ///
    /// What no program would send that is meant well. The connection is to be closed.
    pub fn from_client(
        &mut self,
        input: &[u8],
        container: &mut Container,
        flow: &mut Flow<'_>,
    ) -> Result<usize, Broken> {
        let mut at = 0;
        loop {
            let left = &input[at..];
            let used = match self.phase {
                Phase::Hello => self.hello(left, flow)?,
                Phase::Credentials(n) => {
                    let used = left.len().min(n);
                    self.phase = if used == n { self.introduced() } else { Phase::Credentials(n - used) };
                    used
                }
                Phase::Waiting | Phase::Refused => 0,
                Phase::Trusted => {
                    flow.to_server.extend(left);
                    left.len()
                }
                Phase::Running => self.request(left, container, flow)?,
            };
            at += used;
            if used == 0 {
                return Ok(at);
            }
        }
    }

    /// Takes what the server has sent, as [`Filter::from_client`] does.
    ///
    /// # Errors
    ///
    /// What no server sends.
    pub fn from_server(
        &mut self,
        input: &[u8],
        container: &mut Container,
        flow: &mut Flow<'_>,
    ) -> Result<usize, Broken> {
        let mut at = 0;
        loop {
            let left = &input[at..];
            let used = match self.phase {
                Phase::Hello | Phase::Credentials(_) if left.is_empty() => 0,
                Phase::Hello | Phase::Credentials(_) => return Err(Broken("the server speaks out of turn")),
                Phase::Waiting => self.welcome(left, container, flow)?,
                Phase::Refused | Phase::Trusted => {
                    flow.to_client.extend(left);
                    left.len()
                }
                Phase::Running => self.message(left, container, flow)?,
            };
            at += used;
            if used == 0 {
                return Ok(at);
            }
        }
    }

    /// How many bytes of the program's go to the server as they are, whatever they are.
    pub fn passing(&self) -> usize {
        match (self.phase, self.rest) {
            (Phase::Running, Rest::Pass(n)) => n,
            _ => 0,
        }
    }

    /// So many of [`Filter::passing`] have gone to the server without the filter's having seen them.
    pub fn passed(&mut self, n: usize) {
        if let Rest::Pass(left) = self.rest {
            self.rest = Rest::Pass(left.saturating_sub(n));
        }
    }

    /// Takes the pointer away from the program, if it has it. False if that can't be done now, because half a request
    /// is on its way; then the connection is to be closed if it does not go on soon.
    pub fn release(&mut self, flow: &mut Flow<'_>) -> bool {
        if self.phase != Phase::Running || !self.grabbed {
            return true;
        }
        if self.rest != DONE {
            return false;
        }
        self.grabbed = false;
        // UngrabPointer
        let bytes = request(self.order, 27, 0, &[0]);
        self.inject(bytes, None, flow);
        true
    }

    /// The introduction: its credentials are replaced by ours.
    fn hello(&mut self, input: &[u8], flow: &mut Flow<'_>) -> Result<usize, Broken> {
        let Some(head) = input.get(..12) else { return Ok(0) };
        self.order = match head[0] {
            b'l' => Order::Little,
            b'B' => Order::Big,
            _ => return Err(Broken("no byte order")),
        };
        let skip = padded(self.order.u16(head, 6).into()) + padded(self.order.u16(head, 8).into());
        self.phase = if skip == 0 { self.introduced() } else { Phase::Credentials(skip) };
        let mut ours = vec![head[0], 0];
        ours.extend(&head[2..6]);
        ours.extend(self.order.bytes16(COOKIE_NAME.len() as u16));
        ours.extend(self.order.bytes16(self.cookie.0.len() as u16));
        ours.extend([0, 0]);
        ours.extend(COOKIE_NAME);
        ours.resize(12 + padded(COOKIE_NAME.len()), 0);
        ours.extend(self.cookie.0);
        flow.to_server.extend(ours);
        Ok(12)
    }

    /// One request, or a part of its body. 0 if more bytes are needed first.
    fn request(&mut self, input: &[u8], container: &mut Container, flow: &mut Flow<'_>) -> Result<usize, Broken> {
        if input.is_empty() {
            return Ok(0);
        }
        if let Some(used) = self.rest.take(input, flow.to_server) {
            return Ok(used);
        }
        if self.waits() || input.len() < 4 {
            return Ok(0);
        }
        let Some((total, extra)) = self.length(input)? else { return Ok(0) };
        // The length of BIG-REQUESTS stands between the first word and the others; what decides has never seen it.
        let size = total - extra;
        let look = property::wanted(self.order, input, extra, size, container).unwrap_or(size.min(HEAD));
        let Some(bytes) = input.get(..extra + look) else { return Ok(0) };
        let head: Cow<'_, [u8]> =
            if extra == 0 { Cow::Borrowed(bytes) } else { Cow::Owned([&bytes[..4], &bytes[8..]].concat()) };
        if self.sent - self.asked >= MOST_SILENT {
            self.inject(request(self.order, GET_INPUT_FOCUS, 0, &[]), Some(Expect::Drop), flow);
        }
        let left = size - look;
        let mut decision = self.decide(&head, size, container, flow);
        // What is held is sent as it was looked at, and what comes after must not come before the end of this request.
        // Requests of these kinds are never that long.
        if left > 0 && (matches!(decision, Decision::Hold(_)) || !self.after.is_empty()) {
            self.after.clear();
            decision = Decision::Error(code::LENGTH, 0);
        }
        match decision {
            Decision::Pass(expect) => {
                self.count(head[0], expect);
                flow.to_server.extend_from_slice(bytes);
                self.rest = Rest::Pass(left);
            }
            Decision::Edit(edited, expect) => {
                self.count(head[0], expect);
                flow.to_server.extend_from_slice(&edited[..4]);
                flow.to_server.extend_from_slice(&bytes[4..4 + extra]);
                flow.to_server.extend_from_slice(&edited[4..]);
                self.rest = Rest::Pass(left);
            }
            other => {
                self.instead(other, &head, flow);
                self.rest = if left == 0 { DONE } else { Rest::Skip(left) };
            }
        }
        for bytes in std::mem::take(&mut self.after) {
            self.inject(bytes, None, flow);
        }
        Ok(bytes.len())
    }

    /// Sends something else in place of a request.
    fn instead(&mut self, decision: Decision, head: &[u8], flow: &mut Flow<'_>) {
        match decision {
            Decision::Replace(bytes) => {
                self.count(bytes[0], None);
                flow.to_server.extend(bytes);
            }
            Decision::Ignore => {
                self.count(NO_OPERATION, None);
                flow.to_server.extend(request(self.order, NO_OPERATION, 0, &[]));
            }
            Decision::Error(code, value) => {
                let error = answer::error(self.order, code, value, head[0]);
                self.answer(error, flow);
            }
            Decision::Answer(bytes) => self.answer(bytes, flow),
            Decision::Hold(held) => self.hold(held, flow),
            // Passed on by the caller.
            Decision::Pass(_) | Decision::Edit(..) => {}
        }
    }

    /// A request of the program's that we answer.
    fn answer(&mut self, bytes: Vec<u8>, flow: &mut Flow<'_>) {
        self.count(GET_INPUT_FOCUS, Some(Expect::Answer(bytes)));
        flow.to_server.extend(request(self.order, GET_INPUT_FOCUS, 0, &[]));
    }

    /// Asks what has to be known for a request that is being held.
    fn hold(&mut self, held: Held, flow: &mut Flow<'_>) {
        match &held {
            Held::Grab(_) => {
                let root = self.roots.first().copied().unwrap_or(0);
                self.inject(request(self.order, GET_INPUT_FOCUS, 0, &[]), Some(Expect::HeldFocus), flow);
                self.inject(request(self.order, 38, 0, &[root]), Some(Expect::HeldPointer), flow);
            }
            Held::Warp(head) => {
                let window = self.order.u32(head, 8);
                self.inject(request(self.order, 14, 0, &[window]), Some(Expect::HeldGeometry), flow);
            }
            Held::Unmanage(head) => {
                let window = self.order.u32(head, 4);
                self.inject(request(self.order, 14, 0, &[window]), Some(Expect::HeldGeometry), flow);
            }
        }
        self.held = Some(held);
    }

    /// A request goes out, and the server will count it.
    fn count(&mut self, opcode: u8, expect: Option<Expect>) {
        self.sent += 1;
        if let Some(expect) = expect {
            self.asked = self.sent;
            self.pending.push_back(Pending { number: self.sent, opcode, expect });
        }
    }

    /// Sends a request of our own.
    fn inject(&mut self, bytes: Vec<u8>, expect: Option<Expect>, flow: &mut Flow<'_>) {
        self.count(bytes[0], expect);
        self.injected.push_back(self.sent);
        flow.to_server.extend(bytes);
    }

    /// The length of a request, and how many bytes of it BIG-REQUESTS have put in.
    fn length(&self, input: &[u8]) -> Result<Option<(usize, usize)>, Broken> {
        let short = usize::from(self.order.u16(input, 2)) * 4;
        if short > 0 {
            return Ok(Some((short, 0)));
        }
        if !self.big {
            return Err(Broken("a request without a length"));
        }
        if input.len() < 8 {
            return Ok(None);
        }
        let long = (self.order.u32(input, 4) as usize).saturating_mul(4);
        if !(8..=MOST_REQUEST).contains(&long) {
            return Err(Broken("a request of an impossible length"));
        }
        Ok(Some((long, 4)))
    }

    /// Whether this is one of the screens' root windows.
    fn is_root(&self, id: u32) -> bool {
        self.roots.contains(&id)
    }

    /// Whether our container made it. Mostly this very connection did.
    fn owns(&self, id: u32, container: &Container) -> bool {
        id & !self.mask == self.base || container.owns(id)
    }
}
