//! `lazaret paste`: the person's clipboard, once, into a container.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret_base::Result;

use super::name_argument;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Let a container's programs paste what you have copied")
        .args([name_argument("The container")])
        .after_help(
            "\
What is copied inside can be pasted outside at any time. The other way it takes this command, each time: \
programs of a container do not see what you copy. On Wayland a program has the clipboard while you type into it: \
if that is none of the container's now, it is the first one that you turn to within a minute.

Examples:
  lazaret paste ff
  lazaret config ff set desktop.clipboard=both     both ways, always
  lazaret config ff set desktop.clipboard=off      neither way",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    if lazaret::gate::paste(store, &name)? {
        session.say(&format!("turn to a program of `{name}` within a minute, and paste"));
    }
    Ok(ExitCode::SUCCESS)
}
