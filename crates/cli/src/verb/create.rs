//! `lazaret create`: a new container.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::create::{Create, create};
use lazaret_base::Result;
use serde::Serialize;

use super::{
    desktop_argument, document, have_image, image_argument, json_flag, network_arguments, set_argument, size_of_image,
};
use crate::report::json;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Make a container")
        .args([
            clap::Arg::new("name").value_name("NAME").required(true).help("What to call it: letters, digits, dots, dashes"),
            image_argument(),
            desktop_argument(),
            set_argument(),
            json_flag(),
        ])
        .args(network_arguments())
        .after_help(
            "\
Examples:
  lazaret create web                                   of this system's own programs, no download
  lazaret create web --image debian/trixie             from an image server, once; then it is here
  lazaret create web --image alpine                    the newest release
  lazaret create web --image debian-13.tar.zst
  lazaret create web --image /srv/rootfs               a directory, used in place, read-only
  lazaret create ff --image debian/trixie --desktop    for programs on your screen: lazaret app ff firefox-esr
  lazaret create web --network none                    with nothing but its own loopback
  lazaret create web --set network.publish=127.0.0.1:8080:80
  lazaret create web --set memory=1G --set cpus=1.5 --set env.LANG=de_DE.UTF-8",
        )
}

#[derive(Serialize)]
struct Made<'a> {
    name: &'a str,
    image: &'a str,
    storage: lazaret::Storage,
    ids: Option<lazaret::Ids>,
    notes: &'a [String],
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name, document) = (session.ready()?, name(matches)?, document(matches)?);
    // A name that is taken is told before anything is fetched.
    if !store.exists(&name) {
        have_image(session, store, &document)?;
    }
    let mut progress = session.progress(size_of_image(&document));
    let wanted = Create { name: &name, document: &document, ephemeral: false };
    let created = create(store, &wanted, &mut progress)?;
    created.notes.iter().for_each(|note| session.say(note));
    if matches.get_flag("json") {
        let record = &created.record;
        return json(&Made {
            name: name.as_str(),
            image: &record.image.name,
            storage: record.storage,
            ids: record.ids,
            notes: &created.notes,
        });
    }
    session.say(&format!("created `{name}`; next: lazaret shell {name}"));
    Ok(ExitCode::SUCCESS)
}
