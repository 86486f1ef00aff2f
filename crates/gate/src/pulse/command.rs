//! The commands of the native protocol (pulsecore/native-common.h), and what becomes of each.

/// A reply that says what went wrong.
pub const ERROR: u32 = 0;
/// A reply.
pub const REPLY: u32 = 2;
/// Makes a stream to play.
pub const CREATE_PLAYBACK_STREAM: u32 = 3;
/// The first command of all.
pub const AUTH: u32 = 8;
/// Asks for events.
pub const SUBSCRIBE: u32 = 35;

/// `PA_ERR_ACCESS`.
pub const ACCESS_DENIED: u32 = 1;

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes to the server as it is.
    Pass,
    /// It goes there without credentials and without an offer of shared memory.
    Introduce,
    /// It makes a stream, whose number is the program's own from then on.
    Create,
    /// It asks for fewer events.
    Subscribe,
    /// It passes if the stream that it names is the program's own.
    Own,
    /// It is answered with an empty list.
    Empty,
    /// It is answered with an error.
    Deny,
}

use Fate::{Create, Empty, Introduce, Own, Pass, Subscribe};

/// Number, fate, name. What is not here is denied.
pub const TABLE: &[(u32, Fate, &str)] = &[
    (CREATE_PLAYBACK_STREAM, Create, "CREATE_PLAYBACK_STREAM"),
    (4, Pass, "DELETE_PLAYBACK_STREAM"),
    (AUTH, Introduce, "AUTH"),
    (9, Pass, "SET_CLIENT_NAME"),
    (10, Pass, "LOOKUP_SINK"),
    (12, Pass, "DRAIN_PLAYBACK_STREAM"),
    (13, Pass, "STAT"),
    (14, Pass, "GET_PLAYBACK_LATENCY"),
    (20, Pass, "GET_SERVER_INFO"),
    (21, Pass, "GET_SINK_INFO"),
    (22, Pass, "GET_SINK_INFO_LIST"),
    // Programs that look for microphones find none, and go on.
    (24, Empty, "GET_SOURCE_INFO_LIST"),
    (26, Empty, "GET_MODULE_INFO_LIST"),
    (28, Empty, "GET_CLIENT_INFO_LIST"),
    (29, Own, "GET_SINK_INPUT_INFO"),
    (30, Empty, "GET_SINK_INPUT_INFO_LIST"),
    (32, Empty, "GET_SOURCE_OUTPUT_INFO_LIST"),
    (34, Empty, "GET_SAMPLE_INFO_LIST"),
    (SUBSCRIBE, Subscribe, "SUBSCRIBE"),
    (37, Own, "SET_SINK_INPUT_VOLUME"),
    (41, Pass, "CORK_PLAYBACK_STREAM"),
    (42, Pass, "FLUSH_PLAYBACK_STREAM"),
    (43, Pass, "TRIGGER_PLAYBACK_STREAM"),
    (46, Pass, "SET_PLAYBACK_STREAM_NAME"),
    (60, Pass, "PREBUF_PLAYBACK_STREAM"),
    (69, Own, "SET_SINK_INPUT_MUTE"),
    (72, Pass, "SET_PLAYBACK_STREAM_BUFFER_ATTR"),
    (74, Pass, "UPDATE_PLAYBACK_STREAM_SAMPLE_RATE"),
    (81, Pass, "UPDATE_PLAYBACK_STREAM_PROPLIST"),
    (82, Pass, "UPDATE_CLIENT_PROPLIST"),
    (84, Pass, "REMOVE_PLAYBACK_STREAM_PROPLIST"),
    (85, Pass, "REMOVE_CLIENT_PROPLIST"),
    (89, Empty, "GET_CARD_INFO_LIST"),
];

/// What becomes of a command by its number.
pub fn fate(number: u32) -> Fate {
    TABLE.iter().find(|(known, ..)| *known == number).map_or(Fate::Deny, |(_, fate, _)| *fate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reaches_beyond_playing_is_denied() {
        // CREATE_RECORD_STREAM, EXIT, samples, GET_SOURCE_INFO, volumes of sinks and sources, defaults, kills, modules,
        // moves, suspensions, extensions, card profiles, shared memory.
        let beyond =
            [5, 7, 11, 15, 16, 17, 18, 19, 23, 31, 36, 38, 39, 40, 44, 45, 48, 49, 50, 51, 52, 67, 68, 70, 71, 87];
        for number in beyond.into_iter().chain(90..200).chain([u32::MAX]) {
            assert_eq!(fate(number), Fate::Deny, "{number}");
        }
    }
}
