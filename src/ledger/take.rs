//! Writing what a gate has into a ledger that is older than it, or empty: by an operator's word.

use std::collections::HashSet;

use super::{
    Lease, LeaseLost, Ledger, LedgerError,
    append::{in_bulk, write},
    claims::holds,
    rows::{
        AuditRow, CampaignRow, ErasedRow, InviteRow, MemberRow, MoveRow, NamespaceRow,
        RedemptionRow, ReservationRow, Rollback, RolledBackRow, Rows,
    },
    sql::sql,
};
use crate::domain::{
    Campaign, CampaignName, Cursor, Invite, MembershipRule, Moves, Namespace, RedemptionId,
    Reservation, Settings,
    change::{Moved, exclusive_key},
    member::{Remembered, UserRecord},
    reservation::Held,
};

/// Users that are written in one transaction.
const CHUNK_USERS: usize = 1000;

impl Ledger {
    /// How many redemptions of a partition the ledger has that are not among these: a gate without them is not the one
    /// that this ledger belongs to.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn redemptions_besides(
        &self,
        lease: &Lease,
        known: &HashSet<RedemptionId>,
    ) -> Result<u64, LedgerError> {
        let rows = sql("SELECT id FROM redemptions WHERE partition = $1")
            .bind(lease.partition.0)
            .fetch_all(&self.snapshots)
            .await
            .map_err(LedgerError::of("reading redemptions"))?;
        let mut besides = 0;
        for row in rows {
            besides += u64::from(!known.contains(&RedemptionId(row.id("id")?)));
        }
        Ok(besides)
    }

    /// Writes a gate's namespaces, campaigns, invites and what is held of them. An invite that the gate does not have
    /// any more was deleted, unless somebody redeemed it. `at` is newer than all that the ledger has of them.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be written; what was written before stays, and writing it again is safe.
    pub async fn take_invites(
        &self,
        lease: &Lease,
        at: Cursor,
        taken: &TakenRows<'_>,
    ) -> Result<Result<(), LeaseLost>, LedgerError> {
        let failed = LedgerError::of("writing what the gate has");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        if !holds(&mut tx, lease).await.map_err(&failed)? {
            return Ok(Err(LeaseLost));
        }
        sql("DELETE FROM invites WHERE partition = $1
             AND NOT EXISTS (SELECT 1 FROM redemptions WHERE redemptions.invite = invites.id)")
        .bind(lease.partition.0)
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        // All that the gate knows of come back with its users; others have left, or were forgotten.
        sql("DELETE FROM members WHERE partition = $1")
            .bind(lease.partition.0)
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        for statement in [
            "UPDATE invites SET holds_code = FALSE WHERE partition = $1",
            "UPDATE reservations SET state = 'released' WHERE partition = $1 AND state = 'held'",
            "DELETE FROM campaigns WHERE partition = $1",
            "DELETE FROM moves WHERE partition = $1",
        ] {
            sql(statement).bind(lease.partition.0).execute(&mut tx).await.map_err(&failed)?;
        }
        let rows = Rows {
            namespaces: taken
                .namespaces
                .iter()
                .map(|(name, settings)| NamespaceRow {
                    name: name.clone(),
                    settings: settings.clone(),
                    cursor: at,
                })
                .collect(),
            invites: taken
                .invites
                .iter()
                .map(|(invite, holds_code)| InviteRow {
                    invite: invite.clone(),
                    holds_code: *holds_code,
                    cursor: at,
                })
                .collect(),
            reservations: taken
                .reservations
                .iter()
                .map(|(reservation, _)| ReservationRow {
                    reservation: reservation.clone(),
                    held: Held::Held,
                    cursor: at,
                })
                .collect(),
            campaigns: taken
                .campaigns
                .iter()
                .map(|campaign| CampaignRow { campaign: campaign.clone(), cursor: at })
                .collect(),
            moves: taken.moves.iter().flat_map(move_rows).collect(),
            erased: taken.erased.to_vec(),
            audit: taken.audit.to_vec(),
            ..Rows::default()
        };
        write(&mut tx, lease.partition, &rows).await.map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(Ok(()))
    }

    /// Writes a gate's users: their memberships become exactly these, their redemptions are added to.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be written; what was written before stays, and writing it again is safe.
    pub async fn take_users(
        &self,
        lease: &Lease,
        users: &[UserRecord],
        metadata: impl Fn(RedemptionId) -> Option<String>,
    ) -> Result<Result<(), LeaseLost>, LedgerError> {
        let failed = LedgerError::of("writing what the gate has");
        for chunk in users.chunks(CHUNK_USERS) {
            let mut tx = self.writer.begin().await.map_err(&failed)?;
            if !holds(&mut tx, lease).await.map_err(&failed)? {
                return Ok(Err(LeaseLost));
            }
            let named = || {
                let name = |user: &UserRecord| {
                    vec![user.namespace.as_str().into(), user.user.as_str().into()]
                };
                chunk.iter().map(name).collect()
            };
            for tail in [
                ") UPDATE redemptions SET exclusive_key = NULL
                 WHERE (namespace, user_id) IN (SELECT namespace, user_id FROM taken)",
                ") DELETE FROM members WHERE (namespace, user_id) IN (SELECT namespace, user_id FROM taken)",
            ] {
                in_bulk(&mut tx, "WITH taken (namespace, user_id) AS (", named(), tail)
                    .await
                    .map_err(&failed)?;
            }
            let rows = rows(chunk, &metadata);
            let live = rows.redemptions.iter().filter(|row| row.exclusive_key.is_some());
            let live = live
                .map(|row| vec![row.redemption.id.0.into(), row.exclusive_key.as_deref().into()]);
            let live = live.collect();
            write(&mut tx, lease.partition, &rows).await.map_err(&failed)?;
            // Somebody may have been forgotten since the ledger got them.
            let named = rows.redemptions.iter().map(|row| {
                vec![
                    row.redemption.id.0.into(),
                    row.redemption.user.as_str().into(),
                    row.request.as_str().into(),
                ]
            });
            in_bulk(
                &mut tx,
                "WITH taken (id, user_id, request) AS (",
                named.collect(),
                ") UPDATE redemptions SET user_id = taken.user_id, request = taken.request, metadata = NULL FROM taken
                 WHERE redemptions.id = taken.id AND redemptions.user_id <> taken.user_id",
            )
            .await
            .map_err(&failed)?;
            // What the gate does not know to be taken back holds.
            let holds = user_redemptions(chunk).filter(|one| one.rolled_back_at.is_none());
            in_bulk(
                &mut tx,
                "WITH taken (id) AS (",
                holds.map(|one| vec![one.redemption.id.0.into()]).collect(),
                ") UPDATE redemptions SET rolled_back_at = NULL, rolled_back_by = NULL, rollback_reason = NULL
                 WHERE rolled_back_at IS NOT NULL AND id IN (SELECT id FROM taken)",
            )
            .await
            .map_err(&failed)?;
            // Those that were there before lost it above.
            in_bulk(
                &mut tx,
                "WITH live (id, exclusive_key) AS (",
                live,
                ") UPDATE redemptions SET exclusive_key = live.exclusive_key FROM live WHERE redemptions.id = live.id",
            )
            .await
            .map_err(&failed)?;
            tx.commit().await.map_err(&failed)?;
        }
        Ok(Ok(()))
    }
}

fn user_redemptions(users: &[UserRecord]) -> impl Iterator<Item = &Remembered> {
    users.iter().flat_map(|user| &user.redemptions)
}

/// What a gate has besides its users.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "each field is a table's share")]
pub struct TakenRows<'a> {
    pub namespaces: &'a [(Namespace, Settings)],
    pub campaigns: &'a [Campaign],
    /// Whether each has its code.
    pub invites: &'a [(Invite, bool)],
    pub reservations: &'a [(Reservation, Option<CampaignName>)],
    pub moves: &'a [Moves],
    /// Who was given another name, and what else only the outbox tells of.
    pub erased: &'a [ErasedRow],
    pub audit: &'a [AuditRow],
}

fn move_rows(moves: &Moves) -> Vec<MoveRow> {
    let row = |participant, moved, cursor| MoveRow {
        namespace: moves.namespace.clone(),
        invite: moves.invite,
        participant,
        moved,
        cursor,
    };
    let given = moves.given.iter();
    let given = given.map(|(to, given)| row(*to, Moved::Given(given.amount), given.at));
    let taken = moves.taken.iter();
    let taken =
        taken.map(|(from, amount)| row(*from, Moved::Taken(*amount), Cursor { epoch: 0, seq: 0 }));
    given.chain(taken).collect()
}

fn rows(users: &[UserRecord], metadata: impl Fn(RedemptionId) -> Option<String>) -> Rows {
    let mut rows = Rows::default();
    for user in users {
        for (group, cursor, joined_at) in &user.memberships {
            let made_by = user.redemptions.iter().map(|one| &one.redemption).find(|redemption| {
                redemption.position.cursor == *cursor && redemption.group == *group
            });
            rows.members.push(MemberRow {
                namespace: user.namespace.clone(),
                user: user.user.clone(),
                group: group.clone(),
                redemption: made_by.map(|redemption| redemption.id),
                joined_at: joined_at
                    .or(made_by.map(|redemption| redemption.redeemed_at))
                    .unwrap_or_default(),
                exclusive_key: (user.rule == MembershipRule::OneGroup).then(|| "*".to_owned()),
                cursor: *cursor,
            });
        }
        for Remembered { redemption, request, counts, rolled_back_at } in &user.redemptions {
            let rollback =
                rolled_back_at.map(|at| Rollback { at, actor: "rebuild".to_owned(), reason: None });
            rows.rolled_back.extend(
                rollback
                    .clone()
                    .map(|rollback| RolledBackRow { redemption: redemption.id, rollback }),
            );
            let key = exclusive_key(user.rule, &redemption.group, Some(redemption.invite));
            rows.redemptions.push(RedemptionRow {
                redemption: redemption.clone(),
                request: request.clone(),
                exclusive_key: key.filter(|_| *counts),
                metadata: metadata(redemption.id),
                rollback,
            });
        }
    }
    rows
}
