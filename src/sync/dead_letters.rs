//! Dead letters, once somebody has mended what stood in their way.

use super::{chain, plan};
use crate::{
    gate::outbox,
    ledger::{By, DeadLetter, Ledger, LedgerError},
};

/// What became of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    /// The ledger has it.
    Applied,
    /// It still can not be applied, for this reason.
    Refused(String),
}

/// Tries a dead letter again, by somebody's order.
///
/// # Errors
/// [`LedgerError`] when the ledger can not be used now.
pub async fn replay(
    ledger: &Ledger,
    letter: &DeadLetter,
    by: &By,
) -> Result<Replayed, LedgerError> {
    let entry = match outbox::decode_text(letter.partition, letter.cursor, &letter.entry) {
        Ok(entry) => entry,
        Err(malformed) => return Ok(Replayed::Refused(malformed.0)),
    };
    match ledger.settle_dead_letter(letter, Some(plan::plan(&[entry])), by).await {
        Ok(()) => Ok(Replayed::Applied),
        Err(error @ LedgerError::Rejected { .. }) => Ok(Replayed::Refused(chain(&error))),
        Err(error) => Err(error),
    }
}
