//! `lua/join.lua`: make a user a member without a redemption.

use super::{Gate, GateError, script::JOIN};
use crate::domain::{Group, Member, Millis, Namespace, RedemptionId, UserId};

/// The membership to make. The namespace's rule holds as it does for redemptions.
#[derive(Debug, Clone)]
pub struct Join {
    /// Where.
    pub namespace: Namespace,
    /// Who.
    pub user: UserId,
    /// What.
    pub group: Group,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    /// The user is a member, since now.
    Joined(Member),
    /// The user was a member of this group already.
    Already(Member),
    /// The rule allows no second group.
    AlreadyMember {
        /// The group that the user is in.
        group: Group,
        /// By which redemption, if by one.
        redemption: Option<RedemptionId>,
    },
    /// The namespace does not exist or was archived.
    NamespaceNotFound,
}

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
            "already_member" => Joined::AlreadyMember {
                group: reply.parsed(Group::parse)?,
                redemption: reply.optional(str::parse)?,
            },
            "namespace_not_found" => Joined::NamespaceNotFound,
            other => return Err(reply.unknown(other)),
        })
    }
}
