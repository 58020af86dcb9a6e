//! `lua/show_member.lua`: the groups that a user is in.

use super::{Gate, GateError, script::SHOW_MEMBER};
use crate::domain::{Group, Member, Millis, Namespace, UserId};

/// The question.
#[derive(Debug, Clone)]
pub struct ShowMember {
    /// Where.
    pub namespace: Namespace,
    /// Who.
    pub user: UserId,
}

impl ShowMember {
    /// The user's memberships, by group name; empty when there are none.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Vec<Member>, GateError> {
        Ok(self.remembered(gate).await?.0)
    }

    /// The same, and whether anything is remembered of the user here: who has left every group is known all the same.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn remembered(&self, gate: &Gate) -> Result<(Vec<Member>, bool), GateError> {
        let keys = gate.keys();
        let script_keys =
            vec![keys.settings(&self.namespace), keys.member(&self.namespace, &self.user)];
        let called = gate
            .call(keys.partition_of(&self.namespace), &SHOW_MEMBER, script_keys, Vec::new())
            .await?;
        let mut reply = called.reply()?;
        match reply.text()? {
            "member" => {}
            "namespace_not_found" => return Ok((Vec::new(), false)),
            other => return Err(reply.unknown(other)),
        }
        let is_known = reply.number::<u8>()? == 1;
        let mut members = Vec::with_capacity(reply.len() / 3);
        while reply.len() > 0 {
            members.push(Member {
                namespace: self.namespace.clone(),
                user: self.user.clone(),
                group: reply.parsed(Group::parse)?,
                joined_at: reply.parsed_number(Millis::from_ms)?,
                redemption: reply.optional(str::parse)?,
            });
        }
        members.sort_by(|a, b| a.group.cmp(&b.group));
        Ok((members, is_known))
    }
}
