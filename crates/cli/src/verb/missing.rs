//! `lazaret missing`: what a program of a container lacks.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::missing::{Library, missing};
use lazaret_base::Result;

use super::{json_flag, name_argument};
use crate::report::{json, print};
use crate::session::{Session, name};
use crate::table::render;

pub fn command(command: Command) -> Command {
    command
        .about("Name the shared libraries that a program lacks, and the packages they are in")
        .args([
            name_argument("The container; if it runs, its package manager is asked"),
            Arg::new("program").value_name("PROGRAM").required(true).help("A command, or a path inside"),
            json_flag(),
        ])
        .after_help(
            "\
The program is not run. In Debian's containers packages are found by their names, and those with other names by apt-file, \
if it is installed there.

The exit status is 1 if something is missing.

Examples:
  lazaret missing ff /opt/vendor/bin/app
  lazaret missing ff app --json",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    let program = matches.get_one::<String>("program").map(String::as_str).unwrap_or_default();
    let found = missing(store, &name, program)?;
    let status = ExitCode::from(u8::from(!found.libraries.is_empty()));
    if matches.get_flag("json") {
        return json(&found).map(|_| status);
    }
    if found.libraries.is_empty() {
        session.say(&match found.is_program {
            true => format!("`{}` finds all libraries that it needs", found.program),
            false => format!("`{}` is run by a program that finds all libraries that it needs", found.program),
        });
        return Ok(status);
    }
    let rows: Vec<_> = found.libraries.iter().map(row).collect();
    print(&render(&["MISSING", "PACKAGE", "NEEDED BY"], &rows));
    let mut packages: Vec<_> = found.libraries.iter().filter_map(|library| library.packages.first()).collect();
    packages.dedup();
    match (&found.install, packages.is_empty()) {
        (Some(install), false) => {
            let names = packages.iter().map(|package| package.as_str()).collect::<Vec<_>>().join(" ");
            session.say(&format!("install: lazaret exec {name} -- {install} {names}"));
        }
        _ => {
            let ask = found.search.as_deref().map(|search| format!("lazaret exec {name} -- {search} {}", found.libraries[0].name));
            session.say(&ask.map_or("which package has it, nobody inside can tell".into(), |ask| format!("which package has it: {ask}")));
        }
    }
    Ok(status)
}

fn row(library: &Library) -> Vec<String> {
    let packages = if library.packages.is_empty() { "?".to_owned() } else { library.packages.join(" or ") };
    vec![library.name.clone(), packages, library.needed_by.clone()]
}
