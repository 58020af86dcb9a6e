//! The only place that wires the parts together and starts tasks: [`build`] → [`App::run`].
//!
//! Every task has this module as its owner: one that ends before it should takes the process down with an error, and
//! all are awaited before the process ends. Stopping goes from the outside in: not ready, no new requests, the requests
//! in flight, the outboxes into the ledger, the leases, and the embedded Redis last.

mod admin_key;
mod readiness;

use std::{
    future::Future,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use secrecy::ExposeSecret;
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{self, Mend},
    config::{self, Config, LedgerPlace},
    domain::{CodeCase, Durability, ErrorDetail, MembershipRule, Token},
    feed::Feed,
    gate::{Gate, GateOptions, put_namespace::Rules, server, topology::Topology},
    http::{self, Keys, Metrics, Readiness, ServeOptions, State},
    jobs::{self, webhooks::WebhookOptions},
    ledger::{Deployment, Ledger, PostgresOptions, SNAPSHOTS_MAX, SqliteOptions},
    local_server::{self, DataDir, LocalServer, LocalServerError},
    outbound::Outbound,
    outcomes::{self, Outcomes},
    recovery::claims,
    spread::Spread,
    sync::{
        self, SyncOptions, chain,
        progress::{self, Progress},
    },
    trace::{self, TraceOptions},
};

/// Why the service did not start: everything that is wrong, each with what to do.
#[derive(Debug, thiserror::Error)]
#[error("redeemer can not start:\n  - {}", .0.join("\n  - "))]
pub struct StartError(Vec<String>);

impl StartError {
    fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self(vec![chain(error)])
    }
}

/// Why the service ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("{task} has ended{}", why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
pub struct TaskEnded {
    task: &'static str,
    why: Option<String>,
}

/// The service, ready to run.
pub struct App {
    config: Config,
    listener: TcpListener,
    metrics_listener: Option<TcpListener>,
    gate: Gate,
    lanes: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
    ledger: Ledger,
    deployment: Deployment,
    local_server: Option<LocalServer>,
    keys: Arc<Keys>,
    outbound: Outbound,
    metrics: Metrics,
    traces: Option<trace::Export>,
    /// What nobody else is called.
    id: String,
    readiness: watch::Sender<Readiness>,
}

/// Checks everything, starts the embedded Redis if there is to be one, and connects. Requests are not served yet.
///
/// # Errors
/// [`StartError`] with every problem that could be found; nothing runs then.
pub async fn build(config: Config) -> Result<App, StartError> {
    // First of all, or what is counted before goes nowhere.
    let metrics = Metrics::install().map_err(|error| StartError::of(&error))?;
    let mut problems = Vec::new();
    let listener =
        bind(config.http.bind, "http.bind").map_err(|problem| problems.push(problem)).ok();
    let metrics_listener =
        config.http.metrics_bind.map(|address| bind(address, "http.metrics_bind")).transpose();
    let metrics_listener = metrics_listener.map_err(|problem| problems.push(problem)).ok();
    let (Some(listener), Some(metrics_listener)) = (listener, metrics_listener) else {
        return Err(StartError(problems));
    };
    let id = format!("{}-{}", std::process::id(), crate::ids::unique());
    let traces = trace_options(&config.trace, &id).map(|options| trace::start(&options));
    let traces = traces.transpose().map_err(|error| StartError::of(&error))?;
    let outbound = Outbound::new(config.webhooks.timeout, config.webhooks.allow_private)
        .map_err(|error| StartError::of(&error))?;
    let local_server = if config.is_embedded() {
        let data_dir = DataDir::lock(&config.data_dir).map_err(|error| StartError::of(&error))?;
        let started = LocalServer::start(data_dir, config.redis.server.as_deref()).await;
        Some(started.map_err(|error| StartError::of(&error))?)
    } else {
        None
    };
    match connect(&config, local_server.as_ref()).await {
        Ok((gate, lanes, ledger, deployment, keys)) => Ok(App {
            metrics,
            traces,
            id,
            readiness: watch::Sender::new(Readiness::default()),
            lanes: Box::pin(lanes),
            config,
            listener,
            metrics_listener,
            gate,
            ledger,
            deployment,
            local_server,
            keys,
            outbound,
        }),
        Err(error) => {
            if let Some(server) = local_server {
                server.stop().await;
            }
            Err(error)
        }
    }
}

type Connected<L> = (Gate, L, Ledger, Deployment, Arc<Keys>);

async fn connect(
    config: &Config,
    local_server: Option<&LocalServer>,
) -> Result<Connected<impl Future<Output = ()> + Send + use<>>, StartError> {
    let (gate, lanes) = gate_options(config, local_server)
        .and_then(Gate::new)
        .map_err(|error| StartError::of(&error))?;
    let (redis, ledger) = tokio::join!(server::unfit(&gate), open_ledger(config));
    let mut problems = Vec::new();
    match redis {
        Ok(unfit) => problems.extend(unfit),
        Err(error) => problems.push(format!(
            "{}; start that Redis, or mend redis.url, or leave it empty for the embedded default",
            chain(&error)
        )),
    }
    match ledger {
        Ok((ledger, deployment, keys)) if problems.is_empty() => {
            Ok((gate, lanes, ledger, deployment, keys))
        }
        Ok(_) => Err(StartError(problems)),
        Err(problem) => {
            problems.push(problem);
            Err(StartError(problems))
        }
    }
}

async fn open_ledger(config: &Config) -> Result<(Ledger, Deployment, Arc<Keys>), String> {
    let ledger = ledger(config).await?;
    let explain = |error| format!("{} ({})", chain(&error), config.ledger.place);
    let deployment =
        ledger.deployment(config.gate.partitions, crate::ids::unique()).await.map_err(explain)?;
    admin_key::ensure(config, &ledger).await?;
    let configured: Vec<_> = config
        .auth
        .admin_key
        .iter()
        .filter_map(|key| Token::parse(key.expose_secret()).ok())
        .collect();
    let keys = Keys::new(&configured);
    keys.catch_up(&ledger).await.map_err(explain)?;
    Ok((ledger, deployment, Arc::new(keys)))
}

/// The configured ledger; its directory is made if it is missing.
///
/// # Errors
/// A sentence that names the file and what is wrong with it.
pub async fn ledger(config: &Config) -> Result<Ledger, String> {
    let config::Ledger { place, connections_max, busy_timeout } = config.ledger.clone();
    let unusable = |what: String| format!("{what} ({place}); mend ledger.url or data.dir");
    let opened = match &place {
        LedgerPlace::Sqlite(path) => {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)
                    .map_err(|error| unusable(format!("its directory can not be made: {error}")))?;
            }
            let options = SqliteOptions { path: path.clone(), connections_max, busy_timeout };
            Ledger::open_sqlite(&options).await
        }
        LedgerPlace::Postgres(url) => {
            let options = PostgresOptions {
                url: url.clone(),
                connections_max,
                connect_timeout: busy_timeout,
                idle_timeout: config.sync.lease_ttl,
            };
            Ledger::open_postgres(&options).await
        }
    };
    opened.map_err(|error| unusable(chain(&error)))
}

pub use admin_key::reset as reset_admin_key;

/// Connections that may wait to be accepted; the kernel allows fewer if it is set so. The standard library's 128 would
/// make a rush of new clients wait for a second each time it overflows.
const BACKLOG: i32 = 4096;

fn bind(address: std::net::SocketAddr, setting: &str) -> Result<TcpListener, String> {
    let listening = TcpListener::bind(address).and_then(|listener| {
        rustix::net::listen(&listener, BACKLOG)?;
        Ok(listener)
    });
    listening.map_err(|error| {
        format!("{address} can not be listened on: {error}; stop what uses it, or set {setting} to another address")
    })
}

/// A gate for a look from outside, at the configured Redis or at the running embedded one. It has no lanes.
///
/// # Errors
/// When the URL can not be understood.
pub fn gate(config: &Config) -> Result<Gate, redis::RedisError> {
    gate_options(config, None).and_then(Gate::new).map(|(gate, _lanes)| gate)
}

fn gate_options(
    config: &Config,
    local_server: Option<&LocalServer>,
) -> Result<GateOptions, redis::RedisError> {
    let topology = match (local_server, &config.redis.place) {
        (None, Some(place)) => place.topology.clone(),
        (Some(server), _) => Topology::socket(server.socket())?,
        (None, None) => Topology::socket(&local_server::socket_in(&config.data_dir))?,
    };
    Ok(GateOptions {
        topology,
        key_prefix: config.redis.key_prefix.clone(),
        partitions: config.gate.partitions,
        connect_timeout: config.redis.connect_timeout,
        reply_timeout: config.redis.reply_timeout,
        pool_size: config.redis.pool_size,
        connections: config.gate.connections,
        batch_max: config.gate.batch_max,
        queue_max: config.gate.queue_max,
        replicas: config.gate.replicas,
        deadline: config.gate.deadline,
        outbox_max: config.gate.outbox_max,
        clock_ms: None,
    })
}

/// Where spans go, if anywhere.
fn trace_options(config: &config::Trace, id: &str) -> Option<TraceOptions> {
    Some(TraceOptions {
        url: config.endpoint.clone()?,
        sample_ratio: config.sample_ratio,
        service_name: config.service_name.clone(),
        instance: id.to_owned(),
        queue_max: config.queue_max,
        timeout: config.timeout,
    })
}

/// The rules that a new namespace begins with.
fn new_namespace(config: &Config) -> Rules {
    let limits = config.rate_limit;
    Rules {
        membership: MembershipRule::default(),
        code_case: CodeCase::default(),
        code_check: false,
        durability: Durability::default(),
        error_detail: ErrorDetail::default(),
        rate_user: limits.user,
        rate_ip: limits.ip,
        rate_code: limits.code,
        rate_namespace: limits.namespace,
        rate_guess: limits.guess,
        spread: 1,
    }
}

impl App {
    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Whether it should be sent requests, as it changes.
    #[must_use]
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// The embedded Redis, if there is one.
    #[must_use]
    pub fn local_server(&self) -> Option<&LocalServer> {
        self.local_server.as_ref()
    }

    /// The settings that it runs with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Serves until `shutdown`, then stops from the outside in.
    ///
    /// # Errors
    /// [`TaskEnded`] when a part ended by itself; the others have been stopped then.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), TaskEnded> {
        let Self { config, gate, ledger, deployment, keys, readiness, id, .. } = self;
        if !config.http.bind.ip().is_loopback() {
            tracing::warn!(
                bind = %config.http.bind,
                "listening beyond this machine without TLS: put a balancer with TLS in front, or API keys can be read on the way"
            );
        }
        let progress = Progress::new(deployment.partitions);
        let audits = Arc::new(Semaphore::new(1));
        let ordered = Arc::new(Notify::new());
        let feed = Feed::new(ledger.clone(), progress.clone(), gate.keys().clone());
        let spread = Spread::new(gate.clone(), ledger.clone(), progress.clone());
        let outcomes = Arc::new(Outcomes::default());
        let webhooks_changed = Arc::new(Notify::new());
        let stop_front = CancellationToken::new();
        let draining = Arc::new(AtomicBool::new(false));
        let state = State {
            draining: draining.clone(),
            feed: feed.clone(),
            streams: Arc::new(Semaphore::new(config.events.streams_max)),
            stopping: stop_front.clone(),
            webhooks: http::Webhooks {
                outbound: self.outbound.clone(),
                namespace_max: config.webhooks.namespace_max,
                secret_overlap: config.webhooks.secret_overlap,
                changed: webhooks_changed.clone(),
            },
            page: Arc::new(http::PageOptions {
                namespaces: config.page.namespaces.clone(),
                keys: config.page.token_keys.clone(),
                title: config.page.title.clone(),
                sign_in_url: config.page.sign_in_url.clone(),
                done_url: config.page.done_url.clone(),
                proxies: config.page.proxies,
            }),
            ordered: ordered.clone(),
            spread: spread.clone(),
            progress: progress.clone(),
            audits: audits.clone(),
            gate: gate.clone(),
            ledger: ledger.clone(),
            keys: keys.clone(),
            node: id.as_str().into(),
            readiness: readiness.subscribe(),
            metrics: self.metrics.clone(),
            new_namespace: new_namespace(&config),
            body_bytes_max: config.http.body_bytes_max,
            import_bytes_max: config.http.import_bytes_max,
            outcomes: outcomes.clone(),
            imports: Arc::new(Semaphore::new(IMPORTS_MAX)),
            request_timeout: config.http.request_timeout,
        };
        let serve_options = ServeOptions {
            workers: config.http.workers,
            keep_alive: config.http.keep_alive,
            connections_max: config.http.connections_max,
            drain_timeout: config.http.drain_timeout,
        };
        let node = claims::Node {
            gate: gate.clone(),
            ledger: ledger.clone(),
            spread: spread.clone(),
            deployment: deployment.clone(),
            id: id.clone(),
            ttl: config.sync.lease_ttl,
            // Whoever was there before was another process of this data directory, which is locked now.
            is_alone: config.is_embedded(),
        };
        let sync_context = sync::Context {
            gate: gate.clone(),
            ledger: ledger.clone(),
            deployment: deployment.clone(),
            progress: progress.clone(),
            rebuilds: Arc::new(Semaphore::new(SNAPSHOTS_MAX as usize)),
            options: SyncOptions {
                owner: id.clone(),
                batch_max: config.sync.batch_max,
                lease_ttl: config.sync.lease_ttl,
                // Whoever held them was another process of this data directory, which is locked now.
                steal_leases: config.is_embedded(),
                gather: config.sync.gather,
                block: config.sync.block,
                backoff_max: config.sync.backoff_max,
                drain_timeout: config.http.drain_timeout,
            },
        };
        let jobs_context = jobs::Context {
            gate: gate.clone(),
            ledger: ledger.clone(),
            progress: progress.clone(),
            owner: id.clone(),
            lease_ttl: config.sync.lease_ttl,
            steal_leases: config.is_embedded(),
            ordered,
        };
        let webhooks_context = jobs::webhooks::Context {
            gate: gate.clone(),
            ledger: ledger.clone(),
            feed,
            outbound: self.outbound,
            render: http::message,
            options: WebhookOptions {
                attempts_max: config.webhooks.attempts_max,
                retry_first: config.webhooks.retry_first,
                failing_max: config.webhooks.failing_max,
                keep: config.webhooks.keep,
                calls_max: config.webhooks.calls_max,
            },
            owner: id.clone(),
            lease_ttl: config.sync.lease_ttl,
            steal_leases: config.is_embedded(),
            changed: webhooks_changed,
        };
        let watcher = readiness::Watcher {
            gate: gate.clone(),
            ledger: ledger.clone(),
            new_namespace: new_namespace(&config),
            readiness: readiness.clone(),
        };

        // Each stage stops only when the one before has ended.
        let stop_sync = CancellationToken::new();
        let stop_rest = CancellationToken::new();
        let mut front = Tasks::default();
        front.spawn(
            "the HTTP server",
            http::serve(self.listener, state, serve_options, stop_front.clone()),
        );
        front.spawn("the jobs", infallible(jobs::run(jobs_context, stop_front.clone())));
        front.spawn(
            "the webhooks",
            infallible(jobs::webhooks::run(webhooks_context, stop_front.clone())),
        );
        front.spawn(
            "the copies in shards",
            infallible(jobs::copies::run(ledger.clone(), spread, stop_front.clone())),
        );
        let mut syncing = Tasks::default();
        syncing.spawn("the sync", infallible(sync::run(sync_context, stop_sync.clone())));
        let mut rest = Tasks::default();
        if let Some(listener) = self.metrics_listener {
            rest.spawn(
                "the metrics server",
                http::serve_metrics(
                    listener,
                    self.metrics.clone(),
                    gate.clone(),
                    stop_rest.clone(),
                ),
            );
        }
        let (every, keep) = (config.stats.flush, config.stats.keep);
        let counting =
            outcomes::run(outcomes, ledger.clone(), id.clone(), (every, keep), stop_rest.clone());
        rest.spawn("the counts of outcomes", infallible(counting));
        if let Some(traces) = self.traces {
            rest.spawn("the traces", infallible(traces.run(stop_rest.clone())));
        }
        rest.spawn("readiness", until(stop_rest.clone(), watcher.run()));
        rest.spawn("the recoveries", until(stop_rest.clone(), node.clone().attend()));
        rest.spawn(
            "the API keys",
            until(stop_rest.clone(), refresh_keys(keys, ledger.clone(), config.auth.refresh)),
        );
        rest.spawn("the metrics", until(stop_rest.clone(), upkeep(self.metrics, gate.clone())));
        if let Some(every) = config.sync.audit_every {
            let (gate, ledger) = (gate.clone(), ledger.clone());
            let audit = audit_own(gate, ledger, progress.clone(), audits, id.clone(), every);
            rest.spawn("the audits", until(stop_rest.clone(), audit));
        }
        rest.spawn(
            "the ledger's progress",
            until(stop_rest.clone(), progress::look(progress, ledger.clone())),
        );
        rest.spawn("the lanes", until(stop_rest.clone(), self.lanes));
        let stop_server = CancellationToken::new();
        let mut watched = tokio::spawn(watch(self.local_server, stop_server.clone()));

        let mut any_ends = async || {
            tokio::select! {
                ended = front.next() => ended,
                ended = syncing.next() => ended,
                ended = rest.next() => ended,
                ended = &mut watched => watch_ended(ended),
            }
        };
        let mut ended = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = any_ends() => Some(ended),
        };
        draining.store(true, Ordering::Relaxed);
        if ended.is_none() {
            tracing::info!("stopping: no new requests, then the outboxes into the ledger");
            // Whoever sends requests here must have noticed before they are turned away.
            ended = tokio::time::timeout(config.http.shutdown_delay, any_ends()).await.ok();
        }
        if let Some(ended) = &ended {
            tracing::error!(error = %ended, "stopping");
        }
        stop_front.cancel();
        front.join().await;
        stop_sync.cancel();
        syncing.join().await;
        stop_rest.cancel();
        rest.join().await;
        // Nothing more is told, so nobody need wait for this node.
        if let Err(error) = node.leave().await {
            tracing::debug!(error = chain(&error), "this node counts as dead a little later");
        }
        drop(gate);
        stop_server.cancel();
        // A task that has been awaited to its end can not be awaited again.
        if ended.as_ref().is_none_or(|ended| ended.task != EMBEDDED_REDIS)
            && let Ok(Ok(Some(server))) = watched.await
        {
            server.stop().await;
        }
        ledger.close().await;
        tracing::info!("stopped");
        ended.map_or(Ok(()), Err)
    }
}

/// Imports of a node at the same time: each keeps the gate busy for milliseconds at a stretch.
const IMPORTS_MAX: usize = 2;

/// What the watched server is called among the tasks.
const EMBEDDED_REDIS: &str = "the embedded Redis";

/// The tasks of one stage.
#[derive(Default)]
struct Tasks {
    running: JoinSet<TaskEnded>,
}

impl Tasks {
    fn spawn<E: std::error::Error + 'static>(
        &mut self,
        task: &'static str,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.running.spawn(async move {
            let why = work.await.err().map(|error| chain(&error));
            TaskEnded { task, why }
        });
    }

    /// The first that ends.
    async fn next(&mut self) -> TaskEnded {
        match self.running.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(panic)) => TaskEnded { task: "a task", why: Some(panic.to_string()) },
            None => std::future::pending().await,
        }
    }

    async fn join(&mut self) {
        while let Some(ended) = self.running.join_next().await {
            match ended {
                Ok(TaskEnded { why: None, .. }) => {}
                Ok(ended) => tracing::error!(error = %ended, "while stopping"),
                Err(panic) => tracing::error!(error = %panic, "while stopping"),
            }
        }
    }
}

async fn infallible(work: impl Future<Output = ()>) -> Result<(), std::convert::Infallible> {
    work.await;
    Ok(())
}

/// Runs `work`, which never ends by itself, until `stop`.
async fn until(
    stop: CancellationToken,
    work: impl Future<Output = ()>,
) -> Result<(), std::convert::Infallible> {
    stop.run_until_cancelled(work).await;
    Ok(())
}

type Watched = Result<Option<LocalServer>, LocalServerError>;

/// Watches the embedded Redis, if there is one, until `stop`; returns it still running.
async fn watch(server: Option<LocalServer>, stop: CancellationToken) -> Watched {
    match server {
        Some(server) => server.watch(stop).await.map(Some),
        None => {
            stop.cancelled().await;
            Ok(None)
        }
    }
}

/// What it means that the watch has ended by itself.
fn watch_ended(ended: Result<Watched, tokio::task::JoinError>) -> TaskEnded {
    let why = match ended {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(chain(&error)),
        Err(panic) => Some(panic.to_string()),
    };
    TaskEnded { task: EMBEDDED_REDIS, why }
}

/// Audits the partitions that this node leads, one after the other, every now and then. What it finds is in the metrics
/// and in the log.
async fn audit_own(
    gate: Gate,
    ledger: Ledger,
    progress: Progress,
    turns: Arc<Semaphore>,
    id: String,
    every: Duration,
) {
    loop {
        tokio::time::sleep(every).await;
        let led = match ledger.partitions().await {
            Ok(rows) => rows.into_iter().filter(|row| row.lease_owner.as_ref() == Some(&id)),
            Err(error) => {
                tracing::warn!(error = chain(&error), "no audit this time");
                continue;
            }
        };
        for row in led {
            let Ok(_turn) = turns.acquire().await else { return };
            match audit::run(&gate, &ledger, &progress, row.partition, Mend::No).await {
                Ok(report) if report.is_clean() => {}
                Ok(report) => tracing::error!(
                    partition = %row.partition,
                    differences = report.differences.len(),
                    broken_laws = report.broken.len(),
                    "Redis and the ledger do not agree; run `redeemer audit`"
                ),
                Err(error) => {
                    tracing::warn!(partition = %row.partition, error = chain(&error), "not audited");
                }
            }
        }
    }
}

/// Looks every now and then whether another node has made or revoked an API key.
async fn refresh_keys(keys: Arc<Keys>, ledger: Ledger, every: Duration) {
    let mut could = true;
    loop {
        tokio::time::sleep(every).await;
        let caught_up = keys.catch_up(&ledger).await;
        // Once, and not four times a second.
        if let Err(error) = &caught_up
            && could
        {
            tracing::warn!(error = chain(error), "the API keys can not be read; those known stay");
        }
        could = caught_up.is_ok();
    }
}

async fn upkeep(metrics: Metrics, gate: Gate) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        metrics.upkeep();
        gate.limited().tidy(crate::ids::now());
    }
}
