//! `lua/rebuild.lua`: build a partition anew from the ledger, in numbered chunks.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{
    Gate, GateError,
    contents::{self, Values},
    reply::Reply,
    script::{Call, REBUILD},
};
use crate::domain::{
    Campaign, CampaignName, Cursor, Fence, Invite, Moves, Namespace, Partition, Reservation,
    Settings, member::UserRecord,
};

/// Keys that one call removes or loads at most.
const CHUNK_KEYS_MAX: usize = 500;

/// One who builds: a step of another builder, on another server or out of order changes nothing.
pub struct Builder<'a> {
    gate: &'a Gate,
    partition: Partition,
    next: Fence,
    token: String,
    /// Set with each step that is done.
    alive: &'a AtomicBool,
    chunk: u64,
    loaded: u64,
    waiting: Vec<contents::Entry>,
}

/// Why a rebuild did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Another server or another builder has taken over: start again.
    #[error("another recovery, or another Redis, has taken over")]
    Moved,
    /// The gate is another deployment's, or ahead of this ledger.
    #[error("the gate belongs to deployment {deployment} at epoch {epoch}")]
    Foreign {
        /// Whose it is.
        deployment: String,
        /// Its epoch.
        epoch: String,
    },
    /// Redis has not what was sent.
    #[error("Redis counted {chunks} chunks and {keys} keys, which is not what was sent")]
    Miscounted {
        /// Chunks that Redis has seen.
        chunks: String,
        /// Keys that Redis has loaded.
        keys: String,
    },
    /// There is no answer.
    #[error(transparent)]
    Gate(#[from] GateError),
}

impl<'a> Builder<'a> {
    /// Begins to build what will be open on `next`; `token` is the fencing token of the one who builds. Everything that
    /// Redis has of the partition is removed, the state of rate limits aside.
    ///
    /// # Errors
    /// [`RebuildError`]; nothing is open then.
    pub async fn begin(
        gate: &'a Gate,
        partition: Partition,
        next: Fence,
        token: &str,
        discard: bool,
        alive: &'a AtomicBool,
    ) -> Result<Self, RebuildError> {
        let mut builder = Self {
            gate,
            partition,
            next,
            token: token.to_owned(),
            alive,
            chunk: 0,
            loaded: 0,
            waiting: Vec::new(),
        };
        let partitions = gate.keys().partitions().count().to_string();
        let mode = if discard { "discard" } else { "" }.to_owned();
        builder.step("begin", partitions, Vec::new(), vec![mode]).await?;
        builder.remove_all().await?;
        Ok(builder)
    }

    async fn remove_all(&mut self) -> Result<(), RebuildError> {
        let keys = self.gate.keys();
        let kept = [keys.meta(self.partition), keys.outbox(self.partition)];
        let pattern = keys.pattern(self.partition);
        let mut at = 0_u64;
        loop {
            let (next, found) = scan(self.gate, self.partition, at, &pattern).await?;
            let found: Vec<String> = found
                .into_iter()
                .filter(|key| !kept.contains(key) && !keys.is_rate(self.partition, key))
                .collect();
            for chunk in found.chunks(CHUNK_KEYS_MAX) {
                self.step("remove", String::new(), chunk.to_vec(), Vec::new()).await?;
            }
            self.alive.store(true, Ordering::SeqCst);
            if next == 0 {
                return Ok(());
            }
            at = next;
        }
    }

    /// Loads a namespace's rules.
    ///
    /// # Errors
    /// [`RebuildError`]; nothing is open then.
    pub async fn namespace(
        &mut self,
        namespace: &Namespace,
        settings: &Settings,
    ) -> Result<(), RebuildError> {
        self.put(contents::of_namespace(self.gate.keys(), namespace, settings)).await
    }

    /// Loads an invite, as the current one of its code or as a retired one.
    ///
    /// # Errors
    /// [`RebuildError`]; nothing is open then.
    pub async fn invite(&mut self, invite: &Invite, holds_code: bool) -> Result<(), RebuildError> {
        for entry in contents::of_invite(self.gate.keys(), invite, holds_code) {
            self.put(entry).await?;
        }
        Ok(())
    }

    /// Loads what was moved of an invite between shards.
    ///
    /// # Errors
    /// [`RebuildError`]; nothing is open then.
    pub async fn moves(&mut self, moves: &Moves) -> Result<(), RebuildError> {
        self.put(contents::of_moves(self.gate.keys(), moves)).await
    }

    /// Loads campaigns.
    ///
    /// # Errors
    /// [`RebuildError`]; nothing is open then.
    pub async fn campaigns(&mut self, campaigns: &[Campaign]) -> Result<(), RebuildError> {
        for entry in contents::of_campaigns(self.gate.keys(), campaigns) {
            self.put(entry).await?;
        }
        Ok(())
    }

    /// Loads a use that is held.
    ///
    /// # Errors
    /// [`RebuildError`]; nothing is open then.
    pub async fn reservation(
        &mut self,
        held: &Reservation,
        campaign: Option<&CampaignName>,
    ) -> Result<(), RebuildError> {
        for entry in contents::of_reservation(self.gate.keys(), held, campaign) {
            self.put(entry).await?;
        }
        Ok(())
    }

    /// Loads a user's memberships and answers.
    ///
    /// # Errors
    /// [`RebuildError`]; nothing is open then.
    pub async fn user(&mut self, record: &UserRecord) -> Result<(), RebuildError> {
        self.put(contents::of_user(self.gate.keys(), record)).await
    }

    /// Checks that Redis has all that was loaded, and opens the partition.
    ///
    /// # Errors
    /// [`RebuildError`]; nothing is open then.
    pub async fn finish(mut self, ledger: Cursor) -> Result<(), RebuildError> {
        self.flush().await?;
        let args = vec![self.loaded.to_string(), ledger.to_string()];
        self.step("finish", self.chunk.to_string(), Vec::new(), args).await
    }

    /// Puts one key into the next chunk.
    async fn put(&mut self, (key, values): contents::Entry) -> Result<(), RebuildError> {
        if values == Values::Hash(Vec::new()) {
            return Ok(());
        }
        self.waiting.push((key, values));
        if self.waiting.len() >= CHUNK_KEYS_MAX { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), RebuildError> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        self.chunk += 1;
        self.loaded += waiting.len() as u64;
        let mut keys = Vec::with_capacity(waiting.len());
        let mut args = Vec::new();
        for (key, values) in waiting {
            keys.push(key);
            let (kind, values) = match values {
                Values::Text(text) => ("string", vec![text]),
                Values::Hash(pairs) => ("hash", pairs),
                Values::Sorted(pairs) => ("zset", pairs),
            };
            args.extend([kind.to_owned(), values.len().to_string()]);
            args.extend(values);
        }
        self.step("load", self.chunk.to_string(), keys, args).await
    }

    async fn step(
        &mut self,
        step: &str,
        chunk: String,
        keys: Vec<String>,
        more: Vec<String>,
    ) -> Result<(), RebuildError> {
        let keyspace = self.gate.keys();
        let mut all_keys = vec![keyspace.meta(self.partition), keyspace.outbox(self.partition)];
        all_keys.extend(keys);
        let Fence { deployment, lineage, epoch } = self.next.clone();
        let mut args = vec![
            deployment,
            lineage,
            epoch.to_string(),
            self.token.clone(),
            step.to_owned(),
            chunk,
        ];
        args.extend(more);
        let value = self.gate.once(self.partition, &Call::new(&REBUILD, all_keys, args)).await?;
        let mut reply = Reply::new(&REBUILD, &value)?;
        match reply.text()? {
            "done" => {
                self.alive.store(true, Ordering::SeqCst);
                Ok(())
            }
            "moved" => Err(RebuildError::Moved),
            "foreign" => Err(RebuildError::Foreign {
                deployment: reply.text()?.to_owned(),
                epoch: reply.text()?.to_owned(),
            }),
            "miscounted" => Err(RebuildError::Miscounted {
                chunks: reply.text()?.to_owned(),
                keys: reply.text()?.to_owned(),
            }),
            other => Err(reply.unknown(other).into()),
        }
    }
}

/// One step through all keys of a partition's server that match a pattern: where to go on, 0 at the end, and what was
/// found.
pub(super) async fn scan(
    gate: &Gate,
    partition: Partition,
    at: u64,
    pattern: &str,
) -> Result<(u64, Vec<String>), GateError> {
    let unavailable = |cause| GateError::Unavailable { doing: "listing a partition's keys", cause };
    let mut connection = gate.pooled(partition).await.map_err(unavailable)?;
    let mut command = redis::cmd("SCAN");
    command.arg(at).arg("MATCH").arg(pattern).arg("COUNT").arg(1000);
    command.query_async(&mut connection).await.map_err(unavailable)
}
