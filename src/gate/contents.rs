//! What the keys of a partition hold, as the ledger's rows say: what a rebuild loads, and what an audit expects.

use super::{fields, key::Keyspace};
use crate::domain::{Invite, MembershipRule, Namespace, Redemption, Settings, member::UserRecord};

/// A key and its values: one for a string, field and value in turn for a hash.
pub type Entry = (String, Vec<String>);

/// The key of a namespace's rules.
#[must_use]
pub fn of_namespace(keys: &Keyspace, namespace: &Namespace, settings: &Settings) -> Entry {
    (keys.settings(namespace), flat(fields::of_settings(settings)))
}

/// The keys of an invite: as the current one of its code or as a retired one, and the one that leads from its id to its
/// code.
#[must_use]
pub fn of_invite(keys: &Keyspace, invite: &Invite, holds_code: bool) -> [Entry; 2] {
    let key = if holds_code {
        keys.invite(&invite.namespace, &invite.code)
    } else {
        keys.retired(&invite.namespace, invite.id)
    };
    let by_id = keys.invite_id(&invite.namespace, invite.id);
    [(key, flat(fields::of_invite(invite))), (by_id, vec![invite.code.to_string()])]
}

/// The key of a user's memberships and answers.
#[must_use]
pub fn of_user(keys: &Keyspace, record: &UserRecord) -> Entry {
    (keys.member(&record.namespace, &record.user), member_fields(record))
}

fn flat(fields: Vec<(&'static str, String)>) -> Vec<String> {
    fields.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
}

/// The fields of a member's hash, as `redeem.lua` and `join.lua` would have written them.
fn member_fields(record: &UserRecord) -> Vec<String> {
    let mut fields = Vec::new();
    for (group, cursor, joined_at) in &record.memberships {
        fields.extend([format!("group:{group}"), cursor.to_string()]);
        if let Some(at) = joined_at {
            fields.extend([cursor.to_string(), format!("joined {}", at.as_ms())]);
        }
    }
    for (redemption, request, counts) in &record.redemptions {
        let Redemption {
            id, invite, code, group, ordinal, remaining, redeemed_at, position, ..
        } = redemption;
        let cursor = position.cursor.to_string();
        let remaining = remaining.map_or_else(|| "-".to_owned(), |remaining| remaining.to_string());
        fields.extend([format!("request:{request}"), cursor.clone()]);
        fields.extend([
            cursor.clone(),
            format!("{id} {ordinal} {remaining} {}", redeemed_at.as_ms()),
        ]);
        fields.extend([format!("{cursor}:invite"), format!("{invite} {code} {group}")]);
        if *counts && record.rule == MembershipRule::OnePerInvite {
            fields.extend([format!("invite:{invite}"), cursor]);
        }
    }
    fields
}
