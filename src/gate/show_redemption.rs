//! `lua/show_redemption.lua`: whether a redemption still holds.

use super::{Gate, GateError, script::SHOW_REDEMPTION};
use crate::domain::{Millis, Redemption};

/// When a redemption was rolled back; nothing for one that holds, or that the gate does not know.
///
/// # Errors
/// [`GateError`] when there is no answer.
pub async fn rolled_back_at(
    gate: &Gate,
    redemption: &Redemption,
) -> Result<Option<Millis>, GateError> {
    let keys = gate.keys();
    let script_keys = vec![keys.member(&redemption.namespace, &redemption.user)];
    let args = vec![redemption.id.to_string(), redemption.position.cursor.to_string()];
    let partition = keys.partition_of(&redemption.namespace);
    let called = gate.call(partition, &SHOW_REDEMPTION, script_keys, args).await?;
    let mut reply = called.reply()?;
    match reply.text()? {
        "rolled_back" => reply.parsed_number(Millis::from_ms).map(Some),
        "holds" | "not_found" => Ok(None),
        other => Err(reply.unknown(other)),
    }
}
