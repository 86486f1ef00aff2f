//! `lazaret trace`: what a program of a container asks of the system, and what it is refused.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::app::{App, app, with_advice};
use lazaret::exec::exec;
use lazaret::runtime::attach;
use lazaret::start::start_if_stopped;
use lazaret_base::Result;
use lazaret_config::Display;

use super::{command_argument, desktop_session, name_argument, stdio, words};
use crate::session::{Session, name, variable};

pub fn command(command: Command) -> Command {
    command
        .about("Show what a program of a container asks of the system, and what it does not get")
        .args([
            name_argument("The container; it is started if it does not run"),
            Arg::new("all").short('a').long("all").action(ArgAction::SetTrue).help("Every system call, not only those about files and the network that failed"),
            Arg::new("expression").short('e').long("expression").value_name("EXPR").help("What strace is to show, as its -e has it"),
            command_argument(true),
        ])
        .after_help(
            "\
Needs strace in the container: from outside, root would read what a stranger's program has in its memory. In a container \
with a display the program runs as `lazaret app` runs it, else as `lazaret exec` does. The trace is on standard error.

Examples:
  lazaret trace ff firefox-esr
  lazaret trace ff --all -- ls /root 2> trace
  lazaret trace ff -e trace=openat -- app
  lazaret missing ff app               shared libraries that it lacks",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    session.out_of_reach_of(&name)?;
    let mut traced: Vec<String> = ["strace", "-f", "-q"].map(str::to_owned).into();
    match (matches.get_one::<String>("expression"), matches.get_flag("all")) {
        (Some(expression), _) => traced.extend(["-e".to_owned(), expression.clone()]),
        (None, true) => {}
        (None, false) => traced.extend(["-Z", "-e", "trace=%file,%network"].map(str::to_owned)),
    }
    traced.extend(["--".to_owned()].into_iter().chain(words(matches, "command")));
    let mut say = |note: &str| session.say(note);
    if store.document(&name)?.config().desktop.display != Display::None {
        let desktop = desktop_session()?;
        let wanted = App {
            name: &name,
            words: traced,
            entry: None,
            session: &desktop,
            detach: false,
            environment: Vec::new(),
        };
        let ended = stdio(|stdio| app(store, &wanted, stdio, variable, &mut say))?;
        return Ok(ended.map_or(ExitCode::SUCCESS, |ended| ExitCode::from(ended.status() as u8)));
    }
    start_if_stopped(store, &name, variable, &mut say)?;
    let command = attach::Command { words: traced, ..Default::default() };
    let ended = stdio(|stdio| exec(store, &name, &command, stdio, variable));
    let ended = ended.map_err(|e| with_advice(store, e, &name, &command.words))?;
    Ok(ExitCode::from(ended.status() as u8))
}
