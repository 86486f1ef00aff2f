//! `lazaret man`: manual pages, from the same table as the help.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};
use lazaret_base::{Context, Result};

use crate::session::Session;

pub fn command(command: Command) -> Command {
    command
        .about("Write the manual pages into a directory")
        .arg(Arg::new("dir").value_name("DIR").required(true).value_parser(value_parser!(PathBuf)).help("Where to, such as /usr/local/share/man/man1"))
        .after_help("Examples:\n  lazaret man /usr/local/share/man/man1 && man lazaret-run")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let Some(dir) = matches.get_one::<PathBuf>("dir") else { return Ok(ExitCode::from(2)) };
    std::fs::create_dir_all(dir).with_context(|| format!("making `{}`", dir.display()))?;
    clap_mangen::generate_to(crate::command(), dir).with_context(|| format!("writing to `{}`", dir.display()))?;
    session.say(&format!("wrote the pages to `{}`", dir.display()));
    Ok(ExitCode::SUCCESS)
}
