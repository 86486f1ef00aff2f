//! Paragraphs of fields, as Debian writes them (deb822(5)): Release files, package indexes, control files.

use lazaret_base::{Kind, Result, error};

/// One paragraph. Names of fields know no case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paragraph<'a>(pub &'a str);

impl<'a> Paragraph<'a> {
    /// All fields in their order: names, and values with the lines that continue them.
    pub fn fields(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            loop {
                if rest.is_empty() {
                    return None;
                }
                let mut end = 0;
                loop {
                    end += rest[end..].find('\n').map_or(rest.len() - end, |at| at + 1);
                    // What begins with white space goes on with the line before.
                    if end == rest.len() || !rest[end..].starts_with([' ', '\t']) {
                        break;
                    }
                }
                let (field, after) = rest.split_at(end);
                rest = after;
                if let Some((name, value)) = field.split_once(':')
                    && !name.is_empty()
                    && !field.starts_with([' ', '\t', '#'])
                {
                    return Some((name, value.trim()));
                }
            }
        })
    }

    /// The value of a field, continued lines included.
    pub fn get(self, name: &str) -> Option<&'a str> {
        self.fields().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The same of a field that must be there and have a single line.
    pub fn require(self, name: &str) -> Result<&'a str> {
        match self.get(name) {
            Some(value) if !value.is_empty() && !value.contains('\n') => Ok(value),
            _ => Err(error(format!("the field `{name}` is missing or empty")).kind(Kind::Invalid)),
        }
    }
}

/// The paragraphs of a text. Between them stand lines with nothing, or nothing but white space.
pub fn paragraphs(text: &str) -> impl Iterator<Item = Paragraph<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = skip_blank(rest);
        if rest.is_empty() {
            return None;
        }
        let mut end = 0;
        while end < rest.len() {
            let line = rest[end..].find('\n').map_or(rest.len() - end, |at| at + 1);
            if rest[end..end + line].trim().is_empty() {
                break;
            }
            end += line;
        }
        let (paragraph, after) = rest.split_at(end);
        rest = after;
        Some(Paragraph(paragraph))
    })
}

fn skip_blank(mut text: &str) -> &str {
    while let Some(end) = text.find('\n') {
        if !text[..end].trim().is_empty() {
            return text;
        }
        text = &text[end + 1..];
    }
    if text.trim().is_empty() { "" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_go_on_over_lines_and_paragraphs_end_at_blank_ones() {
        let text = "\n\nPackage: a\nDescription: one\n two\n\tthree\nnonsense\nPriority:  required  \n \nPackage: b";
        let all: Vec<_> = paragraphs(text).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].get("description"), Some("one\n two\n\tthree"));
        assert_eq!(all[0].get("Priority"), Some("required"));
        assert_eq!(all[0].get("nonsense"), None);
        assert_eq!(all[1].require("Package").unwrap(), "b");
        assert!(all[0].require("Description").is_err() && all[1].require("Version").is_err());
    }

    #[test]
    fn what_is_no_paragraph_is_none() {
        for text in ["", "\n", " \n\t\n", "  "] {
            assert_eq!(paragraphs(text).count(), 0, "{text:?}");
        }
        assert_eq!(Paragraph(" begins in the middle\nA: b\n").get("A"), Some("b"));
    }
}
