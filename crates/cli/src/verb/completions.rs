//! `lazaret completions`: what a shell needs to complete verbs, flags, keys and names.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use clap_complete::env::Shells;
use lazaret_base::{Context, Result, error};

use crate::session::Session;

pub fn command(command: Command) -> Command {
    command
        .about("Print the completion script of a shell")
        .arg(Arg::new("shell").value_name("SHELL").required(true).value_parser(["bash", "zsh", "fish"]).help("The shell"))
        .after_help(
            "\
Examples:
  source <(lazaret completions bash)                       in ~/.bashrc
  source <(lazaret completions zsh)                        in ~/.zshrc, after compinit
  lazaret completions fish > ~/.config/fish/completions/lazaret.fish",
        )
}

pub fn run(_: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let shell = matches.get_one::<String>("shell").map(String::as_str).unwrap_or_default();
    let shells = Shells::builtins();
    let completer = shells.completer(shell).ok_or_else(|| error(format!("no completions for `{shell}`")))?;
    let mut script = Vec::new();
    completer.write_registration("COMPLETE", "lazaret", "lazaret", "lazaret", &mut script).context("writing the script")?;
    crate::report::print(&String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}
