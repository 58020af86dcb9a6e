//! How far the ledger is in each partition, for those who wait until it has what they did.
//!
//! A leader on this node tells after each commit. What other nodes commit is looked up while somebody waits for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};

use super::chain;
use crate::{
    domain::{Cursor, Partition, Position},
    ledger::Ledger,
};

/// How often the ledger is asked while somebody waits.
const LOOK: Duration = Duration::from_millis(5);

/// Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Progress {
    inner: Arc<Inner>,
}

struct Inner {
    partitions: Vec<Known>,
    /// Rung when somebody begins to wait.
    awaited: Notify,
}

struct Known {
    cursor: watch::Sender<Cursor>,
    waiting: AtomicUsize,
}

/// One who waits, counted until dropped.
struct Waiting<'a>(&'a Known);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Progress {
    /// Nothing is known yet of so many partitions.
    #[must_use]
    pub fn new(partitions: u16) -> Self {
        let nothing = Cursor { epoch: 0, seq: 0 };
        let known = || Known { cursor: watch::Sender::new(nothing), waiting: AtomicUsize::new(0) };
        let partitions = (0..partitions).map(|_| known()).collect();
        Self { inner: Arc::new(Inner { partitions, awaited: Notify::new() }) }
    }

    /// The ledger has everything of a partition up to here.
    pub(super) fn reached(&self, position: Position) {
        if let Some(known) = self.inner.partitions.get(usize::from(position.partition.0)) {
            known.cursor.send_if_modified(|cursor| {
                let further = *cursor < position.cursor;
                *cursor = (*cursor).max(position.cursor);
                further
            });
        }
    }

    /// How far the ledger is in a partition, as far as is known.
    #[must_use]
    pub fn cursor(&self, partition: Partition) -> Cursor {
        let known = self.inner.partitions.get(usize::from(partition.0));
        known.map_or(Cursor { epoch: 0, seq: 0 }, |known| *known.cursor.borrow())
    }

    /// Waits until the ledger is at this position or further. That does not say that it has what was there: it may be
    /// among the dead letters, or lost with an epoch.
    pub async fn wait(&self, position: Position) {
        let Some(known) = self.inner.partitions.get(usize::from(position.partition.0)) else {
            return std::future::pending().await;
        };
        known.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(known);
        self.inner.awaited.notify_one();
        // The sender lives as long as this.
        drop(known.cursor.subscribe().wait_for(|cursor| *cursor >= position.cursor).await);
    }

    fn is_awaited(&self) -> bool {
        self.inner.partitions.iter().any(|known| known.waiting.load(Ordering::SeqCst) > 0)
    }
}

/// Asks the ledger how far it is, while somebody waits; for ever.
pub async fn look(progress: Progress, ledger: Ledger) {
    loop {
        if !progress.is_awaited() {
            progress.inner.awaited.notified().await;
        }
        match ledger.partitions().await {
            Ok(rows) => {
                for row in rows {
                    progress.reached(Position { partition: row.partition, cursor: row.cursor });
                }
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the ledger can not be asked how far it is");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_immediate;

    use super::*;

    fn at(partition: u16, epoch: u64, seq: u64) -> Position {
        Position { partition: Partition(partition), cursor: Cursor { epoch, seq } }
    }

    #[tokio::test]
    async fn one_who_waits_is_woken_by_its_own_partition_at_its_position_or_later() {
        let progress = Progress::new(2);
        let mut waits = Box::pin(progress.wait(at(1, 2, 5)));
        assert!(poll_immediate(&mut waits).await.is_none());
        assert!(progress.is_awaited());
        for before in [at(0, 9, 9), at(1, 2, 4), at(1, 1, 99)] {
            progress.reached(before);
            assert!(poll_immediate(&mut waits).await.is_none());
        }
        progress.reached(at(1, 2, 6));
        assert!(poll_immediate(&mut waits).await.is_some());
        drop(waits);
        assert!(!progress.is_awaited());
        // What is known does not go back.
        progress.reached(at(1, 2, 1));
        assert!(poll_immediate(Box::pin(progress.wait(at(1, 2, 6)))).await.is_some());
    }
}
