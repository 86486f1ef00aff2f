//! `lazaret image export`: an image as one file, for others too.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use clap_complete::engine::ArgValueCompleter;
use lazaret::transfer::export_image;
use lazaret_base::Result;

use crate::session::Session;
use crate::verb::export::{file_argument, force_argument, format_argument, told, wanted};
use crate::verb::{absolute, complete_image};

pub fn command(command: Command) -> Command {
    let image = Arg::new("image").value_name("IMAGE").required(true).help("The image");
    command
        .about("Write an image to one file")
        .args([image.add(ArgValueCompleter::new(complete_image)), file_argument(), format_argument(), force_argument()])
        .after_help(
            "\
For ourselves it is a plain archive of the root file system, compressed as its name says (.tar, .gz, .xz, .zst).

Examples:
  lazaret image export debian/trixie trixie.tar.zst    and there: lazaret image import ./trixie.tar.zst
  lazaret image export web-base web.tar --format oci   podman load -i web.tar
  lazaret image export web-base web.tar.gz --format incus",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let reference = matches.get_one::<String>("image").map(String::as_str).unwrap_or_default();
    let reference = absolute(reference)?;
    let exported = export_image(session.ready()?, &reference, &wanted(matches), &mut session.progress(None))?;
    told(session, &exported);
    Ok(ExitCode::SUCCESS)
}
