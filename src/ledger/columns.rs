//! Values as columns, and columns as values.

use uuid::Uuid;

use super::{LedgerError, sql::Row};
use crate::domain::{
    Alphabet, Batch, BatchId, BatchOrder, BatchState, Campaign, CampaignName, Code, CodeCase,
    Cursor, Durability, EmailDomain, ErrorDetail, Group, Invite, InviteId, Member, MembershipRule,
    Millis, Namespace, Partition, Pattern, Position, Quota, Redemption, RedemptionId, Reservation,
    ReservationId, Settings, UserId, reservation::Held,
};

// Columns by name, never `*`: a newer version may add some while this one runs, and PostgreSQL then refuses every
// `SELECT *` that it has prepared before ("cached plan must not change result type").
pub(super) const NAMESPACE: &str = "name, partition, membership, code_case, code_check, durability, error_detail, rate_user, rate_ip, \
     rate_code, rate_namespace, rate_guess, spread, layouts, sealed, revision, created_at, updated_at, archived_at, epoch, seq";
pub(super) const INVITE: &str = "id, namespace, partition, code, grp, max_uses, total, uses, granted, starts_at, expires_at, \
     disabled, user_id, email_domains, metadata, batch, imported, max_uses_per_user, campaign, revision, created_at, updated_at, \
     holds_code, epoch, seq";
pub(super) const BATCH: &str = "id, namespace, pattern, alphabet, total, done, grp, max_uses, starts_at, expires_at, \
     email_domains, metadata, max_uses_per_user, campaign, actor, secret, state, reason, created_at, started_at, finished_at, lease_token";
pub(super) const REDEMPTION: &str = "id, namespace, partition, invite, code, grp, user_id, request, ordinal, remaining, \
     redeemed_at, exclusive_key, metadata, rolled_back_at, rollback_reason, epoch, seq";
pub(super) const RESERVATION: &str =
    "id, namespace, partition, invite, code, user_id, held_until, state, redemption";
pub(super) const CAMPAIGN: &str =
    "namespace, name, max_uses, total, uses, revision, created_at, updated_at";
pub(super) const MEMBER: &str =
    "namespace, user_id, grp, partition, redemption, joined_at, exclusive_key, epoch, seq";
pub(super) const PARTITION: &str = "partition, state, reason, epoch, lineage, cursor_epoch, cursor_seq, lease_owner, \
     lease_expires_at, synced_at, requested, whole_from";
pub(super) const CLAIM: &str = "id, namespace, partition, invite, code, grp, user_id, request, ordinal, remaining, \
     redeemed_at, held_until, rule, actor, metadata, epoch, seq";
pub(super) const AUDIT: &str = "partition, epoch, seq, at, actor, action, namespace, subject";
pub(super) const DEED: &str = "id, at, actor, action, namespace, subject, request_id";
pub(super) const DEAD_LETTER: &str = "partition, epoch, seq, entry, reason, at";
pub(super) const API_KEY: &str =
    "id, name, role, namespaces, secret_sha256, created_at, expires_at, revoked_at";

impl Row {
    pub(super) fn text(&self, name: &'static str) -> Result<String, LedgerError> {
        self.get(name)
    }

    pub(super) fn maybe_text(&self, name: &'static str) -> Result<Option<String>, LedgerError> {
        self.get(name)
    }

    pub(super) fn id(&self, name: &'static str) -> Result<Uuid, LedgerError> {
        let null = || LedgerError::Corrupt(format!("column {name} is null"));
        self.maybe_id(name)?.ok_or_else(null)
    }

    pub(super) fn number(&self, name: &'static str) -> Result<u64, LedgerError> {
        let number: i64 = self.get(name)?;
        u64::try_from(number)
            .map_err(|_| LedgerError::Corrupt(format!("column {name} is {number}")))
    }

    pub(super) fn maybe_number(&self, name: &'static str) -> Result<Option<u64>, LedgerError> {
        let number: Option<i64> = self.get(name)?;
        number.map(|_| self.number(name)).transpose()
    }

    pub(super) fn small(&self, name: &'static str) -> Result<u16, LedgerError> {
        let number = self.number(name)?;
        u16::try_from(number)
            .map_err(|_| LedgerError::Corrupt(format!("column {name} is {number}")))
    }

    pub(super) fn time(&self, name: &'static str) -> Result<Millis, LedgerError> {
        Millis::from_ms(self.get(name)?)
            .map_err(|error| LedgerError::Corrupt(format!("column {name}: {error}")))
    }

    pub(super) fn maybe_time(&self, name: &'static str) -> Result<Option<Millis>, LedgerError> {
        let ms: Option<i64> = self.get(name)?;
        ms.map(|_| self.time(name)).transpose()
    }

    pub(super) fn parsed<T, E: std::fmt::Display>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, LedgerError> {
        let text: &str = self.get(name)?;
        parse(text)
            .map_err(|error| LedgerError::Corrupt(format!("column {name} is {text:?}: {error}")))
    }

    pub(super) fn maybe_parsed<T, E: std::fmt::Display>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, LedgerError> {
        let text: Option<&str> = self.get(name)?;
        text.map(parse)
            .transpose()
            .map_err(|error| LedgerError::Corrupt(format!("column {name} is {text:?}: {error}")))
    }

    pub(super) fn partition(&self) -> Result<Partition, LedgerError> {
        let number: i64 = self.get("partition")?;
        u16::try_from(number)
            .map(Partition)
            .map_err(|_| LedgerError::Corrupt(format!("column partition is {number}")))
    }

    pub(super) fn cursor(&self) -> Result<Cursor, LedgerError> {
        Ok(Cursor { epoch: self.number("epoch")?, seq: self.number("seq")? })
    }

    pub(super) fn settings(&self) -> Result<Settings, LedgerError> {
        Ok(Settings {
            membership: self.parsed("membership", MembershipRule::parse)?,
            code_case: self.parsed("code_case", CodeCase::parse)?,
            code_check: self.get("code_check")?,
            durability: self.parsed("durability", Durability::parse)?,
            error_detail: self.parsed("error_detail", ErrorDetail::parse)?,
            rate_user: self.maybe_parsed("rate_user", Quota::parse)?,
            rate_ip: self.maybe_parsed("rate_ip", Quota::parse)?,
            rate_code: self.maybe_parsed("rate_code", Quota::parse)?,
            rate_namespace: self.maybe_parsed("rate_namespace", Quota::parse)?,
            rate_guess: self.maybe_parsed("rate_guess", Quota::parse)?,
            spread: self.small("spread")?,
            layouts: self.maybe_parsed("layouts", Settings::parse_layouts)?.unwrap_or_default(),
            sealed: self.get("sealed")?,
            revision: self.number("revision")?,
            created_at: self.time("created_at")?,
            updated_at: self.time("updated_at")?,
            archived_at: self.maybe_time("archived_at")?,
        })
    }

    pub(super) fn code(&self) -> Result<Code, LedgerError> {
        self.parsed("code", |text| Code::parse(text, CodeCase::Sensitive))
    }

    pub(super) fn invite(&self) -> Result<Invite, LedgerError> {
        let domains =
            |text: &str| text.split(',').map(EmailDomain::parse).collect::<Result<Vec<_>, _>>();
        Ok(Invite {
            id: InviteId(self.id("id")?),
            namespace: self.parsed("namespace", Namespace::stored)?,
            code: self.code()?,
            group: self.parsed("grp", Group::parse)?,
            max_uses: self.maybe_number("max_uses")?,
            total: self.maybe_number("total")?,
            max_uses_per_user: self.maybe_number("max_uses_per_user")?,
            campaign: self.maybe_parsed("campaign", CampaignName::parse)?,
            uses: self.number("uses")?,
            imported: self.number("imported")?,
            granted: self.number("granted")?,
            starts_at: self.maybe_time("starts_at")?,
            expires_at: self.maybe_time("expires_at")?,
            disabled: self.get("disabled")?,
            user: self.maybe_parsed("user_id", UserId::parse)?,
            email_domains: self.maybe_parsed("email_domains", domains)?.unwrap_or_default(),
            metadata: self.maybe_text("metadata")?,
            batch: self.maybe_id("batch")?.map(BatchId),
            revision: self.number("revision")?,
            created_at: self.time("created_at")?,
            updated_at: self.time("updated_at")?,
        })
    }

    pub(super) fn batch(&self) -> Result<Batch, LedgerError> {
        let domains =
            |text: &str| text.split(',').map(EmailDomain::parse).collect::<Result<Vec<_>, _>>();
        Ok(Batch {
            order: BatchOrder {
                id: BatchId(self.id("id")?),
                namespace: self.parsed("namespace", Namespace::stored)?,
                count: self.number("total")?,
                pattern: self.parsed("pattern", Pattern::parse)?,
                alphabet: self.parsed("alphabet", Alphabet::parse)?,
                group: self.parsed("grp", Group::parse)?,
                max_uses: self.maybe_number("max_uses")?,
                max_uses_per_user: self.maybe_number("max_uses_per_user")?,
                campaign: self.maybe_parsed("campaign", CampaignName::parse)?,
                starts_at: self.maybe_time("starts_at")?,
                expires_at: self.maybe_time("expires_at")?,
                email_domains: self.maybe_parsed("email_domains", domains)?.unwrap_or_default(),
                metadata: self.maybe_text("metadata")?,
                actor: self.text("actor")?,
            },
            state: self.parsed("state", BatchState::parse)?,
            done: self.number("done")?,
            reason: self.maybe_text("reason")?,
            created_at: self.time("created_at")?,
            started_at: self.maybe_time("started_at")?,
            finished_at: self.maybe_time("finished_at")?,
        })
    }

    pub(super) fn redemption(&self) -> Result<Redemption, LedgerError> {
        Ok(Redemption {
            id: RedemptionId(self.id("id")?),
            namespace: self.parsed("namespace", Namespace::stored)?,
            invite: InviteId(self.id("invite")?),
            code: self.code()?,
            group: self.parsed("grp", Group::parse)?,
            user: self.parsed("user_id", UserId::parse)?,
            ordinal: self.number("ordinal")?,
            remaining: self.maybe_number("remaining")?,
            redeemed_at: self.time("redeemed_at")?,
            position: Position { partition: self.partition()?, cursor: self.cursor()? },
        })
    }

    pub(super) fn reservation(&self) -> Result<Reservation, LedgerError> {
        let reservation = Reservation {
            id: ReservationId(self.id("id")?),
            namespace: self.parsed("namespace", Namespace::stored)?,
            invite: InviteId(self.id("invite")?),
            code: self.code()?,
            user: self.parsed("user_id", UserId::parse)?,
            until: self.time("held_until")?,
        };
        Ok(reservation)
    }

    pub(super) fn held(&self) -> Result<Held, LedgerError> {
        match self.get::<&str>("state")? {
            "held" => Ok(Held::Held),
            "confirmed" => Ok(Held::Confirmed(RedemptionId(self.id("redemption")?))),
            "released" => Ok(Held::Released),
            other => Err(LedgerError::Corrupt(format!("column state is {other:?}"))),
        }
    }

    pub(super) fn campaign(&self) -> Result<Campaign, LedgerError> {
        Ok(Campaign {
            namespace: self.parsed("namespace", Namespace::stored)?,
            name: self.parsed("name", CampaignName::parse)?,
            max_uses: self.maybe_number("max_uses")?,
            total: self.maybe_number("total")?,
            uses: self.number("uses")?,
            revision: self.number("revision")?,
            created_at: self.time("created_at")?,
            updated_at: self.time("updated_at")?,
        })
    }

    pub(super) fn member(&self) -> Result<Member, LedgerError> {
        Ok(Member {
            namespace: self.parsed("namespace", Namespace::stored)?,
            user: self.parsed("user_id", UserId::parse)?,
            group: self.parsed("grp", Group::parse)?,
            redemption: self.maybe_id("redemption")?.map(RedemptionId),
            joined_at: self.time("joined_at")?,
        })
    }
}
