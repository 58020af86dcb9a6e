//! Rows as flat fields: how the scripts, the hashes and the outbox write an invite or a namespace's rules.

use std::collections::HashMap;

use crate::domain::{
    BatchId, Campaign, CampaignName, Code, CodeCase, Durability, EmailDomain, ErrorDetail, Group,
    Invite, InviteId, MembershipRule, Millis, Namespace, Quota, Reservation, Settings, UserId,
    name::Malformed,
};

/// The fields of a hash or of an outbox entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(pub(super) HashMap<String, String>);

impl Fields {
    /// Field and value in turn.
    pub(super) fn from_flat(values: &[redis::Value]) -> Result<Self, Malformed> {
        let text = |value: &redis::Value| match value {
            redis::Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
            redis::Value::Int(number) => Some(number.to_string()),
            redis::Value::SimpleString(text) => Some(text.clone()),
            _ => None,
        };
        let pair = |pair: &[redis::Value]| Some((text(pair.first()?)?, text(pair.get(1)?)?));
        let fields = values.chunks(2).map(pair).collect::<Option<_>>();
        fields.map(Self).ok_or_else(|| Malformed("its fields are not pairs of text".to_owned()))
    }

    pub(super) fn text(&self, name: &str) -> Result<&str, Malformed> {
        self.0.get(name).map(String::as_str).ok_or_else(|| Malformed(format!("{name} is missing")))
    }

    pub(super) fn parsed<T, E: std::fmt::Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, Malformed> {
        let text = self.text(name)?;
        parse(text).map_err(|error| Malformed(format!("{name} is {text:?}: {error}")))
    }

    pub(super) fn optional<T, E: std::fmt::Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Malformed> {
        if self.0.contains_key(name) { self.parsed(name, parse).map(Some) } else { Ok(None) }
    }

    pub(super) fn number(&self, name: &str) -> Result<u64, Malformed> {
        self.parsed(name, str::parse)
    }

    /// Nothing for a field that is empty or missing.
    pub(super) fn unless_empty<T, E: std::fmt::Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Malformed> {
        if self.0.get(name).is_none_or(String::is_empty) {
            Ok(None)
        } else {
            self.parsed(name, parse).map(Some)
        }
    }

    pub(super) fn time(&self, name: &str) -> Result<Millis, Malformed> {
        self.parsed(name, millis)
    }

    pub(super) fn invite(&self, namespace: &Namespace) -> Result<Invite, Malformed> {
        let id = self.parsed("id", str::parse::<InviteId>)?;
        self.invite_like_others(namespace, id, self.parsed("code", stored_code)?)
    }

    /// An invite that has all but these in common with others.
    pub(super) fn invite_like_others(
        &self,
        namespace: &Namespace,
        id: InviteId,
        code: Code,
    ) -> Result<Invite, Malformed> {
        let domains =
            |text: &str| text.split(',').map(EmailDomain::parse).collect::<Result<Vec<_>, _>>();
        Ok(Invite {
            id,
            namespace: namespace.clone(),
            code,
            group: self.parsed("group", Group::parse)?,
            max_uses: self.optional("max_uses", str::parse)?,
            total: self.optional("total", str::parse)?,
            max_uses_per_user: self.optional("max_uses_per_user", str::parse)?,
            campaign: self.optional("campaign", CampaignName::parse)?,
            uses: self.number("uses")?,
            imported: self.optional("imported", str::parse)?.unwrap_or_default(),
            granted: self.number("granted")?,
            starts_at: self.optional("starts_at", millis)?,
            expires_at: self.optional("expires_at", millis)?,
            disabled: self.0.contains_key("disabled"),
            user: self.optional("user", UserId::parse)?,
            email_domains: self.optional("email_domains", domains)?.unwrap_or_default(),
            metadata: self.0.get("metadata").cloned(),
            batch: self.optional("batch", str::parse::<BatchId>)?,
            revision: self.number("revision")?,
            created_at: self.time("created_at")?,
            updated_at: self.time("updated_at")?,
        })
    }

    pub(super) fn campaign(
        &self,
        namespace: &Namespace,
        name: CampaignName,
    ) -> Result<Campaign, Malformed> {
        let max_uses = self.unless_empty("max_uses", str::parse)?;
        Ok(Campaign {
            namespace: namespace.clone(),
            name,
            max_uses,
            total: self.unless_empty("total", str::parse)?,
            uses: self.number("uses")?,
            revision: self.number("revision")?,
            created_at: self.time("created_at")?,
            updated_at: self.time("updated_at")?,
        })
    }

    pub(super) fn settings(&self) -> Result<Settings, Malformed> {
        Ok(Settings {
            membership: self.parsed("membership", MembershipRule::parse)?,
            code_case: self.parsed("code_case", CodeCase::parse)?,
            code_check: self.0.contains_key("code_check"),
            durability: self.parsed("durability", Durability::parse)?,
            error_detail: self.optional("error_detail", ErrorDetail::parse)?.unwrap_or_default(),
            rate_user: self.optional("rate_user", Quota::parse)?,
            rate_ip: self.optional("rate_ip", Quota::parse)?,
            rate_code: self.optional("rate_code", Quota::parse)?,
            rate_namespace: self.optional("rate_namespace", Quota::parse)?,
            rate_guess: self.optional("rate_guess", Quota::parse)?,
            spread: self.optional("spread", str::parse)?.unwrap_or(1),
            layouts: self.optional("layouts", Settings::parse_layouts)?.unwrap_or_default(),
            sealed: self.0.contains_key("sealed"),
            revision: self.number("revision")?,
            created_at: self.time("created_at")?,
            updated_at: self.time("updated_at")?,
            archived_at: self.optional("archived_at", millis)?,
        })
    }
}

/// A code as it was stored: already normalised, whatever its namespace folds.
pub(super) fn stored_code(text: &str) -> Result<Code, Malformed> {
    Code::parse(text, CodeCase::Sensitive)
}

/// Milliseconds in text.
pub(super) fn millis(text: &str) -> Result<Millis, Malformed> {
    let ms = text.parse().map_err(|_| Malformed("not a number of milliseconds".to_owned()))?;
    Millis::from_ms(ms)
}

/// The fields of an invite's hash, as `create_invite.lua` would have written them.
pub(super) fn of_invite(invite: &Invite) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("id", invite.id.to_string()),
        ("code", invite.code.to_string()),
        ("group", invite.group.to_string()),
        ("uses", invite.uses.to_string()),
        ("granted", invite.granted.to_string()),
        ("revision", invite.revision.to_string()),
        ("created_at", invite.created_at.as_ms().to_string()),
        ("updated_at", invite.updated_at.as_ms().to_string()),
    ];
    let mut optional =
        |name, value: Option<String>| fields.extend(value.map(|value| (name, value)));
    optional("max_uses", invite.max_uses.map(|max| max.to_string()));
    optional("total", invite.total.map(|total| total.to_string()));
    optional("imported", (invite.imported > 0).then(|| invite.imported.to_string()));
    optional("max_uses_per_user", invite.max_uses_per_user.map(|max| max.to_string()));
    optional("campaign", invite.campaign.as_ref().map(ToString::to_string));
    optional("starts_at", invite.starts_at.map(|time| time.as_ms().to_string()));
    optional("expires_at", invite.expires_at.map(|time| time.as_ms().to_string()));
    optional("disabled", invite.disabled.then(|| "1".to_owned()));
    optional("user", invite.user.as_ref().map(ToString::to_string));
    optional("email_domains", join_domains(&invite.email_domains));
    optional("metadata", invite.metadata.clone());
    optional("batch", invite.batch.map(|batch| batch.to_string()));
    fields
}

/// The fields of a campaign in the hash of its namespace, as `put_campaign.lua` would have written them.
pub(super) fn of_campaign(campaign: &Campaign) -> Vec<(String, String)> {
    let field = |what: &str, value: String| (format!("{}:{what}", campaign.name), value);
    let mut fields = vec![
        field("uses", campaign.uses.to_string()),
        field("revision", campaign.revision.to_string()),
        field("created_at", campaign.created_at.as_ms().to_string()),
        field("updated_at", campaign.updated_at.as_ms().to_string()),
    ];
    fields.extend(campaign.max_uses.map(|max| field("max_uses", max.to_string())));
    fields.extend(campaign.total.map(|total| field("total", total.to_string())));
    fields
}

/// What is held of a campaign, as `redeem.lua` writes it: in order of name and deadline.
pub(super) fn held_of_campaign(campaign: &CampaignName, held: &Reservation) -> String {
    format!("{campaign}:{:013}:{}:{}", held.until.as_ms(), held.code, held.user)
}

/// The fields of a settings hash, as `put_namespace.lua`, or for a shard `copy_namespace.lua`, would have written them.
pub(super) fn of_settings(
    namespace: &Namespace,
    settings: &Settings,
) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("membership", settings.membership.as_str().to_owned()),
        ("code_case", settings.code_case.as_str().to_owned()),
        ("durability", settings.durability.as_str().to_owned()),
        ("revision", settings.revision.to_string()),
        ("created_at", settings.created_at.as_ms().to_string()),
        ("updated_at", settings.updated_at.as_ms().to_string()),
    ];
    let mut optional =
        |name, value: Option<String>| fields.extend(value.map(|value| (name, value)));
    optional("code_check", settings.code_check.then(|| "1".to_owned()));
    let is_coarse = settings.error_detail == ErrorDetail::Coarse;
    optional("error_detail", is_coarse.then(|| settings.error_detail.as_str().to_owned()));
    optional("rate_user", settings.rate_user.map(|quota| quota.to_string()));
    optional("rate_ip", settings.rate_ip.map(|quota| quota.to_string()));
    optional("rate_code", settings.rate_code.map(|quota| quota.to_string()));
    optional("rate_namespace", settings.rate_namespace.map(|quota| quota.to_string()));
    optional("rate_guess", settings.rate_guess.map(|quota| quota.to_string()));
    // Also where it is 1 again: the scripts go by it, and uses go on to move.
    optional("spread", settings.is_spread().then(|| settings.spread.to_string()));
    optional("layouts", settings.layouts_text());
    optional("sealed", settings.sealed.then(|| "1".to_owned()));
    optional("shard", namespace.shard_number().map(|(number, of)| format!("{number}/{of}")));
    optional("archived_at", settings.archived_at.map(|time| time.as_ms().to_string()));
    fields
}

/// Domains with commas between them; nothing for none.
pub(super) fn join_domains(domains: &[EmailDomain]) -> Option<String> {
    let text = domains.iter().map(EmailDomain::as_str).collect::<Vec<_>>().join(",");
    (!text.is_empty()).then_some(text)
}
