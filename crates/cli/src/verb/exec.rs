//! `lazaret exec`: a command in a running container.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::exec::exec;
use lazaret::runtime::attach;
use lazaret_base::Result;

use super::{command_argument, environment, environment_argument, name_argument, stdio, words};
use crate::session::{Session, name, variable};

pub fn command(command: Command) -> Command {
    command
        .about("Run a command in a running container")
        .args([
            name_argument("The container"),
            Arg::new("user").short('u').long("user").value_name("USER").help("Run as this user of the container, by name or number, with USER:GROUP"),
            Arg::new("cwd").short('w').long("cwd").value_name("DIR").help("Run in this directory of the container [default: the user's home]"),
            environment_argument(),
            command_argument(true),
        ])
        .after_help(
            "\
On a terminal, the command gets a terminal of the container's. Files and pipes are handed in as they are. The \
exit status is the command's; 125: it could not be run, 126: it is no program, 127: it was not found, 128+S: it \
was killed by signal S.

Examples:
  lazaret exec web -- apt install -y nginx
  lazaret exec web --user www-data -- id
  lazaret exec web -- tar c /etc > etc.tar
  lazaret exec web -e DEBUG=1 --cwd /srv -- ./server",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    session.out_of_reach_of(&name)?;
    let command = attach::Command {
        words: words(matches, "command"),
        user: matches.get_one::<String>("user").cloned(),
        cwd: matches.get_one::<String>("cwd").cloned(),
        environment: environment(matches)?,
        ..Default::default()
    };
    let ended = stdio(|stdio| exec(store, &name, &command, stdio, variable))?;
    Ok(ExitCode::from(ended.status() as u8))
}
