//! `lazaret diff`: what a container has changed of its image.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::diff::{Change, Difference, diff};
use lazaret_base::Result;
use serde::Serialize;

use super::{json_flag, name_argument};
use crate::report::{Colour, json, paint, print};
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Show what a container has changed of its image")
        .args([name_argument("The container"), json_flag()])
        .after_help(
            "\
A line for each path: `+` is new, `~` is different, `-` is gone, with all that was in it. Bytes of names that \
are no text are written \\xNN.

Examples:
  lazaret diff web
  lazaret diff web | grep ' /etc/'",
        )
}

#[derive(Serialize)]
struct Line {
    path: String,
    change: &'static str,
    directory: bool,
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let changes = diff(session.ready()?, &name(matches)?)?;
    if matches.get_flag("json") {
        let word = |what| match what {
            Difference::Added => "added",
            Difference::Changed => "changed",
            Difference::Removed => "removed",
        };
        let line = |c: &Change| Line { path: shown(c, ""), change: word(c.what), directory: c.directory };
        return json(&changes.iter().map(line).collect::<Vec<_>>());
    }
    let terminal = std::io::stdout().is_terminal();
    let mut text = String::new();
    for change in &changes {
        let (sign, colour) = match change.what {
            Difference::Added => ("+", Colour::Green),
            Difference::Changed => ("~", Colour::Yellow),
            Difference::Removed => ("-", Colour::Red),
        };
        let slash = if change.directory && !change.path.is_empty() { "/" } else { "" };
        text.push_str(&paint(&format!("{sign} {}", shown(change, slash)), colour, terminal));
        text.push('\n');
    }
    print(&text);
    Ok(ExitCode::SUCCESS)
}

/// A path as text, with nothing in it that could mislead a terminal.
fn shown(change: &Change, end: &str) -> String {
    let mut text = String::from("/");
    for chunk in change.path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => text.extend(c.escape_default()),
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text + end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_not_mislead_a_terminal() {
        let change = |path: &[u8]| Change { path: path.to_vec(), what: Difference::Added, directory: true };
        assert_eq!(shown(&change("etc/ünï".as_bytes()), "/"), "/etc/ünï/");
        assert_eq!(shown(&change(b"a\n\x1b[31m\xff\\"), ""), "/a\\n\\u{1b}[31m\\xff\\\\");
    }
}
