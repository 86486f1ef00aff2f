//! `lazaret unshare`: takes a share away.

use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::share::remove;
use lazaret_base::Result;

use super::name_argument;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Take a share away; at once, and for later")
        .args([
            name_argument("The container"),
            Arg::new("path")
                .value_name("GUESTDIR|HOSTDIR")
                .required(true)
                .value_hint(clap::ValueHint::AnyPath)
                .help("Where it appears inside, or where it is outside"),
        ])
        .after_help(
            "\
A program that has a file of it open can use that until it closes it; stop the container if that is too long. \
One that is in a namespace of a container's inside this one keeps what it sees.

Examples:
  lazaret unshare ff /home/me/Downloads
  lazaret unshare ff ~/Downloads/ff",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let typed = matches.get_one::<String>("path").map(String::as_str).unwrap_or_default();
    let share = remove(session.ready()?, &name(matches)?, Path::new(typed))?;
    session.say(&format!("`{}` is not at `{}` inside any more", share.source.display(), share.target.display()));
    Ok(ExitCode::SUCCESS)
}
