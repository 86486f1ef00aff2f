//! `cargo xtask dist`: the program to install.

use crate::{Result, build, nothing_else};

/// Builds it, and says where it is.
pub fn run(arguments: &[String]) -> Result {
    nothing_else(arguments)?;
    println!("{}", build::dist()?.display());
    Ok(())
}
