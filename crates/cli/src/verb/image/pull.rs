//! `lazaret image pull`: an image, or its newest build, from a server.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::image::{Freshness, Line, pull, used_by};
use lazaret_base::Result;

use super::Shown;
use crate::report::{json, size};
use crate::session::Session;
use crate::verb::{json_flag, words};

pub fn command(command: Command) -> Command {
    command
        .about("Get an image, or its newest build, from a server")
        .args([
            Arg::new("image")
                .value_name("IMAGE")
                .num_args(1..)
                .required(true)
                .help("What to get, such as debian/trixie"),
            json_flag(),
        ])
        .after_help(
            "\
What comes is verified by its SHA-256. An interrupted download is gone on with by the next try; containers keep \
the build that they were made from.

A registry that wants a login gets the one that `podman login` or `docker login` has written down for you; another \
file of that form is named by REGISTRY_AUTH_FILE.

Examples:
  lazaret image pull debian/trixie
  lazaret image pull alpine fedora/42/arm64
  lazaret image pull debian/trixie@20261123_05:24
  lazaret image pull docker://registry.example/team/app:1.2",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, sources) = (session.ready()?, session.sources()?);
    let mut lines = Vec::new();
    for reference in words(matches, "image") {
        let pulled = pull(store, &sources, &reference, Freshness::Now, &mut session.progress(None))?;
        pulled.notes.iter().for_each(|note| session.say(note));
        let layer = store.images()?.layer(&pulled.image.layer)?;
        let (name, build) = (&pulled.image.name, &pulled.image.about.serial);
        session.say(&match pulled.new {
            true => format!("pulled `{name}`, build {build}, {}", size(layer.size)),
            false => format!("`{name}` is here in its newest build, {build}"),
        });
        let used_by = used_by(store, &layer.id)?;
        lines.push(Line { name: name.clone(), image: Some(pulled.image), layer, used_by });
    }
    match matches.get_flag("json") {
        true => json(&lines.iter().map(Shown::of).collect::<Vec<_>>()),
        false => Ok(ExitCode::SUCCESS),
    }
}
