//! Writing what the sync brings: rows and cursor in one transaction.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection, Transaction};

use super::{
    Lease, Ledger, LedgerError,
    columns::int,
    rows::{AuditRow, InviteRow, MemberRow, NamespaceRow, RedemptionRow, Rows},
};
use crate::domain::{Cursor, Millis, Partition};

/// Rows of one statement: SQLite takes at most 32,766 values in one. Source: SQLite documentation, "Limits".
const CHUNK_ROWS_MAX: usize = 500;

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is in the ledger.
    Appended,
    /// Somebody else looks after the partition now, or has brought the cursor elsewhere: nothing was written.
    Overtaken,
}

impl Ledger {
    /// Writes a batch of a partition, and moves its cursor from `from` to `to`, both or neither: the cursor by
    /// compare-and-set on the lease's token and its old value.
    ///
    /// # Errors
    /// [`LedgerError::Rejected`] when a row breaks a constraint, [`LedgerError::Unavailable`] otherwise; nothing was
    /// written then.
    pub async fn append(
        &self,
        lease: &Lease,
        from: Cursor,
        to: Cursor,
        rows: &Rows,
    ) -> Result<Appended, LedgerError> {
        let failed = LedgerError::of("writing a batch");
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        if !move_cursor(&mut tx, lease, from, to).await.map_err(&failed)? {
            return Ok(Appended::Overtaken);
        }
        write(&mut tx, lease.partition, rows).await.map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(Appended::Appended)
    }

    /// Keeps an entry that can not be applied, with the reason, and moves the cursor past it.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn append_dead(
        &self,
        lease: &Lease,
        from: Cursor,
        to: Cursor,
        entry: &str,
        reason: &str,
    ) -> Result<Appended, LedgerError> {
        let failed = LedgerError::of("writing a dead letter");
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        if !move_cursor(&mut tx, lease, from, to).await.map_err(&failed)? {
            return Ok(Appended::Overtaken);
        }
        sqlx::query(
            "INSERT INTO dead_letters (partition, epoch, seq, entry, reason, at)
             VALUES (?, ?, ?, ?, ?, CAST(unixepoch('subsec') * 1000 AS INTEGER)) ON CONFLICT DO NOTHING",
        )
        .bind(lease.partition.0)
        .bind(int(to.epoch))
        .bind(int(to.seq))
        .bind(entry)
        .bind(reason)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(Appended::Appended)
    }
}

async fn move_cursor(
    tx: &mut Transaction<'_, Sqlite>,
    lease: &Lease,
    from: Cursor,
    to: Cursor,
) -> Result<bool, sqlx::Error> {
    let moved = sqlx::query(
        "UPDATE partitions SET cursor_epoch = ?, cursor_seq = ?,
             synced_at = CAST(unixepoch('subsec') * 1000 AS INTEGER)
         WHERE partition = ? AND lease_token = ? AND cursor_epoch = ? AND cursor_seq = ?",
    )
    .bind(int(to.epoch))
    .bind(int(to.seq))
    .bind(lease.partition.0)
    .bind(int(lease.token))
    .bind(int(from.epoch))
    .bind(int(from.seq))
    .execute(&mut **tx)
    .await?;
    Ok(moved.rows_affected() == 1)
}

/// Writes the rows in an order in which every constraint holds at every step: what gives something up comes before
/// what takes it.
async fn write(
    connection: &mut SqliteConnection,
    partition: Partition,
    rows: &Rows,
) -> Result<(), sqlx::Error> {
    namespaces(connection, partition, &rows.namespaces).await?;
    for id in &rows.deleted_invites {
        let id = id.to_string();
        sqlx::query("DELETE FROM invites WHERE id = ?").bind(id).execute(&mut *connection).await?;
    }
    for id in &rows.displaced_invites {
        let id = id.to_string();
        sqlx::query("UPDATE invites SET holds_code = 0 WHERE id = ?")
            .bind(id)
            .execute(&mut *connection)
            .await?;
    }
    let (holding, ended): (Vec<_>, Vec<_>) = rows.invites.iter().partition(|row| row.holds_code);
    invites(connection, partition, &ended).await?;
    invites(connection, partition, &holding).await?;
    for row in &rows.uses {
        sqlx::query("UPDATE invites SET uses = ?, granted = ?, epoch = ?, seq = ? WHERE id = ?")
            .bind(int(row.uses))
            .bind(int(row.granted))
            .bind(int(row.cursor.epoch))
            .bind(int(row.cursor.seq))
            .bind(row.invite.to_string())
            .execute(&mut *connection)
            .await?;
    }
    for (namespace, user, group) in &rows.released {
        sqlx::query("UPDATE redemptions SET exclusive_key = NULL WHERE namespace = ? AND user = ? AND grp = ?")
            .bind(namespace.as_str())
            .bind(user.as_str())
            .bind(group.as_str())
            .execute(&mut *connection)
            .await?;
    }
    for (namespace, user, group) in &rows.left {
        sqlx::query("DELETE FROM members WHERE namespace = ? AND user = ? AND grp = ?")
            .bind(namespace.as_str())
            .bind(user.as_str())
            .bind(group.as_str())
            .execute(&mut *connection)
            .await?;
    }
    members(connection, partition, &rows.members).await?;
    redemptions(connection, &rows.redemptions).await?;
    audit(connection, partition, &rows.audit).await
}

async fn namespaces(
    connection: &mut SqliteConnection,
    partition: Partition,
    rows: &[NamespaceRow],
) -> Result<(), sqlx::Error> {
    for chunk in rows.chunks(CHUNK_ROWS_MAX) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT OR REPLACE INTO namespaces (name, partition, membership, code_case, durability, rate_user,
             rate_ip, rate_code, rate_namespace, rate_guess, revision, created_at, updated_at, archived_at, epoch,
             seq) ",
        );
        query.push_values(chunk, |mut values, row| {
            let settings = &row.settings;
            let quota = |quota: Option<crate::domain::Quota>| quota.map(|quota| quota.to_string());
            values
                .push_bind(row.name.as_str())
                .push_bind(partition.0)
                .push_bind(settings.membership.as_str())
                .push_bind(settings.code_case.as_str())
                .push_bind(settings.durability.as_str())
                .push_bind(quota(settings.rate_user))
                .push_bind(quota(settings.rate_ip))
                .push_bind(quota(settings.rate_code))
                .push_bind(quota(settings.rate_namespace))
                .push_bind(quota(settings.rate_guess))
                .push_bind(int(settings.revision))
                .push_bind(settings.created_at.as_ms())
                .push_bind(settings.updated_at.as_ms())
                .push_bind(settings.archived_at.map(Millis::as_ms))
                .push_bind(int(row.cursor.epoch))
                .push_bind(int(row.cursor.seq));
        });
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

async fn invites(
    connection: &mut SqliteConnection,
    partition: Partition,
    rows: &[&InviteRow],
) -> Result<(), sqlx::Error> {
    for chunk in rows.chunks(CHUNK_ROWS_MAX) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO invites (id, namespace, partition, code, grp, max_uses, uses, granted, starts_at, expires_at,
             disabled, user, email_domains, metadata, revision, created_at, updated_at, holds_code, epoch, seq) ",
        );
        query.push_values(chunk, |mut values, row| {
            let invite = &row.invite;
            let domains: Vec<_> = invite.email_domains.iter().map(ToString::to_string).collect();
            values
                .push_bind(invite.id.to_string())
                .push_bind(invite.namespace.as_str())
                .push_bind(partition.0)
                .push_bind(invite.code.as_str())
                .push_bind(invite.group.as_str())
                .push_bind(invite.max_uses.map(int))
                .push_bind(int(invite.uses))
                .push_bind(int(invite.granted))
                .push_bind(invite.starts_at.map(Millis::as_ms))
                .push_bind(invite.expires_at.map(Millis::as_ms))
                .push_bind(invite.disabled)
                .push_bind(invite.user.as_ref().map(crate::domain::UserId::as_str))
                .push_bind((!domains.is_empty()).then(|| domains.join(",")))
                .push_bind(invite.metadata.as_deref())
                .push_bind(int(invite.revision))
                .push_bind(invite.created_at.as_ms())
                .push_bind(invite.updated_at.as_ms())
                .push_bind(row.holds_code)
                .push_bind(int(row.cursor.epoch))
                .push_bind(int(row.cursor.seq));
        });
        // Not INSERT OR REPLACE, which would also throw out another invite that holds the code.
        query.push(
            " ON CONFLICT (id) DO UPDATE SET max_uses = excluded.max_uses, uses = excluded.uses,
             granted = excluded.granted, starts_at = excluded.starts_at, expires_at = excluded.expires_at,
             disabled = excluded.disabled, user = excluded.user, email_domains = excluded.email_domains,
             metadata = excluded.metadata, revision = excluded.revision, updated_at = excluded.updated_at,
             holds_code = excluded.holds_code, epoch = excluded.epoch, seq = excluded.seq",
        );
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

async fn members(
    connection: &mut SqliteConnection,
    partition: Partition,
    rows: &[MemberRow],
) -> Result<(), sqlx::Error> {
    for chunk in rows.chunks(CHUNK_ROWS_MAX) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO members (namespace, user, grp, partition, redemption, joined_at, exclusive_key, epoch, seq) ",
        );
        query.push_values(chunk, |mut values, row| {
            values
                .push_bind(row.namespace.as_str())
                .push_bind(row.user.as_str())
                .push_bind(row.group.as_str())
                .push_bind(partition.0)
                .push_bind(row.redemption.map(|id| id.to_string()))
                .push_bind(row.joined_at.as_ms())
                .push_bind(row.exclusive_key.as_deref())
                .push_bind(int(row.cursor.epoch))
                .push_bind(int(row.cursor.seq));
        });
        query.push(
            " ON CONFLICT (namespace, user, grp) DO UPDATE SET redemption = excluded.redemption,
             joined_at = excluded.joined_at, exclusive_key = excluded.exclusive_key, epoch = excluded.epoch,
             seq = excluded.seq",
        );
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

async fn redemptions(
    connection: &mut SqliteConnection,
    rows: &[RedemptionRow],
) -> Result<(), sqlx::Error> {
    for chunk in rows.chunks(CHUNK_ROWS_MAX) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO redemptions (id, namespace, partition, invite, code, grp, user, request, ordinal, remaining,
             redeemed_at, exclusive_key, metadata, epoch, seq) ",
        );
        query.push_values(chunk, |mut values, row| {
            let redemption = &row.redemption;
            values
                .push_bind(redemption.id.to_string())
                .push_bind(redemption.namespace.as_str())
                .push_bind(redemption.position.partition.0)
                .push_bind(redemption.invite.to_string())
                .push_bind(redemption.code.as_str())
                .push_bind(redemption.group.as_str())
                .push_bind(redemption.user.as_str())
                .push_bind(row.request.as_str())
                .push_bind(int(redemption.ordinal))
                .push_bind(redemption.remaining.map(int))
                .push_bind(redemption.redeemed_at.as_ms())
                .push_bind(row.exclusive_key.as_deref())
                .push_bind(row.metadata.as_deref())
                .push_bind(int(redemption.position.cursor.epoch))
                .push_bind(int(redemption.position.cursor.seq));
        });
        // The id alone: a clash in any other column is a broken law and must be seen.
        query.push(" ON CONFLICT (id) DO NOTHING");
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

async fn audit(
    connection: &mut SqliteConnection,
    partition: Partition,
    rows: &[AuditRow],
) -> Result<(), sqlx::Error> {
    for chunk in rows.chunks(CHUNK_ROWS_MAX) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT OR REPLACE INTO audit_log (partition, epoch, seq, at, actor, action, namespace, subject) ",
        );
        query.push_values(chunk, |mut values, row| {
            values
                .push_bind(partition.0)
                .push_bind(int(row.cursor.epoch))
                .push_bind(int(row.cursor.seq))
                .push_bind(row.at.as_ms())
                .push_bind(row.actor.as_str())
                .push_bind(row.action)
                .push_bind(row.namespace.as_str())
                .push_bind(row.subject.as_str());
        });
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}
