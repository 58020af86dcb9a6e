//! `lua/erase_user.lua`: put another name in the place of a user's.

use super::{Gate, GateError, script::ERASE_USER};
pub use crate::domain::command::{EraseUser, Erased};
use crate::domain::{Code, InviteId, Policy};

/// Most invites of one call.
const INVITES_MAX: usize = 500;

impl EraseUser {
    /// Runs the script, several times where many invites are bound to the user.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer; then some of it may be done, and erasing again does the rest.
    pub async fn run(&self, gate: &Gate) -> Result<Erased, GateError> {
        let mut erased =
            self.call(gate, true, &self.invites[..self.invites.len().min(INVITES_MAX)]).await?;
        for invites in self.invites.chunks(INVITES_MAX).skip(1) {
            erased = self.call(gate, false, invites).await?;
        }
        Ok(erased)
    }

    async fn call(
        &self,
        gate: &Gate,
        is_first: bool,
        invites: &[(InviteId, Code)],
    ) -> Result<Erased, GateError> {
        let Self { namespace, user, alias, actor, .. } = self;
        let keys = gate.keys();
        let mut script_keys = vec![
            keys.settings(namespace),
            keys.member(namespace, user),
            keys.member(namespace, alias),
            keys.rate(namespace, Policy::User, "", user.as_str()),
            keys.rate(namespace, Policy::Guess, "user", user.as_str()),
        ];
        let mut args = vec![
            namespace.to_string(),
            actor.clone(),
            user.to_string(),
            alias.to_string(),
            u8::from(is_first).to_string(),
        ];
        for (id, code) in invites {
            script_keys.extend([keys.invite(namespace, code), keys.retired(namespace, *id)]);
            args.push(id.to_string());
        }
        let partition = keys.partition_of(namespace);
        let called = gate.call(partition, &ERASE_USER, script_keys, args).await?;
        let mut reply = called.reply()?;
        Ok(match reply.text()? {
            "erased" => Erased::Erased { cursor: reply.parsed(str::parse)? },
            "namespace_not_found" => called.refused(Erased::NamespaceNotFound)?,
            other => return Err(reply.unknown(other)),
        })
    }
}
