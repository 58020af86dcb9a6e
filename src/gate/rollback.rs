//! `lua/rollback.lua`: take a redemption back.

use super::{Gate, GateError, script::ROLLBACK};
use crate::domain::Millis;
pub use crate::domain::command::{Rollback, RollbackAnswer};

impl Rollback {
    /// Runs the script.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<RollbackAnswer, GateError> {
        let keys = gate.keys();
        let redemption = &self.redemption;
        let namespace = &redemption.namespace;
        let script_keys = vec![
            keys.settings(namespace),
            keys.invite(namespace, &redemption.code),
            keys.retired(namespace, redemption.invite),
            keys.member(namespace, &redemption.user),
            keys.campaigns(namespace),
        ];
        let args = vec![
            namespace.to_string(),
            self.actor.clone(),
            redemption.id.to_string(),
            redemption.position.cursor.to_string(),
            redemption.user.to_string(),
            self.reason.clone(),
        ];
        let called = gate.call(keys.partition_of(namespace), &ROLLBACK, script_keys, args).await?;
        let mut reply = called.reply()?;
        Ok(match reply.text()? {
            "rolled_back" => RollbackAnswer::RolledBack {
                at: reply.parsed_number(Millis::from_ms)?,
                replayed: false,
            },
            "already" => RollbackAnswer::RolledBack {
                at: reply.parsed_number(Millis::from_ms)?,
                replayed: true,
            },
            "not_found" => called.refused(RollbackAnswer::NotFound)?,
            "code_taken" => {
                called.refused(RollbackAnswer::CodeTaken { by: reply.parsed(str::parse)? })?
            }
            "namespace_not_found" => called.refused(RollbackAnswer::NamespaceNotFound)?,
            other => return Err(reply.unknown(other)),
        })
    }
}
