//! `lua/adopt.lua`: open a closed partition as it is, when gate and ledger agree.

use super::{
    Gate, GateError,
    reply::Reply,
    script::{ADOPT, Call},
};
use crate::domain::{Cursor, Fence, Partition};

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopted {
    /// It is open on the new epoch.
    Adopted,
    /// Another server, or a later recovery: start again.
    Moved,
    /// The gate is not where the ledger is: rebuild it.
    Differs,
}

/// Opens a partition on `next` if it stands where the ledger does.
///
/// # Errors
/// [`GateError`] when there is no answer.
pub async fn run(
    gate: &Gate,
    partition: Partition,
    next: &Fence,
    ledger: Cursor,
) -> Result<Adopted, GateError> {
    let keys = vec![gate.keys().meta(partition), gate.keys().outbox(partition)];
    let args = vec![
        next.deployment.clone(),
        next.lineage.clone(),
        next.epoch.to_string(),
        ledger.to_string(),
    ];
    let value = gate.once(partition, &Call::new(&ADOPT, keys, args)).await?;
    let mut reply = Reply::new(&ADOPT, &value)?;
    Ok(match reply.text()? {
        "adopted" => Adopted::Adopted,
        "moved" => Adopted::Moved,
        "differs" => Adopted::Differs,
        other => return Err(reply.unknown(other)),
    })
}
