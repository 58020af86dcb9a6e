//! A million changes that wait, brought into the ledger; and a Redis that was emptied, built anew from it.

use std::{thread, time::Instant};

use anyhow::ensure;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use redeemer::domain::Outcome;
use serde_json::json;

use super::{
    lab::{Lab, Level, closed},
    output::tell,
    rows::{Bar, Unit},
    servers::{
        CODE, Fsync, Place, RedisServer, Service, keys, open_gate, partition, question, wait_until,
    },
};

const ENTRIES: u64 = 1_000_000;
/// Redemptions that are asked for at the same time while the backlog is made.
const AT_ONCE: usize = 4096;
/// Of them in one call.
const BATCH_MAX: usize = 512;
const SECONDS: f64 = 3.0;

pub(crate) fn run(lab: &mut Lab) -> anyhow::Result<()> {
    for (name, bar, is_postgres) in [("PostgreSQL", 2.0, true), ("SQLite", 1.5, false)] {
        let ledger = if is_postgres { Some(lab.database()?) } else { None };
        of_ledger(lab, name, bar, ledger)?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn of_ledger(lab: &mut Lab, name: &str, bar: f64, ledger: Option<String>) -> anyhow::Result<()> {
    let effort = lab.effort;
    let entries = effort.count(ENTRIES);
    let server = RedisServer::start(Fsync::EverySecond)?;
    let place = Place::new(Some(server.redis.clone()), ledger)?.without_limits();
    let place = place.with("REDEEMER_GATE__OUTBOX_MAX", ENTRIES * 2);
    // The first start makes everything; the partition stays open when nobody runs.
    let place = Service::start(place)?.stop()?;
    let started = Instant::now();
    make_backlog(&server, entries)?;
    tell(&format!("  {entries} changes made in {:.1} s", started.elapsed().as_secs_f64()));

    let outbox = keys().outbox(partition());
    let (service, rate) = thread::scope(|scope| {
        let starting = scope.spawn(|| Service::start(place));
        let rate = drain_rate(&server, &outbox, entries);
        let service = starting.join().map_err(|_| anyhow::anyhow!("the start panicked"))??;
        anyhow::Ok((service, rate?))
    })?;
    let ingest = closed(&service, effort, SECONDS, Level::Gate)?.report.rate;
    lab.row(
        &format!("a backlog drained into {name}, over the ingest rate"),
        Bar::AtLeast(bar),
        Unit::Ratio,
        rate / ingest,
    );
    lab.row(&format!("changes that {name} takes"), Bar::None, Unit::PerSecond, rate);
    lab.row(
        &format!("redemptions with {name} meanwhile in use"),
        Bar::None,
        Unit::PerSecond,
        ingest,
    );

    let members: u64 = server.redis.run(&["DBSIZE"])?;
    server.redis.run::<()>(&["FLUSHALL", "ASYNC"])?;
    let emptied = Instant::now();
    let mut number = 0;
    wait_until("the emptied gate is built anew", || {
        number += 1;
        let body = json!({"code": CODE, "user": format!("after-{number}")});
        let (status, _) = service.ask("POST", "/v1/namespaces/default/redemptions", Some(&body))?;
        Ok(status == 201)
    })?;
    let took = emptied.elapsed().as_secs_f64();
    let again: u64 = server.redis.run(&["DBSIZE"])?;
    ensure!(again >= members, "{again} keys came back of {members}");
    let per_million = took / (members as f64 / 1e6);
    lab.row(
        &format!("an emptied Redis built anew from {name}, per million members"),
        Bar::AtMost(15.0),
        Unit::Seconds,
        per_million,
    );
    Ok(())
}

/// Redeems through a gate in this process, with nobody to empty the outbox.
fn make_backlog(server: &RedisServer, entries: u64) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let gate = &open_gate(&server.redis, BATCH_MAX).await?;
        stream::iter(0..entries)
            .map(async |number| {
                let answer = gate.redeem(question(number)?).await?;
                ensure!(matches!(answer.outcome, Outcome::Granted(_)), "{answer:?}");
                Ok(())
            })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|()| async { Ok(()) })
            .await
    })
}

/// Watches an outbox of so many changes until it is empty; returns how many of them a second went from it once the first
/// had gone. Its length tells nothing of them: an entry holds all that a call has granted.
#[expect(clippy::cast_precision_loss, reason = "for people")]
fn drain_rate(server: &RedisServer, outbox: &str, changes: u64) -> anyhow::Result<f64> {
    let mut redis = server.redis.connect()?;
    let mut length =
        || -> anyhow::Result<u64> { Ok(redis::cmd("XLEN").arg(outbox).query(&mut redis)?) };
    let full = length()?;
    let mut began = Instant::now();
    wait_until("the backlog begins to be drained", || {
        let looked = Instant::now();
        let is_full = length()? == full;
        if is_full {
            began = looked;
        }
        Ok(!is_full)
    })?;
    wait_until("the backlog is drained", || Ok(length()? == 0))?;
    Ok(changes as f64 / began.elapsed().as_secs_f64())
}
