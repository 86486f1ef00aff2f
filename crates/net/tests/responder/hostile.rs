//! Whatever comes in: no panic, nothing endless, nothing long, nothing for the wrong one.

use lazaret_net::dns::{self, Key, Verdict, upstream};
use lazaret_net::responder::directory::link_local;
use lazaret_net::responder::{Asker, Directory};
use lazaret_net::{dhcp, router};
use proptest::prelude::*;

use crate::view::{directory, question, with_edns};

/// Valid packets to start from: one of each kind that is read.
fn seeds() -> Vec<Vec<u8>> {
    use hickory_proto::rr::RecordType;
    let mut seeds: Vec<Vec<u8>> = ["web.lazaret.", "www.example.com.", "2.0.90.10.in-addr.arpa."]
        .into_iter()
        .map(|name| with_edns(question(name, RecordType::A), 4096, true).to_vec().unwrap())
        .collect();
    // An answer with an alias, a service binding and compression.
    let mut answer = question("www.example.com.", RecordType::A).to_vec().unwrap();
    answer[2] |= 0x80;
    answer[7] = 3;
    answer.extend_from_slice(&[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 4, 1, b'e', 0xc0, 16]);
    answer.extend_from_slice(&[0xc0, 45, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 93, 184, 216, 34]);
    answer.extend_from_slice(&[0xc0, 12, 0, 65, 0, 1, 0, 0, 0, 60, 0, 11, 0, 1, 0, 0, 4, 0, 4, 192, 168, 1, 5]);
    seeds.push(answer);
    let mut discover = vec![0; 240];
    discover[..3].copy_from_slice(&[1, 1, 6]);
    discover[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    discover[236..].copy_from_slice(&[99, 130, 83, 99]);
    discover.extend_from_slice(&[53, 1, 3, 50, 4, 10, 90, 0, 2, 61, 7, 1, 2, 0, 0, 0, 0, 2, 255]);
    seeds.push(discover);
    let mut solicit = vec![1, 1, 2, 3, 0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 2];
    solicit.extend_from_slice(&[0, 3, 0, 12, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
    seeds.push(solicit);
    seeds.push(vec![133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 2]);
    seeds
}

/// A seed with bytes changed, cut off, repeated or inserted; or noise.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0_u8..4);
    let mutated =
        (prop::sample::select(seeds()), prop::collection::vec(change, 0..12)).prop_map(|(mut packet, changes)| {
            for (index, value, kind) in changes {
                let at = index.index(packet.len().max(1));
                match kind {
                    _ if packet.is_empty() => packet.push(value),
                    0 => packet[at] = value,
                    1 => packet.truncate(at),
                    2 => packet.insert(at, value),
                    // Pointers are what loops are made of.
                    _ => packet[at] = 0xc0 | (value & 3),
                }
            }
            packet
        });
    prop_oneof![8 => mutated, 1 => prop::collection::vec(any::<u8>(), 0..1500)]
}

fn key(directory: &Directory) -> Key {
    let packet = question("www.example.com.", hickory_proto::rr::RecordType::A).to_vec().unwrap();
    match dns::answer(directory, Asker::Machine, &packet, false, &mut Vec::new()) {
        Verdict::Forward(query) => Key::of(&query, directory.upstreams(Asker::Machine)),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn every_packet_is_survived_by_every_reader(packet in packets()) {
        let directory = directory();
        let mut out = Vec::new();
        for asker in [Asker::Machine, Asker::Host(0), Asker::Host(1)] {
            if let Verdict::Answered = dns::answer(&directory, asker, &packet, false, &mut out) {
                // An answer, to the same number, that fits, and that another implementation understands.
                prop_assert!(out.len() <= dns::UDP_LIMIT && out[2] & 0x80 != 0 && out[..2] == packet[..2]);
                prop_assert!(hickory_proto::op::Message::from_vec(&out).is_ok());
            }
        }
        if let Some(answer) = upstream::read(&packet, &key(&directory), 4711) {
            prop_assert!(answer.bytes.len() <= packet.len());
        }
        if let Some(reply) = dhcp::v4::answer(&directory, &packet) {
            let owner = directory.at_mac(reply.station).unwrap();
            prop_assert!(packet[28..34] == reply.station && reply.packet.len() < 900);
            let promised: [u8; 4] = reply.packet[44..48].try_into().unwrap();
            prop_assert!(promised == [0; 4] || Some(promised.into()) == directory.host(owner).address4);
        }
        if let Some(reply) = dhcp::v6::answer(&directory, link_local([2, 0, 0, 0, 0, 2]), &packet) {
            prop_assert!(reply.len() < 2048);
        }
        router::is_solicitation(&packet);
    }

    #[test]
    fn what_is_told_to_clients_is_understood_by_them(packet in packets()) {
        let directory = directory();
        let mut whole = packet;
        // Past the checks of the header, so that the records are reached more often.
        if whole.len() > 12 {
            let asked = question("www.example.com.", hickory_proto::rr::RecordType::A).to_vec().unwrap();
            let end = asked.len().min(whole.len());
            whole[..2].copy_from_slice(&asked[..2]);
            whole[12..end].copy_from_slice(&asked[12..end]);
        }
        let key = key(&directory);
        if let Some(answer) = upstream::read(&whole, &key, 4711) {
            let asked = question("www.example.com.", hickory_proto::rr::RecordType::A).to_vec().unwrap();
            let mut out = Vec::new();
            let Verdict::Forward(query) = dns::answer(&directory, Asker::Host(0), &asked, false, &mut out) else {
                return Err(TestCaseError::fail("not for upstream"));
            };
            dns::tell(&directory, Asker::Host(0), &query, &answer, 5, query.udp_limit(), &mut out);
            prop_assert!(out.len() <= 512 && out.starts_with(&asked[..2]));
            prop_assert_eq!(out.get(12..asked.len()), Some(&asked[12..]));
        }
    }
}

#[test]
fn compression_loops_end() {
    let directory = directory();
    let key = key(&directory);
    let mut packet = question("www.example.com.", hickory_proto::rr::RecordType::A).to_vec().unwrap();
    packet[2] |= 0x80;
    packet[7] = 1;
    let owner = packet.len();
    for pointer in [owner, owner + 2, owner - 1, 0, 11] {
        let mut looping = packet.clone();
        looping.extend_from_slice(&(0xc000 | pointer as u16).to_be_bytes());
        looping.extend_from_slice(&[0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 93, 184, 216, 34]);
        assert!(pointer == owner - 1 || upstream::read(&looping, &key, 4711).is_none(), "pointer to {pointer}");
    }
    // Each name points to the one before: the last is as deep as names can be, and one more is too deep.
    let mut chained = packet.clone();
    chained[6..8].copy_from_slice(&300_u16.to_be_bytes());
    let mut previous = 12;
    for _ in 0..300 {
        let here = chained.len();
        chained.extend_from_slice(&[1, b'x']);
        chained.extend_from_slice(&(0xc000 | previous as u16).to_be_bytes());
        chained.extend_from_slice(&[0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 93, 184, 216, 34]);
        previous = here;
    }
    assert!(upstream::read(&chained, &key, 4711).is_none());
}

#[test]
fn a_question_with_a_pointer_or_two_questions_is_malformed() {
    let directory = directory();
    let mut out = Vec::new();
    let mut code = |packet: &[u8]| {
        dns::answer(&directory, Asker::Host(0), packet, false, &mut out);
        out.get(3).map(|flags| flags & 15)
    };
    let header = |questions: u8| vec![0, 1, 1, 0, 0, questions, 0, 0, 0, 0, 0, 0];
    let mut pointer = header(1);
    pointer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
    assert_eq!(code(&pointer), Some(1));
    assert_eq!(code(&header(2)), Some(1));
    assert_eq!(code(&header(0)), Some(1));
    let mut update = header(1);
    update[2] = 0x28;
    assert_eq!(code(&update), Some(4));
    // Answers are never answered: two servers would talk for ever.
    let mut answer = header(1);
    answer[2] = 0x81;
    assert_eq!(code(&answer), None);
    assert_eq!(code(&[0; 11]), None);
}
