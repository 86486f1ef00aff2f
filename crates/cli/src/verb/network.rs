//! `lazaret network`: the network of all containers.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use clap_complete::engine::ArgValueCompleter;
use lazaret::network::{self, Impairment, Proof};
use lazaret_base::{Kind, Result, error};
use serde_json::json;

use super::{complete_name, json_flag, name_argument, words};
use crate::report::{json, print, size};
use crate::session::{Session, name};
use crate::table;

pub fn command(command: Command) -> Command {
    command
        .about("Show, test and disturb the network of all containers")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands([
            Command::new("show").about("Show the bridge, and who is connected").arg(json_flag()),
            Command::new("leases").about("Show which addresses containers have").arg(json_flag()),
            Command::new("rules").about("Show the rules in force, as nft does"),
            check(Command::new("check")),
            impair(Command::new("impair")),
            Command::new("partition")
                .about("Part groups of containers from each other, whatever their policy says; for tests")
                .arg(
                    Arg::new("groups")
                        .value_name("A,B / C,D")
                        .required(true)
                        .num_args(1..)
                        .help("Names joined by commas, groups by slashes"),
                )
                .after_help("Examples:\n  lazaret network partition node1,node2 / node3\n  lazaret network heal"),
            Command::new("heal").about("End every partition and impairment"),
            up(Command::new("up")),
            Command::new("down").about("Remove every trace of the network: bridge, rules, settings, processes").arg(
                Arg::new("force")
                    .short('f')
                    .long("force")
                    .action(ArgAction::SetTrue)
                    .help("Cut off containers that run"),
            ),
            Command::new("restart").about("Have a new netd take over; nobody is cut off"),
        ])
        .after_help(
            "\
Examples:
  lazaret network show
  lazaret network check web example.org:443
  lazaret network impair db --delay 50ms --loss 1%
  lazaret network down",
        )
}

fn check(command: Command) -> Command {
    command
        .about("Say whether a container may send somewhere, by which line of its policy, and prove it")
        .args([
            name_argument("The container"),
            Arg::new("host")
                .value_name("HOST[:PORT]")
                .required(true)
                .help("An address, a name or a container; without a port, ping"),
            Arg::new("udp").long("udp").action(ArgAction::SetTrue).help("The port is of UDP"),
            Arg::new("no-proof").long("no-proof").action(ArgAction::SetTrue).help("Send no packet"),
            json_flag(),
        ])
        .after_help(
            "\
The exit status is 1 if it may not.

Examples:
  lazaret network check web 192.168.1.1
  lazaret network check web example.org:443
  lazaret network check web '[2001:db8::1]:53' --udp",
        )
}

fn impair(command: Command) -> Command {
    let option = |name, value, help| Arg::new(name).long(name).value_name(value).help(help);
    command
        .about("Make what a container sends slower, later or less; for tests. Without an option: good again")
        .args([
            name_argument("The container"),
            option("delay", "SPAN", "Add this to the way of every packet, such as 50ms"),
            option("loss", "PERCENT", "Lose this part of all packets, such as 1%"),
            option("rate", "RATE", "Send at most this much in a second, such as 10mbit"),
            option("to", "OTHER", "Only what goes to this container").add(ArgValueCompleter::new(complete_name)),
        ])
        .after_help(
            "Examples:\n  lazaret network impair db --delay 50ms --loss 1% --to web\n  lazaret network impair db",
        )
}

fn up(command: Command) -> Command {
    command.about("Make the bridge now, of other addresses if some are given").args([
        Arg::new("subnet")
            .long("subnet")
            .value_name("PREFIX")
            .help("The containers' IPv4 network, such as 10.90.0.0/20"),
        Arg::new("prefix")
            .long("prefix")
            .value_name("PREFIX")
            .help("The containers' IPv6 network; one that was delegated to this machine is not translated"),
    ])
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let Some((act, matches)) = matches.subcommand() else { return Ok(ExitCode::from(2)) };
    let store = session.ready()?;
    let notes = match act {
        "show" => return show(session, matches),
        "leases" => return leases(session, matches),
        "rules" => {
            print(&network::rules(store)?);
            return Ok(ExitCode::SUCCESS);
        }
        "check" => return run_check(session, matches),
        "impair" => {
            let to = matches.get_one::<String>("to").map(|to| to.parse()).transpose()?;
            network::impair(store, &name(matches)?, to.as_ref(), impairment(matches)?)?
        }
        "partition" => network::partition(store, &groups(&words(matches, "groups").join(" "))?)?,
        "heal" => network::heal(store)?,
        "up" => {
            let text = |name: &str| matches.get_one::<String>(name).cloned();
            network::up(store, text("subnet"), text("prefix"))?
        }
        "down" => network::down(store, matches.get_flag("force"))?,
        _ => network::restart(store)?,
    };
    notes.iter().for_each(|note| session.say(note));
    Ok(ExitCode::SUCCESS)
}

fn show(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let Some(view) = network::show(&session.store)? else {
        if matches.get_flag("json") {
            return json(&json!({ "up": false, "attachments": [] }));
        }
        session.say("no netd runs: nothing is connected; it begins with the first container that needs it");
        return Ok(ExitCode::SUCCESS);
    };
    if matches.get_flag("json") {
        return json(&view);
    }
    let net = &view.network;
    let line = |label: &str, value: &str| print(&format!("{:<14}{value}\n", format!("{label}:")));
    line("bridge", &if net.up { net.bridge.clone() } else { format!("{}, not made yet", net.bridge) });
    if net.up {
        line("IPv4", &format!("{}, gateway {}", net.subnet, net.gateway));
        let how = if net.translated6 { "translated on the way out" } else { "delegated: not translated" };
        line("IPv6", &format!("{}, gateway {}, {how}", net.prefix, net.gateway6));
        line("packets", &format!("of up to {} bytes", net.mtu));
    }
    let upstreams = if net.upstreams.is_empty() { "nobody".to_owned() } else { net.upstreams.join(", ") };
    line("names from", &upstreams);
    line(
        "LAN",
        &if net.lan.is_empty() {
            "what always counts as LAN".to_owned()
        } else {
            format!("{}, and what always counts as LAN", net.lan.join(", "))
        },
    );
    line(
        "processes",
        &format!(
            "netd {}, responder {}",
            net.netd,
            if net.responder == 0 { "-".into() } else { net.responder.to_string() }
        ),
    );
    if !net.partition.is_empty() {
        let groups: Vec<_> = net.partition.iter().map(|group| group.join(",")).collect();
        line("partition", &groups.join(" / "));
    }
    net.notes.iter().for_each(|note| line("note", note));
    if view.attachments.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = view
        .attachments
        .iter()
        .map(|one| {
            let addresses =
                if one.attached.addresses.is_empty() { "-".into() } else { one.attached.addresses.join(" ") };
            let mut policy = one.policy.clone();
            policy.extend(one.impairments.iter().cloned());
            vec![one.name.clone(), one.mode.clone(), addresses, size(one.received), size(one.sent), policy.join("; ")]
        })
        .collect();
    print("\n");
    print(&table::render(&["NAME", "MODE", "ADDRESSES", "RECEIVED", "SENT", "POLICY"], &rows));
    Ok(ExitCode::SUCCESS)
}

fn leases(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let leases = network::leases(&session.store)?;
    if matches.get_flag("json") {
        return json(&leases);
    }
    if leases.is_empty() {
        session.say("no container has an address yet; it gets one at its first start");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = leases
        .iter()
        .map(|lease| {
            let connected = if lease.connected { "connected" } else { "-" };
            vec![
                lease.name.to_string(),
                lease.lease.address4.to_string(),
                lease.lease.address6.to_string(),
                lease.lease.mac.to_string(),
                connected.into(),
            ]
        })
        .collect();
    print(&table::render(&["NAME", "IPV4", "IPV6", "MAC", "STATE"], &rows));
    Ok(ExitCode::SUCCESS)
}

fn run_check(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let typed = matches.get_one::<String>("host").map(String::as_str).unwrap_or_default();
    let (host, port) = host_and_port(typed)?;
    let udp = matches.get_flag("udp");
    if udp && port.is_none() {
        return Err(error("`--udp` needs a port").kind(Kind::Invalid).hint(format!("for example {host}:53")));
    }
    let container = name(matches)?;
    let found = network::check(&session.store, &container, host, port, udp, !matches.get_flag("no-proof"))?;
    let allowed = found.iter().any(|one| one.verdict.allowed);
    if matches.get_flag("json") {
        json(&found)?;
    } else {
        for one in &found {
            let verdict = &one.verdict;
            let word = if verdict.allowed { "allowed" } else { "blocked" };
            // The line says it itself.
            let line = if verdict.line.starts_with(word) {
                verdict.line.clone()
            } else {
                format!("{word} by {}", verdict.line)
            };
            print(&format!("{}: {line}\n", verdict.addresses.join(" ")));
            print(&match &one.proof {
                Proof::None => String::new(),
                Proof::Answered { microseconds } => {
                    format!("  proved: a packet was answered after {:.1} ms\n", *microseconds as f64 / 1000.0)
                }
                Proof::Refused => "  proved: a packet arrived; nothing listens on that port\n".into(),
                Proof::Prohibited => "  proved: a packet was turned away by the firewall\n".into(),
                Proof::Silence if verdict.allowed => {
                    "  a packet was sent and nobody answered: the host may be away, or another firewall drops it\n"
                        .into()
                }
                Proof::Silence => "  proved: a packet was sent and nobody answered\n".into(),
                Proof::Sent => "  a packet was sent; UDP does not tell whether it arrived\n".into(),
                Proof::Failed(why) => format!("  no packet could be sent: {why}\n"),
            });
        }
    }
    Ok(if allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `HOST`, `HOST:PORT`, `[ADDRESS]:PORT` or an IPv6 address.
fn host_and_port(typed: &str) -> Result<(&str, Option<u16>)> {
    let bad = || {
        error(format!("`{typed}` is no HOST[:PORT]"))
            .kind(Kind::Invalid)
            .hint("for example example.org:443, 192.168.1.1 or [2001:db8::1]:53")
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad);
    if let Some(rest) = typed.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(bad)?;
        return match rest.strip_prefix(':') {
            Some(text) => Ok((host, Some(port(text)?))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(bad()),
        };
    }
    match typed.split_once(':') {
        Some((host, text)) if !text.contains(':') => Ok((host, Some(port(text)?))),
        _ if typed.is_empty() => Err(bad()),
        _ => Ok((typed, None)),
    }
}

fn impairment(matches: &ArgMatches) -> Result<Option<Impairment>> {
    let text = |name: &str| matches.get_one::<String>(name);
    let delay = text("delay").map(|text| text.parse::<lazaret_config::Span>()).transpose()?;
    let delay = delay
        .map(|span| span.duration().ok_or_else(|| error("a delay can't be negative").kind(Kind::Invalid)))
        .transpose()?;
    let loss = text("loss").map(|text| parts_per_million(text)).transpose()?;
    let rate = text("rate").map(|text| text.parse::<lazaret_config::Rate>()).transpose()?;
    if delay.is_none() && loss.is_none() && rate.is_none() {
        return Ok(None);
    }
    Ok(Some(Impairment {
        delay_microseconds: delay.map(|delay| delay.as_micros() as u64),
        loss_per_million: loss,
        rate: rate.map(lazaret_config::Rate::bits),
    }))
}

fn parts_per_million(text: &str) -> Result<u32> {
    let percent =
        text.trim_end_matches('%').trim().parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent));
    let percent = percent.ok_or_else(|| {
        error(format!("`{text}` is no part of all packets"))
            .kind(Kind::Invalid)
            .hint("write a percentage, for example 1% or 0.5%")
    })?;
    Ok((percent * 10_000.0).round() as u32)
}

/// `A,B / C,D`.
fn groups(text: &str) -> Result<Vec<Vec<lazaret_config::Name>>> {
    let names = |group: &str| {
        group.split([',', ' ']).filter(|name| !name.is_empty()).map(str::parse).collect::<Result<Vec<_>>>()
    };
    let groups = text.split('/').map(names).collect::<Result<Vec<_>>>()?;
    if groups.len() < 2 || groups.iter().any(Vec::is_empty) {
        return Err(error("a partition has two groups or more, each of one container or more")
            .kind(Kind::Invalid)
            .hint("for example: lazaret network partition a,b / c,d"));
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_taken_apart_from_their_ports() {
        assert_eq!(host_and_port("example.org:443").unwrap(), ("example.org", Some(443)));
        assert_eq!(host_and_port("db").unwrap(), ("db", None));
        assert_eq!(host_and_port("2001:db8::1").unwrap(), ("2001:db8::1", None));
        assert_eq!(host_and_port("[2001:db8::1]:53").unwrap(), ("2001:db8::1", Some(53)));
        for bad in ["", "a:", "a:0", "a:99999", "[::1", "[::1]53"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn groups_are_parted_by_slashes() {
        let shown = |text: &str| {
            groups(text).map(|all| {
                all.iter()
                    .map(|group| group.iter().map(ToString::to_string).collect::<Vec<_>>().join("+"))
                    .collect::<Vec<_>>()
                    .join("|")
            })
        };
        assert_eq!(shown("a,b / c, d").unwrap(), "a+b|c+d");
        assert_eq!(shown("a / b/c").unwrap(), "a|b|c");
        for bad in ["a,b", "a /", "/ a", ""] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn losses_are_percentages() {
        assert_eq!(parts_per_million("1%").unwrap(), 10_000);
        assert_eq!(parts_per_million("0.5").unwrap(), 5_000);
        assert!(
            parts_per_million("101%").is_err() && parts_per_million("-1").is_err() && parts_per_million("x").is_err()
        );
    }
}
