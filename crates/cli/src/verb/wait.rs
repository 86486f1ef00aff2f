//! `lazaret wait`: until a container is in a state.

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Arg, ArgMatches, Command};
use lazaret::console::connect_to;
use lazaret::event::Follow;
use lazaret::info::{State, state};
use lazaret::runtime::cgroup::Hierarchies;
use lazaret_base::{Result, error};

use super::{duration, duration_argument, name_argument};
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    let states = State::ALL.iter().map(|(_, word)| *word).filter(|word| *word != "broken");
    command
        .about("Wait until a container is in a state")
        .args([
            name_argument("The container"),
            Arg::new("state")
                .value_name("STATE")
                .required(true)
                .ignore_case(true)
                .value_parser(states.collect::<Vec<_>>())
                .help("The state"),
            duration_argument("timeout", "Give up after this long, with status 1"),
        ])
        .after_help("Examples:\n  lazaret wait web stopped\n  lazaret wait web running --timeout 10s")
}

/// How soon one is looked at again of whom no event will tell.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name, timeout) = (session.ready()?, name(matches)?, duration(matches, "timeout")?);
    store.require(&name)?;
    store.prepare()?;
    let wanted = matches.get_one::<String>("state").map(String::as_str).unwrap_or_default().to_lowercase();
    let end = timeout.map(|timeout| Instant::now() + timeout);
    let trees = Hierarchies::probe()?;
    // Followed before it is looked at: no change falls in between.
    let mut events = Follow::start(store)?;
    loop {
        // A container that goes away has stopped.
        let now = if store.exists(&name) { state(store, &name, &trees)?.0 } else { State::Stopped };
        if now.to_string() == wanted {
            return Ok(ExitCode::SUCCESS);
        }
        if !store.exists(&name) {
            return Err(error(format!("`{name}` is gone and will never be {wanted}")));
        }
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(error(format!("`{name}` is {now}, not {wanted}, and the time is up")));
        }
        let line = connect_to(store, &name).ok();
        // A keeper that can't be called, of a container that has not stopped, is about to begin or to end.
        let about = line.is_none() && now != State::Stopped;
        let left = if about { Some(left.map_or(LOOK_AGAIN, |left| left.min(LOOK_AGAIN))) } else { left };
        if events.next(left, line.as_ref().map(AsFd::as_fd))?.is_empty() {
            // Perhaps its keeper was killed.
            session.ready()?;
        }
    }
}
