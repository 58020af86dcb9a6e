//! One namespace over several partitions: what moves cost, and how soon the last uses are found.

mod cluster;
mod simulation;

use self::simulation::{Outcome, Rush, Users};
use super::{
    chart::Series,
    lab::{Effort, Lab},
    rows::{Bar, Unit},
};

/// Uses of an invite for each shard: two seconds of what one core of Redis does.
const USES_PER_SHARD: u64 = 20_000;
/// The same invite, whatever the spread.
const USES: u64 = 100_000;
const SPREADS: [u16; 7] = [1, 2, 4, 8, 16, 32, 64];
/// How many rushes there are on that one.
const SEEDS: u64 = 5;
/// Of which there are rows.
const TOLD: [u16; 2] = [16, 64];

/// A rush of more users than uses on so many shards, each of which gets 10,000 requests a second in the mean.
fn rush(
    effort: Effort,
    shards: u16,
    users: Users,
    uses: u64,
    seed: u64,
) -> anyhow::Result<Outcome> {
    let uses = match effort {
        Effort::Smoke => uses / 100,
        Effort::Quick | Effort::Full => uses,
    };
    Rush {
        shards,
        nodes: 3,
        users,
        uses,
        requests: uses * 6 / 5,
        requests_per_second: f64::from(shards) * 10_000.0,
        call_us: 200,
        ledger_us: 15_000,
        batch_max: 64,
        seed,
    }
    .run()
}

pub(crate) fn run(lab: &mut Lab) -> anyhow::Result<()> {
    cluster::run(lab)?;
    let effort = lab.effort;
    for (users, word) in [(Users::Uniform, "uniform"), (Users::Skewed, "skewed")] {
        let (mut growing, mut fixed) = (Vec::new(), Vec::new());
        for shards in SPREADS {
            let outcome = rush(effort, shards, users, USES_PER_SHARD * u64::from(shards), 1)?;
            let others = (1..=SEEDS)
                .map(|seed| rush(effort, shards, users, USES, seed))
                .collect::<anyhow::Result<Vec<_>>>()?;
            growing.push((f64::from(shards), outcome.extra_calls[0] * 100.0));
            fixed.push((f64::from(shards), others[0].extra_calls[0] * 100.0));
            if TOLD.contains(&shards) {
                tell(lab, &format!("{shards} shards, {word} users"), &outcome, &others);
            }
        }
        for (points, name) in [(growing, word.to_owned()), (fixed, format!("{word}, 100k in all"))]
        {
            lab.series.push(("spread", Series { name, points }));
        }
    }
    Ok(())
}

/// The rows of one spread; the `others` have an invite that does not grow with it.
fn tell(lab: &mut Lab, at: &str, outcome: &Outcome, others: &[Outcome]) {
    let [until_95, last] = outcome.extra_calls;
    let last_use_us = others.iter().map(|other| other.last_use_us).max().unwrap_or_default();
    let rows = [
        (
            "extra calls per redemption until 95 % of the uses are spent",
            Bar::AtMost(0.01),
            Unit::Share,
            until_95,
        ),
        (
            "the same with 100,000 uses in all",
            Bar::AtMost(0.01),
            Unit::Share,
            others[0].extra_calls[0],
        ),
        ("extra calls for each of the last 5 %", Bar::None, Unit::Share, last),
        ("p99 of the wait for moves", Bar::None, Unit::Millis, millis(outcome.p99_us)),
        (
            "from one use left to none, the longest of five rushes",
            Bar::None,
            Unit::Millis,
            millis(last_use_us),
        ),
        (
            "calls for each refusal once all uses are spent",
            Bar::None,
            Unit::Ratio,
            outcome.calls_per_refusal,
        ),
        ("requests of the busiest shard over the mean", Bar::None, Unit::Ratio, outcome.imbalance),
    ];
    for (what, bar, unit, figure) in rows {
        lab.row(&format!("{at}: {what}"), bar, unit, figure);
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn millis(us: u64) -> f64 {
    us as f64 / 1000.0
}
