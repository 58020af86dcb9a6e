//! Does Redis hold what the ledger says, and does the ledger say what can be?
//!
//! What a rebuild would load is what the gate must hold. Both sides move while they are compared, so a difference is
//! looked at again: the gate, then the ledger once it has come as far, then the gate. What differs the same way in two such
//! looks, with the gate the same all the while, is drift. One look is not enough: a use that was held after the gate was
//! read and given back before it was read again leaves the gate as it was, and the ledger may have been read in between. In
//! two looks the ledger says the same of such a use only if it was held from one to the other, and then the gate would too.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    domain::{Millis, Partition, Position},
    gate::{
        Gate, GateError,
        audit::{self, Held, Moment},
        contents,
        key::Named,
        repair::{self, Repaired},
    },
    ledger::{Breach, Ledger, LedgerError, Page},
    sync::progress::Progress,
};

/// Keys that are read at once.
const CHUNK: usize = 500;
/// Rows of the ledger that are read at once.
const PAGE_ROWS: u32 = 1000;
/// How often a key that keeps changing is looked at again.
const LOOKS_MAX: usize = 5;
/// How long the ledger may take to come as far as the gate.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The gate gave no answer.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The ledger gave no answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Redis holds what only dead letters know, and a repair would throw it away.
    #[error(
        "partition {0} has dead letters; `redeemer dead-letters` shows them, and replays or drops them"
    )]
    DeadLetters(Partition),
    /// The sync is not coming along.
    #[error("the ledger is behind the gate and does not come nearer; see `redeemer status`")]
    Behind,
}

/// What was found in a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Keys that were compared.
    pub compared: u64,
    /// What differs.
    pub differences: Vec<Difference>,
    /// Laws that the ledger's own rows break.
    pub broken: Vec<Breach>,
    /// Keys that changed each time they were looked at.
    pub busy: Vec<String>,
    /// Keys that differed and now hold what the ledger says.
    pub repaired: Vec<String>,
}

/// What to do about a key that does not hold what the ledger says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mend {
    /// Tell of it.
    No,
    /// Make it hold that.
    Yes,
}

/// A key that does not hold what the ledger says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Difference {
    /// The key.
    pub key: String,
    /// What Redis has of the fields that differ.
    #[schema(value_type = BTreeMap<String, String>)]
    pub gate: Held,
    /// What the ledger says of them.
    #[schema(value_type = BTreeMap<String, String>)]
    pub ledger: Held,
}

impl Report {
    /// Whether both sides agree, and obey the laws.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.differences.is_empty() && self.broken.is_empty()
    }
}

/// Compares a partition on both sides, and mends what differs if it is asked to.
///
/// # Errors
/// [`AuditError`] when a side does not answer, or the ledger does not come along.
pub async fn run(
    gate: &Gate,
    ledger: &Ledger,
    progress: &Progress,
    partition: Partition,
    mend: Mend,
) -> Result<Report, AuditError> {
    if mend == Mend::Yes && ledger.dead_letters(partition).await? > 0 {
        return Err(AuditError::DeadLetters(partition));
    }
    // What the gate has lost of late would be missing on both sides, were the ledger not as far as the gate is.
    let begin = audit::read(gate, partition, &[]).await?;
    come_as_far(progress, Position { partition, cursor: begin.at }).await?;
    let mut report = Report { broken: ledger.broken_laws(partition).await?, ..Report::default() };
    let expected = expected(gate, ledger, partition, None).await?;
    let found = audit::keys(gate, partition).await?;
    let all: BTreeSet<&String> = expected.keys().chain(&found).collect();
    let all: Vec<String> = all.into_iter().cloned().collect();
    report.compared = all.len() as u64;
    let mut suspects = Vec::new();
    for chunk in all.chunks(CHUNK) {
        let Moment { held, now, .. } = audit::read(gate, partition, chunk).await?;
        for (key, held) in chunk.iter().zip(held) {
            let what = gate.keys().parse(partition, key);
            let says = expected.get(key).cloned().unwrap_or_default();
            if compared(what.as_ref(), held, now) != compared(what.as_ref(), says, now) {
                suspects.push(key.clone());
            }
        }
    }
    let mut looks =
        Looks { gate, ledger, progress, partition, mend, report, last: BTreeMap::new() };
    for _ in 0..LOOKS_MAX {
        if suspects.is_empty() {
            break;
        }
        suspects = looks.again(suspects).await?;
    }
    let mut report = looks.report;
    report.busy = suspects;
    report.differences.sort_by(|a, b| a.key.cmp(&b.key));
    let drift = report.differences.len() + report.broken.len();
    #[expect(clippy::cast_precision_loss, reason = "counts of what should not be there at all")]
    metrics::gauge!("redeemer_drift", "partition" => partition.to_string()).set(drift as f64);
    Ok(report)
}

/// Waits until the ledger is as far as the gate was.
async fn come_as_far(progress: &Progress, position: Position) -> Result<(), AuditError> {
    let come = tokio::time::timeout(PATIENCE, progress.wait(position)).await;
    come.map(drop).map_err(|_| AuditError::Behind)
}

/// Looks at keys that differed.
struct Looks<'a> {
    gate: &'a Gate,
    ledger: &'a Ledger,
    progress: &'a Progress,
    partition: Partition,
    mend: Mend,
    report: Report,
    /// What gate and ledger had of a key that differed when it was last looked at and stood still.
    last: BTreeMap<String, (Held, Held)>,
}

impl Looks<'_> {
    /// Notes which of these keys differ as they did at the last look; returns those that have to be looked at again.
    async fn again(&mut self, suspects: Vec<String>) -> Result<Vec<String>, AuditError> {
        let (gate, partition) = (self.gate, self.partition);
        let mut before = BTreeMap::new();
        let mut at = None;
        for chunk in suspects.chunks(CHUNK) {
            let Moment { at: cursor, held, .. } = audit::read(gate, partition, chunk).await?;
            at = at.max(Some(cursor));
            before.extend(chunk.iter().cloned().zip(held));
        }
        if let Some(cursor) = at {
            come_as_far(self.progress, Position { partition, cursor }).await?;
        }
        let only: BTreeSet<String> = suspects.iter().cloned().collect();
        let expected = expected(gate, self.ledger, partition, Some(&only)).await?;
        let mut moving = Vec::new();
        for chunk in suspects.chunks(CHUNK) {
            let Moment { held, now, .. } = audit::read(gate, partition, chunk).await?;
            for (key, held) in chunk.iter().zip(held) {
                if before.get(key) != Some(&held) {
                    moving.push(key.clone());
                    continue;
                }
                let what = gate.keys().parse(partition, key);
                let is = compared(what.as_ref(), held.clone(), now);
                let says = expected.get(key).cloned().unwrap_or_default();
                let says = compared(what.as_ref(), says, now);
                let Some(difference) = difference(key, &is, &says) else { continue };
                let found = (held.clone(), says.clone());
                if self.last.insert(key.clone(), found.clone()).as_ref() != Some(&found) {
                    moving.push(key.clone());
                    continue;
                }
                if self.mend == Mend::No {
                    self.report.differences.push(difference);
                    continue;
                }
                let wanted = with_what_is_not_compared(&held, &is, says);
                match repair::run(gate, partition, key, &held, &wanted).await? {
                    Repaired::Repaired => {
                        // The report says which; a key names a code or a user.
                        tracing::warn!(%partition, "a key of Redis was repaired");
                        self.report.repaired.push(key.clone());
                    }
                    Repaired::Changed => moving.push(key.clone()),
                }
            }
        }
        Ok(moving)
    }
}

fn difference(key: &str, gate: &Held, ledger: &Held) -> Option<Difference> {
    let differing = |one: &Held, other: &Held| -> Held {
        let differs = |(name, value): &(&String, &String)| other.get(*name) != Some(value);
        one.iter().filter(differs).map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    (gate != ledger).then(|| Difference {
        key: key.to_owned(),
        gate: differing(gate, ledger),
        ledger: differing(ledger, gate),
    })
}

/// What a key holds without what the ledger does not keep: what makes a repeated change recognisable, how often uses
/// were held, how long one is kept, the moment of a
/// joining that a redemption has replaced, and whether a use whose deadline has come is still written down as held.
fn compared(what: Option<&Named>, mut held: Held, now: Millis) -> Held {
    let is_over = |deadline: Option<&str>| {
        deadline.and_then(|ms| ms.parse::<i64>().ok()).is_some_and(|ms| ms <= now.as_ms())
    };
    match what {
        Some(Named::Held(..)) => held.retain(|_, until| !is_over(Some(until))),
        Some(Named::CampaignHeld(_)) => held.retain(|member, _| !is_over(member.split(':').nth(1))),
        Some(Named::Invite(_) | Named::Retired(_) | Named::Settings(_)) => {
            held.remove("last_change");
            held.remove("holds");
            held.remove("kept_until");
        }
        Some(Named::Member(..)) => return without_replaced_joinings(held),
        Some(Named::Campaigns(_)) => {
            let only_counts = [":granted", ":holds", ":kept_until"];
            held.retain(|field, _| !only_counts.iter().any(|what| field.ends_with(what)));
        }
        Some(Named::InviteId | Named::Moves(..)) | None => {}
    }
    held
}

fn without_replaced_joinings(mut held: Held) -> Held {
    let current: BTreeSet<String> = held
        .iter()
        .filter(|(name, _)| name.starts_with("group:"))
        .map(|(_, at)| at.clone())
        .collect();
    held.retain(|name, value| !value.starts_with("joined ") || current.contains(name));
    held
}

/// What the ledger says of a key, and of what the key holds that which the ledger does not keep.
fn with_what_is_not_compared(held: &Held, compared: &Held, mut says: Held) -> Held {
    if !says.is_empty() {
        let kept = held.iter().filter(|(name, _)| !compared.contains_key(*name));
        for (name, value) in kept {
            says.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    says
}

/// What the keys of a partition must hold by the ledger, or only some of them.
async fn expected(
    gate: &Gate,
    ledger: &Ledger,
    partition: Partition,
    only: Option<&BTreeSet<String>>,
) -> Result<BTreeMap<String, Held>, LedgerError> {
    let keys = gate.keys();
    let mut snapshot = ledger.snapshot(partition).await?;
    let mut all: BTreeMap<String, Held> = BTreeMap::new();
    // A key may come in several parts.
    let mut put = |(key, values): contents::Entry| {
        if only.is_none_or(|only| only.contains(&key)) {
            all.entry(key).or_default().extend(audit::expected(&values));
        }
    };
    while let Some(page) = snapshot.next_page(PAGE_ROWS).await? {
        match page {
            Page::Namespaces(rows) => {
                for (name, settings) in &rows {
                    put(contents::of_namespace(keys, name, settings));
                }
            }
            Page::Invites(rows) => {
                for (invite, holds_code) in &rows {
                    for entry in contents::of_invite(keys, invite, *holds_code) {
                        put(entry);
                    }
                }
            }
            Page::Moves(rows) => {
                for moves in &rows {
                    put(contents::of_moves(keys, moves));
                }
            }
            Page::Campaigns(rows) => {
                for entry in contents::of_campaigns(keys, &rows) {
                    put(entry);
                }
            }
            Page::Reservations(rows) => {
                for (held, campaign) in &rows {
                    for entry in contents::of_reservation(keys, held, campaign.as_ref()) {
                        put(entry);
                    }
                }
            }
            Page::Users(rows) => {
                for record in &rows {
                    put(contents::of_user(keys, record));
                }
            }
        }
    }
    Ok(all)
}
