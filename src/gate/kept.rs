//! What this node has told somebody and the ledger may not have yet.
//!
//! If Redis loses a grant before the sync has it, the node that told of it is the only one who knows. It keeps each such
//! grant until the ledger is past it, and claims it when the partition is recovered ([`crate::recovery::claims`]). From
//! then on nothing of the old epoch is told any more: a late reply counts as lost.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::domain::{Acknowledgement, Cursor, Partition};

/// Grants kept of one partition. Beyond it the oldest are given up: Redis still has them, and only if it loses them too
/// before the ledger comes along are they lost.
const KEPT_MAX: usize = 10_000;

/// The grants of all partitions.
pub(super) struct Kept {
    partitions: Vec<Mutex<Grants>>,
    given_up: metrics::Counter,
}

#[derive(Default)]
struct Grants {
    /// Nothing of epochs up to this one is told any more.
    sealed: u64,
    told: BTreeMap<Cursor, Acknowledgement>,
}

impl Kept {
    pub(super) fn new(partitions: u16) -> Self {
        Self {
            partitions: (0..partitions).map(|_| Mutex::default()).collect(),
            given_up: metrics::counter!("redeemer_claims_given_up_total"),
        }
    }

    /// Keeps grants of one epoch that are about to be told; says whether they may be.
    pub(super) fn keep(
        &self,
        partition: Partition,
        epoch: u64,
        grants: impl IntoIterator<Item = Acknowledgement>,
    ) -> bool {
        let mut kept = self.of(partition);
        if epoch <= kept.sealed {
            return false;
        }
        for grant in grants {
            let place = grant.redemption.position.cursor;
            if grant.first {
                kept.told.insert(place, grant);
            } else {
                kept.told.entry(place).or_insert(grant);
            }
        }
        while kept.told.len() > KEPT_MAX {
            kept.told.pop_first();
            self.given_up.increment(1);
        }
        true
    }

    /// From now on nothing of epochs up to this one is told; returns what was, and may not be in the ledger.
    pub(super) fn seal(&self, partition: Partition, epoch: u64) -> Vec<Acknowledgement> {
        let mut kept = self.of(partition);
        kept.sealed = kept.sealed.max(epoch);
        let end = Cursor { epoch: epoch + 1, seq: 0 };
        kept.told.range(..end).map(|(_, grant)| grant.clone()).collect()
    }

    /// What was told of epochs up to this one is in good hands.
    pub(super) fn release(&self, partition: Partition, epoch: u64) {
        let mut kept = self.of(partition);
        kept.told = kept.told.split_off(&Cursor { epoch: epoch + 1, seq: 0 });
    }

    /// The ledger has everything of this epoch up to here.
    pub(super) fn forget(&self, partition: Partition, cursor: Cursor) {
        let mut kept = self.of(partition);
        let first = Cursor { epoch: cursor.epoch, seq: 0 };
        // What is older than that epoch was not claimed in time and still has to be looked after.
        if kept.told.range(first..=cursor).next().is_some() {
            let mut rest = kept.told.split_off(&first);
            kept.told.append(&mut rest.split_off(&cursor.next()));
        }
    }

    /// Whether anything is kept of epochs up to this one.
    pub(super) fn has(&self, partition: Partition, epoch: u64) -> bool {
        self.of(partition).told.first_key_value().is_some_and(|(cursor, _)| cursor.epoch <= epoch)
    }

    fn of(&self, partition: Partition) -> MutexGuard<'_, Grants> {
        self.partitions[usize::from(partition.0)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        Code, CodeCase, Group, InviteId, MembershipRule, Millis, Namespace, Position, Redemption,
        RedemptionId, RequestId, UserId,
    };

    fn grant(epoch: u64, seq: u64) -> Acknowledgement {
        Acknowledgement {
            redemption: Redemption {
                id: RedemptionId(uuid::Uuid::from_u64_pair(epoch, seq)),
                namespace: Namespace::default_namespace(),
                invite: InviteId(uuid::Uuid::nil()),
                code: Code::parse("CODE", CodeCase::Insensitive).unwrap(),
                group: Group::parse("group").unwrap(),
                user: UserId::parse("user").unwrap(),
                ordinal: seq,
                remaining: None,
                redeemed_at: Millis::default(),
                position: Position { partition: Partition(0), cursor: Cursor { epoch, seq } },
            },
            request: RequestId::parse("key").unwrap(),
            first: true,
            reservation: None,
            rule: MembershipRule::Unlimited,
            email_domain: None,
            metadata: None,
            actor: "test".to_owned(),
        }
    }

    fn seqs(grants: &[Acknowledgement]) -> Vec<u64> {
        grants.iter().map(|grant| grant.redemption.position.cursor.seq).collect()
    }

    #[test]
    fn what_the_ledger_has_is_forgotten_and_the_rest_is_claimed_once() {
        let kept = Kept::new(1);
        let of = Partition(0);
        assert!(kept.keep(of, 3, (1..=5).map(|seq| grant(3, seq))));
        kept.forget(of, Cursor { epoch: 3, seq: 2 });
        assert_eq!(seqs(&kept.seal(of, 3)), [3, 4, 5]);
        assert_eq!(seqs(&kept.seal(of, 3)), [3, 4, 5], "until they are in good hands");
        kept.release(of, 3);
        assert_eq!(kept.seal(of, 3), []);
    }

    #[test]
    fn after_the_seal_nothing_of_that_epoch_is_told() {
        let kept = Kept::new(1);
        let of = Partition(0);
        kept.seal(of, 3);
        assert!(!kept.keep(of, 3, [grant(3, 1)]));
        assert!(kept.keep(of, 4, [grant(4, 1)]));
        assert!(!kept.has(of, 3));
        assert!(kept.has(of, 4));
    }

    #[test]
    fn a_newer_epoch_of_the_ledger_does_not_make_it_forget_what_was_never_claimed() {
        let kept = Kept::new(1);
        let of = Partition(0);
        assert!(kept.keep(of, 3, [grant(3, 7)]));
        assert!(kept.keep(of, 4, [grant(4, 1), grant(4, 2)]));
        kept.forget(of, Cursor { epoch: 4, seq: 1 });
        assert!(kept.has(of, 3));
        assert_eq!(seqs(&kept.seal(of, 3)), [7]);
        kept.release(of, 3);
        assert_eq!(seqs(&kept.seal(of, 4)), [2]);
    }

    #[test]
    fn it_is_bounded() {
        let kept = Kept::new(1);
        let many = KEPT_MAX as u64 + 10;
        assert!(kept.keep(Partition(0), 1, (1..=many).map(|seq| grant(1, seq))));
        let left = kept.seal(Partition(0), 1);
        assert_eq!((left.len(), seqs(&left)[0]), (KEPT_MAX, 11));
    }
}
