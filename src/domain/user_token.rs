//! Tokens by which a host application says who a person is, to the page for people: JSON Web Tokens (RFC 7519) that are
//! signed with HMAC-SHA-256 and a secret that application and service share.
//!
//! The algorithm is fixed: what a token says of it is only compared (RFC 8725 §3.1). Nothing in a token counts before its
//! signature has been checked.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use sha2::Sha256;

use super::{EmailDomain, Malformed, Millis, Namespace, RequestId, UserId};

/// The shortest secret, in bytes: as long as the digest (RFC 7518 §3.2).
pub const SECRET_BYTES_MIN: usize = 32;
/// The longest secret, in bytes.
pub const SECRET_BYTES_MAX: usize = 1024;
/// How far ahead a token's end may lie, in seconds.
pub const TTL_SECONDS_MAX: i64 = 3600;
/// How far the clock of the application may be ahead where a token says from when on it counts, in seconds.
const AHEAD_SECONDS_MAX: i64 = 60;
/// The longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;
/// The longest `jti`: as a request id it has `page:` in front.
const JTI_CHARS_MAX: usize = 128;

/// A secret that tokens are signed with. Never shown.
#[derive(Clone)]
pub struct Key(Hmac<Sha256>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Key {
    /// # Errors
    /// [`Malformed`] when the secret is not 32 to 1024 bytes long.
    pub fn new(secret: &[u8]) -> Result<Self, Malformed> {
        let malformed = || {
            Malformed(format!(
                "a secret has {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes: openssl rand -base64 32 makes one"
            ))
        };
        if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&secret.len()) {
            return Err(malformed());
        }
        Hmac::new_from_slice(secret).map(Self).map_err(|_| malformed())
    }

    /// Takes as long for a wrong signature as for the right one.
    fn has_signed(&self, text: &str, signature: &[u8]) -> bool {
        self.0.clone().chain_update(text.as_bytes()).verify_slice(signature).is_ok()
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserToken {
    /// Who the person is.
    pub user: UserId,
    /// The domain of the person's e-mail address, if the application told it.
    pub email_domain: Option<EmailDomain>,
    /// What makes a repeat recognisable.
    pub request: RequestId,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    /// Extensions that must be understood (RFC 7515 §4.1.11); none is.
    crit: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    aud: Audience,
    exp: i64,
    nbf: Option<i64>,
    jti: String,
    email: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn has(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Many(many) => many.iter().any(|one| one == wanted),
        }
    }
}

impl UserToken {
    /// Who a token is to be for: this namespace and nothing else.
    #[must_use]
    pub fn audience(namespace: &Namespace) -> String {
        format!("redeemer/{namespace}")
    }

    /// Reads a token for a namespace that one of these keys has signed.
    ///
    /// # Errors
    /// [`Malformed`], with what the application has to mend.
    pub fn verify(
        text: &str,
        namespace: &Namespace,
        keys: &[Key],
        now: Millis,
    ) -> Result<Self, Malformed> {
        let malformed = |what: &str| Malformed(format!("the token {what}"));
        let parts = (text.len() <= TOKEN_BYTES_MAX)
            .then(|| text.rsplit_once('.'))
            .flatten()
            .and_then(|(signed, signature)| Some((signed, signed.split_once('.')?, signature)));
        let (signed, (header, claims), signature) =
            parts.ok_or_else(|| malformed("is not a JWT of at most 4096 bytes"))?;
        let decode = |part: &str| {
            let bytes = BASE64URL_NOPAD.decode(part.as_bytes());
            bytes.map_err(|_| malformed("is not in base64url without padding"))
        };
        let signature = decode(signature)?;
        let header: Header = serde_json::from_slice(&decode(header)?)
            .map_err(|_| malformed("has no header of a JWT"))?;
        if header.alg != "HS256" || header.crit.is_some() {
            return Err(malformed("is not signed by HS256 alone"));
        }
        if !keys.iter().any(|key| key.has_signed(signed, &signature)) {
            return Err(malformed("is signed with another secret"));
        }
        // From here on it is the application itself that is wrong.
        let claims: Claims = serde_json::from_slice(&decode(claims)?)
            .map_err(|error| malformed(&format!("has other claims than it needs: {error}")))?;
        let audience = Self::audience(namespace);
        if !claims.aud.has(&audience) {
            return Err(malformed(&format!("is not for {audience} (aud)")));
        }
        let now = now.as_ms() / 1000;
        if claims.exp <= now {
            return Err(malformed("has expired (exp)"));
        }
        if claims.exp > now + TTL_SECONDS_MAX {
            return Err(malformed("would hold for more than an hour (exp)"));
        }
        if claims.nbf.is_some_and(|from| from > now + AHEAD_SECONDS_MAX) {
            return Err(malformed("does not hold yet (nbf)"));
        }
        let wrong =
            |name: &str, error: &Malformed| malformed(&format!("has a wrong {name}: {error}"));
        let user = UserId::parse(&claims.sub).map_err(|error| wrong("sub", &error))?;
        let email_domain = claims.email.as_deref().map(EmailDomain::of_address).transpose();
        let email_domain = email_domain.map_err(|error| wrong("email", &error))?;
        let request = Some(&claims.jti)
            .filter(|jti| (1..=JTI_CHARS_MAX).contains(&jti.len()))
            .and_then(|jti| RequestId::parse(&format!("page:{jti}")).ok())
            .ok_or_else(|| malformed("has a jti that is not 1 to 128 visible ASCII characters"))?;
        Ok(Self { user, email_domain, request })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const NOW: i64 = 1_764_000_000;

    fn key(secret: &[u8]) -> Key {
        Key::new(secret).unwrap()
    }

    fn signed(header: &Value, claims: &Value, secret: &[u8]) -> String {
        let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let text = format!("{}.{}", part(header), part(claims));
        let mac = Hmac::<Sha256>::new_from_slice(secret).unwrap().chain_update(text.as_bytes());
        format!("{text}.{}", BASE64URL_NOPAD.encode(&mac.finalize().into_bytes()))
    }

    fn header() -> Value {
        json!({"alg": "HS256", "typ": "JWT"})
    }

    fn claims() -> Value {
        json!({"sub": "alice", "aud": "redeemer/acme", "exp": NOW + 300, "jti": "join-1"})
    }

    fn verify(token: &str) -> Result<UserToken, Malformed> {
        let (namespace, now) = (Namespace::parse("acme"), Millis::from_ms(NOW * 1000));
        let keys = [key(b"another secret of the last quarter"), key(SECRET)];
        UserToken::verify(token, &namespace.unwrap(), &keys, now.unwrap())
    }

    #[test]
    fn a_good_token_says_who_it_is() {
        let token = verify(&signed(&header(), &claims(), SECRET)).unwrap();
        assert_eq!((token.user.as_str(), token.request.as_str()), ("alice", "page:join-1"));
        assert_eq!(token.email_domain, None);
        let mut more = claims();
        more["email"] = json!("alice@Example.com");
        more["aud"] = json!(["elsewhere", "redeemer/acme"]);
        more["nbf"] = json!(NOW + 60);
        more["name"] = json!("whatever else the application puts in");
        let token = verify(&signed(&json!({"alg": "HS256"}), &more, SECRET)).unwrap();
        assert_eq!(token.email_domain.unwrap().as_str(), "example.com");
        // While secrets are exchanged, the old one counts too.
        let old = signed(&header(), &claims(), b"another secret of the last quarter");
        assert!(verify(&old).is_ok());
    }

    #[test]
    fn the_example_of_the_standard_is_signed_as_it_says() {
        // Source: RFC 7515, appendix A.1. Its claims are not those that are asked for here.
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6\
                     Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let secret = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let keys = [key(&BASE64URL_NOPAD.decode(secret.as_bytes()).unwrap())];
        let namespace = Namespace::default_namespace();
        let refused = UserToken::verify(token, &namespace, &keys, Millis::default()).unwrap_err();
        assert!(refused.0.contains("other claims"), "{refused}");
        let refused = UserToken::verify(token, &namespace, &[key(SECRET)], Millis::default());
        assert!(refused.unwrap_err().0.contains("another secret"));
    }

    #[test]
    fn no_other_algorithm_is_taken() {
        for other in ["none", "None", "hs256", "HS512", "RS256", ""] {
            let token = signed(&json!({"alg": other}), &claims(), SECRET);
            assert!(verify(&token).unwrap_err().0.contains("HS256"), "{other}");
        }
        let critical = json!({"alg": "HS256", "crit": ["b64"], "b64": false});
        assert!(verify(&signed(&critical, &claims(), SECRET)).unwrap_err().0.contains("HS256"));
        let token = signed(&json!({"alg": "none"}), &claims(), SECRET);
        let (unsigned, _) = token.rsplit_once('.').unwrap();
        assert!(verify(&format!("{unsigned}.")).unwrap_err().0.contains("HS256"));
    }

    #[test]
    fn a_token_that_was_touched_or_cut_is_none() {
        let good = signed(&header(), &claims(), SECRET);
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let touched = String::from_utf8(bytes).unwrap();
            assert!(verify(&touched).is_err(), "{touched}");
            assert!(verify(&good[..at]).is_err(), "{}", &good[..at]);
        }
        for bad in
            ["", ".", "..", "a.b.c", &format!("{good}."), &format!("{good}="), &"a".repeat(5000)]
        {
            assert!(verify(bad).is_err(), "{bad:?}");
        }
        let long = signed(&header(), &json!({"sub": "x".repeat(4096)}), SECRET);
        assert!(verify(&long).unwrap_err().0.contains("4096"));
    }

    #[test]
    fn each_claim_is_looked_at() {
        for (name, bad, told) in [
            ("sub", json!(""), "sub"),
            ("sub", json!(7), "claims"),
            ("sub", json!(null), "claims"),
            ("aud", json!("redeemer/other"), "aud"),
            ("aud", json!("acme"), "aud"),
            ("aud", json!([]), "aud"),
            ("aud", json!(null), "claims"),
            ("exp", json!(NOW), "expired"),
            ("exp", json!(NOW - 1), "expired"),
            ("exp", json!(i64::MIN), "expired"),
            ("exp", json!(NOW + 3601), "an hour"),
            ("exp", json!(i64::MAX), "an hour"),
            ("exp", json!("1764000300"), "claims"),
            ("exp", json!(null), "claims"),
            ("nbf", json!(NOW + 61), "nbf"),
            ("jti", json!(""), "jti"),
            ("jti", json!("a b"), "jti"),
            ("jti", json!("x".repeat(129)), "jti"),
            ("jti", json!(null), "claims"),
            ("email", json!("alice"), "email"),
        ] {
            let mut claims = claims();
            claims[name] = bad.clone();
            let refused = verify(&signed(&header(), &claims, SECRET)).unwrap_err();
            assert!(refused.0.contains(told), "{name} = {bad}: {refused}");
        }
        let twice =
            r#"{"sub":"alice","sub":"bob","aud":"redeemer/acme","exp":1764000300,"jti":"1"}"#;
        let part = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        let text = format!("{}.{}", part(&header().to_string()), part(twice));
        let mac = Hmac::<Sha256>::new_from_slice(SECRET).unwrap().chain_update(text.as_bytes());
        let token = format!("{text}.{}", BASE64URL_NOPAD.encode(&mac.finalize().into_bytes()));
        assert!(verify(&token).unwrap_err().0.contains("claims"));
    }

    #[test]
    fn a_secret_is_long_and_never_shown() {
        assert!(Key::new(&[0; 31]).is_err() && Key::new(&[0; 1025]).is_err());
        assert_eq!(format!("{:?}", key(SECRET)), "***");
    }
}
