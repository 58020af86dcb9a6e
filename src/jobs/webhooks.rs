//! Tells the receivers of webhooks what happens, apart from everything that decides: a redemption never waits for it.
//!
//! A node takes the leases of webhooks that nobody serves, and follows the namespace of each as server-sent events do. An
//! event that a webhook wants becomes a delivery, in one transaction with the webhook's cursor; a delivery is tried until
//! the receiver says 2xx, or for as long as its attempts last. What is sent is read anew from the ledger for each
//! attempt. A node that dies between the receiver's answer and the note of it leaves an attempt to be made again, with
//! the same `webhook-id`: at least once.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use reqwest::header::{HeaderMap, HeaderValue};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{Delivery, DeliveryState, Event, Partition, Position, Webhook, WebhookId, webhook},
    feed::Feed,
    gate::Gate,
    ledger::{Attempt, Ledger, LedgerError, WebhookJob},
    outbound::{Called, Outbound},
    sync::{Complaint, chain},
};

/// Webhooks that a node takes in one go.
const TAKE: u32 = 100;
/// Events that become deliveries in one transaction.
const PAGE: u32 = 100;
/// Deliveries that are tried before it is written down what became of them: so many may be made twice after a kill.
const ROUND: u32 = 32;
/// Of those, how many at the same time.
const AT_ONCE: usize = 16;
/// Deliveries that may wait for one receiver. The rest stays in the ledger as the events that they are.
const WAITING_MAX: u64 = 1000;
/// How long a webhook pauses at least between two rounds, so that the ledger has time for others.
const PACE: Duration = Duration::from_millis(50);
/// How long it waits after the ledger could not be asked.
const PAUSE: Duration = Duration::from_secs(1);
/// How long is waited for events; then it waits again.
const FOREVER: Duration = Duration::from_hours(1);
/// How often old deliveries are removed.
const FORGET: Duration = Duration::from_mins(5);

/// How webhooks are served.
#[derive(Debug, Clone)]
pub struct WebhookOptions {
    /// How often a delivery is tried.
    pub attempts_max: u32,
    /// The first wait after a failure.
    pub retry_first: Duration,
    /// A webhook that has failed for so long is disabled.
    pub failing_max: Duration,
    /// How long deliveries are remembered that have come to an end.
    pub keep: Duration,
    /// Calls of this node at the same time.
    pub calls_max: usize,
}

/// What a node needs to serve webhooks.
#[derive(Clone)]
pub struct Context {
    /// Names partitions.
    pub gate: Gate,
    /// SQL.
    pub ledger: Ledger,
    /// What happens.
    pub feed: Feed,
    /// Makes the calls.
    pub outbound: Outbound,
    /// An event as receivers see it: type, time and data.
    pub render: fn(&Event) -> Result<String, serde_json::Error>,
    /// How.
    pub options: WebhookOptions,
    /// This node's name among the owners of leases.
    pub owner: String,
    /// How long a lease lasts; a dead node is replaced after that.
    pub lease_ttl: Duration,
    /// Take leases that have not run out: right only where no other process can hold one.
    pub steal_leases: bool,
    /// Rung when somebody has made or changed a webhook, or wants a delivery retried, on this node.
    pub changed: Arc<Notify>,
}

/// Serves webhooks until `stop`.
pub async fn run(context: Context, stop: CancellationToken) {
    for result in ["delivered", "failed"] {
        metrics::counter!("redeemer_webhook_attempts_total", "result" => result).increment(0);
    }
    let mut steal = context.steal_leases;
    let mut served: HashMap<WebhookId, Served> = HashMap::new();
    let mut running = JoinSet::new();
    let mut count = 0_u64;
    let mut complaint = Complaint::default();
    let mut forgot = Instant::now();
    let calls = Arc::new(Semaphore::new(context.options.calls_max));
    loop {
        match look_after(&context, &mut served, steal).await {
            Ok(taken) => {
                complaint.settle();
                steal = false;
                for job in taken {
                    count += 1;
                    let id = job.webhook.id;
                    let one = Served {
                        number: count,
                        stop: CancellationToken::new(),
                        hurry: Arc::new(Notify::new()),
                    };
                    let server = Server {
                        context: context.clone(),
                        calls: calls.clone(),
                        hurry: one.hurry.clone(),
                        job,
                    };
                    let (number, until) = (one.number, one.stop.clone());
                    running.spawn(async move {
                        until.run_until_cancelled(server.run()).await;
                        (id, number)
                    });
                    served.insert(id, one);
                }
            }
            Err(error) => {
                if let Some(error) = complaint.news(&error) {
                    tracing::warn!(error, "the webhooks can not be looked after; trying again");
                }
            }
        }
        if forgot.elapsed() >= FORGET {
            match context.ledger.forget_deliveries(context.options.keep).await {
                Ok(true) => {}
                Ok(false) => forgot = Instant::now(),
                Err(error) => {
                    forgot = Instant::now();
                    tracing::warn!(error = chain(&error), "old deliveries were not removed");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = context.changed.notified() => {
                for one in served.values() {
                    one.hurry.notify_one();
                }
            }
            Some(ended) = running.join_next() => match ended {
                Ok((id, number)) => {
                    // A newer one may serve the same webhook by now.
                    if served.get(&id).is_some_and(|one| one.number == number) {
                        served.remove(&id);
                    }
                }
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            },
            () = tokio::time::sleep(context.lease_ttl / 4) => {}
        }
    }
    for one in served.values() {
        one.stop.cancel();
    }
    while running.join_next().await.is_some() {}
    if !served.is_empty()
        && let Err(error) = context.ledger.release_webhooks(&context.owner).await
    {
        tracing::warn!(error = chain(&error), "webhooks were not given back; the leases run out");
    }
}

/// A webhook that this node serves.
struct Served {
    number: u64,
    stop: CancellationToken,
    /// Rung when something may be due at once.
    hurry: Arc<Notify>,
}

/// Extends the leases that are held, lets go of what was lost, and takes what is free.
async fn look_after(
    context: &Context,
    served: &mut HashMap<WebhookId, Served>,
    steal: bool,
) -> Result<Vec<WebhookJob>, LedgerError> {
    let Context { ledger, owner, lease_ttl, .. } = context;
    if !served.is_empty() {
        let ids: Vec<_> = served.keys().copied().collect();
        let kept = ledger.keep_webhooks(owner, &ids, *lease_ttl).await?;
        for (id, one) in served.iter() {
            if !kept.contains(id) {
                one.stop.cancel();
            }
        }
    }
    if !steal && !ledger.has_free_webhooks(*lease_ttl).await? {
        return Ok(Vec::new());
    }
    let taken = ledger.take_webhooks(owner, *lease_ttl, steal, TAKE).await?;
    for job in &taken {
        if let Some(old) = served.remove(&job.webhook.id) {
            old.stop.cancel();
        }
    }
    Ok(taken)
}

/// One webhook's.
struct Server {
    context: Context,
    calls: Arc<Semaphore>,
    /// Rung when something may be due at once.
    hurry: Arc<Notify>,
    job: WebhookJob,
}

impl Server {
    /// Serves the webhook until it is another's, disabled or gone.
    async fn run(self) {
        let mut complaint = Complaint::default();
        loop {
            match self.serve().await {
                Ok(()) => return,
                Err(error) => {
                    if let Some(error) = complaint.news(&error) {
                        let webhook = self.job.webhook.id;
                        tracing::warn!(%webhook, error, "a webhook can not be served; trying again");
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn serve(&self) -> Result<(), LedgerError> {
        let Context { ledger, feed, gate, .. } = &self.context;
        let Some(webhook) = ledger.served_webhook(&self.job).await? else { return Ok(()) };
        let home = gate.keys().partition_of(&webhook.namespace);
        let mut from = ledger.webhook_elsewhere(webhook.id).await?;
        from.set(Position { partition: home, cursor: webhook.cursor });
        let mut follower = feed.follow(webhook.namespace, &from).await?;
        loop {
            let (due, waiting, due_in) = ledger.due_deliveries(self.job.webhook.id, ROUND).await?;
            if !due.is_empty() && !self.round(home, due).await? {
                return Ok(());
            }
            let room = waiting < WAITING_MAX;
            let pause = due_in.map(|due_in| due_in.max(PACE));
            let due = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                found = follower.next(PAGE, FOREVER), if room => {
                    if let Some((events, upto)) = found?
                        && !self.add(home, &events, upto).await?
                    {
                        return Ok(());
                    }
                }
                () = due => {}
                () = self.hurry.notified() => {}
            }
        }
    }

    /// Makes deliveries of events; says whether the webhook is still this node's.
    async fn add(
        &self,
        home: Partition,
        events: &[Event],
        upto: Position,
    ) -> Result<bool, LedgerError> {
        let Some(webhook) = self.context.ledger.served_webhook(&self.job).await? else {
            return Ok(false);
        };
        let partition = (upto.partition != home).then_some(upto.partition);
        let wanted = events.iter().filter(|event| webhook.wants(event.kind()));
        let deliveries: Vec<_> = wanted
            .map(|event| {
                let id = crate::ids::delivery(webhook.id, partition, event.position.cursor);
                (id, event.position.cursor, event.kind().to_owned())
            })
            .collect();
        // What nobody wants needs no note; but a long run of it is not to be read again after a restart.
        if deliveries.is_empty() && events.len() < PAGE as usize {
            return Ok(true);
        }
        self.context.ledger.add_deliveries(&self.job, partition, &deliveries, upto.cursor).await
    }

    /// Tries deliveries and writes down what became of them; says whether the webhook is still this node's.
    async fn round(&self, home: Partition, due: Vec<Delivery>) -> Result<bool, LedgerError> {
        let ledger = &self.context.ledger;
        let Some(webhook) = ledger.served_webhook(&self.job).await? else { return Ok(false) };
        let secrets = ledger.secrets(webhook.id).await?;
        let tried = stream::iter(due)
            .map(|delivery| self.attempt(home, &webhook, &secrets, delivery))
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let mut attempts = Vec::with_capacity(tried.len());
        for attempt in tried {
            attempts.push(attempt?);
        }
        let gone = attempts.iter().any(|attempt| attempt.response_status == Some(410));
        let gone = gone.then_some("the receiver has answered 410 Gone");
        let WebhookOptions { failing_max, .. } = self.context.options;
        for attempt in &attempts {
            let succeeded = attempt.state == DeliveryState::Delivered;
            let result = if succeeded { "delivered" } else { "failed" };
            metrics::counter!("redeemer_webhook_attempts_total", "result" => result).increment(1);
        }
        tracing::debug!(webhook = %webhook.id, attempts = attempts.len(), "tried");
        ledger.attempted(&self.job, &attempts, gone, failing_max).await
    }

    async fn attempt(
        &self,
        home: Partition,
        webhook: &Webhook,
        secrets: &[webhook::Secret],
        delivery: Delivery,
    ) -> Result<Attempt, LedgerError> {
        let Context { ledger, outbound, options, .. } = &self.context;
        let partition = delivery.partition.unwrap_or(home);
        let event = ledger.event(&webhook.namespace, partition, delivery.event).await?;
        let called = match event.as_ref().map(self.context.render) {
            Some(Ok(body)) => {
                let _turn = self.calls.acquire().await;
                // In seconds, of this very attempt: receivers refuse what is old.
                let now = crate::ids::now().as_ms() / 1000;
                let signatures: Vec<_> =
                    secrets.iter().map(|secret| secret.sign(delivery.id, now, &body)).collect();
                let mut headers = HeaderMap::new();
                for (name, value) in [
                    ("webhook-id", delivery.id.to_string()),
                    ("webhook-timestamp", now.to_string()),
                    ("webhook-signature", signatures.join(" ")),
                ] {
                    if let Ok(value) = HeaderValue::from_str(&value) {
                        headers.insert(name, value);
                    }
                }
                outbound.post(&webhook.url, headers, body).await
            }
            Some(Err(error)) => Called::Failed(format!("the event can not be written: {error}")),
            None => Called::Failed("the event is not in the ledger".to_owned()),
        };
        let (response_status, error) = match called {
            Called::Answered(status @ 200..=299) => {
                return Ok(Attempt {
                    id: delivery.id,
                    state: DeliveryState::Delivered,
                    again_in: Duration::ZERO,
                    response_status: Some(status),
                    error: None,
                });
            }
            Called::Answered(status @ 300..=399) => {
                (Some(status), "redirects are not followed".to_owned())
            }
            Called::Answered(status) => (Some(status), format!("the answer was {status}")),
            Called::Failed(why) => (None, why),
        };
        let failures = delivery.attempts + 1;
        let given_up = failures >= options.attempts_max;
        Ok(Attempt {
            id: delivery.id,
            state: if given_up { DeliveryState::Failed } else { DeliveryState::Waiting },
            again_in: webhook::backoff(options.retry_first, failures, crate::ids::fraction()),
            response_status,
            error: Some(error),
        })
    }
}
