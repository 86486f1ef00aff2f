//! Limits and faults, with real traffic.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use lazaret_base::Kind;
use lazaret_net::link;
use lazaret_net::netlink::Socket;
use lazaret_net::shape::{self, Impairment};

use crate::world::{self, Namespace, addresses, attached, bridge, port, run};

/// How long a container takes to receive this many bytes.
fn download(container: &Namespace, bytes: usize) -> Duration {
    let listener = container.act(|| TcpListener::bind((addresses("web").0, 0)).unwrap());
    let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    transfer(sender, listener.accept().unwrap().0, bytes)
}

/// How long it takes to send them to the host.
fn upload(container: &Namespace, bytes: usize) -> Duration {
    let listener = container.act(|| TcpListener::bind((addresses("web").0, 0)).unwrap());
    let receiver = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    transfer(listener.accept().unwrap().0, receiver, bytes)
}

fn transfer(mut sender: TcpStream, mut receiver: TcpStream, bytes: usize) -> Duration {
    let sending = thread::spawn(move || sender.write_all(&vec![0; bytes]));
    let before = Instant::now();
    receiver.read_exact(&mut vec![0; bytes]).unwrap();
    let took = before.elapsed();
    sending.join().unwrap().unwrap();
    took
}

fn connected() -> (Socket, Namespace) {
    let mut host = world::host();
    link::ensure_bridge(&mut host, &bridge()).unwrap();
    let web = attached(&mut host, &port("web"));
    (host, web)
}

#[test]
fn downloads_are_as_fast_as_they_may_be() {
    let (mut host, web) = connected();
    let veth = port("web").name;
    const SIZE: usize = 400_000;
    // 400 kB at 1 MB/s, but for the first 16 KiB, which go at once.
    shape::limit_download(&mut host, &veth, Some("8mbit".parse().unwrap())).unwrap();
    let limited = download(&web, SIZE);
    assert!(limited > Duration::from_millis(330), "{limited:?}");
    // A limit is replaced, and a fast one does not slow down.
    shape::limit_download(&mut host, &veth, Some("100gbit".parse().unwrap())).unwrap();
    assert!(run(&format!("tc qdisc show dev {veth}")).contains("rate 100Gbit"));
    assert!(download(&web, SIZE) < limited);
    for _ in 0..2 {
        shape::limit_download(&mut host, &veth, None).unwrap();
    }
    assert!(!run(&format!("tc qdisc show dev {veth}")).contains("tbf"));
}

#[test]
fn some_megabytes_take_as_long_as_the_rate_says_in_both_directions() {
    let (mut host, web) = connected();
    let veth = port("web").name;
    const SIZE: usize = 4 << 20;
    let rate = Some("32mbit".parse().unwrap());
    shape::limit_download(&mut host, &veth, rate).unwrap();
    shape::limit_upload(web.0.as_fd(), "eth0", rate).unwrap();
    let due = SIZE as f64 / 4e6;
    // A machine that is busy is slower than it should be; nothing makes it faster.
    for took in [download(&web, SIZE), upload(&web, SIZE)] {
        assert!((0.93 * due..1.5 * due).contains(&took.as_secs_f64()), "{took:?} for {due} seconds' worth");
    }
    shape::limit_upload(web.0.as_fd(), "eth0", None).unwrap();
    assert!(upload(&web, SIZE).as_secs_f64() < 0.5 * due);
}

#[test]
fn a_limit_for_nobody_is_an_error() {
    let (mut host, _web) = connected();
    let e = shape::limit_download(&mut host, "lz-nobody", None).unwrap_err();
    assert_eq!((e.to_string().as_str(), e.what()), ("there is no interface `lz-nobody`", Kind::NotFound));
}

/// How long a datagram takes there and back.
fn round_trip(from: &UdpSocket, to: &UdpSocket) -> Duration {
    from.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    to.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = [0; 8];
    let mut once = || {
        let before = Instant::now();
        from.send_to(b"there", to.local_addr().unwrap()).unwrap();
        to.recv_from(&mut buffer).unwrap();
        to.send_to(b"back", from.local_addr().unwrap()).unwrap();
        from.recv_from(&mut buffer).unwrap();
        before.elapsed()
    };
    // The first has to find its neighbours.
    once();
    once()
}

/// Some kernels have no netem: they must say so, and leave the way out as it was.
#[test]
fn delays_are_felt_or_the_missing_module_is_named() {
    let (_host, web) = connected();
    let (v4, v6) = addresses("web");
    let gateways = [world::prefix4(), world::prefix6()].map(lazaret_net::subnet::gateway);
    let slow = Impairment { delay: Duration::from_millis(60), ..Impairment::default() };
    let times =
        || [(v4, gateways[0]), (v6, gateways[1])].map(|(own, gateway)| round_trip(&web.udp(own), &world::udp(gateway)));
    let fast = |time: Duration| time < Duration::from_millis(50);

    for (towards, module) in [(vec![], "sch_netem"), (vec![gateways[1]], "sch_prio")] {
        let whole = towards.is_empty();
        match shape::impair(web.0.as_fd(), "eth0", &[Impairment { towards, ..slow.clone() }]) {
            Ok(()) => {
                let [v4, v6] = times();
                assert!(!fast(v6) && fast(v4) != whole, "{v4:?} {v6:?}");
            }
            Err(e) => {
                assert_eq!(e.what(), Kind::Missing, "{e}");
                assert_eq!(e.errno(), Some(rustix::io::Errno::NOENT));
                assert!(e.advice().unwrap().contains(&format!("modprobe {module}")), "{e}: {:?}", e.advice());
            }
        }
        shape::impair(web.0.as_fd(), "eth0", &[]).unwrap();
        assert!(times().into_iter().all(fast));
        assert!(!web.run("tc qdisc show dev eth0").contains("netem"));
    }
}
