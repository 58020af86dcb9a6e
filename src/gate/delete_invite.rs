//! `lua/delete_invite.lua`: delete an invite that nobody has redeemed.

use super::{Gate, GateError, find_code, script::DELETE_INVITE};
pub use crate::domain::command::{DeleteInvite, Deleted};

impl DeleteInvite {
    /// Runs the script.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Deleted, GateError> {
        let keys = gate.keys();
        let Some(code) = find_code::run(gate, &self.namespace, self.id).await? else {
            return Ok(Deleted::NotFound);
        };
        let script_keys = vec![
            keys.settings(&self.namespace),
            keys.invite(&self.namespace, &code),
            keys.retired(&self.namespace, self.id),
            keys.invite_id(&self.namespace, self.id),
            keys.held(&self.namespace, &code),
            keys.campaign_held(&self.namespace),
            keys.moves(&self.namespace, self.id),
        ];
        let args = vec![
            self.namespace.to_string(),
            self.actor.clone(),
            self.id.to_string(),
            self.expected_revision.map(|revision| revision.to_string()).unwrap_or_default(),
        ];
        let called = gate
            .call(keys.partition_of(&self.namespace), &DELETE_INVITE, script_keys, args)
            .await?;
        let mut reply = called.reply()?;
        Ok(match reply.text()? {
            "deleted" => Deleted::Deleted,
            // It was there a moment ago: an earlier attempt of this call has deleted it.
            "not_found" => called.refused_unless_done(Deleted::NotFound, Deleted::Deleted)?,
            "uses_elsewhere" => called.refused(Deleted::UsesElsewhere)?,
            "in_use" => {
                let (uses, held) = (reply.number()?, reply.number()?);
                called.refused(Deleted::InUse { uses, held })?
            }
            "precondition_failed" => {
                called.refused(Deleted::PreconditionFailed { revision: reply.number()? })?
            }
            other => return Err(reply.unknown(other)),
        })
    }
}
