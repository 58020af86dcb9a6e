//! The outbox: what the scripts wrote down for the ledger, one stream per partition.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use redis::{RedisError, Value, aio::MultiplexedConnection};

use super::{
    Gate, GateError, failure,
    fields::{Fields, millis, stored_code},
    script::Call,
    servers::Server,
    survey::{self, Survey},
};
use crate::domain::{
    CampaignName, Change, Code, Cursor, Entry, Group, Invite, InviteId, MembershipRule, Millis,
    Namespace, Partition, Position, Redemption, RedemptionId, Reservation, ReservationId, UserId,
    change::{InviteAction, MembershipLeft, Moved, RolledBack},
    name::Malformed,
    reservation::Held,
};

/// One change as it stands in the stream.
#[derive(Debug, Clone)]
pub struct Read {
    /// Its place.
    pub cursor: Cursor,
    /// What it says, or why nobody understands it: then it belongs among the dead letters.
    pub entry: Result<Entry, Malformed>,
    /// All fields of the stream's entry, which several redemptions may share.
    fields: Arc<Fields>,
}

impl Read {
    /// The fields that speak of it, as [`decode_text`] reads them: a JSON object of text.
    #[must_use]
    pub fn text(&self) -> String {
        let own = |name: &str| line_of(name).is_none_or(|(cursor, _)| cursor == self.cursor);
        let fields: BTreeMap<_, _> = self.fields.0.iter().filter(|(name, _)| own(name)).collect();
        serde_json::to_string(&fields).unwrap_or_else(|_| format!("{fields:?}"))
    }
}

/// What a change says of which only the text was kept.
///
/// # Errors
/// [`Malformed`] when nobody understands it.
pub fn decode_text(partition: Partition, cursor: Cursor, text: &str) -> Result<Entry, Malformed> {
    let fields = serde_json::from_str(text)
        .map_err(|error| Malformed(format!("it is no JSON object of text: {error}")))?;
    let mut changes = changes(partition, cursor, Fields(fields));
    match changes.pop() {
        Some(change) if changes.is_empty() && change.cursor == cursor => change.entry,
        _ => Err(Malformed("it does not speak of one change".to_owned())),
    }
}

/// Entries that are read in one go; one may hold as many redemptions as a call has.
const PAGE: usize = 100;

/// Reads one partition's outbox over a connection of its own, since a read that finds nothing waits.
pub struct Reader {
    gate: Gate,
    partition: Partition,
    server: Arc<Server>,
    key: String,
    survey: Call,
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
        let servers = &gate.inner.servers;
        let server = servers.of(partition).await?;
        let connection = server.dedicated(longest).await.inspect_err(|_| servers.doubt())?;
        let keys = gate.keys();
        let survey = survey::call(keys, partition);
        let key = keys.outbox(partition);
        Ok(Self { gate: gate.clone(), partition, server, key, survey, connection })
    }

    /// Whether this is still the server that serves the partition, as far as is known.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.gate.inner.servers.is_of(self.partition, &self.server)
    }

    /// The changes after `cursor`, waiting up to `block` for the first: all there are, or at least `count`. An entry of
    /// the stream is read whole, so there may be more, and the first ones may be known already.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn read(
        &mut self,
        cursor: Cursor,
        count: usize,
        block: Duration,
    ) -> Result<Vec<Read>, RedisError> {
        let (mut changes, mut more) = self.page(cursor, count.min(PAGE), block).await?;
        while more
            && changes.len() < count
            && let Some(last) = changes.last().map(|read| read.cursor)
        {
            let page = self.page(last, PAGE, Duration::ZERO).await?;
            changes.extend(page.0);
            more = page.1;
        }
        Ok(changes)
    }

    /// As [`survey::run`], of the server that was read from.
    ///
    /// # Errors
    /// As [`survey::run`].
    pub async fn survey(&mut self) -> Result<Survey, GateError> {
        let reply = self.survey.send(&mut self.connection).await;
        survey::read(&reply.map_err(|cause| failure::once(&self.survey, cause))?)
    }

    /// Removes the changes up to and including `cursor`. Ids name their epoch, so that a late call of a leader that was
    /// replaced can not touch a newer one's entries; an entry goes with the last of its changes.
    ///
    /// # Errors
    /// [`GateError::Unavailable`] when Redis does not answer; they stay, and are removed by a later call.
    pub async fn trim(&mut self, cursor: Cursor) -> Result<(), GateError> {
        let mut command = redis::cmd("XTRIM");
        command.arg(&self.key).arg("MINID").arg(cursor.next().to_string());
        command
            .query_async::<i64>(&mut self.connection)
            .await
            .map_err(|cause| GateError::Unavailable { doing: "trimming an outbox", cause })?;
        Ok(())
    }

    /// The changes of at most `count` entries, and whether there were as many.
    async fn page(
        &mut self,
        cursor: Cursor,
        count: usize,
        block: Duration,
    ) -> Result<(Vec<Read>, bool), RedisError> {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(count);
        if !block.is_zero() {
            command.arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
        }
        command.arg("STREAMS").arg(&self.key).arg(cursor.to_string());
        let reply: Value = command.query_async(&mut self.connection).await?;
        // One stream: its name and its entries.
        let entries = match reply {
            Value::Nil => return Ok((Vec::new(), false)),
            Value::Array(streams) => match streams.into_iter().next() {
                Some(Value::Array(stream)) => stream.into_iter().nth(1),
                _ => None,
            },
            _ => None,
        };
        let Some(Value::Array(entries)) = entries else { return Err(unreadable()) };
        Ok((decode(self.partition, &entries)?, entries.len() == count))
    }
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
    find_latest(gate, namespace, |change| match change {
        Change::Redeemed { redemption, metadata, .. } if redemption.id == id => {
            Some(Found { redemption, metadata })
        }
        _ => None,
    })
    .await
}

/// Looks for a reservation in what the ledger does not have yet, and for what became of it.
///
/// # Errors
/// [`GateError::Unavailable`] when Redis does not answer.
pub async fn find_reservation(
    gate: &Gate,
    namespace: &Namespace,
    id: ReservationId,
) -> Result<Option<(Reservation, Held)>, GateError> {
    find_latest(gate, namespace, |change| {
        let (reservation, held) = match change {
            Change::Reserved { reservation, .. } => (reservation, Held::Held),
            Change::Released { reservation, .. } => (reservation, Held::Released),
            Change::Redeemed { redemption, reservation: Some(reservation), .. } => {
                (reservation, Held::Confirmed(redemption.id))
            }
            _ => return None,
        };
        (reservation.id == id).then_some((reservation, held))
    })
    .await
}

/// The latest change of a namespace that the ledger does not have yet and that is what is looked for.
async fn find_latest<T>(
    gate: &Gate,
    namespace: &Namespace,
    pick: impl Fn(Change) -> Option<T>,
) -> Result<Option<T>, GateError> {
    let unavailable = |cause| GateError::Unavailable { doing: "reading an outbox", cause };
    let partition = gate.keys().partition_of(namespace);
    let key = gate.keys().outbox(partition);
    // An outbox may be long when the ledger is behind, and others need the pool.
    let _turn = gate.inner.scans.acquire().await;
    let mut connection = gate.pooled(partition).await.map_err(unavailable)?;
    // Backwards: whoever asks has most often just acted.
    let mut end = "+".to_owned();
    loop {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(&key).arg(&end).arg("-").arg("COUNT").arg(PAGE);
        let page: Value = command.query_async(&mut connection).await.map_err(unavailable)?;
        let Value::Array(page) = page else { return Err(unavailable(unreadable())) };
        let mut page = decode(partition, &page).map_err(unavailable)?;
        page.sort_by_key(|read| std::cmp::Reverse(read.cursor));
        let Some(oldest) = page.last().map(|read| read.cursor) else { return Ok(None) };
        end = format!("({oldest}");
        let of_it = |entry: Entry| (entry.namespace == *namespace).then_some(entry.change);
        let mut changes = page.into_iter().filter_map(|read| read.entry.ok().and_then(of_it));
        if let Some(found) = changes.find_map(&pick) {
            return Ok(Some(found));
        }
    }
}

/// The changes of a range of the stream. An id that is not `<epoch>-<seq>` can not come from Redis; anything else that is
/// wrong is the entry's own fault.
fn decode(partition: Partition, entries: &[Value]) -> Result<Vec<Read>, RedisError> {
    let mut all = Vec::with_capacity(entries.len());
    for entry in entries {
        let Value::Array(entry) = entry else { return Err(unreadable()) };
        let (Some(Value::BulkString(id)), Some(Value::Array(fields))) =
            (entry.first(), entry.get(1))
        else {
            return Err(unreadable());
        };
        let cursor: Option<Cursor> = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
        let cursor = cursor.ok_or_else(unreadable)?;
        match Fields::from_flat(fields) {
            Ok(fields) => all.extend(changes(partition, cursor, fields)),
            Err(error) => {
                let shown = HashMap::from([("unreadable".to_owned(), format!("{fields:?}"))]);
                all.push(Read { cursor, entry: Err(error), fields: Arc::new(Fields(shown)) });
            }
        }
    }
    Ok(all)
}

fn unreadable() -> RedisError {
    RedisError::from(std::io::Error::other("the reply is no range of a stream"))
}

/// The changes of one entry of the stream: the redemptions of a batch, each in a field that is named by its place, or
/// whatever else alone.
fn changes(partition: Partition, cursor: Cursor, fields: Fields) -> Vec<Read> {
    let mut places: Vec<Cursor> = fields
        .0
        .keys()
        .filter_map(|name| line_of(name))
        .filter_map(|(place, what)| what.is_empty().then_some(place))
        .collect();
    let fields = Arc::new(fields);
    let alone = |entry| vec![Read { cursor, entry, fields: fields.clone() }];
    if fields.0.get("type").map(String::as_str) != Some("redeemed") {
        return alone(entry(cursor, &fields));
    }
    let shared = match Shared::read(&fields) {
        Ok(shared) if places.contains(&cursor) => shared,
        Ok(_) => return alone(Err(Malformed(format!("{cursor} is missing")))),
        Err(error) => return alone(Err(error)),
    };
    places.sort_unstable();
    let change = |place: &Cursor| Read {
        cursor: *place,
        entry: shared.redemption(partition, *place, &fields),
        fields: fields.clone(),
    };
    places.iter().map(change).collect()
}

/// The place that a field speaks of, and what it says of it: nothing for the redemption itself.
fn line_of(name: &str) -> Option<(Cursor, &str)> {
    if !name.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let (place, what) = name.split_once(':').unwrap_or((name, ""));
    Some((place.parse().ok()?, what))
}

/// What the redemptions of one entry have in common.
struct Shared {
    namespace: Namespace,
    actor: String,
    at: Millis,
    invite: InviteId,
    code: Code,
    group: Group,
    rule: MembershipRule,
    campaign: Option<CampaignName>,
}

impl Shared {
    fn read(fields: &Fields) -> Result<Self, Malformed> {
        Ok(Self {
            namespace: fields.parsed("ns", Namespace::stored)?,
            actor: fields.text("actor")?.to_owned(),
            at: fields.time("at")?,
            invite: fields.parsed("invite", str::parse)?,
            code: fields.parsed("code", stored_code)?,
            group: fields.parsed("group", Group::parse)?,
            rule: fields.parsed("rule", MembershipRule::parse)?,
            campaign: fields.optional("campaign", CampaignName::parse)?,
        })
    }

    /// Reads `<redemption> <ordinal> <uses> <remaining or -> <request> <user>`.
    fn redemption(
        &self,
        partition: Partition,
        cursor: Cursor,
        fields: &Fields,
    ) -> Result<Entry, Malformed> {
        let name = cursor.to_string();
        let line = fields.text(&name)?;
        let short = || Malformed(format!("{name} is {line:?}, which is too short"));
        let wrong = |what: &str| Malformed(format!("{what} of {name} is wrong: {line:?}"));
        let mut words = line.splitn(6, ' ');
        let mut next = || words.next().ok_or_else(short);
        let id = next()?.parse().map_err(|_| wrong("the id"))?;
        let ordinal = next()?.parse().map_err(|_| wrong("the ordinal"))?;
        let uses = next()?.parse().map_err(|_| wrong("uses"))?;
        let remaining = match next()? {
            "-" => None,
            number => Some(number.parse().map_err(|_| wrong("remaining"))?),
        };
        let request = next()?.to_owned();
        let user = UserId::parse(next()?)?;
        let redemption = Redemption {
            id,
            namespace: self.namespace.clone(),
            invite: self.invite,
            code: self.code.clone(),
            group: self.group.clone(),
            user,
            ordinal,
            remaining,
            redeemed_at: self.at,
            position: Position { partition, cursor },
        };
        let metadata = fields.0.get(&format!("{name}:metadata")).cloned();
        let reservation = fields.optional(&format!("{name}:until"), millis)?.map(|until| {
            let Redemption { namespace, invite, code, user, .. } = &redemption;
            Reservation::new(namespace, *invite, code, user, until)
        });
        let campaign = match &self.campaign {
            Some(campaign) => Some((campaign.clone(), fields.number(&format!("{name}:campaign"))?)),
            None => None,
        };
        Ok(Entry {
            cursor,
            namespace: self.namespace.clone(),
            at: self.at,
            actor: self.actor.clone(),
            change: Change::Redeemed {
                redemption,
                request,
                uses,
                rule: self.rule,
                metadata,
                campaign,
                reservation,
            },
        })
    }
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

/// A reservation, and the campaign of its invite.
fn reservation(
    namespace: &Namespace,
    fields: &Fields,
) -> Result<(Reservation, Option<CampaignName>), Malformed> {
    let reservation = Reservation::new(
        namespace,
        fields.parsed("invite", str::parse)?,
        &fields.parsed("code", stored_code)?,
        &fields.parsed("user", UserId::parse)?,
        fields.time("until")?,
    );
    Ok((reservation, fields.optional("campaign", CampaignName::parse)?))
}

fn moved(fields: &Fields, moved: Moved) -> Result<Change, Malformed> {
    Ok(Change::Moved {
        invite: fields.parsed("invite", str::parse)?,
        campaign: fields.unless_empty("campaign", CampaignName::parse)?,
        participant: fields.parsed("participant", str::parse::<u16>)?,
        moved,
        max_uses: fields.number("max_uses")?,
    })
}

fn rolled_back(fields: &Fields) -> Result<RolledBack, Malformed> {
    let membership = match fields.text("membership")? {
        "" => MembershipLeft::Untouched,
        "ended" => MembershipLeft::Ended,
        text => {
            let words: Vec<_> = text.split(' ').collect();
            let [id, at, since] = words[..] else {
                return Err(Malformed(format!("membership is {text:?}")));
            };
            MembershipLeft::By(id.parse()?, at.parse()?, millis(since)?)
        }
    };
    let campaign = fields.optional("campaign", CampaignName::parse)?;
    Ok(RolledBack {
        redemption: fields.parsed("redemption", str::parse)?,
        reason: fields.text("reason")?.to_owned(),
        invite: fields.parsed("invite", str::parse)?,
        uses: fields.number("uses")?,
        granted: fields.number("granted")?,
        reopened: fields.text("reopened")? == "1",
        campaign: match campaign {
            Some(name) => Some((name, fields.number("campaign_uses")?)),
            None => None,
        },
        user: fields.parsed("user", UserId::parse)?,
        group: fields.parsed("group", Group::parse)?,
        membership,
    })
}

fn entry(cursor: Cursor, fields: &Fields) -> Result<Entry, Malformed> {
    let namespace = fields.parsed("ns", Namespace::stored)?;
    let at = fields.time("at")?;
    let change = match fields.text("type")? {
        "invite_created" => Change::Invite {
            action: InviteAction::Created,
            invite: fields.invite(&namespace)?,
            holds_code: true,
            displaced: fields.optional("displaced", str::parse)?,
        },
        "invite_imported" => Change::Invite {
            action: InviteAction::Imported,
            invite: fields.invite(&namespace)?,
            holds_code: true,
            displaced: None,
        },
        "invite_changed" => Change::Invite {
            action: InviteAction::Changed,
            invite: fields.invite(&namespace)?,
            holds_code: fields.text("holds_code")? == "1",
            displaced: None,
        },
        "invite_copied" => Change::Invite {
            action: InviteAction::Copied,
            invite: fields.invite(&namespace)?,
            holds_code: fields.text("holds_code")? == "1",
            displaced: fields.optional("displaced", str::parse)?,
        },
        "uses_given" => moved(fields, Moved::Given(fields.number("given")?))?,
        "uses_taken" => moved(fields, Moved::Taken(fields.number("taken")?))?,
        "invites_created" => Change::InvitesCreated {
            batch: fields.parsed("batch", str::parse)?,
            invites: invites_of_batch(&namespace, fields)?,
        },
        "invite_deleted" => Change::InviteDeleted { id: fields.parsed("id", str::parse)? },
        "joined" => Change::Joined {
            user: fields.parsed("user", UserId::parse)?,
            group: fields.parsed("group", Group::parse)?,
            rule: fields.parsed("rule", MembershipRule::parse)?,
            since: fields.optional("joined_at", millis)?.unwrap_or(at),
        },
        "left" => Change::Left {
            user: fields.parsed("user", UserId::parse)?,
            group: fields.parsed("group", Group::parse)?,
        },
        "reserved" => {
            let (reservation, campaign) = reservation(&namespace, fields)?;
            Change::Reserved { reservation, campaign }
        }
        "released" => {
            let (reservation, campaign) = reservation(&namespace, fields)?;
            Change::Released { reservation, campaign }
        }
        "erased" => Change::Erased {
            user: fields.parsed("user", UserId::parse)?,
            alias: fields.parsed("alias", UserId::parse)?,
            invites: fields
                .text("invites")?
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, Malformed>>()?,
        },
        "rolled_back" => Change::RolledBack(rolled_back(fields)?),
        "campaign" => {
            let name = fields.parsed("name", CampaignName::parse)?;
            Change::Campaign(fields.campaign(&namespace, name)?)
        }
        "campaign_copied" => {
            let name = fields.parsed("name", CampaignName::parse)?;
            Change::CampaignCopied(fields.campaign(&namespace, name)?)
        }
        "namespace" => Change::Namespace(fields.settings()?),
        "namespace_copied" => Change::NamespaceCopied(fields.settings()?),
        other => {
            return Err(Malformed(format!("type is {other:?}, which this version does not know")));
        }
    };
    Ok(Entry { cursor, namespace, at, actor: fields.text("actor")?.to_owned(), change })
}
