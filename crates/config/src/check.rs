//! What no single key can know: values that contradict each other.

use crate::config::{Config, Seccomp};
use crate::desktop::{Desktop, Display};
use crate::diagnostic::Fault;
use crate::network::{Mode, Network};
use crate::text::quoted;

/// A contradiction, told at the place of one of its keys.
pub(crate) struct Contradiction {
    pub key: &'static str,
    pub fault: Fault,
}

pub(crate) fn contradictions(config: &Config) -> Vec<Contradiction> {
    let mut found = Vec::new();
    let mut tell = |key, message: String, hint: String| {
        found.push(Contradiction { key, fault: Fault::new(None, message, hint) });
    };
    if config.swap.is_some() && config.memory.is_none() {
        tell("swap", "a limit of 'swap' needs a limit of 'memory'".into(), "set memory too, or remove swap".into());
    }
    if config.seccomp == Seccomp::Off {
        for (key, list) in [("seccomp_allow", &config.seccomp_allow), ("seccomp_deny", &config.seccomp_deny)] {
            if !list.is_empty() {
                tell(
                    key,
                    format!("'{key}' changes the filter, and seccomp = \"off\" asks for none"),
                    format!("remove {key}, or write seccomp = \"default\""),
                );
            }
        }
    }
    if let Some(name) = config.seccomp_deny.iter().find(|name| config.seccomp_allow.contains(name)) {
        tell(
            "seccomp_deny",
            format!("{} is both allowed and denied", quoted(name)),
            "remove it from seccomp_allow or from seccomp_deny".into(),
        );
    }
    if let Some(name) = config.cap_drop.iter().find(|name| config.cap_add.contains(name)) {
        tell(
            "cap_drop",
            format!("capability '{name}' is both added and dropped"),
            "remove it from cap_add or from cap_drop".into(),
        );
    }
    let repeated =
        config.io.iter().enumerate().find(|(i, limit)| config.io[..*i].iter().any(|l| l.device == limit.device));
    if let Some((_, limit)) = repeated {
        tell(
            "io",
            format!("two entries limit '{}'", limit.device.display()),
            "write all rates of a device in one entry".into(),
        );
    }
    let shares = &config.shares;
    let same = shares.iter().enumerate().find(|(i, share)| shares[..*i].iter().any(|s| s.target == share.target));
    if let Some((_, share)) = same {
        tell(
            "shares",
            format!("two shares are at '{}'", share.target.display()),
            "give one of them another place inside".into(),
        );
    }
    network_contradictions(&config.network, &mut tell);
    desktop_contradictions(&config.desktop, &mut tell);
    found
}

fn network_contradictions(network: &Network, tell: &mut impl FnMut(&'static str, String, String)) {
    if network.mode == Mode::Host && !network.host_mode_confirmed {
        tell(
            "network.mode",
            "mode = \"host\" gives the container the host's whole network, what listens on 127.0.0.1 included".into(),
            "if that is meant, set network.host_mode_confirmed = true too; host = true opens the host's services alone"
                .into(),
        );
    }
    // Silence here would be taken for protection.
    if !matches!(network.mode, Mode::Internet | Mode::None) {
        let restricts = [
            ("network.internet", !network.internet),
            ("network.deny", !network.deny.is_empty()),
            ("network.publish", !network.publish.is_empty()),
        ];
        for (key, _) in restricts.into_iter().filter(|(_, given)| *given) {
            tell(
                key,
                format!("'{key}' has no effect with mode = \"{}\", where our rules do not apply", network.mode),
                "remove it, or use mode = \"internet\"".into(),
            );
        }
    }
    if let Some(both) = network.deny.iter().find(|entry| network.allow.contains(entry)) {
        tell(
            "network.deny",
            format!("'{both}' is both allowed and denied"),
            "remove it from allow or from deny".into(),
        );
    }
    let publish = &network.publish;
    let clash =
        publish.iter().enumerate().find_map(|(i, a)| publish[..i].iter().find(|b| a.clashes(b)).map(|b| (b, a)));
    if let Some((a, b)) = clash {
        tell(
            "network.publish",
            format!("'{a}' and '{b}' need the same port of the host"),
            "give one of them another port or address".into(),
        );
    }
}

fn desktop_contradictions(desktop: &Desktop, tell: &mut impl FnMut(&'static str, String, String)) {
    if desktop.display == Display::Trusted && !desktop.trusted_confirmed {
        tell(
            "desktop.display",
            "display = \"trusted\" lets every program inside see the whole screen, read what is typed, and type itself"
                .into(),
            "if that is meant, set desktop.trusted_confirmed = true too; display = \"isolated\" shows programs without it"
                .into(),
        );
    }
}
