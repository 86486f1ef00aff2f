//! The sound gate: programs of a container play, and can do nothing else to the session's sound server.
//!
//! It speaks the native protocol of PulseAudio, which pipewire-pulse speaks, too. A bare socket of either lets whoever
//! has it listen to the microphone and load modules, which is to run code as the session's user. Here only those
//! commands pass that playing needs, each by name; shared memory is not agreed on, so that no descriptor ever travels.
//!
//! The microphone is a switch. While it is on, programs record from sources that are microphones, and not from what a
//! sink plays; when it goes off, what they record ends.
//!
//! Reading order: [`command`] (numbers, and what becomes of each), [`values`] (what a command says), [`Filter`] (one
//! connection), [`serve()`] (the loop).

mod command;
mod values;

mod filter;
mod serve;

pub use filter::{Broken, Filter};
pub use serve::{Settings, serve};
