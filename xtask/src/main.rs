//! The project's own chores: `cargo xtask CHORE`. One chore, one file.

mod bench;
mod dist;
mod lab;
mod readme;
mod test;
mod tidy;
mod tour;

mod build;
mod installation;
mod libtest;
mod packages;
mod place;
mod run;
mod stage;

use std::process::ExitCode;

/// A chore's end. What went wrong is a sentence for the person who typed the command.
type Result<T = ()> = std::result::Result<T, String>;

struct Chore {
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result,
}

const CHORES: &[Chore] = &[
    Chore {
        name: "try",
        arguments: "",
        about: "build Lazaret and watch a container from birth to end",
        run: tour::run,
    },
    Chore {
        name: "test",
        arguments: "[--quick]",
        about: "run every test; --quick leaves real containers out",
        run: test::run,
    },
    Chore { name: "lab", arguments: "[FILTER]", about: "run the tests in real containers", run: lab::run },
    Chore { name: "readme", arguments: "", about: "run the examples of README.md", run: readme::run },
    Chore {
        name: "bench",
        arguments: bench::ARGUMENTS,
        about: "measure against other container tools",
        run: bench::run,
    },
    Chore { name: "dist", arguments: "", about: "build the program to install: TARGET/dist/lazaret", run: dist::run },
    Chore {
        name: "tidy",
        arguments: "",
        about: "check what the project promises about its own source",
        run: tidy::run,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let chore = arguments.first().and_then(|name| CHORES.iter().find(|chore| chore.name == name));
    let Some(chore) = chore else {
        eprintln!("Usage: cargo xtask CHORE");
        for Chore { name, arguments, about, .. } in CHORES {
            eprintln!("  {:<42}{about}", format!("{name} {arguments}"));
        }
        return ExitCode::from(2);
    };
    match (chore.run)(&arguments[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("error: {sentence}");
            ExitCode::FAILURE
        }
    }
}

/// The flags that a chore knows, taken out of its arguments; the rest is left.
fn flags<const N: usize>(arguments: &[String], known: [&str; N]) -> ([bool; N], Vec<String>) {
    let given = known.map(|flag| arguments.iter().any(|argument| argument == flag));
    (given, arguments.iter().filter(|argument| !known.contains(&argument.as_str())).cloned().collect())
}

/// Nothing may be left of a chore's arguments.
fn nothing_else(rest: &[String]) -> Result {
    match rest.first() {
        None => Ok(()),
        Some(word) => Err(format!("`{word}` means nothing here")),
    }
}
