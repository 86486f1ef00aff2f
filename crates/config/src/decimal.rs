//! Decimal numbers with a unit, in whole numbers: no float rounds a limit.

/// `number` (`12`, `1.5`, `.5`) times `unit`, rounded down; `None` if it is no such number or too large.
pub(crate) fn times(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || whole.len() + fraction.len() == 0 {
        return None;
    }
    let parsed = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    let tail = parsed(fraction)?.checked_mul(unit)? / 10u128.pow(fraction.len() as u32);
    parsed(whole)?.checked_mul(unit)?.checked_add(tail)
}

/// `amount / unit` as a decimal without trailing zeros, if `places` decimal places say it exactly.
pub(crate) fn exactly(amount: u128, unit: u128, places: u32) -> Option<String> {
    let scale = 10u128.pow(places);
    let rest = amount % unit * scale;
    if !rest.is_multiple_of(unit) {
        return None;
    }
    let fraction = format!("{:0width$}", rest / unit, width = places as usize);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    Some(format!("{}{dot}{fraction}", amount / unit))
}
