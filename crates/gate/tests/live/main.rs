//! The gates between real programs and real servers. What an attacker must not be able to do through the gate, it
//! is first seen to do without, where the server's own untrusted mode allows it: so the tests are known to be right.

mod attacks;
mod bounds;
mod programs;
mod sound;
mod wayland;
mod world;
mod x;

use std::process::ExitCode;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--gate") {
        world::Gate::become_one(&arguments[1..]);
        return ExitCode::SUCCESS;
    }
    if arguments.first().is_some_and(|first| first == "--sound") {
        sound::become_gate(&arguments[1..]);
        return ExitCode::SUCCESS;
    }
    if arguments.first().is_some_and(|first| first == "--wayland") {
        wayland::become_gate(&arguments[1..]);
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let all = [attacks::TESTS, bounds::TESTS, programs::TESTS, sound::TESTS, wayland::TESTS].concat();
    if arguments.iter().any(|argument| argument == "--list") {
        for (name, _) in &all {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in all {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let fine = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if fine { "ok" } else { "FAILED" });
        match fine {
            true => passed += 1,
            false => failed += 1,
        }
    }
    // As libtest says it, for those who count.
    println!("test result: {}. {passed} passed; {failed} failed", if failed == 0 { "ok" } else { "FAILED" });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
