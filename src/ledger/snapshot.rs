//! A partition read whole, as it was at one moment: what a rebuild of the gate is made from.

use std::{collections::BTreeMap, iter::Peekable, slice::IterMut};

use uuid::Uuid;

use super::{
    Ledger, LedgerError,
    columns::{CAMPAIGN, INVITE, MEMBER, NAMESPACE, REDEMPTION, RESERVATION},
    sql::{Row, Tx, sql},
};
use crate::domain::{
    Campaign, CampaignName, Cursor, Given, Group, Invite, InviteId, MembershipRule, Moves,
    Namespace, Partition, Reservation, Settings, UserId,
    member::{Remembered, UserRecord},
};

/// How long ago a deadline must be for nobody's clock to be behind it, in milliseconds.
const RUN_OUT_MS: u64 = 3_600_000;

/// One read transaction over a partition.
pub struct Snapshot {
    tx: Tx,
    partition: Partition,
    next: Next,
    rules: BTreeMap<Namespace, MembershipRule>,
}

enum Next {
    Namespaces,
    Campaigns,
    /// Invites after this id.
    Invites(Uuid),
    /// What was moved of invites after this id.
    Moves(Uuid),
    /// What is held, after this invite and user.
    Reservations(Uuid, String),
    /// Users after this one.
    Users(Option<(String, String)>),
    Done,
}

/// A part of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Page {
    /// All namespaces of the partition.
    Namespaces(Vec<(Namespace, Settings)>),
    /// Some invites, and whether their codes stand for them.
    Invites(Vec<(Invite, bool)>),
    /// What was moved between shards, of some invites.
    Moves(Vec<Moves>),
    /// All campaigns of the partition.
    Campaigns(Vec<Campaign>),
    /// Some uses that are held, each with the campaign of its invite.
    Reservations(Vec<(Reservation, Option<CampaignName>)>),
    /// Some users, each whole.
    Users(Vec<UserRecord>),
}

impl Ledger {
    /// Begins to read a partition as it is now, whatever is written meanwhile. Few are read at a time; the others wait
    /// here.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn snapshot(&self, partition: Partition) -> Result<Snapshot, LedgerError> {
        let tx =
            self.snapshots.begin_snapshot().await.map_err(LedgerError::of("reading a snapshot"))?;
        Ok(Snapshot { tx, partition, next: Next::Namespaces, rules: BTreeMap::new() })
    }
}

impl Snapshot {
    /// The next part, of at most so many invites or users; nothing at the end.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn next_page(&mut self, limit: u32) -> Result<Option<Page>, LedgerError> {
        loop {
            let page = match &self.next {
                Next::Namespaces => Some(self.namespaces().await?),
                Next::Campaigns => self.campaigns().await?,
                Next::Invites(after) => self.invites(*after, limit).await?,
                Next::Moves(after) => self.moves(*after, limit).await?,
                Next::Reservations(invite, user) => {
                    let after = (*invite, user.clone());
                    self.reservations(after, limit).await?
                }
                Next::Users(after) => {
                    let after = after.clone();
                    self.users(after, limit).await?
                }
                Next::Done => return Ok(None),
            };
            if page.is_some() {
                return Ok(page);
            }
        }
    }

    async fn namespaces(&mut self) -> Result<Page, LedgerError> {
        let rows =
            sql(format!("SELECT {NAMESPACE} FROM namespaces WHERE partition = $1 ORDER BY name"))
                .bind(self.partition.0)
                .fetch_all(&mut self.tx)
                .await
                .map_err(LedgerError::of("reading a snapshot"))?;
        let mut namespaces = Vec::with_capacity(rows.len());
        for row in &rows {
            let (name, settings) = (row.parsed("name", Namespace::stored)?, row.settings()?);
            self.rules.insert(name.clone(), settings.membership);
            namespaces.push((name, settings));
        }
        self.next = Next::Campaigns;
        Ok(Page::Namespaces(namespaces))
    }

    async fn campaigns(&mut self) -> Result<Option<Page>, LedgerError> {
        let rows = sql(format!(
            "SELECT {CAMPAIGN} FROM campaigns WHERE partition = $1 ORDER BY namespace, name"
        ))
        .bind(self.partition.0)
        .fetch_all(&mut self.tx)
        .await
        .map_err(LedgerError::of("reading a snapshot"))?;
        let campaigns = rows.iter().map(Row::campaign).collect::<Result<Vec<_>, _>>()?;
        self.next = Next::Invites(Uuid::nil());
        Ok((!campaigns.is_empty()).then_some(Page::Campaigns(campaigns)))
    }

    /// What is held, the latest of each user and invite, but for what has long run out. The gate may have given away what had run out a moment ago, so of
    /// each invite no more is loaded than it has uses: a clock that is behind must not revive the rest.
    async fn reservations(
        &mut self,
        (invite, user): (Uuid, String),
        limit: u32,
    ) -> Result<Option<Page>, LedgerError> {
        // By the clock of Redis, as far as the ledger has seen it.
        let latest = sql(
            "SELECT at FROM audit_log WHERE partition = $1 ORDER BY epoch DESC, seq DESC LIMIT 1",
        )
        .bind(self.partition.0)
        .fetch_optional(&mut self.tx)
        .await
        .map_err(LedgerError::of("reading a snapshot"))?;
        let latest = latest.map(|row| row.get::<i64>("at")).transpose()?.unwrap_or_default();
        let columns: Vec<_> =
            RESERVATION.split(", ").map(|column| format!("reservations.{column}")).collect();
        let rows = sql(format!(
            "SELECT {RESERVATION}, campaign FROM (
                 SELECT {}, invites.campaign, invites.max_uses - invites.uses AS free, ROW_NUMBER() OVER (
                     PARTITION BY reservations.invite ORDER BY reservations.held_until DESC, reservations.user_id
                 ) AS place
                 FROM reservations JOIN invites ON invites.id = reservations.invite
                 WHERE reservations.partition = $1 AND reservations.state = 'held' AND invites.holds_code
                     AND reservations.held_until > $5 - {RUN_OUT_MS}
                     AND NOT EXISTS (
                         SELECT 1 FROM reservations AS later WHERE later.invite = reservations.invite
                             AND later.user_id = reservations.user_id AND later.state = 'held'
                             AND later.held_until > reservations.held_until)
             ) AS held WHERE (free IS NULL OR place <= free) AND (invite, user_id) > ($2, $3)
             ORDER BY invite, user_id LIMIT $4",
            columns.join(", ")
        ))
        .bind(self.partition.0)
        .bind(invite)
        .bind(user)
        .bind(limit)
        .bind(latest)
        .fetch_all(&mut self.tx)
        .await
        .map_err(LedgerError::of("reading a snapshot"))?;
        let held = rows
            .iter()
            .map(|row| Ok((row.reservation()?, row.maybe_parsed("campaign", CampaignName::parse)?)))
            .collect::<Result<Vec<(Reservation, _)>, LedgerError>>()?;
        self.next = held.last().map_or(Next::Users(None), |(last, _)| {
            Next::Reservations(last.invite.0, last.user.to_string())
        });
        Ok((!held.is_empty()).then_some(Page::Reservations(held)))
    }

    async fn invites(&mut self, after: Uuid, limit: u32) -> Result<Option<Page>, LedgerError> {
        let rows = sql(format!(
            "SELECT {INVITE} FROM invites WHERE partition = $1 AND id > $2 ORDER BY id LIMIT $3"
        ))
        .bind(self.partition.0)
        .bind(after)
        .bind(limit)
        .fetch_all(&mut self.tx)
        .await
        .map_err(LedgerError::of("reading a snapshot"))?;
        let invites: Vec<_> = rows
            .iter()
            .map(|row| Ok((row.invite()?, row.get("holds_code")?)))
            .collect::<Result<_, LedgerError>>()?;
        let last: Option<&(Invite, bool)> = invites.last();
        self.next =
            last.map_or_else(|| Next::Moves(Uuid::nil()), |(invite, _)| Next::Invites(invite.id.0));
        Ok((!invites.is_empty()).then_some(Page::Invites(invites)))
    }

    async fn moves(&mut self, after: Uuid, limit: u32) -> Result<Option<Page>, LedgerError> {
        let rows = sql("SELECT invite, namespace, participant, given, given_epoch, given_seq, taken FROM moves
             WHERE partition = $1 AND invite IN (
                 SELECT DISTINCT invite FROM moves WHERE partition = $1 AND invite > $2 ORDER BY invite LIMIT $3)
             ORDER BY invite, participant")
        .bind(self.partition.0)
        .bind(after)
        .bind(limit)
        .fetch_all(&mut self.tx)
        .await
        .map_err(LedgerError::of("reading a snapshot"))?;
        let mut all: Vec<Moves> = Vec::new();
        for row in &rows {
            let invite = InviteId(row.id("invite")?);
            if all.last().is_none_or(|last| last.invite != invite) {
                let namespace = row.parsed("namespace", Namespace::stored)?;
                let (given, taken) = (BTreeMap::new(), BTreeMap::new());
                all.push(Moves { namespace, invite, given, taken });
            }
            let Some(moves) = all.last_mut() else { continue };
            let participant = row.small("participant")?;
            let (amount, taken) = (row.number("given")?, row.number("taken")?);
            if amount > 0 {
                let at =
                    Cursor { epoch: row.number("given_epoch")?, seq: row.number("given_seq")? };
                moves.given.insert(participant, Given { amount, at });
            }
            if taken > 0 {
                moves.taken.insert(participant, taken);
            }
        }
        self.next = all.last().map_or_else(
            || Next::Reservations(Uuid::nil(), String::new()),
            |last| Next::Moves(last.invite.0),
        );
        Ok((!all.is_empty()).then_some(Page::Moves(all)))
    }

    async fn users(
        &mut self,
        after: Option<(String, String)>,
        limit: u32,
    ) -> Result<Option<Page>, LedgerError> {
        let mut users = self.next_users(after.as_ref(), limit).await?;
        let Some(last) = users.last().map(name_of) else {
            self.next = Next::Done;
            return Ok(None);
        };
        let last = (last.0.to_owned(), last.1.to_owned());
        // Both come in the order of the users, so that each finds its own by going on from the one before.
        let mut of_users = users.iter_mut().peekable();
        for row in
            self.rows_of((MEMBER, "members", "members_partition"), after.as_ref(), &last).await?
        {
            if let Some(user) = owner(&mut of_users, &row)? {
                let direct = row.maybe_id("redemption")?.is_none().then(|| row.time("joined_at"));
                let membership =
                    (row.parsed("grp", Group::parse)?, row.cursor()?, direct.transpose()?);
                user.memberships.push(membership);
            }
        }
        let mut of_users = users.iter_mut().peekable();
        for row in self
            .rows_of((REDEMPTION, "redemptions", "redemptions_partition"), after.as_ref(), &last)
            .await?
        {
            if let Some(user) = owner(&mut of_users, &row)? {
                let counts = row.maybe_text("exclusive_key")?.is_some();
                user.redemptions.push(Remembered {
                    redemption: row.redemption()?,
                    request: row.text("request")?,
                    counts,
                    rolled_back_at: row.maybe_time("rolled_back_at")?,
                });
            }
        }
        self.next = Next::Users(Some(last));
        Ok(Some(Page::Users(users)))
    }

    /// The users that come next, with nothing about them yet.
    async fn next_users(
        &mut self,
        after: Option<&(String, String)>,
        limit: u32,
    ) -> Result<Vec<UserRecord>, LedgerError> {
        let members_partition = self.tx.dialect().indexed_by("members_partition");
        let redemptions_partition = self.tx.dialect().indexed_by("redemptions_partition");
        // Who left every group is still remembered by what was answered.
        let found = sql(format!(
            "SELECT namespace, user_id FROM (
                 SELECT namespace, user_id FROM (
                     SELECT DISTINCT namespace, user_id FROM members {members_partition}
                     WHERE partition = $1 AND (namespace, user_id) > ($2, $3)
                     ORDER BY namespace, user_id LIMIT $4) AS members_found
                 UNION
                 SELECT namespace, user_id FROM (
                     SELECT DISTINCT namespace, user_id FROM redemptions {redemptions_partition}
                     WHERE partition = $1 AND (namespace, user_id) > ($2, $3)
                     ORDER BY namespace, user_id LIMIT $4) AS redemptions_found
             ) AS found ORDER BY namespace, user_id LIMIT $4",
        ))
        .bind(self.partition.0)
        .bind(after.map_or("", |(namespace, _)| namespace))
        .bind(after.map_or("", |(_, user)| user))
        .bind(limit)
        .fetch_all(&mut self.tx)
        .await
        .map_err(LedgerError::of("reading a snapshot"))?;
        let user = |row: &Row| {
            let namespace = row.parsed("namespace", Namespace::stored)?;
            let rule = self.rules.get(&namespace).copied().ok_or_else(|| {
                LedgerError::Corrupt(format!(
                    "namespace {namespace} has members but does not exist"
                ))
            })?;
            Ok(UserRecord {
                namespace,
                user: row.parsed("user_id", UserId::parse)?,
                rule,
                memberships: Vec::new(),
                redemptions: Vec::new(),
            })
        };
        found.iter().map(user).collect()
    }

    /// The rows of a table that belong to the users after one and up to another, by user, the oldest first.
    async fn rows_of(
        &mut self,
        (columns, table, index): (&str, &str, &'static str),
        after: Option<&(String, String)>,
        last: &(String, String),
    ) -> Result<Vec<Row>, LedgerError> {
        let indexed_by = self.tx.dialect().indexed_by(index);
        let (first, begin) = after.map_or(("", ""), |(namespace, user)| (namespace, user));
        let namespaces = self.rules.keys().map(Namespace::as_str);
        let namespaces = namespaces.filter(|name| (first..=last.0.as_str()).contains(name));
        let mut rows = Vec::new();
        // One namespace after the other: between two pairs of namespace and user PostgreSQL would read the index from
        // the partition's beginning each time.
        for namespace in namespaces {
            let begin = if namespace == first { begin } else { "" };
            let mut query = sql(format!(
                "SELECT {columns} FROM {table} {indexed_by} WHERE partition = $1 AND namespace = $2 AND user_id > $3",
            ))
            .bind(self.partition.0)
            .bind(namespace)
            .bind(begin);
            if namespace == last.0 {
                query.push(" AND user_id <= ").push_bind(last.1.as_str());
            }
            query.push(" ORDER BY user_id, epoch, seq");
            let found = query.fetch_all(&mut self.tx).await;
            rows.extend(found.map_err(LedgerError::of("reading a snapshot"))?);
        }
        Ok(rows)
    }
}

fn name_of(user: &UserRecord) -> (&str, &str) {
    (user.namespace.as_str(), user.user.as_str())
}

/// The user whose row this is; those before have no more.
fn owner<'a>(
    users: &'a mut Peekable<IterMut<'_, UserRecord>>,
    row: &Row,
) -> Result<Option<&'a mut UserRecord>, LedgerError> {
    let name: (&str, &str) = (row.get("namespace")?, row.get("user_id")?);
    while users.next_if(|user| name_of(user) < name).is_some() {}
    Ok(users.peek_mut().map(|user| &mut **user).filter(|user| name_of(user) == name))
}
