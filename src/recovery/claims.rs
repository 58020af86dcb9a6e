//! What nodes had told somebody and Redis has lost: how it comes into the ledger all the same.
//!
//! When a partition is being recovered, every node that is alive hands in what it had told of it and the ledger does not
//! have, as claims, and tells nothing more of the old epoch ([`Gate::seal`]). The leader waits for all of them, or until
//! they count as dead, and writes the claims down before it opens the partition (`collect`).
//!
//! A node that was away meanwhile comes too late for that. It then asks the gate for each use again, with the same
//! request and redemption id; what the gate refuses is written down as lost.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    time::Instant,
};

use super::refresh_fences;
use crate::{
    domain::{
        Acknowledgement, Answer, Change, Cursor, Entry, InviteId, Outcome, Partition, Redemption,
        Refusal,
    },
    gate::{
        Gate,
        redeem::{Mode, Redeem},
    },
    ledger::{
        Appended, Claim, Claimed, Deployment, Lease, Ledger, LedgerError, PartitionRow,
        PartitionState, WaitingClaim, rows::Rows,
    },
    spread::Spread,
    sync::{Complaint, Context, chain, plan, unquoted},
};

/// How often the ledger is asked what is open, if Redis does not disagree before.
const EVERY: Duration = Duration::from_millis(250);
/// How often at most.
const AT_MOST_EVERY: Duration = Duration::from_millis(10);
/// Longest pause between two questions about what is late, while the gate decides nothing.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often a leader looks whether all nodes have confirmed.
const LOOK: Duration = Duration::from_millis(5);

/// A node, as the recovery of partitions sees it.
#[derive(Clone)]
pub struct Node {
    /// Redis.
    pub gate: Gate,
    /// SQL.
    pub ledger: Ledger,
    /// Finds uses in whichever partition they are.
    pub spread: Spread,
    /// Whose both are.
    pub deployment: Deployment,
    /// The node's own name.
    pub id: String,
    /// How long it counts as alive after it was last heard of.
    pub ttl: Duration,
    /// Whether no other node can be alive.
    pub is_alone: bool,
}

impl Node {
    /// Says that this node is alive, keeps the gate told what is open, and takes part in recoveries; for ever.
    pub async fn attend(self) {
        // As many as the node keeps, at most.
        let (too_late, late) = mpsc::unbounded_channel();
        // The gate may take its time over what is late; nothing else waits for that.
        tokio::join!(self.watch(too_late), self.settle(late));
    }

    /// A last look, for partitions that wait for this node, and its last word: it tells nothing any more.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger can not be used; the node then counts as dead a little later.
    pub async fn leave(&self) -> Result<(), LedgerError> {
        let (too_late, _late) = mpsc::unbounded_channel();
        self.look(&mut HashMap::new(), &too_late).await?;
        self.ledger.sign_off(&self.id).await
    }

    async fn watch(&self, too_late: UnboundedSender<Acknowledgement>) {
        let mut beaten: Option<Instant> = None;
        let (mut unsaid, mut unasked) = (Complaint::default(), Complaint::default());
        let mut confirmed = HashMap::new();
        loop {
            if beaten.is_none_or(|at| at.elapsed() >= self.ttl / 4) {
                match self.ledger.beat(&self.id, self.ttl, self.is_alone).await {
                    Ok(()) => {
                        unsaid.settle();
                        beaten = Some(Instant::now());
                    }
                    Err(error) => {
                        if let Some(error) = unsaid.news(&error) {
                            tracing::warn!(
                                error,
                                "the ledger can not be told that this node is alive; trying again"
                            );
                        }
                    }
                }
            }
            match self.look(&mut confirmed, &too_late).await {
                Ok(()) => unasked.settle(),
                Err(error) => {
                    if let Some(error) = unasked.news(&error) {
                        tracing::warn!(
                            error,
                            "the ledger can not be asked what is open; trying again"
                        );
                    }
                }
            }
            tokio::time::sleep(AT_MOST_EVERY).await;
            drop(tokio::time::timeout(EVERY, self.gate.doubted()).await);
        }
    }

    /// Looks what is open, and hands in what is asked for.
    async fn look(
        &self,
        confirmed: &mut HashMap<Partition, u64>,
        too_late: &UnboundedSender<Acknowledgement>,
    ) -> Result<(), LedgerError> {
        let Self { gate, ledger, deployment, .. } = self;
        for row in refresh_fences(gate, ledger, deployment).await? {
            let before = row.epoch.saturating_sub(1);
            gate.forget_told(row.partition, row.cursor);
            if row.state == PartitionState::Closed && row.epoch > 1 {
                self.hand_in(&row, confirmed).await?;
            } else if row.state == PartitionState::Open && gate.has_told(row.partition, before) {
                // It was recovered without this node.
                hand_over(too_late, ledger.missing(gate.seal(row.partition, before)).await?);
                gate.release_told(row.partition, before);
            }
        }
        Ok(())
    }

    /// Claims what was told of a partition that is being recovered, once for each epoch; `confirmed` are the last.
    async fn hand_in(
        &self,
        row: &PartitionRow,
        confirmed: &mut HashMap<Partition, u64>,
    ) -> Result<(), LedgerError> {
        let Self { gate, ledger, id, .. } = self;
        if confirmed.get(&row.partition) == Some(&row.epoch) {
            return Ok(());
        }
        let before = row.epoch - 1;
        let told = gate.seal(row.partition, before);
        match ledger.claim(id, row.partition, row.epoch, &told).await? {
            Claimed::InTime => {
                confirmed.insert(row.partition, row.epoch);
            }
            // It was opened, or closed once more, since the ledger was asked: the next look tells.
            Claimed::TooLate => return Ok(()),
        }
        gate.release_told(row.partition, before);
        Ok(())
    }

    /// Asks the gate for the uses that came too late to be claimed, one after the other, until each is decided.
    async fn settle(&self, mut late: UnboundedReceiver<Acknowledgement>) {
        let mut undecided = VecDeque::new();
        let mut pause = EVERY;
        loop {
            let Some(told) = undecided.pop_front() else {
                let Some(told) = late.recv().await else { return };
                undecided.push_back(told);
                continue;
            };
            if self.is_decided(&told).await {
                pause = EVERY;
            } else {
                undecided.push_back(told);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            while let Ok(more) = late.try_recv() {
                undecided.push_back(more);
            }
        }
    }

    async fn is_decided(&self, told: &Acknowledgement) -> bool {
        let deadline = Instant::now() + PAUSE_MAX;
        // First, so that nobody who is told of the use again hears that its reservation does not exist.
        if !self.keep_confirmed(told, &told.redemption).await {
            return false;
        }
        match self.spread.redeem(again(told), false, deadline).await {
            Ok((answer, _)) => match verdict(&answer) {
                Verdict::Kept => match &answer.outcome {
                    Outcome::Replayed(other) if other.id != told.redemption.id => {
                        self.keep_confirmed(told, other).await
                    }
                    _ => true,
                },
                Verdict::Undecided => false,
                Verdict::Lost(reason) => self.lose(told, &reason).await,
            },
            Err(error) => {
                tracing::warn!(
                    redemption = %told.redemption.id,
                    error = chain(&error),
                    "what was told can not be decided yet"
                );
                false
            }
        }
    }

    /// Writes down by what a reservation that was named was spent; says whether that was possible.
    async fn keep_confirmed(&self, told: &Acknowledgement, by: &Redemption) -> bool {
        let Some(until) = told.reservation else { return true };
        // It belongs where the user was when it was held.
        let reservation = told.redemption.reservation(until);
        match self.ledger.record_confirmed(reservation, by).await {
            Ok(()) => true,
            Err(error) => {
                let (redemption, error) = (by.id, chain(&error));
                tracing::warn!(%redemption, error, "what a reservation became can not be written down yet");
                false
            }
        }
    }

    /// Writes down that what was told does not hold; says whether that was possible.
    async fn lose(&self, told: &Acknowledgement, reason: &str) -> bool {
        let redemption = told.redemption.id;
        match self.ledger.record_loss(&self.id, told, reason).await {
            Ok(()) => {
                metrics::counter!("redeemer_lost_acknowledgements_total").increment(1);
                let reason = unquoted(reason);
                tracing::error!(%redemption, reason, "somebody was told of a redemption that is lost");
                true
            }
            Err(error) => {
                tracing::warn!(%redemption, error = chain(&error), "a loss can not be written down yet");
                false
            }
        }
    }
}

fn hand_over(too_late: &UnboundedSender<Acknowledgement>, told: Vec<Acknowledgement>) {
    // Who receives it lives as long as who sends it.
    for one in told {
        drop(too_late.send(one));
    }
}

/// The question that was answered by what was told.
fn again(told: &Acknowledgement) -> Redeem {
    let redemption = &told.redemption;
    Redeem {
        // The user may belong to another shard by now.
        namespace: redemption.namespace.whole(),
        code: redemption.code.clone(),
        user: Some(redemption.user.clone()),
        ip: None,
        email_domain: told.email_domain.clone(),
        caller: told.actor.clone(),
        mode: Mode::Redeem {
            request: told.request.clone(),
            redemption: redemption.id,
            metadata: told.metadata.clone(),
            reservation: None,
        },
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The user has the use, or one that counts as the same.
    Kept,
    /// Not now.
    Undecided,
    Lost(String),
}

fn verdict(answer: &Answer) -> Verdict {
    match &answer.outcome {
        // One that was taken back since was there to be taken back.
        Outcome::Granted(_)
        | Outcome::Replayed(_)
        | Outcome::Held { .. }
        | Outcome::Allowed
        | Outcome::Refused(Refusal::AlreadyRolledBack { .. }) => Verdict::Kept,
        Outcome::Refused(
            Refusal::RateLimited { .. } | Refusal::TooManyAttempts { .. } | Refusal::Overloaded,
        ) => Verdict::Undecided,
        Outcome::Refused(refusal) => Verdict::Lost(format!("{refusal:?}")),
    }
}

/// What came of collecting claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Collected {
    /// All nodes that are alive have handed in theirs; so many were written down.
    Applied(usize),
    /// Somebody else looks after the partition now.
    Overtaken,
}

/// Waits until every node that is alive has confirmed the epoch that is to be opened, and writes down what they claim.
pub(super) async fn collect(
    Context { gate, ledger, options, .. }: &Context,
    lease: &Lease,
    epoch: u64,
    alive: &AtomicBool,
) -> Result<Collected, LedgerError> {
    let partition = lease.partition;
    ledger.revive(&options.owner, options.lease_ttl).await?;
    // This process may be one of them.
    gate.doubt();
    while ledger.unconfirmed(partition, epoch).await? > 0 {
        alive.store(true, Ordering::SeqCst);
        if ledger.partition(partition).await?.epoch != epoch {
            return Ok(Collected::Overtaken);
        }
        tokio::time::sleep(LOOK).await;
    }
    ledger.settle_known_claims(partition).await?;
    let claims = ledger.waiting_claims(partition, u32::MAX).await?;
    if claims.is_empty() {
        return Ok(Collected::Applied(0));
    }
    let invites = claims.iter().map(|waiting| &waiting.claim.redemption);
    let invites = invites.map(|one| (one.namespace.clone(), one.invite)).collect();
    if ledger.settle_shards(lease, epoch, &invites).await?.is_err() {
        return Ok(Collected::Overtaken);
    }
    let claims = ledger.waiting_claims(partition, u32::MAX).await?;
    tracing::warn!(%partition, claims = claims.len(), "Redis has lost what nodes had told; writing it down");
    // All at once; where that is refused each alone, so that one that breaks a law does not keep the others out.
    match apply(ledger, lease, epoch, &claims).await? {
        Applied::Refused(_) => {}
        Applied::Done => {
            metrics::counter!("redeemer_claims_total").increment(claims.len() as u64);
            return Ok(Collected::Applied(claims.len()));
        }
        Applied::Overtaken => return Ok(Collected::Overtaken),
    }
    let mut applied = 0;
    while let Some(oldest) = ledger.waiting_claims(partition, 1).await?.into_iter().next() {
        alive.store(true, Ordering::SeqCst);
        let id = oldest.claim.redemption.id;
        match apply(ledger, lease, epoch, &[oldest]).await? {
            Applied::Done => {
                metrics::counter!("redeemer_claims_total").increment(1);
                applied += 1;
            }
            Applied::Overtaken => return Ok(Collected::Overtaken),
            Applied::Refused(reason) => {
                metrics::counter!("redeemer_lost_acknowledgements_total").increment(1);
                let told = unquoted(&reason);
                tracing::error!(redemption = %id, reason = told, "somebody was told of a redemption that is lost");
                if ledger.lose_claim(lease, id, &reason).await?.is_err() {
                    return Ok(Collected::Overtaken);
                }
            }
        }
    }
    Ok(Collected::Applied(applied))
}

enum Applied {
    Done,
    Overtaken,
    /// The ledger can not hold them, for this reason.
    Refused(String),
}

/// Writes claims down, all or none.
async fn apply(
    ledger: &Ledger,
    lease: &Lease,
    epoch: u64,
    claims: &[WaitingClaim],
) -> Result<Applied, LedgerError> {
    let Some(rows) = rows(claims, epoch) else {
        return Ok(Applied::Refused("the ledger does not know its invite".to_owned()));
    };
    let ids: Vec<_> = claims.iter().map(|waiting| waiting.claim.redemption.id).collect();
    match ledger.apply_claims(lease, &ids, &rows).await {
        Ok(Appended::Appended) => Ok(Applied::Done),
        Ok(Appended::Overtaken) => Ok(Applied::Overtaken),
        Err(error @ LedgerError::Rejected { .. }) => Ok(Applied::Refused(chain(&error))),
        Err(error) => Err(error),
    }
}

/// The rows that claims stand for; nothing if one's invite is not known.
///
/// A claim may be older than what the ledger has of its invite, when it missed a recovery. So the invite's uses are
/// counted on from what they are, as the first thing of the epoch that is being opened.
fn rows(claims: &[WaitingClaim], epoch: u64) -> Option<Rows> {
    let mut spent: HashMap<InviteId, (u64, u64)> = HashMap::new();
    let mut entries = Vec::with_capacity(claims.len());
    for WaitingClaim { claim, counts } in claims {
        let Claim { redemption, request, reservation, rule, metadata, actor } = claim.clone();
        let (uses, granted) = spent.entry(redemption.invite).or_insert((*counts)?);
        *uses += 1;
        *granted = redemption.ordinal.max(*granted);
        entries.push(Entry {
            cursor: redemption.position.cursor,
            namespace: redemption.namespace.clone(),
            at: redemption.redeemed_at,
            actor,
            // The ledger follows the invite in what its campaign has.
            change: Change::Redeemed {
                redemption,
                request,
                uses: *uses,
                rule,
                metadata,
                campaign: None,
                reservation,
            },
        });
    }
    let mut rows = plan::plan(&entries);
    for row in &mut rows.uses {
        let (uses, granted) = spent.get(&row.invite).copied()?;
        row.spent = Some((uses, granted));
        row.cursor = Cursor { epoch, seq: 0 };
    }
    Some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        Code, CodeCase, Group, MembershipRule, Millis, Namespace, Position, Redemption,
        RedemptionId, UserId,
    };

    fn waiting(ordinal: u64, seq: u64, counts: Option<(u64, u64)>) -> WaitingClaim {
        let claim = Claim {
            redemption: Redemption {
                id: RedemptionId(uuid::Uuid::from_u64_pair(1, seq)),
                namespace: Namespace::default_namespace(),
                invite: InviteId(uuid::Uuid::from_u128(9)),
                code: Code::parse("CODE", CodeCase::Insensitive).unwrap(),
                group: Group::parse("group").unwrap(),
                user: UserId::parse(&format!("user-{seq}")).unwrap(),
                ordinal,
                remaining: None,
                redeemed_at: Millis::default(),
                position: Position { partition: Partition(0), cursor: Cursor { epoch: 3, seq } },
            },
            request: "key".to_owned(),
            reservation: None,
            rule: MembershipRule::OneGroup,
            metadata: None,
            actor: "test".to_owned(),
        };
        WaitingClaim { claim, counts }
    }

    #[test]
    fn claims_add_to_the_uses_that_the_ledger_has_whatever_came_before_them() {
        let counts = Some((10, 12));
        let rows = rows(&[waiting(6, 11, counts), waiting(7, 12, counts)], 5).unwrap();
        assert_eq!(rows.redemptions.len(), 2);
        let uses: Vec<_> = rows.uses.iter().map(|row| (row.spent, row.cursor)).collect();
        assert_eq!(uses, [(Some((12, 12)), Cursor { epoch: 5, seq: 0 })]);
        let later = super::rows(&[waiting(13, 20, counts)], 5).unwrap();
        assert_eq!(later.uses[0].spent, Some((11, 13)));
    }

    #[test]
    fn a_claim_on_an_unknown_invite_stands_for_nothing() {
        assert_eq!(rows(&[waiting(1, 1, None)], 5), None);
    }
}
