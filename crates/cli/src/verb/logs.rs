//! `lazaret logs`: what a container said on its console.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use lazaret::console::follow;
use lazaret_base::{Context, Result};

use super::name_argument;
use crate::report::print;
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Show what a container said on its console")
        .args([
            name_argument("The container"),
            Arg::new("lines").short('n').long("lines").value_name("N").value_parser(value_parser!(usize)).help("Only the last N lines"),
            Arg::new("follow").short('f').long("follow").action(ArgAction::SetTrue).help("Go on with what it says from now on, until it stops"),
        ])
        .after_help("Examples:\n  lazaret logs web\n  lazaret logs web -n 50 -f")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    store.require(&name)?;
    let mut bytes = Vec::new();
    for path in store.console_logs(&name) {
        match File::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            file => drop(file.with_context(|| format!("reading the log of `{name}`"))?.read_to_end(&mut bytes)?),
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let text = match matches.get_one::<usize>("lines") {
        Some(lines) => last_lines(&text, *lines),
        None => &text,
    };
    print(text);
    if matches.get_flag("follow") {
        follow(store, &name, &mut |bytes| print(&String::from_utf8_lossy(bytes)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn last_lines(text: &str, count: usize) -> &str {
    let body = text.strip_suffix('\n').unwrap_or(text);
    match count.checked_sub(1) {
        None => "",
        Some(before) => match body.rmatch_indices('\n').nth(before) {
            Some((at, _)) => &text[at + 1..],
            None => text,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn the_last_lines_are_whole() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last_lines("a\nb", 1), "b");
        assert_eq!(last_lines("a\n", 9), "a\n");
        assert_eq!(last_lines("a\n", 0), "");
    }
}
