//! A long-lived connection that lanes share, and how it is replaced.
//!
//! It is taken out of the pool for good: a checkout per request would cost two more round trips. A multiplexed
//! connection never reconnects by itself, so whoever sees it fail asks for another one; and when another server serves
//! the partition, the connection goes there.

use std::sync::Arc;

use redis::{RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::sync::Mutex;

use super::servers::{Server, Servers};
use crate::domain::Partition;

/// One shared connection.
pub(super) struct Link {
    servers: Arc<Servers>,
    /// One of the partitions that share it: all of them are served by the same server.
    home: Partition,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: Option<Live>,
    generation: u64,
    /// Connections that failed, and of which nothing says yet that Redis will read no more from them.
    unburied: Vec<Client>,
}

impl State {
    fn give_up(&mut self) {
        if let Some(live) = self.live.take() {
            self.unburied.push(live.client);
        }
    }
}

struct Live {
    server: Arc<Server>,
    connection: MultiplexedConnection,
    client: Client,
}

/// A connection as the server knows it.
#[derive(Clone, PartialEq, Eq)]
struct Client {
    /// `run_id`: ids of clients start again when a server does.
    server: String,
    id: i64,
}

/// A usable connection.
pub(super) struct Lent {
    pub(super) connection: MultiplexedConnection,
    /// Names this connection when it is to be replaced.
    pub(super) generation: u64,
    /// Whether everything that was sent over earlier connections has run by now or never will. Only then is a refusal
    /// that follows an unanswered attempt a definite one.
    pub(super) settled: bool,
}

impl Link {
    pub(super) fn new(servers: Arc<Servers>, home: Partition) -> Self {
        Self { servers, home, state: Mutex::default() }
    }

    /// The shared connection, made if need be.
    pub(super) async fn get(&self) -> Result<Lent, RedisError> {
        let mut state = self.state.lock().await;
        if state.live.as_ref().is_some_and(|live| !self.servers.is_of(self.home, &live.server)) {
            state.give_up();
        }
        if state.live.is_none() {
            let mut live = self.connect().await.inspect_err(|_| self.servers.doubt())?;
            let mut unburied = std::mem::take(&mut state.unburied);
            bury(&mut live, &mut unburied).await;
            state.unburied = unburied;
            state.live = Some(live);
            state.generation += 1;
        }
        let settled = state.unburied.is_empty();
        let generation = state.generation;
        let Some(live) = &state.live else { unreachable!("it was made above") };
        Ok(Lent { connection: live.connection.clone(), generation, settled })
    }

    /// Gives up the connection of this generation, unless that has happened.
    pub(super) async fn give_up(&self, generation: u64) {
        let mut state = self.state.lock().await;
        if state.generation == generation {
            state.give_up();
            self.servers.doubt();
        }
    }

    async fn connect(&self) -> RedisResult<Live> {
        let server = self.servers.of(self.home).await?;
        let mut connection = deadpool_redis::Connection::take(server.pooled().await?);
        let (id, info): (i64, redis::InfoDict) = redis::pipe()
            .cmd("CLIENT")
            .arg("ID")
            .cmd("INFO")
            .arg("server")
            .query_async(&mut connection)
            .await?;
        let client = Client { server: info.get("run_id").unwrap_or_default(), id };
        Ok(Live { server, connection, client })
    }
}

/// Has the server close the connections that failed, so that it runs nothing more of what was sent over them: a
/// stopped server that wakes up would otherwise run it after what is sent now. Another server has no part in what was
/// sent to the old one, and if the old one comes back its lineage is not admitted.
async fn bury(live: &mut Live, unburied: &mut Vec<Client>) {
    unburied.retain(|client| client.server == live.client.server);
    let mut left = Vec::new();
    for client in unburied.drain(..) {
        let killed: RedisResult<i64> = redis::cmd("CLIENT")
            .arg("KILL")
            .arg("ID")
            .arg(client.id)
            .query_async(&mut live.connection)
            .await;
        if let Err(error) = killed {
            tracing::warn!(%error, "a failed connection to Redis could not be closed; allow CLIENT KILL to this user");
            left.push(client);
        }
    }
    *unburied = left;
}
