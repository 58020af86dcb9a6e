//! Webhooks by the rules of Standard Webhooks: who is told, how that is signed, when it is tried again, and which
//! addresses nobody may have this service call.
//!
//! Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use std::{fmt, net::IpAddr, time::Duration};

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::{Cursor, DeliveryId, Malformed, Millis, Namespace, Partition, WebhookId};

/// The longest URL of a receiver, in bytes.
pub const URL_BYTES_MAX: usize = 2048;
/// Before this a secret's text is no secret of ours.
const PREFIX: &str = "whsec_";

/// A receiver of a namespace's events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its id, made by the node.
    pub id: WebhookId,
    /// Whose events.
    pub namespace: Namespace,
    /// Where they are sent.
    pub url: String,
    /// Only these types; empty means all.
    pub event_types: Vec<String>,
    /// Nothing is sent.
    pub disabled: bool,
    /// Why it was disabled, if the service did it.
    pub reason: Option<String>,
    /// Since when every attempt has failed.
    pub failing_since: Option<Millis>,
    /// Everything up to here has its delivery, of what is in the partition of the namespace itself.
    pub cursor: Cursor,
    /// Who made it: the id of an API key.
    pub created_by: String,
    /// When it was made, by the clock of the ledger, as all of these.
    pub created_at: Millis,
    /// When somebody last changed it.
    pub updated_at: Millis,
}

impl Webhook {
    /// How it is.
    #[must_use]
    pub fn state(&self) -> WebhookState {
        match (self.disabled, self.failing_since) {
            (true, _) => WebhookState::Disabled,
            (false, Some(_)) => WebhookState::Failing,
            (false, None) => WebhookState::Active,
        }
    }

    /// Whether it wants events of a type.
    #[must_use]
    pub fn wants(&self, kind: &str) -> bool {
        self.event_types.is_empty() || self.event_types.iter().any(|wanted| wanted == kind)
    }
}

/// How a webhook is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookState {
    /// It is served.
    Active,
    /// It is served, and the last attempts have failed.
    Failing,
    /// It is not served.
    Disabled,
}

impl WebhookState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Active, Self::Failing, Self::Disabled];

    /// The word used in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Failing => "failing",
            Self::Disabled => "disabled",
        }
    }
}

/// One event on its way to one receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// What the receiver gets as `webhook-id`: the same at every attempt.
    pub id: DeliveryId,
    /// To whom.
    pub webhook: WebhookId,
    /// Which event.
    pub event: Cursor,
    /// The event's partition, if it is not that of the namespace itself.
    pub partition: Option<Partition>,
    /// The event's type.
    pub kind: String,
    /// How it goes.
    pub state: DeliveryState,
    /// How often it was tried.
    pub attempts: u32,
    /// The next attempt.
    pub due_at: Millis,
    /// When it was made, by the clock of the ledger, as all of these.
    pub created_at: Millis,
    /// The last attempt.
    pub attempted_at: Option<Millis>,
    /// The status of the last answer.
    pub response_status: Option<u16>,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// How a delivery goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// It is to be tried, at once or later.
    Waiting,
    /// The receiver has it.
    Delivered,
    /// It is not tried any more.
    Failed,
}

impl DeliveryState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Delivered, Self::Failed];

    /// The word used in SQL and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }

    /// # Errors
    /// [`Malformed`] when the text is none of the three words.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let known = Self::ALL.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| Malformed("a delivery is waiting, delivered or failed".to_owned()))
    }
}

/// What a receiver knows a message of ours by. Never shown but by [`Secret::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Secret {
    /// Of random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the ledger.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// `whsec_` and the bytes in base64: what the receiver is given.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", BASE64.encode(&self.0))
    }

    /// `v1,` and the HMAC-SHA-256 of id, time (in seconds since 1970) and body with points between them.
    #[must_use]
    pub fn sign(&self, id: DeliveryId, seconds: i64, body: &str) -> String {
        let text = format!("{id}.{seconds}.{body}");
        // HMAC takes keys of any length.
        let mac = Hmac::<Sha256>::new_from_slice(&self.0)
            .map(|mac| mac.chain_update(text.as_bytes()).finalize().into_bytes());
        mac.map(|mac| format!("v1,{}", BASE64.encode(&mac))).unwrap_or_default()
    }
}

/// How long a delivery that has failed so often waits before the next attempt: four times as long each time, from
/// `first` to eight hours, and up to a fifth more or less, so that what failed together does not come back together.
/// `random` lies between 0 and 1.
#[must_use]
pub fn backoff(first: Duration, failures: u32, random: f64) -> Duration {
    const LONGEST: Duration = Duration::from_hours(8);
    let factor = 4_u32.saturating_pow(failures.saturating_sub(1));
    first.saturating_mul(factor).min(LONGEST).mul_f64(0.8 + 0.4 * random.clamp(0.0, 1.0))
}

/// Whether an address is one of the public internet: none of this machine, of a private network, of a link, or
/// reserved for anything else. An address that stands for another one is as public as that one.
///
/// Source: the IANA registries of special-purpose addresses for IPv4 and IPv6 (RFC 6890).
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            !(matches!(a, 0 | 10 | 127 | 224..)
                || (a == 100 && (64..128).contains(&b))
                || (a, b) == (169, 254)
                || (a == 172 && (16..32).contains(&b))
                || (a, b) == (192, 168)
                || (a == 198 && matches!(b, 18 | 19))
                || matches!(
                    (a, b, c),
                    (192, 0, 0 | 2)
                        | (192, 31, 196)
                        | (192, 52, 193)
                        | (192, 88, 99)
                        | (192, 175, 48)
                        | (198, 51, 100)
                        | (203, 0, 113)
                ))
        }
        IpAddr::V6(address) => {
            if let Some(mapped) = address.to_ipv4_mapped() {
                return is_public(mapped.into());
            }
            if let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = address.segments() {
                let [high, low] = [high, low].map(u16::to_be_bytes);
                return is_public(IpAddr::from([high[0], high[1], low[0], low[1]]));
            }
            let [first, second, ..] = address.segments();
            // Of what is handed out, less what stands for something else: Teredo and its neighbours, documentation, 6to4.
            (0x2000..0x4000).contains(&first)
                && !(first == 0x2001 && (second < 0x200 || second == 0xdb8))
                && first != 0x2002
                && !(first == 0x3fff && second < 0x1000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_signed_as_the_specification_shows() {
        // Source: the test of the reference libraries of Standard Webhooks.
        let bytes = BASE64.decode(b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let text = "msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{\"test\": 2432232314}";
        let mac = Hmac::<Sha256>::new_from_slice(&bytes).unwrap().chain_update(text).finalize();
        assert_eq!(
            BASE64.encode(&mac.into_bytes()),
            "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        let secret = Secret::new([7; 32]);
        assert_eq!(secret.reveal().len(), 6 + 44);
        assert_eq!(format!("{secret:?}"), "***");
    }

    #[test]
    fn a_delivery_is_tried_for_about_a_day() {
        let all: Duration = (1..10).map(|n| backoff(Duration::from_secs(5), n, 0.5)).sum();
        assert!((20..28).contains(&(all.as_secs() / 3600)), "{all:?}");
        let first = Duration::from_secs(5);
        assert_eq!(backoff(first, 1, 0.0), Duration::from_secs(4));
        assert_eq!(backoff(first, 1, 1.0), Duration::from_secs(6));
        assert!(backoff(first, u32::MAX, 1.0) < Duration::from_hours(10));
    }

    #[test]
    fn only_the_public_internet_is_called() {
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.1.1",
            "198.17.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2001:4860:4860::8888",
            "2606:4700::1111",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }
}
