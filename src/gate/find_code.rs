//! `lua/find_code.lua`: the code of an invite that is known by its id.

use super::{Gate, GateError, fields::stored_code, script::FIND_CODE};
use crate::domain::{Code, InviteId, Namespace};

/// The invite's code, or nothing when no invite has this id.
pub(super) async fn run(
    gate: &Gate,
    namespace: &Namespace,
    id: InviteId,
) -> Result<Option<Code>, GateError> {
    let keys = gate.keys();
    let script_keys = vec![keys.invite_id(namespace, id)];
    let called =
        gate.call(keys.partition_of(namespace), &FIND_CODE, script_keys, Vec::new()).await?;
    let mut reply = called.reply()?;
    match reply.text()? {
        "code" => reply.parsed(stored_code).map(Some),
        "not_found" => Ok(None),
        other => Err(reply.unknown(other)),
    }
}
