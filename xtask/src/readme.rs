//! What the README shows is true: its examples are run, and must say what it says they do.
//!
//! A block marked `console` is a session of a terminal: a line that begins with `$ ` is a command, the lines after it
//! are what it says on both of its outputs. All of them run in order, in one empty directory, on an installation of
//! their own. A command that fails says so, and that would not be what is shown. In the shown output
//!
//! - numbers and the width of gaps do not count;
//! - `...` stands for any text in a line, and alone on a line for any number of lines.
//!
//! Blocks marked otherwise are not run.

use std::path::Path;

use crate::installation::Installation;
use crate::packages::{self, For};
use crate::place::source;
use crate::run::{listen, quietly};
use crate::stage::{progress, stage};
use crate::{Result, build, lab, nothing_else};

/// One command and what it is to say.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    line: usize,
    command: String,
    shown: Vec<String>,
}

/// Runs the examples alone.
pub fn run(arguments: &[String]) -> Result {
    nothing_else(arguments)?;
    stage("packages", || packages::install(For::Test))?;
    let built = stage("build", build::tests)?;
    let roots = lab::roots()?;
    stage("README", || check(&built.lazaret, &roots)).map(drop)
}

/// Runs every example with this command `lazaret`. The directory `roots` holds the images that examples name.
pub fn check(lazaret: &Path, roots: &Path) -> Result<String> {
    let text = std::fs::read_to_string(source().join("README.md")).map_err(|e| format!("reading README.md: {e}"))?;
    let examples = examples(&text);
    let world = Installation::apart("readme", lazaret)?;
    quietly(&mut world.shell(&format!(
        "mkdir {0}/desk && ln -s {1}/*.tar {0}/desk/",
        world.dir.display(),
        roots.display()
    ))?)?;
    for example in &examples {
        progress("README", &example.command);
        try_out(example, &world)?;
    }
    // The examples end as they began: with nothing there.
    match world.ask(&["list", "--json"])?.as_array().is_some_and(Vec::is_empty) {
        true => Ok(format!("{} commands", examples.len())),
        false => Err("README.md leaves containers behind".into()),
    }
}

/// Runs one example in the directory of all. Root runs it, so `sudo` in it has nothing to do.
fn try_out(example: &Example, world: &Installation) -> Result {
    let directory = world.dir.join("desk");
    let script = format!("cd '{}'; sudo() {{ \"$@\"; }}\n{}", directory.display(), example.command);
    let (said, _) = listen(&mut world.shell(&script)?, |_| {})?;
    let lines: Vec<_> = said.lines().map(str::trim_end).collect();
    let shown: Vec<_> = example.shown.iter().map(|line| line.trim_end()).collect();
    if fits(&shown, &lines) {
        return Ok(());
    }
    let (line, command, shown) = (example.line, &example.command, example.shown.join("\n"));
    Err(format!("README.md:{line}: `{command}` says\n{said}where README.md says\n{shown}"))
}

fn examples(text: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for (i, line) in text.lines().enumerate() {
        match (inside, line) {
            (false, "```console") => inside = true,
            (true, "```") => inside = false,
            (true, line) => match (line.strip_prefix("$ "), examples.last_mut()) {
                (Some(command), _) => {
                    examples.push(Example { line: i + 1, command: command.to_owned(), shown: Vec::new() });
                }
                (None, Some(last)) if last.command.ends_with('\\') => {
                    last.command.push('\n');
                    last.command.push_str(line);
                }
                (None, Some(last)) => last.shown.push(line.to_owned()),
                (None, None) => {}
            },
            (false, _) => {}
        }
    }
    examples
}

/// Whether what is shown is what was said.
fn fits(shown: &[&str], said: &[&str]) -> bool {
    match (shown, said) {
        ([], []) => true,
        (["..."], _) => true,
        (["...", rest @ ..], _) => (0..=said.len()).any(|skipped| fits(rest, &said[skipped..])),
        ([first, rest @ ..], [line, after @ ..]) => line_fits(&plain(first), &plain(line)) && fits(rest, after),
        _ => false,
    }
}

fn line_fits(shown: &str, said: &str) -> bool {
    match shown.split_once("...") {
        None => shown == said,
        Some((before, rest)) => said.strip_prefix(before).is_some_and(|tail| {
            let mut ends = tail.char_indices().map(|(at, _)| at).chain([tail.len()]);
            ends.any(|at| line_fits(rest, &tail[at..]))
        }),
    }
}

/// A line without what differs from run to run.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    for c in line.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        match c {
            '0'..='9' if plain.ends_with('0') => {}
            '0'..='9' => plain.push('0'),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_commands_and_what_they_say() {
        let text = "text\n```console\n$ one \\\n  two\nsaid\n\n$ three\n```\n```sh\n$ four\n```\n";
        let expected = [
            Example { line: 3, command: "one \\\n  two".into(), shown: vec!["said".into(), "".into()] },
            Example { line: 7, command: "three".into(), shown: vec![] },
        ];
        assert_eq!(examples(text), expected);
    }

    #[test]
    fn numbers_gaps_and_dots_fit_anything_of_their_kind() {
        let check =
            |shown: &str, said: &str| fits(&shown.lines().collect::<Vec<_>>(), &said.lines().collect::<Vec<_>>());
        assert!(check("pid 17   up 3 s", "pid 4711 up 12 s"));
        assert!(check("a\n...\nz", "a\nb\nc\nz"));
        assert!(check("a ... z", "a b c z"));
        assert!(!check("a ... z", "a b c"));
        assert!(!check("a", "a\nb"));
        assert!(!check("a\nb", "a"));
        assert!(!check("pid 17", "pid x"));
    }
}
