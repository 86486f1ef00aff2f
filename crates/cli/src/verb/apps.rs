//! `lazaret apps`: the programs of a container that a menu could show.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::launcher::{Program, programs};
use lazaret_base::Result;

use super::{caller, json_flag, name_argument};
use crate::report::{json, print};
use crate::session::{Session, name};
use crate::table::render;

pub fn command(command: Command) -> Command {
    command
        .about("List the programs of a container that can be in your menu")
        .args([name_argument("The container; it may be stopped"), json_flag()])
        .after_help(
            "\
They are those that the container's own menu would show.

Examples:
  lazaret apps ff
  lazaret launcher ff firefox-esr      the program, in your menu
  lazaret app ff --entry firefox-esr   the program, now",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    let found = programs(store, &name, &caller()?)?;
    if matches.get_flag("json") {
        return json(&found);
    }
    if found.is_empty() {
        session.say(&format!("nothing in `{name}` says that it belongs in a menu"));
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = found.iter().map(row).collect();
    print(&render(&["ENTRY", "NAME", "IN MENU", "PURPOSE"], &rows));
    Ok(ExitCode::SUCCESS)
}

fn row(program: &Program) -> Vec<String> {
    let in_menu = if program.in_menu { "yes" } else { "" };
    vec![program.id.clone(), program.name.clone(), in_menu.into(), program.comment.clone().unwrap_or_default()]
}
