//! What the keys of a partition hold, as the ledger's rows say: what a rebuild loads, and what an audit expects.

use std::collections::BTreeMap;

use super::{fields, key::Keyspace};
use crate::domain::{
    Campaign, CampaignName, Invite, MembershipRule, Moves, Namespace, Redemption, Reservation,
    Settings,
    member::{Remembered, UserRecord},
};

/// A key and what it holds.
pub type Entry = (String, Values);

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Values {
    /// A string.
    Text(String),
    /// A hash: field and value in turn.
    Hash(Vec<String>),
    /// A sorted set: member and score in turn.
    Sorted(Vec<String>),
}

/// The key of a namespace's rules.
#[must_use]
pub fn of_namespace(keys: &Keyspace, namespace: &Namespace, settings: &Settings) -> Entry {
    (keys.settings(namespace), hash(fields::of_settings(namespace, settings)))
}

/// The key of the campaigns of each namespace.
#[must_use]
pub fn of_campaigns(keys: &Keyspace, campaigns: &[Campaign]) -> Vec<Entry> {
    let mut hashes: BTreeMap<&Namespace, Vec<(String, String)>> = BTreeMap::new();
    for campaign in campaigns {
        hashes.entry(&campaign.namespace).or_default().extend(fields::of_campaign(campaign));
    }
    hashes
        .into_iter()
        .map(|(namespace, fields)| (keys.campaigns(namespace), hash(fields)))
        .collect()
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
    [(key, hash(fields::of_invite(invite))), (by_id, Values::Text(invite.code.to_string()))]
}

/// The key of what was given and got of an invite.
#[must_use]
pub fn of_moves(keys: &Keyspace, moves: &Moves) -> Entry {
    let given = moves.given.iter();
    let given =
        given.map(|(to, given)| (format!("given:{to}"), format!("{} {}", given.amount, given.at)));
    let taken =
        moves.taken.iter().map(|(from, amount)| (format!("taken:{from}"), amount.to_string()));
    (keys.moves(&moves.namespace, moves.invite), hash(given.chain(taken).collect()))
}

/// What the reservations of an invite hold: of the invite, and of its campaign.
#[must_use]
pub fn of_reservation(
    keys: &Keyspace,
    held: &Reservation,
    campaign: Option<&CampaignName>,
) -> Vec<Entry> {
    let until = held.until.as_ms().to_string();
    let of_invite = Values::Sorted(vec![held.user.to_string(), until]);
    let mut entries = vec![(keys.held(&held.namespace, &held.code), of_invite)];
    entries.extend(campaign.map(|campaign| {
        let member = fields::held_of_campaign(campaign, held);
        let of_campaign = Values::Sorted(vec![member, "0".to_owned()]);
        (keys.campaign_held(&held.namespace), of_campaign)
    }));
    entries
}

/// The key of a user's memberships and answers.
#[must_use]
pub fn of_user(keys: &Keyspace, record: &UserRecord) -> Entry {
    (keys.member(&record.namespace, &record.user), Values::Hash(member_fields(record)))
}

fn hash(fields: Vec<(impl Into<String>, String)>) -> Values {
    Values::Hash(fields.into_iter().flat_map(|(name, value)| [name.into(), value]).collect())
}

/// The fields of a member's hash, as `redeem.lua`, `rollback.lua` and `join.lua` would have written them.
fn member_fields(record: &UserRecord) -> Vec<String> {
    let mut fields = Vec::new();
    for (group, cursor, joined_at) in &record.memberships {
        fields.extend([format!("group:{group}"), cursor.to_string()]);
        if let Some(at) = joined_at {
            fields.extend([cursor.to_string(), format!("joined {}", at.as_ms())]);
        }
    }
    for Remembered { redemption, request, counts, rolled_back_at } in &record.redemptions {
        let Redemption {
            id, invite, code, group, ordinal, remaining, redeemed_at, position, ..
        } = redemption;
        let cursor = position.cursor.to_string();
        let remaining = remaining.map_or_else(|| "-".to_owned(), |remaining| remaining.to_string());
        fields.extend([format!("request:{request}"), cursor.clone()]);
        let undone = rolled_back_at.map(|at| format!(" {}", at.as_ms())).unwrap_or_default();
        let told = format!("{id} {ordinal} {remaining} {}{undone}", redeemed_at.as_ms());
        fields.extend([cursor.clone(), told]);
        fields.extend([format!("{cursor}:invite"), format!("{invite} {code} {group}")]);
        if *counts && record.rule == MembershipRule::OnePerInvite {
            fields.extend([format!("invite:{invite}"), cursor]);
        }
    }
    fields
}
