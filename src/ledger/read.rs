//! What the API reads: single rows, and lists by keyset, which stay stable while rows are added.

use std::collections::HashMap;

use super::{
    Ledger, LedgerError,
    columns::{CAMPAIGN, INVITE, MEMBER, NAMESPACE, REDEMPTION, RESERVATION},
    sql::{Query, Row, sql},
};
use crate::domain::{
    BatchId, Campaign, CampaignName, Code, Cursor, Group, InviteId, InviteState, Member, Millis,
    Namespace, Partition, Redemption, RedemptionId, Reservation, ReservationId, Settings, UserId,
    invite::Shown, reservation::Held, spread::UNLIMITED,
};

/// A redemption and what the application said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedemptionRecord {
    /// The redemption.
    pub redemption: Redemption,
    /// The application's own JSON object, as text.
    pub metadata: Option<String>,
    /// When it was taken back, if it was.
    pub rolled_back_at: Option<Millis>,
    /// Why, as its author said.
    pub rollback_reason: Option<String>,
}

/// Which redemptions; what is not set does not narrow.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct RedemptionFilter {
    pub code: Option<Code>,
    pub invite: Option<InviteId>,
    pub user: Option<UserId>,
    pub group: Option<Group>,
    /// Redeemed at or after this moment.
    pub after: Option<Millis>,
    /// Redeemed before this moment.
    pub before: Option<Millis>,
    /// Later among the changes of the partition than this place.
    pub after_position: Option<Cursor>,
    /// The order: the newest first unless this is set.
    pub oldest_first: bool,
}

/// Some redemptions, in the order that was asked for.
#[derive(Debug, Clone)]
pub struct RedemptionPage {
    /// The redemptions.
    pub rows: Vec<RedemptionRecord>,
    /// Where the next page begins, if there is one.
    pub next: Option<Cursor>,
}

/// Which invites; what is not set does not narrow.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct InviteFilter {
    pub state: Option<InviteState>,
    pub group: Option<Group>,
    /// Codes that begin with this, normalised.
    pub prefix: Option<String>,
    pub batch: Option<BatchId>,
}

/// Some invites, by code.
#[derive(Debug, Clone)]
pub struct InvitePage {
    /// The invites, each with what is held of it.
    pub rows: Vec<Shown>,
    /// Where the next page begins, if there is one.
    pub next: Option<(String, InviteId)>,
}

/// Which members; what is not set does not narrow.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct MemberFilter {
    pub user: Option<UserId>,
    pub group: Option<Group>,
}

/// Some campaigns, by name.
#[derive(Debug, Clone)]
pub struct CampaignPage {
    /// The campaigns.
    pub rows: Vec<Campaign>,
    /// Where the next page begins, if there is one.
    pub next: Option<String>,
}

/// Some members, by user and group.
#[derive(Debug, Clone)]
pub struct MemberPage {
    /// The members.
    pub rows: Vec<Member>,
    /// Where the next page begins, if there is one.
    pub next: Option<(String, String)>,
}

/// Some namespaces, by name.
#[derive(Debug, Clone)]
pub struct NamespacePage {
    /// The namespaces.
    pub rows: Vec<(Namespace, Settings)>,
    /// Where the next page begins, if there is one.
    pub next: Option<String>,
}

/// Of the namespace `$2`, or of one of its shards. No name has a character that LIKE takes for something else.
const WITHIN: &str = "(namespace = $2 OR namespace LIKE $2 || '+%')";

/// How many uses of an invite are held at `$2`.
pub(super) const HELD: &str =
    "(SELECT COUNT(*) FROM reservations WHERE reservations.invite = invites.id
     AND reservations.state = 'held' AND reservations.held_until > $2) AS held";

fn shown(row: &Row, now: Millis) -> Result<Shown, LedgerError> {
    Ok(Shown { invite: row.invite()?, held: row.number("held")?, now })
}

impl Ledger {
    /// One redemption, in whichever shard of the namespace it is.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn redemption(
        &self,
        namespace: &Namespace,
        id: RedemptionId,
    ) -> Result<Option<RedemptionRecord>, LedgerError> {
        let row = sql(format!("SELECT {REDEMPTION} FROM redemptions WHERE id = $1 AND {WITHIN}"))
            .bind(id.0)
            .bind(namespace.as_str())
            .fetch_optional(&self.reader)
            .await
            .map_err(LedgerError::of("reading a redemption"))?;
        row.map(|row| record(&row)).transpose()
    }

    /// Redemptions of a namespace, from a place on if one is given.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn redemptions(
        &self,
        namespace: &Namespace,
        filter: &RedemptionFilter,
        from: Option<Cursor>,
        limit: u32,
    ) -> Result<RedemptionPage, LedgerError> {
        let mut query = sql(format!("SELECT {REDEMPTION} FROM redemptions WHERE namespace = $1"))
            .bind(namespace.as_str());
        if let Some(code) = &filter.code {
            query.push(" AND code = ").push_bind(code.as_str());
        }
        if let Some(invite) = filter.invite {
            query.push(" AND invite = ").push_bind(invite.0);
        }
        if let Some(user) = &filter.user {
            query.push(" AND user_id = ").push_bind(user.as_str());
        }
        if let Some(group) = &filter.group {
            query.push(" AND grp = ").push_bind(group.as_str());
        }
        if let Some(after) = filter.after {
            query.push(" AND redeemed_at >= ").push_bind(after.as_ms());
        }
        if let Some(end) = filter.before {
            query.push(" AND redeemed_at < ").push_bind(end.as_ms());
        }
        let (later, order) =
            if filter.oldest_first { (">", "epoch, seq") } else { ("<", "epoch DESC, seq DESC") };
        for (compared, place) in [(later, from), (">", filter.after_position)] {
            let Some(place) = place else { continue };
            query.push(&format!(" AND (epoch, seq) {compared} (")).push_bind(place.epoch);
            query.push(", ").push_bind(place.seq).push(")");
        }
        query.push(&format!(" ORDER BY {order} LIMIT ")).push_bind(limit + 1);
        let rows =
            query.fetch_all(&self.reader).await.map_err(LedgerError::of("listing redemptions"))?;
        let mut rows = rows.iter().map(record).collect::<Result<Vec<_>, _>>()?;
        let more = cut(&mut rows, limit);
        let next = rows.last().filter(|_| more).map(|last| last.redemption.position.cursor);
        Ok(RedemptionPage { rows, next })
    }

    /// One invite, and what is held of it at `now`.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn invite(
        &self,
        namespace: &Namespace,
        id: InviteId,
        now: Millis,
    ) -> Result<Option<Shown>, LedgerError> {
        let query =
            format!("SELECT {INVITE}, {HELD} FROM invites WHERE namespace = $1 AND id = $3");
        let row = sql(query)
            .bind(namespace.as_str())
            .bind(now.as_ms())
            .bind(id.0)
            .fetch_optional(&self.reader)
            .await
            .map_err(LedgerError::of("reading an invite"))?;
        row.map(|row| shown(&row, now)).transpose()
    }

    /// The invite that a code stands for, and what is held of it at `now`.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn invite_by_code(
        &self,
        namespace: &Namespace,
        code: &Code,
        now: Millis,
    ) -> Result<Option<Shown>, LedgerError> {
        let row = sql(format!(
            "SELECT {INVITE}, {HELD} FROM invites WHERE namespace = $1 AND code = $3 AND holds_code"
        ))
        .bind(namespace.as_str())
        .bind(now.as_ms())
        .bind(code.as_str())
        .fetch_optional(&self.reader)
        .await
        .map_err(LedgerError::of("reading an invite"))?;
        row.map(|row| shown(&row, now)).transpose()
    }

    /// Invites of a namespace by code and id, after a place if one is given; `now` decides their states.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn invites(
        &self,
        namespace: &Namespace,
        filter: &InviteFilter,
        now: Millis,
        after: Option<&(String, InviteId)>,
        limit: u32,
    ) -> Result<InvitePage, LedgerError> {
        let index = if filter.batch.is_some() {
            self.dialect.indexed_by("invites_batch")
        } else {
            String::new()
        };
        let mut query =
            sql(format!("SELECT {INVITE}, {HELD} FROM invites {index} WHERE namespace = $1"))
                .bind(namespace.as_str())
                .bind(now.as_ms());
        if let Some(batch) = filter.batch {
            query.push(" AND batch = ").push_bind(batch.0);
        }
        if let Some(group) = &filter.group {
            query.push(" AND grp = ").push_bind(group.as_str());
        }
        if let Some(prefix) = &filter.prefix {
            // Codes are ASCII, so everything that begins so lies before the prefix and its highest successor.
            query.push(" AND code >= ").push_bind(prefix.as_str());
            query.push(" AND code < ").push_bind(format!("{prefix}\u{7f}"));
        }
        if let Some(state) = filter.state {
            push_state(&mut query, state, &self.parts(namespace).await?[1..], now);
        }
        if let Some((code, id)) = after {
            query
                .push(" AND (code, id) > (")
                .push_bind(code.as_str())
                .push(", ")
                .push_bind(id.0)
                .push(")");
        }
        query.push(" ORDER BY code, id LIMIT ").push_bind(limit + 1);
        let rows =
            query.fetch_all(&self.reader).await.map_err(LedgerError::of("listing invites"))?;
        let mut rows = rows.iter().map(|row| shown(row, now)).collect::<Result<Vec<_>, _>>()?;
        let more = cut(&mut rows, limit);
        let next =
            rows.last().filter(|_| more).map(|last| (last.invite.code.to_string(), last.invite.id));
        Ok(InvitePage { rows, next })
    }

    /// Memberships of a namespace by user and group, after a place if one is given.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn members(
        &self,
        namespace: &Namespace,
        filter: &MemberFilter,
        after: Option<&(String, String)>,
        limit: u32,
    ) -> Result<MemberPage, LedgerError> {
        let mut query = sql(format!("SELECT {MEMBER} FROM members WHERE namespace = $1"))
            .bind(namespace.as_str());
        if let Some(user) = &filter.user {
            query.push(" AND user_id = ").push_bind(user.as_str());
        }
        if let Some(group) = &filter.group {
            query.push(" AND grp = ").push_bind(group.as_str());
        }
        if let Some((user, group)) = after {
            query
                .push(" AND (user_id, grp) > (")
                .push_bind(user.as_str())
                .push(", ")
                .push_bind(group.as_str())
                .push(")");
        }
        query.push(" ORDER BY user_id, grp LIMIT ").push_bind(limit + 1);
        let rows =
            query.fetch_all(&self.reader).await.map_err(LedgerError::of("listing members"))?;
        let mut rows = rows.iter().map(super::sql::Row::member).collect::<Result<Vec<_>, _>>()?;
        let more = cut(&mut rows, limit);
        let next = rows
            .last()
            .filter(|_| more)
            .map(|last| (last.user.to_string(), last.group.to_string()));
        Ok(MemberPage { rows, next })
    }

    /// One namespace, also an archived one.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn namespace(&self, name: &Namespace) -> Result<Option<Settings>, LedgerError> {
        let row = sql(format!("SELECT {NAMESPACE} FROM namespaces WHERE name = $1"))
            .bind(name.as_str())
            .fetch_optional(&self.reader)
            .await
            .map_err(LedgerError::of("reading a namespace"))?;
        row.map(|row| row.settings()).transpose()
    }

    /// Namespaces by name, archived ones too, after one if it is given.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn namespaces(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<NamespacePage, LedgerError> {
        let rows = sql(format!(
            "SELECT {NAMESPACE} FROM namespaces WHERE name > $1 AND name NOT LIKE '%+%' ORDER BY name LIMIT $2"
        ))
        .bind(after.unwrap_or_default())
        .bind(limit + 1)
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("listing namespaces"))?;
        let mut rows = rows
            .iter()
            .map(|row| Ok((row.parsed("name", Namespace::stored)?, row.settings()?)))
            .collect::<Result<Vec<_>, LedgerError>>()?;
        let more = cut(&mut rows, limit);
        let next = rows.last().filter(|_| more).map(|(name, _)| name.to_string());
        Ok(NamespacePage { rows, next })
    }

    /// One reservation, in whichever shard of the namespace it is, and what became of it.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn reservation(
        &self,
        namespace: &Namespace,
        id: ReservationId,
    ) -> Result<Option<(Reservation, Held)>, LedgerError> {
        let row = sql(format!("SELECT {RESERVATION} FROM reservations WHERE id = $1 AND {WITHIN}"))
            .bind(id.0)
            .bind(namespace.as_str())
            .fetch_optional(&self.reader)
            .await
            .map_err(LedgerError::of("reading a reservation"))?;
        row.map(|row| Ok((row.reservation()?, row.held()?))).transpose()
    }

    /// Whether a user's id stands anywhere in a namespace.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn knows_user(
        &self,
        namespace: &Namespace,
        user: &UserId,
    ) -> Result<bool, LedgerError> {
        let tables = ["redemptions", "members", "reservations", "invites", "audit_log", "claims"];
        let exists = tables.map(|table| {
            format!("EXISTS (SELECT 1 FROM {table} WHERE namespace = $1 AND user_id = $2)")
        });
        let row = sql(format!("SELECT {} AS known", exists.join(" OR ")))
            .bind(namespace.as_str())
            .bind(user.as_str())
            .fetch_one(&self.reader)
            .await
            .map_err(LedgerError::of("looking for a user"))?;
        row.get("known")
    }

    /// What a user may still hold: the reservations that nobody has ended.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn reservations_of(
        &self,
        namespace: &Namespace,
        user: &UserId,
    ) -> Result<Vec<Reservation>, LedgerError> {
        let rows = sql(format!(
            "SELECT {RESERVATION} FROM reservations WHERE namespace = $1 AND user_id = $2 AND state = 'held'"
        ))
        .bind(namespace.as_str())
        .bind(user.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("reading reservations"))?;
        rows.iter().map(Row::reservation).collect()
    }

    /// The invites that are bound to a user, each with its code.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn invites_bound_to(
        &self,
        namespace: &Namespace,
        user: &UserId,
    ) -> Result<Vec<(InviteId, Code)>, LedgerError> {
        let rows = sql("SELECT id, code FROM invites WHERE namespace = $1 AND user_id = $2")
            .bind(namespace.as_str())
            .bind(user.as_str())
            .fetch_all(&self.reader)
            .await
            .map_err(LedgerError::of("reading invites"))?;
        rows.iter().map(|row| Ok((InviteId(row.id("id")?), row.code()?))).collect()
    }

    /// One campaign.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn campaign(
        &self,
        namespace: &Namespace,
        name: &CampaignName,
    ) -> Result<Option<Campaign>, LedgerError> {
        let row =
            sql(format!("SELECT {CAMPAIGN} FROM campaigns WHERE namespace = $1 AND name = $2"))
                .bind(namespace.as_str())
                .bind(name.as_str())
                .fetch_optional(&self.reader)
                .await
                .map_err(LedgerError::of("reading a campaign"))?;
        let Some(row) = row else { return Ok(None) };
        let mut whole = self.whole_campaigns(namespace, vec![row.campaign()?]).await?;
        Ok(whole.pop())
    }

    /// Campaigns of a namespace with what its shards have spent of them, if it is spread.
    async fn whole_campaigns(
        &self,
        namespace: &Namespace,
        mut campaigns: Vec<Campaign>,
    ) -> Result<Vec<Campaign>, LedgerError> {
        if campaigns.iter().all(|campaign| campaign.total.is_none()) {
            return Ok(campaigns);
        }
        let rows = sql("SELECT name, CAST(SUM(uses) AS BIGINT) AS uses FROM campaigns
             WHERE namespace > $1 || '+' AND namespace < $1 || ',' GROUP BY name")
        .bind(namespace.as_str())
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("reading campaigns of shards"))?;
        let mut in_shards = HashMap::new();
        for row in rows {
            in_shards.insert(row.parsed("name", CampaignName::parse)?, row.number("uses")?);
        }
        for campaign in &mut campaigns {
            if let Some(total) = campaign.total.take() {
                campaign.max_uses = (total < UNLIMITED).then_some(total);
                campaign.uses += in_shards.get(&campaign.name).copied().unwrap_or_default();
            }
        }
        Ok(campaigns)
    }

    /// Campaigns of a namespace by name, after one if it is given.
    ///
    /// # Errors
    /// [`LedgerError`] when they can not be read.
    pub async fn campaigns(
        &self,
        namespace: &Namespace,
        after: Option<&str>,
        limit: u32,
    ) -> Result<CampaignPage, LedgerError> {
        let rows = sql(format!(
            "SELECT {CAMPAIGN} FROM campaigns WHERE namespace = $1 AND name > $2 ORDER BY name LIMIT $3"
        ))
        .bind(namespace.as_str())
        .bind(after.unwrap_or_default())
        .bind(limit + 1)
        .fetch_all(&self.reader)
        .await
        .map_err(LedgerError::of("listing campaigns"))?;
        let mut rows = rows.iter().map(super::sql::Row::campaign).collect::<Result<Vec<_>, _>>()?;
        let more = cut(&mut rows, limit);
        let next = rows.last().filter(|_| more).map(|last| last.name.to_string());
        let rows = self.whole_campaigns(namespace, rows).await?;
        Ok(CampaignPage { rows, next })
    }

    /// When the ledger last got something of a partition.
    ///
    /// # Errors
    /// [`LedgerError`] when it can not be read.
    pub async fn synced_at(&self, partition: Partition) -> Result<Option<Millis>, LedgerError> {
        Ok(self.partition(partition).await?.synced_at)
    }
}

/// Cuts a page that was read one row too long; says whether it was.
pub(super) fn cut<T>(rows: &mut Vec<T>, limit: u32) -> bool {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    more
}

/// Whether all uses of an invite are spent, with those of its copies in these shards.
fn push_exhausted(query: &mut Query, shards: &[Namespace]) {
    const HERE: &str = "max_uses IS NOT NULL AND uses >= max_uses";
    if shards.is_empty() {
        query.push(&format!("({HERE})"));
        return;
    }
    // A copy has its code since the same moment as the invite, and the code stands for one at a time.
    query.push(&format!("(CASE WHEN total IS NULL THEN {HERE} ELSE total < {UNLIMITED} AND total <= uses + COALESCE(("));
    query.push(
        "SELECT SUM(copies.uses) FROM invites AS copies
         WHERE copies.code = invites.code AND copies.created_at = invites.created_at AND copies.namespace IN (",
    );
    query.push_list(shards.iter().map(Namespace::as_str)).push(")), 0) END)");
}

/// The same order of precedence as [`Invite::state`].
fn push_state(query: &mut Query, state: InviteState, shards: &[Namespace], now: Millis) {
    let now = now.as_ms();
    let expired = "(expires_at IS NOT NULL AND expires_at <= ";
    if state == InviteState::Disabled {
        query.push(" AND disabled");
        return;
    }
    query.push(" AND NOT disabled AND ");
    if state != InviteState::Expired {
        query.push("NOT ");
    }
    query.push(expired).push_bind(now).push(")");
    if state == InviteState::Expired {
        return;
    }
    query.push(if state == InviteState::Exhausted { " AND " } else { " AND NOT " });
    push_exhausted(query, shards);
    if state == InviteState::Exhausted {
        return;
    }
    query.push(if state == InviteState::Scheduled { " AND " } else { " AND NOT " });
    query.push("(starts_at IS NOT NULL AND starts_at > ").push_bind(now).push(")");
}

fn record(row: &Row) -> Result<RedemptionRecord, LedgerError> {
    Ok(RedemptionRecord {
        redemption: row.redemption()?,
        metadata: row.maybe_text("metadata")?,
        rolled_back_at: row.maybe_time("rolled_back_at")?,
        rollback_reason: row.maybe_text("rollback_reason")?,
    })
}
