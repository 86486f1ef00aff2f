//! `lazaret start`: a stopped container runs.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::start::start;
use lazaret_base::Result;

use super::name_argument;
use crate::session::{Session, name, variable};

pub fn command(command: Command) -> Command {
    let command = command.about("Start a container; returns when its init runs").arg(name_argument("The container"));
    #[cfg(feature = "inject")]
    let command = command.arg(clap::Arg::new("inject").long("inject").hide(true));
    command.after_help("Examples:\n  lazaret start web\n  lazaret plan web       what a start does, step by step")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    let notes = start(store, &name, variable, injection(matches)?)?;
    notes.iter().for_each(|note| session.say(note));
    Ok(ExitCode::SUCCESS)
}

/// For tests: `--inject keeper:7` kills the keeper at the plan's step 7.
#[cfg(feature = "inject")]
fn injection(matches: &ArgMatches) -> Result<Option<(usize, String)>> {
    let Some(text) = matches.get_one::<String>("inject") else { return Ok(None) };
    let parsed = text.split_once(':').and_then(|(victim, step)| Some((step.parse().ok()?, victim.to_owned())));
    parsed.map(Some).ok_or_else(|| lazaret_base::error("--inject takes VICTIM:STEP"))
}

#[cfg(not(feature = "inject"))]
fn injection(_: &ArgMatches) -> Result<Option<(usize, String)>> {
    Ok(None)
}
