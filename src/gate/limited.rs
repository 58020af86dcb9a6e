//! Who was refused by a rate limit lately: in this node's memory, nowhere else, and not for long.
//!
//! Redis knows who is limited now, but has to be looked through key by key to say so. What is kept here names people and
//! their addresses, so it is little: a few hundred of a namespace, each for an hour after its last refusal.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::domain::{Millis, Namespace, Policy, UserId};

/// The most that are kept of a namespace; who was refused longest ago makes room.
pub const KEPT_MAX: usize = 200;
/// How long they are kept after their last refusal.
pub const KEPT_MS: u64 = 3_600_000;

/// By what a limit counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Which limit.
    pub policy: Policy,
    /// What the name is: `user`, `ip`, `code`, `namespace` or `key`.
    pub kind: &'static str,
    /// Of whom or what.
    pub name: String,
}

/// How often somebody was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// How often, as far as it is known.
    pub count: u64,
    /// When it began.
    pub first_at: Millis,
    /// When it was last.
    pub last_at: Millis,
    /// From when on an attempt passes this limit.
    pub free_at: Millis,
}

/// Those who were refused lately, by namespace.
#[derive(Debug, Default)]
pub struct Limited {
    table: Mutex<HashMap<Namespace, HashMap<Subject, Refused>>>,
}

impl Limited {
    /// Notes a refusal at `now`, which holds for so long.
    pub fn note(&self, namespace: &Namespace, subject: Subject, now: Millis, retry_after_ms: u64) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = table.entry(namespace.clone()).or_default();
        if kept.len() >= KEPT_MAX && !kept.contains_key(&subject) {
            let oldest = kept.iter().min_by_key(|(_, refused)| refused.last_at);
            if let Some(oldest) = oldest.map(|(subject, _)| subject.clone()) {
                kept.remove(&oldest);
            }
        }
        let free_at = now.plus_ms(retry_after_ms);
        let new = Refused { count: 0, first_at: now, last_at: now, free_at };
        let refused = kept.entry(subject).or_insert(new);
        refused.count += 1;
        (refused.last_at, refused.free_at) = (now, free_at);
    }

    /// Forgets who was refused too long ago. To be called every few seconds.
    pub fn tidy(&self, now: Millis) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for kept in table.values_mut() {
            kept.retain(|_, refused| refused.last_at.plus_ms(KEPT_MS) > now);
        }
        table.retain(|_, kept| !kept.is_empty());
    }

    /// Those of a namespace, the last first.
    #[must_use]
    pub fn of(&self, namespace: &Namespace) -> Vec<(Subject, Refused)> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = table.get(namespace).into_iter().flatten();
        let mut all: Vec<_> =
            kept.map(|(subject, refused)| (subject.clone(), refused.clone())).collect();
        all.sort_by(|(a, one), (b, other)| (other.last_at, &a.name).cmp(&(one.last_at, &b.name)));
        all
    }

    /// Forgets a user.
    pub fn forget(&self, namespace: &Namespace, user: &UserId) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = table.get_mut(namespace) {
            kept.retain(|subject, _| subject.kind != "user" || subject.name != user.as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Millis {
        Millis::from_ms(ms).unwrap()
    }

    fn user(name: &str) -> Subject {
        Subject { policy: Policy::User, kind: "user", name: name.to_owned() }
    }

    #[test]
    fn who_was_refused_is_counted_and_forgotten_an_hour_after_the_last_time() {
        let (limited, namespace) = (Limited::default(), Namespace::default_namespace());
        limited.note(&namespace, user("alice"), at(1000), 500);
        limited.note(&namespace, user("bob"), at(2000), 500);
        limited.note(&namespace, user("alice"), at(3000), 700);
        let (first_at, last_at, free_at) = (at(1000), at(3000), at(3700));
        let alice = (user("alice"), Refused { count: 2, first_at, last_at, free_at });
        let found = limited.of(&namespace);
        assert_eq!((found.len(), &found[0]), (2, &alice));
        assert!(limited.of(&Namespace::parse("other").unwrap()).is_empty());
        limited.tidy(at(2000 + 3_600_000));
        assert_eq!(limited.of(&namespace), [alice]);
        limited.forget(&namespace, &UserId::parse("alice").unwrap());
        assert!(limited.of(&namespace).is_empty());
    }

    #[test]
    fn there_is_room_for_so_many_and_the_newest_stay() {
        let (limited, namespace) = (Limited::default(), Namespace::default_namespace());
        for number in 0..i64::try_from(KEPT_MAX).unwrap() + 5 {
            limited.note(&namespace, user(&number.to_string()), at(number), 0);
        }
        let found = limited.of(&namespace);
        assert_eq!(found.len(), KEPT_MAX);
        assert_eq!(found.last().unwrap().1.last_at, at(5));
    }
}
