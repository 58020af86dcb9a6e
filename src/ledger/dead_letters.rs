//! Outbox entries that could not be applied: kept with the reason until somebody has mended it.

use super::{
    By, Ledger, LedgerError,
    append::write,
    audit_log::record,
    columns::DEAD_LETTER,
    rows::{Rollback, Rows},
    sql::{Row, Tx, sql},
};
use crate::domain::{Cursor, Invite, Millis, Namespace, Partition, Position, Redemption};

/// An entry that could not be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where it happened.
    pub partition: Partition,
    /// Its place.
    pub cursor: Cursor,
    /// Its fields, as a JSON object of text.
    pub entry: String,
    /// Why it could not be applied.
    pub reason: String,
    /// When that was found.
    pub at: Millis,
}

impl Ledger {
    /// The dead letters that nobody has dealt with, oldest first.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn unhandled_dead_letters(&self) -> Result<Vec<DeadLetter>, LedgerError> {
        let rows =
            sql(format!("SELECT {DEAD_LETTER} FROM dead_letters WHERE NOT handled ORDER BY partition, epoch, seq"))
                .fetch_all(&self.reader)
                .await
                .map_err(LedgerError::of("reading dead letters"))?;
        rows.iter().map(dead_letter).collect()
    }

    /// Writes the rows that a dead letter stands for, as far as nothing newer has overtaken them, and notes that it has
    /// been dealt with; both or neither. Without rows it is given up. Nothing happens if somebody has dealt with it.
    ///
    /// # Errors
    /// [`LedgerError::Rejected`] when a row still breaks a constraint, [`LedgerError::Unavailable`] otherwise.
    pub async fn settle_dead_letter(
        &self,
        letter: &DeadLetter,
        rows: Option<Rows>,
        by: &By,
    ) -> Result<(), LedgerError> {
        let failed = LedgerError::of("replaying a dead letter");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        // The partition's leader waits until this is done.
        sql("UPDATE partitions SET lease_token = lease_token WHERE partition = $1")
            .bind(letter.partition.0)
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        let settled = sql("UPDATE dead_letters SET handled = TRUE
             WHERE partition = $1 AND epoch = $2 AND seq = $3 AND NOT handled")
        .bind(letter.partition.0)
        .bind(letter.cursor.epoch)
        .bind(letter.cursor.seq)
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        if settled == 1 {
            let action =
                if rows.is_some() { "dead_letter_replayed" } else { "dead_letter_dropped" };
            if let Some(mut rows) = rows {
                drop_overtaken(&mut tx, letter, &mut rows).await?;
                write(&mut tx, letter.partition, &rows).await.map_err(&failed)?;
            }
            let place = Position { partition: letter.partition, cursor: letter.cursor };
            record(&mut tx, by, action, None, &place.to_string()).await.map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)
    }
}

/// Takes out of a late change's rows what later ones have ended: those left nothing behind that a row could be compared
/// with but their line in the audit log.
async fn drop_overtaken(
    tx: &mut Tx,
    letter: &DeadLetter,
    rows: &mut Rows,
) -> Result<(), LedgerError> {
    let mut members = Vec::new();
    for row in std::mem::take(&mut rows.members) {
        if was_done_later(tx, letter, "left", &row.namespace, &row.subject()).await? {
            for redemption in &mut rows.redemptions {
                redemption.exclusive_key = None;
            }
        } else {
            members.push(row);
        }
    }
    rows.members = members;
    for row in &mut rows.redemptions {
        let id = row.redemption.id;
        let Some(rollback) = rollback_of(tx, letter, &row.redemption).await? else { continue };
        row.rollback = Some(rollback);
        row.exclusive_key = None;
        rows.members.retain(|member| member.redemption != Some(id));
    }
    let mut invites = Vec::new();
    for mut row in std::mem::take(&mut rows.invites) {
        let Invite { id, namespace, code, .. } = &row.invite;
        if was_done_later(tx, letter, "invite_deleted", namespace, &id.to_string()).await? {
            continue;
        }
        let holder = sql(
            "SELECT EXISTS (SELECT 1 FROM invites WHERE namespace = $1 AND code = $2 AND holds_code AND id <> $3
                 AND (epoch, seq) > ($4, $5)) AS newer",
        )
        .bind(namespace.as_str())
        .bind(code.as_str())
        .bind(id.0)
        .bind(letter.cursor.epoch)
        .bind(letter.cursor.seq)
        .fetch_one(&mut *tx)
        .await
        .map_err(LedgerError::of("replaying a dead letter"))?;
        row.holds_code &= !holder.get::<bool>("newer")?;
        invites.push(row);
    }
    rows.invites = invites;
    Ok(())
}

/// How a redemption was taken back after the letter's moment, if it was; why is not in the audit log.
async fn rollback_of(
    tx: &mut Tx,
    letter: &DeadLetter,
    redemption: &Redemption,
) -> Result<Option<Rollback>, LedgerError> {
    let row = sql(
        "SELECT at, actor FROM audit_log WHERE partition = $1 AND action = 'redemption_rolled_back' AND namespace = $2
             AND subject = $3 AND (epoch, seq) > ($4, $5)",
    )
    .bind(letter.partition.0)
    .bind(redemption.namespace.as_str())
    .bind(redemption.id.to_string())
    .bind(letter.cursor.epoch)
    .bind(letter.cursor.seq)
    .fetch_optional(tx)
    .await
    .map_err(LedgerError::of("replaying a dead letter"))?;
    row.map(|row| Ok(Rollback { at: row.time("at")?, actor: row.text("actor")?, reason: None }))
        .transpose()
}

/// Whether the audit log has this of a moment after the letter's.
async fn was_done_later(
    tx: &mut Tx,
    letter: &DeadLetter,
    action: &str,
    namespace: &Namespace,
    subject: &str,
) -> Result<bool, LedgerError> {
    let row = sql(
        "SELECT EXISTS (SELECT 1 FROM audit_log WHERE partition = $1 AND action = $2 AND namespace = $3
             AND subject = $4 AND (epoch, seq) > ($5, $6)) AS later",
    )
    .bind(letter.partition.0)
    .bind(action)
    .bind(namespace.as_str())
    .bind(subject)
    .bind(letter.cursor.epoch)
    .bind(letter.cursor.seq)
    .fetch_one(tx)
    .await
    .map_err(LedgerError::of("replaying a dead letter"))?;
    row.get("later")
}

fn dead_letter(row: &Row) -> Result<DeadLetter, LedgerError> {
    Ok(DeadLetter {
        partition: row.partition()?,
        cursor: row.cursor()?,
        entry: row.text("entry")?,
        reason: row.text("reason")?,
        at: row.time("at")?,
    })
}
