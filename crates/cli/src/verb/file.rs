//! `lazaret file`: files into a container and out of it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use lazaret::file::{Copied, Pull, Push, pull, push};
use lazaret_base::{Kind, Result, error};

use super::name_argument;
use crate::report::size;
use crate::session::{Session, caller, name};

pub fn command(command: Command) -> Command {
    let owner = |help| Arg::new("owner").long("owner").value_name("UID[:GID]").value_parser(ids).help(help);
    command
        .about("Copy files into a container and out of it, whether it runs or not")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands([
            Command::new("push")
                .about("Copy files and directories in")
                .args([
                    name_argument("The container"),
                    paths("HOSTPATH... GUESTPATH", "What to copy (`-` for standard input), and where to put it inside"),
                    parents(),
                    owner("Whose it is inside [default: of whom the directory is that it is put in]"),
                ])
                .after_help(
                    "\
Modes and times are kept; links are copied as links. A file is replaced when the new one is whole.

Examples:
  lazaret file push web index.html style.css /srv/www/
  lazaret file push web ~/site /srv/www --parents
  date | lazaret file push web - /etc/motd",
                ),
            Command::new("pull")
                .about("Copy files and directories out")
                .args([
                    name_argument("The container"),
                    paths("GUESTPATH... HOSTPATH", "What to copy, and where to put it (`-` for standard output)"),
                    parents(),
                ])
                .after_help(
                    "\
What comes out belongs to the caller, without set-user-ID bits. A link inside leads to what it means inside; a \
link outside is replaced, never written through.

Examples:
  lazaret file pull web /var/log/nginx .
  lazaret file pull web /etc/os-release -",
                ),
        ])
        .after_help(
            "\
Examples:
  lazaret file push web index.html /srv/www/
  lazaret file pull web /var/log/syslog - | less",
        )
}

fn paths(value: &'static str, help: &'static str) -> Arg {
    Arg::new("paths")
        .value_name(value)
        .required(true)
        .num_args(2..)
        .value_parser(value_parser!(PathBuf))
        .value_hint(clap::ValueHint::AnyPath)
        .help(help)
}

fn parents() -> Arg {
    Arg::new("parents")
        .short('p')
        .long("parents")
        .action(ArgAction::SetTrue)
        .help("Make the directories that are missing on the way")
}

/// A user's number and a group's, which is the same if it is not given.
fn ids(text: &str) -> std::result::Result<(u32, u32), String> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    let id = |text: &str| text.parse().ok().filter(|id| *id < 65_536);
    id(uid).zip(id(gid)).ok_or_else(|| "write numbers below 65536, for example 1000:1000".to_owned())
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let Some((act, matches)) = matches.subcommand() else { return Ok(ExitCode::from(2)) };
    let all: Vec<PathBuf> = matches.get_many::<PathBuf>("paths").unwrap_or_default().cloned().collect();
    let Some((target, sources)) = all.split_last() else { return Ok(ExitCode::from(2)) };
    let (store, name) = (session.ready()?, name(matches)?);
    session.out_of_reach_of(&name)?;
    let parents = matches.get_flag("parents");
    let copied = match act {
        "push" => {
            if sources.iter().filter(|source| *source == Path::new("-")).count() > 1 {
                return Err(error("standard input can be copied once").kind(Kind::Invalid).hint("name `-` once"));
            }
            let owner = matches.get_one::<(u32, u32)>("owner").copied();
            let input = &mut std::io::stdin().lock();
            push(store, &name, Push { sources, target, parents, owner, input }, &mut session.progress(total(sources)))?
        }
        _ => {
            let output = &mut std::io::stdout().lock();
            let owner = caller();
            pull(store, &name, Pull { sources, target, parents, owner, output }, &mut session.progress(None))?
        }
    };
    copied.notes.iter().for_each(|note| session.say(note));
    // Whoever has it in a pipe knows what came.
    if target != Path::new("-") {
        told(session, &copied);
    }
    Ok(ExitCode::SUCCESS)
}

fn told(session: &Session, copied: &Copied) {
    let entries = if copied.entries == 1 { "1 entry".to_owned() } else { format!("{} entries", copied.entries) };
    session.say(&format!("copied: {entries}, {}", size(copied.bytes)));
}

/// How much there is to read, if it is files alone.
fn total(sources: &[PathBuf]) -> Option<u64> {
    sources.iter().map(|source| std::fs::metadata(source).ok().filter(|m| m.is_file()).map(|m| m.len())).sum()
}
