//! Equal requests one after the other: who comes second finds what the first
//! has brought.
//!
//! Nothing is handed over here. Who gets a turn looks again whether what it
//! wants is known by now, by the rules that hold for everybody: so nobody is
//! given the answer to a question that was asked before its own last change.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::vfs::types::Ino;

/// Who asks about what.
#[derive(Debug, Default)]
pub(in crate::vfs) struct KeyedMutex(Mutex<HashMap<Ino, Line>>);

#[derive(Debug)]
struct Line {
    turn: Arc<Semaphore>,
    /// In line, or at it.
    users: usize,
}

/// The right to ask, until this is dropped.
#[derive(Debug)]
pub(in crate::vfs) struct Turn<'a> {
    flights: &'a KeyedMutex,
    ino: Ino,
    _permit: Option<OwnedSemaphorePermit>,
}

impl KeyedMutex {
    /// Waits until nobody else asks about `ino`.
    pub(in crate::vfs) async fn turn(&self, ino: Ino) -> Turn<'_> {
        let semaphore = {
            let mut lines = self.0.lock();
            let line = lines.entry(ino).or_insert_with(|| Line {
                turn: Arc::new(Semaphore::new(1)),
                users: 0,
            });
            line.users += 1;
            Arc::clone(&line.turn)
        };
        let mut turn = Turn {
            flights: self,
            ino,
            _permit: None,
        };
        // It is never closed.
        turn._permit = semaphore.acquire_owned().await.ok();
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut lines = self.flights.0.lock();
        if let Some(line) = lines.get_mut(&self.ino) {
            line.users -= 1;
            if line.users == 0 {
                lines.remove(&self.ino);
            }
        }
    }
}
