//! Netlink (netlink(7)): requests as typed bytes, answers as bounded ones, and one synchronous socket.
//!
//! The kernel acts on a request inside sendmsg(2), so several requests go in one datagram and their
//! acknowledgements are waiting when the call returns. Requests of one datagram are acted on in order,
//! and a refused one does not stop those behind it (`netlink_rcv_skb`, net/netlink/af_netlink.c):
//! whoever puts a request behind another must be content with that.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use lazaret_base::{Context, Error, Result, error};
use lazaret_sys::net::{NetlinkOption, netlink_option};
use lazaret_sys::process::{join, namespace};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `NLM_F_REQUEST`: set on everything that is sent.
const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: every request is answered, so that none is waited for in vain.
const ACK: u16 = 0x4;
/// `NLM_F_DUMP_INTR`: the table changed while it was listed.
const INTERRUPTED: u16 = 0x10;
/// `NLM_F_DUMP`: list a whole table.
const DUMP: u16 = 0x300;
/// `NLM_F_CAPPED`: the acknowledgement repeats only the header of the request.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: attributes follow, the kernel's sentence among them.
const ACK_ATTRIBUTES: u16 = 0x200;
/// `NLM_F_REPLACE`: what exists is changed.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`: what exists is an error.
pub const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`: what doesn't exist is made.
pub const CREATE: u16 = 0x400;

/// `NLMSG_NOOP`.
const NOOP: u16 = 1;
/// `NLMSG_ERROR`: an acknowledgement, of success (0) or of an errno.
const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a list.
const DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`: the kernel's sentence.
const SENTENCE: u16 = 1;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// The largest datagram the kernel makes for a list is 32 KiB; one of a single device with many virtual
/// functions may be longer.
const RECEIVE: usize = 64 * 1024;
/// A list that changed while it was made is asked for again this many times, then taken as it is.
const RETRIES: usize = 8;

/// One request: the bytes for the kernel, and the sentence for the user should it be refused.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
    doing: String,
    tolerated: &'static [Errno],
}

impl Message {
    /// A request of `kind` (as `RTM_NEWLINK`) with the fixed header that this kind has; `doing` says
    /// what is being done, as the outermost sentence of an error.
    pub fn new(kind: u16, flags: u16, header: &[u8], doing: impl Into<String>) -> Message {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend([0; 4]); // The length, known when it is sent.
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST | ACK).to_ne_bytes());
        bytes.extend([0; 8]); // The sequence number, set when it is sent; and port 0, the kernel.
        bytes.extend(header);
        pad(&mut bytes);
        Message { bytes, doing: doing.into(), tolerated: &[] }
    }

    /// These refusals are success: what was asked for is so already.
    pub fn tolerating(mut self, errnos: &'static [Errno]) -> Message {
        self.tolerated = errnos;
        self
    }

    /// An attribute of raw bytes.
    pub fn bytes(mut self, attribute: u16, value: &[u8]) -> Message {
        let start = self.open(attribute);
        self.bytes.extend(value);
        self.close(start);
        self
    }

    /// An attribute of one byte.
    pub fn u8(self, attribute: u16, value: u8) -> Message {
        self.bytes(attribute, &[value])
    }

    /// An attribute of two bytes, in the machine's order.
    pub fn u16(self, attribute: u16, value: u16) -> Message {
        self.bytes(attribute, &value.to_ne_bytes())
    }

    /// An attribute of four bytes, in the machine's order.
    pub fn u32(self, attribute: u16, value: u32) -> Message {
        self.bytes(attribute, &value.to_ne_bytes())
    }

    /// An attribute of eight bytes, in the machine's order.
    pub fn u64(self, attribute: u16, value: u64) -> Message {
        self.bytes(attribute, &value.to_ne_bytes())
    }

    /// An attribute that is a C string.
    pub fn text(mut self, attribute: u16, value: &str) -> Message {
        let start = self.open(attribute);
        // The kernel would take what is behind a NUL for another word.
        self.bytes.extend(value.bytes().take_while(|byte| *byte != 0));
        self.bytes.push(0);
        self.close(start);
        self
    }

    /// An attribute that holds attributes.
    pub fn nest(self, attribute: u16, fill: impl FnOnce(Message) -> Message) -> Message {
        self.compound(attribute | NESTED, &[], fill)
    }

    /// An attribute that holds a structure and then attributes (`VETH_INFO_PEER`, the options of netem):
    /// it is not marked as nested, because a structure is no attribute.
    pub fn compound(mut self, attribute: u16, header: &[u8], fill: impl FnOnce(Message) -> Message) -> Message {
        let start = self.open(attribute);
        self.bytes.extend(header);
        pad(&mut self.bytes);
        let mut filled = fill(self);
        filled.close(start);
        filled
    }

    /// The encoded request without its sequence number.
    pub fn encoded(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    fn open(&mut self, attribute: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(attribute.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        // Names, addresses and a few hundred filter keys: nothing we encode comes near 64 KiB.
        let length = u16::try_from(self.bytes.len() - start).expect("an attribute is shorter than 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        pad(&mut self.bytes);
    }

    /// Appends the request to a datagram, with its length and sequence number.
    fn put(&self, datagram: &mut Vec<u8>, sequence: u32) {
        let start = datagram.len();
        datagram.extend(self.encoded());
        datagram[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// Everything in netlink begins at a multiple of four.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attributes in a run of bytes. What is cut off or nonsensical ends the run, never the program.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The last attribute of this kind: the kernel's own parser lets the last one win (`nla_parse`).
    pub fn last(self, attribute: u16) -> Option<&'a [u8]> {
        self.filter(|(kind, _)| *kind == attribute).last().map(|(_, value)| value)
    }

    /// The attributes inside an attribute; none if it is not there.
    pub fn inside(self, attribute: u16) -> Attributes<'a> {
        Attributes(self.last(attribute).unwrap_or_default())
    }

    /// A number of one byte.
    pub fn u8(self, attribute: u16) -> Option<u8> {
        self.last(attribute)?.first().copied()
    }

    /// A number of four bytes.
    pub fn u32(self, attribute: u16) -> Option<u32> {
        read_u32(self.last(attribute)?, 0)
    }

    /// A C string, up to its NUL.
    pub fn text(self, attribute: u16) -> Option<String> {
        Some(text(self.last(attribute)?))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(read_u16(self.0, 0)?);
        let kind = read_u16(self.0, 2)? & !0xc000;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Two bytes at `at`, in the machine's order.
pub fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Four bytes at `at`, in the machine's order.
pub fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Eight bytes at `at`, in the machine's order.
pub fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// One message of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// As `RTM_NEWLINK`.
    pub kind: u16,
    /// What follows the netlink header: the fixed header of the kind, then attributes.
    pub body: &'a [u8],
    /// Of an event: the socket whose request made it; 0 is the kernel's own.
    pub port: u32,
    flags: u16,
    sequence: u32,
}

impl<'a> Answer<'a> {
    /// The attributes behind a fixed header of this many bytes.
    pub fn attributes(&self, header: usize) -> Attributes<'a> {
        Attributes(self.body.get(header.next_multiple_of(4)..).unwrap_or_default())
    }
}

/// The messages of one datagram. What is cut off ends it.
#[derive(Clone, Copy, Debug)]
pub struct Answers<'a>(pub &'a [u8]);

impl<'a> Iterator for Answers<'a> {
    type Item = Answer<'a>;

    fn next(&mut self) -> Option<Answer<'a>> {
        let length = usize::try_from(read_u32(self.0, 0)?).ok()?;
        let kind = read_u16(self.0, 4)?;
        let flags = read_u16(self.0, 6)?;
        let sequence = read_u32(self.0, 8)?;
        let port = read_u32(self.0, 12)?;
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Answer { kind, body, port, flags, sequence })
    }
}

/// A message of the kernel that outlives its datagram.
#[derive(Clone, Debug)]
pub struct Kept {
    /// As [`Answer::kind`].
    pub kind: u16,
    /// As [`Answer::body`].
    pub body: Vec<u8>,
}

impl Kept {
    /// As [`Answer::attributes`].
    pub fn attributes(&self, header: usize) -> Attributes<'_> {
        Attributes(self.body.get(header.next_multiple_of(4)..).unwrap_or_default())
    }
}

/// What the kernel says to a request: nothing against it, or an errno and perhaps a sentence.
///
/// The sentence goes before the errno and begins, as all of ours, in lower case and without a period.
fn verdict(answer: &Answer<'_>) -> Result<()> {
    let code = read_u32(answer.body, 0).ok_or_else(|| error("the kernel's answer is cut off"))?.cast_signed();
    if code == 0 {
        return Ok(());
    }
    // An errno is from 1 to 4095 (`MAX_ERRNO`); rustix takes nothing else for one.
    let errno = code.checked_neg().filter(|code| (1..4096).contains(code)).map_or(Errno::IO, Errno::from_raw_os_error);
    let refusal = Error::from(errno);
    match sentence(answer) {
        Some(sentence) => Err(refusal.context(sentence)),
        None => Err(refusal),
    }
}

/// The kernel's sentence about a refusal (NETLINK_EXT_ACK), if there is one.
fn sentence(answer: &Answer<'_>) -> Option<String> {
    if answer.flags & ACK_ATTRIBUTES == 0 {
        return None;
    }
    // An `nlmsgerr` is the errno, then the header of the request, then the rest of it unless capped. The
    // end of a list has the errno alone.
    let skip = match (answer.kind, answer.flags & CAPPED) {
        (DONE, _) => 4,
        (_, CAPPED) => 4 + HEADER,
        _ => 4 + usize::try_from(read_u32(answer.body, 4)?).ok()?.checked_next_multiple_of(4)?,
    };
    let said = Attributes(answer.body.get(skip..)?).text(SENTENCE)?;
    let said = said.trim().trim_end_matches('.');
    let (first, rest) = said.split_at_checked(1)?;
    // A name at the beginning ("IPv6: ...", "MTU too low") keeps its capitals.
    let name = rest.starts_with(|c: char| c.is_ascii_uppercase());
    let first = if name { first.to_owned() } else { first.to_ascii_lowercase() };
    Some(first + &rest.chars().filter(|c| !c.is_control()).collect::<String>())
}

/// What became of the requests of one datagram.
#[derive(Debug)]
struct Pending {
    first: u32,
    verdicts: Vec<Option<Result<()>>>,
    answers: Vec<(usize, Kept)>,
}

impl Pending {
    fn new(first: u32, count: usize) -> Pending {
        Pending { first, verdicts: (0..count).map(|_| None).collect(), answers: Vec::new() }
    }

    fn complete(&self) -> bool {
        self.verdicts.iter().all(Option::is_some)
    }

    /// Files an answer under its request; what answers none of ours is passed over.
    fn take(&mut self, answer: &Answer<'_>) {
        let index = answer.sequence.wrapping_sub(self.first) as usize;
        let Some(verdict_of) = self.verdicts.get_mut(index) else { return };
        match answer.kind {
            ERROR => *verdict_of = Some(verdict(answer)),
            NOOP | DONE => {}
            kind => self.answers.push((index, Kept { kind, body: answer.body.to_vec() })),
        }
    }
}

/// A netlink socket that hears nobody but the kernel.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    /// rtnetlink(7) in the caller's network namespace.
    pub fn route() -> Result<Socket> {
        open(None, 0).context("opening a netlink socket")
    }

    /// rtnetlink(7) in the network namespace that `netns` is.
    ///
    /// Fails where the caller may not enter it (setns(2) wants CAP_SYS_ADMIN here and there).
    pub fn route_in(netns: BorrowedFd<'_>) -> Result<Socket> {
        inside(netns, Socket::route)?
    }

    /// rtnetlink(7), hearing the events of `groups`, a mask of `RTMGRP_*`.
    pub fn subscribed(groups: u32) -> Result<Socket> {
        open(None, groups).context("opening a netlink socket for events")
    }

    /// nfnetlink, hearing the events of `groups`, a mask with bit N-1 for the group N of `NFNLGRP_*`, in the caller's
    /// network namespace.
    pub fn netfilter_subscribed(groups: u32) -> Result<Socket> {
        open(Some(net::netlink::NETFILTER), groups).context("opening a netfilter socket for events")
    }

    /// nfnetlink, for connection tracking, in the caller's network namespace.
    pub fn netfilter() -> Result<Socket> {
        open(Some(net::netlink::NETFILTER), 0)
            .context("opening a netfilter socket")
            .hint("the kernel lacks `nfnetlink`: `modprobe nfnetlink`")
    }

    /// Sends one request; its answer, if it has one.
    pub fn ask(&mut self, message: Message) -> Result<Option<Kept>> {
        Ok(self.send(&[message])?.pop())
    }

    /// Sends requests as one datagram; their answers, in order. All are acted on; the first that was
    /// refused makes the error.
    pub fn send(&mut self, messages: &[Message]) -> Result<Vec<Kept>> {
        let pending = self.exchange(messages)?;
        for (message, verdict) in messages.iter().zip(pending.verdicts) {
            if let Some(Err(refusal)) = verdict
                && !refusal.errno().is_some_and(|errno| message.tolerated.contains(&errno))
            {
                return Err(refusal.context(&*message.doing));
            }
        }
        Ok(pending.answers.into_iter().map(|(_, answer)| answer).collect())
    }

    /// Lists a table: each entry once, unless the table changes all the time.
    pub fn list(&mut self, message: Message) -> Result<Vec<Kept>> {
        let mut entries = Vec::new();
        for _ in 0..RETRIES {
            entries.clear();
            if self.walk(&message, |answer| entries.push(Kept { kind: answer.kind, body: answer.body.to_vec() }))? {
                break;
            }
        }
        Ok(entries)
    }

    /// Walks a table without keeping it; whether it stayed the same meanwhile. An entry may be missing
    /// or come twice where it didn't.
    pub fn walk(&mut self, message: &Message, mut each: impl FnMut(&Answer<'_>)) -> Result<bool> {
        self.walk_through(message, &mut each).map_err(|e| e.context(&*message.doing))
    }

    fn walk_through(&mut self, message: &Message, each: &mut dyn FnMut(&Answer<'_>)) -> Result<bool> {
        let mut message = message.clone();
        let flags = read_u16(&message.bytes, 6).unwrap_or_default() & !ACK | DUMP;
        message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        let sequence = self.deliver(&[message])?;
        let mut whole = true;
        loop {
            let length = self.receive(RecvFlags::empty())?;
            for answer in Answers(&self.buffer[..length]).filter(|answer| answer.sequence == sequence) {
                whole &= answer.flags & INTERRUPTED == 0;
                match answer.kind {
                    DONE => return verdict(&answer).map(|()| whole),
                    ERROR => verdict(&answer)?,
                    NOOP => {}
                    _ => each(&answer),
                }
            }
        }
    }

    /// The events that are waiting, each once; never waits. `false`: some were lost, because there were
    /// more than the socket holds (ENOBUFS, netlink(7)).
    pub fn events(&mut self, mut each: impl FnMut(&Answer<'_>)) -> Result<bool> {
        let mut whole = true;
        loop {
            match self.receive(RecvFlags::DONTWAIT) {
                Ok(length) => Answers(&self.buffer[..length]).for_each(|answer| each(&answer)),
                Err(e) if e.errno() == Some(Errno::AGAIN) => return Ok(whole),
                Err(e) if e.errno() == Some(Errno::NOBUFS) => whole = false,
                Err(e) => return Err(e.context("reading netlink events")),
            }
        }
    }

    fn exchange(&mut self, messages: &[Message]) -> Result<Pending> {
        if messages.is_empty() {
            return Ok(Pending::new(0, 0));
        }
        let first = self.deliver(messages)?;
        let mut pending = Pending::new(first, messages.len());
        while !pending.complete() {
            let length = self.receive(RecvFlags::empty())?;
            Answers(&self.buffer[..length]).for_each(|answer| pending.take(&answer));
        }
        Ok(pending)
    }

    /// Sends the requests; the sequence number of the first.
    fn deliver(&mut self, messages: &[Message]) -> Result<u32> {
        let first = self.sequence;
        let mut datagram = Vec::with_capacity(messages.iter().map(|message| message.bytes.len()).sum());
        for message in messages {
            message.put(&mut datagram, self.sequence);
            // 0 is the sequence number of events.
            self.sequence = self.sequence.wrapping_add(1).max(1);
        }
        retry(|| net::send(&self.fd, &datagram, SendFlags::empty())).context("sending to the kernel")?;
        Ok(first)
    }

    /// Receives one datagram into the buffer; its length.
    fn receive(&mut self, flags: RecvFlags) -> Result<usize> {
        let (_, length) = retry(|| net::recv(&self.fd, &mut self.buffer[..], flags | RecvFlags::TRUNC))?;
        if length > self.buffer.len() {
            return Err(error(format!("the kernel's answer is longer than {RECEIVE} bytes")));
        }
        Ok(length)
    }
}

/// A socket of this protocol (rtnetlink by default) that is bound to `groups` and hears only the kernel.
fn open(protocol: Option<net::Protocol>, groups: u32) -> Result<Socket> {
    let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    // Connected to the kernel, so that root of the namespace can send us nothing (ECONNREFUSED,
    // `netlink_getsockbyportid`): some of our sockets live in the namespaces of containers.
    net::connect(&fd, &SocketAddrNetlink::new(0, 0))?;
    // Both are since Linux 4.12; without them refusals are less talkative, no less right.
    let _ = netlink_option(fd.as_fd(), NetlinkOption::ShortAcks);
    let _ = netlink_option(fd.as_fd(), NetlinkOption::Sentences);
    // The answer to a request is there when it was sent. If the kernel had no memory for it, a late
    // error is better than none.
    net::sockopt::set_socket_timeout(&fd, net::sockopt::Timeout::Recv, Some(Duration::from_secs(10)))?;
    Ok(Socket { fd, sequence: 1, buffer: vec![0; RECEIVE] })
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Acts inside another network namespace and comes back: sockets and `/proc/sys/net` files that are
/// opened there stay there.
///
/// Only the calling thread goes (setns(2)); `act` must not leave threads behind.
///
/// # Panics
/// If there is no way back: whatever came next would act on a container instead of the host.
pub fn inside<T>(netns: BorrowedFd<'_>, act: impl FnOnce() -> T) -> Result<T> {
    /// Comes back even if `act` panics and somebody catches it.
    struct Home(OwnedFd);
    impl Drop for Home {
        fn drop(&mut self) {
            join(self.0.as_fd(), namespace::NET).expect("the way back into our own network namespace");
        }
    }
    let entering = "entering the network namespace of a container";
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let home = Home(rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty()).context(entering)?);
    join(netns, namespace::NET).context(entering)?;
    let done = act();
    drop(home);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An acknowledgement as the kernel writes it.
    fn refusal(errno: i32, flags: u16, said: &str) -> Vec<u8> {
        let mut body = (-errno).to_ne_bytes().to_vec();
        body.extend([0; HEADER]);
        let attribute = Message::new(0, 0, &[], "").text(SENTENCE, said);
        body.extend(&attribute.bytes[HEADER..]);
        let mut bytes = Message::new(ERROR, 0, &body, "").encoded();
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes
    }

    fn told(errno: i32, flags: u16, said: &str) -> String {
        let bytes = refusal(errno, flags, said);
        verdict(&Answers(&bytes).next().unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn the_kernels_sentence_becomes_ours_and_the_errno_stays() {
        assert_eq!(
            told(2, CAPPED | ACK_ATTRIBUTES, "Specified qdisc kind is unknown."),
            "specified qdisc kind is unknown: no such file or directory"
        );
        assert_eq!(told(22, CAPPED | ACK_ATTRIBUTES, "MTU too low"), "MTU too low: invalid argument");
        assert_eq!(told(1, CAPPED, "unflagged"), "operation not permitted");
        let bytes = refusal(17, CAPPED, "");
        assert_eq!(verdict(&Answers(&bytes).next().unwrap()).unwrap_err().errno(), Some(Errno::EXIST));
    }

    #[test]
    fn an_errno_that_is_none_is_still_an_error() {
        for errno in [i32::MAX, -5, 4096] {
            let bytes = refusal(errno, 0, "");
            assert!(verdict(&Answers(&bytes).next().unwrap()).is_err());
        }
    }

    #[test]
    fn attributes_nest_and_pad() {
        let message = Message::new(16, CREATE, &[0; 16], "x")
            .nest(18, |m| m.text(1, "veth").nest(2, |m| m.u8(9, 7)))
            .u32(4, 1500);
        let bytes = message.encoded();
        let answer = Answers(&bytes).next().unwrap();
        assert_eq!(answer.kind, 16);
        let attributes = answer.attributes(16);
        assert_eq!(attributes.u32(4), Some(1500));
        assert_eq!(attributes.inside(18).text(1).as_deref(), Some("veth"));
        assert_eq!(attributes.inside(18).inside(2).u8(9), Some(7));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn a_word_ends_at_its_nul() {
        let bytes = Message::new(16, 0, &[], "x").text(3, "eth0\0evil").encoded();
        assert_eq!(Answers(&bytes).next().unwrap().attributes(0).last(3), Some(&b"eth0\0"[..]));
    }

    #[test]
    fn an_answer_to_nobody_is_passed_over() {
        let mut pending = Pending::new(7, 1);
        let mut bytes = refusal(1, 0, "");
        bytes[8..12].copy_from_slice(&6_u32.to_ne_bytes());
        Answers(&bytes).for_each(|answer| pending.take(&answer));
        assert!(!pending.complete());
        bytes[8..12].copy_from_slice(&7_u32.to_ne_bytes());
        Answers(&bytes).for_each(|answer| pending.take(&answer));
        assert!(pending.complete());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut pending = Pending::new(0, 3);
            for answer in Answers(&bytes) {
                pending.take(&answer);
                let _ = verdict(&answer);
                for (_, value) in answer.attributes(16) {
                    Attributes(value).for_each(drop);
                }
            }
        }

        /// A right answer with a few bytes changed reaches further into the parser than noise does.
        #[test]
        fn damaged_answers_are_read_to_an_end(
            cut in 0_usize..80, changes in proptest::collection::vec((0_usize..80, any::<u8>()), 0..6),
            flags in any::<u16>(),
        ) {
            let mut bytes = refusal(22, flags, "Attribute failed policy validation");
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            bytes.truncate(cut);
            for answer in Answers(&bytes) {
                let _ = verdict(&answer);
            }
        }
    }
}
