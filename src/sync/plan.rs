//! What a batch of entries means for the ledger's tables: pure, so that it can be tested on every kind of history.
//!
//! A batch is folded into the final row of everything that it touches. Applying the fold is far cheaper than applying
//! entry after entry, and since rows are whole and absolute it ends in the same tables.

use std::collections::BTreeMap;

use crate::{
    domain::{
        Change, Cursor, Entry, Group, InviteId, MembershipRule, Namespace, RedemptionId, UserId,
        change::{InviteAction, exclusive_key},
    },
    ledger::rows::{
        self, AuditRow, EndedRow, InviteRow, MemberRow, NamespaceRow, RedemptionRow, Rows, UsesRow,
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
    members: BTreeMap<MemberKey, Result<MemberRow, EndedRow>>,
    redemptions: Vec<RedemptionRow>,
    /// Memberships that ended: what was redeemed for them counts no more under the rule.
    released: Vec<EndedRow>,
    audit: Vec<AuditRow>,
}

#[derive(Default)]
struct InviteFold {
    whole: Option<InviteRow>,
    uses: Option<UsesRow>,
    displaced: bool,
    deleted: bool,
}

impl Fold {
    fn apply(&mut self, entry: &Entry) {
        let Entry { cursor, namespace, .. } = entry;
        match &entry.change {
            Change::Namespace(settings) => {
                let row = NamespaceRow {
                    name: namespace.clone(),
                    settings: settings.clone(),
                    cursor: *cursor,
                };
                self.namespaces.insert(namespace.clone(), row);
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
                    if let Some(row) = &mut ended.whole {
                        row.holds_code = false;
                    }
                }
                let row =
                    InviteRow { invite: invite.clone(), holds_code: *holds_code, cursor: *cursor };
                let fold = self.invites.entry(invite.id).or_default();
                fold.whole = Some(row);
                fold.uses = None;
                let action = match action {
                    InviteAction::Created => "invite_created",
                    InviteAction::Changed => "invite_changed",
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
            Change::InviteDeleted { id } => {
                let fold = self.invites.entry(*id).or_default();
                *fold = InviteFold { deleted: true, ..InviteFold::default() };
                self.audit(entry, "invite_deleted", id.to_string());
            }
            Change::Redeemed { redemption, request, uses, rule, metadata } => {
                self.spend(redemption.invite, *uses, redemption.ordinal, *cursor);
                self.join(entry, &redemption.user, &redemption.group, *rule, Some(redemption.id));
                self.redemptions.push(RedemptionRow {
                    redemption: redemption.clone(),
                    request: request.clone(),
                    exclusive_key: exclusive_key(*rule, &redemption.group, Some(redemption.invite)),
                    metadata: metadata.clone(),
                });
            }
            Change::Joined { user, group, rule } => {
                self.join(entry, user, group, *rule, None);
                self.audit(entry, "joined", format!("{user} in {group}"));
            }
            Change::Left { user, group } => {
                self.release(*cursor, namespace, user, group);
                self.audit(entry, "left", rows::left(user, group));
            }
        }
    }

    fn spend(&mut self, invite: InviteId, uses: u64, granted: u64, cursor: Cursor) {
        let fold = self.invites.entry(invite).or_default();
        match &mut fold.whole {
            Some(row) => {
                row.invite.uses = uses;
                row.invite.granted = granted;
                row.cursor = cursor;
            }
            None => fold.uses = Some(UsesRow { invite, uses, granted, cursor }),
        }
    }

    fn join(
        &mut self,
        entry: &Entry,
        user: &UserId,
        group: &Group,
        rule: MembershipRule,
        redemption: Option<RedemptionId>,
    ) {
        let row = MemberRow {
            namespace: entry.namespace.clone(),
            user: user.clone(),
            group: group.clone(),
            redemption,
            joined_at: entry.at,
            exclusive_key: (rule == MembershipRule::OneGroup).then(|| "*".to_owned()),
            cursor: entry.cursor,
        };
        self.members.insert((entry.namespace.clone(), user.clone(), group.clone()), Ok(row));
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
        self.members.insert(key, Err(row));
    }

    fn audit(&mut self, entry: &Entry, action: &'static str, subject: String) {
        self.audit.push(AuditRow {
            cursor: entry.cursor,
            at: entry.at,
            actor: entry.actor.clone(),
            action,
            namespace: entry.namespace.clone(),
            subject,
        });
    }

    fn into_rows(self) -> Rows {
        let mut rows = Rows {
            namespaces: self.namespaces.into_values().collect(),
            released: self.released,
            redemptions: self.redemptions,
            audit: self.audit,
            ..Rows::default()
        };
        for member in self.members.into_values() {
            match member {
                Ok(row) => rows.members.push(row),
                Err(row) => rows.left.push(row),
            }
        }
        for (id, fold) in self.invites {
            if fold.deleted {
                rows.deleted_invites.push(id);
            }
            if fold.displaced {
                rows.displaced_invites.push(id);
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
    use crate::domain::{BatchId, Code, CodeCase, Invite, Millis};

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
            uses: 0,
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
