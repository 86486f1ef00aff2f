//! How fast a program draws through the gate, compared with the same untrusted program without it.
//!
//! `cargo run --release -p lazaret-gate --example throughput`; needs Xvfb.

#[path = "../tests/live/world.rs"]
mod world;
#[path = "../tests/live/x.rs"]
mod x;

use std::time::Instant;

use world::{Display, Gate};
use x::X;

/// What is drawn: its name, how often, one request (after the drawable and the context).
const PICTURE: (u16, u16) = (200, 200);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--gate") {
        return Gate::become_one(&arguments[1..]);
    }
    let display = Display::start();
    let gate = display.gate("ff");
    for (name, work) in [
        ("pictures", pictures as fn(&mut X) -> f64),
        ("scrolling", scrolling),
        ("lines", lines),
        ("questions", questions),
    ] {
        // Turn by turn, so that what else the machine does falls on both.
        let (mut direct, mut gated) = (Vec::new(), Vec::new());
        for _ in 0..9 {
            direct.push(work(&mut display.untrusted()));
            gated.push(work(&mut gate.connect()));
        }
        let (direct, gated) = (median(direct), median(gated));
        println!("{name:10} direct {direct:10.0}/s  gate {gated:10.0}/s  ratio {:.2}", gated / direct);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A window, a context, and how many requests in a second.
fn rate(x: &mut X, count: u32, mut one: impl FnMut(&mut X, u32, u32)) -> f64 {
    let window = x.shown((0, 0, 600, 600));
    let gc = x.id();
    x.send(55, 0, &[gc, window, 0]);
    x.sync();
    let start = Instant::now();
    for _ in 0..count {
        one(x, window, gc);
    }
    x.sync();
    f64::from(count) / start.elapsed().as_secs_f64()
}

fn pictures(x: &mut X) -> f64 {
    let (width, height) = PICTURE;
    let size = u32::from(width) | u32::from(height) << 16;
    let data = vec![0x55; usize::from(width) * usize::from(height) * 4];
    let mut bytes = Vec::new();
    rate(x, 2000, |x, window, gc| {
        bytes.clear();
        bytes.extend([window, gc, size, 0, 24 << 8].iter().flat_map(|word: &u32| word.to_le_bytes()));
        bytes.extend(&data);
        x.send_bytes(72, 2, &bytes);
    })
}

fn scrolling(x: &mut X) -> f64 {
    rate(x, 5000, |x, window, gc| {
        x.send(62, 0, &[window, window, gc, 10 << 16, 0, 500 | 500 << 16]);
    })
}

/// Many small requests in one piece, as Xlib sends them.
fn lines(x: &mut X) -> f64 {
    rate(x, 2000, |x, window, gc| {
        use std::io::Write;
        let mut bytes = Vec::new();
        for at in 0..100u32 {
            bytes.extend([65, 0, 5, 0]);
            bytes.extend([window, gc, at << 16, 50 | at << 16].iter().flat_map(|word: &u32| word.to_le_bytes()));
        }
        x.raw().write_all(&bytes).unwrap();
        x.skip(100);
    })
}

fn questions(x: &mut X) -> f64 {
    rate(x, 5000, |x, _, _| x.sync())
}
