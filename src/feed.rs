//! What happens in a namespace, for those who follow it: a page at a time from the ledger, as the sync moves on.
//!
//! Every node can serve any namespace: what its own leaders commit it hears of at once, what others commit a little
//! later. Nobody is slowed down by it: followers wait outside of requests and of the sync, read with few connections at
//! a time, and hold no transaction between two pages.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::Instant};

use crate::{
    domain::{Cursor, Event, Namespace, Partition, Position},
    ledger::{Ledger, LedgerError},
    sync::progress::{Listener, Progress},
};

/// Followers that read at the same time. The requests need the other connections.
const READS_MAX: usize = 2;
/// How long a follower that has seen everything waits at least before it reads again, so that a rush is read in pages and
/// not change by change.
const PACE: Duration = Duration::from_millis(100);

/// Where followers read. Cheap to clone.
#[derive(Clone)]
pub struct Feed {
    ledger: Ledger,
    progress: Progress,
    turns: Arc<Semaphore>,
}

/// One who follows a namespace.
pub struct Follower {
    feed: Feed,
    listener: Listener,
    namespace: Namespace,
    partition: Partition,
    cursor: Cursor,
    /// Not before then it reads again.
    next: Instant,
}

impl Feed {
    /// Of this ledger.
    #[must_use]
    pub fn new(ledger: Ledger, progress: Progress) -> Self {
        Self { ledger, progress, turns: Arc::new(Semaphore::new(READS_MAX)) }
    }

    /// Follows a namespace of a partition from what comes after `cursor`.
    #[must_use]
    pub fn follow(&self, namespace: Namespace, partition: Partition, cursor: Cursor) -> Follower {
        Follower {
            listener: self.progress.listen(partition),
            feed: self.clone(),
            namespace,
            partition,
            cursor,
            next: Instant::now(),
        }
    }
}

impl Follower {
    /// Everything up to here was returned.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { partition: self.partition, cursor: self.cursor }
    }

    /// The events that come next, at most `limit`; none when there are none for so long. A call that is dropped has lost
    /// nothing.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn next(
        &mut self,
        limit: u32,
        patience: Duration,
    ) -> Result<Vec<Event>, LedgerError> {
        let until = Instant::now() + patience;
        loop {
            let moved = async {
                tokio::time::sleep_until(self.next).await;
                self.listener.beyond(self.cursor).await;
            };
            if tokio::time::timeout_at(until, moved).await.is_err() {
                return Ok(Vec::new());
            }
            let Ok(_turn) = self.feed.turns.acquire().await else { return Ok(Vec::new()) };
            let ledger = &self.feed.ledger;
            let page = ledger.events(&self.namespace, self.partition, self.cursor, limit).await?;
            self.cursor = page.upto;
            self.next = if page.more { Instant::now() } else { Instant::now() + PACE };
            if !page.events.is_empty() {
                return Ok(page.events);
            }
        }
    }
}
