//! `lua/import_invites.lua`: take over invites that were made elsewhere.

use super::{Gate, GateError, fields, script::IMPORT_INVITES};
pub use crate::domain::command::{ImportInvites, Imported, ImportedInvite, InviteImport};

/// Most invites of one call, which no redemption overtakes: at some 20 µs each it holds Redis for less than 5 ms.
pub const INVITES_MAX: usize = 200;

impl ImportInvites {
    /// Runs the script; of more than [`INVITES_MAX`] invites the call would hold up everybody else.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Imported<InviteImport>, GateError> {
        let keys = gate.keys();
        let mut script_keys = vec![keys.settings(&self.namespace)];
        let outbox_max = gate.inner.options.outbox_max.to_string();
        let mut args = vec![self.namespace.to_string(), self.actor.clone(), outbox_max];
        for invite in &self.invites {
            script_keys.push(keys.invite(&self.namespace, &invite.code));
            script_keys.push(keys.invite_id(&self.namespace, invite.id));
            let fields = fields_of(invite);
            args.extend([invite.id.to_string(), invite.uses.to_string(), fields.len().to_string()]);
            args.extend(fields);
        }
        let partition = keys.partition_of(&self.namespace);
        let called = gate.call(partition, &IMPORT_INVITES, script_keys, args).await?;
        let mut reply = called.reply()?;
        Ok(match reply.text()? {
            "done" => {
                let cursor = reply.parsed(str::parse)?;
                let mut told = Vec::with_capacity(self.invites.len());
                for _ in &self.invites {
                    let mut line = reply.array()?;
                    told.push(match line.text()? {
                        "imported" => InviteImport::Imported,
                        "unchanged" => InviteImport::Unchanged,
                        "code_taken" => InviteImport::CodeTaken { by: line.parsed(str::parse)? },
                        other => return Err(line.unknown(other)),
                    });
                }
                Imported::Done { told, cursor }
            }
            "overloaded" => called.refused(Imported::Overloaded)?,
            "namespace_not_found" => called.refused(Imported::NamespaceNotFound)?,
            other => return Err(reply.unknown(other)),
        })
    }
}

fn fields_of(invite: &ImportedInvite) -> Vec<String> {
    let mut all = Vec::new();
    let mut field = |name: &str, value: Option<String>| {
        all.extend(value.into_iter().flat_map(|value| [name.to_owned(), value]));
    };
    field("code", Some(invite.code.to_string()));
    field("group", Some(invite.group.to_string()));
    field("max_uses", invite.max_uses.map(|max| max.to_string()));
    field("max_uses_per_user", invite.max_uses_per_user.map(|max| max.to_string()));
    field("starts_at", invite.starts_at.map(|time| time.as_ms().to_string()));
    field("expires_at", invite.expires_at.map(|time| time.as_ms().to_string()));
    field("disabled", invite.disabled.then(|| "1".to_owned()));
    field("user", invite.user.as_ref().map(ToString::to_string));
    field("email_domains", fields::join_domains(&invite.email_domains));
    field("metadata", invite.metadata.clone());
    all
}
