//! `lazaret restart`: stop, then start.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::start::start;
use lazaret_base::{Kind, Result};

use super::{duration, duration_argument, name_argument, stop};
use crate::session::{Session, name, variable};

pub fn command(command: Command) -> Command {
    command
        .about("Stop a container and start it again, with its configuration as it is now")
        .args([
            name_argument("The container"),
            duration_argument("timeout", "Wait this long before killing, such as 10s [default: stop_timeout]"),
        ])
        .after_help("Examples:\n  lazaret restart web")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    session.out_of_reach_of(&name)?;
    match stop::end(session, &name, duration(matches, "timeout")?, false) {
        // One that does not run is just started.
        Err(e) if e.what() != Kind::Stopped => return Err(e),
        _ => {}
    }
    start(store, &name, variable, None)?.iter().for_each(|note| session.say(note));
    Ok(ExitCode::SUCCESS)
}
