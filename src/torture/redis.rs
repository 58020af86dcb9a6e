//! Redis of each kind, as children of this process: one server, a primary with replicas and sentinels, or a cluster.
//!
//! Servers that find each other have to listen somewhere: on an address of 127.0.0.0/8 that belongs to this process, so
//! that nobody else takes a port away.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use redis::{AsyncConnectionConfig, FromRedisValue, RedisResult, aio::MultiplexedConnection};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Counts, PATIENCE, TortureError, ended_alone,
    faults::{Fault, Strike},
};
use crate::{domain::Partition, gate::key::Keyspace};

/// How often a state is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How long a server may take to carry out a command, such as to move a slot's keys.
const ANSWERS_WITHIN: Duration = Duration::from_mins(1);
/// How long a server is asked what it is; after that it counts as one that stands still.
const LOOKS_WITHIN: Duration = Duration::from_millis(500);

/// As by default.
const KEY_PREFIX: &str = "rdm";
/// What sentinels call the primary.
pub const PRIMARY_NAME: &str = "gate";
/// How many sentinels there are; two of them must agree.
const SENTINELS: usize = 3;
/// How long a server may be silent until it counts as down, in ms. Short, so that more happens in a minute.
const DOWN_AFTER_MS: u64 = 500;
/// Primaries of a cluster; each has one replica.
const PRIMARIES: usize = 3;
/// The slots of a cluster.
const SLOTS: usize = 16_384;
/// The port of the first server; those of the cluster's bus are higher by 10,000.
const FIRST_PORT: u16 = 7000;

/// The kinds of Redis that a gate can run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// One server.
    Standalone,
    /// A primary, two replicas and three sentinels.
    Sentinel,
    /// Three primaries, each with a replica.
    Cluster,
}

/// How servers are started.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The redis-server.
    pub program: PathBuf,
    /// Below it each server has a directory.
    pub directory: PathBuf,
    /// More lines of the configuration of each server that holds data.
    pub server_lines: Vec<String>,
    /// More lines of each sentinel's configuration.
    pub sentinel_lines: Vec<String>,
    /// Whether ports are for TLS; the files are named by the lines.
    pub tls: bool,
}

impl Setup {
    /// Plain servers in a directory.
    #[must_use]
    pub fn new(program: &Path, directory: &Path) -> Self {
        Self {
            program: program.to_owned(),
            directory: directory.to_owned(),
            server_lines: Vec::new(),
            sentinel_lines: Vec::new(),
            tls: false,
        }
    }

    /// A server that holds data; with a place, it listens there too.
    fn server(
        &self,
        name: &str,
        place: Option<SocketAddrV4>,
        lines: &[String],
    ) -> Result<Server, TortureError> {
        // A process that is killed loses nothing of what it wrote; only the machine could. The rest is as in the
        // embedded default.
        let own = "save \"\"\nappendonly yes\nappendfsync always\nmaxmemory-policy noeviction\n\
                   auto-aof-rewrite-min-size 256mb\nrepl-diskless-sync-delay 0";
        let lines =
            [own].into_iter().chain(lines.iter().chain(&self.server_lines).map(String::as_str));
        self.start(name, place, lines, None)
    }

    fn sentinel(&self, name: &str, primary: SocketAddrV4) -> Result<Server, TortureError> {
        let (ip, port) = (primary.ip(), primary.port());
        let own = format!(
            "sentinel monitor {PRIMARY_NAME} {ip} {port} 2\n\
             sentinel down-after-milliseconds {PRIMARY_NAME} {DOWN_AFTER_MS}\n\
             sentinel failover-timeout {PRIMARY_NAME} 1000"
        );
        let lines =
            [own.as_str()].into_iter().chain(self.sentinel_lines.iter().map(String::as_str));
        self.start(name, Some(next_place()), lines, Some("--sentinel"))
    }

    fn start<'a>(
        &self,
        name: &str,
        place: Option<SocketAddrV4>,
        lines: impl Iterator<Item = &'a str>,
        option: Option<&'static str>,
    ) -> Result<Server, TortureError> {
        let directory = self.directory.join(name);
        std::fs::create_dir_all(&directory)
            .map_err(|cause| TortureError::io("making", &directory, cause))?;
        let shown = directory.display();
        let listens = match place {
            Some(place) => {
                let port = if self.tls { "port 0\ntls-port" } else { "port" };
                let (ip, number) = (place.ip(), place.port());
                // Others find it where its connections come from.
                format!("bind {ip}\nbind-source-addr {ip}\nprotected-mode no\n{port} {number}")
            }
            None => "port 0".to_owned(),
        };
        let own =
            format!("dir {shown}\nlogfile {shown}/redis.log\nunixsocket {shown}/s\n{listens}");
        let config = lines.fold(own, |config, line| config + "\n" + line) + "\n";
        // What it learns of others, it writes there too.
        let path = directory.join("redis.conf");
        std::fs::write(&path, config).map_err(|cause| TortureError::io("writing", &path, cause))?;
        let mut command = vec![self.program.clone(), path];
        command.extend(option.map(PathBuf::from));
        let child = spawn(&command)?;
        Ok(Server { command, directory, place, child })
    }
}

/// A place to listen that nobody else on this machine will take.
pub fn next_place() -> SocketAddrV4 {
    static NEXT_PORT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    // Process ids have at most 22 bits. Source: proc(5), /proc/sys/kernel/pid_max.
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 128 + high % 64, middle, low);
    SocketAddrV4::new(address, NEXT_PORT.fetch_add(1, Ordering::Relaxed))
}

/// A redis-server or a sentinel; killed when it is dropped.
pub struct Server {
    /// The program and its options.
    command: Vec<PathBuf>,
    directory: PathBuf,
    place: Option<SocketAddrV4>,
    child: Child,
}

impl Server {
    /// Its unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("s")
    }

    /// Where others find it: `host:port`; empty when it listens on its socket alone.
    #[must_use]
    pub fn place(&self) -> String {
        self.place.map(|place| place.to_string()).unwrap_or_default()
    }

    /// A connection over its socket, on which it has some seconds for each answer.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let url = format!("unix://{}", self.socket().display());
        let patient = AsyncConnectionConfig::new()
            .set_response_timeout(Some(ANSWERS_WITHIN))
            .set_connection_timeout(Some(ANSWERS_WITHIN));
        redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&patient).await
    }

    /// Whether it answers, and is a primary; one that stands still does not.
    async fn is_primary(&self) -> bool {
        let info = tokio::time::timeout(LOOKS_WITHIN, self.run::<String>(&["INFO", "replication"]));
        info.await.is_ok_and(|info| info.is_ok_and(|info| info.contains("role:master")))
    }

    /// Runs one command over its socket.
    ///
    /// # Errors
    /// When it does not answer, or says no.
    pub async fn run<T: FromRedisValue>(&self, command: &[&str]) -> RedisResult<T> {
        let mut sent = redis::cmd(command[0]);
        sent.arg(&command[1..]).query_async(&mut self.connect().await?).await
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// [`TortureError::EndedAlone`] when it has ended instead, [`TortureError::NeverCame`] when it goes on for ever.
    pub async fn wait(&mut self) -> Result<(), TortureError> {
        let until = Instant::now() + PATIENCE;
        while self.run::<()>(&["PING"]).await.is_err() {
            if let Ok(Some(ended)) = self.child.try_wait() {
                return Err(self.ended(Ok(ended)));
            }
            if Instant::now() >= until {
                return Err(TortureError::NeverCame("redis-server answers".to_owned()));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Kills it without a warning; the page cache of the machine survives.
    ///
    /// # Errors
    /// When it can not be killed.
    pub async fn kill(&mut self) -> Result<(), TortureError> {
        self.child.kill().await.map_err(TortureError::Signal)
    }

    /// Starts it again on what it has left behind.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub async fn start_again(&mut self) -> Result<(), TortureError> {
        self.child = spawn(&self.command)?;
        self.wait().await
    }

    /// Stops it as it is, for so long.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn pause(&self, lasts: Duration) -> Result<(), TortureError> {
        self.signal(Signal::STOP)?;
        tokio::time::sleep(lasts).await;
        self.signal(Signal::CONT)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), TortureError> {
        signal_child(&self.child, signal)
    }

    /// Waits until it has ended by itself, and says so.
    pub(super) async fn ended_alone(&mut self) -> TortureError {
        let ended = self.child.wait().await;
        self.ended(ended)
    }

    /// Waits until it is gone.
    pub(super) async fn stop(&mut self) {
        // One that has ended by itself needs no killing.
        drop(self.child.kill().await);
    }

    fn ended(&self, ended: io::Result<std::process::ExitStatus>) -> TortureError {
        ended_alone("redis-server", ended, &self.directory.join("redis.log"))
    }

    /// Replicas that have all that it had when they came.
    async fn replicas(&self) -> usize {
        let info: RedisResult<String> = self.run(&["INFO", "replication"]).await;
        info.map_or(0, |info| info.matches("state=online").count())
    }
}

fn spawn(command: &[PathBuf]) -> Result<Child, TortureError> {
    Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C is for whoever started it, who stops it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|cause| TortureError::io("starting", &command[0], cause))
}

pub(super) fn signal_child(child: &Child, signal: Signal) -> Result<(), TortureError> {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    let Some(pid) = pid else { return Err(TortureError::Signal(io::ErrorKind::NotFound.into())) };
    kill_process(pid, signal).map_err(|error| TortureError::Signal(error.into()))
}

/// All servers of one Redis.
pub struct Redis {
    kind: Kind,
    /// Those that hold data.
    pub servers: Vec<Server>,
    /// Those that watch over them.
    pub sentinels: Vec<Server>,
}

impl Redis {
    /// Starts all servers; they may not be ready yet.
    ///
    /// # Errors
    /// When a program or a directory can not be used.
    pub fn start(kind: Kind, setup: &Setup) -> Result<Self, TortureError> {
        let (mut servers, mut sentinels) = (Vec::new(), Vec::new());
        match kind {
            Kind::Standalone => {
                let place = setup.tls.then(next_place);
                servers.push(setup.server("redis", place, &[])?);
            }
            Kind::Sentinel => {
                let primary = next_place();
                servers.push(setup.server("redis-0", Some(primary), &[])?);
                let (ip, port) = (primary.ip(), primary.port());
                let lines = [format!("replicaof {ip} {port}")];
                for number in 1..=2 {
                    let name = format!("redis-{number}");
                    servers.push(setup.server(&name, Some(next_place()), &lines)?);
                }
                for number in 0..SENTINELS {
                    sentinels.push(setup.sentinel(&format!("sentinel-{number}"), primary)?);
                }
            }
            Kind::Cluster => {
                let lines = [
                    "cluster-enabled yes".to_owned(),
                    format!("cluster-node-timeout {DOWN_AFTER_MS}"),
                    "cluster-require-full-coverage no".to_owned(),
                    // A replica may win however far behind it is: what that loses is what is asked about.
                    "cluster-replica-validity-factor 0".to_owned(),
                ];
                for number in 0..2 * PRIMARIES {
                    let name = format!("redis-{number}");
                    servers.push(setup.server(&name, Some(next_place()), &lines)?);
                }
            }
        }
        Ok(Self { kind, servers, sentinels })
    }

    /// Waits until they answer, know each other, and every replica follows.
    ///
    /// # Errors
    /// When one ends, or the state never comes about.
    pub async fn wait(&mut self) -> Result<(), TortureError> {
        for server in self.servers.iter_mut().chain(&mut self.sentinels) {
            server.wait().await?;
        }
        match self.kind {
            Kind::Standalone => Ok(()),
            Kind::Sentinel => {
                let all_known = async || {
                    for sentinel in &self.sentinels {
                        let known: RedisResult<std::collections::HashMap<String, String>> =
                            sentinel.run(&["SENTINEL", "MASTER", PRIMARY_NAME]).await;
                        let is = |known: &std::collections::HashMap<String, String>,
                                  name: &str,
                                  count| {
                            known.get(name).is_some_and(|value| *value == format!("{count}"))
                        };
                        if !known.is_ok_and(|known| {
                            is(&known, "num-other-sentinels", SENTINELS - 1)
                                && is(&known, "num-slaves", self.servers.len() - 1)
                        }) {
                            return false;
                        }
                    }
                    // Whoever is the primary by now: on a busy machine there may have been a failover already.
                    self.replicated(self.servers.len() - 1).await == 1
                };
                until("the sentinels know each other and the replicas", all_known).await
            }
            Kind::Cluster => self.join().await,
        }
    }

    /// What `redis.url` is to be, with `login` (`user:password@` or nothing).
    #[must_use]
    pub fn url(&self, tls: bool, login: &str) -> String {
        let s = if tls { "s" } else { "" };
        let places =
            |servers: &[Server]| servers.iter().map(Server::place).collect::<Vec<_>>().join(",");
        match self.kind {
            Kind::Standalone if self.servers[0].place.is_none() => {
                format!("unix://{}", self.servers[0].socket().display())
            }
            Kind::Standalone => format!("redis{s}://{login}{}", places(&self.servers)),
            Kind::Sentinel => format!(
                "redis{s}-sentinel://{login}{}?master={PRIMARY_NAME}",
                places(&self.sentinels)
            ),
            // Some are enough.
            Kind::Cluster => {
                format!("redis{s}-cluster://{login}{}", places(&self.servers[..PRIMARIES]))
            }
        }
    }

    /// Whether a replica takes over when a primary is lost.
    pub(super) fn fails_over(&self) -> bool {
        self.kind != Kind::Standalone
    }

    /// The number of the server that serves a partition now, by the newest word of those that know; nothing while
    /// nobody does.
    pub async fn primary(&self, keys: &Keyspace, partition: Partition) -> Option<usize> {
        match self.kind {
            Kind::Standalone => Some(0),
            Kind::Sentinel => {
                for sentinel in &self.sentinels {
                    let command = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY_NAME];
                    let place = sentinel.run::<Option<(String, u16)>>(&command).await;
                    let Ok(Some((ip, port))) = place else { continue };
                    let at = format!("{ip}:{port}");
                    let known = self.servers.iter().position(|server| server.place() == at);
                    if let Some(number) = known
                        && self.servers[number].is_primary().await
                    {
                        return Some(number);
                    }
                }
                None
            }
            Kind::Cluster => {
                let slot = keys.slot(partition);
                let mut best = None;
                for (number, server) in self.servers.iter().enumerate() {
                    let nodes = server.run::<String>(&["CLUSTER", "NODES"]);
                    let Ok(Ok(text)) = tokio::time::timeout(LOOKS_WITHIN, nodes).await else {
                        continue;
                    };
                    if let Some(epoch) = claim(&text, slot) {
                        best = best.max(Some((epoch, number)));
                    }
                }
                best.map(|(_, number)| number)
            }
        }
    }

    /// Strikes it by a plan until `stop`, then leaves it well.
    pub(super) async fn torment(
        &mut self,
        plan: impl Iterator<Item = Strike>,
        partitions: u16,
        counts: &Counts,
        stop: &CancellationToken,
    ) -> Result<(), TortureError> {
        let keys = Keyspace::new(KEY_PREFIX, partitions);
        for Strike { after, fault, lasts, pick } in plan {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(after) => {}
                ended = self.one_has_ended() => return Err(ended),
            }
            let partition = Partition(u16::try_from(pick).unwrap_or_default() % partitions);
            // While nobody serves it, it needs no fault.
            let Some(primary) = self.primary(&keys, partition).await else { continue };
            let server = &mut self.servers[primary];
            match fault {
                Fault::RedisKilled => {
                    server.kill().await?;
                    tokio::time::sleep(lasts).await;
                    server.start_again().await?;
                }
                Fault::RedisPaused => server.pause(lasts).await?,
                // A server that is too busy to answer has not been struck.
                Fault::ScriptsForgotten if server.run::<()>(&["SCRIPT", "FLUSH"]).await.is_ok() => {
                }
                Fault::RedisEmptied if server.run::<()>(&["FLUSHALL"]).await.is_ok() => {}
                Fault::SentinelKilled => {
                    let number = pick % self.sentinels.len();
                    let sentinel = &mut self.sentinels[number];
                    sentinel.kill().await?;
                    tokio::time::sleep(lasts).await;
                    sentinel.start_again().await?;
                }
                Fault::SlotMoved => self.move_partition(&keys, partition, pick).await?,
                _ => continue,
            }
            counts.struck(fault);
        }
        Ok(())
    }

    /// Moves a partition's slot to one of the other primaries, however often that has to be tried while the cluster
    /// finds out who they are: half of a slot would be served by nobody. `pick` says which one.
    ///
    /// # Errors
    /// When it has not moved after a while.
    pub async fn move_partition(
        &self,
        keys: &Keyspace,
        partition: Partition,
        pick: usize,
    ) -> Result<(), TortureError> {
        let slot = keys.slot(partition);
        let mut to = None;
        until("a slot has moved", async || {
            let Some(from) = self.primary(keys, partition).await else { return false };
            if to == Some(from) {
                return true;
            }
            let mut others = Vec::new();
            for (number, server) in self.servers.iter().enumerate() {
                if number != from && server.is_primary().await {
                    others.push(number);
                }
            }
            let Some(target) = to
                .filter(|to| others.contains(to))
                .or_else(|| others.get(pick % others.len().max(1)).copied())
            else {
                return false;
            };
            to = Some(target);
            self.move_slot(slot, from, target).await.is_ok()
        })
        .await
    }

    /// How many servers have so many replicas.
    async fn replicated(&self, replicas: usize) -> usize {
        let mut count = 0;
        for server in &self.servers {
            count += usize::from(server.replicas().await == replicas);
        }
        count
    }

    async fn one_has_ended(&mut self) -> TortureError {
        let all = self.servers.iter_mut().chain(&mut self.sentinels);
        let waits = all.map(|server| Box::pin(server.ended_alone()));
        futures_util::future::select_all(waits).await.0
    }

    /// Kills everything, and waits until it is gone.
    pub(super) async fn stop(&mut self) {
        for server in self.servers.iter_mut().chain(&mut self.sentinels) {
            server.stop().await;
        }
    }

    /// Makes six servers one cluster: three primaries that share the slots, and a replica of each.
    async fn join(&self) -> Result<(), TortureError> {
        let failed = |error: redis::RedisError| TortureError::Unreadable(error.to_string());
        let mut ids: Vec<String> = Vec::new();
        for (number, server) in self.servers.iter().enumerate() {
            ids.push(server.run(&["CLUSTER", "MYID"]).await.map_err(failed)?);
            let epoch = (number + 1).to_string();
            server.run::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await.map_err(failed)?;
            if number < PRIMARIES {
                let first = (number * SLOTS / PRIMARIES).to_string();
                let last = ((number + 1) * SLOTS / PRIMARIES - 1).to_string();
                let command = ["CLUSTER", "ADDSLOTSRANGE", &first, &last];
                server.run::<()>(&command).await.map_err(failed)?;
            }
            if let Some(place) = self.servers[0].place.filter(|_| number > 0) {
                let (ip, port) = (place.ip().to_string(), place.port().to_string());
                server.run::<()>(&["CLUSTER", "MEET", &ip, &port]).await.map_err(failed)?;
            }
        }
        let knows = async |server: &Server, flags: &str, count: usize| {
            let nodes: RedisResult<String> = server.run(&["CLUSTER", "NODES"]).await;
            let is = |line: &&str| line.contains(flags) && !line.contains("handshake");
            nodes.is_ok_and(|nodes| nodes.lines().filter(is).count() == count)
        };
        let all_know = async || {
            for server in &self.servers {
                if !knows(server, " connected", 2 * PRIMARIES).await {
                    return false;
                }
            }
            true
        };
        until("the servers of the cluster know each other", all_know).await?;
        for (number, server) in self.servers.iter().enumerate().skip(PRIMARIES) {
            let command = ["CLUSTER", "REPLICATE", &ids[number - PRIMARIES]];
            server.run::<()>(&command).await.map_err(failed)?;
        }
        let all_follow = async || {
            for server in &self.servers {
                let info: RedisResult<String> = server.run(&["CLUSTER", "INFO"]).await;
                let known = knows(server, "slave ", PRIMARIES).await;
                if !known || !info.is_ok_and(|info| info.contains("cluster_state:ok")) {
                    return false;
                }
            }
            // Whoever the primaries are by now.
            self.replicated(1).await == PRIMARIES
        };
        until("every primary of the cluster has its replica", all_follow).await
    }

    /// Moves a slot of a cluster with all that is in it to another of its primaries, as an operator does.
    ///
    /// # Errors
    /// Whatever a server says; the slot may be half-way then.
    pub async fn move_slot(&self, slot: u16, from: usize, to: usize) -> RedisResult<()> {
        let (source, target) = (&self.servers[from], &self.servers[to]);
        let source_id: String = source.run(&["CLUSTER", "MYID"]).await?;
        let target_id: String = target.run(&["CLUSTER", "MYID"]).await?;
        let number = slot.to_string();
        target.run::<()>(&["CLUSTER", "SETSLOT", &number, "IMPORTING", &source_id]).await?;
        source.run::<()>(&["CLUSTER", "SETSLOT", &number, "MIGRATING", &target_id]).await?;
        loop {
            let keys: Vec<String> =
                source.run(&["CLUSTER", "GETKEYSINSLOT", &number, "10"]).await?;
            if keys.is_empty() {
                break;
            }
            let Some(place) = target.place else { break };
            let (ip, port) = (place.ip().to_string(), place.port().to_string());
            let mut command = vec!["MIGRATE", &ip, &port, "", "0", "5000", "KEYS"];
            command.extend(keys.iter().map(String::as_str));
            source.run::<redis::Value>(&command).await?;
        }
        for server in [target, source] {
            server.run::<()>(&["CLUSTER", "SETSLOT", &number, "NODE", &target_id]).await?;
        }
        Ok(())
    }
}

/// The epoch with which a server claims a slot for itself, by its own word.
fn claim(nodes: &str, slot: u16) -> Option<u64> {
    let line = nodes.lines().find(|line| line.contains("myself,master"))?;
    let words: Vec<&str> = line.split(' ').collect();
    let has = words.iter().skip(8).filter(|word| !word.starts_with('[')).any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<u16>().ok();
        number(first).zip(number(last)).is_some_and(|(first, last)| (first..=last).contains(&slot))
    });
    has.then(|| words.get(6)?.parse().ok()).flatten()
}

/// Waits for a state.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) -> Result<(), TortureError> {
    let until = Instant::now() + PATIENCE;
    while !is_so().await {
        if Instant::now() >= until {
            return Err(TortureError::NeverCame(what.to_owned()));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
