//! `lazaret plan`: what a start would do.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::start::plan;
use lazaret_base::Result;

use super::{json_flag, name_argument};
use crate::report::{json, print};
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Print every step that a start takes, without taking any")
        .args([name_argument("The container"), json_flag()])
        .after_help("Examples:\n  lazaret plan web\n  lazaret plan web --json")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let plan = plan(session.ready()?, &name(matches)?)?;
    if matches.get_flag("json") {
        return json(&plan);
    }
    print(&plan.to_string());
    Ok(ExitCode::SUCCESS)
}
