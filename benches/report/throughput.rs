//! How much goes through, and what it costs: everything takes turns, so that whatever else the machine does meanwhile
//! meets all alike; a ratio is the one in the middle of those of the rounds.

use super::{
    baselines::{Baseline, Kind, prepare_rows},
    lab::{Lab, Level, Measured, closed, closed_baseline, closed_over, median},
    output::tell,
    rows::{Bar, Unit},
    servers::{Fsync, Place, RedisServer, Service},
};

/// How long each takes, in seconds.
const SECONDS: f64 = 2.5;
/// Connections with which level `ledger` shows what sharing a commit is worth.
const MANY: usize = 512;

/// What one round has measured, in requests a second.
#[derive(Default)]
struct Round {
    echo: f64,
    checkout: f64,
    count: f64,
    counter: f64,
    embedded: f64,
    embedded_ledger: f64,
    every_second: f64,
    always: f64,
    postgres_ledger: f64,
}

pub(crate) fn run(lab: &mut Lab) -> anyhow::Result<()> {
    let effort = lab.effort;
    let codes: Vec<_> = (0..effort.rounds() * 2).map(|number| format!("CODE-{number}")).collect();
    let rows_url = prepare_rows(lab.postgres()?, &codes)?;
    let count = Baseline::row_lock(Kind::RowLockCount, &rows_url)?;
    let counter = Baseline::row_lock(Kind::RowLockCounter, &rows_url)?;
    let (echo, checkout) = (Baseline::echo()?, Baseline::checkout()?);
    let external = |lab: &mut Lab, fsync| -> anyhow::Result<_> {
        let server = RedisServer::start(fsync)?;
        let ledger = lab.database()?;
        let service = Service::start(Place::new(Some(server.redis.clone()), Some(ledger))?)?;
        Ok((service, server))
    };
    let (every_second, _redis) = external(lab, Fsync::EverySecond)?;
    let (always, _other_redis) = external(lab, Fsync::Always)?;
    let mut rounds = Vec::new();
    let mut measured: Vec<Measured> = Vec::new();
    let mut postgres_backlog = 0.0;
    let mut shared = (0.0, 0.0);
    for round in 0..effort.rounds() {
        let baseline = |baseline: &Baseline, code: &str| {
            closed_baseline(baseline, code, effort, SECONDS).map(|report| report.rate)
        };
        let embedded = lab.embedded()?;
        let mut rates = Round { echo: baseline(&echo, "WELCOME")?, ..Round::default() };
        let gate = closed(embedded, effort, SECONDS, Level::Gate)?;
        rates.embedded = gate.report.rate;
        measured.push(gate);
        rates.checkout = baseline(&checkout, "WELCOME")?;
        let gate = closed(&every_second, effort, SECONDS, Level::Gate)?;
        (rates.every_second, postgres_backlog) = (gate.report.rate, gate.backlog);
        rates.always = closed(&always, effort, SECONDS, Level::Gate)?.report.rate;
        rates.count = baseline(&count, &codes[round * 2])?;
        rates.postgres_ledger = closed(&every_second, effort, SECONDS, Level::Ledger)?.report.rate;
        rates.counter = baseline(&counter, &codes[round * 2 + 1])?;
        rates.embedded_ledger = closed(embedded, effort, SECONDS, Level::Ledger)?.report.rate;
        if round + 1 == effort.rounds() {
            shared.0 = closed_over(embedded, effort, SECONDS, Level::Ledger, MANY)?.report.rate;
            shared.1 =
                closed_over(&every_second, effort, SECONDS, Level::Ledger, MANY)?.report.rate;
        }
        tell(&format!(
            "  round {}: echo {:.0}/s, gate {:.0}/s, checkouts {:.0}/s, row lock {:.0}/s",
            round + 1,
            rates.echo,
            rates.embedded,
            rates.checkout,
            rates.count
        ));
        rounds.push(rates);
    }

    let over = |upper: fn(&Round) -> f64, lower: fn(&Round) -> f64| {
        median(rounds.iter().map(|round| upper(round) / lower(round)).collect())
    };
    let rate = |of: fn(&Round) -> f64| median(rounds.iter().map(of).collect());
    let embedded: fn(&Round) -> f64 = |round| round.embedded;
    let (gate_max, ledger_max) = (rate(embedded), rate(|round| round.embedded_ledger));
    lab.set_maximum(Level::Gate, gate_max);
    lab.set_maximum(Level::Ledger, ledger_max);

    let ratio = |lab: &mut Lab, what: &str, bar: f64, figure: f64| {
        lab.row(what, Bar::AtLeast(bar), Unit::Ratio, figure);
    };
    ratio(
        lab,
        "redemptions over the echo, 64 connections",
        0.45,
        over(embedded, |round| round.echo),
    );
    ratio(
        lab,
        "over a checkout per request, same script",
        2.2,
        over(embedded, |round| round.checkout),
    );
    ratio(
        lab,
        "over the row lock with COUNT, level gate",
        30.0,
        over(embedded, |round| round.count),
    );
    ratio(
        lab,
        "over the row lock with COUNT, level ledger (PostgreSQL)",
        10.0,
        over(|round| round.postgres_ledger, |round| round.count),
    );
    ratio(
        lab,
        "over the row lock with a counter, level gate",
        20.0,
        over(embedded, |round| round.counter),
    );
    ratio(
        lab,
        "over the row lock with a counter, level ledger (PostgreSQL)",
        7.0,
        over(|round| round.postgres_ledger, |round| round.counter),
    );

    let each = |of: fn(&Measured) -> f64| median(measured.iter().map(of).collect());
    let work: [(&str, Bar, Unit, f64); 7] = [
        (
            "Redis CPU per redemption",
            Bar::AtMost(8.0),
            Unit::Micros,
            each(|one| one.each(one.redis.cpu) * 1e6),
        ),
        (
            "of it in scripts, by the clock",
            Bar::None,
            Unit::Micros,
            each(|one| one.each(one.redis.scripts) * 1e6),
        ),
        (
            "of it for reading and trimming the outbox, by the clock",
            Bar::None,
            Unit::Micros,
            each(|one| one.each(one.redis.outbox) * 1e6),
        ),
        (
            "of Redis's children (rewriting its file)",
            Bar::None,
            Unit::Micros,
            each(|one| one.each(one.redis.cpu_children) * 1e6),
        ),
        (
            "node CPU per redemption",
            Bar::None,
            Unit::Micros,
            each(|one| one.each(one.node_cpu) * 1e6),
        ),
        (
            "script calls per redemption",
            Bar::AtMost(0.2),
            Unit::Ratio,
            each(|one| one.each(one.redis.script_calls)),
        ),
        // The node looks twice a second whether Redis is well; that is not per redemption.
        (
            "PINGs per redemption",
            Bar::AtMost(0.0005),
            Unit::Ratio,
            each(|one| one.each(one.redis.pings)),
        ),
    ];
    for (what, bar, unit, figure) in work {
        lab.row(what, bar, unit, figure);
    }

    let rates: [(&str, f64); 11] = [
        ("echo", rate(|round| round.echo)),
        ("embedded default, level gate", gate_max),
        ("embedded default, level ledger", ledger_max),
        ("embedded default, level ledger, 512 connections", shared.0),
        ("Redis everysec and PostgreSQL, level gate", rate(|round| round.every_second)),
        ("Redis always and PostgreSQL, level gate", rate(|round| round.always)),
        ("Redis everysec and PostgreSQL, level ledger", rate(|round| round.postgres_ledger)),
        ("Redis everysec and PostgreSQL, level ledger, 512 connections", shared.1),
        ("a checkout per request", rate(|round| round.checkout)),
        ("row lock with COUNT, 10,000 uses in", rate(|round| round.count)),
        ("row lock with a counter", rate(|round| round.counter)),
    ];
    for (what, figure) in rates {
        lab.row(what, Bar::None, Unit::PerSecond, figure);
    }
    let behind = |backlog: f64, rate: f64| backlog / rate;
    let sqlite = median(measured.iter().map(|one| behind(one.backlog, one.report.rate)).collect());
    lab.row(
        "embedded default: the ledger is behind at the end by",
        Bar::None,
        Unit::Seconds,
        sqlite,
    );
    let postgres = behind(postgres_backlog, rate(|round| round.every_second));
    lab.row("PostgreSQL: the ledger is behind at the end by", Bar::None, Unit::Seconds, postgres);
    Ok(())
}
