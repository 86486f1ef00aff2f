//! What a container has of the person's graphical session.

use std::fmt;
use std::str::FromStr;

use lazaret_base::Error;

use crate::suggest::did_you_mean;
use crate::text::{invalid, quoted};

/// What a container has of the person's session: nothing, unless it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desktop {
    /// How programs draw on the person's screen.
    pub display: Display,
    /// Who they run as inside; `None` for root.
    pub user: Option<UserName>,
    /// What passes between the clipboards.
    pub clipboard: Clipboard,
    /// What programs do with the session's sound server.
    pub sound: Sound,
    /// Whether programs' notifications are shown.
    pub notifications: bool,
    /// What becomes of addresses that programs want to have opened outside.
    pub open_urls: OpenUrls,
    /// The user has said twice that `display = "trusted"` is meant.
    pub trusted_confirmed: bool,
}

impl Default for Desktop {
    fn default() -> Desktop {
        Desktop {
            display: Display::default(),
            user: None,
            clipboard: Clipboard::default(),
            sound: Sound::default(),
            notifications: true,
            open_urls: OpenUrls::default(),
            trusted_confirmed: false,
        }
    }
}

/// How programs draw on the person's screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Display {
    /// Not at all.
    #[default]
    None,
    /// Through a gate: they can't watch or steer what is not theirs.
    Isolated,
    /// On a server of the container's own, in one window: for programs that need what an X server that distrusts them
    /// does not give.
    Nested,
    /// As the person's own programs do: all of the session is theirs to watch and to steer.
    Trusted,
}

/// What passes between the clipboards of a container and the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clipboard {
    /// Nothing.
    Off,
    /// What is copied inside can be pasted outside; the other way by `lazaret paste`.
    #[default]
    Out,
    /// Both ways.
    Both,
}

/// What programs do with the session's sound server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sound {
    /// Nothing.
    #[default]
    Off,
    /// They play. They record nothing, and change nobody else's sound.
    Play,
    /// They may also record, while the microphone is switched on.
    PlayRecord,
}

impl Sound {
    /// Whether there is any.
    pub fn plays(self) -> bool {
        self != Sound::Off
    }
}

/// What becomes of addresses of the web that programs want to have opened by the person's browser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpenUrls {
    /// The person is asked each time.
    #[default]
    Ask,
    /// They are opened.
    Allow,
    /// They are not.
    Deny,
}

pub(crate) const OPEN_URLS_WORDS: &[&str] = &["ask", "allow", "deny"];
pub(crate) const SOUND_WORDS: &[&str] = &["off", "play", "play+record"];
pub(crate) const DISPLAY_WORDS: &[&str] = &["none", "isolated", "nested", "trusted"];
pub(crate) const CLIPBOARD_WORDS: &[&str] = &["off", "out", "both"];

impl FromStr for Display {
    type Err = Error;

    fn from_str(text: &str) -> Result<Display, Error> {
        match text {
            "none" => Ok(Display::None),
            "isolated" => Ok(Display::Isolated),
            "nested" => Ok(Display::Nested),
            "trusted" => Ok(Display::Trusted),
            _ => {
                let choice = || "write \"none\", \"isolated\", \"nested\" or \"trusted\"".into();
                let hint = did_you_mean(text, DISPLAY_WORDS.iter().copied(), choice);
                Err(invalid(format!("unknown level {}", quoted(text)), hint))
            }
        }
    }
}

impl fmt::Display for Display {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Display::None => "none",
            Display::Isolated => "isolated",
            Display::Nested => "nested",
            Display::Trusted => "trusted",
        })
    }
}

impl FromStr for Clipboard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Clipboard, Error> {
        match text {
            "off" => Ok(Clipboard::Off),
            "out" => Ok(Clipboard::Out),
            "both" => Ok(Clipboard::Both),
            _ => {
                let choice = || "write \"off\", \"out\" or \"both\"".into();
                let hint = did_you_mean(text, CLIPBOARD_WORDS.iter().copied(), choice);
                Err(invalid(format!("unknown direction {}", quoted(text)), hint))
            }
        }
    }
}

impl fmt::Display for Clipboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Clipboard::Off => "off",
            Clipboard::Out => "out",
            Clipboard::Both => "both",
        })
    }
}

impl FromStr for OpenUrls {
    type Err = Error;

    fn from_str(text: &str) -> Result<OpenUrls, Error> {
        match text {
            "ask" => Ok(OpenUrls::Ask),
            "allow" => Ok(OpenUrls::Allow),
            "deny" => Ok(OpenUrls::Deny),
            _ => {
                let choice = || "write \"ask\", \"allow\" or \"deny\"".into();
                let hint = did_you_mean(text, OPEN_URLS_WORDS.iter().copied(), choice);
                Err(invalid(format!("unknown policy {}", quoted(text)), hint))
            }
        }
    }
}

impl fmt::Display for OpenUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            OpenUrls::Ask => "ask",
            OpenUrls::Allow => "allow",
            OpenUrls::Deny => "deny",
        })
    }
}

impl FromStr for Sound {
    type Err = Error;

    fn from_str(text: &str) -> Result<Sound, Error> {
        match text {
            "off" => Ok(Sound::Off),
            "play" => Ok(Sound::Play),
            "play+record" => Ok(Sound::PlayRecord),
            _ => {
                let choice = || "write \"off\", \"play\" or \"play+record\"".into();
                let hint = did_you_mean(text, SOUND_WORDS.iter().copied(), choice);
                Err(invalid(format!("unknown use of sound {}", quoted(text)), hint))
            }
        }
    }
}

impl fmt::Display for Sound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Sound::Off => "off",
            Sound::Play => "play",
            Sound::PlayRecord => "play+record",
        })
    }
}

/// The name of a user inside.
///
/// 1 to 32 bytes, a letter or `_` first, then letters, digits, `_`, `-` and `.`: what every system takes, and nothing
/// that could end a field or a line of passwd(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName(String);

impl UserName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserName {
    type Err = Error;

    fn from_str(text: &str) -> Result<UserName, Error> {
        let good = |(i, b): (usize, u8)| {
            b == b'_' || b.is_ascii_alphabetic() || (i > 0 && (b.is_ascii_digit() || b == b'-' || b == b'.'))
        };
        if text.is_empty() || text.len() > 32 || !text.bytes().enumerate().all(good) {
            let hint = "use 1 to 32 letters, digits, '_', '-' or '.', a letter first, for example ann";
            return Err(invalid(format!("{} is not the name of a user", quoted(text)), hint));
        }
        if text == "root" {
            return Err(invalid("programs of a desktop do not run as root", "name a user, for example ann"));
        }
        Ok(UserName(text.into()))
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
