//! The faults of a run: which, when and for how long follows from the seed alone.

use std::{fmt, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::redis::Kind;

/// What a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// Redis, of this kind.
    Redis(Kind),
    /// The node of this number, from 0.
    Node(u32),
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `SIGKILL` to a node, and a new start.
    NodeKilled,
    /// `SIGSTOP` to a node, perhaps one that leads, and `SIGCONT`.
    NodePaused,
    /// `SIGKILL` to a primary of Redis, and a new start on the same files. If it takes long, a replica takes over.
    RedisKilled,
    /// `SIGSTOP` to a primary of Redis, and `SIGCONT`. One for which a replica has taken over wakes up late.
    RedisPaused,
    /// `SCRIPT FLUSH`: Redis forgets the scripts.
    ScriptsForgotten,
    /// `FLUSHALL`: Redis forgets everything.
    RedisEmptied,
    /// `SIGKILL` to a sentinel, and a new start.
    SentinelKilled,
    /// A partition's slot goes to another primary of the cluster, with everything that is in it.
    SlotMoved,
}

/// One fault of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strike {
    /// How long the victim is left alone before it, once it is well.
    pub after: Duration,
    /// What happens.
    pub fault: Fault,
    /// How long until it is ended: started again, or continued.
    pub lasts: Duration,
    /// Which one, where there are several.
    pub pick: usize,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 8] = [
        Self::NodeKilled,
        Self::NodePaused,
        Self::RedisKilled,
        Self::RedisPaused,
        Self::ScriptsForgotten,
        Self::RedisEmptied,
        Self::SentinelKilled,
        Self::SlotMoved,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NodeKilled => "node killed",
            Self::NodePaused => "node paused",
            Self::RedisKilled => "Redis killed",
            Self::RedisPaused => "Redis paused",
            Self::ScriptsForgotten => "SCRIPT FLUSH",
            Self::RedisEmptied => "FLUSHALL",
            Self::SentinelKilled => "sentinel killed",
            Self::SlotMoved => "slot moved",
        })
    }
}

/// The endless plan for one victim. Faults that lose what Redis has are in it only if it is `lossy`.
pub fn plan(seed: u64, victim: Victim, lossy: bool) -> impl Iterator<Item = Strike> {
    let stream = match victim {
        Victim::Redis(_) => 0,
        Victim::Node(number) => u64::from(number) + 1,
    };
    let mut random = random(seed, &[1, stream]);
    std::iter::from_fn(move || {
        let dice = random.random_range(0..100);
        let fault = match (victim, dice) {
            (Victim::Node(_), 0..65) => Fault::NodeKilled,
            (Victim::Node(_), _) => Fault::NodePaused,
            (Victim::Redis(_), 0..20) if lossy => Fault::RedisEmptied,
            (Victim::Redis(_), 0..50) => Fault::RedisKilled,
            (Victim::Redis(_), 50..80) => Fault::RedisPaused,
            (Victim::Redis(Kind::Sentinel), 80..90) => Fault::SentinelKilled,
            (Victim::Redis(Kind::Cluster), 80..95) => Fault::SlotMoved,
            (Victim::Redis(_), _) => Fault::ScriptsForgotten,
        };
        let after = random.random_range(match victim {
            Victim::Redis(_) => 300..2_500,
            Victim::Node(_) => 200..2_000,
        });
        // Most are short; some are longer than a lease, than a request is tried, and than it takes to replace a primary.
        let longest = if random.random_range(0..4) == 0 { 4_000 } else { 600 };
        let lasts = match fault {
            Fault::ScriptsForgotten | Fault::RedisEmptied | Fault::SlotMoved => 0,
            Fault::RedisKilled if victim != Victim::Redis(Kind::Standalone) => {
                random.random_range(0..2 * longest)
            }
            Fault::NodeKilled | Fault::RedisKilled | Fault::SentinelKilled => {
                random.random_range(0..400)
            }
            Fault::NodePaused | Fault::RedisPaused => random.random_range(20..longest),
        };
        Some(Strike {
            after: Duration::from_millis(after),
            fault,
            lasts: Duration::from_millis(lasts),
            pick: random.random_range(0..1024),
        })
    })
}

/// The random numbers of one part of a run, which no other part disturbs.
pub(super) fn random(seed: u64, part: &[u64]) -> StdRng {
    let mut bytes = [0; 32];
    for (place, number) in bytes.chunks_exact_mut(8).zip([seed].iter().chain(part)) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    StdRng::from_seed(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strikes(seed: u64, victim: Victim, lossy: bool) -> Vec<Strike> {
        plan(seed, victim, lossy).take(300).collect()
    }

    #[test]
    fn the_same_seed_makes_the_same_plan_and_another_seed_or_victim_another() {
        let one = strikes(1, Victim::Node(0), false);
        assert_eq!(one, strikes(1, Victim::Node(0), false));
        assert_ne!(one, strikes(2, Victim::Node(0), false));
        assert_ne!(one, strikes(1, Victim::Node(1), false));
    }

    #[test]
    fn every_fault_is_in_some_plan_and_redis_is_emptied_in_a_lossy_one_alone() {
        let redis = Victim::Redis(Kind::Standalone);
        let faults = |victim, lossy| -> std::collections::BTreeSet<Fault> {
            strikes(7, victim, lossy).into_iter().map(|strike| strike.fault).collect()
        };
        assert!(!faults(redis, false).contains(&Fault::RedisEmptied));
        let mut all = &faults(redis, true) | &faults(Victim::Node(0), false);
        all.extend(faults(Victim::Redis(Kind::Sentinel), false));
        all.extend(faults(Victim::Redis(Kind::Cluster), false));
        assert_eq!(all, Fault::ALL.into());
    }
}
