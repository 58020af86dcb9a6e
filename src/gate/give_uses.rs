//! `lua/give_uses.lua`: give uses of an invite, or of a campaign, to another participant of a namespace that is spread, or
//! only look at what there is.

use super::{
    Gate, GateError, fields::millis, key::Keyspace, reply::Reply, script::GIVE_USES, take,
};
use crate::domain::{
    InviteId, Namespace,
    spread::{HOME, Part, Pool},
};

/// The actor of moves.
pub(super) const ACTOR: &str = "spread";

/// What is asked.
#[derive(Debug, Clone)]
pub struct GiveUses {
    /// Of whom: the namespace itself, or one of its shards.
    pub giver: Namespace,
    /// Of what.
    pub pool: Pool,
    /// To whom.
    pub taker: u16,
    /// How much of what was given to it the taker has got.
    pub known: u64,
    /// By how much what is free is divided, at least 1; 0 to give nothing and only look.
    pub divisor: u64,
}

impl GiveUses {
    /// Runs the script; says what the giver has afterwards.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Part, GateError> {
        let keys = gate.keys();
        let Self { giver, pool, .. } = self;
        let id = pool.id_in(giver);
        let args = vec![
            giver.to_string(),
            ACTOR.to_owned(),
            id.to_string(),
            self.taker.to_string(),
            self.known.to_string(),
            self.divisor.to_string(),
            u8::from(giver.participant() == HOME).to_string(),
            campaign(pool),
        ];
        let script_keys = pool_keys(keys, giver, pool);
        let called = gate.call(keys.partition_of(giver), &GIVE_USES, script_keys, args).await?;
        let mut reply = called.reply()?;
        match reply.text()? {
            "absent" => Ok(Part::absent(giver.participant())),
            "part" => part(&mut reply, giver, id),
            other => Err(reply.unknown(other)),
        }
    }
}

/// Where a participant keeps a pool: what it has, the same if its code is another's by now, what is held, what was moved.
pub(super) fn pool_keys(keys: &Keyspace, participant: &Namespace, pool: &Pool) -> Vec<String> {
    let id = pool.id_in(participant);
    let moves = keys.moves(participant, id);
    match pool {
        Pool::Invite { code, .. } => vec![
            keys.invite(participant, code),
            keys.retired(participant, id),
            keys.held(participant, code),
            moves,
        ],
        Pool::Campaign { .. } => {
            let campaigns = keys.campaigns(participant);
            vec![campaigns.clone(), campaigns, keys.campaign_held(participant), moves]
        }
    }
}

/// The name of a campaign; empty for an invite.
pub(super) fn campaign(pool: &Pool) -> String {
    match pool {
        Pool::Invite { .. } => String::new(),
        Pool::Campaign { name, .. } => name.to_string(),
    }
}

/// What a participant has of a pool, as `give_uses.lua` and `take_uses.lua` say it.
pub(super) fn part(
    reply: &mut Reply<'_>,
    participant: &Namespace,
    invite: InviteId,
) -> Result<Part, GateError> {
    let (epoch, revision) = (reply.parsed(str::parse)?, reply.parsed(str::parse)?);
    let (max_uses, total) = (reply.parsed(str::parse)?, reply.optional(str::parse)?);
    let (uses, granted) = (reply.parsed(str::parse)?, reply.parsed(str::parse)?);
    let (held, holds) = (reply.number()?, reply.parsed(str::parse)?);
    let (may_free_at, kept) = (reply.optional(millis)?, reply.number()?);
    let moves = take::moves(participant, invite, &reply.fields()?)
        .map_err(|error| reply.unknown(&error.0))?;
    Ok(Part {
        shard: participant.participant(),
        epoch,
        revision,
        total,
        max_uses,
        uses,
        held,
        granted,
        holds,
        may_free_at,
        kept,
        given: moves.given,
        taken: moves.taken,
    })
}
