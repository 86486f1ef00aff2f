//! An error is a chain of sentences, outermost first, with at most one hint.

use std::fmt;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller may branch on. Everything else is only told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Nobody branches on it.
    #[default]
    Other,
    /// The named thing is not there.
    NotFound,
    /// The named thing is there already.
    Exists,
    /// The container runs and the request needs it stopped.
    Running,
    /// The container is stopped and the request needs it running.
    Stopped,
    /// Another command holds the lock.
    Locked,
    /// The kernel or the host lacks a feature.
    Missing,
    /// The request itself makes no sense: a bad name, key or value.
    Invalid,
    /// Whoever asks is not let in.
    Denied,
    /// The command to execute does not exist in the container (exit status 127).
    CommandNotFound,
    /// The command exists and cannot be executed (exit status 126).
    CommandNotExecutable,
}

/// Sentences from the outermost ("starting web") to the cause ("operation not permitted").
///
/// Each sentence says what was being done, in lower case, without a period, and does not repeat its
/// source. An errno, where there was one, is kept and can be asked for.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    /// Innermost first: context is pushed at the end.
    sentences: Vec<String>,
    errno: Option<Errno>,
    hint: Option<String>,
    kind: Kind,
}

/// Makes an error of one sentence.
pub fn error(sentence: impl Into<String>) -> Error {
    Error(Box::new(Inner { sentences: vec![sentence.into()], errno: None, hint: None, kind: Kind::Other }))
}

impl Error {
    /// Says what to do about it. The innermost hint wins: it was closest to the cause.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Sets what a caller may branch on.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Puts an outer sentence before the chain.
    pub fn context(mut self, sentence: impl Into<String>) -> Self {
        self.0.sentences.push(sentence.into());
        self
    }

    /// What a caller may branch on.
    pub fn what(&self) -> Kind {
        self.0.kind
    }

    /// The kernel's answer, if the kernel was asked.
    pub fn errno(&self) -> Option<Errno> {
        self.0.errno
    }

    /// The hint, if there is one.
    pub fn advice(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

/// The sentences joined by `: `, outermost first; the hint is not part of it.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, sentence) in self.0.sentences.iter().rev().enumerate() {
            if i > 0 {
                f.write_str(": ")?;
            }
            f.write_str(sentence)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        let mut e = error(sentence_of(errno));
        e.0.errno = Some(errno);
        e
    }
}

impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Self {
        match Errno::from_io_error(&source) {
            Some(errno) => errno.into(),
            None => error(source.to_string()),
        }
    }
}

/// `Operation not permitted (os error 1)` in the words of strerror(3), without the number.
fn sentence_of(errno: Errno) -> String {
    let text = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = words.chars();
    chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// Adds sentences, hints and kinds to any result whose error becomes an [`Error`].
pub trait Context<T> {
    /// Puts an outer sentence before the error.
    fn context(self, sentence: impl Into<String>) -> Result<T>;
    /// Same, for sentences that cost something to make.
    fn with_context<S: Into<String>>(self, sentence: impl FnOnce() -> S) -> Result<T>;
    /// Says what to do about it.
    fn hint(self, hint: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, sentence: impl Into<String>) -> Result<T> {
        self.map_err(|e| e.into().context(sentence))
    }

    fn with_context<S: Into<String>>(self, sentence: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.into().context(sentence()))
    }

    fn hint(self, hint: impl Into<String>) -> Result<T> {
        self.map_err(|e| e.into().hint(hint))
    }
}

/// An error as it crosses a process boundary: nothing is lost on the way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wire {
    sentences: Vec<String>,
    errno: Option<i32>,
    hint: Option<String>,
    kind: Kind,
}

impl From<Error> for Wire {
    fn from(e: Error) -> Self {
        let Inner { sentences, errno, hint, kind } = *e.0;
        Wire { sentences, errno: errno.map(Errno::raw_os_error), hint, kind }
    }
}

impl From<Wire> for Error {
    fn from(w: Wire) -> Self {
        let Wire { sentences, errno, hint, kind } = w;
        Error(Box::new(Inner { sentences, errno: errno.map(Errno::from_raw_os_error), hint, kind }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_read_outermost_first_and_keep_the_errno() {
        let e: Result<()> =
            Err(Errno::PERM).context("mounting proc on `/proc`").hint("set `nesting = true`").context("starting web");
        let e = e.unwrap_err();
        assert_eq!(e.to_string(), "starting web: mounting proc on `/proc`: operation not permitted");
        assert_eq!(e.errno(), Some(Errno::PERM));
        assert_eq!(e.advice(), Some("set `nesting = true`"));
    }

    #[test]
    fn the_innermost_hint_wins() {
        assert_eq!(error("x").hint("near").hint("far").advice(), Some("near"));
    }

    #[test]
    fn an_error_survives_the_wire() {
        let before = Error::from(Errno::NOSPC).context("writing").hint("free some space").kind(Kind::Locked);
        let text = before.to_string();
        let after: Error = Wire::from(before).into();
        assert_eq!((after.to_string(), after.errno(), after.what()), (text, Some(Errno::NOSPC), Kind::Locked));
        assert_eq!(after.advice(), Some("free some space"));
    }
}
