//! `lazaret ssh`: a login or a command in a container, by ssh.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::ssh::{Forward, Ssh, ssh};
use lazaret_base::Result;

use super::{command_argument, desktop_session, name_argument, stdio, words};
use crate::session::{Session, name, own_program, variable};

pub fn command(command: Command) -> Command {
    let flag = |name: &'static str, short: char, help: &'static str| {
        Arg::new(name).short(short).action(ArgAction::SetTrue).help(help)
    };
    command
        .about("Log in to a container by ssh, without a network port; starts it if it is stopped")
        .args([
            name_argument("The container"),
            flag("untrusted", 'X', "Forward your X display, to programs that the X server distrusts").conflicts_with("trusted"),
            flag("trusted", 'Y', "Forward your X display, to programs that may do all that your own may"),
            flag("tty", 't', "Give the command a terminal"),
            Arg::new("user").short('u').long("user").value_name("USER").help("Log in as this user of the container [default: its desktop user, or root]"),
            command_argument(false),
        ])
        .after_help(
            "\
Needs OpenSSH: `ssh` here, `sshd` in the container, and `xauth` in both for -X and -Y. No server has to run there, and \
none is reached by a network: the connection is made in the way `exec` enters. Nobody types a password; keys are made by \
themselves, and no key of yours is shown to the container.

-X and -Y mean what OpenSSH means by them, on every distribution. Programs of `lazaret app` are kept apart better: -X \
lets them read the clipboard and the titles of windows.

`lazaret ssh-config` lets ssh, scp, rsync, sshfs and editors do the same by the name NAME.lazaret.

The exit status is the command's; 255: there was no connection.

Examples:
  lazaret ssh ff
  lazaret ssh ff -X xterm
  lazaret ssh ff -u root -- apt-get update
  lazaret ssh ff -t htop",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let program = own_program()?;
    let (store, name) = (session.ready()?, name(matches)?);
    session.out_of_reach_of(&name)?;
    let desktop = desktop_session()?;
    let wanted = Ssh {
        name: &name,
        session: &desktop,
        user: matches.get_one::<String>("user").cloned(),
        words: words(matches, "command"),
        forward: match (matches.get_flag("untrusted"), matches.get_flag("trusted")) {
            (_, true) => Forward::Trusted,
            (true, _) => Forward::Untrusted,
            _ => Forward::Nothing,
        },
        terminal: matches.get_flag("tty"),
        program,
    };
    let status = stdio(|stdio| ssh(store, &wanted, stdio, variable, &mut |note| session.say(note)))?;
    Ok(ExitCode::from(status as u8))
}
