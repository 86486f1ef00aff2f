//! The walls, looked at from inside by root of the container, who tries to get over them.

use std::fs;
use std::path::Path;

use crate::harness::*;

fn running() -> World {
    let world = World::new();
    world.start_container("web", bare());
    world
}

/// Each script must fail inside.
#[track_caller]
fn denied(world: &World, scripts: &[&str]) {
    for script in scripts {
        let out = world.lazaret(&["exec", "web", "--", "sh", "-c", script]);
        assert_ne!(out.status, 0, "`{script}` should fail: {out}");
        assert_ne!(out.status, 125, "`{script}` was not even tried: {out}");
    }
}

#[test]
fn ids_are_the_containers_own() {
    let world = running();
    world.start_container("db", bare());
    let start = |name: &str| world.info(name)["ids"]["start"].as_u64().unwrap();
    assert_eq!(start("web").abs_diff(start("db")), 65536);
    for file in ["uid_map", "gid_map"] {
        let map = world.exec("web", &["cat", &format!("/proc/self/{file}")]);
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", &start("web").to_string(), "65536"], "{file}");
    }
    assert_eq!(world.exec("web", &["cat", "/proc/self/setgroups"]), "allow");
    let status = fs::read_to_string(format!("/proc/{}/status", world.init_pid("web"))).unwrap();
    let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    assert_eq!(uid.split_whitespace().nth(1), Some(&*start("web").to_string()), "root inside is nobody outside");
    // What belongs to the host's root is nobody's inside.
    assert_eq!(world.exec("web", &["stat", "-c", "%u", "/proc/sys"]), "65534");
    denied(&world, &["chown 70000 /tmp", "chown 0 /proc/sys"]);
}

#[test]
fn mounts_of_ours_cannot_be_taken_away_or_changed() {
    let world = running();
    let mounted = world.exec_sh("web", "cut -d' ' -f5 /proc/self/mountinfo");
    assert!(mounted.lines().count() > 12, "{mounted}");
    for at in mounted.lines() {
        // Remounting a file system that may be written to is nobody's harm; those below are read-only or masks.
        denied(&world, &[&format!("umount {at}"), &format!("umount -l {at}")]);
    }
    denied(
        &world,
        &[
            "mount -o remount,bind,rw /proc/sys",
            "mount -o remount,rw /proc/sys",
            "mount -o remount,bind,rw /sys",
            "mount -o remount,rw /sys",
            "mount -o remount,bind,dev /",
            "mount -o remount,bind,suid,exec,dev /proc",
            "unshare -m sh -c 'umount /proc/kcore || umount -l /proc/kcore'",
            "unshare -m sh -c 'umount -l /proc/sys || mount -o remount,bind,rw /proc/sys'",
            "mount --bind /proc /mnt",
            "mount -o bind /proc/sys /mnt && mount -o remount,bind,rw /mnt",
            "mount --move /proc/sys /mnt",
            // A fresh one would be without our masks.
            "mount -t proc proc /mnt",
            "mount -t sysfs sysfs /mnt",
            "pivot_root / /mnt",
        ],
    );
    // Mounts of its own are its own business.
    assert_eq!(
        world.exec_sh("web", "mount -t tmpfs none /mnt && touch /mnt/x && ls /mnt && umount /mnt && ls /mnt"),
        "x"
    );
    assert_eq!(world.exec_sh("web", "mount --bind /etc /mnt && cat /mnt/hostname && umount /mnt"), "web");
    // And stay inside: the host sees none of them.
    world.exec_sh("web", "mount -t tmpfs lazaret-lab-inside /mnt");
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("lazaret-lab-inside"));
}

#[test]
fn the_hosts_kernel_cannot_be_turned() {
    let world = running();
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    denied(
        &world,
        &[
            "echo x > /proc/sys/kernel/core_pattern",
            "echo x > /proc/sys/kernel/modprobe",
            "echo 0 > /proc/sys/kernel/randomize_va_space",
            "echo 1 > /proc/sys/vm/drop_caches",
            "echo 1 > /proc/sys/kernel/sysrq",
            "echo h > /proc/sysrq-trigger",
            "echo 1 > /proc/irq/default_smp_affinity",
            "echo x > /sys/kernel/uevent_helper",
            "echo 1 > /sys/kernel/profiling",
            "for f in /sys/class/block/*/queue/read_ahead_kb /sys/block/*/uevent; do echo 1 > $f && exit 0; done; exit 1",
            "find /sys -path /sys/fs/cgroup -prune -o -type f -writable -print 2>/dev/null | head -1 | while read f; do : >> $f && echo $f; done | grep .",
            "head -c1 /proc/kcore | grep -q .",
            "head -c1 /proc/kmsg | grep -q .",
            "grep -q . /proc/kallsyms",
            "grep -q . /proc/keys",
            "dmesg",
            "! date -s 2020-01-01 2>&1 | grep -q \"can't set date\"",
            "insmod /bin/busybox",
            "swapon /tmp",
            "nice -n -20 sh -c 'chrt -f 99 true'",
            "hwclock",
            "mount -t ext4 /dev/vda /mnt",
            "mount -t debugfs none /mnt",
            "mount -t tracefs none /mnt",
            "mount -t securityfs none /mnt",
            "mount -t bpf none /mnt",
            // A v1 hierarchy shows the container's own group, which is the host's.
            "mount -t cgroup -o memory none /mnt && echo -1 > /mnt/memory.limit_in_bytes",
            "umount /mnt; mount -t cgroup -o memory none /mnt && mkdir /mnt/x",
            "umount /mnt; mount -t cgroup -o memory none /mnt && test -e /mnt/release_agent",
        ],
    );
    assert_eq!(before, fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap());
    // What is per namespace can be set, and is not the host's.
    let host = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    let other = if host.trim() == "1" { "0" } else { "1" };
    world.exec_sh("web", &format!("echo {other} > /proc/sys/net/ipv4/ip_forward"));
    assert_eq!(host, fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap());
}

#[test]
fn devices_are_those_that_harm_nobody() {
    let world = running();
    let listed = world.exec_sh("web", "ls -A /dev");
    let allowed = [
        "console", "core", "fd", "full", "fuse", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero", "net",
    ];
    let others: Vec<_> = listed.lines().filter(|name| !allowed.contains(name)).collect();
    assert!(others.is_empty(), "in /dev: {others:?}");
    assert!(["", "tun"].contains(&&*world.exec_sh("web", "ls -A /dev/net 2>/dev/null || true")));
    assert_eq!(world.exec_sh("web", "head -c3 /dev/zero | od -An -tx1; echo x > /dev/null; head -c1 /dev/urandom | wc -c; echo x > /dev/full 2>/dev/null || echo full"), " 00 00 00\n1\nfull");
    assert_eq!(
        world.exec_sh("web", "stat -c '%F %a' /dev/null /dev/tty"),
        "character special file 666\ncharacter special file 666"
    );
    denied(
        &world,
        &[
            "mknod /tmp/sda b 8 0 && head -c1 /tmp/sda",
            "mknod /tmp/mem c 1 1 && head -c1 /tmp/mem",
            "mknod /tmp/kmsg c 1 11 && head -c1 /tmp/kmsg",
            "mknod /dev/sda b 8 0 && head -c1 /dev/sda",
            "mknod /dev/shm/mem c 1 1 && head -c1 /dev/shm/mem",
        ],
    );
}

#[test]
fn the_network_is_a_loopback_and_nothing_else() {
    let world = running();
    let links = world.exec_sh("web", "ls /sys/class/net; ip -o link | cut -d: -f2");
    assert_eq!(links, "lo\n lo");
    assert_eq!(world.exec_sh("web", "ping -c1 -W2 127.0.0.1 >/dev/null && echo up"), "up");
    assert_eq!(world.exec_sh("web", "ip route; tail -n +2 /proc/net/route"), "");
    // Abstract sockets belong to a network namespace, too.
    let host = fs::read_to_string("/proc/net/unix").unwrap();
    assert!(host.lines().count() > 1);
    assert_eq!(world.exec_sh("web", "tail -n +2 /proc/net/unix | grep -c '@' || true"), "0");
    denied(&world, &["ping -c1 -W1 192.0.2.1"]);
    // A server on the host's loopback is as far away.
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    denied(&world, &[&format!("nc 127.0.0.1 {port} </dev/null")]);
}

#[test]
fn processes_of_others_are_out_of_sight_and_reach() {
    let world = running();
    world.start_container("db", bare());
    let pids = world.exec_sh("web", "cd /proc; ls -d [0-9]*");
    assert!(pids.lines().count() <= 4, "process 1, the shell and ls: {pids}");
    let (web, db) = (world.init_pid("web"), world.init_pid("db"));
    let proc = format!("/proc/{web}/ns/pid");
    assert_ne!(fs::read_link(proc).unwrap(), fs::read_link(format!("/proc/{db}/ns/pid")).unwrap());
    let victim = world.keeper_pid("db");
    denied(&world, &[&format!("kill -0 {db}"), &format!("kill -0 {victim}")]);
    // To the host they are ordinary processes, with the keeper as their parent.
    let status = fs::read_to_string(format!("/proc/{web}/status")).unwrap();
    assert!(status.contains(&format!("PPid:\t{}\n", world.keeper_pid("web"))), "{status}");
    world.lazaret(&["exec", "web", "--", "kill", "-9", "-1"]);
    assert_eq!(world.state("db"), "running");
    assert!(Path::new(&format!("/proc/{victim}")).exists());
}

#[test]
fn the_host_name_and_the_rest_are_its_own() {
    let world = running();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    world.exec_sh("web", "hostname changed");
    assert_eq!(world.exec("web", &["hostname"]), "changed");
    assert_eq!(host, fs::read_to_string("/proc/sys/kernel/hostname").unwrap());
    let boot_id = |name: &str| world.exec(name, &["cat", "/proc/sys/kernel/random/boot_id"]);
    world.start_container("db", bare());
    let ids = [boot_id("web"), boot_id("db"), fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap()];
    assert!(ids[0] != ids[1] && ids[0] != ids[2].trim() && ids[1] != ids[2].trim(), "{ids:?}");
    assert_eq!(boot_id("web"), ids[0], "one for each boot");
    world.ok(&["restart", "web"]);
    assert_ne!(boot_id("web"), ids[0], "and another for the next");
}

#[test]
fn cgroups_inside_are_one_pure_tree_of_its_own() {
    let world = running();
    assert_eq!(world.exec_sh("web", "grep ^0: /proc/self/cgroup"), "0::/");
    let mounted = world.exec_sh("web", "grep cgroup /proc/self/mounts");
    assert!(mounted.lines().count() == 1 && mounted.starts_with("cgroup2 /sys/fs/cgroup cgroup2 "), "{mounted}");
    let script = "cd /sys/fs/cgroup && mkdir mine && echo $$ > mine/cgroup.procs && cat /proc/self/cgroup | grep ^0: && \
                  echo $$ > cgroup.procs && rmdir mine";
    assert_eq!(world.exec_sh("web", script), "0::/mine");
    denied(
        &world,
        &[
            "echo 1 > /sys/fs/cgroup/cgroup.freeze",
            "echo 1 > /sys/fs/cgroup/cgroup.kill",
            "echo max > /sys/fs/cgroup/pids.max",
            "echo max > /sys/fs/cgroup/memory.max",
            "mkdir /sys/fs/cgroup/../escape",
            "echo $$ > /sys/fs/cgroup/../cgroup.procs",
        ],
    );
    // Groups that it leaves behind are no hindrance.
    world.exec_sh(
        "web",
        "mkdir -p /sys/fs/cgroup/a/b/c; sleep 1000 >/dev/null 2>&1 & echo $! > /sys/fs/cgroup/a/b/c/cgroup.procs",
    );
    world.ok(&["stop", "web"]);
    assert_eq!(world.cgroups(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn namespaces_of_users_need_nesting() {
    let world = running();
    denied(&world, &["unshare -U true", "unshare -U -r mount -t tmpfs none /mnt"]);
    world.ok(&["create", "nest", "--image", text(&bare()), "--set", "nesting=true"]);
    world.ok(&["start", "nest"]);
    assert_eq!(world.exec("nest", &["unshare", "-U", "-r", "id", "-u"]), "0");
    assert_eq!(world.exec_sh("nest", "unshare -U -r -m -p -f sh -c 'mount -t proc proc /proc && echo $$'"), "1");
    let out = world.lazaret(&["exec", "nest", "--", "sh", "-c", "echo x > /proc/sys/kernel/core_pattern"]);
    assert_ne!(out.status, 0, "what is bare then is still not its own");
}

#[test]
fn programs_that_look_for_a_container_find_one() {
    let world = running();
    assert_eq!(world.exec_sh("web", "tr '\\0' '\\n' < /proc/1/environ | grep ^container="), "container=lazaret");
    assert_eq!(world.exec_sh("web", "echo $container"), "lazaret");
}
