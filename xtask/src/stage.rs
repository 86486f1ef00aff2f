//! A line for each stage of a chore: what it is, what came of it, how long it took.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use crate::Result;

/// Does a stage's work, which returns what is worth saying about it.
pub fn stage<T: ToString>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    print!("{name:<32}");
    // Progress that nobody sees is no reason to stop.
    let _ = std::io::stdout().flush();
    let done = work();
    if std::io::stdout().is_terminal() {
        print!("\r\x1b[K{name:<32}");
    }
    let said = done.as_ref().map_or("failed".into(), ToString::to_string);
    println!("{said:<36}{:>8.1} s", begun.elapsed().as_secs_f64());
    done
}

/// On a terminal, how far the stage is.
pub fn progress(name: &str, words: &str) {
    if std::io::stdout().is_terminal() {
        print!("\r\x1b[K{name:<32}{words}");
        let _ = std::io::stdout().flush();
    }
}
