//! What is said on a connection before the first message ("Authentication Protocol" of the D-Bus specification).
//!
//! Whoever reaches the socket is the container; what user a program says it is makes no difference, so every one is
//! welcome. The session's own bus would ask for the person's number.

/// Why a connection ends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// A line is not longer, and there are not more of them.
const MOST_LINE: usize = 1024;
const MOST_LINES: usize = 32;

/// How far a connection has come.
#[derive(Debug, Default)]
pub struct Greeting {
    begun: bool,
    lines: usize,
    welcome: bool,
    done: bool,
}

impl Greeting {
    /// Whether messages come from here on.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Takes what a program says; how many bytes were used comes back. `id` is that of the bus.
    ///
    /// # Errors
    ///
    /// What no library says.
    pub fn hear(&mut self, input: &[u8], id: &str, answers: &mut Vec<u8>) -> Result<usize, Broken> {
        let mut at = 0;
        if !self.begun {
            match input.first() {
                None => return Ok(0),
                Some(0) => (self.begun, at) = (true, 1),
                Some(_) => return Err(Broken("no greeting")),
            }
        }
        while !self.done {
            let Some(length) = input[at..].windows(2).position(|end| end == b"\r\n") else {
                return if input.len() - at > MOST_LINE { Err(Broken("a long line")) } else { Ok(at) };
            };
            let line = &input[at..at + length];
            at += length + 2;
            self.lines += 1;
            if length > MOST_LINE || self.lines > MOST_LINES {
                return Err(Broken("a long greeting"));
            }
            let mut words = line.split(|byte| *byte == b' ');
            let answer = match (words.next().unwrap_or_default(), words.next(), words.next()) {
                // Who it is may come at once or when asked; it is not looked at.
                (b"AUTH", Some(b"EXTERNAL"), None) => "DATA".into(),
                (b"AUTH", Some(b"EXTERNAL"), Some(_)) | (b"DATA", ..) => {
                    self.welcome = true;
                    format!("OK {id}")
                }
                (b"AUTH" | b"CANCEL" | b"ERROR", ..) => "REJECTED EXTERNAL".into(),
                (b"BEGIN", None, None) if self.welcome => {
                    self.done = true;
                    continue;
                }
                (b"BEGIN", ..) => return Err(Broken("begins unasked")),
                // Descriptors do not travel.
                _ => "ERROR".into(),
            };
            answers.extend(answer.as_bytes());
            answers.extend(b"\r\n");
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(input: &[u8]) -> Result<(usize, String), Broken> {
        let (mut answers, mut greeting) = (Vec::new(), Greeting::default());
        let used = greeting.hear(input, "1d", &mut answers)?;
        Ok((used, String::from_utf8(answers).unwrap() + if greeting.is_done() { "done" } else { "" }))
    }

    #[test]
    fn every_library_is_welcome_and_gets_no_descriptors() {
        // libdbus, one line after the other; sd-bus, all at once; GDBus, which asks what there is.
        let usual = b"\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n";
        assert_eq!(said(usual), Ok((usual.len(), "OK 1d\r\nERROR\r\ndone".into())));
        let at_once = b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\nl";
        assert_eq!(said(at_once), Ok((at_once.len() - 1, "DATA\r\nOK 1d\r\nERROR\r\ndone".into())));
        assert_eq!(said(b"\0AUTH\r\n").unwrap().1, "REJECTED EXTERNAL\r\n");
        assert_eq!(said(b"\0AUTH DBUS_COOKIE_SHA1 00\r\n").unwrap().1, "REJECTED EXTERNAL\r\n");
        assert_eq!(said(b"\0AUTH EXT"), Ok((1, String::new())));
    }

    #[test]
    fn nothing_begins_without_a_greeting() {
        assert!(said(b"l").is_err() && said(b"\0BEGIN\r\n").is_err() && said(&[0; 5000]).is_err());
        assert!(said(&[b"\0".to_vec(), b"CANCEL\r\n".repeat(100)].concat()).is_err());
    }
}
