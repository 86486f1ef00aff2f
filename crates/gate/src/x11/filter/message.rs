//! What the server says: answers for the program, answers for us, events.

use super::{Broken, Decision, Expect, Filter, Flow, Held, Notice, Pending, Phase, Rest, answer};
use crate::x11::container::Container;
use crate::x11::wire::padded;

/// A reply's, an event's or an error's least length.
const UNIT: usize = 32;
/// GrabInvalidTime, of GrabPointer: programs do without it, and do not try again at once.
const TOO_LATE: u8 = 2;
/// All pointer buttons in a mask of modifiers.
const BUTTONS: u16 = 0x1f00;
/// The focus follows the pointer.
const POINTER_ROOT: u32 = 1;

impl Filter {
    /// The server's answer to the introduction.
    pub(super) fn welcome(
        &mut self,
        input: &[u8],
        container: &mut Container,
        flow: &mut Flow<'_>,
    ) -> Result<usize, Broken> {
        let order = self.order;
        if input.len() < 8 {
            return Ok(0);
        }
        let Some(all) = input.get(..8 + 4 * usize::from(order.u16(input, 6))) else { return Ok(0) };
        flow.to_client.extend(all);
        if all[0] != 1 {
            self.phase = Phase::Refused;
            return Ok(all.len());
        }
        (self.base, self.mask) = (order.u32(all, 12), order.u32(all, 16));
        if all.len() < 40 || self.base & self.mask != 0 || self.base == 0 {
            return Err(Broken("the server's welcome makes no sense"));
        }
        let mut at = 40 + padded(order.u16(all, 24).into()) + 8 * usize::from(all[29]);
        for _ in 0..all[28] {
            let Some(screen) = all.get(at..at + 40) else { return Err(Broken("a screen is cut off")) };
            self.roots.push(order.u32(screen, 0));
            self.colormaps.push(order.u32(screen, 4));
            let (width, height) = container.screen;
            container.screen = (width.max(order.u16(screen, 20)), height.max(order.u16(screen, 22)));
            at += 40;
            for _ in 0..screen[39] {
                at += 8 + 24 * usize::from(order.u16(all, at + 2));
            }
        }
        container.join(self.key, self.base, self.mask);
        self.phase = Phase::Running;
        Ok(all.len())
    }

    /// One answer, event or error. 0 if more bytes are needed first.
    pub(super) fn message(
        &mut self,
        input: &[u8],
        container: &mut Container,
        flow: &mut Flow<'_>,
    ) -> Result<usize, Broken> {
        if let Some(used) = self.reply_rest.take(input, flow.to_client) {
            return Ok(used);
        }
        let Some(unit) = input.get(..UNIT) else { return Ok(0) };
        match unit[0] & 0x7f {
            0 => self.error(unit, flow)?,
            1 => return self.reply(input, container, flow),
            2..=34 => self.event(unit, container, flow)?,
            // No extension is on that has events.
            35 => self.reply_rest = Rest::Skip(self.order.u32(unit, 4) as usize * 4),
            _ => {}
        }
        Ok(UNIT)
    }

    fn error(&mut self, unit: &[u8], flow: &mut Flow<'_>) -> Result<(), Broken> {
        let number = self.order.u16(unit, 2);
        let about_pending =
            self.pending.front().is_some_and(|first| first.number as u16 == number && first.opcode == unit[10]);
        let (number, ours) = self.hear(number)?;
        if about_pending {
            match self.pending.pop_front().map(|first| first.expect) {
                Some(Expect::Answer(bytes)) => {
                    self.say(bytes, number, flow);
                    return Ok(());
                }
                Some(Expect::HeldFocus | Expect::HeldPointer | Expect::HeldGeometry) => {
                    self.settle(false, flow);
                    return Ok(());
                }
                Some(Expect::Engaged) => self.focus = 0,
                _ => {}
            }
        }
        if !ours {
            self.say(unit.to_vec(), number, flow);
        }
        Ok(())
    }

    fn reply(&mut self, input: &[u8], container: &mut Container, flow: &mut Flow<'_>) -> Result<usize, Broken> {
        let order = self.order;
        let total = UNIT + 4 * order.u32(input, 4) as usize;
        let Some(Pending { expect, .. }) = self.pending.front() else {
            return Err(Broken("an answer that nobody asked for"));
        };
        // Lists of windows are looked at as a whole: 256 KiB at most, by the 16 bits of their count.
        let look = match expect {
            Expect::Tree(_) => total.min(UNIT + 4 * 0xffff),
            Expect::Manager => total.min(UNIT + 4),
            _ => UNIT,
        };
        let Some(head) = input.get(..look) else { return Ok(0) };
        let more_fonts = matches!(expect, Expect::Fonts) && head[1] != 0;
        let (number, _) = self.hear(order.u16(head, 2))?;
        self.reply_rest = Rest::Pass(total - look);
        if more_fonts {
            self.say(head.to_vec(), number, flow);
            return Ok(look);
        }
        let Some(Pending { expect, .. }) = self.pending.pop_front() else { return Ok(look) };
        let mut head = head.to_vec();
        match expect {
            Expect::Answer(bytes) => head = bytes,
            Expect::Drop => return Ok(look),
            Expect::Engaged => {
                self.focus = order.u32(&head, 8);
                return Ok(look);
            }
            Expect::HeldFocus | Expect::HeldPointer | Expect::HeldGeometry => {
                self.learn(&expect, &head, container, flow);
                return Ok(look);
            }
            Expect::Tree(window) => head = self.tree(window, &head, container),
            Expect::Translated => self.hide(&mut head, 8, container),
            Expect::Pointer => self.hide_pointer(&mut head, container),
            Expect::Focus => {
                let focus = order.u32(&head, 8);
                if focus > POINTER_ROOT && !self.owns(focus, container) {
                    order.set32(&mut head, 8, 0);
                }
            }
            Expect::Owner if !container.is_inner(order.u32(&head, 8)) => self.hide(&mut head, 8, container),
            Expect::Atom => container.saw_atom(order.u32(&head, 8)),
            Expect::Manager => {
                // A single window, if there is one.
                if head[1] == 32 && order.u32(&head, 16) == 1 {
                    container.manager = order.u32(&head, 32);
                }
            }
            Expect::Grab if head[1] == 0 => {
                self.grabbed = true;
                flow.notices.push(Notice::Grabbed { focus: self.focus });
            }
            Expect::Pass | Expect::Fonts | Expect::Owner | Expect::Grab => {}
        }
        self.say(head, number, flow);
        Ok(look)
    }

    /// QueryTree: the program sees its own windows, and what the window manager has put around them.
    fn tree(&mut self, window: u32, reply: &[u8], container: &mut Container) -> Vec<u8> {
        let order = self.order;
        let parent = order.u32(reply, 12);
        if parent != 0 && !self.is_root(parent) && !self.owns(parent, container) {
            container.framed(window, parent);
        }
        let mut seen = reply[..UNIT].to_vec();
        for id in reply[UNIT..].chunks_exact(4) {
            if container.sees(order.u32(id, 0)) {
                seen.extend(id);
            }
        }
        let count = (seen.len() - UNIT) / 4;
        order.set32(&mut seen, 4, count as u32);
        order.set16(&mut seen, 16, count as u16);
        seen
    }

    /// A window that is nobody's business.
    fn hide(&self, reply: &mut [u8], at: usize, container: &Container) {
        if !container.sees(self.order.u32(reply, at)) {
            self.order.set32(reply, at, 0);
        }
    }

    /// QueryPointer: who does not have the person's attention sees the pointer where it last was when he had.
    fn hide_pointer(&mut self, reply: &mut [u8], container: &Container) {
        let order = self.order;
        let engaged = self.engaged(order.u32(reply, 12), order.u16(reply, 24), container);
        self.hide(reply, 12, container);
        let (x, y) = (order.u16(reply, 16) as i16, order.u16(reply, 18) as i16);
        if engaged {
            self.pointer = (x, y);
            return;
        }
        let (old_x, old_y) = self.pointer;
        let moved = |at: usize, by: i16| (order.u16(reply, at) as i16).wrapping_add(by) as u16;
        let inside = (moved(20, old_x.wrapping_sub(x)), moved(22, old_y.wrapping_sub(y)));
        order.set32(reply, 12, 0);
        for (at, value) in [(16, old_x as u16), (18, old_y as u16), (20, inside.0), (22, inside.1), (24, 0)] {
            order.set16(reply, at, value);
        }
    }

    /// Whether the person is working with this container: it has the keyboard, or a button is pressed over it.
    fn engaged(&self, under_pointer: u32, mask: u16, container: &Container) -> bool {
        let under = container.sees(under_pointer);
        container.sees(self.focus) || under && (self.focus == POINTER_ROOT || mask & BUTTONS != 0)
    }

    /// Hears something about the request that is being held.
    fn learn(&mut self, expect: &Expect, reply: &[u8], container: &mut Container, flow: &mut Flow<'_>) {
        let order = self.order;
        if matches!(expect, Expect::HeldFocus) {
            self.focus = order.u32(reply, 8);
            return;
        }
        let engaged = self.engaged(order.u32(reply, 12), order.u16(reply, 24), container);
        let fine = match &mut self.held {
            Some(Held::Grab(_)) => engaged,
            Some(Held::Warp(request)) => {
                for (at, most) in [(20, order.u16(reply, 16)), (22, order.u16(reply, 18))] {
                    let most = most.clamp(1, 0x7fff) as i16 - 1;
                    let place = (order.u16(request, at) as i16).clamp(0, most);
                    order.set16(request, at, place as u16);
                }
                true
            }
            Some(Held::Unmanage(request)) => {
                let window = order.u32(request, 4);
                let mut known = container.top(window).copied().unwrap_or_default();
                (known.width, known.height) = (order.u16(reply, 16), order.u16(reply, 18));
                known.border = order.u16(reply, 20);
                known.unmanaged = !container.covers(window, &known, known.mapped);
                if let Some(top) = container.top(window) {
                    *top = known;
                }
                known.unmanaged
            }
            None => return,
        };
        self.settle(fine, flow);
    }

    /// Does with the held request what was found to be right.
    fn settle(&mut self, fine: bool, flow: &mut Flow<'_>) {
        let order = self.order;
        let Some(held) = self.held.take() else { return };
        let (mut request, expect) = match held {
            Held::Grab(request) if fine => (request, Some(Expect::Grab)),
            Held::Grab(_) => return self.answer(answer::reply(TOO_LATE), flow),
            Held::Warp(request) if fine => (request, None),
            Held::Warp(_) => return self.instead(Decision::Ignore, &[], flow),
            Held::Unmanage(request) => (request, None),
        };
        if request[0] == 2 && !fine {
            // Override-redirect is the value after those of the lower bits.
            let before = (order.u32(&request, 8) & 0x1ff).count_ones() as usize;
            order.set32(&mut request, 12 + 4 * before, 0);
        }
        self.count(request[0], expect);
        flow.to_server.extend(request);
    }

    fn event(&mut self, unit: &[u8], container: &mut Container, flow: &mut Flow<'_>) -> Result<(), Broken> {
        let order = self.order;
        let mut event = unit.to_vec();
        let code = event[0];
        if code & 0x7f == 11 {
            // KeymapNotify: which keys are down; it has no sequence number.
            event[1..].fill(0);
            flow.to_client.extend(event);
            return Ok(());
        }
        // What another program has sent (the high bit) may be invented.
        match code {
            2..=8 => self.pointer = (order.u16(unit, 20) as i16, order.u16(unit, 22) as i16),
            18 => {
                if let Some(top) = container.top(order.u32(unit, 8)) {
                    top.mapped = false;
                }
            }
            21 => {
                let (window, parent) = (order.u32(unit, 8), order.u32(unit, 12));
                if self.is_root(parent) {
                    container.unframed(window);
                } else if container.owns(window) && !container.owns(parent) {
                    container.framed(window, parent);
                }
            }
            _ => {}
        }
        let selection = match code & 0x7f {
            29 | 31 => 12,
            30 => 16,
            _ => 0,
        };
        if let (1.., Some(public)) = (selection, container.public(order.u32(unit, selection))) {
            order.set32(&mut event, selection, public);
        }
        let (number, _) = self.hear(order.u16(unit, 2))?;
        self.say(event, number, flow);
        Ok(())
    }

    /// The program's number of the request that the server's number means, and whether that request was ours.
    fn hear(&mut self, number: u16) -> Result<(u16, bool), Broken> {
        let full = self.heard + u64::from(number.wrapping_sub(self.heard as u16));
        if full > self.sent {
            return Err(Broken("the server is ahead of us"));
        }
        self.heard = full;
        let mut ours = false;
        while let Some(&next) = self.injected.front().filter(|next| **next <= full) {
            ours = next == full;
            self.shift += 1;
            self.injected.pop_front();
        }
        Ok(((full - self.shift) as u16, ours))
    }

    fn say(&self, mut bytes: Vec<u8>, number: u16, flow: &mut Flow<'_>) {
        self.order.set16(&mut bytes, 2, number);
        flow.to_client.extend(bytes);
    }
}
