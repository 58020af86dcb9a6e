//! Backups of a ledger in SQLite: taken while everything moves, and what comes back from them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use redeemer::{backup, domain::Partition, gate::audit};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    docs::blocks_of,
    recovery::{Deployment, carry},
    support::{
        eventually,
        ledger::{self, Sql},
        node::{Node, Reply, Settings, command, signal},
        postgres::PostgresServer,
        redis::RedisServer,
        until_some,
    },
};

/// A data directory, where backups go, and room for what is restored.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("rdm-backup-").tempdir().unwrap();
        fs::create_dir(directory.path().join("data")).unwrap();
        Self(directory)
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn backup(&self) -> PathBuf {
        self.0.path().join("backup")
    }

    /// A data directory in which nothing is yet.
    fn fresh(&self) -> PathBuf {
        self.0.path().join("fresh")
    }
}

async fn start(data: PathBuf) -> Node {
    fs::create_dir_all(&data).unwrap();
    let start = move || Node::start_at(&data, &Settings::default());
    tokio::task::spawn_blocking(start).await.unwrap()
}

/// Kills a node and its Redis, without a warning.
fn kill_all(mut node: Node) {
    let pid = fs::read_to_string(node.directory().join("redis/redis.pid")).unwrap();
    node.kill();
    signal(pid.trim().parse().unwrap(), "KILL");
}

/// Runs the program for a data directory, which it need not have made yet.
async fn run(data: &Path, args: &[&str]) -> Output {
    let mut command = command(data, &Settings::default());
    command.args(args).current_dir(data.parent().unwrap());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// Runs a script beside a data directory, with the environment that the program gets for it.
fn shell(data: &Path, settings: &Settings, script: &str) -> Output {
    let program = command(data, settings);
    let path = program.get_program().display();
    let mut bash = Command::new("bash");
    bash.args(["-ec", &format!("redeemer() {{ {path} \"$@\"; }}\n{script}")]);
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => bash.env(name, value),
            None => bash.env_remove(name),
        };
    }
    bash.current_dir(data.parent().unwrap()).output().unwrap()
}

async fn json(data: &Path, args: &[&str]) -> Value {
    let output = run(data, &[args, &["--output", "json"]].concat()).await;
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The files of a directory.
fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Redeems with the key that belongs to the user.
async fn redeem(node: &Node, user: &str) -> Reply {
    node.try_redeem("WELCOME", user, &format!("key-of-{user}")).await.unwrap()
}

/// Users who get a use, and the ids of their redemptions.
async fn grant(node: &Node, users: std::ops::Range<u32>) -> Vec<(String, Value)> {
    let mut told = Vec::new();
    for number in users {
        let user = format!("user-{number}");
        let reply = redeem(node, &user).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        told.push((user, reply.body["id"].clone()));
    }
    told
}

/// Everybody gets the answer that they had.
async fn assert_replayed(node: &Node, told: &[(String, Value)]) {
    for (user, id) in told {
        let again = redeem(node, user).await;
        assert_eq!((again.status, &again.body["id"]), (200, id), "{user}: {}", again.text);
    }
}

async fn assert_agrees(data: &Path) {
    let report = json(data, &["audit"]).await;
    assert_eq!(report["clean"], true, "{report}");
}

async fn uses(node: &Node, invite: &str) -> Value {
    let shown = node.get(&format!("/v1/namespaces/default/invites/{invite}")).await;
    shown.body["uses"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_has_all_that_was_told_before_and_obeys_the_laws() {
    let place = Place::new();
    let node = Arc::new(start(place.data()).await);
    let invite = node.invite("WELCOME", "team", 1_000_000).await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let load = (0..8).map(|client| {
        let (node, told, stop) = (node.clone(), told.clone(), stop.clone());
        tokio::spawn(async move {
            for number in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let user = format!("user-{client}-{number}");
                let reply = redeem(&node, &user).await;
                assert_eq!(reply.status, 201, "{}", reply.text);
                told.lock().unwrap().push((user, reply.body["id"].clone()));
            }
        })
    });
    let load: Vec<_> = load.collect();
    eventually("users come", async || told.lock().unwrap().len() > 50).await;
    let before = told.lock().unwrap().clone();
    let made = json(&place.data(), &["backup", "backup"]).await;
    stop.store(true, Ordering::SeqCst);
    for task in load {
        task.await.unwrap();
    }
    assert_eq!((&made["complete"], &made["invites"]), (&true.into(), &1.into()), "{made}");
    let redemptions = made["redemptions"].as_u64().unwrap();
    assert!(redemptions >= before.len() as u64, "{made}");
    assert_eq!(files(&place.backup()), ["backup.json", "ledger.sqlite"]);
    assert_eq!(mode(&place.backup()), 0o700);
    for name in files(&place.backup()) {
        assert_eq!(mode(&place.backup().join(name)), 0o600);
    }
    drop(node);

    json(&place.fresh(), &["restore", "backup"]).await;
    let ledger = ledger::open(&ledger::sqlite_url_in(&place.fresh())).await;
    for partition in 0..16 {
        assert_eq!(ledger.broken_laws(Partition(partition)).await.unwrap(), []);
    }
    ledger.close().await;
    let node = start(place.fresh()).await;
    assert_replayed(&node, &before).await;
    assert_eq!(uses(&node, &invite).await, redemptions);
    assert_agrees(&place.fresh()).await;
}

#[tokio::test]
async fn a_backup_waits_until_the_ledger_is_as_far_as_the_gate_was() {
    // Without a sync: the ledger comes along when this test says so.
    let it = Deployment::start().await;
    it.grant(0..5).await;
    let bench = &it.bench;
    let at = audit::read(&bench.gate, Partition(0), &[]).await.unwrap().at;
    let looks = bench.redis.calls("evalsha").await;
    let come = async {
        let doubts = backup::come_as_far(&bench.gate, &bench.ledger, &bench.deployment).await;
        assert_eq!(doubts.unwrap(), [""; 0]);
        assert!(it.ledger_cursor().await >= at);
    };
    let go_on = async {
        eventually("it has looked", async || bench.redis.calls("evalsha").await > looks).await;
        it.grant(5..6).await;
        carry(bench).await;
    };
    tokio::join!(come, go_on);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backup_has_comes_back_and_the_rest_was_never_there() {
    let place = Place::new();
    let node = start(place.data()).await;
    let invite = node.invite("WELCOME", "team", 10).await;
    let kept = grant(&node, 0..5).await;
    json(&place.data(), &["backup", "backup"]).await;
    let lost = grant(&node, 5..8).await;
    kill_all(node);

    let restored = run(&place.fresh(), &["restore", "backup"]).await;
    let said = String::from_utf8(restored.stdout).unwrap();
    assert!(restored.status.success() && said.contains("5 redemptions of 1 invites"), "{said}");
    assert_eq!(files(&place.fresh()), ["ledger.sqlite", "lock"]);
    assert_eq!(mode(&place.fresh().join("ledger.sqlite")), 0o600);
    let node = start(place.fresh()).await;
    assert_replayed(&node, &kept).await;
    assert_eq!(uses(&node, &invite).await, 5);
    assert_agrees(&place.fresh()).await;
    let again = redeem(&node, &lost[0].0).await;
    assert_eq!((again.status, &again.body["use"]), (201, &6.into()), "{}", again.text);
    assert_agrees(&place.fresh()).await;
}

/// A rebuild would lose what only a dead letter has.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_with_dead_letters_comes_back_once_somebody_has_decided_on_them() {
    let place = Place::new();
    let node = start(place.data()).await;
    node.invite("WELCOME", "team", 10).await;
    let told = grant(&node, 0..3).await;
    let mut sql = Sql::connect(&node.ledger_url()).await;
    sql.execute("INSERT INTO dead_letters VALUES (6, 0, 1, 'type nonsense', 'a test', 0, 0)").await;
    json(&place.data(), &["backup", "backup"]).await;
    kill_all(node);
    json(&place.fresh(), &["restore", "backup"]).await;
    let node = start(place.fresh()).await;
    // Between two attempts to open it; during one, it says that it is being made.
    eventually("the status says why it stays closed", async || {
        let status = run(&place.fresh(), &["status"]).await;
        String::from_utf8(status.stdout).unwrap().contains("dead letters of this partition")
    })
    .await;
    assert_eq!(redeem(&node, "user-0").await.code(), "fenced");
    let dropped = run(&place.fresh(), &["dead-letters", "drop", "6/0-1"]).await;
    assert!(dropped.status.success(), "{}", stderr(&dropped));
    eventually("it serves", async || redeem(&node, "user-0").await.status == 200).await;
    assert_replayed(&node, &told).await;
    assert_agrees(&place.fresh()).await;
    let mut sql = Sql::connect(&node.ledger_url()).await;
    let by_hand = sql.texts("SELECT action FROM deeds WHERE actor LIKE 'cli:%' ORDER BY id").await;
    assert_eq!(by_hand, ["ledger_restored", "dead_letter_dropped"]);
}

/// A service whose ledger was restored beside a Redis that has three redemptions more.
struct Newer {
    /// Dropped before the place: its Redis is stopped by the socket there.
    node: Node,
    place: Place,
    kept: Vec<(String, Value)>,
    rest: Vec<(String, Value)>,
}

impl Newer {
    async fn start() -> Self {
        let place = Place::new();
        let data = place.data();
        let node = start(data.clone()).await;
        node.invite("WELCOME", "team", 10).await;
        let kept = grant(&node, 0..5).await;
        json(&data, &["backup", "backup"]).await;
        let rest = grant(&node, 5..8).await;
        // What stands in the outbox still would come into any ledger.
        until_some("the outbox is empty", async || {
            let mut cli = Command::new("redis-cli");
            cli.arg("-s").arg(data.join("redis/redis.sock")).args(["XLEN", "rdm:{06rd}:outbox"]);
            (cli.output().unwrap().stdout == b"0\n").then_some(())
        })
        .await;
        kill_all(node);
        for name in files(&data).iter().filter(|name| name.starts_with("ledger.sqlite")) {
            fs::remove_file(data.join(name)).unwrap();
        }
        json(&data, &["restore", "backup"]).await;
        let node = start(data).await;
        Self { node, place, kept, rest }
    }

    /// Why the partition of the namespace `default` stays closed.
    async fn reason(&self) -> String {
        // It has no service to ask here, so its exit code says nothing.
        let status = run(&self.place.data(), &["status", "--output", "json"]).await;
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(status["partitions"][6]["state"], "closed", "{status}");
        status["partitions"][6]["reason"].as_str().unwrap().to_owned()
    }

    async fn rebuild(&self, args: &[&str]) {
        let done = run(&self.place.data(), &[&["rebuild"], args].concat()).await;
        assert!(done.status.success(), "{}", stderr(&done));
        eventually("it serves", async || redeem(&self.node, "user-0").await.status == 200).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_newer_redis_a_restored_ledger_may_be_brought_up_to_it() {
    let it = Newer::start().await;
    let reason = it.reason().await;
    assert!(reason.contains("the ledger is older than the gate"), "{reason}");
    assert!(reason.contains("`redeemer rebuild --from-gate`"), "{reason}");
    assert!(reason.contains("`redeemer rebuild --from-ledger --discard-gate`"), "{reason}");
    assert_eq!(redeem(&it.node, "user-0").await.code(), "fenced");
    // A backup of that says what it does not know.
    let made = json(&it.place.data(), &["backup", "second"]).await;
    let doubts = made["doubts"].to_string();
    assert!(made["complete"] == false && doubts.contains("older than the gate"), "{made}");
    it.rebuild(&["--from-gate"]).await;
    assert_replayed(&it.node, &it.kept).await;
    assert_replayed(&it.node, &it.rest).await;
    grant(&it.node, 8..10).await;
    assert_agrees(&it.place.data()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_newer_redis_a_restored_ledger_may_be_taken_for_the_truth() {
    let it = Newer::start().await;
    it.rebuild(&["--from-ledger", "--discard-gate"]).await;
    assert_replayed(&it.node, &it.kept).await;
    assert_eq!(redeem(&it.node, &it.rest[0].0).await.body["use"], 6);
    assert_agrees(&it.place.data()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_stopped_service_there_is_a_backup_of_what_the_ledger_has() {
    let place = Place::new();
    let node = start(place.data()).await;
    node.invite("WELCOME", "team", 10).await;
    grant(&node, 0..5).await;
    node.stop().await;
    let made = run(&place.data(), &["backup", "backup", "--output", "json"]).await;
    assert!(stderr(&made).contains("no node is running"), "{}", stderr(&made));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((&made["complete"], &made["redemptions"]), (&false.into(), &5.into()), "{made}");
}

/// An operator's request is for the Redis that it was made for, and a lease for those who hold it.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_carries_nothing_of_what_was_going_on() {
    let place = Place::new();
    let node = start(place.data()).await;
    let url = node.ledger_url();
    node.stop().await;
    let ledger = ledger::open(&url).await;
    ledger
        .request_rebuild(None, redeemer::ledger::Rebuild::FromLedger, &redeemer::ledger::By::node())
        .await
        .unwrap();
    ledger.take_leases("somebody", std::time::Duration::from_mins(10), true).await.unwrap();
    let copy = place.0.path().join("copy.sqlite");
    ledger.backup(&copy).await.unwrap();
    let ledger = ledger::open(&format!("sqlite:{}", copy.display())).await;
    for row in ledger.partitions().await.unwrap() {
        assert_eq!((row.requested, row.lease_owner, row.lease_live), (None, None, false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_has_something_gets_no_backup() {
    let place = Place::new();
    let _node = start(place.data()).await;
    json(&place.data(), &["backup", "backup"]).await;
    let before = fs::read(place.backup().join("ledger.sqlite")).unwrap();
    for (directory, why) in [("backup", "a backup is there"), ("data", "is not empty")] {
        let refused = run(&place.data(), &["backup", directory]).await;
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains(why), "{}", stderr(&refused));
    }
    assert_eq!(files(&place.backup()), ["backup.json", "ledger.sqlite"]);
    assert_eq!(fs::read(place.backup().join("ledger.sqlite")).unwrap(), before);
}

/// The system ends a process, or refuses to write, at a file's limit: always in the middle of the copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_was_interrupted_is_never_taken_for_a_whole_one() {
    let place = Place::new();
    let _node = start(place.data()).await;
    let with_limit = |trap: &str| {
        let program = command(&place.data(), &Settings::default());
        let program = program.get_program().display().to_string();
        let script = format!("ulimit -c 0; ulimit -f 64; {trap} exec {program} backup backup");
        shell(&place.data(), &Settings::default(), &script)
    };
    let failed = with_limit("trap '' XFSZ;");
    assert_eq!(failed.status.code(), Some(1), "{}", stderr(&failed));
    assert!(stderr(&failed).contains("copying"), "{}", stderr(&failed));
    assert_eq!(files(&place.backup()), [""; 0], "a failure leaves nothing");
    // There may be another try at the same place; this one is killed.
    let killed = with_limit("");
    assert_eq!(killed.status.code(), None, "{}", stderr(&killed));
    assert!(files(&place.backup()).iter().all(|name| name.contains(".partial")));
    let again = run(&place.data(), &["backup", "backup"]).await;
    assert!(stderr(&again).contains("did not come to its end"), "{}", stderr(&again));
    let refused = run(&place.fresh(), &["restore", "backup"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("did not come to its end"), "{}", stderr(&refused));
    assert!(!place.fresh().join("ledger.sqlite").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_restored_over_a_ledger_or_from_a_damaged_backup() {
    let place = Place::new();
    let node = start(place.data()).await;
    node.invite("WELCOME", "team", 10).await;
    json(&place.data(), &["backup", "backup"]).await;
    let refused = async |data: &Path, why: &str| {
        let refused = run(data, &["restore", "backup"]).await;
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains(why), "{}", stderr(&refused));
    };
    refused(&place.data(), "another redeemer").await;
    node.stop().await;
    refused(&place.data(), "is there already").await;
    // SQLite would write it into whatever file stands beside it.
    fs::create_dir(place.fresh()).unwrap();
    fs::write(place.fresh().join("ledger.sqlite-wal"), "of another ledger").unwrap();
    refused(&place.fresh(), "ledger.sqlite-wal is there already").await;
    fs::remove_file(place.fresh().join("ledger.sqlite-wal")).unwrap();

    let file = place.backup().join("ledger.sqlite");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    refused(&place.fresh(), "is not the file that backup.json was written for").await;
    fs::remove_file(&file).unwrap();
    refused(&place.fresh(), "ledger.sqlite").await;
    assert_eq!(files(&place.fresh()), ["lock"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn for_a_ledger_in_postgresql_its_own_tool_is_named() {
    let place = Place::new();
    for (words, tool) in [("backup", "pg_dump"), ("restore", "pg_restore")] {
        let mut command = command(&place.data(), &Settings::default());
        command.env("REDEEMER_REDIS__URL", "redis://127.0.0.1:1");
        command.env("REDEEMER_LEDGER__URL", "postgres://nobody@127.0.0.1:1/none");
        let refused = command.args([words, "backup"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains(tool), "{}", stderr(&refused));
    }
}

/// The commands that docs/operations.md shows below a heading.
fn shown(heading: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let found = blocks_of(&fs::read_to_string(path).unwrap(), heading, "sh");
    assert!(!found.is_empty());
    found
}

fn succeeds(data: &Path, settings: &Settings, script: &str) {
    let done = shell(data, settings, script);
    assert!(done.status.success(), "{script}: {}", stderr(&done));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_document_do_what_it_says() {
    let place = Place::new();
    let data = place.data();
    let settings = Settings::default();
    let node = start(data.clone()).await;
    node.invite("WELCOME", "team", 10).await;
    let told = grant(&node, 0..3).await;
    succeeds(&data, &settings, &shown("Backup")[0]);
    node.stop().await;
    fs::rename(&data, place.0.path().join("lost")).unwrap();
    let [restore, audit] = shown("Restore").try_into().unwrap();
    succeeds(&data, &settings, restore.strip_suffix("redeemer serve\n").unwrap());
    let node = start(data.clone()).await;
    assert_replayed(&node, &told).await;
    succeeds(&data, &settings, &audit);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_a_backup_may_be_put_in_its_place_by_hand() {
    let place = Place::new();
    let node = start(place.data()).await;
    node.invite("WELCOME", "team", 10).await;
    let told = grant(&node, 0..3).await;
    json(&place.data(), &["backup", "backup"]).await;
    kill_all(node);
    fs::create_dir(place.fresh()).unwrap();
    fs::copy(place.backup().join("ledger.sqlite"), place.fresh().join("ledger.sqlite")).unwrap();
    let node = start(place.fresh()).await;
    assert_replayed(&node, &told).await;
    assert_agrees(&place.fresh()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_in_postgresql_is_backed_up_by_its_own_tools() {
    let place = Place::new();
    let server = tokio::task::spawn_blocking(PostgresServer::start).await.unwrap();
    let redis = RedisServer::start().await;
    let settings = |database: &str, redis: &RedisServer| Settings {
        redis_url: Some(redis.url()),
        ledger: Some(server.create_database(database)),
        env: vec![("REDEEMER_SYNC__LEASE_TTL_MS", "1000".to_owned())],
    };
    let start = async |settings: &Settings| {
        let settings = settings.clone();
        tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
    };
    let [dump, restore] = shown("A ledger in PostgreSQL").try_into().unwrap();
    let first = settings("first", &redis);
    let node = start(&first).await;
    node.invite("WELCOME", "team", 10).await;
    let told = grant(&node, 0..3).await;
    let mut sql = Sql::connect(&node.ledger_url()).await;
    until_some("the ledger has all", async || {
        (sql.number("SELECT COUNT(*) FROM redemptions").await == 3).then_some(())
    })
    .await;
    succeeds(&place.data(), &first, &dump);
    drop(node);
    let redis = RedisServer::start().await;
    let second = settings("second", &redis);
    succeeds(&place.data(), &second, &restore);
    let node = start(&second).await;
    assert_replayed(&node, &told).await;
}
