//! `lua/redeem.lua`: spend one use of a code for each request of a batch, once per request id.

use std::collections::HashMap;

use redis::Value;

use super::{
    GateError,
    fields::{millis, stored_code},
    key::Keyspace,
    reply::Reply,
    script::{self, Call},
};
use crate::domain::{
    Answer, Cursor, Fence, Group, Namespace, Outcome, Partition, Policy, Position, RateStatus,
    Redemption, Refusal, Settings, rate_limit,
};

pub use crate::domain::command::{Mode, Redeem};

/// What the script said to one request.
#[derive(Debug)]
pub(super) enum Decision {
    Answer(Answer),
    SettingsChanged,
    Failed(GateError),
}

/// The keys of a call, each once.
#[derive(Default)]
struct Indexes {
    keys: Vec<String>,
    places: HashMap<String, usize>,
}

impl Indexes {
    /// The key's index in the script's KEYS, from 1.
    fn of(&mut self, key: String) -> usize {
        let next = self.keys.len() + 1;
        *self.places.entry(key).or_insert_with_key(|key| {
            self.keys.push(key.clone());
            next
        })
    }
}

/// The one call that asks for all these requests of a partition, each with the rules that its caller knows. With `write`
/// it writes something in any case: from Redis 7.2 on, WAIT waits only for what its own connection has written.
pub(super) fn call<'a>(
    keyspace: &Keyspace,
    partition: Partition,
    fence: &Fence,
    now_ms: Option<i64>,
    outbox_max: u64,
    write: bool,
    requests: impl Iterator<Item = (&'a Redeem, &'a Settings)>,
) -> Call {
    let mut indexes = Indexes::default();
    indexes.of(keyspace.meta(partition));
    indexes.of(keyspace.outbox(partition));
    let mut namespaces: Vec<(&Namespace, u64)> = Vec::new();
    let mut args = Vec::new();
    for (request, settings) in requests {
        // Two that know different rules of one namespace are told apart, so that each is checked by its own.
        let known = (&request.namespace, settings.revision);
        let place = namespaces.iter().position(|other| *other == known).unwrap_or_else(|| {
            namespaces.push(known);
            namespaces.len() - 1
        });
        push_request(&mut args, &mut indexes, keyspace, place + 1, request, settings);
    }
    let write = u8::from(write).to_string();
    let mut head = vec![outbox_max.to_string(), write, namespaces.len().to_string()];
    for (namespace, revision) in namespaces {
        head.extend([
            namespace.to_string(),
            indexes.of(keyspace.settings(namespace)).to_string(),
            revision.to_string(),
        ]);
    }
    head.extend(args);
    Call::fenced(&script::REDEEM, fence, now_ms, indexes.keys, head)
}

fn push_request(
    args: &mut Vec<String>,
    indexes: &mut Indexes,
    keyspace: &Keyspace,
    place: usize,
    request: &Redeem,
    settings: &Settings,
) {
    let Redeem { namespace, code, user, ip, email_domain, caller, mode } = request;
    let mut index = |key: Option<String>| key.map_or(0, |key| indexes.of(key)).to_string();
    let ip = ip.map(rate_limit::address_subject);
    let subject = |policy| match policy {
        Policy::User => user.as_ref().map(|user| ("", user.as_str())),
        Policy::Ip => ip.as_deref().map(|ip| ("", ip)),
        Policy::Code => Some(("", code.as_str())),
        Policy::Namespace => Some(("", "all")),
        Policy::Guess => Some(match (&ip, user) {
            (Some(ip), _) => ("ip", ip.as_str()),
            (None, Some(user)) => ("user", user.as_str()),
            (None, None) => ("key", caller.as_str()),
        }),
    };
    let (word, request_id, redemption, metadata) = match mode {
        Mode::Redeem { request, redemption, metadata } => (
            "redeem",
            request.stored().into_owned(),
            redemption.to_string(),
            metadata.clone().unwrap_or_default(),
        ),
        Mode::Validate => ("validate", String::new(), String::new(), String::new()),
    };
    args.extend([
        word.to_owned(),
        place.to_string(),
        index(Some(keyspace.invite(namespace, code))),
        index(user.as_ref().map(|user| keyspace.member(namespace, user))),
    ]);
    args.extend(Policy::ALL.map(|policy| {
        let limited = settings.quota(policy).and_then(|_| subject(policy));
        index(limited.map(|(kind, subject)| keyspace.rate(namespace, policy, kind, subject)))
    }));
    args.extend([
        request_id,
        redemption,
        code.to_string(),
        user.as_ref().map(ToString::to_string).unwrap_or_default(),
        email_domain.as_ref().map(ToString::to_string).unwrap_or_default(),
        metadata,
        caller.clone(),
    ]);
}

/// Reads the reply to a batch: one decision for each of its requests, in order.
pub(super) fn decisions<'a>(
    partition: Partition,
    value: &Value,
    requests: impl ExactSizeIterator<Item = (&'a Redeem, &'a Settings)>,
) -> Result<Vec<Decision>, GateError> {
    let mut reply = Reply::new(&script::REDEEM, value)?;
    let word = reply.text()?;
    if word != "done" || reply.len() != requests.len() {
        return Err(reply.unknown(word));
    }
    requests
        .map(|(request, settings)| {
            let one = reply.array()?;
            Ok(decision(partition, one, request, settings).unwrap_or_else(Decision::Failed))
        })
        .collect()
}

fn decision(
    partition: Partition,
    mut reply: Reply<'_>,
    request: &Redeem,
    settings: &Settings,
) -> Result<Decision, GateError> {
    let word = reply.text()?;
    let (outcome, rates) = match word {
        "granted" => (
            Outcome::Granted(redemption(partition, &mut reply, request)?),
            rates(&mut reply, settings)?,
        ),
        "replayed" => (
            Outcome::Replayed(redemption(partition, &mut reply, request)?),
            rates(&mut reply, settings)?,
        ),
        "allowed" => (Outcome::Allowed, rates(&mut reply, settings)?),
        "refused" => (Outcome::Refused(refusal(&mut reply)?), rates(&mut reply, settings)?),
        "settings_changed" => return Ok(Decision::SettingsChanged),
        "failed" => {
            return Err(GateError::Unexpected {
                script: script::REDEEM.name,
                message: reply.text()?.to_owned(),
            });
        }
        other => return Err(reply.unknown(other)),
    };
    Ok(Decision::Answer(Answer { outcome, rates }))
}

fn redemption(
    partition: Partition,
    reply: &mut Reply<'_>,
    request: &Redeem,
) -> Result<Redemption, GateError> {
    let Some(user) = request.user.clone() else {
        return Err(reply.unknown("a redemption without a user"));
    };
    Ok(Redemption {
        id: reply.parsed(str::parse)?,
        namespace: request.namespace.clone(),
        invite: reply.parsed(str::parse)?,
        code: reply.parsed(stored_code)?,
        group: reply.parsed(Group::parse)?,
        user,
        ordinal: reply.number()?,
        remaining: reply.optional(str::parse)?,
        redeemed_at: reply.parsed(millis)?,
        position: Position { partition, cursor: reply.parsed(str::parse::<Cursor>)? },
    })
}

fn refusal(reply: &mut Reply<'_>) -> Result<Refusal, GateError> {
    let reason = reply.text()?;
    let refusal = match reason {
        "rate_limited" => {
            return Ok(Refusal::RateLimited {
                policy: reply.parsed(Policy::parse)?,
                retry_after_ms: reply.number()?,
            });
        }
        "too_many_attempts" => {
            reply.text()?;
            return Ok(Refusal::TooManyAttempts { retry_after_ms: reply.number()? });
        }
        "already_member" => {
            return Ok(Refusal::AlreadyMember {
                group: reply.parsed(Group::parse)?,
                redemption: reply.optional(str::parse)?,
            });
        }
        "not_started" => Refusal::NotStarted { starts_at: reply.parsed(millis)? },
        "expired" => Refusal::Expired { expires_at: reply.parsed(millis)? },
        word => {
            let refusal = match word {
                "namespace_not_found" => Refusal::NamespaceNotFound,
                "request_id_reused" => Refusal::RequestIdReused,
                "overloaded" => Refusal::Overloaded,
                "not_found" => Refusal::NotFound,
                "disabled" => Refusal::Disabled,
                "user_not_allowed" => Refusal::UserNotAllowed,
                "email_domain_not_allowed" => Refusal::EmailDomainNotAllowed,
                "exhausted" => Refusal::Exhausted,
                other => return Err(reply.unknown(other)),
            };
            reply.text()?;
            refusal
        }
    };
    reply.text()?;
    Ok(refusal)
}

/// The number of a policy and how far its budget is from full, in turn; the quotas are those that the call named.
fn rates(reply: &mut Reply<'_>, settings: &Settings) -> Result<Vec<RateStatus>, GateError> {
    let mut list = reply.array()?;
    let mut rates = Vec::with_capacity(list.len() / 2);
    while list.len() > 0 {
        let number: usize = list.number()?;
        let policy = number.checked_sub(1).and_then(|place| Policy::ALL.get(place));
        let known = policy.and_then(|policy| Some((*policy, settings.quota(*policy)?)));
        let Some((policy, quota)) = known else {
            return Err(list.unknown(&format!("rate limit {number}")));
        };
        rates.push(rate_limit::status(policy, quota, list.number()?));
    }
    Ok(rates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Millis, Quota, UserId};

    fn request() -> Redeem {
        Redeem {
            namespace: Namespace::default_namespace(),
            code: stored_code("WELCOME").unwrap(),
            user: Some(UserId::parse("alice").unwrap()),
            ip: None,
            email_domain: None,
            caller: "key".to_owned(),
            mode: Mode::Validate,
        }
    }

    fn settings() -> Settings {
        Settings {
            membership: crate::domain::MembershipRule::OneGroup,
            code_case: crate::domain::CodeCase::Insensitive,
            code_check: false,
            durability: crate::domain::Durability::Gate,
            rate_user: Quota::parse("10/60").ok(),
            rate_ip: Quota::parse("20/60").ok(),
            rate_code: None,
            rate_namespace: None,
            rate_guess: None,
            revision: 1,
            created_at: Millis::default(),
            updated_at: Millis::default(),
            archived_at: None,
        }
    }

    /// A reply of these words and, last, these rates.
    fn value(parts: &[&str], rates: &[i64]) -> Value {
        let mut values: Vec<_> =
            parts.iter().map(|part| Value::BulkString(part.as_bytes().to_vec())).collect();
        values.push(Value::Array(rates.iter().copied().map(Value::Int).collect()));
        Value::Array(values)
    }

    fn read_with(parts: &[&str], rates: &[i64]) -> Result<Decision, GateError> {
        let reply = Value::Array(vec![Value::BulkString(b"done".to_vec()), value(parts, rates)]);
        decisions(Partition(3), &reply, [(&request(), &settings())].into_iter())
            .map(|mut all| all.remove(0))
    }

    fn read(parts: &[&str]) -> Result<Decision, GateError> {
        read_with(parts, &[])
    }

    const ID: &str = "0198c3a2-7b1e-7c4d-9a55-0123456789ab";

    #[test]
    fn a_grant_is_read_whole() {
        let parts = ["granted", ID, ID, "WELCOME", "team", "17", "83", "1764000000123", "2-40"];
        let Decision::Answer(answer) = read_with(&parts, &[1, 6_000_000]).unwrap() else {
            panic!("an answer")
        };
        assert_eq!(answer.rates[0].remaining, 9);
        let Outcome::Granted(redemption) = answer.outcome else { panic!("a grant") };
        assert_eq!((redemption.ordinal, redemption.remaining), (17, Some(83)));
        assert_eq!(redemption.redeemed_at, Millis::from_ms(1_764_000_000_123).unwrap());
        assert_eq!(redemption.position.to_string(), "3/2-40");
    }

    #[test]
    fn every_refusal_is_read() {
        for (parts, expected) in [
            (["exhausted", "", ""], Refusal::Exhausted),
            (
                ["rate_limited", "ip", "1500"],
                Refusal::RateLimited { policy: Policy::Ip, retry_after_ms: 1500 },
            ),
            (["too_many_attempts", "guess", "7"], Refusal::TooManyAttempts { retry_after_ms: 7 }),
            (
                ["already_member", "team", ""],
                Refusal::AlreadyMember { group: Group::parse("team").unwrap(), redemption: None },
            ),
            (
                ["not_started", "5", ""],
                Refusal::NotStarted { starts_at: Millis::from_ms(5).unwrap() },
            ),
        ] {
            let [reason, detail, more] = parts;
            let Decision::Answer(answer) = read(&["refused", reason, detail, more]).unwrap() else {
                panic!("an answer")
            };
            assert_eq!(answer.outcome, Outcome::Refused(expected));
        }
    }

    #[test]
    fn nonsense_is_an_error_and_never_an_answer() {
        for parts in [
            vec![],
            vec!["sorry"],
            vec!["granted"],
            vec!["granted", "x", ID, "WELCOME", "team", "17", "83", "1764000000123", "2-40"],
            vec!["refused", "because", "", ""],
            vec!["refused", "exhausted"],
            vec!["failed", "WRONGTYPE"],
        ] {
            assert!(!matches!(read(&parts), Ok(Decision::Answer(_))), "{parts:?}");
        }
        for rates in [&[1][..], &[0, 5], &[3, 5], &[9, 5]] {
            assert!(
                !matches!(read_with(&["allowed"], rates), Ok(Decision::Answer(_))),
                "{rates:?}"
            );
        }
        let short = Value::Array(vec![Value::BulkString(b"done".to_vec())]);
        assert!(decisions(Partition(0), &short, [(&request(), &settings())].into_iter()).is_err());
    }
}
