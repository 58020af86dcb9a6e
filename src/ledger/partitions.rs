//! What each partition is open on, and the leases of those who look after them.
//!
//! A lease is a row with an owner, an expiry by the database's clock, and a token that grows with every lease given.
//! Everything that its holder writes names the token, so that one who was paused and wakes up late changes nothing.

use std::time::Duration;

use uuid::Uuid;

use super::{
    Ledger, LedgerError,
    columns::{Columns, int},
};
use crate::domain::{Cursor, Millis, Partition};

/// The version of the tables and of the keys in Redis.
const SCHEMA: i64 = 1;

/// Whose ledger this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// Its id.
    pub id: String,
    /// Its partitions.
    pub partitions: u16,
}

/// Whether a partition serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionState {
    /// It was never opened.
    New,
    /// It serves.
    Open,
    /// It serves nobody until recovery has opened it.
    Closed,
}

/// A partition as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionRow {
    /// Which.
    pub partition: Partition,
    /// Whether it serves.
    pub state: PartitionState,
    /// Why it stays closed.
    pub reason: Option<String>,
    /// How often it was opened anew.
    pub epoch: u64,
    /// The history of Redis that it is open on.
    pub lineage: Option<String>,
    /// The last change that the ledger has.
    pub cursor: Cursor,
    /// Who holds its lease.
    pub lease_owner: Option<String>,
    /// Whether that lease still holds, by the clock of the database.
    pub lease_live: bool,
    /// When the ledger last got something of it.
    pub synced_at: Option<Millis>,
    /// Whether an operator wants the gate thrown away and built anew from the ledger.
    pub rebuild_requested: bool,
}

/// The right to look after a partition, while it lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Which partition.
    pub partition: Partition,
    /// The fencing token.
    pub token: u64,
}

/// Somebody else looks after the partition now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseLost;

impl Ledger {
    /// Whose ledger this is; on first use it becomes that of `new_id`, with `partitions` partitions.
    ///
    /// # Errors
    /// [`LedgerError::Mismatch`] when it was made for another number of partitions or another schema.
    pub async fn deployment(
        &self,
        partitions: u16,
        new_id: Uuid,
    ) -> Result<Deployment, LedgerError> {
        let failed = LedgerError::of("reading the deployment");
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        let made = sqlx::query(
            "INSERT INTO deployment (only_row, id, schema, partitions, created_at)
             VALUES (1, ?, ?, ?, CAST(unixepoch('subsec') * 1000 AS INTEGER)) ON CONFLICT DO NOTHING",
        )
        .bind(new_id.to_string())
        .bind(SCHEMA)
        .bind(partitions)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        if made.rows_affected() == 1 {
            for partition in 0..partitions {
                sqlx::query(
                    "INSERT INTO partitions
                     (partition, state, epoch, cursor_epoch, cursor_seq, lease_token, lease_expires_at,
                      rebuild_requested)
                     VALUES (?, 'new', 0, 0, 0, 0, 0, 0)",
                )
                .bind(partition)
                .execute(&mut *tx)
                .await
                .map_err(&failed)?;
            }
        }
        let row = sqlx::query("SELECT id, schema, partitions FROM deployment")
            .fetch_one(&mut *tx)
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        let columns = Columns(&row);
        let (schema, found): (i64, u16) = (columns.get("schema")?, columns.get("partitions")?);
        if schema != SCHEMA {
            return Err(LedgerError::Mismatch(format!(
                "this ledger has schema {schema} and this version of redeemer needs {SCHEMA}; start the version that \
                 made it"
            )));
        }
        if found != partitions {
            return Err(LedgerError::Mismatch(format!(
                "this ledger was made with {found} partitions; set gate.partitions = {found} (it can not be changed \
                 while running)"
            )));
        }
        Ok(Deployment { id: columns.text("id")?, partitions })
    }

    /// Every partition.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn partitions(&self) -> Result<Vec<PartitionRow>, LedgerError> {
        let rows = sqlx::query(
            "SELECT *, lease_expires_at > CAST(unixepoch('subsec') * 1000 AS INTEGER) AS lease_live
             FROM partitions ORDER BY partition",
        )
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("reading the partitions"))?;
        rows.iter().map(|row| partition_row(&Columns(row))).collect()
    }

    /// One partition.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn partition(&self, partition: Partition) -> Result<PartitionRow, LedgerError> {
        let row = sqlx::query(
            "SELECT *, lease_expires_at > CAST(unixepoch('subsec') * 1000 AS INTEGER) AS lease_live
             FROM partitions WHERE partition = ?",
        )
        .bind(partition.0)
        .fetch_one(&self.reader)
        .await
        .map_err(LedgerError::of("reading a partition"))?;
        partition_row(&Columns(&row))
    }

    /// Takes every lease that is free or has run out; with `steal`, all of them. One that would last for more than
    /// twice `ttl` was written by a clock that was ahead, and counts as run out.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be written.
    pub async fn take_leases(
        &self,
        owner: &str,
        ttl: Duration,
        steal: bool,
    ) -> Result<Vec<Lease>, LedgerError> {
        let rows = sqlx::query(
            "UPDATE partitions
             SET lease_owner = ?1, lease_token = lease_token + 1,
                 lease_expires_at = CAST(unixepoch('subsec') * 1000 AS INTEGER) + ?2
             WHERE lease_expires_at NOT BETWEEN CAST(unixepoch('subsec') * 1000 AS INTEGER) + 1
                                            AND CAST(unixepoch('subsec') * 1000 AS INTEGER) + 2 * ?2 OR ?3
             RETURNING partition, lease_token",
        )
        .bind(owner)
        .bind(ms(ttl))
        .bind(steal)
        .fetch_all(&self.writer)
        .await
        .map_err(LedgerError::of("taking leases"))?;
        rows.iter()
            .map(|row| {
                Ok(Lease {
                    partition: Columns(row).partition()?,
                    token: Columns(row).number("lease_token")?,
                })
            })
            .collect()
    }

    /// Whether any lease is free or has run out: cheap, so that an idle node writes nothing.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn has_free_leases(&self, ttl: Duration) -> Result<bool, LedgerError> {
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM partitions
             WHERE lease_expires_at NOT BETWEEN CAST(unixepoch('subsec') * 1000 AS INTEGER) + 1
                                            AND CAST(unixepoch('subsec') * 1000 AS INTEGER) + 2 * ?)",
        )
        .bind(ms(ttl))
        .fetch_one(&self.reader)
        .await
        .map_err(LedgerError::of("reading leases"))
    }

    /// Extends leases that still hold; returns those that do.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be written.
    pub async fn renew_leases(
        &self,
        leases: &[Lease],
        ttl: Duration,
    ) -> Result<Vec<Lease>, LedgerError> {
        let failed = LedgerError::of("renewing leases");
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        let mut held = Vec::with_capacity(leases.len());
        for lease in leases {
            let renewed = sqlx::query(
                "UPDATE partitions SET lease_expires_at = CAST(unixepoch('subsec') * 1000 AS INTEGER) + ?
                 WHERE partition = ? AND lease_token = ?",
            )
            .bind(ms(ttl))
            .bind(lease.partition.0)
            .bind(int(lease.token))
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
            if renewed.rows_affected() == 1 {
                held.push(lease.clone());
            }
        }
        tx.commit().await.map_err(&failed)?;
        Ok(held)
    }

    /// Gives a lease back, so that another node can take it at once.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written; it then runs out by itself.
    pub async fn release_lease(&self, lease: &Lease) -> Result<(), LedgerError> {
        sqlx::query(
            "UPDATE partitions SET lease_owner = NULL, lease_expires_at = 0 WHERE partition = ? AND lease_token = ?",
        )
        .bind(lease.partition.0)
        .bind(int(lease.token))
        .execute(&self.writer)
        .await
        .map_err(LedgerError::of("releasing a lease"))?;
        Ok(())
    }

    /// Closes a partition for recovery; returns the epoch that is to be opened: the next one, and higher than `above`.
    /// The cursor stays.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn close_partition(
        &self,
        lease: &Lease,
        above: u64,
        reason: &str,
    ) -> Result<Result<u64, LeaseLost>, LedgerError> {
        let epoch: Option<i64> = sqlx::query_scalar(
            "UPDATE partitions SET state = 'closed', reason = ?, epoch = MAX(epoch, ?) + 1
             WHERE partition = ? AND lease_token = ? RETURNING epoch",
        )
        .bind(reason)
        .bind(int(above))
        .bind(lease.partition.0)
        .bind(int(lease.token))
        .fetch_optional(&self.writer)
        .await
        .map_err(LedgerError::of("closing a partition"))?;
        Ok(epoch.and_then(|epoch| u64::try_from(epoch).ok()).ok_or(LeaseLost))
    }

    /// Says why a partition stays closed. Its epoch stays what it is.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn keep_closed(
        &self,
        lease: &Lease,
        reason: &str,
    ) -> Result<Result<(), LeaseLost>, LedgerError> {
        let done = sqlx::query(
            "UPDATE partitions SET state = CASE state WHEN 'new' THEN 'new' ELSE 'closed' END, reason = ?
             WHERE partition = ? AND lease_token = ?",
        )
        .bind(reason)
        .bind(lease.partition.0)
        .bind(int(lease.token))
        .execute(&self.writer)
        .await
        .map_err(LedgerError::of("keeping a partition closed"))?;
        Ok(held(&done))
    }

    /// Opens a partition on a history of Redis. The cursor moves to the beginning of the epoch. `discarded` says that
    /// what the gate had was thrown away, as an operator had asked: then nothing of it stands in the way any more.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn open_partition(
        &self,
        lease: &Lease,
        epoch: u64,
        lineage: &str,
        discarded: bool,
    ) -> Result<Result<(), LeaseLost>, LedgerError> {
        let failed = LedgerError::of("opening a partition");
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        // A request to discard that came while a recovery was under way is for the next one.
        let done = sqlx::query(
            "UPDATE partitions SET state = 'open', reason = NULL, lineage = ?1, cursor_epoch = ?2, cursor_seq = 0,
                 rebuild_requested = CASE WHEN ?5 THEN 0 ELSE rebuild_requested END
             WHERE partition = ?3 AND lease_token = ?4 AND epoch = ?2 AND state = 'closed'",
        )
        .bind(lineage)
        .bind(int(epoch))
        .bind(lease.partition.0)
        .bind(int(lease.token))
        .bind(discarded)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        if discarded && done.rows_affected() == 1 {
            sqlx::query("UPDATE dead_letters SET handled = 1 WHERE partition = ?")
                .bind(lease.partition.0)
                .execute(&mut *tx)
                .await
                .map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        Ok(held(&done))
    }

    /// Notes that an operator wants the gate of a partition, or of all, thrown away and built anew from the ledger. Its
    /// leader does it. Returns how many partitions that are.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn request_rebuild(&self, partition: Option<Partition>) -> Result<u64, LedgerError> {
        let done = sqlx::query(
            "UPDATE partitions SET rebuild_requested = 1 WHERE ?1 IS NULL OR partition = ?1",
        )
        .bind(partition.map(|partition| partition.0))
        .execute(&self.writer)
        .await
        .map_err(LedgerError::of("requesting a rebuild"))?;
        Ok(done.rows_affected())
    }

    /// Says what is wrong with a partition that goes on serving, or that nothing is.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn note(&self, lease: &Lease, reason: Option<&str>) -> Result<(), LedgerError> {
        sqlx::query("UPDATE partitions SET reason = ? WHERE partition = ? AND lease_token = ?")
            .bind(reason)
            .bind(lease.partition.0)
            .bind(int(lease.token))
            .execute(&self.writer)
            .await
            .map_err(LedgerError::of("noting the state of a partition"))?;
        Ok(())
    }

    /// How many entries of a partition could not be applied.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn dead_letters(&self, partition: Partition) -> Result<u64, LedgerError> {
        let count: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM dead_letters WHERE partition = ? AND handled = 0",
        )
        .bind(partition.0)
        .fetch_one(&self.reader)
        .await
        .map_err(LedgerError::of("counting dead letters"))?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    /// How many dead letters stand right below a cursor without anything between them, at most `max`.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn dead_letters_below(
        &self,
        partition: Partition,
        cursor: Cursor,
        max: u32,
    ) -> Result<u32, LedgerError> {
        let seqs: Vec<i64> = sqlx::query_scalar(
            "SELECT seq FROM dead_letters WHERE partition = ? AND epoch = ? AND seq <= ? ORDER BY seq DESC LIMIT ?",
        )
        .bind(partition.0)
        .bind(int(cursor.epoch))
        .bind(int(cursor.seq))
        .bind(max)
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("reading dead letters"))?;
        let expected = (0..).map(|below| int(cursor.seq) - below);
        let run = seqs.iter().zip(expected).take_while(|(seq, expected)| *seq == expected);
        Ok(u32::try_from(run.count()).unwrap_or(max))
    }
}

fn held(done: &sqlx::sqlite::SqliteQueryResult) -> Result<(), LeaseLost> {
    if done.rows_affected() == 1 { Ok(()) } else { Err(LeaseLost) }
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn partition_row(columns: &Columns<'_>) -> Result<PartitionRow, LedgerError> {
    let state = match columns.text("state")?.as_str() {
        "new" => PartitionState::New,
        "open" => PartitionState::Open,
        "closed" => PartitionState::Closed,
        other => return Err(LedgerError::Corrupt(format!("a partition's state is {other:?}"))),
    };
    Ok(PartitionRow {
        partition: columns.partition()?,
        state,
        reason: columns.maybe_text("reason")?,
        epoch: columns.number("epoch")?,
        lineage: columns.maybe_text("lineage")?,
        cursor: Cursor {
            epoch: columns.number("cursor_epoch")?,
            seq: columns.number("cursor_seq")?,
        },
        lease_owner: columns.maybe_text("lease_owner")?,
        lease_live: columns.get("lease_live")?,
        synced_at: columns.maybe_time("synced_at")?,
        rebuild_requested: columns.get("rebuild_requested")?,
    })
}
