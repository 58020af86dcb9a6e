//! The HTTP API: parse, ask gate or ledger, map the answer. It decides nothing.
//!
//! `ENDPOINTS` is the whole surface: each method and path with the role that it needs. The router is built from it,
//! so that a route without a role can not exist. `guard` is the one middleware: request id, key, role, time limit,
//! log line and metrics. [`problem`] is the only place that knows status codes.

mod audit_log;
mod auth;
mod batches;
mod body;
mod campaigns;
mod consistency;
mod console;
mod events;
mod export;
mod guard;
mod health;
mod import;
mod invite_page;
mod invites;
mod keys;
mod manual;
mod members;
pub mod metrics;
mod namespaces;
pub mod openapi;
mod page;
pub mod problem;
mod rate_limited;
mod redemptions;
mod reservations;
mod scope;
mod stats;
mod status;
mod users;
mod validations;
mod webhooks;

pub use auth::Keys;
pub use events::message;
pub use health::{Check, Readiness};
pub use invite_page::PageOptions;
pub use metrics::Metrics;

use std::{
    collections::BTreeSet,
    io,
    net::TcpListener,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix_web::{
    App, HttpServer, Route,
    body::BoxBody,
    dev::{Server, ServiceRequest},
    http::{KeepAlive, Method},
    middleware::{Next, from_fn},
    web,
};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::openapi::Operation;
use crate::{
    domain::{Millis, Namespace, Partition, Role},
    feed::Feed,
    gate::{Gate, put_namespace::Rules},
    ledger::{Ledger, LedgerError},
    outbound::Outbound,
    outcomes::Outcomes,
    spread::Spread,
    sync::progress::Progress,
};

/// What the handlers need.
#[derive(Clone)]
pub struct State {
    /// Redis.
    pub gate: Gate,
    /// SQL.
    pub ledger: Ledger,
    /// Namespaces that lie in several partitions.
    pub spread: Spread,
    /// How far the ledger is.
    pub progress: Progress,
    /// Turns to compare gate and ledger, which reads all of a partition.
    pub audits: Arc<Semaphore>,
    /// Rung when a batch is ordered.
    pub ordered: Arc<Notify>,
    /// What happens.
    pub feed: Feed,
    /// Turns to be sent events.
    pub streams: Arc<Semaphore>,
    /// Whether this node is about to stop: it serves as before, and asks everybody to go elsewhere.
    pub draining: Arc<AtomicBool>,
    /// Answers that go on for ever end with this.
    pub stopping: CancellationToken,
    /// Webhooks.
    pub webhooks: Webhooks,
    /// The page for people.
    pub page: Arc<PageOptions>,
    /// Who may ask.
    pub keys: Arc<Keys>,
    /// What this node is called where it leads partitions.
    pub node: Arc<str>,
    /// Whether this node should be sent requests.
    pub readiness: watch::Receiver<Readiness>,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// The rules that a new namespace begins with.
    pub new_namespace: Rules,
    /// Longest request body, in bytes.
    pub body_bytes_max: usize,
    /// Longest body of an import, in bytes.
    pub import_bytes_max: u64,
    /// How requests ended.
    pub outcomes: Arc<Outcomes>,
    /// Turns to import.
    pub imports: Arc<Semaphore>,
    /// How long a body may take to arrive, and an answer to be reached; what is stuck otherwise gets twice as long.
    pub request_timeout: Duration,
}

/// What webhooks need.
#[derive(Clone)]
pub struct Webhooks {
    /// Says who may be called.
    pub outbound: Outbound,
    /// Most of a namespace.
    pub namespace_max: u32,
    /// How long an old secret signs too.
    pub secret_overlap: Duration,
    /// Rung when there is something new to do.
    pub changed: Arc<Notify>,
}

impl State {
    /// The partitions that these parts of a namespace lie in.
    fn partitions_of(&self, parts: &[Namespace]) -> Vec<Partition> {
        let all: BTreeSet<_> =
            parts.iter().map(|part| self.gate.keys().partition_of(part)).collect();
        all.into_iter().collect()
    }

    /// How far the ledger is with these parts of a namespace: with the one that it is furthest behind.
    async fn as_of(&self, parts: &[Namespace]) -> Result<Option<Millis>, LedgerError> {
        self.ledger.all_synced_at(&self.partitions_of(parts)).await
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// How to listen.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Threads; 0 means one per core.
    pub workers: usize,
    /// How long an idle connection is kept.
    pub keep_alive: Duration,
    /// Most connections at once.
    pub connections_max: usize,
    /// How long requests in flight may take once the server stops.
    pub drain_timeout: Duration,
}

/// How long the head of a request may take to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// One operation.
pub(crate) struct Endpoint {
    pub(crate) method: Method,
    pub(crate) method_text: &'static str,
    pub(crate) path: &'static str,
    /// Nothing: it answers without a key.
    pub(crate) role: Option<Role>,
    /// What the document says of it.
    operation: Option<fn() -> Operation>,
    route: fn() -> Route,
}

const NS: &str = "/v1/namespaces/{ns}";
const CODES: &str = "/v1/namespaces/{ns}/batches/{id}/codes";
const EVENTS: &str = "/v1/namespaces/{ns}/events";
const REDEMPTIONS: &str = "/v1/namespaces/{ns}/redemptions";
const RESERVATIONS: &str = "/v1/namespaces/{ns}/reservations";
const CONFIRM: &str = "/v1/namespaces/{ns}/reservations/{id}/confirm";
const DOCS: &str = "/docs";
const DOCS_FILE: &str = "/docs/{file}";
const CONSOLE: &str = "/console";
const CONSOLE_FILE: &str = "/console/{file}";
const CONSOLE_VENDORED: &str = "/console/vendor/{file}";

impl Endpoint {
    /// Whether it answers in JSON.
    fn is_json(&self) -> bool {
        !["/metrics", CODES, EVENTS, DOCS, DOCS_FILE].contains(&self.path)
            && ![CONSOLE, CONSOLE_FILE, CONSOLE_VENDORED].contains(&self.path)
            && !self.path.contains("/export/")
            && !self.path.contains("/import/")
            && !self.is_for_people()
    }

    /// Whether a client names its requests. People's are named by their tokens.
    fn has_idempotency_key(&self) -> bool {
        self.method == Method::POST && !self.is_for_people()
    }

    /// Whether its answers are pages for people, refusals too.
    fn is_for_people(&self) -> bool {
        self.path.starts_with("/i/")
    }
}

/// An endpoint with its handler, such as `invites::list`, and what the document says of it, `invites::docs::list`.
/// `undocumented` instead of that is for work under way: it fails a test.
macro_rules! endpoint {
    ($method:ident $path:expr, $role:expr, $module:ident::$handler:ident) => {
        endpoint!(@ $method $path, $role, $module::$handler, Some($module::docs::$handler))
    };
    ($method:ident $path:expr, $role:expr, $handler:path, undocumented) => {
        endpoint!(@ $method $path, $role, $handler, None)
    };
    (@ $method:ident $path:expr, $role:expr, $handler:path, $operation:expr) => {
        Endpoint {
            method: Method::$method,
            method_text: stringify!($method),
            path: $path,
            role: $role,
            operation: $operation,
            route: || answers(&Method::$method).to($handler),
        }
    };
}

/// A route for a method; one for GET answers HEAD too (RFC 9110 §9.3.2), and the server leaves the body out.
fn answers(method: &Method) -> Route {
    if *method == Method::GET {
        web::route()
            .guard(actix_web::guard::Any(actix_web::guard::Get()).or(actix_web::guard::Head()))
    } else {
        web::route().method(method.clone())
    }
}

/// The whole surface.
pub(crate) static ENDPOINTS: &[Endpoint] = &[
    // First what there is most of: the router tries one path after the other.
    endpoint!(POST REDEMPTIONS, Some(Role::Redeem), redemptions::redeem),
    endpoint!(GET "/livez", None, health::live),
    endpoint!(GET "/readyz", None, health::ready),
    endpoint!(GET "/metrics", Some(Role::Read), metrics::show),
    endpoint!(GET REDEMPTIONS, Some(Role::Read), redemptions::list),
    endpoint!(GET "/v1/namespaces/{ns}/redemptions/{id}", Some(Role::Read), redemptions::show),
    endpoint!(POST "/v1/namespaces/{ns}/redemptions/{id}/rollback", Some(Role::Manage), redemptions::rollback),
    endpoint!(POST RESERVATIONS, Some(Role::Redeem), reservations::create),
    endpoint!(GET "/v1/namespaces/{ns}/reservations/{id}", Some(Role::Redeem), reservations::show),
    endpoint!(DELETE "/v1/namespaces/{ns}/reservations/{id}", Some(Role::Redeem), reservations::release),
    endpoint!(POST CONFIRM, Some(Role::Redeem), reservations::confirm),
    endpoint!(POST "/v1/namespaces/{ns}/validations", Some(Role::Redeem), validations::validate),
    endpoint!(POST "/v1/namespaces/{ns}/invites", Some(Role::Manage), invites::create),
    endpoint!(GET "/v1/namespaces/{ns}/invites", Some(Role::Read), invites::list),
    endpoint!(GET "/v1/namespaces/{ns}/invites/by-code/{code}", Some(Role::Read), invites::show_by_code),
    endpoint!(GET "/v1/namespaces/{ns}/invites/{id}", Some(Role::Read), invites::show),
    endpoint!(GET "/v1/namespaces/{ns}/invites/{id}/commands", Some(Role::Manage), invites::commands),
    endpoint!(PATCH "/v1/namespaces/{ns}/invites/{id}", Some(Role::Manage), invites::change),
    endpoint!(DELETE "/v1/namespaces/{ns}/invites/{id}", Some(Role::Manage), invites::delete),
    endpoint!(GET "/v1/namespaces/{ns}/campaigns", Some(Role::Read), campaigns::list),
    endpoint!(GET "/v1/namespaces/{ns}/campaigns/{name}", Some(Role::Read), campaigns::show),
    endpoint!(PUT "/v1/namespaces/{ns}/campaigns/{name}", Some(Role::Manage), campaigns::put),
    endpoint!(POST "/v1/namespaces/{ns}/batches", Some(Role::Manage), batches::create),
    endpoint!(GET "/v1/namespaces/{ns}/batches/{id}", Some(Role::Read), batches::show),
    endpoint!(GET CODES, Some(Role::Read), batches::codes),
    endpoint!(GET "/v1/namespaces/{ns}/members", Some(Role::Read), members::list),
    endpoint!(GET "/v1/namespaces/{ns}/members/{user}", Some(Role::Read), members::show),
    endpoint!(DELETE "/v1/namespaces/{ns}/members/{user}", Some(Role::Manage), members::leave_all),
    endpoint!(GET "/v1/namespaces/{ns}/members/{user}/{group}", Some(Role::Read), members::show_one),
    endpoint!(PUT "/v1/namespaces/{ns}/members/{user}/{group}", Some(Role::Manage), members::join),
    endpoint!(DELETE "/v1/namespaces/{ns}/members/{user}/{group}", Some(Role::Manage), members::leave),
    endpoint!(DELETE "/v1/namespaces/{ns}/users/{user}", Some(Role::Manage), users::erase),
    endpoint!(GET "/v1/namespaces/{ns}/consistency", Some(Role::Manage), consistency::show),
    endpoint!(GET "/v1/namespaces/{ns}/rate-limited", Some(Role::Manage), rate_limited::show),
    endpoint!(GET "/v1/namespaces/{ns}/audit", Some(Role::Manage), audit_log::list),
    endpoint!(GET "/v1/audit", Some(Role::Admin), audit_log::list_all),
    endpoint!(GET "/v1/namespaces/{ns}/export/redemptions", Some(Role::Read), export::redemptions),
    endpoint!(GET "/v1/namespaces/{ns}/export/invites", Some(Role::Read), export::invites),
    endpoint!(GET "/v1/namespaces/{ns}/export/members", Some(Role::Read), export::members),
    endpoint!(POST "/v1/namespaces/{ns}/import/invites", Some(Role::Manage), import::invites),
    endpoint!(POST "/v1/namespaces/{ns}/import/members", Some(Role::Manage), import::members),
    endpoint!(GET "/v1/namespaces/{ns}/stats", Some(Role::Read), stats::show),
    endpoint!(GET EVENTS, Some(Role::Read), events::stream),
    endpoint!(POST "/v1/namespaces/{ns}/webhooks", Some(Role::Manage), webhooks::create),
    endpoint!(GET "/v1/namespaces/{ns}/webhooks", Some(Role::Manage), webhooks::list),
    endpoint!(GET "/v1/namespaces/{ns}/webhooks/{id}", Some(Role::Manage), webhooks::show),
    endpoint!(PATCH "/v1/namespaces/{ns}/webhooks/{id}", Some(Role::Manage), webhooks::change),
    endpoint!(DELETE "/v1/namespaces/{ns}/webhooks/{id}", Some(Role::Manage), webhooks::delete),
    endpoint!(POST "/v1/namespaces/{ns}/webhooks/{id}/rotate-secret", Some(Role::Manage), webhooks::rotate_secret),
    endpoint!(GET "/v1/namespaces/{ns}/webhooks/{id}/deliveries", Some(Role::Manage), webhooks::deliveries),
    endpoint!(POST "/v1/namespaces/{ns}/deliveries/{id}/retry", Some(Role::Manage), webhooks::retry),
    endpoint!(GET "/v1/namespaces", Some(Role::Read), namespaces::list),
    endpoint!(PUT NS, Some(Role::Admin), namespaces::put),
    endpoint!(GET NS, Some(Role::Read), namespaces::show),
    endpoint!(PATCH NS, Some(Role::Manage), namespaces::patch),
    endpoint!(DELETE NS, Some(Role::Admin), namespaces::archive),
    endpoint!(POST "/v1/keys", Some(Role::Admin), keys::create),
    endpoint!(GET "/v1/keys", Some(Role::Admin), keys::list),
    endpoint!(GET "/v1/keys/self", Some(Role::Read), keys::show_own),
    endpoint!(DELETE "/v1/keys/{id}", Some(Role::Admin), keys::revoke),
    endpoint!(GET "/v1/status", Some(Role::Read), status::show),
    endpoint!(GET "/openapi.json", None, manual::document),
    endpoint!(GET DOCS, None, manual::page),
    endpoint!(GET DOCS_FILE, None, manual::file),
    endpoint!(GET invite_page::STYLE_PATH, None, invite_page::style),
    endpoint!(GET invite_page::PATH, None, invite_page::show),
    endpoint!(POST invite_page::PATH, None, invite_page::redeem),
    endpoint!(GET CONSOLE, None, console::page),
    endpoint!(GET CONSOLE_FILE, None, console::file),
    endpoint!(GET CONSOLE_VENDORED, None, console::vendored),
];

/// Method, path and needed role of every operation; no role means that no key is needed.
pub fn endpoints() -> impl Iterator<Item = (&'static str, &'static str, Option<Role>)> {
    ENDPOINTS.iter().map(|endpoint| (endpoint.method_text, endpoint.path, endpoint.role))
}

/// Serves until `stop`, then finishes the requests in flight.
///
/// # Errors
/// When the listener can not be used.
pub async fn serve(
    listener: TcpListener,
    state: State,
    options: ServeOptions,
    stop: CancellationToken,
) -> io::Result<()> {
    run_until(start(listener, state, &options)?, stop).await
}

/// Serves `/metrics` alone, without a key, until `stop`.
///
/// # Errors
/// When the listener can not be used.
pub async fn serve_metrics(
    listener: TcpListener,
    metrics: Metrics,
    gate: Gate,
    stop: CancellationToken,
) -> io::Result<()> {
    run_until(start_metrics(listener, metrics, gate)?, stop).await
}

fn start(listener: TcpListener, state: State, options: &ServeOptions) -> io::Result<Server> {
    let data = web::Data::new(state);
    let workers = if options.workers > 0 { options.workers } else { num_cores() };
    let server = HttpServer::new(move || App::new().app_data(data.clone()).configure(routes));
    let server = server
        .workers(workers)
        .max_connections(options.connections_max.div_ceil(workers))
        .keep_alive(KeepAlive::Timeout(options.keep_alive))
        .client_request_timeout(HEAD_TIMEOUT)
        .shutdown_timeout(options.drain_timeout.as_secs().max(1))
        .disable_signals();
    Ok(server.listen(listener)?.run())
}

fn start_metrics(listener: TcpListener, metrics: Metrics, gate: Gate) -> io::Result<Server> {
    let server = HttpServer::new(move || {
        let (metrics, gate) = (metrics.clone(), gate.clone());
        let show = move || std::future::ready(metrics.response(&gate));
        App::new().route("/metrics", web::get().to(show))
    });
    Ok(server.workers(1).disable_signals().listen(listener)?.run())
}

async fn run_until(server: Server, stop: CancellationToken) -> io::Result<()> {
    let handle = server.handle();
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return ended,
        () = stop.cancelled() => {}
    }
    // The server runs only while it is polled.
    let ((), ended) = tokio::join!(handle.stop(true), server);
    ended
}

fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// One resource for each path, with a route for each of its methods, all of them behind the guard.
fn routes(config: &mut web::ServiceConfig) {
    let mut done: Vec<&str> = Vec::new();
    for endpoint in ENDPOINTS {
        if done.contains(&endpoint.path) {
            continue;
        }
        done.push(endpoint.path);
        let here: Rc<[&Endpoint]> =
            ENDPOINTS.iter().filter(|one| one.path == endpoint.path).collect();
        let mut resource = web::resource(endpoint.path);
        for one in &*here {
            resource = resource.route((one.route)());
        }
        let guarded = move |request: ServiceRequest, next: Next<BoxBody>| {
            guard::guard(here.clone(), request, next)
        };
        config.service(resource.wrap(from_fn(guarded)));
    }
    let nowhere =
        |request: ServiceRequest, next: Next<BoxBody>| guard::guard(Rc::new([]), request, next);
    config.service(web::resource("{path:.*}").wrap(from_fn(nowhere)));
}
