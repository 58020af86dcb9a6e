//! Makes the invites of a batch: slot after slot, some in each call of the gate, never far ahead of the ledger.
//!
//! The id and the code of a slot follow from the batch, so whoever does it again makes nothing new. Where another invite
//! has the code, the slot gets another one: a slot is done when its id has an invite, and there are as many slots as
//! codes were asked for. `done` counts the slots that the ledger has, and is never further than that: what Redis loses
//! is made again.

use std::{collections::VecDeque, ops::Range, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::{
    domain::{Batch, Codes, Malformed, Position},
    gate::{
        GateError,
        create_batch::{BatchCreated, CreateBatch, INVITES_MAX},
    },
    ledger::{BatchEnd, BatchJob, LedgerError},
    sync::{chain, unquoted},
};

/// How many codes the gate may be ahead of the ledger: what is redeemed meanwhile waits behind them for the ledger.
const AHEAD_MAX: u64 = 10_000;
/// How often it is written down how far the batch is.
const KEEP: Duration = Duration::from_millis(250);
/// How often a slot is given another code. Of ten thousand codes or more, so many are never taken by chance.
const ATTEMPTS_MAX: u32 = 100;

/// Works at a batch until it is done, somebody else has it, something is in the way, or `stop`. Says whether to go on
/// with the next one at once.
pub(super) async fn make(context: &Context, job: &BatchJob, stop: &CancellationToken) -> bool {
    let id = job.batch.order.id;
    let mut maker = Maker {
        context,
        job,
        batch: &job.batch,
        done: job.batch.done,
        next: job.batch.done,
        ahead: VecDeque::new(),
        kept: Instant::now(),
    };
    let end = match maker.run(stop).await {
        Ok(end) => end,
        Err(Trouble::Failed(reason)) => {
            tracing::error!(batch = %id, reason = unquoted(&reason), "a batch has failed");
            BatchEnd::Failed(reason)
        }
        Err(Trouble::LeaseLost) => return true,
        Err(Trouble::NotNow(error)) => {
            tracing::warn!(batch = %id, error = chain(&*error), "a batch can not go on; trying again");
            BatchEnd::LeftOpen
        }
    };
    if let Err(error) = context.ledger.end_batch(job, maker.done, &end).await {
        tracing::warn!(batch = %id, error = chain(&error), "a batch was not given back; its lease runs out");
        return false;
    }
    end != BatchEnd::LeftOpen
}

/// Why the work stopped.
enum Trouble {
    /// Trying again will not help.
    Failed(String),
    /// Trying again later may.
    NotNow(Box<dyn std::error::Error + Send + Sync>),
    /// Somebody else works at it now.
    LeaseLost,
}

impl From<GateError> for Trouble {
    fn from(error: GateError) -> Self {
        match error {
            GateError::Unexpected { .. } => Self::Failed(chain(&error)),
            other => Self::NotNow(Box::new(other)),
        }
    }
}

impl From<LedgerError> for Trouble {
    fn from(error: LedgerError) -> Self {
        Self::NotNow(Box::new(error))
    }
}

impl From<Malformed> for Trouble {
    fn from(error: Malformed) -> Self {
        Self::Failed(error.0)
    }
}

struct Maker<'a> {
    context: &'a Context,
    job: &'a BatchJob,
    batch: &'a Batch,
    /// The ledger has the slots before this one.
    done: u64,
    /// The gate has the slots before this one.
    next: u64,
    /// Where the ledger must be to have the slots before each of these.
    ahead: VecDeque<(u64, Position)>,
    /// When it was last written down how far the batch is.
    kept: Instant,
}

impl Maker<'_> {
    async fn run(&mut self, stop: &CancellationToken) -> Result<BatchEnd, Trouble> {
        let order = &self.batch.order;
        let settings = self.context.gate.settings(&order.namespace).await?;
        let codes = Codes {
            pattern: order.pattern.clone(),
            alphabet: order.alphabet,
            case: settings.map(|settings| settings.code_case).unwrap_or_default(),
            count: order.count,
            secret: self.job.secret,
        };
        let made = metrics::counter!("redeemer_batch_codes_total");
        while self.done < order.count {
            if stop.is_cancelled() {
                return Ok(BatchEnd::LeftOpen);
            }
            self.keep().await?;
            if self.next < order.count && self.next - self.done < AHEAD_MAX {
                let end = order.count.min(self.next + INVITES_MAX as u64);
                if let Some(position) = self.create(&codes, self.next..end).await? {
                    made.increment(end - self.next);
                    self.next = end;
                    self.ahead.push_back((end, position));
                    continue;
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.ledger_has_more() => self.look(),
                () = tokio::time::sleep(KEEP) => {}
            }
        }
        Ok(BatchEnd::Finished)
    }

    /// Waits until the ledger has what was made first of what it had not.
    async fn ledger_has_more(&self) {
        match self.ahead.front() {
            Some((_, position)) => drop(self.context.progress.wait(*position).await),
            None => std::future::pending().await,
        }
    }

    /// Takes note of what the ledger has. What it did not have before its partition was opened anew may be lost, and is
    /// made again.
    fn look(&mut self) {
        while let Some((end, position)) = self.ahead.front() {
            let cursor = self.context.progress.cursor(position.partition);
            if cursor < position.cursor {
                return;
            }
            if cursor.epoch != position.cursor.epoch {
                self.ahead.clear();
                self.next = self.done;
                return;
            }
            self.done = *end;
            self.ahead.pop_front();
        }
    }

    /// Every now and then, writes down how far the batch is, which also extends the lease.
    async fn keep(&mut self) -> Result<(), Trouble> {
        let Context { ledger, lease_ttl, .. } = self.context;
        if self.kept.elapsed() < KEEP.min(*lease_ttl / 4) {
            return Ok(());
        }
        self.kept = Instant::now();
        if ledger.keep_batch(self.job, self.done, *lease_ttl).await? {
            Ok(())
        } else {
            Err(Trouble::LeaseLost)
        }
    }

    /// Makes the invites of these slots; returns where the ledger must be to have them, or nothing when the outbox is
    /// full.
    async fn create(&self, codes: &Codes, slots: Range<u64>) -> Result<Option<Position>, Trouble> {
        let order = &self.batch.order;
        let mut create = CreateBatch {
            batch: order.id,
            namespace: order.namespace.clone(),
            invites: Vec::new(),
            group: order.group.clone(),
            max_uses: order.max_uses,
            max_uses_per_user: order.max_uses_per_user,
            campaign: order.campaign.clone(),
            starts_at: order.starts_at,
            expires_at: order.expires_at,
            email_domains: order.email_domains.clone(),
            metadata: order.metadata.clone(),
            actor: order.actor.clone(),
        };
        let mut wanted: Vec<u64> = slots.collect();
        for attempt in 0..ATTEMPTS_MAX {
            let invite = |slot: &u64| {
                let id = order.id.invite(u32::try_from(*slot).unwrap_or(u32::MAX));
                Ok((id, codes.code(*slot, attempt)?))
            };
            create.invites = wanted.iter().map(invite).collect::<Result<_, Malformed>>()?;
            match create.run(&self.context.gate).await? {
                BatchCreated::Created { taken, cursor } if taken.is_empty() => {
                    let partition = self.context.gate.keys().partition_of(&order.namespace);
                    return Ok(Some(Position { partition, cursor }));
                }
                BatchCreated::Created { taken, .. } => {
                    wanted = taken.iter().filter_map(|place| wanted.get(*place).copied()).collect();
                }
                BatchCreated::Overloaded => return Ok(None),
                BatchCreated::CampaignNotFound => {
                    return Err(Trouble::Failed("there is no such campaign".to_owned()));
                }
                BatchCreated::NamespaceNotFound => {
                    return Err(Trouble::Failed("the namespace was archived".to_owned()));
                }
            }
        }
        Err(Trouble::Failed(format!(
            "too many codes of the pattern {} are taken; order the rest with another one",
            order.pattern
        )))
    }
}
