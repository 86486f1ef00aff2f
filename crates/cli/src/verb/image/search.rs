//! `lazaret image search`: what servers offer.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::image::{Offer, own_architecture, search};
use lazaret_base::Result;
use serde::Serialize;

use super::architecture_argument;
use crate::report::{json, print, size};
use crate::session::Session;
use crate::table;
use crate::verb::{json_flag, words};

pub fn command(command: Command) -> Command {
    command
        .about("Look for images on the servers")
        .args([
            Arg::new("words").value_name("WORD").num_args(0..).help("Parts of the name, all of which must be there"),
            Arg::new("remote").short('r').long("remote").value_name("REMOTE").help("Only on this server"),
            architecture_argument(),
            json_flag(),
        ])
        .after_help(
            "\
Without words, everything is listed. For this machine's architecture unless told otherwise.

Examples:
  lazaret image search debian
  lazaret image search ubuntu cloud
  lazaret image search alpine --arch all",
        )
}

#[derive(Serialize)]
struct Shown<'a> {
    name: String,
    remote: &'a str,
    other_names: &'a [String],
    os: &'a str,
    release: &'a str,
    variant: &'a str,
    architecture: &'a str,
    build: &'a str,
    builds: Vec<&'a str>,
    download: u64,
    fingerprint: Option<String>,
    here: Option<&'a str>,
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let store = session.ready()?;
    let wanted = matches.get_one::<String>("arch").map(String::as_str);
    let architecture = match wanted {
        Some("all") => None,
        Some(name) => Some(lazaret::image::architecture(name).unwrap_or(name)),
        None => Some(own_architecture()),
    };
    let remote = matches.get_one::<String>("remote").map(String::as_str);
    let offers = search(store, &session.sources()?, remote, &words(matches, "words"), architecture)?;
    offers.notes.iter().for_each(|note| session.say(note));
    if matches.get_flag("json") {
        return json(&offers.found.iter().map(shown).collect::<Vec<_>>());
    }
    if offers.found.is_empty() {
        session.say("nothing of that name; `lazaret image search` lists everything");
        return Ok(ExitCode::from(1));
    }
    let rows: Vec<_> = offers.found.iter().map(row).collect();
    print(&table::render(&["NAME", "ARCH", "BUILD", "DOWNLOAD", "HERE", "OTHER NAMES"], &rows));
    Ok(ExitCode::SUCCESS)
}

fn shown(offer: &Offer) -> Shown<'_> {
    let product = &offer.product;
    Shown {
        name: format!("{}:{}", offer.remote, product.name()),
        remote: &offer.remote,
        other_names: &product.aliases,
        os: &product.os,
        release: &product.release,
        variant: &product.variant,
        architecture: &product.architecture,
        build: &offer.build().serial,
        builds: product.builds.iter().map(|build| build.serial.as_str()).collect(),
        download: offer.build().root.size,
        fingerprint: offer.build().fingerprint.map(|digest| digest.hex()),
        here: offer.here.as_deref(),
    }
}

fn row(offer: &Offer) -> Vec<String> {
    let shown = shown(offer);
    let here = match shown.here {
        None => "-",
        Some(build) if build == shown.build => "yes",
        Some(_) => "older",
    };
    let others = shown
        .other_names
        .iter()
        .filter(|name| !shown.name.ends_with(&format!(":{name}")) && !name.ends_with("/default"));
    vec![
        shown.name.clone(),
        shown.architecture.to_owned(),
        shown.build.to_owned(),
        size(shown.download),
        here.to_owned(),
        others.cloned().collect::<Vec<_>>().join(" "),
    ]
}
