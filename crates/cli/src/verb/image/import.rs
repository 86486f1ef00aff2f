//! `lazaret image import`: an image of a file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};
use lazaret::image::{Line, import, used_by};
use lazaret_base::Result;

use super::Shown;
use crate::report::{json, size};
use crate::session::Session;
use crate::verb::{absolute, json_flag};

pub fn command(command: Command) -> Command {
    command
        .about("Make an image of an archive of any kind, or of an OCI layout")
        .args([
            Arg::new("file").value_name("FILE").required(true).value_hint(clap::ValueHint::AnyPath).help(
                "An archive of a root, a unified image of Incus, a squashfs, an archive of `podman save`, or oci:DIR[:TAG]",
            ),
            Arg::new("name").value_name("NAME").help("What to call it [default: what it is called in there, or the file]"),
            Arg::new("metadata")
                .long("metadata")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("The other file of an image that comes in two: incus.tar.xz"),
            json_flag(),
        ])
        .after_help(
            "\
Examples:
  lazaret image import root.tar.xz mine
  lazaret image import rootfs.squashfs mine --metadata incus.tar.xz
  podman save -o app.tar app && lazaret image import ./app.tar && lazaret run --image app
  skopeo copy docker://registry.example/app:1 oci:/tmp/app && lazaret image import oci:/tmp/app app",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let store = session.ready()?;
    let typed = matches.get_one::<String>("file").map(String::as_str).unwrap_or_default();
    let file = absolute(typed)?;
    // A file that is not there is told as such, whatever its name looks like.
    let file = if file.contains([':', '/']) { file } else { std::path::absolute(file)?.to_string_lossy().into_owned() };
    let name = matches.get_one::<String>("name").map(String::as_str);
    let metadata = matches.get_one::<PathBuf>("metadata").map(PathBuf::as_path);
    let total = std::fs::metadata(&file).ok().filter(|meta| meta.is_file()).map(|meta| meta.len());
    let image = import(store, &file, name, metadata, &mut session.progress(total))?;
    let layer = store.images()?.layer(&image.layer)?;
    layer.warnings.iter().for_each(|warning| session.say(warning));
    session.say(&format!("imported `{}`, {}; next: lazaret create NAME --image {0}", image.name, size(layer.size)));
    let line = Line { name: image.name.clone(), used_by: used_by(store, &layer.id)?, image: Some(image), layer };
    match matches.get_flag("json") {
        true => json(&Shown::of(&line)),
        false => Ok(ExitCode::SUCCESS),
    }
}
