//! `lazaret run`: a container for one command.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::run::{Run, run as run_container};
use lazaret_base::Result;

use super::{
    command_argument, document, environment, environment_argument, have_image, image_argument, network_arguments,
    set_argument, size_of_image, stdio, words,
};
use crate::session::{Session, variable};

pub fn command(command: Command) -> Command {
    command
        .about("Run a command in a container of its own, which goes when it ends")
        .args([
            image_argument(),
            set_argument(),
            Arg::new("name").long("name").value_name("NAME").help("Call it NAME"),
            Arg::new("user").short('u').long("user").value_name("USER").help("Run as this user of the container, by name or number"),
            Arg::new("cwd").short('w').long("cwd").value_name("DIR").help("Run in this directory of the container"),
            environment_argument(),
            Arg::new("keep").long("keep").action(ArgAction::SetTrue).help("Keep the container when the command has ended"),
            command_argument(false),
        ])
        .args(network_arguments())
        .after_help(
            "\
The exit status is the command's; 125: it could not be run, 126: it is no program, 127: it was not found, 128+S: \
it was killed by signal S.

Examples:
  lazaret run -- sh                                    this system's own programs, shut off from all but the Internet
  lazaret run --image debian/trixie -- cat /etc/os-release
  lazaret run --image docker://registry.example/app:1  what the image is made for
  lazaret run --network none -- ./untrusted            with no network at all
  lazaret run --set memory=200M --set pids=50 -- ./untrusted
  tar c . | lazaret run -- sha256sum                   files and pipes pass as they are",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let store = session.ready()?;
    let document = document(matches)?;
    have_image(session, store, &document)?;
    let wanted = Run {
        name: matches.get_one::<String>("name").map(|name| name.parse()).transpose()?,
        document: &document,
        command: words(matches, "command"),
        user: matches.get_one::<String>("user").cloned(),
        cwd: matches.get_one::<String>("cwd").cloned(),
        keep: matches.get_flag("keep"),
        environment: environment(matches)?,
    };
    let keep = wanted.keep;
    let mut progress = session.progress(size_of_image(&document));
    let mut notes = |note: &str| session.say(note);
    let (ended, name) = stdio(|stdio| run_container(store, wanted, stdio, variable, &mut progress, &mut notes))?;
    if keep {
        session.say(&format!("kept as `{name}`: lazaret start {name}"));
    }
    Ok(ExitCode::from(ended.status() as u8))
}
