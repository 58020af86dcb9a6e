//! The nodes that are alive, and what they had told somebody when a partition was recovered.

use std::time::Duration;

use super::{
    Appended, Lease, LeaseLost, Ledger, LedgerError,
    append::{claim_rows, reservations, write},
    columns::CLAIM,
    rows::{RedemptionRow, ReservationRow, Rows},
    sql::{Row, Tx, sql},
};
use crate::domain::{
    Acknowledgement, MembershipRule, Partition, Position, Redemption, RedemptionId, Reservation,
    reservation::Held,
};

/// How long a node that has not been heard of is remembered.
const REMEMBERED: Duration = Duration::from_hours(24);
/// What becomes of a claim that the ledger had come to know meanwhile.
const KNOWN: &str = "known";
/// What becomes of a claim that was written down.
const APPLIED: &str = "applied";

/// A redemption that a node had told somebody of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What was told.
    pub redemption: Redemption,
    /// The request that it answered, as it is stored.
    pub request: String,
    /// The reservation that it has spent, if that was named.
    pub reservation: Option<Reservation>,
    /// The rule under which it was granted.
    pub rule: MembershipRule,
    /// The application's own JSON object, as text.
    pub metadata: Option<String>,
    /// Who asked.
    pub actor: String,
}

/// A claim that waits, and what its invite has in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingClaim {
    /// What is claimed.
    pub claim: Claim,
    /// The invite's uses, and how many were ever granted; nothing if the ledger does not know it.
    pub counts: Option<(u64, u64)>,
}

/// Whether claims came in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// They are written down, and the leader will look at them before it opens the partition.
    InTime,
    /// The partition is not being recovered for this epoch (any more).
    TooLate,
}

impl Ledger {
    /// Says that a node is alive, for so long, and if it is alone that no other is; forgets nodes that have not been
    /// heard of for long.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn beat(&self, node: &str, ttl: Duration, is_alone: bool) -> Result<(), LedgerError> {
        let failed = LedgerError::of("saying that this node is alive");
        let now = self.dialect.now_ms();
        self.revive(node, ttl).await?;
        sql(format!(
            "INSERT INTO nodes (id, expires_at) VALUES ($1, {now} + $2)
             ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at",
        ))
        .bind(node)
        .bind(super::partitions::ms(ttl))
        .execute(&self.writer)
        .await
        .map_err(&failed)?;
        if is_alone {
            sql("UPDATE nodes SET expires_at = 0 WHERE id <> $1 AND expires_at <> 0")
                .bind(node)
                .execute(&self.writer)
                .await
                .map_err(&failed)?;
        }
        let long_ago = format!("expires_at < {now} - {}", REMEMBERED.as_millis());
        for statement in [
            format!(
                "DELETE FROM confirmations WHERE node IN (SELECT id FROM nodes WHERE {long_ago})"
            ),
            format!("DELETE FROM nodes WHERE {long_ago}"),
        ] {
            sql(statement).execute(&self.writer).await.map_err(&failed)?;
        }
        Ok(())
    }

    /// After a time without the ledger everybody counts as dead, also those who are alive and only could not say so. Who
    /// finds its own row run out gives another `ttl` to all that ran out with it.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn revive(&self, node: &str, ttl: Duration) -> Result<(), LedgerError> {
        let now = self.dialect.now_ms();
        sql(format!(
            "UPDATE nodes SET expires_at = {now} + $2 WHERE expires_at <> 0 AND expires_at < {now} AND EXISTS (
                 SELECT 1 FROM nodes AS own WHERE own.id = $1 AND own.expires_at <> 0 AND own.expires_at < {now}
                     AND nodes.expires_at > own.expires_at - $2)",
        ))
        .bind(node)
        .bind(super::partitions::ms(ttl))
        .execute(&self.writer)
        .await
        .map_err(LedgerError::of("saying that this node is alive"))?;
        Ok(())
    }

    /// Says that a node has stopped, and tells nobody anything any more.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written; it then runs out by itself.
    pub async fn sign_off(&self, node: &str) -> Result<(), LedgerError> {
        sql("UPDATE nodes SET expires_at = 0 WHERE id = $1")
            .bind(node)
            .execute(&self.writer)
            .await
            .map_err(LedgerError::of("signing off"))?;
        Ok(())
    }

    /// Writes down what a node had told of a partition, and that it tells nothing more of epochs before `epoch`, which
    /// is being opened.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written; nothing was then.
    pub async fn claim(
        &self,
        node: &str,
        partition: Partition,
        epoch: u64,
        claims: &[Acknowledgement],
    ) -> Result<Claimed, LedgerError> {
        let failed = LedgerError::of("claiming what was told");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        // Keeps the partition as it is until these are written.
        let closed = sql("UPDATE partitions SET lease_token = lease_token
             WHERE partition = $1 AND epoch = $2 AND state = 'closed'")
        .bind(partition.0)
        .bind(epoch)
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        if closed == 0 {
            return Ok(Claimed::TooLate);
        }
        claim_rows(&mut tx, node, claims, None).await.map_err(&failed)?;
        sql("INSERT INTO confirmations (node, partition, epoch) VALUES ($1, $2, $3)
             ON CONFLICT (node, partition) DO UPDATE SET epoch = excluded.epoch")
        .bind(node)
        .bind(partition.0)
        .bind(epoch)
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(Claimed::InTime)
    }

    /// How many nodes that are alive have not confirmed this epoch of a partition.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn unconfirmed(&self, partition: Partition, epoch: u64) -> Result<u64, LedgerError> {
        let now = self.dialect.now_ms();
        let row = sql(format!(
            "SELECT COUNT(*) AS nodes FROM nodes WHERE expires_at > {now} AND NOT EXISTS (
                 SELECT 1 FROM confirmations
                 WHERE node = nodes.id AND partition = $1 AND confirmations.epoch >= $2)",
        ))
        .bind(partition.0)
        .bind(epoch)
        .fetch_one(&self.reader)
        .await
        .map_err(LedgerError::of("waiting for the nodes"))?;
        row.number("nodes")
    }

    /// At most so many claims of a partition that wait, oldest first, each with what its invite has in the ledger now:
    /// its uses, and how many were ever granted; nothing if there is no such invite. None of a redemption that the ledger
    /// has: a node that counted as dead may claim it at any moment, and it must not be counted a second time.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn waiting_claims(
        &self,
        partition: Partition,
        limit: u32,
    ) -> Result<Vec<WaitingClaim>, LedgerError> {
        let rows = sql(format!(
            "SELECT {CLAIM}, (SELECT uses FROM invites WHERE invites.id = claims.invite) AS uses,
                 (SELECT granted FROM invites WHERE invites.id = claims.invite) AS granted
             FROM claims WHERE partition = $1 AND outcome IS NULL
                 AND NOT EXISTS (SELECT 1 FROM redemptions WHERE redemptions.id = claims.id)
             ORDER BY epoch, seq LIMIT $2",
        ))
        .bind(partition.0)
        .bind(limit)
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("reading claims"))?;
        rows.iter()
            .map(|row| {
                let counts = row.maybe_number("uses")?.zip(row.maybe_number("granted")?);
                Ok(WaitingClaim { claim: claim(row)?, counts })
            })
            .collect()
    }

    /// Marks the waiting claims of a partition that the ledger has come to know. Who was erased since they were told is
    /// named in them as in what the ledger has.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn settle_known_claims(&self, partition: Partition) -> Result<(), LedgerError> {
        sql("UPDATE claims SET outcome = $2, user_id = redemptions.user_id, request = redemptions.request,
                 metadata = redemptions.metadata
             FROM redemptions
             WHERE redemptions.id = claims.id AND claims.partition = $1 AND claims.outcome IS NULL")
        .bind(partition.0)
        .bind(KNOWN)
        .execute(&self.writer)
        .await
        .map_err(LedgerError::of("settling claims"))?;
        Ok(())
    }

    /// Writes claims down as the rows that they stand for, both or neither.
    ///
    /// # Errors
    /// [`LedgerError::Rejected`] when a row breaks a constraint, [`LedgerError::Unavailable`] otherwise.
    pub async fn apply_claims(
        &self,
        lease: &Lease,
        ids: &[RedemptionId],
        rows: &Rows,
    ) -> Result<Appended, LedgerError> {
        let failed = LedgerError::of("writing claims");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        if !holds(&mut tx, lease).await.map_err(&failed)? {
            return Ok(Appended::Overtaken);
        }
        write(&mut tx, lease.partition, rows).await.map_err(&failed)?;
        // From here on the gate lacks something that the ledger has, whoever opens it: it must not be adopted as it is.
        sql("UPDATE partitions SET lineage = NULL WHERE partition = $1")
            .bind(lease.partition.0)
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        // A use of an invite is one of its campaign.
        sql("UPDATE campaigns SET uses = COALESCE((SELECT SUM(invites.uses) FROM invites
                 WHERE invites.namespace = campaigns.namespace AND invites.campaign = campaigns.name), 0)
             WHERE partition = $1")
        .bind(lease.partition.0)
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        // Who redeems spends what it holds itself.
        for RedemptionRow { redemption, .. } in &rows.redemptions {
            sql("UPDATE reservations SET state = 'confirmed', redemption = $1
                 WHERE invite = $2 AND user_id = $3 AND state = 'held' AND held_until > $4")
            .bind(redemption.id.0)
            .bind(redemption.invite.0)
            .bind(redemption.user.as_str())
            .bind(redemption.redeemed_at.as_ms())
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        }
        for id in ids {
            settle(&mut tx, *id, APPLIED).await.map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        Ok(Appended::Appended)
    }

    /// Gives a waiting claim up: what was told is lost, for this reason.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn lose_claim(
        &self,
        lease: &Lease,
        id: RedemptionId,
        reason: &str,
    ) -> Result<Result<(), LeaseLost>, LedgerError> {
        let failed = LedgerError::of("settling a claim");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        if !holds(&mut tx, lease).await.map_err(&failed)? {
            return Ok(Err(LeaseLost));
        }
        settle(&mut tx, id, &lost(reason)).await.map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(Ok(()))
    }

    /// Writes down that something that a node had told, and came too late to claim, is lost.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn record_loss(
        &self,
        node: &str,
        told: &Acknowledgement,
        reason: &str,
    ) -> Result<(), LedgerError> {
        let failed = LedgerError::of("writing down a loss");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        claim_rows(&mut tx, node, std::slice::from_ref(told), Some(&lost(reason)))
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)
    }

    /// Writes down by what a reservation was spent, where Redis has lost that.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn record_confirmed(
        &self,
        reservation: Reservation,
        redemption: &Redemption,
    ) -> Result<(), LedgerError> {
        let failed = LedgerError::of("writing down what a reservation became");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let Position { partition, cursor } = redemption.position;
        let row = ReservationRow { reservation, held: Held::Confirmed(redemption.id), cursor };
        reservations(&mut tx, partition, &[row]).await.map_err(&failed)?;
        tx.commit().await.map_err(&failed)
    }

    /// Which of these redemptions the ledger does not have.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn missing(
        &self,
        told: Vec<Acknowledgement>,
    ) -> Result<Vec<Acknowledgement>, LedgerError> {
        let mut missing = Vec::new();
        for one in told {
            let Redemption { id, namespace, .. } = &one.redemption;
            if self.redemption(namespace, *id).await?.is_none() {
                missing.push(one);
            }
        }
        Ok(missing)
    }
}

/// Whether a lease still holds; its partition stays as it is until the transaction ends.
pub(super) async fn holds(tx: &mut Tx, lease: &Lease) -> Result<bool, sqlx::Error> {
    let rows = sql(
        "UPDATE partitions SET lease_token = lease_token WHERE partition = $1 AND lease_token = $2",
    )
    .bind(lease.partition.0)
    .bind(lease.token)
    .execute(tx)
    .await?;
    Ok(rows == 1)
}

async fn settle(tx: &mut Tx, id: RedemptionId, outcome: &str) -> Result<(), sqlx::Error> {
    sql("UPDATE claims SET outcome = $2 WHERE id = $1")
        .bind(id.0)
        .bind(outcome)
        .execute(tx)
        .await?;
    Ok(())
}

fn lost(reason: &str) -> String {
    format!("lost: {reason}")
}

fn claim(row: &Row) -> Result<Claim, LedgerError> {
    let redemption = row.redemption()?;
    let reservation = row.maybe_time("held_until")?.map(|until| redemption.reservation(until));
    Ok(Claim {
        redemption,
        request: row.text("request")?,
        reservation,
        rule: row.parsed("rule", MembershipRule::parse)?,
        metadata: row.maybe_text("metadata")?,
        actor: row.text("actor")?,
    })
}
