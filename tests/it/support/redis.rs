//! A redis-server of one's own: as it is, or with `TEST_REDIS=sentinel` behind a sentinel, or with `TEST_REDIS=cluster` as
//! a cluster of one. Failovers have tests of their own, with replicas.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use redeemer::torture::redis::{Kind, PRIMARY_NAME, next_place};
use redis::{ConnectionLike as _, aio::MultiplexedConnection};
use tempfile::TempDir;

use super::{eventually, node::signal, wait_until};

/// A server in a temporary directory, on a unix socket; gone when it is dropped.
pub struct RedisServer {
    directory: TempDir,
    options: Vec<String>,
    child: Child,
    url: String,
    sentinel: Option<Child>,
}

/// What kind of Redis a test gets.
pub fn kind() -> Kind {
    match std::env::var("TEST_REDIS").as_deref() {
        Ok("sentinel") => Kind::Sentinel,
        Ok("cluster") => Kind::Cluster,
        Ok("standalone") | Err(_) => Kind::Standalone,
        Ok(other) => panic!("TEST_REDIS is standalone, sentinel or cluster, not {other}"),
    }
}

async fn connect_to(socket: &Path) -> redis::RedisResult<MultiplexedConnection> {
    let url = format!("unix://{}", socket.display());
    // However long it takes: a busy machine is no fault.
    let patient =
        redis::AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&patient).await
}

/// Everything that a Redis holds, as text: names of keys, and what each has.
pub async fn keys_and_values(socket: &Path) -> String {
    let mut connection = connect_to(socket).await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
    let mut all = Vec::new();
    for key in keys {
        let kind: String = redis::cmd("TYPE").arg(&key).query_async(&mut connection).await.unwrap();
        let command = match kind.as_str() {
            "hash" => vec!["HGETALL", &key],
            "zset" => vec!["ZRANGE", &key, "0", "-1", "WITHSCORES"],
            "stream" => vec!["XRANGE", &key, "-", "+"],
            _ => vec!["GET", &key],
        };
        let mut sent = redis::cmd(command[0]);
        sent.arg(&command[1..]);
        let value: redis::Value = sent.query_async(&mut connection).await.unwrap();
        all.push(format!("{key}: {}", text_of(&value)));
    }
    all.join("\n")
}

fn text_of(value: &redis::Value) -> String {
    match value {
        redis::Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        redis::Value::Array(values) => values.iter().map(text_of).collect::<Vec<_>>().join(" "),
        redis::Value::Map(pairs) => {
            pairs.iter().map(|(a, b)| text_of(a) + " " + &text_of(b)).collect::<Vec<_>>().join(" ")
        }
        other => format!("{other:?}"),
    }
}

impl RedisServer {
    pub async fn start() -> Self {
        tokio::task::spawn_blocking(Self::start_now).await.unwrap()
    }

    /// As [`Self::start`], where there is no runtime.
    pub fn start_now() -> Self {
        let place = next_place();
        let (ip, port) = (place.ip().to_string(), place.port().to_string());
        let listen = ["--bind", &ip, "--protected-mode", "no", "--port", &port];
        let directory = new_directory();
        let (options, url) = match kind() {
            Kind::Standalone => (Vec::new(), None),
            Kind::Sentinel => {
                let sentinel = next_place();
                let config = format!(
                    "port {}\nbind {ip}\nprotected-mode no\ndir {}\nsentinel monitor {PRIMARY_NAME} {ip} {port} 1\n\
                     sentinel down-after-milliseconds {PRIMARY_NAME} 3600000\n",
                    sentinel.port(),
                    directory.path().display(),
                );
                std::fs::write(directory.path().join("sentinel.conf"), config).unwrap();
                (
                    listen.to_vec(),
                    Some(format!("redis-sentinel://{sentinel}?master={PRIMARY_NAME}")),
                )
            }
            Kind::Cluster => {
                let options = [&listen[..], &["--cluster-enabled", "yes"]].concat();
                (options, Some(format!("redis-cluster://{place}")))
            }
        };
        let mut server = Self::spawn(directory, &options);
        let client = redis::Client::open(server.url()).unwrap();
        let sync = || client.get_connection();
        wait_until("redis-server answers", || sync().is_ok_and(|mut it| it.check_connection()));
        if kind() == Kind::Sentinel {
            let child = Command::new("redis-server")
                .arg(server.directory.path().join("sentinel.conf"))
                .arg("--sentinel")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn();
            server.sentinel = Some(child.unwrap());
            let place = url.as_deref().and_then(|url| url.split(['/', '?']).nth(2)).unwrap();
            let client = redis::Client::open(format!("redis://{place}")).unwrap();
            let ask = || client.get_connection();
            wait_until("the sentinel answers", || ask().is_ok_and(|mut it| it.check_connection()));
        }
        if kind() == Kind::Cluster {
            let mut connection = sync().unwrap();
            let mut slots = redis::cmd("CLUSTER");
            slots.arg("ADDSLOTSRANGE").arg(0).arg(16_383).exec(&mut connection).unwrap();
            wait_until("the cluster serves", || {
                let info = redis::cmd("CLUSTER").arg("INFO").query::<String>(&mut connection);
                info.unwrap().contains("cluster_state:ok")
            });
        }
        if let Some(url) = url {
            server.url = url;
        }
        server
    }

    /// One server, whatever kind the other tests get: a proxy stands before one.
    pub async fn plain() -> Self {
        Self::start_with(&[]).await
    }

    /// With more options, such as `--port 7001`; of the plain kind.
    pub async fn start_with(options: &[&str]) -> Self {
        let server = Self::spawn(new_directory(), options);
        server.wait().await;
        server
    }

    fn spawn(directory: TempDir, options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let child = spawn(&directory, &options);
        let url = format!("unix://{}", directory.path().join("s").display());
        Self { directory, options, child, url, sentinel: None }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// How nodes find it.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    pub async fn connect(&self) -> MultiplexedConnection {
        self.try_connect().await.unwrap()
    }

    async fn try_connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        connect_to(&self.socket()).await
    }

    /// Runs one command.
    pub async fn run<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut sent = redis::cmd(command[0]);
        sent.arg(&command[1..]);
        sent.query_async(&mut self.connect().await).await.unwrap()
    }

    /// Kills it without a warning; the page cache of the machine survives.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on what it has left behind.
    pub async fn restart(&mut self) {
        self.child = spawn(&self.directory, &self.options);
        self.wait().await;
    }

    /// The file to which it appends what has changed since it was started (`--appendonly yes`).
    pub fn append_only_file(&self) -> PathBuf {
        let files = std::fs::read_dir(self.directory.path().join("appendonlydir")).unwrap();
        let mut paths = files.map(|file| file.unwrap().path());
        paths.find(|path| path.to_string_lossy().ends_with(".incr.aof")).unwrap()
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Puts an entry of this type into an outbox, so many places behind the last one, as a script would: at once. Returns
    /// its place.
    pub async fn append_to_outbox(
        &self,
        meta: &str,
        outbox: &str,
        step: &str,
        kind: &str,
    ) -> String {
        let script = "local seq = redis.call('HINCRBY', KEYS[1], 'seq', ARGV[1])
            return redis.call('XADD', KEYS[2], redis.call('HGET', KEYS[1], 'epoch') .. '-' .. seq, 'type', ARGV[2])";
        self.run(&["EVAL", script, "2", meta, outbox, step, kind]).await
    }

    /// How often a command was called, from INFO commandstats.
    pub async fn calls(&self, command: &str) -> u64 {
        let info: String = self.run(&["INFO", "commandstats"]).await;
        let prefix = format!("cmdstat_{command}:calls=");
        let line = info.lines().find_map(|line| line.strip_prefix(&prefix));
        line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or_default()
    }

    async fn wait(&self) {
        eventually("redis-server answers", async || match self.try_connect().await {
            Ok(mut connection) => redis::cmd("PING").exec_async(&mut connection).await.is_ok(),
            Err(_) => false,
        })
        .await;
    }
}

fn spawn(directory: &TempDir, options: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--enable-debug-command", "yes", "--unixsocket"])
        .arg(directory.path().join("s"))
        .arg("--dir")
        .arg(directory.path())
        .arg("--logfile")
        .arg(directory.path().join("log"))
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn new_directory() -> TempDir {
    tempfile::Builder::new().prefix("rdm-redis-").tempdir().unwrap()
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        for child in [&mut self.child].into_iter().chain(&mut self.sentinel) {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
