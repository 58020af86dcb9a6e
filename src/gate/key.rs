//! The only place that formats a key.
//!
//! All keys of a partition share its hash tag, so that one script call may touch any of them, also on a cluster:
//!
//! ```text
//! rdm:{07}:meta                        hash    schema, deployment, partitions, epoch, lineage, seq
//! rdm:{07}:outbox                      stream  one entry per change, ids <epoch>-<seq>
//! rdm:{07}:acme:settings               hash    the rules of a namespace
//! rdm:{07}:acme:invite:WELCOME         hash    the current invite of a code
//! rdm:{07}:acme:held:WELCOME           zset    who holds a use of that invite, by deadline
//! rdm:{07}:acme:campaigns              hash    the limits that invites share, and their uses
//! rdm:{07}:acme:campaign-held          zset    what is held of the campaigns, by name and deadline
//! rdm:{07}:acme:retired:<invite id>    hash    an ended invite whose code a new one has taken
//! rdm:{07}:acme:invite-id:<invite id>  string  the invite's code
//! rdm:{07}:acme:moves:<invite id>      hash    what of that invite was given to and got from other shards
//! rdm:{07}:acme:member:alice           hash    memberships, and what the user was answered
//! rdm:{07}:acme:rate:ip:203.0.113.9    string  a rate limit's state, with a TTL
//! ```
//!
//! `{07}` stands for the partition's tag; the real ones carry a letter or two more (see [`Keyspace::tag`]). What people
//! choose freely (users, addresses) is always the last part, and no other part can hold a `:`, so no name can make a
//! key that means something else.

use std::fmt::Display;

use crate::domain::{
    Code, CodeCase, InviteId, Namespace, Partition, Policy, UserId, partition::crc16,
};

/// The slots of a Redis Cluster.
/// Source: Redis Cluster specification, "Key distribution model".
const SLOTS: u16 = 16_384;

/// The most partitions that a deployment can have.
pub const PARTITIONS_MAX: u16 = 256;

/// How a deployment names its keys: its prefix and its partitions.
#[derive(Debug, Clone)]
pub struct Keyspace {
    /// `rdm:{07x}` for each partition.
    stems: Vec<String>,
    tags: Vec<String>,
}

impl Keyspace {
    /// The keys of a deployment with this prefix (`[a-z0-9-]{1,32}`) and 1 to [`PARTITIONS_MAX`] partitions.
    #[must_use]
    pub fn new(prefix: &str, partitions: u16) -> Self {
        let tags: Vec<String> = (0..partitions).map(|number| tag(number, partitions)).collect();
        let stems = tags.iter().map(|tag| format!("{prefix}:{{{tag}}}")).collect();
        Self { stems, tags }
    }

    /// Every partition, in order.
    pub fn partitions(&self) -> impl Iterator<Item = Partition> + use<> {
        (0..u16::try_from(self.stems.len()).unwrap_or(PARTITIONS_MAX)).map(Partition)
    }

    /// The partition of a namespace: CRC-16 of its name, modulo the number of partitions. The shards of one that is
    /// spread begin there and lie at even distances from one another, so that they share the primaries of a cluster
    /// evenly; no two of at most as many as there are partitions meet.
    #[must_use]
    pub fn partition_of(&self, namespace: &Namespace) -> Partition {
        let partitions = u16::try_from(self.stems.len()).unwrap_or(PARTITIONS_MAX);
        let home = crc16(namespace.whole().as_str().as_bytes()) % partitions;
        let away = namespace.shard_number().map_or(0, |(number, of)| {
            let (before, of) = (u32::from(number - 1), u32::from(of));
            let rounded = (2 * before * u32::from(partitions) + of) / (2 * of);
            u16::try_from(rounded).unwrap_or_default()
        });
        Partition((home + away) % partitions)
    }

    /// The hash tag of a partition: its number and the letters that put its slot nearest to the middle of its share of
    /// a cluster's slots. Plain numbers crowd into a few slots and would leave whole primaries without a partition.
    #[must_use]
    pub fn tag(&self, partition: Partition) -> &str {
        &self.tags[usize::from(partition.0)]
    }

    /// The slot of a cluster that a partition's keys are in.
    #[must_use]
    pub fn slot(&self, partition: Partition) -> u16 {
        crc16(self.tag(partition).as_bytes()) % SLOTS
    }

    fn stem(&self, partition: Partition) -> &str {
        &self.stems[usize::from(partition.0)]
    }

    /// The hash that says what the partition is open on and how many changes it has seen.
    #[must_use]
    pub fn meta(&self, partition: Partition) -> String {
        format!("{}:meta", self.stem(partition))
    }

    /// The stream of changes that the ledger has yet to get.
    #[must_use]
    pub fn outbox(&self, partition: Partition) -> String {
        format!("{}:outbox", self.stem(partition))
    }

    /// A pattern for `SCAN` that matches every key of the partition.
    #[must_use]
    pub fn pattern(&self, partition: Partition) -> String {
        format!("{}:*", self.stem(partition))
    }

    /// The rules of a namespace.
    #[must_use]
    pub fn settings(&self, namespace: &Namespace) -> String {
        self.of(namespace, "settings")
    }

    /// The current invite of a code.
    #[must_use]
    pub fn invite(&self, namespace: &Namespace, code: &Code) -> String {
        self.named(namespace, "invite", code)
    }

    /// Who holds a use of the current invite of a code, each until when.
    #[must_use]
    pub fn held(&self, namespace: &Namespace, code: &Code) -> String {
        self.named(namespace, "held", code)
    }

    /// The limits that invites share, and how many uses are spent of each.
    #[must_use]
    pub fn campaigns(&self, namespace: &Namespace) -> String {
        self.of(namespace, "campaigns")
    }

    /// What is held of the campaigns.
    #[must_use]
    pub fn campaign_held(&self, namespace: &Namespace) -> String {
        self.of(namespace, "campaign-held")
    }

    /// An ended invite whose code a new one has taken.
    #[must_use]
    pub fn retired(&self, namespace: &Namespace, id: InviteId) -> String {
        self.named(namespace, "retired", id)
    }

    /// The code of an invite.
    #[must_use]
    pub fn invite_id(&self, namespace: &Namespace, id: InviteId) -> String {
        self.named(namespace, "invite-id", id)
    }

    /// What other participants of a namespace that is spread were given of an invite, and what they gave.
    #[must_use]
    pub fn moves(&self, namespace: &Namespace, id: InviteId) -> String {
        self.named(namespace, "moves", id)
    }

    /// A user's memberships and answers.
    #[must_use]
    pub fn member(&self, namespace: &Namespace, user: &UserId) -> String {
        self.named(namespace, "member", user)
    }

    /// The state of a rate limit. `subject` is what the policy counts by; a guess counts by several kinds of subject,
    /// so its `kind` is part of the key.
    #[must_use]
    pub fn rate(&self, namespace: &Namespace, policy: Policy, kind: &str, subject: &str) -> String {
        match policy {
            Policy::Guess => self.named(namespace, "rate:guess", format_args!("{kind}:{subject}")),
            _ => self.named(namespace, "rate", format_args!("{}:{subject}", policy.as_str())),
        }
    }

    /// Whether a key of this partition is the state of a rate limit.
    #[must_use]
    pub fn is_rate(&self, partition: Partition, key: &str) -> bool {
        let rest = key.strip_prefix(self.stem(partition)).and_then(|rest| rest.strip_prefix(':'));
        rest.and_then(|rest| rest.split_once(':'))
            .is_some_and(|(_, what)| what.starts_with("rate:"))
    }

    /// What a key of a partition is; nothing for one that none of ours can be.
    #[must_use]
    pub fn parse(&self, partition: Partition, key: &str) -> Option<Named> {
        let rest = key.strip_prefix(self.stem(partition))?.strip_prefix(':')?;
        let (namespace, what) = rest.split_once(':')?;
        let namespace = Namespace::stored(namespace).ok()?;
        if self.partition_of(&namespace) != partition {
            return None;
        }
        let (what, name) = what.split_once(':').unwrap_or((what, ""));
        Some(match what {
            "settings" => Named::Settings(namespace),
            "invite" => Named::Invite(namespace),
            "held" => Named::Held(namespace, Code::parse(name, CodeCase::Sensitive).ok()?),
            "campaigns" => Named::Campaigns(namespace),
            "campaign-held" => Named::CampaignHeld(namespace),
            "retired" => Named::Retired(namespace),
            "invite-id" => Named::InviteId,
            "moves" => Named::Moves(namespace, name.parse().ok()?),
            "member" => Named::Member(namespace, UserId::parse(name).ok()?),
            _ => return None,
        })
    }

    /// Whether a key is one of this namespace.
    #[must_use]
    pub fn is_of(&self, namespace: &Namespace, key: &str) -> bool {
        key.starts_with(&self.of(namespace, ""))
    }

    fn of(&self, namespace: &Namespace, what: &str) -> String {
        format!("{}:{namespace}:{what}", self.stem(self.partition_of(namespace)))
    }

    fn named(&self, namespace: &Namespace, what: &str, name: impl Display) -> String {
        format!("{}:{namespace}:{what}:{name}", self.stem(self.partition_of(namespace)))
    }
}

/// What a key is, as far as its values do not say it themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// The rules of a namespace.
    Settings(Namespace),
    /// The current invite of a code.
    Invite(Namespace),
    /// Who holds a use of an invite.
    Held(Namespace, Code),
    /// The campaigns.
    Campaigns(Namespace),
    /// What is held of the campaigns.
    CampaignHeld(Namespace),
    /// An invite that has lost its code.
    Retired(Namespace),
    /// The code of an invite.
    InviteId,
    /// What was given and got of an invite.
    Moves(Namespace, InviteId),
    /// A user's memberships and answers.
    Member(Namespace, UserId),
}

/// The tag whose slot lies nearest to the middle of the partition's share of the slots: with as few letters as put it
/// into that share, of which two are nearly always enough.
fn tag(number: u16, partitions: u16) -> String {
    let share = SLOTS / partitions;
    let middle = number * share + share / 2;
    let off_middle = |tag: &String| (crc16(tag.as_bytes()) % SLOTS).abs_diff(middle);
    let mut tags = vec![format!("{number:02}")];
    loop {
        tags = tags
            .iter()
            .flat_map(|tag| ('a'..='z').map(move |letter| format!("{tag}{letter}")))
            .collect();
        if let Some(best) = tags.iter().min_by_key(|tag| off_middle(tag))
            && off_middle(best) < share.div_ceil(4)
        {
            return best.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str) -> Namespace {
        Namespace::parse(name).unwrap()
    }

    #[test]
    fn the_hash_is_the_one_of_redis_cluster() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
    }

    #[test]
    fn a_namespace_stays_in_its_partition() {
        let keys = Keyspace::new("rdm", 16);
        let partitions = ["default", "acme", "a", "spring-2027"]
            .map(|name| keys.partition_of(&namespace(name)).0);
        assert_eq!(partitions, [6, 8, 7, 6], "changing this moves the data of every deployment");
    }

    #[test]
    fn the_shards_of_a_namespace_lie_in_partitions_of_their_own() {
        for partitions in [2, 3, 16, 256] {
            let keys = Keyspace::new("rdm", partitions);
            for spread in 2..=partitions {
                let of = |shard| keys.partition_of(&shard).0;
                let mut all: Vec<_> = namespace("acme").shards(spread).map(of).collect();
                assert_eq!(all[0], keys.partition_of(&namespace("acme")).0);
                all.sort_unstable();
                all.dedup();
                assert_eq!(all.len(), usize::from(spread), "{spread} of {partitions}");
            }
        }
        let keys = Keyspace::new("rdm", 16);
        let of = |shard| keys.partition_of(&shard).0;
        assert_eq!(namespace("acme").shards(3).map(of).collect::<Vec<_>>(), [8, 13, 3]);
    }

    #[test]
    fn each_tag_lies_near_the_middle_of_its_share_of_the_slots() {
        for partitions in [1, 2, 3, 16, 64, 256] {
            let keys = Keyspace::new("rdm", partitions);
            let share = SLOTS / partitions;
            for partition in keys.partitions() {
                let slot = keys.slot(partition);
                assert_eq!(
                    slot / share,
                    partition.0,
                    "{partitions} partitions, tag {}",
                    keys.tag(partition)
                );
            }
        }
    }

    #[test]
    fn six_primaries_get_two_or_three_of_sixteen_partitions_each() {
        let keys = Keyspace::new("rdm", 16);
        let mut per_primary = [0; 6];
        for partition in keys.partitions() {
            let slot = keys.slot(partition);
            per_primary[usize::from(slot) * 6 / usize::from(SLOTS)] += 1;
        }
        assert!(per_primary.iter().all(|count| (2..=3).contains(count)), "{per_primary:?}");
    }

    #[test]
    fn what_people_choose_is_the_last_part_of_a_key() {
        let keys = Keyspace::new("rdm", 16);
        let user = UserId::parse("x:held:{07}").unwrap();
        let key = keys.member(&namespace("acme"), &user);
        assert!(key.starts_with("rdm:{08") && key.ends_with("}:acme:member:x:held:{07}"), "{key}");
    }
}
