//! A copy of a ledger in SQLite, made while others write, and what such a copy holds.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    Ledger, LedgerError,
    partitions::check_schema,
    sql::{Pool, sql},
    sqlite,
};

/// What a copy holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The version of its tables.
    pub schema: u64,
    /// Whose it is.
    pub deployment: String,
    /// How many namespaces it knows, archived ones too.
    pub namespaces: u64,
    /// How many invites, ended ones too.
    pub invites: u64,
    /// How many redemptions.
    pub redemptions: u64,
    /// How many members.
    pub members: u64,
    /// How far it has each partition's changes.
    pub partitions: Vec<PartitionAt>,
}

/// How far a copy has the changes of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionAt {
    /// Which.
    pub partition: u16,
    /// `<epoch>-<seq>` of the last one.
    pub cursor: String,
}

impl Ledger {
    /// Copies it, as it is at one moment, into a file that is not there yet. Nobody is kept from writing meanwhile.
    ///
    /// The copy carries nothing of what was going on at that moment: no leases, no nodes, and no operator's request,
    /// which would be carried out on whatever Redis the copy meets first.
    ///
    /// # Errors
    /// [`LedgerError::Mismatch`] for a ledger in PostgreSQL, [`LedgerError::Unavailable`] when the file can not be
    /// written.
    pub async fn backup(&self, path: &Path) -> Result<(), LedgerError> {
        if matches!(self.snapshots, Pool::Postgres(..)) {
            return Err(LedgerError::Mismatch(
                "a ledger in PostgreSQL is copied by the tools of PostgreSQL".to_owned(),
            ));
        }
        let failed = LedgerError::of("copying it");
        let Some(name) = path.to_str() else {
            return Err(LedgerError::Mismatch(format!("{} is not UTF-8", path.display())));
        };
        // SQLite writes into a file that is there if it is empty, and would let everybody read one of its own making.
        sqlite::make_private(path).map_err(|error| failed(error.into()))?;
        sql("VACUUM INTO $1").bind(name).execute(&self.snapshots).await.map_err(&failed)?;
        // One file without others beside it, or a part of it could be left behind.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Delete)
            .synchronous(SqliteSynchronous::Full);
        let copy = Pool::Sqlite(connect(options).await?);
        let mut tx = copy.begin().await.map_err(&failed)?;
        for statement in [
            "UPDATE partitions SET requested = NULL, lease_owner = NULL, lease_expires_at = 0",
            "UPDATE batches SET lease_owner = NULL, lease_expires_at = 0",
            "UPDATE webhooks SET lease_owner = NULL, lease_expires_at = 0",
            "DELETE FROM nodes",
            "DELETE FROM confirmations",
        ] {
            sql(statement).execute(&mut tx).await.map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        copy.close().await;
        Ok(())
    }
}

/// What a copy holds, once SQLite has found nothing wrong with it. Nothing is written beside it.
///
/// # Errors
/// [`LedgerError::Corrupt`] when it is damaged, [`LedgerError::Mismatch`] when a version made it that this one can not live with.
pub async fn contents(path: &Path) -> Result<Contents, LedgerError> {
    let failed = LedgerError::of("reading a copy of it");
    let options = SqliteConnectOptions::new().filename(path).read_only(true).immutable(true);
    let copy = Pool::Sqlite(connect(options).await?);
    let found = sql("PRAGMA integrity_check").fetch_all(&copy).await.map_err(&failed)?;
    let found = found.iter().map(|row| row.text("integrity_check"));
    let found = found.collect::<Result<Vec<_>, _>>()?;
    if found != ["ok"] {
        return Err(LedgerError::Corrupt(format!("{}: {}", path.display(), found.join("; "))));
    }
    let row = sql("SELECT id, schema, (SELECT COUNT(*) FROM namespaces WHERE name NOT LIKE '%+%') AS namespaces,
             (SELECT COUNT(*) FROM invites) AS invites, (SELECT COUNT(*) FROM redemptions) AS redemptions,
             (SELECT COUNT(*) FROM members) AS members
         FROM deployment")
    .fetch_one(&copy)
    .await
    .map_err(&failed)?;
    let cursors =
        sql("SELECT partition, cursor_epoch, cursor_seq FROM partitions ORDER BY partition");
    let cursors = cursors.fetch_all(&copy).await.map_err(&failed)?;
    copy.close().await;
    let schema = row.number("schema")?;
    check_schema(schema)?;
    let cursors = cursors.iter().map(|row| {
        let (epoch, seq) = (row.number("cursor_epoch")?, row.number("cursor_seq")?);
        Ok(PartitionAt { partition: row.partition()?.0, cursor: format!("{epoch}-{seq}") })
    });
    Ok(Contents {
        schema,
        deployment: row.text("id")?,
        namespaces: row.number("namespaces")?,
        invites: row.number("invites")?,
        redemptions: row.number("redemptions")?,
        members: row.number("members")?,
        partitions: cursors.collect::<Result<_, LedgerError>>()?,
    })
}

async fn connect(options: SqliteConnectOptions) -> Result<SqlitePool, LedgerError> {
    let pool = SqlitePoolOptions::new().max_connections(1);
    pool.connect_with(options).await.map_err(LedgerError::of("opening a copy of it"))
}
