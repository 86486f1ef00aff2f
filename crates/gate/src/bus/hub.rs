//! The bus: who is on it, under what names, and who hears what. Pure: messages go in, messages come out.

use std::collections::BTreeMap;

use super::address;
use super::greeting::Broken;
use super::note::{self, Note};
use super::rule::Rule;
use super::wire::{Kind, Message, NO_REPLY, Writer, is_name};

/// The bus itself, as programs call it.
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
/// The connection that the gate's own services have.
const GATE: &str = ":1.0";
/// The portal, as far as there is one: it opens addresses.
const PORTAL: &str = "org.freedesktop.portal.Desktop";
const PORTAL_PATH: &str = "/org/freedesktop/portal/desktop";
/// What one program may have.
const MOST_NAMES: usize = 64;
const MOST_RULES: usize = 1024;
/// Flags and answers of `RequestName`.
const ALLOW_REPLACEMENT: u32 = 1;
const REPLACE: u32 = 2;
const DO_NOT_QUEUE: u32 = 4;

/// What comes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// It is told to a program, by the number of its connection.
    Tell(u64, Message),
    /// A notification is to be shown; the answer is to this call.
    Show(Message, Note),
    /// One is to be taken away.
    Close(Message, u32),
    /// What the notifications of the session can do is asked.
    Abilities(Message),
    /// An address is to be opened outside.
    Open(String),
}

/// What the bus offers beside itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offers {
    /// Notifications are shown.
    pub notifications: bool,
    /// Addresses are opened, or asked about.
    pub addresses: bool,
}

#[derive(Debug)]
struct Peer {
    /// The name that nobody else ever has; empty before `Hello`.
    unique: String,
    rules: Vec<Rule>,
}

/// One bus.
#[derive(Debug)]
pub struct Hub {
    /// Its id: 32 hexadecimal digits.
    id: String,
    /// What is offered now.
    pub offers: Offers,
    peers: BTreeMap<u64, Peer>,
    /// Who has a name, and who waits for it, with their flags.
    names: BTreeMap<String, Vec<(u64, u32)>>,
    /// Of the last unique name.
    last: u64,
    /// Of our own last message.
    serial: u32,
}

impl Hub {
    /// A bus without anybody on it.
    pub fn new(id: String, offers: Offers) -> Hub {
        Hub { id, offers, peers: BTreeMap::new(), names: BTreeMap::new(), last: 0, serial: 0 }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Somebody has come.
    pub fn join(&mut self, key: u64) {
        self.peers.insert(key, Peer { unique: String::new(), rules: Vec::new() });
    }

    /// Somebody has gone, and all names with them.
    pub fn leave(&mut self, key: u64, out: &mut Vec<Out>) {
        let Some(peer) = self.peers.remove(&key) else { return };
        let held: Vec<String> = self.names.keys().cloned().collect();
        for name in held {
            self.give_up(key, &peer.unique, &name, out);
        }
        if !peer.unique.is_empty() {
            self.owner_changed(&peer.unique, &peer.unique, "", out);
        }
    }

    /// Takes what somebody says.
    ///
    /// # Errors
    ///
    /// What no library says: the connection is to be closed.
    pub fn hear(&mut self, key: u64, mut message: Message, out: &mut Vec<Out>) -> Result<(), Broken> {
        let Some(peer) = self.peers.get(&key) else { return Err(Broken("nobody")) };
        message.sender = peer.unique.clone();
        if peer.unique.is_empty() && !(message.member == "Hello" && message.destination == BUS) {
            return Err(Broken("no `Hello`"));
        }
        match (message.kind, message.destination.as_str()) {
            (Kind::Call, BUS | "") => self.call_of_bus(key, &message, out)?,
            (Kind::Call, note::SERVICE) if self.offers.notifications => self.call_of_notifications(key, message, out),
            (Kind::Call, PORTAL) if self.offers.addresses => self.call_of_portal(key, &message, out),
            (Kind::Call, GATE) => self.call_of_gate(key, message, out),
            (Kind::Signal, "") => self.spread(&message, out),
            (_, destination) => match self.owner(destination) {
                Some(to) => out.push(Out::Tell(to, message)),
                None if message.kind == Kind::Call => {
                    let words = format!("nobody on this bus is called {destination}, and nothing is started by it");
                    self.refuse(key, &message, "ServiceUnknown", &words, out);
                }
                None => {}
            },
        }
        Ok(())
    }

    fn owner(&self, name: &str) -> Option<u64> {
        match self.names.get(name) {
            Some(owners) => owners.first().map(|(key, _)| *key),
            None => self.peers.iter().find(|(_, peer)| peer.unique == name && !name.is_empty()).map(|(key, _)| *key),
        }
    }

    /// Who a name is, by the name that nobody else has.
    fn unique_of(&self, name: &str) -> Option<&str> {
        match name {
            BUS => Some(BUS),
            GATE => Some(GATE),
            _ if self.is_ours(name) => Some(GATE),
            _ => self.owner(name).and_then(|key| self.peers.get(&key)).map(|peer| peer.unique.as_str()),
        }
    }

    /// Whether a name is of a service that the gate is now.
    fn is_ours(&self, name: &str) -> bool {
        (name == note::SERVICE && self.offers.notifications) || (name == PORTAL && self.offers.addresses)
    }

    // --- what we say ---

    fn tell(&mut self, key: u64, mut message: Message, sender: &str, out: &mut Vec<Out>) {
        self.serial = self.serial.checked_add(1).unwrap_or(1);
        message.serial = self.serial;
        message.sender = sender.into();
        if let Some(peer) = self.peers.get(&key) {
            message.destination = peer.unique.clone();
        }
        out.push(Out::Tell(key, message));
    }

    /// Answers a call of one of the gate's services, if its program is still there.
    pub fn answer(&mut self, call: &Message, answer: Message, out: &mut Vec<Out>) {
        if let Some(key) = self.owner(&call.sender).filter(|_| call.flags & NO_REPLY == 0) {
            self.tell(key, answer, GATE, out);
        }
    }

    /// A signal of the gate's services, for whoever wants to hear it.
    pub fn announce(&mut self, mut signal: Message, out: &mut Vec<Out>) {
        self.serial = self.serial.checked_add(1).unwrap_or(1);
        signal.serial = self.serial;
        signal.sender = GATE.into();
        self.spread(&signal, out);
    }

    fn reply(&mut self, key: u64, call: &Message, signature: &str, body: impl FnOnce(&mut Writer), out: &mut Vec<Out>) {
        if call.flags & NO_REPLY == 0 {
            let sender = if call.destination.is_empty() { BUS.into() } else { call.destination.clone() };
            let sender = self.unique_of(&sender).unwrap_or(BUS).to_owned();
            self.tell(key, Message::answer(call).with(signature, body), &sender, out);
        }
    }

    fn refuse(&mut self, key: u64, call: &Message, error: &str, words: &str, out: &mut Vec<Out>) {
        if call.flags & NO_REPLY == 0 {
            let error = format!("org.freedesktop.DBus.Error.{error}");
            self.tell(key, Message::refusal(call, &error, words), BUS, out);
        }
    }

    /// A signal goes to all who asked for it.
    fn spread(&self, signal: &Message, out: &mut Vec<Out>) {
        let is_from = |name: &str| name == signal.sender || self.unique_of(name) == Some(signal.sender.as_str());
        for (key, peer) in &self.peers {
            if peer.rules.iter().any(|rule| rule.fits(signal, is_from)) {
                out.push(Out::Tell(*key, signal.clone()));
            }
        }
    }

    fn owner_changed(&mut self, name: &str, old: &str, new: &str, out: &mut Vec<Out>) {
        let signal = Message::signal(BUS_PATH, BUS, "NameOwnerChanged");
        let mut signal = signal.with("sss", |body| [name, old, new].iter().for_each(|text| body.text(text)));
        self.serial = self.serial.checked_add(1).unwrap_or(1);
        (signal.serial, signal.sender) = (self.serial, BUS.into());
        self.spread(&signal, out);
    }

    fn name_signal(&mut self, key: u64, member: &str, name: &str, out: &mut Vec<Out>) {
        let signal = Message::signal(BUS_PATH, BUS, member).with("s", |body| body.text(name));
        self.tell(key, signal, BUS, out);
    }

    // --- the bus's own calls ---

    fn call_of_bus(&mut self, key: u64, call: &Message, out: &mut Vec<Out>) -> Result<(), Broken> {
        let first = call.signature.starts_with('s').then(|| call.read(&call.signature)).flatten();
        let name = first.and_then(|mut body| body.text()).unwrap_or_default().to_owned();
        match (call.interface.as_str(), call.member.as_str(), call.signature.as_str()) {
            (BUS | "", "Hello", "") => return self.hello(key, call, out),
            (BUS | "", "RequestName", "su") => {
                let flags = call.read("su").and_then(|mut body| body.text().and_then(|_| body.number()));
                self.request(key, call, &name, flags.unwrap_or(0), out);
            }
            (BUS | "", "ReleaseName", "s") => {
                let unique = call.sender.clone();
                let answer = match (self.owner(&name), self.give_up(key, &unique, &name, out)) {
                    (_, true) => 1,
                    (None, _) => 2,
                    (Some(_), _) => 3,
                };
                self.reply(key, call, "u", |body| body.number(answer), out);
            }
            (BUS | "", "AddMatch", "s") => self.add_rule(key, call, &name, out),
            (BUS | "", "RemoveMatch", "s") => {
                let rule = Rule::parse(&name);
                let rules = self.peers.get_mut(&key).map(|peer| &mut peer.rules);
                let at = rules.as_ref().and_then(|rules| rules.iter().position(|there| Some(there) == rule.as_ref()));
                match rules.zip(at) {
                    Some((rules, at)) => {
                        rules.remove(at);
                        self.reply(key, call, "", |_| {}, out);
                    }
                    None => self.refuse(key, call, "MatchRuleNotFound", "there is no such rule", out),
                }
            }
            (BUS | "", "NameHasOwner", "s") => {
                let has = self.unique_of(&name).is_some();
                self.reply(key, call, "b", |body| body.number(has.into()), out);
            }
            (BUS | "", "GetNameOwner", "s") => match self.unique_of(&name).map(str::to_owned) {
                Some(unique) => self.reply(key, call, "s", |body| body.text(&unique), out),
                None => self.refuse(key, call, "NameHasNoOwner", "nobody on this bus has that name", out),
            },
            (BUS | "", "ListQueuedOwners", "s") => {
                let queue = self.names.get(&name).into_iter().flatten();
                let all: Vec<String> = queue.filter_map(|(key, _)| Some(self.peers.get(key)?.unique.clone())).collect();
                self.reply(key, call, "as", |body| body.texts(all.iter().map(String::as_str)), out);
            }
            (BUS | "", "ListNames", "") => {
                let all = self.all_names();
                self.reply(key, call, "as", |body| body.texts(all.iter().map(String::as_str)), out);
            }
            (BUS | "", "ListActivatableNames", "") => self.reply(key, call, "as", |body| body.texts([BUS]), out),
            (BUS | "", "StartServiceByName", "su") => match self.unique_of(&name).is_some() {
                true => self.reply(key, call, "u", |body| body.number(2), out),
                false => self.refuse(key, call, "ServiceUnknown", "nothing is started by this bus", out),
            },
            (BUS | "", "GetId", "") => {
                let id = self.id.clone();
                self.reply(key, call, "s", |body| body.text(&id), out);
            }
            // Whose process it is, is not told: numbers of processes and users mean others outside.
            (BUS | "", "GetConnectionCredentials", "s") => {
                self.reply(key, call, "a{sv}", |body| body.array(8, |_| {}), out)
            }
            _ => self.common(key, call, out),
        }
        Ok(())
    }

    fn hello(&mut self, key: u64, call: &Message, out: &mut Vec<Out>) -> Result<(), Broken> {
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.unique.is_empty()) else {
            self.refuse(key, call, "Failed", "`Hello` was said already", out);
            return Ok(());
        };
        self.last += 1;
        let unique = format!(":1.{}", self.last);
        peer.unique.clone_from(&unique);
        self.reply(key, call, "s", |body| body.text(&unique), out);
        self.owner_changed(&unique, "", &unique, out);
        self.name_signal(key, "NameAcquired", &unique, out);
        Ok(())
    }

    fn all_names(&self) -> Vec<String> {
        let ours = [BUS, GATE, note::SERVICE, PORTAL].into_iter().filter(|name| self.unique_of(name).is_some());
        let unique = self.peers.values().map(|peer| peer.unique.clone()).filter(|name| !name.is_empty());
        ours.map(str::to_owned).chain(unique).chain(self.names.keys().cloned()).collect()
    }

    fn add_rule(&mut self, key: u64, call: &Message, text: &str, out: &mut Vec<Out>) {
        let full = self.peers.get(&key).is_none_or(|peer| peer.rules.len() >= MOST_RULES);
        match Rule::parse(text) {
            _ if text.contains("eavesdrop") => {
                self.refuse(key, call, "AccessDenied", "nobody hears what is said to others", out);
            }
            _ if full => self.refuse(key, call, "LimitsExceeded", "too many rules", out),
            None => self.refuse(key, call, "MatchRuleInvalid", "that is no rule", out),
            Some(rule) => {
                self.peers.entry(key).and_modify(|peer| peer.rules.push(rule));
                self.reply(key, call, "", |_| {}, out);
            }
        }
    }

    fn request(&mut self, key: u64, call: &Message, name: &str, flags: u32, out: &mut Vec<Out>) {
        let ours = [BUS, note::SERVICE, PORTAL].contains(&name);
        if !is_name(name) || name.starts_with([':', '.']) || !name.contains('.') || ours {
            let error = if ours { "AccessDenied" } else { "InvalidArgs" };
            return self.refuse(key, call, error, "that name can't be had", out);
        }
        let held = self.names.values().filter(|owners| owners.iter().any(|(other, _)| *other == key)).count();
        if held >= MOST_NAMES {
            return self.refuse(key, call, "LimitsExceeded", "too many names", out);
        }
        let unique = call.sender.clone();
        let owners = self.names.entry(name.to_owned()).or_default();
        let (mut lost, mut gained) = (None, false);
        let answer = match owners.first().copied() {
            None => {
                owners.push((key, flags));
                gained = true;
                1
            }
            Some((owner, _)) if owner == key => {
                owners[0].1 = flags;
                4
            }
            Some((owner, others)) if flags & REPLACE != 0 && others & ALLOW_REPLACEMENT != 0 => {
                owners.retain(|(other, _)| *other != key);
                if others & DO_NOT_QUEUE != 0 {
                    owners.remove(0);
                }
                owners.insert(0, (key, flags));
                (lost, gained) = (Some(owner), true);
                1
            }
            Some(_) => {
                owners.retain(|(other, _)| *other != key);
                if flags & DO_NOT_QUEUE == 0 {
                    owners.push((key, flags));
                }
                if flags & DO_NOT_QUEUE == 0 { 2 } else { 3 }
            }
        };
        if gained {
            let old = lost.and_then(|owner| self.peers.get(&owner)).map(|peer| peer.unique.clone()).unwrap_or_default();
            if let Some(owner) = lost {
                self.name_signal(owner, "NameLost", name, out);
            }
            self.owner_changed(name, &old, &unique, out);
            self.name_signal(key, "NameAcquired", name, out);
        }
        self.reply(key, call, "u", |body| body.number(answer), out);
    }

    /// Whether it was theirs to give up.
    fn give_up(&mut self, key: u64, unique: &str, name: &str, out: &mut Vec<Out>) -> bool {
        let Some(owners) = self.names.get_mut(name) else { return false };
        let Some(at) = owners.iter().position(|(other, _)| *other == key) else { return false };
        owners.remove(at);
        let next = owners.first().map(|(key, _)| *key);
        if next.is_none() {
            self.names.remove(name);
        }
        if at == 0 {
            if self.peers.contains_key(&key) {
                self.name_signal(key, "NameLost", name, out);
            }
            let new = next.and_then(|key| self.peers.get(&key)).map(|peer| peer.unique.clone()).unwrap_or_default();
            self.owner_changed(name, unique, &new, out);
            if let Some(next) = next {
                self.name_signal(next, "NameAcquired", name, out);
            }
        }
        true
    }

    // --- the gate's services ---

    /// What every object has, as far as we have it.
    fn common(&mut self, key: u64, call: &Message, out: &mut Vec<Out>) {
        match (call.interface.as_str(), call.member.as_str()) {
            ("org.freedesktop.DBus.Peer", "Ping") => self.reply(key, call, "", |_| {}, out),
            ("org.freedesktop.DBus.Peer", "GetMachineId") => {
                let id = self.id.clone();
                self.reply(key, call, "s", |body| body.text(&id), out);
            }
            ("org.freedesktop.DBus.Introspectable", "Introspect") => {
                self.reply(key, call, "s", |body| body.text("<node/>"), out);
            }
            ("org.freedesktop.DBus.Properties", "GetAll") => {
                self.reply(key, call, "a{sv}", |body| body.array(8, |_| {}), out);
            }
            (BUS, "UpdateActivationEnvironment" | "ReloadConfig") | ("org.freedesktop.DBus.Monitoring", _) => {
                self.refuse(key, call, "AccessDenied", "that is nobody's business in a container", out);
            }
            _ => self.refuse(key, call, "UnknownMethod", "there is no such method here", out),
        }
    }

    /// Who calls the gate by the name of its connection means one of its services.
    fn call_of_gate(&mut self, key: u64, call: Message, out: &mut Vec<Out>) {
        match call.path.as_str() {
            note::PATH if self.offers.notifications => self.call_of_notifications(key, call, out),
            PORTAL_PATH if self.offers.addresses => self.call_of_portal(key, &call, out),
            _ => self.common(key, &call, out),
        }
    }

    fn call_of_notifications(&mut self, key: u64, call: Message, out: &mut Vec<Out>) {
        if !matches!(call.interface.as_str(), note::SERVICE | "") {
            return self.common(key, &call, out);
        }
        match call.member.as_str() {
            "Notify" => match Note::read(&call) {
                Some(note) => out.push(Out::Show(bare(call), note)),
                None => self.refuse(key, &call, "InvalidArgs", "that is no notification", out),
            },
            "CloseNotification" => match call.read("u").and_then(|mut body| body.number()) {
                Some(id) => out.push(Out::Close(bare(call), id)),
                None => self.refuse(key, &call, "InvalidArgs", "a number is missing", out),
            },
            "GetCapabilities" => out.push(Out::Abilities(bare(call))),
            "GetServerInformation" => {
                let said = ["Lazaret", "Lazaret", env!("CARGO_PKG_VERSION"), "1.2"];
                self.reply(key, &call, "ssss", |body| said.iter().for_each(|text| body.text(text)), out);
            }
            _ => self.common(key, &call, out),
        }
    }

    /// The portal opens addresses, and tells that it has taken the wish: what a person decides is not told.
    fn call_of_portal(&mut self, key: u64, call: &Message, out: &mut Vec<Out>) {
        const OPEN: &str = "org.freedesktop.portal.OpenURI";
        match (call.interface.as_str(), call.member.as_str()) {
            (OPEN, "OpenURI") => {
                let Some((address, token)) = wish(call) else {
                    return self.refuse(key, call, "InvalidArgs", "only addresses of the web are opened", out);
                };
                out.push(Out::Open(address));
                let who = call.sender.trim_start_matches(':').replace('.', "_");
                let handle = format!("{PORTAL_PATH}/request/{who}/{token}");
                self.reply(key, call, "o", |body| body.text(&handle), out);
                let response = Message::signal(&handle, "org.freedesktop.portal.Request", "Response");
                let response = response.with("ua{sv}", |body| {
                    body.number(0);
                    body.array(8, |_| {});
                });
                self.tell(key, response, GATE, out);
            }
            ("org.freedesktop.DBus.Properties", "Get") => {
                let asked = call.read("ss").and_then(|mut body| Some((body.text()?, body.text()?)));
                match asked {
                    Some((OPEN, "version")) => self.reply(
                        key,
                        call,
                        "v",
                        |body| {
                            body.signature("u");
                            body.number(1);
                        },
                        out,
                    ),
                    _ => self.refuse(key, call, "InvalidArgs", "there is no such property here", out),
                }
            }
            _ => self.common(key, call, out),
        }
    }
}

/// A call without what it says: enough to answer it.
fn bare(call: Message) -> Message {
    Message { body: Vec::new(), signature: String::new(), ..call }
}

/// The address that a program wants to have opened, and how it calls the wish.
fn wish(call: &Message) -> Option<(String, String)> {
    let mut body = call.read("ssa{sv}")?;
    body.text()?;
    let address = address::checked(body.text()?)?.to_owned();
    let mut token = "lazaret".to_owned();
    body.table(|name, signature, value| match (name, signature) {
        ("handle_token", "s") => {
            let given = value.text()?;
            if !given.is_empty() && given.len() <= 64 && given.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                given.clone_into(&mut token);
            }
            Some(())
        }
        _ => value.skip(signature),
    })?;
    Some((address, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offers = Offers { notifications: true, addresses: true };

    /// A bus with two programs on it, 1 and 2.
    fn hub() -> Hub {
        let mut hub = Hub::new("0".repeat(32), ALL);
        for key in [1, 2] {
            hub.join(key);
            ask(&mut hub, key, "Hello", "", |_| {});
        }
        hub
    }

    fn call(member: &str, signature: &str, write: impl FnOnce(&mut Writer)) -> Message {
        Message { serial: 9, ..Message::call(BUS, BUS_PATH, BUS, member).with(signature, write) }
    }

    /// What comes of a call of the bus.
    fn ask(hub: &mut Hub, key: u64, member: &str, signature: &str, write: impl FnOnce(&mut Writer)) -> Vec<Out> {
        let mut out = Vec::new();
        hub.hear(key, call(member, signature, write), &mut out).unwrap();
        out
    }

    fn name(hub: &mut Hub, key: u64, name: &str, flags: u32) -> Vec<Out> {
        ask(hub, key, "RequestName", "su", |body| {
            body.text(name);
            body.number(flags);
        })
    }

    /// What is told to a program: the member or error of each message, or `=` for an answer.
    fn told(out: &[Out], to: u64) -> Vec<&str> {
        let word = |message: &'_ Message| match message.kind {
            Kind::Return => "=".to_owned(),
            Kind::Error => message.error.rsplit('.').next().unwrap_or_default().to_owned(),
            _ => message.member.clone(),
        };
        let all = out.iter().filter_map(|out| match out {
            Out::Tell(key, message) if *key == to => Some(&*word(message).leak()),
            _ => None,
        });
        all.collect()
    }

    fn number(out: &[Out]) -> Option<u32> {
        out.iter().find_map(|out| match out {
            Out::Tell(_, message) => message.read("u")?.number(),
            _ => None,
        })
    }

    #[test]
    fn programs_of_one_container_find_each_other() {
        let mut hub = hub();
        ask(&mut hub, 2, "AddMatch", "s", |body| body.text("member='NameOwnerChanged',arg0='com.example.App'"));
        let out = name(&mut hub, 1, "com.example.App", DO_NOT_QUEUE);
        assert_eq!((told(&out, 1), told(&out, 2)), (vec!["NameAcquired", "="], vec!["NameOwnerChanged"]));
        assert_eq!(number(&name(&mut hub, 2, "com.example.App", DO_NOT_QUEUE)), Some(3), "it runs already");
        let mut out = Vec::new();
        let open = Message::call("com.example.App", "/", "com.example.App", "Open");
        hub.hear(2, Message { sender: ":1.77".into(), ..open.clone() }, &mut out).unwrap();
        let expected = Message { sender: ":1.2".into(), ..open };
        assert_eq!(out, [Out::Tell(1, expected)], "nobody says who they are themselves");
        let mut out = Vec::new();
        hub.leave(1, &mut out);
        assert_eq!(told(&out, 2), ["NameOwnerChanged"]);
        assert_eq!(number(&name(&mut hub, 2, "com.example.App", DO_NOT_QUEUE)), Some(1));
    }

    #[test]
    fn a_name_is_waited_for_or_taken_as_its_owner_allows() {
        let mut hub = hub();
        name(&mut hub, 1, "a.b", 0);
        assert_eq!(number(&name(&mut hub, 2, "a.b", REPLACE)), Some(2));
        let out = ask(&mut hub, 1, "ReleaseName", "s", |body| body.text("a.b"));
        assert_eq!((told(&out, 2), number(&out)), (vec!["NameAcquired"], Some(1)));
        name(&mut hub, 1, "c.d", ALLOW_REPLACEMENT | DO_NOT_QUEUE);
        let out = name(&mut hub, 2, "c.d", REPLACE);
        assert_eq!((told(&out, 1), number(&out)), (vec!["NameLost"], Some(1)));
    }

    #[test]
    fn what_reaches_beyond_the_container_is_refused() {
        let mut hub = hub();
        for name_of_ours in [BUS, note::SERVICE, PORTAL] {
            assert_eq!(told(&name(&mut hub, 1, name_of_ours, 0), 1), ["AccessDenied"], "{name_of_ours}");
        }
        for bad in [":1.9", "x", "", "a b.c", ".a"] {
            assert_eq!(told(&name(&mut hub, 1, bad, 0), 1), ["InvalidArgs"], "{bad}");
        }
        let out = ask(&mut hub, 1, "AddMatch", "s", |body| body.text("eavesdrop='true'"));
        assert_eq!(told(&out, 1), ["AccessDenied"]);
        let out = ask(&mut hub, 1, "UpdateActivationEnvironment", "a{ss}", |body| body.array(8, |_| {}));
        assert_eq!(told(&out, 1), ["AccessDenied"]);
        let out = ask(&mut hub, 1, "StartServiceByName", "su", |body| {
            body.text("org.freedesktop.systemd1");
            body.number(0);
        });
        assert_eq!(told(&out, 1), ["ServiceUnknown"]);
        let calls = [
            ("org.freedesktop.systemd1", "StartTransientUnit", "ServiceUnknown"),
            ("org.freedesktop.secrets", "OpenSession", "ServiceUnknown"),
            (PORTAL, "Screenshot", "UnknownMethod"),
            (GATE, "Anything", "UnknownMethod"),
        ];
        for (service, member, error) in calls {
            let mut out = Vec::new();
            hub.hear(1, Message::call(service, "/x", "x.y", member), &mut out).unwrap();
            assert_eq!(told(&out, 1), [error], "{service}");
        }
        let mut out = Vec::new();
        let monitor = Message::call(BUS, BUS_PATH, "org.freedesktop.DBus.Monitoring", "BecomeMonitor");
        hub.hear(1, monitor, &mut out).unwrap();
        assert_eq!(told(&out, 1), ["AccessDenied"]);
        hub.join(3);
        hub.hear(3, Message::signal("/", "x.y", "Z"), &mut Vec::new()).unwrap_err();
    }

    #[test]
    fn addresses_are_opened_by_the_portal() {
        let mut hub = hub();
        let open = |hub: &mut Hub, address: &str| {
            let call = Message::call(PORTAL, PORTAL_PATH, "org.freedesktop.portal.OpenURI", "OpenURI");
            let call = call.with("ssa{sv}", |body| {
                body.text("");
                body.text(address);
                body.array(8, |body| body.entry("handle_token", "s", |body| body.text("t1")));
            });
            let mut out = Vec::new();
            hub.hear(1, call, &mut out).unwrap();
            out
        };
        let out = open(&mut hub, "https://example.org/");
        assert_eq!((&out[0], told(&out, 1)), (&Out::Open("https://example.org/".into()), vec!["=", "Response"]));
        let Out::Tell(_, response) = &out[2] else { panic!() };
        assert_eq!(response.path, "/org/freedesktop/portal/desktop/request/1_1/t1");
        assert_eq!(told(&open(&mut hub, "file:///etc/passwd"), 1), ["InvalidArgs"]);
        hub.offers.addresses = false;
        assert_eq!(told(&open(&mut hub, "https://example.org/"), 1), ["ServiceUnknown"]);
    }

    proptest::proptest! {
        #[test]
        fn no_program_makes_us_panic(
            calls in proptest::collection::vec((1u64..3, 0usize..12, "[a-z.=',:]{0,12}", 0u32..9), 1..40),
        ) {
            const MEMBERS: [&str; 12] = ["Hello", "RequestName", "ReleaseName", "AddMatch", "RemoveMatch", "NameHasOwner",
                "GetNameOwner", "ListNames", "ListQueuedOwners", "StartServiceByName", "GetId", "Other"];
            let mut hub = hub();
            for (key, member, text, flags) in calls {
                let signature = if MEMBERS[member].starts_with("Re") && flags > 3 { "su" } else { "s" };
                ask(&mut hub, key, MEMBERS[member], signature, |body| {
                    body.text(&text);
                    if signature == "su" {
                        body.number(flags);
                    }
                });
                if flags == 8 {
                    hub.leave(key, &mut Vec::new());
                    hub.join(key);
                    ask(&mut hub, key, "Hello", "", |_| {});
                }
            }
            for key in [1, 2] {
                hub.leave(key, &mut Vec::new());
            }
            proptest::prop_assert!(hub.names.is_empty() && hub.peers.is_empty());
        }
    }
}
