//! Configuration: one typed value, validated whole before anything starts. It builds no clients.
//!
//! `config/default.toml` is complete and compiled in. A file, environment variables and flags may override it, in this
//! order. Every problem is reported at once, with where the value came from and what to do.

mod layers;

use std::{
    fmt,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};

use self::layers::Layers;
pub use self::layers::{Origin, Setting, Sources};
use crate::{
    domain::{Namespace, Quota, Token, user_token},
    gate::topology::{Tls, Topology},
};

/// The complete defaults.
pub const DEFAULT: &str = include_str!("../config/default.toml");

/// Everything that can be set.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Config {
    pub http: Http,
    pub data_dir: PathBuf,
    pub redis: Redis,
    pub gate: Gate,
    pub ledger: Ledger,
    pub sync: Sync,
    pub auth: Auth,
    pub rate_limit: RateLimit,
    pub stats: Stats,
    pub events: Events,
    pub webhooks: Webhooks,
    pub page: Page,
    pub trace: Trace,
    pub log: Log,
    /// Each setting as text, secrets masked, with where it came from.
    pub settings: Vec<Setting>,
}

#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Http {
    pub bind: SocketAddr,
    pub body_bytes_max: usize,
    pub import_bytes_max: u64,
    pub request_timeout: Duration,
    pub keep_alive: Duration,
    pub connections_max: usize,
    pub workers: usize,
    pub drain_timeout: Duration,
    pub shutdown_delay: Duration,
    pub metrics_bind: Option<SocketAddr>,
}

#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Redis {
    /// Nothing means the embedded default.
    pub place: Option<RedisPlace>,
    pub key_prefix: String,
    pub connect_timeout: Duration,
    pub reply_timeout: Duration,
    pub pool_size: usize,
    pub server: Option<PathBuf>,
}

/// Where a Redis of the user's own is.
#[derive(Debug, Clone)]
pub struct RedisPlace {
    /// The URL as it was given.
    pub url: SecretString,
    /// What it says.
    pub topology: Topology,
}

#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Gate {
    pub partitions: u16,
    pub batch_max: usize,
    pub queue_max: usize,
    pub connections: usize,
    pub replicas: u32,
    pub deadline: Duration,
    pub outbox_max: u64,
}

#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Ledger {
    pub place: LedgerPlace,
    pub connections_max: u32,
    pub busy_timeout: Duration,
}

/// Where the ledger is.
#[derive(Debug, Clone)]
pub enum LedgerPlace {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// The URL of a PostgreSQL database.
    Postgres(SecretString),
}

impl fmt::Display for LedgerPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(url) => masked_url(url).fmt(f),
        }
    }
}

#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Sync {
    pub batch_max: usize,
    pub lease_ttl: Duration,
    pub gather: Duration,
    pub block: Duration,
    pub backoff_max: Duration,
    /// Nothing means never.
    pub audit_every: Option<Duration>,
}

#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Auth {
    pub admin_key: Option<SecretString>,
    pub refresh: Duration,
}

#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct RateLimit {
    pub user: Option<Quota>,
    pub ip: Option<Quota>,
    pub code: Option<Quota>,
    pub namespace: Option<Quota>,
    pub guess: Option<Quota>,
}

#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Stats {
    pub flush: Duration,
    pub keep: Duration,
}

#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Events {
    pub streams_max: usize,
}

#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Webhooks {
    pub allow_private: bool,
    pub namespace_max: u32,
    pub calls_max: usize,
    pub timeout: Duration,
    pub attempts_max: u32,
    pub retry_first: Duration,
    pub failing_max: Duration,
    pub secret_overlap: Duration,
    pub keep: Duration,
}

#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Page {
    /// None means that there is no page.
    pub namespaces: Vec<Namespace>,
    pub token_keys: Vec<user_token::Key>,
    pub title: String,
    pub sign_in_url: Option<String>,
    pub done_url: Option<String>,
    pub proxies: usize,
}

#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Trace {
    /// Nothing means that there are no traces.
    pub endpoint: Option<String>,
    pub sample_ratio: f64,
    pub service_name: String,
    pub queue_max: usize,
    pub timeout: Duration,
}

#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "config/default.toml says what each is")]
pub struct Log {
    pub json: bool,
    pub level: String,
}

/// Everything that is wrong with the configuration, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} problem(s):", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

impl std::error::Error for Problems {}

impl Config {
    /// Reads and checks the configuration from all its sources.
    ///
    /// # Errors
    /// [`Problems`]: every one, each with its source and what to do.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        let mut read = Read { layers: Layers::read(sources)?, problems: Vec::new() };
        let config = Self::read(&mut read, sources);
        read.problems.extend(read.layers.unknown());
        match config {
            Some(config) if read.problems.is_empty() => Ok(config),
            _ => Err(Problems(read.problems)),
        }
    }

    /// Whether Redis and the ledger are this program's own.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.redis.place.is_none()
    }

    /// Where the first admin key lies.
    #[must_use]
    pub fn admin_key_file(&self) -> PathBuf {
        self.data_dir.join("admin.key")
    }

    /// Reads every setting before it says that one is wrong.
    fn read(read: &mut Read, sources: &Sources) -> Option<Self> {
        let http = Http::read(read);
        let data_dir = read.data_dir(sources);
        let redis = Redis::read(read);
        let gate = Gate::read(read);
        let ledger = Ledger::read(read, data_dir.as_deref());
        let sync = Sync::read(read);
        let auth = Auth::read(read);
        let rate_limit = RateLimit::read(read);
        let stats = Stats::read(read);
        let events = Events::read(read);
        let webhooks = Webhooks::read(read);
        let page = Page::read(read);
        let trace = Trace::read(read);
        let log = Log::read(read);
        if let (Some(http), Some(gate)) = (&http, &gate) {
            read.cross_check(http, gate);
        }
        if let (Some(redis), Some(ledger)) = (&redis, &ledger) {
            read.check_places(redis, ledger);
        }
        Some(Self {
            http: http?,
            data_dir: data_dir?,
            redis: redis?,
            gate: gate?,
            ledger: ledger?,
            sync: sync?,
            auth: auth?,
            rate_limit: rate_limit?,
            stats: stats?,
            events: events?,
            webhooks: webhooks?,
            page: page?,
            trace: trace?,
            log: log?,
            settings: read.layers.settings(),
        })
    }
}

impl Http {
    fn read(read: &mut Read) -> Option<Self> {
        let bind = read.address("http.bind");
        let body_bytes_max = read.number("http.body_bytes_max", 256..=1_048_576);
        let import_bytes_max = read.number("http.import_bytes_max", 1024..=1_099_511_627_776);
        let request_timeout = read.millis("http.request_timeout_ms", 100..=60_000);
        let keep_alive = read.number("http.keep_alive_seconds", 1..=3600).map(Duration::from_secs);
        let connections_max = read.number("http.connections_max", 1..=1_000_000);
        let workers = read.number("http.workers", 0..=1024);
        let drain_timeout = read.millis("http.drain_timeout_ms", 0..=600_000);
        let shutdown_delay = read.millis("http.shutdown_delay_ms", 0..=600_000);
        let metrics_bind = if read.is_empty("http.metrics_bind") {
            Some(None)
        } else {
            read.address("http.metrics_bind").map(Some)
        };
        Some(Self {
            bind: bind?,
            body_bytes_max: body_bytes_max?,
            import_bytes_max: import_bytes_max?,
            request_timeout: request_timeout?,
            keep_alive: keep_alive?,
            connections_max: connections_max?,
            workers: workers?,
            drain_timeout: drain_timeout?,
            shutdown_delay: shutdown_delay?,
            metrics_bind: metrics_bind?,
        })
    }
}

impl Redis {
    fn read(read: &mut Read) -> Option<Self> {
        let place = read.redis_place();
        let key_prefix = read.parsed("redis.key_prefix", |text| {
            let fits = (1..=32).contains(&text.len())
                && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
            if fits { Ok(text.to_owned()) } else { Err("use 1 to 32 characters of a-z, 0-9 and -") }
        });
        let connect_timeout = read.millis("redis.connect_timeout_ms", 10..=60_000);
        let reply_timeout = read.millis("redis.reply_timeout_ms", 10..=60_000);
        let pool_size = read.number("redis.pool_size", 1..=1024);
        let server =
            (!read.is_empty("redis.server")).then(|| PathBuf::from(read.text("redis.server")));
        Some(Self {
            place: place?,
            key_prefix: key_prefix?,
            connect_timeout: connect_timeout?,
            reply_timeout: reply_timeout?,
            pool_size: pool_size?,
            server,
        })
    }
}

impl Gate {
    fn read(read: &mut Read) -> Option<Self> {
        let partitions = read.number("gate.partitions", 1..=256);
        let batch_max = read.number("gate.batch_max", 1..=1024);
        let queue_max = read.number("gate.queue_max", 1..=1_000_000);
        let connections = read.number("gate.connections", 1..=64);
        let replicas = read.number("gate.replicas", 0..=8);
        let deadline = read.millis("gate.deadline_ms", 10..=60_000);
        let outbox_max = read.number("gate.outbox_max", 1..=100_000_000);
        Some(Self {
            partitions: partitions?,
            batch_max: batch_max?,
            queue_max: queue_max?,
            connections: connections?,
            replicas: replicas?,
            deadline: deadline?,
            outbox_max: outbox_max?,
        })
    }
}

impl Ledger {
    fn read(read: &mut Read, data_dir: Option<&Path>) -> Option<Self> {
        let place = if read.is_empty("ledger.url") {
            data_dir.map(|dir| LedgerPlace::Sqlite(dir.join("ledger.sqlite")))
        } else {
            read.parsed("ledger.url", LedgerPlace::parse)
        };
        let connections_max = read.number("ledger.connections_max", 4..=1024);
        let busy_timeout = read.millis("ledger.busy_timeout_ms", 10..=60_000);
        Some(Self { place: place?, connections_max: connections_max?, busy_timeout: busy_timeout? })
    }
}

impl LedgerPlace {
    fn parse(url: &str) -> Result<Self, String> {
        const FORMS: &str = "use sqlite:PATH or postgres://user:password@host/database";
        if let Some(path) = url.strip_prefix("sqlite:").filter(|path| !path.is_empty()) {
            return Ok(Self::Sqlite(PathBuf::from(path.trim_start_matches("//"))));
        }
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(FORMS.to_owned());
        }
        match sqlx::postgres::PgConnectOptions::from_str(url) {
            Ok(_) => Ok(Self::Postgres(SecretString::from(url))),
            Err(error) => Err(format!("{error}; {FORMS}")),
        }
    }

    /// The file that is to hold the ledger and is not there.
    #[must_use]
    pub fn missing_file(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path) if !path.exists() => Some(path),
            _ => None,
        }
    }
}

impl Sync {
    fn read(read: &mut Read) -> Option<Self> {
        let batch_max = read.number("sync.batch_max", 1..=100_000);
        let lease_ttl = read.millis("sync.lease_ttl_ms", 500..=600_000);
        let gather = read.millis("sync.gather_ms", 0..=1000);
        let block = read.millis("sync.block_ms", 10..=10_000);
        if let (Some(block), Some(lease)) = (block, lease_ttl)
            && block * 2 > lease
        {
            read.problems.push(format!(
                "sync.block_ms = {} must be at most half of sync.lease_ttl_ms = {}: a leader that waits for longer loses its lease",
                block.as_millis(),
                lease.as_millis()
            ));
        }
        let backoff_max = read.millis("sync.backoff_max_ms", 10..=600_000);
        let audit_every = read.number("sync.audit_every_seconds", 0..=604_800);
        Some(Self {
            batch_max: batch_max?,
            lease_ttl: lease_ttl?,
            gather: gather?,
            block: block?,
            backoff_max: backoff_max?,
            audit_every: audit_every
                .map(|seconds: u64| (seconds > 0).then(|| Duration::from_secs(seconds)))?,
        })
    }
}

impl Auth {
    fn read(read: &mut Read) -> Option<Self> {
        let admin_key = if read.is_empty("auth.admin_key") {
            Some(None)
        } else {
            read.parsed("auth.admin_key", |text| {
                Token::parse(text).map(|_| Some(SecretString::from(text))).map_err(|error| error.0)
            })
        };
        let refresh = read.millis("auth.refresh_ms", 50..=900);
        Some(Self { admin_key: admin_key?, refresh: refresh? })
    }
}

impl RateLimit {
    fn read(read: &mut Read) -> Option<Self> {
        let enabled: Option<bool> =
            read.parsed("rate_limit.enabled", |text| text.parse().map_err(|_| "use true or false"));
        let mut quota = |key| {
            if read.is_empty(key) { Some(None) } else { read.parsed(key, Quota::parse).map(Some) }
        };
        let user = quota("rate_limit.user");
        let ip = quota("rate_limit.ip");
        let code = quota("rate_limit.code");
        let namespace = quota("rate_limit.namespace");
        let guess = quota("rate_limit.guess");
        let limits =
            Self { user: user?, ip: ip?, code: code?, namespace: namespace?, guess: guess? };
        let off = Self { user: None, ip: None, code: None, namespace: None, guess: None };
        Some(if enabled? { limits } else { off })
    }
}

impl Stats {
    fn read(read: &mut Read) -> Option<Self> {
        let flush = read.millis("stats.flush_ms", 10..=60_000);
        let keep = read.number("stats.keep_seconds", 3600..=315_360_000).map(Duration::from_secs);
        Some(Self { flush: flush?, keep: keep? })
    }
}

impl Events {
    fn read(read: &mut Read) -> Option<Self> {
        Some(Self { streams_max: read.number("events.streams_max", 0..=10_000)? })
    }
}

impl Webhooks {
    fn read(read: &mut Read) -> Option<Self> {
        let allow_private = read
            .parsed("webhooks.allow_private", |text| text.parse().map_err(|_| "use true or false"));
        let namespace_max = read.number("webhooks.namespace_max", 0..=1000);
        let calls_max = read.number("webhooks.calls_max", 1..=1000);
        let timeout = read.millis("webhooks.timeout_ms", 100..=60_000);
        let attempts_max = read.number("webhooks.attempts_max", 1..=20);
        let retry_first = read.millis("webhooks.retry_first_ms", 10..=3_600_000);
        let mut seconds = |key, range| read.number(key, range).map(Duration::from_secs);
        let failing_max = seconds("webhooks.failing_max_seconds", 1..=31_536_000);
        let secret_overlap = seconds("webhooks.secret_overlap_seconds", 0..=2_592_000);
        let keep = seconds("webhooks.keep_seconds", 3600..=31_536_000);
        Some(Self {
            allow_private: allow_private?,
            namespace_max: namespace_max?,
            calls_max: calls_max?,
            timeout: timeout?,
            attempts_max: attempts_max?,
            retry_first: retry_first?,
            failing_max: failing_max?,
            secret_overlap: secret_overlap?,
            keep: keep?,
        })
    }
}

impl Page {
    fn read(read: &mut Read) -> Option<Self> {
        let namespaces = read.parsed("page.namespaces", |text| {
            let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
            names.map(Namespace::parse).collect::<Result<Vec<_>, _>>()
        });
        let mut key = |name| {
            if read.is_empty(name) {
                Some(None)
            } else {
                read.parsed(name, |text| user_token::Key::new(text.as_bytes())).map(Some)
            }
        };
        let newest = key("page.token_secret");
        let previous = key("page.token_secret_previous");
        if namespaces.as_ref().is_some_and(|all| !all.is_empty()) && matches!(newest, Some(None)) {
            read.problems.push(
                "page.namespaces needs page.token_secret: the host application signs with it who a person is"
                    .to_owned(),
            );
        }
        let title = read.one_line("page.title");
        let mut url = |name| {
            if read.is_empty(name) {
                Some(None)
            } else {
                read.parsed(name, Self::parse_url).map(Some)
            }
        };
        let sign_in_url = url("page.sign_in_url");
        let done_url = url("page.done_url");
        let proxies = read.number("page.proxies", 0..=8);
        Some(Self {
            namespaces: namespaces?,
            token_keys: [newest?, previous?].into_iter().flatten().collect(),
            title: title?,
            sign_in_url: sign_in_url?,
            done_url: done_url?,
            proxies: proxies?,
        })
    }

    fn parse_url(text: &str) -> Result<String, &'static str> {
        let url = text.replace("{namespace}", "n").replace("{code}", "c");
        let is_web =
            reqwest::Url::parse(&url).is_ok_and(|url| ["http", "https"].contains(&url.scheme()));
        let has_others = url.contains(['{', '}']);
        if is_web && !has_others {
            Ok(text.to_owned())
        } else {
            Err(
                "use a URL such as https://app.example/join?code={code}, with no other places than {namespace} and {code}",
            )
        }
    }
}

impl Trace {
    fn read(read: &mut Read) -> Option<Self> {
        let endpoint = if read.is_empty("trace.endpoint") {
            Some(None)
        } else {
            read.parsed("trace.endpoint", |text| Self::parse_endpoint(text).map(Some))
        };
        let sample_ratio = read.parsed("trace.sample_ratio", |text| {
            let ratio = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
            ratio.ok_or("use a number from 0 to 1")
        });
        let service_name = read.one_line("trace.service_name");
        let queue_max = read.number("trace.queue_max", 1..=1_000_000);
        let timeout = read.millis("trace.timeout_ms", 10..=60_000);
        Some(Self {
            endpoint: endpoint?,
            sample_ratio: sample_ratio?,
            service_name: service_name?,
            queue_max: queue_max?,
            timeout: timeout?,
        })
    }

    fn parse_endpoint(text: &str) -> Result<String, &'static str> {
        if !cfg!(feature = "otel") {
            return Err("this program was built without traces; build it with the feature otel");
        }
        let url: reqwest::Url =
            text.parse().map_err(|_| "use a URL such as http://127.0.0.1:4318")?;
        if !["http", "https"].contains(&url.scheme()) || url.query().is_some() {
            return Err("use http:// or https:// and no query");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("put what it wants of secrets into OTEL_EXPORTER_OTLP_HEADERS");
        }
        Ok(format!("{}/v1/traces", text.trim_end_matches('/')))
    }
}

impl Log {
    fn read(read: &mut Read) -> Option<Self> {
        let json = read.parsed("log.format", |text| match text {
            "text" => Ok(false),
            "json" => Ok(true),
            _ => Err("use text or json"),
        });
        let level = read.parsed("log.level", |text| {
            tracing_subscriber::EnvFilter::try_new(text)
                .map(|_| text.to_owned())
                .map_err(|error| format!("{error}; use error, warn, info, debug or trace"))
        });
        Some(Self { json: json?, level: level? })
    }
}

/// Reads setting after setting and collects what is wrong.
struct Read {
    layers: Layers,
    problems: Vec<String>,
}

impl Read {
    fn text(&mut self, key: &str) -> String {
        self.layers.value(key).unwrap_or_default()
    }

    fn is_empty(&mut self, key: &str) -> bool {
        self.text(key).is_empty()
    }

    fn parsed<T, E: fmt::Display>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(key);
        match parse(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                let shown = self.layers.shown(key);
                self.problems.push(format!("{key} = {shown}: {error}"));
                None
            }
        }
    }

    fn number<T: FromStr + TryFrom<u64>>(
        &mut self,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Option<T> {
        self.parsed(key, |text| {
            let number = text.parse::<u64>().ok().filter(|number| range.contains(number));
            number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
                format!("use a whole number from {} to {}", range.start(), range.end())
            })
        })
    }

    fn one_line(&mut self, key: &str) -> Option<String> {
        self.parsed(key, |text| {
            let fits =
                (1..=100).contains(&text.chars().count()) && !text.contains(char::is_control);
            if fits { Ok(text.to_owned()) } else { Err("use 1 to 100 characters of text") }
        })
    }

    fn millis(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<Duration> {
        self.number(key, range).map(Duration::from_millis)
    }

    fn address(&mut self, key: &str) -> Option<SocketAddr> {
        self.parsed(key, |text| {
            text.parse()
                .map_err(|_| "use an address and a port, such as 127.0.0.1:8080 or [::1]:8080")
        })
    }

    /// What no setting shows alone.
    fn cross_check(&mut self, http: &Http, gate: &Gate) {
        if gate.deadline >= http.request_timeout {
            self.problems.push(format!(
                "gate.deadline_ms = {} must be less than http.request_timeout_ms = {}",
                gate.deadline.as_millis(),
                http.request_timeout.as_millis()
            ));
        }
        if http.metrics_bind == Some(http.bind) && http.bind.port() != 0 {
            self.problems.push("http.metrics_bind and http.bind are the same address".to_owned());
        }
    }

    /// Nodes that share a ledger must share a Redis, and nobody else can reach an embedded one.
    fn check_places(&mut self, redis: &Redis, ledger: &Ledger) {
        if redis.place.is_none() && matches!(ledger.place, LedgerPlace::Postgres(_)) {
            let shown = self.layers.shown("ledger.url");
            self.problems.push(format!(
                "ledger.url = {shown}: a PostgreSQL ledger needs a Redis that every node can reach; set redis.url too, or \
                 leave ledger.url empty for the embedded Redis and SQLite"
            ));
        }
    }

    fn redis_place(&mut self) -> Option<Option<RedisPlace>> {
        let tls = self.redis_tls();
        if self.is_empty("redis.url") {
            return Some(None);
        }
        // What is wrong with a file has been said; what is wrong with the URL is said beside it.
        let place = self.parsed("redis.url", |url| {
            let topology = Topology::parse(url, tls.as_ref().unwrap_or(&Tls::default()))?;
            Ok::<_, String>(Some(RedisPlace { url: SecretString::from(url), topology }))
        });
        tls.and(place)
    }

    fn redis_tls(&mut self) -> Option<Tls> {
        let ca = self.file("redis.tls_ca_file");
        let cert = self.file("redis.tls_cert_file");
        let key = self.file("redis.tls_key_file");
        let own = match (cert?, key?) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => {
                self.problems.push(
                    "redis.tls_cert_file and redis.tls_key_file belong together: set both or none"
                        .to_owned(),
                );
                return None;
            }
        };
        Some(Tls { ca: ca?, own })
    }

    /// What a file holds; nothing when none is named.
    fn file(&mut self, key: &str) -> Option<Option<Vec<u8>>> {
        self.parsed(key, |path| {
            (!path.is_empty())
                .then(|| std::fs::read(path))
                .transpose()
                .map_err(|error| format!("it can not be read: {error}"))
        })
    }

    fn data_dir(&mut self, sources: &Sources) -> Option<PathBuf> {
        let text = self.text("data.dir");
        if !text.is_empty() {
            // Other programs are told of it, and they may run elsewhere.
            return Some(std::path::absolute(&text).unwrap_or_else(|_| PathBuf::from(text)));
        }
        let home =
            |name: &str| sources.env.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir =
            home("XDG_DATA_HOME").or_else(|| home("HOME").map(|home| home.join(".local/share")));
        if dir.is_none() {
            self.problems
                .push("data.dir is empty and there is no HOME: set REDEEMER_DATA__DIR".to_owned());
        }
        dir.map(|dir| dir.join("redeemer"))
    }
}

/// A URL as it may be shown: its password masked.
#[must_use]
pub fn masked_url(url: &SecretString) -> String {
    layers::mask_url(url.expose_secret())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn load(
        env: &[(&str, &str)],
        file: Option<&str>,
        flags: &[(&str, &str)],
    ) -> Result<Config, Problems> {
        let pair = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        let mut env: BTreeMap<String, String> = env.iter().map(pair).collect();
        env.entry("HOME".to_owned()).or_insert_with(|| "/home/someone".to_owned());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("redeemer.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let file = file.map(|_| path);
        Config::load(&Sources { file, env, flags: flags.iter().map(pair).collect() })
    }

    #[test]
    fn the_defaults_are_complete() {
        let config = load(&[], None, &[]).unwrap();
        assert_eq!(config.http.bind.to_string(), "127.0.0.1:8080");
        assert!(config.is_embedded());
        assert_eq!(config.data_dir, Path::new("/home/someone/.local/share/redeemer"));
        let LedgerPlace::Sqlite(path) = config.ledger.place else { panic!("{:?}", config.ledger) };
        assert_eq!(path, config.data_dir.join("ledger.sqlite"));
        assert_eq!(config.rate_limit.user, Some(Quota::parse("10/60").unwrap()));
    }

    #[test]
    fn flags_win_over_the_environment_over_the_file_over_the_defaults() {
        let file = Some("[http]\nbind = \"127.0.0.1:1\"\nworkers = 3\n");
        let env = [("REDEEMER_HTTP__BIND", "127.0.0.1:2"), ("REDEEMER_GATE__BATCH_MAX", "7")];
        let config = load(&env, file, &[("gate.batch_max", "9")]).unwrap();
        assert_eq!(config.http.bind.port(), 2);
        assert_eq!((config.http.workers, config.gate.batch_max), (3, 9));
        let origin = |key: &str| {
            config.settings.iter().find(|setting| setting.key == key).unwrap().origin.to_string()
        };
        assert_eq!(origin("http.bind"), "REDEEMER_HTTP__BIND");
        assert_eq!(origin("gate.batch_max"), "a flag");
        assert_eq!(origin("gate.queue_max"), "the default");
        assert!(origin("http.workers").ends_with("redeemer.toml"));
    }

    /// docs/nodes.md promises that a key counts, or counts no more, on every node within a second.
    #[test]
    fn nodes_learn_of_keys_within_a_second() {
        let most = load(&[], None, &[("auth.refresh_ms", "900")]).unwrap();
        assert_eq!(most.auth.refresh, Duration::from_millis(900));
        let problems = load(&[], None, &[("auth.refresh_ms", "901")]).unwrap_err();
        assert!(problems.to_string().contains("auth.refresh_ms"), "{problems}");
    }

    #[test]
    fn the_plain_variables_are_weaker_than_the_own_ones() {
        assert!(!load(&[("REDIS_URL", "redis://one:6379")], None, &[]).unwrap().is_embedded());
        let env = [("REDIS_URL", "redis://one:6379"), ("REDEEMER_REDIS__URL", "redis://two:6379")];
        let place = load(&env, None, &[]).unwrap().redis.place.unwrap();
        assert_eq!(place.url.expose_secret(), "redis://two:6379");
    }

    #[test]
    fn a_setting_whose_name_ends_in_file_is_a_path_and_told_of_with_the_rest() {
        let env = [
            ("REDEEMER_REDIS__URL", "rediss-sentinel://one"),
            ("REDEEMER_REDIS__TLS_CA_FILE", "/nowhere"),
            ("REDEEMER_REDIS__TLS_KEY_FILE", "/dev/null"),
        ];
        let problems = load(&env, None, &[]).unwrap_err();
        for part in ["redis.tls_ca_file = \"/nowhere\"", "set both or none", "?master=NAME"] {
            assert!(problems.to_string().contains(part), "{part} is not in {problems}");
        }
        assert_eq!(problems.0.len(), 3, "{problems}");
    }

    #[test]
    fn a_secret_may_lie_in_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("url");
        std::fs::write(&path, "redis://:hush@one:6379\n").unwrap();
        let env = [("REDEEMER_REDIS__URL_FILE", path.to_str().unwrap())];
        let config = load(&env, None, &[]).unwrap();
        assert_eq!(config.redis.place.unwrap().url.expose_secret(), "redis://:hush@one:6379");
        let missing = load(&[("REDEEMER_REDIS__URL_FILE", "/nowhere")], None, &[]).unwrap_err();
        assert!(missing.to_string().contains("REDEEMER_REDIS__URL_FILE"), "{missing}");
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_source() {
        let env = [
            ("REDEEMER_HTTP__BIND", "nowhere"),
            ("REDEEMER_HTPT__BIND", "x"),
            ("REDEEMER_GATE__DEADLINE_MS", "5"),
            ("REDEEMER_SYNC__BLOCK_MS", "3000"),
        ];
        let problems =
            load(&env, Some("[log]\nlevle = \"info\"\nformat = \"xml\"\n"), &[]).unwrap_err();
        let text = problems.to_string();
        assert_eq!(problems.0.len(), 6, "{text}");
        for part in [
            "REDEEMER_HTTP__BIND",
            "htpt.bind",
            "from 10 to 60000",
            "at most half of sync.lease_ttl_ms",
            "log.levle",
            "use text or json",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn a_page_for_people_needs_a_secret_that_is_never_shown() {
        let page = |more: &[(&str, &str)]| {
            let env = [("REDEEMER_PAGE__NAMESPACES", "acme, default")];
            load(&[&env[..], more].concat(), None, &[])
        };
        assert!(load(&[], None, &[]).unwrap().page.namespaces.is_empty());
        assert!(page(&[]).unwrap_err().to_string().contains("needs page.token_secret"));
        let secrets = [
            ("REDEEMER_PAGE__TOKEN_SECRET", "hush-0123456789abcdef0123456789abcdef"),
            ("REDEEMER_PAGE__TOKEN_SECRET_PREVIOUS", "hush-fedcba9876543210fedcba9876543210"),
        ];
        let config = page(&secrets).unwrap();
        assert_eq!((config.page.namespaces.len(), config.page.token_keys.len()), (2, 2));
        assert!(!format!("{config:?} {:?}", config.settings).contains("hush"));
        let short = page(&[("REDEEMER_PAGE__TOKEN_SECRET", "hush")]).unwrap_err().to_string();
        assert!(short.contains("32 to 1024 bytes") && !short.contains("hush"), "{short}");
        for (name, bad) in [
            ("REDEEMER_PAGE__NAMESPACES", "Acme"),
            ("REDEEMER_PAGE__SIGN_IN_URL", "javascript:alert(1)"),
            ("REDEEMER_PAGE__SIGN_IN_URL", "/join"),
            ("REDEEMER_PAGE__DONE_URL", "https://app.example/{user}"),
            ("REDEEMER_PAGE__PROXIES", "9"),
            ("REDEEMER_PAGE__TITLE", ""),
        ] {
            let told = page(&[&secrets[..], &[(name, bad)]].concat()).unwrap_err().to_string();
            assert!(told.contains(name), "{told}");
        }
    }

    #[cfg(feature = "otel")]
    #[test]
    fn a_collector_is_named_by_its_address_and_without_secrets() {
        let endpoint = |text| load(&[("REDEEMER_TRACE__ENDPOINT", text)], None, &[]);
        let url = |text| endpoint(text).unwrap().trace.endpoint;
        assert_eq!(url(""), None);
        assert_eq!(url("http://c:4318").unwrap(), "http://c:4318/v1/traces");
        assert_eq!(url("https://c/otlp/").unwrap(), "https://c/otlp/v1/traces");
        for bad in ["c:4318", "ftp://c", "http://u:hush@c", "http://c?a=b", "nonsense"] {
            let told = endpoint(bad).unwrap_err().to_string();
            assert!(told.contains("trace.endpoint"), "{told}");
        }
        let ratio = load(&[("REDEEMER_TRACE__SAMPLE_RATIO", "1.5")], None, &[]).unwrap_err();
        assert!(ratio.to_string().contains("from 0 to 1"), "{ratio}");
    }

    #[test]
    fn secrets_are_never_shown() {
        let key = Token::from_random([9; 30]).reveal();
        let env = [
            ("REDEEMER_AUTH__ADMIN_KEY", key.as_str()),
            ("REDEEMER_REDIS__URL", "redis://u:hush@one:6379"),
        ];
        let config = load(&env, None, &[]).unwrap();
        let shown = format!("{config:?} {:?}", config.settings);
        assert!(!shown.contains("hush") && !shown.contains(&key), "{shown}");
        let unix = load(&[("REDIS_URL", "unix:///s?user=u&pass=hush")], None, &[]).unwrap();
        assert!(!format!("{:?}", unix.settings).contains("hush"));
        let broken = load(&[], Some("[auth]\nadmin_key = \"rdm_hush\n"), &[]).unwrap_err();
        assert!(!broken.to_string().contains("hush"), "{broken}");
        let problems = load(&[("REDEEMER_AUTH__ADMIN_KEY", "rdm_hush")], None, &[]).unwrap_err();
        assert!(!problems.to_string().contains("hush"), "{problems}");
    }

    #[test]
    fn every_default_is_explained_where_it_stands() {
        let mut above = "";
        for line in DEFAULT.lines() {
            if line.contains(" = ") && !line.starts_with('#') {
                assert!(above.starts_with('#'), "{line:?} has no comment above it");
            }
            above = line;
        }
    }
}
