//! How fast and how well packets go: limits of a container's rates, and faults made on purpose.
//!
//! Encoded as iproute2's tc(8) does it (include/uapi/linux/pkt_sched.h, pkt_cls.h); the kernel's side is
//! net/sched/sch_{tbf,netem,prio}.c and cls_u32.c.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use lazaret_base::{Error, Kind, Result, error};
use lazaret_config::Rate;
use rustix::io::Errno;

use crate::link::{self, octets};
use crate::netlink::{CREATE, EXCLUSIVE, Message, REPLACE, Socket};

const NEWQDISC: u16 = 36;
const DELQDISC: u16 = 37;
const NEWTFILTER: u16 = 44;

/// Attributes of all (`TCA_*`).
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// Where a queue hangs: `TC_H_ROOT`.
const ROOT: u32 = u32::MAX;
/// The handle of the queue at the root, `1:`.
const HANDLE: u32 = 0x1_0000;

/// A fault of the way out of a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Impairment {
    /// How much later each packet leaves.
    pub delay: Duration,
    /// By how much the delay varies, up and down, evenly.
    pub jitter: Duration,
    /// The part of packets that is lost, from 0 to 1.
    pub loss: f64,
    /// How fast packets leave at most.
    pub rate: Option<Rate>,
    /// To whom. Empty: to everybody that no other impairment names.
    pub towards: Vec<IpAddr>,
}

/// Limits what goes into a container, at the host's end of its link; `None` takes the limit away.
///
/// Packets above the rate wait up to a tenth of a second and are dropped then. Replaces the limit that
/// was there. Fails, as [`Kind::Missing`], where the kernel has no `tbf`.
pub fn limit_download(host: &mut Socket, veth: &str, rate: Option<Rate>) -> Result<()> {
    let index = index_of(host, veth)?;
    match rate {
        Some(rate) => host.ask(bucket(index, veth, rate)).map_err(|e| advise(e, "tbf")).map(drop),
        None => remove_root(host, index, veth),
    }
}

/// Limits what comes out of a container, inside its namespace; `None` takes the limit away.
///
/// As [`limit_download`]: packets wait, so that the rate is kept exactly. Whoever is root in the container can take the
/// limit away, which is why the firewall has one as well. An impairment takes its place.
pub fn limit_upload(netns: BorrowedFd<'_>, device: &str, rate: Option<Rate>) -> Result<()> {
    limit_download(&mut Socket::route_in(netns)?, device, rate)
}

/// Makes the way out of a container worse, inside its namespace: these impairments and no others; none
/// at all heals it.
///
/// On failure the way out is unimpaired. Fails, as [`Kind::Missing`], where the kernel has no `netem`
/// (or no `prio` or `u32`, which impairments towards someone need).
pub fn impair(netns: BorrowedFd<'_>, device: &str, impairments: &[Impairment]) -> Result<()> {
    let mut inside = Socket::route_in(netns)?;
    let index = index_of(&mut inside, device)?;
    let requests = plan(index, device, impairments)?;
    remove_root(&mut inside, index, device)?;
    for Request { needs, message } in requests {
        if let Err(e) = inside.ask(message) {
            // Half of the impairments would be a fault that nobody asked for. The first error counts.
            let _ = remove_root(&mut inside, index, device);
            return Err(advise(e, needs));
        }
    }
    Ok(())
}

/// A request, and the kernel's module that it needs.
struct Request {
    needs: &'static str,
    message: Message,
}

/// The requests that impair a device which has no queue of ours. Pure.
///
/// One impairment of everything is one netem at the root. Otherwise a `prio` at the root has a band for
/// each, the first for what nobody named, and filters by destination choose the band.
fn plan(index: u32, device: &str, impairments: &[Impairment]) -> Result<Vec<Request>> {
    let netem = |parent, handle, impairment: &Impairment| {
        Ok(Request { needs: "sch_netem", message: netem(index, device, parent, handle, impairment)? })
    };
    let (general, targeted): (Vec<_>, Vec<_>) = impairments.iter().partition(|one| one.towards.is_empty());
    if general.len() > 1 {
        return Err(error("more than one impairment of everything").kind(Kind::Invalid));
    }
    // TCQ_PRIO_BANDS.
    if targeted.len() > 15 {
        return Err(error(format!("{} impairments at once", targeted.len()))
            .hint("a queue has 16 bands: give targets with the same fault to one impairment")
            .kind(Kind::Invalid));
    }
    if targeted.is_empty() {
        return general.into_iter().map(|one| netem(ROOT, HANDLE, one)).collect();
    }
    let mut requests = vec![Request { needs: "sch_prio", message: bands(index, device, targeted.len() as u32 + 1) }];
    for (one, band) in general.into_iter().map(|one| (one, 1)).chain(targeted.into_iter().zip(2..)) {
        requests.push(netem(HANDLE | band, (0x10 + band) << 16, one)?);
        let filters = one.towards.iter().map(|to| filter(index, device, *to, HANDLE | band));
        requests.extend(filters.map(|message| Request { needs: "cls_u32", message }));
    }
    Ok(requests)
}

/// `struct tcmsg`.
fn header(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&handle.to_ne_bytes());
    header[12..16].copy_from_slice(&parent.to_ne_bytes());
    header[16..20].copy_from_slice(&info.to_ne_bytes());
    header
}

/// A token bucket: `struct tc_tbf_qopt` and the attributes that supersede its odd units.
fn bucket(index: u32, device: &str, rate: Rate) -> Message {
    const PARMS: u16 = 1;
    const RATE64: u16 = 4;
    const BURST: u16 = 6;
    // The kernel's timer ticks a hundred times a second at least: less could not be sent at the rate.
    // Smaller than one packet as GSO makes it would cut every such packet to pieces, at slow rates only.
    let burst = (rate.bytes() / 100).clamp(16 * 1024, 64 << 20) as u32;
    let waiting = (rate.bytes() / 10).clamp(16 * 1024, 256 << 20) as u32;
    let mut options = ratespec(rate).to_vec();
    options.extend([0; 12]); // No peak rate.
    options.extend((burst + waiting).to_ne_bytes());
    options.extend([0; 8]); // Superseded by BURST; and the table's cell size, without a table.
    let doing = format!("limiting the rate of `{device}` to {rate}");
    Message::new(NEWQDISC, CREATE | REPLACE, &header(index, HANDLE, ROOT, 0), doing).text(KIND, "tbf").nest(
        OPTIONS,
        |m| {
            let m = m.bytes(PARMS, &options).u32(BURST, burst);
            match u32::try_from(rate.bytes()) {
                Ok(_) => m,
                Err(_) => m.u64(RATE64, rate.bytes()),
            }
        },
    )
}

/// `struct tc_ratespec`: Ethernet as link layer, so that the kernel needs no table of transmission times.
fn ratespec(rate: Rate) -> [u8; 12] {
    const TC_LINKLAYER_ETHERNET: u8 = 1;
    let mut spec = [0; 12];
    spec[1] = TC_LINKLAYER_ETHERNET;
    spec[8..12].copy_from_slice(&u32::try_from(rate.bytes()).unwrap_or(u32::MAX).to_ne_bytes());
    spec
}

/// The fault itself: `struct tc_netem_qopt`, and times in nanoseconds (Linux 4.16).
fn netem(index: u32, device: &str, parent: u32, handle: u32, impairment: &Impairment) -> Result<Message> {
    const RATE: u16 = 6;
    const RATE64: u16 = 8;
    const LATENCY64: u16 = 10;
    const JITTER64: u16 = 11;
    /// Packets that may wait. What is behind is lost, so the delay of a fast link needs many.
    const LIMIT: u32 = 20_000;
    let Impairment { delay, jitter, loss, rate, .. } = impairment;
    if !(0.0..=1.0).contains(loss) {
        return Err(error(format!("a loss of {loss} is not from 0 to 1")).kind(Kind::Invalid));
    }
    if delay.max(jitter) > &Duration::from_secs(3600) {
        return Err(error("a delay of more than an hour").kind(Kind::Invalid));
    }
    let mut options = 0_u32.to_ne_bytes().to_vec(); // Superseded by LATENCY64.
    options.extend(LIMIT.to_ne_bytes());
    options.extend(((loss * f64::from(u32::MAX)).round() as u32).to_ne_bytes());
    options.extend([0; 12]); // No gap, no duplicates; superseded by JITTER64.
    let doing = format!("impairing `{device}`");
    let flags = CREATE | EXCLUSIVE;
    let message = Message::new(NEWQDISC, flags, &header(index, handle, parent, 0), doing).text(KIND, "netem");
    Ok(message.compound(OPTIONS, &options, |m| {
        let m = m.u64(LATENCY64, delay.as_nanos() as u64).u64(JITTER64, jitter.as_nanos() as u64);
        let Some(rate) = rate else { return m };
        // `struct tc_netem_rate`: the rate, no overhead, no cells.
        let mut parameters = u32::try_from(rate.bytes()).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
        parameters.extend([0; 12]);
        let m = m.bytes(RATE, &parameters);
        if u32::try_from(rate.bytes()).is_ok() { m } else { m.u64(RATE64, rate.bytes()) }
    }))
}

/// A queue of several bands, in which everything goes to the first unless a filter says otherwise:
/// `struct tc_prio_qopt`.
fn bands(index: u32, device: &str, count: u32) -> Message {
    let mut options = count.max(2).to_ne_bytes().to_vec(); // TCQ_MIN_PRIO_BANDS.
    options.extend([0; 16]);
    Message::new(NEWQDISC, CREATE | EXCLUSIVE, &header(index, HANDLE, ROOT, 0), format!("dividing `{device}`"))
        .text(KIND, "prio")
        .bytes(OPTIONS, &options)
}

/// Puts what goes to an address into a band: `struct tc_u32_sel` with a key for each four bytes.
fn filter(index: u32, device: &str, to: IpAddr, band: u32) -> Message {
    const CLASSID: u16 = 1;
    const SELECTOR: u16 = 5;
    const TERMINAL: u8 = 1;
    /// `ETH_P_IP`, `ETH_P_IPV6`; where the destination is in the header; and one place in the order of
    /// filters for each, because filters at one place are of one protocol.
    const V4: (u16, u32, u32) = (0x0800, 16, 1);
    const V6: (u16, u32, u32) = (0x86dd, 24, 2);
    let (protocol, offset, preference) = if to.is_ipv4() { V4 } else { V6 };
    let words = octets(to);
    let mut selector = vec![TERMINAL, 0, (words.len() / 4) as u8, 0];
    selector.extend([0; 12]); // No offsets into further headers, no hash.
    for (word, at) in words.chunks(4).zip((offset..).step_by(4)) {
        selector.extend(u32::MAX.to_be_bytes());
        selector.extend(word);
        selector.extend(at.to_ne_bytes());
        selector.extend([0; 4]);
    }
    let info = preference << 16 | u32::from(protocol.to_be());
    let doing = format!("choosing what goes from `{device}` to `{to}`");
    Message::new(NEWTFILTER, CREATE | EXCLUSIVE, &header(index, 0, HANDLE, info), doing)
        .text(KIND, "u32")
        .nest(OPTIONS, |m| m.u32(CLASSID, band).bytes(SELECTOR, &selector))
}

/// Takes the queue at the root away, with all that hangs on it; success as well if it is the kernel's own.
fn remove_root(socket: &mut Socket, index: u32, device: &str) -> Result<()> {
    let doing = format!("taking the limits of `{device}` away");
    let message = Message::new(DELQDISC, 0, &header(index, 0, ROOT, 0), doing);
    // ENOENT: the queue there is the default one, which has no handle. EINVAL: before Linux 4.16 likewise.
    socket.ask(message.tolerating(&[Errno::NOENT, Errno::INVAL])).map(drop)
}

fn index_of(socket: &mut Socket, device: &str) -> Result<u32> {
    let found = link::find(socket, device)?;
    found.map(|link| link.index).ok_or_else(|| error(format!("there is no interface `{device}`")).kind(Kind::NotFound))
}

/// What to do about a kernel that lacks a queue or filter: it answers ENOENT then.
fn advise(e: Error, module: &str) -> Error {
    let module = if module == "tbf" { "sch_tbf" } else { module };
    match e.errno() {
        Some(Errno::NOENT | Errno::OPNOTSUPP) => e
            .hint(format!(
                "the kernel lacks `{module}`: `modprobe {module}`, or install the full set of its modules \
                 (Debian: linux-image-amd64; Ubuntu: linux-modules-extra; Fedora: kernel-modules-extra)"
            ))
            .kind(Kind::Missing),
        _ => e,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Answers, Attributes, read_u32};

    /// What follows the netlink header, in hexadecimal.
    fn body(message: &Message) -> String {
        message.encoded()[16..].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    fn towards(addresses: &[&str]) -> Impairment {
        let towards = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Impairment { delay: Duration::from_millis(50), towards, ..Impairment::default() }
    }

    /// The kinds of queues and filters, with what they hang on.
    fn tree(impairments: &[Impairment]) -> Vec<String> {
        let told = |request: &Request| {
            let bytes = request.message.encoded();
            let answer = Answers(&bytes).next().unwrap();
            let kind = answer.attributes(20).text(KIND).unwrap();
            format!("{kind} {:x}", read_u32(answer.body, 12).unwrap())
        };
        plan(3, "eth0", impairments).unwrap().iter().map(told).collect()
    }

    /// `tc filter add dev v0 parent 1: protocol ip pref 1 u32 match ip dst 10.90.0.5/32 flowid 1:2`, and the
    /// same for IPv6 with `pref 2` and fd00::5, as iproute2 6.1 sends them; but for the mark of a nested attribute.
    #[test]
    fn filters_are_those_of_tc() {
        let v4 = filter(3, "v0", "10.90.0.5".parse().unwrap(), HANDLE | 2);
        let v4_tc = "0000000003000000000000000000010008000100080001007533320030000280080001000200010024000500\
                     01000100000000000000000000000000ffffffff0a5a00051000000000000000";
        assert_eq!(body(&v4), v4_tc);
        let v6 = filter(3, "v0", "fd00::5".parse().unwrap(), HANDLE | 2);
        let v6_tc = "00000000030000000000000000000100\
                     86dd020008000100753332006000028008000100020001005400050001000400000000000000000000000000\
                     fffffffffd0000001800000000000000ffffffff000000001c00000000000000\
                     ffffffff000000002000000000000000ffffffff000000052400000000000000";
        assert_eq!(body(&v6), v6_tc);
    }

    /// `tc qdisc add dev v0 root handle 1: netem delay 50ms 10ms loss 1% rate 10mbit limit 20000` of iproute2
    /// 6.1 is the same but for the times, which it gives in ticks.
    #[test]
    fn faults_are_those_of_tc_in_nanoseconds() {
        let impairment = Impairment {
            delay: Duration::from_millis(50),
            jitter: Duration::from_millis(10),
            loss: 0.01,
            rate: Some(rate("10mbit")),
            towards: Vec::new(),
        };
        let message = netem(3, "v0", ROOT, HANDLE, &impairment).unwrap();
        let bytes = message.encoded();
        let options = Answers(&bytes).next().unwrap().attributes(20).last(OPTIONS).unwrap();
        let fixed: String = options[..24].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(fixed, "00000000204e0000295c8f02000000000000000000000000");
        let attributes = Attributes(&options[24..]);
        assert_eq!(attributes.last(10), Some(&50_000_000_u64.to_ne_bytes()[..]));
        assert_eq!(attributes.last(11), Some(&10_000_000_u64.to_ne_bytes()[..]));
        assert_eq!(attributes.u32(6), Some(1_250_000));
        assert_eq!(attributes.last(8), None);
    }

    #[test]
    fn a_rate_above_32_bits_is_not_cut() {
        let bytes = bucket(3, "v0", rate("100gbit")).encoded();
        let options = Answers(&bytes).next().unwrap().attributes(20).inside(OPTIONS);
        assert_eq!(options.last(4), Some(&12_500_000_000_u64.to_ne_bytes()[..]));
        let impairment = Impairment { rate: Some(rate("100gbit")), ..Impairment::default() };
        assert_eq!(plan(3, "v0", &[impairment]).unwrap().len(), 1);
    }

    #[test]
    fn everything_hangs_where_it_should() {
        assert_eq!(tree(&[]), Vec::<String>::new());
        assert_eq!(tree(&[towards(&[])]), ["netem ffffffff"]);
        assert_eq!(
            tree(&[towards(&["10.0.0.1", "fd00::1"]), towards(&["10.0.0.2"]), towards(&[])]),
            ["prio ffffffff", "netem 10001", "netem 10002", "u32 10000", "u32 10000", "netem 10003", "u32 10000"]
        );
    }

    #[test]
    fn faults_that_make_no_sense_are_refused() {
        let refused = |impairments: &[Impairment]| plan(3, "v0", impairments).err().unwrap().what() == Kind::Invalid;
        assert!(refused(&[Impairment { loss: 1.5, ..Impairment::default() }]));
        assert!(refused(&[Impairment { loss: f64::NAN, ..Impairment::default() }]));
        assert!(refused(&[Impairment { delay: Duration::from_secs(4000), ..Impairment::default() }]));
        assert!(refused(&[towards(&[]), towards(&[])]));
        assert!(refused(&vec![towards(&["10.0.0.1"]); 16]));
    }
}
