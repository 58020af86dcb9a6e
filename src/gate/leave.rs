//! `lua/leave.lua`: end memberships; the uses stay spent.

use super::{Gate, GateError, script::LEAVE};
use crate::domain::Group;
pub use crate::domain::command::{Leave, Left};

impl Leave {
    /// Runs the script.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Left, GateError> {
        let keys = gate.keys();
        let script_keys =
            vec![keys.settings(&self.namespace), keys.member(&self.namespace, &self.user)];
        let args = vec![
            self.namespace.to_string(),
            self.actor.clone(),
            self.user.to_string(),
            self.group.as_ref().map(ToString::to_string).unwrap_or_default(),
        ];
        let called =
            gate.call(keys.partition_of(&self.namespace), &LEAVE, script_keys, args).await?;
        let mut reply = called.reply()?;
        Ok(match reply.text()? {
            "left" => Left::Left(
                (0..reply.len()).map(|_| reply.parsed(Group::parse)).collect::<Result<_, _>>()?,
            ),
            // Where an earlier attempt of this call may have ended the membership, it has ended either way.
            "not_member" => {
                let groups = self.group.iter().cloned().collect();
                called.refused_unless_done(Left::NotMember, Left::Left(groups))?
            }
            "namespace_not_found" => called.refused(Left::NamespaceNotFound)?,
            other => return Err(reply.unknown(other)),
        })
    }
}
