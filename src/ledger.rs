//! The ledger: SQL, which remembers what the gate has decided. It never decides, and it never sees the gate.
//!
//! * [`rows`] is what the sync brings, `append` writes it together with the cursor in one transaction.
//! * `partitions` holds what each partition is open on, and the leases of those who look after them.
//! * `snapshot` reads a partition whole, for a rebuild; `read` answers the API; `keys` are the API keys.

mod append;
mod columns;
mod keys;
mod laws;
mod partitions;
mod read;
pub mod rows;
mod snapshot;

pub use append::Appended;
pub use laws::Breach;
pub use partitions::{Deployment, Lease, LeaseLost, PartitionRow, PartitionState};
pub use read::{
    InviteFilter, InvitePage, MemberFilter, MemberPage, NamespacePage, RedemptionFilter,
    RedemptionPage, RedemptionRecord,
};
pub use snapshot::{Page, Snapshot};

use std::{path::PathBuf, time::Duration};

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// Partitions that are read whole at the same time.
pub const SNAPSHOTS_MAX: u32 = 2;

/// Why the ledger did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It can not be used now; asking again later may help.
    #[error("the ledger can not be used now ({doing})")]
    Unavailable {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        #[source]
        cause: sqlx::Error,
    },
    /// What was to be written breaks one of its constraints, and will the next time too.
    #[error("the ledger refuses this ({doing})")]
    Rejected {
        /// What was tried.
        doing: &'static str,
        /// Which constraint.
        #[source]
        cause: sqlx::Error,
    },
    /// It holds something that this program does not understand.
    #[error("the ledger holds what it should not: {0}")]
    Corrupt(String),
    /// It was made for something else.
    #[error("{0}")]
    Mismatch(String),
}

impl LedgerError {
    /// Sorts an error of the database by whether trying again can help.
    fn of(doing: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |cause| match &cause {
            sqlx::Error::Database(error) if is_about_data(error.as_ref()) => {
                Self::Rejected { doing, cause }
            }
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnNotFound(_) => Self::Corrupt(format!("{doing}: {cause}")),
            _ => Self::Unavailable { doing, cause },
        }
    }
}

/// Whether an error is about the data and not about the state of the database.
fn is_about_data(error: &dyn sqlx::error::DatabaseError) -> bool {
    use sqlx::error::ErrorKind;
    let constraint = matches!(
        error.kind(),
        ErrorKind::UniqueViolation
            | ErrorKind::ForeignKeyViolation
            | ErrorKind::NotNullViolation
            | ErrorKind::CheckViolation
    );
    // SQLITE_MISMATCH, SQLITE_TOOBIG and SQLITE_CONSTRAINT_DATATYPE: values that do not fit their column.
    constraint || matches!(error.code().as_deref(), Some("20" | "18" | "3091"))
}

/// Where the ledger is, and within which bounds.
#[derive(Debug, Clone)]
pub struct LedgerOptions {
    /// The SQLite file; made if it is missing, readable by its owner only.
    pub path: PathBuf,
    /// Connections for reading.
    pub connections_max: u32,
    /// How long a statement waits for another process that writes.
    pub busy_timeout: Duration,
}

/// The ledger. Cheap to clone: all clones are one ledger.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// One connection: SQLite has one writer at a time, and waiting for it here is fairer than waiting for its lock.
    writer: SqlitePool,
    reader: SqlitePool,
    /// Snapshots last long, and must not keep everybody else from reading.
    snapshots: SqlitePool,
}

impl Ledger {
    /// Opens the ledger and brings its tables up to date. Several processes may do so at once.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] when the file can not be opened, [`LedgerError::Mismatch`] when a newer version of
    /// this program has changed it.
    pub async fn open(options: &LedgerOptions) -> Result<Self, LedgerError> {
        make_private(&options.path)
            .map_err(|error| LedgerError::of("creating its file")(error.into()))?;
        // FULL: the outbox is trimmed after a commit, so a commit must survive the loss of power. NORMAL does not
        // promise that in WAL mode. Source: SQLite documentation, "PRAGMA synchronous".
        let connect = SqliteConnectOptions::new()
            .filename(&options.path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(options.busy_timeout)
            .optimize_on_close(true, None);
        let opening = LedgerError::of("opening it");
        let pool =
            SqlitePoolOptions::new().max_connections(1).acquire_timeout(options.busy_timeout * 2);
        let writer = pool.connect_with(connect.clone()).await.map_err(&opening)?;
        migrate(&writer).await?;
        let pool = SqlitePoolOptions::new()
            .max_connections(options.connections_max)
            .acquire_timeout(options.busy_timeout * 2);
        let reader = pool.connect_with(connect.clone().read_only(true)).await.map_err(&opening)?;
        let snapshots = SqlitePoolOptions::new()
            .max_connections(SNAPSHOTS_MAX)
            .acquire_timeout(options.busy_timeout * 2)
            .connect_lazy_with(connect.read_only(true));
        Ok(Self { writer, reader, snapshots })
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] when it does not.
    pub async fn ping(&self) -> Result<(), LedgerError> {
        sqlx::query("SELECT 1")
            .execute(&self.reader)
            .await
            .map_err(LedgerError::of("reading it"))?;
        Ok(())
    }

    /// Closes all connections, waiting for those in use.
    pub async fn close(&self) {
        self.snapshots.close().await;
        self.reader.close().await;
        self.writer.close().await;
    }
}

async fn migrate(pool: &SqlitePool) -> Result<(), LedgerError> {
    use sqlx::migrate::MigrateError;
    let doing = "bringing its tables up to date";
    // One process at a time: the others wait here and then find nothing left to do.
    let mut guard = pool.begin_with("BEGIN IMMEDIATE").await.map_err(LedgerError::of(doing))?;
    let mut migrator = sqlx::migrate!("migrations/sqlite");
    migrator.set_locking(false);
    let result = migrator.run_direct(None, &mut *guard, false).await;
    match result {
        Ok(()) => guard.commit().await.map_err(LedgerError::of(doing)),
        Err(MigrateError::Execute(cause)) => Err(LedgerError::of(doing)(cause)),
        Err(MigrateError::VersionMissing(_)) => Err(LedgerError::Mismatch(
            "a newer version of redeemer has changed this ledger; start that version or restore a backup".to_owned(),
        )),
        Err(other) => Err(LedgerError::Mismatch(format!("the ledger's tables can not be brought up to date: {other}"))),
    }
}

/// Makes the file, readable by its owner only, unless it is there.
fn make_private(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}
