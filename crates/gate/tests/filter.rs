//! The filter on its own: hostile bytes, cut anywhere.

use lazaret_gate::x11::{Atoms, Container, Cookie, Facts, Filter, Flow, Known, Notice, Order, REQUESTS};
use proptest::prelude::*;

const BASE: u32 = 0x0120_0000;
const MASK: u32 = 0x001f_ffff;
const ROOT: u32 = 0x53;
const COLORMAP: u32 = 0x20;
const FOREIGN: u32 = 0x0060_0007;
const BIG: u8 = 133;

fn facts() -> Facts {
    let count = (0..).take_while(|&at| at <= Known::Transfer as usize).count() as u32;
    Facts {
        atoms: Atoms::new((500..500 + count).collect()).unwrap(),
        big_requests: Some(BIG),
        xc_misc: Some(136),
        private: [401, 402, 403, 404],
    }
}

/// The server's welcome, with one screen of 1000 by 800.
fn welcome(order: Order) -> Vec<u8> {
    let mut bytes = vec![0; 40 + 40];
    bytes[0] = 1;
    order.set16(&mut bytes, 6, 18);
    order.set32(&mut bytes, 12, BASE);
    order.set32(&mut bytes, 16, MASK);
    bytes[28] = 1;
    order.set32(&mut bytes, 40, ROOT);
    order.set32(&mut bytes, 44, COLORMAP);
    order.set16(&mut bytes, 60, 1000);
    order.set16(&mut bytes, 62, 800);
    bytes
}

/// A connection that has been let in.
struct Wire {
    filter: Filter,
    container: Container,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    notices: Vec<Notice>,
}

impl Wire {
    fn new(order: Order) -> Wire {
        let container = Container::new("ff", facts());
        let filter = Filter::new(1, Cookie([7; 16]));
        let mut wire = Wire { filter, container, to_server: vec![], to_client: vec![], notices: vec![] };
        let letter = if order == Order::Little { b'l' } else { b'B' };
        let mut hello = vec![letter, 0];
        hello.extend(order.bytes16(11));
        hello.extend([0; 2]);
        hello.extend(order.bytes16(3));
        hello.extend(order.bytes16(5));
        hello.extend([0; 2]);
        hello.extend(b"abc_12345___");
        assert_eq!(wire.client(&hello), Some(hello.len()));
        assert_eq!(wire.to_server.len(), 12 + 20 + 16, "its credentials are not passed on, ours are");
        assert!(wire.to_server.ends_with(&[7; 16]));
        wire.to_server.clear();
        assert!(wire.server(&welcome(order)).is_some());
        wire.to_client.clear();
        wire
    }

    fn client(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut flow =
            Flow { to_server: &mut self.to_server, to_client: &mut self.to_client, notices: &mut self.notices };
        self.filter.from_client(bytes, &mut self.container, &mut flow).ok()
    }

    fn server(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut flow =
            Flow { to_server: &mut self.to_server, to_client: &mut self.to_client, notices: &mut self.notices };
        self.filter.from_server(bytes, &mut self.container, &mut flow).ok()
    }

    fn release(&mut self) -> bool {
        let mut flow =
            Flow { to_server: &mut self.to_server, to_client: &mut self.to_client, notices: &mut self.notices };
        self.filter.release(&mut flow)
    }

    /// Offers bytes in pieces, keeping what is not used, as the loop does. False if the connection was broken.
    fn client_in_pieces(&mut self, bytes: &[u8], piece: usize) -> bool {
        let mut left = Vec::new();
        for piece in bytes.chunks(piece) {
            left.extend(piece);
            let Some(used) = self.client(&left) else { return false };
            left.drain(..used);
        }
        true
    }
}

/// The requests in a stream for the server. Fails if they do not fit together.
fn requests(order: Order, mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while bytes.len() >= 4 {
        let short = 4 * usize::from(order.u16(bytes, 2));
        let (length, extra) = if short > 0 { (short, 0) } else { (4 * order.u32(bytes, 4) as usize, 4) };
        assert!(length > 0);
        // The last one may go on later.
        let length = length.min(bytes.len());
        let mut one = bytes[..length].to_vec();
        if extra > 0 && one.len() >= 8 {
            one.drain(4..8);
        }
        all.push(one);
        bytes = &bytes[length..];
    }
    all
}

/// Identifiers that matter: own, of the server, of somebody else.
fn id() -> impl Strategy<Value = u32> {
    prop_oneof![
        (0..9u32).prop_map(|n| BASE | n),
        Just(ROOT),
        Just(COLORMAP),
        Just(FOREIGN),
        Just(0),
        Just(1),
        Just(39),
        (500..560u32),
        any::<u32>(),
    ]
}

prop_compose! {
    /// A request whose fields are likely to mean something, of a length that mostly fits.
    fn likely()(
        opcode in prop_oneof![8 => 1..=127u8, 1 => Just(BIG), 1 => any::<u8>()],
        second in prop_oneof![3 => 0..3u8, 1 => any::<u8>()],
        words in prop::collection::vec(id(), 0..40),
        exact in any::<bool>(),
    ) -> (u8, u8, Vec<u32>) {
        let known = REQUESTS.iter().find(|request| request.opcode == opcode);
        let words = match known {
            Some(request) if exact => {
                let size = usize::from(request.size) / 4 - 1;
                words.iter().copied().chain(std::iter::repeat(BASE)).take(size).collect()
            }
            _ => words,
        };
        (opcode, second, words)
    }
}

fn encode(order: Order, (opcode, second, words): &(u8, u8, Vec<u32>)) -> Vec<u8> {
    let mut bytes = vec![*opcode, *second];
    bytes.extend(order.bytes16(1 + words.len() as u16));
    bytes.extend(words.iter().flat_map(|&word| order.bytes32(word)));
    bytes
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::Little), Just(Order::Big)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a program says, nothing reaches the server that names what it may not.
    #[test]
    fn nothing_foreign_is_named(order in order(), sent in prop::collection::vec(likely(), 1..60)) {
        let mut wire = Wire::new(order);
        let bytes: Vec<u8> = sent.iter().flat_map(|one| encode(order, one)).collect();
        wire.client(&bytes);
        for request in requests(order, &wire.to_server) {
            let opcode = request[0];
            let never = [31, 36, 37, 44, 51, 100, 102, 104, 105, 107, 109, 111, 112, 114, 115, 116, 118];
            prop_assert!(!never.contains(&opcode));
            prop_assert!(opcode <= 127 || opcode == BIG || opcode == 136);
            let Some(known) = REQUESTS.iter().find(|known| known.opcode == opcode) else { continue };
            for &(at, ..) in known.names {
                prop_assert_ne!(order.u32(&request, at.into()), FOREIGN, "{}", opcode);
            }
            if [18, 19, 25, 41].contains(&opcode) {
                prop_assert_ne!(order.u32(&request, 4), FOREIGN);
            }
            if opcode == 22 || opcode == 24 {
                prop_assert!((401..=404).contains(&order.u32(&request, 8)), "a selection of the container's own");
            }
        }
    }

    /// Where a stream is cut makes no difference.
    #[test]
    fn pieces_make_no_difference(
        order in order(),
        sent in prop::collection::vec(likely(), 1..40),
        tail in prop::collection::vec(any::<u8>(), 0..64),
        piece in 1..200usize,
    ) {
        let mut bytes: Vec<u8> = sent.iter().flat_map(|one| encode(order, one)).collect();
        bytes.extend(tail);
        let (mut whole, mut cut) = (Wire::new(order), Wire::new(order));
        let fine = whole.client(&bytes).is_some();
        prop_assert_eq!(cut.client_in_pieces(&bytes, piece), fine);
        if fine {
            prop_assert_eq!(whole.to_server, cut.to_server);
            prop_assert_eq!(whole.notices, cut.notices);
        }
    }

    /// Nothing that either side says makes the filter panic, or say more than a few times what it was told.
    #[test]
    fn noise_is_survived(
        order in order(),
        turns in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 1..20),
        requests in prop::collection::vec(likely(), 0..20),
    ) {
        let mut wire = Wire::new(order);
        let first: Vec<u8> = requests.iter().flat_map(|one| encode(order, one)).collect();
        let mut told = first.len();
        wire.client(&first);
        for (client, bytes) in &turns {
            told += bytes.len();
            let fine = if *client { wire.client(bytes) } else { wire.server(bytes) };
            if fine.is_none() {
                break;
            }
        }
        prop_assert!(wire.to_server.len() + wire.to_client.len() <= 64 * told + 4096);
    }

    /// Each request that a program sends is one for the server, and each answer keeps the program's count.
    #[test]
    fn answers_keep_their_numbers(order in order(), sent in prop::collection::vec(likely(), 1..200)) {
        let mut wire = Wire::new(order);
        let mut answered = 0;
        for (at, one) in sent.iter().enumerate() {
            if wire.filter.waits() {
                break;
            }
            let before = wire.to_client.len();
            if wire.client(&encode(order, one)).is_none() {
                return Ok(());
            }
            // The server answers all it is asked, in order, with its own count.
            while let Some(opcode) = requests(order, &wire.to_server).get(answered).map(|request| request[0]) {
                answered += 1;
                let asks = opcode == BIG || opcode == 136
                    || REQUESTS.iter().any(|known| known.opcode == opcode && known.reply);
                if asks {
                    let mut reply = vec![0; 32];
                    reply[0] = 1;
                    order.set16(&mut reply, 2, answered as u16);
                    prop_assert_eq!(wire.server(&reply), Some(32));
                }
            }
            let said = &wire.to_client[before..];
            if said.len() >= 32 && !wire.filter.waits() {
                prop_assert_eq!(order.u16(said, 2), (at + 1) as u16, "{:?}", one);
            }
        }
    }
}

#[test]
fn questions_on_their_way_are_limited() {
    let order = Order::Little;
    let mut wire = Wire::new(order);
    let ask = encode(order, &(43, 0, vec![])).repeat(5000);
    let used = wire.client(&ask).unwrap();
    assert!(used < ask.len());
    assert!(wire.filter.waits());
    let mut reply = vec![0; 32];
    reply[0] = 1;
    order.set16(&mut reply, 2, 1);
    wire.server(&reply).unwrap();
    assert!(!wire.filter.waits());
}

#[test]
fn a_property_that_lies_about_its_length_is_refused() {
    let order = Order::Little;
    let mut wire = Wire::new(order);
    wire.client(&encode(order, &(18, 0, vec![BASE | 1, 39, 31, 8, 0xffff_fff0]))).unwrap();
    assert_eq!(wire.to_server[0], 43, "not ChangeProperty");
}

#[test]
fn a_pointer_is_not_taken_back_within_a_request() {
    let order = Order::Little;
    let mut wire = Wire::new(order);
    wire.client(&encode(order, &(26, 0, vec![BASE | 1, 0, 0, 0, 0]))).unwrap();
    // Its window has the keyboard; where the pointer is does not matter; the pointer is its own.
    let mut replies = vec![0; 96];
    for at in 0..3 {
        replies[32 * at] = 1;
        order.set16(&mut replies, 32 * at + 2, at as u16 + 1);
    }
    order.set32(&mut replies, 8, BASE | 1);
    wire.server(&replies[..64]).unwrap();
    wire.server(&replies[64..]).unwrap();
    assert_eq!(wire.notices, [Notice::Grabbed { focus: BASE | 1 }]);
    assert_eq!(order.u16(&wire.to_client, 2), 1, "two questions of ours are not counted");
    // The beginning of a picture.
    let picture = encode(order, &(72, 2, vec![BASE | 1; 60]));
    wire.client(&picture[..200]).unwrap();
    let before = wire.to_server.len();
    assert!(!wire.release());
    assert_eq!(wire.to_server.len(), before);
    wire.client(&picture[200..]).unwrap();
    assert!(wire.release());
    assert_eq!(wire.to_server[wire.to_server.len() - 8], 27);
}

#[test]
fn what_is_longer_than_it_should_be_is_refused_where_we_add_something() {
    let order = Order::Little;
    for (opcode, words) in [(7, vec![BASE | 1, ROOT]), (26, vec![BASE | 1, 0, 0, 0]), (41, vec![0, BASE | 1])] {
        let mut wire = Wire::new(order);
        let long = words.into_iter().chain([0; 40]).collect();
        wire.client(&encode(order, &(opcode, 0, long))).unwrap();
        let last = requests(order, &wire.to_server).last().unwrap()[0];
        assert_eq!(last, 43, "its error takes the place of an answer");
    }
}
