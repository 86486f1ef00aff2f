//! Rust source with its comments and the insides of its strings blanked out: what is left is code.
//!
//! Not a parser: it knows just enough of the language to tell where comments and literals begin and end.

/// Stands where a line has no text of a literal.
pub const NO_TEXT: char = '\0';

/// One file, line by line.
pub struct Code {
    /// The lines as they were, as code alone, and as the text of literals alone; all of equal length in characters.
    lines: Vec<Line>,
}

/// One line.
pub struct Line {
    /// Counted from 1.
    pub number: usize,
    /// What the compiler acts on; comments and the text of literals are blanks.
    pub code: String,
    /// The text of literals; all else is [`NO_TEXT`].
    pub literal: String,
    /// Whether it is in a module of tests.
    pub in_tests: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum At {
    Code,
    LineComment,
    /// How many of them are open: they nest.
    BlockComment(u32),
    /// A string; `Some` number of hashes that end a raw one.
    Literal(Option<usize>),
}

impl Code {
    /// Reads a file.
    pub fn of(text: &str) -> Code {
        let characters: Vec<char> = text.chars().collect();
        let (mut code, mut literal) = (String::new(), String::new());
        let (mut at, mut i) = (At::Code, 0);
        while i < characters.len() {
            let rest = &characters[i..];
            let (next, taken) = step(at, rest, i.checked_sub(1).map(|before| characters[before]));
            for c in &rest[..taken] {
                let (as_code, as_literal) = match (at, next) {
                    _ if *c == '\n' => ('\n', '\n'),
                    (At::Code, At::Code | At::Literal(_)) | (At::Literal(_), At::Code) => (*c, NO_TEXT),
                    (At::Literal(_), _) => (' ', *c),
                    _ => (' ', NO_TEXT),
                };
                code.push(as_code);
                literal.push(as_literal);
            }
            (at, i) = (next, i + taken);
        }
        let lines = code.lines().zip(literal.lines()).enumerate();
        let lines = lines.map(|(i, (code, literal))| Line {
            number: i + 1,
            code: code.to_owned(),
            literal: literal.to_owned(),
            in_tests: false,
        });
        let mut code = Code { lines: lines.collect() };
        code.find_tests();
        code
    }

    /// All lines.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The lines that are compiled into what users run.
    pub fn in_use(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| !line.in_tests)
    }

    /// Marks what stands between `#[cfg(test)]` and the end of the item after it.
    fn find_tests(&mut self) {
        let (mut depth, mut waiting, mut inside) = (0i32, false, None);
        for line in &mut self.lines {
            waiting |= inside.is_none() && line.code.trim_start().starts_with("#[cfg(test)]");
            line.in_tests = waiting || inside.is_some();
            for c in line.code.chars() {
                match c {
                    '{' => {
                        if waiting {
                            (waiting, inside) = (false, Some(depth));
                        }
                        depth += 1;
                    }
                    '}' => {
                        depth -= 1;
                        if inside == Some(depth) {
                            inside = None;
                        }
                    }
                    ';' => waiting = false,
                    _ => {}
                }
            }
        }
    }
}

/// What comes after the next characters, and how many they are.
fn step(at: At, rest: &[char], before: Option<char>) -> (At, usize) {
    let begins = |with: &str| with.chars().enumerate().all(|(i, c)| rest.get(i) == Some(&c));
    match at {
        At::Code if begins("//") => (At::LineComment, 2),
        At::Code if begins("/*") => (At::BlockComment(1), 2),
        At::Code if begins("\"") => (At::Literal(None), 1),
        At::Code if begins("'") => (At::Code, character(rest)),
        At::Code if !before.is_some_and(|c| c.is_alphanumeric() || c == '_') => match raw(rest) {
            Some((hashes, taken)) => (At::Literal(Some(hashes)), taken),
            None => (At::Code, 1),
        },
        At::LineComment if begins("\n") => (At::Code, 1),
        At::BlockComment(depth) if begins("/*") => (At::BlockComment(depth + 1), 2),
        At::BlockComment(1) if begins("*/") => (At::Code, 2),
        At::BlockComment(depth) if begins("*/") => (At::BlockComment(depth - 1), 2),
        At::Literal(None) if begins("\\") => (at, rest.len().min(2)),
        At::Literal(None) if begins("\"") => (At::Code, 1),
        At::Literal(Some(hashes)) if begins(&format!("\"{}", "#".repeat(hashes))) => (At::Code, 1 + hashes),
        _ => (at, 1),
    }
}

/// The length of a character literal; of the quote alone if it begins a lifetime.
fn character(rest: &[char]) -> usize {
    match rest {
        ['\'', '\\', _, after @ ..] => 3 + after.iter().position(|c| *c == '\'').map_or(0, |end| end + 1),
        ['\'', _, '\'', ..] => 3,
        _ => 1,
    }
}

/// The beginning of a raw string, with or without `b` or `c`: how many hashes, and its length.
fn raw(rest: &[char]) -> Option<(usize, usize)> {
    let prefix = match rest {
        ['b' | 'c', 'r', ..] => 2,
        ['r', ..] => 1,
        _ => return None,
    };
    let hashes = rest[prefix..].iter().take_while(|c| **c == '#').count();
    (rest.get(prefix + hashes) == Some(&'"')).then_some((hashes, prefix + hashes + 1))
}
