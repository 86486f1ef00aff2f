//! What cargo builds for the tests, and where it puts it.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::run::quietly;
use crate::{Result, place};

/// A program of tests.
#[derive(Clone, Debug)]
pub struct Tests {
    /// The package, such as `lazaret-image`.
    pub package: String,
    /// The target, such as `lab`.
    pub target: String,
    /// What cargo calls its kind: `lib`, `bin` or `test`.
    pub kind: String,
    /// The program.
    pub program: PathBuf,
    /// Where it expects to be started.
    pub directory: PathBuf,
}

/// All that was built for the tests.
pub struct Built {
    /// Programs of tests.
    pub tests: Vec<Tests>,
    /// The command `lazaret`, with the means to kill itself at a chosen step.
    pub lazaret: PathBuf,
}

impl fmt::Display for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} programs of tests", self.tests.len())
    }
}

/// The packages and features of every build here. They are the same everywhere: another set would have cargo build
/// the same crates again with other features.
pub const EVERYTHING: &[&str] = &["--workspace", "--features", "lazaret-cli/inject"];

/// A cargo command in the source.
pub fn cargo(words: &[&str]) -> Command {
    // Set by the cargo that started us, so that all is built by one toolchain.
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(words).current_dir(place::source());
    cargo
}

/// Builds all tests, and the command with them.
pub fn tests() -> Result<Built> {
    let words = ["test", "--no-run", "--message-format=json-render-diagnostics"];
    let said = quietly(cargo(&words).args(EVERYTHING))?;
    let artifacts: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let programs = artifacts.iter().filter(|artifact| artifact["executable"].is_string());
    let lazaret = programs
        .clone()
        .find(|artifact| artifact["target"]["name"] == "lazaret" && artifact["profile"]["test"] == false)
        .map(|artifact| PathBuf::from(text(&artifact["executable"])));
    let mut tests: Vec<Tests> =
        programs.filter(|artifact| artifact["profile"]["test"] == true).filter_map(test_of).collect();
    tests.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(Built { tests, lazaret: lazaret.ok_or("cargo built no program called lazaret")? })
}

/// Builds the program that people install, and returns where it is.
///
/// It is linked statically: a command is over in milliseconds, of which looking for libraries would be a good part. And
/// with musl where that can be had, because glibc asks the processor some sixty questions (CPUID) before `main`, which
/// in a virtual machine takes longer than what `lazaret exec` itself does.
pub fn dist() -> Result<PathBuf> {
    let compiler = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let said = quietly(Command::new(&compiler).arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc does not name its host")?;
    let musl = host.replace("-gnu", "-musl");
    let triple = if has_musl(&compiler, &musl) { &musl } else { host };
    // Named even though it is the host's own: what runs at build time can't be linked statically.
    let mut building = cargo(&["build", "--release", "--package", "lazaret-cli", "--target", triple]);
    building.env("RUSTFLAGS", "-C target-feature=+crt-static");
    building.env(format!("CC_{}", musl.replace('-', "_")), MUSL_COMPILER);
    match building.status() {
        Ok(status) if status.success() => {}
        _ => return Err("Lazaret could not be built".into()),
    }
    let target = place::target()?;
    let (built, dist) = (target.join(triple).join("release/lazaret"), target.join("dist"));
    let copy = std::fs::create_dir_all(&dist).and_then(|()| {
        // Put in place whole: the one that is there may be running.
        std::fs::copy(&built, dist.join(".lazaret"))?;
        std::fs::rename(dist.join(".lazaret"), dist.join("lazaret"))
    });
    copy.map_err(|e| format!("copying `{}` to `{}`: {e}", built.display(), dist.display()))?;
    Ok(dist.join("lazaret"))
}

/// Of Debian's `musl-tools`; for what some crates have in C.
const MUSL_COMPILER: &str = "musl-gcc";

/// Whether programs for `triple` can be made here. A toolchain of rustup gets what it lacks.
fn has_musl(compiler: &std::ffi::OsStr, triple: &str) -> bool {
    let asks = |program: &std::ffi::OsStr, words: &[&str]| quietly(Command::new(program).args(words)).ok();
    let has_library = || {
        let library = asks(compiler, &["--print", "target-libdir", "--target", triple]);
        library.is_some_and(|path| std::path::Path::new(path.trim()).is_dir())
    };
    asks(MUSL_COMPILER.as_ref(), &["--version"]).is_some()
        && (has_library() || asks("rustup".as_ref(), &["target", "add", triple]).is_some() && has_library())
}

fn test_of(artifact: &Value) -> Option<Tests> {
    let manifest = PathBuf::from(text(&artifact["manifest_path"]));
    let directory = manifest.parent()?.to_owned();
    let toml = std::fs::read_to_string(&manifest).ok()?;
    let package = toml.lines().find_map(|line| line.strip_prefix("name = ")).unwrap_or_default();
    Some(Tests {
        package: package.trim_matches('"').to_owned(),
        target: text(&artifact["target"]["name"]),
        kind: text(&artifact["target"]["kind"][0]),
        program: text(&artifact["executable"]).into(),
        directory,
    })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
