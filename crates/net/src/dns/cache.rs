//! Answers of upstream servers, remembered as long as they say, within bounds.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use super::code::{CD, RD};
use super::query::HEADER;
use super::upstream::Answer;
use super::{Name, Query, code, word};
use crate::responder::{Asker, Directory};

/// What makes two questions one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name asked about.
    pub name: Name,
    /// The type asked for.
    pub kind: u16,
    /// Whether DNSSEC records are wanted.
    pub dnssec: bool,
    /// Whether the server shall not check signatures.
    pub checking_disabled: bool,
    /// Who is asked: containers with servers of their own share no answers with others.
    pub servers: Rc<[SocketAddr]>,
}

impl Key {
    /// The key of a client's question.
    pub fn of(query: &Query, servers: &Rc<[SocketAddr]>) -> Key {
        Key {
            name: query.name.clone(),
            kind: query.kind,
            dnssec: query.wants_dnssec(),
            checking_disabled: query.flags & CD != 0,
            servers: servers.clone(),
        }
    }
}

/// A bounded store of answers. The oldest make room; one that was asked for meanwhile gets a second round.
pub struct Cache {
    entries: HashMap<Rc<Key>, Entry>,
    order: VecDeque<Rc<Key>>,
    size: usize,
    limit: usize,
}

struct Entry {
    answer: Rc<Answer>,
    since: Instant,
    used: bool,
}

impl Cache {
    /// Remembers at most about `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Cache { entries: HashMap::new(), order: VecDeque::new(), size: 0, limit }
    }

    /// The answer to a question, if it is known and still believed, and its age in seconds.
    pub fn find(&mut self, key: &Key, now: Instant) -> Option<(Rc<Answer>, u32)> {
        let entry = self.entries.get_mut(key)?;
        let age = now.saturating_duration_since(entry.since).as_secs();
        if age >= u64::from(entry.answer.seconds) {
            return None;
        }
        entry.used = true;
        Some((entry.answer.clone(), age as u32))
    }

    /// Remembers an answer, if it may be.
    pub fn keep(&mut self, key: &Key, answer: &Rc<Answer>, now: Instant) {
        let weight = weight(answer);
        // A single answer must not push out all others.
        if answer.seconds == 0 || weight > self.limit / 16 {
            return;
        }
        let entry = Entry { answer: answer.clone(), since: now, used: false };
        match self.entries.get_mut(key) {
            Some(old) => {
                self.size -= self::weight(&old.answer);
                *old = entry;
            }
            None => {
                let key = Rc::new(key.clone());
                self.order.push_back(key.clone());
                self.entries.insert(key, entry);
            }
        }
        self.size += weight;
        while self.size > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.give_way(oldest, now);
        }
    }

    /// Forgets everything: the host has changed its network.
    pub fn clear(&mut self) {
        self.entries = HashMap::new();
        self.order = VecDeque::new();
        self.size = 0;
    }

    /// About how many bytes are in use.
    pub fn size(&self) -> usize {
        self.size
    }

    fn give_way(&mut self, oldest: Rc<Key>, now: Instant) {
        let Some(entry) = self.entries.get_mut(&oldest) else { return };
        let believed = now.saturating_duration_since(entry.since).as_secs() < u64::from(entry.answer.seconds);
        if std::mem::take(&mut entry.used) && believed {
            self.order.push_back(oldest);
            return;
        }
        self.size -= weight(&entry.answer);
        self.entries.remove(&oldest);
    }
}

/// What an entry costs: its bytes, its key and what the tables need beside.
fn weight(answer: &Answer) -> usize {
    answer.bytes.len() * 5 / 4 + 640
}

/// Tells a client what upstream said: with its own number, spelling and flags, no longer than `limit`, and without what
/// its policy withholds.
pub fn tell(
    directory: &Directory,
    asker: Asker,
    query: &Query,
    answer: &Answer,
    age: u32,
    limit: usize,
    out: &mut Vec<u8>,
) {
    if withheld(directory, asker, &query.name, answer) {
        // Rebinding: a name of the Internet that points into the LAN. "No such record" is final for the client.
        query.begin(out, u16::from(code::NO_ERROR), [0; 3]);
        return query.finish(out, limit, Some(code::FILTERED));
    }
    if answer.bytes.len() < HEADER + query.spelled.len() {
        return query.refuse(out, answer.rcode, None);
    }
    answer.write(age, out);
    out[..2].copy_from_slice(&query.id.to_be_bytes());
    let flags = word(out, 2).unwrap_or_default() & !(RD | CD | code::AA) | (query.flags & (RD | CD)) | code::RA;
    out[2..4].copy_from_slice(&flags.to_be_bytes());
    out[HEADER..HEADER + query.spelled.len()].copy_from_slice(&query.spelled);
    query.finish(out, limit, None);
}

/// Whether an answer points into the LAN and the asker's policy opens neither the LAN nor this name.
pub(crate) fn withheld(directory: &Directory, asker: Asker, name: &Name, answer: &Answer) -> bool {
    !directory.has_lan(asker)
        && !directory.allows_name(asker, name)
        && answer.addresses.iter().any(|&address| directory.is_lan(address))
}
