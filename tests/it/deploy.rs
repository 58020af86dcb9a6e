//! The files under `deploy/`: what each program that reads them says of them, and whether a real Prometheus finds in a
//! real node everything that alerts and dashboard ask for.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    eventually, lasting_port,
    node::{Node, Settings, http_client, json_body, send, signal},
    redis::RedisServer,
    until_some,
};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(here(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a program in the root of the checkout; says what it said, if it was content.
fn run(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(here(""));
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{command:?}\n{}", said.concat());
    said.concat()
}

/// The files of a directory that have this ending.
fn files(directory: &str, ending: &str) -> Vec<String> {
    let entries = fs::read_dir(here(directory)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let of_kind = names.filter(|name| name.ends_with(ending));
    let mut found: Vec<_> = of_kind.map(|name| format!("{directory}/{name}")).collect();
    found.sort();
    found
}

/// The words of a text that begin so.
fn words(text: &str, beginning: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let all = text.split(|c| !is_part(c)).filter(|word| word.starts_with(beginning));
    all.map(str::to_owned).collect()
}

/// The names of the alerts, in the order of their file.
fn alerts() -> Vec<String> {
    let text = read("deploy/prometheus/alerts.yml");
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .map(str::to_owned)
        .collect()
}

/// What the dashboard asks, with an interval in place of Grafana's own.
fn questions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/redeemer.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets
        .map(|target| target["expr"].as_str().unwrap().replace("$__rate_interval", "1m"))
        .collect()
}

#[test]
fn compose_files_obey_the_specification() {
    let mut files = files("deploy", ".yml");
    files.push("docker-compose.yml".to_owned());
    let mut arguments = vec!["--builtin-schema", "vendor.compose-spec"];
    arguments.extend(files.iter().map(String::as_str));
    run(here("target/venv/bin/check-jsonschema"), &arguments);
}

#[test]
fn what_compose_mounts_is_there_and_no_secret_is_written_down() {
    let compose = read("docker-compose.yml");
    let mounted = compose.split("./deploy/").skip(1).map(|rest| rest.split(':').next().unwrap());
    for path in mounted {
        assert!(here("deploy").join(path).exists(), "{path}");
    }
    for line in compose.lines().filter(|line| line.to_uppercase().contains("PASSWORD")) {
        let is_of_a_file = ["_FILE:", "#", "cat /run/secrets/"].iter().any(|ok| line.contains(ok));
        assert!(is_of_a_file, "{line}");
    }
}

/// A server of Redis without a fixed address would have no name once it is gone, and its sentinels would wait for it.
#[test]
fn each_server_of_redis_in_compose_has_the_address_that_the_others_know() {
    const NET: &str = "${GATE_NET:-172.30.77}";
    let compose = read("docker-compose.yml");
    let known: Vec<_> =
        compose.lines().filter_map(|line| line.trim().split_once(&format!(": {NET}"))).collect();
    let services = compose.split("\nservices:\n").nth(1).unwrap();
    let mut servers = Vec::new();
    let mut service = "";
    for line in services.lines() {
        if line.starts_with("  ") && !line.starts_with("   ") && !line.trim().starts_with('#') {
            service = line.trim().split(':').next().unwrap();
        }
        if line.trim().starts_with("command: [\"") && line.contains(&format!("\"{service}\"")) {
            servers.push(service);
        }
        if let Some((_, rest)) = line.split_once(&format!("ipv4_address: \"{NET}")) {
            assert!(known.contains(&(service, rest.split('"').next().unwrap())), "{line}");
        }
    }
    assert_eq!(known.iter().map(|(name, _)| *name).collect::<Vec<_>>(), servers);
    assert_eq!(services.matches("ipv4_address: ").count(), servers.len());
}

#[test]
fn kubernetes_knows_every_field_of_the_manifests() {
    let listed = read("deploy/kubernetes/kustomization.yaml");
    let mut manifests = files("deploy/kubernetes", ".yaml");
    manifests.retain(|path| !path.ends_with("/kustomization.yaml"));
    for path in manifests.iter().filter(|path| !path.contains(".example.")) {
        let name = path.rsplit('/').next().unwrap();
        assert!(listed.contains(&format!("- {name}")), "{path} is not in the kustomization");
    }
    let mut arguments = vec!["--strict", "--quiet"];
    arguments.extend(manifests.iter().map(String::as_str));
    run(here("target/venv/bin/kubernetes-validate"), &arguments);
}

#[test]
fn haproxy_and_prometheus_understand_their_files() {
    run("haproxy", &["-c", "-f", "deploy/haproxy/haproxy.cfg"]);
    run("promtool", &["check", "config", "deploy/prometheus/prometheus.yml"]);
    run("promtool", &["check", "rules", "deploy/prometheus/alerts.yml"]);
}

#[test]
fn each_alert_fires_when_it_should_and_no_other() {
    run("promtool", &["test", "rules", "deploy/prometheus/alerts.test.yml"]);
    let tested = read("deploy/prometheus/alerts.test.yml");
    for alert in alerts() {
        assert!(tested.contains(&format!("- name: {alert}\n")), "{alert} has no test");
    }
}

#[test]
fn each_alert_has_a_section_that_says_what_to_do() {
    let (document, rules) = (read("docs/operations.md"), read("deploy/prometheus/alerts.yml"));
    let sections: Vec<_> =
        document.lines().filter_map(|line| line.strip_prefix("### Redeemer")).collect();
    let named: Vec<_> = alerts();
    assert_eq!(sections.iter().map(|rest| format!("Redeemer{rest}")).collect::<Vec<_>>(), named);
    for alert in named {
        let link = format!("runbook: docs/operations.md#{}\n", alert.to_lowercase());
        assert!(rules.contains(&link), "{link}");
    }
}

#[test]
fn systemd_understands_the_unit() {
    // It belongs to the system, and is not there where another one starts the services.
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let unit = directory.path().join("redeemer.service");
    let text = read("deploy/systemd/redeemer.service");
    let program = env!("CARGO_BIN_EXE_redeemer");
    fs::write(&unit, text.replace("/usr/local/bin/redeemer", program)).unwrap();
    run("systemd-analyze", &["verify", "--man=no", unit.to_str().unwrap()]);
}

#[test]
fn secrets_are_made_once_and_are_what_a_node_takes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let all = || -> Vec<String> {
        let names = ["redis/password", "redeemer/admin-key", "redeemer/sentinel-url"];
        names.map(|name| fs::read_to_string(directory.path().join(name)).unwrap()).into()
    };
    run(here("deploy/secrets"), &[path]);
    let made = all();
    run(here("deploy/secrets"), &[path]);
    assert_eq!(all(), made);
    assert!(made[2].contains(&format!(":{}@sentinel-1:26379", made[0].trim())), "{}", made[2]);
    let other = tempfile::tempdir().unwrap();
    run(here("deploy/secrets"), &[other.path().to_str().unwrap()]);
    let key = fs::read_to_string(other.path().join("redeemer/admin-key")).unwrap();
    assert_ne!(key, made[1]);
    redeemer::domain::Token::parse(key.trim()).unwrap();
}

#[test]
fn a_service_manager_hears_when_it_is_ready_alive_and_stopping() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let said = || {
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    let env =
        vec![("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "100000".to_owned())];
    let node = Node::start(&Settings { env, ..Settings::default() });
    assert_eq!(said(), "READY=1");
    assert_eq!((said(), said()), ("WATCHDOG=1".to_owned(), "WATCHDOG=1".to_owned()));
    signal(node.pid(), "TERM");
    let rest: Vec<_> =
        std::iter::repeat_with(said).take_while(|word| word != "STOPPING=1").collect();
    assert!(rest.iter().all(|word| word == "WATCHDOG=1"), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_moves_to_an_empty_redis_while_its_nodes_are_stopped() {
    let (old, new) = (RedisServer::start().await, RedisServer::start().await);
    let directory = tempfile::tempdir().unwrap();
    let start = async |redis_url| {
        let path = directory.path().to_owned();
        let settings = Settings { redis_url: Some(redis_url), ..Settings::default() };
        tokio::task::spawn_blocking(move || Node::start_at(&path, &settings)).await.unwrap()
    };
    let node = start(old.url()).await;
    node.invite("SPRING", "team", 2).await;
    let first = node.try_redeem("SPRING", "alice", "key-1").await.unwrap();
    assert_eq!(first.status, 201, "{}", first.text);
    assert_eq!(node.stop().await, 0);

    let node = start(new.url()).await;
    let again = node.try_redeem("SPRING", "alice", "key-1").await.unwrap();
    assert_eq!((again.status, &again.body["id"]), (200, &first.body["id"]), "{}", again.text);
    assert_eq!(node.redeem("SPRING", "bob").await.status, 201);
    assert_eq!(node.redeem("SPRING", "carol").await.code(), "invite_exhausted");
}

/// A Prometheus with the configuration of this checkout, but for whom it asks and how often; gone when it is dropped.
struct Prometheus {
    url: String,
    http: reqwest::Client,
    child: Child,
    _directory: TempDir,
}

impl Prometheus {
    fn start(target: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = read("deploy/prometheus/prometheus.yml")
            .replace("5s", "200ms")
            .replace("[\"node-1:9100\", \"node-2:9100\", \"node-3:9100\"]", &format!("[{target}]"));
        assert!(config.contains(target), "{config}");
        fs::write(directory.path().join("prometheus.yml"), config).unwrap();
        let rules = read("deploy/prometheus/alerts.yml");
        fs::write(directory.path().join("alerts.yml"), rules).unwrap();
        let address = format!("127.0.0.1:{}", lasting_port());
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", directory.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let url = format!("http://{address}");
        Self { url, http: http_client(), child, _directory: directory }
    }

    /// What it answers, once it does.
    async fn get(&self, path: &str) -> Value {
        let answer = until_some("Prometheus answers", async || {
            let answer = send(self.http.get(format!("{}{path}", self.url))).await.ok()?;
            // While it starts.
            (answer.status != 503).then_some(answer)
        });
        let answer = answer.await;
        assert_eq!(answer.body["status"], "success", "{path}: {}", answer.text);
        answer.body["data"].clone()
    }

    /// The series that answer a question.
    async fn ask(&self, question: &str) -> Vec<Value> {
        let encoded =
            percent_encoding::utf8_percent_encode(question, percent_encoding::NON_ALPHANUMERIC);
        let data = self.get(&format!("/api/v1/query?query={encoded}")).await;
        data["result"].as_array().unwrap().clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_finds_what_alerts_and_dashboard_ask_for() {
    let mut redis = RedisServer::start().await;
    let metrics = format!("127.0.0.1:{}", lasting_port());
    let settings = Settings {
        redis_url: Some(redis.url()),
        env: vec![
            ("REDEEMER_HTTP__METRICS_BIND", metrics.clone()),
            ("REDEEMER_SYNC__AUDIT_EVERY_SECONDS", "1".to_owned()),
        ],
        ..Settings::default()
    };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    let prometheus = Prometheus::start(&metrics);
    node.invite("SPRING", "team", 1).await;

    // Something happens all the while: of what has not changed since the first look nothing can be told.
    let mut turn = 0;
    let mut missing: Vec<String> = questions();
    eventually("every question of the dashboard has an answer", async || {
        turn += 1;
        node.redeem("SPRING", &format!("user-{turn}")).await;
        node.redeem("NONE", &format!("user-{turn}")).await;
        let code = format!("CODE-{turn}");
        node.invite(&code, "other", 1).await;
        let body = json!({"code": code, "user": format!("person-{turn}"), "durability": "ledger"});
        let request = node.request(Method::POST, "/v1/namespaces/default/redemptions");
        assert_eq!(send(json_body(request, &body)).await.unwrap().status, 201);
        let mut still = Vec::new();
        for question in std::mem::take(&mut missing) {
            let series = prometheus.ask(&question).await;
            let is_number = |one: &Value| one["value"][1].as_str().is_some_and(|n| n != "NaN");
            if !series.iter().any(is_number) {
                still.push(question);
            }
        }
        missing = still;
        missing.is_empty()
    })
    .await;

    // A slow moment of a busy machine may be on its way to an alert, but none has waited for long enough.
    let mut names = Vec::new();
    eventually("every rule is well", async || {
        let rules = prometheus.get("/api/v1/rules").await;
        let rules = rules["groups"][0]["rules"].as_array().unwrap().clone();
        names = rules.iter().map(|rule| rule["name"].as_str().unwrap().to_owned()).collect();
        rules.iter().all(|rule| rule["health"] == "ok" && rule["state"] != "firing")
    })
    .await;
    assert_eq!(names, alerts());
    // A name that nobody counts by would never fire, and never be missed.
    let asked = read("deploy/prometheus/alerts.yml") + &read("deploy/grafana/redeemer.json");
    for name in words(&asked, "redeemer_") {
        // After a look in vain all are gone until the next one.
        eventually(&format!("a node tells {name}"), async || {
            !prometheus.ask(&name).await.is_empty()
        })
        .await;
    }

    redis.kill();
    eventually("the alert about Redis is on its way", async || {
        let alerts = prometheus.get("/api/v1/alerts").await;
        alerts["alerts"]
            .as_array()
            .unwrap()
            .iter()
            .any(|alert| alert["labels"]["alertname"] == "RedeemerRedisUnwell")
    })
    .await;
}
