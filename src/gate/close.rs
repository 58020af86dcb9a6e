//! `lua/close.lua`: close a partition, so that its outbox stands still for recovery.

use super::{
    Gate, GateError,
    reply::Reply,
    script::{CLOSE, Call},
};
use crate::domain::{Fence, Partition};

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// It is closed.
    Closed,
    /// Redis knows nothing of it.
    Empty,
    /// Another server, or a later recovery: start again.
    Moved,
    /// It is another deployment's, or ahead of this ledger.
    Foreign {
        /// Whose it is.
        deployment: String,
        /// Its epoch.
        epoch: u64,
    },
}

/// Closes a partition on behalf of the recovery that will open `next` (its deployment, the lineage seen, the epoch to
/// open). `take_over` makes another deployment's gate ours.
///
/// # Errors
/// [`GateError`] when there is no answer.
pub async fn run(
    gate: &Gate,
    partition: Partition,
    next: &Fence,
    take_over: bool,
) -> Result<Closed, GateError> {
    let args = vec![
        next.deployment.clone(),
        next.lineage.clone(),
        next.epoch.to_string(),
        if take_over { "take_over" } else { "" }.to_owned(),
    ];
    let value =
        gate.once(partition, &Call::new(&CLOSE, vec![gate.keys().meta(partition)], args)).await?;
    let mut reply = Reply::new(&CLOSE, &value)?;
    Ok(match reply.text()? {
        "closed" => Closed::Closed,
        "empty" => Closed::Empty,
        "moved" => Closed::Moved,
        "foreign" => {
            Closed::Foreign { deployment: reply.text()?.to_owned(), epoch: reply.number()? }
        }
        other => return Err(reply.unknown(other)),
    })
}
