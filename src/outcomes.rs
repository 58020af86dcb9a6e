//! How requests ended, counted by the minute: what the ledger can not know, since a refusal leaves nothing behind.
//!
//! Each node counts in memory, and every now and then writes its counts of each minute down, whole: writing them again
//! changes nothing. A node that is killed loses what it has counted since it last wrote. The metrics have the same counts,
//! without namespaces.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    domain::{Millis, Namespace},
    ledger::{Ledger, LedgerError},
    sync::Complaint,
};

/// Milliseconds of a minute.
pub const MINUTE_MS: u64 = 60_000;
/// Minutes that are kept while the ledger can not be written; then the oldest is lost.
const MINUTES_MAX: usize = 1440;

/// This node's counts that the ledger may not have yet.
#[derive(Debug, Default)]
pub struct Outcomes {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    minutes: VecDeque<Minute>,
    /// The metric of each outcome: looking it up by its label would cost more than counting does.
    metrics: HashMap<&'static str, metrics::Counter>,
}

/// The counts of one minute.
#[derive(Debug, Clone, Default)]
struct Minute {
    begin_ms: u64,
    counts: HashMap<Namespace, HashMap<&'static str, u64>>,
}

/// One count: where, of which minute, how it ended, and how often.
pub type Count = (Namespace, Millis, &'static str, u64);

impl Outcomes {
    /// Counts one request of a namespace that there is.
    pub fn count(&self, namespace: &Namespace, outcome: &'static str, now: Millis) {
        let ms = u64::try_from(now.as_ms()).unwrap_or_default();
        let begin_ms = ms - ms % MINUTE_MS;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { minutes, metrics } = &mut *counts;
        let new = || metrics::counter!("redeemer_redemptions_total", "outcome" => outcome);
        metrics.entry(outcome).or_insert_with(new).increment(1);
        // A clock that goes back counts for the minute that it was.
        if minutes.back().is_none_or(|minute| minute.begin_ms < begin_ms) {
            minutes.push_back(Minute { begin_ms, ..Minute::default() });
            if minutes.len() > MINUTES_MAX {
                minutes.pop_front();
            }
        }
        let Some(minute) = minutes.back_mut() else { return };
        if !minute.counts.contains_key(namespace) {
            minute.counts.insert(namespace.clone(), HashMap::new());
        }
        if let Some(counts) = minute.counts.get_mut(namespace) {
            *counts.entry(outcome).or_default() += 1;
        }
    }

    /// Every count, and how many minutes that are over they are of.
    fn all(&self) -> (Vec<Count>, usize) {
        let Counts { minutes, .. } = &*self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::new();
        for Minute { begin_ms, counts } in minutes {
            let begin = i64::try_from(*begin_ms).unwrap_or(i64::MAX);
            let Ok(begin) = Millis::from_ms(begin) else { continue };
            for (namespace, counts) in counts {
                all.extend(counts.iter().map(|(word, n)| (namespace.clone(), begin, *word, *n)));
            }
        }
        (all, minutes.len().saturating_sub(1))
    }

    /// The ledger has this many of the oldest minutes for good.
    fn forget(&self, minutes: usize) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let minutes = minutes.min(counts.minutes.len().saturating_sub(1));
        counts.minutes.drain(..minutes);
    }

    async fn write(&self, ledger: &Ledger, node: &str, keep: Duration) -> Result<(), LedgerError> {
        let (counts, over) = self.all();
        if counts.is_empty() {
            return Ok(());
        }
        ledger.write_outcomes(node, &counts, keep).await?;
        self.forget(over);
        Ok(())
    }
}

/// Writes the counts down every now and then until `stop`, and once more then.
pub async fn run(
    outcomes: std::sync::Arc<Outcomes>,
    ledger: Ledger,
    node: String,
    (every, keep): (Duration, Duration),
    stop: CancellationToken,
) {
    let mut complaint = Complaint::default();
    loop {
        let stopped = stop.run_until_cancelled(tokio::time::sleep(every)).await.is_none();
        match outcomes.write(&ledger, &node, keep).await {
            Ok(()) => complaint.settle(),
            Err(error) => {
                if let Some(error) = complaint.news(&error) {
                    tracing::warn!(error, "the counts of outcomes are not written");
                }
            }
        }
        if stopped {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_whole_until_the_ledger_has_it() {
        let (outcomes, namespace) = (Outcomes::default(), Namespace::default_namespace());
        let at = |ms| Millis::from_ms(ms).unwrap();
        outcomes.count(&namespace, "granted", at(60_000));
        outcomes.count(&namespace, "granted", at(119_999));
        assert_eq!(outcomes.all(), (vec![(namespace.clone(), at(60_000), "granted", 2)], 0));
        outcomes.count(&namespace, "replayed", at(120_000));
        // The clock goes back.
        outcomes.count(&namespace, "replayed", at(119_000));
        let (mut all, over) = outcomes.all();
        all.sort();
        assert_eq!((all.len(), over), (2, 1));
        outcomes.forget(over);
        assert_eq!(outcomes.all().0, [(namespace.clone(), at(120_000), "replayed", 2)]);
        outcomes.forget(5);
        assert_eq!(outcomes.all().0.len(), 1, "the minute that goes on stays");
        for minute in 0..2000 {
            outcomes.count(&namespace, "granted", at(180_000 + minute * 60_000));
        }
        assert_eq!(outcomes.all().0.len(), MINUTES_MAX);
    }
}
