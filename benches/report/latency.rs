//! How long people wait at a given rate, and how far behind the ledger is: open loops.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;

use super::{
    chart::Series,
    lab::{CONNECTIONS_OPEN, Lab, Level, open},
    rows::{Bar, Unit},
    servers::{Service, keys, partition},
};

/// Shares of the most that goes through; half of it is what the bars are about.
const SHARES: [f64; 6] = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9];
const HALF: f64 = 0.5;
const SECONDS: f64 = 3.0;
const SECONDS_AT_HALF: f64 = 8.0;
/// The share of it at which the ledger has to keep up.
const SHARE_OF_LAG: f64 = 0.8;
const SECONDS_OF_LAG: f64 = 6.0;
/// How often both sides are looked at.
const LOOK: Duration = Duration::from_millis(3);

pub(crate) fn run(lab: &mut Lab) -> anyhow::Result<()> {
    for (level, bar_ms) in [(Level::Gate, 3.0), (Level::Ledger, 25.0)] {
        let maximum = lab.maximum(level)?;
        let (effort, service) = (lab.effort, lab.embedded()?);
        let mut points = [Vec::new(), Vec::new()];
        let mut at_half = None;
        for share in SHARES {
            let is_half = (share - HALF).abs() < f64::EPSILON;
            let seconds = if is_half { SECONDS_AT_HALF } else { SECONDS };
            let rate = maximum * share;
            let report = open(service, effort, seconds, level, rate, CONNECTIONS_OPEN)?;
            service.wait_until_synced()?;
            points[0].push((rate, report.latency_ms(0.5)));
            points[1].push((rate, report.latency_ms(0.99)));
            if is_half {
                at_half = Some(report.none_refused()?);
            }
        }
        for (points, name) in points.into_iter().zip(["p50", "p99"]) {
            lab.series
                .push(("latency", Series { name: format!("{} {name}", level.word()), points }));
        }
        if let Some(report) = at_half {
            let word = level.word();
            let row = |lab: &mut Lab, what: &str, bar, figure| {
                lab.row(
                    &format!("{what} at half of the maximum, level {word}"),
                    bar,
                    Unit::Millis,
                    figure,
                );
            };
            row(lab, "p99", Bar::AtMost(bar_ms), report.latency_ms(0.99));
            row(lab, "p50", Bar::None, report.latency_ms(0.5));
            row(lab, "slowest", Bar::None, report.latency_ms_max());
        }
    }
    let rate = lab.maximum(Level::Gate)? * SHARE_OF_LAG;
    let (effort, service) = (lab.effort, lab.embedded()?);
    let lags = lags(service, || {
        open(service, effort, SECONDS_OF_LAG, Level::Gate, rate, CONNECTIONS_OPEN)?
            .none_refused()
            .map(drop)
    })?;
    let quantile = |share: usize| lags[(lags.len() - 1) * share / 100].as_secs_f64() * 1e3;
    let (half, most) = (quantile(50), quantile(99));
    lab.row("sync lag at 80 % load, p99", Bar::AtMost(100.0), Unit::Millis, most);
    lab.row("sync lag at 80 % load, p50", Bar::None, Unit::Millis, half);
    Ok(())
}

/// Looks, while something is done, where the gate is and where the ledger is; returns how long the ledger took to come
/// to where the gate was, sorted.
fn lags(
    service: &Service,
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Duration>> {
    let stop = AtomicBool::new(false);
    let (gate, ledger) = thread::scope(|scope| {
        let watching = scope.spawn(|| watch(service, &stop));
        let done = work();
        stop.store(true, Ordering::SeqCst);
        let watched = watching.join().map_err(|_| anyhow::anyhow!("the watch panicked"))?;
        done.and(watched)
    })?;
    let mut lags = Vec::new();
    let mut reached = ledger.iter().peekable();
    for (at, seq) in gate {
        while reached.next_if(|(_, cursor)| *cursor < seq).is_some() {}
        if let Some((then, _)) = reached.peek() {
            lags.push(then.saturating_duration_since(at));
        }
    }
    lags.sort();
    ensure!(!lags.is_empty(), "nothing was seen");
    Ok(lags)
}

type Seen = Vec<(Instant, u64)>;

/// Where the gate was, and where the ledger was, until the gate stands still and the ledger has come there.
fn watch(service: &Service, stop: &AtomicBool) -> anyhow::Result<(Seen, Seen)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ledger = runtime.block_on(service.ledger())?;
    let mut redis = service.redis().connect()?;
    let partition = partition();
    let meta = keys().meta(partition);
    let (mut in_gate, mut in_ledger) = (Vec::new(), Vec::new());
    loop {
        let stopping = stop.load(Ordering::SeqCst);
        let seq: u64 = redis::cmd("HGET").arg(&meta).arg("seq").query(&mut redis)?;
        let is_new = in_gate.last().is_none_or(|(_, last)| *last < seq);
        if is_new && !stopping {
            in_gate.push((Instant::now(), seq));
        }
        let cursor = runtime.block_on(ledger.partition(partition))?.cursor.seq;
        in_ledger.push((Instant::now(), cursor));
        if stopping && cursor >= seq {
            return Ok((in_gate, in_ledger));
        }
        thread::sleep(LOOK);
    }
}
