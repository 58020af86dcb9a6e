//! What each partition is open on, and the leases of those who look after them.
//!
//! A lease is a row with an owner, an expiry by the database's clock, and a token that grows with every lease given.
//! Everything that its holder writes names the token, so that one who was paused and wakes up late changes nothing.

use std::time::Duration;

use uuid::Uuid;

use super::{
    By, Ledger, LedgerError,
    audit_log::record,
    columns::PARTITION,
    sql::{Row, sql},
};
use crate::domain::{Cursor, Millis, Partition};

/// The version of the tables and of the keys in Redis. A version and the one before it run side by side, so that nodes
/// can be upgraded, and taken back, one by one: what a migration adds, the version before can leave alone.
const SCHEMA: u64 = 1;

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

impl PartitionState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::New, Self::Open, Self::Closed];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

/// Which side is to be made like the other, by an operator's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// The gate is thrown away and built from the ledger.
    FromLedger,
    /// What the gate has is written into the ledger.
    FromGate,
}

impl Rebuild {
    fn as_str(self) -> &'static str {
        match self {
            Self::FromLedger => "from_ledger",
            Self::FromGate => "from_gate",
        }
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "from_ledger" => Ok(Self::FromLedger),
            "from_gate" => Ok(Self::FromGate),
            _ => Err("neither from_ledger nor from_gate"),
        }
    }
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
    /// The first epoch of which the ledger has every change; the one in which a gate was taken for the truth, if one was.
    pub whole_from: u64,
    /// What an operator wants of it.
    pub requested: Option<Rebuild>,
}

/// The right to look after a partition, while it lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Which partition.
    pub partition: Partition,
    /// The fencing token.
    pub token: u64,
}

/// What became of opening a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// It serves.
    Opened,
    /// A node has handed in something at the last moment: it has to be looked at first.
    ClaimsWait,
    /// Somebody else looks after it now.
    LeaseLost,
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
        let now = self.dialect.now_ms();
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let made = sql(format!(
            "INSERT INTO deployment (only_row, id, schema, partitions, created_at)
             VALUES (1, $1, $2, $3, {now}) ON CONFLICT DO NOTHING",
        ))
        .bind(new_id.to_string())
        .bind(SCHEMA)
        .bind(partitions)
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        if made == 1 {
            for partition in 0..partitions {
                sql(
                    "INSERT INTO partitions
                     (partition, state, epoch, cursor_epoch, cursor_seq, lease_token, lease_expires_at,
                      whole_from)
                     VALUES ($1, 'new', 0, 0, 0, 0, 0, 0)",
                )
                .bind(partition)
                .execute(&mut tx)
                .await
                .map_err(&failed)?;
            }
        }
        let row = sql("SELECT id, schema, partitions FROM deployment")
            .fetch_one(&mut tx)
            .await
            .map_err(&failed)?;
        let (schema, found) = (row.number("schema")?, row.number("partitions")?);
        check_schema(schema)?;
        sql("UPDATE deployment SET schema = $1 WHERE schema < $1")
            .bind(SCHEMA)
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        if found != u64::from(partitions) {
            return Err(LedgerError::Mismatch(format!(
                "this ledger was made with {found} partitions; set gate.partitions = {found} (it can not be changed \
                 while running)"
            )));
        }
        Ok(Deployment { id: row.text("id")?, partitions })
    }

    /// Every partition.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn partitions(&self) -> Result<Vec<PartitionRow>, LedgerError> {
        let now = self.dialect.now_ms();
        let rows = sql(format!(
            "SELECT {PARTITION}, lease_expires_at > {now} AS lease_live
             FROM partitions ORDER BY partition",
        ))
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("reading the partitions"))?;
        rows.iter().map(partition_row).collect()
    }

    /// One partition.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn partition(&self, partition: Partition) -> Result<PartitionRow, LedgerError> {
        let now = self.dialect.now_ms();
        let row = sql(format!(
            "SELECT {PARTITION}, lease_expires_at > {now} AS lease_live
             FROM partitions WHERE partition = $1",
        ))
        .bind(partition.0)
        .fetch_one(&self.reader)
        .await
        .map_err(LedgerError::of("reading a partition"))?;
        partition_row(&row)
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
        let (now, lock) = (self.dialect.now_ms(), self.dialect.for_update_skip_locked());
        let rows = sql(format!(
            "UPDATE partitions
             SET lease_owner = $1, lease_token = lease_token + 1,
                 lease_expires_at = {now} + $2
             WHERE partition IN (
                 SELECT partition FROM partitions
                 WHERE lease_expires_at NOT BETWEEN {now} + 1 AND {now} + 2 * $2 OR $3
                 ORDER BY partition {lock})
             RETURNING partition, lease_token",
        ))
        .bind(owner)
        .bind(ms(ttl))
        .bind(steal)
        .fetch_all(&self.writer)
        .await
        .map_err(LedgerError::of("taking leases"))?;
        rows.iter()
            .map(|row| Ok(Lease { partition: row.partition()?, token: row.number("lease_token")? }))
            .collect()
    }

    /// Whether any lease is free or has run out: cheap, so that an idle node writes nothing.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn has_free_leases(&self, ttl: Duration) -> Result<bool, LedgerError> {
        let now = self.dialect.now_ms();
        let row = sql(format!(
            "SELECT EXISTS (SELECT 1 FROM partitions
             WHERE lease_expires_at NOT BETWEEN {now} + 1 AND {now} + 2 * $1) AS free",
        ))
        .bind(ms(ttl))
        .fetch_one(&self.reader)
        .await
        .map_err(LedgerError::of("reading leases"))?;
        row.get("free")
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
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let now = self.dialect.now_ms();
        let mut held = Vec::with_capacity(leases.len());
        // In the order in which leases are taken, or two nodes could wait for each other.
        let mut leases: Vec<_> = leases.iter().collect();
        leases.sort_by_key(|lease| lease.partition);
        for lease in leases {
            let renewed = sql(format!(
                "UPDATE partitions SET lease_expires_at = {now} + $1
                 WHERE partition = $2 AND lease_token = $3",
            ))
            .bind(ms(ttl))
            .bind(lease.partition.0)
            .bind(lease.token)
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
            if renewed == 1 {
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
        sql(
            "UPDATE partitions SET lease_owner = NULL, lease_expires_at = 0 WHERE partition = $1 AND lease_token = $2",
        )
        .bind(lease.partition.0)
        .bind(lease.token)
        .execute(&self.writer)
        .await
        .map_err(LedgerError::of("releasing a lease"))?;
        Ok(())
    }

    /// Whether a node of the next version has used it: what that one writes, this one may not understand.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn is_of_next_version(&self) -> Result<bool, LedgerError> {
        let row = sql("SELECT schema FROM deployment")
            .fetch_one(&self.reader)
            .await
            .map_err(LedgerError::of("reading the schema"))?;
        Ok(row.number("schema")? > SCHEMA)
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
        let greatest = self.dialect.greatest();
        let row = sql(format!(
            "UPDATE partitions SET state = 'closed', reason = $1, epoch = {greatest}(epoch, $2) + 1
             WHERE partition = $3 AND lease_token = $4 RETURNING epoch",
        ))
        .bind(reason)
        .bind(above)
        .bind(lease.partition.0)
        .bind(lease.token)
        .fetch_optional(&self.writer)
        .await
        .map_err(LedgerError::of("closing a partition"))?;
        let Some(row) = row else { return Ok(Err(LeaseLost)) };
        Ok(Ok(row.number("epoch")?))
    }

    /// Says why a partition stays closed. Its epoch stays what it is. A request to take the gate has its answer with it.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn keep_closed(
        &self,
        lease: &Lease,
        reason: &str,
    ) -> Result<Result<(), LeaseLost>, LedgerError> {
        let done = sql(
            "UPDATE partitions SET state = CASE state WHEN 'new' THEN 'new' ELSE 'closed' END, reason = $1,
                 requested = CASE WHEN requested = 'from_gate' THEN NULL ELSE requested END
             WHERE partition = $2 AND lease_token = $3",
        )
        .bind(reason)
        .bind(lease.partition.0)
        .bind(lease.token)
        .execute(&self.writer)
        .await
        .map_err(LedgerError::of("keeping a partition closed"))?;
        Ok(held(done))
    }

    /// Opens a partition on a history of Redis. The cursor moves to the beginning of the epoch. `rebuilt` says what was
    /// done because an operator had asked for it: then nothing of before stands in the way any more. A
    /// partition with waiting claims is not opened.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn open_partition(
        &self,
        lease: &Lease,
        epoch: u64,
        lineage: &str,
        rebuilt: Option<Rebuild>,
    ) -> Result<Opened, LedgerError> {
        let failed = LedgerError::of("opening a partition");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        // Whoever is claiming comes before or after this, and what came before is seen below.
        sql("UPDATE partitions SET lease_token = lease_token WHERE partition = $1")
            .bind(lease.partition.0)
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        // A request that came while a recovery was under way is for the next one.
        let done = sql(
            "UPDATE partitions SET state = 'open', reason = NULL, lineage = $1, cursor_epoch = $2, cursor_seq = 0,
                 requested = CASE WHEN requested = $5 THEN NULL ELSE requested END,
                 whole_from = CASE WHEN $5 = 'from_gate' THEN $2 ELSE whole_from END
             WHERE partition = $3 AND lease_token = $4 AND epoch = $2 AND state = 'closed'
                 AND NOT EXISTS (SELECT 1 FROM claims WHERE partition = $3 AND outcome IS NULL)",
        )
        .bind(lineage)
        .bind(epoch)
        .bind(lease.partition.0)
        .bind(lease.token)
        .bind(rebuilt.map(Rebuild::as_str))
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        if done == 0 {
            let waiting = sql("SELECT EXISTS (SELECT 1 FROM claims WHERE partition = $1 AND outcome IS NULL) AS waiting")
                .bind(lease.partition.0)
                .fetch_one(&mut tx)
                .await
                .map_err(&failed)?;
            return Ok(if waiting.get("waiting")? {
                Opened::ClaimsWait
            } else {
                Opened::LeaseLost
            });
        }
        if rebuilt.is_some() {
            sql("UPDATE dead_letters SET handled = TRUE WHERE partition = $1")
                .bind(lease.partition.0)
                .execute(&mut tx)
                .await
                .map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        Ok(Opened::Opened)
    }

    /// Notes that an operator wants one side of a partition, or of all, made like the other. Its leader does it. Returns
    /// how many partitions that are.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn request_rebuild(
        &self,
        partition: Option<Partition>,
        rebuild: Rebuild,
        by: &By,
    ) -> Result<u64, LedgerError> {
        let failed = LedgerError::of("requesting a rebuild");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let count = sql("UPDATE partitions SET requested = $2 WHERE $1 IS NULL OR partition = $1")
            .bind(partition.map(|partition| partition.0))
            .bind(rebuild.as_str())
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        if count > 0 {
            let which =
                partition.map_or("all partitions".to_owned(), |one| format!("partition {one}"));
            let subject = format!("{which}, {}", rebuild.as_str());
            record(&mut tx, by, "rebuild_ordered", None, &subject).await.map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        Ok(count)
    }

    /// Says what is wrong with a partition that goes on serving, or that nothing is.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn note(&self, lease: &Lease, reason: Option<&str>) -> Result<(), LedgerError> {
        sql("UPDATE partitions SET reason = $1 WHERE partition = $2 AND lease_token = $3")
            .bind(reason)
            .bind(lease.partition.0)
            .bind(lease.token)
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
        let row = sql(
            "SELECT COUNT(*) AS letters FROM dead_letters WHERE partition = $1 AND NOT handled",
        )
        .bind(partition.0)
        .fetch_one(&self.reader)
        .await
        .map_err(LedgerError::of("counting dead letters"))?;
        row.number("letters")
    }

    /// How many unhandled dead letters stand right below a cursor without anything between them, at most `max`.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn dead_letters_below(
        &self,
        partition: Partition,
        cursor: Cursor,
        max: u32,
    ) -> Result<u32, LedgerError> {
        let rows = sql(
            "SELECT seq FROM dead_letters WHERE partition = $1 AND epoch = $2 AND seq <= $3 AND NOT handled
             ORDER BY seq DESC LIMIT $4",
        )
        .bind(partition.0)
        .bind(cursor.epoch)
        .bind(cursor.seq)
        .bind(max)
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("reading dead letters"))?;
        let seqs = rows.iter().map(|row| row.number("seq")).collect::<Result<Vec<_>, _>>()?;
        let expected = (0..=cursor.seq).rev();
        let run = seqs.iter().zip(expected).take_while(|(seq, expected)| *seq == expected);
        Ok(u32::try_from(run.count()).unwrap_or(max))
    }
}

/// Whether this version can live with a ledger of this schema.
pub(super) fn check_schema(schema: u64) -> Result<(), LedgerError> {
    if schema <= SCHEMA + 1 {
        return Ok(());
    }
    Err(LedgerError::Mismatch(format!(
        "this ledger has schema {schema}, and this version of redeemer knows those up to {}; start a newer version, or \
         restore a backup",
        SCHEMA + 1
    )))
}

fn held(rows: u64) -> Result<(), LeaseLost> {
    if rows == 1 { Ok(()) } else { Err(LeaseLost) }
}

pub(super) fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn partition_row(row: &Row) -> Result<PartitionRow, LedgerError> {
    let state = match row.text("state")?.as_str() {
        "new" => PartitionState::New,
        "open" => PartitionState::Open,
        "closed" => PartitionState::Closed,
        other => return Err(LedgerError::Corrupt(format!("a partition's state is {other:?}"))),
    };
    Ok(PartitionRow {
        partition: row.partition()?,
        state,
        reason: row.maybe_text("reason")?,
        epoch: row.number("epoch")?,
        lineage: row.maybe_text("lineage")?,
        cursor: Cursor { epoch: row.number("cursor_epoch")?, seq: row.number("cursor_seq")? },
        lease_owner: row.maybe_text("lease_owner")?,
        lease_live: row.get("lease_live")?,
        synced_at: row.maybe_time("synced_at")?,
        whole_from: row.number("whole_from")?,
        requested: row.maybe_parsed("requested", Rebuild::parse)?,
    })
}
