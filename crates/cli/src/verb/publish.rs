//! `lazaret publish`: a container becomes an image.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::publish::publish;
use lazaret_base::Result;

use super::name_argument;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Make an image of what a container is now")
        .args([
            name_argument("The container"),
            Arg::new("image").value_name("IMAGE").required(true).help("What to call the image"),
        ])
        .after_help(
            "\
Others can be made of the image: lazaret create web2 --image IMAGE. The container's configuration is not part of it.

Examples:
  lazaret publish web web-base",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let image = matches.get_one::<String>("image").map(String::as_str).unwrap_or_default();
    let published = publish(session.ready()?, &name(matches)?, image, &mut session.progress(None))?;
    published.notes.iter().for_each(|note| session.say(note));
    session.say(&format!("published `{image}`; next: lazaret create NAME --image {image}"));
    Ok(ExitCode::SUCCESS)
}
