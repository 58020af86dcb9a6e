//! What happened in a namespace, in the order in which it happened: redemptions and the audit log as one row of changes.

use super::{
    Ledger, LedgerError,
    columns::REDEMPTION,
    sql::{Query, Row, sql},
};
use crate::domain::{Cursor, Event, Namespace, Partition, Position, event::What};

const AUDIT: &str = "partition, epoch, seq, at, actor, action, namespace, subject";

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
    /// The events of a namespace after a place, at most `limit`.
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
        let between = |columns: &str, table: &str| -> Query {
            sql(format!(
                "SELECT {columns} FROM {table} WHERE namespace = $1 AND (epoch, seq) > ($2, $3)
                 AND (epoch, seq) <= ($4, $5) ORDER BY epoch, seq LIMIT $6",
            ))
            .bind(namespace.as_str())
            .bind(after.epoch)
            .bind(after.seq)
            .bind(upto.epoch)
            .bind(upto.seq)
            .bind(limit + 1)
        };
        for row in
            between(REDEMPTION, "redemptions").fetch_all(&self.reader).await.map_err(&failed)?
        {
            events.push(redeemed(&row)?);
        }
        for row in between(AUDIT, "audit_log").fetch_all(&self.reader).await.map_err(&failed)? {
            events.push(changed(&row)?);
        }
        events.sort_by_key(|event| event.position);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = events.len() > limit;
        events.truncate(limit);
        let last = events.last().filter(|_| more).map(|event| event.position.cursor);
        Ok(EventPage { events, upto: last.unwrap_or(upto), more })
    }

    /// The event at a place.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn event(
        &self,
        namespace: &Namespace,
        at: Cursor,
    ) -> Result<Option<Event>, LedgerError> {
        let failed = LedgerError::of("reading an event");
        let one = |columns: &str, table: &str| {
            sql(format!(
                "SELECT {columns} FROM {table} WHERE namespace = $1 AND epoch = $2 AND seq = $3"
            ))
            .bind(namespace.as_str())
            .bind(at.epoch)
            .bind(at.seq)
        };
        if let Some(row) =
            one(REDEMPTION, "redemptions").fetch_optional(&self.reader).await.map_err(&failed)?
        {
            return redeemed(&row).map(Some);
        }
        let row = one(AUDIT, "audit_log").fetch_optional(&self.reader).await.map_err(&failed)?;
        row.map(|row| changed(&row)).transpose()
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
            namespace: row.parsed("namespace", Namespace::stored)?,
            at: row.time("at")?,
        },
    })
}
