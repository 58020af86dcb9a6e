//! `lua/change_invite.lua`: change an invite while it is hot.

use super::{Gate, GateError, create_invite::shown, fields, find_code, script::CHANGE_INVITE};
use crate::domain::Millis;
pub use crate::domain::command::{ChangeInvite, Changed, InvitePatch};

impl ChangeInvite {
    /// Runs the script.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Changed, GateError> {
        let keys = gate.keys();
        let Some(code) = find_code::run(gate, &self.namespace, self.id).await? else {
            return Ok(Changed::NotFound);
        };
        let script_keys = vec![
            keys.settings(&self.namespace),
            keys.invite(&self.namespace, &code),
            keys.retired(&self.namespace, self.id),
            keys.held(&self.namespace, &code),
            keys.campaign_held(&self.namespace),
        ];
        let partition = keys.partition_of(&self.namespace);
        let called = gate.call(partition, &CHANGE_INVITE, script_keys, self.args()).await?;
        let mut reply = called.reply()?;
        Ok(match reply.text()? {
            "changed" => Changed::Changed(shown(&mut reply, &self.namespace)?),
            "not_found" => called.refused(Changed::NotFound)?,
            "precondition_failed" => {
                called.refused(Changed::PreconditionFailed { revision: reply.number()? })?
            }
            "limit_below_used" => {
                let (uses, held) = (reply.number()?, reply.number()?);
                called.refused(Changed::LimitBelowUsed { uses, held })?
            }
            "code_taken" => called.refused(Changed::CodeTaken { by: reply.parsed(str::parse)? })?,
            "window_reversed" => called.refused(Changed::WindowReversed)?,
            other => return Err(reply.unknown(other)),
        })
    }

    fn args(&self) -> Vec<String> {
        let mut args = vec![
            self.namespace.to_string(),
            self.actor.clone(),
            self.id.to_string(),
            self.change.to_string(),
            self.expected_revision.map(|revision| revision.to_string()).unwrap_or_default(),
        ];
        // An empty value removes the field.
        let mut field = |name: &str, value: Option<Option<String>>| {
            args.extend(
                value.into_iter().flat_map(|value| [name.to_owned(), value.unwrap_or_default()]),
            );
        };
        let InvitePatch {
            max_uses,
            max_uses_per_user,
            starts_at,
            expires_at,
            disabled,
            user,
            email_domains,
            metadata,
        } = &self.patch;
        let time = |time: Millis| time.as_ms().to_string();
        let count = |max: Option<u64>| max.map(|max| max.to_string());
        field("max_uses", max_uses.map(count));
        field("max_uses_per_user", max_uses_per_user.map(count));
        field("starts_at", starts_at.map(|start| start.map(time)));
        field("expires_at", expires_at.map(|end| end.map(time)));
        field("disabled", disabled.map(|disabled| disabled.then(|| "1".to_owned())));
        field("user", user.as_ref().map(|user| user.as_ref().map(ToString::to_string)));
        field("email_domains", email_domains.as_deref().map(fields::join_domains));
        field("metadata", metadata.clone());
        args
    }
}
