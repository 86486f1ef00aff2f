//! `lazaret snapshots`: the snapshots of a container.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::snapshot::remove;
use lazaret::{Label, Why};
use lazaret_base::Result;
use serde::Serialize;

use super::{json_flag, name_argument};
use crate::report::{json, print};
use crate::session::{Session, name};
use crate::table;

pub fn command(command: Command) -> Command {
    command
        .about("List the snapshots of a container, or remove one")
        .args([
            name_argument("The container"),
            Arg::new("remove").long("remove").value_name("LABEL").help("Remove this one"),
            json_flag().conflicts_with("remove"),
        ])
        .after_help("Examples:\n  lazaret snapshots web\n  lazaret snapshots web --remove snap1")
}

/// A label, where one is given.
pub fn label(matches: &ArgMatches, argument: &str) -> Result<Option<Label>> {
    matches.get_one::<String>(argument).map(|label| label.parse()).transpose()
}

#[derive(Serialize)]
struct Line {
    label: Label,
    created: u64,
    why: Why,
    running: bool,
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    if let Some(label) = label(matches, "remove")? {
        remove(store, &name, &label)?;
        return Ok(ExitCode::SUCCESS);
    }
    let snapshots = store.record(&name)?.snapshots.into_iter();
    let lines: Vec<_> =
        snapshots.map(|s| Line { label: s.label, created: s.created, why: s.why, running: s.running }).collect();
    if matches.get_flag("json") {
        return json(&lines);
    }
    if lines.is_empty() {
        session.say(&format!("`{name}` has no snapshots; take one: lazaret snapshot {name}"));
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = lines.iter().map(row).collect();
    print(&table::render(&["LABEL", "AGE", "WHY"], &rows));
    Ok(ExitCode::SUCCESS)
}

fn row(line: &Line) -> Vec<String> {
    let why = match line.why {
        Why::Asked if line.running => "asked for, while it ran",
        Why::Asked => "asked for",
        Why::BeforeRollback => "before a rollback",
        Why::BeforeStart => "before a start",
    };
    vec![line.label.to_string(), super::list::up(line.created * 1000), why.into()]
}
