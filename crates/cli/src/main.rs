//! The command `lazaret`: parses what was typed, calls the manager, says what came of it.

mod report;
mod session;
mod table;
mod verb;

use std::process::ExitCode;

use clap::{Arg, ArgAction, Command, value_parser};

/// musl's own gives every few pages back to the kernel at once, a hundred times in one `run`.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    // The keeper is this program, too; it is never typed, so it is asked for before anything is parsed.
    if std::env::args_os().nth(1).is_some_and(|word| word == "keeper") {
        return ExitCode::from(lazaret::keeper::main() as u8);
    }
    if let Some(status) = service() {
        return ExitCode::from(status as u8);
    }
    clap_complete::CompleteEnv::with_factory(command).complete();
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(e) => return report::usage(&e),
    };
    let Some((name, arguments)) = matches.subcommand() else { return ExitCode::from(2) };
    let verb = verb::ALL.iter().find(|verb| verb.name == name);
    let done = session::Session::new(&matches).and_then(|session| match verb {
        Some(verb) => (verb.run)(&session, arguments),
        None => Err(lazaret_base::error(format!("no verb is called `{name}`"))),
    });
    done.unwrap_or_else(|e| report::failure(&e, name))
}

/// netd, what it needs, and gates are this program, too, called with words that are never typed.
fn service() -> Option<i32> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    match words.first()?.to_str()? {
        "responder" => Some(lazaret::network::responder()),
        lazaret::gate::SERVICE => Some(lazaret::gate::serve()),
        lazaret::ssh::SERVICE => words.get(1).map(|address| lazaret::ssh::connect(&address.to_string_lossy())),
        lazaret::cache::SERVICE => Some(store(&words).map_or(1, |store| lazaret::cache::serve(&store))),
        "netd" => {
            let store = store(&words);
            let detached = words.iter().any(|word| word == "--detach");
            Some(store.map_or(1, |store| lazaret::network::netd(&store, detached)))
        }
        _ => None,
    }
}

/// The installation that a service of ours is told.
fn store(words: &[std::ffi::OsString]) -> lazaret_base::Result<lazaret::Store> {
    match words.iter().position(|word| word == "--root").and_then(|at| words.get(at + 1)) {
        Some(root) => lazaret::Store::at(std::path::Path::new(root)),
        None => Ok(lazaret::Store::system()),
    }
}

/// The whole command line.
pub fn command() -> Command {
    let root = Arg::new("root")
        .long("root")
        .value_name("DIR")
        .env("LAZARET_ROOT")
        .global(true)
        .value_parser(value_parser!(std::path::PathBuf))
        .help("Keep all state in DIR instead of /var/lib/lazaret and /run/lazaret");
    let quiet = Arg::new("quiet")
        .short('q')
        .long("quiet")
        .global(true)
        .action(ArgAction::SetTrue)
        .help("Say nothing but errors on standard error");
    let mut command = Command::new("lazaret")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Containers for Linux workstations: quarantine for software you cannot audit")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .args([root, quiet]);
    for verb in verb::ALL {
        command = command.subcommand((verb.command)(Command::new(verb.name)));
    }
    command
}

const EXAMPLES: &str = "\
Examples:
  lazaret run -- sh                  a throw-away container of this system's own programs
  lazaret create web --image root.tar.xz
  lazaret start web && lazaret shell web
  lazaret info web                   what it is, what holds it in, what is open
  lazaret config web set memory=1G   a limit, at once and for later
  lazaret doctor                     what this machine can do, and how to mend it";
