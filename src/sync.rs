//! The sync: what carries the outbox across to the ledger.
//!
//! Each partition has one leader, by a lease in the ledger. A leader opens the partition (see
//! [`recovery`]), then reads its outbox from the ledger's cursor, writes rows and cursor in one
//! transaction, and removes from the outbox what is written. It never removes an entry that the ledger does not have.

pub mod dead_letters;
pub mod plan;
pub mod progress;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use self::progress::Progress;
use crate::{
    domain::{Cursor, Entry, Fence, Partition, Position},
    gate::{
        Gate, GateError,
        outbox::{Read, Reader},
        survey::{self, Survey},
    },
    ledger::{Appended, Deployment, Lease, Ledger, LedgerError},
    recovery::{self, Admission, RecoveryError},
};

/// Entries in a row that can not be applied, from which on the sync stops: then it is not the entries that are wrong.
const DEAD_IN_A_ROW_MAX: u32 = 3;

/// How the sync runs.
#[derive(Debug, Clone)]
pub struct SyncOptions {
    /// This node's name among the owners of leases.
    pub owner: String,
    /// Most entries of one transaction.
    pub batch_max: usize,
    /// How long a lease lasts; a dead leader is replaced after that.
    pub lease_ttl: Duration,
    /// Take leases that have not run out: right only where no other process can hold one.
    pub steal_leases: bool,
    /// How long changes gather before the next transaction while nobody waits for the ledger.
    pub gather: Duration,
    /// Longest wait of a read that finds nothing.
    pub block: Duration,
    /// Longest pause after a failure.
    pub backoff_max: Duration,
    /// How long a stopping node goes on emptying its outboxes.
    pub drain_timeout: Duration,
}

/// Why the sync did not go on; it tries again later.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The ledger gave no answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The gate gave no answer.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// Recovery was given up.
    #[error(transparent)]
    Recovery(#[from] Box<RecoveryError>),
}

/// What a node needs to look after partitions.
#[derive(Clone)]
pub struct Context {
    /// Redis.
    pub gate: Gate,
    /// SQL.
    pub ledger: Ledger,
    /// Whose both are.
    pub deployment: Deployment,
    /// How to go about it.
    pub options: SyncOptions,
    /// Turns to rebuild a partition: as many as the ledger reads snapshots at a time.
    pub rebuilds: Arc<Semaphore>,
    /// Whom to tell what the ledger has.
    pub progress: Progress,
}

/// A partition that this node leads.
struct Led {
    lease: Lease,
    stop: CancellationToken,
    /// Set by the leader in each cycle that read the current primary's outbox; without it a lease is not renewed.
    alive: Arc<AtomicBool>,
}

/// Takes leases and leads their partitions until `stop`; then empties the outboxes, within the drain time-out, and gives
/// the leases back.
pub async fn run(context: Context, stop: CancellationToken) {
    let leads = metrics::gauge!("redeemer_partitions_led");
    let mut leaders = JoinSet::new();
    let mut led: HashMap<Partition, Led> = HashMap::new();
    // Of a partition, not of a leader: one that can not go on loses its lease, and the next one has the same to say.
    let mut complaints: HashMap<Partition, Arc<Mutex<Complaint>>> = HashMap::new();
    let mut complaint = Complaint::default();
    let mut steal = context.options.steal_leases;
    let mut tick = tokio::time::interval(context.options.lease_ttl / 4);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = leaders.join_next() => {
                let partition: Partition = match ended {
                    Ok(partition) => partition,
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                };
                if led.get(&partition).is_some_and(|led| led.stop.is_cancelled()) {
                    led.remove(&partition);
                }
                continue;
            }
            _ = tick.tick() => {}
        }
        match look_after(&context, &mut led, steal).await {
            Ok(taken) => {
                complaint.settle();
                steal = false;
                for lease in taken {
                    let alive = Arc::new(AtomicBool::new(true));
                    let stop = CancellationToken::new();
                    let leader = Leader {
                        context: context.clone(),
                        lease: lease.clone(),
                        stop: stop.clone(),
                        alive: alive.clone(),
                        complaint: complaints.entry(lease.partition).or_default().clone(),
                        measured: Measured::new(lease.partition),
                    };
                    leaders.spawn(leader.run());
                    led.insert(lease.partition, Led { lease, stop, alive });
                }
            }
            Err(error) => {
                if let Some(error) = complaint.news(&error) {
                    tracing::warn!(error, "the leases can not be looked after; trying again");
                }
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "there are at most 256 partitions")]
        leads.set(led.len() as f64);
    }
    leads.set(0.0);
    for leader in led.values() {
        leader.stop.cancel();
    }
    while leaders.join_next().await.is_some() {}
    for leader in led.values() {
        if let Err(error) = context.ledger.release_lease(&leader.lease).await {
            tracing::warn!(
                error = chain(&error),
                "a lease could not be given back; it runs out by itself"
            );
        }
    }
}

/// Renews the leases whose leaders are alive and takes those that are free; returns the taken ones.
async fn look_after(
    context: &Context,
    led: &mut HashMap<Partition, Led>,
    steal: bool,
) -> Result<Vec<Lease>, LedgerError> {
    let SyncOptions { owner, lease_ttl, .. } = &context.options;
    let alive: Vec<Lease> = led
        .values()
        .filter(|led| led.alive.swap(false, Ordering::SeqCst))
        .map(|led| led.lease.clone())
        .collect();
    if !alive.is_empty() {
        let held = context.ledger.renew_leases(&alive, *lease_ttl).await?;
        for lost in alive.iter().filter(|lease| !held.contains(lease)) {
            if let Some(led) = led.remove(&lost.partition) {
                led.stop.cancel();
            }
        }
    }
    if !steal && !context.ledger.has_free_leases(*lease_ttl).await? {
        return Ok(Vec::new());
    }
    let taken = context.ledger.take_leases(owner, *lease_ttl, steal).await?;
    for lease in &taken {
        if let Some(old) = led.remove(&lease.partition) {
            old.stop.cancel();
        }
    }
    Ok(taken)
}

/// One partition's leader.
struct Leader {
    context: Context,
    lease: Lease,
    stop: CancellationToken,
    alive: Arc<AtomicBool>,
    complaint: Arc<Mutex<Complaint>>,
    measured: Measured,
}

/// What the metrics tell of a partition's outbox while this node leads it.
struct Measured {
    entries: metrics::Gauge,
    age: metrics::Gauge,
    synced: metrics::Counter,
    batch: metrics::Histogram,
    commit: metrics::Histogram,
    lag: metrics::Histogram,
}

impl Measured {
    fn new(partition: Partition) -> Self {
        let label = partition.to_string();
        Self {
            entries: metrics::gauge!("redeemer_outbox_entries", "partition" => label.clone()),
            age: metrics::gauge!("redeemer_outbox_age_seconds", "partition" => label.clone()),
            synced: metrics::counter!("redeemer_sync_entries_total", "partition" => label),
            batch: metrics::histogram!("redeemer_sync_batch_entries"),
            commit: metrics::histogram!("redeemer_sync_commit_seconds"),
            lag: metrics::histogram!("redeemer_sync_lag_seconds"),
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "an outbox has at most some millions of entries"
    )]
    fn outbox(&self, survey: &Survey) {
        self.entries.set(survey.outbox_len as f64);
        let age = survey.oldest_at.map_or(Duration::ZERO, |at| survey.since(at));
        self.age.set(age.as_secs_f64());
    }
}

impl Drop for Measured {
    /// The next leader measures it now, and what this one saw last is no news.
    fn drop(&mut self) {
        self.entries.set(0.0);
        self.age.set(0.0);
    }
}

/// How a stretch of leading ended.
enum Ended {
    /// Somebody else leads, or the node stops.
    ForGood,
    /// The gate is not open on what it was; it must be admitted anew.
    Reopen,
    /// A person must look.
    Stuck,
}

impl Leader {
    async fn run(self) -> Partition {
        let partition = self.lease.partition;
        let mut pause = Duration::from_millis(20);
        let complaint = || self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match self.lead().await {
                Ok(Ended::ForGood) => return partition,
                Ok(Ended::Reopen) => {
                    complaint().settle();
                    pause = Duration::from_millis(20);
                }
                Ok(Ended::Stuck) => complaint().settle(),
                Err(error) => {
                    if let Some(error) = complaint().news(&error) {
                        tracing::warn!(%partition, error, "the sync can not go on; trying again");
                    }
                }
            }
            // While the ledger takes nothing the outbox grows, and that is when somebody looks.
            if let Ok(survey) = survey::run(&self.context.gate, partition).await {
                self.measured.outbox(&survey);
            }
            tokio::select! {
                () = self.stop.cancelled() => return partition,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(self.context.options.backoff_max);
        }
    }

    /// Opens the partition and follows its outbox until something changes.
    async fn lead(&self) -> Result<Ended, SyncError> {
        let gate = &self.context.gate;
        let admitted = recovery::admit(&self.context, &self.lease, &self.alive);
        let (fence, cursor) = match admitted.await.map_err(Box::new)? {
            Admission::Open(fence, cursor) => (fence, cursor),
            Admission::Overtaken => return Ok(Ended::ForGood),
            Admission::Again => return Ok(Ended::Reopen),
            Admission::StaysClosed(_) => {
                gate.set_fence(self.lease.partition, None);
                self.alive.store(true, Ordering::SeqCst);
                return Ok(Ended::Stuck);
            }
        };
        gate.set_fence(self.lease.partition, Some(fence.clone()));
        self.alive.store(true, Ordering::SeqCst);
        self.follow(&fence, cursor).await
    }

    async fn follow(&self, fence: &Fence, from: Cursor) -> Result<Ended, SyncError> {
        let Context { gate, ledger, options, .. } = &self.context;
        let partition = self.lease.partition;
        let unavailable = |cause| GateError::Unavailable { doing: "reading an outbox", cause };
        let mut reader =
            Reader::connect(gate, partition, options.block).await.map_err(unavailable)?;
        let mut cursor = from;
        let mut stop_by: Option<Instant> = None;
        let mut looked = Instant::now();
        loop {
            let stopping = self.stop.is_cancelled();
            if stopping && stop_by.is_none() {
                stop_by = Some(Instant::now() + options.drain_timeout);
            }
            let block = if stopping { Duration::ZERO } else { options.block };
            let entries = tokio::select! {
                entries = reader.read(cursor, options.batch_max, block) => entries.map_err(unavailable)?,
                () = self.stop.cancelled(), if !stopping => {
                    // A read that was given up may still take entries; only a new connection is sure to see them.
                    reader = Reader::connect(gate, partition, options.block).await.map_err(unavailable)?;
                    continue;
                }
            };
            // After the read: only then is it known that it was the admitted history that was read.
            let survey = reader.survey().await?;
            if !survey.is_open_on(fence) || !reader.is_current() {
                gate.set_fence(partition, None);
                return Ok(Ended::Reopen);
            }
            self.alive.store(true, Ordering::SeqCst);
            self.measured.outbox(&survey);
            if stopping && (entries.is_empty() || stop_by.is_some_and(|end| Instant::now() >= end))
            {
                return Ok(Ended::ForGood);
            }
            // What is neither here nor in the ledger was trimmed by a ledger that went back in time.
            let went_on = survey.meta.as_ref().is_some_and(|meta| meta.cursor > cursor);
            if entries.is_empty() && survey.outbox.is_none() && went_on {
                return Ok(Ended::Reopen);
            }
            let count = entries.len();
            if count > 0 {
                let oldest = entries.iter().find_map(|read| Some(read.entry.as_ref().ok()?.at));
                let age = oldest.map_or(Duration::ZERO, |at| survey.since(at));
                let begun = Instant::now();
                let carried = carry(ledger, &self.lease, cursor, entries).await?;
                self.measured.commit.record(begun.elapsed());
                self.measured.lag.record(age + begun.elapsed());
                match carried {
                    Carried::Whole(end) => {
                        let from = std::mem::replace(&mut cursor, end);
                        self.context.progress.written(from, Position { partition, cursor });
                    }
                    Carried::Partly(end) => {
                        cursor = end;
                        self.context.progress.passed(Position { partition, cursor });
                    }
                    Carried::Overtaken => return Ok(Ended::ForGood),
                    Carried::TooNew(reason) => {
                        tracing::warn!(%partition, reason, "left to a node of a newer version");
                        ledger.note(&self.lease, Some(&reason)).await?;
                        ledger.release_lease(&self.lease).await?;
                        return Ok(Ended::ForGood);
                    }
                    Carried::Stopped(reason) => {
                        tracing::error!(%partition, reason, "the sync stops; the gate goes on until its outbox is full");
                        ledger.note(&self.lease, Some(&reason)).await?;
                        return Ok(Ended::Stuck);
                    }
                }
                // A crash between the commit and this leaves entries that the cursor skips.
                reader.trim(cursor).await?;
                self.measured.synced.increment(count as u64);
                #[expect(clippy::cast_precision_loss, reason = "see sync.batch_max")]
                self.measured.batch.record(count as f64);
                if !stopping {
                    tokio::select! {
                        () = self.context.progress.gather(partition, options.gather) => {}
                        () = self.stop.cancelled() => {}
                    }
                }
            }
            if looked.elapsed() >= options.lease_ttl / 4 {
                looked = Instant::now();
                let row = ledger.partition(partition).await?;
                if row.requested.is_some() || row.epoch != fence.epoch {
                    return Ok(Ended::Reopen);
                }
                // It goes on again, so whatever stood in the way does not any more.
                if row.reason.is_some() {
                    ledger.note(&self.lease, None).await?;
                }
            }
        }
    }
}

/// What became of a batch.
pub(crate) enum Carried {
    /// The ledger has everything up to here as rows.
    Whole(Cursor),
    /// The ledger has everything up to here, some of it among the dead letters.
    Partly(Cursor),
    /// Somebody else leads now.
    Overtaken,
    /// What comes next was written by a newer version, and only one of those can read it.
    TooNew(String),
    /// It can not go on without a person.
    Stopped(String),
}

/// Writes what was read after `cursor` into the ledger, in one transaction. Where that is refused for its content the
/// entries are written one by one, and one that is refused alone becomes a dead letter.
pub(crate) async fn carry(
    ledger: &Ledger,
    lease: &Lease,
    cursor: Cursor,
    read: Vec<Read>,
) -> Result<Carried, SyncError> {
    let known = match plan::contiguous(cursor, read.iter().map(|read| read.cursor)) {
        Ok(known) => known,
        Err(gap) => {
            metrics::counter!("redeemer_sync_gaps_total").increment(1);
            return Ok(Carried::Stopped(gap.to_string()));
        }
    };
    let read = &read[known..];
    let Some(end) = read.last().map(|read| read.cursor) else {
        return Ok(Carried::Whole(cursor));
    };
    let entries: Option<Vec<&Entry>> = read.iter().map(|read| read.entry.as_ref().ok()).collect();
    if let Some(entries) = entries {
        match ledger.append(lease, cursor, end, &plan::plan(entries)).await {
            Ok(Appended::Appended) => return Ok(Carried::Whole(end)),
            Ok(Appended::Overtaken) => return Ok(Carried::Overtaken),
            Err(LedgerError::Rejected { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut cursor = cursor;
    for one in read {
        let reason = match &one.entry {
            Ok(entry) => {
                match ledger.append(lease, cursor, entry.cursor, &plan::plan([entry])).await {
                    Ok(Appended::Appended) => {
                        cursor = entry.cursor;
                        continue;
                    }
                    Ok(Appended::Overtaken) => return Ok(Carried::Overtaken),
                    Err(error @ LedgerError::Rejected { .. }) => chain(&error),
                    Err(error) => return Err(error.into()),
                }
            }
            // While nodes are upgraded one by one. As a dead letter it would wait for a person.
            Err(malformed) if ledger.is_of_next_version().await? => {
                return Ok(Carried::TooNew(format!(
                    "a newer version wrote the entry at {}, which this one can not read: {}",
                    one.cursor,
                    unquoted(&malformed.0)
                )));
            }
            Err(malformed) => malformed.0.clone(),
        };
        // Counted in the ledger, or every new try would give up some more.
        let below = ledger.dead_letters_below(lease.partition, cursor, DEAD_IN_A_ROW_MAX).await?;
        if below + 1 >= DEAD_IN_A_ROW_MAX {
            return Ok(Carried::Stopped(format!(
                "{DEAD_IN_A_ROW_MAX} entries in a row can not be applied, the last at {}: {}",
                one.cursor,
                unquoted(&reason)
            )));
        }
        let (partition, at) = (lease.partition, one.cursor);
        tracing::error!(%partition, %at, reason = unquoted(&reason), "an entry became a dead letter");
        metrics::counter!("redeemer_dead_letters_total").increment(1);
        match ledger.append_dead(lease, cursor, one.cursor, &one.text(), &reason).await? {
            Appended::Appended => cursor = one.cursor,
            Appended::Overtaken => return Ok(Carried::Overtaken),
        }
    }
    Ok(Carried::Partly(cursor))
}

/// Text for the log without what it quotes, which may be a code or a user.
#[must_use]
pub fn unquoted(text: &str) -> String {
    let mut told = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        told.push(character);
        if character == '"' {
            told.push('…');
            while let Some(inside) = characters.next() {
                if inside == '"' {
                    break;
                }
                if inside == '\\' {
                    characters.next();
                }
            }
            told.push('"');
        }
    }
    told
}

/// What is wrong with something that is tried again and again: told once, and every minute as long as it lasts.
#[derive(Debug, Default)]
pub struct Complaint(Option<(String, Instant)>);

impl Complaint {
    const EVERY: Duration = Duration::from_mins(1);

    /// The error with all its causes, unless that was told less than a minute ago.
    pub fn news(&mut self, error: &(dyn std::error::Error + 'static)) -> Option<String> {
        let told = chain(error);
        let is_known =
            |(known, at): &(String, Instant)| *known == told && at.elapsed() < Self::EVERY;
        if self.0.as_ref().is_some_and(is_known) {
            return None;
        }
        self.0 = Some((told.clone(), Instant::now()));
        Some(told)
    }

    /// It went well: the next error is news again.
    pub fn settle(&mut self) {
        self.0 = None;
    }
}

/// An error with all its causes on one line. A cause that says only what was said before is left out.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}
