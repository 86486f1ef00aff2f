//! `lazaret cache`: packages are fetched once for all containers.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::cache;
use lazaret_base::{Result, error};
use serde::Serialize;

use super::{Verb, json_flag, words};
use crate::report::{json, print, size};
use crate::session::Session;

/// Its verbs are few and short: they share this file.
const VERBS: &[Verb] = &[
    Verb { name: "on", command: on_command, run: on },
    Verb { name: "off", command: off_command, run: off },
    Verb { name: "stats", command: stats_command, run: stats },
    Verb { name: "clear", command: clear_command, run: clear },
];

pub fn command(mut command: Command) -> Command {
    command = command
        .about("Fetch packages once for all containers")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .after_help(
            "\
While it is on, apt in containers that may reach the Internet goes through it, without being told by anybody, \
and what is there is installed without a network, too. It goes to the archives of Debian and Ubuntu, to those \
that images were built from here, and to those named by --host, by plain http: packages are signed. Containers \
without the Internet (--network none, network.internet = false) or with network.deny do not use it; those on the \
host's own network ask the archives themselves. Other programs that fetch immutable files by http find it as a \
proxy at 127.0.0.1:942 inside. Packages of `lazaret image build` are kept here as well, be it on or off.

Examples:
  lazaret cache on
  lazaret cache on --limit 20G --host mirror.example/debian   for an archive that is no distribution's own
  lazaret cache stats
  lazaret cache off",
        );
    for verb in VERBS {
        command = command.subcommand((verb.command)(Command::new(verb.name)));
    }
    command
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let Some((name, arguments)) = matches.subcommand() else { return Ok(ExitCode::from(2)) };
    match VERBS.iter().find(|verb| verb.name == name) {
        Some(verb) => (verb.run)(session, arguments),
        None => Err(error(format!("no verb of the cache is called `{name}`"))),
    }
}

fn on_command(command: Command) -> Command {
    command.about("Switch it on, for running containers too").args([
        Arg::new("limit").long("limit").value_name("SIZE").help("Keep at most this much, such as 20G [default: 5G]"),
        Arg::new("host")
            .long("host")
            .value_name("HOST")
            .action(ArgAction::Append)
            .help("Serve this archive, too, beside those of Debian and Ubuntu: HOST[:PORT][/DIRECTORY]"),
    ])
}

fn on(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let limit = matches.get_one::<String>("limit").map(|text| text.parse::<lazaret_config::Size>()).transpose()?;
    let network = session.sources()?.network;
    let notes = cache::on(session.ready()?, limit.map(|limit| limit.bytes()), &words(matches, "host"), &network)?;
    notes.iter().for_each(|note| session.say(note));
    session.say("the package cache is on");
    Ok(ExitCode::SUCCESS)
}

fn off_command(command: Command) -> Command {
    command.about("Switch it off; packages stay for later")
}

fn off(session: &Session, _: &ArgMatches) -> Result<ExitCode> {
    cache::off(session.ready()?)?.iter().for_each(|note| session.say(note));
    session.say("the package cache is off");
    Ok(ExitCode::SUCCESS)
}

fn stats_command(command: Command) -> Command {
    command.about("What it has spared").arg(json_flag())
}

#[derive(Serialize)]
struct Shown<'a> {
    on: bool,
    limit: u64,
    hosts: &'a [String],
    files: u64,
    bytes: u64,
    hits: u64,
    misses: u64,
    saved: u64,
    fetched: u64,
}

fn stats(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let cache::Status { on, settings, stats, kept } = cache::status(session.ready()?)?;
    if matches.get_flag("json") {
        return json(&Shown {
            on,
            limit: settings.limit,
            hosts: &settings.hosts,
            files: kept.files,
            bytes: kept.bytes,
            hits: stats.hits,
            misses: stats.misses,
            saved: stats.saved,
            fetched: stats.fetched,
        });
    }
    let part = |part: u64, whole: u64| (100 * part).checked_div(whole).unwrap_or(0);
    let (files, bytes) = (stats.hits + stats.misses, stats.saved + stats.fetched);
    print(&format!(
        "state    {}\nkept     {} in {} files, at most {}\nasked    {files} files, {} % of them were here\n\
         saved    {} of {} ({} %)\n",
        if on { "on" } else { "off" },
        size(kept.bytes),
        kept.files,
        size(settings.limit),
        part(stats.hits, files),
        size(stats.saved),
        size(bytes),
        part(stats.saved, bytes),
    ));
    Ok(ExitCode::SUCCESS)
}

fn clear_command(command: Command) -> Command {
    command.about("Remove all packages that are kept, and begin to count anew")
}

fn clear(session: &Session, _: &ArgMatches) -> Result<ExitCode> {
    let gone = cache::clear(session.ready()?)?;
    session.say(&format!("freed {}", size(gone)));
    Ok(ExitCode::SUCCESS)
}
