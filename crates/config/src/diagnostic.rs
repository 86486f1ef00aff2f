//! What is wrong with a file, and where.

use std::fmt;
use std::ops::Range;

use lazaret_base::{Error, Kind, error};

/// One thing wrong at one place of a file: `container.toml:7: unknown key 'memroy', did you mean 'memory'?`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file as the caller named it.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)?;
        match &self.hint {
            // A question goes on with the sentence, an advice stands beside it.
            Some(hint) if hint.ends_with('?') => write!(f, ", {hint}"),
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// All that is wrong with one file, sorted by place; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

/// One per line.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            let newline = if i > 0 { "\n" } else { "" };
            write!(f, "{newline}{diagnostic}")?;
        }
        Ok(())
    }
}

impl From<Diagnostics> for Error {
    fn from(diagnostics: Diagnostics) -> Error {
        error(diagnostics.to_string()).kind(Kind::Invalid)
    }
}

/// A diagnostic before its place has been counted out.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Bytes of the text; the start of the file if unknown.
    pub span: Option<Range<usize>>,
    pub message: String,
    pub hint: Option<String>,
}

impl Fault {
    pub fn new(span: Option<Range<usize>>, message: impl Into<String>, hint: impl Into<String>) -> Fault {
        Fault { span, message: message.into(), hint: Some(hint.into()) }
    }
}

/// Sorts the faults by place and counts lines and columns.
pub(crate) fn located(file: &str, text: &str, mut faults: Vec<Fault>) -> Diagnostics {
    let start = |fault: &Fault| fault.span.as_ref().map_or(0, |span| boundary(text, span.start));
    faults.sort_by_key(start);
    let (mut line, mut line_start, mut counted) = (1, 0, 0);
    let mut diagnostics = Vec::new();
    for fault in faults {
        let at = start(&fault);
        for (i, _) in text[counted..at].match_indices('\n') {
            line += 1;
            line_start = counted + i + 1;
        }
        counted = at;
        let column = text[line_start..at].chars().count() + 1;
        let Fault { message, hint, .. } = fault;
        diagnostics.push(Diagnostic { file: file.into(), line, column, message, hint });
    }
    Diagnostics(diagnostics)
}

/// The start of the character that the byte belongs to.
pub(crate) fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}
