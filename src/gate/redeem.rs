//! `lua/redeem.lua`: spend one use of a code for each request of a batch, once per request id.

use std::{borrow::Cow, collections::HashMap};

use redis::Value;

use super::{
    GateError,
    fields::{millis, stored_code},
    key::Keyspace,
    limited::Subject,
    reply::Reply,
    script::{self, Call},
};
use crate::domain::{
    Answer, CampaignName, Code, Cursor, EmailDomain, Fence, Group, InviteId, Millis, Namespace,
    Outcome, Partition, Policy, Position, RateStatus, Redemption, Refusal, Reservation, Settings,
    rate_limit,
};

pub use crate::domain::command::{Mode, Redeem};

/// What the script said to one request.
#[derive(Debug)]
pub(super) enum Decision {
    Answer(Answer),
    SettingsChanged,
    Dry(Dry),
    Failed(GateError),
}

/// Why a shard alone can not decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dry {
    /// It does not know the code.
    Unknown,
    /// It does not know the user, and nobody new comes in here any more.
    Elsewhere,
    /// It has no use left of what it may spend of an invite.
    Exhausted {
        /// By its id there.
        invite: InviteId,
        /// Its campaign, of which it has none left either.
        campaign: Option<CampaignName>,
    },
    /// It has none left of what it may spend of this campaign.
    CampaignExhausted(CampaignName),
}

/// A request that waits in a lane, as the script is told of it.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) request: &'a Redeem,
    /// The rules that its caller knows.
    pub(super) settings: &'a Settings,
    /// Whether the answer may be [`Dry`].
    pub(super) is_patient: bool,
}

impl<'a> From<(&'a Redeem, &'a Settings)> for Asked<'a> {
    fn from((request, settings): (&'a Redeem, &'a Settings)) -> Self {
        Self { request, settings, is_patient: false }
    }
}

/// What requests have in common; the script is told once.
#[derive(PartialEq, Eq, Hash)]
struct Kind<'a> {
    mode: &'static str,
    namespace: &'a Namespace,
    /// The revision of the rules that the caller knows: two that know different ones are told apart, so that each is
    /// checked by its own.
    revision: u64,
    code: &'a Code,
    email_domain: Option<&'a EmailDomain>,
    actor: &'a str,
    is_patient: bool,
    /// Which of [`Policy::ALL`] limit it.
    limited_by: [bool; Policy::ALL.len()],
}

impl<'a> Kind<'a> {
    fn of(Asked { request, settings, is_patient }: &Asked<'a>) -> Self {
        let Redeem { namespace, code, email_domain, caller, mode, .. } = request;
        Self {
            mode: match mode {
                Mode::Redeem { .. } => "redeem",
                Mode::Reserve { .. } => "reserve",
                Mode::Validate => "validate",
            },
            namespace,
            revision: settings.revision,
            code,
            email_domain: email_domain.as_ref(),
            actor: caller,
            is_patient: *is_patient,
            limited_by: Policy::ALL
                .map(|policy| settings.quota(policy).is_some() && has_subject(request, policy)),
        }
    }

    fn policies(&self) -> impl Iterator<Item = Policy> + use<> {
        Policy::ALL.into_iter().zip(self.limited_by).filter_map(|(one, on)| on.then_some(one))
    }

    /// `place` is that of its namespace, from 1.
    fn push(
        &self,
        keyspace: &Keyspace,
        place: usize,
        keys: &mut Vec<String>,
        args: &mut Vec<String>,
    ) {
        keys.extend([
            keyspace.invite(self.namespace, self.code),
            keyspace.held(self.namespace, self.code),
        ]);
        let numbers =
            self.limited_by.iter().zip('1'..).filter_map(|(on, digit)| on.then_some(digit));
        args.extend([
            self.mode.to_owned(),
            place.to_string(),
            self.revision.to_string(),
            self.code.to_string(),
            self.email_domain.map(ToString::to_string).unwrap_or_default(),
            self.actor.to_owned(),
            numbers.collect(),
            u8::from(self.is_patient).to_string(),
        ]);
    }
}

/// Whether a request has what a policy counts by.
fn has_subject(request: &Redeem, policy: Policy) -> bool {
    match policy {
        Policy::User => request.user.is_some(),
        Policy::Ip => request.ip.is_some(),
        Policy::Code | Policy::Namespace | Policy::Guess => true,
    }
}

/// By what a policy counts a request, and of which kind that is.
fn subject(request: &Redeem, policy: Policy) -> Option<(&'static str, Cow<'_, str>)> {
    let Redeem { code, user, ip, caller, .. } = request;
    let user = || Some(("user", Cow::Borrowed(user.as_ref()?.as_str())));
    let ip = || Some(("ip", Cow::Owned(rate_limit::address_subject((*ip)?))));
    match policy {
        Policy::User => user(),
        Policy::Ip => ip(),
        Policy::Code => Some(("code", Cow::Borrowed(code.as_str()))),
        Policy::Namespace => Some(("namespace", Cow::Borrowed("all"))),
        Policy::Guess => ip().or_else(user).or(Some(("key", Cow::Borrowed(caller)))),
    }
}

/// The key of a rate limit that a request has.
fn rate_key(keyspace: &Keyspace, request: &Redeem, policy: Policy) -> Option<String> {
    let (kind, name) = subject(request, policy)?;
    Some(keyspace.rate(&request.namespace, policy, kind, &name))
}

/// The limit that refused a request, by what it counts, and for how long.
pub(super) fn limited_by(request: &Redeem, outcome: &Outcome) -> Option<(Subject, u64)> {
    let (policy, retry_after_ms) = match outcome {
        Outcome::Refused(Refusal::RateLimited { policy, retry_after_ms }) => {
            (*policy, *retry_after_ms)
        }
        Outcome::Refused(Refusal::TooManyAttempts { retry_after_ms }) => {
            (Policy::Guess, *retry_after_ms)
        }
        _ => return None,
    };
    let (kind, name) = subject(request, policy)?;
    Some((Subject { policy, kind, name: name.into_owned() }, retry_after_ms))
}

/// The kinds of these requests, and the requests with each one's kind, those of one kind next to each other.
fn by_kind<'a>(requests: &[Asked<'a>]) -> (Vec<Kind<'a>>, Vec<(usize, usize)>) {
    let mut kinds = Vec::new();
    let mut places = HashMap::new();
    let mut order = Vec::with_capacity(requests.len());
    for (asked, request) in requests.iter().enumerate() {
        let place = *places.entry(Kind::of(request)).or_insert(kinds.len());
        if place == kinds.len() {
            kinds.push(Kind::of(request));
        }
        order.push((asked, place));
    }
    order.sort_by_key(|(_, place)| *place);
    (kinds, order)
}

/// In which order one call decides these requests: nobody who asks at the same time as others has a claim to be first.
#[must_use]
pub fn order(requests: &[(&Redeem, &Settings)]) -> Vec<usize> {
    let requests: Vec<_> = requests.iter().map(|&pair| Asked::from(pair)).collect();
    by_kind(&requests).1.into_iter().map(|(asked, _)| asked).collect()
}

/// A call for several requests of a partition.
pub(super) struct Batch {
    pub(super) call: Call,
    /// In which order the call asks for the requests, with the place of each one's kind: neighbours of one kind share
    /// an outbox entry.
    order: Vec<(usize, usize)>,
}

impl Batch {
    /// Asks for all these requests, each with the rules that its caller knows. With `write` the script writes
    /// something in any case: from Redis 7.2 on, WAIT waits only for what its own connection has written.
    pub(super) fn new(
        keyspace: &Keyspace,
        partition: Partition,
        fence: &Fence,
        now_ms: Option<i64>,
        outbox_max: u64,
        write: bool,
        requests: &[Asked<'_>],
    ) -> Self {
        let (kinds, order) = by_kind(requests);
        let mut namespaces: Vec<&Namespace> = kinds.iter().map(|kind| kind.namespace).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        let mut keys = Vec::with_capacity(5 + 2 * kinds.len() + 4 * requests.len());
        keys.extend([keyspace.meta(partition), keyspace.outbox(partition)]);
        let mut args = Vec::with_capacity(5 + 8 * kinds.len() + 6 * requests.len());
        args.extend([
            outbox_max.to_string(),
            u8::from(write).to_string(),
            namespaces.len().to_string(),
            kinds.len().to_string(),
        ]);
        for namespace in &namespaces {
            keys.extend([
                keyspace.settings(namespace),
                keyspace.campaigns(namespace),
                keyspace.campaign_held(namespace),
            ]);
            args.push(namespace.to_string());
        }
        for kind in &kinds {
            let place = namespaces.partition_point(|namespace| *namespace < kind.namespace) + 1;
            kind.push(keyspace, place, &mut keys, &mut args);
        }
        for (asked, place) in &order {
            let request = requests[*asked].request;
            keys.extend(
                request.user.as_ref().map(|user| keyspace.member(&request.namespace, user)),
            );
            let policies = kinds[*place].policies();
            keys.extend(policies.filter_map(|policy| rate_key(keyspace, request, policy)));
            push_request(&mut args, place + 1, request);
        }
        Self { call: Call::fenced(&script::REDEEM, fence, now_ms, keys, args), order }
    }

    /// Reads the reply: one decision for each of the requests, in the order in which they were given.
    pub(super) fn decisions(
        &self,
        partition: Partition,
        epoch: u64,
        value: &Value,
        requests: &[Asked<'_>],
    ) -> Result<Vec<Decision>, GateError> {
        let mut reply = Reply::new(&script::REDEEM, value)?;
        let word = reply.text()?;
        if word != "done" {
            return Err(reply.unknown(word));
        }
        let redeemed_at = reply.parsed_number(Millis::from_ms)?;
        let kinds = kinds_granted(reply.array()?)?;
        if reply.len() != self.order.len() {
            return Err(reply.unknown("a reply of another length"));
        }
        let mut decisions: Vec<_> = requests.iter().map(|_| None).collect();
        for (asked, place) in &self.order {
            let Asked { request, settings, .. } = requests[*asked];
            let known =
                Known { partition, epoch, redeemed_at, kind: kinds.get(*place), request, settings };
            let decision = decision(reply.array()?, &known).unwrap_or_else(Decision::Failed);
            decisions[*asked] = Some(decision);
        }
        let all = decisions.into_iter().collect::<Option<Vec<_>>>();
        all.ok_or_else(|| reply.unknown("no word on a request"))
    }
}

fn push_request(args: &mut Vec<String>, place: usize, request: &Redeem) {
    let user = request.user.as_ref().map(ToString::to_string).unwrap_or_default();
    let (id, redemption, metadata, wanted) = match &request.mode {
        Mode::Redeem { request, redemption, metadata, reservation } => (
            request.stored().into_owned(),
            redemption.to_string(),
            metadata.clone().unwrap_or_default(),
            reservation.map(|until| until.as_ms().to_string()).unwrap_or_default(),
        ),
        Mode::Reserve { ttl_ms } => {
            (String::new(), String::new(), String::new(), ttl_ms.to_string())
        }
        Mode::Validate => Default::default(),
    };
    args.extend([place.to_string(), id, redemption, user, metadata, wanted]);
}

/// Invite and group of each kind, nothing where nothing was granted.
fn kinds_granted(mut reply: Reply<'_>) -> Result<Vec<Option<(InviteId, Group)>>, GateError> {
    let mut kinds = Vec::with_capacity(reply.len() / 2);
    while reply.len() > 0 {
        let invite = reply.optional(str::parse)?;
        kinds.push(invite.zip(reply.optional(Group::parse)?));
    }
    Ok(kinds)
}

/// What a reply to one request leaves out.
struct Known<'a> {
    partition: Partition,
    epoch: u64,
    redeemed_at: Millis,
    kind: Option<&'a Option<(InviteId, Group)>>,
    request: &'a Redeem,
    settings: &'a Settings,
}

fn decision(mut reply: Reply<'_>, known: &Known<'_>) -> Result<Decision, GateError> {
    let word = reply.text()?;
    let outcome = match word {
        "granted" => Outcome::Granted(granted(&mut reply, known)?),
        "replayed" => Outcome::Replayed(replayed(&mut reply, known)?),
        "held" => held(&mut reply, known)?,
        "allowed" => Outcome::Allowed,
        "refused" => Outcome::Refused(refusal(&mut reply)?),
        "settings_changed" => return Ok(Decision::SettingsChanged),
        "dry" => {
            return match reply.text()? {
                "not_found" => Ok(Decision::Dry(Dry::Unknown)),
                "elsewhere" => Ok(Decision::Dry(Dry::Elsewhere)),
                "exhausted" => {
                    let invite = reply.parsed(str::parse)?;
                    let campaign = reply.optional(CampaignName::parse)?;
                    Ok(Decision::Dry(Dry::Exhausted { invite, campaign }))
                }
                "campaign_exhausted" => {
                    reply.text()?;
                    let name = reply.parsed(CampaignName::parse)?;
                    Ok(Decision::Dry(Dry::CampaignExhausted(name)))
                }
                other => Err(reply.unknown(other)),
            };
        }
        "failed" => {
            return Err(GateError::Unexpected {
                script: script::REDEEM.name,
                message: reply.text()?.to_owned(),
            });
        }
        other => return Err(reply.unknown(other)),
    };
    Ok(Decision::Answer(Answer { outcome, rates: rates(&mut reply, known)? }))
}

fn granted(reply: &mut Reply<'_>, known: &Known<'_>) -> Result<Redemption, GateError> {
    let Known { partition, epoch, redeemed_at, kind, request, .. } = known;
    let (Some(user), Mode::Redeem { redemption, .. }, Some(Some((invite, group)))) =
        (&request.user, &request.mode, kind)
    else {
        return Err(reply.unknown("a grant that nobody asked for"));
    };
    Ok(Redemption {
        id: *redemption,
        namespace: request.namespace.clone(),
        invite: *invite,
        code: request.code.clone(),
        group: group.clone(),
        user: user.clone(),
        position: Position {
            partition: *partition,
            cursor: Cursor { epoch: *epoch, seq: reply.number()? },
        },
        ordinal: reply.number()?,
        remaining: reply.optional_number()?,
        redeemed_at: *redeemed_at,
    })
}

fn held(reply: &mut Reply<'_>, known: &Known<'_>) -> Result<Outcome, GateError> {
    let Known { kind, request, .. } = known;
    let (Some(user), Mode::Reserve { .. }, Some(Some((invite, _)))) =
        (&request.user, &request.mode, kind)
    else {
        return Err(reply.unknown("a reservation that nobody asked for"));
    };
    let until = reply.parsed_number(Millis::from_ms)?;
    let reservation = Reservation::new(&request.namespace, *invite, &request.code, user, until);
    Ok(Outcome::Held { reservation, replayed: reply.number::<u8>()? == 1 })
}

fn replayed(reply: &mut Reply<'_>, known: &Known<'_>) -> Result<Redemption, GateError> {
    let Some(user) = known.request.user.clone() else {
        return Err(reply.unknown("a redemption without a user"));
    };
    Ok(Redemption {
        id: reply.parsed(str::parse)?,
        namespace: known.request.namespace.clone(),
        invite: reply.parsed(str::parse)?,
        code: reply.parsed(stored_code)?,
        group: reply.parsed(Group::parse)?,
        user,
        ordinal: reply.number()?,
        remaining: reply.optional(str::parse)?,
        redeemed_at: reply.parsed(millis)?,
        position: Position {
            partition: known.partition,
            cursor: reply.parsed(str::parse::<Cursor>)?,
        },
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
        "already_rolled_back" => {
            return Ok(Refusal::AlreadyRolledBack {
                redemption: reply.parsed(str::parse)?,
                at: reply.parsed(millis)?,
            });
        }
        "exhausted" => Refusal::Exhausted { may_free_at: reply.optional(millis)? },
        "not_started" => Refusal::NotStarted { starts_at: reply.parsed(millis)? },
        "expired" => Refusal::Expired { expires_at: reply.parsed(millis)? },
        word => {
            let refusal = match word {
                "namespace_not_found" => Refusal::NamespaceNotFound,
                "request_id_reused" => Refusal::RequestIdReused,
                "overloaded" => Refusal::Overloaded,
                "not_found" => Refusal::NotFound,
                "invalid" => Refusal::Invalid,
                "disabled" => Refusal::Disabled,
                "user_not_allowed" => Refusal::UserNotAllowed,
                "email_domain_not_allowed" => Refusal::EmailDomainNotAllowed,
                "user_limit_reached" => Refusal::UserLimitReached,
                "reservation_expired" => Refusal::ReservationExpired,
                "campaign_exhausted" => Refusal::CampaignExhausted,
                other => return Err(reply.unknown(other)),
            };
            reply.text()?;
            refusal
        }
    };
    reply.text()?;
    Ok(refusal)
}

/// How far each budget of the request is from full; nothing when no budget was looked at.
fn rates(reply: &mut Reply<'_>, known: &Known<'_>) -> Result<Vec<RateStatus>, GateError> {
    if reply.len() == 0 {
        return Ok(Vec::new());
    }
    let mut rates = Vec::with_capacity(reply.len());
    for policy in Kind::of(&(known.request, known.settings).into()).policies() {
        if let Some(quota) = known.settings.quota(policy) {
            rates.push(rate_limit::status(policy, quota, reply.number()?));
        }
    }
    if reply.len() > 0 {
        return Err(reply.unknown("more rate limits than were asked for"));
    }
    Ok(rates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Quota, RequestId, UserId};

    fn request() -> Redeem {
        Redeem {
            namespace: Namespace::default_namespace(),
            code: stored_code("WELCOME").unwrap(),
            user: Some(UserId::parse("alice").unwrap()),
            ip: None,
            email_domain: None,
            caller: "key".to_owned(),
            mode: Mode::Redeem {
                request: RequestId::parse("key").unwrap(),
                redemption: ID.parse().unwrap(),
                metadata: None,
                reservation: None,
            },
        }
    }

    fn settings() -> Settings {
        Settings {
            membership: crate::domain::MembershipRule::OneGroup,
            code_case: crate::domain::CodeCase::Insensitive,
            code_check: false,
            durability: crate::domain::Durability::Gate,
            error_detail: crate::domain::ErrorDetail::Full,
            rate_user: Quota::parse("10/60").ok(),
            rate_ip: Quota::parse("20/60").ok(),
            rate_code: None,
            rate_namespace: None,
            rate_guess: None,
            spread: 1,
            layouts: Vec::new(),
            sealed: false,
            revision: 1,
            created_at: Millis::default(),
            updated_at: Millis::default(),
            archived_at: None,
        }
    }

    /// A reply of these words and, last, these rates.
    fn value(parts: &[&str], rates: &[i64]) -> Value {
        let words = parts.iter().map(|part| Value::BulkString(part.as_bytes().to_vec()));
        Value::Array(words.chain(rates.iter().copied().map(Value::Int)).collect())
    }

    fn read_with(parts: &[&str], rates: &[i64]) -> Result<Decision, GateError> {
        let kinds = value(&[ID, "team"], &[]);
        let done = value(&["done", "1764000000123"], &[]);
        let Value::Array(mut reply) = done else { panic!("an array") };
        reply.extend([kinds, value(parts, rates)]);
        read_reply(&Value::Array(reply)).map(|mut all| all.remove(0))
    }

    fn read_reply(reply: &Value) -> Result<Vec<Decision>, GateError> {
        let keys = Keyspace::new("rdm", 4);
        let fence = Fence { deployment: String::new(), lineage: String::new(), epoch: 2 };
        let (request, settings) = (request(), settings());
        let requests = [(&request, &settings).into()];
        let batch = Batch::new(&keys, Partition(3), &fence, None, 10, false, &requests);
        batch.decisions(Partition(3), 2, reply, &requests)
    }

    fn read(parts: &[&str]) -> Result<Decision, GateError> {
        read_with(parts, &[])
    }

    const ID: &str = "0198c3a2-7b1e-7c4d-9a55-0123456789ab";

    #[test]
    fn a_grant_is_read_whole() {
        let Decision::Answer(answer) =
            read_with(&["granted", "40", "17", "83"], &[6_000_000]).unwrap()
        else {
            panic!("an answer")
        };
        assert_eq!(answer.rates[0].remaining, 9);
        let Outcome::Granted(redemption) = answer.outcome else { panic!("a grant") };
        assert_eq!((redemption.ordinal, redemption.remaining), (17, Some(83)));
        assert_eq!(redemption.redeemed_at, Millis::from_ms(1_764_000_000_123).unwrap());
        assert_eq!(redemption.position.to_string(), "3/2-40");
        let parts = ["replayed", ID, ID, "WELCOME", "team", "17", "", "1764000000123", "1-40"];
        let Decision::Answer(answer) = read(&parts).unwrap() else { panic!("an answer") };
        let Outcome::Replayed(redemption) = answer.outcome else { panic!("a repeat") };
        assert_eq!((redemption.remaining, redemption.position.cursor.epoch), (None, 1));
    }

    #[test]
    fn every_refusal_is_read() {
        for (parts, expected) in [
            (["exhausted", "", ""], Refusal::Exhausted { may_free_at: None }),
            (
                ["exhausted", "7", ""],
                Refusal::Exhausted { may_free_at: Some(Millis::from_ms(7).unwrap()) },
            ),
            (["user_limit_reached", "", ""], Refusal::UserLimitReached),
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
            vec!["granted", "x", "17", "83"],
            vec!["replayed", "x", ID, "WELCOME", "team", "17", "83", "1764000000123", "2-40"],
            vec!["refused", "because", "", ""],
            vec!["refused", "exhausted"],
            vec!["failed", "WRONGTYPE"],
        ] {
            assert!(!matches!(read(&parts), Ok(Decision::Answer(_))), "{parts:?}");
        }
        assert!(!matches!(read_with(&["allowed"], &[5, 5]), Ok(Decision::Answer(_))));
        let short = Value::Array(vec![Value::BulkString(b"done".to_vec())]);
        assert!(read_reply(&short).is_err());
    }
}
