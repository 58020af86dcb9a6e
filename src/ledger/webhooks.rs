//! Webhooks and their deliveries: plain SQL, since they are the service's own work and no decision of the gate.
//!
//! A node that serves a webhook holds its lease: an owner, an expiry by the database's clock, and a token that grows with
//! each lease given, which everything that the holder writes names. A delivery is made in one transaction with the
//! webhook's cursor, so that each event has exactly one, whoever serves the webhook.

use std::time::Duration;

use super::{
    By, Ledger, LedgerError,
    append::in_bulk,
    audit_log::record,
    partitions::ms,
    sql::{Row, Tx, sql},
};
use crate::domain::{
    Cursor, Delivery, DeliveryId, DeliveryState, Malformed, Namespace, Partition, Position,
    Positions, Webhook, WebhookId, webhook::Secret,
};

const WEBHOOK: &str = "id, namespace, url, event_types, disabled, reason, failing_since, cursor_epoch, cursor_seq, \
     actor, created_at, updated_at, lease_token";
const DELIVERY: &str = "id, webhook, partition, epoch, seq, kind, state, attempts, due_at, created_at, attempted_at, \
     response_status, error";

/// What a webhook's deliveries are listed by.
const PLACE: &str = "created_at, epoch, seq, partition";
/// The partition of a delivery whose event is in that of the namespace itself, as for all of a namespace that is not
/// spread.
const HOME: i64 = -1;
/// The most secrets that sign at the same time.
const SECRETS_MAX: u32 = 5;
/// Rows that are removed in one transaction.
const REMOVE_ROWS: u32 = 1000;
/// A receiver that was away for so long gets what waits for it as soon as it is back.
const AWAY: Duration = Duration::from_mins(1);

/// What a new webhook is like.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are those of Webhook")]
pub struct NewWebhook {
    pub id: WebhookId,
    pub namespace: Namespace,
    pub url: String,
    pub event_types: Vec<String>,
    pub created_by: String,
    /// It gets what comes after this.
    pub cursor: Cursor,
    /// And what comes after this in the other partitions of its namespace.
    pub elsewhere: Positions,
    pub secret: Secret,
}

/// What to change; nothing leaves a field as it is.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the fields are those of Webhook")]
pub struct WebhookPatch {
    pub url: Option<String>,
    pub event_types: Option<Vec<String>>,
    pub disabled: Option<bool>,
}

/// A webhook that this node is to serve.
#[derive(Debug, Clone)]
pub struct WebhookJob {
    /// The webhook as it is.
    pub webhook: Webhook,
    token: u64,
}

/// What became of one attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Of which delivery.
    pub id: DeliveryId,
    /// How it goes on.
    pub state: DeliveryState,
    /// Until the next attempt, if there is to be one.
    pub again_in: Duration,
    /// The status of the answer, if there was one.
    pub response_status: Option<u16>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Ledger {
    /// Keeps a new webhook, unless one of its id is there; says whether the namespace may have one more than it has.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn insert_webhook(
        &self,
        new: &NewWebhook,
        max: u32,
        by: &By,
    ) -> Result<bool, LedgerError> {
        let failed = LedgerError::of("writing a webhook");
        let now = self.dialect.now_ms();
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let known = sql("SELECT 1 FROM webhooks WHERE id = $1")
            .bind(new.id.0)
            .fetch_optional(&mut tx)
            .await
            .map_err(&failed)?;
        if known.is_some() {
            return Ok(true);
        }
        let made = sql(format!(
            "INSERT INTO webhooks (id, namespace, url, event_types, disabled, cursor_epoch, cursor_seq, actor, created_at,
             updated_at, lease_token, lease_expires_at)
             SELECT $1, $2, $3, $4, FALSE, $5, $6, $7, {now}, {now}, 0, 0
             WHERE (SELECT COUNT(*) FROM webhooks WHERE namespace = $2) < $8",
        ))
        .bind(new.id.0)
        .bind(new.namespace.as_str())
        .bind(new.url.as_str())
        .bind(types(&new.event_types))
        .bind(new.cursor.epoch)
        .bind(new.cursor.seq)
        .bind(new.created_by.as_str())
        .bind(max)
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        if made == 0 {
            return Ok(false);
        }
        sql(format!(
            "INSERT INTO webhook_secrets (webhook, secret, created_at) VALUES ($1, $2, {now})"
        ))
        .bind(new.id.0)
        .bind(new.secret.bytes().to_vec())
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        for position in new.elsewhere.iter() {
            go_to(&mut tx, new.id, position).await.map_err(&failed)?;
        }
        let (namespace, subject) = (Some(&new.namespace), new.id.to_string());
        record(&mut tx, by, "webhook_created", namespace, &subject).await.map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(true)
    }

    /// One webhook.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn webhook(
        &self,
        namespace: &Namespace,
        id: WebhookId,
    ) -> Result<Option<Webhook>, LedgerError> {
        let row = sql(format!("SELECT {WEBHOOK} FROM webhooks WHERE id = $1 AND namespace = $2"))
            .bind(id.0)
            .bind(namespace.as_str())
            .fetch_optional(&self.reader)
            .await
            .map_err(LedgerError::of("reading a webhook"))?;
        row.map(|row| webhook(&row)).transpose()
    }

    /// How far a webhook is in the partitions of its namespace but that of the namespace itself.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn webhook_elsewhere(&self, id: WebhookId) -> Result<Positions, LedgerError> {
        let rows = sql("SELECT partition, epoch, seq FROM webhook_cursors WHERE webhook = $1")
            .bind(id.0)
            .fetch_all(&self.reader)
            .await
            .map_err(LedgerError::of("reading how far a webhook is"))?;
        rows.iter()
            .map(|row| Ok(Position { partition: row.partition()?, cursor: row.cursor()? }))
            .collect()
    }

    /// The webhooks of a namespace, the oldest first; there are few.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn webhooks(&self, namespace: &Namespace) -> Result<Vec<Webhook>, LedgerError> {
        let rows = sql(format!(
            "SELECT {WEBHOOK} FROM webhooks WHERE namespace = $1 ORDER BY created_at, id"
        ))
        .bind(namespace.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("reading webhooks"))?;
        rows.iter().map(webhook).collect()
    }

    /// Changes a webhook. One that is enabled again goes on where it stopped.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn change_webhook(
        &self,
        namespace: &Namespace,
        id: WebhookId,
        patch: &WebhookPatch,
        by: &By,
    ) -> Result<(), LedgerError> {
        let failed = LedgerError::of("changing a webhook");
        let now = self.dialect.now_ms();
        let mut query = sql(format!("UPDATE webhooks SET updated_at = {now}"));
        if let Some(url) = &patch.url {
            query.push(", url = ").push_bind(url.as_str());
        }
        if let Some(event_types) = &patch.event_types {
            query.push(", event_types = ").push_bind(types(event_types));
        }
        if let Some(disabled) = patch.disabled {
            query.push(", reason = NULL, failing_since = NULL, disabled = ").push_bind(disabled);
        }
        query.push(" WHERE id = ").push_bind(id.0);
        query.push(" AND namespace = ").push_bind(namespace.as_str());
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        if query.execute(&mut tx).await.map_err(&failed)? == 1 {
            let subject = id.to_string();
            record(&mut tx, by, "webhook_changed", Some(namespace), &subject)
                .await
                .map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)
    }

    /// Removes a webhook; its deliveries go with it, by and by. Says whether it was there.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn delete_webhook(
        &self,
        namespace: &Namespace,
        id: WebhookId,
        by: &By,
    ) -> Result<bool, LedgerError> {
        let failed = LedgerError::of("deleting a webhook");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let gone = sql("DELETE FROM webhooks WHERE id = $1 AND namespace = $2")
            .bind(id.0)
            .bind(namespace.as_str())
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        if gone == 1 {
            for table in ["webhook_secrets", "webhook_cursors"] {
                sql(format!("DELETE FROM {table} WHERE webhook = $1"))
                    .bind(id.0)
                    .execute(&mut tx)
                    .await
                    .map_err(&failed)?;
            }
            let subject = id.to_string();
            record(&mut tx, by, "webhook_deleted", Some(namespace), &subject)
                .await
                .map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        Ok(gone == 1)
    }

    /// Gives a webhook a new secret; those before it sign for so much longer.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn rotate_secret(
        &self,
        namespace: &Namespace,
        id: WebhookId,
        secret: &Secret,
        overlap: Duration,
        by: &By,
    ) -> Result<(), LedgerError> {
        let failed = LedgerError::of("rotating a secret");
        let now = self.dialect.now_ms();
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        sql(format!(
            "UPDATE webhook_secrets SET expires_at = {now} + $1 WHERE webhook = $2 AND expires_at IS NULL"
        ))
        .bind(ms(overlap))
        .bind(id.0)
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        sql(format!("DELETE FROM webhook_secrets WHERE webhook = $1 AND expires_at <= {now}"))
            .bind(id.0)
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        sql(format!(
            "INSERT INTO webhook_secrets (webhook, secret, created_at) VALUES ($1, $2, {now})"
        ))
        .bind(id.0)
        .bind(secret.bytes().to_vec())
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        record(&mut tx, by, "webhook_secret_rotated", Some(namespace), &id.to_string())
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)
    }

    /// The secrets that sign, the newest first.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn secrets(&self, id: WebhookId) -> Result<Vec<Secret>, LedgerError> {
        let now = self.dialect.now_ms();
        let rows = sql(format!(
            "SELECT secret FROM webhook_secrets WHERE webhook = $1 AND (expires_at IS NULL OR expires_at > {now})
             ORDER BY CASE WHEN expires_at IS NULL THEN 0 ELSE 1 END, expires_at DESC LIMIT $2",
        ))
        .bind(id.0)
        .bind(SECRETS_MAX)
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("reading secrets"))?;
        rows.iter().map(secret).collect()
    }

    /// Deliveries of a webhook, the newest first, before one if it is given; and the one that the next page begins behind.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn deliveries(
        &self,
        webhook: WebhookId,
        state: Option<DeliveryState>,
        before: Option<DeliveryId>,
        limit: u32,
    ) -> Result<(Vec<Delivery>, Option<DeliveryId>), LedgerError> {
        let mut query =
            sql(format!("SELECT {DELIVERY} FROM deliveries WHERE webhook = $1")).bind(webhook.0);
        if let Some(state) = state {
            query.push(" AND state = ").push_bind(state.as_str());
        }
        if let Some(id) = before {
            query.push(&format!(" AND ({PLACE}) < (SELECT {PLACE} FROM deliveries WHERE id = "));
            query.push_bind(id.0).push(")");
        }
        query
            .push(" ORDER BY created_at DESC, epoch DESC, seq DESC, partition DESC LIMIT ")
            .push_bind(limit + 1);
        let rows =
            query.fetch_all(&self.reader).await.map_err(LedgerError::of("reading deliveries"))?;
        let mut rows = rows.iter().map(delivery).collect::<Result<Vec<_>, _>>()?;
        let more = super::read::cut(&mut rows, limit);
        let next = rows.last().filter(|_| more).map(|last| last.id);
        Ok((rows, next))
    }

    /// Has a delivery tried at once, also one that was given up; returns it, if there is one of this namespace.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn retry_delivery(
        &self,
        namespace: &Namespace,
        id: DeliveryId,
        by: &By,
    ) -> Result<Option<Delivery>, LedgerError> {
        let failed = LedgerError::of("retrying a delivery");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let now = self.dialect.now_ms();
        let row = sql(format!(
            "UPDATE deliveries SET state = 'waiting', due_at = {now} WHERE id = $1
             AND webhook IN (SELECT id FROM webhooks WHERE namespace = $2) RETURNING {DELIVERY}",
        ))
        .bind(id.0)
        .bind(namespace.as_str())
        .fetch_optional(&mut tx)
        .await
        .map_err(&failed)?;
        let Some(row) = row else { return Ok(None) };
        record(&mut tx, by, "delivery_retried", Some(namespace), &id.to_string())
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        delivery(&row).map(Some)
    }

    /// Whether any webhook waits for somebody to serve it: cheap, so that an idle node writes nothing.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn has_free_webhooks(&self, ttl: Duration) -> Result<bool, LedgerError> {
        let now = self.dialect.now_ms();
        let row = sql(format!(
            "SELECT EXISTS (SELECT 1 FROM webhooks WHERE NOT disabled
             AND lease_expires_at NOT BETWEEN {now} + 1 AND {now} + 2 * $1) AS free",
        ))
        .bind(ms(ttl))
        .fetch_one(&self.reader)
        .await
        .map_err(LedgerError::of("reading webhooks"))?;
        row.get("free")
    }

    /// Takes webhooks that nobody serves, at most `max`; with `steal`, also those that somebody does.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be written.
    pub async fn take_webhooks(
        &self,
        owner: &str,
        ttl: Duration,
        steal: bool,
        max: u32,
    ) -> Result<Vec<WebhookJob>, LedgerError> {
        let (now, lock) = (self.dialect.now_ms(), self.dialect.for_update_skip_locked());
        let rows = sql(format!(
            "UPDATE webhooks SET lease_owner = $1, lease_token = lease_token + 1, lease_expires_at = {now} + $2
             WHERE id IN (
                 SELECT id FROM webhooks WHERE NOT disabled
                     AND (lease_expires_at NOT BETWEEN {now} + 1 AND {now} + 2 * $2 OR $3)
                 ORDER BY lease_expires_at, id LIMIT $4 {lock})
             RETURNING {WEBHOOK}",
        ))
        .bind(owner)
        .bind(ms(ttl))
        .bind(steal)
        .bind(max)
        .fetch_all(&self.writer)
        .await
        .map_err(LedgerError::of("taking webhooks"))?;
        rows.iter().map(job).collect()
    }

    /// Extends an owner's leases of these webhooks; returns those that it still holds. What it serves no more runs out.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be written.
    pub async fn keep_webhooks(
        &self,
        owner: &str,
        ids: &[WebhookId],
        ttl: Duration,
    ) -> Result<Vec<WebhookId>, LedgerError> {
        let now = self.dialect.now_ms();
        let mut query = sql(format!(
            "UPDATE webhooks SET lease_expires_at = {now} + $1 WHERE lease_owner = $2 AND NOT disabled AND id IN ("
        ))
        .bind(ms(ttl))
        .bind(owner);
        for (place, id) in ids.iter().enumerate() {
            query.push(if place == 0 { "" } else { ", " }).push_bind(id.0);
        }
        query.push(") RETURNING id");
        let rows =
            query.fetch_all(&self.writer).await.map_err(LedgerError::of("keeping webhooks"))?;
        rows.iter().map(|row| Ok(WebhookId(row.id("id")?))).collect()
    }

    /// Gives back all webhooks of an owner, so that another one can serve them at once.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written; the leases then run out by themselves.
    pub async fn release_webhooks(&self, owner: &str) -> Result<(), LedgerError> {
        sql("UPDATE webhooks SET lease_owner = NULL, lease_expires_at = 0 WHERE lease_owner = $1")
            .bind(owner)
            .execute(&self.writer)
            .await
            .map_err(LedgerError::of("releasing webhooks"))?;
        Ok(())
    }

    /// The webhook of a job as it is now; nothing when it is disabled, gone or another's.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn served_webhook(&self, job: &WebhookJob) -> Result<Option<Webhook>, LedgerError> {
        let row = sql(format!(
            "SELECT {WEBHOOK} FROM webhooks WHERE id = $1 AND lease_token = $2 AND NOT disabled"
        ))
        .bind(job.webhook.id.0)
        .bind(job.token)
        .fetch_optional(&self.reader)
        .await
        .map_err(LedgerError::of("reading a webhook"))?;
        row.map(|row| webhook(&row)).transpose()
    }

    /// Makes deliveries of these events of a partition, each with the id that it will have, and moves the cursor to where
    /// they end: both or neither. The partition is not named if it is that of the namespace itself. Says whether the lease
    /// still held.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn add_deliveries(
        &self,
        job: &WebhookJob,
        partition: Option<Partition>,
        events: &[(DeliveryId, Cursor, String)],
        upto: Cursor,
    ) -> Result<bool, LedgerError> {
        let failed = LedgerError::of("writing deliveries");
        let now = self.dialect.now_ms();
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let id = job.webhook.id;
        let mut query = sql("UPDATE webhooks SET ");
        if partition.is_none() {
            query.push("cursor_epoch = ").push_bind(upto.epoch);
            query.push(", cursor_seq = ").push_bind(upto.seq);
        } else {
            query.push("lease_token = lease_token");
        }
        query.push(" WHERE id = ").push_bind(id.0);
        query.push(" AND lease_token = ").push_bind(job.token);
        query.push(&format!(" RETURNING {now} AS now"));
        let row = query.fetch_optional(&mut tx).await.map_err(&failed)?;
        let Some(row) = row else { return Ok(false) };
        let now: i64 = row.get("now")?;
        if let Some(partition) = partition {
            go_to(&mut tx, id, Position { partition, cursor: upto }).await.map_err(&failed)?;
        }
        let partition = partition.map_or(HOME, |partition| partition.0.into());
        let rows = events.iter().map(|(delivery, event, kind)| {
            vec![
                delivery.0.into(),
                id.0.into(),
                partition.into(),
                event.epoch.into(),
                event.seq.into(),
                kind.as_str().into(),
                "waiting".into(),
                0_u64.into(),
                now.into(),
                now.into(),
            ]
        });
        in_bulk(
            &mut tx,
            "INSERT INTO deliveries (id, webhook, partition, epoch, seq, kind, state, attempts, due_at, created_at) ",
            rows.collect(),
            " ON CONFLICT DO NOTHING",
        )
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(true)
    }

    /// The deliveries of a webhook that are due, at most `limit`; how many wait in all; and until when the next of them
    /// is due.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn due_deliveries(
        &self,
        webhook: WebhookId,
        limit: u32,
    ) -> Result<(Vec<Delivery>, u64, Option<Duration>), LedgerError> {
        let failed = LedgerError::of("reading deliveries");
        let now = self.dialect.now_ms();
        let rows = sql(format!(
            "SELECT {DELIVERY} FROM deliveries WHERE webhook = $1 AND state = 'waiting' AND due_at <= {now}
             ORDER BY due_at, epoch, seq LIMIT $2",
        ))
        .bind(webhook.0)
        .bind(limit)
        .fetch_all(&self.reader)
        .await
        .map_err(&failed)?;
        let waiting = sql(format!(
            "SELECT COUNT(*) AS waiting, MIN(due_at) - {now} AS due_in FROM deliveries
             WHERE webhook = $1 AND state = 'waiting'",
        ))
        .bind(webhook.0)
        .fetch_one(&self.reader)
        .await
        .map_err(&failed)?;
        let due_in: Option<i64> = waiting.get("due_in")?;
        let due_in = due_in.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or_default()));
        let due = rows.iter().map(delivery).collect::<Result<Vec<_>, _>>()?;
        Ok((due, waiting.number("waiting")?, due_in))
    }

    /// Writes down what became of attempts at a webhook's deliveries. A success ends the webhook's failing; `disable`, or
    /// failing for as long as `failing_max`, disables it. Says whether the lease still held; if not, nothing was written.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn attempted(
        &self,
        job: &WebhookJob,
        attempts: &[Attempt],
        disable: Option<&str>,
        failing_max: Duration,
    ) -> Result<bool, LedgerError> {
        let failed = LedgerError::of("writing deliveries");
        let now = self.dialect.now_ms();
        let id = job.webhook.id.0;
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let row = sql(format!(
            "UPDATE webhooks SET lease_token = lease_token WHERE id = $1 AND lease_token = $2
             RETURNING {now} - failing_since AS failing_ms"
        ))
        .bind(id)
        .bind(job.token)
        .fetch_optional(&mut tx)
        .await
        .map_err(&failed)?;
        let Some(row) = row else { return Ok(false) };
        let failing: Option<i64> = row.get("failing_ms")?;
        let failing =
            failing.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or_default()));
        for attempt in attempts {
            sql(format!(
                "UPDATE deliveries SET state = $1, attempts = attempts + 1, due_at = {now} + $2, attempted_at = {now},
                 response_status = $3, error = $4 WHERE id = $5",
            ))
            .bind(attempt.state.as_str())
            .bind(ms(attempt.again_in))
            .bind(attempt.response_status)
            .bind(attempt.error.as_deref())
            .bind(attempt.id.0)
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        }
        let succeeded = attempts.iter().any(|attempt| attempt.state == DeliveryState::Delivered);
        let failing_since =
            if succeeded { "NULL".to_owned() } else { format!("COALESCE(failing_since, {now})") };
        let too_long = failing.filter(|failing| !succeeded && *failing >= failing_max);
        let too_long = too_long.map(|failing| {
            format!("every attempt has failed for {} hours", failing.as_secs() / 3600)
        });
        let disable = disable.map(str::to_owned).or(too_long);
        let mut query = sql(format!("UPDATE webhooks SET failing_since = {failing_since}"));
        if let Some(reason) = disable {
            let Webhook { id, namespace, .. } = &job.webhook;
            let subject = format!("{id}: {reason}");
            record(&mut tx, &By::node(), "webhook_disabled", Some(namespace), &subject)
                .await
                .map_err(&failed)?;
            query.push(&format!(", disabled = TRUE, updated_at = {now}, reason = "));
            query.push_bind(reason);
        }
        query.push(" WHERE id = ").push_bind(id);
        query.execute(&mut tx).await.map_err(&failed)?;
        if succeeded && failing.is_some_and(|failing| failing >= AWAY) {
            sql(format!(
                "UPDATE deliveries SET due_at = {now} WHERE webhook = $1 AND state = 'waiting'"
            ))
            .bind(id)
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        Ok(true)
    }

    /// Removes some deliveries that have come to an end so long ago, and some of webhooks that are gone; says whether
    /// there may be more.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be removed.
    pub async fn forget_deliveries(&self, keep: Duration) -> Result<bool, LedgerError> {
        let failed = LedgerError::of("removing deliveries");
        let now = self.dialect.now_ms();
        let found = sql(format!(
            "SELECT id FROM deliveries WHERE state <> 'waiting' AND created_at < {now} - $1
             UNION SELECT id FROM deliveries WHERE webhook NOT IN (SELECT id FROM webhooks) LIMIT $2",
        ))
        .bind(ms(keep))
        .bind(REMOVE_ROWS)
        .fetch_all(&self.reader)
        .await
        .map_err(&failed)?;
        if found.is_empty() {
            return Ok(false);
        }
        let ids: Vec<_> = found
            .iter()
            .map(|row| Ok(vec![row.id("id")?.into()]))
            .collect::<Result<_, LedgerError>>()?;
        let more = ids.len() >= usize::try_from(REMOVE_ROWS).unwrap_or(usize::MAX);
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        in_bulk(
            &mut tx,
            "WITH gone (id) AS (",
            ids,
            ") DELETE FROM deliveries WHERE id IN (SELECT id FROM gone)",
        )
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(more)
    }
}

/// Goes on from a position in the partition of a shard.
async fn go_to(tx: &mut Tx, webhook: WebhookId, position: Position) -> Result<(), sqlx::Error> {
    sql("INSERT INTO webhook_cursors (webhook, partition, epoch, seq) VALUES ($1, $2, $3, $4)
         ON CONFLICT (webhook, partition) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq")
    .bind(webhook.0)
    .bind(position.partition.0)
    .bind(position.cursor.epoch)
    .bind(position.cursor.seq)
    .execute(tx)
    .await
    .map(drop)
}

fn types(types: &[String]) -> Option<String> {
    (!types.is_empty()).then(|| types.join(","))
}

fn webhook(row: &Row) -> Result<Webhook, LedgerError> {
    let types = |text: &str| -> Result<Vec<String>, Malformed> {
        // A newer version may know more of them.
        Ok(text.split(',').map(str::to_owned).collect())
    };
    Ok(Webhook {
        id: WebhookId(row.id("id")?),
        namespace: row.parsed("namespace", Namespace::stored)?,
        url: row.text("url")?,
        event_types: row.maybe_parsed("event_types", types)?.unwrap_or_default(),
        disabled: row.get("disabled")?,
        reason: row.maybe_text("reason")?,
        failing_since: row.maybe_time("failing_since")?,
        cursor: Cursor { epoch: row.number("cursor_epoch")?, seq: row.number("cursor_seq")? },
        created_by: row.text("actor")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
    })
}

fn job(row: &Row) -> Result<WebhookJob, LedgerError> {
    Ok(WebhookJob { webhook: webhook(row)?, token: row.number("lease_token")? })
}

fn secret(row: &Row) -> Result<Secret, LedgerError> {
    let bytes: Vec<u8> = row.get("secret")?;
    let bytes = bytes
        .try_into()
        .map_err(|_| LedgerError::Corrupt("a webhook's secret has not 32 bytes".to_owned()))?;
    Ok(Secret::new(bytes))
}

fn delivery(row: &Row) -> Result<Delivery, LedgerError> {
    let status: Option<u64> = row.maybe_number("response_status")?;
    let attempts = row.number("attempts")?;
    let partition: i64 = row.get("partition")?;
    Ok(Delivery {
        id: DeliveryId(row.id("id")?),
        webhook: WebhookId(row.id("webhook")?),
        event: row.cursor()?,
        partition: u16::try_from(partition).ok().map(Partition),
        kind: row.text("kind")?,
        state: row.parsed("state", DeliveryState::parse)?,
        attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        due_at: row.time("due_at")?,
        created_at: row.time("created_at")?,
        attempted_at: row.maybe_time("attempted_at")?,
        response_status: status.and_then(|status| u16::try_from(status).ok()),
        error: row.maybe_text("error")?,
    })
}
