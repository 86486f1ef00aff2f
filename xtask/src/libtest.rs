//! Programs of tests, run by root, and what they report.

use std::fmt;

use crate::build::Tests;
use crate::run::listen;
use crate::{Result, place, stage};

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u32,
    pub failed: u32,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// The tally in what a program of tests (or several, one after another) said.
pub fn tally(said: &str) -> Tally {
    let mut all = Tally::default();
    for line in said.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let number = |what: &str| {
            let before = line.split(what).next().unwrap_or_default();
            before.split_whitespace().next_back().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        all += Tally { passed: number(" passed"), failed: number(" failed") };
    }
    all
}

/// Runs a program of tests as root. What it says is shown if a test fails, or always if `aloud`.
pub fn run(tests: &Tests, arguments: &[&str], variables: &[(&str, &str)], aloud: bool) -> Result<Tally> {
    let directory = tests.directory.to_string_lossy();
    let source = place::source().to_string_lossy();
    // What cargo would set; the second keeps insta from asking cargo, which root may not have.
    let mut all = vec![("CARGO_MANIFEST_DIR", &*directory), ("INSTA_WORKSPACE_ROOT", &*source), ("INSTA_UPDATE", "no")];
    all.extend(variables);
    let mut command = place::as_root(&tests.program, &all)?;
    command.args(arguments).current_dir(&tests.directory);
    let mut done = 0;
    let (said, status) = listen(&mut command, |line| {
        if aloud {
            println!("{line}");
        } else if line.starts_with("test ") && line.contains(" ... ") {
            done += 1;
            stage::progress(&tests.package, &format!("{done} done"));
        }
    })?;
    let mut tally = tally(&said);
    if !status.success() && tally.failed == 0 {
        // It died before it could count.
        tally.failed = 1;
    }
    if tally.failed > 0 && !aloud {
        eprintln!("\n{}{}: {status}", said, tests.program.display());
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_added_up() {
        let said = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured\n\
                    noise: 7 passed\ntest result: FAILED. 10 passed; 3 failed; 0 ignored; 0 measured\n";
        assert_eq!(tally(said), Tally { passed: 12, failed: 3 });
        assert_eq!(tally("nothing to see"), Tally::default());
    }
}
