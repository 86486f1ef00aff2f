//! What the objects of one connection are, by their numbers.

use super::protocol::Kind;

/// From here on the compositor chooses numbers; below, the program does.
pub(super) const FIRST_OF_SERVER: u32 = 0xff00_0000;
/// Objects of either side at once. Programs have some hundred.
const MOST: usize = 16_384;
/// In the place of a kind: nothing has this number.
const NOTHING: Kind = Kind(u16::MAX);

/// What else is known of an object.
pub(super) mod flag {
    /// What can be pasted was copied in this container.
    pub const OWN: u8 = 1;
    /// The person has allowed to paste it.
    pub const ALLOWED: u8 = 2;
    /// It was copied here, and says so.
    pub const MARKED: u8 = 4;
    /// It is what a clipboard holds now, as far as the program knows.
    pub const CURRENT: u8 = 8;
    /// A keyboard that types into a window of the program.
    pub const FOCUSED: u8 = 16;
}

/// One object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub kind: Kind,
    /// The program has not ended it. What the compositor has said before it heard of the end still arrives.
    pub alive: bool,
    pub flags: u8,
}

const FREE: Object = Object { kind: NOTHING, alive: false, flags: 0 };

/// The objects of a connection.
#[derive(Debug)]
pub(super) struct Objects {
    of_client: Vec<Object>,
    of_server: Vec<Object>,
}

impl Objects {
    /// What is there at the beginning: object 1, the display.
    pub fn new(display: Kind) -> Objects {
        Objects { of_client: vec![Object { kind: display, alive: true, flags: 0 }], of_server: Vec::new() }
    }

    fn list(&mut self, id: u32) -> (&mut Vec<Object>, usize) {
        match id.checked_sub(FIRST_OF_SERVER) {
            Some(at) => (&mut self.of_server, at as usize),
            // There is no object 0; its place is behind every end.
            None => (&mut self.of_client, id.wrapping_sub(1) as usize),
        }
    }

    /// An object that is there, or was until just now.
    pub fn get(&mut self, id: u32) -> Option<&mut Object> {
        let (list, at) = self.list(id);
        list.get_mut(at).filter(|object| object.kind != NOTHING)
    }

    /// An object that is there.
    pub fn alive(&mut self, id: u32) -> Option<&mut Object> {
        self.get(id).filter(|object| object.alive)
    }

    /// A program has made an object. False where the number is not free, or leaves a gap, as the library never does.
    pub fn add(&mut self, id: u32, kind: Kind) -> bool {
        let (list, at) = self.list(id);
        let free = match list.get(at) {
            Some(object) => object.kind == NOTHING,
            None => at == list.len() && at < MOST,
        };
        if id >= FIRST_OF_SERVER || !free {
            return false;
        }
        if at == list.len() {
            list.push(FREE);
        }
        list[at] = Object { kind, alive: true, flags: 0 };
        true
    }

    /// The compositor has made an object. It may be in the place of another that the program has ended.
    pub fn add_of_server(&mut self, id: u32, kind: Kind) -> bool {
        let (list, at) = self.list(id);
        if id < FIRST_OF_SERVER || at > list.len() || at >= MOST {
            return false;
        }
        if at == list.len() {
            list.push(FREE);
        }
        list[at] = Object { kind, alive: true, flags: 0 };
        true
    }

    /// The number can be used again.
    pub fn free(&mut self, id: u32) {
        if let Some(object) = self.get(id) {
            *object = FREE;
        }
    }

    /// All that are there.
    pub fn all(&mut self) -> impl Iterator<Item = &mut Object> {
        self.of_client.iter_mut().chain(&mut self.of_server).filter(|object| object.alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_once_and_without_gaps() {
        let mut objects = Objects::new(Kind(0));
        assert!(!objects.add(1, Kind(1)) && !objects.add(3, Kind(1)) && !objects.add(0, Kind(1)));
        assert!(objects.add(2, Kind(1)) && objects.add(3, Kind(2)));
        objects.get(2).unwrap().alive = false;
        assert!(objects.alive(2).is_none() && !objects.add(2, Kind(1)), "not before the compositor says so");
        objects.free(2);
        assert!(objects.get(2).is_none() && objects.add(2, Kind(3)));
        assert!(!objects.add(FIRST_OF_SERVER, Kind(1)) && !objects.add_of_server(4, Kind(1)));
        assert!(objects.add_of_server(FIRST_OF_SERVER, Kind(5)) && !objects.add_of_server(u32::MAX, Kind(5)));
        assert_eq!(objects.all().count(), 4);
    }

    #[test]
    fn there_is_an_end_to_them() {
        let mut objects = Objects::new(Kind(0));
        let made = (2..).take_while(|&id| objects.add(id, Kind(1))).count();
        assert_eq!(made, MOST - 1);
    }
}
