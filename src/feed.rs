//! What happens in a namespace, for those who follow it: a page at a time from the ledger, as the sync moves on.
//!
//! Every node can serve any namespace: what its own leaders commit it hears of at once, what others commit a little
//! later. Nobody is slowed down by it: followers wait outside of requests and of the sync, read with few connections at
//! a time, and hold no transaction between two pages.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::select_all;
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    domain::{Cursor, Event, Namespace, Partition, Position, Positions},
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

/// One who follows a namespace, in all partitions that it lies in.
pub struct Follower {
    each: Vec<OfPartition>,
}

/// One who follows what a namespace has in a partition.
struct OfPartition {
    feed: Feed,
    listener: Listener,
    parts: Vec<Namespace>,
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

    /// Follows what a namespace has in each of some partitions from what comes after a place there; where none is given,
    /// from the first event that there ever was.
    #[must_use]
    pub fn follow(
        &self,
        partitions: BTreeMap<Partition, Vec<Namespace>>,
        from: &Positions,
    ) -> Follower {
        let each = partitions.into_iter().map(|(partition, parts)| OfPartition {
            listener: self.progress.listen(partition),
            feed: self.clone(),
            parts,
            partition,
            cursor: from.of(partition).unwrap_or(Cursor { epoch: 0, seq: 0 }),
            next: Instant::now(),
        });
        Follower { each: each.collect() }
    }
}

impl Follower {
    /// Everything up to here was returned.
    #[must_use]
    pub fn positions(&self) -> Positions {
        self.each.iter().map(OfPartition::position).collect()
    }

    /// The events of one of the partitions that come next, at most `limit`, and up to where they are all that there are in
    /// it; none when there are none for so long. A call that is dropped has lost nothing.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn next(
        &mut self,
        limit: u32,
        patience: Duration,
    ) -> Result<Option<(Vec<Event>, Position)>, LedgerError> {
        let until = Instant::now() + patience;
        // Each is asked first in turn, or a busy one would keep the others waiting.
        let next = usize::from(self.each.len() > 1);
        self.each.rotate_left(next);
        let each = self.each.iter_mut().map(|one| Box::pin(one.next(limit, until)));
        let mut each: Vec<_> = each.collect();
        while !each.is_empty() {
            let (found, _, others) = select_all(each).await;
            if let Some(found) = found? {
                return Ok(Some(found));
            }
            each = others;
        }
        Ok(None)
    }
}

impl OfPartition {
    fn position(&self) -> Position {
        Position { partition: self.partition, cursor: self.cursor }
    }

    async fn next(
        &mut self,
        limit: u32,
        until: Instant,
    ) -> Result<Option<(Vec<Event>, Position)>, LedgerError> {
        loop {
            let moved = async {
                tokio::time::sleep_until(self.next).await;
                self.listener.beyond(self.cursor).await;
            };
            if tokio::time::timeout_at(until, moved).await.is_err() {
                return Ok(None);
            }
            let Ok(_turn) = self.feed.turns.acquire().await else { return Ok(None) };
            let ledger = &self.feed.ledger;
            let page = ledger.events(&self.parts, self.partition, self.cursor, limit).await?;
            self.cursor = page.upto;
            self.next = if page.more { Instant::now() } else { Instant::now() + PACE };
            if !page.events.is_empty() {
                return Ok(Some((page.events, self.position())));
            }
        }
    }
}
