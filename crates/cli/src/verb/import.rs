//! `lazaret import`: a container that was exported.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::transfer::import;
use lazaret_base::Result;

use super::export::file_argument;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Make a container of a file that `lazaret export` wrote")
        .args([file_argument(), Arg::new("name").value_name("NAME").required(true).help("What to call it here")])
        .after_help("Examples:\n  lazaret import web.tar.zst web")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    let file = matches.get_one::<PathBuf>("file").cloned().unwrap_or_default();
    let total = std::fs::metadata(&file).ok().map(|file| file.len());
    let imported = import(store, &file, &name, &mut session.progress(total))?;
    imported.notes.iter().for_each(|note| session.say(note));
    session.say(&format!("created `{name}`; next: lazaret shell {name}"));
    Ok(ExitCode::SUCCESS)
}
