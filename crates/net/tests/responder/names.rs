//! Names: who sees what, and what a "no" looks like.

use std::rc::Rc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use lazaret_net::dns::{self, Cache, Key, Verdict, upstream};
use lazaret_net::responder::{Asker, Host, Order, Prefix};

use crate::view::{ask, asked_of, directory, host, ip, question, render, settings, with_edns};

const WEB: Option<&str> = Some("web");

#[test]
fn a_container_resolves_itself_and_whom_it_may_reach() {
    assert_eq!(ask(WEB, "web.lazaret.", RecordType::A), "NoError aa; web.lazaret. 5 A 10.90.0.2");
    assert_eq!(ask(WEB, "db.lazaret.", RecordType::A), "NoError aa; db.lazaret. 5 A 10.90.0.3");
    assert_eq!(ask(WEB, "db.", RecordType::A), "NoError aa; db. 5 A 10.90.0.3");
    assert_eq!(ask(WEB, "web.", RecordType::AAAA), "NoError aa; web. 5 AAAA fd12:3456:789a:1::2");
    assert_eq!(ask(WEB, "gateway.lazaret.", RecordType::A), "NoError aa; gateway.lazaret. 5 A 10.90.0.1");
}

#[test]
fn an_unseen_container_and_an_absent_one_look_the_same() {
    let db = Some("db");
    for name in ["web.lazaret.", "nobody.lazaret."] {
        assert_eq!(ask(db, name, RecordType::A), "NXDomain aa; SOA lazaret.");
    }
    for name in ["web.", "nobody."] {
        assert_eq!(ask(db, name, RecordType::AAAA), "NXDomain aa; SOA .");
    }
    for address in ["2.0.90.10.in-addr.arpa.", "77.0.90.10.in-addr.arpa."] {
        assert_eq!(ask(db, address, RecordType::PTR), "NXDomain aa; SOA 10.in-addr.arpa.");
    }
}

#[test]
fn the_host_sees_everybody() {
    for (name, address) in [("web.lazaret.", "10.90.0.2"), ("db.lazaret.", "10.90.0.3"), ("a.b.lazaret.", "10.90.0.5")]
    {
        assert_eq!(ask(None, name, RecordType::A), format!("NoError aa; {name} 5 A {address}"));
    }
}

#[test]
fn case_does_not_matter_and_is_given_back() {
    assert_eq!(ask(WEB, "DB.LaZaReT.", RecordType::A), "NoError aa; DB.LaZaReT. 5 A 10.90.0.3");
    assert_eq!(ask(None, "boss.", RecordType::A), "NoError aa; boss. 5 A 10.90.0.4");
}

#[test]
fn a_missing_type_is_no_data_and_not_a_missing_name() {
    assert_eq!(ask(WEB, "db.lazaret.", RecordType::AAAA), "NoError aa; SOA lazaret.");
    assert_eq!(ask(WEB, "web.lazaret.", RecordType::TXT), "NoError aa; SOA lazaret.");
    assert_eq!(ask(WEB, "web.", RecordType::MX), "NoError aa; SOA .");
    assert_eq!(ask(WEB, "lazaret.", RecordType::A), "NoError aa; SOA lazaret.");
}

#[test]
fn the_zone_has_its_own_records() {
    let soa = ask(WEB, "lazaret.", RecordType::SOA);
    assert!(soa.starts_with("NoError aa; lazaret. 5 SOA gateway.lazaret. hostmaster.lazaret. 1"), "{soa}");
    assert_eq!(ask(WEB, "lazaret.", RecordType::NS), "NoError aa; lazaret. 5 NS gateway.lazaret.");
}

#[test]
fn addresses_have_names_again() {
    let reverse6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.";
    assert_eq!(
        ask(WEB, "3.0.90.10.in-addr.arpa.", RecordType::PTR),
        "NoError aa; 3.0.90.10.in-addr.arpa. 5 PTR db.lazaret."
    );
    assert_eq!(ask(WEB, reverse6, RecordType::PTR), format!("NoError aa; {reverse6} 5 PTR web.lazaret."));
    assert!(ask(WEB, "1.0.90.10.in-addr.arpa.", RecordType::PTR).ends_with("PTR gateway.lazaret."));
}

#[test]
fn reverse_names_of_the_lan_are_not_told_without_lan() {
    assert_eq!(ask(WEB, "5.1.168.192.in-addr.arpa.", RecordType::PTR), "NXDomain aa; SOA 192.in-addr.arpa.");
    assert_eq!(ask(Some("Boss"), "5.1.168.192.in-addr.arpa.", RecordType::PTR), "forwarded");
    assert_eq!(ask(WEB, "8.8.8.8.in-addr.arpa.", RecordType::PTR), "forwarded");
    assert_eq!(ask(WEB, "300.0.90.10.in-addr.arpa.", RecordType::PTR), "NXDomain aa; SOA in-addr.arpa.");
}

#[test]
fn what_was_found_in_the_lan_is_told_to_those_whose_policy_names_it() {
    let found = ("nas.local".to_owned(), ["192.168.1.8", "192.168.1.7"].map(|text| text.parse().unwrap()).into());
    let web = Host { lan_names: vec!["nas.local".into()], found: [found].into(), ..host("web", 2) };
    let directory = directory().after(Order::Host(web));
    let ask = |who, kind| asked_of(&directory, who, "NAS.local.", kind);
    assert_eq!(ask(WEB, RecordType::A), "NoError aa; NAS.local. 5 A 192.168.1.8");
    assert_eq!(ask(WEB, RecordType::AAAA), "NoError aa; SOA .");
    assert_eq!(ask(Some("Boss"), RecordType::A), "forwarded");
}

#[test]
fn the_hosts_name_is_for_those_who_may_reach_it() {
    assert_eq!(ask(Some("Boss"), "host.lazaret.", RecordType::A), "NoError aa; host.lazaret. 5 A 10.90.0.1");
    assert_eq!(ask(WEB, "host.lazaret.", RecordType::A), "NXDomain aa; SOA lazaret.");
}

#[test]
fn localhost_is_here_and_invalid_is_nowhere() {
    assert_eq!(ask(WEB, "localhost.", RecordType::A), "NoError aa; localhost. 5 A 127.0.0.1");
    assert_eq!(ask(WEB, "x.localhost.", RecordType::AAAA), "NoError aa; x.localhost. 5 AAAA ::1");
    assert_eq!(ask(WEB, "www.invalid.", RecordType::A), "NXDomain aa; SOA invalid.");
}

#[test]
fn names_outside_are_asked_for_where_the_policy_lets() {
    assert_eq!(ask(WEB, "www.example.com.", RecordType::A), "forwarded");
    assert_eq!(ask(Some("db"), "www.example.com.", RecordType::A), "Refused");
    // Validating resolvers ask for the records of top-level domains; nobody asks the world for plain names.
    assert_eq!(ask(WEB, "com.", RecordType::DS), "forwarded");
    assert_eq!(ask(WEB, "intranet.", RecordType::A), "NXDomain aa; SOA .");
    assert_eq!(ask(WEB, "example.com.", RecordType::AXFR), "Refused");
}

#[test]
fn changes_take_effect_one_by_one() {
    let address = |directory: &lazaret_net::responder::Directory, name: &str| {
        directory.named(&dns::Name::from_text(name)?).and_then(|target| directory.addresses(target).0)
    };
    let directory = directory().after(Order::Host(host("new", 9)));
    assert_eq!(address(&directory, "new.lazaret"), Some("10.90.0.9".parse().unwrap()));
    let directory = directory.after(Order::Host(host("NEW", 10)));
    assert_eq!(address(&directory, "new"), Some("10.90.0.10".parse().unwrap()));
    assert_eq!(directory.asker(ip("10.90.0.9")), None);
    let directory = directory.after(Order::Gone("new".into()));
    assert_eq!(address(&directory, "new"), None);
    assert_eq!(address(&directory, "web"), Some("10.90.0.2".parse().unwrap()));
}

/// What upstream says to a question, through the other implementation's writer.
fn upstream_answer(name: &str, kind: RecordType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = question(name, kind);
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    change(&mut message);
    message.to_vec().unwrap()
}

fn record(name: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, data)
}

/// Reads an upstream answer and tells it to a container as the loop does. The question has EDNS where `edns` has a
/// size.
fn relay(who: usize, name: &str, kind: RecordType, packet: &[u8], age: u64, edns: Option<u16>) -> Option<Message> {
    let directory = directory();
    let asker = Asker::Host(who);
    let mut asked = question(name, kind);
    if let Some(size) = edns {
        asked = with_edns(asked, size, false);
    }
    let mut out = Vec::new();
    let Verdict::Forward(query) = dns::answer(&directory, asker, &asked.to_vec().unwrap(), false, &mut out) else {
        panic!("`{name}` was not for upstream");
    };
    let key = Key::of(&query, directory.upstreams(asker));
    let answer = Rc::new(upstream::read(packet, &key, 4711)?);
    let mut cache = Cache::new(1 << 20);
    let now = Instant::now();
    cache.keep(&key, &answer, now);
    let (answer, age) = cache.find(&key, now + Duration::from_secs(age))?;
    dns::tell(&directory, asker, &query, &answer, age, query.udp_limit(), &mut out);
    Some(Message::from_vec(&out).unwrap())
}

#[test]
fn a_remembered_answer_ages_and_ends() {
    let packet = upstream_answer("Www.Example.Com.", RecordType::A, |message| {
        message.add_answer(record(
            "www.example.com.",
            300,
            RData::CNAME(CNAME(Name::from_ascii("e.example.").unwrap())),
        ));
        message.add_answer(record("e.example.", 60, RData::A(A::new(93, 184, 216, 34))));
    });
    let told = relay(0, "www.example.COM.", RecordType::A, &packet, 10, None).unwrap();
    assert_eq!(render(&told), "NoError; www.example.com. 290 CNAME e.example.; e.example. 50 A 93.184.216.34");
    assert_eq!((told.metadata.id, told.metadata.recursion_available), (4711, true));
    assert_eq!(told.queries[0].name.to_string(), "www.example.COM.");
    assert!(relay(0, "www.example.com.", RecordType::A, &packet, 60, None).is_none());
}

#[test]
fn names_that_point_into_the_lan_are_withheld() {
    for address in ["192.168.1.5", "127.0.0.1", "169.254.169.254", "100.64.1.1", "0.0.0.0", "10.90.0.3"] {
        let packet = upstream_answer("evil.example.", RecordType::A, |message| {
            message.add_answer(record("evil.example.", 60, RData::A(A(address.parse().unwrap()))));
        });
        assert_eq!(
            render(&relay(0, "evil.example.", RecordType::A, &packet, 0, None).unwrap()),
            "NoError",
            "{address}"
        );
        // With `lan` it is passed on.
        let passed = render(&relay(2, "evil.example.", RecordType::A, &packet, 0, None).unwrap());
        assert_eq!(passed, format!("NoError; evil.example. 60 A {address}"));
    }
    for address in ["::1", "fe80::1", "fd00::1", "::ffff:192.168.1.5", "64:ff9b::c0a8:105", "2002:c0a8:105::1"] {
        let packet = upstream_answer("evil.example.", RecordType::AAAA, |message| {
            message.add_answer(record("evil.example.", 60, RData::AAAA(AAAA(address.parse().unwrap()))));
        });
        let told = relay(0, "evil.example.", RecordType::AAAA, &packet, 0, None).unwrap();
        assert_eq!(render(&told), "NoError", "{address}");
    }
}

#[test]
fn a_prefix_that_is_on_link_on_the_host_is_the_lan_too() {
    let lan = vec![Prefix { address: ip("203.0.113.77"), length: 24 }];
    let settings = lazaret_net::responder::Settings { lan, ..settings() };
    let directory = directory().after(Order::Settings(settings));
    assert!(directory.is_lan(ip("203.0.113.1")) && !directory.is_lan(ip("203.0.114.1")));
}

#[test]
fn a_name_that_the_policy_allows_may_point_into_the_lan() {
    let packet = upstream_answer("nas.home.", RecordType::A, |message| {
        message.add_answer(record("nas.home.", 60, RData::A(A::new(192, 168, 1, 9))));
    });
    let told = relay(0, "nas.home.", RecordType::A, &packet, 0, None).unwrap();
    assert_eq!(render(&told), "NoError; nas.home. 60 A 192.168.1.9");
}

#[test]
fn hints_of_service_records_are_addresses_too() {
    // HTTPS 1 . ipv4hint=192.168.1.5, by hand: header, question, one record.
    let mut packet = upstream_answer("evil.example.", RecordType::HTTPS, |_| {});
    packet[7] = 1;
    packet.extend_from_slice(&[0xc0, 12, 0, 65, 0, 1, 0, 0, 0, 60, 0, 11, 0, 1, 0, 0, 4, 0, 4, 192, 168, 1, 5]);
    assert_eq!(render(&relay(0, "evil.example.", RecordType::HTTPS, &packet, 0, None).unwrap()), "NoError");
    let len = packet.len();
    packet[len - 4..].copy_from_slice(&[93, 184, 216, 34]);
    let told = relay(0, "evil.example.", RecordType::HTTPS, &packet, 0, None).unwrap();
    assert_eq!(told.answers.len(), 1);
}

#[test]
fn a_long_answer_sends_the_client_to_tcp_and_edns_makes_room() {
    let packet = upstream_answer("many.example.", RecordType::A, |message| {
        for i in 0..60 {
            message.add_answer(record("many.example.", 60, RData::A(A::new(93, 184, 216, i))));
        }
    });
    let cut = relay(0, "many.example.", RecordType::A, &packet, 0, None).unwrap();
    assert_eq!((render(&cut).as_str(), cut.queries.len()), ("NoError tc", 1));
    let whole = relay(0, "many.example.", RecordType::A, &packet, 0, Some(4096)).unwrap();
    assert_eq!(whole.answers.len(), 60);
    assert!(whole.edns.is_some());
}

#[test]
fn answers_to_other_questions_are_not_believed() {
    let genuine = upstream_answer("www.example.com.", RecordType::A, |message| {
        message.add_answer(record("www.example.com.", 60, RData::A(A::new(93, 184, 216, 34))));
    });
    let believed = |packet: &[u8]| relay(0, "www.example.com.", RecordType::A, packet, 0, None).is_some();
    assert!(believed(&genuine));
    let mut wrong_number = genuine.clone();
    wrong_number[0] ^= 1;
    assert!(!believed(&wrong_number));
    let mut wrong_name = genuine.clone();
    wrong_name[13] = b'x';
    assert!(!believed(&wrong_name));
    let mut question = genuine.clone();
    question[2] &= 0x7f;
    assert!(!believed(&question));
    assert!(!believed(&genuine[..genuine.len() - 1]));
}

#[test]
fn a_no_is_remembered_as_long_as_its_zone_says() {
    let packet = upstream_answer("no.example.", RecordType::A, |message| {
        message.metadata.response_code = ResponseCode::NXDomain;
        let n = |text: &str| Name::from_ascii(text).unwrap();
        let soa = hickory_proto::rr::rdata::SOA::new(n("ns.example."), n("root.example."), 1, 2, 3, 4, 30);
        message.add_authority(record("example.", 900, RData::SOA(soa)));
    });
    let told = relay(0, "no.example.", RecordType::A, &packet, 29, None).unwrap();
    assert_eq!(render(&told), "NXDomain; SOA example.");
    assert!(relay(0, "no.example.", RecordType::A, &packet, 30, None).is_none());
}

#[test]
fn the_cache_stays_within_its_bounds_and_keeps_what_is_asked_for() {
    let directory = directory();
    let mut cache = Cache::new(64 << 10);
    let now = Instant::now();
    let key_of = |name: &str| {
        let asked = question(name, RecordType::A).to_vec().unwrap();
        let Verdict::Forward(query) = dns::answer(&directory, Asker::Machine, &asked, false, &mut Vec::new()) else {
            panic!("not for upstream");
        };
        Key::of(&query, directory.upstreams(Asker::Machine))
    };
    for i in 0..5000 {
        let name = format!("n{i}.example.");
        let packet = upstream_answer(&name, RecordType::A, |message| {
            message.add_answer(record(&name, 60, RData::A(A::new(93, 184, 216, 34))));
        });
        let key = key_of(&name);
        cache.keep(&key, &Rc::new(upstream::read(&packet, &key, 4711).unwrap()), now);
        assert!(cache.find(&key_of("n0.example."), now).is_some(), "asked for all the time, forgotten after {i}");
    }
    assert!(cache.size() <= 64 << 10);
    assert!(cache.find(&key_of("n1.example."), now).is_none());
}
