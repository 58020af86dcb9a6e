//! A redis-server of one's own.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;

use super::{eventually, node::signal};

/// A server in a temporary directory, on a unix socket; gone when it is dropped.
pub struct RedisServer {
    directory: TempDir,
    options: Vec<String>,
    child: Child,
}

/// Everything that a Redis holds, as text: names of keys, and what each has.
pub async fn keys_and_values(socket: &Path) -> String {
    let url = format!("unix://{}", socket.display());
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
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
        Self::start_with(&[]).await
    }

    /// With more options, such as `--port 7001`.
    pub async fn start_with(options: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("rdm-redis-").tempdir().unwrap();
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let child = spawn(&directory, &options);
        let server = Self { directory, options, child };
        server.wait().await;
        server
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub async fn connect(&self) -> MultiplexedConnection {
        self.try_connect().await.unwrap()
    }

    async fn try_connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        redis::Client::open(self.url())?.get_multiplexed_async_connection().await
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

impl Drop for RedisServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
