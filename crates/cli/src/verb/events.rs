//! `lazaret events`: what happens, as it happens.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};
use lazaret::event::{Event, Follow};
use lazaret_base::{Result, error};

use super::json_flag;
use crate::report::print;
use crate::session::Session;

pub fn command(command: Command) -> Command {
    command
        .about("Follow what happens to containers")
        .args([
            json_flag(),
            Arg::new("count")
                .long("count")
                .value_name("N")
                .value_parser(value_parser!(usize))
                .help("End after N events"),
        ])
        .after_help("Examples:\n  lazaret events\n  lazaret events --json --count 1")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let store = session.ready()?;
    store.prepare()?;
    let mut left = matches.get_one::<usize>("count").copied().unwrap_or(usize::MAX);
    let mut events = Follow::start(store)?;
    session.say("following events; Ctrl-C ends");
    while left > 0 {
        for event in events.next(None, None)?.into_iter().take(left) {
            print(&line(&event, matches.get_flag("json"))?);
            left -= 1;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(event: &Event, json: bool) -> Result<String> {
    if json {
        return Ok(serde_json::to_string(event).map_err(|e| error(e.to_string()))? + "\n");
    }
    let seconds = event.time / 1000;
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let detail = event.detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
    Ok(format!("{clock} UTC  {:<10} {}{detail}\n", event.what, event.container))
}
