//! Opens a ledger in a SQLite file.

use std::{path::PathBuf, time::Duration};

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{Ledger, LedgerError, SNAPSHOTS_MAX, migrated, sql::Pool};

/// Rows that are read before they are taken.
const ROWS_AHEAD: usize = 1000;

/// Prepared statements that a connection keeps: those in bulk have eight sizes each.
const STATEMENTS_KEPT: usize = 256;

/// Pages of the log (4 KiB each) from which on it is brought into the file. A page that changes often is then brought
/// over once and not each time, and the disk is left to the log, and to that of an embedded Redis.
const CHECKPOINT_PAGES: &str = "16000";

/// Where the file is, and within which bounds.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// The file; made if it is missing, readable by its owner only.
    pub path: PathBuf,
    /// Connections for reading.
    pub connections_max: u32,
    /// How long a statement waits for another process that writes.
    pub busy_timeout: Duration,
}

impl Ledger {
    /// Opens the file and brings its tables up to date. Several processes may do so at once.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] when the file can not be opened, [`LedgerError::Mismatch`] when its tables are not
    /// those of this program.
    pub async fn open_sqlite(options: &SqliteOptions) -> Result<Self, LedgerError> {
        make_private(&options.path)
            .map_err(|error| LedgerError::of("creating its file")(error.into()))?;
        // FULL: the outbox is trimmed after a commit, so a commit must survive the loss of power. NORMAL does not
        // promise that in WAL mode. Source: SQLite documentation, "PRAGMA synchronous".
        let connect = SqliteConnectOptions::new()
            .filename(&options.path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .busy_timeout(options.busy_timeout)
            // Rows come from a thread of their own: with fewer in between, each costs a change of threads.
            .row_buffer_size(ROWS_AHEAD)
            .statement_cache_capacity(STATEMENTS_KEPT)
            .optimize_on_close(true, None);
        let opening = LedgerError::of("opening it");
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(options.busy_timeout * 2)
        };
        // One writes: waiting for it here is fairer than waiting for SQLite's lock.
        let writer = pool(1).connect_with(connect.clone()).await.map_err(&opening)?;
        migrate(&writer).await?;
        let reader = pool(options.connections_max)
            .connect_with(connect.clone().read_only(true))
            .await
            .map_err(&opening)?;
        let snapshots = pool(SNAPSHOTS_MAX).connect_lazy_with(connect.read_only(true));
        Ok(Self::of(Pool::Sqlite(writer), Pool::Sqlite(reader), Pool::Sqlite(snapshots)))
    }
}

async fn migrate(pool: &SqlitePool) -> Result<(), LedgerError> {
    let failed = LedgerError::of("bringing its tables up to date");
    // One process at a time: the others wait here and then find nothing left to do.
    let mut guard = pool.begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
    let mut migrator = sqlx::migrate!("migrations/sqlite");
    migrator.set_locking(false);
    // What a newer version has added: the deployment's schema says whether this one can live with it.
    migrator.set_ignore_missing(true);
    migrated(migrator.run_direct(None, &mut *guard, false).await)?;
    guard.commit().await.map_err(&failed)
}

/// Makes the file, readable by its owner only, unless it is there.
pub(super) fn make_private(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}
