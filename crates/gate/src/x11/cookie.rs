//! Cookies of the SECURITY extension: who connects with one is not trusted by the server.
//!
//! Of the request's values only the two that matter are sent. A lifetime over 2,147,483 seconds aborts servers up to
//! 21.1.16 at least, and any lifetime runs out while no program is running; 0 is for ever, until it is revoked.

use lazaret_base::{Context, Kind, Result, error};

use super::authority::{COOKIE_NAME, Cookie};
use super::client::{Link, ORDER, Server};
use super::wire::request;

const EXTENSION: &str = "SECURITY";
/// Bits of the value mask: the lifetime and the trust.
const TIMEOUT_AND_TRUST: u32 = 1 | 2;

/// What the server shall think of who has the cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Trust {
    /// Everything is allowed, until the cookie is revoked.
    Trusted = 0,
    /// See what the X11 gate closes in addition.
    Untrusted = 1,
}

/// A cookie that the server has made.
#[derive(Clone, Debug)]
pub struct Granted {
    /// The secret.
    pub cookie: Cookie,
    /// The server's name for it, by which it is revoked.
    pub id: u32,
}

/// Asks the server for a cookie, over a connection of its own. Needs a connection that stays open elsewhere, if the
/// server is one that forgets everything when its last client leaves.
///
/// # Errors
///
/// [`Kind::Missing`] where the server lacks the extension (Xwayland does), [`Kind::NotFound`] where there is no server.
pub fn grant(server: &Server, trust: Trust) -> Result<Granted> {
    generate(&mut Link::connect(&server.socket, server.credential.as_ref())?, trust)
}

/// Whether a server makes such cookies.
///
/// # Errors
///
/// [`Kind::NotFound`] where there is no server.
pub fn is_offered(server: &Server) -> Result<bool> {
    let mut link = Link::connect(&server.socket, server.credential.as_ref())?;
    Ok(link.extension(EXTENSION)?.is_some())
}

/// Makes a cookie invalid and disconnects all programs that came with it. An unknown one is no error.
///
/// # Errors
///
/// Where there is no server.
pub fn revoke(server: &Server, id: u32) -> Result<()> {
    revoke_over(&mut Link::connect(&server.socket, server.credential.as_ref())?, id)
}

pub(super) fn generate(link: &mut Link, trust: Trust) -> Result<Granted> {
    let generating = || "asking the X server for a cookie";
    let Some(major) = link.extension(EXTENSION).with_context(generating)? else {
        return Err(error("the X server lacks the SECURITY extension").kind(Kind::Missing))
            .hint("Xorg, Xvfb and Xephyr have it; Xwayland does not: log in to a session on X");
    };
    let mut words = vec![COOKIE_NAME.len() as u32, TIMEOUT_AND_TRUST];
    words.extend(COOKIE_NAME.chunks(4).map(|four| {
        let mut word = [0; 4];
        word[..four.len()].copy_from_slice(four);
        u32::from_le_bytes(word)
    }));
    words.extend([0, trust as u32]);
    let reply = link.ask(request(ORDER, major, 1, &words)).with_context(generating)?;
    let id = ORDER.u32(&reply, 8);
    match reply.get(32..48).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()) {
        Some(bytes) if ORDER.u16(&reply, 12) == 16 => Ok(Granted { cookie: Cookie(bytes), id }),
        _ => Err(error("the X server's cookie is none")),
    }
}

pub(super) fn revoke_over(link: &mut Link, id: u32) -> Result<()> {
    let Some(major) = link.extension(EXTENSION)? else { return Ok(()) };
    link.send(request(ORDER, major, 2, &[id]));
    // GetInputFocus: when it is answered, the cookie is gone.
    link.ask(request(ORDER, 43, 0, &[])).context("revoking a cookie").map(drop)
}
