//! API keys: who may ask, and what for.

use std::fmt;

use data_encoding::{Encoding, Specification};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Millis, Namespace, name::Malformed};

/// What a key may do. `read` and `redeem` do not include each other; `manage` includes both, `admin` everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Redeem and validate.
    Redeem,
    /// Read everything but keys.
    Read,
    /// Redeem, read, and change invites, members and settings.
    Manage,
    /// Everything, keys and namespaces included.
    Admin,
}

impl Role {
    /// Every role, from the narrowest.
    pub const ALL: [Self; 4] = [Self::Redeem, Self::Read, Self::Manage, Self::Admin];

    /// The word used in SQL, JSON and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redeem => "redeem",
            Self::Read => "read",
            Self::Manage => "manage",
            Self::Admin => "admin",
        }
    }

    /// # Errors
    /// [`Malformed`] when the text is none of the four words.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| Malformed("role is redeem, read, manage or admin".to_owned()))
    }

    /// Whether a key of this role may do what needs `needed`.
    #[must_use]
    pub fn includes(self, needed: Self) -> bool {
        match self {
            Self::Admin => true,
            Self::Manage => needed != Self::Admin,
            Self::Read | Self::Redeem => self == needed,
        }
    }
}

/// A key as the ledger keeps it: without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The public part of the key: 16 characters of `a-z2-7`.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The only namespaces it may touch, if it is tied to any.
    pub namespaces: Option<Vec<Namespace>>,
    /// SHA-256 of the secret part.
    pub secret_sha256: [u8; 32],
    /// When it was made.
    pub created_at: Millis,
    /// From when on it opens nothing, if it has an end.
    pub expires_at: Option<Millis>,
    /// Since when it opens nothing.
    pub revoked_at: Option<Millis>,
}

impl ApiKey {
    /// Whether the key opens anything at this moment.
    #[must_use]
    pub fn is_live(&self, now: Millis) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }

    /// Whether the key may touch this namespace.
    #[must_use]
    pub fn covers(&self, namespace: &Namespace) -> bool {
        self.namespaces.as_ref().is_none_or(|only| only.contains(namespace))
    }
}

/// What a caller sends: `rdm_<id>_<secret>`. Shown once, when it is made; never stored, never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: String,
}

impl Token {
    /// Characters of the id: 10 random bytes in base32.
    pub const ID_CHARS: usize = 16;
    /// Characters of the secret: 20 random bytes (160 bits) in base32.
    pub const SECRET_CHARS: usize = 32;

    /// A new token out of 30 random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 30]) -> Self {
        let base32 = base32();
        Self { id: base32.encode(&bytes[..10]), secret: base32.encode(&bytes[10..]) }
    }

    /// # Errors
    /// [`Malformed`] when the text is not `rdm_`, 16 characters, `_`, 32 characters of `a-z2-7`. The text is not
    /// repeated in the error.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let is_base32 = |part: &str| part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'));
        text.strip_prefix("rdm_")
            .and_then(|rest| rest.split_once('_'))
            .filter(|(id, secret)| id.len() == Self::ID_CHARS && secret.len() == Self::SECRET_CHARS)
            .filter(|(id, secret)| is_base32(id) && is_base32(secret))
            .map(|(id, secret)| Self { id: id.to_owned(), secret: secret.to_owned() })
            .ok_or_else(|| Malformed("an API key is rdm_ and 49 more characters".to_owned()))
    }

    /// The public part.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the ledger keeps of the secret part.
    #[must_use]
    pub fn secret_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_bytes()).into()
    }

    /// Whether this token opens `key`, in time that does not depend on where the secrets differ.
    #[must_use]
    pub fn opens(&self, key: &ApiKey) -> bool {
        self.id == key.id && bool::from(self.secret_sha256().ct_eq(&key.secret_sha256))
    }

    /// The whole token, to be shown or sent.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("rdm_{}_{}", self.id, self.secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rdm_{}_***", self.id)
    }
}

/// RFC 4648 base32 in lower case, without padding.
fn base32() -> Encoding {
    let mut spec = Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.encoding().unwrap_or(data_encoding::BASE32_NOPAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_only_its_own_key() {
        let token = Token::from_random([7; 30]);
        let read = Token::parse(&token.reveal()).unwrap();
        assert_eq!(token, read);
        let key = ApiKey {
            id: token.id().to_owned(),
            name: "web".to_owned(),
            role: Role::Redeem,
            namespaces: None,
            secret_sha256: token.secret_sha256(),
            created_at: Millis::from_ms(0).unwrap(),
            expires_at: None,
            revoked_at: None,
        };
        assert!(token.opens(&key));
        let mut bytes = [7; 30];
        bytes[29] = 8;
        assert!(!Token::from_random(bytes).opens(&key));
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        let good = Token::from_random([1; 30]).reveal();
        for bad in [
            "",
            "rdm_",
            "rdm__",
            &good[1..],
            &good.to_uppercase(),
            &format!("{good}a"),
            &good.replace('_', "-"),
        ] {
            assert!(Token::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn roles_include_what_they_say() {
        use Role::{Admin, Manage, Read, Redeem};
        let table = [
            (Redeem, [true, false, false, false]),
            (Read, [false, true, false, false]),
            (Manage, [true, true, true, false]),
            (Admin, [true, true, true, true]),
        ];
        for (role, expected) in table {
            assert_eq!(Role::ALL.map(|needed| role.includes(needed)), expected, "{role:?}");
        }
    }
}
