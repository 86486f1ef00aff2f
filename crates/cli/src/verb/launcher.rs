//! `lazaret launcher`: programs of a container in the person's menu.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use lazaret::launcher::{Menu, add, remove};
use lazaret_base::{Kind, Result, error};

use super::{desktop_session, name_argument, words};
use crate::session::{Session, name, own_program};

pub fn command(command: Command) -> Command {
    command
        .about("Put programs of a container into your menu, or take them out")
        .args([
            name_argument("The container; it may be stopped"),
            Arg::new("app").value_name("APP").num_args(1..).help("Entries, or the programs they run (`lazaret apps NAME`)"),
            Arg::new("all").long("all").action(ArgAction::SetTrue).conflicts_with("app").help("All that its own menu would show"),
            Arg::new("remove").long("remove").action(ArgAction::SetTrue).help("Take them out of the menu; all, if none is named"),
            Arg::new("become")
                .long("become")
                .value_name("CMD")
                .default_value("pkexec")
                .help("What makes root of you when you choose the program; it asks for your password as it likes"),
        ])
        .after_help(
            "\
An entry bears the container's name, and runs `lazaret app`. Names, comments and PNG pictures are taken from the \
container, and nothing else: what a program does is decided inside. A picture of another kind is that of your own theme, \
if it has one of the name. Entries follow a `rename`, and go with the container.

Examples:
  lazaret launcher ff firefox-esr
  lazaret launcher ff --all
  lazaret launcher ff --remove
  lazaret launcher ff xterm --become 'sudo -n'",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    let desktop = desktop_session()?;
    let person = &desktop.person;
    let named = words(matches, "app");
    let wanted = Some(named.as_slice()).filter(|named| !named.is_empty());
    if matches.get_flag("remove") {
        let removed = remove(store, &name, wanted, person)?;
        session.say(&format!("{removed} taken out of the menu of `{}`", person.name));
        return Ok(ExitCode::SUCCESS);
    }
    if wanted.is_none() && !matches.get_flag("all") {
        return Err(error("no program is named")
            .kind(Kind::Invalid)
            .hint(format!("lazaret apps {name} lists them; `--all` means all of them")));
    }
    let become_root = matches.get_one::<String>("become").map(String::as_str).filter(|_| person.uid != 0);
    let menu = Menu::of(person, desktop.variable("XDG_DATA_HOME"), become_root, own_program()?)?;
    for added in add(store, &name, wanted, person, &menu)? {
        session.say(&format!("[{name}] {added} is in the menu of `{}`", person.name));
    }
    Ok(ExitCode::SUCCESS)
}
