//! Looks after what `/readyz` says.

use std::{collections::BTreeMap, time::Duration};

use tokio::sync::watch;

use crate::{
    domain::{Namespace, Partition},
    gate::{
        Gate,
        put_namespace::{Action, NamespacePut, PutNamespace, Rules},
        server,
    },
    http::{Check, Readiness},
    ledger::{Ledger, PartitionRow, PartitionState},
    recovery,
    sync::chain,
};

/// How often it looks before the node is ready for the first time, and after that.
const EVERY_AT_FIRST: Duration = Duration::from_millis(10);
const EVERY: Duration = Duration::from_millis(500);
/// Who makes the first namespace.
const ACTOR: &str = "start";

pub(super) struct Watcher {
    pub(super) gate: Gate,
    pub(super) ledger: Ledger,
    pub(super) new_namespace: Rules,
    pub(super) readiness: watch::Sender<Readiness>,
}

impl Watcher {
    /// Looks for ever.
    pub(super) async fn run(self) {
        let mut has_default = false;
        let mut was_ready = false;
        loop {
            let redis = self.redis().await;
            let partitions = self.ledger.partitions().await;
            if let Ok(rows) = &partitions {
                show_partitions(rows);
            }
            let ledger = Check {
                name: "ledger",
                // Redemptions go on without it, up to the outbox's limit: no reason to send them elsewhere.
                required: false,
                ok: partitions.is_ok(),
                detail: partitions.as_ref().err().map(|error| chain(error)),
            };
            let partitions = match partitions {
                Ok(rows) => {
                    let home = self.gate.keys().partition_of(&Namespace::default_namespace());
                    if !has_default && is_open(&rows, home) {
                        has_default = self.ensure_default().await;
                    }
                    let waits = |row: &&PartitionRow| is_coming(row);
                    let settled =
                        rows.iter().find(waits).is_none() && (has_default || !is_open(&rows, home));
                    open_partitions(&rows, was_ready || settled)
                }
                Err(_) => Check { name: "partitions", required: true, ok: was_ready, detail: None },
            };
            let readiness = Readiness { checks: vec![redis, partitions, ledger] };
            for Check { name, ok, .. } in &readiness.checks {
                metrics::gauge!("redeemer_check_ok", "check" => *name)
                    .set(f64::from(u8::from(*ok)));
            }
            was_ready |= readiness.is_ready();
            self.readiness.send_if_modified(|known| {
                let changed = known.checks != readiness.checks;
                if changed {
                    tell(&known.checks, &readiness.checks, was_ready);
                }
                *known = readiness;
                changed
            });
            tokio::time::sleep(if was_ready { EVERY } else { EVERY_AT_FIRST }).await;
        }
    }

    async fn redis(&self) -> Check {
        let detail = match server::unfit(&self.gate).await {
            Ok(unfit) => unfit.into_iter().next(),
            Err(error) => Some(chain(&error)),
        };
        Check { name: "redis", required: true, ok: detail.is_none(), detail }
    }

    async fn ensure_default(&self) -> bool {
        let put = PutNamespace {
            namespace: Namespace::default_namespace(),
            action: Action::Ensure(self.new_namespace.clone()),
            change: crate::ids::unique(),
            expected_revision: None,
            actor: ACTOR.to_owned(),
        };
        match put.run(&self.gate).await {
            Ok(NamespacePut::Created { .. } | NamespacePut::Changed { .. }) => true,
            Ok(other) => {
                tracing::error!(?other, "the namespace default can not be made");
                true
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "the namespace default can not be made yet");
                false
            }
        }
    }
}

/// Counts the partitions by what is to be done about them.
fn show_partitions(rows: &[PartitionRow]) {
    let stuck = rows
        .iter()
        .filter(|row| row.reason.as_deref().is_some_and(|reason| reason != recovery::UNDER_WAY));
    let open = rows.iter().filter(|row| row.state == PartitionState::Open).count();
    for (state, count) in [("open", open), ("closed", rows.len() - open), ("stuck", stuck.count())]
    {
        #[expect(clippy::cast_precision_loss, reason = "there are at most 256 partitions")]
        metrics::gauge!("redeemer_partitions", "state" => state).set(count as f64);
    }
}

/// Says in the log what has come or gone. What is on its way at a start is no news.
fn tell(before: &[Check], now: &[Check], was_ready: bool) {
    for check in now.iter().filter(|check| !before.contains(check)) {
        let Check { name, ok, detail, .. } = check;
        let detail = detail.as_deref().unwrap_or_default();
        let starting = !was_ready
            && (*ok || detail.ends_with("not opened yet") || detail.ends_with(recovery::UNDER_WAY));
        if *ok && !starting {
            tracing::info!(check = name, detail, "well again");
        } else if !starting {
            tracing::warn!(check = name, detail, "not well");
        }
    }
}

fn is_open(rows: &[PartitionRow], partition: Partition) -> bool {
    rows.iter().any(|row| row.partition == partition && row.state == PartitionState::Open)
}

/// Whether a partition will open without anybody's help.
fn is_coming(row: &PartitionRow) -> bool {
    row.state != PartitionState::Open
        && row.reason.as_deref().is_none_or(|reason| reason == recovery::UNDER_WAY)
}

fn open_partitions(rows: &[PartitionRow], settled: bool) -> Check {
    let mut closed: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.state != PartitionState::Open) {
        let reason = row.reason.as_deref().unwrap_or("not opened yet");
        closed.entry(reason).or_default().push(row.partition.to_string());
    }
    let count: usize = closed.values().map(Vec::len).sum();
    let told: Vec<_> =
        closed.iter().map(|(reason, which)| format!("{}: {reason}", which.join(", "))).collect();
    Check {
        name: "partitions",
        required: true,
        ok: settled && count < rows.len(),
        detail: (count > 0).then(|| format!("closed: {}", told.join("; "))),
    }
}
