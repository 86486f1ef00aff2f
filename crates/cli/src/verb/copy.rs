//! `lazaret copy`: a container like another one.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::copy::{Copy, copy};
use lazaret_base::Result;

use super::name_argument;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Make a container that is like another one")
        .visible_alias("cp")
        .args([
            name_argument("The container that there is"),
            Arg::new("to").value_name("NEW").required(true).help("What to call the copy"),
            Arg::new("from-snapshot").long("from-snapshot").value_name("LABEL").help("Copy what it was at a snapshot"),
        ])
        .after_help(
            "\
The copy has ids of its own. Both share what they have in common on disk; nothing is copied but what a running \
container has written since its last snapshot.

Examples:
  lazaret copy web web-test
  lazaret copy web web-old --from-snapshot clean",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, from) = (session.ready()?, name(matches)?);
    let to = matches.get_one::<String>("to").map(String::as_str).unwrap_or_default().parse()?;
    let label = super::snapshots::label(matches, "from-snapshot")?;
    copy(store, &Copy { from: &from, to: &to, snapshot: label.as_ref() }, &mut session.progress(None))?;
    session.say(&format!("created `{to}`; next: lazaret shell {to}"));
    Ok(ExitCode::SUCCESS)
}
