//! `lazaret logs`: what a container said on its console.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use lazaret::console::{follow, said};
use lazaret_base::{Kind, Result};

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
    let following = match matches.get_flag("follow").then(|| follow(store, &name)) {
        // Then what it has said is all.
        Some(Err(e)) if e.what() == Kind::Stopped => None,
        other => other.transpose()?,
    };
    let (before, following) = match following {
        Some(mut following) => (std::mem::take(&mut following.so_far), Some(following)),
        None => (said(store, &name)?, None),
    };
    let text = String::from_utf8_lossy(&before);
    print(match matches.get_one::<usize>("lines") {
        Some(lines) => last_lines(&text, *lines),
        None => &text,
    });
    if let Some(following) = following {
        following.go_on(&mut |bytes| print(&String::from_utf8_lossy(bytes)))?;
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
