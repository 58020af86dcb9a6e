//! The program as its users run it: every command, its output and its exit code.

use std::process::Output;

use serde_json::Value;

use crate::support::{
    node::{Node, Settings, command},
    redis::RedisServer,
    wait_until,
};

/// Runs the program next to a node, as somebody in its directory would.
fn run(node: &Node, args: &[&str]) -> Output {
    command(node.directory(), &Settings::default())
        .env("REDEEMER_URL", &node.url)
        .args(args)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs a command that must do well, and reads its JSON.
fn json(node: &Node, args: &[&str]) -> Value {
    let output = run(node, &[args, &["--output", "json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn invites_are_made_listed_shown_and_disabled() {
    let node = Node::embedded();
    let made = json(
        &node,
        &[
            "invite",
            "create",
            "spring",
            "--group",
            "team",
            "--max-uses",
            "2",
            "--email-domain",
            "example.com",
        ],
    );
    assert_eq!(
        (&made["code"], &made["email_domains"][0]),
        (&"SPRING".into(), &"example.com".into())
    );
    let made_up = json(&node, &["invite", "create", "--group", "team", "--unlimited"]);
    assert_eq!(made_up["code"].as_str().unwrap().len(), 14, "{made_up}");
    assert_eq!(made_up["max_uses"], Value::Null);
    // Both are in the ledger at once, or soon.
    wait_until("both are listed", || {
        json(&node, &["invite", "list"]).as_array().unwrap().len() == 2
    });
    assert_eq!(json(&node, &["invite", "list", "--prefix", "SPR"]).as_array().unwrap().len(), 1);
    let table = stdout(&run(&node, &["invite", "list"]));
    assert!(table.starts_with(" CODE") && table.contains("SPRING"), "{table}");
    let csv = stdout(&run(&node, &["invite", "list", "--prefix", "spring", "--output", "csv"]));
    assert!(csv.starts_with("code,state,group,uses,max_uses"), "{csv}");
    let disabled = json(&node, &["invite", "disable", "SPRING"]);
    assert_eq!(disabled["state"], "disabled");
    let shown = json(&node, &["invite", "show", made["id"].as_str().unwrap()]);
    assert_eq!(shown["state"], "disabled");
    let missing = run(&node, &["invite", "show", "NOBODY"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("invite_not_found"), "{}", stderr(&missing));
}

#[test]
fn a_code_is_redeemed_and_a_repeat_is_recognised() {
    let node = Node::embedded();
    json(&node, &["invite", "create", "WELCOME", "--group", "team", "--max-uses", "1"]);
    let args = [
        "redeem",
        "welcome",
        "--user",
        "alice",
        "--idempotency-key",
        "k",
        "--metadata",
        r#"{"plan":"pro"}"#,
    ];
    let first = json(&node, &args);
    let again = json(&node, &args);
    assert_eq!((&again["id"], &again["replayed"]), (&first["id"], &true.into()));
    let refused = run(&node, &["redeem", "WELCOME", "--user", "bob"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("invite_exhausted"), "{}", stderr(&refused));
}

#[test]
fn keys_are_made_listed_and_revoked_and_a_lost_admin_key_is_replaced() {
    // Without a configured key, so that the one in the data directory counts.
    let directory = tempfile::tempdir().unwrap();
    let settings =
        Settings { env: vec![("REDEEMER_AUTH__ADMIN_KEY", String::new())], ..Settings::default() };
    let node = Node::start_at(directory.path(), &settings);
    let run = |args: &[&str]| {
        command(directory.path(), &settings)
            .env("REDEEMER_URL", &node.url)
            .args(args)
            .output()
            .unwrap()
    };
    let made = run(&[
        "key", "create", "--name", "web", "--role", "redeem", "--only", "default", "--output",
        "json",
    ]);
    assert!(made.status.success(), "{}", stderr(&made));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let (id, token) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    let redeem = |key: &str| stderr(&run(&["redeem", "NOBODY", "--user", "alice", "--key", key]));
    assert!(redeem(token).contains("invite_not_found"));
    assert!(run(&["key", "revoke", id]).status.success());
    assert!(redeem(token).contains("unauthorized"));

    let path = directory.path().join("admin.key");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let lost = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(stderr(&run(&["key", "list"])).contains("no API key"), "without a key there is a hint");
    assert!(run(&["key", "reset-admin"]).status.success());
    // The node reads the keys anew every now and then.
    wait_until("the new key opens", || run(&["key", "list"]).status.success());
    wait_until("the lost key opens nothing", || {
        stderr(&run(&["key", "list", "--key", lost.trim()])).contains("unauthorized")
    });
}

#[test]
fn what_redis_holds_is_shown_with_commands_that_work() {
    let node = Node::embedded();
    json(&node, &["invite", "create", "WELCOME", "--group", "team", "--max-uses", "3"]);
    json(&node, &["redeem", "WELCOME", "--user", "alice"]);
    let shown = stdout(&run(&node, &["inspect", "--code", "welcome", "--user", "bob"]));
    let commands: Vec<_> = shown.lines().filter(|line| line.starts_with("redis-cli ")).collect();
    assert_eq!(commands.len(), 7, "{shown}");
    assert!(shown.contains("uses  1"), "{shown}");
    for command in &commands {
        let output = std::process::Command::new("bash")
            .args(["-c", command])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        let said = stdout(&output);
        assert!(
            output.status.success() && !said.contains("ERR"),
            "{command}: {said} {}",
            stderr(&output)
        );
        if command.contains("--eval") {
            assert!(said.contains("allowed"), "{said}");
        }
        if command.contains(":invite:") && command.contains("HGETALL") {
            assert!(said.contains("max_uses"), "{said}");
        }
    }
    assert_eq!(
        json(&node, &["inspect", "--user", "alice"])["commands"].as_array().unwrap().len(),
        5
    );
}

#[test]
fn the_three_lines_of_the_banner_work_on_every_start() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let node = Node::start_at(directory.path(), &Settings::default());
        let lines: Vec<_> = node
            .banner()
            .lines()
            .filter(|line| line.starts_with("curl ") || line.starts_with("redis-cli "))
            .map(str::to_owned)
            .collect();
        assert_eq!(lines.len(), 3, "{}", node.banner());
        let said: Vec<String> = lines
            .iter()
            .map(|line| {
                let output = std::process::Command::new("bash")
                    .args(["-c", line])
                    .env("REDEEMER_AUTH__ADMIN_KEY", crate::support::node::ADMIN_KEY)
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{line}: {}", stderr(&output));
                stdout(&output)
            })
            .collect();
        let invite: Value = serde_json::from_str(&said[0]).unwrap();
        assert_eq!(invite["code"], "WELCOME");
        let redemption: Value = serde_json::from_str(&said[1]).unwrap();
        assert_eq!((&redemption["use"], &redemption["replayed"]), (&1.into(), &(round > 0).into()));
        assert!(said[2].contains("max_uses\n100\nuses\n1\n"), "{}", said[2]);
    }
}

#[test]
fn status_and_healthcheck_say_how_it_is() {
    let node = Node::embedded();
    assert!(run(&node, &["healthcheck"]).status.success());
    let status = json(&node, &["status"]);
    assert_eq!(
        (&status["ready"], status["checks"].as_array().unwrap().len()),
        (&true.into(), 3),
        "{status}"
    );
    // On the node's own machine, its ledger is looked at too.
    let bind = node.url.trim_start_matches("http://");
    let local = command(node.directory(), &Settings::default())
        .env("REDEEMER_HTTP__BIND", bind)
        .args(["status"])
        .output()
        .unwrap();
    assert!(local.status.success(), "{}", stderr(&local));
    assert_eq!(stdout(&local).matches(" open ").count(), 16, "{}", stdout(&local));
    let nobody = command(node.directory(), &Settings::default())
        .args(["healthcheck", "--url", "http://127.0.0.1:1"])
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(stderr(&nobody).contains("redeemer serve"), "{}", stderr(&nobody));
}

#[test]
fn a_rebuild_is_done_by_the_running_node() {
    let node = Node::embedded();
    json(&node, &["invite", "create", "WELCOME", "--group", "team", "--max-uses", "3"]);
    let first = json(&node, &["redeem", "WELCOME", "--user", "alice"]);
    // What the ledger does not have would be lost.
    let path = format!("/v1/namespaces/default/redemptions/{}", first["id"].as_str().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    wait_until("the ledger has it", || {
        runtime.block_on(node.get(&path)).body["durability"] == "ledger"
    });
    let incomplete = run(&node, &["rebuild"]);
    assert_eq!(incomplete.status.code(), Some(2));
    let done = run(&node, &["rebuild", "--from-ledger", "--discard-gate"]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(stdout(&done).contains("Rebuilt 16 partition(s)"), "{}", stdout(&done));
    wait_until("the partition serves", || {
        run(&node, &["redeem", "WELCOME", "--user", "alice"]).status.success()
    });
    let again = json(&node, &["redeem", "WELCOME", "--user", "alice"]);
    assert_eq!(again["id"], first["id"]);
}

#[test]
fn configuration_is_checked_as_a_whole_and_shown_without_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let run = |env: &[(&str, &str)], args: &[&str]| {
        command(directory.path(), &Settings::default())
            .envs(env.iter().copied())
            .args(args)
            .output()
            .unwrap()
    };
    assert!(run(&[], &["config", "check"]).status.success());
    let bad = [
        ("REDEEMER_HTTP__BIND", "nowhere"),
        ("REDEEMER_GATE__PARTITIONS", "0"),
        ("REDEEMER_NONSENSE__X", "1"),
    ];
    let checked = run(&bad, &["config", "check"]);
    assert_eq!(checked.status.code(), Some(2));
    for part in ["3 problem(s)", "http.bind", "gate.partitions", "nonsense.x"] {
        assert!(stderr(&checked).contains(part), "{part}: {}", stderr(&checked));
    }
    assert_eq!(run(&bad, &["serve"]).status.code(), Some(2));
    let shown =
        stdout(&run(&[("REDEEMER_REDIS__URL", "redis://u:hush@127.0.0.1:1")], &["config", "show"]));
    assert!(shown.contains("***") && !shown.contains("hush"), "{shown}");
    assert!(!shown.contains(crate::support::node::ADMIN_KEY), "{shown}");
}

#[test]
fn a_start_that_can_not_be_names_every_problem_and_its_fix() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = taken.local_addr().unwrap().to_string();
    let serve = |env: &[(&str, &str)]| {
        let output = command(directory.path(), &Settings::default())
            .envs(env.iter().copied())
            .arg("serve")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    };
    assert!(serve(&[("REDEEMER_HTTP__BIND", &bind)]).contains("set http.bind to another address"));
    let free = ("REDEEMER_HTTP__BIND", "127.0.0.1:0");
    let unreachable = serve(&[
        free,
        ("REDEEMER_REDIS__URL", "redis://127.0.0.1:1"),
        ("REDEEMER_LEDGER__URL", "sqlite:/proc/no/ledger"),
    ]);
    assert!(
        unreachable.contains("mend redis.url") && unreachable.contains("mend ledger.url"),
        "{unreachable}"
    );
    assert!(serve(&[free, ("REDEEMER_REDIS__SERVER", "/bin/true")]).contains("is not Redis 7.0"));

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let redis = runtime.block_on(RedisServer::start_with(&[
        "--maxmemory-policy",
        "allkeys-lru",
        "--maxmemory",
        "100mb",
    ]));
    let evicting = serve(&[free, ("REDEEMER_REDIS__URL", &redis.url())]);
    assert!(evicting.contains("CONFIG SET maxmemory-policy noeviction"), "{evicting}");

    // A ledger of 16 partitions.
    let node = Node::start_at(directory.path(), &Settings::default());
    let second = serve(&[free]);
    assert!(second.contains("another redeemer") && second.contains("set data.dir"), "{second}");
    drop(node);
    let other = serve(&[free, ("REDEEMER_GATE__PARTITIONS", "8")]);
    assert!(other.contains("set gate.partitions = 16"), "{other}");
}

#[test]
fn the_demonstration_proves_what_it_says() {
    let node = Node::embedded();
    let output = run(&node, &["demo", "--users", "300", "--uses", "40", "--at-once", "32"]);
    assert!(output.status.success(), "{} {}", stdout(&output), stderr(&output));
    assert_eq!(stdout(&output).matches("\n yes ").count(), 7, "{}", stdout(&output));
    let proof = json(&node, &["demo", "--users", "10", "--uses", "40"]);
    assert!(proof.as_array().unwrap().iter().all(|line| line["ok"] == "yes"), "{proof}");
}
