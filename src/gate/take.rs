//! What the keys of a closed partition say, as the ledger's rows: the opposite of [`contents`](super::contents), for an
//! operator who wants the gate's word written into the ledger.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicBool, Ordering},
};

use redis::{FromRedisValue, RedisResult};

use super::{
    Gate, GateError, audit,
    fields::{Fields, millis, stored_code},
    key::Named,
};
use crate::domain::{
    Campaign, CampaignName, Cursor, Given, Group, Invite, InviteId, MembershipRule, Millis, Moves,
    Namespace, Partition, Position, Redemption, Reservation, Settings, UserId,
    member::{Remembered, UserRecord},
    name::Malformed,
};

/// Keys that are read at once.
const CHUNK_KEYS: usize = 500;

/// Everything that a partition holds.
#[derive(Debug, Default)]
pub struct Taken {
    /// The namespaces and their rules.
    pub namespaces: Vec<(Namespace, Settings)>,
    /// The invites, and whether their codes stand for them.
    pub invites: Vec<(Invite, bool)>,
    /// What was moved of invites between shards.
    pub moves: Vec<Moves>,
    /// The campaigns.
    pub campaigns: Vec<Campaign>,
    /// The uses that are held, each with the campaign of its invite.
    pub reservations: Vec<(Reservation, Option<CampaignName>)>,
    /// The users.
    pub users: Vec<UserRecord>,
}

/// Why it can not be taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// Redis did not answer.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// A key holds what none of ours does.
    #[error("{key}: {what}")]
    Unreadable {
        /// Which.
        key: String,
        /// What is wrong with it.
        what: String,
    },
}

/// Reads a partition that stands still; `alive` is set with each part.
///
/// # Errors
/// [`TakeError`] when Redis does not answer, or holds what can not be understood.
pub async fn read(
    gate: &Gate,
    partition: Partition,
    alive: &AtomicBool,
) -> Result<Taken, TakeError> {
    let mut taken = Taken::default();
    let (mut members, mut held, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    for key in audit::keys(gate, partition).await? {
        match gate.keys().parse(partition, &key) {
            Some(Named::Member(namespace, user)) => members.push((key, namespace, user)),
            // They say only what invites and reservations themselves say.
            Some(Named::InviteId | Named::CampaignHeld(_)) => {}
            Some(Named::Held(namespace, code)) => held.push((key, namespace, code)),
            Some(named) => rest.push((key, named)),
            None => return Err(unreadable(&key)("it is no key of this partition")),
        }
    }
    for chunk in rest.chunks(CHUNK_KEYS) {
        let keys: Vec<&str> = chunk.iter().map(|(key, _)| key.as_str()).collect();
        for ((key, named), fields) in chunk.iter().zip(hashes(gate, partition, &keys).await?) {
            let failed = |error: Malformed| unreadable(key)(&error.0);
            match named {
                Named::Settings(namespace) => {
                    taken.namespaces.push((namespace.clone(), fields.settings().map_err(failed)?));
                }
                Named::Invite(namespace) => {
                    taken.invites.push((fields.invite(namespace).map_err(failed)?, true));
                }
                Named::Retired(namespace) => {
                    taken.invites.push((fields.invite(namespace).map_err(failed)?, false));
                }
                Named::Campaigns(namespace) => {
                    taken.campaigns.extend(campaigns(namespace, &fields).map_err(failed)?);
                }
                Named::Moves(namespace, invite) => {
                    taken.moves.push(moves(namespace, *invite, &fields).map_err(failed)?);
                }
                Named::Member(..) | Named::InviteId | Named::Held(..) | Named::CampaignHeld(_) => {}
            }
        }
    }
    let current: HashMap<_, _> = taken
        .invites
        .iter()
        .filter_map(|(invite, holds_code)| {
            holds_code.then_some(((&invite.namespace, &invite.code), invite))
        })
        .collect();
    for chunk in held.chunks(CHUNK_KEYS) {
        let keys: Vec<&str> = chunk.iter().map(|(key, ..)| key.as_str()).collect();
        for ((key, namespace, code), members) in
            chunk.iter().zip(sorted_sets(gate, partition, &keys).await?)
        {
            let Some(invite) = current.get(&(namespace, code)) else {
                return Err(unreadable(key)("its invite does not exist"));
            };
            for (user, until) in members {
                let failed = |error: Malformed| unreadable(key)(&error.0);
                let user = UserId::parse(&user).map_err(failed)?;
                let until = Millis::from_ms(until).map_err(failed)?;
                let held = Reservation::new(namespace, invite.id, code, &user, until);
                taken.reservations.push((held, invite.campaign.clone()));
            }
        }
    }
    let rules: HashMap<_, _> = taken
        .namespaces
        .iter()
        .map(|(name, settings)| (name.clone(), settings.membership))
        .collect();
    for chunk in members.chunks(CHUNK_KEYS) {
        alive.store(true, Ordering::SeqCst);
        let keys: Vec<&str> = chunk.iter().map(|(key, ..)| key.as_str()).collect();
        for ((key, namespace, user), fields) in
            chunk.iter().zip(hashes(gate, partition, &keys).await?)
        {
            let Some(rule) = rules.get(namespace) else {
                return Err(unreadable(key)("its namespace does not exist"));
            };
            let record = user_record(partition, namespace, user, *rule, &fields);
            taken.users.push(record.map_err(|error| unreadable(key)(&error.0))?);
        }
    }
    Ok(taken)
}

fn unreadable(key: &str) -> impl Fn(&str) -> TakeError {
    move |what| TakeError::Unreadable { key: key.to_owned(), what: what.to_owned() }
}

async fn hashes(
    gate: &Gate,
    partition: Partition,
    keys: &[&str],
) -> Result<Vec<Fields>, TakeError> {
    let hashes = read_each(gate, partition, keys, |key| redis::Cmd::hgetall(key)).await?;
    Ok(hashes.into_iter().map(Fields).collect())
}

async fn sorted_sets(
    gate: &Gate,
    partition: Partition,
    keys: &[&str],
) -> Result<Vec<Vec<(String, i64)>>, TakeError> {
    read_each(gate, partition, keys, |key| redis::Cmd::zrange_withscores(key, 0, -1)).await
}

/// What a command says of each key. Each by itself, so that one which does not hold what it should is named.
async fn read_each<T: FromRedisValue>(
    gate: &Gate,
    partition: Partition,
    keys: &[&str],
    command: impl Fn(&str) -> redis::Cmd,
) -> Result<Vec<T>, TakeError> {
    let unavailable = |cause| GateError::Unavailable { doing: "reading a partition", cause };
    let mut connection = gate.pooled(partition).await.map_err(unavailable)?;
    let mut pipeline = redis::pipe();
    for key in keys {
        pipeline.add_command(command(key));
    }
    let replies: Vec<RedisResult<redis::Value>> =
        pipeline.ignore_errors().query_async(&mut connection).await.map_err(unavailable)?;
    let value = |(key, reply): (&&str, RedisResult<redis::Value>)| {
        let read = reply.and_then(|value| Ok(redis::from_redis_value::<T>(value)?));
        read.map_err(|error| unreadable(key)(&error.to_string()))
    };
    keys.iter().zip(replies).map(value).collect()
}

/// What was moved of an invite, from the fields that `give_uses.lua` and `take_uses.lua` write.
pub(super) fn moves(
    namespace: &Namespace,
    invite: InviteId,
    fields: &Fields,
) -> Result<Moves, Malformed> {
    let mut moves = Moves {
        namespace: namespace.clone(),
        invite,
        given: BTreeMap::new(),
        taken: BTreeMap::new(),
    };
    for (name, value) in &fields.0 {
        let malformed = || Malformed(format!("{name} is {value:?}"));
        let (what, participant) = name.split_once(':').ok_or_else(malformed)?;
        let participant = participant.parse().map_err(|_| malformed())?;
        let amount = |text: &str| text.parse().map_err(|_| malformed());
        match (what, value.split_once(' ')) {
            ("given", Some((text, at))) => {
                moves.given.insert(participant, Given { amount: amount(text)?, at: at.parse()? });
            }
            ("taken", None) => {
                moves.taken.insert(participant, amount(value)?);
            }
            _ => return Err(malformed()),
        }
    }
    Ok(moves)
}

/// The campaigns of a namespace, from `<name>:<what>` and its value.
fn campaigns(namespace: &Namespace, fields: &Fields) -> Result<Vec<Campaign>, Malformed> {
    let names = fields.0.keys().filter_map(|field| field.strip_suffix(":uses"));
    let campaign = |name: &str| {
        let own =
            |what: &str| Some((what.to_owned(), fields.0.get(&format!("{name}:{what}"))?.clone()));
        let what = ["uses", "revision", "created_at", "updated_at"];
        let mut own_fields: HashMap<_, _> = what.into_iter().filter_map(own).collect();
        own_fields.extend(["max_uses", "total"].into_iter().filter_map(own));
        Fields(own_fields).campaign(namespace, CampaignName::parse(name)?)
    };
    let mut all = names.map(campaign).collect::<Result<Vec<_>, _>>()?;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// A member's hash as what is remembered of the user.
fn user_record(
    partition: Partition,
    namespace: &Namespace,
    user: &UserId,
    rule: MembershipRule,
    fields: &Fields,
) -> Result<UserRecord, Malformed> {
    let mut record = UserRecord {
        namespace: namespace.clone(),
        user: user.clone(),
        rule,
        memberships: Vec::new(),
        redemptions: Vec::new(),
    };
    for (name, value) in &fields.0 {
        if let Some(group) = name.strip_prefix("group:") {
            let joined = fields.text(value)?.strip_prefix("joined ").map(millis).transpose()?;
            record.memberships.push((Group::parse(group)?, value.parse()?, joined));
        } else if let Some(request) = name.strip_prefix("request:") {
            let (redemption, rolled_back_at) =
                redemption(partition, namespace, user, value, fields)?;
            let pointer = match rule {
                MembershipRule::OneGroup | MembershipRule::OnePerGroup => {
                    format!("group:{}", redemption.group)
                }
                MembershipRule::OnePerInvite => format!("invite:{}", redemption.invite),
                MembershipRule::Unlimited => String::new(),
            };
            let counts = fields.0.get(&pointer) == Some(value);
            let request = request.to_owned();
            record.redemptions.push(Remembered { redemption, request, counts, rolled_back_at });
        }
    }
    record.memberships.sort_by(|a, b| a.0.cmp(&b.0));
    record.redemptions.sort_by_key(|one| one.redemption.position.cursor);
    Ok(record)
}

fn redemption(
    partition: Partition,
    namespace: &Namespace,
    user: &UserId,
    position: &str,
    fields: &Fields,
) -> Result<(Redemption, Option<Millis>), Malformed> {
    let short = || Malformed(format!("what stands at {position} is no redemption"));
    let cursor: Cursor = position.parse()?;
    let told: Vec<&str> = fields.text(position)?.split(' ').collect();
    let (id, ordinal, remaining, at, rolled_back_at) = match told[..] {
        [id, ordinal, remaining, at] => (id, ordinal, remaining, at, None),
        [id, ordinal, remaining, at, undone] => (id, ordinal, remaining, at, Some(millis(undone)?)),
        _ => return Err(short()),
    };
    // A group may hold spaces, and is last.
    let about: Vec<&str> = fields.text(&format!("{position}:invite"))?.splitn(3, ' ').collect();
    let [invite, code, group] = about[..] else { return Err(short()) };
    let number = |text: &str| text.parse::<u64>().map_err(|_| short());
    let redemption = Redemption {
        id: id.parse()?,
        namespace: namespace.clone(),
        invite: invite.parse()?,
        code: stored_code(code)?,
        group: Group::parse(group)?,
        user: user.clone(),
        ordinal: number(ordinal)?,
        remaining: if remaining == "-" { None } else { Some(number(remaining)?) },
        redeemed_at: millis(at)?,
        position: Position { partition, cursor },
    };
    Ok((redemption, rolled_back_at))
}
