//! The report as a document with charts, and for programs.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use super::{
    chart::{Chart, Scale, Series},
    lab::{Effort, Lab},
};

/// What it was measured on.
pub(crate) struct Machine(Vec<(&'static str, String)>);

/// The first line that a program prints; nothing where it is not there.
fn first_line(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

/// What stands behind a name in a file of `/proc`.
fn proc_value(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_once(':'))
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

impl Machine {
    pub(crate) fn look() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let memory_kib: u64 = proc_value("/proc/meminfo", "MemTotal")
            .trim_end_matches(" kB")
            .parse()
            .unwrap_or_default();
        let postgres = glob_postgres();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self(vec![
            ("date", redeemer::ids::now().to_string()),
            ("processor", format!("{}, {cores} cores", proc_value("/proc/cpuinfo", "model name"))),
            ("memory", format!("{} GiB", memory_kib >> 20)),
            ("kernel", first_line("uname", &["-sr"])),
            ("load before the run", load.split(' ').next().unwrap_or_default().to_owned()),
            (
                "redeemer",
                format!(
                    "{} ({})",
                    env!("CARGO_PKG_VERSION"),
                    first_line("git", &["describe", "--always", "--dirty"])
                ),
            ),
            ("rustc", first_line("rustc", &["--version"])),
            ("Redis", first_line("redis-server", &["--version"])),
            ("PostgreSQL", postgres),
        ])
    }
}

fn glob_postgres() -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.map(|version| version.path().join("bin/postgres")).max();
    first_line(
        &newest.map_or_else(|| "postgres".to_owned(), |path| path.display().to_string()),
        &["--version"],
    )
}

/// A section's title, and what is to be known about it.
const SECTIONS: [(&str, &str, &str); 9] = [
    (
        "throughput",
        "Throughput and cost",
        "Everything takes turns, three times, 64 connections in a closed loop; a ratio is the one in the middle of the \
         rounds. The service has everything on: an API key, the two rate limits of the defaults (attempts by user, \
         guesses by address), metrics, a log line per request, the outbox, the sync. Where a row does not say otherwise it is the embedded default: a Redis that \
         writes before it answers, and SQLite. The echo, the checkouts and the row locks do nothing else at all \
         ([benches/report/baselines.rs](../benches/report/baselines.rs)); the checkouts call the same script on a Redis \
         set the same way, and nobody empties that outbox. PostgreSQL is as it comes: fsync and synchronous_commit on.",
    ),
    (
        "latency",
        "Latency",
        "Open loops: requests are due at fixed moments, and a latency counts from the moment at which the request was \
         due. The maximum is that of the closed loop.",
    ),
    (
        "overload",
        "Overload",
        "An open loop at twice the maximum, over up to 12,000 connections, on the same machine as the service: the load \
         takes from it what it needs itself.",
    ),
    ("bulk", "Codes in bulk", "Until gate and ledger have all of them."),
    (
        "memory",
        "Memory",
        "Ids of 36 characters, users of 12, no rate limits: those keys go away by themselves.",
    ),
    (
        "growth",
        "Growth",
        "Members are written into Redis as a redemption would leave them. A small service and a large one take turns, so \
         that both meet the same machine, once Redis has moved its keys to the table that it makes for each doubling. \
         While it does so, which it does a little with every command, a redemption costs more; the last row says how much.",
    ),
    (
        "sync",
        "Sync and recovery",
        "A million redemptions that no node has carried over wait in the outbox when a node starts. The ingest rate is \
         that of the same service a moment later, 64 connections, with the sync keeping up. Then Redis is emptied, and \
         the time counts until somebody gets a use again.",
    ),
    ("start", "Start", "The embedded default, from the moment at which its Redis answers."),
    (
        "spread",
        "One namespace over several partitions",
        "A simulation in virtual time: the code that decides about moves is the real one \
         ([src/domain/spread.rs](../src/domain/spread.rs)), and between its steps there are only delays: 0.2 ms for a call, 15 ms until \
         the ledger has a change. A fifth more people come than there are uses, 10,000 a second for each shard, over three \
         nodes, each of which searches for itself. An invite has 20,000 uses for each shard, or 100,000 in all. Users are \
         in shards by hash; of skewed ones the n-th comes 1/n times as often as the first. Extra calls are those of \
         searches and those in which requests ask again. A move costs three nodes some twelve calls, and each shard needs some, \
         however few uses there are: what counts is how many uses there are for each shard.",
    ),
];

fn charts(lab: &Lab) -> Vec<(&'static str, &'static str, String)> {
    let series = |name: &str| -> Vec<Series> {
        lab.series.iter().filter(|(of, _)| *of == name).map(|(_, series)| series.clone()).collect()
    };
    let (latency, growth, spread) = (series("latency"), series("growth"), series("spread"));
    let mut charts = Vec::new();
    if !latency.is_empty() {
        let chart = Chart {
            title: "Latency against throughput",
            x: ("redemptions a second", Scale::Linear),
            y: ("milliseconds", Scale::Logarithmic),
            series: &latency,
        };
        charts.push(("latency", "benchmark-latency.svg", chart.svg()));
    }
    if !growth.is_empty() {
        let chart = Chart {
            title: "What a redemption costs Redis",
            x: ("redemptions that are in already", Scale::Logarithmic),
            y: ("microseconds of Redis each", Scale::Linear),
            series: &growth,
        };
        charts.push(("growth", "benchmark-growth.svg", chart.svg()));
    }
    if !spread.is_empty() {
        let chart = Chart {
            title: "What moves between shards cost",
            x: ("shards", Scale::Logarithmic),
            y: ("extra calls for 100 redemptions", Scale::Linear),
            series: &spread,
        };
        charts.push(("spread", "benchmark-spread.svg", chart.svg()));
    }
    charts
}

/// Writes the document, and its charts beside it.
pub(crate) fn write(path: &Path, lab: &Lab, machine: &Machine) -> anyhow::Result<()> {
    let charts = charts(lab);
    let directory = path.parent().unwrap_or_else(|| Path::new(""));
    for (_, name, svg) in &charts {
        fs::write(directory.join(name), svg)?;
    }
    let (met, bars) = lab.rows.met();
    let effort = match lab.effort {
        Effort::Full => "",
        Effort::Quick => {
            " **This was a quick run, with a tenth of the data: the figures are rough.**"
        }
        Effort::Smoke => " **This was a smoke run: the figures say nothing.**",
    };
    let mut parts = vec![
        "# Benchmarks".to_owned(),
        format!("Generated by `make bench`; do not edit. {met} of {bars} bars are met.{effort}"),
        "Load, service, Redis and PostgreSQL share one machine, so absolute figures say little about another; ratios \
         within one run say more. A bar is what the program is to reach. How it is measured stands in \
         [benches/report](../benches/report/main.rs): `make bench` repeats all of it, `cargo bench --bench report -- \
         --only latency` a part."
            .to_owned(),
    ];
    let facts = machine.0.iter().map(|(what, value)| format!("| {what} | {value} |"));
    let head = ["| | |", "|---|---|"].map(ToOwned::to_owned);
    parts.push(head.into_iter().chain(facts).collect::<Vec<_>>().join("\n"));
    for (name, title, about) in SECTIONS {
        if lab.rows.0.iter().any(|row| row.section == name) {
            parts.extend([format!("## {title}"), about.to_owned(), lab.rows.markdown(name)]);
            let own = charts.iter().filter(|(of, ..)| *of == name);
            parts.extend(own.map(|(_, file, _)| format!("![{title}]({file})")));
        }
    }
    let took: Vec<_> =
        lab.took.iter().map(|(name, took)| format!("{name} {:.0} s", took.as_secs_f64())).collect();
    parts.push(format!("How long it took: {}.", took.join(", ")));
    fs::write(path, parts.join("\n\n") + "\n")?;
    Ok(())
}

/// Everything, for programs.
pub(crate) fn json(lab: &Lab, machine: &Machine) -> String {
    let machine: serde_json::Map<_, _> =
        machine.0.iter().map(|(what, value)| ((*what).to_owned(), json!(value))).collect();
    let took: serde_json::Map<_, _> = lab
        .took
        .iter()
        .map(|(name, took)| ((*name).to_owned(), json!(took.as_secs_f64())))
        .collect();
    let series: Vec<Value> = lab
        .series
        .iter()
        .map(|(of, series)| json!({"chart": of, "name": series.name, "points": series.points}))
        .collect();
    let report = json!({"machine": machine, "took_seconds": took, "rows": lab.rows.json(), "series": series});
    format!("{report:#}\n")
}
