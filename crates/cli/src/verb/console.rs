//! `lazaret console`: the container's own console.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::console::connect_to;
use lazaret::relay::{Left, console};
use lazaret_base::Result;

use super::{name_argument, stdio};
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Attach to a container's console; Ctrl-a q leaves it")
        .arg(name_argument("The container"))
        .after_help("Examples:\n  lazaret console web      log in as at its keyboard\n  lazaret logs web         what it said there")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let name = name(matches)?;
    let store = session.ready()?;
    store.require(&name)?;
    let socket = connect_to(store, &name)?;
    session.say(&format!("console of `{name}`; leave with Ctrl-a q"));
    let left = stdio(|[input, output, _]| console(&socket, input, output))?;
    session.say(match left {
        Left::Detached => "\nleft the console",
        Left::Closed => "\nthe container has stopped",
    });
    Ok(ExitCode::SUCCESS)
}
