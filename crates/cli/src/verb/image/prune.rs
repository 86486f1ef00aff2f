//! `lazaret image prune`: images that nobody needs.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::image::prune;
use lazaret_base::Result;
use serde::Serialize;

use crate::report::{json, print, size};
use crate::session::Session;
use crate::verb::json_flag;

pub fn command(command: Command) -> Command {
    command
        .about("Remove what no container needs: old builds, unnamed layers, unfinished downloads")
        .args([
            Arg::new("all")
                .long("all")
                .action(ArgAction::SetTrue)
                .help("Images with a name, too, if no container stands on them"),
            Arg::new("dry-run").short('n').long("dry-run").action(ArgAction::SetTrue).help("Only say what would go"),
            json_flag(),
        ])
        .after_help("Examples:\n  lazaret image prune\n  lazaret image prune --all --dry-run")
}

#[derive(Serialize)]
struct Shown<'a> {
    images: &'a [String],
    bytes: u64,
    downloads: u64,
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let only_look = matches.get_flag("dry-run");
    let pruned = prune(session.ready()?, matches.get_flag("all"), only_look)?;
    if matches.get_flag("json") {
        return json(&Shown { images: &pruned.images, bytes: pruned.bytes, downloads: pruned.downloads });
    }
    pruned.images.iter().for_each(|name| print(&format!("{name}\n")));
    let verb = if only_look { "would free" } else { "freed" };
    session.say(&format!("{verb} {} of images, {} of downloads", size(pruned.bytes), size(pruned.downloads)));
    Ok(ExitCode::SUCCESS)
}
