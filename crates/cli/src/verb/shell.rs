//! `lazaret shell`: a login shell, in a container that is started if need be.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::exec::exec;
use lazaret::runtime::attach;
use lazaret::start::start_if_stopped;
use lazaret_base::Result;

use super::{name_argument, stdio};
use crate::session::{Session, name, variable};

pub fn command(command: Command) -> Command {
    command
        .about("Open a login shell in a container; starts it if it is stopped")
        .args([
            name_argument("The container"),
            Arg::new("user").short('u').long("user").value_name("USER").help("Log in as this user of the container"),
        ])
        .after_help("Examples:\n  lazaret shell web\n  lazaret shell web --user ann")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    session.out_of_reach_of(&name)?;
    let command = attach::Command { user: matches.get_one::<String>("user").cloned(), ..Default::default() };
    store.require(&name)?;
    if !store.is_kept(&name)? {
        session.say(&format!("starting `{name}`"));
        start_if_stopped(store, &name, variable, &mut |note| session.say(note))?;
    }
    let note = match variable("TERM").filter(|_| std::io::IsTerminal::is_terminal(&std::io::stdin())) {
        Some(term) => lazaret::term::note(store, &name, &term)?,
        None => None,
    };
    note.iter().for_each(|note| session.say(note));
    let ended = stdio(|stdio| exec(store, &name, &command, stdio, variable))?;
    Ok(ExitCode::from(ended.status() as u8))
}
