//! Compiles `init/main.rs`, the freestanding PID 1, with the compiler, target and linker of the crate itself.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    let source = "init/main.rs";
    println!("cargo::rerun-if-changed={source}");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let target = variable("TARGET");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition=2024", "--crate-name=lazaret_init", "--crate-type=bin", "--target", &target]);
    // No libc below it, no dynamic loader, no relocation at start: three things a strange root file system may lack.
    rustc.args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static", "-Crelocation-model=static"]);
    rustc.args(["-Copt-level=s", "-Cpanic=abort", "-Cforce-unwind-tables=no", "-Cstrip=symbols"]);
    rustc.arg("-Clink-arg=-Wl,--build-id=none,-z,noseparate-code,-z,norelro");
    if target.ends_with("-musl") {
        // Otherwise rustc adds its own crt1.o, which wants a main.
        rustc.arg("-Clink-self-contained=no");
    }
    // Set if the user's configuration names a linker for the target.
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    rustc.arg("-o").arg(Path::new(&variable("OUT_DIR")).join("lazaret-init")).arg(source);
    let status = rustc.status().unwrap_or_else(|error| panic!("running {rustc:?}: {error}"));
    assert!(status.success(), "compiling the init of containers failed: {rustc:?}");
}
