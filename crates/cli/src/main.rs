//! The command `lazaret`: parses what was typed, calls the manager, says what came of it.

mod report;
mod session;
mod table;
mod verb;

use std::process::ExitCode;

use clap::{Arg, ArgAction, Command, value_parser};

fn main() -> ExitCode {
    // The keeper is this program, too; it is never typed, so it is asked for before anything is parsed.
    if std::env::args_os().nth(1).is_some_and(|word| word == "keeper") {
        return ExitCode::from(lazaret::keeper::main() as u8);
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
