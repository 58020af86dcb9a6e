//! `lua/copy_invite.lua`: copy an invite of a namespace that is spread into one of its shards.

use super::{Gate, GateError, fields, script::COPY_INVITE};
use crate::domain::{Invite, InviteId, Namespace};

/// The actor of what is copied.
const ACTOR: &str = "spread";

/// Fields that a copy has of its own.
const OWN: [&str; 6] = ["id", "max_uses", "total", "uses", "granted", "imported"];
/// Fields that only the home needs, since nothing in a shard asks for them.
const OF_HOME: [&str; 1] = ["metadata"];

/// The invite to copy.
#[derive(Debug, Clone)]
pub struct CopyInvite {
    /// Where to.
    pub shard: Namespace,
    /// As its home has it.
    pub invite: Invite,
    /// Whether its code stands for it there.
    pub is_current: bool,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// The shard has it as the home said, or newer.
    Copied,
    /// A later invite has the code.
    Newer,
    /// The shard itself does not exist yet, or was archived.
    NoShard,
}

impl CopyInvite {
    /// Runs the script.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Copied, GateError> {
        let keys = gate.keys();
        let shard = &self.shard;
        let id = self.invite.id_in(shard);
        let retired = keys.retired(shard, id);
        let partition = keys.partition_of(shard);
        let mut older: Option<InviteId> = None;
        loop {
            let displaced = older.map_or_else(|| retired.clone(), |id| keys.retired(shard, id));
            let script_keys = vec![
                keys.settings(shard),
                keys.invite(shard, &self.invite.code),
                keys.invite_id(shard, id),
                retired.clone(),
                displaced,
                keys.held(shard, &self.invite.code),
                keys.campaigns(shard),
                keys.campaign_held(shard),
            ];
            let mut args = vec![
                shard.to_string(),
                ACTOR.to_owned(),
                id.to_string(),
                older.map(|id| id.to_string()).unwrap_or_default(),
                u8::from(self.is_current).to_string(),
            ];
            let fields = fields::of_invite(&self.invite).into_iter();
            let fields = fields.filter(|(name, _)| !OWN.contains(name) && !OF_HOME.contains(name));
            args.extend(fields.flat_map(|(name, value)| [name.to_owned(), value]));
            let called = gate.call(partition, &COPY_INVITE, script_keys, args).await?;
            let mut reply = called.reply()?;
            match reply.text()? {
                "copied" => return Ok(Copied::Copied),
                "newer" => return Ok(Copied::Newer),
                "namespace_not_found" => return Ok(Copied::NoShard),
                "older" => older = Some(reply.parsed(str::parse)?),
                other => return Err(reply.unknown(other)),
            }
        }
    }
}
