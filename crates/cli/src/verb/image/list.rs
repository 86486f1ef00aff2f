//! `lazaret image list`: the images that are here.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::image::{Line, list};
use lazaret_base::Result;

use super::{Shown, ago};
use crate::report::{json, print, size};
use crate::session::Session;
use crate::table;
use crate::verb::json_flag;

pub fn command(command: Command) -> Command {
    command
        .about("List the images that are here")
        .visible_alias("ls")
        .args([
            json_flag(),
            Arg::new("names").short('1').long("names").action(ArgAction::SetTrue).help("Only the names, one a line"),
        ])
        .after_help("Examples:\n  lazaret image list\n  lazaret image list --json")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let lines = list(session.ready()?)?;
    if matches.get_flag("json") {
        return json(&lines.iter().map(Shown::of).collect::<Vec<_>>());
    }
    if matches.get_flag("names") {
        let named = lines.iter().filter(|line| line.image.is_some());
        named.for_each(|line| print(&format!("{}\n", line.name)));
        return Ok(ExitCode::SUCCESS);
    }
    if lines.is_empty() {
        session.say("no images; get one: lazaret image pull debian/trixie");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = lines.iter().map(row).collect();
    print(&table::render(&["NAME", "ARCH", "BUILD", "SIZE", "CAME", "CONTAINERS", "DESCRIPTION"], &rows));
    Ok(ExitCode::SUCCESS)
}

fn row(line: &Line) -> Vec<String> {
    let shown = Shown::of(line);
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let expired = shown.expires.is_some_and(|at| at < super::now());
    vec![
        line.name.clone(),
        or_dash(shown.architecture),
        or_dash(shown.build),
        size(shown.size),
        ago(shown.since),
        shown.used_by.len().to_string(),
        match expired {
            true => format!("expired; {}", shown.description),
            false => shown.description.to_owned(),
        },
    ]
}
