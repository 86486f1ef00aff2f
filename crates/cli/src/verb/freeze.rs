//! `lazaret freeze`.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::stop::freeze;
use lazaret_base::Result;

use super::name_argument;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command.about("Freeze a container: its processes get no more processor time").arg(name_argument("The container")).after_help("Examples:\n  lazaret freeze web")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    freeze(session.ready()?, &name(matches)?, true)?;
    Ok(ExitCode::SUCCESS)
}
