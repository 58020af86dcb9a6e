//! What happened in a namespace, in the order in which it happened: redemptions and the audit log as one row of changes.

use super::{
    Ledger, LedgerError,
    columns::REDEMPTION,
    sql::{Query, Row, sql},
};
use crate::domain::{Cursor, Event, Namespace, Partition, Position, event::What};

const AUDIT: &str = "partition, epoch, seq, at, actor, action, namespace, subject";

/// Of a namespace that is spread people see what was done to it once, where it was done: of its shards only what users do,
/// and of itself not what only its shards need.
pub(super) const SHOWN: &str =
    "(action IN ('redemption_rolled_back', 'reserved', 'reservation_released', 'joined', 'left')
     OR namespace NOT LIKE '%+%'
     AND action NOT IN ('uses_given', 'uses_taken', 'invite_copied', 'namespace_copied', 'campaign_copied'))";

/// Some events, the oldest first.
#[derive(Debug, Clone)]
pub struct EventPage {
    /// The events.
    pub events: Vec<Event>,
    /// There is nothing else up to here.
    pub upto: Cursor,
    /// Whether more are there already.
    pub more: bool,
}

impl Ledger {
    /// The events of what a namespace has in a partition after a place, at most `limit`.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn events(
        &self,
        namespace: &Namespace,
        partition: Partition,
        after: Cursor,
        limit: u32,
    ) -> Result<EventPage, LedgerError> {
        // Rows and cursor are committed together. So what is below this cursor is there already, whatever is committed
        // between the statements below; without this bound one of them could see further than the other.
        let upto = self.partition(partition).await?.cursor;
        let mut events = Vec::new();
        if upto <= after {
            return Ok(EventPage { events, upto: after, more: false });
        }
        let failed = LedgerError::of("reading events");
        let between = |part: &Namespace, columns: &str, table: &str, which: &str| -> Query {
            sql(format!(
                "SELECT {columns} FROM {table} WHERE namespace = $1 AND (epoch, seq) > ($2, $3)
                 AND (epoch, seq) <= ($4, $5){which} ORDER BY epoch, seq LIMIT $6",
            ))
            .bind(part.as_str())
            .bind(after.epoch)
            .bind(after.seq)
            .bind(upto.epoch)
            .bind(upto.seq)
            .bind(limit + 1)
        };
        let shown = format!(" AND {SHOWN}");
        // A shard is there before anything of it. So of those that are there by now none is missing below that cursor.
        for part in self.parts_in(namespace, partition).await? {
            let part = &part;
            let rows = between(part, REDEMPTION, "redemptions", "").fetch_all(&self.reader);
            for row in rows.await.map_err(&failed)? {
                events.push(redeemed(&row)?);
            }
            let rows = between(part, AUDIT, "audit_log", &shown).fetch_all(&self.reader);
            for row in rows.await.map_err(&failed)? {
                events.push(changed(&row)?);
            }
        }
        events.sort_by_key(|event| event.position);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = events.len() > limit;
        events.truncate(limit);
        let last = events.last().filter(|_| more).map(|event| event.position.cursor);
        Ok(EventPage { events, upto: last.unwrap_or(upto), more })
    }

    /// The event at a place of what a namespace has in a partition.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn event(
        &self,
        namespace: &Namespace,
        partition: Partition,
        at: Cursor,
    ) -> Result<Option<Event>, LedgerError> {
        let failed = LedgerError::of("reading an event");
        for part in self.parts_in(namespace, partition).await? {
            let one = |columns: &str, table: &str| {
                sql(format!(
                    "SELECT {columns} FROM {table} WHERE namespace = $1 AND epoch = $2 AND seq = $3"
                ))
                .bind(part.as_str())
                .bind(at.epoch)
                .bind(at.seq)
                .fetch_optional(&self.reader)
            };
            if let Some(row) = one(REDEMPTION, "redemptions").await.map_err(&failed)? {
                return redeemed(&row).map(Some);
            }
            if let Some(row) = one(AUDIT, "audit_log").await.map_err(&failed)? {
                return changed(&row).map(Some);
            }
        }
        Ok(None)
    }
}

fn redeemed(row: &Row) -> Result<Event, LedgerError> {
    let redemption = row.redemption()?;
    let metadata = row.maybe_text("metadata")?;
    Ok(Event { position: redemption.position, what: What::Redeemed { redemption, metadata } })
}

fn changed(row: &Row) -> Result<Event, LedgerError> {
    Ok(Event {
        position: Position { partition: row.partition()?, cursor: row.cursor()? },
        what: What::Changed {
            action: row.text("action")?,
            subject: row.text("subject")?,
            actor: row.text("actor")?,
            namespace: row.parsed("namespace", Namespace::stored)?.whole(),
            at: row.time("at")?,
        },
    })
}
