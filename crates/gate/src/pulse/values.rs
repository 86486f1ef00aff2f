//! The values of a command: each has a letter before it (pulsecore/tagstruct.c).

/// One value after the other.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    bytes: &'a [u8],
}

/// Where a value of this letter ends, the letter included. `None` for what is none, or not there.
fn length(bytes: &[u8]) -> Option<usize> {
    let count = |at: usize| bytes.get(at).map(|count| usize::from(*count));
    Some(match *bytes.first()? {
        // A format is said by the two values behind it.
        b'N' | b'0' | b'1' | b'f' => 1,
        b'B' => 2,
        b'L' | b'V' => 5,
        b'a' => 7,
        b'R' | b'r' | b'T' | b'U' => 9,
        b'm' => 2 + count(1)?,
        b'v' => 2 + 4 * count(1)?,
        b't' => 2 + bytes[1..].iter().position(|byte| *byte == 0)?,
        b'x' => 5 + u32::from_be_bytes(bytes.get(1..5)?.try_into().ok()?) as usize,
        b'P' => {
            let mut at = 1;
            while *bytes.get(at)? != b'N' {
                at += pair(&bytes[at..])?;
            }
            at + 1
        }
        _ => return None,
    })
}

/// Where a property ends: its name, the length of its value, and the value with its length once more.
fn pair(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    for letter in [b't', b'L', b'x'] {
        let rest = bytes.get(at..).filter(|rest| rest.first() == Some(&letter))?;
        at += length(rest)?;
    }
    (at <= bytes.len()).then_some(at)
}

impl<'a> Values<'a> {
    pub fn new(bytes: &'a [u8]) -> Values<'a> {
        Values { bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes are left.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The next value, its letter first. `None` at the end, and where there is no value.
    pub fn any(&mut self) -> Option<&'a [u8]> {
        let length = length(self.bytes).filter(|length| *length <= self.bytes.len())?;
        let (value, rest) = self.bytes.split_at(length);
        self.bytes = rest;
        Some(value)
    }

    /// The next values, which have these letters. A lower-case `s` is a text or none, `b` is yes or no.
    pub fn skip(&mut self, letters: &str) -> Option<()> {
        letters.bytes().try_for_each(|letter| {
            let value = self.any()?[0];
            let fits = match letter {
                b's' => matches!(value, b't' | b'N'),
                b'b' => matches!(value, b'0' | b'1'),
                _ => value == letter,
            };
            fits.then_some(())
        })
    }

    pub fn number(&mut self) -> Option<u32> {
        let value = self.any().filter(|value| value[0] == b'L')?;
        Some(u32::from_be_bytes(value[1..].try_into().ok()?))
    }

    /// A text without its end; empty where there is none.
    pub fn text(&mut self) -> Option<&'a [u8]> {
        match self.any()? {
            [b't', text @ .., 0] => Some(text),
            [b'N'] => Some(b""),
            _ => None,
        }
    }
}

/// Properties that say what a program and its sound are. All others would be orders: `filter.apply` has PulseAudio load
/// a module of that name (module-filter-apply), and in PipeWire the properties of a stream are those of its node, which
/// `stream.capture.sink`, `media.class` and `target.object` make something else.
const PROPERTIES: &[&str] = &[
    "application.icon_name",
    "application.id",
    "application.language",
    "application.name",
    "application.process.binary",
    "application.process.id",
    "application.version",
    "event.description",
    "event.id",
    "format.channel_map",
    "format.channels",
    "format.rate",
    "format.sample_format",
    "media.artist",
    "media.copyright",
    "media.filename",
    "media.icon_name",
    "media.language",
    "media.name",
    "media.role",
    "media.software",
    "media.title",
];

/// The values of a command as the server may have them. `None` for what is no command.
pub fn cleaned(body: &[u8]) -> Option<Vec<u8>> {
    let (mut values, mut kept) = (Values::new(body), Vec::with_capacity(body.len()));
    while !values.is_empty() {
        match values.any()? {
            [b'P', pairs @ ..] => {
                kept.push(b'P');
                let mut left = pairs;
                while let Some(length) = pair(left) {
                    let (one, rest) = left.split_at(length);
                    let name = Values::new(one).text()?;
                    if PROPERTIES.iter().any(|known| known.as_bytes() == name) {
                        kept.extend(one);
                    }
                    left = rest;
                }
                kept.push(b'N');
            }
            value => kept.extend(value),
        }
    }
    Some(kept)
}

/// What can be recorded, as a server tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    pub name: &'a [u8],
    /// It is no microphone, but what a sink plays: the sound of others.
    pub is_monitor: bool,
}

/// Reads what a server of this version of the protocol tells of a source (`source_fill_tagstruct` of
/// pulsecore/protocol-native.c).
pub fn source<'a>(values: &mut Values<'a>, version: u32) -> Option<Source<'a>> {
    values.number()?;
    let name = values.text()?;
    values.skip("samLvb")?;
    let is_monitor = values.number()? != u32::MAX;
    values.skip("sUsL")?;
    if version >= 13 {
        values.skip("PU")?;
    }
    if version >= 15 {
        values.skip("VLLL")?;
    }
    if version >= 16 {
        for _ in 0..values.number()? {
            values.skip("ssL")?;
            values.skip(if version >= 24 { "L" } else { "" })?;
            values.skip(if version >= 34 { "sL" } else { "" })?;
        }
        values.skip("s")?;
    }
    if version >= 22 {
        let formats = values.any().filter(|value| value[0] == b'B')?[1];
        (0..formats).try_for_each(|_| values.skip("fBP"))?;
    }
    Some(Source { name, is_monitor })
}

/// A wish to record, with all that could lead past the source that was looked at: whatever device it named, it gets
/// this one and stays with it. `None` for what is none, or wants what another program plays.
pub fn recording(body: &[u8], source: &[u8]) -> Option<Vec<u8>> {
    let body = cleaned(body)?;
    let mut values = Values::new(&body);
    let until = |values: &Values<'_>| body.len() - values.len();
    values.skip("LLam")?;
    let mut ours = body[..until(&values)].to_vec();
    values.skip("Ls")?;
    ours.extend([b'L', 0xff, 0xff, 0xff, 0xff, b't']);
    ours.extend(source);
    ours.push(0);
    let rest = until(&values);
    // Lengths and whether it waits; then to be told nothing of its own, of which the sixth is to stay where it is.
    values.skip("LbL")?;
    values.skip("bbbbb")?;
    ours.extend(&body[rest..until(&values)]);
    values.skip("b")?;
    ours.push(b'1');
    let rest = until(&values);
    values.skip("bbbP")?;
    // `direct_on_input_idx`: the sound of one other program.
    (values.number()? == u32::MAX).then_some(())?;
    ours.extend(&body[rest..]);
    Some(ours)
}

/// Which source a wish to record names: by number, or by name.
pub fn wanted(body: &[u8]) -> Option<(u32, Vec<u8>)> {
    let mut values = Values::new(body);
    values.skip("LLam")?;
    Some((values.number()?, values.text()?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_orders_something_is_no_property() {
        let property = |name: &str, value: &str| {
            let mut bytes = [b"t", name.as_bytes(), b"\0L\0\0\0", &[value.len() as u8], b"x\0\0\0"].concat();
            bytes.push(value.len() as u8);
            bytes.extend(value.as_bytes());
            bytes
        };
        let (name, filter) = (property("media.name", "song"), property("filter.apply", "ladspa-sink"));
        let body = [b"L\0\0\0\x03P", &name[..], &filter, b"N", b"fB\x01P", &filter, b"N1"].concat();
        let kept = [b"L\0\0\0\x03P", &name[..], b"N", b"fB\x01P", b"N1"].concat();
        assert_eq!(cleaned(&body), Some(kept));
        assert_eq!(cleaned(&body[..body.len() - 3]), None, "an end is missing");
        assert_eq!(cleaned(b"?"), None);
    }

    #[test]
    fn a_recording_stays_where_it_was_allowed() {
        let device = |number: &[u8; 4], name: &[u8]| [b"L", &number[..], name].concat();
        let wish = |device: &[u8], stays: u8, direct: &[u8; 4]| {
            let head = b"L\0\0\0\x05L\0\0\0\x09a\x03\x02\0\0\xac\x44m\x02\x01\x02";
            let middle = b"L\0\0\0\x010L\0\0\0\x0200000";
            [head, device, middle, &[stays], b"000PNL", direct, b"0"].concat()
        };
        let none = [0xff; 4];
        let asked = wish(&device(&[0, 0, 0, 7], b"N"), b'0', &none);
        assert_eq!(wanted(&asked), Some((7, Vec::new())));
        assert_eq!(recording(&asked, b"mic"), Some(wish(&device(&none, b"tmic\0"), b'1', &none)));
        assert_eq!(recording(&wish(&device(&none, b"N"), b'0', &[0, 0, 0, 3]), b"mic"), None);
        assert_eq!(recording(&asked[..20], b"mic"), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(junk: Vec<u8>, letters in "[LBtNxPafmvTU10]{0,40}") {
            for bytes in [&junk[..], letters.as_bytes()] {
                let _ = (cleaned(bytes), recording(bytes, b"mic"), wanted(bytes));
                for version in [13, 16, 24, 35] {
                    let _ = source(&mut Values::new(bytes), version);
                }
            }
        }
    }
}
