//! `lazaret stop`: a running container ends.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::stop::{Stopped, kill, stop};
use lazaret_base::Result;
use lazaret_config::Name;

use super::{duration, duration_argument, name_argument};
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Stop a container: ask its init, wait, and kill what is left")
        .args([
            name_argument("The container"),
            duration_argument("timeout", "Wait this long before killing, such as 10s [default: stop_timeout]"),
            Arg::new("kill").short('k').long("kill").action(ArgAction::SetTrue).conflicts_with("timeout").help("Kill it at once"),
        ])
        .after_help("Examples:\n  lazaret stop web\n  lazaret stop web --timeout 5s\n  lazaret stop web --kill")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let name = name(matches)?;
    session.ready()?;
    // Some inits are asked by a command of their own, run inside.
    session.out_of_reach_of(&name)?;
    end(session, &name, duration(matches, "timeout")?, matches.get_flag("kill"))?;
    Ok(ExitCode::SUCCESS)
}

/// Stops, and says so if it had to be killed.
pub fn end(session: &Session, name: &Name, timeout: Option<Duration>, at_once: bool) -> Result<()> {
    if at_once {
        return kill(&session.store, name);
    }
    let how = stop(&session.store, name, timeout, &mut |waiting| session.say(waiting))?;
    if how == Stopped::Killed {
        session.say(&format!("`{name}` did not end in time and was killed"));
    }
    Ok(())
}
