//! `lua/audit.lua`: what some keys hold, all at one moment.

use std::collections::BTreeMap;

use super::{Gate, GateError, contents::Values, rebuild::scan, script::AUDIT};
use crate::domain::{Cursor, Millis, Partition};

/// What a key holds: the fields of a hash; the members of a sorted set, each with its score; a string under an empty
/// name; nothing for a key that is not there.
pub type Held = BTreeMap<String, String>;

/// What keys of a partition hold at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The place of the last change.
    pub at: Cursor,
    /// The clock of Redis.
    pub now: Millis,
    /// What each key holds.
    pub held: Vec<Held>,
}

/// What these keys of a partition hold.
///
/// # Errors
/// [`GateError`] when there is no answer; [`GateError::Unexpected`] when a key holds what none of ours does.
pub async fn read(gate: &Gate, partition: Partition, keys: &[String]) -> Result<Moment, GateError> {
    let called = gate.call(partition, &AUDIT, keys.to_vec(), Vec::new()).await?;
    let mut reply = called.reply()?;
    match reply.text()? {
        "read" => {}
        "foreign" => {
            let (key, kind) = (reply.text()?, reply.text()?);
            return Err(reply.unknown(&format!("{key}, which holds a {kind}")));
        }
        other => return Err(reply.unknown(other)),
    }
    let at = reply.parsed(str::parse)?;
    let now = reply.parsed_number(Millis::from_ms)?;
    let mut all = Vec::with_capacity(keys.len());
    for _ in keys {
        let mut values = reply.array()?;
        let words: Vec<String> = (0..values.len())
            .map(|_| Ok(values.text()?.to_owned()))
            .collect::<Result<_, GateError>>()?;
        all.push(held(&words));
    }
    Ok(Moment { at, now, held: all })
}

/// What a key holds, as [`contents`](super::contents) gives it.
#[must_use]
pub fn expected(values: &Values) -> Held {
    match values {
        Values::Text(text) => Held::from([(String::new(), text.clone())]),
        Values::Hash(pairs) | Values::Sorted(pairs) => held(pairs),
    }
}

/// Values as the script replies them.
fn held(values: &[String]) -> Held {
    match values {
        [only] => Held::from([(String::new(), only.clone())]),
        pairs => pairs
            .chunks(2)
            .filter_map(|pair| Some((pair.first()?.clone(), pair.get(1)?.clone())))
            .collect(),
    }
}

/// Every key of a partition that a rebuild would bring back: all but meta, outbox and rate limits.
///
/// # Errors
/// [`GateError::Unavailable`] when Redis does not answer.
pub async fn keys(gate: &Gate, partition: Partition) -> Result<Vec<String>, GateError> {
    let keys = gate.keys();
    let own = [keys.meta(partition), keys.outbox(partition)];
    let pattern = keys.pattern(partition);
    let mut all = Vec::new();
    let mut at = 0;
    loop {
        let (next, found) = scan(gate, partition, at, &pattern).await?;
        all.extend(
            found.into_iter().filter(|key| !own.contains(key) && !keys.is_rate(partition, key)),
        );
        if next == 0 {
            all.sort();
            all.dedup();
            return Ok(all);
        }
        at = next;
    }
}
