//! The ledger: SQL, which remembers what the gate has decided. It never decides, and it never sees the gate.
//!
//! * [`rows`] is what the sync brings, `append` writes it together with the cursor in one transaction.
//! * `audit_log` is who changed what.
//! * `claims` are what nodes had told somebody when Redis lost it.
//! * `partitions` holds what each partition is open on, and the leases of those who look after them.
//! * `parts` reads a namespace that is spread over several partitions as one.
//! * `snapshot` reads a partition whole, for a rebuild; `read` answers the API; `keys` are the API keys,
//!   `batches` what is made in bulk, `webhooks` who is told; `events` reads what happened.
//! * `backup` copies it, in SQLite.
//! * `sqlite` and `postgres` open it; everything else is written once, for both (`sql`).

mod append;
mod audit_log;
mod backup;
mod batches;
mod claims;
mod columns;
mod dead_letters;
mod events;
mod keys;
mod laws;
mod outcomes;
mod partitions;
mod parts;
mod postgres;
mod read;
pub mod rows;
mod snapshot;
mod spread;
mod sql;
mod sqlite;
mod take;
mod webhooks;

pub use append::Appended;
pub use audit_log::{AuditFilter, AuditLine, AuditPage, AuditPlace, By};
pub use backup::{Contents, PartitionAt, contents};
pub use batches::{BatchEnd, BatchJob};
pub use claims::{Claim, Claimed, WaitingClaim};
pub use dead_letters::DeadLetter;
pub use events::EventPage;
pub use keys::KeysVersion;
pub use laws::Breach;
pub use outcomes::InviteTotals;
pub use partitions::{Deployment, Lease, LeaseLost, Opened, PartitionRow, PartitionState, Rebuild};
pub use parts::MergedRedemptions;
pub use postgres::PostgresOptions;
pub use read::{
    CampaignPage, InviteFilter, InvitePage, MemberFilter, MemberPage, NamespacePage,
    RedemptionFilter, RedemptionPage, RedemptionRecord,
};
pub use snapshot::{Page, Snapshot};
pub use sqlite::SqliteOptions;
pub use take::TakenRows;
pub use webhooks::{Attempt, NewWebhook, WebhookJob, WebhookPatch};

use sqlx::migrate::MigrateError;

use self::sql::{Dialect, Pool, sql};

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
    let code = error.code();
    let code = code.as_deref().unwrap_or_default();
    // SQLITE_MISMATCH, SQLITE_TOOBIG and SQLITE_CONSTRAINT_DATATYPE: values that do not fit their column. Class 22 of
    // PostgreSQL's SQLSTATEs, of five characters, says the same.
    constraint
        || matches!(code, "20" | "18" | "3091")
        || (code.len() == 5 && code.starts_with("22"))
}

/// The ledger. Cheap to clone: all clones are one ledger.
#[derive(Debug, Clone)]
pub struct Ledger {
    dialect: Dialect,
    writer: Pool,
    reader: Pool,
    /// Snapshots last long, and must not keep everybody else from reading.
    snapshots: Pool,
}

impl Ledger {
    fn of(writer: Pool, reader: Pool, snapshots: Pool) -> Self {
        Self { dialect: writer.dialect(), writer, reader, snapshots }
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] when it does not.
    pub async fn ping(&self) -> Result<(), LedgerError> {
        sql("SELECT 1").execute(&self.reader).await.map_err(LedgerError::of("reading it"))?;
        Ok(())
    }

    /// Closes all connections, waiting for those in use.
    pub async fn close(&self) {
        self.snapshots.close().await;
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// What became of bringing the tables up to date.
fn migrated(result: Result<(), MigrateError>) -> Result<(), LedgerError> {
    match result {
        Ok(()) => Ok(()),
        Err(MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _)) => {
            Err(LedgerError::of("bringing its tables up to date")(cause))
        }
        Err(other) => Err(LedgerError::Mismatch(format!(
            "the ledger's tables can not be brought up to date: {other}"
        ))),
    }
}
