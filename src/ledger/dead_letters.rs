//! Outbox entries that could not be applied: kept with the reason until somebody has mended it.

use super::{
    Ledger, LedgerError,
    append::write,
    columns::DEAD_LETTER,
    rows::Rows,
    sql::{Row, sql},
};
use crate::domain::{Cursor, Millis, Partition};

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
    /// been dealt with; both or neither. Without rows it is given up.
    ///
    /// # Errors
    /// [`LedgerError::Rejected`] when a row still breaks a constraint, [`LedgerError::Unavailable`] otherwise.
    pub async fn settle_dead_letter(
        &self,
        letter: &DeadLetter,
        rows: Option<&Rows>,
    ) -> Result<(), LedgerError> {
        let failed = LedgerError::of("replaying a dead letter");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        // The partition's leader waits until this is done.
        sql("UPDATE partitions SET lease_token = lease_token WHERE partition = $1")
            .bind(letter.partition.0)
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        if let Some(rows) = rows {
            write(&mut tx, letter.partition, rows).await.map_err(&failed)?;
        }
        sql("UPDATE dead_letters SET handled = TRUE WHERE partition = $1 AND epoch = $2 AND seq = $3")
            .bind(letter.partition.0)
            .bind(letter.cursor.epoch)
            .bind(letter.cursor.seq)
            .execute(&mut tx)
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)
    }
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
