//! What happens in a namespace, for those who follow it: a page at a time from the ledger, as the sync moves on.
//!
//! Every node can serve any namespace: what its own leaders commit it hears of at once, what others commit a little
//! later. Nobody is slowed down by it: followers wait outside of requests and of the sync, read with few connections at
//! a time, and hold no transaction between two pages.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::select_all;
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    domain::{Cursor, Event, Namespace, Partition, Position, Positions},
    gate::key::Keyspace,
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
    keys: Keyspace,
    turns: Arc<Semaphore>,
}

/// One who follows a namespace, in all partitions that it lies in.
pub struct Follower {
    feed: Feed,
    namespace: Namespace,
    each: Vec<OfPartition>,
    /// Its rules have changed: it may lie in more partitions by now.
    may_lack: bool,
}

/// One who follows what a namespace has in a partition.
struct OfPartition {
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
    pub fn new(ledger: Ledger, progress: Progress, keys: Keyspace) -> Self {
        Self { ledger, progress, keys, turns: Arc::new(Semaphore::new(READS_MAX)) }
    }

    /// The partitions that a namespace lies in.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn partitions_of(
        &self,
        namespace: &Namespace,
    ) -> Result<BTreeSet<Partition>, LedgerError> {
        let parts = self.ledger.parts(namespace).await?;
        Ok(parts.iter().map(|part| self.keys.partition_of(part)).collect())
    }

    /// Follows a namespace in each of its partitions from what comes after a place there; where none is given, from the
    /// first event that there ever was.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read which they are.
    pub async fn follow(
        &self,
        namespace: Namespace,
        from: &Positions,
    ) -> Result<Follower, LedgerError> {
        let mut follower =
            Follower { feed: self.clone(), namespace, each: Vec::new(), may_lack: true };
        follower.complete(from).await?;
        Ok(follower)
    }
}

impl Follower {
    /// Everything up to here was returned.
    #[must_use]
    pub fn positions(&self) -> Positions {
        self.each.iter().map(OfPartition::position).collect()
    }

    /// Follows every partition that the namespace lies in.
    async fn complete(&mut self, from: &Positions) -> Result<(), LedgerError> {
        for partition in self.feed.partitions_of(&self.namespace).await? {
            if self.each.iter().all(|one| one.partition != partition) {
                self.each.push(OfPartition {
                    feed: self.feed.clone(),
                    listener: self.feed.progress.listen(partition),
                    namespace: self.namespace.clone(),
                    partition,
                    cursor: from.of(partition).unwrap_or(Cursor { epoch: 0, seq: 0 }),
                    next: Instant::now(),
                });
            }
        }
        self.may_lack = false;
        Ok(())
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
        if self.may_lack {
            self.complete(&Positions::default()).await?;
        }
        // Each is asked first in turn, or a busy one would keep the others waiting.
        let next = usize::from(self.each.len() > 1);
        self.each.rotate_left(next);
        let mut each: Vec<_> =
            self.each.iter_mut().map(|one| Box::pin(one.next(limit, until))).collect();
        while !each.is_empty() {
            let (found, _, others) = select_all(each).await;
            if let Some((events, upto)) = found? {
                drop(others);
                self.may_lack = events.iter().any(|event| event.kind() == "namespace_put");
                return Ok(Some((events, upto)));
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
            let page = ledger.events(&self.namespace, self.partition, self.cursor, limit).await?;
            self.cursor = page.upto;
            self.next = if page.more { Instant::now() } else { Instant::now() + PACE };
            if !page.events.is_empty() {
                return Ok(Some((page.events, self.position())));
            }
        }
    }
}
