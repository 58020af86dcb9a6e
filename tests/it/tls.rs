//! TLS and users of Redis: of one server, of sentinels and of a cluster, with the rights that docs/which-redis.md says are
//! enough and no more.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use redeemer::torture::redis::{Kind, Redis, Setup, next_place};
use serde_json::json;

use crate::support::{
    ledger,
    node::{Node, Settings, command},
};

/// Makes an authority, and a certificate for every server of this process and for clients.
fn certificates(directory: &Path) {
    let ip = *next_place().ip();
    let openssl = |args: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(args.split(' ')).current_dir(directory).stderr(Stdio::null());
        assert!(openssl.status().unwrap().success(), "openssl {args}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for name in ["ca", "stranger"] {
        openssl(&format!("req -x509 {key} -subj /CN={name} -keyout {name}.key -out {name}.crt"));
    }
    openssl(&format!(
        "req -x509 {key} -CA ca.crt -CAkey ca.key -subj /CN=redis -addext subjectAltName=IP:{ip} -addext \
         basicConstraints=critical,CA:FALSE -keyout redis.key -out redis.crt"
    ));
}

/// The line of docs/which-redis.md that makes a user, of servers or of sentinels.
fn user(number: usize) -> String {
    let document = include_str!("../../docs/which-redis.md");
    let block = document.split("```acl\n").nth(number + 1).unwrap();
    block.lines().next().unwrap().replace("PASSWORD", "hush")
}

/// With TLS, certificates on both sides, and users: starts, creates, redeems, audits.
async fn works(kind: Kind) {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let file = |name: &str| directory.path().join(name).display().to_string();
    let tls = [
        format!("tls-ca-cert-file {}", file("ca.crt")),
        format!("tls-cert-file {}", file("redis.crt")),
        format!("tls-key-file {}", file("redis.key")),
        "tls-replication yes".to_owned(),
    ];
    let mut setup = Setup::new(&PathBuf::from("redis-server"), directory.path());
    setup.tls = true;
    setup.server_lines = [&tls[..], &[user(0)]].concat();
    if kind == Kind::Cluster {
        setup.server_lines.push("tls-cluster yes".to_owned());
    }
    setup.sentinel_lines = [&tls[..], &[user(1)]].concat();
    let mut redis = Redis::start(kind, &setup).unwrap();
    redis.wait().await.unwrap();
    let mut url = redis.url(true, "redeemer:hush@");
    if kind == Kind::Sentinel {
        url += "&sentinel_user=redeemer&sentinel_password=hush";
    }
    let settings = |ca: &str| Settings {
        redis_url: Some(url.clone()),
        ledger: Some(ledger::url_in(directory.path())),
        env: vec![
            ("REDEEMER_REDIS__TLS_CA_FILE", file(ca)),
            ("REDEEMER_REDIS__TLS_CERT_FILE", file("redis.crt")),
            ("REDEEMER_REDIS__TLS_KEY_FILE", file("redis.key")),
        ],
    };
    let right = settings("ca.crt");
    let node = tokio::task::spawn_blocking(move || Node::start(&right)).await.unwrap();
    node.invite("TLS", "team", 10).await;
    let body = json!({"code": "TLS", "user": "alice", "durability": "ledger"});
    let told = node.post("/v1/namespaces/default/redemptions", &body).await;
    assert_eq!((told.status, &told.body["durability"]), (201, &json!("ledger")), "{}", told.text);
    let held = json!({"code": "TLS", "user": "bob", "ttl_seconds": 60});
    let held = node.post("/v1/namespaces/default/reservations", &held).await;
    assert_eq!(held.status, 201, "{}", held.text);
    let rolled_back = format!(
        "/v1/namespaces/default/redemptions/{}/rollback",
        told.body["id"].as_str().unwrap()
    );
    let rolled_back = node.post(&rolled_back, &json!({"reason": "a test"})).await;
    assert_eq!(rolled_back.status, 200, "{}", rolled_back.text);
    let erased = node.delete("/v1/namespaces/default/users/alice").await;
    assert!([200, 202, 204].contains(&erased.status), "{}", erased.text);
    let report = node.get("/v1/namespaces/default/consistency").await;
    assert_eq!(report.body["consistent"], true, "{}", report.text);
    let log = node.whole_log().await;
    assert!(!log.contains("NOPERM") && !log.contains("hush"), "{log}");

    let output = command(directory.path(), &settings("stranger.crt"))
        .arg("serve")
        .env("REDEEMER_HTTP__BIND", "127.0.0.1:0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("ertificate"), "{said}");
    assert!(!said.contains("hush"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_with_tls_and_a_user_of_least_rights() {
    works(Kind::Standalone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_with_tls_and_a_user_of_least_rights() {
    works(Kind::Sentinel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_tls_and_a_user_of_least_rights() {
    works(Kind::Cluster).await;
}
