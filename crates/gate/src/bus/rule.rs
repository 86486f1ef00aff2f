//! Which messages a program wants to hear ("Match Rules" of the D-Bus specification).

use super::wire::{Kind, Message};

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule(Vec<(String, String)>);

/// What a rule may ask for. One of `eavesdrop` is refused: it would be to hear what is said to others.
const KEYS: &[&str] = &["type", "sender", "interface", "member", "path", "path_namespace", "destination"];

impl Rule {
    /// Reads `type='signal',member='X'`: values stand between quotes or do not.
    pub fn parse(text: &str) -> Option<Rule> {
        let (mut pairs, mut rest) = (Vec::new(), text.trim());
        while !rest.is_empty() {
            let (key, after) = rest.split_once('=')?;
            let key = key.trim();
            let value;
            (value, rest) = match after.strip_prefix('\'') {
                Some(quoted) => {
                    let (value, rest) = quoted.split_once('\'')?;
                    (value, rest.trim_start())
                }
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            rest = match rest.strip_prefix(',') {
                Some(more) => more.trim_start(),
                None if rest.is_empty() => rest,
                None => return None,
            };
            let of_a_word =
                key.strip_prefix("arg").is_some_and(|which| which.starts_with(|c: char| c.is_ascii_digit()));
            if !KEYS.contains(&key) && !of_a_word {
                return None;
            }
            pairs.push((key.to_owned(), value.to_owned()));
        }
        Some(Rule(pairs))
    }

    /// Whether a signal is meant. `is_from` says whether its sender has a name.
    pub fn fits(&self, message: &Message, is_from: impl Fn(&str) -> bool) -> bool {
        let first = || message.signature.starts_with('s').then(|| first_text(message)).flatten();
        self.0.iter().all(|(key, value)| match key.as_str() {
            "type" => value == "signal" && message.kind == Kind::Signal,
            "sender" => is_from(value),
            "interface" => message.interface == *value,
            "member" => message.member == *value,
            "path" => message.path == *value,
            "path_namespace" => is_below(&message.path, value, '/'),
            "destination" => message.destination == *value,
            "arg0" => first().is_some_and(|first| first == *value),
            "arg0namespace" => first().is_some_and(|first| is_below(&first, value, '.')),
            // The others are looked at by the library that asks: what it hears in vain it drops.
            _ => true,
        })
    }
}

fn first_text(message: &Message) -> Option<String> {
    message.read(&message.signature)?.text().map(str::to_owned)
}

fn is_below(name: &str, of: &str, separator: char) -> bool {
    name.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with(separator) || of.ends_with(separator))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_says_what_is_heard() {
        let signal = Message::signal("/a/b", "x.Y", "Z").with("s", |body| body.text("com.example.App"));
        let fits = |rule: &str| Rule::parse(rule).unwrap().fits(&signal, |name| name == "x.Service");
        for rule in [
            "",
            "type='signal',sender='x.Service',interface='x.Y',member='Z',path='/a/b'",
            "type=signal, member=Z",
            "arg0='com.example.App'",
            "arg0namespace='com.example'",
            "path_namespace='/a'",
            "path_namespace='/'",
            "arg3='?'",
        ] {
            assert!(fits(rule), "{rule}");
        }
        for rule in ["type='method_call'", "sender='y'", "arg0='com'", "path_namespace='/a/bc'", "member='A'"] {
            assert!(!fits(rule), "{rule}");
        }
    }

    #[test]
    fn nobody_listens_to_what_is_said_to_others() {
        for rule in ["eavesdrop='true'", "type='signal',eavesdrop=true", "x", "member='Z", "member='Z'x", "args='x'"] {
            assert_eq!(Rule::parse(rule), None, "{rule}");
        }
    }
}
