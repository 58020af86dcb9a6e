//! What a batch of entries means for the ledger's tables: pure, so that it can be tested on every kind of history.
//!
//! A batch is folded into the final row of everything that it touches. Applying the fold is far cheaper than applying
//! entry after entry, and since rows are whole and absolute it ends in the same tables.

use std::collections::BTreeMap;

use crate::{
    domain::{
        CampaignName, Change, Cursor, Entry, Group, InviteId, MembershipRule, Millis, Namespace,
        RedemptionId, Reservation, ReservationId, Settings, UserId,
        change::{InviteAction, MembershipLeft, Moved, RolledBack, exclusive_key},
        reservation::Held,
    },
    ledger::rows::{
        self, AuditRow, CampaignRow, CampaignUsesRow, EndedRow, ErasedRow, InviteRow, MemberRow,
        MoveRow, NamespaceRow, RedemptionRow, ReservationRow, Rollback, RolledBackRow, Rows,
        UsesRow,
    },
};

/// A hole in a partition's row of changes: an alarm, since entries are never lost one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outbox goes on at {found}, but the ledger needs {expected} next")]
pub struct Gap {
    /// What should have come.
    pub expected: Cursor,
    /// What came.
    pub found: Cursor,
}

/// Which of the places read from an outbox come after `cursor`, as a count of those to skip: those at or below it are
/// known already.
///
/// # Errors
/// [`Gap`] when the others do not follow one another without a hole. A new epoch's entries follow only a cursor of that
/// epoch.
pub fn contiguous(cursor: Cursor, places: impl IntoIterator<Item = Cursor>) -> Result<usize, Gap> {
    let mut known = 0;
    let mut expected = cursor.next();
    for found in places {
        if found <= cursor {
            known += 1;
        } else if found == expected {
            expected = expected.next();
        } else {
            return Err(Gap { expected, found });
        }
    }
    Ok(known)
}

/// The rows that these entries leave behind.
#[must_use]
pub fn plan<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Rows {
    let mut fold = Fold::default();
    for entry in entries {
        fold.apply(entry);
    }
    fold.into_rows()
}

type MemberKey = (Namespace, UserId, Group);

#[derive(Default)]
struct Fold {
    namespaces: BTreeMap<Namespace, NamespaceRow>,
    invites: BTreeMap<InviteId, InviteFold>,
    members: BTreeMap<MemberKey, MemberFold>,
    reservations: BTreeMap<ReservationId, ReservationRow>,
    campaigns: BTreeMap<(Namespace, CampaignName), CampaignFold>,
    /// By invite and participant; what was given and what was taken apart.
    moves: BTreeMap<(InviteId, u16, bool), MoveRow>,
    rolled_back: Vec<RolledBackRow>,
    erased: Vec<ErasedRow>,
    redemptions: Vec<RedemptionRow>,
    /// Memberships that ended: what was redeemed for them counts no more under the rule.
    released: Vec<EndedRow>,
    audit: Vec<AuditRow>,
}

#[derive(Default)]
struct InviteFold {
    whole: Option<InviteRow>,
    uses: Option<UsesRow>,
    /// It has lost its code at some point.
    displaced: bool,
    /// It has its code again, since it was last lost or written whole.
    reopened: bool,
    deleted: bool,
}

/// What ended, if anything did, and what is there after it.
#[derive(Default)]
struct MemberFold {
    ended: Option<EndedRow>,
    row: Option<MemberRow>,
}

#[derive(Default)]
struct CampaignFold {
    whole: Option<CampaignRow>,
    uses: Option<CampaignUsesRow>,
}

impl InviteFold {
    fn hold_code(&mut self, holds_code: bool) {
        self.reopened = holds_code && self.whole.is_none();
        if let Some(row) = &mut self.whole {
            row.holds_code = holds_code;
        }
    }
}

impl Fold {
    fn apply(&mut self, entry: &Entry) {
        let Entry { cursor, namespace, .. } = entry;
        match &entry.change {
            Change::NamespaceCopied(settings) => {
                self.put(entry, settings);
                self.audit(entry, "namespace_copied", namespace.to_string());
            }
            Change::Namespace(settings) => {
                self.put(entry, settings);
                let action = if settings.archived_at.is_some() {
                    "namespace_archived"
                } else {
                    "namespace_put"
                };
                self.audit(entry, action, namespace.to_string());
            }
            Change::Invite { action, invite, holds_code, displaced } => {
                if let Some(id) = displaced {
                    let ended = self.invites.entry(*id).or_default();
                    ended.displaced = true;
                    ended.hold_code(false);
                    for row in self.reservations.values_mut() {
                        if row.reservation.invite == *id && row.held == Held::Held {
                            row.held = Held::Released;
                        }
                    }
                }
                let row =
                    InviteRow { invite: invite.clone(), holds_code: *holds_code, cursor: *cursor };
                let fold = self.invites.entry(invite.id).or_default();
                fold.whole = Some(row);
                (fold.uses, fold.reopened) = (None, false);
                let action = match action {
                    InviteAction::Created => "invite_created",
                    InviteAction::Imported => "invite_imported",
                    InviteAction::Changed => "invite_changed",
                    InviteAction::Copied => "invite_copied",
                };
                self.audit(entry, action, invite.id.to_string());
            }
            Change::InvitesCreated { batch, invites } => {
                for invite in invites {
                    let row =
                        InviteRow { invite: invite.clone(), holds_code: true, cursor: *cursor };
                    // One that was deleted and made again may have another code: the old row still has to go.
                    let fold = self.invites.entry(invite.id).or_default();
                    fold.whole = Some(row);
                    fold.uses = None;
                }
                let subject = format!("{batch}, {} invites", invites.len());
                self.audit(entry, "invites_created", subject);
            }
            Change::Moved { invite, campaign, participant, moved, max_uses } => {
                match campaign {
                    Some(name) => self.count_campaign(entry, name, None, Some(*max_uses)),
                    None => self.count(*invite, None, Some(*max_uses), *cursor),
                }
                let row = MoveRow {
                    namespace: namespace.clone(),
                    invite: *invite,
                    participant: *participant,
                    moved: *moved,
                    cursor: *cursor,
                };
                let (action, was_given, amount) = match moved {
                    Moved::Given(amount) => ("uses_given", true, amount),
                    Moved::Taken(amount) => ("uses_taken", false, amount),
                };
                self.moves.insert((*invite, *participant, was_given), row);
                self.audit(
                    entry,
                    action,
                    match campaign {
                        Some(name) => {
                            format!("campaign {name}, participant {participant}, {amount} in all")
                        }
                        None => format!("{invite}, participant {participant}, {amount} in all"),
                    },
                );
            }
            Change::InviteDeleted { id } => {
                self.moves.retain(|(invite, ..), _| invite != id);
                let fold = self.invites.entry(*id).or_default();
                let displaced = fold.displaced;
                *fold = InviteFold { deleted: true, displaced, ..InviteFold::default() };
                // One that is made again by the same id begins anew.
                self.moves.retain(|(invite, ..), _| invite != id);
                self.audit(entry, "invite_deleted", id.to_string());
            }
            Change::Redeemed {
                redemption,
                request,
                uses,
                rule,
                metadata,
                campaign,
                reservation,
            } => {
                let spent = (*uses, redemption.ordinal);
                self.count(redemption.invite, Some(spent), None, *cursor);
                self.spend_of_campaign(entry, campaign.as_ref());
                if let Some(reservation) = reservation {
                    self.hold(*cursor, reservation, Held::Confirmed(redemption.id));
                }
                self.join(entry, &redemption.user, &redemption.group, *rule, Ok(redemption.id));
                self.redemptions.push(RedemptionRow {
                    redemption: redemption.clone(),
                    request: request.clone(),
                    exclusive_key: exclusive_key(*rule, &redemption.group, Some(redemption.invite)),
                    metadata: metadata.clone(),
                    rollback: None,
                });
            }
            Change::RolledBack(rolled_back) => self.roll_back(entry, rolled_back),
            Change::Reserved { reservation, .. } => {
                self.hold(*cursor, reservation, Held::Held);
                self.audit(entry, "reserved", reservation.id.to_string());
            }
            Change::Released { reservation, .. } => {
                self.hold(*cursor, reservation, Held::Released);
                self.audit(entry, "reservation_released", reservation.id.to_string());
            }
            Change::Erased { user, alias, invites } => self.erase(entry, user, alias, invites),
            Change::Campaign(campaign) | Change::CampaignCopied(campaign) => {
                let key = (namespace.clone(), campaign.name.clone());
                let whole = CampaignRow { campaign: campaign.clone(), cursor: *cursor };
                self.campaigns.insert(key, CampaignFold { whole: Some(whole), uses: None });
                let is_copied = matches!(entry.change, Change::CampaignCopied(_));
                let action = if is_copied { "campaign_copied" } else { "campaign_put" };
                self.audit(entry, action, campaign.name.to_string());
            }
            Change::Joined { user, group, rule, since } => {
                self.join(entry, user, group, *rule, Err(*since));
                self.audit(entry, "joined", format!("{user} in {group}"));
                self.audited_user(user);
            }
            Change::Left { user, group } => {
                self.release(*cursor, namespace, user, group);
                self.audit(entry, "left", rows::left(user, group));
                self.audited_user(user);
            }
        }
    }

    fn put(&mut self, entry: &Entry, settings: &Settings) {
        let Entry { cursor, namespace, .. } = entry;
        let row =
            NamespaceRow { name: namespace.clone(), settings: settings.clone(), cursor: *cursor };
        self.namespaces.insert(namespace.clone(), row);
    }

    /// Notes what is spent of an invite, and how many were ever granted, or what may be spent.
    fn count(
        &mut self,
        invite: InviteId,
        spent: Option<(u64, u64)>,
        max_uses: Option<u64>,
        cursor: Cursor,
    ) {
        let fold = self.invites.entry(invite).or_default();
        match &mut fold.whole {
            Some(row) => {
                if let Some((uses, granted)) = spent {
                    (row.invite.uses, row.invite.granted) = (uses, granted);
                }
                row.invite.max_uses = max_uses.or(row.invite.max_uses);
                row.cursor = cursor;
            }
            None => {
                let before = fold.uses.take();
                fold.uses = Some(UsesRow {
                    invite,
                    spent: spent.or(before.as_ref().and_then(|row| row.spent)),
                    max_uses: max_uses.or(before.and_then(|row| row.max_uses)),
                    cursor,
                });
            }
        }
    }

    fn spend_of_campaign(&mut self, entry: &Entry, campaign: Option<&(CampaignName, u64)>) {
        if let Some((name, uses)) = campaign {
            self.count_campaign(entry, name, Some(*uses), None);
        }
    }

    /// Notes what is spent of a campaign, or what may be.
    fn count_campaign(
        &mut self,
        entry: &Entry,
        name: &CampaignName,
        uses: Option<u64>,
        max_uses: Option<u64>,
    ) {
        let key = (entry.namespace.clone(), name.clone());
        let fold = self.campaigns.entry(key).or_default();
        if let Some(row) = &mut fold.whole {
            row.campaign.uses = uses.unwrap_or(row.campaign.uses);
            row.campaign.max_uses = max_uses.or(row.campaign.max_uses);
            row.cursor = entry.cursor;
        } else {
            let before = fold.uses.take();
            fold.uses = Some(CampaignUsesRow {
                namespace: entry.namespace.clone(),
                name: name.clone(),
                uses: uses.or(before.as_ref().and_then(|row| row.uses)),
                max_uses: max_uses.or(before.and_then(|row| row.max_uses)),
                cursor: entry.cursor,
            });
        }
    }

    fn hold(&mut self, cursor: Cursor, reservation: &Reservation, held: Held) {
        let row = ReservationRow { reservation: reservation.clone(), held, cursor };
        self.reservations.insert(reservation.id, row);
    }

    fn roll_back(&mut self, entry: &Entry, rolled_back: &RolledBack) {
        let Entry { cursor, namespace, .. } = entry;
        let RolledBack { redemption, reason, invite, user, group, .. } = rolled_back;
        let spent = (rolled_back.uses, rolled_back.granted);
        self.count(*invite, Some(spent), None, *cursor);
        if rolled_back.reopened {
            self.invites.entry(*invite).or_default().hold_code(true);
        }
        self.spend_of_campaign(entry, rolled_back.campaign.as_ref());
        let rollback =
            Rollback { at: entry.at, actor: entry.actor.clone(), reason: Some(reason.clone()) };
        match self.redemptions.iter_mut().find(|row| row.redemption.id == *redemption) {
            Some(row) => {
                row.exclusive_key = None;
                row.rollback = Some(rollback);
            }
            None => self.rolled_back.push(RolledBackRow { redemption: *redemption, rollback }),
        }
        let ended = EndedRow {
            namespace: namespace.clone(),
            user: user.clone(),
            group: group.clone(),
            cursor: *cursor,
        };
        let key = (namespace.clone(), user.clone(), group.clone());
        match rolled_back.membership {
            MembershipLeft::Untouched => {}
            MembershipLeft::Ended => {
                self.members.insert(key, MemberFold { ended: Some(ended), row: None });
            }
            MembershipLeft::By(redemption, since, joined_at) => {
                let row = MemberRow {
                    namespace: namespace.clone(),
                    user: user.clone(),
                    group: group.clone(),
                    redemption: Some(redemption),
                    joined_at,
                    exclusive_key: None,
                    cursor: since,
                };
                self.members.insert(key, MemberFold { ended: Some(ended), row: Some(row) });
            }
        }
        self.audit(entry, "redemption_rolled_back", redemption.to_string());
    }

    fn join(
        &mut self,
        entry: &Entry,
        user: &UserId,
        group: &Group,
        rule: MembershipRule,
        // By which redemption, or since when.
        how: Result<RedemptionId, Millis>,
    ) {
        let row = MemberRow {
            namespace: entry.namespace.clone(),
            user: user.clone(),
            group: group.clone(),
            redemption: how.ok(),
            joined_at: how.err().unwrap_or(entry.at),
            exclusive_key: (rule == MembershipRule::OneGroup).then(|| "*".to_owned()),
            cursor: entry.cursor,
        };
        let key = (entry.namespace.clone(), user.clone(), group.clone());
        self.members.entry(key).or_default().row = Some(row);
    }

    fn release(&mut self, cursor: Cursor, namespace: &Namespace, user: &UserId, group: &Group) {
        for row in &mut self.redemptions {
            let redemption = &row.redemption;
            if (&redemption.namespace, &redemption.user, &redemption.group)
                == (namespace, user, group)
            {
                row.exclusive_key = None;
            }
        }
        let key = (namespace.clone(), user.clone(), group.clone());
        let row = EndedRow {
            namespace: namespace.clone(),
            user: user.clone(),
            group: group.clone(),
            cursor,
        };
        self.released.push(row.clone());
        self.members.insert(key, MemberFold { ended: Some(row), row: None });
    }

    fn audit(&mut self, entry: &Entry, action: &'static str, subject: String) {
        self.audit.push(AuditRow {
            cursor: entry.cursor,
            at: entry.at,
            actor: entry.actor.clone(),
            action,
            namespace: entry.namespace.clone(),
            subject,
            user: None,
        });
    }

    /// Notes who the line just written begins with.
    fn audited_user(&mut self, user: &UserId) {
        if let Some(row) = self.audit.last_mut() {
            row.user = Some(user.clone());
        }
    }

    /// What this batch has brought so far of a user gets the other name; what the ledger has gets it before all else.
    fn erase(&mut self, entry: &Entry, user: &UserId, alias: &UserId, invites: &[InviteId]) {
        let Entry { cursor, namespace, .. } = entry;
        let rename = |of: &Namespace, name: &mut UserId| {
            if of == namespace && name == user {
                name.clone_from(alias);
            }
        };
        for (key, mut fold) in std::mem::take(&mut self.members) {
            let (of, mut name, group) = key;
            rename(&of, &mut name);
            if let Some(row) = &mut fold.ended {
                rename(&of, &mut row.user);
            }
            if let Some(row) = &mut fold.row {
                rename(&of, &mut row.user);
            }
            self.members.insert((of, name, group), fold);
        }
        for row in &mut self.released {
            rename(&row.namespace, &mut row.user);
        }
        // What is held now was held for somebody who has come since.
        for row in self.reservations.values_mut() {
            if row.held != Held::Held || row.reservation.until <= entry.at {
                rename(&row.reservation.namespace, &mut row.reservation.user);
            }
        }
        for row in &mut self.redemptions {
            let redemption = &mut row.redemption;
            if (&redemption.namespace, &redemption.user) == (namespace, user) {
                redemption.user = alias.clone();
                row.request = redemption.id.to_string();
                row.metadata = None;
            }
        }
        for row in self.audit.iter_mut().filter(|row| row.namespace == *namespace) {
            if row.user.as_ref() == Some(user) {
                let rest = row.subject.strip_prefix(user.as_str()).unwrap_or_default();
                row.subject = format!("{alias}{rest}");
                row.user = Some(alias.clone());
            }
        }
        for id in invites {
            if let Some(row) = self.invites.get_mut(id).and_then(|fold| fold.whole.as_mut()) {
                row.invite.user = Some(alias.clone());
            }
        }
        self.erased.push(ErasedRow {
            namespace: namespace.clone(),
            user: user.clone(),
            alias: alias.clone(),
            invites: invites.to_vec(),
            displaced: self
                .invites
                .iter()
                .filter(|(_, fold)| fold.displaced)
                .map(|(id, _)| *id)
                .collect(),
            at: entry.at,
            cursor: *cursor,
        });
        self.audit(entry, "user_erased", alias.to_string());
    }

    fn into_rows(self) -> Rows {
        let mut rows = Rows {
            namespaces: self.namespaces.into_values().collect(),
            released: self.released,
            redemptions: self.redemptions,
            rolled_back: self.rolled_back,
            erased: self.erased,
            reservations: self.reservations.into_values().collect(),
            moves: self.moves.into_values().collect(),
            audit: self.audit,
            ..Rows::default()
        };
        for member in self.members.into_values() {
            rows.left.extend(member.ended);
            rows.members.extend(member.row);
        }
        for campaign in self.campaigns.into_values() {
            rows.campaigns.extend(campaign.whole);
            rows.campaign_uses.extend(campaign.uses);
        }
        for (id, fold) in self.invites {
            if fold.deleted {
                rows.deleted_invites.push(id);
            }
            if fold.displaced {
                rows.displaced_invites.push(id);
            }
            if fold.reopened {
                rows.reopened_invites.push(id);
            }
            rows.invites.extend(fold.whole);
            rows.uses.extend(fold.uses);
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{BatchId, Code, CodeCase, Invite};

    fn at(epoch: u64, seq: u64) -> Cursor {
        Cursor { epoch, seq }
    }

    #[test]
    fn known_entries_are_skipped_and_the_rest_must_follow() {
        assert_eq!(contiguous(at(1, 5), [at(1, 4), at(1, 5), at(1, 6), at(1, 7)]), Ok(2));
        assert_eq!(contiguous(at(1, 5), []), Ok(0));
        assert_eq!(contiguous(at(2, 0), [at(1, 9), at(2, 1)]), Ok(1));
    }

    #[test]
    fn an_invite_that_was_deleted_and_made_again_replaces_its_row() {
        let (batch, namespace) =
            (BatchId(uuid::Uuid::from_u128(1)), Namespace::default_namespace());
        let invite = Invite {
            id: batch.invite(5),
            namespace: namespace.clone(),
            code: Code::parse("OTHER", CodeCase::Sensitive).unwrap(),
            group: Group::parse("team").unwrap(),
            max_uses: None,
            total: None,
            max_uses_per_user: None,
            campaign: None,
            uses: 0,
            imported: 0,
            granted: 0,
            starts_at: None,
            expires_at: None,
            disabled: false,
            user: None,
            email_domains: Vec::new(),
            metadata: None,
            batch: Some(batch),
            revision: 1,
            created_at: Millis::default(),
            updated_at: Millis::default(),
        };
        let changes = [
            Change::InviteDeleted { id: invite.id },
            Change::InvitesCreated { batch, invites: vec![invite.clone()] },
        ];
        let entries: Vec<_> = (1..)
            .zip(changes)
            .map(|(seq, change)| Entry {
                cursor: at(1, seq),
                namespace: namespace.clone(),
                at: Millis::default(),
                actor: "test".to_owned(),
                change,
            })
            .collect();
        let rows = plan(&entries);
        assert_eq!(rows.deleted_invites, [invite.id]);
        assert_eq!(rows.invites, [InviteRow { invite, holds_code: true, cursor: at(1, 2) }]);
    }

    #[test]
    fn a_hole_or_a_foreign_epoch_is_a_gap() {
        let gap = |expected, found| Err(Gap { expected, found });
        assert_eq!(contiguous(at(1, 5), [at(1, 7)]), gap(at(1, 6), at(1, 7)));
        assert_eq!(contiguous(at(1, 5), [at(1, 6), at(1, 8)]), gap(at(1, 7), at(1, 8)));
        assert_eq!(contiguous(at(1, 5), [at(2, 1)]), gap(at(1, 6), at(2, 1)));
    }
}
