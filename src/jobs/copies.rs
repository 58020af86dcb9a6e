//! Keeps shards as their namespace is: whoever changes an invite or the rules tells every shard before the answer, and
//! this node goes after those who died in the middle of it.
//!
//! Every node does it, for nothing is changed by doing it twice. It follows what the ledger has of changes, a namespace
//! after the other.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::{InviteId, Millis, Namespace},
    ledger::Ledger,
    spread::{Spread, SpreadError},
    sync::Complaint,
};

/// How often the ledger is asked what has changed.
const EVERY: Duration = Duration::from_secs(1);
/// How long rules are waited for until the ledger has them; then the look is given up, and the next one begins with them.
const PATIENCE: Duration = Duration::from_secs(5);
/// Changes that are looked at in one go.
const PAGE: u32 = 500;
/// By how much the time of a change may lie before that of one that the ledger had earlier, in milliseconds: an invite that
/// takes the code of another one is made later than that.
const OVERLAP_MS: i64 = 5_000;

/// What was told to the shards of a namespace.
#[derive(Default)]
struct Told {
    /// The revision of the rules.
    settings: u64,
    /// Up to when, by the clock of Redis, every changed invite was.
    upto: Millis,
    /// The latest of them, each with its revision.
    latest: HashSet<(InviteId, u64)>,
}

/// Follows changes until `stop`.
pub async fn run(ledger: Ledger, spread: Spread, stop: CancellationToken) {
    let mut told: HashMap<Namespace, Told> = HashMap::new();
    let mut complaint = Complaint::default();
    loop {
        match look(&ledger, &spread, &mut told).await {
            Ok(()) => complaint.settle(),
            Err(error) => {
                if let Some(error) = complaint.news(&error) {
                    tracing::warn!(error, "changes can not be brought to all shards yet");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn look(
    ledger: &Ledger,
    spread: &Spread,
    told: &mut HashMap<Namespace, Told>,
) -> Result<(), SpreadError> {
    for (namespace, settings) in ledger.spread_namespaces().await? {
        let told = told.entry(namespace.clone()).or_default();
        if told.settings < settings.revision {
            spread.share_settings(&namespace, &settings, Instant::now() + PATIENCE).await?;
            told.settings = settings.revision;
        }
        if settings.archived_at.is_none() {
            invites(ledger, spread, &namespace, told).await?;
        }
    }
    Ok(())
}

async fn invites(
    ledger: &Ledger,
    spread: &Spread,
    namespace: &Namespace,
    told: &mut Told,
) -> Result<(), SpreadError> {
    let since = Millis::from_ms(told.upto.as_ms() - OVERLAP_MS).unwrap_or_default();
    let mut after = (since, InviteId(Uuid::nil()));
    let mut recent = HashSet::new();
    loop {
        let changed = ledger.changed_invites(namespace, after, PAGE).await?;
        for invite in &changed {
            let this = (invite.id, invite.revision);
            if !told.latest.contains(&this) {
                spread.share(invite).await?;
            }
            recent.insert(this);
            after = (invite.updated_at, invite.id);
        }
        if changed.len() < PAGE as usize {
            break;
        }
    }
    told.upto = told.upto.max(after.0);
    told.latest = recent;
    Ok(())
}
