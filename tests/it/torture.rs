//! The torture in short: it comes to its end, no law is broken, and nothing is left behind.

use std::{
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    effort, ledger,
    node::{Settings, command, signal},
    postgres::PostgresServer,
    wait_until,
};

/// A new ledger, and a place of one's own for temporary files, to see what is left there.
struct Place {
    directory: TempDir,
    ledger: String,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ledger = ledger::url_in(directory.path());
        std::fs::create_dir(directory.path().join("t")).unwrap();
        Self { directory, ledger }
    }

    fn temporary(&self) -> std::path::PathBuf {
        self.directory.path().join("t")
    }

    /// `redeemer torture` with this ledger.
    fn torture(&self, args: &[&str]) -> Command {
        let mut command = command(self.directory.path(), &Settings::default());
        command.env("TMPDIR", self.temporary()).arg("torture").args(args);
        command.args(["--ledger", &self.ledger]);
        command
    }

    /// Runs it, and reads its JSON.
    fn verdict(&self, args: &[&str]) -> Value {
        let output = self.torture(args).args(["--output", "json"]).output().unwrap();
        let (said, told) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}\n{told}");
        self.assert_clean();
        serde_json::from_str(&said).unwrap()
    }

    #[track_caller]
    fn assert_clean(&self) {
        let left: Vec<_> = std::fs::read_dir(self.temporary()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(processes_in(&self.temporary()), Vec::<String>::new());
    }
}

/// The processes whose working directory is below one.
fn processes_in(directory: &Path) -> Vec<String> {
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    processes
        .filter(|path| {
            std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory))
        })
        .map(|path| std::fs::read_to_string(path.join("cmdline")).unwrap_or_default())
        .collect()
}

#[test]
fn a_tortured_deployment_breaks_no_law() {
    tortured("standalone");
}

#[test]
fn a_tortured_deployment_with_sentinels_breaks_no_law() {
    tortured("sentinel");
}

#[test]
fn a_tortured_deployment_with_a_cluster_breaks_no_law() {
    tortured("cluster");
}

fn tortured(redis: &str) {
    let place = Place::new();
    // With this seed the first fault of Redis and of a node is a kill.
    let seconds = (20 * effort()).to_string();
    let verdict = place.verdict(&["--seconds", &seconds, "--seed", "19", "--redis", redis]);
    assert_eq!((&verdict["seed"], &verdict["proven"]), (&19.into(), &true.into()));
    let laws = verdict["laws"].as_array().unwrap();
    assert_eq!(laws.len(), 6);
    for law in laws {
        assert_eq!(law["verdict"], "PROVEN", "{law}");
    }
    // It proves nothing unless something was asked, and something struck.
    let count = |value: &Value| value.as_u64().unwrap();
    for what in ["granted", "refused", "campaign_exhausted", "held", "given_back"] {
        assert!(count(&verdict[what]) > 0, "{what}: {verdict}");
    }
    let kills =
        count(&verdict["faults"]["node killed"]) + count(&verdict["faults"]["Redis killed"]);
    assert!(kills > 0 && count(&verdict["faults"]["FLUSHALL"]) == 0, "{verdict}");
}

#[test]
fn a_tortured_namespace_that_is_spread_breaks_no_law() {
    for (spread, seconds) in [("3", 12), ("16", 8)] {
        let place = Place::new();
        let seconds = (seconds * effort()).to_string();
        let args = ["--spread", spread, "--seconds", &seconds, "--seed", "19"];
        let verdict = place.verdict(&args);
        assert_eq!(verdict["proven"], true, "{verdict}");
        for what in ["granted", "refused", "held", "given_back", "campaign_exhausted"] {
            assert!(verdict[what].as_u64().unwrap() > 0, "{what}: {verdict}");
        }
    }
}

#[test]
fn what_the_ledger_has_promised_survives_a_torture_that_empties_redis() {
    let place = Place::new();
    // With this seed Redis is emptied first of all.
    let verdict = place.verdict(&["--lossy", "--seconds", "6", "--seed", "19"]);
    assert_eq!(verdict["proven"], true);
    assert!(verdict["faults"]["FLUSHALL"].as_u64().unwrap() > 0, "{verdict}");
}

/// Nodes and Redis are killed and paused by the torture, PostgreSQL by the test.
#[test]
fn a_deployment_whose_postgresql_is_killed_too_breaks_no_law() {
    let mut place = Place::new();
    let mut postgres = PostgresServer::start();
    place.ledger = postgres.create_database("tortured");
    let seconds = (10 * effort()).to_string();
    let mut running = Running(
        place
            .torture(&["--seconds", &seconds, "--seed", "19", "--output", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap(),
    );
    // Nodes do not start without their ledger, so each time it must have got something first. Divides by zero as long as
    // it has not.
    let mut kills = 0;
    loop {
        let progress =
            format!("SELECT 1 / GREATEST(COUNT(*) - {}, 0) FROM redemptions", kills * 10);
        let mut has_ended = false;
        wait_until("users redeem, or it is over", || {
            has_ended = !matches!(running.0.try_wait(), Ok(None));
            has_ended || postgres.does("tortured", &progress)
        });
        if has_ended {
            break;
        }
        postgres.kill();
        postgres.restart();
        kills += 1;
    }
    let mut said = String::new();
    running.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(running.0.wait().unwrap().success(), "{said}");
    let verdict: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(verdict["proven"], true, "{verdict}");
    eprintln!("PostgreSQL was killed {kills} times: {verdict}");
    assert!(kills > 0);
    place.assert_clean();
}

#[test]
fn people_read_a_verdict_for_each_law() {
    let place = Place::new();
    let output =
        place.torture(&["--seconds", "1", "--seed", "3", "--nodes", "1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.starts_with("seed 3\n") && said.ends_with("seed 3: every law held.\n"), "{said}");
    assert!(
        said.contains(" LAW  VERDICT  WHAT") && said.contains(" 1    PROVEN   no over-red"),
        "{said}"
    );
    place.assert_clean();
}

#[test]
fn a_torture_that_is_interrupted_stops_what_it_started() {
    let place = Place::new();
    let mut running = Running(
        place
            .torture(&["--minutes", "60", "--seed", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    // Redis and both nodes.
    wait_until("all of it runs", || processes_in(&place.temporary()).len() == 3);
    signal(running.0.id(), "INT");
    assert_eq!(running.0.wait().unwrap().code(), Some(1));
    place.assert_clean();
}

#[test]
fn a_ledger_that_is_in_use_is_not_tortured() {
    let place = Place::new();
    // Whoever has used it need not be there any more.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ledger = runtime.block_on(ledger::open(&place.ledger));
    runtime.block_on(ledger.deployment(16, uuid::Uuid::from_u128(1))).unwrap();
    runtime.block_on(ledger.close());
    let output = place.torture(&["--seconds", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("name an empty one"), "{told}");
}

/// Told to stop, as by Ctrl-C, if a test fails before it has.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            signal(self.0.id(), "INT");
        }
        drop(self.0.wait());
    }
}
