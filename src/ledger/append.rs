//! Writing what the sync brings: rows and cursor in one transaction.

use super::{
    Lease, Ledger, LedgerError,
    rows::{
        AuditRow, CampaignRow, CampaignUsesRow, EndedRow, ErasedRow, InviteRow, MemberRow, MoveRow,
        NamespaceRow, RedemptionRow, ReservationRow, RolledBackRow, Rows, UsesRow,
    },
    sql::{Tx, Value, bulk, sql},
};
use crate::domain::{
    Acknowledgement, CampaignName, Cursor, EmailDomain, Millis, Partition, Quota, UserId,
    change::Moved, reservation::Held,
};

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
    /// [`LedgerError::Rejected`] when a row breaks a constraint: nothing was written. [`LedgerError::Unavailable`]
    /// otherwise: nothing was, or all of it; the cursor says which.
    pub async fn append(
        &self,
        lease: &Lease,
        from: Cursor,
        to: Cursor,
        rows: &Rows,
    ) -> Result<Appended, LedgerError> {
        let failed = LedgerError::of("writing a batch");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
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
        let now = self.dialect.now_ms();
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        if !move_cursor(&mut tx, lease, from, to).await.map_err(&failed)? {
            return Ok(Appended::Overtaken);
        }
        // Whatever is in a broken entry, it must find its place: PostgreSQL keeps no NUL in text.
        let keepable = |text: &str| text.replace('\0', "\u{fffd}");
        sql(format!(
            "INSERT INTO dead_letters (partition, epoch, seq, entry, reason, at)
             VALUES ($1, $2, $3, $4, $5, {now}) ON CONFLICT DO NOTHING",
        ))
        .bind(lease.partition.0)
        .bind(to.epoch)
        .bind(to.seq)
        .bind(keepable(entry))
        .bind(keepable(reason))
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(Appended::Appended)
    }
}

/// First of all, so that whoever else writes this partition waits here, and then finds the cursor moved.
async fn move_cursor(
    tx: &mut Tx,
    lease: &Lease,
    from: Cursor,
    to: Cursor,
) -> Result<bool, sqlx::Error> {
    let now = tx.dialect().now_ms();
    let moved = sql(format!(
        "UPDATE partitions SET cursor_epoch = $1, cursor_seq = $2, synced_at = {now}
         WHERE partition = $3 AND lease_token = $4 AND cursor_epoch = $5 AND cursor_seq = $6",
    ))
    .bind(to.epoch)
    .bind(to.seq)
    .bind(lease.partition.0)
    .bind(lease.token)
    .bind(from.epoch)
    .bind(from.seq)
    .execute(tx)
    .await?;
    Ok(moved == 1)
}

/// Writes the rows in an order in which every constraint holds at every step: what gives something up comes before
/// what takes it. No row is replaced by an older one, so a change that comes late, as a replayed dead letter does, is
/// applied only as far as nothing newer has overtaken it.
pub(super) async fn write(
    tx: &mut Tx,
    partition: Partition,
    rows: &Rows,
) -> Result<(), sqlx::Error> {
    erased(tx, &rows.erased).await?;
    namespaces(tx, partition, &rows.namespaces).await?;
    let ids = rows.deleted_invites.iter().map(|id| vec![id.0.into()]).collect();
    in_bulk(
        tx,
        "WITH gone (id) AS (",
        ids,
        ") DELETE FROM invites WHERE id IN (SELECT id FROM gone)",
    )
    .await?;
    // An invite that is made anew under its id has moved nothing.
    let ids = rows.deleted_invites.iter().map(|id| vec![id.0.into()]).collect();
    in_bulk(
        tx,
        "WITH gone (id) AS (",
        ids,
        ") DELETE FROM moves WHERE invite IN (SELECT id FROM gone)",
    )
    .await?;
    let ids = rows.displaced_invites.iter().map(|id| vec![id.0.into()]).collect();
    in_bulk(
        tx,
        "WITH displaced (id) AS (",
        ids,
        ") UPDATE invites SET holds_code = FALSE WHERE id IN (SELECT id FROM displaced)",
    )
    .await?;
    let ids = rows.displaced_invites.iter().map(|id| vec![id.0.into()]).collect();
    in_bulk(
        tx,
        "WITH displaced (id) AS (",
        ids,
        ") UPDATE reservations SET state = 'released'
         WHERE state = 'held' AND invite IN (SELECT id FROM displaced)",
    )
    .await?;
    let ids = rows.reopened_invites.iter().map(|id| vec![id.0.into()]).collect();
    in_bulk(
        tx,
        "WITH reopened (id) AS (",
        ids,
        ") UPDATE invites SET holds_code = TRUE WHERE id IN (SELECT id FROM reopened)",
    )
    .await?;
    let (holding, ended): (Vec<_>, Vec<_>) = rows.invites.iter().partition(|row| row.holds_code);
    invites(tx, partition, &ended).await?;
    invites(tx, partition, &holding).await?;
    uses(tx, &rows.uses).await?;
    moves(tx, partition, &rows.moves).await?;
    in_bulk(
        tx,
        "WITH released (namespace, user_id, grp, epoch, seq) AS (",
        rows.released.iter().map(membership).collect(),
        ") UPDATE redemptions SET exclusive_key = NULL FROM released
         WHERE redemptions.namespace = released.namespace AND redemptions.user_id = released.user_id
             AND redemptions.grp = released.grp
             AND (redemptions.epoch, redemptions.seq) < (released.epoch, released.seq)",
    )
    .await?;
    in_bulk(
        tx,
        "WITH gone (namespace, user_id, grp, epoch, seq) AS (",
        rows.left.iter().map(membership).collect(),
        ") DELETE FROM members WHERE EXISTS (
             SELECT 1 FROM gone WHERE gone.namespace = members.namespace AND gone.user_id = members.user_id
                 AND gone.grp = members.grp AND (members.epoch, members.seq) < (gone.epoch, gone.seq))",
    )
    .await?;
    members(tx, partition, &rows.members).await?;
    rolled_back(tx, &rows.rolled_back).await?;
    redemptions(tx, &rows.redemptions).await?;
    reservations(tx, partition, &rows.reservations).await?;
    campaigns(tx, partition, &rows.campaigns).await?;
    campaign_uses(tx, &rows.campaign_uses).await?;
    audit(tx, partition, &rows.audit).await
}

/// Runs a statement for all rows, in as few pieces as the database takes.
pub(super) async fn in_bulk(
    tx: &mut Tx,
    head: &str,
    rows: Vec<Vec<Value>>,
    tail: &str,
) -> Result<(), sqlx::Error> {
    let mut left = rows.len();
    let mut rows = rows.into_iter();
    while left > 0 {
        let count = tx.dialect().rows_at_once(left);
        let chunk = rows.by_ref().take(count).collect();
        bulk(tx.dialect(), head, chunk, tail).execute(&mut *tx).await?;
        left -= count;
    }
    Ok(())
}

fn membership(row: &EndedRow) -> Vec<Value> {
    vec![
        row.namespace.as_str().into(),
        row.user.as_str().into(),
        row.group.as_str().into(),
        row.cursor.epoch.into(),
        row.cursor.seq.into(),
    ]
}

/// Puts another name in the place of users. Before all else: what comes after it has the new name already, or is about
/// somebody else who has the old id by now.
async fn erased(tx: &mut Tx, rows: &[ErasedRow]) -> Result<(), sqlx::Error> {
    for row in rows {
        for (table, more) in [
            ("redemptions", ", metadata = NULL, request = CAST(id AS TEXT)"),
            ("claims", ", metadata = NULL, request = CAST(id AS TEXT)"),
            ("members", ""),
            ("audit_log", ", subject = $3 || SUBSTR(subject, LENGTH($2) + 1)"),
        ] {
            sql(format!(
                "UPDATE {table} SET user_id = $3{more}
                 WHERE namespace = $1 AND user_id = $2 AND (epoch, seq) < ($4, $5)",
            ))
            .bind(row.namespace.as_str())
            .bind(row.user.as_str())
            .bind(row.alias.as_str())
            .bind(row.cursor.epoch)
            .bind(row.cursor.seq)
            .execute(&mut *tx)
            .await?;
        }
        sql("UPDATE reservations SET user_id = $3
             WHERE namespace = $1 AND user_id = $2 AND (epoch, seq) < ($4, $5) AND (state <> 'held' OR held_until <= $6)")
        .bind(row.namespace.as_str())
        .bind(row.user.as_str())
        .bind(row.alias.as_str())
        .bind(row.cursor.epoch)
        .bind(row.cursor.seq)
        .bind(row.at.as_ms())
        .execute(&mut *tx)
        .await?;
        // What the rest of the batch is about to end of what the ledger knows, although it came before.
        let ended = row.displaced.iter().map(|id| {
            vec![
                row.namespace.as_str().into(),
                row.user.as_str().into(),
                row.alias.as_str().into(),
                row.cursor.epoch.into(),
                row.cursor.seq.into(),
                id.0.into(),
            ]
        });
        in_bulk(
            tx,
            "WITH ended (namespace, user_id, alias, epoch, seq, invite) AS (",
            ended.collect(),
            ") UPDATE reservations SET user_id = ended.alias FROM ended
             WHERE reservations.namespace = ended.namespace AND reservations.user_id = ended.user_id
                 AND reservations.invite = ended.invite
                 AND (reservations.epoch, reservations.seq) < (ended.epoch, ended.seq)",
        )
        .await?;
        let bound = row.invites.iter();
        let bound =
            bound.map(|id| vec![id.0.into(), row.user.as_str().into(), row.alias.as_str().into()]);
        in_bulk(
            tx,
            "WITH bound (id, user_id, alias) AS (",
            bound.collect(),
            ") UPDATE invites SET user_id = bound.alias FROM bound
             WHERE invites.id = bound.id AND invites.user_id = bound.user_id",
        )
        .await?;
    }
    Ok(())
}

async fn namespaces(
    tx: &mut Tx,
    partition: Partition,
    rows: &[NamespaceRow],
) -> Result<(), sqlx::Error> {
    let values = rows.iter().map(|row| {
        let settings = &row.settings;
        let quota = |quota: Option<Quota>| Value::from(quota.map(|quota| quota.to_string()));
        vec![
            row.name.as_str().into(),
            partition.0.into(),
            settings.membership.as_str().into(),
            settings.code_case.as_str().into(),
            settings.code_check.into(),
            settings.durability.as_str().into(),
            settings.error_detail.as_str().into(),
            quota(settings.rate_user),
            quota(settings.rate_ip),
            quota(settings.rate_code),
            quota(settings.rate_namespace),
            quota(settings.rate_guess),
            settings.spread.into(),
            settings.layouts_text().as_deref().into(),
            settings.sealed.into(),
            settings.revision.into(),
            settings.created_at.as_ms().into(),
            settings.updated_at.as_ms().into(),
            settings.archived_at.map(Millis::as_ms).into(),
            row.cursor.epoch.into(),
            row.cursor.seq.into(),
        ]
    });
    in_bulk(
        tx,
        "INSERT INTO namespaces (name, partition, membership, code_case, code_check, durability, error_detail, rate_user, rate_ip,
         rate_code, rate_namespace, rate_guess, spread, layouts, sealed, revision, created_at, updated_at, archived_at, epoch, seq) ",
        values.collect(),
        " ON CONFLICT (name) DO UPDATE SET membership = excluded.membership, code_case = excluded.code_case,
         code_check = excluded.code_check, durability = excluded.durability,
         error_detail = excluded.error_detail, rate_user = excluded.rate_user, rate_ip = excluded.rate_ip,
         rate_code = excluded.rate_code, rate_namespace = excluded.rate_namespace,
         rate_guess = excluded.rate_guess, spread = excluded.spread, layouts = excluded.layouts, sealed = excluded.sealed, revision = excluded.revision, created_at = excluded.created_at,
         updated_at = excluded.updated_at, archived_at = excluded.archived_at, epoch = excluded.epoch,
         seq = excluded.seq
         WHERE (namespaces.epoch, namespaces.seq) <= (excluded.epoch, excluded.seq)",
    )
    .await
}

async fn invites(
    tx: &mut Tx,
    partition: Partition,
    rows: &[&InviteRow],
) -> Result<(), sqlx::Error> {
    let values = rows.iter().map(|row| {
        let invite = &row.invite;
        let domains: Vec<_> = invite.email_domains.iter().map(EmailDomain::to_string).collect();
        vec![
            invite.id.0.into(),
            invite.namespace.as_str().into(),
            partition.0.into(),
            invite.code.as_str().into(),
            invite.group.as_str().into(),
            invite.max_uses.into(),
            invite.total.into(),
            invite.uses.into(),
            invite.granted.into(),
            invite.starts_at.map(Millis::as_ms).into(),
            invite.expires_at.map(Millis::as_ms).into(),
            invite.disabled.into(),
            invite.user.as_ref().map(UserId::as_str).into(),
            (!domains.is_empty()).then(|| domains.join(",")).into(),
            invite.metadata.as_deref().into(),
            invite.batch.map(|batch| batch.0).into(),
            invite.imported.into(),
            invite.max_uses_per_user.into(),
            invite.campaign.as_ref().map(CampaignName::as_str).into(),
            invite.revision.into(),
            invite.created_at.as_ms().into(),
            invite.updated_at.as_ms().into(),
            row.holds_code.into(),
            row.cursor.epoch.into(),
            row.cursor.seq.into(),
        ]
    });
    // Not INSERT OR REPLACE, which would also throw out another invite that holds the code.
    in_bulk(
        tx,
        "INSERT INTO invites (id, namespace, partition, code, grp, max_uses, total, uses, granted, starts_at, expires_at,
         disabled, user_id, email_domains, metadata, batch, imported, max_uses_per_user, campaign, revision,
         created_at, updated_at, holds_code, epoch, seq) ",
        values.collect(),
        " ON CONFLICT (id) DO UPDATE SET max_uses = excluded.max_uses, total = excluded.total, uses = excluded.uses,
         granted = excluded.granted, starts_at = excluded.starts_at, expires_at = excluded.expires_at,
         disabled = excluded.disabled, user_id = excluded.user_id, email_domains = excluded.email_domains,
         metadata = excluded.metadata, max_uses_per_user = excluded.max_uses_per_user,
         revision = excluded.revision, updated_at = excluded.updated_at,
         holds_code = excluded.holds_code, epoch = excluded.epoch, seq = excluded.seq
         WHERE (invites.epoch, invites.seq) <= (excluded.epoch, excluded.seq)",
    )
    .await
}

async fn uses(tx: &mut Tx, rows: &[UsesRow]) -> Result<(), sqlx::Error> {
    let values = rows.iter().map(|row| {
        vec![
            row.invite.0.into(),
            row.spent.map(|(uses, _)| uses).into(),
            row.spent.map(|(_, granted)| granted).into(),
            row.max_uses.into(),
            row.cursor.epoch.into(),
            row.cursor.seq.into(),
        ]
    });
    in_bulk(
        tx,
        "WITH changed (id, uses, granted, max_uses, epoch, seq) AS (",
        values.collect(),
        ") UPDATE invites SET uses = COALESCE(changed.uses, invites.uses),
         granted = COALESCE(changed.granted, invites.granted),
         max_uses = COALESCE(changed.max_uses, invites.max_uses), epoch = changed.epoch, seq = changed.seq
         FROM changed
         WHERE invites.id = changed.id AND (invites.epoch, invites.seq) <= (changed.epoch, changed.seq)",
    )
    .await
}

/// Both amounts only ever grow, so the larger one is the newer.
async fn moves(tx: &mut Tx, partition: Partition, rows: &[MoveRow]) -> Result<(), sqlx::Error> {
    let (given, taken): (Vec<_>, Vec<_>) =
        rows.iter().partition(|row| matches!(row.moved, Moved::Given(_)));
    let values = |rows: &[&MoveRow]| {
        let value = |row: &&MoveRow| {
            let (given, taken) = match row.moved {
                Moved::Given(amount) => (amount, 0),
                Moved::Taken(amount) => (0, amount),
            };
            let cursor = if taken > 0 { Cursor { epoch: 0, seq: 0 } } else { row.cursor };
            vec![
                row.invite.of_whole(&row.namespace).0.into(),
                row.namespace.participant().into(),
                row.participant.into(),
                row.invite.0.into(),
                row.namespace.as_str().into(),
                partition.0.into(),
                given.into(),
                cursor.epoch.into(),
                cursor.seq.into(),
                taken.into(),
            ]
        };
        rows.iter().map(value).collect()
    };
    let insert = "INSERT INTO moves (whole, own, participant, invite, namespace, partition, given, given_epoch,
         given_seq, taken) ";
    in_bulk(
        tx,
        insert,
        values(&given),
        " ON CONFLICT (whole, own, participant) DO UPDATE SET given = excluded.given,
         given_epoch = excluded.given_epoch, given_seq = excluded.given_seq WHERE moves.given < excluded.given",
    )
    .await?;
    in_bulk(
        tx,
        insert,
        values(&taken),
        " ON CONFLICT (whole, own, participant) DO UPDATE SET taken = excluded.taken
         WHERE moves.taken < excluded.taken",
    )
    .await
}

async fn members(tx: &mut Tx, partition: Partition, rows: &[MemberRow]) -> Result<(), sqlx::Error> {
    let values = rows.iter().map(|row| {
        vec![
            row.namespace.as_str().into(),
            row.user.as_str().into(),
            row.group.as_str().into(),
            partition.0.into(),
            row.redemption.map(|id| id.0).into(),
            row.joined_at.as_ms().into(),
            row.exclusive_key.as_deref().into(),
            row.cursor.epoch.into(),
            row.cursor.seq.into(),
        ]
    });
    in_bulk(
        tx,
        "INSERT INTO members (namespace, user_id, grp, partition, redemption, joined_at, exclusive_key, epoch, seq) ",
        values.collect(),
        " ON CONFLICT (namespace, user_id, grp) DO UPDATE SET redemption = excluded.redemption,
         joined_at = excluded.joined_at, exclusive_key = excluded.exclusive_key, epoch = excluded.epoch,
         seq = excluded.seq
         WHERE (members.epoch, members.seq) <= (excluded.epoch, excluded.seq)",
    )
    .await
}

async fn redemptions(tx: &mut Tx, rows: &[RedemptionRow]) -> Result<(), sqlx::Error> {
    let values = rows.iter().map(|row| {
        let redemption = &row.redemption;
        vec![
            redemption.id.0.into(),
            redemption.namespace.as_str().into(),
            redemption.position.partition.0.into(),
            redemption.invite.0.into(),
            redemption.code.as_str().into(),
            redemption.group.as_str().into(),
            redemption.user.as_str().into(),
            row.request.as_str().into(),
            redemption.ordinal.into(),
            redemption.remaining.into(),
            redemption.redeemed_at.as_ms().into(),
            row.exclusive_key.as_deref().into(),
            row.metadata.as_deref().into(),
            row.rollback.as_ref().map(|rollback| rollback.at.as_ms()).into(),
            row.rollback.as_ref().map(|rollback| rollback.actor.as_str()).into(),
            row.rollback.as_ref().and_then(|rollback| rollback.reason.as_deref()).into(),
            redemption.position.cursor.epoch.into(),
            redemption.position.cursor.seq.into(),
        ]
    });
    // The id alone: a clash in any other column is a broken law and must be seen.
    in_bulk(
        tx,
        "INSERT INTO redemptions (id, namespace, partition, invite, code, grp, user_id, request, ordinal, remaining,
         redeemed_at, exclusive_key, metadata, rolled_back_at, rolled_back_by, rollback_reason, epoch, seq) ",
        values.collect(),
        " ON CONFLICT (id) DO NOTHING",
    )
    .await
}

/// Before new redemptions come: each may take the place of one that was taken back.
async fn rolled_back(tx: &mut Tx, rows: &[RolledBackRow]) -> Result<(), sqlx::Error> {
    let values = rows.iter().map(|row| {
        vec![
            row.redemption.0.into(),
            row.rollback.at.as_ms().into(),
            row.rollback.actor.as_str().into(),
            row.rollback.reason.as_deref().into(),
        ]
    });
    in_bulk(
        tx,
        "WITH undone (id, at, actor, reason) AS (",
        values.collect(),
        ") UPDATE redemptions SET rolled_back_at = undone.at, rolled_back_by = undone.actor,
         rollback_reason = undone.reason, exclusive_key = NULL FROM undone
         WHERE redemptions.id = undone.id AND redemptions.rolled_back_at IS NULL",
    )
    .await
}

pub(super) async fn reservations(
    tx: &mut Tx,
    partition: Partition,
    rows: &[ReservationRow],
) -> Result<(), sqlx::Error> {
    let values = rows.iter().map(|row| {
        let reservation = &row.reservation;
        let (state, redemption) = match row.held {
            Held::Held => ("held", None),
            Held::Confirmed(redemption) => ("confirmed", Some(redemption.0)),
            Held::Released => ("released", None),
        };
        vec![
            reservation.id.0.into(),
            reservation.namespace.as_str().into(),
            partition.0.into(),
            reservation.invite.0.into(),
            reservation.code.as_str().into(),
            reservation.user.as_str().into(),
            reservation.until.as_ms().into(),
            state.into(),
            redemption.into(),
            row.cursor.epoch.into(),
            row.cursor.seq.into(),
        ]
    });
    in_bulk(
        tx,
        "INSERT INTO reservations (id, namespace, partition, invite, code, user_id, held_until, state, redemption,
         epoch, seq) ",
        values.collect(),
        " ON CONFLICT (id) DO UPDATE SET user_id = excluded.user_id, state = excluded.state, redemption = excluded.redemption,
         epoch = excluded.epoch, seq = excluded.seq
         WHERE (reservations.epoch, reservations.seq) <= (excluded.epoch, excluded.seq)",
    )
    .await
}

async fn campaigns(
    tx: &mut Tx,
    partition: Partition,
    rows: &[CampaignRow],
) -> Result<(), sqlx::Error> {
    let values = rows.iter().map(|CampaignRow { campaign, cursor }| {
        vec![
            campaign.namespace.as_str().into(),
            campaign.name.as_str().into(),
            partition.0.into(),
            campaign.max_uses.into(),
            campaign.total.into(),
            campaign.pool().0.into(),
            campaign.uses.into(),
            campaign.revision.into(),
            campaign.created_at.as_ms().into(),
            campaign.updated_at.as_ms().into(),
            cursor.epoch.into(),
            cursor.seq.into(),
        ]
    });
    in_bulk(
        tx,
        "INSERT INTO campaigns (namespace, name, partition, max_uses, total, pool, uses, revision, created_at, updated_at,
         epoch, seq) ",
        values.collect(),
        " ON CONFLICT (namespace, name) DO UPDATE SET max_uses = excluded.max_uses, total = excluded.total,
         pool = excluded.pool, uses = excluded.uses, revision = excluded.revision, updated_at = excluded.updated_at, epoch = excluded.epoch, seq = excluded.seq
         WHERE (campaigns.epoch, campaigns.seq) <= (excluded.epoch, excluded.seq)",
    )
    .await
}

async fn campaign_uses(tx: &mut Tx, rows: &[CampaignUsesRow]) -> Result<(), sqlx::Error> {
    let values = rows.iter().map(|row| {
        vec![
            row.namespace.as_str().into(),
            row.name.as_str().into(),
            row.uses.into(),
            row.max_uses.into(),
            row.cursor.epoch.into(),
            row.cursor.seq.into(),
        ]
    });
    in_bulk(
        tx,
        "WITH changed (namespace, name, uses, max_uses, epoch, seq) AS (",
        values.collect(),
        ") UPDATE campaigns SET uses = COALESCE(changed.uses, campaigns.uses),
         max_uses = COALESCE(changed.max_uses, campaigns.max_uses), epoch = changed.epoch, seq = changed.seq FROM changed
         WHERE campaigns.namespace = changed.namespace AND campaigns.name = changed.name
             AND (campaigns.epoch, campaigns.seq) <= (changed.epoch, changed.seq)",
    )
    .await
}

async fn audit(tx: &mut Tx, partition: Partition, rows: &[AuditRow]) -> Result<(), sqlx::Error> {
    let values = rows.iter().map(|row| {
        vec![
            partition.0.into(),
            row.cursor.epoch.into(),
            row.cursor.seq.into(),
            row.at.as_ms().into(),
            row.actor.as_str().into(),
            row.action.into(),
            row.namespace.as_str().into(),
            row.subject.as_str().into(),
            row.user.as_ref().map(UserId::as_str).into(),
        ]
    });
    in_bulk(
        tx,
        "INSERT INTO audit_log (partition, epoch, seq, at, actor, action, namespace, subject, user_id) ",
        values.collect(),
        " ON CONFLICT (partition, epoch, seq) DO UPDATE SET at = excluded.at, actor = excluded.actor,
         action = excluded.action, namespace = excluded.namespace, subject = excluded.subject,
         user_id = excluded.user_id",
    )
    .await
}

/// Writes what a node had told as claims, waiting or with their outcome. One that is there already stays as it is, unless
/// it was handed in by a node that had only told of it again: what the first knew of it is the truth.
pub(super) async fn claim_rows(
    tx: &mut Tx,
    node: &str,
    told: &[Acknowledgement],
    outcome: Option<&str>,
) -> Result<(), sqlx::Error> {
    let (first, again): (Vec<_>, Vec<_>) = told.iter().partition(|one| one.first);
    let row = |one: &&Acknowledgement| {
        let redemption = &one.redemption;
        vec![
            redemption.id.0.into(),
            node.into(),
            redemption.namespace.as_str().into(),
            redemption.position.partition.0.into(),
            redemption.invite.0.into(),
            redemption.code.as_str().into(),
            redemption.group.as_str().into(),
            redemption.user.as_str().into(),
            one.request.stored().into_owned().into(),
            redemption.ordinal.into(),
            redemption.remaining.into(),
            redemption.redeemed_at.as_ms().into(),
            one.reservation.map(Millis::as_ms).into(),
            one.rule.as_str().into(),
            one.actor.as_str().into(),
            one.metadata.as_deref().into(),
            redemption.position.cursor.epoch.into(),
            redemption.position.cursor.seq.into(),
            outcome.into(),
        ]
    };
    let insert = "INSERT INTO claims (id, node, namespace, partition, invite, code, grp, user_id, request, ordinal,
         remaining, redeemed_at, held_until, rule, actor, metadata, epoch, seq, outcome) ";
    let keep = " ON CONFLICT (id) DO NOTHING";
    let replace =
        " ON CONFLICT (id) DO UPDATE SET node = excluded.node, request = excluded.request,
         held_until = excluded.held_until, actor = excluded.actor, metadata = excluded.metadata, outcome = excluded.outcome
         WHERE claims.outcome IS NULL";
    in_bulk(tx, insert, first.iter().map(row).collect(), replace).await?;
    in_bulk(tx, insert, again.iter().map(row).collect(), keep).await
}
