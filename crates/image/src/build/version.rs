//! Versions of packages and their order (deb-version(7)).

use std::cmp::Ordering;

/// Which of two versions is later.
pub fn compare(a: &str, b: &str) -> Ordering {
    let ((a_epoch, a), (b_epoch, b)) = (epoch(a), epoch(b));
    let ((a, a_revision), (b, b_revision)) = (revision(a), revision(b));
    numbers(a_epoch, b_epoch).then_with(|| part(a, b)).then_with(|| part(a_revision, b_revision))
}

fn epoch(version: &str) -> (&[u8], &[u8]) {
    match version.split_once(':') {
        Some((epoch, rest)) => (epoch.as_bytes(), rest.as_bytes()),
        None => (b"0", version.as_bytes()),
    }
}

fn revision(version: &[u8]) -> (&[u8], &[u8]) {
    match version.iter().rposition(|byte| *byte == b'-') {
        Some(at) => (&version[..at], &version[at + 1..]),
        None => (version, b"0"),
    }
}

/// By turns what is no digit and what is one.
fn part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (a_word, b_word) =
            (take(&mut a, |byte| !byte.is_ascii_digit()), take(&mut b, |byte| !byte.is_ascii_digit()));
        let words = (0..a_word.len().max(b_word.len()))
            .map(|at| weight(a_word.get(at)).cmp(&weight(b_word.get(at))))
            .find(|order| order.is_ne());
        if let Some(order) = words {
            return order;
        }
        let order = numbers(take(&mut a, u8::is_ascii_digit), take(&mut b, u8::is_ascii_digit));
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

fn take<'a>(rest: &mut &'a [u8], wanted: impl Fn(&u8) -> bool) -> &'a [u8] {
    let end = rest.iter().position(|byte| !wanted(byte)).unwrap_or(rest.len());
    let (taken, after) = rest.split_at(end);
    *rest = after;
    taken
}

/// A tilde comes before the end, letters come before all else.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(letter) if letter.is_ascii_alphabetic() => i32::from(*letter),
        Some(other) => i32::from(*other) + 256,
    }
}

/// Numbers of any length.
fn numbers(a: &[u8], b: &[u8]) -> Ordering {
    let plain = |digits: &[u8]| digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
    let (a, b) = (&a[plain(a)..], &b[plain(b)..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_dpkg_does() {
        // Each is earlier than the next.
        let ordered = [
            "0~~",
            "0~",
            "0-0~1",
            "0",
            "0-1",
            "0a",
            "0+",
            "1.0~rc1",
            "1.0",
            "1.0-1",
            "1.0-1+b1",
            "1.0-1+deb12u2",
            "1.0-1+deb12u10",
            "1.0.1",
            "1.2",
            "1.10",
            "2",
            "1:0.1",
            "10:0",
        ];
        for (at, a) in ordered.iter().enumerate() {
            for (other, b) in ordered.iter().enumerate() {
                assert_eq!(compare(a, b), at.cmp(&other), "{a} {b}");
            }
        }
        for (a, b) in [("1.0", "1.00"), ("0:1", "1"), ("1-0", "1"), ("", "0")] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
        assert_eq!(compare("99999999999999999999999", "100000000000000000000000"), Ordering::Less);
    }
}
