//! Three nodes behind a balancer: restarted one after the other, killed, with clocks that differ.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use redeemer::{
    domain::{InviteId, Millis},
    torture::history::{History, Operation, Outcome, Told},
};
use reqwest::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    effort, eventually,
    haproxy::Balancer,
    history::{Asker, assert_lawful, client, outcome},
    input::assert_problem,
    lasting_port,
    ledger::Sql,
    node::{BIND, Node, Reply, Settings, json_body, send},
    postgres,
    redis::RedisServer,
};

/// Those who ask at the same time.
const ASKERS: usize = 8;

/// Three nodes with one Redis and one PostgreSQL, behind a balancer.
struct Three {
    nodes: Vec<Node>,
    settings: [Settings; 3],
    balancer: Balancer,
    sql: Sql,
    _redis: RedisServer,
    _directory: TempDir,
}

impl Three {
    async fn start() -> Self {
        Self::start_with(|_| Vec::new()).await
    }

    /// With more settings of each node.
    async fn start_with(more: impl Fn(usize) -> Vec<(&'static str, String)>) -> Self {
        let redis = RedisServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        let url = database(&directory);
        let addresses = [(); 3].map(|()| format!("127.0.0.1:{}", lasting_port()));
        let settings = [0, 1, 2].map(|number: usize| {
            let mut env = vec![
                (BIND, addresses[number].clone()),
                ("REDEEMER_LOG__LEVEL", "warn".to_owned()),
                ("REDEEMER_HTTP__SHUTDOWN_DELAY_MS", "5000".to_owned()),
                ("REDEEMER_SYNC__LEASE_TTL_MS", "1000".to_owned()),
            ];
            env.extend(more(number));
            Settings { redis_url: Some(redis.url()), ledger: Some(url.clone()), env }
        });
        let mut nodes = Vec::new();
        for settings in &settings {
            nodes.push(start(settings).await);
        }
        let balancer = Balancer::start(&addresses).await;
        balancer.until_up(3).await;
        let sql = Sql::connect(&url).await;
        Self { nodes, settings, balancer, sql, _redis: redis, _directory: directory }
    }

    /// Some invites with plenty of uses, and one that will be used up.
    async fn invites(&self) -> Vec<(String, InviteId)> {
        let mut made = Vec::new();
        for (code, group, max_uses) in
            [("ALPHA", "a", 1_000_000), ("BETA", "b", 1_000_000), ("FEW", "c", 100)]
        {
            let id = self.nodes[0].invite(code, group, max_uses).await;
            made.push((code.to_owned(), id.parse().unwrap()));
        }
        made
    }

    /// What clients of the balancer are told while something is done to the nodes.
    async fn under_load(
        &mut self,
        repeats: usize,
        work: impl AsyncFnOnce(&mut Self),
    ) -> (History, Outcome) {
        let invites = self.invites().await;
        let (stop, users, started) = (AtomicBool::new(false), AtomicU64::new(0), Instant::now());
        let url = self.balancer.url.clone();
        let askers: Vec<_> = (0..ASKERS)
            .map(|_| Asker {
                client: client(&url),
                started,
                stop: &stop,
                users: &users,
                invites: &invites,
                repeats,
            })
            .collect();
        let (told, ()) = tokio::join!(join_all(askers.iter().map(Asker::run)), async {
            work(&mut *self).await;
            stop.store(true, Ordering::Relaxed);
        });
        let mut history = History::default();
        for one in told {
            history.extend(one);
        }
        self.until_synced().await;
        (history, outcome(&self.nodes[0], started).await)
    }

    /// Waits until the ledger has everything.
    async fn until_synced(&self) {
        eventually("the ledger has everything", async || {
            let stats = self.nodes[0].get("/v1/namespaces/default/stats").await;
            stats.body["sync"]["behind"] == 0
        })
        .await;
    }

    /// Kills a node, waits until others have taken over what it led, and starts it again.
    async fn kill(&mut self, number: usize) {
        self.nodes[number].kill();
        let dead = self.nodes[number].pid().to_string();
        eventually("others lead its partitions", async || !self.leaders().await.contains(&dead))
            .await;
        self.nodes[number] = start(&self.settings[number]).await;
        self.balancer.until_up(3).await;
    }

    /// The process ids of those who lead partitions.
    async fn leaders(&mut self) -> Vec<String> {
        let owners =
            self.sql.texts("SELECT DISTINCT COALESCE(lease_owner, '') FROM partitions").await;
        owners.iter().map(|owner| owner.split('-').next().unwrap().to_owned()).collect()
    }
}

/// A PostgreSQL database of the test's own: nodes on several hosts could share it.
fn database(directory: &TempDir) -> String {
    let name = directory.path().file_name().unwrap().to_string_lossy().replace('.', "_");
    postgres::shared_database(&format!("nodes{name}"))
}

async fn start(settings: &Settings) -> Node {
    let settings = settings.clone();
    tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
}

/// How often each answer was given.
fn counts(history: &History) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for one in &history.operations {
        let word = match &one.told {
            Told::Granted(grant) if grant.replayed => "replayed".to_owned(),
            Told::Granted(_) => "granted".to_owned(),
            told => format!("{told:?}"),
        };
        *counts.entry(word).or_default() += 1;
    }
    counts
}

/// The balancer repeats what a node has left without an answer, so that the first answer of all may be `replayed`: that is
/// one who asks too.
fn with_what_the_balancer_asked(history: &History) -> History {
    let mut all = history.clone();
    for asked in history.operations.chunk_by(|a, b| a.user == b.user) {
        let first = &asked[0];
        if first.grant().is_some_and(|grant| grant.replayed) {
            let told = Told::Unknown("the balancer has asked again".to_owned());
            let invoked = first.invoked.saturating_sub(Duration::from_nanos(1));
            all.operations.push(Operation { told, invoked, returned: invoked, ..first.clone() });
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_restarted_one_after_the_other_and_every_request_gets_its_answer() {
    let mut it = Three::start().await;
    let started = Instant::now();
    let (history, outcome) = it
        .under_load(0, async |it| {
            for number in (0..3).cycle().take(3 * effort() as usize) {
                let node = it.nodes.remove(number);
                assert_eq!(node.stop().await, 0);
                it.nodes.insert(number, start(&it.settings[number]).await);
                it.balancer.until_up(3).await;
            }
        })
        .await;
    let counts = counts(&history);
    // Nobody has repeated anything, and a balancer that has done so for them would say `replayed`.
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["Exhausted", "granted"], "{counts:?}");
    assert_lawful(&history, &outcome);
    let mut waits: Vec<_> = history
        .operations
        .iter()
        .map(|one| one.returned.saturating_sub(one.invoked).as_millis())
        .collect();
    waits.sort_unstable();
    // What `make rolling` shows.
    eprintln!(
        "rolling restart: {} nodes restarted in {} s; {} requests, 0 failures; 99 of 100 answers within {} ms, the slowest after {} ms",
        3 * effort(),
        started.elapsed().as_secs(),
        waits.len(),
        waits[waits.len() * 99 / 100],
        waits[waits.len() - 1],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_killed_under_load_and_no_answer_is_wrong() {
    let mut it = Three::start().await;
    let (history, outcome) = it
        .under_load(20, async |it| {
            for number in 0..3 {
                it.kill(number).await;
            }
        })
        .await;
    assert_lawful(&with_what_the_balancer_asked(&history), &outcome);
    // In the end everybody has a definite answer.
    let unanswered: Vec<_> = history
        .operations
        .chunk_by(|a, b| a.user == b.user)
        .filter_map(|asked| asked.last().filter(|last| !last.told.is_definite()))
        .collect();
    assert!(unanswered.is_empty(), "{unanswered:#?}");
}

#[tokio::test]
async fn what_the_balancer_says_itself_is_a_problem_that_tells_nothing_false() {
    let nobody = [(); 3].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let balancer = Balancer::start(&nobody).await;
    balancer.until_up(0).await;
    let client = plain_client();
    let ask = client.post(format!("{}/v1/namespaces/default/redemptions", balancer.url));
    let reply = send(json_body(ask.header("x-request-id", "r\"1"), &json!({}))).await.unwrap();
    // Clients of every kind read it as they read a node's.
    assert_problem(&reply, 503..504, "no node");
    assert_eq!((reply.code(), &reply.body["request_id"]), ("outcome_unknown", &json!("r\"1")));
    assert_eq!(reply.header("retry-after"), "1");
    let reply = send(client.get(format!("{}/metrics", balancer.url))).await.unwrap();
    assert_eq!(reply.status, 404);
    let ask = client.get(format!("{}/v1/namespaces/default/invites/by-code/SECRET", balancer.url));
    assert_eq!(send(ask).await.unwrap().status, 503);
    for line in [" GET 503 ", " POST 503 ", "r\"1"] {
        eventually("the log has them", async || balancer.log().contains(line)).await;
    }
    assert!(!balancer.log().contains("SECRET"), "{}", balancer.log());
}

#[tokio::test]
async fn the_balancer_speaks_tls_once_it_has_a_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = certificate_in(&directory);
    let bind = format!("127.0.0.1:{}", lasting_port());
    let node = Node::embedded();
    let address = node.url.strip_prefix("http://").unwrap().to_owned();
    let more = [
        ("REDEEMER_BALANCER_CERTIFICATE", certificate.display().to_string()),
        ("REDEEMER_BALANCER_TLS_BIND", bind.clone()),
    ];
    let balancer = Balancer::start_with(&[(); 3].map(|()| address.clone()), &more).await;
    balancer.until_up(3).await;
    let trusted = std::fs::read(&certificate).unwrap();
    let trusted = reqwest::Certificate::from_pem(&trusted).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([trusted]).build().unwrap();
    let port = bind.split(':').nth(1).unwrap();
    let reply = send(client.get(format!("https://localhost:{port}/livez"))).await.unwrap();
    assert_eq!((reply.status, &reply.body["live"]), (200, &json!(true)));
}

/// One that tells nobody who it is.
fn plain_client() -> reqwest::Client {
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::new()
}

/// A certificate for `localhost` and its key in one file, as HAProxy wants them.
fn certificate_in(directory: &TempDir) -> PathBuf {
    let [key, certificate, both] =
        ["key.pem", "certificate.pem", "both.pem"].map(|name| directory.path().join(name));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-keyout"])
        .args([&key, Path::new("-out"), &certificate])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = [certificate, key].map(|path| std::fs::read_to_string(path).unwrap()).concat();
    std::fs::write(&both, text).unwrap();
    both
}

/// What one node has changed holds at the others with the next request: the script looks at the rules themselves.
#[tokio::test(flavor = "multi_thread")]
async fn rules_limits_and_switches_hold_on_all_nodes_at_once() {
    const NAMESPACE: &str = "/v1/namespaces/default";
    let it = Three::start().await;
    let [one, two, three] = &it.nodes[..] else { unreachable!() };
    let invite = format!("{NAMESPACE}/invites/{}", one.invite("MANY", "team", 1000).await);
    // Each has the rules in memory now.
    for (node, user) in [(one, "a"), (two, "b"), (three, "c")] {
        assert_eq!(node.redeem("MANY", user).await.status, 201);
        assert_eq!(node.redeem("NONE", user).await.code(), "invite_not_found");
    }
    let change = async |node: &Node, path: &str, body| {
        let changed = node.send(Method::PATCH, path, &body).await;
        assert_eq!(changed.status, 200, "{}", changed.text);
    };
    change(one, NAMESPACE, json!({"error_detail": "coarse"})).await;
    assert_eq!(two.redeem("NONE", "d").await.code(), "invite_invalid");
    change(two, NAMESPACE, json!({"error_detail": "full", "rate_user": "1/3600"})).await;
    assert_eq!(three.redeem("NONE", "e").await.code(), "invite_not_found");
    assert_eq!(one.redeem("NONE", "e").await.code(), "rate_limited");
    change(three, NAMESPACE, json!({"durability": "ledger"})).await;
    assert_eq!(one.redeem("MANY", "f").await.body["durability"], "ledger");
    change(two, &invite, json!({"max_uses": 4})).await;
    assert_eq!(three.redeem("MANY", "g").await.code(), "invite_exhausted");
    change(one, &invite, json!({"max_uses": 1000, "disabled": true})).await;
    assert_eq!(two.redeem("MANY", "h").await.code(), "invite_disabled");
}

/// The library that gives a process another clock.
fn other_clock() -> String {
    let below = std::fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
    let mut places = below.map(|path| path.join("faketime/libfaketimeMT.so.1"));
    places.find(|path| path.exists()).expect("libfaketime is installed").display().to_string()
}

/// Redis, the ledger and one of the nodes have the right time; the others are an hour ahead and an hour behind.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_differ_by_hours_change_nothing() {
    const NAMESPACE: &str = "/v1/namespaces/default";
    let from = redeemer::ids::now();
    let mut it = Three::start_with(|number| {
        let clock = |offset: &str| {
            vec![
                ("LD_PRELOAD", other_clock()),
                ("FAKETIME", offset.to_owned()),
                // What says how long something takes goes on as it is.
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
                ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ]
        };
        [vec![], clock("+1h"), clock("-1h")][number].clone()
    })
    .await;
    let date = |reply: &Reply| reply.header("date")[..22].to_owned();
    let mut dates = Vec::new();
    for node in &it.nodes {
        dates.push(date(&node.get("/livez").await));
    }
    dates.sort_unstable();
    dates.dedup();
    assert_eq!(dates.len(), 3, "the clocks do not differ");

    // It does not matter whose turn it is to lead.
    let (history, outcome) = it
        .under_load(20, async |it| {
            for number in [1, 2, 0] {
                it.kill(number).await;
            }
        })
        .await;
    assert_lawful(&with_what_the_balancer_asked(&history), &outcome);

    // Windows, deadlines and the ends of keys are the same for all.
    let at = |minutes: i64| Millis::from_ms(from.as_ms() + minutes * 60_000).unwrap().to_string();
    let windows = [
        ("PAST", at(-120), at(-30), "invite_expired"),
        ("OPEN", at(-30), at(30), "OPEN"),
        ("AHEAD", at(30), at(120), "not_started"),
    ];
    // A grant has the code of the invite.
    for (code, starts_at, expires_at, _) in &windows {
        let body = json!({"code": code, "group": code, "max_uses": 9, "starts_at": starts_at, "expires_at": expires_at});
        let made = it.nodes[1].post(&format!("{NAMESPACE}/invites"), &body).await;
        assert_eq!(made.status, 201, "{}", made.text);
    }
    let keys = async |minutes: i64| {
        let body = json!({"name": "short", "role": "redeem", "expires_at": at(minutes)});
        it.nodes[2].post("/v1/keys", &body).await
    };
    assert_eq!(keys(-30).await.code(), "invalid_request");
    let key = keys(30).await.body["key"].as_str().unwrap().to_owned();
    for (number, node) in it.nodes.iter().enumerate() {
        for (code, _, _, answer) in &windows {
            let reply = node.redeem(code, &format!("user-{number}-{code}")).await;
            assert_eq!(reply.code(), *answer, "{number} {code}: {}", reply.text);
        }
        eventually("the node knows the key", async || {
            let ask =
                node.bare(Method::POST, &format!("{NAMESPACE}/validations")).bearer_auth(&key);
            let body = json!({"code": "OPEN", "user": "somebody"});
            send(json_body(ask, &body)).await.unwrap().status == 200
        })
        .await;
        let body = json!({"code": "OPEN", "user": format!("holder-{number}"), "ttl_seconds": 600});
        let held = node.post(&format!("{NAMESPACE}/reservations"), &body).await;
        assert_eq!(held.status, 201, "{}", held.text);
        let id = held.body["id"].as_str().unwrap();
        let path = format!("{NAMESPACE}/reservations/{id}/confirm");
        let confirmed = it.nodes[(number + 1) % 3].post(&path, &json!({})).await;
        assert_eq!(confirmed.status, 201, "{}", confirmed.text);
    }

    let times = it.sql.texts("SELECT CAST(redeemed_at AS TEXT) FROM redemptions").await;
    let (from, to) = (from.as_ms(), redeemer::ids::now().as_ms());
    let of_the_gate = |time: &String| (from..=to).contains(&time.parse().unwrap());
    assert!(times.iter().all(of_the_gate), "a node's clock was asked");
}
