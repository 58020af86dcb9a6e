//! What a node does by itself, without being asked for each step: the codes of [batches], the deliveries of [webhooks],
//! the [copies] of what shards must know.
//!
//! A job is a row of the ledger. The node that works at it holds its lease; when the node dies, another one goes on where
//! the row says.

pub mod batches;
pub mod copies;
pub mod webhooks;

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    gate::Gate,
    ledger::{BatchJob, Ledger, LedgerError},
    sync::{Complaint, progress::Progress},
};

/// What a node needs to work at jobs.
#[derive(Clone)]
pub struct Context {
    /// Redis.
    pub gate: Gate,
    /// SQL.
    pub ledger: Ledger,
    /// How far the ledger is.
    pub progress: Progress,
    /// This node's name among the owners of leases.
    pub owner: String,
    /// How long a lease lasts; a dead node is replaced after that.
    pub lease_ttl: Duration,
    /// Take leases that have not run out: right only where no other process can hold one.
    pub steal_leases: bool,
    /// Rung when this node has taken an order.
    pub ordered: Arc<Notify>,
}

/// Works at one job after the other until `stop`.
pub async fn run(context: Context, stop: CancellationToken) {
    let mut complaint = Complaint::default();
    metrics::counter!("redeemer_batch_codes_total").increment(0);
    let mut steal = context.steal_leases;
    loop {
        match next(&context, steal).await {
            Ok(None) => {
                complaint.settle();
                steal = false;
            }
            Ok(Some(job)) => {
                complaint.settle();
                steal = false;
                if batches::make(&context, &job, &stop).await {
                    continue;
                }
            }
            Err(error) => {
                if let Some(error) = complaint.news(&error) {
                    tracing::warn!(error, "the batches can not be looked after; trying again");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = context.ordered.notified() => {}
            () = tokio::time::sleep(context.lease_ttl / 4) => {}
        }
    }
}

async fn next(context: &Context, steal: bool) -> Result<Option<BatchJob>, LedgerError> {
    let Context { ledger, owner, lease_ttl, .. } = context;
    if steal || ledger.has_open_batches(*lease_ttl).await? {
        ledger.take_batch(owner, *lease_ttl, steal).await
    } else {
        Ok(None)
    }
}
