//! Loads for the network, each a run of this program inside a network namespace: `bench --load KIND ARGUMENTS`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::Result;

/// Queries that are on their way at the same time: fewer than a container of ours may have open, which is 64.
const OUTSTANDING: u16 = 60;

/// Without an answer for so long, the load has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Carries out one load.
pub fn run(words: &[String]) -> Result {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["dns", server, count, name] => ask(server, number(count)?, name),
        ["pour", to, bytes] => pour(to, number(bytes)?),
        ["drain", at] => drain(at),
        _ => Err("a load is one of dns, pour and drain".into()),
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

/// Asks for the address of a name again and again. Every answer must have one.
fn ask(server: &str, count: u64, name: &str) -> Result {
    let asking = |e: std::io::Error| format!("asking {server}: {e}");
    let socket =
        UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect(server).map(|()| socket)).map_err(asking)?;
    // A lost packet is asked for again after a while.
    socket.set_read_timeout(Some(Duration::from_millis(100))).map_err(asking)?;
    let mut open = [false; OUTSTANDING as usize];
    let (mut asked, mut answered, mut last) = (0, 0, Instant::now());
    let mut bytes = [0; 4096];
    let send = |id: u16| socket.send(&query(id, name)).map_err(asking);
    while answered < count {
        for id in 0..OUTSTANDING {
            if !open[usize::from(id)] && asked < count {
                send(id)?;
                open[usize::from(id)] = true;
                asked += 1;
            }
        }
        match socket.recv(&mut bytes) {
            Ok(length) => {
                let id = u16::from_be_bytes([bytes[0], bytes[1]]);
                if length < 12 || bytes[3] & 15 != 0 || bytes[7] == 0 {
                    let (code, answers) = (bytes[3] & 15, bytes[7]);
                    return Err(format!(
                        "{server} has no address for {name}: code {code}, {answers} answers, after {answered}"
                    ));
                }
                if std::mem::take(&mut open[usize::from(id % OUTSTANDING)]) {
                    answered += 1;
                    last = Instant::now();
                }
            }
            Err(_) if last.elapsed() > PATIENCE => return Err(format!("{server} does not answer")),
            Err(_) => {
                for id in (0..OUTSTANDING).filter(|id| open[usize::from(*id)]) {
                    send(id)?;
                }
            }
        }
    }
    Ok(())
}

/// A question for the IPv4 address of a name (RFC 1035 section 4.1), recursion desired.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut packet = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

/// Sends as much as it is told, and waits until all of it has arrived.
fn pour(to: &str, bytes: u64) -> Result {
    let pouring = |e: std::io::Error| format!("sending to {to}: {e}");
    let begun = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(to) {
            Ok(stream) => break stream,
            // Whoever is to take it may not listen yet.
            Err(e) if begun.elapsed() > PATIENCE => return Err(pouring(e)),
            Err(_) => std::thread::yield_now(),
        }
    };
    let block = vec![0; 256 * 1024];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(block.len() as u64) as usize;
        stream.write_all(&block[..part]).map_err(pouring)?;
        left -= part as u64;
    }
    stream.shutdown(std::net::Shutdown::Write).map_err(pouring)?;
    stream.read_exact(&mut [0]).map_err(pouring)
}

/// Takes what one sends, and says when it has all.
fn drain(at: &str) -> Result {
    let draining = |e: std::io::Error| format!("listening on {at}: {e}");
    let (mut stream, _) = TcpListener::bind(at).and_then(|listener| listener.accept()).map_err(draining)?;
    let mut block = vec![0; 256 * 1024];
    while stream.read(&mut block).map_err(draining)? > 0 {}
    stream.write_all(&[1]).map_err(draining)
}
