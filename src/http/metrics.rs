//! `GET /metrics`: how this node does, as Prometheus text.
//!
//! Labels have few values: never a code, a user or a namespace. What is counted is counted where it happens, with
//! handles that are made once; what only has a state now is looked at when somebody asks.

use actix_web::{HttpResponse, web};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::{State, problem::Code};
use crate::{
    domain::{Partition, Policy},
    gate::Gate,
};

/// Every metric, with what it says; docs/api.md has the same words.
pub const DESCRIBED: &[(&str, &str)] = &[
    ("redeemer_build_info", "always 1; the label version says which version runs"),
    ("redeemer_check_ok", "by check, those of /readyz: 1 while it is well"),
    ("redeemer_http_requests_total", "by method, route, status"),
    ("redeemer_http_request_seconds", "by route, a histogram"),
    ("redeemer_problems_total", "by code: answers that were problems"),
    ("redeemer_redemptions_total", "by outcome, granted, replayed or the code of the refusal"),
    (
        "redeemer_rate_limited_total",
        "by policy: redemptions, validations and reservations refused by a rate limit",
    ),
    ("redeemer_gate_waiting_requests", "by partition: requests that wait in its lanes now"),
    (
        "redeemer_gate_queue_seconds",
        "how long requests waited in a lane before their first call, a histogram",
    ),
    ("redeemer_gate_batch_requests", "requests per script call, a histogram"),
    ("redeemer_gate_call_seconds", "script calls of the lanes, a histogram"),
    ("redeemer_gate_call_failures_total", "by kind: unknown (no answer), not_now, refused, script"),
    (
        "redeemer_gate_moves_total",
        "partitions' primaries that another server has replaced, as this node saw it",
    ),
    ("redeemer_ledger_wait_seconds", "how long answers of level ledger waited for it, a histogram"),
    ("redeemer_partitions", "by state in the ledger: open, closed, or stuck, which needs a person"),
    ("redeemer_partitions_led", "partitions whose outboxes this node carries over"),
    (
        "redeemer_recoveries_total",
        "by how: partitions opened anew on another history of Redis: adopted, rebuilt, taken",
    ),
    (
        "redeemer_spread_moves_total",
        "how often uses were moved to another part of a namespace that is spread",
    ),
    ("redeemer_claims_total", "redemptions that Redis had lost and nodes brought back"),
    (
        "redeemer_trace_spans_total",
        "by result: sent, failed (the collector did not take them) or dropped (trace.queue_max were waiting)",
    ),
    (
        "redeemer_claims_given_up_total",
        "grants that a node keeps no more, since the ledger is far behind",
    ),
    (
        "redeemer_lost_acknowledgements_total",
        "redemptions that somebody was told of and that are lost: look into the table claims",
    ),
    (
        "redeemer_outbox_entries",
        "by partition, on the node that leads it: changes that the ledger does not have yet",
    ),
    (
        "redeemer_outbox_age_seconds",
        "by partition, on the node that leads it: how long the oldest of them has waited",
    ),
    ("redeemer_sync_entries_total", "by partition: changes carried over"),
    ("redeemer_sync_batch_entries", "changes per transaction, a histogram"),
    ("redeemer_sync_commit_seconds", "transactions that carry changes over, a histogram"),
    (
        "redeemer_sync_lag_seconds",
        "age of a transaction's oldest change once it was committed, a histogram",
    ),
    ("redeemer_sync_gaps_total", "holes in the row of changes, at which the sync stops"),
    (
        "redeemer_dead_letters_total",
        "changes that the ledger refused: see redeemer dead-letters list",
    ),
    (
        "redeemer_drift",
        "by partition: keys that do not hold what the ledger says and laws that its rows break, at the last audit (sync.audit_every_seconds)",
    ),
    ("redeemer_batch_codes_total", "codes of batches that this node has made"),
    ("redeemer_webhook_attempts_total", "by result: delivered or failed"),
];

/// What `/metrics` shows. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Begins to count; what was counted before is lost.
    ///
    /// # Errors
    /// When something in this process counts already.
    pub fn install() -> Result<Self, BuildError> {
        let seconds = [
            0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0,
            5.0, 10.0,
        ];
        let requests = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
        let entries = [1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0];
        let buckets = |suffix: &str| Matcher::Suffix(suffix.to_owned());
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(buckets("_seconds"), &seconds)?
            .set_buckets_for_metric(buckets("_batch_requests"), &requests)?
            .set_buckets_for_metric(buckets("_batch_entries"), &entries)?
            .install_recorder()?;
        for (name, says) in DESCRIBED {
            // One text by name, whatever the kind.
            metrics::describe_gauge!(*name, *says);
        }
        begin();
        Ok(Self { handle })
    }

    /// To be called every few seconds: what was recorded is put into its buckets.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// The answer, with what only has a state now.
    pub(super) fn response(&self, gate: &Gate) -> HttpResponse {
        for (Partition(number), waiting) in gate.waiting() {
            let gauge = metrics::gauge!("redeemer_gate_waiting_requests", "partition" => number.to_string());
            #[expect(clippy::cast_precision_loss, reason = "a lane has room for some thousands")]
            gauge.set(waiting as f64);
        }
        HttpResponse::Ok()
            .content_type("text/plain; version=0.0.4; charset=utf-8")
            .body(self.handle.render())
    }
}

/// Series that are to be there before anything happens: an alert can only see what has grown from nothing if the nothing
/// was there.
fn begin() {
    metrics::gauge!("redeemer_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    for code in Code::ALL {
        metrics::counter!("redeemer_problems_total", "code" => code.as_str()).increment(0);
    }
    for outcome in ["granted", "replayed"] {
        metrics::counter!("redeemer_redemptions_total", "outcome" => outcome).increment(0);
    }
    for policy in Policy::ALL {
        metrics::counter!("redeemer_rate_limited_total", "policy" => policy.as_str()).increment(0);
    }
    for name in [
        "redeemer_gate_moves_total",
        "redeemer_spread_moves_total",
        "redeemer_claims_total",
        "redeemer_lost_acknowledgements_total",
        "redeemer_sync_gaps_total",
        "redeemer_dead_letters_total",
    ] {
        metrics::counter!(name).increment(0);
    }
    for kind in ["unknown", "not_now", "refused", "script"] {
        metrics::counter!("redeemer_gate_call_failures_total", "kind" => kind).increment(0);
    }
    for how in ["adopted", "rebuilt", "taken"] {
        metrics::counter!("redeemer_recoveries_total", "how" => how).increment(0);
    }
}

pub(super) async fn show(state: web::Data<State>) -> HttpResponse {
    state.metrics.response(&state.gate)
}

pub(super) mod docs {
    use crate::http::openapi::{Operation, Tag};

    pub(in crate::http) fn show() -> Operation {
        Operation::new("metrics", Tag::Service, "How it does, as Prometheus text")
            .answers_text("The metrics.", &["text/plain"])
    }
}
