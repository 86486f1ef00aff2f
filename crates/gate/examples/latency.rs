//! What the sound gate adds to the way of a command to the sound server and back, which is the way of sound, too.
//!
//! `cargo run --release -p lazaret-gate --example latency`; needs PulseAudio and root.

#[path = "../tests/live/world.rs"]
mod world;
#[path = "../tests/live/x.rs"]
mod x;

#[path = "../tests/live/sound.rs"]
mod sound;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

type Test = (&'static str, fn());

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--sound") {
        return sound::become_gate(&arguments[1..]);
    }
    let [own, gated] = sound::with_sockets(|direct, gate| {
        let (mut own, mut gated) = (Vec::new(), Vec::new());
        // Turn by turn, so that what else the machine does falls on both.
        for _ in 0..9 {
            own.extend(round_trips(direct));
            gated.extend(round_trips(gate));
        }
        [own, gated].map(|mut all| {
            all.sort();
            [all[all.len() / 2], all[all.len() * 99 / 100]]
        })
    });
    println!("median: direct {:?}, gate {:?}, added {:?}", own[0], gated[0], gated[0].saturating_sub(own[0]));
    println!("99 %:   direct {:?}, gate {:?}, added {:?}", own[1], gated[1], gated[1].saturating_sub(own[1]));
}

/// How long the server's answers take to questions about nothing much.
fn round_trips(socket: &Path) -> Vec<Duration> {
    // The server serves the session's user.
    let [person, root] = [sound::PERSON, 0].map(rustix::fs::Uid::from_raw);
    rustix::thread::set_thread_res_uid(person, person, root).unwrap();
    let trips = as_the_person(socket);
    rustix::thread::set_thread_res_uid(root, root, root).unwrap();
    trips
}

fn as_the_person(socket: &Path) -> Vec<Duration> {
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut introduction = values(&[8, 0, 35]);
    introduction.extend(b"x\0\0\x01\0");
    introduction.extend([0; 256]);
    ask(&mut stream, &introduction);
    // A name, as protocols before properties have it, is not needed: STAT asks for nothing.
    let mut properties = values(&[9, 1]);
    properties.extend(b"PN");
    ask(&mut stream, &properties);
    let trip = |tag| {
        let question = values(&[13, tag]);
        let start = Instant::now();
        ask(&mut stream, &question);
        start.elapsed()
    };
    (2..1002).map(trip).collect()
}

fn values(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|value| [&[b'L'][..], &value.to_be_bytes()].concat()).collect()
}

fn ask(stream: &mut UnixStream, body: &[u8]) {
    let head = [&(body.len() as u32).to_be_bytes()[..], &[0xff; 4], &[0; 12], body].concat();
    stream.write_all(&head).unwrap();
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes(head[..4].try_into().unwrap());
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[4], 2, "it is no error");
}
