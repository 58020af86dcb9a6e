//! What may be done about a partition without asking a person: pure.

use crate::{
    domain::Cursor,
    gate::survey::{Meta, Survey},
    ledger::{PartitionRow, Rebuild},
};

/// What may be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Close it, drain its outbox, adopt or rebuild it.
    Proceed,
    /// Throw the gate away and rebuild it: an operator has said so.
    Discard,
    /// Write what the gate has into the ledger: an operator has said so.
    TakeGate,
    /// Nothing, until a person has looked.
    StayClosed(String),
}

/// Judges a partition by what the ledger and Redis say of it.
#[must_use]
pub fn judge(deployment: &str, row: &PartitionRow, survey: &Survey) -> Judgement {
    match (row.requested, &survey.meta) {
        (Some(Rebuild::FromLedger), _) => return Judgement::Discard,
        (Some(Rebuild::FromGate), Some(meta)) if !meta.building => return Judgement::TakeGate,
        (Some(Rebuild::FromGate), _) => {
            return Judgement::StayClosed(
                "Redis has nothing whole of this partition that could be taken; run `redeemer rebuild --from-ledger \
                 --discard-gate` to build it from the ledger"
                    .to_owned(),
            );
        }
        (None, _) => {}
    }
    let Some(meta) = &survey.meta else {
        // Redis knows nothing: a first start, or an emptied Redis. A rebuild from the ledger is right for both, and
        // there is nothing that it could destroy.
        return Judgement::Proceed;
    };
    if meta.deployment != deployment {
        return Judgement::StayClosed(format!(
            "this Redis holds the partition of another deployment ({}); point redis.url or redis.key_prefix somewhere \
             else, use the ledger of that deployment, or run `redeemer rebuild --from-ledger --discard-gate` to throw \
             away what Redis has, or `redeemer rebuild --from-gate` to write it into this ledger",
            meta.deployment
        ));
    }
    if let Some(what) =
        newer_than_ledger(meta, row.epoch, row.cursor, survey.outbox.map(|(first, _)| first))
    {
        return Judgement::StayClosed(format!(
            "the ledger is older than the gate: {what}; restore the newer ledger, or run `redeemer rebuild \
             --from-gate` to write what Redis has into this one, or `redeemer rebuild --from-ledger --discard-gate` to \
             go back to what this ledger has"
        ));
    }
    Judgement::Proceed
}

/// What the gate has that this ledger neither has nor can still get from the outbox.
fn newer_than_ledger(
    meta: &Meta,
    epoch: u64,
    ledger: Cursor,
    outbox_first: Option<Cursor>,
) -> Option<String> {
    let gate = meta.cursor;
    if gate.epoch > epoch {
        return Some(format!("the gate is at epoch {}, the ledger at {epoch}", gate.epoch));
    }
    // A recovery that died before its last word to the ledger has opened the gate, but nobody could write to it.
    let never_served = gate.seq == 0;
    if gate <= ledger || never_served || meta.building {
        return None;
    }
    let next = ledger.next();
    let goes_on = gate.epoch == ledger.epoch && outbox_first.is_some_and(|first| first <= next);
    (!goes_on).then(|| {
        format!(
            "the gate is at {gate}, and its outbox does not have {next}, which the ledger needs"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{Millis, Partition},
        ledger::PartitionState,
    };

    fn at(epoch: u64, seq: u64) -> Cursor {
        Cursor { epoch, seq }
    }

    fn row(epoch: u64, cursor: Cursor) -> PartitionRow {
        PartitionRow {
            partition: Partition(0),
            state: PartitionState::Open,
            reason: None,
            epoch,
            lineage: Some("old".to_owned()),
            cursor,
            lease_owner: None,
            lease_live: true,
            synced_at: None,
            whole_from: 0,
            requested: None,
        }
    }

    fn gate(cursor: Cursor, outbox: Option<(Cursor, Cursor)>) -> Survey {
        Survey {
            lineage: "new".to_owned(),
            now: Millis::from_ms(0).unwrap(),
            outbox_len: 0,
            oldest_at: None,
            outbox,
            meta: Some(Meta {
                deployment: "ours".to_owned(),
                lineage: "old".to_owned(),
                cursor,
                opened_from: None,
                building: false,
            }),
        }
    }

    fn judged(row: &PartitionRow, survey: &Survey) -> &'static str {
        match judge("ours", row, survey) {
            Judgement::Proceed => "proceed",
            Judgement::Discard => "discard",
            Judgement::TakeGate => "take the gate",
            Judgement::StayClosed(_) => "stay closed",
        }
    }

    #[test]
    fn what_can_be_mended_is_mended_and_the_rest_stays_closed() {
        let empty = Survey { meta: None, ..gate(at(0, 0), None) };
        for (what, row, survey, expected) in [
            ("a first start", row(0, at(0, 0)), empty.clone(), "proceed"),
            ("an emptied Redis", row(3, at(3, 9)), empty, "proceed"),
            ("a restart", row(3, at(3, 9)), gate(at(3, 9), None), "proceed"),
            (
                "a restart with a tail",
                row(3, at(3, 9)),
                gate(at(3, 12), Some((at(3, 10), at(3, 12)))),
                "proceed",
            ),
            (
                "an untrimmed outbox",
                row(3, at(3, 9)),
                gate(at(3, 9), Some((at(3, 1), at(3, 9)))),
                "proceed",
            ),
            ("a failover that lost writes", row(3, at(3, 9)), gate(at(3, 5), None), "proceed"),
            (
                "an old primary that is back",
                row(4, at(4, 2)),
                gate(at(3, 12), Some((at(3, 10), at(3, 12)))),
                "proceed",
            ),
            ("a recovery that died late", row(4, at(3, 9)), gate(at(4, 0), None), "proceed"),
            ("an empty ledger", row(0, at(0, 0)), gate(at(3, 9), None), "stay closed"),
            ("a ledger of an older epoch", row(2, at(2, 9)), gate(at(3, 1), None), "stay closed"),
            (
                "a ledger restored from before a trim",
                row(3, at(3, 4)),
                gate(at(3, 9), None),
                "stay closed",
            ),
            ("a hole", row(3, at(3, 4)), gate(at(3, 9), Some((at(3, 6), at(3, 9)))), "stay closed"),
        ] {
            assert_eq!(judged(&row, &survey), expected, "{what}");
        }
    }

    #[test]
    fn another_deployments_gate_is_left_alone_until_an_operator_says_otherwise() {
        let mut survey = gate(at(3, 9), None);
        if let Some(meta) = &mut survey.meta {
            meta.deployment = "theirs".to_owned();
        }
        let mut row = row(3, at(3, 9));
        assert_eq!(judged(&row, &survey), "stay closed");
        row.requested = Some(Rebuild::FromLedger);
        assert_eq!(judged(&row, &survey), "discard");
        row.requested = Some(Rebuild::FromGate);
        assert_eq!(judged(&row, &survey), "take the gate");
        if let Some(meta) = &mut survey.meta {
            meta.building = true;
        }
        assert_eq!(judged(&row, &survey), "stay closed");
    }
}
