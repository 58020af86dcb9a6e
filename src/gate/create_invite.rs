//! `lua/create_invite.lua`: make an invite, taking over the code of an ended one.

use super::{Called, Gate, GateError, fields, reply::Reply, script::CREATE_INVITE};
pub use crate::domain::command::{CreateInvite, Created};
use crate::domain::{InviteId, Millis, Namespace, invite::Shown};

impl CreateInvite {
    /// Runs the script.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Created, GateError> {
        let keys = gate.keys();
        let retired = keys.retired(&self.namespace, self.id);
        let mut ended: Option<InviteId> = None;
        loop {
            let displaced =
                ended.map_or_else(|| retired.clone(), |id| keys.retired(&self.namespace, id));
            let script_keys = vec![
                keys.settings(&self.namespace),
                keys.invite(&self.namespace, &self.code),
                keys.invite_id(&self.namespace, self.id),
                retired.clone(),
                displaced,
                keys.held(&self.namespace, &self.code),
                keys.campaigns(&self.namespace),
                keys.campaign_held(&self.namespace),
            ];
            let partition = keys.partition_of(&self.namespace);
            let called =
                gate.call(partition, &CREATE_INVITE, script_keys, self.args(ended)).await?;
            match self.read(&called)? {
                Said::Ended(id) => ended = Some(id),
                Said::Created(created) => return Ok(created),
            }
        }
    }

    fn args(&self, ended: Option<InviteId>) -> Vec<String> {
        let mut args = vec![
            self.namespace.to_string(),
            self.actor.clone(),
            self.id.to_string(),
            ended.map(|id| id.to_string()).unwrap_or_default(),
            self.exhausted.map(|id| id.to_string()).unwrap_or_default(),
        ];
        let mut field = |name: &str, value: Option<String>| {
            args.extend(value.into_iter().flat_map(|value| [name.to_owned(), value]));
        };
        field("code", Some(self.code.to_string()));
        field("group", Some(self.group.to_string()));
        field("max_uses", self.max_uses.map(|max| max.to_string()));
        field("max_uses_per_user", self.max_uses_per_user.map(|max| max.to_string()));
        field("campaign", self.campaign.as_ref().map(ToString::to_string));
        field("starts_at", self.starts_at.map(|time| time.as_ms().to_string()));
        field("expires_at", self.expires_at.map(|time| time.as_ms().to_string()));
        field("user", self.user.as_ref().map(ToString::to_string));
        field("email_domains", fields::join_domains(&self.email_domains));
        field("metadata", self.metadata.clone());
        args
    }

    fn read(&self, called: &Called) -> Result<Said, GateError> {
        let mut reply = called.reply()?;
        Ok(match reply.text()? {
            "created" => Said::Created(Created::Created(shown(&mut reply, &self.namespace)?)),
            "id_taken" => {
                Said::Created(Created::IdTaken { code: reply.parsed(fields::stored_code)? })
            }
            "code_taken" => {
                let by = reply.parsed(str::parse)?;
                Said::Created(called.refused(Created::CodeTaken { by })?)
            }
            "campaign_not_found" => Said::Created(called.refused(Created::CampaignNotFound)?),
            "namespace_not_found" => Said::Created(called.refused(Created::NamespaceNotFound)?),
            "ended" => Said::Ended(reply.parsed(str::parse)?),
            other => return Err(reply.unknown(other)),
        })
    }
}

enum Said {
    Created(Created),
    /// The code's invite has ended and may be moved aside, by name.
    Ended(InviteId),
}

/// The clock of Redis, the fields of an invite and what is held of it, as several scripts say them.
pub(super) fn shown(reply: &mut Reply<'_>, namespace: &Namespace) -> Result<Shown, GateError> {
    let now = reply.parsed_number(Millis::from_ms)?;
    let invite = reply.fields()?.invite(namespace).map_err(|error| reply.unknown(&error.0))?;
    Ok(Shown { invite, held: reply.number()?, now })
}
