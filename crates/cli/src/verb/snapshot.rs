//! `lazaret snapshot`: what a container is now can be had back.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::snapshot::snapshot;
use lazaret_base::Result;

use super::name_argument;
use crate::report::size;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Keep what a container is now, files and configuration")
        .args([
            name_argument("The container"),
            Arg::new("label").value_name("LABEL").help("What to call it [default: snap1, snap2, ...]"),
        ])
        .after_help(
            "\
Of a stopped container nothing is copied, whatever its size. A running one is frozen while what it has written \
is copied, so that all files are of one moment.

Examples:
  lazaret snapshot web clean
  lazaret snapshots web                                what there is
  lazaret rollback web clean                           back to it",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let label = super::snapshots::label(matches, "label")?;
    let taken = snapshot(session.ready()?, &name(matches)?, label.as_ref(), &mut session.progress(None))?;
    let cost = match taken.frozen {
        Some(frozen) => format!("; frozen for {} ms, {} copied", frozen.as_millis(), size(taken.copied)),
        None if taken.copied > 0 => format!("; {} copied to merge the layers of older snapshots", size(taken.copied)),
        None => String::new(),
    };
    session.say(&format!("kept as `{}`{cost}", taken.label));
    Ok(ExitCode::SUCCESS)
}
