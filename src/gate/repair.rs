//! `lua/repair.lua`: make a key hold what the ledger says, if it still holds what an audit saw.

use super::{Gate, GateError, audit::Held, key::Named, script::REPAIR};
use crate::domain::Partition;

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repaired {
    /// It holds what it should.
    Repaired,
    /// It did not hold any more what was seen; nothing was written.
    Changed,
}

/// Mends a key.
///
/// # Errors
/// [`GateError`] when there is no answer; repeating it is safe.
pub async fn run(
    gate: &Gate,
    partition: Partition,
    key: &str,
    seen: &Held,
    wanted: &Held,
) -> Result<Repaired, GateError> {
    let kind = match gate.keys().parse(partition, key) {
        _ if wanted.is_empty() => "none",
        _ if wanted.contains_key("") => "string",
        Some(Named::Held(..) | Named::CampaignHeld(_)) => "zset",
        _ => "hash",
    };
    let (seen, wanted) = (values(seen), values(wanted));
    let mut args = vec![kind.to_owned(), seen.len().to_string()];
    args.extend(seen);
    args.extend(wanted);
    let called = gate.call(partition, &REPAIR, vec![key.to_owned()], args).await?;
    let mut reply = called.reply()?;
    match reply.text()? {
        "repaired" => Ok(Repaired::Repaired),
        // A repeat finds what the first attempt has written.
        "changed" => called.refused_unless_done(Repaired::Changed, Repaired::Repaired),
        other => Err(reply.unknown(other)),
    }
}

/// The opposite of [`held`](super::audit::held).
fn values(held: &Held) -> Vec<String> {
    match held.get("") {
        Some(only) if held.len() == 1 => vec![only.clone()],
        _ => held.iter().flat_map(|(name, value)| [name.clone(), value.clone()]).collect(),
    }
}
