//! Who changed what. Changes of the gate come by an outbox, with the rest of their batch (`append`); those of the ledger's
//! own tables, and what an operator does by hand, are written here, in the transaction of the change ([`record`]).

use std::{fmt, str::FromStr};

use super::{
    Ledger, LedgerError,
    columns::{AUDIT, DEED},
    events::SHOWN,
    read::cut,
    sql::{Query, Row, Tx, sql},
};
use crate::domain::{Malformed, Millis, Namespace, Position};

/// Who changes something, and by which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// The id of an API key, or `cli:` and a name of the system, or `node`.
    pub actor: String,
    /// The id of the HTTP request, if it was one.
    pub request_id: Option<String>,
}

impl By {
    /// A node that does something by itself.
    #[must_use]
    pub fn node() -> Self {
        Self { actor: "node".to_owned(), request_id: None }
    }
}

/// Where a line stands in the log, among those of the same moment too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuditPlace {
    /// A change of the gate: its position.
    Change(Position),
    /// Any other: their count.
    Deed(u64),
}

impl fmt::Display for AuditPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change(position) => position.fmt(f),
            Self::Deed(number) => number.fmt(f),
        }
    }
}

impl FromStr for AuditPlace {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        text.parse().map(Self::Deed).or_else(|_| text.parse().map(Self::Change))
    }
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct AuditLine {
    pub place: AuditPlace,
    pub at: Millis,
    pub by: By,
    /// What the actor's API key is called, if it is one of the ledger.
    pub actor_name: Option<String>,
    pub action: String,
    pub namespace: Option<Namespace>,
    /// What was changed, for people.
    pub subject: String,
}

/// Which lines; what is not set does not narrow.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct AuditFilter {
    pub namespace: Option<Namespace>,
    pub actor: Option<String>,
    /// What applications do for their users, such as `reserved`, is only found when it is named here.
    pub action: Option<String>,
    /// At or after this moment.
    pub after: Option<Millis>,
    /// Before this moment.
    pub before: Option<Millis>,
}

/// Some lines, the newest first.
#[derive(Debug, Clone)]
pub struct AuditPage {
    /// The lines.
    pub rows: Vec<AuditLine>,
    /// Where the next page begins, if there is one.
    pub next: Option<(Millis, AuditPlace)>,
}

/// What applications do for their users: it is in the log so that no change is missing there, and it would hide what
/// administrators do.
const EVERYDAY: &str = "'reserved', 'reservation_released'";

/// Writes down who changes what, in the transaction that changes it.
pub(super) async fn record(
    tx: &mut Tx,
    by: &By,
    action: &'static str,
    namespace: Option<&Namespace>,
    subject: &str,
) -> Result<(), sqlx::Error> {
    let now = tx.dialect().now_ms();
    sql(format!(
        "INSERT INTO deeds (at, actor, action, namespace, subject, request_id) VALUES ({now}, $1, $2, $3, $4, $5)"
    ))
    .bind(by.actor.as_str())
    .bind(action)
    .bind(namespace.map(Namespace::as_str))
    .bind(subject)
    .bind(by.request_id.as_deref())
    .execute(tx)
    .await
    .map(drop)
}

impl Ledger {
    /// Writes down something that changes nothing in the ledger itself.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn record_deed(
        &self,
        by: &By,
        action: &'static str,
        subject: &str,
    ) -> Result<(), LedgerError> {
        let failed = LedgerError::of("writing the audit log");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        record(&mut tx, by, action, None, subject).await.map_err(&failed)?;
        tx.commit().await.map_err(&failed)
    }

    /// The log, the newest first, from a place on if one is given.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn audit_log(
        &self,
        filter: &AuditFilter,
        from: Option<(Millis, AuditPlace)>,
        limit: u32,
    ) -> Result<AuditPage, LedgerError> {
        const NAME: &str = "(SELECT name FROM api_keys WHERE api_keys.id = actor) AS actor_name";
        let failed = LedgerError::of("reading the audit log");
        // A page of each half, of which the newest lines are a page of both.
        let since = filter.after.map_or(0, Millis::as_ms);
        let half = |columns: &str, table: &str, namespace: Option<&Namespace>| {
            let text = format!("SELECT {columns}, {NAME} FROM {table} WHERE at >= $1");
            let mut query = sql(text).bind(since);
            narrow(&mut query, filter, namespace);
            query
        };
        // Of one moment, deeds come before changes.
        let mut deeds = half(DEED, "deeds", filter.namespace.as_ref());
        match from {
            None => {}
            Some((at, AuditPlace::Change(_))) => {
                deeds.push(" AND at < ").push_bind(at.as_ms());
            }
            Some((at, AuditPlace::Deed(number))) => {
                deeds.push(" AND (at, id) < (").push_bind(at.as_ms());
                deeds.push(", ").push_bind(number).push(")");
            }
        }
        deeds.push(" ORDER BY at DESC, id DESC LIMIT ").push_bind(limit + 1);
        let deeds = deeds.fetch_all(&self.reader).await.map_err(&failed)?;
        let deeds = deeds.iter().map(|row| {
            line(row, AuditPlace::Deed(row.number("id")?), row.maybe_text("request_id")?)
        });
        let mut rows = deeds.collect::<Result<Vec<_>, _>>()?;
        // Each part of a namespace that is spread has lines of its own.
        let parts = match &filter.namespace {
            Some(namespace) => self.parts(namespace).await?.into_iter().map(Some).collect(),
            None => vec![None],
        };
        for part in &parts {
            let mut changes = half(AUDIT, "audit_log", part.as_ref());
            changes.push(&format!(" AND {SHOWN}"));
            if filter.action.is_none() {
                changes.push(&format!(" AND action NOT IN ({EVERYDAY})"));
            }
            match from {
                None => {}
                Some((at, AuditPlace::Change(Position { partition, cursor }))) => {
                    changes.push(" AND (at, partition, epoch, seq) < (").push_bind(at.as_ms());
                    for part in [u64::from(partition.0), cursor.epoch, cursor.seq] {
                        changes.push(", ").push_bind(part);
                    }
                    changes.push(")");
                }
                Some((at, AuditPlace::Deed(_))) => {
                    changes.push(" AND at <= ").push_bind(at.as_ms());
                }
            }
            changes.push(" ORDER BY at DESC, partition DESC, epoch DESC, seq DESC LIMIT ");
            changes.push_bind(limit + 1);
            for row in &changes.fetch_all(&self.reader).await.map_err(&failed)? {
                rows.push(line(row, change_place(row)?, None)?);
            }
        }
        rows.sort_by_key(|line| std::cmp::Reverse((line.at, line.place)));
        let more = cut(&mut rows, limit);
        let next = rows.last().filter(|_| more).map(|last| (last.at, last.place));
        Ok(AuditPage { rows, next })
    }
}

fn narrow(query: &mut Query, filter: &AuditFilter, namespace: Option<&Namespace>) {
    if let Some(before) = filter.before {
        query.push(" AND at < ").push_bind(before.as_ms());
    }
    for (column, value) in [
        ("namespace", namespace.map(Namespace::as_str)),
        ("actor", filter.actor.as_deref()),
        ("action", filter.action.as_deref()),
    ] {
        if let Some(value) = value {
            query.push(&format!(" AND {column} = ")).push_bind(value);
        }
    }
}

fn change_place(row: &Row) -> Result<AuditPlace, LedgerError> {
    Ok(AuditPlace::Change(Position { partition: row.partition()?, cursor: row.cursor()? }))
}

fn line(
    row: &Row,
    place: AuditPlace,
    request_id: Option<String>,
) -> Result<AuditLine, LedgerError> {
    Ok(AuditLine {
        place,
        at: row.time("at")?,
        by: By { actor: row.text("actor")?, request_id },
        actor_name: row.maybe_text("actor_name")?,
        action: row.text("action")?,
        namespace: row.maybe_parsed("namespace", Namespace::stored)?.map(|name| name.whole()),
        subject: row.text("subject")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_its_text() {
        for text in ["17", "6/1-3"] {
            assert_eq!(text.parse::<AuditPlace>().unwrap().to_string(), text);
        }
        assert!("1-3".parse::<AuditPlace>().is_err());
    }
}
