//! Batches: plain SQL, since they are the service's own work and no decision of the gate.
//!
//! A node that makes one holds its lease: an owner, an expiry by the database's clock, and a token that grows with each
//! lease given, which everything that the holder writes names.

use std::time::Duration;

use super::{
    By, Ledger, LedgerError,
    audit_log::record,
    columns::BATCH,
    partitions::ms,
    sql::{Row, sql},
};
use crate::domain::{Batch, BatchId, BatchOrder, CampaignName, EmailDomain, Millis, Namespace};

/// A batch that this node is to make.
#[derive(Clone)]
pub struct BatchJob {
    /// The batch, as far as it is.
    pub batch: Batch,
    /// What its codes follow from.
    pub secret: [u8; 16],
    token: u64,
}

/// How the work at a batch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchEnd {
    /// All of it is in gate and ledger.
    Finished,
    /// It will not be, and why.
    Failed(String),
    /// Somebody else is to go on, after those that wait.
    LeftOpen,
}

impl Ledger {
    /// Keeps a new order, unless one of its id is there.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn insert_batch(
        &self,
        order: &BatchOrder,
        secret: [u8; 16],
        by: &By,
    ) -> Result<(), LedgerError> {
        let failed = LedgerError::of("writing a batch");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let now = self.dialect.now_ms();
        let domains: Vec<_> = order.email_domains.iter().map(EmailDomain::to_string).collect();
        let is_new = sql(format!(
            "INSERT INTO batches (id, namespace, pattern, alphabet, total, done, grp, max_uses, starts_at, expires_at,
             email_domains, metadata, max_uses_per_user, campaign, actor, secret, state, created_at, lease_token,
             lease_expires_at)
             VALUES ($1, $2, $3, $4, $5, 0, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 'waiting', {now}, 0, 0)
             ON CONFLICT DO NOTHING",
        ))
        .bind(order.id.0)
        .bind(order.namespace.as_str())
        .bind(order.pattern.as_str())
        .bind(order.alphabet.as_str())
        .bind(order.count)
        .bind(order.group.as_str())
        .bind(order.max_uses)
        .bind(order.starts_at.map(Millis::as_ms))
        .bind(order.expires_at.map(Millis::as_ms))
        .bind((!domains.is_empty()).then(|| domains.join(",")))
        .bind(order.metadata.as_deref())
        .bind(order.max_uses_per_user)
        .bind(order.campaign.as_ref().map(CampaignName::as_str))
        .bind(order.actor.as_str())
        .bind(secret.to_vec())
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        if is_new == 1 {
            let subject = format!("{}, {} invites", order.id, order.count);
            let namespace = Some(&order.namespace);
            record(&mut tx, by, "batch_ordered", namespace, &subject).await.map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)
    }

    /// One batch.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn batch(
        &self,
        namespace: &Namespace,
        id: BatchId,
    ) -> Result<Option<Batch>, LedgerError> {
        let row = sql(format!("SELECT {BATCH} FROM batches WHERE id = $1 AND namespace = $2"))
            .bind(id.0)
            .bind(namespace.as_str())
            .fetch_optional(&self.reader)
            .await
            .map_err(LedgerError::of("reading a batch"))?;
        row.map(|row| row.batch()).transpose()
    }

    /// Whether any batch waits for somebody to make it: cheap, so that an idle node writes nothing.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn has_open_batches(&self, ttl: Duration) -> Result<bool, LedgerError> {
        let now = self.dialect.now_ms();
        let row = sql(format!(
            "SELECT EXISTS (SELECT 1 FROM batches WHERE state IN ('waiting', 'running')
             AND lease_expires_at NOT BETWEEN {now} + 1 AND {now} + 2 * $1) AS open",
        ))
        .bind(ms(ttl))
        .fetch_one(&self.reader)
        .await
        .map_err(LedgerError::of("reading batches"))?;
        row.get("open")
    }

    /// Takes the batch that has waited longest, if any does; with `steal`, also one that somebody holds.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn take_batch(
        &self,
        owner: &str,
        ttl: Duration,
        steal: bool,
    ) -> Result<Option<BatchJob>, LedgerError> {
        let (now, lock) = (self.dialect.now_ms(), self.dialect.for_update_skip_locked());
        let row = sql(format!(
            "UPDATE batches SET state = 'running', started_at = COALESCE(started_at, {now}), lease_owner = $1,
                 lease_token = lease_token + 1, lease_expires_at = {now} + $2
             WHERE id IN (
                 SELECT id FROM batches WHERE state IN ('waiting', 'running')
                     AND (lease_expires_at NOT BETWEEN {now} + 1 AND {now} + 2 * $2 OR $3)
                 ORDER BY lease_expires_at, created_at, id LIMIT 1 {lock})
             RETURNING {BATCH}",
        ))
        .bind(owner)
        .bind(ms(ttl))
        .bind(steal)
        .fetch_optional(&self.writer)
        .await
        .map_err(LedgerError::of("taking a batch"))?;
        row.map(|row| job(&row)).transpose()
    }

    /// Writes down how far a batch is, and extends its lease; says whether that still held.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn keep_batch(
        &self,
        job: &BatchJob,
        done: u64,
        ttl: Duration,
    ) -> Result<bool, LedgerError> {
        let now = self.dialect.now_ms();
        let kept = sql(format!(
            "UPDATE batches SET done = $1, lease_expires_at = {now} + $2
             WHERE id = $3 AND lease_token = $4 AND state = 'running'",
        ))
        .bind(done)
        .bind(ms(ttl))
        .bind(job.batch.order.id.0)
        .bind(job.token)
        .execute(&self.writer)
        .await
        .map_err(LedgerError::of("writing a batch"))?;
        Ok(kept == 1)
    }

    /// Ends the work at a batch, unless its lease is lost.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn end_batch(
        &self,
        job: &BatchJob,
        done: u64,
        end: &BatchEnd,
    ) -> Result<(), LedgerError> {
        let now = self.dialect.now_ms();
        let (state, reason) = match end {
            BatchEnd::Finished => ("finished", None),
            BatchEnd::Failed(reason) => ("failed", Some(reason.as_str())),
            BatchEnd::LeftOpen => ("running", None),
        };
        let more = match end {
            // Nobody needs to know any more what the codes followed from.
            BatchEnd::Finished | BatchEnd::Failed(_) => {
                format!(", finished_at = {now}, secret = NULL")
            }
            BatchEnd::LeftOpen => String::new(),
        };
        sql(format!(
            "UPDATE batches SET done = $1, state = $2, reason = $3, lease_owner = NULL, lease_expires_at = {now} {more}
             WHERE id = $4 AND lease_token = $5 AND state = 'running'",
        ))
        .bind(done)
        .bind(state)
        .bind(reason)
        .bind(job.batch.order.id.0)
        .bind(job.token)
        .execute(&self.writer)
        .await
        .map_err(LedgerError::of("writing a batch"))?;
        Ok(())
    }
}

fn job(row: &Row) -> Result<BatchJob, LedgerError> {
    let secret: Option<Vec<u8>> = row.get("secret")?;
    let secret = secret.and_then(|secret| secret.try_into().ok());
    Ok(BatchJob {
        batch: row.batch()?,
        secret: secret
            .ok_or_else(|| LedgerError::Corrupt("a batch's secret has not 16 bytes".to_owned()))?,
        token: row.number("lease_token")?,
    })
}
