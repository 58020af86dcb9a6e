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

use super::Complaint;
use crate::{
    domain::{Cursor, Partition, Position},
    ledger::Ledger,
};

/// How often the ledger is asked while somebody waits.
const LOOK: Duration = Duration::from_millis(5);
/// How often it is asked while somebody only listens.
const LOOK_FOR_LISTENERS: Duration = Duration::from_millis(250);

/// Before the first change.
const NOTHING: Cursor = Cursor { epoch: 0, seq: 0 };

/// Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Progress {
    inner: Arc<Inner>,
}

struct Inner {
    partitions: Vec<Known>,
    /// Rung when somebody begins to wait, or to listen.
    awaited: Notify,
    listeners: AtomicUsize,
}

struct Known {
    reached: watch::Sender<Reached>,
    waiting: AtomicUsize,
    /// Rung when somebody begins to wait for this partition.
    hurry: Notify,
}

/// How far the ledger is in one partition.
#[derive(Clone, Copy)]
struct Reached {
    cursor: Cursor,
    /// All changes after this one and up to the cursor are rows that this node has written. Of others it is only known
    /// that the ledger has passed them: some may be among the dead letters, or lost with an epoch.
    rows_after: Cursor,
}

/// One who waits, counted until dropped.
struct Waiting<'a>(&'a Known);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One who wants to hear how far the ledger is, and hurries nobody.
pub struct Listener {
    progress: Progress,
    reached: watch::Receiver<Reached>,
}

impl Listener {
    /// Waits until the ledger is known to be further than this.
    pub async fn beyond(&mut self, cursor: Cursor) {
        if self.reached.wait_for(|reached| reached.cursor > cursor).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.progress.inner.listeners.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Progress {
    /// Nothing is known yet of so many partitions.
    #[must_use]
    pub fn new(partitions: u16) -> Self {
        let nothing = Reached { cursor: NOTHING, rows_after: NOTHING };
        let known = || Known {
            reached: watch::Sender::new(nothing),
            waiting: AtomicUsize::new(0),
            hurry: Notify::new(),
        };
        let partitions = (0..partitions).map(|_| known()).collect();
        let inner = Inner { partitions, awaited: Notify::new(), listeners: AtomicUsize::new(0) };
        Self { inner: Arc::new(inner) }
    }

    /// The ledger has passed everything of a partition up to here.
    pub(super) fn passed(&self, position: Position) {
        self.reached(position, |reached, cursor| {
            if reached.cursor < cursor {
                *reached = Reached { cursor, rows_after: cursor };
            }
        });
    }

    /// This node has written everything after `from` and up to the position as rows.
    pub(super) fn written(&self, from: Cursor, position: Position) {
        self.reached(position, |reached, cursor| {
            if reached.cursor <= cursor {
                let goes_on = (reached.rows_after..=reached.cursor).contains(&from);
                let rows_after = if goes_on { reached.rows_after } else { from };
                *reached = Reached { cursor, rows_after };
            }
        });
    }

    fn reached(&self, position: Position, change: impl FnOnce(&mut Reached, Cursor)) {
        if let Some(known) = self.inner.partitions.get(usize::from(position.partition.0)) {
            known.reached.send_if_modified(|reached| {
                let before = reached.cursor;
                change(reached, position.cursor);
                before < reached.cursor
            });
        }
    }

    /// How far the ledger is in a partition, as far as is known.
    #[must_use]
    pub fn cursor(&self, partition: Partition) -> Cursor {
        let known = self.inner.partitions.get(usize::from(partition.0));
        known.map_or(NOTHING, |known| known.reached.borrow().cursor)
    }

    /// Waits until the ledger is at this position or further; says whether what was there is a row for sure. Otherwise
    /// only the ledger itself can tell.
    pub async fn wait(&self, position: Position) -> bool {
        let Some(known) = self.inner.partitions.get(usize::from(position.partition.0)) else {
            return std::future::pending().await;
        };
        known.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(known);
        known.hurry.notify_one();
        self.inner.awaited.notify_one();
        let mut reached = known.reached.subscribe();
        let there = reached.wait_for(|reached| reached.cursor >= position.cursor).await;
        // The sender lives as long as this.
        there.is_ok_and(|reached| reached.rows_after < position.cursor)
    }

    /// Begins to listen to a partition; of one that is not there nothing is ever heard.
    #[must_use]
    pub fn listen(&self, partition: Partition) -> Listener {
        let known = self.inner.partitions.get(usize::from(partition.0));
        let reached = known.map_or_else(
            || watch::channel(Reached { cursor: NOTHING, rows_after: NOTHING }).1,
            |known| known.reached.subscribe(),
        );
        self.inner.listeners.fetch_add(1, Ordering::SeqCst);
        self.inner.awaited.notify_one();
        Listener { progress: self.clone(), reached }
    }

    /// Lets changes of a partition gather for so long, unless somebody waits for it.
    pub(super) async fn gather(&self, partition: Partition, time: Duration) {
        let Some(known) = self.inner.partitions.get(usize::from(partition.0)) else { return };
        let awaited = async {
            while known.waiting.load(Ordering::SeqCst) == 0 {
                known.hurry.notified().await;
            }
        };
        drop(tokio::time::timeout(time, awaited).await);
    }

    fn is_awaited(&self) -> bool {
        self.inner.partitions.iter().any(|known| known.waiting.load(Ordering::SeqCst) > 0)
    }
}

/// Asks the ledger how far it is, while somebody waits or listens; for ever.
pub async fn look(progress: Progress, ledger: Ledger) {
    let mut complaint = Complaint::default();
    loop {
        if !progress.is_awaited() {
            let begins = progress.inner.awaited.notified();
            if progress.inner.listeners.load(Ordering::SeqCst) > 0 {
                drop(tokio::time::timeout(LOOK_FOR_LISTENERS, begins).await);
            } else {
                begins.await;
            }
        }
        match ledger.partitions().await {
            Ok(rows) => {
                complaint.settle();
                for row in rows {
                    progress.passed(Position { partition: row.partition, cursor: row.cursor });
                }
            }
            Err(error) => {
                if let Some(error) = complaint.news(&error) {
                    tracing::warn!(error, "the ledger can not be asked how far it is");
                }
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
            progress.passed(before);
            assert!(poll_immediate(&mut waits).await.is_none());
        }
        progress.passed(at(1, 2, 6));
        assert_eq!(poll_immediate(&mut waits).await, Some(false));
        drop(waits);
        assert!(!progress.is_awaited());
        // What is known does not go back.
        progress.passed(at(1, 2, 1));
        assert!(poll_immediate(Box::pin(progress.wait(at(1, 2, 6)))).await.is_some());
    }

    #[tokio::test]
    async fn one_who_listens_hears_of_it_and_hurries_nobody() {
        let progress = Progress::new(1);
        let mut listener = progress.listen(Partition(0));
        assert!(!progress.is_awaited());
        progress.passed(at(0, 1, 5));
        assert!(
            poll_immediate(Box::pin(listener.beyond(Cursor { epoch: 1, seq: 4 }))).await.is_some()
        );
        assert!(
            poll_immediate(Box::pin(listener.beyond(Cursor { epoch: 1, seq: 5 }))).await.is_none()
        );
        drop(listener);
        assert_eq!(progress.inner.listeners.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn only_what_this_node_has_written_itself_is_a_row_for_sure() {
        let progress = Progress::new(1);
        let is_row = async |epoch, seq| progress.wait(at(0, epoch, seq)).await;
        let cursor = |epoch, seq| Cursor { epoch, seq };
        progress.written(cursor(1, 0), at(0, 1, 3));
        assert!(is_row(1, 1).await && is_row(1, 3).await);
        progress.written(cursor(1, 3), at(0, 1, 5));
        assert!(is_row(1, 1).await && is_row(1, 5).await);
        // Another leader, or a dead letter.
        progress.passed(at(0, 1, 7));
        progress.written(cursor(1, 7), at(0, 1, 9));
        assert!(!is_row(1, 5).await && !is_row(1, 7).await && is_row(1, 8).await);
        // The look at the ledger came before the leader's word.
        progress.passed(at(0, 1, 12));
        progress.written(cursor(1, 9), at(0, 1, 12));
        assert!(is_row(1, 12).await && is_row(1, 10).await && !is_row(1, 9).await);
        // What an epoch has lost is no row.
        progress.written(cursor(2, 0), at(0, 2, 1));
        assert!(!is_row(1, 13).await && is_row(2, 1).await);
    }
}
