//! `lazaret image verify`: whether an image still is what it was.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::image::{list, verify};
use lazaret_base::Result;
use serde::Serialize;

use super::here_argument;
use crate::report::{json, print, size};
use crate::session::Session;
use crate::verb::{absolute, json_flag, words};

pub fn command(command: Command) -> Command {
    command
        .about("Read images whole and tell what has changed since they were made")
        .args([here_argument("Which [default: all]", false), json_flag()])
        .after_help(
            "\
The exit status is 1 if anything is not as it was.

Examples:
  lazaret image verify
  lazaret image verify debian/trixie",
        )
}

#[derive(Serialize)]
struct Shown {
    name: String,
    sound: bool,
    compared: bool,
    files: u64,
    bytes: u64,
    digest: String,
    faults: Vec<String>,
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let store = session.ready()?;
    let mut names = words(matches, "image").iter().map(|name| absolute(name)).collect::<Result<Vec<_>>>()?;
    if names.is_empty() {
        names = list(store)?
            .into_iter()
            .map(|line| if line.image.is_some() { line.name } else { line.layer.id.to_string() })
            .collect();
    }
    let mut all = Vec::new();
    for name in names {
        let (found, verified) = verify(store, &name, &mut session.progress(None))?;
        all.push(Shown {
            name: found.name,
            sound: verified.faults.is_empty(),
            compared: verified.compared,
            files: verified.entries,
            bytes: verified.bytes,
            digest: verified.digest.to_string(),
            faults: verified.faults,
        });
    }
    let sound = all.iter().all(|shown| shown.sound);
    if matches.get_flag("json") {
        json(&all)?;
    } else {
        all.iter().for_each(|shown| print(&text(shown)));
    }
    Ok(ExitCode::from(u8::from(!sound)))
}

fn text(shown: &Shown) -> String {
    let said = match (shown.sound, shown.compared) {
        (true, true) => "sound",
        (true, false) => "unchanged since it was made; its content is noted for the next time",
        (false, _) => "NOT as it was",
    };
    let mut text = format!("{}: {said} ({} files, {})\n", shown.name, shown.files, size(shown.bytes));
    shown.faults.iter().for_each(|fault| text.push_str(&format!("  {fault}\n")));
    text
}
