//! Opens a ledger in a PostgreSQL database.

use std::{str::FromStr, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{Ledger, LedgerError, SNAPSHOTS_MAX, migrated, sql::Pool};

/// Longest run of a statement that writes. Renewing a lease is one of them, so this bounds how long a slow database
/// keeps a node in the dark, and not how long its partitions go without a leader.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest run of a statement that reads: the audit counts whole tables.
const READ_TIMEOUT: Duration = Duration::from_mins(10);
/// How much longer than the server's own time-out an answer is waited for: only a server that is gone lets it pass.
const GRACE: Duration = Duration::from_secs(5);

/// Where the database is, and within which bounds.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// `postgres://user@host/database`, with `sslmode` and the other parameters of libpq's URIs.
    pub url: SecretString,
    /// Connections of this node, at most; at least 4.
    pub connections_max: u32,
    /// How long a connection is waited for.
    pub connect_timeout: Duration,
    /// How long a transaction may sit idle before the server ends it. One of a leader that was paused in the middle
    /// would keep its partition from everybody else.
    pub idle_timeout: Duration,
}

impl Ledger {
    /// Connects to the database and brings its tables up to date. Several nodes may do so at once: an advisory lock lets
    /// them go one by one.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] when it can not be reached, [`LedgerError::Mismatch`] when its tables are not
    /// those of this program.
    pub async fn open_postgres(options: &PostgresOptions) -> Result<Self, LedgerError> {
        let opening = LedgerError::of("connecting to it");
        let connect = PgConnectOptions::from_str(options.url.expose_secret())
            .map_err(&opening)?
            .application_name("redeemer");
        let writers = (options.connections_max.saturating_sub(SNAPSHOTS_MAX) / 2).max(1);
        let readers = options.connections_max.saturating_sub(SNAPSHOTS_MAX + writers).max(1);
        let pool = |connections, timeout: Duration, idle: Duration, more: &[(&str, &str)]| {
            let connect = connect
                .clone()
                .options([
                    ("statement_timeout", timeout.as_millis().to_string()),
                    ("idle_in_transaction_session_timeout", idle.as_millis().to_string()),
                ])
                .options(more.iter().copied());
            let pool = PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(options.connect_timeout)
                .connect_lazy_with(connect);
            Pool::Postgres(pool, timeout + GRACE)
        };
        let writer = pool(writers, WRITE_TIMEOUT, options.idle_timeout, &[]);
        let reader = pool(readers, READ_TIMEOUT, options.idle_timeout, &[]);
        // A rebuild reads when Redis has taken what was read before. Page after page comes by its index: without statistics,
        // as after a rush of new rows, the planner would fetch and sort all that is left for each page.
        let by_index = [("enable_seqscan", "off"), ("enable_bitmapscan", "off")];
        let snapshots = pool(SNAPSHOTS_MAX, READ_TIMEOUT, READ_TIMEOUT, &by_index);
        if let Pool::Postgres(writer, _) = &writer {
            migrate(writer).await?;
        }
        Ok(Self::of(writer, reader, snapshots))
    }
}

async fn migrate(pool: &PgPool) -> Result<(), LedgerError> {
    let mut migrator = sqlx::migrate!("migrations/postgres");
    // What a newer version has added: the deployment's schema says whether this one can live with it.
    migrator.set_ignore_missing(true);
    migrated(migrator.run(pool).await)
}
