//! `lua/release.lua`: give back a use that is held.

use super::{Gate, GateError, script::RELEASE};
pub use crate::domain::command::{Release, ReleaseAnswer};

impl Release {
    /// Runs the script.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<ReleaseAnswer, GateError> {
        let keys = gate.keys();
        let held = &self.reservation;
        let script_keys = vec![
            keys.settings(&held.namespace),
            keys.invite(&held.namespace, &held.code),
            keys.held(&held.namespace, &held.code),
            keys.campaign_held(&held.namespace),
        ];
        let args = vec![
            held.namespace.to_string(),
            self.actor.clone(),
            held.invite.to_string(),
            held.code.to_string(),
            held.user.to_string(),
            held.until.as_ms().to_string(),
        ];
        let partition = keys.partition_of(&held.namespace);
        let called = gate.call(partition, &RELEASE, script_keys, args).await?;
        let mut reply = called.reply()?;
        Ok(match reply.text()? {
            "released" => ReleaseAnswer::Released,
            // A repeat finds what the first attempt has done.
            "not_held" => {
                called.refused_unless_done(ReleaseAnswer::NotHeld, ReleaseAnswer::Released)?
            }
            "namespace_not_found" => called.refused(ReleaseAnswer::NamespaceNotFound)?,
            other => return Err(reply.unknown(other)),
        })
    }
}
