//! The commands of the native protocol (pulsecore/native-common.h), and what becomes of each.

/// A reply that says what went wrong.
pub const ERROR: u32 = 0;
/// A reply.
pub const REPLY: u32 = 2;
/// Makes a stream to play.
pub const CREATE_PLAYBACK_STREAM: u32 = 3;
/// Makes a stream that records.
pub const CREATE_RECORD_STREAM: u32 = 5;
/// Ends one.
pub const DELETE_RECORD_STREAM: u32 = 6;
/// The first command of all.
pub const AUTH: u32 = 8;
/// Asks for what can be recorded.
pub const GET_SOURCE_INFO: u32 = 23;
/// Asks for events.
pub const SUBSCRIBE: u32 = 35;
/// Tells a program that its stream has ended.
pub const RECORD_STREAM_KILLED: u32 = 65;
/// Tells it that something has changed.
pub const SUBSCRIBE_EVENT: u32 = 66;

/// `PA_ERR_ACCESS`.
pub const ACCESS_DENIED: u32 = 1;
/// `PA_ERR_NOENTITY`.
pub const NO_ENTITY: u32 = 5;

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
    /// It passes while the microphone is on, if it is about a microphone.
    Record,
    /// It is answered with what of the answer is about microphones; with the microphone off, it is denied.
    Source,
    /// The same of a list, which is empty with the microphone off.
    Sources,
    /// It is answered with an empty list.
    Empty,
    /// It is answered with an error.
    Deny,
}

use Fate::{Create, Empty, Introduce, Own, Pass, Record, Source, Sources, Subscribe};

/// Number, fate, name. What is not here is denied.
pub const TABLE: &[(u32, Fate, &str)] = &[
    (CREATE_PLAYBACK_STREAM, Create, "CREATE_PLAYBACK_STREAM"),
    (4, Pass, "DELETE_PLAYBACK_STREAM"),
    (CREATE_RECORD_STREAM, Record, "CREATE_RECORD_STREAM"),
    (DELETE_RECORD_STREAM, Pass, "DELETE_RECORD_STREAM"),
    (AUTH, Introduce, "AUTH"),
    (9, Pass, "SET_CLIENT_NAME"),
    (10, Pass, "LOOKUP_SINK"),
    (12, Pass, "DRAIN_PLAYBACK_STREAM"),
    (13, Pass, "STAT"),
    (14, Pass, "GET_PLAYBACK_LATENCY"),
    (20, Pass, "GET_SERVER_INFO"),
    (21, Pass, "GET_SINK_INFO"),
    (22, Pass, "GET_SINK_INFO_LIST"),
    (GET_SOURCE_INFO, Source, "GET_SOURCE_INFO"),
    // Programs that look for microphones while there is none find none, and go on.
    (24, Sources, "GET_SOURCE_INFO_LIST"),
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
    (47, Pass, "SET_RECORD_STREAM_NAME"),
    (57, Pass, "GET_RECORD_LATENCY"),
    (58, Pass, "CORK_RECORD_STREAM"),
    (59, Pass, "FLUSH_RECORD_STREAM"),
    (60, Pass, "PREBUF_PLAYBACK_STREAM"),
    (69, Own, "SET_SINK_INPUT_MUTE"),
    (72, Pass, "SET_PLAYBACK_STREAM_BUFFER_ATTR"),
    (73, Pass, "SET_RECORD_STREAM_BUFFER_ATTR"),
    (74, Pass, "UPDATE_PLAYBACK_STREAM_SAMPLE_RATE"),
    (75, Pass, "UPDATE_RECORD_STREAM_SAMPLE_RATE"),
    (80, Pass, "UPDATE_RECORD_STREAM_PROPLIST"),
    (81, Pass, "UPDATE_PLAYBACK_STREAM_PROPLIST"),
    (82, Pass, "UPDATE_CLIENT_PROPLIST"),
    (83, Pass, "REMOVE_RECORD_STREAM_PROPLIST"),
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
    fn what_reaches_beyond_own_streams_is_denied() {
        // EXIT, LOOKUP_SOURCE, samples, foreign recordings, volumes of sinks and sources, defaults, kills, modules,
        // moves, suspensions, extensions, card profiles, shared memory.
        let beyond = [7, 11, 15, 16, 17, 18, 19, 31, 36, 38, 39, 40, 44, 45, 48, 49, 50, 51, 52, 67, 68, 70, 71, 87];
        for number in beyond.into_iter().chain(90..200).chain([u32::MAX]) {
            assert_eq!(fate(number), Fate::Deny, "{number}");
        }
    }
}
