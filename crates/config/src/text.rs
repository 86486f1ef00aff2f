//! How values are shown in messages and written in files.

use lazaret_base::{Error, Kind, error};

/// Longest piece of a bad value that a message repeats, in characters.
const SHOWN: usize = 60;

/// A value as messages show it: in single quotes, shortened, and with control characters escaped, since a
/// hostile file must not talk to the terminal.
pub(crate) fn quoted(value: &str) -> String {
    let mut shown = String::from("'");
    for (i, c) in value.chars().enumerate() {
        match c {
            _ if i == SHOWN => {
                shown.push_str("...");
                break;
            }
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown.push('\'');
    shown
}

/// The error of a value that is not what it should be.
pub(crate) fn invalid(message: impl Into<String>, hint: impl Into<String>) -> Error {
    error(message).hint(hint).kind(Kind::Invalid)
}

/// Whether the text may be handed to the kernel and to a terminal: no NUL, no other control character.
pub(crate) fn printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// Serde for types that are written as strings, through `Display` and `FromStr`.
macro_rules! serde_as_string {
    ($($type:ty),* $(,)?) => { $(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )* };
}
