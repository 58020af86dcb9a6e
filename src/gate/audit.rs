//! `lua/audit.lua`: what some keys hold, all at one moment.

use std::collections::BTreeMap;

use super::{Gate, GateError, rebuild::scan, script::AUDIT};
use crate::domain::{Cursor, Partition};

/// What a key holds: the fields of a hash; a string under an empty name; nothing for a key that is not there.
pub type Held = BTreeMap<String, String>;

/// What these keys of a partition hold, and the place of the last change at that moment.
///
/// # Errors
/// [`GateError`] when there is no answer; [`GateError::Unexpected`] when a key holds neither a hash nor a string.
pub async fn read(
    gate: &Gate,
    partition: Partition,
    keys: &[String],
) -> Result<(Cursor, Vec<Held>), GateError> {
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
    let mut all = Vec::with_capacity(keys.len());
    for _ in keys {
        let mut values = reply.array()?;
        let words: Vec<String> = (0..values.len())
            .map(|_| Ok(values.text()?.to_owned()))
            .collect::<Result<_, GateError>>()?;
        all.push(held(&words));
    }
    Ok((at, all))
}

/// Values as a script replies them, or as [`contents`](super::contents) gives them.
#[must_use]
pub fn held(values: &[String]) -> Held {
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
        let (next, found) = scan(gate, at, &pattern).await?;
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
