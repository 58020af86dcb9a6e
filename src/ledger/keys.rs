//! API keys: plain SQL, since they belong to the service and not to the gate.

use super::{
    Ledger, LedgerError,
    columns::API_KEY,
    sql::{Row, sql},
};
use crate::domain::{ApiKey, Millis, Namespace, Role};

impl Ledger {
    /// Keeps a new key.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be written.
    pub async fn insert_key(&self, key: &ApiKey) -> Result<(), LedgerError> {
        let namespaces = key
            .namespaces
            .as_ref()
            .map(|only| only.iter().map(Namespace::as_str).collect::<Vec<_>>().join(","));
        sql(
            "INSERT INTO api_keys (id, name, role, namespaces, secret_sha256, created_at, revoked_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(key.id.as_str())
        .bind(key.name.as_str())
        .bind(key.role.as_str())
        .bind(namespaces)
        .bind(key.secret_sha256.to_vec())
        .bind(key.created_at.as_ms())
        .bind(key.revoked_at.map(Millis::as_ms))
        .execute(&self.writer)
        .await
        .map_err(LedgerError::of("writing an API key"))?;
        Ok(())
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
    pub async fn revoke_key(&self, id: &str, now: Millis) -> Result<bool, LedgerError> {
        let done = sql("UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $1) WHERE id = $2")
            .bind(now.as_ms())
            .bind(id)
            .execute(&self.writer)
            .await
            .map_err(LedgerError::of("revoking an API key"))?;
        Ok(done == 1)
    }
}

fn api_key(row: &Row) -> Result<ApiKey, LedgerError> {
    let namespaces =
        |text: &str| text.split(',').map(Namespace::parse).collect::<Result<Vec<_>, _>>();
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
        revoked_at: row.maybe_time("revoked_at")?,
    })
}
