//! `lua/show_invite.lua`: the exact state of one invite.

use super::{Gate, GateError, create_invite::shown, find_code, script::SHOW_INVITE};
use crate::domain::{Code, InviteId, Namespace, invite::Shown};

/// Which invite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The one with this id, ended ones too.
    Id(InviteId),
    /// The one that this code stands for now.
    Code(Code),
}

/// The question.
#[derive(Debug, Clone)]
pub struct ShowInvite {
    /// Where.
    pub namespace: Namespace,
    /// Which.
    pub which: Which,
}

impl ShowInvite {
    /// The invite as it is now, or nothing when there is none.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Option<Shown>, GateError> {
        let keys = gate.keys();
        let (code, id) = match &self.which {
            Which::Code(code) => (code.clone(), None),
            Which::Id(id) => match find_code::run(gate, &self.namespace, *id).await? {
                Some(code) => (code, Some(*id)),
                None => return Ok(None),
            },
        };
        let invite = keys.invite(&self.namespace, &code);
        let retired = id.map_or_else(|| invite.clone(), |id| keys.retired(&self.namespace, id));
        let held = keys.held(&self.namespace, &code);
        let script_keys = vec![keys.settings(&self.namespace), invite, retired, held];
        let args = vec![id.map(|id| id.to_string()).unwrap_or_default()];
        let called =
            gate.call(keys.partition_of(&self.namespace), &SHOW_INVITE, script_keys, args).await?;
        let mut reply = called.reply()?;
        match reply.text()? {
            "invite" => shown(&mut reply, &self.namespace).map(Some),
            "not_found" => Ok(None),
            other => Err(reply.unknown(other)),
        }
    }
}
