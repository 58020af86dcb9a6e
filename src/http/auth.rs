//! Who may ask: the API keys, in memory.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::Mutex;

use crate::{
    domain::{ApiKey, Millis, Role, Token},
    ids::TimeAsked,
    ledger::{KeysVersion, Ledger, LedgerError},
};

/// The keys that open something, as the ledger had them when this node last looked. While the ledger can not be read,
/// those known stay: nobody can make or revoke one then.
#[derive(Debug, Default)]
pub struct Keys {
    table: RwLock<HashMap<String, Arc<ApiKey>>>,
    /// What the table was read at. Held while it is read, so that what was read earlier never replaces what is newer.
    version: Mutex<Option<KeysVersion>>,
    /// Keys that are configured on this node and not in the ledger.
    configured: HashMap<String, Arc<ApiKey>>,
}

impl Keys {
    /// No keys yet but these admin keys of this node's own.
    #[must_use]
    pub fn new(admins: &[Token]) -> Self {
        let key = |token: &Token| {
            let key = ApiKey {
                id: token.id().to_owned(),
                name: "configured".to_owned(),
                role: Role::Admin,
                namespaces: None,
                secret_sha256: token.secret_sha256(),
                created_at: Millis::default(),
                expires_at: None,
                revoked_at: None,
            };
            (key.id.clone(), Arc::new(key))
        };
        Self { configured: admins.iter().map(key).collect(), ..Self::default() }
    }

    /// Reads the keys from the ledger, if any was made or revoked since the last time, and goes by its clock.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn catch_up(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let mut known = self.version.lock().await;
        // Before the keys: what changes in between is read now, and once more the next time.
        let asked = TimeAsked::now();
        let (version, now) = ledger.keys_version().await?;
        asked.answered(now);
        if *known != Some(version) {
            self.take_over(ledger.keys().await?);
            *known = Some(version);
        }
        Ok(())
    }

    /// What a key is called that is configured on this node.
    pub(super) fn configured_name(&self, id: &str) -> Option<&str> {
        self.configured.get(id).map(|key| key.name.as_str())
    }

    /// Revoked keys open nothing from here on.
    fn take_over(&self, keys: Vec<ApiKey>) {
        let live = keys.into_iter().filter(|key| key.revoked_at.is_none());
        let table = live.map(|key| (key.id.clone(), Arc::new(key))).collect();
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    /// The key that an `Authorization` header opens now. An unknown id costs the same digest as a wrong secret.
    #[must_use]
    pub fn open(&self, header: &str, now: Millis) -> Option<Arc<ApiKey>> {
        let (scheme, token) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let token = Token::parse(token.trim()).ok()?;
        let known = self.configured.get(token.id()).cloned().or_else(|| {
            self.table.read().unwrap_or_else(PoisonError::into_inner).get(token.id()).cloned()
        });
        match known {
            Some(key) => (token.opens(&key) && key.is_live(now)).then_some(key),
            None => {
                std::hint::black_box(token.secret_sha256());
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_live_key_opens() {
        let now = Millis::default();
        let admin = Token::from_random([1; 30]);
        let keys = Keys::new(std::slice::from_ref(&admin));
        let header = format!("Bearer {}", admin.reveal());
        assert_eq!(keys.open(&header, now).unwrap().role, Role::Admin);
        assert!(keys.open(&header.replace("Bearer", "Basic"), now).is_none());
        assert!(keys.open(&admin.reveal(), now).is_none());

        let token = Token::from_random([2; 30]);
        let header = format!("bearer {}", token.reveal());
        assert!(keys.open(&header, now).is_none());
        let mut key = ApiKey {
            id: token.id().to_owned(),
            ..(*keys.open(&format!("Bearer {}", admin.reveal()), now).unwrap()).clone()
        };
        key.secret_sha256 = token.secret_sha256();
        keys.take_over(vec![key.clone()]);
        assert!(keys.open(&header, now).is_some());
        key.expires_at = Some(Millis::from_ms(1).unwrap());
        keys.take_over(vec![key.clone()]);
        assert!(keys.open(&header, now).is_some());
        assert!(keys.open(&header, Millis::from_ms(1).unwrap()).is_none());
        key.expires_at = None;
        key.revoked_at = Some(Millis::default());
        keys.take_over(vec![key]);
        assert!(keys.open(&header, now).is_none());
    }
}
