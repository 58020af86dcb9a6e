//! The program itself, as a child process.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use redeemer::torture::redis::Kind;

use super::{
    ledger,
    redis::{self, RedisServer},
};

/// The admin key of every test's service.
pub const ADMIN_KEY: &str = "rdm_aaaaaaaaaaaaaaaa_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// Where it listens; nothing means anywhere.
pub const BIND: &str = "REDEEMER_HTTP__BIND";

/// What a node shares with others, and the settings that differ from the defaults.
#[derive(Clone, Default)]
pub struct Settings {
    pub redis_url: Option<String>,
    /// The URL of the ledger; nothing means one of its own.
    pub ledger: Option<String>,
    pub env: Vec<(&'static str, String)>,
}

/// A running node; killed when it is dropped.
pub struct Node {
    pub url: String,
    banner: String,
    child: Child,
    http: reqwest::Client,
    directory: Directory,
    ledger_url: String,
    /// One of its own that is not embedded.
    redis: Option<RedisServer>,
}

enum Directory {
    Own(TempDir),
    Shared(PathBuf),
}

impl Directory {
    fn path(&self) -> &Path {
        match self {
            Self::Own(directory) => directory.path(),
            Self::Shared(path) => path,
        }
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Reply {
    /// The problem's code, or nothing.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

impl Node {
    /// A node with its own embedded Redis in a directory of its own; where tests run with another kind of Redis, with one
    /// of that kind.
    pub fn embedded() -> Self {
        Self::start(&Settings::default())
    }

    pub fn start(settings: &Settings) -> Self {
        let directory = tempfile::Builder::new().prefix("rdm-node-").tempdir().unwrap();
        let mut settings = settings.clone();
        let own = settings.redis_url.is_none() && redis::kind() != Kind::Standalone;
        let redis = own.then(RedisServer::start_now);
        if let Some(redis) = &redis {
            // There the commands that are run beside the node find it too.
            let file = format!("[redis]\nurl = \"{}\"\n", redis.url());
            std::fs::write(directory.path().join("redeemer.toml"), file).unwrap();
            settings.redis_url = Some(redis.url());
        }
        let mut node = Self::start_in(Directory::Own(directory), &settings);
        node.redis = redis;
        node
    }

    /// In a directory that outlives the node.
    pub fn start_at(path: &Path, settings: &Settings) -> Self {
        Self::start_in(Directory::Shared(path.to_owned()), settings)
    }

    fn start_in(directory: Directory, settings: &Settings) -> Self {
        let mut command = command(directory.path(), settings);
        if !settings.env.iter().any(|(name, _)| *name == BIND) {
            command.env(BIND, "127.0.0.1:0");
        }
        let log = File::create(directory.path().join("node.log")).unwrap();
        let mut child = command
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        // The banner comes when the node is ready.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut banner = String::new();
        for line in &mut lines {
            banner = banner + &line + "\n";
            if line.contains("HGETALL") {
                break;
            }
        }
        let url = banner.lines().find_map(|line| line.trim().strip_prefix("address"));
        let url = url.map(|url| url.trim().to_owned());
        let Some(url) = url else {
            let log =
                std::fs::read_to_string(directory.path().join("node.log")).unwrap_or_default();
            panic!("the node did not start:\n{log}");
        };
        // Whatever else it prints must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let ledger_url = ledger_url(directory.path(), settings);
        Self { url, banner, child, http: http_client(), directory, ledger_url, redis: None }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where its ledger is.
    pub fn ledger_url(&self) -> String {
        self.ledger_url.clone()
    }

    /// What it printed when it was ready.
    pub fn banner(&self) -> &str {
        &self.banner
    }

    /// The whole lines that stand in its log by now. A thread of its own writes it, so the lines of
    /// a request that was answered may come yet: [`Node::whole_log`] waits for them.
    pub fn log(&self) -> String {
        let mut log =
            std::fs::read_to_string(self.directory.path().join("node.log")).unwrap_or_default();
        log.truncate(log.rfind('\n').map_or(0, |end| end + 1));
        log
    }

    /// The log with all lines of what it has answered so far: lines are written in order, so they
    /// are there when the line of one more request is. Needs a log of level `info` at least.
    pub async fn whole_log(&self) -> String {
        let last = send(self.bare(Method::GET, "/nothing-here")).await.unwrap();
        let id = last.body["request_id"].as_str().unwrap();
        super::eventually("the log has come so far", async || self.log().contains(id)).await;
        self.log()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it without a warning.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, and waits until it has; returns its exit code.
    pub async fn stop(mut self) -> i32 {
        signal(self.child.id(), "TERM");
        tokio::task::spawn_blocking(move || self.child.wait().unwrap().code().unwrap())
            .await
            .unwrap()
    }

    /// A request with the admin key.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(ADMIN_KEY)
    }

    /// A request without a key.
    pub fn bare(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    pub async fn get(&self, path: &str) -> Reply {
        send(self.request(Method::GET, path)).await.unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(Method::POST, path, body).await
    }

    pub async fn send(&self, method: Method, path: &str, body: &Value) -> Reply {
        send(json_body(self.request(method, path), body)).await.unwrap()
    }

    pub async fn delete(&self, path: &str) -> Reply {
        send(self.request(Method::DELETE, path)).await.unwrap()
    }

    /// The sum of all series of a metric that have these labels, such as `outcome="granted"`; nothing if there is none.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let text = self.get("/metrics").await.text;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let values = lines.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (own, of) = series.split_once('{').unwrap_or((series, ""));
            let fits = own == name && labels.iter().all(|label| of.contains(label));
            fits.then(|| value.parse::<f64>().unwrap())
        });
        values.reduce(|sum, value| sum + value)
    }

    /// Waits until a metric is as it should be.
    pub async fn until_metric(&self, name: &str, labels: &[&str], fits: impl Fn(f64) -> bool) {
        super::eventually(&format!("{name} is so"), async || {
            self.metric(name, labels).await.is_some_and(&fits)
        })
        .await;
    }

    /// Waits until the ledger has the namespace `default`, which a first start makes.
    pub async fn until_ledger_has_default(&self) {
        super::eventually("the ledger has the namespace default", async || {
            self.get("/v1/namespaces").await.body["data"][0] != Value::Null
        })
        .await;
    }

    /// Makes an invite in the namespace `default`; returns its id.
    pub async fn invite(&self, code: &str, group: &str, max_uses: u64) -> String {
        let body = json!({"code": code, "group": group, "max_uses": max_uses});
        let made = self.post("/v1/namespaces/default/invites", &body).await;
        assert_eq!(made.status, 201, "{}", made.text);
        made.body["id"].as_str().unwrap().to_owned()
    }

    /// Redeems in the namespace `default`.
    pub async fn redeem(&self, code: &str, user: &str) -> Reply {
        self.post("/v1/namespaces/default/redemptions", &json!({"code": code, "user": user})).await
    }

    /// Redeems with an idempotency key; nothing when no answer came.
    pub async fn try_redeem(&self, code: &str, user: &str, key: &str) -> Option<Reply> {
        let request = self
            .request(Method::POST, "/v1/namespaces/default/redemptions")
            .header("idempotency-key", key);
        send(json_body(request, &json!({"code": code, "user": user}))).await.ok()
    }
}

pub fn json_body(request: reqwest::RequestBuilder, body: &Value) -> reqwest::RequestBuilder {
    request.header("content-type", "application/json").body(body.to_string())
}

pub async fn send(request: reqwest::RequestBuilder) -> reqwest::Result<Reply> {
    let response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await?;
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    Ok(Reply { status, headers, body, text })
}

/// A client for what is no node.
pub fn http_client() -> reqwest::Client {
    // Whoever comes first; the others find it done.
    drop(rustls::crypto::ring::default_provider().install_default());
    // A connection that nobody has used yet is closed by a node after ten seconds, with a 408 that a request which is
    // just being sent would take for its answer.
    let idle = std::time::Duration::from_secs(5);
    reqwest::Client::builder().pool_idle_timeout(idle).build().unwrap()
}

/// The program with a test's settings and nothing of the environment that could change them.
pub fn command(directory: &Path, settings: &Settings) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redeemer"));
    for (name, _) in std::env::vars() {
        if name.starts_with("REDEEMER_") || name == "REDIS_URL" || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.current_dir(directory);
    command.env("REDEEMER_DATA__DIR", directory);
    command.env("REDEEMER_AUTH__ADMIN_KEY", ADMIN_KEY);
    // Three times as patient as by default: where all processors are taken an answer may take some seconds.
    command.env("REDEEMER_GATE__DEADLINE_MS", "9000");
    command.env("REDEEMER_HTTP__REQUEST_TIMEOUT_MS", "10000");
    command.env("REDEEMER_REDIS__REPLY_TIMEOUT_MS", "3000");
    if let Some(url) = &settings.redis_url {
        command.env("REDEEMER_REDIS__URL", url);
    }
    command.env("REDEEMER_LEDGER__URL", ledger_url(directory, settings));
    command.envs(settings.env.iter().map(|(name, value)| (*name, value)));
    command
}

fn ledger_url(directory: &Path, settings: &Settings) -> String {
    match (&settings.ledger, &settings.redis_url) {
        (Some(url), _) => url.clone(),
        (None, Some(_)) => ledger::url_in(directory),
        (None, None) => ledger::sqlite_url_in(directory),
    }
}

/// Sends a signal to a process of this test.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the node at {}\n{}", self.url, self.log());
        }
        drop(self.child.kill());
        drop(self.child.wait());
        stop_embedded(self.directory.path());
    }
}

/// A killed node leaves its embedded Redis behind for the next one; after a test there is no next one.
fn stop_embedded(directory: &Path) {
    let socket = directory.join("redis/redis.sock");
    if socket.exists() {
        drop(Command::new("redis-cli").arg("-s").arg(socket).args(["SHUTDOWN", "NOSAVE"]).output());
    }
}
