//! The gate: Redis, the only place that decides.
//!
//! Every decision is one script call: the scripts under `lua/` read, decide and write in one atomic step, and each
//! starts by checking the [fence](crate::domain::Fence). This module carries calls there and answers back. It never
//! decides anything itself, and it never sees the ledger.
//!
//! * [`key`] is the only place that formats a key; [`script`] declares each script once and calls it.
//! * `lane` gathers redemptions into batches, one call in flight per partition; [`redeem`] is what it sends.
//! * One file per script of the same name holds the cold operations, from [`create_invite`] to [`show_namespace`].
//! * [`outbox`] reads what the scripts wrote down; [`survey`], [`close`], [`adopt`] and [`rebuild`] are what recovery
//!   does to a partition.

pub mod adopt;
pub mod audit;
pub mod change_invite;
pub mod close;
pub mod contents;
pub mod copy_invite;
pub mod copy_namespace;
pub mod create_batch;
pub mod create_invite;
pub mod delete_invite;
pub mod erase_user;
mod failure;
mod fields;
mod find_code;
pub mod give_uses;
pub mod import_invites;
pub mod import_members;
pub mod inspect;
pub mod join;
mod kept;
pub mod key;
mod lane;
pub mod leave;
pub mod limited;
mod link;
pub mod outbox;
pub mod put_campaign;
pub mod put_namespace;
pub mod rebuild;
pub mod redeem;
pub mod release;
pub mod repair;
mod reply;
pub mod rollback;
pub mod script;
pub mod server;
mod servers;
pub mod show_campaign;
pub mod show_invite;
pub mod show_member;
pub mod show_namespace;
pub mod show_redemption;
pub mod show_reservation;
pub mod survey;
pub mod take;
pub mod take_uses;
pub mod topology;

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use deadpool_redis::Connection;
use redis::{RedisError, Value};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use self::{
    failure::Failure,
    kept::Kept,
    key::Keyspace,
    link::Link,
    script::{Call, Script, Wait},
    servers::Servers,
    topology::Topology,
};
use crate::domain::{
    Acknowledgement, Answer, Cursor, Fence, Namespace, Outcome, Partition, Refusal, Settings,
};

/// Why the gate gave no answer. A refusal is not among them: that is an [`Answer`].
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The call was sent, and nothing says whether the script ran. Repeating it with the same request id gets the
    /// truth.
    #[error("Redis did not answer in time; whether the script ran is not known")]
    OutcomeUnknown {
        /// The last thing that went wrong.
        #[source]
        cause: Option<RedisError>,
    },
    /// The partition is not open on the history that this Redis has; nothing was written. Recovery will open it.
    #[error("the partition is closed until recovery has admitted this Redis")]
    Fenced,
    /// Redis could not be reached or refused the call before any effect.
    #[error("Redis can not be used now ({doing})")]
    Unavailable {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        #[source]
        cause: RedisError,
    },
    /// Too many requests wait already; this one was not sent.
    #[error("too many requests are waiting for Redis")]
    Overloaded,
    /// A script failed, or said something that this program does not know; other requests are not affected.
    #[error("{script} said what it should not: {message}")]
    Unexpected {
        /// Which script.
        script: &'static str,
        /// What it said.
        message: String,
    },
}

/// How to reach Redis, and within which bounds.
#[derive(Debug, Clone)]
pub struct GateOptions {
    /// Which servers hold it.
    pub topology: Topology,
    /// First part of every key.
    pub key_prefix: String,
    /// Partitions of the deployment: 1 to [`key::PARTITIONS_MAX`].
    pub partitions: u16,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for one reply.
    pub reply_timeout: Duration,
    /// Connections to each server: those that the lanes take for good, recovery, the sync's small calls, and plain
    /// reads.
    pub pool_size: usize,
    /// Long-lived connections that the lanes share; on a cluster each partition has its own.
    pub connections: usize,
    /// Most requests of one script call.
    pub batch_max: usize,
    /// Most requests that wait in one lane.
    pub queue_max: usize,
    /// Replicas that must have what is promised as replicated; with 0 nothing is.
    pub replicas: u32,
    /// How long one request is tried before its outcome is called unknown.
    pub deadline: Duration,
    /// Entries of one outbox from which on nothing is granted.
    pub outbox_max: u64,
    /// A clock for the scripts in place of Redis's own, in ms since 1970; tests steer time with it.
    pub clock_ms: Option<Arc<AtomicI64>>,
}

/// The gate. Cheap to clone: all clones are one gate.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    options: GateOptions,
    keys: Keyspace,
    servers: Arc<Servers>,
    links: Vec<Arc<Link>>,
    lanes: Vec<lane::Lane>,
    /// The lanes whose calls wait for replicas, on connections of their own: WAIT holds up whatever comes behind it.
    replicated: Option<Vec<lane::Lane>>,
    fences: Fences,
    kept: Kept,
    settings: RwLock<HashMap<Namespace, Arc<Settings>>>,
    /// Turns to look through an outbox from end to end.
    scans: Semaphore,
    limited: limited::Limited,
}

/// Outboxes that are looked through at the same time.
const SCANS_MAX: usize = 2;

impl Inner {
    /// Redis disagrees with what the ledger said, or another Redis should be asked.
    fn doubt(&self) {
        self.fences.doubt.notify_one();
        self.servers.doubt();
    }

    /// The connection that a partition's scripts share.
    fn link(&self, partition: Partition) -> &Arc<Link> {
        link_of(&self.links, partition)
    }
}

fn link_of(links: &[Arc<Link>], partition: Partition) -> &Arc<Link> {
    &links[usize::from(partition.0) % links.len()]
}

/// What the ledger says that each partition is open on.
struct Fences {
    /// Each with how often the leader of this node has said it.
    table: RwLock<Vec<(Option<Arc<Fence>>, u64)>>,
    /// Rung when Redis disagreed with the table: the ledger should be asked again.
    doubt: Notify,
}

impl Fences {
    fn get(&self, partition: Partition) -> Option<Arc<Fence>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.get(usize::from(partition.0)).and_then(|(fence, _)| fence.clone())
    }
}

impl Gate {
    /// Prepares the gate; nothing is sent yet. The returned future runs the lanes until the gate is dropped, and must
    /// be driven by the caller.
    ///
    /// # Errors
    /// When the URL can not be understood.
    pub fn new(
        options: GateOptions,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), RedisError> {
        let keys = Keyspace::new(&options.key_prefix, options.partitions);
        let servers = Arc::new(Servers::new(&options, &keys)?);
        let link = |home| Arc::new(Link::new(servers.clone(), home));
        let links: Vec<_> = if servers.is_one() {
            (0..options.connections).map(|_| link(Partition(0))).collect()
        } else {
            keys.partitions().map(link).collect()
        };
        let channels = || -> (Vec<_>, Vec<_>) {
            keys.partitions().map(|_| lane::channel(options.queue_max)).unzip()
        };
        let (lanes, queues) = channels();
        let wait = (options.replicas > 0)
            .then(|| Wait { replicas: options.replicas, timeout: options.reply_timeout / 2 });
        let (replicated, waiting_queues) = wait.map(|_| channels()).unzip();
        let table = RwLock::new(vec![(None, 0); usize::from(options.partitions)]);
        let fences = Fences { table, doubt: Notify::new() };
        let kept = Kept::new(options.partitions);
        let settings = RwLock::default();
        let scans = Semaphore::new(SCANS_MAX);
        // One for each partition, made when it is used: no WAIT holds up another.
        let waiting_links: Vec<_> = keys.partitions().map(link).collect();
        let watched = servers.clone();
        let inner = Arc::new(Inner {
            options,
            keys,
            servers,
            links,
            lanes,
            replicated,
            fences,
            kept,
            settings,
            scans,
            limited: limited::Limited::default(),
        });
        let run = |queues: Vec<_>, links: &[Arc<Link>], wait| {
            let run = |(queue, partition): (_, Partition)| {
                let link = link_of(links, partition).clone();
                let runner = lane::Runner::new(Arc::downgrade(&inner), partition, link, wait);
                lane::run(runner, queue)
            };
            queues.into_iter().zip(inner.keys.partitions()).map(run).collect::<Vec<_>>()
        };
        let mut runners = run(queues, &inner.links, None);
        runners.extend(run(waiting_queues.unwrap_or_default(), &waiting_links, wait));
        let lanes = async move {
            tokio::select! {
                _ = futures_util::future::join_all(runners) => {}
                () = watched.watch() => {}
            }
        };
        Ok((Self { inner }, lanes))
    }

    /// How this deployment names its keys.
    #[must_use]
    pub fn keys(&self) -> &Keyspace {
        &self.inner.keys
    }

    /// Tells the gate what a partition is open on; nothing closes it. For its leader, who has just written the same into
    /// the ledger.
    pub fn set_fence(&self, partition: Partition, fence: Option<Fence>) {
        let mut table = self.inner.fences.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, told)) = table.get_mut(usize::from(partition.0)) {
            *told += 1;
        }
        self.replace_fence(table, partition, fence);
    }

    /// How often the leader of each partition has said what it is open on, to be taken before the ledger is asked for the
    /// same: see [`Self::refresh_fence`].
    #[must_use]
    pub fn fences_told(&self) -> Vec<u64> {
        let table = self.inner.fences.table.read().unwrap_or_else(PoisonError::into_inner);
        table.iter().map(|(_, told)| *told).collect()
    }

    /// Tells the gate what the ledger says that a partition is open on, unless its leader has said something since
    /// `told`: what the ledger has said may be older than that.
    pub fn refresh_fence(&self, partition: Partition, fence: Option<Fence>, told: &[u64]) {
        let table = self.inner.fences.table.write().unwrap_or_else(PoisonError::into_inner);
        let place = usize::from(partition.0);
        if table.get(place).map(|(_, now)| now) == told.get(place) {
            self.replace_fence(table, partition, fence);
        }
    }

    fn replace_fence(
        &self,
        mut table: RwLockWriteGuard<'_, Vec<(Option<Arc<Fence>>, u64)>>,
        partition: Partition,
        fence: Option<Fence>,
    ) {
        if let Some((entry, _)) = table.get_mut(usize::from(partition.0))
            && entry.as_deref() != fence.as_ref()
        {
            *entry = fence.map(Arc::new);
            drop(table);
            // Revisions may begin anew with what the ledger had: nothing that was read before counts.
            let mut settings = self.inner.settings.write().unwrap_or_else(PoisonError::into_inner);
            settings.retain(|namespace, _| self.inner.keys.partition_of(namespace) != partition);
        }
    }

    /// What the partition is open on, as the gate was told.
    #[must_use]
    pub fn fence(&self, partition: Partition) -> Option<Arc<Fence>> {
        self.inner.fences.get(partition)
    }

    /// Tells nobody any more of grants of epochs up to this one; returns those that were told, and that the ledger may
    /// not have, until [`Self::release_told`].
    #[must_use]
    pub fn seal(&self, partition: Partition, epoch: u64) -> Vec<Acknowledgement> {
        self.inner.kept.seal(partition, epoch)
    }

    /// Whether [`Self::seal`] would return any.
    #[must_use]
    pub fn has_told(&self, partition: Partition, epoch: u64) -> bool {
        self.inner.kept.has(partition, epoch)
    }

    /// What was told of epochs up to this one is in good hands: it need not be kept.
    pub fn release_told(&self, partition: Partition, epoch: u64) {
        self.inner.kept.release(partition, epoch);
    }

    /// The ledger has everything of the cursor's epoch up to it: what was told of it need not be kept.
    pub fn forget_told(&self, partition: Partition, cursor: Cursor) {
        self.inner.kept.forget(partition, cursor);
    }

    /// Has the ledger asked again what is open, as if Redis had disagreed.
    pub fn doubt(&self) {
        self.inner.fences.doubt.notify_one();
    }

    /// Waits until Redis has disagreed with a fence, so that the ledger should be asked again.
    pub async fn doubted(&self) {
        self.inner.fences.doubt.notified().await;
    }

    /// The rules of a namespace, also of an archived one, or nothing when it does not exist. Kept in memory; a
    /// redemption decided by older rules is never answered, the script checks their revision.
    ///
    /// # Errors
    /// [`GateError`] when they are not in memory and Redis can not be asked.
    pub async fn settings(
        &self,
        namespace: &Namespace,
    ) -> Result<Option<Arc<Settings>>, GateError> {
        match self.known_settings(namespace) {
            Some(known) => Ok(Some(known)),
            None => self.settings_now(namespace).await,
        }
    }

    /// The same as Redis has them now, for what no script compares with them.
    ///
    /// # Errors
    /// [`GateError`] when Redis can not be asked.
    pub async fn settings_now(
        &self,
        namespace: &Namespace,
    ) -> Result<Option<Arc<Settings>>, GateError> {
        let question = show_namespace::ShowNamespace { namespace: namespace.clone() };
        let Some((settings, _)) = question.run(self).await? else { return Ok(None) };
        let settings = Arc::new(settings);
        let mut cache = self.inner.settings.write().unwrap_or_else(PoisonError::into_inner);
        cache.insert(namespace.clone(), settings.clone());
        Ok(Some(settings))
    }

    /// The rules of a namespace as far as they are in memory; asks nobody.
    #[must_use]
    pub fn known_settings(&self, namespace: &Namespace) -> Option<Arc<Settings>> {
        let known = self.inner.settings.read().unwrap_or_else(PoisonError::into_inner);
        known.get(namespace).cloned()
    }

    /// Forgets what is in memory of a namespace's rules.
    pub fn forget_settings(&self, namespace: &Namespace) {
        self.inner.settings.write().unwrap_or_else(PoisonError::into_inner).remove(namespace);
    }

    /// Whether redemptions can wait for replicas.
    #[must_use]
    pub fn can_replicate(&self) -> bool {
        self.inner.replicated.is_some()
    }

    /// How many requests wait in each partition's lanes now.
    pub fn waiting(&self) -> impl Iterator<Item = (Partition, usize)> {
        self.inner.keys.partitions().enumerate().map(|(number, partition)| {
            let lanes = [Some(&self.inner.lanes), self.inner.replicated.as_ref()];
            let lanes = lanes.into_iter().flatten().filter_map(|lanes| lanes.get(number));
            (partition, lanes.map(lane::Lane::waiting).sum())
        })
    }

    /// Who was refused lately for a rate limit.
    #[must_use]
    pub fn limited(&self) -> &limited::Limited {
        &self.inner.limited
    }

    /// The command that opens this Redis in a terminal.
    #[must_use]
    pub fn redis_cli(&self) -> String {
        self.inner.options.topology.redis_cli()
    }

    /// Whether a redemption or validation in this namespace would be refused now because too many wait already: known
    /// before anything is spent on reading it.
    #[must_use]
    pub fn is_overloaded(&self, namespace: &Namespace) -> bool {
        // Which of several lanes it is for depends on the user.
        if self.known_settings(namespace).is_some_and(|settings| settings.is_spread()) {
            return false;
        }
        let partition = self.inner.keys.partition_of(namespace);
        self.inner.lanes.get(usize::from(partition.0)).is_some_and(lane::Lane::is_full)
    }

    /// Asks for one use of a code, or whether one would be granted. Dropping the future takes nothing back.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn redeem(&self, request: redeem::Redeem) -> Result<Answer, GateError> {
        match self.ask(request, Ask::default()).await? {
            Asked::Answer(answer, _) => Ok(answer),
            // Only where its namespace is spread, which is for `crate::spread` to ask.
            Asked::Dry { .. } => Err(GateError::OutcomeUnknown { cause: None }),
        }
    }

    /// Asks as [`Ask`] says. Dropping the future takes nothing back.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn ask(&self, request: redeem::Redeem, how: Ask) -> Result<Asked, GateError> {
        let lanes = match &self.inner.replicated {
            Some(lanes) if how.replicated => lanes,
            _ => &self.inner.lanes,
        };
        self.ask_in(lanes, request, how).await
    }

    async fn ask_in(
        &self,
        lanes: &[lane::Lane],
        request: redeem::Redeem,
        how: Ask,
    ) -> Result<Asked, GateError> {
        let deadline = Instant::now() + self.inner.options.deadline;
        let partition = self.inner.keys.partition_of(&request.namespace);
        let namespace = request.namespace.clone();
        let mut request = request;
        // Whether an attempt under older rules may have been granted.
        let mut unknown = how.unknown;
        let (mut patient, mut is_anew) = (how.patient, false);
        let doubt = |error, unknown| {
            if unknown { GateError::OutcomeUnknown { cause: None } } else { error }
        };
        loop {
            let settings =
                self.settings(&namespace).await.map_err(|error| doubt(error, unknown))?;
            let Some(settings) = settings else {
                let outcome = Outcome::Refused(Refusal::NamespaceNotFound);
                return Ok(Asked::Answer(Answer { outcome, rates: Vec::new() }, false));
            };
            // It has been spread since whoever asks looked: what this part alone knows is not the last word.
            patient |= is_anew && settings.is_spread();
            let lane = &lanes[usize::from(partition.0)];
            match lane.ask(request, settings, deadline, patient, unknown).await? {
                lane::Reply::Answer(answer, replicated) => {
                    return Ok(Asked::Answer(answer, replicated));
                }
                lane::Reply::Dry(dry, request, unknown) => {
                    return Ok(Asked::Dry { dry, request, unknown });
                }
                lane::Reply::SettingsChanged(back, was_unknown) => {
                    self.forget_settings(&namespace);
                    (request, unknown, is_anew) = (back, was_unknown, true);
                }
            }
        }
    }

    /// Calls a fenced script again and again until it has an answer or the deadline has passed. The script must give the
    /// same answer to a repeat. It goes over the connection of the partition's lane, so that one that failed is buried
    /// before the next attempt: nothing that was sent before runs after it.
    async fn call(
        &self,
        partition: Partition,
        script: &'static Script,
        keys: Vec<String>,
        args: Vec<String>,
    ) -> Result<Called, GateError> {
        let Inner { keys: keyspace, options, .. } = &*self.inner;
        let link = self.inner.link(partition);
        let mut all_keys = vec![keyspace.meta(partition), keyspace.outbox(partition)];
        all_keys.extend(keys);
        let mut attempts = Attempts::new(Instant::now() + options.deadline);
        loop {
            let Some(fence) = self.inner.fences.get(partition) else {
                self.inner.fences.doubt.notify_one();
                return Err(attempts.fenced());
            };
            let call = Call::fenced(script, &fence, self.now_ms(), all_keys.clone(), args.clone());
            let mut lent = match link.get().await {
                Ok(lent) => lent,
                Err(cause) => {
                    attempts.failed(script, (Sent::Not, cause)).await?;
                    continue;
                }
            };
            match call.send(&mut lent.connection).await {
                Ok(value) if !reply::is_fenced(&value) => {
                    let repeated = if !attempts.unknown {
                        Repeated::No
                    } else if lent.settled {
                        Repeated::Settled
                    } else {
                        Repeated::MayStillRun
                    };
                    return Ok(Called { script, value, repeated });
                }
                Ok(_) => {
                    self.inner.doubt();
                    if self.inner.fences.get(partition) == Some(fence) {
                        return Err(attempts.fenced());
                    }
                }
                Err(cause) => {
                    if matches!(failure::classify(&cause), Failure::Unknown | Failure::NotNow) {
                        link.give_up(lent.generation).await;
                    }
                    attempts.failed(script, (Sent::Maybe, cause)).await?;
                }
            }
        }
    }

    /// Calls a script that has no fence, once: recovery starts again from the beginning when anything is unclear.
    async fn once(&self, partition: Partition, call: &Call) -> Result<Value, GateError> {
        let sent = async {
            let mut connection = self.pooled(partition).await?;
            call.send(&mut connection).await.inspect_err(|error| {
                // The pool gets it back only if it still works.
                if failure::classify(error) != Failure::Script {
                    drop(Connection::take(connection));
                    self.inner.servers.doubt();
                }
            })
        };
        sent.await.map_err(|cause| failure::once(call, cause))
    }

    /// A connection to the server of a partition.
    async fn pooled(&self, partition: Partition) -> Result<Connection, RedisError> {
        let servers = &self.inner.servers;
        servers.of(partition).await?.pooled().await.inspect_err(|_| servers.doubt())
    }

    fn now_ms(&self) -> Option<i64> {
        self.inner.options.clock_ms.as_ref().map(|clock| clock.load(Ordering::SeqCst))
    }
}

/// How a redemption is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask {
    /// Wait until as many replicas have it as the options say.
    pub replicated: bool,
    /// Where a shard alone can not decide, say so, rather than refuse.
    pub patient: bool,
    /// Whether an earlier attempt may have been granted.
    pub unknown: bool,
}

/// What came of it.
#[derive(Debug)]
pub enum Asked {
    /// The answer, and whether as many replicas have it as the options say. Without replicas, never.
    Answer(Answer, bool),
    /// The shard alone can not decide; nothing was charged.
    Dry {
        /// Why.
        dry: redeem::Dry,
        /// What was asked.
        request: redeem::Redeem,
        /// Whether an earlier attempt may have been granted.
        unknown: bool,
    },
}

/// Whether anything of a failed call can have reached Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Not,
    Maybe,
}

/// Whether an earlier attempt of a call may have run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeated {
    /// There was none.
    No,
    /// It has run by now, or never will.
    Settled,
    /// It may run even now.
    MayStillRun,
}

/// A reply, and what is known about how it came about.
struct Called {
    script: &'static Script,
    value: Value,
    repeated: Repeated,
}

impl Called {
    fn reply(&self) -> Result<reply::Reply<'_>, GateError> {
        reply::Reply::new(self.script, &self.value)
    }

    /// A refusal, which is the last word only if no earlier attempt can have been carried out: others may have changed
    /// things since then, so that its repeat is refused.
    fn refused<T>(&self, refusal: T) -> Result<T, GateError> {
        match self.repeated {
            Repeated::No => Ok(refusal),
            Repeated::Settled | Repeated::MayStillRun => {
                Err(GateError::OutcomeUnknown { cause: None })
            }
        }
    }

    /// A refusal that a repeat gets for the very reason that an earlier attempt was carried out: `done` then.
    fn refused_unless_done<T>(&self, refusal: T, done: T) -> Result<T, GateError> {
        match self.repeated {
            Repeated::No => Ok(refusal),
            Repeated::Settled => Ok(done),
            Repeated::MayStillRun => Err(GateError::OutcomeUnknown { cause: None }),
        }
    }
}

/// The attempts at one call, and what they leave known.
struct Attempts {
    deadline: Instant,
    pause: Duration,
    /// Whether one of them may have run without an answer.
    unknown: bool,
}

impl Attempts {
    /// The first pause after a failure; each is twice the one before.
    const FIRST_PAUSE: Duration = Duration::from_millis(10);
    const PAUSE_MAX: Duration = Duration::from_millis(200);

    fn new(deadline: Instant) -> Self {
        Self { deadline, pause: Self::FIRST_PAUSE, unknown: false }
    }

    /// What a closed partition means now: an earlier attempt may have run before it was closed.
    fn fenced(&self) -> GateError {
        if self.unknown { GateError::OutcomeUnknown { cause: None } } else { GateError::Fenced }
    }

    /// Takes note of a failure and pauses, or says that this was the last attempt.
    async fn failed(
        &mut self,
        script: &'static Script,
        (sent, cause): (Sent, RedisError),
    ) -> Result<(), GateError> {
        let failure = if sent == Sent::Not { Failure::NotNow } else { failure::classify(&cause) };
        match failure {
            Failure::Unknown => self.unknown = true,
            Failure::Script if !self.unknown => {
                return Err(GateError::Unexpected {
                    script: script.name,
                    message: cause.to_string(),
                });
            }
            Failure::Refused if !self.unknown => {
                return Err(GateError::Unavailable { doing: "running a script", cause });
            }
            Failure::NotNow | Failure::Script | Failure::Refused => {}
        }
        if Instant::now() + self.pause >= self.deadline {
            return Err(if self.unknown {
                GateError::OutcomeUnknown { cause: Some(cause) }
            } else {
                GateError::Unavailable { doing: "reaching Redis", cause }
            });
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(Self::PAUSE_MAX);
        Ok(())
    }
}
