//! Admission and recovery: one path from whatever Redis has to a partition that serves.
//!
//! A first start, a restart, a failover and an emptied Redis are the same thing here: the history that Redis is on is
//! not the one that the ledger admitted. Whoever holds the partition's lease then closes it, brings what the outbox
//! still has into the ledger, and opens it anew: as it is, when gate and ledger agree, else rebuilt from the ledger.
//!
//! Nothing is opened that was not understood: what [`admission`] does not know how to mend stays closed, with a reason
//! that says what an operator can do. Without an operator's word a ledger is never changed to fit a gate, and another
//! deployment's gate is never touched.

pub mod admission;
pub mod claims;

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

use self::{
    admission::{Judgement, judge},
    claims::Collected,
};
use crate::{
    domain::{Cursor, Entry, Fence, Partition},
    gate::{
        Gate, GateError,
        adopt::{self, Adopted},
        close::{self, Closed},
        outbox::Reader,
        rebuild::{Builder, RebuildError},
        survey,
        take::{self, TakeError, Taken},
    },
    ledger::{
        Deployment, Lease, LeaseLost, Ledger, LedgerError, Opened, Page, PartitionRow,
        PartitionState, Rebuild, TakenRows, rows::Rows,
    },
    sync::{self, Context, SyncError},
};

/// How a partition was opened that is as it was.
const ADOPTED: &str = "adopted";

/// How a partition was opened whose gate an operator took for the truth.
const TAKEN: &str = "taken";

/// How a partition was opened whose gate was built from the ledger.
const REBUILT: &str = "rebuilt";

/// Why a partition is closed that opens by itself.
pub const UNDER_WAY: &str = "recovery is under way";

/// Why a partition is closed that could be rebuilt, were it not for these.
const DEAD_LETTERS: &str = "the ledger has dead letters of this partition, which a rebuild would lose; see `redeemer \
                            dead-letters list`, mend what stood in their way and `replay` them, or `drop` them";

/// Invites or users that are read from the ledger at once.
const PAGE_ROWS: u32 = 1000;
/// Pages that are read before they are loaded.
const PAGES_AHEAD: usize = 4;
/// Users of a gate that are written between two signs of life.
const USERS_TAKEN_AT_ONCE: usize = 10_000;
/// Users between two lines about how far a rebuild is.
const TELL_EVERY: usize = 100_000;

/// What became of an attempt to open a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is open on this fence, and the ledger has everything up to the cursor.
    Open(Fence, Cursor),
    /// It can not be opened without a person's word.
    StaysClosed(String),
    /// Somebody else looks after it now.
    Overtaken,
    /// Redis, or the one who builds, has changed meanwhile: start again.
    Again,
}

/// Why an attempt was given up; it is made again later.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The gate gave no answer.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The ledger gave no answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The outbox could not be brought into the ledger.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The rebuild failed.
    #[error("rebuilding the gate from the ledger")]
    Rebuild(#[source] RebuildError),
}

/// Opens the partition of a lease, in whatever state it is.
///
/// # Errors
/// [`RecoveryError`] when gate or ledger give no answer; the partition is not open then, and trying again is safe.
pub async fn admit(
    context: &Context,
    lease: &Lease,
    alive: &AtomicBool,
) -> Result<Admission, RecoveryError> {
    let Context { gate, ledger, deployment, .. } = context;
    let partition = lease.partition;
    let row = ledger.partition(partition).await?;
    let survey = survey::run(gate, partition).await?;
    let asked = match judge(&deployment.id, &row, &survey) {
        Judgement::StayClosed(reason) => {
            return stay_closed(ledger, lease, row.reason.as_deref(), reason).await;
        }
        Judgement::Proceed => None,
        Judgement::Discard => Some(Rebuild::FromLedger),
        Judgement::TakeGate => Some(Rebuild::FromGate),
    };
    let discard = asked == Some(Rebuild::FromLedger);
    // That was found out before; nothing is closed and drained again until somebody has looked.
    if asked.is_none()
        && row.reason.as_deref() == Some(DEAD_LETTERS)
        && ledger.dead_letters(partition).await? > 0
    {
        return Ok(Admission::StaysClosed(DEAD_LETTERS.to_owned()));
    }
    if let Some(fence) = fence_of(deployment, &row)
        && survey.is_open_on(&fence)
        && asked.is_none()
    {
        return Ok(Admission::Open(fence, row.cursor));
    }
    tracing::debug!(%partition, was = %row.cursor, lineage = survey.lineage, "recovery begins");

    if asked == Some(Rebuild::FromGate)
        && let Err(reason) = takeable(context, lease, alive).await?
    {
        // Before anything of it is closed: it may be another deployment's.
        return stay_closed(ledger, lease, None, reason).await;
    }

    // (1) The ledger first: from here on every other recovery of this partition has a higher epoch.
    // A gate that is to be discarded or taken may be ahead of the ledger; positions must never come twice.
    let above =
        survey.meta.as_ref().filter(|_| asked.is_some()).map_or(0, |meta| meta.cursor.epoch);
    let Ok(epoch) = ledger.close_partition(lease, above, UNDER_WAY).await? else {
        return Ok(Admission::Overtaken);
    };
    let next = Fence { deployment: deployment.id.clone(), lineage: survey.lineage.clone(), epoch };
    let has_meta = match close::run(gate, partition, &next, asked.is_some()).await? {
        Closed::Closed => true,
        Closed::Empty => false,
        Closed::Moved => return Ok(Admission::Again),
        Closed::Foreign { deployment, epoch } => {
            let reason = format!("the gate belongs to deployment {deployment} at epoch {epoch}");
            return stay_closed(ledger, lease, Some(reason.as_str()), reason.clone()).await;
        }
    };
    if asked == Some(Rebuild::FromGate) {
        return take_gate(context, lease, next, alive).await;
    }
    // (2) The outbox stands still now; whatever it has that the ledger has not comes over.
    let mut cursor = row.cursor;
    if has_meta && !discard {
        match drain(context, lease, cursor, alive).await? {
            Drained::To(end) => cursor = end,
            Drained::Overtaken => return Ok(Admission::Overtaken),
            Drained::Stopped(reason) => return stay_closed(ledger, lease, None, reason).await,
        }
    }
    // (3) What nodes had told somebody and Redis has lost comes over too.
    let claimed = match row.state {
        PartitionState::New => 0,
        PartitionState::Open | PartitionState::Closed => {
            match claims::collect(context, lease, epoch, alive).await? {
                Collected::Applied(claimed) => claimed,
                Collected::Overtaken => return Ok(Admission::Overtaken),
            }
        }
    };
    if has_meta && !discard && claimed == 0 && row.lineage.is_some() {
        // (4) Open it as it is, if that is where the ledger is.
        match adopt::run(gate, partition, &next, cursor).await? {
            Adopted::Adopted => return open(ledger, lease, next, None, ADOPTED).await,
            Adopted::Moved => return Ok(Admission::Again),
            Adopted::Differs => {}
        }
    }
    if ledger.dead_letters(partition).await? > 0 && !discard {
        return stay_closed(ledger, lease, None, DEAD_LETTERS.to_owned()).await;
    }
    match rebuild(context, lease, &next, cursor, discard, alive).await {
        Ok(()) => open(ledger, lease, next, asked, REBUILT).await,
        Err(RecoveryError::Rebuild(RebuildError::Moved)) => Ok(Admission::Again),
        Err(error) => Err(error),
    }
}

/// The fence that a partition's row stands for, when it is open.
#[must_use]
pub fn fence_of(deployment: &Deployment, row: &PartitionRow) -> Option<Fence> {
    let lineage = row.lineage.clone().filter(|_| row.state == PartitionState::Open)?;
    Some(Fence { deployment: deployment.id.clone(), lineage, epoch: row.epoch })
}

async fn open(
    ledger: &Ledger,
    lease: &Lease,
    next: Fence,
    rebuilt: Option<Rebuild>,
    how: &'static str,
) -> Result<Admission, RecoveryError> {
    match ledger.open_partition(lease, next.epoch, &next.lineage, rebuilt).await? {
        Opened::Opened => {}
        Opened::ClaimsWait => return Ok(Admission::Again),
        Opened::LeaseLost => return Ok(Admission::Overtaken),
    }
    if next.epoch > 1 {
        metrics::counter!("redeemer_recoveries_total", "how" => how).increment(1);
    }
    // A first start and a restart are no news; sixteen lines of it would hide what is.
    if next.epoch > 1 && how != ADOPTED {
        tracing::info!(partition = %lease.partition, epoch = next.epoch, lineage = next.lineage, how, "partition open");
    } else {
        tracing::debug!(partition = %lease.partition, epoch = next.epoch, lineage = next.lineage, how, "partition open");
    }
    let cursor = Cursor { epoch: next.epoch, seq: 0 };
    Ok(Admission::Open(next, cursor))
}

async fn stay_closed(
    ledger: &Ledger,
    lease: &Lease,
    known: Option<&str>,
    reason: String,
) -> Result<Admission, RecoveryError> {
    if known != Some(reason.as_str()) {
        tracing::error!(partition = %lease.partition, reason, "the partition stays closed");
        if ledger.keep_closed(lease, &reason).await? == Err(LeaseLost) {
            return Ok(Admission::Overtaken);
        }
    }
    Ok(Admission::StaysClosed(reason))
}

/// What the gate has, if that can be the truth for this ledger; else why not.
async fn takeable(
    Context { gate, ledger, .. }: &Context,
    lease: &Lease,
    alive: &AtomicBool,
) -> Result<Result<Taken, String>, RecoveryError> {
    let taken = match take::read(gate, lease.partition, alive).await {
        Ok(taken) => taken,
        Err(TakeError::Gate(error)) => return Err(error.into()),
        Err(error) => return Ok(Err(format!("what Redis has can not be taken: {error}"))),
    };
    let redemptions = taken.users.iter().flat_map(|user| &user.redemptions);
    let known: HashSet<_> = redemptions.map(|one| one.redemption.id).collect();
    let besides = ledger.redemptions_besides(lease, &known).await?;
    alive.store(true, Ordering::SeqCst);
    if besides > 0 {
        return Ok(Err(format!(
            "the ledger has {besides} redemptions of this partition that Redis does not have, so Redis can not be taken for \
             the truth; run `redeemer rebuild --from-ledger --discard-gate`, or use the ledger that belongs to this Redis"
        )));
    }
    Ok(Ok(taken))
}

/// Writes what a closed gate has into the ledger, as an operator has asked, and opens it.
async fn take_gate(
    context: &Context,
    lease: &Lease,
    next: Fence,
    alive: &AtomicBool,
) -> Result<Admission, RecoveryError> {
    let Context { gate, ledger, options, rebuilds, .. } = context;
    let partition = lease.partition;
    let survey = survey::run(gate, partition).await?;
    let Some(at) = survey.meta.map(|meta| meta.cursor) else { return Ok(Admission::Again) };
    let turn = turn(rebuilds, alive).await;
    let taken = match takeable(context, lease, alive).await? {
        Ok(taken) => taken,
        Err(reason) => return stay_closed(ledger, lease, None, reason).await,
    };
    // What is told of in the outbox alone: who did what, who was forgotten, and what applications said about redemptions.
    let entries = outbox_entries(gate, partition, options.batch_max).await?;
    let Rows { erased, audit, redemptions, .. } = sync::plan::plan(&entries);
    let metadata: HashMap<_, _> = redemptions
        .into_iter()
        .filter_map(|row| Some((row.redemption.id, row.metadata?)))
        .collect();
    // Newer than whatever the ledger has of them.
    let now = Cursor { epoch: next.epoch, seq: 0 };
    let rows = TakenRows {
        namespaces: &taken.namespaces,
        campaigns: &taken.campaigns,
        invites: &taken.invites,
        reservations: &taken.reservations,
        moves: &taken.moves,
        erased: &erased,
        audit: &audit,
    };
    let wrote = ledger.take_invites(lease, now, &rows).await?;
    if wrote.is_err() {
        return Ok(Admission::Overtaken);
    }
    for users in taken.users.chunks(USERS_TAKEN_AT_ONCE) {
        if ledger.take_users(lease, users, |id| metadata.get(&id).cloned()).await?.is_err() {
            return Ok(Admission::Overtaken);
        }
        alive.store(true, Ordering::SeqCst);
    }
    drop((taken, turn));
    match claims::collect(context, lease, next.epoch, alive).await? {
        Collected::Overtaken => return Ok(Admission::Overtaken),
        Collected::Applied(0) => {}
        // The ledger has more than the gate now.
        Collected::Applied(_) => {
            return match rebuild(context, lease, &next, at, false, alive).await {
                Ok(()) => open(ledger, lease, next, Some(Rebuild::FromGate), TAKEN).await,
                Err(RecoveryError::Rebuild(RebuildError::Moved)) => Ok(Admission::Again),
                Err(error) => Err(error),
            };
        }
    }
    match adopt::run(gate, partition, &next, at).await? {
        Adopted::Adopted => open(ledger, lease, next, Some(Rebuild::FromGate), TAKEN).await,
        Adopted::Moved | Adopted::Differs => Ok(Admission::Again),
    }
}

/// All that a closed partition's outbox has and that can be read.
async fn outbox_entries(
    gate: &Gate,
    partition: Partition,
    batch_max: usize,
) -> Result<Vec<Entry>, RecoveryError> {
    let unavailable = |cause| GateError::Unavailable { doing: "reading an outbox", cause };
    let none = Duration::ZERO;
    let mut reader = Reader::connect(gate, partition, none).await.map_err(unavailable)?;
    let mut cursor = Cursor { epoch: 0, seq: 0 };
    let mut entries = Vec::new();
    loop {
        let read = reader.read(cursor, batch_max, none).await.map_err(unavailable)?;
        let Some(last) = read.last() else { return Ok(entries) };
        cursor = last.cursor;
        entries.extend(read.into_iter().filter_map(|read| read.entry.ok()));
    }
}

enum Drained {
    To(Cursor),
    Overtaken,
    Stopped(String),
}

/// Brings everything that a closed partition's outbox has into the ledger.
async fn drain(
    Context { gate, ledger, options, .. }: &Context,
    lease: &Lease,
    from: Cursor,
    alive: &AtomicBool,
) -> Result<Drained, RecoveryError> {
    let unavailable = |cause| GateError::Unavailable { doing: "reading an outbox", cause };
    let none = std::time::Duration::ZERO;
    let mut reader = Reader::connect(gate, lease.partition, none).await.map_err(unavailable)?;
    let mut cursor = from;
    loop {
        let entries = reader.read(cursor, options.batch_max, none).await.map_err(unavailable)?;
        if entries.is_empty() {
            return Ok(Drained::To(cursor));
        }
        match sync::carry(ledger, lease, cursor, entries).await? {
            sync::Carried::Whole(end) | sync::Carried::Partly(end) => {
                cursor = end;
                alive.store(true, Ordering::SeqCst);
            }
            sync::Carried::Overtaken => return Ok(Drained::Overtaken),
            sync::Carried::TooNew(reason) | sync::Carried::Stopped(reason) => {
                return Ok(Drained::Stopped(reason));
            }
        }
    }
}

/// Loads a page; returns how many users it had.
async fn load_page(builder: &mut Builder<'_>, page: Page) -> Result<usize, RebuildError> {
    match page {
        Page::Namespaces(rows) => {
            for (namespace, settings) in &rows {
                builder.namespace(namespace, settings).await?;
            }
            Ok(0)
        }
        Page::Invites(rows) => {
            for (invite, holds_code) in &rows {
                builder.invite(invite, *holds_code).await?;
            }
            Ok(0)
        }
        Page::Moves(rows) => {
            for moves in &rows {
                builder.moves(moves).await?;
            }
            Ok(0)
        }
        Page::Campaigns(rows) => {
            builder.campaigns(&rows).await?;
            Ok(0)
        }
        Page::Reservations(rows) => {
            for (held, campaign) in &rows {
                builder.reservation(held, campaign.as_ref()).await?;
            }
            Ok(0)
        }
        Page::Users(rows) => {
            for record in &rows {
                builder.user(record).await?;
            }
            Ok(rows.len())
        }
    }
}

/// Waits for one's turn to rebuild, alive meanwhile: the others come to an end.
async fn turn<'a>(rebuilds: &'a Semaphore, alive: &AtomicBool) -> Option<SemaphorePermit<'a>> {
    const LOOK: Duration = Duration::from_millis(100);
    loop {
        match tokio::time::timeout(LOOK, rebuilds.acquire()).await {
            Ok(permit) => return permit.ok(),
            Err(_) => alive.store(true, Ordering::SeqCst),
        }
    }
}

/// Builds the partition anew from one snapshot of the ledger.
async fn rebuild(
    Context { gate, ledger, rebuilds, .. }: &Context,
    lease: &Lease,
    next: &Fence,
    cursor: Cursor,
    discard: bool,
    alive: &AtomicBool,
) -> Result<(), RecoveryError> {
    let token = lease.token.to_string();
    let failed = RecoveryError::Rebuild;
    let _turn = turn(rebuilds, alive).await;
    let mut builder = Builder::begin(gate, lease.partition, next.clone(), &token, discard, alive)
        .await
        .map_err(failed)?;
    let mut snapshot = ledger.snapshot(lease.partition).await?;
    // The ledger reads the next pages while Redis loads this one.
    let (send, mut pages) = mpsc::channel(PAGES_AHEAD);
    let read = async {
        while let Some(page) = snapshot.next_page(PAGE_ROWS).await? {
            if send.send(page).await.is_err() {
                break;
            }
        }
        drop(send);
        Ok::<(), RecoveryError>(())
    };
    let load = async {
        let (mut users, mut told) = (0, 0);
        while let Some(page) = pages.recv().await {
            users += load_page(&mut builder, page).await.map_err(failed)?;
            if users >= told + TELL_EVERY {
                told = users;
                tracing::info!(partition = %lease.partition, users, "rebuilding from the ledger");
            }
        }
        // Whoever reads waits for room; nobody makes any once this has failed.
        drop(pages);
        Ok::<(), RecoveryError>(())
    };
    tokio::try_join!(read, load).map(|((), ())| ())?;
    builder.finish(cursor).await.map_err(failed)
}

/// Tells the gate which partitions it should serve, as the ledger says; the rest is closed. What a leader of this node
/// says meanwhile is newer, and stays. Returns what the ledger said.
///
/// # Errors
/// [`LedgerError`] when the ledger gives no answer; the gate then keeps what it knew.
pub async fn refresh_fences(
    gate: &Gate,
    ledger: &Ledger,
    deployment: &Deployment,
) -> Result<Vec<PartitionRow>, LedgerError> {
    let told = gate.fences_told();
    let rows = ledger.partitions().await?;
    for row in &rows {
        gate.refresh_fence(row.partition, fence_of(deployment, row), &told);
    }
    Ok(rows)
}
