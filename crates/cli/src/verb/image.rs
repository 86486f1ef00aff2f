//! `lazaret image`: what containers are made from.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use clap_complete::engine::ArgValueCompleter;
use lazaret::Store;
use lazaret_base::{Result, error};
use serde::Serialize;

use super::{Verb, complete_image};
use crate::session::Session;

verbs! {
    list "list",
    search "search",
    pull "pull",
    build "build",
    import "import",
    export "export",
    info "info",
    remove "remove",
    prune "prune",
    verify "verify",
    refresh "refresh",
}

pub fn command(mut command: Command) -> Command {
    command = command
        .about("Find, get, look after and remove images")
        .visible_alias("images")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .after_help(format!("{NAMES}Servers are listed in {}.\n\n{EXAMPLES}", Store::system().remotes_file().display()));
    for verb in ALL {
        command = command.subcommand((verb.command)(Command::new(verb.name)));
    }
    command
}

const NAMES: &str = "\
An image is named debian/trixie, ubuntu/24.04, alpine (its newest release), fedora/42/arm64, REMOTE:NAME, NAME@BUILD,
docker://HOST/PATH:TAG; a file or a directory by its path; an OCI image by oci:PATH:TAG. The LXC project's server is
known. ";

const EXAMPLES: &str = "\
Examples:
  lazaret image search debian
  lazaret image pull debian/trixie
  lazaret image import ./app.tar app                   of `podman save`, a root archive, a squashfs, …
  lazaret image build debian/bookworm                  from the distribution's own packages
  lazaret image list
  lazaret image refresh                                newer builds of all that is here";

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let Some((name, arguments)) = matches.subcommand() else { return Ok(ExitCode::from(2)) };
    match ALL.iter().find(|verb| verb.name == name) {
        Some(verb) => (verb.run)(session, arguments),
        None => Err(error(format!("no verb of images is called `{name}`"))),
    }
}

/// Images that are here.
fn here_argument(help: &'static str, required: bool) -> Arg {
    Arg::new("image")
        .value_name("IMAGE")
        .num_args(if required { 1..=usize::MAX } else { 0..=usize::MAX })
        .required(required)
        .help(help)
        .add(ArgValueCompleter::new(complete_image))
}

fn architecture_argument() -> Arg {
    Arg::new("arch")
        .short('a')
        .long("arch")
        .value_name("ARCH")
        .help("For this architecture: amd64, arm64, …; `all` for all")
}

/// An image in JSON.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    layer: String,
    source: &'a str,
    description: &'a str,
    architecture: &'a str,
    build: &'a str,
    fingerprint: Option<&'a str>,
    remote: Option<&'a str>,
    other_names: &'a [String],
    size: u64,
    files: u64,
    since: u64,
    expires: Option<u64>,
    used_by: Vec<&'a str>,
    rootfs: &'a std::path::Path,
    program: Option<&'a lazaret::image::Program>,
    templates: Vec<&'a str>,
    warnings: &'a [String],
}

impl<'a> Shown<'a> {
    fn of(line: &'a lazaret::image::Line) -> Shown<'a> {
        let (image, layer) = (line.image.as_ref(), &line.layer);
        let origin = image.and_then(|image| image.origin.as_ref());
        let about = image.map(|image| &image.about);
        Shown {
            name: &line.name,
            layer: layer.id.to_string(),
            source: &layer.source,
            description: about.map_or("", |about| &about.description),
            architecture: about.map_or(layer.architecture.as_deref().unwrap_or_default(), |about| &about.architecture),
            build: about.map_or("", |about| &about.serial),
            fingerprint: origin.and_then(|origin| origin.fingerprint.as_deref()),
            remote: origin.map(|origin| origin.remote.as_str()).filter(|remote| !remote.is_empty()),
            other_names: origin.map_or(&[], |origin| &origin.aliases),
            size: layer.size,
            files: layer.entries,
            since: about.map_or(layer.created, |about| about.since),
            expires: about.and_then(|about| about.expires),
            used_by: line.used_by.iter().map(|name| name.as_str()).collect(),
            rootfs: &layer.rootfs,
            program: image.and_then(|image| image.program.as_ref()),
            templates: image.map(|image| image.templates.iter().map(|t| t.path.as_str()).collect()).unwrap_or_default(),
            warnings: &layer.warnings,
        }
    }
}

/// How long since a moment, or until it.
fn ago(at: u64) -> String {
    let now = now();
    match at > now {
        true => format!("in {}", crate::report::span(std::time::Duration::from_secs(at - now))),
        false => format!("{} ago", crate::report::span(std::time::Duration::from_secs(now - at))),
    }
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}
