//! The word that was probably meant.

use lazaret_base::distance;

/// The candidate nearest to `word`, if it is near enough to be what was meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words are nothing we know; measuring the distance would only cost time.
    if word.len() > 40 {
        return None;
    }
    let word = plain(word);
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The hint that goes with [`nearest`]; `otherwise` when nothing is near.
pub(crate) fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    otherwise: impl FnOnce() -> String,
) -> String {
    nearest(word, candidates).map_or_else(otherwise, |meant| format!("did you mean '{meant}'?"))
}

/// Case and the choice between `-` and `_` are no difference.
fn plain(word: &str) -> String {
    word.to_ascii_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_word_and_nonsense_finds_nothing() {
        let words = ["memory", "swap", "cpus", "cpu_weight", "pids"];
        assert_eq!(nearest("memroy", words), Some("memory"));
        assert_eq!(nearest("Cpu-Weight", words), Some("cpu_weight"));
        assert_eq!(nearest("pid", words), Some("pids"));
        assert_eq!(nearest("zzz", words), None);
        assert_eq!(nearest("", words), None);
        assert_eq!(nearest(&"m".repeat(100_000), words), None);
    }
}
