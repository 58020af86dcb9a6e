//! What the ledger knows of namespaces that are spread over several partitions.

use std::collections::{BTreeSet, HashMap};

use super::{
    Lease, LeaseLost, Ledger, LedgerError,
    claims::holds,
    columns::{INVITE, NAMESPACE},
    read::HELD,
    sql::{Row, Tx, sql},
};
use crate::domain::{CampaignName, Invite, InviteId, Millis, Namespace, Settings, spread::HOME};

impl Ledger {
    /// How much of an invite, or of a campaign, by its id in the namespace itself, a participant has ever given to another one.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn given(
        &self,
        invite: InviteId,
        giver: u16,
        taker: u16,
    ) -> Result<u64, LedgerError> {
        let row = sql("SELECT given FROM moves WHERE whole = $1 AND own = $2 AND participant = $3")
            .bind(invite.0)
            .bind(giver)
            .bind(taker)
            .fetch_optional(&self.reader)
            .await
            .map_err(LedgerError::of("reading what was moved"))?;
        row.map_or(Ok(0), |row| row.number("given"))
    }

    /// The namespaces that are spread, with their rules.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn spread_namespaces(&self) -> Result<Vec<(Namespace, Settings)>, LedgerError> {
        let rows = sql(format!(
            "SELECT {NAMESPACE} FROM namespaces WHERE (spread > 1 OR layouts IS NOT NULL)
                 AND name NOT LIKE '%+%' ORDER BY name"
        ))
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("reading namespaces"))?;
        let one = |row: &Row| Ok((row.parsed("name", Namespace::stored)?, row.settings()?));
        rows.iter().map(one).collect()
    }

    /// Invites of a namespace that is spread which were changed since they were made, or have taken the code of another
    /// one, after a moment and id, the oldest change first.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn changed_invites(
        &self,
        namespace: &Namespace,
        after: (Millis, InviteId),
        limit: u32,
    ) -> Result<Vec<Invite>, LedgerError> {
        let rows = sql(format!(
            "SELECT {INVITE} FROM invites WHERE namespace = $1 AND total IS NOT NULL AND (updated_at, id) > ($2, $3)
                 AND (revision > 1 OR EXISTS (
                     SELECT 1 FROM invites AS other WHERE other.namespace = invites.namespace
                         AND other.code = invites.code AND other.id <> invites.id))
             ORDER BY updated_at, id LIMIT $4",
        ))
        .bind(namespace.as_str())
        .bind(after.0.as_ms())
        .bind(after.1.0)
        .bind(limit)
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("reading changed invites"))?;
        rows.iter().map(Row::invite).collect()
    }

    /// How many uses of these invites are spent, and held at `now`, in the shards of their namespace; by their ids in the
    /// namespace itself.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn in_shards(
        &self,
        shards: &[Namespace],
        invites: &[InviteId],
        now: Millis,
    ) -> Result<HashMap<InviteId, (u64, u64)>, LedgerError> {
        let failed = LedgerError::of("reading what shards have");
        let mut counts = HashMap::new();
        for shard in shards {
            for invites in invites.chunks(CHUNK) {
                let places: Vec<_> = (3..=invites.len() + 2).map(|n| format!("${n}")).collect();
                let mut query = sql(format!(
                    "SELECT id, uses, {HELD} FROM invites WHERE namespace = $1 AND id IN ({})",
                    places.join(", ")
                ))
                .bind(shard.as_str())
                .bind(now.as_ms());
                for invite in invites {
                    query = query.bind(invite.of_whole(shard).0);
                }
                for row in query.fetch_all(&self.reader).await.map_err(&failed)? {
                    let whole = InviteId(row.id("id")?).of_whole(shard);
                    let (uses, held) = counts.entry(whole).or_insert((0, 0));
                    *uses += row.number("uses")?;
                    *held += row.number("held")?;
                }
            }
        }
        Ok(counts)
    }
}

impl Ledger {
    /// Gives a shard that is being recovered what it is known to have had of these invites, by their ids there, and of
    /// their campaigns: the copies themselves, and what other participants have given it. Redis may have lost both after nodes had told somebody of uses
    /// that were spent from them. Nothing is given twice: whoever brings it later finds that it has come.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written; nothing was then.
    pub async fn settle_shards(
        &self,
        lease: &Lease,
        epoch: u64,
        invites: &BTreeSet<(Namespace, InviteId)>,
    ) -> Result<Result<(), LeaseLost>, LedgerError> {
        let failed = LedgerError::of("settling what shards were given");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        if !holds(&mut tx, lease).await.map_err(&failed)? {
            return Ok(Err(LeaseLost));
        }
        let mut pools = BTreeSet::new();
        for (part, id) in invites {
            if part.participant() > HOME {
                copy(&mut tx, lease, epoch, part, *id).await.map_err(&failed)?;
            }
            take_all(&mut tx, lease, part, *id, OF_INVITE).await?;
            pools.extend(copy_campaign(&mut tx, lease, epoch, part, *id).await?);
        }
        for (part, pool) in pools {
            take_all(&mut tx, lease, &part, pool, OF_CAMPAIGN).await?;
        }
        // The gate lacks what the ledger has now: it must not be adopted as it is.
        sql("UPDATE partitions SET lineage = NULL WHERE partition = $1")
            .bind(lease.partition.0)
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(Ok(()))
    }
}

/// Makes the copy of an invite in a shard, unless it is there.
async fn copy(
    tx: &mut Tx,
    lease: &Lease,
    epoch: u64,
    shard: &Namespace,
    id: InviteId,
) -> Result<(), sqlx::Error> {
    sql("INSERT INTO invites (id, namespace, partition, code, grp, max_uses, uses, granted, starts_at, expires_at, disabled,
             user_id, email_domains, batch, imported, max_uses_per_user, campaign, revision, created_at, updated_at,
             holds_code, epoch, seq)
         SELECT $1, $2, $3, code, grp, 0, 0, 0, starts_at, expires_at, disabled, user_id, email_domains, batch, 0,
             max_uses_per_user, campaign, revision, created_at, updated_at, holds_code AND NOT EXISTS (
                 SELECT 1 FROM invites AS other WHERE other.namespace = $2 AND other.code = invites.code
                     AND other.holds_code), $4, 0
         FROM invites WHERE id = $5
         ON CONFLICT (id) DO NOTHING")
    .bind(id.0)
    .bind(shard.as_str())
    .bind(lease.partition.0)
    .bind(epoch)
    .bind(id.of_whole(shard).0)
    .execute(tx)
    .await?;
    Ok(())
}

/// Makes the copy of an invite's campaign in a shard, unless it is there or there is none; says which it is.
async fn copy_campaign(
    tx: &mut Tx,
    lease: &Lease,
    epoch: u64,
    shard: &Namespace,
    invite: InviteId,
) -> Result<Option<(Namespace, InviteId)>, LedgerError> {
    let failed = LedgerError::of("settling what shards were given");
    let row = sql("SELECT campaign FROM invites WHERE id = $1 AND campaign IS NOT NULL")
        .bind(invite.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(&failed)?;
    let Some(row) = row else { return Ok(None) };
    let name = row.parsed("campaign", CampaignName::parse)?;
    let pool = InviteId::of_campaign(shard, &name);
    sql("INSERT INTO campaigns (namespace, name, partition, max_uses, pool, uses, revision, created_at, updated_at, epoch, seq)
         SELECT $1, name, $2, 0, $3, 0, 1, created_at, updated_at, $4, 0 FROM campaigns WHERE namespace = $5 AND name = $6
         ON CONFLICT (namespace, name) DO NOTHING")
    .bind(shard.as_str())
    .bind(lease.partition.0)
    .bind(pool.0)
    .bind(epoch)
    .bind(shard.whole().as_str())
    .bind(name.as_str())
    .execute(&mut *tx)
    .await
    .map_err(&failed)?;
    Ok(Some((shard.clone(), pool)))
}

/// What more may be spent of an invite.
const OF_INVITE: &str = "UPDATE invites SET max_uses = max_uses + $2 WHERE id = $1";
/// The same of a campaign.
const OF_CAMPAIGN: &str = "UPDATE campaigns SET max_uses = max_uses + $2 WHERE pool = $1";

/// Takes for a shard whatever others have given it of an invite, or of a campaign, and it has not taken yet.
async fn take_all(
    tx: &mut Tx,
    lease: &Lease,
    shard: &Namespace,
    id: InviteId,
    add: &'static str,
) -> Result<(), LedgerError> {
    let failed = LedgerError::of("settling what shards were given");
    let (whole, own) = (id.of_whole(shard), shard.participant());
    let given =
        sql("SELECT own, given FROM moves WHERE whole = $1 AND participant = $2 AND given > 0")
            .bind(whole.0)
            .bind(own)
            .fetch_all(&mut *tx)
            .await
            .map_err(&failed)?;
    let taken = sql("SELECT participant, taken FROM moves WHERE whole = $1 AND own = $2")
        .bind(whole.0)
        .bind(own)
        .fetch_all(&mut *tx)
        .await
        .map_err(&failed)?;
    let mut known = HashMap::new();
    for row in taken {
        known.insert(row.small("participant")?, row.number("taken")?);
    }
    for row in given {
        let (giver, given) = (row.small("own")?, row.number("given")?);
        let more = given.saturating_sub(known.get(&giver).copied().unwrap_or_default());
        if more == 0 {
            continue;
        }
        sql("INSERT INTO moves (whole, own, participant, invite, namespace, partition, given, given_epoch, given_seq, taken)
             VALUES ($1, $2, $3, $4, $5, $6, 0, 0, 0, $7)
             ON CONFLICT (whole, own, participant) DO UPDATE SET taken = excluded.taken")
        .bind(whole.0)
        .bind(own)
        .bind(giver)
        .bind(id.0)
        .bind(shard.as_str())
        .bind(lease.partition.0)
        .bind(given)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        sql(add).bind(id.0).bind(more).execute(&mut *tx).await.map_err(&failed)?;
    }
    Ok(())
}

/// Ids that are asked for at once.
const CHUNK: usize = 500;
