//! Who may ask: the API keys, in memory.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use crate::domain::{ApiKey, Millis, Role, Token};

/// The keys that open something, read anew from the ledger every now and then.
#[derive(Debug, Default)]
pub struct Keys {
    table: RwLock<HashMap<String, Arc<ApiKey>>>,
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
                revoked_at: None,
            };
            (key.id.clone(), Arc::new(key))
        };
        Self { table: RwLock::default(), configured: admins.iter().map(key).collect() }
    }

    /// Takes over what the ledger has; revoked keys open nothing from here on.
    pub fn refresh(&self, keys: Vec<ApiKey>) {
        let live = keys.into_iter().filter(|key| key.revoked_at.is_none());
        let table = live.map(|key| (key.id.clone(), Arc::new(key))).collect();
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    /// The key that an `Authorization` header opens. An unknown id costs the same digest as a wrong secret.
    #[must_use]
    pub fn open(&self, header: &str) -> Option<Arc<ApiKey>> {
        let (scheme, token) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let token = Token::parse(token.trim()).ok()?;
        let known = self.configured.get(token.id()).cloned().or_else(|| {
            self.table.read().unwrap_or_else(PoisonError::into_inner).get(token.id()).cloned()
        });
        match known {
            Some(key) => token.opens(&key).then_some(key),
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
        let admin = Token::from_random([1; 30]);
        let keys = Keys::new(std::slice::from_ref(&admin));
        let header = format!("Bearer {}", admin.reveal());
        assert_eq!(keys.open(&header).unwrap().role, Role::Admin);
        assert!(keys.open(&header.replace("Bearer", "Basic")).is_none());
        assert!(keys.open(&admin.reveal()).is_none());

        let token = Token::from_random([2; 30]);
        let header = format!("bearer {}", token.reveal());
        assert!(keys.open(&header).is_none());
        let mut key = ApiKey {
            id: token.id().to_owned(),
            ..(*keys.open(&format!("Bearer {}", admin.reveal())).unwrap()).clone()
        };
        key.secret_sha256 = token.secret_sha256();
        keys.refresh(vec![key.clone()]);
        assert!(keys.open(&header).is_some());
        key.revoked_at = Some(Millis::default());
        keys.refresh(vec![key]);
        assert!(keys.open(&header).is_none());
    }
}
