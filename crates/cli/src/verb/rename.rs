//! `lazaret rename`.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::create::rename;
use lazaret_base::Result;

use super::name_argument;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Give a stopped container another name")
        .args([name_argument("The container"), Arg::new("to").value_name("NEW").required(true).help("Its new name")])
        .after_help("Examples:\n  lazaret rename web web-old")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let to = matches.get_one::<String>("to").map(String::as_str).unwrap_or_default().parse()?;
    rename(session.ready()?, &name(matches)?, &to)?;
    Ok(ExitCode::SUCCESS)
}
