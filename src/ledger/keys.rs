//! API keys: plain SQL, since they belong to the service and not to the gate.

use super::{
    By, Ledger, LedgerError,
    audit_log::record,
    columns::API_KEY,
    sql::{Row, sql},
};
use crate::domain::{ApiKey, Millis, Namespace, Role};

/// Changes whenever a key is made or revoked, which is all that ever happens to keys: how many there are, and how many of
/// them are revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeysVersion {
    made: u64,
    revoked: u64,
}

impl Ledger {
    /// Keeps a new key.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn insert_key(&self, key: &ApiKey, by: &By) -> Result<(), LedgerError> {
        let failed = LedgerError::of("writing an API key");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let namespaces = key
            .namespaces
            .as_ref()
            .map(|only| only.iter().map(Namespace::as_str).collect::<Vec<_>>().join(","));
        sql(
            "INSERT INTO api_keys (id, name, role, namespaces, secret_sha256, created_at, expires_at, revoked_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(key.id.as_str())
        .bind(key.name.as_str())
        .bind(key.role.as_str())
        .bind(namespaces)
        .bind(key.secret_sha256.to_vec())
        .bind(key.created_at.as_ms())
        .bind(key.expires_at.map(Millis::as_ms))
        .bind(key.revoked_at.map(Millis::as_ms))
        .execute(&mut tx)
        .await
        .map_err(&failed)?;
        record(&mut tx, by, "key_created", None, &subject(key)).await.map_err(&failed)?;
        tx.commit().await.map_err(&failed)
    }

    /// What changes with the keys, and the time by the clock of the database, which says when one ends.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn keys_version(&self) -> Result<(KeysVersion, Millis), LedgerError> {
        let now = self.dialect.now_ms();
        let row = sql(format!(
            "SELECT COUNT(*) AS made, COUNT(revoked_at) AS revoked, {now} AS now FROM api_keys"
        ))
        .fetch_one(&self.reader)
        .await
        .map_err(LedgerError::of("looking for changes of the API keys"))?;
        let version = KeysVersion { made: row.number("made")?, revoked: row.number("revoked")? };
        Ok((version, row.time("now")?))
    }

    /// Every key, revoked ones too, the oldest first.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn keys(&self) -> Result<Vec<ApiKey>, LedgerError> {
        let rows = sql(format!("SELECT {API_KEY} FROM api_keys ORDER BY created_at, id"))
            .fetch_all(&self.reader)
            .await
            .map_err(LedgerError::of("reading the API keys"))?;
        rows.iter().map(api_key).collect()
    }

    /// Revokes a key; says whether there is one with this id. A key stays revoked since the first time.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn revoke_key(&self, id: &str, now: Millis, by: &By) -> Result<bool, LedgerError> {
        let failed = LedgerError::of("revoking an API key");
        let mut tx = self.writer.begin().await.map_err(&failed)?;
        let revoked =
            sql("UPDATE api_keys SET revoked_at = $1 WHERE id = $2 AND revoked_at IS NULL")
                .bind(now.as_ms())
                .bind(id)
                .execute(&mut tx)
                .await
                .map_err(&failed)?;
        let known = sql(format!("SELECT {API_KEY} FROM api_keys WHERE id = $1"))
            .bind(id)
            .fetch_optional(&mut tx)
            .await
            .map_err(&failed)?;
        let Some(known) = known else { return Ok(false) };
        if revoked == 1 {
            let subject = subject(&api_key(&known)?);
            record(&mut tx, by, "key_revoked", None, &subject).await.map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        Ok(true)
    }
}

/// How the audit log speaks of a key.
fn subject(key: &ApiKey) -> String {
    let only = key.namespaces.as_ref().map(|only| {
        let names: Vec<_> = only.iter().map(Namespace::as_str).collect();
        format!(" of {}", names.join(", "))
    });
    format!("{} ({}{}: {})", key.id, key.role.as_str(), only.unwrap_or_default(), key.name)
}

fn api_key(row: &Row) -> Result<ApiKey, LedgerError> {
    let namespaces =
        |text: &str| text.split(',').map(Namespace::stored).collect::<Result<Vec<_>, _>>();
    let secret: Vec<u8> = row.get("secret_sha256")?;
    Ok(ApiKey {
        id: row.text("id")?,
        name: row.text("name")?,
        role: row.parsed("role", Role::parse)?,
        namespaces: row.maybe_parsed("namespaces", namespaces)?,
        secret_sha256: secret
            .try_into()
            .map_err(|_| LedgerError::Corrupt("an API key's digest has not 32 bytes".to_owned()))?,
        created_at: row.time("created_at")?,
        expires_at: row.maybe_time("expires_at")?,
        revoked_at: row.maybe_time("revoked_at")?,
    })
}
