//! `lazaret image refresh`: newer builds of what is here.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::image::{Refreshed, refresh};
use lazaret_base::Result;
use serde::Serialize;

use super::here_argument;
use crate::report::{json, print};
use crate::session::Session;
use crate::table;
use crate::verb::{json_flag, words};

pub fn command(command: Command) -> Command {
    command
        .about("Get newer builds of images that are here, and the servers' lists anew")
        .args([
            here_argument("Which [default: all that are of a server]", false),
            Arg::new("check").short('n').long("check").action(ArgAction::SetTrue).help("Only look"),
            json_flag(),
        ])
        .after_help(
            "\
Containers keep the build that they were made from; `lazaret image prune` removes those that none needs.

Examples:
  lazaret image refresh
  lazaret image refresh debian/trixie
  lazaret image refresh --check",
        )
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    build: &'a str,
    newest: &'a str,
    error: Option<&'a str>,
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, sources) = (session.ready()?, session.sources()?);
    let only_look = matches.get_flag("check");
    let all = refresh(store, &sources, &words(matches, "image"), only_look, &mut session.progress(None))?;
    let status = ExitCode::from(u8::from(all.iter().any(|one| one.fault.is_some())));
    if matches.get_flag("json") {
        let all: Vec<_> = all.iter().map(shown).collect();
        json(&all)?;
        return Ok(status);
    }
    if all.is_empty() {
        session.say("no image that is here is of a server");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = all.iter().map(|one| row(one, only_look)).collect();
    print(&table::render(&["NAME", "BUILD", "NEWEST", ""], &rows));
    Ok(status)
}

fn shown(one: &Refreshed) -> Shown<'_> {
    Shown { name: &one.name, build: &one.from, newest: &one.to, error: one.fault.as_deref() }
}

fn row(one: &Refreshed, only_look: bool) -> Vec<String> {
    let said = match (&one.fault, one.from == one.to) {
        (Some(fault), _) => fault.clone(),
        (None, true) => "up to date".to_owned(),
        (None, false) if only_look => "newer".to_owned(),
        (None, false) => "renewed".to_owned(),
    };
    vec![one.name.clone(), one.from.clone(), one.to.clone(), said]
}
