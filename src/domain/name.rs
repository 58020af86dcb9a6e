//! Names that people and applications choose: namespaces, users, groups, e-mail domains.

use std::fmt;

use super::partition::crc16;

/// Why a piece of text is not what it should be, said so that its sender can mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// Declares a text type with a private field, `as_str`, `Display` and serialisation; `parse` is written by hand.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Cheap to clone, for a batch says the same of many.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
pub(crate) use text_type;

text_type! {
    /// An isolated domain of codes, members and settings: `[a-z0-9-]{1,63}`.
    Namespace
}

/// The most shards of a namespace.
pub const SPREAD_MAX: u16 = 256;

impl Namespace {
    /// The namespace that exists from the start.
    #[must_use]
    pub fn default_namespace() -> Self {
        Self("default".into())
    }

    /// # Errors
    /// [`Malformed`] when the text is not 1 to 63 characters of `a-z`, `0-9` and `-`.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let fits = (1..=63).contains(&text.len())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(Malformed("a namespace is 1 to 63 characters of a-z, 0-9 and -".to_owned()))
        }
    }

    /// Reads a namespace as it was stored: one that people have named, or a shard of one.
    ///
    /// # Errors
    /// [`Malformed`] when the text is neither.
    pub fn stored(text: &str) -> Result<Self, Malformed> {
        let Some((whole, shard)) = text.split_once('+') else { return Self::parse(text) };
        let numbers = shard.split_once('/');
        let numbers = numbers.and_then(|(one, of)| Some((one.parse().ok()?, of.parse().ok()?)));
        let malformed = || Malformed(format!("{text:?} is no shard of a namespace"));
        let (number, of): (u16, u16) = numbers.ok_or_else(malformed)?;
        if !(2..=SPREAD_MAX).contains(&of) || !(1..=of).contains(&number) {
            return Err(malformed());
        }
        let shard = Self::parse(whole)?.shard(number, of);
        if shard.as_str() == text { Ok(shard) } else { Err(malformed()) }
    }

    /// A shard of this namespace, `acme+2/3`: what a spread namespace has of one of its partitions. Nobody can type it.
    #[must_use]
    pub fn shard(&self, number: u16, of: u16) -> Self {
        Self(format!("{self}+{number}/{of}").into())
    }

    /// The namespace that this is a shard of; itself if it is none.
    #[must_use]
    pub fn whole(&self) -> Self {
        self.0.split_once('+').map_or_else(|| self.clone(), |(whole, _)| Self(whole.into()))
    }

    /// Which shard this is, of how many; nothing for a namespace that people have named.
    #[must_use]
    pub fn shard_number(&self) -> Option<(u16, u16)> {
        let (number, of) = self.0.split_once('+')?.1.split_once('/')?;
        Some((number.parse().ok()?, of.parse().ok()?))
    }

    /// The shard of this number where the namespace is spread; itself where it is not.
    #[must_use]
    pub fn shard_at(&self, number: u16, spread: u16) -> Self {
        if spread < 2 { self.clone() } else { self.shard(number, spread) }
    }

    /// Which participant of the moves between shards this is: 0 for the namespace itself; those of its shards differ,
    /// whatever the spread.
    #[must_use]
    pub fn participant(&self) -> u16 {
        // Below it all shards of smaller spreads: 1 + 2 + … + (of - 1).
        self.shard_number().map_or(0, |(number, of)| of * (of - 1) / 2 + number)
    }

    /// The shard that a user belongs to when this namespace is spread over so many partitions; itself if it is not.
    #[must_use]
    pub fn shard_of(&self, user: &UserId, spread: u16) -> Self {
        if spread < 2 {
            return self.clone();
        }
        let place = (u32::from(crc16(user.as_str().as_bytes())) * u32::from(spread)) >> 16;
        self.shard(u16::try_from(place).unwrap_or_default() + 1, spread)
    }

    /// The shards of this namespace when it is spread over so many.
    pub fn shards(&self, spread: u16) -> impl Iterator<Item = Self> + use<> {
        let whole = self.clone();
        (1..=spread).map(move |number| whole.shard(number, spread))
    }
}

text_type! {
    /// What a campaign is called: `[a-z0-9-]{1,63}`.
    CampaignName
}

impl CampaignName {
    /// # Errors
    /// [`Malformed`] when the text is not 1 to 63 characters of `a-z`, `0-9` and `-`.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        match Namespace::parse(text) {
            Ok(Namespace(text)) => Ok(Self(text)),
            Err(_) => {
                Err(Malformed("a campaign is 1 to 63 characters of a-z, 0-9 and -".to_owned()))
            }
        }
    }
}

/// The longest user or group, in bytes of UTF-8.
pub const TEXT_BYTES_MAX: usize = 128;

/// 1 to 128 bytes without control characters. Such text is always the last part of a key, so nothing in it can make
/// it name another key.
fn parse_text<'a>(what: &str, text: &'a str) -> Result<&'a str, Malformed> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        return Err(Malformed(format!("{what} is 1 to {TEXT_BYTES_MAX} bytes of text")));
    }
    if text.chars().any(char::is_control) {
        return Err(Malformed(format!("{what} has no control characters")));
    }
    Ok(text)
}

text_type! {
    /// The calling application's id for a person: 1 to 128 bytes of text without control characters.
    UserId
}

impl UserId {
    /// # Errors
    /// [`Malformed`] when the text is empty, over 128 bytes, or has a control character.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        parse_text("a user", text).map(|text| Self(text.into()))
    }

    /// What stands in the place of a user who was erased; the id says nothing of who it was.
    #[must_use]
    pub fn erased(id: uuid::Uuid) -> Self {
        Self(format!("erased-{}", id.hyphenated()).into())
    }
}

text_type! {
    /// What an invite lets a user into: 1 to 128 bytes of text without control characters.
    Group
}

impl Group {
    /// # Errors
    /// [`Malformed`] when the text is empty, over 128 bytes, or has a control character.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        parse_text("a group", text).map(|text| Self(text.into()))
    }
}

text_type! {
    /// The part of an e-mail address after the last `@`, in lower case. The rest of an address is never kept.
    EmailDomain
}

impl EmailDomain {
    /// Reads a bare domain such as `example.com`.
    ///
    /// # Errors
    /// [`Malformed`] when the text is not a host name of 1 to 253 characters (RFC 1123 §2.1: letters, digits, `-`,
    /// `.`), after folding to lower case. Internationalised domains are given in their `xn--` form.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let folded = text.to_ascii_lowercase();
        let label_fits = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if folded.len() <= 253 && folded.split('.').all(label_fits) {
            Ok(Self(folded.into()))
        } else {
            Err(Malformed("an e-mail domain is a host name such as example.com".to_owned()))
        }
    }

    /// Takes the domain out of an address such as `alice@example.com`; the address itself is not kept.
    ///
    /// # Errors
    /// [`Malformed`] when there is no `@` with text before and a domain after it, or the address is over 254 bytes
    /// (RFC 5321 §4.5.3.1.3).
    pub fn of_address(address: &str) -> Result<Self, Malformed> {
        let malformed = || Malformed("an e-mail address looks like alice@example.com".to_owned());
        let (local, domain) = address.rsplit_once('@').ok_or_else(malformed)?;
        if local.is_empty() || address.len() > 254 || address.chars().any(char::is_control) {
            return Err(malformed());
        }
        Self::parse(domain).map_err(|_| malformed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_a_short_lower_case_slug() {
        assert_eq!(Namespace::parse("acme-2").unwrap().as_str(), "acme-2");
        for bad in ["", "Acme", "a:b", "a{b}", "ümlaut", "a b", &"a".repeat(64)] {
            assert!(Namespace::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_shard_can_be_stored_and_not_be_typed() {
        let acme = Namespace::parse("acme").unwrap();
        let shard = acme.shard(2, 3);
        assert_eq!(shard.as_str(), "acme+2/3");
        assert!(Namespace::parse("acme+2/3").is_err());
        assert_eq!(Namespace::stored("acme+2/3").unwrap(), shard);
        assert_eq!(Namespace::stored("acme").unwrap(), acme);
        assert_eq!((shard.whole(), shard.shard_number()), (acme.clone(), Some((2, 3))));
        assert_eq!((acme.whole(), acme.shard_number()), (acme.clone(), None));
        for bad in [
            "acme+",
            "acme+1",
            "acme+0/3",
            "acme+4/3",
            "acme+1/1",
            "acme+1/257",
            "acme+01/3",
            "+1/3",
            "acme+1/3/3",
        ] {
            assert!(Namespace::stored(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_user_is_any_text_without_control_characters() {
        for good in ["alice", "o'neil", "user:1:held", "日本", "{07}", "a b"] {
            assert_eq!(UserId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "a\0b", "a\nb", "a\u{85}b", &"a".repeat(129)] {
            assert!(UserId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_the_domain_of_an_address_is_kept() {
        assert_eq!(EmailDomain::of_address("Alice@Example.COM").unwrap().as_str(), "example.com");
        for bad in ["", "alice", "@example.com", "alice@", "a@b..c", "a@-b.c", "a@b c"] {
            assert!(EmailDomain::of_address(bad).is_err(), "{bad:?}");
        }
    }
}
