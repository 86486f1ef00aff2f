//! Which terminal programs of a container are told that they have.
//!
//! Programs of ncurses refuse a terminal of which the container has no description (terminfo(5)); newer terminals have
//! names of their own that no older system knows.

use std::os::fd::AsFd;

use lazaret_base::Result;
use lazaret_config::Name;

use crate::app::{is_there, root_of};
use crate::exec::{Running, running};
use crate::store::Store;

/// Where descriptions are.
const PLACES: &[&str] =
    &["/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo", "/usr/lib/terminfo", "/usr/local/share/terminfo"];
/// What is most like any other terminal, the most able first.
const USUAL: &[&str] = &["xterm-256color", "xterm", "vt100"];
/// The same for terminals within terminals, which have other keys.
const WITHIN: &[&str] = &["screen-256color", "screen"];

/// The name that programs are told: the caller's own, unless the container knows it not and another one instead.
pub(crate) fn told(running: &Running, term: String) -> String {
    match root_of(running) {
        Ok(root) => known(&term, |path| is_there(root.as_fd(), path)).unwrap_or(term),
        Err(_) => term,
    }
}

/// What the user should know of it.
///
/// # Errors
///
/// Where the container does not run.
pub fn note(store: &Store, name: &Name, term: &str) -> Result<Option<String>> {
    let told = told(&running(store, name)?, term.to_owned());
    Ok((told != term).then(|| {
        format!(
            "`{name}` does not know the terminal `{term}`: programs take it for `{told}`; its description may be in the \
             package ncurses-term, or in one of the terminal's own"
        )
    }))
}

/// Another name, if this one is not known. None as well where nothing is known at all.
fn known(term: &str, is_there: impl Fn(&str) -> bool) -> Option<String> {
    let has = |term: &str| {
        let Some(first) = term.bytes().next().filter(|_| is_name(term)) else { return false };
        let dirs = [char::from(first).to_string(), format!("{first:02x}")];
        PLACES.iter().any(|place| dirs.iter().any(|dir| is_there(&format!("{place}/{dir}/{term}"))))
    };
    if has(term) {
        return None;
    }
    let within: &[&str] = if term.starts_with("tmux") || term.starts_with("screen") { WITHIN } else { &[] };
    within.iter().chain(USUAL).find(|other| has(other)).map(|other| (*other).to_owned())
}

/// What could be the name of a file.
fn is_name(term: &str) -> bool {
    term.len() <= 64
        && term.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b))
        && !term.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_terminal_is_one_that_is_known() {
        let has = |all: &'static [&str]| move |path: &str| all.contains(&path);
        let usual = &["/lib/terminfo/x/xterm", "/lib/terminfo/x/xterm-256color", "/usr/share/terminfo/73/screen"];
        assert_eq!(known("xterm", has(usual)), None);
        assert_eq!(known("xterm-kitty", has(usual)).as_deref(), Some("xterm-256color"));
        assert_eq!(known("tmux-256color", has(usual)).as_deref(), Some("screen"));
        assert_eq!(known("../x", has(usual)).as_deref(), Some("xterm-256color"));
        assert_eq!(known("xterm-kitty", has(&[])), None);
    }
}
