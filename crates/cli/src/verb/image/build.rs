//! `lazaret image build`: an image made here, of a distribution's packages or by a recipe.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use lazaret::build::{Amount, Built, From, Making, Order, build, make};
use lazaret::image::{Line, used_by};
use lazaret_base::{Context, Result};

use super::Shown;
use crate::report::{json, size};
use crate::session::Session;
use crate::verb::{json_flag, words};

pub fn command(command: Command) -> Command {
    command
        .about("Make an image here, of a distribution's packages or by a recipe")
        .args([
            Arg::new("what").value_name("WHAT").required(true).value_hint(clap::ValueHint::AnyPath).help(
                "What to build: debian/bookworm, ubuntu/24.04, or a recipe: ./image.toml, or the directory it is in",
            ),
            Arg::new("name").long("name").value_name("NAME").help("Call the image NAME"),
            Arg::new("variant")
                .long("variant")
                .value_name("VARIANT")
                .value_parser(["minbase", "standard"])
                .default_value("standard")
                .help("How much it has: what no system can be without, or a small system with an init and a network"),
            list("include", "PKG,…", "Packages beyond that"),
            Arg::new("mirror").long("mirror").value_name("URL").help("Get packages from this archive"),
            Arg::new("security-mirror")
                .long("security-mirror")
                .value_name("URL")
                .help("Get security updates from this archive"),
            Arg::new("no-updates")
                .long("no-updates")
                .action(ArgAction::SetTrue)
                .help("Only what was in the release, without later updates"),
            list("components", "NAME,…", "Parts of the archive, such as main,contrib"),
            Arg::new("keyring")
                .long("keyring")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Believe the signatures of these keys only [default: the distribution's]"),
            Arg::new("script")
                .long("script")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("A program that is run inside at the end"),
            Arg::new("network")
                .short('n')
                .long("network")
                .value_name("MODE")
                .env("LAZARET_NETWORK")
                .help("The network of that program, and of what a recipe runs"),
            Arg::new("again").long("again").action(ArgAction::SetTrue).help("Do every step of a recipe again"),
            json_flag(),
        ])
        .after_help(
            "\
Nothing but gpgv and the distribution's keys is needed on this system. Every package is verified; what packages \
execute is executed in a container without a network.

A recipe says what an image is made of; steps that were done before are not done again:
  base = \"debian/trixie\"            an image that is here or on a server (or: build = \"debian/trixie\")
  packages = [\"nginx\", \"curl\"]
  user = \"me\"
  run = [\"systemctl enable nginx\"]
  [[files]]
  to = \"/etc/nginx/nginx.conf\"
  from = \"nginx.conf\"               beside the recipe; or text = \"…\"; also mode = \"0644\", owner = \"0:0\"

Examples:
  lazaret image build debian/trixie
  lazaret image build ./web/image.toml                 called web, like its directory; or --name NAME
  lazaret image build debian/bookworm --variant minbase --include nginx,curl --name web
  lazaret image build ubuntu/24.04 --mirror http://mirror.example/ubuntu
  lazaret create web --image debian/trixie             now it is made from the image that was built here",
        )
}

fn list(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).value_delimiter(',').action(ArgAction::Append).help(help)
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let store = session.ready()?;
    let what = matches.get_one::<String>("what").cloned().unwrap_or_default();
    let built = match recipe(&what) {
        Some(path) => by_recipe(session, matches, path)?,
        None => of_packages(session, matches, what)?,
    };
    built.notes.iter().for_each(|note| session.say(note));
    let layer = store.images()?.layer(&built.image.layer)?;
    let name = built.image.name.clone();
    session.say(&format!("built `{name}`, {}; next: lazaret create NAME --image {name}", size(layer.size)));
    let line = Line { name, used_by: used_by(store, &layer.id)?, image: Some(built.image), layer };
    match matches.get_flag("json") {
        true => json(&Shown::of(&line)),
        false => Ok(ExitCode::SUCCESS),
    }
}

/// The recipe that was named: a file, or the directory of one.
fn recipe(what: &str) -> Option<PathBuf> {
    let path = PathBuf::from(what);
    if path.is_dir() && (what.starts_with(['.', '/']) || path.join("image.toml").exists()) {
        return Some(path.join("image.toml"));
    }
    (what.ends_with(".toml") || what.starts_with(['.', '/'])).then_some(path)
}

fn by_recipe(session: &Session, matches: &ArgMatches, recipe: PathBuf) -> Result<Built> {
    let recipe = std::path::absolute(&recipe)?;
    let stem = if recipe.ends_with("image.toml") { recipe.parent() } else { Some(recipe.as_path()) };
    let stem = stem.and_then(|path| path.file_stem()).unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let making = Making {
        recipe,
        name: matches.get_one::<String>("name").cloned().unwrap_or(stem),
        again: matches.get_flag("again"),
        network: matches.get_one::<String>("network").cloned(),
    };
    make(&session.store, &session.sources()?, &making, &mut session.progress(None), &mut |words| session.say(words))
}

fn of_packages(session: &Session, matches: &ArgMatches, reference: String) -> Result<Built> {
    let word = |name: &str| matches.get_one::<String>(name).cloned();
    let script = matches
        .get_one::<PathBuf>("script")
        .map(|path| std::fs::read(path).with_context(|| format!("reading the script `{}`", path.display())));
    let order = Order {
        reference,
        name: word("name"),
        variant: if word("variant").as_deref() == Some("minbase") { Amount::Minbase } else { Amount::Standard },
        include: words(matches, "include"),
        places: From {
            mirror: word("mirror"),
            security: word("security-mirror"),
            updates: !matches.get_flag("no-updates"),
        },
        components: words(matches, "components"),
        keyring: matches.get_one::<PathBuf>("keyring").cloned(),
        script: script.transpose()?,
        script_network: word("network"),
    };
    let network = session.sources()?.network;
    build(&session.store, &network, &order, &mut session.progress(None), &mut |words| session.say(words))
}
