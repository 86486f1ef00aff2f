//! `lazaret image remove`: an image that is not needed any more.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::image::remove;
use lazaret_base::Result;

use super::here_argument;
use crate::session::Session;
use crate::verb::{absolute, words};

pub fn command(command: Command) -> Command {
    command
        .about("Remove an image")
        .visible_alias("rm")
        .args([
            here_argument("What to remove", true),
            Arg::new("force")
                .short('f')
                .long("force")
                .action(ArgAction::SetTrue)
                .help("Take the name away although containers stand on it; the files stay as long as they do"),
        ])
        .after_help("Examples:\n  lazaret image remove debian/bookworm\n  lazaret image remove /srv/root.tar.xz")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let store = session.ready()?;
    for reference in words(matches, "image") {
        match remove(store, &absolute(&reference)?, matches.get_flag("force"))? {
            true => session.say(&format!("removed `{reference}`")),
            false => session.say(&format!("took the name `{reference}` away; the files are still needed")),
        }
    }
    Ok(ExitCode::SUCCESS)
}
