//! Addresses that a program may have opened outside: of the web, and plain.

/// No address is longer. It is shown to a person, and said in one piece to a pipe (`PIPE_BUF` of pipe(7)).
pub const MOST: usize = 2000;

/// The address, if it is one of the web's: `http` or `https`, a host without a user, and characters that addresses are
/// written in (RFC 3986, appendix A). What has others is no mistake of a person's.
pub fn checked(text: &str) -> Option<&str> {
    let rest = ["http://", "https://"].iter().find_map(|scheme| {
        let (start, rest) = text.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })?;
    let host = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&b);
    let good = text.len() <= MOST && text.bytes().all(plain) && !host.is_empty() && !host.contains('@');
    (good && !host.starts_with(['-', ':'])).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_the_web_and_plain() {
        for good in
            ["https://example.org", "HTTP://example.org:8080/a?b=c&d#e", "http://[::1]/%20", "https://xn--e1a.org/"]
        {
            assert_eq!(checked(good), Some(good));
        }
        let long = format!("https://example.org/{}", "a".repeat(MOST));
        for bad in [
            "",
            "https://",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "https://bank.org@evil.org/",
            "https://a b",
            "https://a\n",
            "https://a/`x`",
            "https://a/\"",
            "https://a/\\",
            "https://ä.org",
            "https:///x",
            "http://-x/",
            "-h",
            &long,
        ] {
            assert_eq!(checked(bad), None, "{bad:?}");
        }
    }
}
