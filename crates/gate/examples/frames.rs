//! How many pictures a program shows on a Wayland compositor through the gate, compared with the same program without.
//!
//! `cargo run --release -p lazaret-gate --example frames`; needs weston, and root.

#[path = "../tests/live/wayland.rs"]
mod wayland;
#[path = "../tests/live/world.rs"]
mod world;
#[path = "../tests/live/x.rs"]
mod x;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lazaret_gate::wayland::message;
use wayland::{Gate, Place, Raw, bind};

/// As the tests are listed.
type Test = (&'static str, fn());

/// Measures something: how often a second.
type Work = fn(&mut Window) -> f64;

const WIDTH: u32 = 800;
const HEIGHT: u32 = 600;
/// Objects of the program, in the order in which it makes them.
const COMPOSITOR: u32 = 4;
const SHM: u32 = 5;
const BASE: u32 = 6;
const SURFACE: u32 = 7;
const ROLE: u32 = 8;
const WINDOW: u32 = 9;
const POOL: u32 = 10;
const BUFFERS: [u32; 2] = [11, 12];
const CALLBACKS: [u32; 2] = [13, 14];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--wayland") {
        return wayland::become_gate(&arguments[1..]);
    }
    let place = Place::weston();
    let gate = Gate::start(&place, "out");
    let works: [(&str, Work); 3] = [
        ("frames as the compositor asks for them", paced),
        ("frames as fast as they are drawn", drawn),
        ("questions", asked),
    ];
    for (name, work) in works {
        // Turn by turn, so that what else the machine does falls on both.
        let (mut direct, mut gated) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            direct.push(work(&mut Window::new(Raw(UnixStream::connect(place.socket()).unwrap()))));
            gated.push(work(&mut Window::new(gate.connect())));
        }
        let (direct, gated) = (median(direct), median(gated));
        println!("{name:40} direct {direct:9.1}/s  gate {gated:9.1}/s  ratio {:.2}", gated / direct);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A window of a program, with two pictures in memory that the compositor has, too.
struct Window {
    raw: Raw,
    memory: OwnedFd,
    frame: u32,
}

impl Window {
    fn new(mut raw: Raw) -> Window {
        let globals = raw.globals();
        let name = |interface: &str| globals.iter().find(|(name, _)| name == interface).unwrap().1;
        let size = WIDTH * HEIGHT * 4;
        let memory = rustix::fs::memfd_create("pictures", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, u64::from(size) * 2).unwrap();
        let buffer = |at: u32| message(POOL, 0, &[BUFFERS[at as usize], at * size, WIDTH, HEIGHT, WIDTH * 4, 1]);
        let made = [
            bind(name("wl_compositor"), "wl_compositor", COMPOSITOR),
            bind(name("wl_shm"), "wl_shm", SHM),
            bind(name("xdg_wm_base"), "xdg_wm_base", BASE),
            message(COMPOSITOR, 0, &[SURFACE]),
            message(BASE, 2, &[ROLE, SURFACE]),
            message(ROLE, 1, &[WINDOW]),
            message(SURFACE, 6, &[]),
            message(SHM, 0, &[POOL, size * 2]),
            buffer(0),
            buffer(1),
        ];
        assert!(raw.send_with(&made.concat(), &[memory.try_clone().unwrap()]));
        // The first size is told once, and has to be answered.
        let all = raw.hear(Some(ROLE));
        let (.., serial) = all.last().unwrap();
        let serial = u32::from_ne_bytes(serial[..4].try_into().unwrap());
        assert!(raw.send(&message(ROLE, 4, &[serial])));
        Window { raw, memory, frame: 0 }
    }

    /// Draws a picture, shows it, and asks `about` it. By which object the answer comes is returned.
    fn show(&mut self, about: impl Fn(u32) -> Vec<u8>) -> u32 {
        let at = self.frame % 2;
        let picture = vec![self.frame as u8; (WIDTH * HEIGHT * 4) as usize];
        rustix::io::pwrite(&self.memory, &picture, u64::from(at * WIDTH * HEIGHT * 4)).unwrap();
        let shown = [
            message(SURFACE, 1, &[BUFFERS[at as usize], 0, 0]),
            message(SURFACE, 2, &[0, 0, WIDTH, HEIGHT]),
            about(CALLBACKS[at as usize]),
            message(SURFACE, 6, &[]),
        ];
        assert!(self.raw.send(&shown.concat()));
        self.frame += 1;
        CALLBACKS[at as usize]
    }

    /// The answer, and that the number is free again.
    fn answered(&mut self, callback: u32) {
        self.raw.hear(Some(callback));
        self.raw.hear(Some(1));
    }
}

fn rate(time: Duration, mut one: impl FnMut()) -> f64 {
    one();
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        one();
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

/// As programs do: the next one when the compositor says that it is time.
fn paced(window: &mut Window) -> f64 {
    rate(Duration::from_secs(2), || {
        let answer = window.show(|answer| message(SURFACE, 3, &[answer]));
        window.answered(answer);
    })
}

/// As fast as it goes, but never more than two ahead of the compositor.
fn drawn(window: &mut Window) -> f64 {
    let mut last = None;
    rate(Duration::from_secs(1), || {
        let answer = window.show(|answer| message(1, 0, &[answer]));
        // The next is drawn while the last is on its way.
        if let Some(last) = last.replace(answer) {
            window.answered(last);
        }
    })
}

/// Nothing but the way there and back.
fn asked(window: &mut Window) -> f64 {
    rate(Duration::from_secs(1), || {
        assert!(window.raw.send(&message(1, 0, &[CALLBACKS[0]])));
        window.answered(CALLBACKS[0]);
    })
}
