//! What the ledger knows of namespaces that are spread over several partitions.

use std::collections::HashMap;

use super::{Ledger, LedgerError, read::HELD, sql::sql};
use crate::domain::{InviteId, Millis, Namespace};

impl Ledger {
    /// How much of an invite, by its id in the namespace itself, a participant has ever given to another one.
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

    /// How many uses of these invites are spent, and held at `now`, in the shards of their namespace; by their ids in the
    /// namespace itself.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn in_shards(
        &self,
        namespace: &Namespace,
        spread: u16,
        invites: &[InviteId],
        now: Millis,
    ) -> Result<HashMap<InviteId, (u64, u64)>, LedgerError> {
        let failed = LedgerError::of("reading what shards have");
        let mut counts = HashMap::new();
        for shard in namespace.shards(spread) {
            for invites in invites.chunks(CHUNK) {
                let places: Vec<_> = (3..=invites.len() + 2).map(|n| format!("${n}")).collect();
                let mut query = sql(format!(
                    "SELECT id, uses, {HELD} FROM invites WHERE namespace = $1 AND id IN ({})",
                    places.join(", ")
                ))
                .bind(shard.as_str())
                .bind(now.as_ms());
                for invite in invites {
                    query = query.bind(invite.of_whole(&shard).0);
                }
                for row in query.fetch_all(&self.reader).await.map_err(&failed)? {
                    let whole = InviteId(row.id("id")?).of_whole(&shard);
                    let (uses, held) = counts.entry(whole).or_insert((0, 0));
                    *uses += row.number("uses")?;
                    *held += row.number("held")?;
                }
            }
        }
        Ok(counts)
    }
}

/// Ids that are asked for at once.
const CHUNK: usize = 500;
