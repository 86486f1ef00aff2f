//! `lazaret ssh-proxy`: what ssh calls by the configuration that `ssh-config` prints.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::ssh::{name_of, proxy};
use lazaret_base::Result;

use super::{desktop_session, stdio};
use crate::session::{Session, variable};

pub fn command(command: Command) -> Command {
    command
        .about("Connect ssh to a container; ssh calls this itself")
        .hide(true)
        .arg(Arg::new("host").value_name("NAME").required(true).help("The container, as NAME or NAME.lazaret"))
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let host = matches.get_one::<String>("host").map(String::as_str).unwrap_or_default();
    let (store, name) = (session.ready()?, name_of(host)?);
    session.out_of_reach_of(&name)?;
    let desktop = desktop_session()?;
    let ended = stdio(|stdio| proxy(store, &name, &desktop, stdio, variable, &mut |note| session.say(note)))?;
    Ok(ExitCode::from(ended.status() as u8))
}
