//! `lazaret ssh-config`: what ssh has to know of containers.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use lazaret::ssh;
use lazaret_base::Result;

use super::caller;
use crate::session::{Session, own_program};

pub fn command(command: Command) -> Command {
    command
        .about("Print what makes `ssh NAME.lazaret` work, and scp, rsync, sshfs and editors with it")
        .arg(
            Arg::new("become")
                .long("become")
                .value_name("CMD")
                .default_value("sudo")
                .help("What makes root of you when ssh connects"),
        )
        .after_help(
            "\
It is kept in a file, and included by one line at the beginning of ~/.ssh/config; neither is done for you:

  sudo lazaret ssh-config > ~/.ssh/lazaret
  Include lazaret

Then the names of all containers with `.lazaret` behind them are hosts: those to come, too. Who is logged in is the \
desktop user of your name, or root in a container that had none when this was printed.

ssh calls `sudo lazaret ssh-proxy NAME.lazaret`. On a terminal, sudo asks for your password as usual; where there is \
none (an editor, sshfs), a rule for this one command spares it, and gives away no more than this one container:

  ann ALL=(root) NOPASSWD: /usr/local/bin/lazaret ssh-proxy ff.lazaret

Examples:
  ssh ff.lazaret
  scp letter.odt ff.lazaret:
  rsync -a photos/ ff.lazaret:photos/
  sshfs ff.lazaret: ~/ff
  lazaret ssh-config --become doas",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, person) = (session.ready()?, caller()?);
    let given = matches.get_one::<String>("become").map(String::as_str);
    let become_root = given.filter(|_| person.uid != 0);
    crate::report::print(&ssh::config(store, &person, &own_program()?, become_root)?);
    session.say("keep it as ~/.ssh/lazaret, with `Include lazaret` as the first line of ~/.ssh/config");
    Ok(ExitCode::SUCCESS)
}
