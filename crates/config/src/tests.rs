//! Stories of `container.toml`: what is said about a bad one, what an edit leaves alone, what reads back.

use std::collections::BTreeSet;

use insta::assert_snapshot;
use lazaret_base::{Error, Kind};
use proptest::prelude::*;

use crate::*;

/// What is said about a file.
fn said(text: &str) -> String {
    parse("container.toml", text).expect_err("the file is wrong").to_string()
}

fn config(text: &str) -> Config {
    parse("container.toml", text).unwrap_or_else(|e| panic!("{e}"))
}

/// A file after one key was set.
fn set(text: &str, name: &str, value: &str) -> String {
    let mut document = Document::parse("container.toml", text).unwrap();
    document.set(name, value).unwrap_or_else(|e| panic!("{e}"));
    document.to_string()
}

fn unset(text: &str, name: &str) -> String {
    let mut document = Document::parse("container.toml", text).unwrap();
    assert!(document.unset(name).unwrap());
    document.to_string()
}

/// What is said about a refused change, which changes nothing.
fn refused(text: &str, name: &str, value: &str) -> String {
    let mut document = Document::parse("container.toml", text).unwrap();
    let e = document.set(name, value).expect_err("the value is wrong");
    assert_eq!((e.what(), document.to_string().as_str()), (Kind::Invalid, text));
    format!("{e}\n{}", e.advice().unwrap_or_default())
}

/// Every key in a file, as a user might write it.
const FULL: &str = r#"
image = "debian/trixie"
hostname = "web.example"
description = "the front door"
init = ["/sbin/init", "--quiet"]
privileged = true
nesting = true
no_new_privs = true
memory = "1.5G"
swap = "0"
cpus = 1.5
cpu_weight = 50
cpuset = "0-3,5"
pids = "max"
io = ["/dev/sda read=10M write_iops=50"]
io_weight = 200
env_pass = ["LANG", "TZ"]
cap_drop = ["sys_time", "CAP_NET_RAW"]
cap_add = ["sys_nice"]
seccomp = "default"
seccomp_allow = ["bpf"]
seccomp_deny = ["io_uring_setup"]
apparmor = "unconfined"
selinux = "system_u:system_r:container_t:s0"
stop_timeout = "1h30m"
stop_signal = "SIGRTMIN+3"
console_log = "64k"
volatile = true
auto_snapshots = 3
shares = ["/home/me/in:/mnt/in:ro"]
devices = ["camera", "/dev/ttyUSB0 ro"]
person = 33

[rlimits]
nofile = "1024:524288"
core = 0

[env]
GREETING = "hello world"

[time]
monotonic = "-1h"
boottime = "30d"

[network]
mode = "none"
address = "10.90.0.20"
address6 = "fd12:3456:789a:1::20"
mac = "02-00-5E-10-20-30"
mtu = 1400
internet = false
lan = true
host = true
peers = ["db", "cache"]
allow = ["192.168.1.20:631/tcp", "nas.local:445"]
deny = ["*:25/tcp"]
publish = ["127.0.0.1:8080:80"]
rate_up = "10mbit"
rate_down = "1.5 Gbit/s"
dns = ["9.9.9.9"]
host_mode_confirmed = true

[desktop]
display = "trusted"
user = "ann"
clipboard = "both"
sound = "play"
notifications = false
open_urls = "allow"
trusted_confirmed = true
"#;

#[test]
fn every_key_reaches_the_config() {
    let config = config(FULL);
    assert_eq!(config.image, "debian/trixie");
    assert_eq!(config.hostname.as_ref().unwrap().as_str(), "web.example");
    assert_eq!(config.init, Init::Command(vec!["/sbin/init".into(), "--quiet".into()]));
    assert!(config.privileged && config.nesting && config.no_new_privs);
    assert_eq!((config.memory, config.swap), (Some(Size(3 << 29)), Some(Size(0))));
    assert_eq!(config.cpus.unwrap().quota(), 150_000);
    assert_eq!((config.cpu_weight, config.io_weight, config.pids), (Some(50), Some(200), None));
    assert_eq!(config.cpuset.as_ref().unwrap().ranges(), [(0, 3), (5, 5)]);
    assert_eq!(config.io[0].write_iops, Some(50));
    assert_eq!(config.cap_drop.iter().map(|c| c.number()).collect::<Vec<_>>(), [25, 13]);
    assert_eq!(config.stop_timeout, Span::from_seconds(5400));
    assert_eq!(config.stop_signal, Some(Signal::RTMIN_PLUS_3));
    assert_eq!(config.console_log, Size(65536));
    assert_eq!((config.volatile, config.auto_snapshots), (true, 3));
    assert_eq!((config.shares[0].target.to_str(), config.person), (Some("/mnt/in"), Some(33)));
    assert_eq!(config.rlimits[&Resource::Nofile], Rlimit { soft: Some(1024), hard: Some(524_288) });
    assert_eq!(config.env["GREETING"], "hello world");
    assert_eq!(config.time.monotonic, Some(Span::from_seconds(-3600)));
    assert_eq!((&config.network.mode, config.network.mtu, config.network.internet), (&Mode::None, Some(1400), false));
    assert!(config.network.lan && config.network.host);
    assert_eq!(config.network.peers.iter().map(Name::as_str).collect::<Vec<_>>(), ["db", "cache"]);
    assert_eq!(config.network.allow[0].ports, Ports::new(631, 631));
    assert_eq!(config.network.publish[0].container, Ports::new(80, 80).unwrap());
    assert_eq!(config.network.rate_down.unwrap().bits(), 1_500_000_000);
    // The text above forgets no key: each has another value than its default.
    let (live, restart) = live_changes(&Config::default(), &config);
    let same: Vec<_> =
        keys().iter().map(|key| key.name).filter(|k| !live.contains(k) && !restart.contains(k)).collect();
    assert_eq!(same, ["seccomp"]);
}

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(config(""), Config::default());
    assert_eq!(Config::default().to_toml(), "");
}

#[test]
fn a_config_is_written_as_it_was_asked_for() {
    assert_snapshot!(config(FULL).to_toml(), @r#"
    image = "debian/trixie"
    hostname = "web.example"
    description = "the front door"
    init = ["/sbin/init", "--quiet"]
    privileged = true
    nesting = true
    no_new_privs = true
    memory = "1.5G"
    swap = "0"
    cpus = 1.5
    cpu_weight = 50
    cpuset = "0-3,5"
    pids = "max"
    io = ["/dev/sda read=10M write_iops=50"]
    io_weight = 200
    env_pass = ["LANG", "TZ"]
    cap_drop = ["sys_time", "net_raw"]
    cap_add = ["sys_nice"]
    seccomp_allow = ["bpf"]
    seccomp_deny = ["io_uring_setup"]
    apparmor = "unconfined"
    selinux = "system_u:system_r:container_t:s0"
    stop_timeout = "1h30m"
    stop_signal = "SIGRTMIN+3"
    console_log = "64K"
    volatile = true
    auto_snapshots = 3
    shares = ["/home/me/in:/mnt/in:ro"]
    devices = ["camera", "/dev/ttyUSB0 ro"]
    person = 33

    [rlimits]
    core = 0
    nofile = "1024:524288"

    [env]
    GREETING = "hello world"

    [time]
    monotonic = "-1h"
    boottime = "30d"

    [network]
    mode = "none"
    address = "10.90.0.20"
    address6 = "fd12:3456:789a:1::20"
    mac = "02:00:5e:10:20:30"
    mtu = 1400
    internet = false
    lan = true
    host = true
    peers = ["db", "cache"]
    allow = ["192.168.1.20:631/tcp", "nas.local:445"]
    deny = ["*:25/tcp"]
    publish = ["127.0.0.1:8080:80/tcp"]
    rate_up = "10mbit"
    rate_down = "1.5gbit"
    dns = ["9.9.9.9"]
    host_mode_confirmed = true

    [desktop]
    display = "trusted"
    user = "ann"
    clipboard = "both"
    sound = "play"
    notifications = false
    open_urls = "allow"
    trusted_confirmed = true
    "#);
    assert_eq!(config(&config(FULL).to_toml()), config(FULL));
}

#[test]
fn all_that_is_wrong_is_told_with_line_and_remedy() {
    assert_snapshot!(said(r#"
memroy = "1G"
memory = "lots"
nesting = "yes"
pids = 0
cpu_weight = 10001
cap_drop = ["sys_tim", "net_raw", 7]
stop_signal = "SIGTREM"
seccomp = "of"
init = "lazarett"
hostname = "my_host"
stop_timeout = "-3s"
cap-add = []
monotonic = "1s"
nofile = 5
xyzzy = 1
io = ["/dev/sda raed=1M"]

[rlimits]
nofiel = 5
core = "2:1"

[env]
"1A" = "x"
LANG = 5
"#), @r#"
    container.toml:2: unknown key 'memroy', did you mean 'memory'?
    container.toml:3: 'memory': 'lots' is not a size; write a number and a unit, for example 512M or 1.5G
    container.toml:4: 'nesting' takes true or false, not text; write for example nesting = true
    container.toml:5: 'pids': '0' is not a number from 1 to 4194304; write a whole number in that range
    container.toml:6: 'cpu_weight': '10001' is not a number from 1 to 10000; write a whole number in that range
    container.toml:7: 'cap_drop': unknown capability 'sys_tim', did you mean 'sys_time'?
    container.toml:7: 'cap_drop': a number stands in a list of texts; write cap_drop = ["sys_time", "net_raw"]
    container.toml:8: 'stop_signal': unknown signal 'SIGTREM', did you mean 'SIGTERM'?
    container.toml:9: 'seccomp': unknown filter 'of', did you mean 'off'?
    container.toml:10: 'init': unknown init 'lazarett', did you mean 'lazaret'?
    container.toml:11: 'hostname': 'my_host' is not a host name; use at most 64 letters, digits and '-', in words joined by '.', for example 'web.example'
    container.toml:12: 'stop_timeout': '-3s' is negative; write how long to wait, for example 30s
    container.toml:13: unknown key 'cap-add', did you mean 'cap_add'?
    container.toml:14: unknown key 'monotonic', did you mean 'time.monotonic'?
    container.toml:15: unknown key 'nofile', did you mean 'rlimits.nofile'?
    container.toml:16: unknown key 'xyzzy'; remove it, or put '#' before it
    container.toml:17: 'io': unknown rate 'raed', did you mean 'read'?
    container.toml:20: 'rlimits.nofiel': unknown limit 'nofiel', did you mean 'nofile'?
    container.toml:21: 'rlimits.core': the soft limit of '2:1' is above its hard limit; write soft:hard or one number for both, for example 1024:4096 or unlimited
    container.toml:24: 'env.1A': '1A' is not the name of a variable; use letters, digits and '_', no digit first, for example MY_VAR
    container.toml:25: 'env.LANG' takes text in quotes, not a number; write for example LANG = "C.UTF-8"
    "#);
}

#[test]
fn syntax_errors_are_told_together_with_the_others() {
    assert_snapshot!(said("memory = 1G\nnesting = ture\n\nmemroy = 1\npids = 5\npids = 6\ncpus =\nswap\n"), @r#"
    container.toml:1: text must be in quotes: '1G'; write memory = "1G"
    container.toml:2: 'ture' is neither true nor false; write nesting = true, nesting = false, or text in quotes
    container.toml:4: unknown key 'memroy', did you mean 'memory'?
    container.toml:6: duplicate key 'pids'; remove this line or the earlier one
    container.toml:7: 'cpus' has no value; write a value after '=', or remove the line
    container.toml:8: 'swap' has no value; write key = value
    "#);
    assert_snapshot!(said("memroy = 1\ncap_drop = [\n  \"sys_time\"\nmemory = \"1G\"\nfoo = 1\n"), @"container.toml:4: the list lacks a comma or its end; write ',' between the entries and ']' behind the last");
    assert_snapshot!(said("memroy = 1\ndescription = \"never ends\nimage = \"a\\qb\"\nfoo = 1\n"), @r"
    container.toml:1: unknown key 'memroy', did you mean 'memory'?
    container.toml:2: the text in quotes has no end; close it on the same line with the quote it began with
    container.toml:3: unknown escape after '\'; write '\\' for a backslash, or put the text in single quotes
    container.toml:4: unknown key 'foo'; remove it, or put '#' before it
    ");
    assert_snapshot!(said("memroy = 1\n[env\nA = \"1\"\n"), @"
    container.toml:1: unknown key 'memroy', did you mean 'memory'?
    container.toml:2: '[env' is not closed; write a ']' at its end
    ");
    assert_snapshot!(said("[env]\nA = \"1\"\n[env]\nB = \"2\"\n"), @"container.toml:3: duplicate key 'env'; remove this line or the earlier one");
    assert_snapshot!(said("LANG = \"C\"\nimage = \"\"\"\nx\n"), @"container.toml:4: the text in three quotes has no end; close it with three of the same quotes");
}

#[test]
fn values_that_contradict_each_other_are_told() {
    assert_snapshot!(said(r#"
swap = "1G"
seccomp = "off"
seccomp_allow = ["bpf"]
seccomp_deny = ["bpf"]
cap_add = ["sys_time"]
cap_drop = ["cap_sys_time"]
io = ["/dev/sda read=1M", "/dev/sda write=1M"]
"#), @r#"
    container.toml:2: a limit of 'swap' needs a limit of 'memory'; set memory too, or remove swap
    container.toml:4: 'seccomp_allow' changes the filter, and seccomp = "off" asks for none; remove seccomp_allow, or write seccomp = "default"
    container.toml:5: 'seccomp_deny' changes the filter, and seccomp = "off" asks for none; remove seccomp_deny, or write seccomp = "default"
    container.toml:5: 'bpf' is both allowed and denied; remove it from seccomp_allow or from seccomp_deny
    container.toml:7: capability 'sys_time' is both added and dropped; remove it from cap_add or from cap_drop
    container.toml:8: two entries limit '/dev/sda'; write all rates of a device in one entry
    "#);
    config("privileged = true\napparmor = \"unconfined\"\n");
}

#[test]
fn what_is_wrong_with_the_network_is_told_where_it_stands() {
    assert_snapshot!(said(r#"
[network]
mode = "bridge"
address = "10.90.0.20/20"
address6 = "fe80::1"
mac = "01:00:5e:10:20:30"
mtu = 1000
lan = "yes"
peers = ["db", "../x"]
allow = ["192.168.1.20:631/tpc", "nas.local:http"]
deny = "*:25"
publish = ["8080:80:81:82"]
rate_up = "10M"
dns = ["9.9.9.9:53"]
adress = "10.90.0.20"
"#), @r#"
    container.toml:3: 'network.mode': 'bridge' names no interface; write the interface behind a colon, for example "bridge:br0"
    container.toml:4: 'network.address': '10.90.0.20/20' is not an IPv4 address for a container; write an address in the containers' subnet without its bits, for example 10.90.0.20
    container.toml:5: 'network.address6': 'fe80::1' is not an IPv6 address for a container; write an address in the containers' prefix without its bits, for example fd12:3456:789a:1::20
    container.toml:6: 'network.mac': '01:00:5e:10:20:30' is not the address of one interface; write six bytes in hexadecimal, for example 02:00:5e:10:20:30
    container.toml:7: 'network.mtu': '1000' is not a number from 1280 to 65535; write a whole number in that range
    container.toml:8: 'network.lan' takes true or false, not text; write for example lan = true
    container.toml:9: 'network.peers': container name '../x' starts with '.'; use 1 to 63 letters, digits, '.', '_' or '-', a letter or digit first, for example 'web-1'
    container.toml:10: 'network.allow': unknown protocol 'tpc', did you mean 'tcp'?
    container.toml:10: 'network.allow': 'http' is not a port; write a number from 1 to 65535, or first-last, for example 8000-8010
    container.toml:11: 'network.deny' takes a list, not text; write for example deny = ["203.0.113.0/24", "*:25/tcp"]
    container.toml:12: 'network.publish': '8080:80:81:82' has too many colons; an IPv6 address goes in brackets; write host:container, for example 8080:80 or 127.0.0.1:8080:80/tcp
    container.toml:13: 'network.rate_up': '10M' is not a rate; write a number and kbit, mbit or gbit (per second), for example 10mbit
    container.toml:14: 'network.dns': '9.9.9.9:53' is not the address of a name server; write addresses without ports, for example 9.9.9.9
    container.toml:15: unknown key 'network.adress', did you mean 'network.address'?
    "#);
    assert_snapshot!(said("lan = true\nnetwork = \"none\"\n"), @"
    container.toml:1: unknown key 'lan', did you mean 'network.lan'?
    container.toml:2: 'network' takes a table; write [network] on a line and its entries below
    ");
    assert_snapshot!(said(r#"
[network]
publish = ["8080:80", "127.0.0.1:8080:81"]
allow = ["nas.local"]
deny = ["nas.local"]
"#), @"
    container.toml:3: '8080:80/tcp' and '127.0.0.1:8080:81/tcp' need the same port of the host; give one of them another port or address
    container.toml:5: 'nas.local' is both allowed and denied; remove it from allow or from deny
    ");
    assert_snapshot!(said("[network]\ninternet = false\nmode = \"host\"\n"), @r#"
    container.toml:2: 'network.internet' has no effect with mode = "host", where our rules do not apply; remove it, or use mode = "internet"
    container.toml:3: mode = "host" gives the container the host's whole network, what listens on 127.0.0.1 included; if that is meant, set network.host_mode_confirmed = true too; host = true opens the host's services alone
    "#);
    config("[network]\nmode = \"host\"\nhost_mode_confirmed = true\n");
    assert_snapshot!(
        said("[desktop]\ndisplay = \"trusted\"\n"),
        @r#"container.toml:2: display = "trusted" lets every program inside see the whole screen, read what is typed, and type itself; if that is meant, set desktop.trusted_confirmed = true too; display = "isolated" shows programs without it"#
    );
}

#[test]
fn a_user_of_the_desktop_is_no_line_of_a_file() {
    for good in ["ann", "_ann", "Ann.Smith-2"] {
        assert_eq!(good.parse::<UserName>().unwrap().as_str(), good);
    }
    let long = "a".repeat(33);
    for bad in ["", "root", "2ann", "-ann", "a:b", "a\nb", "a b", "a/b", long.as_str()] {
        assert!(bad.parse::<UserName>().is_err(), "{bad:?}");
    }
}

#[test]
fn the_network_is_set_in_short_words() {
    let mut document = Document::create("f", [("network.lan", "yes"), ("network.peers", "db,web")]).unwrap();
    document.set("network.publish", "8080:80,127.0.0.1:53:53/udp").unwrap();
    document.set("network.rate_up", "max").unwrap();
    assert_snapshot!(document.to_string(), @r#"
    # What this container is and what it may do. A key that is not here has its default.
    # Comments and layout are kept when `lazaret config` changes a value.

    [network]
    lan = true
    peers = ["db", "web"]
    publish = ["8080:80", "127.0.0.1:53:53/udp"]
    rate_up = "max"
    "#);
    assert_eq!(document.get("network.publish").unwrap().unwrap(), "8080:80/tcp,127.0.0.1:53:53/udp");
    let e = document.set_all([("network.mode", "host"), ("network.publish", "")]).unwrap_err();
    assert!(e.advice().unwrap().contains("host_mode_confirmed"), "{e}");
    document
        .set_all([("network.mode", "host"), ("network.host_mode_confirmed", "yes"), ("network.publish", "")])
        .unwrap();
    assert!(set("", "network.mode", "none").contains("mode = \"none\""));
    assert_snapshot!(refused("", "network", "none"), @"
    'network' is a table
    name one of its entries: network.mode, network.address, network.address6, network.mac, network.mtu, network.internet, network.lan, network.host, network.peers, network.allow, network.deny, network.publish, network.rate_up, network.rate_down, network.dns, network.host_mode_confirmed
    ");
}

#[test]
fn a_change_of_policy_is_live_and_one_of_the_connection_is_not() {
    let (live, restart) = live_changes(&Config::default(), &config(FULL));
    let of =
        |keys: Vec<&'static str>| keys.into_iter().filter_map(|key| key.strip_prefix("network.")).collect::<Vec<_>>();
    assert_eq!(of(restart), ["mode", "address", "address6", "mac", "mtu"]);
    assert_eq!(
        of(live),
        [
            "internet",
            "lan",
            "host",
            "peers",
            "allow",
            "deny",
            "publish",
            "rate_up",
            "rate_down",
            "dns",
            "host_mode_confirmed"
        ]
    );
}

#[test]
fn a_network_crosses_a_process_boundary_unchanged() {
    let network = config(FULL).network;
    let text = serde_json::to_string(&network).unwrap();
    assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), network);
}

#[test]
fn the_shape_of_the_file_is_checked() {
    assert_snapshot!(said("env = 5\ntime = []\n[memory]\nmax = 1\n[[io]]\na = 1\n[env_pass]\n"), @r#"
    container.toml:1: 'env' takes a table; write [env] on a line and its entries below
    container.toml:2: 'time' takes a table; write [time] on a line and its entries below
    container.toml:3: 'memory' takes a size or "max", not a table; write for example memory = "1G"
    container.toml:5: 'io' takes a list, not a table; write for example io = ["/dev/sda read=10M write=5M read_iops=100 write_iops=50"]
    container.toml:7: 'env_pass' takes a list, not a table; write for example env_pass = ["LANG", "TZ"]
    "#);
    assert_snapshot!(said("time.monotnic = \"1s\"\nrlimits = { nofile = true }\nenv.A.B = \"x\"\n"), @r#"
    container.toml:1: unknown key 'time.monotnic', did you mean 'time.monotonic'?
    container.toml:2: 'rlimits.nofile' takes a number, soft:hard or "unlimited", not true or false; write for example nofile = "1024:524288"
    container.toml:3: 'env.A' takes text in quotes, not a table; write for example LANG = "C.UTF-8"
    "#);
    assert_snapshot!(said("env.A = \"x\\u0000y\"\ndescription = \"a\\u001b[2Jb\"\nimage = \"\"\n"), @r"
    container.toml:1: 'env.A': 'A=x\u{0}y' has a NUL byte; remove the \u0000
    container.toml:2: 'description': 'a\u{1b}[2Jb' has control characters; write one line of plain text
    container.toml:3: 'image': the text is empty; write something, or remove the key
    ");
}

#[test]
fn the_column_counts_characters() {
    let Diagnostics(all) = parse("f", "description = \"ä\"\nenv = { A = \"ä\", B = 1 }").unwrap_err();
    assert_eq!((all[0].line, all[0].column), (2, 22));
    let Diagnostics(all) = parse("f", "description = \"ä\"\ncap_drop = [\"chown\",\n  \"ä\"]").unwrap_err();
    assert_eq!((all[0].line, all[0].column), (3, 3));
}

#[test]
fn bytes_that_are_no_text_are_told_with_their_line() {
    assert_eq!(decode("f", b"image = \"host\"\n"), Ok("image = \"host\"\n"));
    let e = decode("f", b"image = \"host\"\nx = \"\xff\"\n").unwrap_err();
    assert_eq!(e.to_string(), "f:2: this is not UTF-8 text; save the file as UTF-8, or remove the bytes at this place");
}

#[test]
fn the_size_of_everything_is_bounded() {
    assert!(said(&"#".repeat((1 << 20) + 1)).contains("1 MiB"));
    assert!(said(&format!("cap_drop = [{}]", "\"chown\",".repeat(4097))).contains("a list of 4097 entries"));
    assert!(said(&format!("memory = {}", "[".repeat(10_000))).starts_with("container.toml:1: "));
    assert!(said(&format!("env.A = \"{}\"", "x".repeat(131_072))).contains("131071"));
    let many: String = (0..50_000).map(|i| format!("key{i} = 1\n")).collect();
    assert_eq!(said(&many).lines().count(), 100);
    let many: String = (0..5_000).map(|i| format!("key{i} = x\n")).collect();
    assert!(said(&many).lines().count() < 30);
    let many: String = (0..5_000).map(|i| format!("A{i} = \"\"\n")).collect();
    assert!(said(&format!("[env]\n{many}")).contains("'env' has 5000 entries"));
}

#[test]
fn diagnostics_become_one_error() {
    let e: Error = parse("container.toml", "a = 1\nb = 2\n").unwrap_err().into();
    assert_eq!(e.what(), Kind::Invalid);
    assert_snapshot!(e.to_string(), @"
    container.toml:1: unknown key 'a'; remove it, or put '#' before it
    container.toml:2: unknown key 'b'; remove it, or put '#' before it
    ");
}

#[test]
fn an_edit_leaves_comments_and_layout_alone() {
    let text = r#"# My web server.

memory   =   "1G"   # enough for now
# The clock is the host's business.
cap_drop = [
    "sys_time",  # not ours
    "net_raw",
]

# Variables.
[env]
LANG = "C.UTF-8"

[rlimits]   # rarely needed
"#;
    let mut document = Document::parse("container.toml", text).unwrap();
    document.set("memory", "2G").unwrap();
    document.set("cap_drop", "sys_time,mknod").unwrap();
    document.set("nesting", "yes").unwrap();
    document.set("env.TZ", "UTC").unwrap();
    document.set("rlimits.nofile", "1024").unwrap();
    document.set("time.boottime", "-1d").unwrap();
    assert_snapshot!(document.to_string(), @r#"
    # My web server.

    memory   =   "2G"   # enough for now
    # The clock is the host's business.
    cap_drop = [
        "sys_time",  # not ours
        "mknod",
    ]
    nesting = true

    # Variables.
    [env]
    LANG = "C.UTF-8"
    TZ = "UTC"

    [rlimits]   # rarely needed
    nofile = 1024

    [time]
    boottime = "-1d"
    "#);
}

#[test]
fn a_list_keeps_the_comments_of_what_stays() {
    let text = "\
cap_drop = [ # why
  \"chown\", # one
  # Above.
  \"kill\", # two
  \"bpf\" # three
] # end
";
    let change = |value: &str| set(text, "cap_drop", value);
    assert_snapshot!(change("chown,bpf"), @r#"
    cap_drop = [ # why
      "chown", # one
      # Above.
      "bpf" # three
    ] # end
    "#);
    assert_snapshot!(change("chown,kill,bpf,mknod"), @r#"
    cap_drop = [ # why
      "chown", # one
      # Above.
      "kill", # two
      "bpf", # three
      "mknod"
    ] # end
    "#);
    assert_snapshot!(change("kill"), @r#"
    cap_drop = [ # why
      # Above.
      "kill" # two
    ] # end
    "#);
    assert_snapshot!(change("bpf,chown"), @r#"
    cap_drop = [ # why
      "chown", # one
      # Above.
      "bpf" # three
    ] # end
    "#);
    assert_snapshot!(change(""), @"
    cap_drop = [ # why
      # Above.
    ] # end
    ");
    assert_eq!(set("cap_drop = [\"chown\"]", "cap_drop", "chown,kill"), "cap_drop = [\"chown\", \"kill\"]");
    assert_eq!(set("cap_drop = [ \"chown\", \"bpf\" ]", "cap_drop", "bpf"), "cap_drop = [ \"bpf\" ]");
    assert_eq!(set("cap_drop = []", "cap_drop", "bpf,kill"), "cap_drop = [\"bpf\", \"kill\"]");
}

#[test]
fn the_first_key_goes_below_the_header_and_above_the_tables() {
    assert_eq!(set("", "memory", "1G"), "memory = \"1G\"\n");
    assert_eq!(set("# Mine.", "memory", "1G"), "# Mine.\nmemory = \"1G\"\n");
    assert_eq!(
        set("# Mine.\n\n# Variables.\n# Many.\n[env]\nA = \"1\"\n", "memory", "1G"),
        "# Mine.\n\nmemory = \"1G\"\n\n# Variables.\n# Many.\n[env]\nA = \"1\"\n"
    );
    assert_eq!(set("# Mine.\n[env]\n", "nesting", "on"), "nesting = true\n\n# Mine.\n[env]\n");
    assert_eq!(set("", "env.A", "x"), "[env]\nA = \"x\"\n");
    assert_eq!(set("memory = \"1G\"", "env.A", "x"), "memory = \"1G\"\n\n[env]\nA = \"x\"\n");
    assert_eq!(set("memory = \"1G\"\r\n", "pids", "5"), "memory = \"1G\"\r\npids = 5\r\n");
}

#[test]
fn tables_are_edited_in_the_form_they_have() {
    assert_eq!(set("env.A = \"1\" # a\n", "env.B", "2"), "env.A = \"1\" # a\nenv.B = \"2\"\n");
    assert_eq!(set("env.A = \"1\" # a\n", "env.A", "2"), "env.A = \"2\" # a\n");
    assert_eq!(set("env = { A = \"1\" } # a\n", "env.B", "2"), "env = { A = \"1\", B = \"2\" } # a\n");
    assert_eq!(
        set("time.boottime = \"1s\"\n[env]\n", "memory", "1G"),
        "time.boottime = \"1s\"\nmemory = \"1G\"\n[env]\n"
    );
    assert_eq!(unset("env = { A = \"1\", B = \"2\" } # a\n", "env.A"), "env = { B = \"2\" } # a\n");
    assert_eq!(unset("env.A = \"1\"\nenv.B = \"2\"\nnesting = true\n", "env"), "nesting = true\n");
    assert_eq!(unset("# Top.\nnesting = true # x\npids = 5\n", "nesting"), "# Top.\npids = 5\n");
    assert_eq!(unset("cap_drop = [\n  \"chown\",\n]\npids = 5", "cap_drop"), "pids = 5");
    assert_eq!(
        unset("[env]\n# a\nA = \"1\"\n[time]\nboottime = \"1s\"\n", "env"),
        "[env]\n# a\n[time]\nboottime = \"1s\"\n"
    );
    assert_eq!(unset("env = {}\n", "env"), "");
    // What was set apart leaves one gap.
    let apart = "# Top.\n\nnesting = true\n\n[env]\nA = \"1\"\n";
    assert_eq!(unset(apart, "nesting"), "# Top.\n\n[env]\nA = \"1\"\n");
    assert_eq!(unset("pids = 5\nnesting = true\n\n[env]\n", "nesting"), "pids = 5\n\n[env]\n");
}

#[test]
fn taking_away_what_is_not_there_changes_nothing() {
    let mut document = Document::parse("f", "# a\nenv.A = \"1\"\n").unwrap();
    assert!(!document.unset("memory").unwrap());
    assert!(!document.unset("env.B").unwrap());
    assert!(!document.unset("time.boottime").unwrap());
    assert_eq!(document.to_string(), "# a\nenv.A = \"1\"\n");
    assert!(document.unset("env.A").unwrap());
}

#[test]
fn values_are_typed_as_a_shell_user_types_them() {
    assert_eq!(set("", "init", "/sbin/init"), "init = \"/sbin/init\"\n");
    assert_eq!(set("", "init", "[\"/bin/sh\", \"-l\"]"), "init = [\"/bin/sh\", \"-l\"]\n");
    assert_eq!(set("", "cap_drop", "sys_time, net_raw"), "cap_drop = [\"sys_time\", \"net_raw\"]\n");
    assert_eq!(set("", "cap_drop", "[\"sys_time\"]"), "cap_drop = [\"sys_time\"]\n");
    assert_eq!(set("", "cap_drop", ""), "cap_drop = []\n");
    assert_eq!(set("", "memory", "\"1G\""), "memory = \"1G\"\n");
    assert_eq!(set("", "memory", "max"), "memory = \"max\"\n");
    assert_eq!(set("", "cpus", "1.5"), "cpus = 1.5\n");
    assert_eq!(set("", "pids", "max"), "pids = \"max\"\n");
    assert_eq!(set("", "env.A", "\"quoted\" \\ and=more"), "[env]\nA = '\"quoted\" \\ and=more'\n");
    assert_eq!(set("", "env.A", ""), "[env]\nA = \"\"\n");
}

#[test]
fn a_bad_value_is_refused_in_one_sentence_and_nothing_changes() {
    assert_snapshot!(refused("# mine\n", "memroy", "1G"), @"
    unknown key 'memroy'
    did you mean 'memory'?
    ");
    assert_snapshot!(refused("pids = 5", "memory", "lots"), @"
    'memory': 'lots' is not a size
    write a number and a unit, for example 512M or 1.5G
    ");
    assert_snapshot!(refused("", "nesting", "perhaps"), @"
    'nesting' takes true or false, not 'perhaps'
    write for example nesting=true
    ");
    assert_snapshot!(refused("", "swap", "1G"), @"
    a limit of 'swap' needs a limit of 'memory'
    set memory too, or remove swap
    ");
    assert_snapshot!(refused("", "env", "FOO=bar"), @"
    'env' is a table
    name one of its entries: env.NAME
    ");
    assert_snapshot!(refused("", "time", "1s"), @"
    'time' is a table
    name one of its entries: time.monotonic, time.boottime
    ");
    assert_snapshot!(refused("", "env.1A", "x"), @"
    'env.1A': '1A' is not the name of a variable
    use letters, digits and '_', no digit first, for example MY_VAR
    ");
    assert_snapshot!(refused("", "env.a b\nc", "x"), @r"
    'env.a b\nc': 'a b\nc' is not the name of a variable
    use letters, digits and '_', no digit first, for example MY_VAR
    ");
    assert_snapshot!(refused("", "cap_drop", "[sys_time]"), @r#"
    '[sys_time]' is not a TOML list
    write for example cap_drop = ["sys_time", "net_raw"]
    "#);
    assert_snapshot!(refused("", "init", "/sbin/init --quiet"), @r#"
    'init': '/sbin/init --quiet' has arguments
    write each word of the command as one string: ["/sbin/init", "argument"]
    "#);
    assert_snapshot!(refused("", "cpus", "nan"), @"
    'cpus': 'NaN' is not a number of CPUs
    write how many, between 0.01 and 10000, for example 1.5
    ");
}

#[test]
fn keys_that_need_each_other_are_set_together() {
    let mut document = Document::parse("f", "").unwrap();
    document.set_all([("swap", "1G"), ("memory", "2G")]).unwrap();
    assert_eq!(document.config().swap, Some(Size(1 << 30)));
    let e = document.unset("memory").unwrap_err();
    assert!(e.to_string().contains("needs a limit of 'memory'"), "{e}");
    assert_eq!(document.get("memory").unwrap().unwrap(), "2G");
}

#[test]
fn a_new_file_explains_itself() {
    let pairs = [("image", "debian/trixie"), ("env.LANG", "C.UTF-8"), ("memory", "1G"), ("image", "alpine")];
    let document = Document::create("container.toml", pairs).unwrap();
    assert_snapshot!(document.to_string(), @r#"
    # What this container is and what it may do. A key that is not here has its default.
    # Comments and layout are kept when `lazaret config` changes a value.

    image = "alpine"
    memory = "1G"

    [env]
    LANG = "C.UTF-8"
    "#);
    assert!(Document::create("container.toml", [("image", "")]).is_err());
}

#[test]
fn values_are_shown_as_the_command_line_takes_them() {
    let config = config(FULL);
    let get = |name: &str| config.get(name).unwrap();
    assert_eq!(get("cap_drop").unwrap(), "sys_time,net_raw");
    assert_eq!(get("init").unwrap(), "[\"/sbin/init\", \"--quiet\"]");
    assert_eq!(get("rlimits").unwrap(), "{ core = 0, nofile = \"1024:524288\" }");
    assert_eq!(get("env.GREETING").unwrap(), "hello world");
    assert_eq!(get("env.OTHER"), None);
    assert_eq!(get("pids").unwrap(), "max");
    assert_eq!(Config::default().get("hostname").unwrap(), None);
    assert_eq!(Config::default().get("stop_timeout").unwrap().unwrap(), "30s");
    assert!(config.get("nope").is_err());
}

#[test]
fn what_can_change_while_it_runs_is_told_apart() {
    let old = config("memory = \"1G\"\nimage = \"alpine\"");
    let new =
        config("memory = \"2G\"\nimage = \"debian\"\ndescription = \"x\"\n[env]\nA = \"1\"\n[time]\nboottime = \"1s\"");
    assert_eq!(live_changes(&old, &new), (vec!["description", "memory", "env"], vec!["image", "time.boottime"]));
    assert_eq!(live_changes(&old, &old), (vec![], vec![]));
}

#[test]
fn a_config_serializes_as_it_would_be_written() {
    let text =
        serde_json::to_string(&config("memory = \"1G\"\ncpus = 1.5\nenv.A = \"1\"\ntime.boottime = \"1h\"\n")).unwrap();
    for part in [
        r#""memory":"1G","swap":"max","cpus":1.5,"cpu_weight":null"#,
        r#""pids":8192"#,
        r#""cap_drop":[]"#,
        r#""rlimits":{},"env":{"A":"1"},"time":{"monotonic":null,"boottime":"1h"}"#,
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn a_name_from_a_record_is_checked_like_one_that_was_typed() {
    assert_eq!(serde_json::from_str::<Name>("\"web\"").unwrap().as_str(), "web");
    assert!(serde_json::from_str::<Name>("\"../web\"").is_err());
    assert_eq!(serde_json::to_string(&IdRange::new(100_000, 65_536).unwrap()).unwrap(), "\"100000:65536\"");
}

#[test]
fn the_table_is_whole() {
    for key in keys() {
        let example = match key.name.split_once('.') {
            Some((section, _)) => format!("[{section}]\n{}", key.example),
            None if key.entries.is_some() => format!("[{}]\n{}", key.name, key.example),
            None if key.name == "swap" => format!("memory = \"1G\"\n{}", key.example),
            None => key.example.into(),
        };
        let default = Config::default();
        let (live, restart) = live_changes(&default, &config(&example));
        let changed = if key.live { live } else { restart };
        assert!(changed.contains(&key.name), "the example of {} changes {changed:?}", key.name);
        assert!(key.doc.ends_with('.') && !key.doc.contains('\n') && !key.default.is_empty());
        assert_eq!(find(key.name).unwrap().0.name, key.name);
    }
    let (key, entry) = find("env.A").unwrap();
    assert_eq!((key.name, entry), ("env", "A"));
}

/// A typed value for each key that it takes.
fn typed() -> impl Strategy<Value = (String, String)> {
    let text = "[^\\x00-\\x1f\\x7f-\\x9f]{1,20}";
    let word = |words: &[&'static str]| proptest::sample::select(words.to_vec()).prop_map(String::from);
    let key = |name: &'static str, value: BoxedStrategy<String>| {
        value.prop_map(move |value| (name.to_string(), value)).boxed()
    };
    let plain = proptest::strategy::Union::new([
        key("image", text.boxed()),
        key("hostname", "[a-z0-9]{1,20}(\\.[a-z]{1,9})?".boxed()),
        key("description", text.boxed()),
        key("init", word(&["auto", "lazaret", "/sbin/init", "[\"a b\", \"\", \"'\"]"]).boxed()),
        key("privileged", word(&["true", "false"]).boxed()),
        key("nesting", word(&["true", "false"]).boxed()),
        key("no_new_privs", word(&["true", "false"]).boxed()),
        key("memory", (1u64 << 20..).prop_map(|n| Size(n).to_string()).boxed()),
        key("cpus", (1000u32..1_000_000_000).prop_map(|n| format!("{}.{:05}", n / 100_000, n % 100_000)).boxed()),
        key("cpu_weight", (1u32..=10_000).prop_map(|n| n.to_string()).boxed()),
        key("io_weight", (1u32..=10_000).prop_map(|n| n.to_string()).boxed()),
        key("cpuset", (0u32..100, 102u32..200).prop_map(|(a, b)| format!("{a},{b}-{}", b + 7)).boxed()),
        key("pids", (1u32..=4 << 20).prop_map(|n| n.to_string()).boxed()),
        key("pids", word(&["max"]).boxed()),
        key("io", (1..u64::MAX).prop_map(|n| format!("/dev/sda read={}", Size(n))).boxed()),
        key("env_pass", "[A-Z_][A-Z0-9_]{0,9}(,[a-z]{1,9})?".boxed()),
        key("cap_drop", word(&["chown", "net_raw,bpf", ""]).boxed()),
        key("cap_add", word(&["sys_nice", "mknod,syslog"]).boxed()),
        key("seccomp", word(&["default", "off"]).boxed()),
        key("apparmor", text.boxed()),
        key("selinux", text.boxed()),
        key("stop_timeout", (0i64..).prop_map(|n| Span::from_nanoseconds(n).to_string()).boxed()),
        key("stop_signal", (1i32..=64).prop_map(|n| Signal::try_from(n).unwrap().to_string()).boxed()),
        key("console_log", (0u64..1 << 30).prop_map(|n| Size(n).to_string()).boxed()),
        key("volatile", word(&["true", "false"]).boxed()),
        key("auto_snapshots", (0u32..=30).prop_map(|n| n.to_string()).boxed()),
        key("time.monotonic", (i64::MIN / 4..i64::MAX / 4).prop_map(|n| Span::from_nanoseconds(n).to_string()).boxed()),
        key("network.mode", word(&["internet", "none"]).boxed()),
        key("network.lan", word(&["true", "false"]).boxed()),
        key("network.peers", word(&["db", "db,web", ""]).boxed()),
        key("network.allow", word(&["192.168.1.20:631/tcp", "nas.local:445,[fd00::1]:22"]).boxed()),
        key("network.deny", word(&["*:25/tcp", "10.0.0.0/8"]).boxed()),
        key("network.publish", word(&["8080:80/tcp", "127.0.0.1:53:53/udp,[fd00::1]:53:53/tcp"]).boxed()),
        key("network.mtu", (1280u32..=65_535).prop_map(|n| n.to_string()).boxed()),
        key("network.address", word(&["10.90.0.20", "192.0.2.1"]).boxed()),
        key("time.boottime", (i64::MIN / 4..i64::MAX / 4).prop_map(|n| Span::from_nanoseconds(n).to_string()).boxed()),
    ]);
    let env = ("[A-Za-z_][A-Za-z0-9_]{0,9}", "[^\\x00]{0,20}").prop_map(|(name, value)| (format!("env.{name}"), value));
    let limit = (proptest::sample::select(Resource::ALL), any::<u32>())
        .prop_map(|(resource, n)| (format!("rlimits.{resource}"), format!("{n}:unlimited")));
    prop_oneof![8 => plain, 1 => env, 1 => limit]
}

/// Files that have nothing but form.
const LAYOUTS: &[&str] = &[
    "",
    "[env]",
    "# Mine.",
    "# Mine.\n\n[env] # Mine too.\n",
    "# Mine.\n[time]\n\n# Mine too.\n[rlimits]\n# Mine last.",
    "env = {} # Mine.\r\ntime = { } # Mine too.\r\n",
    "cap_drop = [\n  # Mine.\n]\nrlimits = {}\n",
];

/// Lines that are near to a configuration, right and wrong.
fn nearly_toml() -> impl Strategy<Value = String> {
    let key = (0..keys().len()).prop_map(|i| keys()[i].name);
    let value = proptest::sample::select(vec![
        "1",
        "-1",
        "1.5",
        "nan",
        "true",
        "\"1G\"",
        "\"max\"",
        "\"/x\"",
        "[]",
        "[\"a\"]",
        "[1, \"a\"",
        "{}",
        "{a = 1}",
        "1979-05-27",
        "\"\"\"a",
        "\"\\u0000\"",
        "'ä'",
        "",
        "9999999999999999999",
        "\"-1s\"",
    ]);
    let line = prop_oneof![
        6 => (key.clone(), value).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => key.prop_map(|key| format!("[{key}]")),
        1 => ".{0,12}",
    ];
    proptest::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in nearly_toml()) {
        let lossy = String::from_utf8_lossy(&bytes);
        for text in [&*lossy, &text] {
            if let Err(Diagnostics(all)) = parse("f", text) {
                prop_assert!(!all.is_empty());
                prop_assert!(all.iter().all(|d| d.line >= 1 && d.line <= text.split('\n').count() && d.column >= 1));
            }
        }
        let _ = decode("f", &bytes);
        let _ = (lossy.parse::<Name>(), lossy.parse::<Size>(), lossy.parse::<Span>(), lossy.parse::<Signal>());
        let _ = (lossy.parse::<CpuSet>(), lossy.parse::<IoLimit>(), lossy.parse::<Rlimit>(), lossy.parse::<IdRange>());
    }

    #[test]
    fn what_is_set_is_got_and_nothing_else_changes(
        layout in proptest::sample::select(LAYOUTS),
        pairs in proptest::collection::vec(typed(), 1..12),
    ) {
        let mut document = Document::parse("container.toml", layout).unwrap();
        for (name, value) in &pairs {
            let before = document.config().clone();
            document.set(name, value).unwrap_or_else(|e| panic!("{name}={value}: {e}"));
            let got = document.get(name).unwrap().unwrap();
            // Got as it was set, up to its spelling: setting what was got is no change.
            let again = document.config().clone();
            document.set(name, &got).unwrap();
            prop_assert_eq!(document.config(), &again);
            let key = find(name).unwrap().0;
            if !matches!(key.form, Form::Number) {
                // A list keeps the order that it has in the file.
                let words = |text: &str| text.split(',').map(String::from).collect::<BTreeSet<_>>();
                prop_assert!(got == *value || (key.form == Form::List && words(&got) == words(value)), "{got}, not {value}");
            }
            let (live, restart) = live_changes(&before, &again);
            prop_assert!(live.iter().chain(&restart).all(|changed| *changed == key.name));
        }
        let text = document.to_string();
        prop_assert!(layout.lines().filter_map(|line| line.split_once('#')).all(|(_, comment)| text.contains(comment)));

        let rendered = document.config().to_toml();
        prop_assert_eq!(&config(&rendered), document.config());

        for (name, _) in &pairs {
            document.unset(name).unwrap();
        }
        prop_assert_eq!(document.config(), &Config::default());
    }
}
