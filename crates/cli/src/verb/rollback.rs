//! `lazaret rollback`: a container becomes what it was.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::snapshot::rollback;
use lazaret::start::start;
use lazaret::stop::stop;
use lazaret_base::{Kind, Result};

use super::name_argument;
use crate::session::{Session, name, variable};

pub fn command(command: Command) -> Command {
    command
        .about("Make a container what it was when a snapshot was taken")
        .args([
            name_argument("The container"),
            Arg::new("label").value_name("LABEL").required(true).help("The snapshot"),
            Arg::new("restart")
                .long("restart")
                .action(ArgAction::SetTrue)
                .help("Stop it first if it runs, and start it again"),
        ])
        .after_help(
            "\
Files and configuration are brought back. What the container was until then is kept as a snapshot of its own, so \
a rollback can be taken back.

Examples:
  lazaret rollback web clean
  lazaret rollback web before-clean-1                  no, back again",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    let label = matches.get_one::<String>("label").map(String::as_str).unwrap_or_default().parse()?;
    let mut again = false;
    if matches.get_flag("restart") {
        // Before anything is stopped.
        store.record(&name)?.snapshot(&label)?;
        again = match stop(store, &name, None, &mut |words| session.say(words)) {
            Ok(_) => true,
            Err(e) if e.what() == Kind::Stopped => false,
            Err(e) => return Err(e),
        };
    }
    let safety = rollback(store, &name, &label, &mut session.progress(None))?;
    session.say(&format!("`{name}` is as it was at `{label}`; what it was until now is kept as `{safety}`"));
    if again {
        start(store, &name, variable, None)?.iter().for_each(|note| session.say(note));
    }
    Ok(ExitCode::SUCCESS)
}
