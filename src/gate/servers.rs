//! Which server serves a partition now, and how it is reached.
//!
//! One server, sentinels and a cluster differ here and nowhere else: what they say becomes a route from each partition
//! to one server, over plain connections. A route may be out of date at any moment; the fence, not the route, keeps a
//! call on the wrong server from being decided there.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use deadpool_redis::{Connection, Manager, Pool, Runtime, Timeouts};
use futures_util::{StreamExt, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, ConnectionInfo, FromRedisValue, RedisError, RedisResult,
    aio::MultiplexedConnection,
};
use tokio::{sync::Notify, time::Instant};

use super::{GateOptions, key::Keyspace, topology::Topology};
use crate::domain::Partition;

/// How often sentinels or the cluster are asked although nobody has doubts.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long they are left alone after a look, whatever anybody doubts.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// How long the others may take once one of them has answered.
const OTHERS_WAIT: Duration = Duration::from_millis(100);

/// One server, at a place that does not change.
pub(super) struct Server {
    place: String,
    client: redis::Client,
    pool: Pool,
    asked: tokio::sync::Mutex<Option<MultiplexedConnection>>,
    connect_timeout: Duration,
    reply_timeout: Duration,
}

impl Server {
    fn new(info: ConnectionInfo, options: &GateOptions) -> RedisResult<Self> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(options.connect_timeout))
            .set_response_timeout(Some(options.reply_timeout));
        let place = info.addr().to_string();
        let client = redis::Client::open(info.clone())?;
        let pool = Pool::builder(Manager::new_with_config(info, config)?)
            .max_size(options.pool_size)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(options.connect_timeout),
                create: Some(options.connect_timeout),
                recycle: Some(options.reply_timeout),
            })
            .build()
            .map_err(|error| RedisError::from(std::io::Error::other(error)))?;
        let GateOptions { connect_timeout, reply_timeout, .. } = *options;
        let asked = tokio::sync::Mutex::default();
        Ok(Self { place, client, pool, asked, connect_timeout, reply_timeout })
    }

    /// Where it is, as people write it.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// A connection of the pool.
    pub(super) async fn pooled(&self) -> RedisResult<Connection> {
        self.pool.get().await.map_err(|error| match error {
            deadpool_redis::PoolError::Backend(error) => error,
            other => RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, other)),
        })
    }

    /// A connection of its own, for a read that blocks up to `longest`: it would hold up everybody else on a shared one.
    pub(super) async fn dedicated(&self, longest: Duration) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.reply_timeout + longest));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Asks it where the primaries are, over a connection that is kept for the purpose. Not one of the pool, which tries
    /// each with a command that sentinels do not have.
    async fn ask<T: FromRedisValue>(&self, question: &redis::Pipeline) -> RedisResult<T> {
        let mut kept = self.asked.lock().await;
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.dedicated(Duration::ZERO).await?,
        };
        let answer = question.query_async(&mut connection).await?;
        *kept = Some(connection);
        Ok(answer)
    }
}

/// All servers that the gate runs on.
pub(super) struct Servers {
    topology: Topology,
    options: GateOptions,
    slots: Vec<u16>,
    /// Those that say where the primaries are: the sentinels, or the servers of the cluster that the URL names.
    guides: Vec<Arc<Server>>,
    /// The server of each partition, as far as it has been found.
    routes: RwLock<Vec<Option<Arc<Server>>>>,
    /// Whoever looks for them.
    turn: tokio::sync::Mutex<()>,
    /// Rung when something went wrong on the way that is known.
    doubt: Notify,
    /// Whether the last look was in vain.
    blind: AtomicBool,
}

impl Servers {
    pub(super) fn new(options: &GateOptions, keys: &Keyspace) -> RedisResult<Self> {
        let topology = options.topology.clone();
        let mut routes = vec![None; usize::from(options.partitions)];
        let guides = match &topology {
            Topology::Standalone(info) => {
                routes.fill(Some(Arc::new(Server::new(info.clone(), options)?)));
                Vec::new()
            }
            Topology::Sentinel { sentinels: guides, .. } | Topology::Cluster { seeds: guides } => {
                let guide =
                    |info: &ConnectionInfo| Server::new(info.clone(), options).map(Arc::new);
                guides.iter().map(guide).collect::<RedisResult<_>>()?
            }
        };
        Ok(Self {
            topology,
            options: options.clone(),
            slots: keys.partitions().map(|partition| keys.slot(partition)).collect(),
            guides,
            routes: RwLock::new(routes),
            turn: tokio::sync::Mutex::default(),
            doubt: Notify::new(),
            blind: AtomicBool::new(false),
        })
    }

    /// Whether one server has all the partitions.
    pub(super) fn is_one(&self) -> bool {
        !matches!(self.topology, Topology::Cluster { .. })
    }

    /// Whether the URL names a server itself.
    pub(super) fn is_fixed(&self) -> bool {
        matches!(self.topology, Topology::Standalone(_))
    }

    /// The server that serves a partition as far as is known; looks for it when nothing is known.
    pub(super) async fn of(&self, partition: Partition) -> RedisResult<Arc<Server>> {
        if let Some(server) = self.known(partition) {
            return Ok(server);
        }
        let _turn = self.turn.lock().await;
        if let Some(server) = self.known(partition) {
            return Ok(server);
        }
        self.look().await?;
        self.known(partition).ok_or_else(|| {
            RedisError::from((
                redis::ErrorKind::Server(redis::ServerErrorKind::ClusterDown),
                "no server of the cluster owns the partition's slot",
            ))
        })
    }

    /// Whether a partition is still served by this server, as far as is known.
    pub(super) fn is_of(&self, partition: Partition, server: &Arc<Server>) -> bool {
        self.known(partition).is_some_and(|known| Arc::ptr_eq(&known, server))
    }

    /// Every server that serves a partition.
    pub(super) async fn all(&self) -> RedisResult<Vec<Arc<Server>>> {
        let mut all: Vec<Arc<Server>> = Vec::new();
        for partition in (0..self.options.partitions).map(Partition) {
            let server = self.of(partition).await?;
            if !all.iter().any(|known| Arc::ptr_eq(known, &server)) {
                all.push(server);
            }
        }
        Ok(all)
    }

    /// Has the routes looked for again: something went wrong on one of them.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Keeps the routes up to date, until it is dropped.
    pub(super) async fn watch(&self) {
        if self.is_fixed() {
            return std::future::pending().await;
        }
        loop {
            // Whether somebody doubts or it is time makes no difference.
            drop(tokio::time::timeout(LOOK_EVERY, self.doubt.notified()).await);
            let turn = self.turn.lock().await;
            let looked = self.look().await;
            drop(turn);
            match looked {
                Ok(()) => {
                    if self.blind.swap(false, Ordering::SeqCst) {
                        tracing::info!("it is known again which Redis is the primary");
                    }
                }
                Err(error) => {
                    if !self.blind.swap(true, Ordering::SeqCst) {
                        tracing::warn!(%error, "nobody says which Redis is the primary; going on with what was known");
                    }
                }
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    fn known(&self, partition: Partition) -> Option<Arc<Server>> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.get(usize::from(partition.0)).cloned().flatten()
    }

    /// Asks where the primaries are, and takes note. What nobody answers for stays as it was.
    async fn look(&self) -> RedisResult<()> {
        let found = match &self.topology {
            Topology::Standalone(_) => return Ok(()),
            Topology::Sentinel { name, .. } => {
                vec![Some(self.primary(name).await?); self.slots.len()]
            }
            Topology::Cluster { .. } => self.owners().await?,
        };
        let old = self.routes.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut servers: HashMap<String, Arc<Server>> =
            old.iter().flatten().map(|server| (server.place.clone(), server.clone())).collect();
        let mut new = old.clone();
        let mut moved: BTreeMap<String, Vec<u16>> = BTreeMap::new();
        for (partition, (route, found)) in (0..).zip(new.iter_mut().zip(found)) {
            let Some((host, port)) = found else { continue };
            let info = self.topology.at(&host, port);
            let place = info.addr().to_string();
            if route.as_ref().is_some_and(|server| server.place == place) {
                continue;
            }
            let server = match servers.get(&place) {
                Some(server) => server.clone(),
                None => Arc::new(Server::new(info, &self.options)?),
            };
            servers.insert(place.clone(), server.clone());
            if route.replace(server).is_some() {
                moved.entry(place).or_default().push(partition);
            }
        }
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = new;
        for (place, partitions) in moved {
            metrics::counter!("redeemer_gate_moves_total").increment(1);
            tracing::info!(place, ?partitions, "another Redis is the primary now");
        }
        Ok(())
    }

    /// The primary by the newest word of the sentinels.
    async fn primary(&self, name: &str) -> RedisResult<(String, u16)> {
        let mut question = redis::pipe();
        question.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name);
        question.cmd("SENTINEL").arg("MASTER").arg(name);
        let answers = ask::<SentinelWord>(&self.guides, &question).await?;
        let newest = answers.into_iter().filter_map(|(_, (place, master))| {
            let epoch: u64 = master.get("config-epoch")?.parse().ok()?;
            Some((epoch, place?))
        });
        newest.max().map(|(_, place)| place).ok_or_else(|| {
            RedisError::from((
                redis::ErrorKind::Server(redis::ServerErrorKind::MasterDown),
                "the sentinels know no primary of this name",
            ))
        })
    }

    /// The owner of each partition's slot by the newest word of the cluster.
    async fn owners(&self) -> RedisResult<Vec<Option<(String, u16)>>> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut asked: BTreeMap<String, Arc<Server>> = BTreeMap::new();
        for server in self.guides.iter().chain(routes.iter().flatten()) {
            asked.entry(server.place.clone()).or_insert_with(|| server.clone());
        }
        let mut question = redis::pipe();
        question.cmd("CLUSTER").arg("NODES");
        let asked: Vec<_> = asked.into_values().collect();
        let answers: Vec<(Arc<Server>, (String,))> = ask(&asked, &question).await?;
        let owners: Vec<Owner> =
            answers.iter().flat_map(|(server, (text,))| Owner::read(text, server)).collect();
        let owner = |slot: &u16| {
            let all = owners.iter().filter(|owner| owner.slots.iter().any(|of| of.contains(slot)));
            all.max_by_key(|owner| owner.epoch).map(|owner| (owner.host.clone(), owner.port))
        };
        Ok(self.slots.iter().map(owner).collect())
    }
}

/// Where a sentinel says that the primary is, and all that it knows of it.
type SentinelWord = (Option<(String, u16)>, HashMap<String, String>);

/// Asks all of them at once; returns what those said that answered not much later than the first.
async fn ask<T: FromRedisValue>(
    servers: &[Arc<Server>],
    question: &redis::Pipeline,
) -> RedisResult<Vec<(Arc<Server>, T)>> {
    let answer = |server: &Arc<Server>| {
        let server = server.clone();
        async move { server.ask::<T>(question).await.map(|answer| (server, answer)) }
    };
    let mut asked: FuturesUnordered<_> = servers.iter().map(answer).collect();
    let (mut answers, mut trouble) = (Vec::new(), None);
    let mut until: Option<Instant> = None;
    loop {
        let next = match until {
            None => asked.next().await,
            Some(until) => tokio::time::timeout_at(until, asked.next()).await.unwrap_or_default(),
        };
        match next {
            Some(Ok(answer)) => {
                answers.push(answer);
                until = until.or_else(|| Some(Instant::now() + OTHERS_WAIT));
            }
            Some(Err(error)) => trouble = Some(error),
            None => break,
        }
    }
    match trouble {
        Some(error) if answers.is_empty() => Err(error),
        _ => Ok(answers),
    }
}

/// A primary of a cluster, by one server's word.
#[derive(Debug, PartialEq, Eq)]
struct Owner {
    host: String,
    port: u16,
    /// Of two that claim a slot, the one with the higher epoch has it.
    epoch: u64,
    slots: Vec<RangeInclusive<u16>>,
}

impl Owner {
    /// Reads the reply of CLUSTER NODES that this server gave.
    fn read(text: &str, server: &Server) -> Vec<Self> {
        let asked = match server.client.get_connection_info().addr() {
            redis::ConnectionAddr::Tcp(host, _) | redis::ConnectionAddr::TcpTls { host, .. } => {
                host
            }
            _ => "127.0.0.1",
        };
        text.lines().filter_map(|line| Self::parse(line, asked)).collect()
    }

    /// Reads `<id> <ip:port@cport[,hostname…]> <flags> <primary> <ping> <pong> <epoch> <link> <slot>…`; nothing unless
    /// it is a primary's. A server that does not know its own address yet leaves it empty: it was reached at `asked`.
    ///
    /// Source: Redis documentation, CLUSTER NODES, "Serialization format".
    fn parse(line: &str, asked: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, flags, epoch) = (words.get(1)?, words.get(2)?, words.get(6)?);
        if !flags.split(',').any(|flag| flag == "master") {
            return None;
        }
        let (place, names) = address.split_once('@').unwrap_or((address, ""));
        let (ip, port) = place.rsplit_once(':')?;
        let hostname = names.split(',').nth(1).filter(|name| !name.is_empty());
        let host = hostname.unwrap_or(if ip.is_empty() { asked } else { ip });
        // [slot->-id] and [slot-<-id] are on their way, and still their owner's.
        let slots = words.iter().skip(8).filter(|word| !word.starts_with('['));
        let range = |word: &&str| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            Some(first.parse().ok()?..=last.parse().ok()?)
        };
        Some(Self {
            host: host.to_owned(),
            port: port.parse().ok()?,
            epoch: epoch.parse().ok()?,
            slots: slots.filter_map(range).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_is_found_by_its_hostname_its_address_or_as_it_was_asked() {
        let line = |address: &str, flags: &str| {
            format!("e7d1 {address} {flags} - 0 1426238317239 4 connected 0-5460 7000 [93->-2926]")
        };
        let slots = vec![0..=5460, 7000..=7000];
        let at = |host: &str| Owner {
            host: host.to_owned(),
            port: 30001,
            epoch: 4,
            slots: slots.clone(),
        };
        for (address, host) in [
            ("10.0.0.1:30001@31001", "10.0.0.1"),
            ("10.0.0.1:30001@31001,", "10.0.0.1"),
            ("10.0.0.1:30001@31001,redis-1.example", "redis-1.example"),
            ("10.0.0.1:30001@31001,,shard-id=69bc", "10.0.0.1"),
            (":30001@31001", "asked"),
            ("::1:30001@31001", "::1"),
        ] {
            assert_eq!(Owner::parse(&line(address, "myself,master"), "asked"), Some(at(host)));
        }
        assert_eq!(Owner::parse(&line("10.0.0.1:30001@31001", "slave"), "asked"), None);
        assert_eq!(Owner::parse("", "asked"), None);
    }
}
