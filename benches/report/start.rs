//! How soon the embedded default serves, from the moment at which its Redis has loaded its data.

use std::{thread, time::Duration};

use super::{
    fill::fill,
    lab::{Effort, Lab, median},
    output::tell,
    rows::{Bar, Unit},
    servers::{Place, Service, keys, wait_until_loaded},
};

const MEMBERS: u64 = 2_000_000;
const STARTS: usize = 3;

pub(crate) fn run(lab: &mut Lab) -> anyhow::Result<()> {
    let effort = lab.effort;
    let starts = if effort == Effort::Smoke { 1 } else { STARTS };
    let mut fresh = Vec::new();
    let mut again = Vec::new();
    for _ in 0..starts {
        let (service, took) = start(Place::new(None, None)?)?;
        fresh.push(took);
        let (_service, took) = start(service.stop()?)?;
        again.push(took);
    }
    lab.row(
        "start to ready after Redis has loaded, first start",
        Bar::AtMost(300.0),
        Unit::Millis,
        median(fresh),
    );
    lab.row(
        "start to ready after Redis has loaded, later start",
        Bar::AtMost(300.0),
        Unit::Millis,
        median(again),
    );

    let (service, _) = start(Place::new(None, None)?)?;
    let members = effort.count(MEMBERS);
    let redis = service.redis();
    redis.run::<()>(&["CONFIG", "SET", "auto-aof-rewrite-percentage", "0"])?;
    fill(&redis, &keys(), 0..members)?;
    let place = service.stop()?;
    let (_service, took) = start(place)?;
    tell(&format!("  with {members} members"));
    lab.row(
        "start to ready after Redis has loaded, 2 million members",
        Bar::AtMost(300.0),
        Unit::Millis,
        took,
    );
    Ok(())
}

/// Starts it; returns how long after its Redis it was ready, in milliseconds.
fn start(place: Place) -> anyhow::Result<(Service, f64)> {
    let socket = place.redis().socket().to_owned();
    let (service, loaded) = thread::scope(|scope| {
        let loaded = scope.spawn(|| wait_until_loaded(&socket));
        let service = Service::start(place)?;
        let loaded = loaded.join().map_err(|_| anyhow::anyhow!("the watch panicked"))?;
        anyhow::Ok((service, loaded))
    })?;
    let took: Duration = service.ready_at.saturating_duration_since(loaded);
    Ok((service, took.as_secs_f64() * 1e3))
}
