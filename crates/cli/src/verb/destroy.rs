//! `lazaret destroy`: a container and all its files go.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::create::destroy;
use lazaret_base::Result;

use super::name_argument;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Remove a container with all its files")
        .visible_alias("rm")
        .args([
            name_argument("The container"),
            Arg::new("force").short('f').long("force").action(ArgAction::SetTrue).help("End it first if it runs"),
        ])
        .after_help("Examples:\n  lazaret destroy web\n  lazaret destroy --force web")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    destroy(session.ready()?, &name(matches)?, matches.get_flag("force"))?;
    Ok(ExitCode::SUCCESS)
}
