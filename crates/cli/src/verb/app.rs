//! `lazaret app`: a program of a container on the person's screen.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::app::{App, app};
use lazaret_base::Result;

use super::{command_argument, desktop_session, environment, environment_argument, name_argument, stdio, words};
use crate::session::{Session, name, variable};

pub fn command(command: Command) -> Command {
    command
        .about("Run a program of a container on your screen")
        .args([
            name_argument("The container; it is started if it does not run"),
            Arg::new("detach").short('d').long("detach").action(ArgAction::SetTrue).help("Do not wait for its end"),
            environment_argument(),
            Arg::new("entry").long("entry").value_name("APP").help("The program of this entry (`lazaret apps NAME`); CMD is what it opens"),
            command_argument(false).required_unless_present("entry"),
        ])
        .after_help(
            "\
The container needs a display: `lazaret create NAME --desktop`. The program runs as the container's desktop \
user, in your language and time zone. Its windows bear the container's name. It can't see or steer what is not \
its own.

Programs are shown on what the session has: a Wayland compositor, an X server, or both. One that fails since the \
container's level of display is not enough for it, and says so on a terminal, is followed by a line that names the \
level that is.

The screen is that of the session in which the command is typed. What sudo has stripped of it is found again.

The exit status is the program's; 125: it could not be run, 126: it is no program, 127: it was not found, 128+S: \
it was killed by signal S.

Examples:
  lazaret app ff firefox-esr
  lazaret app ff --detach -- xterm -e top
  lazaret paste ff                     what you have copied can be pasted inside",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    session.out_of_reach_of(&name)?;
    let desktop = desktop_session()?;
    let wanted = App {
        name: &name,
        words: words(matches, "command"),
        entry: matches.get_one::<String>("entry").cloned(),
        session: &desktop,
        detach: matches.get_flag("detach"),
        environment: environment(matches)?,
    };
    let mut say = |note: &str| session.say(note);
    let ended = stdio(|stdio| app(store, &wanted, stdio, variable, &mut say))?;
    Ok(ended.map_or(ExitCode::SUCCESS, |ended| ExitCode::from(ended.status() as u8)))
}
