//! Real servers, each a child in a temporary directory, on a socket or the loopback: the program, redis-server and
//! PostgreSQL. They end when they are dropped, and nothing that ran before is touched.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use redeemer::{
    domain::{Code, CodeCase, Fence, Namespace, Partition, RequestId, UserId},
    gate::{
        Gate, GateOptions,
        key::Keyspace,
        redeem::{Mode, Redeem},
        survey,
        topology::{Tls, Topology},
    },
    ledger::{Ledger, PostgresOptions, SqliteOptions},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::load::{Request, redemption_body};

/// The API key of every service here.
pub(crate) const ADMIN_KEY: &str = "rdm_aaaaaaaaaaaaaaaa_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
/// The invite that everybody redeems.
pub(crate) const CODE: &str = "WELCOME";
/// As by default.
const PREFIX: &str = "rdm";
const PARTITIONS: u16 = 16;
/// How long a state may take to come about.
const PATIENCE: Duration = Duration::from_mins(3);
/// PostgreSQL refuses to run as root; this is whom it runs as then. Source: Debian policy, §9.2.2 (nobody).
const NOBODY: u32 = 65_534;
/// What PostgreSQL's socket is called by; no port is listened on.
const POSTGRES_PORT: u16 = 5432;
/// Of `/proc/<pid>/stat`. Source: proc_pid_stat(5); Linux has shown times in hundredths of a second since 2.6.
const TICKS_PER_SECOND: f64 = 100.0;

/// Waits for a state.
pub(crate) fn wait_until(
    what: &str,
    mut is_so: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    while !is_so()? {
        ensure!(Instant::now() < until, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A new directory that is removed when it is dropped.
pub(crate) fn directory(of: &str) -> anyhow::Result<TempDir> {
    Ok(tempfile::Builder::new().prefix(&format!("rdm-bench-{of}-")).tempdir()?)
}

/// A child that is killed when it is dropped.
pub(crate) struct Guarded(pub(crate) Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status()?;
    ensure!(status.success(), "process {pid} could not be sent {name}");
    Ok(())
}

/// Processor time of a process, in seconds.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name comes in parentheses and may hold anything; what follows are numbers.
    let (_, numbers) = stat.rsplit_once(')').context("/proc says something else")?;
    let ticks = numbers.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
}

/// How Redis keeps what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fsync {
    Always,
    EverySecond,
}

/// What Redis has used and done so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RedisWork {
    /// Processor time in seconds.
    pub(crate) cpu: f64,
    /// That of its children, which rewrite files.
    pub(crate) cpu_children: f64,
    pub(crate) script_calls: f64,
    /// Time in scripts, in seconds.
    pub(crate) scripts: f64,
    /// Time in reading and trimming outboxes, in seconds.
    pub(crate) outbox: f64,
    pub(crate) pings: f64,
}

impl std::ops::Sub for RedisWork {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            cpu: self.cpu - before.cpu,
            cpu_children: self.cpu_children - before.cpu_children,
            script_calls: self.script_calls - before.script_calls,
            scripts: self.scripts - before.scripts,
            outbox: self.outbox - before.outbox,
            pings: self.pings - before.pings,
        }
    }
}

/// A Redis by its socket; somebody else's process.
#[derive(Clone)]
pub(crate) struct Redis {
    socket: PathBuf,
}

impl Redis {
    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn connect(&self) -> anyhow::Result<redis::Connection> {
        Ok(redis::Client::open(self.url())?.get_connection()?)
    }

    pub(crate) fn run<T: redis::FromRedisValue>(&self, words: &[&str]) -> anyhow::Result<T> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        Ok(command.query(&mut self.connect()?)?)
    }

    fn info(&self, section: &str, name: &str) -> anyhow::Result<Option<String>> {
        let text: String = self.run(&["INFO", section])?;
        Ok(field(&text, name).map(ToOwned::to_owned))
    }

    pub(crate) fn work(&self) -> anyhow::Result<RedisWork> {
        let cpu: String = self.run(&["INFO", "cpu"])?;
        let commands: String = self.run(&["INFO", "commandstats"])?;
        let seconds = |name: &str| -> anyhow::Result<f64> {
            Ok(field(&cpu, name).context("INFO says nothing of time")?.parse()?)
        };
        // A command that was never called is not there.
        let stat = |command: &str, name: &str| {
            let stat = field(&commands, &format!("cmdstat_{command}"))?;
            let value = stat.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            value?.parse::<f64>().ok()
        };
        let sum = |commands: &[&str], name: &str| {
            commands.iter().filter_map(|command| stat(command, name)).sum::<f64>()
        };
        let scripts = ["evalsha", "eval"];
        Ok(RedisWork {
            cpu: seconds("used_cpu_user")? + seconds("used_cpu_sys")?,
            cpu_children: seconds("used_cpu_user_children")? + seconds("used_cpu_sys_children")?,
            script_calls: sum(&scripts, "calls"),
            scripts: sum(&scripts, "usec") / 1e6,
            outbox: sum(&["xread", "xtrim", "xrange", "xlen"], "usec") / 1e6,
            pings: sum(&["ping"], "calls"),
        })
    }

    pub(crate) fn used_memory(&self) -> anyhow::Result<f64> {
        Ok(self.info("memory", "used_memory")?.context("INFO says nothing of memory")?.parse()?)
    }
}

/// A value of INFO.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

/// A redis-server of one's own.
pub(crate) struct RedisServer {
    pub(crate) redis: Redis,
    _child: Guarded,
    _directory: TempDir,
}

impl RedisServer {
    pub(crate) fn start(fsync: Fsync) -> anyhow::Result<Self> {
        let directory = directory("redis")?;
        let socket = directory.path().join("s");
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "yes"])
            .args(["--hash-max-listpack-value", "256", "--unixsocket"])
            .arg(&socket)
            .args(["--appendfsync", if fsync == Fsync::Always { "always" } else { "everysec" }])
            // As the embedded one has it.
            .args(["--auto-aof-rewrite-min-size", "256mb", "--enable-debug-command", "yes"])
            .arg("--logfile")
            .arg(directory.path().join("log"))
            .arg("--dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting redis-server")?;
        let server =
            Self { redis: Redis { socket }, _child: Guarded(child), _directory: directory };
        wait_until("redis-server answers", || Ok(server.redis.run::<String>(&["PING"]).is_ok()))?;
        Ok(server)
    }
}

/// PostgreSQL as it comes, but for the number of connections.
pub(crate) struct PostgresServer {
    child: Child,
    directory: TempDir,
}

impl PostgresServer {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let directory = directory("postgres")?;
        if is_root() {
            std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY))?;
        }
        let made = postgres_program("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"])
            .args(["--no-sync", "--pgdata"])
            .arg(directory.path().join("data"))
            .output()
            .context("running initdb; is PostgreSQL installed? (scripts/setup test)")?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let log = File::create(directory.path().join("log"))?;
        let child = postgres_program("postgres")
            .arg("-D")
            .arg(directory.path().join("data"))
            .arg("-k")
            .arg(directory.path())
            .args(["-p", &POSTGRES_PORT.to_string()])
            .args(["-c", "listen_addresses=", "-c", "max_connections=300"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let server = Self { child, directory };
        wait_until("PostgreSQL answers", || Ok(server.psql("postgres", "SELECT 1").is_ok()))?;
        Ok(server)
    }

    /// A new database; returns its URL.
    pub(crate) fn database(&self, name: &str) -> anyhow::Result<String> {
        self.psql("postgres", &format!("CREATE DATABASE {name}"))?;
        let directory = self.directory.path().display();
        Ok(format!("postgres://postgres@localhost:{POSTGRES_PORT}/{name}?host={directory}"))
    }

    /// Runs statements; returns what they print.
    pub(crate) fn psql(&self, database: &str, statements: &str) -> anyhow::Result<String> {
        let output = postgres_program("psql")
            .args(["-U", "postgres", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(["-p", &POSTGRES_PORT.to_string(), "-h"])
            .arg(self.directory.path())
            .args(["-d", database, "-c", statements])
            .output()?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // At once, and its processes with it.
        drop(signal(self.child.id(), "QUIT"));
        drop(self.child.wait());
    }
}

/// A program of PostgreSQL, also one of those that Debian keeps out of PATH, to be run by somebody whom it accepts.
fn postgres_program(name: &str) -> Command {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut paths: Vec<_> = versions.map(|version| version.path().join("bin").join(name)).collect();
    paths.sort();
    let found = paths.into_iter().rev().find(|path| path.exists());
    let mut command = Command::new(found.unwrap_or_else(|| PathBuf::from(name)));
    command.current_dir("/");
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where a service keeps what it has, and how it is set.
pub(crate) struct Place {
    /// Nothing: the embedded default, with its own Redis and SQLite.
    pub(crate) redis: Option<Redis>,
    /// Nothing: SQLite in the directory.
    pub(crate) ledger: Option<String>,
    pub(crate) settings: Vec<(&'static str, String)>,
    directory: TempDir,
    has_invite: bool,
}

impl Place {
    pub(crate) fn new(redis: Option<Redis>, ledger: Option<String>) -> anyhow::Result<Self> {
        let settings = Vec::new();
        Ok(Self { redis, ledger, settings, directory: directory("node")?, has_invite: false })
    }

    /// Without rate limits in its namespace.
    pub(crate) fn without_limits(mut self) -> Self {
        self.settings = vec![("REDEEMER_RATE_LIMIT__ENABLED", "false".to_owned())];
        self
    }

    pub(crate) fn with(mut self, name: &'static str, value: u64) -> Self {
        self.settings.push((name, value.to_string()));
        self
    }

    /// The Redis that it uses; the embedded one is there only while the service runs.
    pub(crate) fn redis(&self) -> Redis {
        let embedded = || Redis { socket: self.directory.path().join("redis/redis.sock") };
        self.redis.clone().unwrap_or_else(embedded)
    }

    fn ledger_path(&self) -> PathBuf {
        self.directory.path().join("ledger.sqlite")
    }

    fn log_end(&self) -> String {
        let text = std::fs::read_to_string(self.directory.path().join("node.log"));
        let text = text.unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// The program, running.
pub(crate) struct Service {
    /// The first to be dropped: it needs the directory of the place.
    process: Process,
    pub(crate) place: Place,
    pub(crate) address: SocketAddr,
    /// When it had said that it is ready.
    pub(crate) ready_at: Instant,
}

/// The program's process. A killed one leaves its embedded Redis behind for the next one; here there may be none.
struct Process {
    child: Child,
    embedded: Option<Redis>,
    stopped: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        drop(self.child.kill());
        drop(self.child.wait());
        if let Some(redis) = &self.embedded {
            drop(redis.run::<()>(&["SHUTDOWN", "NOSAVE"]));
        }
    }
}

impl Service {
    /// Starts it and waits until it is ready, with its invite made.
    pub(crate) fn start(place: Place) -> anyhow::Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(place.directory.path().join("node.log"))?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_redeemer"));
        for (name, _) in std::env::vars() {
            if name.starts_with("REDEEMER_") || name == "REDIS_URL" || name == "DATABASE_URL" {
                command.env_remove(name);
            }
        }
        command
            .current_dir(place.directory.path())
            .env("REDEEMER_DATA__DIR", place.directory.path())
            .env("REDEEMER_HTTP__BIND", address.to_string())
            .env("REDEEMER_AUTH__ADMIN_KEY", ADMIN_KEY)
            .envs(place.settings.iter().map(|(name, value)| (*name, value)));
        if let Some(redis) = &place.redis {
            command.env("REDEEMER_REDIS__URL", redis.url());
        }
        if let Some(url) = &place.ledger {
            command.env("REDEEMER_LEDGER__URL", url);
        }
        let mut child =
            command.arg("serve").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut out = BufReader::new(child.stdout.take().context("no standard output")?);
        let embedded = place.redis.is_none().then(|| place.redis());
        let process = Process { child, embedded, stopped: false };
        let mut service = Self { process, place, address, ready_at: Instant::now() };
        let mut line = String::new();
        while !line.contains("is ready") {
            line.clear();
            if out.read_line(&mut line)? == 0 {
                bail!("the service did not start:\n{}", service.place.log_end());
            }
        }
        service.ready_at = Instant::now();
        // Whatever else it prints must not fill the pipe.
        thread::spawn(move || out.lines().map_while(Result::ok).for_each(drop));
        if !service.place.has_invite {
            let invite = json!({"code": CODE, "group": "team", "max_uses": 1_000_000_000_u64});
            let (status, body) =
                service.ask("POST", "/v1/namespaces/default/invites", Some(&invite))?;
            ensure!(status == 201, "the invite was not made: {status} {body}");
            service.place.has_invite = true;
        }
        Ok(service)
    }

    pub(crate) fn redis(&self) -> Redis {
        self.place.redis()
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(mut self) -> anyhow::Result<Place> {
        let Process { child, stopped, .. } = &mut self.process;
        signal(child.id(), "TERM")?;
        let status = child.wait()?;
        *stopped = status.success();
        ensure!(status.success(), "the service ended with {status}:\n{}", self.place.log_end());
        Ok(self.place)
    }

    /// Processor time in seconds.
    pub(crate) fn cpu(&self) -> anyhow::Result<f64> {
        cpu_seconds(self.process.child.id())
    }

    /// One request with the admin key.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        ask(self.address, method, path, body)
    }

    /// Changes that the ledger does not have yet.
    pub(crate) fn backlog(&self) -> anyhow::Result<u64> {
        self.redis().run(&["XLEN", &keys().outbox(partition())])
    }

    /// Waits until the ledger has everything.
    pub(crate) fn wait_until_synced(&self) -> anyhow::Result<()> {
        wait_until("the ledger has everything", || Ok(self.backlog()? == 0))
    }

    /// Its ledger, opened once more.
    pub(crate) async fn ledger(&self) -> anyhow::Result<Ledger> {
        Ok(match &self.place.ledger {
            Some(url) => {
                let options = PostgresOptions {
                    url: url.as_str().into(),
                    connections_max: 4,
                    connect_timeout: Duration::from_secs(10),
                    idle_timeout: Duration::from_secs(10),
                };
                Ledger::open_postgres(&options).await?
            }
            None => {
                let options = SqliteOptions {
                    path: self.place.ledger_path(),
                    connections_max: 1,
                    busy_timeout: Duration::from_secs(10),
                };
                Ledger::open_sqlite(&options).await?
            }
        })
    }
}

/// How every service here names its keys.
pub(crate) fn keys() -> Keyspace {
    Keyspace::new(PREFIX, PARTITIONS)
}

/// Where everything of the load happens.
pub(crate) fn partition() -> Partition {
    keys().partition_of(&Namespace::default_namespace())
}

/// A gate in this process, on a Redis whose partitions a service has opened. Its lanes run on the current runtime.
pub(crate) async fn open_gate(redis: &Redis, batch_max: usize) -> anyhow::Result<Gate> {
    let options = GateOptions {
        topology: Topology::parse(&redis.url(), &Tls::default()).map_err(anyhow::Error::msg)?,
        key_prefix: PREFIX.to_owned(),
        partitions: PARTITIONS,
        connect_timeout: Duration::from_secs(5),
        reply_timeout: Duration::from_secs(30),
        pool_size: 4,
        connections: 1,
        batch_max,
        queue_max: 100_000,
        replicas: 0,
        deadline: Duration::from_mins(1),
        outbox_max: 100_000_000,
        clock_ms: None,
    };
    let (gate, lanes) = Gate::new(options)?;
    tokio::spawn(lanes);
    let survey = survey::run(&gate, partition()).await?;
    let meta = survey.meta.context("the partition was never opened")?;
    let (deployment, epoch) = (meta.deployment, meta.cursor.epoch);
    gate.set_fence(partition(), Some(Fence { deployment, lineage: survey.lineage, epoch }));
    Ok(gate)
}

/// A redemption as a handler would ask for it; none is like another.
pub(crate) fn question(number: u64) -> anyhow::Result<Redeem> {
    Ok(Redeem {
        namespace: Namespace::default_namespace(),
        code: Code::parse(CODE, CodeCase::Insensitive)?,
        user: Some(UserId::parse(&format!("b{number:011}"))?),
        ip: None,
        email_domain: None,
        caller: "benchmark".to_owned(),
        mode: Mode::Redeem {
            request: RequestId::parse(&format!("01a20967-45a7-7482-bb99-{number:012}"))?,
            redemption: redeemer::ids::redemption(),
            metadata: None,
            reservation: None,
        },
    })
}

/// The redemption that the load asks a service for.
pub(crate) fn redemption(durability: Option<&str>) -> anyhow::Result<Request> {
    let body = redemption_body(CODE, durability);
    Request::new("/v1/namespaces/default/redemptions", ADMIN_KEY, &body)
}

/// One request with the admin key, over a connection of its own.
pub(crate) fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<(u16, Value)> {
    let body = body.map(ToString::to_string).unwrap_or_default();
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMIN_KEY}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(&answer)? else {
        bail!("{path} was not answered")
    };
    let status = response.code.context("an answer without a status")?;
    Ok((status, serde_json::from_slice(&answer[head..]).unwrap_or(Value::Null)))
}

/// Waits until a Redis has loaded its data, looking often; returns since when.
pub(crate) fn wait_until_loaded(socket: &Path) -> Instant {
    loop {
        let answer = UnixStream::connect(socket).and_then(|mut stream| {
            stream.write_all(b"PING\r\n")?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer)?;
            Ok(answer)
        });
        if answer.is_ok_and(|answer| &answer == b"+PONG") {
            return Instant::now();
        }
        thread::sleep(Duration::from_micros(500));
    }
}
