//! `cargo xtask lab`: the tests in real containers, and the root file systems they start from.

use std::path::PathBuf;

use crate::build::{self, Tests};
use crate::packages::{self, For};
use crate::run::quietly;
use crate::stage::stage;
use crate::{Result, libtest, place};

/// Runs the tests whose names contain the argument; all of them without one. All that they say is shown.
pub fn run(arguments: &[String]) -> Result {
    stage("packages", || packages::install(For::Test))?;
    let built = stage("build", build::tests)?;
    let roots = roots()?;
    let filter: Vec<_> = arguments.iter().map(String::as_str).collect();
    let tally = libtest::run(of(&built.tests)?, &filter, &[(FIXTURES, &roots.to_string_lossy())], true)?;
    match tally.failed {
        0 => Ok(()),
        failed => Err(format!("{failed} tests failed")),
    }
}

/// The variable in which the tests find the root file systems.
pub const FIXTURES: &str = "LAZARET_FIXTURES";

/// The program of the tests in containers.
pub fn of(tests: &[Tests]) -> Result<&Tests> {
    tests.iter().find(|tests| is_lab(tests)).ok_or_else(|| "cargo built no tests called lab".into())
}

/// Whether this is the program of the tests in containers.
pub fn is_lab(tests: &Tests) -> bool {
    tests.package == "lazaret-cli" && tests.target == "lab"
}

/// Makes the root file systems that are not made yet, and returns where they are: in the directory that
/// `LAZARET_FIXTURES` names, or beside what cargo builds.
pub fn roots() -> Result<PathBuf> {
    let given = std::env::var_os(FIXTURES).map(PathBuf::from);
    let into = given.map_or_else(|| place::target().map(|target| target.join("fixtures")), Ok)?;
    stage("root file systems", || {
        std::fs::create_dir_all(&into).map_err(|e| format!("making `{}`: {e}", into.display()))?;
        let script = place::source().join("tests/fixtures/make-roots.sh");
        let said = quietly(place::as_root(&script, &[])?.arg(&into))?;
        // So that who cleans what cargo built can remove these, too.
        let (uid, gid) = place::ids()?;
        quietly(place::as_root("chown".as_ref(), &[])?.args(["-R", &format!("{uid}:{gid}")]).arg(&into))?;
        Ok(match said.lines().count() {
            0 => "all there".to_owned(),
            made => format!("made {made}"),
        })
    })?;
    Ok(into)
}
