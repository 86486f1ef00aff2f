//! `lazaret unfreeze`.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::stop::freeze;
use lazaret_base::Result;

use super::name_argument;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command.about("Thaw a frozen container").arg(name_argument("The container")).after_help("Examples:\n  lazaret unfreeze web")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    freeze(session.ready()?, &name(matches)?, false)?;
    Ok(ExitCode::SUCCESS)
}
