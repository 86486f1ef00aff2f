//! The view that the pure tests share, and questions put to it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use lazaret_net::dns::{self, Verdict};
use lazaret_net::responder::{Asker, Directory, Host, Settings, View};

pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, 1);

pub fn settings() -> Settings {
    Settings {
        own: Vec::new(),
        domain: "lazaret".into(),
        gateway4: Ipv4Addr::new(10, 90, 0, 1),
        prefix4: 20,
        gateway6: Some(GATEWAY6),
        prefix6: 64,
        mtu: 1420,
        lease_seconds: 3600,
        upstreams: vec!["127.0.0.9:53".parse().unwrap()],
        lan: Vec::new(),
    }
}

/// The container number `i`: MAC, IPv4 and IPv6 address all end in it.
pub fn host(name: &str, i: u8) -> Host {
    Host {
        name: name.into(),
        mac: [2, 0, 0, 0, 0, i],
        address4: Some(Ipv4Addr::new(10, 90, 0, i)),
        address6: Some(Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, i.into())),
        sees: Vec::new(),
        sees_host: false,
        lan: false,
        internet: true,
        lan_names: Vec::new(),
        found: BTreeMap::new(),
        upstreams: Vec::new(),
    }
}

/// `web` sees `db`; `db` sees nobody and has no IPv6; `Boss` has the LAN and the host; `a.b` has a dot.
pub fn view() -> View {
    let web = Host { sees: vec!["db".into()], lan_names: vec!["nas.home".into()], ..host("web", 2) };
    let db = Host { address6: None, internet: false, ..host("db", 3) };
    let boss = Host { lan: true, sees_host: true, ..host("Boss", 4) };
    View { settings: settings(), hosts: vec![web, db, boss, host("a.b", 5)] }
}

pub fn directory() -> Directory {
    Directory::new(view())
}

pub fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

pub fn with_edns(mut message: Message, size: u16, dnssec: bool) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    edns.set_dnssec_ok(dnssec);
    message.set_edns(edns);
    message
}

/// Asks as a container (or as the host, with no name) and reads the answer with the other implementation.
pub fn ask(who: Option<&str>, name: &str, kind: RecordType) -> String {
    asked_of(&directory(), who, name, kind)
}

/// The same of another directory.
pub fn asked_of(directory: &Directory, who: Option<&str>, name: &str, kind: RecordType) -> String {
    let asker = match who {
        None => Asker::Machine,
        Some(who) => Asker::Host((0..4).find(|&i| directory.host(i).name == who).unwrap()),
    };
    let mut out = Vec::new();
    match dns::answer(directory, asker, &question(name, kind).to_vec().unwrap(), false, &mut out) {
        Verdict::Answered => render(&Message::from_vec(&out).unwrap()),
        Verdict::Forward(_) => "forwarded".into(),
        Verdict::Ignored => "ignored".into(),
    }
}

/// `NoError aa; web.lazaret. 5 A 10.90.0.2`: code and flags, answers, and the zone of a "no".
pub fn render(message: &Message) -> String {
    let mut text = format!("{:?}", message.metadata.response_code);
    let flags = [(message.metadata.authoritative, " aa"), (message.metadata.truncation, " tc")];
    flags.iter().filter(|(set, _)| *set).for_each(|(_, flag)| text.push_str(flag));
    for record in &message.answers {
        text.push_str(&format!("; {} {} {} {}", record.name, record.ttl, record.record_type(), record.data));
    }
    for record in &message.authorities {
        text.push_str(&format!("; {} {}", record.record_type(), record.name));
    }
    text
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
