//! Twice as many requests as the service can serve: who is turned away, and how, and how those fare who are not.

use std::time::{Duration, Instant};

use super::{
    lab::{CONNECTIONS_OPEN, Effort, Lab, Level, open},
    rows::{Bar, Unit},
};

/// More than wait in one line (`gate.queue_max`), so that it can get full.
const CONNECTIONS: usize = 12_000;
const SECONDS: f64 = 6.0;
/// How long it looks whether all is well again.
const RECOVERY_MAX: Duration = Duration::from_secs(20);

pub(crate) fn run(lab: &mut Lab) -> anyhow::Result<()> {
    let maximum = lab.maximum(Level::Gate)?;
    let effort = lab.effort;
    let connections = room_for(if effort == Effort::Smoke { 200 } else { CONNECTIONS });
    let service = lab.embedded()?;
    let calm = open(service, effort, 2.0, Level::Gate, maximum / 2.0, CONNECTIONS_OPEN)?;
    let calm_p99 = calm.latency_ms(0.99);
    let report = open(service, effort, SECONDS, Level::Gate, maximum * 2.0, connections)?;
    let ended = Instant::now();
    let mut recovered = None;
    while recovered.is_none() && ended.elapsed() < RECOVERY_MAX {
        let begun = ended.elapsed();
        let again =
            open(service, Effort::Smoke, 0.0, Level::Gate, maximum / 2.0, CONNECTIONS_OPEN)?;
        let is_well =
            again.refusal.is_none() && again.latency_ms(0.99) <= (calm_p99 * 2.0).max(5.0);
        recovered = is_well.then_some(begun);
    }
    service.wait_until_synced()?;

    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let of_all = |count: u64| count as f64 / report.statuses.values().sum::<u64>() as f64;
    let refused = report.statuses.get(&503).copied().unwrap_or_default();
    let other: u64 = report
        .statuses
        .iter()
        .filter(|(status, _)| !matches!(status, 201 | 503))
        .map(|(_, count)| count)
        .sum();
    lab.row(
        "goodput at twice the maximum, over the maximum",
        Bar::None,
        Unit::Ratio,
        report.granted_rate / maximum,
    );
    lab.row("answered 503 with Retry-After", Bar::None, Unit::Share, of_all(report.told_to_wait));
    lab.row(
        "answered 503 without it",
        Bar::None,
        Unit::Share,
        of_all(refused - report.told_to_wait),
    );
    lab.row("answered anything else but 201", Bar::None, Unit::Share, of_all(other));
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    lab.row(
        "connections that broke, requests without an answer",
        Bar::None,
        Unit::Count,
        (report.broken + report.unanswered) as f64,
    );
    lab.row("p50 of what was granted meanwhile", Bar::None, Unit::Millis, report.latency_ms(0.5));
    lab.row("p99 of what was granted meanwhile", Bar::None, Unit::Millis, report.latency_ms(0.99));
    match recovered {
        Some(took) => lab.row(
            "half load is served as before, after",
            Bar::None,
            Unit::Seconds,
            took.as_secs_f64(),
        ),
        None => lab.failed(
            "half load is served as before, after",
            Bar::None,
            Unit::Seconds,
            "not within 20 s",
        ),
    }
    Ok(())
}

/// As many connections as this process and its children may have, at most so many.
fn room_for(connections: usize) -> usize {
    use rustix::process::{Resource, getrlimit};
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    connections.min(usize::try_from(files.saturating_sub(500)).unwrap_or(connections))
}
