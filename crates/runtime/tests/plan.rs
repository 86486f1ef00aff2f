//! Plans are pure values: what a start does is reviewed here as text.

use lazaret_config::{Config, IdRange, parse};
use lazaret_runtime::cgroup::{Group, Hierarchies};
use lazaret_runtime::host::{Host, Label};
use lazaret_runtime::plan::{
    Api, Bind, GuestStep, HostStep, Network, OurInit, Plan, Program, Root, Side, Spec, StageStep, Step, program,
};

fn hybrid() -> Host {
    let v1 = ["cpu,cpuacct", "memory", "pids", "systemd"].map(|name| format!("/sys/fs/cgroup/{name}").into());
    let cgroups = Hierarchies { v2: "/sys/fs/cgroup/unified".into(), controllers: Vec::new(), v1: v1.into() };
    Host { cgroups, systemd: false, label: Label::None, fuse: true, tun: true }
}

fn workstation() -> Host {
    let controllers = ["cpuset", "cpu", "io", "memory", "pids"].map(String::from).into();
    let cgroups = Hierarchies { v2: "/sys/fs/cgroup".into(), controllers, v1: Vec::new() };
    Host { cgroups, systemd: true, label: Label::AppArmor, fuse: true, tun: false }
}

fn spec(config: &str) -> Spec {
    let config = parse("container.toml", config).unwrap();
    let bare = config.image == "host";
    Spec {
        name: "web".parse().unwrap(),
        root: Root::Overlay {
            layers: vec!["/images/a".into()],
            own: "/containers/web".into(),
            volatile: false,
            in_memory: false,
        },
        binds: vec![Bind { source: "/usr".into(), target: "/usr".into() }],
        shown: Vec::new(),
        user: None,
        ids: (!config.privileged).then_some(IdRange { start: 1 << 30, count: 65536 }),
        group: Group { base: "lazaret/web".into(), scope: None },
        scratch: "/run/web/scratch".into(),
        network: Network::Alone,
        person: (1000, 1000),
        program: program(&config.init, bare),
        environment: config.env.clone().into_iter().collect(),
        config,
    }
}

fn compile(config: &str, host: &Host) -> Plan {
    Plan::compile(&spec(config), host).unwrap()
}

#[test]
fn a_plain_container_on_a_hybrid_host() {
    insta::assert_snapshot!(compile("", &hybrid()));
}

#[test]
fn limits_and_a_label_on_a_workstation() {
    let config = "image = \"/images/debian\"\nmemory = \"1G\"\nswap = \"0\"\ncpus = 1.5\ncpu_weight = 50\npids = 100\n\
                  apparmor = \"mine\"\nno_new_privs = true\n[rlimits]\nnofile = \"1024:4096\"\n[time]\nboottime = \"1h\"\n";
    insta::assert_snapshot!(compile(config, &workstation()));
}

#[test]
fn what_the_host_shows_of_a_session_is_there_before_the_user() {
    let bind = |source: &str, target: &str| Bind { source: source.into(), target: target.into() };
    let shown = vec![bind("/session", "/run/lazaret"), bind("/session/x11", "/tmp/.X11-unix")];
    let plan = Plan::compile(&Spec { shown, user: Some("ann".into()), ..spec("") }, &hybrid()).unwrap().to_string();
    let at = |words: &str| plan.find(words).unwrap_or_else(|| panic!("no step is {words}\n{plan}"));
    assert!(at("attaching tmpfs at `/run`") < at("showing `/session` at `/run/lazaret`, read-only"));
    assert!(at("making `/tmp` a mount of its own") < at("showing `/session/x11` at `/tmp/.X11-unix`, read-only"));
    assert!(at("showing `/session/x11`") < at("leaving the host's root"));
    assert!(at("entering the finished mount namespace") < at("making the user `ann`"));
    assert!(at("making the user `ann`") < at("limiting capabilities"));
}

#[test]
fn a_network_is_connected_while_the_mounts_are_made() {
    let plan = Plan::compile(&Spec { network: Network::Connected, ..spec("") }, &hybrid()).unwrap();
    let at = |wanted: &Step| plan.steps.iter().position(|step| step == wanted).unwrap();
    let begun = at(&Step::Host(HostStep::BeginNetwork));
    assert!(matches!(plan.steps[begun - 1], Step::Host(HostStep::Clone { .. })));
    let (mounts, finished) = (at(&Step::Host(HostStep::TakeMounts)), at(&Step::Host(HostStep::FinishNetwork)));
    assert_eq!(finished, mounts + 1);
    assert!(at(&Step::Guest(GuestStep::Resolver)) > finished);
}

#[test]
fn shares_come_after_the_seal_and_those_above_others_first() {
    let plan = compile("shares = [\"/srv/b:/mnt/in/b\", \"/srv/a:/mnt/in:ro\"]\n", &hybrid());
    let at = |words: &str| plan.steps.iter().position(|step| step.to_string().starts_with(words)).unwrap();
    let (above, below) = (at("sharing `/srv/a` at `/mnt/in`, read-only"), at("sharing `/srv/b` at `/mnt/in/b`, of"));
    assert!(at("taking the finished mount namespace") < above && above < below && below < at("entering the finished"));
    // The host's side has them in hand already: no turn more is needed.
    assert!(plan.steps[above - 1..=below].iter().all(|step| step.side() == Side::Host));
}

#[test]
fn who_shares_the_hosts_network_sees_its_sysfs_and_leaves_its_loopback_alone() {
    let plan = Plan::compile(&Spec { network: Network::Host, ..spec("") }, &hybrid()).unwrap();
    let has = |wanted: &Step| plan.steps.contains(wanted);
    assert!(plan.steps.iter().all(|step| match step {
        Step::Host(HostStep::Clone { namespaces, .. }) => !namespaces.contains(&"net"),
        Step::Guest(GuestStep::Mount(api)) => *api != Api::Sys,
        _ => true,
    }));
    assert!(has(&Step::Stage(StageStep::HostSys)) && has(&Step::Stage(StageStep::ReadOnlyMount("sys"))));
    assert!(!has(&Step::Guest(GuestStep::Loopback)) && !has(&Step::Host(HostStep::BeginNetwork)));
}

#[test]
fn a_privileged_container_has_no_ids_to_map_and_no_locks() {
    let plan = compile("privileged = true\n", &hybrid());
    let has = |step: &dyn Fn(&Step) -> bool| plan.steps.iter().any(step);
    assert!(!has(&|s| matches!(s, Step::Host(HostStep::MapIds(_)) | Step::Stage(StageStep::Seal))));
    assert!(has(&|s| matches!(s, Step::Stage(StageStep::Root { id_mapped: false, .. }))));
}

#[test]
fn nesting_leaves_proc_and_sys_bare() {
    let plan = compile("nesting = true\n", &hybrid());
    let masks =
        |s: &&Step| matches!(s, Step::Stage(StageStep::Mask(_) | StageStep::ReadOnly(_) | StageStep::ReadOnlyMount(_)));
    assert_eq!(plan.steps.iter().filter(masks).count(), 0);
}

#[test]
fn every_turn_of_another_side_comes_back_to_the_host_or_ends_the_plan() {
    for host in [hybrid(), workstation()] {
        let plan = compile("image = \"/images/debian\"\n", &host);
        assert_eq!(plan.steps.first().unwrap().side(), Side::Host);
        assert!(matches!(plan.steps.last(), Some(Step::Guest(GuestStep::Execute { .. }))));
        let seal = plan.steps.iter().position(|s| matches!(s, Step::Stage(StageStep::Seal))).unwrap();
        // Nothing may be mounted once every mount is locked, and everything is before.
        assert!(plan.steps[seal + 1..].iter().all(|s| s.side() != Side::Stage));
        // The filter is the last thing before the program: no step of ours is subject to it.
        assert!(matches!(plan.steps[plan.steps.len() - 2], Step::Guest(GuestStep::Filter(_))));
    }
}

#[test]
fn a_limit_whose_controller_is_missing_is_an_error_that_names_the_key() {
    let mut host = hybrid();
    host.cgroups.v1.retain(|mount| !mount.ends_with("memory"));
    let e = Plan::compile(&spec("memory = \"1G\"\n"), &host).unwrap_err();
    assert_eq!(e.to_string(), "`memory` needs the cgroup controller `memory`, which this host does not offer");
    // The default limit on tasks is not worth refusing for.
    host.cgroups.v1.retain(|mount| !mount.ends_with("pids"));
    assert!(Plan::compile(&spec(""), &host).is_ok());
}

#[test]
fn a_label_that_the_host_cannot_give_is_an_error() {
    let e = Plan::compile(&spec("apparmor = \"mine\"\n"), &hybrid()).unwrap_err();
    assert!(e.to_string().contains("`mine`"), "{e}");
}

#[test]
fn our_init_runs_what_it_is_told() {
    let mut spec = spec("");
    spec.program = Program::Ours(OurInit { command: vec!["id".into()], ..OurInit::default() });
    let plan = Plan::compile(&spec, &hybrid()).unwrap();
    assert!(plan.to_string().ends_with("executing `id` under our own init\n"));
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json.as_array().unwrap().len(), plan.steps.len());
}

#[test]
fn a_changed_limit_is_written_and_a_dropped_one_is_lifted() {
    let (before, after) =
        (parse("t", "memory = \"1G\"\ncpus = 2\n").unwrap(), parse("t", "cpus = 1\npids = \"max\"\n").unwrap());
    let group = Group { base: "lazaret/web".into(), scope: None };
    let limits = lazaret_runtime::cgroup::limits(&after, Some(&before), &group, &workstation().cgroups).unwrap();
    let lines: Vec<_> =
        limits.iter().map(|l| format!("{} {}", l.file.file_name().unwrap().display(), l.value)).collect();
    // Swap was not limited, so it is left alone: a kernel that does not count it has no such file.
    assert_eq!(lines, ["memory.max max", "cpu.max 100000 100000", "pids.max max"]);
    assert_eq!(Config::default().pids, Some(8192));
}
