//! Identifiers: of invites and redemptions (made by a node), and of requests (made by whoever asks).

use std::{borrow::Cow, fmt, str::FromStr};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    CampaignName, Millis, Namespace, UserId,
    name::{Malformed, text_type},
};

/// Declares an id that is a UUID in its 36-character form.
macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                match Uuid::try_parse(text) {
                    Ok(id) if text.len() == 36 => Ok(Self(id)),
                    _ => Err(Malformed(concat!($what, " is a UUID of 36 characters").to_owned())),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

uuid_type! {
    /// An invite's id: a UUID. A code may stand for one invite after another; an id never does.
    InviteId, "an invite id"
}

impl InviteId {
    /// The id that the copy of this invite has in a shard of its namespace: this one, with 62 bits that stand for the
    /// shard turned over. So it can be told from any other, and turned back ([`Self::of_whole`]).
    #[must_use]
    pub fn in_shard(self, number: u16, of: u16) -> Self {
        let mask = Sha256::digest(format!("shard {number}/{of}").as_bytes());
        let mut bytes = self.0.into_bytes();
        // The first half has version and time, the next two bits the variant (RFC 9562 §4): they stay.
        for (byte, turned) in bytes[8..].iter_mut().zip(mask).skip(1) {
            *byte ^= turned;
        }
        bytes[8] ^= mask[0] & 0x3f;
        Self(Uuid::from_bytes(bytes))
    }

    /// What stands for a campaign where its uses move as an invite's do (UUID v8, RFC 9562 §5.8): in a shard what
    /// [`Self::of_whole`] makes of that of the namespace itself.
    #[must_use]
    pub fn of_campaign(namespace: &Namespace, name: &CampaignName) -> Self {
        // Neither holds a line end, nor does an invite's id come from a digest.
        let text = format!("campaign\n{}\n{name}", namespace.whole());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&Sha256::digest(text.as_bytes())[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid()).of_whole(namespace)
    }

    /// The id of the invite that this is the copy of in a shard; itself in a namespace that is none.
    #[must_use]
    pub fn of_whole(self, namespace: &Namespace) -> Self {
        match namespace.shard_number() {
            Some((number, of)) => self.in_shard(number, of),
            None => self,
        }
    }
}

uuid_type! {
    /// A batch's id: a UUID.
    BatchId, "a batch id"
}

impl BatchId {
    /// The id of the invite in a slot (UUID v8, RFC 9562 §5.8): the batch's own, with the slot for its last 4 bytes. So
    /// whoever makes an invite again makes the same one, and they come in order.
    #[must_use]
    pub fn invite(self, slot: u32) -> InviteId {
        let mut bytes = self.0.into_bytes();
        bytes[12..].copy_from_slice(&slot.to_be_bytes());
        InviteId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

uuid_type! {
    /// A redemption's id: a UUID v7 (RFC 9562 §5.7) made by the node that was asked.
    RedemptionId, "a redemption id"
}

uuid_type! {
    /// A webhook's id: a UUID.
    WebhookId, "a webhook id"
}

uuid_type! {
    /// A delivery's id: a UUID that follows from webhook and event, so that whoever sends it again sends the same one.
    DeliveryId, "a delivery id"
}

uuid_type! {
    /// A reservation's id: a UUID v8 (RFC 9562 §5.8) that follows from what is held for whom until when. A user holds at
    /// most one use of an invite, so that is enough to tell any two apart, and Redis need not keep the id.
    ReservationId, "a reservation id"
}

impl ReservationId {
    /// The id of the use of an invite that a user holds until this moment.
    #[must_use]
    pub fn of(namespace: &Namespace, invite: InviteId, user: &UserId, until: Millis) -> Self {
        // None of the parts holds a line end.
        let text = format!("{namespace}\n{invite}\n{user}\n{}", until.as_ms());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&Sha256::digest(text.as_bytes())[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

text_type! {
    /// What makes a repeat recognisable: the client's `Idempotency-Key`, or one that the node made. Scoped to one user
    /// of one namespace.
    RequestId
}

impl RequestId {
    /// The longest request id that is stored as it is; a longer one is stored as a digest.
    pub const STORED_CHARS_MAX: usize = 36;

    /// # Errors
    /// [`Malformed`] when the text is not 1 to 255 visible ASCII characters (no spaces).
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text.into()))
        } else {
            Err(Malformed("a request id is 1 to 255 visible ASCII characters".to_owned()))
        }
    }

    /// A request id for a caller who sent none.
    #[must_use]
    pub fn from_uuid(id: Uuid) -> Self {
        Self(id.hyphenated().to_string().into())
    }

    /// How gate and ledger keep this id: itself, or when it is over 36 characters its SHA-256 in 43 characters of
    /// base64url. The digest is longer than any id kept as it is, so the two can not meet.
    #[must_use]
    pub fn stored(&self) -> Cow<'_, str> {
        if self.0.len() <= Self::STORED_CHARS_MAX {
            Cow::Borrowed(&self.0)
        } else {
            Cow::Owned(data_encoding::BASE64URL_NOPAD.encode(&Sha256::digest(self.0.as_bytes())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_of_an_invite_has_an_id_of_its_own_in_each_shard_which_leads_back() {
        let id: InviteId = "0198c3a2-7b1e-7c4d-9a55-0123456789ab".parse().unwrap();
        let acme = Namespace::parse("acme").unwrap();
        assert_eq!(id.of_whole(&acme), id);
        let mut ids = std::collections::BTreeSet::from([id]);
        for shard in acme.shards(3).chain(acme.shards(16)) {
            let copy = id.of_whole(&shard);
            assert!(ids.insert(copy), "{shard}");
            assert_eq!(copy.of_whole(&shard), id);
            // It stays a UUID of the same version and variant (RFC 9562 §4).
            assert_eq!(copy.0.get_version_num(), id.0.get_version_num());
            assert_eq!(copy.0.get_variant(), id.0.get_variant());
        }
    }

    #[test]
    fn only_the_36_character_form_of_a_uuid_is_an_id() {
        let text = "0198c3a2-7b1e-7c4d-9a55-0123456789ab";
        assert_eq!(text.parse::<InviteId>().unwrap().to_string(), text);
        for bad in
            ["", "0198c3a27b1e7c4d9a550123456789ab", "{0198c3a2-7b1e-7c4d-9a55-0123456789ab}", "x"]
        {
            assert!(bad.parse::<InviteId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_invites_of_a_batch_have_ids_in_order_that_no_other_batch_has() {
        let (one, two) = (BatchId(Uuid::from_u128(1 << 64)), BatchId(Uuid::from_u128(1 << 65)));
        assert!((0..1000).map(|slot| one.invite(slot)).is_sorted_by(|a, b| a < b));
        assert_ne!(one.invite(5), two.invite(5));
        assert_eq!(one.invite(u32::MAX).0.get_version_num(), 8);
    }

    #[test]
    fn a_long_request_id_is_kept_as_a_digest_that_no_short_one_can_equal() {
        let short = RequestId::parse(&"a".repeat(36)).unwrap();
        let long = RequestId::parse(&"a".repeat(37)).unwrap();
        assert_eq!(short.stored(), "a".repeat(36));
        assert_eq!(long.stored().len(), 43);
        assert_ne!(long.stored(), RequestId::parse(&"a".repeat(38)).unwrap().stored());
    }

    #[test]
    fn a_request_id_is_visible_ascii() {
        for bad in ["", "a b", "a\tb", "ä", &"a".repeat(256)] {
            assert!(RequestId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
