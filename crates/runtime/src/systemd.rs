//! A scope of systemd for a container's cgroup, on hosts where systemd owns the cgroup tree.
//!
//! A group made behind systemd's back is one it may rearrange (systemd.io/CGROUP_DELEGATION). So the keeper asks for a
//! transient scope with `Delegate=yes`. That takes a handful of D-Bus messages: they are written and read as plain
//! bytes, in the format of the D-Bus Specification ("Message Protocol", "Authentication Protocol"); the conversation
//! over the socket is the last part of the file.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lazaret_base::{Context, Error, Kind, Result, error};

/// Whether systemd runs this machine; sd_booted(3).
pub fn present() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Where a service manager listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    /// The manager's own socket: works when the bus is down, too.
    pub private: PathBuf,
    /// The bus it is on too, asked if the private socket can't be used.
    pub bus: PathBuf,
}

impl Manager {
    /// PID 1's. Its private socket is for root; on the bus, polkit decides.
    pub fn system() -> Manager {
        Manager { private: "/run/systemd/private".into(), bus: "/run/dbus/system_bus_socket".into() }
    }

    /// The manager of the user who owns this runtime directory, usually `/run/user/UID`.
    pub fn of_user(runtime_directory: &Path) -> Manager {
        Manager { private: runtime_directory.join("systemd/private"), bus: runtime_directory.join("bus") }
    }
}

/// A transient scope, as it is asked for. It always has `Delegate=yes`, `TasksMax=infinity`, and
/// `CollectMode=inactive-or-failed`: it is gone as soon as its last process is.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    /// Its name, from [`scope_name`].
    pub unit: &'a str,
    /// The slice it is put in, made if it is not there: `lazaret.slice`.
    pub slice: &'a str,
    /// What `systemctl status` shows.
    pub description: &'a str,
    /// The processes to move in, at least one.
    pub pids: &'a [u32],
    /// More properties, in the D-Bus names and types of org.freedesktop.systemd1(5). Not `KillMode=mixed`: a scope has
    /// no main process to be asked, so stopping it kills all at once.
    pub properties: &'a [(&'a str, Value<'a>)],
}

/// The value of a unit's property.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// `b`, such as `SendSIGHUP`.
    Flag(bool),
    /// `s`, such as `KillMode`.
    Text(&'a str),
    /// `as`, such as `Before`.
    Texts(&'a [&'a str]),
    /// `i`, such as `KillSignal`.
    Signal(i32),
    /// `t`, such as `TasksMax` or `TimeoutStopUSec` (microseconds); `u64::MAX` is infinity.
    Number(u64),
    /// `au`, such as `PIDs`.
    Pids(&'a [u32]),
}

/// The scope's name of a container: `web` has `lazaret-web.scope`, `a-b` has `lazaret-a\x2db.scope`.
pub fn scope_name(container: &str) -> String {
    format!("lazaret-{}.scope", escape(container))
}

/// Makes any text a part of a unit's name; systemd.unit(5), "String Escaping for Inclusion in Unit Names".
pub fn escape(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => name.push(byte.into()),
            _ => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    name
}

/// Starts the scope and returns its cgroup as a path from the root of the cgroup tree, such as
/// `/lazaret.slice/lazaret-web.scope`.
///
/// When it returns, the processes are in it. Waits for systemd until `deadline` is over. The error is
/// [`Kind::Exists`] if a unit of that name is running.
pub fn start_scope(manager: &Manager, scope: &Scope<'_>, deadline: Duration) -> Result<String> {
    let starting = || format!("starting `{}` of systemd", scope.unit);
    let mut connection = Connection::open(manager, deadline).with_context(starting)?;
    connection.run_job("StartTransientUnit", "ssa(sv)a(sa(sv))", transient_unit(scope)).with_context(starting)?;
    connection.control_group(scope.unit).with_context(starting)
}

/// Stops a unit and waits until it has ended: systemd ends all processes in it. One that is not there is stopped.
pub fn stop_unit(manager: &Manager, unit: &str, deadline: Duration) -> Result<()> {
    let stopping = || format!("stopping `{unit}` of systemd");
    let mut connection = Connection::open(manager, deadline).with_context(stopping)?;
    let mut body = Writer::default();
    body.text(unit);
    body.text("replace");
    match connection.run_job("StopUnit", "ss", body.bytes) {
        Err(e) if e.what() == Kind::NotFound => Ok(()),
        other => other.with_context(stopping),
    }
}

/// Who answers for names behind one link of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkNames<'a> {
    /// The link's index.
    pub index: u32,
    /// The name servers there.
    pub servers: &'a [IpAddr],
    /// The domain that they answer for, also completed for names of one word; all other names go elsewhere.
    pub domain: &'a str,
}

/// Tells systemd-resolved, by way of the bus at `bus` (org.freedesktop.resolve1(5)). It holds until the link goes.
///
/// [`Kind::NotFound`] if no systemd-resolved is on the bus.
pub fn set_link_names(bus: &Path, names: &LinkNames<'_>, deadline: Duration) -> Result<()> {
    let telling = || format!("telling systemd-resolved who answers for `{}`", names.domain);
    let mut connection = Connection::on_bus(bus, Instant::now() + deadline).with_context(telling)?;
    for (member, signature, body) in link_calls(names) {
        let method = Method { member, ..RESOLVER };
        connection.call(&method, signature, &body).with_context(telling)?;
    }
    Ok(())
}

/// The calls in order: that the link is for this domain alone comes first, or it would be asked for all names.
fn link_calls(names: &LinkNames<'_>) -> [(&'static str, &'static str, Vec<u8>); 5] {
    /// Numbers of address families (socket(2)), the same on every architecture.
    const INET: u32 = 2;
    const INET6: u32 = 10;
    let begun = || {
        let mut body = Writer::default();
        body.number(names.index);
        body
    };
    let (mut default_route, mut domains, mut servers) = (begun(), begun(), begun());
    default_route.number(false.into());
    domains.array(8, |body| {
        body.align(8);
        body.text(names.domain);
        // Not for routing alone: `web` becomes `web.lazaret`.
        body.number(false.into());
    });
    servers.array(8, |body| {
        for server in names.servers {
            body.align(8);
            let (family, bytes) = match server {
                IpAddr::V4(v4) => (INET, v4.octets().to_vec()),
                IpAddr::V6(v6) => (INET6, v6.octets().to_vec()),
            };
            body.number(family);
            body.array(1, |body| body.bytes.extend(bytes));
        }
    });
    // Who is on the link answers for nobody: not for names that the host asks everybody for.
    let off = || {
        let mut body = begun();
        body.text("no");
        body.bytes
    };
    [
        ("SetLinkLLMNR", "is", off()),
        ("SetLinkMulticastDNS", "is", off()),
        ("SetLinkDefaultRoute", "ib", default_route.bytes),
        ("SetLinkDomains", "ia(sb)", domains.bytes),
        ("SetLinkDNS", "ia(iay)", servers.bytes),
    ]
}

/// The arguments of StartTransientUnit: name, mode, properties, no auxiliary units.
fn transient_unit(scope: &Scope<'_>) -> Vec<u8> {
    let always = [
        ("Description", Value::Text(scope.description)),
        ("Slice", Value::Text(scope.slice)),
        ("PIDs", Value::Pids(scope.pids)),
        ("Delegate", Value::Flag(true)),
        ("CollectMode", Value::Text("inactive-or-failed")),
        ("TasksMax", Value::Number(u64::MAX)),
    ];
    let mut body = Writer::default();
    body.text(scope.unit);
    body.text("fail");
    body.array(8, |body| {
        for (name, value) in always.iter().chain(scope.properties) {
            body.align(8);
            body.text(name);
            body.variant(value);
        }
    });
    body.array(8, |_| {});
    body.bytes
}

/// A unit's object: what is neither letter nor digit is `_` and its code, a digit in front too.
fn object_of(unit: &str) -> String {
    let mut path = "/org/freedesktop/systemd1/unit/".to_owned();
    for (at, byte) in unit.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
            path.push(byte.into());
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    path
}

/// A method call's address.
struct Method<'a> {
    destination: &'a str,
    path: &'a str,
    interface: &'a str,
    member: &'a str,
}

const BUS: Method<'_> = Method {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
    member: "",
};

const MANAGER: Method<'_> = Method {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
    member: "",
};

const RESOLVER: Method<'_> = Method {
    destination: "org.freedesktop.resolve1",
    path: "/org/freedesktop/resolve1",
    interface: "org.freedesktop.resolve1.Manager",
    member: "",
};

/// Message types.
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Codes of header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SENDER: u8 = 7;
const SIGNATURE: u8 = 8;

/// What systemd sends us is a few hundred bytes; the specification would allow 128 MiB.
const LONGEST_MESSAGE: usize = 1 << 20;

/// The bytes of a method call. A serial is not zero and not used twice.
fn call(serial: u32, method: &Method<'_>, signature: &str, body: &[u8]) -> Vec<u8> {
    let fields = [
        (PATH, "o", method.path),
        (DESTINATION, "s", method.destination),
        (INTERFACE, "s", method.interface),
        (MEMBER, "s", method.member),
        (SIGNATURE, "g", signature),
    ];
    let present: Vec<_> = fields.into_iter().filter(|(.., value)| !value.is_empty()).collect();
    message(CALL, serial, &present, body)
}

fn message(kind: u8, serial: u32, fields: &[(u8, &str, &str)], body: &[u8]) -> Vec<u8> {
    let mut header = Writer::default();
    // Little-endian, no flags, protocol version 1.
    header.bytes.extend([b'l', kind, 0, 1]);
    header.number(body.len() as u32);
    header.number(serial);
    header.array(8, |header| {
        for (code, signature, value) in fields {
            header.align(8);
            header.bytes.push(*code);
            header.signature(signature);
            match *signature {
                "g" => header.signature(value),
                _ => header.text(value),
            }
        }
    });
    header.align(8);
    header.bytes.extend(body);
    header.bytes
}

/// Values in the D-Bus wire format, little-endian. Alignment counts from the first byte.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, number: u32) {
        self.align(4);
        self.bytes.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u32);
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.bytes.push(signature.len() as u8);
        self.bytes.extend(signature.as_bytes());
        self.bytes.push(0);
    }

    /// An array of elements aligned to `element`; the padding before the first one is not part of its length.
    fn array(&mut self, element: usize, fill: impl FnOnce(&mut Writer)) {
        self.number(0);
        let length_at = self.bytes.len() - 4;
        self.align(element);
        let begin = self.bytes.len();
        fill(self);
        let length = (self.bytes.len() - begin) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn variant(&mut self, value: &Value<'_>) {
        match value {
            Value::Flag(flag) => {
                self.signature("b");
                self.number((*flag).into());
            }
            Value::Text(text) => {
                self.signature("s");
                self.text(text);
            }
            Value::Texts(texts) => {
                self.signature("as");
                self.array(4, |list| texts.iter().for_each(|text| list.text(text)));
            }
            Value::Signal(signal) => {
                self.signature("i");
                self.number(*signal as u32);
            }
            Value::Number(number) => {
                self.signature("t");
                self.align(8);
                self.bytes.extend(number.to_le_bytes());
            }
            Value::Pids(pids) => {
                self.signature("au");
                self.array(4, |list| pids.iter().for_each(|pid| list.number(*pid)));
            }
        }
    }
}

/// A message as it came, as far as we look at it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    kind: u8,
    big_endian: bool,
    /// The serial of the call it answers, 0 if it is no answer.
    reply_to: u32,
    sender: String,
    interface: String,
    member: String,
    error: String,
    signature: String,
    body: Vec<u8>,
}

/// Takes the first message of a stream: it and its length, or `None` if there is only a part of it yet.
fn parse(bytes: &[u8]) -> Result<Option<(Message, usize)>> {
    /// Endianness, type, flags, version, length of the body, serial, length of the fields.
    const FIXED: usize = 16;
    let Some(fixed) = bytes.get(..FIXED) else { return Ok(None) };
    let big_endian = match fixed[0] {
        b'l' => false,
        b'B' => true,
        _ => return Err(malformed("byte order")),
    };
    if fixed[3] != 1 {
        return Err(malformed("protocol version"));
    }
    let mut lengths = Reader { bytes: fixed, at: 4, big_endian };
    let (body, _serial, fields) = (lengths.number()? as usize, lengths.number()?, lengths.number()? as usize);
    if body > LONGEST_MESSAGE || fields > LONGEST_MESSAGE {
        return Err(malformed("length"));
    }
    let body_at = (FIXED + fields).next_multiple_of(8);
    let Some(whole) = bytes.get(..body_at + body) else { return Ok(None) };
    let mut message = Message { kind: fixed[1], big_endian, body: whole[body_at..].to_vec(), ..Message::default() };
    let mut reader = Reader { bytes: &whole[..FIXED + fields], at: FIXED, big_endian };
    while reader.at < reader.bytes.len() {
        reader.field(&mut message)?;
    }
    Ok(Some((message, whole.len())))
}

fn malformed(what: &str) -> Error {
    error(format!("the answer is not a D-Bus message: wrong {what}"))
}

/// Values in the D-Bus wire format. Whatever the bytes are, the outcome is a value or an error.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big_endian: bool,
}

impl<'a> Reader<'a> {
    fn of(message: &'a Message) -> Reader<'a> {
        Reader { bytes: &message.body, at: 0, big_endian: message.big_endian }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).ok_or_else(|| malformed("length"))?;
        let taken = self.bytes.get(self.at..end).ok_or_else(|| malformed("length"))?;
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<()> {
        self.take(self.at.next_multiple_of(to) - self.at).map(drop)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u32> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().map_err(|_| malformed("length"))?;
        Ok(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn text(&mut self) -> Result<&'a str> {
        let length = self.number()? as usize;
        self.ended_by_zero(length)
    }

    fn signature(&mut self) -> Result<&'a str> {
        let length = self.byte()?.into();
        self.ended_by_zero(length)
    }

    fn ended_by_zero(&mut self, length: usize) -> Result<&'a str> {
        let text = self.take(length)?;
        if self.byte()? != 0 {
            return Err(malformed("end of a string"));
        }
        std::str::from_utf8(text).map_err(|_| malformed("text"))
    }

    /// One header field: a code and a variant. All there are have simple types; unknown codes are passed over.
    fn field(&mut self, message: &mut Message) -> Result<()> {
        self.align(8)?;
        let code = self.byte()?;
        match (code, self.signature()?) {
            (REPLY_SERIAL, "u") => message.reply_to = self.number()?,
            (INTERFACE, "s") => message.interface = self.text()?.to_owned(),
            (MEMBER, "s") => message.member = self.text()?.to_owned(),
            (ERROR_NAME, "s") => message.error = self.text()?.to_owned(),
            (SENDER, "s") => message.sender = self.text()?.to_owned(),
            (SIGNATURE, "g") => message.signature = self.signature()?.to_owned(),
            (_, "s" | "o") => drop(self.text()?),
            (_, "g") => drop(self.signature()?),
            (_, "u") => drop(self.number()?),
            _ => return Err(malformed("header field")),
        }
        Ok(())
    }
}

/// A job that ended, from the signal JobRemoved.
#[derive(Debug, PartialEq, Eq)]
struct Removed {
    sender: String,
    job: String,
    /// `done`, `canceled`, `timeout`, `failed`, `dependency` or `skipped`.
    result: String,
}

impl Message {
    /// The arguments `u id, o job, s unit, s result`; `None` if it is another signal.
    fn removed_job(&self) -> Result<Option<Removed>> {
        let expected = (SIGNAL, MANAGER.interface, "JobRemoved", "uoss");
        if (self.kind, self.interface.as_str(), self.member.as_str(), self.signature.as_str()) != expected {
            return Ok(None);
        }
        let mut body = Reader::of(self);
        body.number()?;
        let job = body.text()?.to_owned();
        body.text()?;
        Ok(Some(Removed { sender: self.sender.clone(), job, result: body.text()?.to_owned() }))
    }

    /// The only argument of an answer: a string, an object path, or either in a variant.
    fn only_text(&self) -> Result<&str> {
        let mut body = Reader::of(self);
        match self.signature.as_str() {
            "s" | "o" => body.text(),
            "v" if matches!(body.signature()?, "s" | "o") => body.text(),
            _ => Err(malformed("type of the result")),
        }
    }

    /// The error that an answer of that type is.
    fn into_error(self) -> Error {
        let sentence = match Reader::of(&self).text() {
            Ok(text) if self.signature.starts_with('s') && !text.is_empty() => text.trim_end_matches('.').to_owned(),
            _ => self.error.clone(),
        };
        match self.error.as_str() {
            "org.freedesktop.systemd1.UnitExists" => error(sentence).kind(Kind::Exists),
            "org.freedesktop.systemd1.NoSuchUnit"
            | "org.freedesktop.DBus.Error.UnknownObject"
            | "org.freedesktop.DBus.Error.ServiceUnknown"
            | "org.freedesktop.DBus.Error.NameHasNoOwner" => error(sentence).kind(Kind::NotFound),
            "org.freedesktop.DBus.Error.AccessDenied"
            | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => error(sentence)
                .hint("only root may start units of the system's manager; an ordinary user has a manager of their own"),
            _ => error(sentence),
        }
    }
}

/// A conversation with a service manager. Calls are answered in order, signals may come in between.
struct Connection {
    stream: UnixStream,
    /// What came and is not a whole message yet.
    pending: Vec<u8>,
    serial: u32,
    deadline: Instant,
    /// A job may be over before we know its name from the answer.
    removed: Vec<Removed>,
}

impl Connection {
    fn open(manager: &Manager, deadline: Duration) -> Result<Connection> {
        let deadline = Instant::now() + deadline;
        if let Ok(stream) = UnixStream::connect(&manager.private) {
            return Connection::authenticate(stream, deadline);
        }
        let mut connection = Connection::on_bus(&manager.bus, deadline)?;
        let mut rule = Writer::default();
        rule.text(
            "type='signal',sender='org.freedesktop.systemd1',interface='org.freedesktop.systemd1.Manager',\
             member='JobRemoved'",
        );
        connection.call(&Method { member: "AddMatch", ..BUS }, "s", &rule.bytes)?;
        // On the private socket signals come unasked.
        connection.call(&Method { member: "Subscribe", ..MANAGER }, "", &[])?;
        Ok(connection)
    }

    fn on_bus(bus: &Path, deadline: Instant) -> Result<Connection> {
        let stream =
            UnixStream::connect(bus).with_context(|| format!("connecting to the bus at `{}`", bus.display()))?;
        let mut connection = Connection::authenticate(stream, deadline)?;
        connection.call(&Method { member: "Hello", ..BUS }, "", &[])?;
        Ok(connection)
    }

    /// EXTERNAL: we are who the kernel says we are.
    fn authenticate(stream: UnixStream, deadline: Instant) -> Result<Connection> {
        let mut connection = Connection { stream, pending: Vec::new(), serial: 0, deadline, removed: Vec::new() };
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        // All in one write, as systemd's own clients do. Where BEGIN and the first call reach systemd in one read, it
        // leaves the call in its buffer until more bytes come (seen with systemd 257): so no call before the answer.
        connection.send(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let line = loop {
            if let Some(end) = connection.pending.windows(2).position(|pair| pair == b"\r\n") {
                break connection.pending.drain(..end + 2).collect::<Vec<u8>>();
            }
            connection.receive()?;
        };
        if !line.starts_with(b"OK ") {
            return Err(error(format!("systemd refused us: `{}`", String::from_utf8_lossy(&line).trim_end())));
        }
        Ok(connection)
    }

    /// Calls a method of the manager that returns a job, and waits until the job is over.
    fn run_job(&mut self, member: &str, signature: &str, body: Vec<u8>) -> Result<()> {
        let answer = self.call(&Method { member, ..MANAGER }, signature, &body)?;
        // On a bus anybody may send a signal to us: only the one who answered knows when the job is over.
        let (job, sender) = (answer.only_text()?, &answer.sender);
        let result = loop {
            if let Some(removed) = self.removed.iter().find(|it| it.job == job && it.sender == *sender) {
                break &removed.result;
            }
            let message = self.next()?;
            self.note(&message)?;
        };
        match result.as_str() {
            "done" => Ok(()),
            other => Err(error(format!("the job ended with result `{other}`"))),
        }
    }

    /// Where systemd put a scope.
    fn control_group(&mut self, unit: &str) -> Result<String> {
        let path = object_of(unit);
        let mut body = Writer::default();
        body.text("org.freedesktop.systemd1.Scope");
        body.text("ControlGroup");
        let get = Method { path: &path, interface: "org.freedesktop.DBus.Properties", member: "Get", ..MANAGER };
        let answer = self.call(&get, "ss", &body.bytes)?;
        match answer.only_text()? {
            "" => Err(error("its processes ended before it was started")),
            group => Ok(group.to_owned()),
        }
    }

    fn call(&mut self, method: &Method<'_>, signature: &str, body: &[u8]) -> Result<Message> {
        self.serial += 1;
        self.send(&call(self.serial, method, signature, body))?;
        loop {
            let message = self.next()?;
            match message.kind {
                RETURN if message.reply_to == self.serial => return Ok(message),
                ERROR if message.reply_to == self.serial => return Err(message.into_error()),
                _ => self.note(&message)?,
            }
        }
    }

    fn note(&mut self, message: &Message) -> Result<()> {
        /// Jobs of others on a busy machine; ours is among the last.
        const REMEMBERED: usize = 1000;
        if let Some(removed) = message.removed_job()? {
            if self.removed.len() == REMEMBERED {
                self.removed.remove(0);
            }
            self.removed.push(removed);
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Message> {
        loop {
            if let Some((message, length)) = parse(&self.pending)? {
                self.pending.drain(..length);
                return Ok(message);
            }
            self.receive()?;
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write_all(bytes).map_err(|e| self.explain(e)).context("writing to systemd")
    }

    fn receive(&mut self) -> Result<()> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        let mut bytes = [0; 4096];
        let length = loop {
            match self.stream.read(&mut bytes) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other.map_err(|e| self.explain(e)).context("reading from systemd")?,
            }
        };
        if length == 0 {
            return Err(error("systemd closed the connection"));
        }
        self.pending.extend(&bytes[..length]);
        Ok(())
    }

    fn left(&self) -> Result<Duration> {
        // A timeout of zero would be none.
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(too_late()),
            left => Ok(left),
        }
    }

    fn explain(&self, e: std::io::Error) -> Error {
        // EAGAIN is how a socket timeout is told; socket(7), SO_RCVTIMEO.
        if e.kind() == std::io::ErrorKind::WouldBlock { too_late() } else { e.into() }
    }
}

fn too_late() -> Error {
    error("systemd did not answer in time").hint("`systemctl list-jobs` shows what it is busy with")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_link_answers_for_its_domain_alone() {
        let servers = ["10.90.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let names = LinkNames { index: 7, servers: &servers, domain: "lazaret" };
        let [llmnr, mdns, default_route, domains, servers] = link_calls(&names);
        let no = [&7u32.to_le_bytes()[..], &2u32.to_le_bytes(), b"no\0"].concat();
        assert_eq!([llmnr, mdns], [("SetLinkLLMNR", "is", no.clone()), ("SetLinkMulticastDNS", "is", no)]);
        assert_eq!(default_route, ("SetLinkDefaultRoute", "ib", [7u32, 0].map(u32::to_le_bytes).concat()));
        let text = [&7u32.to_le_bytes()[..], &16u32.to_le_bytes(), &7u32.to_le_bytes(), b"lazaret\0", &[0; 4]].concat();
        assert_eq!(domains, ("SetLinkDomains", "ia(sb)", text));
        let (_, signature, bytes) = servers;
        assert_eq!((signature, bytes.len()), ("ia(iay)", 4 + 4 + 12 + 4 + 24));
        assert_eq!(&bytes[8..20], [2, 0, 0, 0, 4, 0, 0, 0, 10, 90, 0, 1]);
        assert_eq!(&bytes[24..34], [10, 0, 0, 0, 16, 0, 0, 0, 0xfd, 0]);
    }

    #[test]
    fn names_are_escaped_as_systemd_escape_does() {
        assert_eq!(scope_name("web"), "lazaret-web.scope");
        assert_eq!(scope_name("a-b"), r"lazaret-a\x2db.scope");
        assert_eq!(escape(".hidden/b c.d:e_ö"), r"\x2ehidden-b\x20c.d:e_\xc3\xb6");
    }

    #[test]
    fn a_units_object_has_letters_and_digits_only() {
        assert_eq!(object_of(r"9a-b\x2dc.scope"), "/org/freedesktop/systemd1/unit/_39a_2db_5cx2dc_2escope");
    }

    /// What is sent, as text: zero is a dot, other bytes that are no sign are in hexadecimal; eight make a word.
    fn shape(bytes: &[u8]) -> String {
        let sign = |byte: &u8| match byte {
            0 => ".".to_owned(),
            b'!'..=b'~' => char::from(*byte).to_string(),
            other => format!("<{other:02x}>"),
        };
        let words: Vec<String> = bytes.chunks(8).map(|word| word.iter().map(sign).collect()).collect();
        words.chunks(8).map(|line| line.join(" ")).collect::<Vec<_>>().join("\n")
    }

    const SCOPE: Scope<'_> = Scope {
        unit: "lazaret-web.scope",
        slice: "lazaret.slice",
        description: "Container web",
        pids: &[258, 772],
        properties: &[("KillMode", Value::Text("group")), ("Before", Value::Texts(&["a", "b"]))],
    };

    /// These bytes were accepted by systemd 257, but for the container's own values.
    #[test]
    fn a_scope_is_asked_for_in_the_wire_format() {
        let method = Method { member: "StartTransientUnit", ..MANAGER };
        let bytes = call(2, &method, "ssa(sv)a(sa(sv))", &transient_unit(&SCOPE));
        insta::assert_snapshot!(shape(&bytes), @r"
        l<01>.<01>@<01>.. <02>...<b6>... <01><01>o.<19>... /org/fre edesktop /systemd 1....... <06><01>s.<18>...
        org.free desktop. systemd1 ........ <02><01>s.<20>... org.free desktop. systemd1
        .Manager ........ <03><01>s.<12>... StartTra nsientUn it...... <08><01>g.<10>ssa (sv)a(sa
        (sv))... <11>...laza ret-web. scope... <04>...fail ....<12><01>.. <0b>...Desc ription.
        <01>s..<0d>... Containe r<20>web... <05>...Slic e.<01>s.... <0d>...laza ret.slic e.......
        <04>...PIDs .<02>au.... <08>...<02><01>.. <04><03>...... <08>...Dele gate.<01>b. <01>....... <0b>...Coll
        ectMode. <01>s..<12>... inactive -or-fail ed...... <08>...Task sMax.<01>t. <ff><ff><ff><ff><ff><ff><ff><ff>
        <08>...Kill Mode.<01>s. <05>...grou p....... <06>...Befo re.<02>as.. <0e>...<01>... a...<01>...
        b.......
        ");
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let mut body = Writer::default();
        body.text("/job/7");
        let fields = [(SENDER, "s", ":1.5"), (PATH, "o", "/x"), (SIGNATURE, "g", "o")];
        let mut bytes = message(RETURN, 9, &fields, &body.bytes);
        let length = bytes.len();
        bytes.extend(b"l");
        let (read, taken) = parse(&bytes).unwrap().unwrap();
        assert_eq!(
            (taken, read.kind, read.sender.as_str(), read.only_text().unwrap()),
            (length, RETURN, ":1.5", "/job/7")
        );
        assert!((0..length).all(|part| parse(&bytes[..part]).unwrap().is_none()));
    }

    #[test]
    fn a_big_endian_peer_is_understood() {
        let bytes = [
            b"B\x02\0\x01\0\0\0\x06\0\0\0\x01\0\0\0\x0f".as_slice(),
            b"\x05\x01u\0\0\0\0\x03\x08\x01g\0\x01s\0\0",
            b"\0\0\0\x01x\0",
        ];
        let bytes = bytes.concat();
        let (read, _) = parse(&bytes).unwrap().unwrap();
        assert_eq!((read.reply_to, read.only_text().unwrap()), (3, "x"));
    }

    #[test]
    fn a_length_beyond_all_bounds_is_refused_at_once() {
        let refused = |bytes: &[u8; 16]| assert!(parse(bytes).is_err());
        refused(b"l\x02\0\x01\xff\xff\xff\xff\x01\0\0\0\0\0\0\0");
        refused(b"l\x02\0\x01\0\0\0\0\x01\0\0\0\xff\xff\xff\xff");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..200),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let mut bytes = removed(":1.5", "/job/7", "done");
            flips.iter().for_each(|(at, byte)| *at.get_mut(&mut bytes) = *byte);
            for bytes in [noise, bytes] {
                if let Ok(Some((message, length))) = parse(&bytes) {
                    prop_assert!(length <= bytes.len());
                    // Outcome open: only that there is one.
                    let _ = (message.removed_job(), message.only_text().map(drop), message.into_error());
                }
            }
        }
    }

    fn removed(sender: &str, job: &str, result: &str) -> Vec<u8> {
        let mut body = Writer::default();
        body.number(7);
        [job, SCOPE.unit, result].iter().for_each(|text| body.text(text));
        let (interface, member) = ((INTERFACE, "s", MANAGER.interface), (MEMBER, "s", "JobRemoved"));
        message(SIGNAL, 1, &[(SENDER, "s", sender), interface, member, (SIGNATURE, "g", "uoss")], &body.bytes)
    }

    /// An answer to the call of this serial; a call's answer is a string or object path.
    fn answer(kind: u8, serial: u32, error_name: &str, text: &str) -> Vec<u8> {
        let mut body = Writer::default();
        body.text(text);
        let mut fields = vec![(SENDER, "s", ":1.5"), (SIGNATURE, "g", "s")];
        if kind == ERROR {
            fields.push((ERROR_NAME, "s", error_name));
        }
        let mut bytes = message(kind, 1, &fields, &body.bytes);
        // The number field is put in front of the others, where eight bytes keep all alignment.
        bytes.splice(16..16, [REPLY_SERIAL, 1, b'u', 0].into_iter().chain(serial.to_le_bytes()));
        bytes[12] += 8;
        bytes
    }

    /// A service manager that checks who we say we are, and then has one list of answers per call it receives.
    /// With an empty list it stays silent until we hang up. Returns where it listens.
    fn manager(on_bus: bool, answers: Vec<Vec<Vec<u8>>>) -> Manager {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lazaret-systemd-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let absent = PathBuf::from("/no/such/socket");
        let manager = match on_bus {
            true => Manager { private: absent, bus: path.clone() },
            false => Manager { private: path.clone(), bus: absent },
        };
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::fs::remove_file(path).unwrap();
            let mut expect = |expected: &str| {
                let mut bytes = vec![0; expected.len()];
                stream.read_exact(&mut bytes).unwrap();
                assert_eq!(String::from_utf8(bytes).unwrap(), expected);
            };
            let uid: String = rustix::process::geteuid().to_string().bytes().map(|b| format!("{b:02x}")).collect();
            expect(&format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n"));
            stream.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n").unwrap();
            let mut peer = Connection {
                stream,
                pending: Vec::new(),
                serial: 0,
                deadline: Instant::now() + Duration::from_secs(30),
                removed: Vec::new(),
            };
            for list in answers {
                peer.next().unwrap();
                list.iter().for_each(|bytes| peer.send(bytes).unwrap());
            }
            // Hung up, as it should be.
            let _ = peer.next();
        });
        manager
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_scope_is_started_when_its_job_is_done() {
        let answers = vec![
            vec![
                answer(RETURN, 1, "", "/job/7"),
                removed(":1.5", "/job/6", "failed"),
                removed(":1.5", "/job/7", "done"),
            ],
            vec![answer(RETURN, 2, "", "/lazaret.slice/lazaret-web.scope")],
        ];
        assert_eq!(start_scope(&manager(false, answers), &SCOPE, MINUTE).unwrap(), "/lazaret.slice/lazaret-web.scope");
    }

    #[test]
    fn a_job_may_end_before_the_answer_and_a_stranger_can_not_end_it() {
        let answers = vec![
            vec![answer(RETURN, 1, "", ":1.9")],
            vec![answer(RETURN, 2, "", "")],
            vec![answer(RETURN, 3, "", "")],
            vec![
                removed(":1.66", "/job/7", "done"),
                removed(":1.5", "/job/7", "failed"),
                answer(RETURN, 4, "", "/job/7"),
            ],
        ];
        let e = start_scope(&manager(true, answers), &SCOPE, MINUTE).unwrap_err();
        assert_eq!(e.to_string(), "starting `lazaret-web.scope` of systemd: the job ended with result `failed`");
    }

    #[test]
    fn a_refusal_is_told_in_systemds_words() {
        let words = "Unit lazaret-web.scope was already loaded or has a fragment file.";
        let answers = vec![vec![answer(ERROR, 1, "org.freedesktop.systemd1.UnitExists", words)]];
        let e = start_scope(&manager(false, answers), &SCOPE, MINUTE).unwrap_err();
        assert_eq!(e.to_string(), format!("starting `lazaret-web.scope` of systemd: {}", words.trim_end_matches('.')));
        assert_eq!(e.what(), Kind::Exists);
    }

    #[test]
    fn stopping_what_is_not_there_is_no_error() {
        let answers = vec![vec![answer(ERROR, 1, "org.freedesktop.systemd1.NoSuchUnit", "Unit x not loaded.")]];
        stop_unit(&manager(false, answers), SCOPE.unit, MINUTE).unwrap();
    }

    #[test]
    fn a_silent_manager_is_given_up_at_the_deadline() {
        let e = stop_unit(&manager(false, vec![vec![]]), "x.scope", Duration::from_millis(20)).unwrap_err();
        assert!(e.to_string().ends_with("systemd did not answer in time"), "{e}");
    }

    #[test]
    fn a_manager_that_is_not_there_is_named() {
        let absent = Manager { private: "/no/such/private".into(), bus: "/no/such/bus".into() };
        let e = start_scope(&absent, &SCOPE, MINUTE).unwrap_err();
        assert!(e.to_string().contains("connecting to the bus at `/no/such/bus`: no such file or directory"), "{e}");
    }
}
