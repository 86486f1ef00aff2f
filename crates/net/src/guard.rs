//! Word of what others do to our tables: `nft flush ruleset` takes all tables away, whoever they belong to.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use lazaret_base::Result;

use crate::netlink::{Answer, Attributes, Socket};
use crate::nft::Begun;
use crate::policy::TableName;

/// `NFNLGRP_NFTABLES`, the seventh group.
const GROUPS: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFT_MSG_DELTABLE`, `_DELCHAIN`, `_DELRULE`, `_DELSET`, `_DELSETELEM` and `_DELOBJ`.
const TAKING_AWAY: [u16; 6] = [2, 5, 8, 11, 14, 20];
/// Bytes of `struct nfgenmsg`.
const HEADER: usize = 4;
/// The attribute that names the table is the first of every kind (`NFTA_TABLE_NAME`, `NFTA_RULE_TABLE` and so on).
const TABLE: u16 = 1;
/// Room for the events of a table that is set anew, with a thousand containers.
const ROOM: usize = 8 << 20;
/// Transactions of ours whose events may not have been read yet.
const MOST: usize = 64;

/// Hears what becomes of our tables. To be polled for reading.
pub struct Guard {
    events: Socket,
    table: String,
    /// The ports of our own transactions' sockets.
    ours: VecDeque<u32>,
}

impl AsFd for Guard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Guard {
    /// Begins to listen, in the caller's network namespace.
    pub fn open(table: &TableName) -> Result<Guard> {
        let events = Socket::netfilter_subscribed(GROUPS)?;
        // Best effort: with the usual 200 KiB more is lost, and the tables are set anew more often than need be.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(events.as_fd(), ROOM);
        Ok(Guard { events, table: table.to_string(), ours: VecDeque::new() })
    }

    /// What this transaction takes away is what we want.
    pub fn expect(&mut self, begun: &Begun) {
        self.ours.truncate(MOST - 1);
        self.ours.push_front(begun.port());
    }

    /// Reads the events that are waiting, never waits; whether somebody else has taken something out of our tables, or
    /// may have, as there were too many events. What is added is its author's business.
    pub fn disturbed(&mut self) -> Result<bool> {
        let Guard { events, table, ours } = self;
        let mut disturbed = false;
        let whole = events.events(|event| disturbed |= takes_away(event, table) && !ours.contains(&event.port))?;
        Ok(disturbed || !whole)
    }
}

/// Whether an event is the end of something in this table that the kernel did not end by itself.
fn takes_away(event: &Answer<'_>, table: &str) -> bool {
    const KERNEL: u32 = 0;
    let [subsystem, kind] = event.kind.to_be_bytes();
    u16::from(subsystem) == SUBSYSTEM
        && TAKING_AWAY.contains(&u16::from(kind))
        && event.port != KERNEL
        && Attributes(event.body.get(HEADER..).unwrap_or_default()).text(TABLE).as_deref() == Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Answers, Message};

    fn told(kind: u16, port: u32, table: &str) -> bool {
        let mut bytes = Message::new(kind, 0, &[1, 0, 0, 0], "").text(TABLE, table).encoded();
        bytes[12..16].copy_from_slice(&port.to_ne_bytes());
        takes_away(&Answers(&bytes).next().unwrap(), "lazaret")
    }

    #[test]
    fn only_what_is_taken_from_our_tables_is_a_disturbance() {
        const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
        const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
        const DELETE_CONNECTION: u16 = 0x102;
        assert!(told(DELETE_TABLE, 77, "lazaret"));
        assert!(!told(DELETE_TABLE, 77, "lazaret_2") && !told(DELETE_TABLE, 0, "lazaret"));
        assert!(!told(NEW_RULE, 77, "lazaret") && !told(DELETE_CONNECTION, 77, "lazaret"));
    }
}
