//! `lazaret export`: a container as one file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use lazaret::transfer::{Export, Exported, Format, export};
use lazaret_base::Result;

use super::name_argument;
use crate::report::size;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Write a whole container to one file")
        .args([name_argument("The container"), file_argument(), format_argument(), force_argument()])
        .after_help(
            "\
The file holds the configuration and all files, with ids that are no host's; snapshots stay here. It is \
compressed as its name says (.tar, .gz, .xz, .zst). A running container is frozen while what it has written is \
copied.

Examples:
  lazaret export web web.tar.zst                       and there: lazaret import web.tar.zst web
  lazaret export web web.tar --format oci              podman load -i web.tar
  lazaret export web web.tar.gz --format incus         incus image import web.tar.gz --alias web",
        )
}

pub fn file_argument() -> Arg {
    Arg::new("file")
        .value_name("FILE")
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .value_hint(clap::ValueHint::FilePath)
        .help("The file")
}

pub fn format_argument() -> Arg {
    Arg::new("format")
        .long("format")
        .value_name("FORMAT")
        .value_parser(["lazaret", "oci", "incus"])
        .default_value("lazaret")
        .help("For whom: ourselves, podman and docker, or Incus and LXD")
}

pub fn force_argument() -> Arg {
    Arg::new("force").short('f').long("force").action(ArgAction::SetTrue).help("Replace a file that is there")
}

/// What to write, as it was typed.
pub fn wanted(matches: &ArgMatches) -> Export<'_> {
    let format = match matches.get_one::<String>("format").map(String::as_str) {
        Some("oci") => Format::Oci,
        Some("incus") => Format::Incus,
        _ => Format::Lazaret,
    };
    let file = matches.get_one::<PathBuf>("file").map_or(std::path::Path::new(""), PathBuf::as_path);
    Export { file, format, force: matches.get_flag("force") }
}

/// Says what came of it.
pub fn told(session: &Session, exported: &Exported) {
    exported.notes.iter().for_each(|note| session.say(note));
    let frozen = exported.frozen.map_or(String::new(), |(frozen, copied)| {
        format!("; frozen for {} ms, {} copied", frozen.as_millis(), size(copied))
    });
    session.say(&format!("written: {}{frozen}", size(exported.bytes)));
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let exported = export(session.ready()?, &name(matches)?, &wanted(matches), &mut session.progress(None))?;
    told(session, &exported);
    Ok(ExitCode::SUCCESS)
}
