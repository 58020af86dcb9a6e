//! What is tortured: Redis and some nodes, all of them children of this process in one directory.

use std::{fs::File, future::pending, io, path::PathBuf, process::Stdio, time::Duration};

use rustix::process::Signal;
use secrecy::SecretString;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdout, Command},
    sync::watch,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Counts, Options, PATIENCE, TortureError, ended_alone,
    faults::{Fault, Strike, Victim, plan},
    redis::{Redis, Setup, signal_child},
};
use crate::client::Client;

/// When a node that did not start is started again.
const START_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// A client of each node; nothing while it has not been ready since its last start.
pub(super) type Clients = Vec<watch::Receiver<Option<Client>>>;

/// Everything that was started. What is dropped is killed.
pub(super) struct Deployment {
    redis: Redis,
    nodes: Vec<Node>,
}

impl Deployment {
    /// Starts Redis; nodes are still to come.
    pub(super) fn new(options: &Options) -> Result<Self, TortureError> {
        let setup = Setup::new(&options.redis_server, &options.directory);
        let redis = Redis::start(options.redis, &setup)?;
        let nodes = (0..options.nodes).map(|number| Node::new(number, options, &redis)).collect();
        Ok(Self { redis, nodes })
    }

    /// Starts the nodes, and waits until all are ready.
    pub(super) async fn start(&mut self) -> Result<(), TortureError> {
        self.redis.wait().await?;
        for node in &mut self.nodes {
            // On a busy machine a replica may take over before anything has begun.
            if self.redis.fails_over() { node.start_again().await? } else { node.start().await? }
        }
        Ok(())
    }

    pub(super) fn clients(&self) -> Clients {
        self.nodes.iter().map(|node| node.client.subscribe()).collect()
    }

    /// Strikes every victim by its own plan until `stop`, then leaves all of them well.
    pub(super) async fn torment(
        &mut self,
        options: &Options,
        counts: &Counts,
        stop: &CancellationToken,
    ) -> Result<(), TortureError> {
        let Options { seed, lossy, redis: kind, .. } = *options;
        let strikes = plan(seed, Victim::Redis(kind), lossy);
        let redis = self.redis.torment(strikes, options.partitions(), counts, stop);
        let nodes = self.nodes.iter_mut().map(|node| {
            let plan = plan(seed, Victim::Node(node.number), lossy);
            node.torment(plan, counts, stop)
        });
        let nodes = futures_util::future::try_join_all(nodes);
        tokio::try_join!(redis, nodes)?;
        Ok(())
    }

    /// Kills everything, and waits until it is gone.
    pub(super) async fn stop(mut self) {
        for node in &mut self.nodes {
            if let Some((child, _)) = &mut node.running {
                // One that has ended by itself needs no killing.
                drop(child.kill().await);
            }
        }
        self.redis.stop().await;
    }
}

/// A node, which comes and goes; its place in the deployment stays.
struct Node {
    number: u32,
    program: PathBuf,
    directory: PathBuf,
    log_level: &'static str,
    partitions: u16,
    redis_url: String,
    ledger_url: String,
    key: SecretString,
    running: Option<(Child, BufReader<ChildStdout>)>,
    client: watch::Sender<Option<Client>>,
}

impl Node {
    fn new(number: u32, options: &Options, redis: &Redis) -> Self {
        let ledger = || format!("sqlite:{}", options.directory.join("ledger.sqlite").display());
        Self {
            number,
            program: options.program.clone(),
            directory: options.directory.join(format!("node-{number}")),
            log_level: options.log_level,
            partitions: options.partitions(),
            redis_url: redis.url(false, ""),
            ledger_url: options.ledger.clone().unwrap_or_else(ledger),
            key: options.key.clone(),
            running: None,
            client: watch::Sender::new(None),
        }
    }

    /// Starts it, and waits until it says that it is ready.
    async fn start(&mut self) -> Result<(), TortureError> {
        let (child, banner) = self.running.insert(self.spawn()?);
        let address = async {
            let mut lines = banner.lines();
            let mut address = None;
            while let Some(line) = lines.next_line().await? {
                if let Some(url) = line.trim().strip_prefix("address") {
                    address = Some(url.trim().to_owned());
                }
                // The banner's last line. Nothing more comes that could fill the pipe.
                if line.contains("HGETALL") {
                    break;
                }
            }
            io::Result::Ok(address)
        };
        let address = tokio::time::timeout(PATIENCE, address).await;
        let name = format!("node {}", self.number);
        let address = address
            .map_err(|_| TortureError::NeverCame(format!("{name} is ready")))?
            .map_err(|cause| TortureError::io("reading what was said by", &self.program, cause))?;
        let Some(address) = address else {
            let ended = child.wait().await;
            return Err(ended_alone(&name, ended, &self.directory.join("node.log")));
        };
        let client = Client::new(&address, self.key.clone()).map_err(TortureError::Http)?;
        self.client.send_replace(Some(client));
        Ok(())
    }

    /// Starts it as a supervisor would: a node refuses to start while Redis is away, and comes when it is back.
    async fn start_again(&mut self) -> Result<(), TortureError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.start().await {
                Err(TortureError::EndedAlone { .. }) if Instant::now() < until => {
                    tokio::time::sleep(START_AGAIN_AFTER).await;
                }
                started => return started,
            }
        }
    }

    fn spawn(&self) -> Result<(Child, BufReader<ChildStdout>), TortureError> {
        let directory = &self.directory;
        std::fs::create_dir_all(directory)
            .map_err(|cause| TortureError::io("making", directory, cause))?;
        let log = directory.join("node.log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|cause| TortureError::io("opening", &log, cause))?;
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("REDEEMER_") || name == "REDIS_URL" || name == "DATABASE_URL" {
                command.env_remove(&*name);
            }
        }
        let settings = [
            ("REDEEMER_HTTP__BIND", "127.0.0.1:0"),
            ("REDEEMER_HTTP__WORKERS", "2"),
            ("REDEEMER_REDIS__URL", &self.redis_url),
            ("REDEEMER_LEDGER__URL", &self.ledger_url),
            ("REDEEMER_RATE_LIMIT__ENABLED", "false"),
            ("REDEEMER_LOG__LEVEL", self.log_level),
            // Short leases too, so that more happens in a minute.
            ("REDEEMER_GATE__PARTITIONS", &self.partitions.to_string()),
            ("REDEEMER_SYNC__LEASE_TTL_MS", "1000"),
            ("REDEEMER_SYNC__BLOCK_MS", "100"),
        ];
        let mut child = command
            .arg("serve")
            .envs(settings)
            .env("REDEEMER_DATA__DIR", directory)
            .env("REDEEMER_AUTH__ADMIN_KEY", secrecy::ExposeSecret::expose_secret(&self.key))
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for whoever started it, who stops it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|cause| TortureError::io("starting", &self.program, cause))?;
        let banner = child.stdout.take().ok_or_else(|| {
            TortureError::io("reading from", &self.program, io::ErrorKind::BrokenPipe.into())
        })?;
        Ok((child, BufReader::new(banner)))
    }

    async fn torment(
        &mut self,
        plan: impl Iterator<Item = Strike>,
        counts: &Counts,
        stop: &CancellationToken,
    ) -> Result<(), TortureError> {
        for Strike { after, fault, lasts, .. } in plan {
            let ended = async {
                match &mut self.running {
                    Some((child, _)) => child.wait().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(after) => {}
                ended = ended => {
                    let log = self.directory.join("node.log");
                    return Err(ended_alone(&format!("node {}", self.number), ended, &log));
                }
            }
            let Some((child, _)) = &mut self.running else { continue };
            match fault {
                Fault::NodeKilled => {
                    kill(child).await?;
                    self.client.send_replace(None);
                    tokio::time::sleep(lasts).await;
                    self.start_again().await?;
                }
                Fault::NodePaused => pause(child, lasts).await?,
                _ => continue,
            }
            counts.struck(fault);
        }
        Ok(())
    }
}

async fn kill(child: &mut Child) -> Result<(), TortureError> {
    child.kill().await.map_err(TortureError::Signal)
}

async fn pause(child: &Child, lasts: Duration) -> Result<(), TortureError> {
    signal_child(child, Signal::STOP)?;
    tokio::time::sleep(lasts).await;
    signal_child(child, Signal::CONT)
}
