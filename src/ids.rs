//! Ids, random numbers and the clock: the only place that draws or reads them. The domain gets them as arguments.

#![expect(clippy::disallowed_methods, reason = "this is the place")]

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::domain::{
    BatchId, Cursor, DeliveryId, InviteId, Millis, Namespace, Partition, Position, RedemptionId,
    RequestId, Token, UserId, WebhookId, command::ImportedInvite, webhook,
};

/// A UUID v7 (RFC 9562 §5.7). Its random part comes from this thread's generator: asking the kernel for each would cost
/// every request some system calls.
#[must_use]
pub fn unique() -> Uuid {
    let now = u64::try_from(now().as_ms()).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(now, &rand::random()).into_uuid()
}

/// A UUID v4 (RFC 9562 §5.4): all random, so that not even the time can be read from it.
#[must_use]
pub fn random() -> Uuid {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid()
}

/// An id for a new redemption.
#[must_use]
pub fn redemption() -> RedemptionId {
    RedemptionId(unique())
}

/// A request id for a caller who sent none.
#[must_use]
pub fn request() -> RequestId {
    RequestId::from_uuid(unique())
}

/// An id for a new invite. Where the caller sent an Idempotency-Key it follows from that key (UUID v8, RFC 9562 §5.8),
/// so that a repeat makes the same invite.
#[must_use]
pub fn invite(namespace: &Namespace, caller: &str, request: Option<&RequestId>) -> InviteId {
    InviteId(request.map_or_else(unique, |request| {
        following_from(&["invite", namespace.as_str(), caller, request.as_str()])
    }))
}

/// An id for a new batch, in the same way.
#[must_use]
pub fn batch(namespace: &Namespace, caller: &str, request: Option<&RequestId>) -> BatchId {
    BatchId(request.map_or_else(unique, |request| {
        following_from(&["batch", namespace.as_str(), caller, request.as_str()])
    }))
}

/// An id for a new webhook, in the same way.
#[must_use]
pub fn webhook(namespace: &Namespace, caller: &str, request: Option<&RequestId>) -> WebhookId {
    WebhookId(request.map_or_else(unique, |request| {
        following_from(&["webhook", namespace.as_str(), caller, request.as_str()])
    }))
}

/// The id of an event's delivery to a webhook: whoever makes it again makes the same one. The partition is that of the
/// event, unless the namespace itself lies there.
#[must_use]
pub fn delivery(webhook: WebhookId, partition: Option<Partition>, event: Cursor) -> DeliveryId {
    let event = partition.map_or_else(
        || event.to_string(),
        |partition| Position { partition, cursor: event }.to_string(),
    );
    DeliveryId(following_from(&["delivery", &webhook.to_string(), &event]))
}

/// A random number from 0 to 1.
#[must_use]
pub fn fraction() -> f64 {
    rand::random()
}

/// A UUID v8 (RFC 9562 §5.8) that the same parts always give.
fn following_from(parts: &[&str]) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest(parts)[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// The id of an invite that was made elsewhere: it follows from all that the invite is, so that the same one is known
/// when it comes again.
#[must_use]
pub fn imported_invite(namespace: &Namespace, invite: &ImportedInvite) -> InviteId {
    let number = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
    let time = |time: Option<Millis>| time.map_or_else(String::new, |time| time.to_string());
    let domains: Vec<_> = invite.email_domains.iter().map(ToString::to_string).collect();
    InviteId(following_from(&[
        "import",
        namespace.as_str(),
        invite.code.as_str(),
        invite.group.as_str(),
        &number(invite.max_uses),
        &number(invite.max_uses_per_user),
        &invite.uses.to_string(),
        &time(invite.starts_at),
        &time(invite.expires_at),
        if invite.disabled { "disabled" } else { "" },
        invite.user.as_ref().map(UserId::as_str).unwrap_or_default(),
        &domains.join(","),
        invite.metadata.as_deref().unwrap_or_default(),
    ]))
}

/// A new secret of a webhook: nobody can guess it.
#[must_use]
pub fn webhook_secret() -> webhook::Secret {
    webhook::Secret::new(rand::random())
}

/// What the codes of a batch follow from: nobody can guess it.
#[must_use]
pub fn secret() -> [u8; 16] {
    rand::random()
}

/// A new API key. Where the caller sent an Idempotency-Key its public part follows from that key.
#[must_use]
pub fn token(caller: &str, request: Option<&RequestId>) -> Token {
    let mut bytes: [u8; 30] = rand::random();
    if let Some(request) = request {
        bytes[..10].copy_from_slice(&digest(&["key", caller, request.as_str()])[..10]);
    }
    Token::from_random(bytes)
}

/// Random characters of an alphabet of 1 to 256, each as likely as the others.
#[must_use]
pub fn characters<const COUNT: usize>(alphabet: &[u8]) -> String {
    use rand::RngExt as _;
    let mut random = rand::rng();
    (0..COUNT).map(|_| char::from(alphabet[random.random_range(0..alphabet.len())])).collect()
}

/// What a run of random choices that can be repeated begins with.
#[must_use]
pub fn seed() -> u64 {
    // Small enough to be typed.
    u64::from(rand::random::<u32>())
}

/// Now, by the clock of the ledger as far as this node knows it, else by this machine's: so all nodes agree on the end of
/// an API key. What users are told of their redemptions goes by the clock of Redis.
#[must_use]
pub fn now() -> Millis {
    let now = machine_now();
    let ahead = AHEAD_MS.load(Ordering::Relaxed);
    if ahead == 0 { now } else { Millis::from_ms(now.as_ms().saturating_add(ahead)).unwrap_or(now) }
}

/// How far the clock of the ledger is ahead of this machine's, in milliseconds.
static AHEAD_MS: AtomicI64 = AtomicI64::new(0);

/// A question to the ledger for its time, under way.
#[derive(Debug)]
pub struct TimeAsked(Millis);

impl TimeAsked {
    /// Asked now.
    #[must_use]
    pub fn now() -> Self {
        Self(machine_now())
    }

    /// The answer: from here on [`now`] goes by it.
    pub fn answered(self, ledger: Millis) {
        if let Some(ahead) = ahead_ms(self.0, machine_now(), ledger) {
            AHEAD_MS.store(ahead, Ordering::Relaxed);
        }
    }
}

/// By how much another clock is ahead of one's own, if the answer came soon enough to tell.
fn ahead_ms(asked: Millis, answered: Millis, other: Millis) -> Option<i64> {
    let took = answered.as_ms() - asked.as_ms();
    if !(0..=1000).contains(&took) {
        return None;
    }
    let ahead = other.as_ms() - asked.as_ms() - took / 2;
    // What the way there and back explains is no difference; nor is a rounded millisecond.
    Some(if ahead.abs() <= took / 2 + 1 { 0 } else { ahead })
}

fn machine_now() -> Millis {
    Timestamp::now().into()
}

/// None of the parts holds a control character, so the lines can not run together.
fn digest(parts: &[&str]) -> [u8; 32] {
    Sha256::digest(parts.join("\n").as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_makes_the_same_invite_and_nobody_else_does() {
        let namespace = Namespace::default_namespace();
        let request = RequestId::parse("order-1").unwrap();
        let first = invite(&namespace, "a", Some(&request));
        assert_eq!(first, invite(&namespace, "a", Some(&request)));
        assert_ne!(first, invite(&namespace, "b", Some(&request)));
        assert_ne!(invite(&namespace, "a", None), invite(&namespace, "a", None));
        assert_eq!(first.to_string().parse::<InviteId>().unwrap(), first);
    }

    #[test]
    fn another_clock_is_as_far_ahead_as_the_way_there_and_back_does_not_explain() {
        let at = |ms| Millis::from_ms(ms).unwrap();
        let ahead = |asked, answered, other| ahead_ms(at(asked), at(answered), at(other));
        assert_eq!(ahead(1_000, 1_010, 1_005), Some(0));
        assert_eq!(ahead(1_000, 1_010, 1_011), Some(0));
        assert_eq!(ahead(1_000, 1_010, 3_601_005), Some(3_600_000));
        assert_eq!(ahead(3_601_000, 3_601_010, 1_005), Some(-3_600_000));
        assert_eq!(ahead(1_000, 2_001, 5_000), None);
        assert_eq!(ahead(1_000, 999, 5_000), None);
    }

    #[test]
    fn a_repeat_makes_a_key_of_the_same_id_with_another_secret() {
        let request = RequestId::parse("order-1").unwrap();
        let (one, two) = (token("a", Some(&request)), token("a", Some(&request)));
        assert_eq!(one.id(), two.id());
        assert_ne!(one, two);
    }
}
