//! A long-lived connection that lanes share, and how it is replaced.
//!
//! It is taken out of the pool for good: a checkout per request would cost two more round trips. A multiplexed
//! connection never reconnects by itself, so whoever sees it fail asks for another one.

use deadpool_redis::Pool;
use redis::{RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::sync::Mutex;

/// One shared connection.
pub(super) struct Link {
    pool: Pool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: Option<Live>,
    generation: u64,
    /// Connections that failed, and of which nothing says yet that Redis will read no more from them.
    unburied: Vec<Client>,
}

struct Live {
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
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool, state: Mutex::default() }
    }

    /// The shared connection, made if need be.
    pub(super) async fn get(&self) -> Result<Lent, RedisError> {
        let mut state = self.state.lock().await;
        if state.live.is_none() {
            let mut live = self.connect().await?;
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
        if state.generation == generation
            && let Some(live) = state.live.take()
        {
            state.unburied.push(live.client);
        }
    }

    async fn connect(&self) -> RedisResult<Live> {
        let connection = self.pool.get().await.map_err(pool_error)?;
        let mut connection = deadpool_redis::Connection::take(connection);
        let (id, info): (i64, redis::InfoDict) = redis::pipe()
            .cmd("CLIENT")
            .arg("ID")
            .cmd("INFO")
            .arg("server")
            .query_async(&mut connection)
            .await?;
        Ok(Live {
            connection,
            client: Client { server: info.get("run_id").unwrap_or_default(), id },
        })
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

/// What went wrong in the pool, as an error of Redis.
pub(super) fn pool_error(error: deadpool_redis::PoolError) -> RedisError {
    match error {
        deadpool_redis::PoolError::Backend(error) => error,
        other => RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, other)),
    }
}
