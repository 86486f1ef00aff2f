//! The gates between real programs and real servers. What an attacker must not be able to do through the gate, it
//! is first seen to do without, where the server's own untrusted mode allows it: so the tests are known to be right.

mod attacks;
mod bounds;
mod bus;
mod programs;
mod sound;
mod wayland;
mod world;
mod x;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

type Test = (&'static str, fn());

/// No test takes longer, on the slowest machine that they shall pass on. Some real programs wait for ever for an answer
/// that does not come: xclip for a clipboard whose owner has just ended, for one.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs one test in a process group of its own, of which nothing is left afterwards: neither what it began when it
/// failed, nor what holds on to our standard output.
fn passes(name: &str) -> bool {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program).args(["--one", name]).stdin(Stdio::null()).process_group(0).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let ended = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let limit = Timespec { tv_sec: LIMIT.as_secs() as i64, tv_nsec: 0 };
    let in_time = poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&limit)).unwrap() > 0;
    if !in_time {
        println!("{name} is still at work after {} s", LIMIT.as_secs());
    }
    // The number is the group's as long as its first process has not been waited for.
    let _ = kill_process_group(pid, Signal::KILL);
    child.wait().unwrap().success() && in_time
}

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
    if arguments.first().is_some_and(|first| first == "--bus") {
        bus::become_gate(&arguments[1..]);
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let all = [attacks::TESTS, bounds::TESTS, programs::TESTS, sound::TESTS, bus::TESTS, wayland::TESTS].concat();
    if arguments.iter().any(|argument| argument == "--list") {
        for (name, _) in &all {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    if let [first, wanted] = &arguments[..]
        && first == "--one"
    {
        let (_, test) = all.iter().find(|(name, _)| name == wanted).expect("it is one of the list");
        test();
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, _) in all {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let fine = passes(name);
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
