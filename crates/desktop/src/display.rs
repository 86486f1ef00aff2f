//! The name of an X display, as `DISPLAY` has it (X(7), "Display names").

use std::path::PathBuf;

use lazaret_base::{Kind, Result, error};

/// A display of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Display {
    /// Its number.
    pub number: u32,
}

impl Display {
    /// Reads `:0`, `:0.0`, `unix:0` or `unix/:0`.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] for what is no display, and for one that is reached over TCP, as `ssh -X` makes them.
    pub fn parse(text: &str) -> Result<Display> {
        let bad = |why: &str| {
            Err(error(format!("`DISPLAY={text}` {why}"))
                .kind(Kind::Invalid)
                .hint("run it in a session of this machine, where DISPLAY is for example :0"))
        };
        let Some((host, number)) = text.rsplit_once(':') else { return bad("is no display") };
        if !matches!(host, "" | "unix" | "unix/") {
            return bad("is another machine's, or forwarded");
        }
        let number = number.split('.').next().unwrap_or_default();
        match number.parse() {
            Ok(number) if number <= 65535 => Ok(Display { number }),
            _ => bad("has no number"),
        }
    }

    /// Where its server listens.
    pub fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/tmp/.X11-unix/X{}", self.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_of_this_machine_have_a_socket() {
        for (text, number) in [(":0", 0), (":12.1", 12), ("unix:3", 3), ("unix/:3.0", 3)] {
            assert_eq!(Display::parse(text).unwrap(), Display { number });
        }
        assert_eq!(Display { number: 7 }.socket(), PathBuf::from("/tmp/.X11-unix/X7"));
    }

    #[test]
    fn others_are_refused() {
        for text in ["", "0", ":", ":x", "box:10.0", "there:0", ":-1", ":99999999", "::0"] {
            assert_eq!(Display::parse(text).unwrap_err().what(), Kind::Invalid, "{text}");
        }
    }
}
