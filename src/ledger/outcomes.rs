//! Counts by outcome and minute, and what a namespace holds in all: for people who want to know how it goes.

use std::time::Duration;

use super::{Ledger, LedgerError, append::in_bulk, partitions::ms, sql::sql};
use crate::domain::{Millis, Namespace, spread::UNLIMITED};

/// Of the oldest counts that are kept no more, so many milliseconds' are removed at a time.
const REMOVE_MS: u64 = 3_600_000;

/// What a namespace's invites hold.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct InviteTotals {
    pub active: u64,
    pub scheduled: u64,
    pub exhausted: u64,
    pub expired: u64,
    pub disabled: u64,
    /// Spent uses of all of them.
    pub uses: u64,
    /// What is left of those that are active and have a limit.
    pub remaining: u64,
    /// Active ones without a limit.
    pub unlimited: u64,
}

impl Ledger {
    /// Writes a node's counts, each whole, and removes some of those that are older than `keep`.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be written.
    pub async fn write_outcomes(
        &self,
        node: &str,
        counts: &[(Namespace, Millis, &'static str, u64)],
        keep: Duration,
    ) -> Result<(), LedgerError> {
        let failed = LedgerError::of("writing outcomes");
        let now = self.dialect.now_ms();
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let rows = counts.iter().map(|(namespace, minute, outcome, count)| {
            vec![
                namespace.as_str().into(),
                minute.as_ms().into(),
                (*outcome).into(),
                node.into(),
                (*count).into(),
            ]
        });
        in_bulk(
            &mut tx,
            "INSERT INTO outcomes (namespace, minute, outcome, node, count) ",
            rows.collect(),
            " ON CONFLICT (namespace, minute, outcome, node) DO UPDATE SET count = excluded.count",
        )
        .await
        .map_err(&failed)?;
        sql(format!(
            "DELETE FROM outcomes WHERE minute < {now} - $1
             AND minute < (SELECT MIN(minute) FROM outcomes) + $2",
        ))
        .bind(ms(keep))
        .bind(REMOVE_MS)
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(())
    }

    /// The counts of a namespace from a moment up to another, in steps of so many milliseconds: when a step began, how
    /// requests ended, and how many did so.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn outcomes(
        &self,
        namespace: &Namespace,
        from: Millis,
        to: Millis,
        step_ms: u64,
    ) -> Result<Vec<(Millis, String, u64)>, LedgerError> {
        let rows = sql(
            "SELECT minute - minute % $1 AS begins, outcome, CAST(SUM(count) AS BIGINT) AS counted
             FROM outcomes WHERE namespace = $2 AND minute >= $3 AND minute < $4
             GROUP BY begins, outcome ORDER BY begins, outcome",
        )
        .bind(step_ms)
        .bind(namespace.as_str())
        .bind(from.as_ms())
        .bind(to.as_ms())
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("reading outcomes"))?;
        rows.iter()
            .map(|row| Ok((row.time("begins")?, row.text("outcome")?, row.number("counted")?)))
            .collect()
    }

    /// What the invites of a namespace, with their copies in its shards, hold at `now`. It looks at each of them.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn invite_totals(
        &self,
        namespace: &Namespace,
        shards: &[Namespace],
        now: Millis,
    ) -> Result<InviteTotals, LedgerError> {
        let mut query = sql("WITH all_of_them AS (").bind(now.as_ms()).bind(namespace.as_str());
        if shards.is_empty() {
            query.push("SELECT uses, max_uses, disabled, starts_at, expires_at FROM invites");
        } else {
            // A copy has its code since the same moment as the invite, and the code stands for one at a time.
            query.push(&format!(
                "SELECT invites.uses + COALESCE(copies.uses, 0) AS uses, CASE
                     WHEN total IS NULL THEN max_uses WHEN total < {UNLIMITED} THEN total END AS max_uses,
                     disabled, starts_at, expires_at
                 FROM invites LEFT JOIN (
                     SELECT code, created_at, CAST(SUM(uses) AS BIGINT) AS uses FROM invites WHERE namespace IN ("
            ));
            query.push_list(shards.iter().map(Namespace::as_str));
            query.push(") GROUP BY code, created_at) AS copies USING (code, created_at)");
        }
        query.push(" WHERE namespace = $2");
        // The same order of precedence as `Invite::state`.
        query.push(
            "), states AS (SELECT uses, max_uses, CASE
                 WHEN disabled THEN 'disabled'
                 WHEN expires_at <= $1 THEN 'expired'
                 WHEN uses >= max_uses THEN 'exhausted'
                 WHEN starts_at > $1 THEN 'scheduled'
                 ELSE 'active' END AS state FROM all_of_them)
             SELECT COUNT(CASE WHEN state = 'active' THEN 1 END) AS active,
                 COUNT(CASE WHEN state = 'scheduled' THEN 1 END) AS scheduled,
                 COUNT(CASE WHEN state = 'exhausted' THEN 1 END) AS exhausted,
                 COUNT(CASE WHEN state = 'expired' THEN 1 END) AS expired,
                 COUNT(CASE WHEN state = 'disabled' THEN 1 END) AS disabled,
                 CAST(COALESCE(SUM(uses), 0) AS BIGINT) AS uses,
                 CAST(COALESCE(SUM(CASE WHEN state = 'active' THEN max_uses - uses END), 0) AS BIGINT) AS remaining,
                 COUNT(CASE WHEN state = 'active' AND max_uses IS NULL THEN 1 END) AS unlimited FROM states",
        );
        let row =
            query.fetch_one(&self.reader).await.map_err(LedgerError::of("counting invites"))?;
        Ok(InviteTotals {
            active: row.number("active")?,
            scheduled: row.number("scheduled")?,
            exhausted: row.number("exhausted")?,
            expired: row.number("expired")?,
            disabled: row.number("disabled")?,
            uses: row.number("uses")?,
            remaining: row.number("remaining")?,
            unlimited: row.number("unlimited")?,
        })
    }
}
