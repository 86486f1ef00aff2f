//! `lazaret doctor`: what this machine can do, and how to mend it.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::doctor::{Grade, examine};
use lazaret_base::Result;

use super::json_flag;
use crate::report::{Colour, json, paint, print};
use crate::session::Session;

pub fn command(command: Command) -> Command {
    command
        .about("Say what this machine can and cannot do, and how to mend it")
        .arg(json_flag())
        .after_help("The exit status is 1 if no container can run here.\n\nExamples:\n  lazaret doctor\n  lazaret doctor --json")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let checks = examine(&session.store)?;
    let bad = checks.iter().any(|check| check.grade == Grade::Bad);
    if matches.get_flag("json") {
        json(&checks)?;
    } else {
        let terminal = std::io::stdout().is_terminal();
        for check in &checks {
            let (mark, colour) = match check.grade {
                Grade::Good => ("ok", Colour::Green),
                Grade::Lacking => ("lacking", Colour::Yellow),
                Grade::Bad => ("bad", Colour::Red),
            };
            print(&format!("{}{:<12}{}\n", paint(&format!("{mark:<9}"), colour, terminal), check.what, check.found));
            if let Some(remedy) = &check.remedy {
                print(&format!("{:<21}{remedy}\n", ""));
            }
        }
    }
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
