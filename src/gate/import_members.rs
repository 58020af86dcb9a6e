//! `lua/import_members.lua`: take over members who joined elsewhere.

use super::{Gate, GateError, script::IMPORT_MEMBERS};
use crate::domain::Group;
pub use crate::domain::command::{ImportMembers, Imported, MemberImport};

/// Most members of one call, which no redemption overtakes.
pub const MEMBERS_MAX: usize = 200;

impl ImportMembers {
    /// Runs the script; of more than [`MEMBERS_MAX`] members the call would hold up everybody else.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Imported<MemberImport>, GateError> {
        let keys = gate.keys();
        let mut script_keys = vec![keys.settings(&self.namespace)];
        let outbox_max = gate.inner.options.outbox_max.to_string();
        let mut args = vec![self.namespace.to_string(), self.actor.clone(), outbox_max];
        for (user, group, since) in &self.members {
            script_keys.push(keys.member(&self.namespace, user));
            let since = since.map(|since| since.as_ms().to_string()).unwrap_or_default();
            args.extend([user.to_string(), group.to_string(), since]);
        }
        let partition = keys.partition_of(&self.namespace);
        let called = gate.call(partition, &IMPORT_MEMBERS, script_keys, args).await?;
        let mut reply = called.reply()?;
        Ok(match reply.text()? {
            "done" => {
                let cursor = reply.parsed(str::parse)?;
                let mut told = Vec::with_capacity(self.members.len());
                for _ in &self.members {
                    let mut line = reply.array()?;
                    told.push(match line.text()? {
                        "imported" => MemberImport::Imported,
                        "elsewhere" => MemberImport::Elsewhere,
                        "unchanged" => MemberImport::Unchanged,
                        "already_member" => MemberImport::AlreadyMember {
                            group: line.parsed(Group::parse)?,
                            redemption: line.optional(str::parse)?,
                        },
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
