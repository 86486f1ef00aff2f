//! `cargo xtask test`: everything, on a fresh machine.
//!
//! What the project promises about its source comes first, then what can be tested without containers, then real
//! containers, then what the README says. The first stage that fails ends it.

use crate::build::{self, cargo};
use crate::libtest::{self, Tally};
use crate::packages::{self, For};
use crate::run::quietly;
use crate::stage::stage;
use crate::{Result, flags, lab, nothing_else, readme, tidy, tour};

/// Runs all stages.
pub fn run(arguments: &[String]) -> Result {
    let ([quick], rest) = flags(arguments, ["--quick"]);
    nothing_else(&rest)?;
    let mut tally = Tally::default();
    let done = stages(quick, &mut tally);
    // Alone on a line and always the last of standard output, for whoever reads this by machine.
    println!("test: {tally}");
    done
}

fn stages(quick: bool, tally: &mut Tally) -> Result {
    stage("packages", || packages::install(For::Test))?;
    stage("tools", tools)?;
    stage("tidy", || tidy::check(crate::place::source()))?;
    stage("format", || quietly(&mut cargo(&["fmt", "--all", "--check", "--", "--color=never"])).map(|_| ""))?;
    stage("clippy", || {
        let words = [&["clippy", "--all-targets"], build::EVERYTHING, &["--", "-D", "warnings"]].concat();
        quietly(&mut cargo(&words)).map(|_| "")
    })?;
    let built = stage("build", build::tests)?;
    for tests in built.tests.iter().filter(|tests| !lab::is_lab(tests)) {
        let name = match tests.kind.as_str() {
            "test" => format!("{}, {}", tests.package, tests.target),
            _ => tests.package.clone(),
        };
        add(tally, &name, || {
            // Those of the runtime that are left out of a plain `cargo test` need root, which is here.
            let arguments: &[&str] = if tests.package == "lazaret-runtime" { &["--include-ignored"] } else { &[] };
            libtest::run(tests, arguments, &[], false)
        })?;
    }
    add(tally, "examples in comments", examples)?;
    if quick {
        return Ok(());
    }
    let roots = lab::roots()?;
    add(tally, "containers", || {
        libtest::run(lab::of(&built.tests)?, &[], &[(lab::FIXTURES, &roots.to_string_lossy())], false)
    })?;
    stage("README", || readme::check(&built.lazaret, &roots))?;
    stage("try", || tour::take(&built.lazaret)).map(drop)
}

/// Runs tests and counts them; an error if one failed.
fn add(all: &mut Tally, name: &str, work: impl FnOnce() -> Result<Tally>) -> Result {
    let tally = stage(name, work)?;
    *all += tally;
    match tally.failed {
        0 => Ok(()),
        failed => Err(format!("{name}: {failed} tests failed")),
    }
}

/// What cargo needs beside itself. A small toolchain has neither; the one that manages toolchains has both.
fn tools() -> Result<&'static str> {
    let have = |tool: &str| quietly(&mut cargo(&[tool, "--version"])).is_ok();
    if have("fmt") && have("clippy") {
        return Ok("rustfmt and clippy there");
    }
    let mut rustup = std::process::Command::new("rustup");
    quietly(rustup.args(["component", "add", "rustfmt", "clippy"]).current_dir(crate::place::source()))
        .map_err(|e| format!("{e}\nrustfmt and clippy are needed, of the same release as cargo"))?;
    Ok("installed rustfmt and clippy")
}

fn examples() -> Result<Tally> {
    let words = [&["test", "--doc"], build::EVERYTHING].concat();
    match quietly(&mut cargo(&words)) {
        Ok(said) => Ok(libtest::tally(&said)),
        Err(said) if libtest::tally(&said).failed > 0 => {
            eprintln!("\n{said}");
            Ok(libtest::tally(&said))
        }
        Err(said) => Err(said),
    }
}
