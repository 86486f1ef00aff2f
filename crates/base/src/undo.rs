//! The inverse of each act, kept until the whole has succeeded.

/// A stack of inverses, run last first when dropped without [`Undo::keep`].
///
/// Push the inverse right after the act; `undo.keep()` is the last line of success.
#[derive(Default)]
pub struct Undo<'a>(Vec<Box<dyn FnOnce() + 'a>>);

impl<'a> Undo<'a> {
    /// An empty stack.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers how to take back what was just done. An inverse never stops the others: what it
    /// cannot take back is left to the next command, which works from the record.
    pub fn push(&mut self, inverse: impl FnOnce() + 'a) {
        self.0.push(Box::new(inverse));
    }

    /// All went well: forget the inverses.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some(inverse) = self.0.pop() {
            inverse();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn inverses_run_last_first_unless_kept() {
        let log = RefCell::new(Vec::new());
        let mut undo = Undo::new();
        undo.push(|| log.borrow_mut().push(1));
        undo.push(|| log.borrow_mut().push(2));
        drop(undo);
        assert_eq!(*log.borrow(), [2, 1]);

        let mut undo = Undo::new();
        undo.push(|| log.borrow_mut().push(3));
        undo.keep();
        assert_eq!(*log.borrow(), [2, 1]);
    }
}
