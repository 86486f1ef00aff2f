//! As much of YAML as `metadata.yaml` of an image has: block maps and lists, scalars of every style, flow collections
//! on one line. What goes beyond is refused, with its line.

use lazaret_base::{Result, error};

/// A value. Numbers and booleans stay the text they are written as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    List(Vec<Value>),
    /// In the order of the file; the last of two equal keys wins.
    Map(Vec<(String, Value)>),
}

impl Value {
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.entries().iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn items(&self) -> &[Value] {
        match self {
            Value::List(items) => items,
            _ => &[],
        }
    }

    pub(crate) fn entries(&self) -> &[(String, Value)] {
        match self {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }
}

/// Deeper than any metadata.
const DEEPEST: usize = 20;

/// Reads one document.
pub(crate) fn parse(text: &str) -> Result<Value> {
    let lines = text.lines().enumerate().map(|(at, line)| Line { number: at + 1, text: line.trim_end() }).collect();
    let mut reader = Reader { lines, at: 0 };
    if reader.peek().is_some_and(|(_, rest)| rest == "---") {
        reader.at += 1;
    }
    let Some((indent, _)) = reader.peek() else { return Ok(Value::Text(String::new())) };
    let value = reader.block(indent, 0)?;
    match reader.peek() {
        None | Some((0, "...")) => Ok(value),
        Some(_) => Err(reader.wrong("its indentation fits nothing above")),
    }
}

#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    text: &'a str,
}

struct Reader<'a> {
    lines: Vec<Line<'a>>,
    at: usize,
}

impl<'a> Reader<'a> {
    /// The next line that says something: its indentation and the rest.
    fn peek(&mut self) -> Option<(usize, &'a str)> {
        while let Some(line) = self.lines.get(self.at) {
            let rest = line.text.trim_start_matches(' ');
            if !rest.is_empty() && !rest.starts_with('#') {
                return Some((line.text.len() - rest.len(), rest));
            }
            self.at += 1;
        }
        None
    }

    fn wrong(&self, why: &str) -> lazaret_base::Error {
        let line = self.lines.get(self.at).or(self.lines.last()).map_or(1, |line| line.number);
        error(format!("line {line}: {why}"))
    }

    fn block(&mut self, indent: usize, depth: usize) -> Result<Value> {
        if depth > DEEPEST {
            return Err(self.wrong("it is nested too deeply"));
        }
        match self.peek() {
            Some((_, rest)) if is_item(rest) => self.list(indent, depth),
            Some((_, rest)) if key_of(rest).is_some() => self.map(indent, depth),
            Some((_, rest)) => {
                self.at += 1;
                self.scalar(rest, indent.saturating_sub(1))
            }
            None => Ok(Value::Text(String::new())),
        }
    }

    fn list(&mut self, indent: usize, depth: usize) -> Result<Value> {
        let mut items = Vec::new();
        while let Some((at, rest)) = self.peek() {
            if at != indent || !is_item(rest) {
                break;
            }
            let inner = rest[1..].trim_start_matches(' ');
            if inner.is_empty() {
                self.at += 1;
                items.push(self.below(indent, depth)?);
                continue;
            }
            // What follows the dash is a block of its own that begins in the middle of the line.
            let column = at + rest.len() - inner.len();
            if is_item(inner) || key_of(inner).is_some() {
                items.push(self.inline_block(column, depth)?);
            } else {
                self.at += 1;
                items.push(self.scalar(inner, indent)?);
            }
        }
        Ok(Value::List(items))
    }

    /// A map or list whose first line stands behind a dash: read as if the dash were a space.
    fn inline_block(&mut self, column: usize, depth: usize) -> Result<Value> {
        let line = self.lines[self.at];
        let shown = Line { number: line.number, text: &line.text[column..] };
        // Indentation is counted from the line's start, so the first entry is read by hand.
        let Some((key, rest)) = key_of(shown.text) else {
            return Err(self.wrong("a list directly in a list is not understood"));
        };
        self.at += 1;
        let mut entries = vec![(key, self.value(rest, column, depth)?)];
        if self.peek().is_some_and(|(at, rest)| at == column && key_of(rest).is_some())
            && let Value::Map(more) = self.map(column, depth)?
        {
            entries.extend(more);
        }
        Ok(Value::Map(entries))
    }

    fn map(&mut self, indent: usize, depth: usize) -> Result<Value> {
        let mut entries = Vec::new();
        while let Some((at, rest)) = self.peek() {
            if at != indent {
                break;
            }
            let Some((key, rest)) = key_of(rest) else { break };
            self.at += 1;
            let value = self.value(rest, indent, depth)?;
            entries.push((key, value));
        }
        Ok(Value::Map(entries))
    }

    /// What stands behind a key.
    fn value(&mut self, rest: &'a str, indent: usize, depth: usize) -> Result<Value> {
        match uncommented(rest) {
            "" => self.below(indent, depth),
            _ => self.scalar(rest, indent),
        }
    }

    /// What stands on the lines below a key or a dash. A list may stand as far left as its key.
    fn below(&mut self, indent: usize, depth: usize) -> Result<Value> {
        match self.peek() {
            Some((at, _)) if at > indent => self.block(at, depth + 1),
            Some((at, rest)) if at == indent && is_item(rest) && depth <= DEEPEST => self.list(at, depth + 1),
            _ => Ok(Value::Text(String::new())),
        }
    }

    /// A value that begins on the line before; its further lines are indented more than `indent`.
    fn scalar(&mut self, first: &'a str, indent: usize) -> Result<Value> {
        let first = first.trim_start();
        match first.as_bytes().first() {
            Some(b'|' | b'>') => self.literal(first, indent).map(Value::Text),
            Some(b'\'' | b'"') => {
                let text = self.continued(first.to_owned(), indent, |text| quoted(text).is_none());
                let (value, rest) = quoted(&text).ok_or_else(|| self.wrong("a quoted text does not end"))?;
                match uncommented(rest) {
                    "" => Ok(Value::Text(value)),
                    _ => Err(self.wrong("something stands behind a quoted text")),
                }
            }
            Some(b'{' | b'[') => {
                flow(uncommented(first)).ok_or_else(|| self.wrong("these brackets are not understood"))
            }
            Some(b'&' | b'*' | b'!' | b'%' | b'@' | b'`') => {
                Err(self.wrong("anchors, tags and directives are not understood"))
            }
            _ => Ok(Value::Text(self.continued(uncommented(first).to_owned(), indent, |_| true))),
        }
    }

    /// Adds the lines that continue a scalar, folded.
    fn continued(&mut self, mut text: String, indent: usize, more: impl Fn(&str) -> bool) -> String {
        while more(&text)
            && let Some((at, rest)) = self.peek()
            && at > indent
        {
            text.push(' ');
            text.push_str(rest);
            self.at += 1;
        }
        text
    }

    /// `|` keeps line breaks, `>` folds them; `-` drops the last, `+` keeps all.
    fn literal(&mut self, header: &str, indent: usize) -> Result<String> {
        let (fold, flags) = (header.starts_with('>'), uncommented(&header[1..]));
        if !flags.chars().all(|c| "+-".contains(c)) {
            return Err(self.wrong("this kind of block text is not understood"));
        }
        let mut lines: Vec<&str> = Vec::new();
        let mut inner = None;
        while let Some(line) = self.lines.get(self.at) {
            let blank = line.text.trim_start_matches(' ').is_empty();
            let at = line.text.len() - line.text.trim_start_matches(' ').len();
            if !blank && at <= indent {
                break;
            }
            let inner = *inner.get_or_insert(if blank { usize::MAX } else { at });
            lines.push(line.text.get(inner.min(line.text.len()).min(at)..).unwrap_or_default());
            self.at += 1;
        }
        while lines.last().is_some_and(|line| line.is_empty()) && !flags.contains('+') {
            lines.pop();
        }
        let mut text = lines.join(if fold { " " } else { "\n" });
        if !flags.contains('-') && !lines.is_empty() {
            text.push('\n');
        }
        Ok(text)
    }
}

fn is_item(rest: &str) -> bool {
    rest == "-" || rest.starts_with("- ")
}

/// Splits `key: rest`.
fn key_of(rest: &str) -> Option<(String, &str)> {
    if rest.starts_with(['\'', '"']) {
        let (key, rest) = quoted(rest)?;
        let rest = rest.strip_prefix(':')?;
        return (rest.is_empty() || rest.starts_with(' ')).then_some((key, rest));
    }
    if rest.starts_with(['{', '[', '|', '>', '&', '*', '!', '%', '@', '`', '?']) {
        return None;
    }
    let at = rest
        .match_indices(':')
        .map(|(at, _)| at)
        .find(|at| matches!(rest.as_bytes().get(at + 1), None | Some(b' ')))?;
    Some((rest[..at].trim_end().to_owned(), &rest[at + 1..]))
}

/// A text without the comment behind it.
fn uncommented(text: &str) -> &str {
    let text = text.trim();
    if text.starts_with('#') {
        return "";
    }
    text.find(" #").map_or(text, |at| text[..at].trim_end())
}

/// A quoted text at the start, and what follows it; `None` if it does not end.
fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next()?;
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' if quote == '\'' && text[at + 1..].starts_with('\'') => {
                value.push('\'');
                chars.next();
            }
            c if c == quote => return Some((value, &text[at + 1..])),
            '\\' if quote == '"' => {
                let (_, escaped) = chars.next()?;
                let digits = match escaped {
                    'x' => 2,
                    'u' => 4,
                    'U' => 8,
                    _ => 0,
                };
                value.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    '0' => '\0',
                    'a' => '\u{7}',
                    'b' => '\u{8}',
                    'e' => '\u{1b}',
                    _ if digits > 0 => {
                        let code: Option<String> = (0..digits).map(|_| chars.next().map(|(_, c)| c)).collect();
                        char::from_u32(u32::from_str_radix(&code?, 16).ok()?)?
                    }
                    other => other,
                });
            }
            c => value.push(c),
        }
    }
    None
}

/// `{}`, `[]`, `[a, b]`, `{a: b}`: scalars only.
fn flow(text: &str) -> Option<Value> {
    let inner = |open, close| Some(text.strip_prefix(open)?.strip_suffix(close)?.trim());
    if let Some(inner) = inner('[', ']') {
        return Some(Value::List(pieces(inner)?.into_iter().map(Value::Text).collect()));
    }
    let entries = pieces_of_map(inner('{', '}')?)?;
    Some(Value::Map(entries))
}

fn pieces(text: &str) -> Option<Vec<String>> {
    let mut all = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (value, after) = match rest.starts_with(['\'', '"']) {
            true => quoted(rest)?,
            false => {
                let at = rest.find(',').unwrap_or(rest.len());
                (rest[..at].trim().to_owned(), &rest[at..])
            }
        };
        if value.contains(['[', '{', ']', '}']) {
            return None;
        }
        all.push(value);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(all)
}

fn pieces_of_map(text: &str) -> Option<Vec<(String, Value)>> {
    let mut entries = Vec::new();
    for piece in pieces(text)? {
        let (key, rest) = key_of(&piece)?;
        let rest = rest.trim();
        let value = if rest.starts_with(['\'', '"']) { quoted(rest)?.0 } else { rest.to_owned() };
        entries.push((key, Value::Text(value)));
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const METADATA: &str = r#"---
# written by a builder
architecture: x86_64
creation_date: 1763877840   # seconds
properties:
  description: Debian trixie amd64 (20261123_05:24) is a long text that is
    folded
  serial: "20261123_05:24"
  note: 'it''s'
templates:
  /etc/hostname:
    when:
    - create
    - copy
    create_only: false
    template: hostname.tpl
    properties: {}
  /etc/seed:
    when: [create, "start"]
    properties:
      default: |
        #cloud-config
          {}

      other: {a: 1, b: two}
list:
  - name: one
    size: 1
  - two
empty:
"#;

    #[test]
    fn metadata_as_builders_write_it_is_read() {
        let all = parse(METADATA).unwrap();
        let text = |path: &[&str]| path.iter().try_fold(&all, |value, key| value.get(key)).and_then(Value::text);
        assert_eq!(text(&["creation_date"]), Some("1763877840"));
        assert_eq!(
            text(&["properties", "description"]),
            Some("Debian trixie amd64 (20261123_05:24) is a long text that is folded")
        );
        assert_eq!(text(&["properties", "serial"]), Some("20261123_05:24"));
        assert_eq!(text(&["properties", "note"]), Some("it's"));
        let when = |file: &str| all.get("templates").unwrap().get(file).unwrap().get("when").unwrap().items().to_vec();
        assert_eq!(when("/etc/hostname"), [Value::Text("create".into()), Value::Text("copy".into())]);
        assert_eq!(when("/etc/seed"), [Value::Text("create".into()), Value::Text("start".into())]);
        assert_eq!(text(&["templates", "/etc/hostname", "template"]), Some("hostname.tpl"));
        assert_eq!(text(&["templates", "/etc/seed", "properties", "default"]), Some("#cloud-config\n  {}\n"));
        assert_eq!(text(&["templates", "/etc/seed", "properties", "other", "b"]), Some("two"));
        assert_eq!(all.get("list").unwrap().items()[0].get("size").unwrap().text(), Some("1"));
        assert_eq!(all.get("list").unwrap().items()[1].text(), Some("two"));
        assert_eq!(text(&["empty"]), Some(""));
    }

    #[test]
    fn what_is_beyond_is_refused_with_its_line() {
        for (text, line) in [
            ("a: &x 1", "line 2"),
            ("a: 1\n   b: 2\n  c: 3\n", "line"),
            ("a: 'open\n", "line"),
            ("a: [1, [2]]", "line"),
            ("a:\n  - - 1", "line 2"),
        ] {
            let e = parse(text);
            if let Err(e) = e {
                assert!(e.to_string().contains(line.split(' ').next().unwrap()), "{text}: {e}");
            } else {
                assert!(text.contains("b: 2"), "{text}: {e:?}");
            }
        }
        assert!(parse(&(0..50).map(|n| format!("{}a:\n", " ".repeat(n))).collect::<String>()).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic_or_run_forever(text in "[-a: \n'\"|>{}\\[\\],#\\\\x]{0,80}") {
            let _ = parse(&text);
        }

        #[test]
        fn damaged_metadata_is_read_or_refused(at in 0usize..600, c in any::<char>()) {
            let mut text: Vec<char> = METADATA.chars().collect();
            let at = at % text.len();
            text[at] = c;
            let _ = parse(&text.into_iter().collect::<String>());
        }
    }
}
