//! Which connection a call is put on, and what each has to carry: a plain state machine.
//!
//! With several connections the first carries no bulk, so that a small call never
//! stands behind megabytes; bulk goes to the connection with the least of it. It knows
//! calls by their xids alone.

use std::collections::VecDeque;

use tokio::time::Instant;

/// The number of a connection; never used twice in a channel.
pub type ConnectionId = u64;

/// What a call weighs on its connection, there or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Some hundred bytes, and somebody waits.
    Small,
    /// Data of a file.
    Bulk,
}

/// A connection, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLoad {
    /// Which.
    pub id: ConnectionId,
    /// Small calls without a reply.
    pub small: usize,
    /// Bulk calls without a reply.
    pub bulk: usize,
}

#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    /// Calls it was not given yet.
    unsent: VecDeque<u32>,
    /// Calls without a reply, the unsent ones among them.
    small: usize,
    bulk: usize,
    /// When the first call since it had none was put on it.
    busy_since: Instant,
    /// It is about to end: it gets no more calls.
    leaving: bool,
}

impl Connection {
    fn calls(&mut self, load: Load) -> &mut usize {
        match load {
            Load::Small => &mut self.small,
            Load::Bulk => &mut self.bulk,
        }
    }
}

/// The connections that live, in the order they joined.
#[derive(Debug, Default)]
pub(super) struct ConnectionTable(Vec<Connection>);

impl ConnectionTable {
    /// A new connection is there.
    pub(super) fn join(&mut self, id: ConnectionId, now: Instant) {
        self.0.push(Connection {
            id,
            unsent: VecDeque::new(),
            small: 0,
            bulk: 0,
            busy_since: now,
            leaving: false,
        });
    }

    /// A connection has ended.
    pub(super) fn remove(&mut self, id: ConnectionId) {
        self.0.retain(|connection| connection.id != id);
    }

    /// Puts a call on connection `wish`, if that gets calls, or the one with the least to
    /// do. `None`: none gets calls.
    pub(super) fn put(
        &mut self,
        xid: u32,
        load: Load,
        wish: Option<ConnectionId>,
        now: Instant,
    ) -> Option<ConnectionId> {
        let open = || (self.0.iter().enumerate()).filter(|(_, connection)| !connection.leaving);
        let several = open().nth(1).is_some();
        let kept_free = usize::from(several && load == Load::Bulk);
        let chosen = open()
            .find(|(_, connection)| Some(connection.id) == wish)
            .or_else(|| {
                open()
                    .skip(kept_free)
                    .min_by_key(|(_, connection)| (connection.bulk, connection.small))
            })
            .map(|(index, _)| index);
        let connection = &mut self.0[chosen?];
        if connection.small + connection.bulk == 0 {
            connection.busy_since = now;
        }
        *connection.calls(load) += 1;
        connection.unsent.push_back(xid);
        Some(connection.id)
    }

    /// Takes the next call that this connection has not been given.
    pub(super) fn next_unsent(&mut self, id: ConnectionId) -> Option<u32> {
        self.connection(id)?.unsent.pop_front()
    }

    /// A call of this connection has its reply.
    pub(super) fn answered(&mut self, id: ConnectionId, load: Load) {
        if let Some(connection) = self.connection(id) {
            *connection.calls(load) -= 1;
        }
    }

    /// A connection gets no more calls: it is about to end.
    pub(super) fn close_to_calls(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connection(id) {
            connection.leaving = true;
        }
    }

    /// The same, if nothing is under way on it. False: it goes on.
    pub(super) fn retire(&mut self, id: ConnectionId) -> bool {
        let Some(connection) = self.connection(id) else {
            return false;
        };
        connection.leaving |= connection.small + connection.bulk == 0;
        connection.leaving
    }

    /// No connection has calls any more.
    pub(super) fn clear(&mut self) {
        for connection in &mut self.0 {
            connection.unsent.clear();
            (connection.small, connection.bulk) = (0, 0);
        }
    }

    /// Since when calls are out on this connection, one or another.
    pub(super) fn busy_since(&self, id: ConnectionId) -> Option<Instant> {
        let connection = self.0.iter().find(|connection| connection.id == id)?;
        (connection.small + connection.bulk > 0).then_some(connection.busy_since)
    }

    /// What each has to carry, without those that are about to end.
    pub(super) fn loads(&self) -> impl DoubleEndedIterator<Item = ConnectionLoad> {
        let open = self.0.iter().filter(|connection| !connection.leaving);
        open.map(|connection| ConnectionLoad {
            id: connection.id,
            small: connection.small,
            bulk: connection.bulk,
        })
    }

    fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.0.iter_mut().find(|connection| connection.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ids: &[ConnectionId]) -> ConnectionTable {
        let mut table = ConnectionTable::default();
        ids.iter().for_each(|id| table.join(*id, Instant::now()));
        table
    }

    #[test]
    fn bulk_keeps_off_the_first_of_several_connections() {
        let mut table = table(&[1, 2, 3]);
        let mut put = |load| table.put(0, load, None, Instant::now());
        assert_eq!([(); 4].map(|()| put(Load::Bulk)), [2, 3, 2, 3].map(Some));
        assert_eq!(put(Load::Small), Some(1));
    }

    #[test]
    fn a_wish_is_granted_unless_its_connection_is_about_to_end() {
        let mut table = table(&[1, 2]);
        let wish =
            |table: &mut ConnectionTable, id| table.put(0, Load::Small, Some(id), Instant::now());
        assert_eq!(wish(&mut table, 2), Some(2));
        table.close_to_calls(2);
        assert_eq!(wish(&mut table, 2), Some(1));
        assert!(!table.retire(1), "it has a call");
        table.close_to_calls(1);
        assert_eq!(wish(&mut table, 1), None);
    }
}
