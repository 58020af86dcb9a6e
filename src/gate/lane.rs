//! A lane: the requests of one partition, gathered into batches with one call in flight.
//!
//! There is no timer. While a call is in flight requests gather, and then go together; an idle lane sends a single
//! request at once. Under load a call carries many requests, which is what makes a redemption cheap for Redis.

use std::sync::{Arc, Weak};

use redis::RedisError;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    Attempts, GateError, Inner,
    failure::{Failure, classify},
    limited::Limited,
    link::{Lent, Link},
    redeem::{self, Asked, Decision, Dry, Mode, Redeem},
    reply,
    script::{self, Wait},
};
use crate::{
    domain::{Acknowledgement, Answer, Fence, Outcome, Partition, Redemption, Settings},
    trace::{self, Span},
};

/// The entrance of a lane.
pub(super) struct Lane {
    queue: mpsc::Sender<Job>,
}

/// A lane with room for so many waiting requests, and the queue that its runner serves.
pub(super) fn channel(queue_max: usize) -> (Lane, mpsc::Receiver<Job>) {
    let (queue, jobs) = mpsc::channel(queue_max);
    (Lane { queue }, jobs)
}

/// What comes back out of a lane.
pub(super) enum Reply {
    /// The answer, and whether as many replicas have it as the lane waits for.
    Answer(Answer, bool),
    /// The rules that were known are not those of the gate any more; the request comes back undecided, with whether an
    /// earlier attempt may have been granted.
    SettingsChanged(Redeem, bool),
    /// The shard alone can not decide; the request comes back in the same way.
    Dry(Dry, Redeem, bool),
}

/// A request that waits.
pub(super) struct Job {
    request: Redeem,
    settings: Arc<Settings>,
    since: Instant,
    deadline: Instant,
    /// Whether the answer may be [`Reply::Dry`].
    is_patient: bool,
    /// Whether an attempt may have run without an answer.
    unknown: bool,
    reply: oneshot::Sender<Result<Reply, GateError>>,
    span: Span,
}

impl Lane {
    /// How many wait in line now.
    pub(super) fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Whether nobody else can wait in line now.
    pub(super) fn is_full(&self) -> bool {
        self.queue.capacity() == 0
    }

    /// Waits in line, and for the answer. `unknown` says that an earlier attempt may have been granted.
    pub(super) async fn ask(
        &self,
        request: Redeem,
        settings: Arc<Settings>,
        deadline: Instant,
        is_patient: bool,
        unknown: bool,
    ) -> Result<Reply, GateError> {
        let (reply, answer) = oneshot::channel();
        let span = trace::current();
        span.event("waits in line");
        let since = Instant::now();
        let job = Job { request, settings, since, deadline, is_patient, unknown, reply, span };
        self.queue.try_send(job).map_err(|_| {
            if unknown { GateError::OutcomeUnknown { cause: None } } else { GateError::Overloaded }
        })?;
        // A runner that ends without a word does so with the whole gate; what it had sent may have run.
        answer.await.unwrap_or(Err(GateError::OutcomeUnknown { cause: None }))
    }
}

impl Job {
    fn asked(&self) -> Asked<'_> {
        let Self { request, settings, is_patient, .. } = self;
        Asked { request, settings, is_patient: *is_patient }
    }

    fn answer(self, answer: Result<Reply, GateError>) {
        // Whoever asked may have left; the script ran all the same.
        drop(self.reply.send(answer));
    }

    /// Gives up on a job: what is known of it decides what it is told.
    fn fail(self, known: impl FnOnce() -> GateError, cause: Option<RedisError>) {
        let error = if self.unknown { GateError::OutcomeUnknown { cause } } else { known() };
        self.answer(Err(error));
    }
}

/// Serves one lane.
pub(super) struct Runner {
    gate: Weak<Inner>,
    partition: Partition,
    link: Arc<Link>,
    /// What every call waits for; nothing in a lane that promises the gate alone.
    wait: Option<Wait>,
    queue_seconds: metrics::Histogram,
    batch_sizes: metrics::Histogram,
    call_seconds: metrics::Histogram,
}

impl Runner {
    pub(super) fn new(
        gate: Weak<Inner>,
        partition: Partition,
        link: Arc<Link>,
        wait: Option<Wait>,
    ) -> Self {
        Self {
            gate,
            partition,
            link,
            wait,
            queue_seconds: metrics::histogram!("redeemer_gate_queue_seconds"),
            batch_sizes: metrics::histogram!("redeemer_gate_batch_requests"),
            call_seconds: metrics::histogram!("redeemer_gate_call_seconds"),
        }
    }

    /// Sends a batch until each of its jobs has its answer.
    async fn serve(&self, gate: &Inner, batch: Vec<Job>) {
        let mut jobs = batch;
        let mut pause = Attempts::FIRST_PAUSE;
        let mut trouble: Option<RedisError> = None;
        loop {
            jobs = expire(jobs, trouble.as_ref());
            if jobs.is_empty() {
                return;
            }
            let Some(fence) = gate.fences.get(self.partition) else {
                gate.fences.doubt.notify_one();
                return jobs.into_iter().for_each(|job| job.fail(|| GateError::Fenced, None));
            };
            let lent = match self.link.get().await {
                Ok(lent) => lent,
                Err(error) => {
                    trouble = Some(error);
                    rest(&mut pause).await;
                    continue;
                }
            };
            let generation = lent.generation;
            let (left, error) = match self.call(gate, &fence, lent, jobs).await {
                Attempt::Answered => return,
                Attempt::Fenced(left) => {
                    gate.doubt();
                    if gate.fences.get(self.partition) == Some(fence) {
                        return left
                            .into_iter()
                            .for_each(|job| job.fail(|| GateError::Fenced, None));
                    }
                    jobs = left;
                    continue;
                }
                Attempt::TooLate(left) => {
                    gate.fences.doubt.notify_one();
                    jobs = left;
                    for job in &mut jobs {
                        job.unknown = true;
                    }
                    rest(&mut pause).await;
                    continue;
                }
                Attempt::Failed(left, error) => (left, error),
            };
            jobs = left;
            let failure = classify(&error);
            metrics::counter!("redeemer_gate_call_failures_total", "kind" => failure.as_str())
                .increment(1);
            match failure {
                Failure::Unknown => {
                    for job in &mut jobs {
                        job.unknown = true;
                    }
                    self.link.give_up(generation).await;
                }
                Failure::NotNow => {
                    self.link.give_up(generation).await;
                    rest(&mut pause).await;
                }
                Failure::Refused => {
                    let unavailable = || GateError::Unavailable {
                        doing: "running a script",
                        cause: error.clone(),
                    };
                    return jobs
                        .into_iter()
                        .for_each(|job| job.fail(unavailable, Some(error.clone())));
                }
                // One of them makes the script fail: each alone, so that the others get their answers.
                Failure::Script if jobs.len() > 1 => {
                    for job in jobs {
                        Box::pin(self.serve(gate, vec![job])).await;
                    }
                    return;
                }
                Failure::Script => {
                    let message = error.to_string();
                    let failed = || GateError::Unexpected {
                        script: script::REDEEM.name,
                        message: message.clone(),
                    };
                    return jobs.into_iter().for_each(|job| job.fail(failed, Some(error.clone())));
                }
            }
            trouble = Some(error);
        }
    }

    /// One attempt at all the jobs.
    async fn call(&self, gate: &Inner, fence: &Fence, mut lent: Lent, jobs: Vec<Job>) -> Attempt {
        let requests: Vec<_> = jobs.iter().map(Job::asked).collect();
        let now_ms = gate
            .options
            .clock_ms
            .as_ref()
            .map(|clock| clock.load(std::sync::atomic::Ordering::SeqCst));
        let batch = redeem::Batch::new(
            &gate.keys,
            self.partition,
            fence,
            now_ms,
            gate.options.outbox_max,
            self.wait.is_some(),
            &requests,
        );
        #[expect(clippy::cast_precision_loss, reason = "a batch has at most 1024 requests")]
        self.batch_sizes.record(jobs.len() as f64);
        let span = trace::part_of_all("batch", jobs.iter().map(|job| &job.span));
        span.set("redeemer.batch.requests", i64::try_from(jobs.len()).unwrap_or(i64::MAX));
        let start = Instant::now();
        let send = async {
            match self.wait {
                None => batch.call.send(&mut lent.connection).await.map(|value| (value, false)),
                Some(wait) => batch
                    .call
                    .send_and_wait(&mut lent.connection, wait)
                    .await
                    .map(|(value, acknowledged)| (value, acknowledged >= wait.replicas)),
            }
        };
        let sent = trace::within(&span, send).await;
        self.call_seconds.record(start.elapsed());
        let (value, replicated) = match sent {
            Ok(sent) => sent,
            Err(error) => return Attempt::Failed(jobs, error),
        };
        if reply::is_fenced(&value) {
            return Attempt::Fenced(jobs);
        }
        let decisions = batch.decisions(self.partition, fence.epoch, &value, &requests);
        drop(requests);
        match decisions {
            Ok(decisions) => {
                // Before anybody hears of them. Once recovery has asked what was told, nothing more is: what is on its
                // way from the old epoch counts as lost, and is asked for again.
                let told = grants(&jobs, &decisions, fence.epoch);
                if !gate.kept.keep(self.partition, fence.epoch, told) {
                    return Attempt::TooLate(jobs);
                }
                deliver(&gate.limited, jobs, decisions, lent.settled, replicated);
            }
            Err(error) => {
                // The script has run, so what was decided is not known to anybody until they ask again.
                let error = error.to_string();
                let error = error.split('"').next().unwrap_or_default();
                tracing::error!(error, "the reply to a batch can not be read");
                for job in jobs {
                    job.answer(Err(GateError::OutcomeUnknown { cause: None }));
                }
            }
        }
        Attempt::Answered
    }
}

/// How an attempt ended.
enum Attempt {
    Answered,
    Fenced(Vec<Job>),
    /// It ran, but in an epoch of which nothing may be told any more.
    TooLate(Vec<Job>),
    Failed(Vec<Job>, RedisError),
}

/// Serves a lane until the gate is gone.
pub(super) async fn run(runner: Runner, mut queue: mpsc::Receiver<Job>) {
    while let Some(first) = queue.recv().await {
        let Some(gate) = runner.gate.upgrade() else { return };
        let mut batch = vec![first];
        while batch.len() < gate.options.batch_max
            && let Ok(job) = queue.try_recv()
        {
            batch.push(job);
        }
        let now = Instant::now();
        for job in &batch {
            runner.queue_seconds.record(now.duration_since(job.since));
        }
        runner.serve(&gate, batch).await;
    }
}

/// The redemptions of this epoch among the decisions. Older ones are in the ledger, from which the epoch began.
fn grants(jobs: &[Job], decisions: &[Decision], epoch: u64) -> Vec<Acknowledgement> {
    let told = jobs.iter().zip(decisions).filter_map(|(job, decision)| {
        let Decision::Answer(answer) = decision else { return None };
        let (redemption, first) = match &answer.outcome {
            Outcome::Granted(redemption) => (redemption, true),
            Outcome::Replayed(redemption) => (redemption, is_own(&job.request, redemption)),
            Outcome::Held { .. } | Outcome::Allowed | Outcome::Refused(_) => return None,
        };
        if redemption.position.cursor.epoch != epoch {
            return None;
        }
        acknowledgement(job, redemption, first)
    });
    told.collect()
}

fn acknowledgement(job: &Job, redemption: &Redemption, first: bool) -> Option<Acknowledgement> {
    let Redeem { email_domain, caller, mode, .. } = &job.request;
    let Mode::Redeem { request, metadata, reservation, .. } = mode else { return None };
    Some(Acknowledgement {
        redemption: redemption.clone(),
        request: request.clone(),
        first,
        // Who names one that has ended in time is told of the redemption that ended it.
        reservation: reservation.filter(|until| *until > redemption.redeemed_at),
        rule: job.settings.membership,
        email_domain: email_domain.clone(),
        metadata: metadata.clone(),
        actor: caller.clone(),
    })
}

fn deliver(
    limited: &Limited,
    jobs: Vec<Job>,
    decisions: Vec<Decision>,
    settled: bool,
    replicated: bool,
) {
    for (job, decision) in jobs.into_iter().zip(decisions) {
        match decision {
            Decision::Answer(answer) => {
                if let Some((subject, ms)) = redeem::limited_by(&job.request, &answer.outcome) {
                    limited.note(&job.request.namespace.whole(), subject, crate::ids::now(), ms);
                }
                let answer = if job.unknown { as_asked_once(answer, &job.request) } else { answer };
                // An earlier attempt that may still run could yet be granted: a refusal now is not the last word.
                let definite =
                    !job.unknown || settled || !matches!(answer.outcome, Outcome::Refused(_));
                if definite {
                    job.answer(Ok(Reply::Answer(answer, replicated)));
                } else {
                    job.answer(Err(GateError::OutcomeUnknown { cause: None }));
                }
            }
            Decision::SettingsChanged => {
                let Job { request, reply, unknown, .. } = job;
                drop(reply.send(Ok(Reply::SettingsChanged(request, unknown && !settled))));
            }
            Decision::Dry(dry) => {
                let Job { request, reply, unknown, .. } = job;
                drop(reply.send(Ok(Reply::Dry(dry, request, unknown && !settled))));
            }
            // Nothing was decided now, but an earlier attempt may have been.
            Decision::Failed(error) => job.fail(|| error, None),
        }
    }
}

/// The answer to a request that was sent before. An attempt of its own that spent the use, and whose reply was lost, is
/// no repeat for the one who has asked once; what says so is the id, which was made for this request.
fn as_asked_once(answer: Answer, request: &Redeem) -> Answer {
    match answer {
        Answer { outcome: Outcome::Replayed(redemption), rates }
            if is_own(request, &redemption) =>
        {
            Answer { outcome: Outcome::Granted(redemption), rates }
        }
        answer => answer,
    }
}

/// Whether a redemption has the id that was made for this request.
fn is_own(request: &Redeem, redemption: &Redemption) -> bool {
    matches!(&request.mode, Mode::Redeem { redemption: id, .. } if *id == redemption.id)
}

/// Tells the jobs whose deadline has passed; returns the others.
fn expire(jobs: Vec<Job>, trouble: Option<&RedisError>) -> Vec<Job> {
    let now = Instant::now();
    let (live, expired): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.deadline > now);
    for job in expired {
        let known = || match trouble {
            Some(cause) => GateError::Unavailable { doing: "reaching Redis", cause: cause.clone() },
            None => GateError::Overloaded,
        };
        job.fail(known, trouble.cloned());
    }
    live
}

/// Pauses after a failure, each time for longer.
async fn rest(pause: &mut std::time::Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(Attempts::PAUSE_MAX);
}
