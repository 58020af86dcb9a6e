//! The outbox: what the scripts wrote down for the ledger, one stream per partition.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use redis::{
    RedisError,
    aio::MultiplexedConnection,
    streams::{StreamId, StreamRangeReply, StreamReadReply},
};

use super::{
    Gate, GateError,
    fields::{Fields, stored_code},
    link,
};
use crate::domain::{
    Change, Cursor, Entry, Group, Invite, MembershipRule, Namespace, Partition, Position,
    Redemption, RedemptionId, UserId, change::InviteAction, name::Malformed,
};

/// An entry as it stands in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Its place.
    pub cursor: Cursor,
    /// What it says, or why nobody understands it: then it belongs among the dead letters.
    pub entry: Result<Entry, Malformed>,
    fields: Fields,
}

impl Read {
    /// Its fields, as [`decode_text`] reads them: a JSON object of text.
    #[must_use]
    pub fn text(&self) -> String {
        let fields: BTreeMap<_, _> = self.fields.0.iter().collect();
        serde_json::to_string(&fields).unwrap_or_else(|_| format!("{fields:?}"))
    }
}

/// What an entry says of which only the text was kept.
///
/// # Errors
/// [`Malformed`] when nobody understands it.
pub fn decode_text(partition: Partition, cursor: Cursor, text: &str) -> Result<Entry, Malformed> {
    let fields = serde_json::from_str(text)
        .map_err(|error| Malformed(format!("it is no JSON object of text: {error}")))?;
    entry(partition, cursor, &Fields(fields))
}

/// Reads one partition's outbox over a connection of its own, since a read that finds nothing waits.
pub struct Reader {
    partition: Partition,
    key: String,
    connection: MultiplexedConnection,
}

impl Reader {
    /// Connects; no read will wait for longer than `longest`.
    ///
    /// # Errors
    /// When Redis can not be reached.
    pub async fn connect(
        gate: &Gate,
        partition: Partition,
        longest: Duration,
    ) -> Result<Self, RedisError> {
        let connection = gate.dedicated(longest).await?;
        Ok(Self { partition, key: gate.keys().outbox(partition), connection })
    }

    /// At most `count` entries after `cursor`, waiting up to `block` for the first.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn read(
        &mut self,
        cursor: Cursor,
        count: usize,
        block: Duration,
    ) -> Result<Vec<Read>, RedisError> {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(count);
        if !block.is_zero() {
            command.arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
        }
        command.arg("STREAMS").arg(&self.key).arg(cursor.to_string());
        let reply: Option<StreamReadReply> = command.query_async(&mut self.connection).await?;
        let streams = reply.into_iter().flat_map(|reply| reply.keys);
        streams.flat_map(|stream| stream.ids).map(|id| decode(self.partition, &id)).collect()
    }
}

/// Removes the entries up to and including `cursor`. Ids name their epoch, so that a late call of a leader that was
/// replaced can not touch a newer one's entries.
///
/// # Errors
/// [`GateError::Unavailable`] when Redis does not answer; they stay, and are removed by a later call.
pub async fn trim(gate: &Gate, partition: Partition, cursor: Cursor) -> Result<(), GateError> {
    let mut command = redis::cmd("XTRIM");
    command.arg(gate.keys().outbox(partition)).arg("MINID").arg(cursor.next().to_string());
    let unavailable = |cause| GateError::Unavailable { doing: "trimming an outbox", cause };
    let mut connection =
        gate.inner.pool.get().await.map_err(|error| unavailable(link::pool_error(error)))?;
    command.query_async::<i64>(&mut connection).await.map_err(unavailable)?;
    Ok(())
}

/// A redemption that the ledger may not have yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The redemption.
    pub redemption: Redemption,
    /// The application's own JSON object, as text.
    pub metadata: Option<String>,
}

/// Looks for a redemption in what the ledger does not have yet.
///
/// # Errors
/// [`GateError::Unavailable`] when Redis does not answer.
pub async fn find_redemption(
    gate: &Gate,
    namespace: &Namespace,
    id: RedemptionId,
) -> Result<Option<Found>, GateError> {
    let unavailable = |cause| GateError::Unavailable { doing: "reading an outbox", cause };
    let partition = gate.keys().partition_of(namespace);
    let key = gate.keys().outbox(partition);
    // An outbox may be long when the ledger is behind, and others need the pool.
    let _turn = gate.inner.scans.acquire().await;
    let mut connection =
        gate.inner.pool.get().await.map_err(|error| unavailable(link::pool_error(error)))?;
    // Backwards: whoever asks has most often just redeemed.
    let mut end = "+".to_owned();
    loop {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(&key).arg(&end).arg("-").arg("COUNT").arg(1000);
        let page: StreamRangeReply =
            command.query_async(&mut connection).await.map_err(unavailable)?;
        let Some(last) = page.ids.last() else { return Ok(None) };
        end = format!("({}", last.id);
        for id_and_fields in &page.ids {
            let read = decode(partition, id_and_fields).ok().and_then(|read| read.entry.ok());
            let Some(Entry {
                namespace: ns,
                change: Change::Redeemed { redemption, metadata, .. },
                ..
            }) = read
            else {
                continue;
            };
            if redemption.id == id && ns == *namespace {
                return Ok(Some(Found { redemption, metadata }));
            }
        }
    }
}

/// An id that is not `<epoch>-<seq>` can not come from Redis; anything else that is wrong is the entry's own fault.
fn decode(partition: Partition, stream_id: &StreamId) -> Result<Read, RedisError> {
    let cursor: Cursor = stream_id
        .id
        .parse()
        .map_err(|error: Malformed| RedisError::from(std::io::Error::other(error)))?;
    let text = |value: &redis::Value| redis::from_redis_value_ref::<String>(value).ok();
    let fields: Option<_> =
        stream_id.map.iter().map(|(name, value)| Some((name.clone(), text(value)?))).collect();
    Ok(match fields.map(Fields) {
        Some(fields) => Read { cursor, entry: entry(partition, cursor, &fields), fields },
        None => {
            let shown = HashMap::from([("unreadable".to_owned(), format!("{:?}", stream_id.map))]);
            let entry = Err(Malformed("its fields are not text".to_owned()));
            Read { cursor, entry, fields: Fields(shown) }
        }
    })
}

/// The invites that an entry lists, each as id and code, with all else in common.
fn invites_of_batch(namespace: &Namespace, fields: &Fields) -> Result<Vec<Invite>, Malformed> {
    let words: Vec<_> = fields.text("codes")?.split(' ').collect();
    let (pairs, rest) = words.as_chunks::<2>();
    let Some(([id, code], others)) = pairs.split_first().filter(|_| rest.is_empty()) else {
        return Err(Malformed("codes is not pairs of id and code".to_owned()));
    };
    let first = fields.invite_like_others(namespace, id.parse()?, stored_code(code)?)?;
    let like_first = |[id, code]: &[&str; 2]| {
        Ok(Invite { id: id.parse()?, code: stored_code(code)?, ..first.clone() })
    };
    let others = others.iter().map(like_first).collect::<Result<Vec<_>, Malformed>>()?;
    Ok(std::iter::once(first).chain(others).collect())
}

fn entry(partition: Partition, cursor: Cursor, fields: &Fields) -> Result<Entry, Malformed> {
    let namespace = fields.parsed("ns", Namespace::parse)?;
    let at = fields.time("at")?;
    let change = match fields.text("type")? {
        "redeemed" => Change::Redeemed {
            redemption: Redemption {
                id: fields.parsed("id", str::parse)?,
                namespace: namespace.clone(),
                invite: fields.parsed("invite", str::parse)?,
                code: fields.parsed("code", stored_code)?,
                group: fields.parsed("group", Group::parse)?,
                user: fields.parsed("user", UserId::parse)?,
                ordinal: fields.number("ordinal")?,
                remaining: fields.optional("remaining", str::parse)?,
                redeemed_at: at,
                position: Position { partition, cursor },
            },
            request: fields.text("request")?.to_owned(),
            uses: fields.number("uses")?,
            rule: fields.parsed("rule", MembershipRule::parse)?,
            metadata: fields.0.get("metadata").cloned(),
        },
        "invite_created" => Change::Invite {
            action: InviteAction::Created,
            invite: fields.invite(&namespace)?,
            holds_code: true,
            displaced: fields.optional("displaced", str::parse)?,
        },
        "invite_changed" => Change::Invite {
            action: InviteAction::Changed,
            invite: fields.invite(&namespace)?,
            holds_code: fields.text("holds_code")? == "1",
            displaced: None,
        },
        "invites_created" => Change::InvitesCreated {
            batch: fields.parsed("batch", str::parse)?,
            invites: invites_of_batch(&namespace, fields)?,
        },
        "invite_deleted" => Change::InviteDeleted { id: fields.parsed("id", str::parse)? },
        "joined" => Change::Joined {
            user: fields.parsed("user", UserId::parse)?,
            group: fields.parsed("group", Group::parse)?,
            rule: fields.parsed("rule", MembershipRule::parse)?,
        },
        "left" => Change::Left {
            user: fields.parsed("user", UserId::parse)?,
            group: fields.parsed("group", Group::parse)?,
        },
        "namespace" => Change::Namespace(fields.settings()?),
        other => {
            return Err(Malformed(format!("type is {other:?}, which this version does not know")));
        }
    };
    Ok(Entry { cursor, namespace, at, actor: fields.text("actor")?.to_owned(), change })
}
