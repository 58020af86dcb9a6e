//! What the program is compared with, served by the same HTTP server with as many workers, in a process of its own: an
//! echo, the same script called the way most people would, and two row locks in PostgreSQL.
//!
//! None of them looks at a key, writes a log, counts a metric, remembers a request or syncs anything.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, error::ErrorInternalServerError, web};
use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use deadpool_redis::{Pool, Runtime};
use redis::Value as RedisValue;
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::{PgPool, postgres::PgPoolOptions};

use super::{
    load::{Request, redemption_body},
    output::say,
    servers::{ADMIN_KEY, CODE, Fsync, Guarded, Place, PostgresServer, RedisServer, Service},
};

/// Connections to PostgreSQL, and to Redis. More were not faster.
const CONNECTIONS: u32 = 16;
/// Uses of a code before the row lock is measured.
pub(crate) const USES_BEFORE: u64 = 10_000;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// JSON in, JSON out.
    Echo,
    /// The script of a redemption, once for each request, over a connection from a pool.
    Checkout,
    /// `SELECT … FOR UPDATE` of the invite, `COUNT(*)` of its uses, two `INSERT`s.
    RowLockCount,
    /// One conditional `UPDATE` of a counter, two `INSERT`s.
    RowLockCounter,
}

/// What the child is told.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    kind: Kind,
    /// Where Redis or PostgreSQL is.
    #[arg(long, default_value = "")]
    url: String,
    /// The words of a script call, as JSON.
    #[arg(long, default_value = "[]")]
    call: String,
}

/// A baseline, running as a child.
pub(crate) struct Baseline {
    address: SocketAddr,
    _child: Guarded,
    /// What it uses, and nobody else.
    _redis: Option<RedisServer>,
}

impl Baseline {
    pub(crate) fn echo() -> anyhow::Result<Self> {
        Self::start(Kind::Echo, &[], None)
    }

    /// On a Redis of its own, set as the embedded one.
    pub(crate) fn checkout() -> anyhow::Result<Self> {
        let server = RedisServer::start(Fsync::Always)?;
        let call = learn_call(&server)?;
        let url = server.redis.url();
        Self::start(Kind::Checkout, &["--url", &url, "--call", &call], Some(server))
    }

    pub(crate) fn row_lock(kind: Kind, url: &str) -> anyhow::Result<Self> {
        Self::start(kind, &["--url", url], None)
    }

    fn start(kind: Kind, args: &[&str], redis: Option<RedisServer>) -> anyhow::Result<Self> {
        let name = kind.to_possible_value().context("a kind without a name")?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", name.get_name()])
            .args(args)
            // It ends when this pipe does, however this process ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        let out = child.stdout.take().context("no standard output")?;
        BufReader::new(out).read_line(&mut address)?;
        let address = address.trim().parse().context("the baseline did not start")?;
        Ok(Self { address, _child: Guarded(child), _redis: redis })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same request as the program gets, of a code of this name.
    pub(crate) fn request(code: &str) -> anyhow::Result<Request> {
        Request::new("/", ADMIN_KEY, &redemption_body(code, None))
    }
}

/// What a request says that the sentinels stand for. They are as long as what takes their place.
const USER: &str = "sentinel-abc";
const KEY: &str = "5e171e10-0000-4000-8000-0123456789ab";
const NETWORK: &str = "2001:db8:5e17:1e10";

/// Opens the Redis of a server by a service that then stops, and listens how that service calls the script for one
/// request. So the call is the program's own, whatever it looks like.
fn learn_call(server: &RedisServer) -> anyhow::Result<String> {
    let place = Place::new(Some(server.redis.clone()), None)?;
    // Nobody will take anything out of this outbox.
    let service = Service::start(place.with("REDEEMER_GATE__OUTBOX_MAX", 100_000_000))?;
    let redeem = |user: &str, key: &str| -> anyhow::Result<Value> {
        let body = json!({"code": CODE, "user": user, "ip": format!("{NETWORK}::1")}).to_string();
        let mut stream = std::net::TcpStream::connect(service.address)?;
        write!(
            stream,
            "POST /v1/namespaces/default/redemptions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: Bearer {ADMIN_KEY}\r\nContent-Type: application/json\r\nIdempotency-Key: {key}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.starts_with("HTTP/1.1 201"), "the call was not learnt: {answer}");
        Ok(serde_json::from_str(body)?)
    };
    // The first call may carry the script's text.
    redeem("somebody", "somebody")?;
    let mut monitor = UnixStream::connect(server.redis.socket())?;
    monitor.set_read_timeout(Some(Duration::from_secs(10)))?;
    monitor.write_all(b"MONITOR\r\n")?;
    let mut lines = BufReader::new(monitor).lines();
    ensure!(lines.next().transpose()?.as_deref() == Some("+OK"), "Redis does not let us listen");
    let redemption = redeem(USER, KEY)?;
    let id = redemption["id"].as_str().context("a redemption without an id")?;
    let words = loop {
        let line = lines.next().context("the call was not heard")??;
        let words = words(&line);
        let is_script = words.first().is_some_and(|word| word.eq_ignore_ascii_case("EVALSHA"));
        if is_script && words.iter().any(|word| word.contains(USER)) {
            break words;
        }
    };
    let words: Vec<_> = words.into_iter().map(|word| word.replace(id, "{id}")).collect();
    for sentinel in [USER, KEY, NETWORK, "{id}"] {
        ensure!(words.iter().any(|word| word.contains(sentinel)), "the call has no {sentinel}");
    }
    service.stop()?;
    Ok(serde_json::to_string(&words)?)
}

/// The words of a line of MONITOR: each in quotation marks, with escapes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line;
    while let Some(start) = rest.find('"') {
        rest = &rest[start + 1..];
        let mut word = String::new();
        let mut chars = rest.char_indices();
        while let Some((at, char)) = chars.next() {
            match char {
                '"' => {
                    rest = &rest[at + 1..];
                    break;
                }
                '\\' => word.extend(chars.next().map(|(_, char)| char)),
                char => word.push(char),
            }
        }
        words.push(word);
    }
    words
}

#[derive(Deserialize)]
struct Ask {
    code: String,
    user: String,
    ip: String,
}

impl Serve {
    /// Serves until the parent is gone.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        thread::spawn(|| {
            drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
            std::process::exit(0);
        });
        actix_web::rt::System::new().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            say(&listener.local_addr()?.to_string());
            let workers = thread::available_parallelism().map_or(1, usize::from);
            match self.kind {
                Kind::Echo => {
                    let app = || App::new().route("/", web::post().to(echo));
                    HttpServer::new(app).workers(workers).listen(listener)?.run().await?;
                }
                Kind::Checkout => {
                    let call = web::Data::new(ScriptCall::new(&self.url, &self.call)?);
                    let app = move || {
                        App::new().app_data(call.clone()).route("/", web::post().to(checkout))
                    };
                    HttpServer::new(app).workers(workers).listen(listener)?.run().await?;
                }
                Kind::RowLockCount => {
                    let pool = web::Data::new(pool(&self.url).await?);
                    let app =
                        move || App::new().app_data(pool.clone()).route("/", web::post().to(count));
                    HttpServer::new(app).workers(workers).listen(listener)?.run().await?;
                }
                Kind::RowLockCounter => {
                    let pool = web::Data::new(pool(&self.url).await?);
                    let app = move || {
                        App::new().app_data(pool.clone()).route("/", web::post().to(counter))
                    };
                    HttpServer::new(app).workers(workers).listen(listener)?.run().await?;
                }
            }
            Ok(())
        })
    }
}

async fn echo(body: web::Json<Value>) -> HttpResponse {
    HttpResponse::Ok().json(body.into_inner())
}

/// A part of a word of the call.
enum Part {
    Text(String),
    User,
    Key,
    Network,
    Id,
}

/// The call of the script for one request.
struct ScriptCall {
    pool: Pool,
    words: Vec<Vec<Part>>,
}

impl ScriptCall {
    fn new(url: &str, words: &str) -> anyhow::Result<Self> {
        let mut config = deadpool_redis::Config::from_url(url);
        config.pool = Some(deadpool_redis::PoolConfig::new(CONNECTIONS as usize));
        let words: Vec<String> = serde_json::from_str(words)?;
        let words = words.iter().map(|word| parts(word)).collect();
        Ok(Self { pool: config.create_pool(Some(Runtime::Tokio1))?, words })
    }

    fn command(&self, ask: &Ask, key: &str) -> redis::Cmd {
        let id = redeemer::ids::redemption().to_string();
        let mut command = redis::Cmd::new();
        for parts in &self.words {
            let word = parts.iter().fold(String::new(), |word, part| {
                word + match part {
                    Part::Text(text) => text,
                    Part::User => &ask.user,
                    Part::Key => key,
                    Part::Network => &ask.ip[..NETWORK.len()],
                    Part::Id => &id,
                }
            });
            command.arg(word);
        }
        command
    }
}

fn parts(word: &str) -> Vec<Part> {
    let sentinels =
        [(USER, Part::User), (KEY, Part::Key), (NETWORK, Part::Network), ("{id}", Part::Id)];
    for (sentinel, part) in sentinels {
        if let Some((before, after)) = word.split_once(sentinel) {
            let mut all = parts(before);
            all.push(part);
            all.extend(parts(after));
            return all;
        }
    }
    if word.is_empty() { Vec::new() } else { vec![Part::Text(word.to_owned())] }
}

async fn checkout(
    call: web::Data<ScriptCall>,
    request: HttpRequest,
    ask: web::Json<Ask>,
) -> actix_web::Result<HttpResponse> {
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok());
    let command = call.command(&ask, key.unwrap_or_default());
    let mut connection = call.pool.get().await.map_err(ErrorInternalServerError)?;
    let reply: RedisValue =
        command.query_async(&mut connection).await.map_err(ErrorInternalServerError)?;
    let mut told = Vec::new();
    texts(&reply, &mut told);
    if !told.iter().any(|text| text == "granted") {
        return Ok(HttpResponse::InternalServerError().json(told));
    }
    Ok(HttpResponse::Created().json(told))
}

/// The texts of a reply, as deep as they are.
fn texts(reply: &RedisValue, told: &mut Vec<String>) {
    match reply {
        RedisValue::BulkString(bytes) => told.push(String::from_utf8_lossy(bytes).into_owned()),
        RedisValue::SimpleString(text) => told.push(text.clone()),
        RedisValue::Array(values) => values.iter().for_each(|value| texts(value, told)),
        _ => {}
    }
}

async fn pool(url: &str) -> sqlx::Result<PgPool> {
    PgPoolOptions::new().max_connections(CONNECTIONS).connect(url).await
}

/// Makes the tables of the row locks, and codes that have been used; returns the database's URL.
pub(crate) fn prepare_rows(server: &PostgresServer, codes: &[String]) -> anyhow::Result<String> {
    let url = server.database("rows")?;
    server.psql(
        "rows",
        "CREATE TABLE invites (id BIGSERIAL PRIMARY KEY, code TEXT NOT NULL UNIQUE, group_name TEXT NOT NULL,
             max_uses BIGINT NOT NULL, uses BIGINT NOT NULL DEFAULT 0, active BOOLEAN NOT NULL DEFAULT TRUE);
         CREATE TABLE memberships (id BIGSERIAL PRIMARY KEY, user_id TEXT NOT NULL UNIQUE, group_name TEXT NOT NULL,
             created_at TIMESTAMPTZ NOT NULL DEFAULT now());
         CREATE TABLE used (id BIGSERIAL PRIMARY KEY, invite BIGINT NOT NULL REFERENCES invites, user_id TEXT NOT NULL,
             created_at TIMESTAMPTZ NOT NULL DEFAULT now());
         CREATE INDEX used_invite ON used (invite)",
    )?;
    for code in codes {
        server.psql(
            "rows",
            &format!(
                "INSERT INTO invites (code, group_name, max_uses, uses)
                     VALUES ('{code}', 'team', 1000000000, {USES_BEFORE});
                 INSERT INTO used (invite, user_id) SELECT invites.id, 'before-' || number
                     FROM invites, generate_series(1, {USES_BEFORE}) AS number WHERE code = '{code}';"
            ),
        )?;
    }
    server.psql("rows", "VACUUM ANALYZE")?;
    Ok(url)
}

/// The classic: lock the invite's row, count its uses, insert a membership and a use, end the invite with its last use.
async fn count(pool: web::Data<PgPool>, ask: web::Json<Ask>) -> actix_web::Result<HttpResponse> {
    let granted = count_in(&pool, &ask).await.map_err(ErrorInternalServerError)?;
    Ok(answer(granted, &ask))
}

async fn count_in(pool: &PgPool, ask: &Ask) -> sqlx::Result<Option<i64>> {
    let mut tx = pool.begin().await?;
    let invite: Option<(i64, String, i64)> = sqlx::query_as(
        "SELECT id, group_name, max_uses FROM invites WHERE code = $1 AND active FOR UPDATE",
    )
    .bind(&ask.code)
    .fetch_optional(&mut *tx)
    .await?;
    let Some((invite, group, uses_max)) = invite else { return Ok(None) };
    let uses: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM used WHERE invite = $1")
        .bind(invite)
        .fetch_one(&mut *tx)
        .await?;
    if uses >= uses_max || !insert(&mut tx, ask, invite, &group).await? {
        return Ok(None);
    }
    if uses + 1 == uses_max {
        sqlx::query("UPDATE invites SET active = FALSE WHERE id = $1")
            .bind(invite)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(Some(uses_max - uses - 1))
}

/// A good row lock: a counter, and the condition in the statement that changes it.
async fn counter(pool: web::Data<PgPool>, ask: web::Json<Ask>) -> actix_web::Result<HttpResponse> {
    let granted = counter_in(&pool, &ask).await.map_err(ErrorInternalServerError)?;
    Ok(answer(granted, &ask))
}

async fn counter_in(pool: &PgPool, ask: &Ask) -> sqlx::Result<Option<i64>> {
    let mut tx = pool.begin().await?;
    let invite: Option<(i64, String, i64)> = sqlx::query_as(
        "UPDATE invites SET uses = uses + 1 WHERE code = $1 AND uses < max_uses
         RETURNING id, group_name, max_uses - uses",
    )
    .bind(&ask.code)
    .fetch_optional(&mut *tx)
    .await?;
    let Some((invite, group, left)) = invite else { return Ok(None) };
    if !insert(&mut tx, ask, invite, &group).await? {
        return Ok(None);
    }
    tx.commit().await?;
    Ok(Some(left))
}

/// Writes membership and use, unless the user is a member already.
async fn insert(
    tx: &mut sqlx::PgTransaction<'_>,
    ask: &Ask,
    invite: i64,
    group: &str,
) -> sqlx::Result<bool> {
    let joined = sqlx::query(
        "INSERT INTO memberships (user_id, group_name) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    )
    .bind(&ask.user)
    .bind(group)
    .execute(&mut **tx)
    .await?;
    if joined.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query("INSERT INTO used (invite, user_id) VALUES ($1, $2)")
        .bind(invite)
        .bind(&ask.user)
        .execute(&mut **tx)
        .await?;
    Ok(true)
}

fn answer(left: Option<i64>, ask: &Ask) -> HttpResponse {
    match left {
        Some(left) => HttpResponse::Created()
            .json(json!({"code": ask.code, "user": ask.user, "remaining": left})),
        None => HttpResponse::Conflict().json(json!({"code": "refused"})),
    }
}
