//! `lua/take_uses.lua`: get uses of an invite, or of a campaign, that another participant of a namespace that is spread has given.

use super::{
    Gate, GateError,
    give_uses::{ACTOR, campaign, part, pool_keys},
    script::TAKE_USES,
};
use crate::domain::{
    Namespace,
    spread::{Part, Pool},
};

/// What is to be got. The ledger has what was given.
#[derive(Debug, Clone)]
pub struct TakeUses {
    /// Who gets it: the namespace itself, or one of its shards.
    pub taker: Namespace,
    /// Of what.
    pub pool: Pool,
    /// Who has given it.
    pub giver: u16,
    /// How much that one has ever given to this one.
    pub given: u64,
}

impl TakeUses {
    /// Runs the script; says what the taker has afterwards. Repeating it changes nothing more.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Part, GateError> {
        let keys = gate.keys();
        let Self { taker, pool, .. } = self;
        let id = pool.id_in(taker);
        let script_keys = pool_keys(keys, taker, pool);
        let args = vec![
            taker.to_string(),
            ACTOR.to_owned(),
            id.to_string(),
            self.giver.to_string(),
            self.given.to_string(),
            campaign(pool),
        ];
        let called = gate.call(keys.partition_of(taker), &TAKE_USES, script_keys, args).await?;
        let mut reply = called.reply()?;
        match reply.text()? {
            "absent" => Ok(Part::absent(taker.participant())),
            "part" => part(&mut reply, taker, id),
            other => Err(reply.unknown(other)),
        }
    }
}
