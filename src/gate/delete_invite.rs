//! `lua/delete_invite.lua`: delete an invite that nobody has redeemed.

use super::{Gate, GateError, find_code, script::DELETE_INVITE};
use crate::domain::{InviteId, Namespace};

/// The invite to delete.
#[derive(Debug, Clone)]
pub struct DeleteInvite {
    /// Which.
    pub id: InviteId,
    /// Where.
    pub namespace: Namespace,
    /// Delete only this revision (`If-Match`).
    pub expected_revision: Option<u64>,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone.
    Deleted,
    /// No invite has this id.
    NotFound,
    /// It has redemptions; disable it instead.
    InUse {
        /// How many.
        uses: u64,
    },
    /// Somebody else changed it meanwhile.
    PreconditionFailed {
        /// What it is now.
        revision: u64,
    },
}

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
            "not_found" if called.repeated => Deleted::Deleted,
            "not_found" => Deleted::NotFound,
            "in_use" => Deleted::InUse { uses: reply.number()? },
            "precondition_failed" => Deleted::PreconditionFailed { revision: reply.number()? },
            other => return Err(reply.unknown(other)),
        })
    }
}
