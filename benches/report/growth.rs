//! What a redemption costs when millions are in, against one with ten thousand; and what one leaves behind in memory.

use std::{thread, time::Duration};

use super::{
    chart::Series,
    fill::fill,
    lab::{Lab, Level, Measured, closed, median},
    output::tell,
    rows::{Bar, Unit},
    servers::{Fsync, Place, RedisServer, Service, keys, wait_until},
};

const SIZES: [u64; 4] = [10_000, 100_000, 1_000_000, 10_000_000];
const SECONDS: f64 = 1.5;
/// How often both take turns.
const TURNS: usize = 3;
const SECONDS_OF_MEMORY: f64 = 4.0;

/// A service on a Redis of its own that does not rewrite its file: that would be work of another kind.
fn service() -> anyhow::Result<(Service, RedisServer)> {
    let server = RedisServer::start(Fsync::EverySecond)?;
    server.redis.run::<()>(&["CONFIG", "SET", "auto-aof-rewrite-percentage", "0"])?;
    let service = Service::start(Place::new(Some(server.redis.clone()), None)?)?;
    Ok((service, server))
}

pub(crate) fn run(lab: &mut Lab) -> anyhow::Result<()> {
    let effort = lab.effort;
    let turns = effort.rounds().min(TURNS);
    let cost = |one: &Measured| one.each(one.redis.cpu) * 1e6;
    let in_scripts = |one: &Measured| one.each(one.redis.scripts) * 1e6;
    let (large, large_redis) = service()?;
    let smallest = effort.count(SIZES[0]);
    let mut series = [Vec::new(), Vec::new()];
    let mut last = None;
    let mut members = 0;
    for size in SIZES.map(|size| effort.count(size)) {
        fill(&large_redis.redis, &keys(), members..size)?;
        members = size;
        // While Redis moves its keys into a larger table it does so a little with every command.
        let growing = cost(&closed(&large, effort, SECONDS, Level::Gate)?);
        settle(&large_redis)?;
        // A new one each time, or it would not stay small.
        let (small, small_redis) = service()?;
        fill(&small_redis.redis, &keys(), 0..smallest)?;
        let (mut pairs, mut rates, mut scripts) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..turns {
            let of_small = closed(&small, effort, SECONDS, Level::Gate)?;
            let of_large = closed(&large, effort, SECONDS, Level::Gate)?;
            pairs.push((cost(&of_small), cost(&of_large)));
            scripts.push((in_scripts(&of_small), in_scripts(&of_large)));
            rates.push((of_small.report.rate, of_large.report.rate));
        }
        let ratio = median(pairs.iter().map(|(small, large)| large / small).collect());
        let rate_ratio = median(rates.iter().map(|(small, large)| large / small).collect());
        let of_pairs = |pairs: &[(f64, f64)]| {
            (
                median(pairs.iter().map(|pair| pair.0).collect()),
                median(pairs.iter().map(|pair| pair.1).collect()),
            )
        };
        let ((small_cost, large_cost), (small_script, large_script)) =
            (of_pairs(&pairs), of_pairs(&scripts));
        tell(&format!(
            "  {size} members: {large_cost:.2} µs of Redis each ({large_script:.2} in scripts), with {smallest} at the \
             same time {small_cost:.2} ({small_script:.2})"
        ));
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let at = size as f64;
        series[0].push((at, large_cost));
        series[1].push((at, small_cost));
        last = Some((ratio, rate_ratio, large_cost, large_script, growing));
    }
    for (points, name) in series.into_iter().zip(["so many in", "10,000 in, at the same time"]) {
        lab.series.push(("growth", Series { name: name.to_owned(), points }));
    }
    if let Some((ratio, rate_ratio, cost, script, growing)) = last {
        lab.row(
            "Redis CPU per redemption with 10 million in, over 10,000 in",
            Bar::AtMost(1.1),
            Unit::Ratio,
            ratio,
        );
        lab.row(
            "redemptions a second with 10 million in, over 10,000 in",
            Bar::None,
            Unit::Ratio,
            rate_ratio,
        );
        lab.row("Redis CPU per redemption with 10 million in", Bar::None, Unit::Micros, cost);
        lab.row("of it in scripts, by the clock", Bar::None, Unit::Micros, script);
        lab.row(
            "the same while Redis moves its keys to a larger table",
            Bar::None,
            Unit::Micros,
            growing,
        );
    }
    Ok(())
}

/// Waits until Redis has moved its keys to the table that it has made for them, and lets it take its time for that.
fn settle(server: &RedisServer) -> anyhow::Result<()> {
    let often = |hz: &str| server.redis.run::<()>(&["CONFIG", "SET", "hz", hz]);
    often("500")?;
    wait_until("Redis has moved its keys", || {
        thread::sleep(Duration::from_millis(200));
        let tables: String = server.redis.run(&["DEBUG", "HTSTATS", "0"])?;
        Ok(!tables.contains("rehashing target"))
    })?;
    often("10")
}

/// What stays in Redis once the ledger has it, without rate limits, whose keys go away by themselves.
pub(crate) fn memory(lab: &mut Lab) -> anyhow::Result<()> {
    let effort = lab.effort;
    let server = RedisServer::start(Fsync::EverySecond)?;
    let place = Place::new(Some(server.redis.clone()), None)?.without_limits();
    let service = Service::start(place)?;
    // What comes once: connections, scripts, the first block of the outbox.
    closed(&service, effort, 0.5, Level::Gate)?;
    let before = settled(&server)?;
    let measured = closed(&service, effort, SECONDS_OF_MEMORY, Level::Gate)?;
    let bytes = measured.each(settled(&server)? - before);
    lab.row("Redis memory per redemption after the sync", Bar::AtMost(400.0), Unit::Bytes, bytes);
    Ok(())
}

/// The memory that is used, once it does not change any more.
fn settled(server: &RedisServer) -> anyhow::Result<f64> {
    let mut last = [f64::NAN; 20];
    wait_until("the memory does not change", || {
        last.rotate_left(1);
        last[19] = server.redis.used_memory()?;
        Ok(last.iter().all(|memory| (memory - last[19]).abs() < 4096.0))
    })?;
    Ok(last[19])
}
