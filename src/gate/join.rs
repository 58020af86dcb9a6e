//! `lua/join.lua`: make a user a member without a redemption.

use super::{Gate, GateError, script::JOIN};
pub use crate::domain::command::{Join, Joined};
use crate::domain::{Group, Member, Millis};

impl Join {
    /// Runs the script.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Joined, GateError> {
        let keys = gate.keys();
        let script_keys =
            vec![keys.settings(&self.namespace), keys.member(&self.namespace, &self.user)];
        let args = vec![
            self.namespace.to_string(),
            self.actor.clone(),
            self.user.to_string(),
            self.group.to_string(),
        ];
        let called =
            gate.call(keys.partition_of(&self.namespace), &JOIN, script_keys, args).await?;
        let mut reply = called.reply()?;
        let member = |joined_at, redemption| Member {
            namespace: self.namespace.clone(),
            user: self.user.clone(),
            group: self.group.clone(),
            redemption,
            joined_at,
        };
        Ok(match reply.text()? {
            "joined" => Joined::Joined(member(reply.parsed_number(Millis::from_ms)?, None)),
            "already" => {
                let joined_at = reply.parsed_number(Millis::from_ms)?;
                Joined::Already(member(joined_at, reply.optional(str::parse)?))
            }
            "already_member" => {
                let group = reply.parsed(Group::parse)?;
                let redemption = reply.optional(str::parse)?;
                called.refused(Joined::AlreadyMember { group, redemption })?
            }
            "elsewhere" => called.refused(Joined::Elsewhere)?,
            "namespace_not_found" => called.refused(Joined::NamespaceNotFound)?,
            other => return Err(reply.unknown(other)),
        })
    }
}
