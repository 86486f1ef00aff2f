//! `lazaret list`: all containers, in a table.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::info::{Line, State, list};
use lazaret_base::Result;

use super::json_flag;
use crate::report::{json, print, size, span};
use crate::session::Session;
use crate::table;

pub fn command(command: Command) -> Command {
    command
        .about("List containers")
        .visible_alias("ls")
        .args([
            json_flag(),
            Arg::new("names").short('1').long("names").action(ArgAction::SetTrue).help("Only the names, one a line"),
            Arg::new("running").short('r').long("running").action(ArgAction::SetTrue).help("Only those that run"),
        ])
        .after_help("Examples:\n  lazaret list\n  lazaret list --running --names\n  lazaret list --json")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let mut lines = list(session.ready()?)?;
    if matches.get_flag("running") {
        lines.retain(|line| !matches!(line.state, State::Stopped | State::Broken));
    }
    if matches.get_flag("json") {
        return json(&lines);
    }
    if matches.get_flag("names") {
        lines.iter().for_each(|line| print(&format!("{}\n", line.name)));
        return Ok(ExitCode::SUCCESS);
    }
    if lines.is_empty() {
        session.say("no containers; make one: lazaret create NAME");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = lines.iter().map(row).collect();
    print(&table::render(&["NAME", "STATE", "PID", "MEMORY", "TASKS", "UP", "IMAGE", "DESCRIPTION"], &rows));
    Ok(ExitCode::SUCCESS)
}

fn row(line: &Line) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let file_name = std::path::Path::new(&line.image).file_name();
    let image = file_name.map_or(line.image.clone(), |name| name.to_string_lossy().into_owned());
    vec![
        line.name.to_string(),
        line.state.to_string(),
        or_dash(line.pid.map(|pid| pid.to_string())),
        or_dash(line.memory.map(size)),
        or_dash(line.tasks.map(|tasks| tasks.to_string())),
        or_dash(line.since.map(up)),
        if image.is_empty() { "-".into() } else { image },
        line.fault.clone().unwrap_or_else(|| line.description.clone()),
    ]
}

/// How long since a moment, in words.
pub fn up(since: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    span(now.saturating_sub(Duration::from_millis(since)))
}
