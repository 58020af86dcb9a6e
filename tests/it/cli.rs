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
    assert!(csv.starts_with("code,state,group,uses,held,max_uses"), "{csv}");
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
    assert_eq!(commands.len(), 9, "{shown}");
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

#[test]
fn namespaces_are_made_listed_shown_changed_and_archived() {
    let node = Node::embedded();
    let made = json(
        &node,
        &[
            "namespace",
            "create",
            "acme",
            "--membership",
            "one_per_group",
            "--code-case",
            "lenient",
            "--code-check",
            "--durability",
            "ledger",
            "--rate-user",
            "5/60",
            "--rate-guess",
            "off",
        ],
    );
    let fields = ["name", "membership", "code_case", "code_check", "durability", "rate_user"];
    let shown: Vec<_> = fields.iter().map(|field| made[*field].to_string()).collect();
    assert_eq!(
        shown,
        ["\"acme\"", "\"one_per_group\"", "\"lenient\"", "true", "\"ledger\"", "\"5/60\""]
    );
    assert_eq!(made["rate_guess"], Value::Null);
    // To make it again would set its rules back.
    let again = run(&node, &["namespace", "create", "acme"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("redeemer namespace change acme"), "{}", stderr(&again));
    let changed = json(&node, &["namespace", "change", "acme", "--rate-ip", "20/60"]);
    assert_eq!((&changed["rate_ip"], &changed["rate_user"]), (&"20/60".into(), &"5/60".into()));
    assert_eq!(json(&node, &["namespace", "show", "acme"])["revision"], changed["revision"]);
    wait_until("both are listed", || {
        json(&node, &["namespace", "list"]).as_array().unwrap().len() == 2
    });
    let archived = stdout(&run(&node, &["namespace", "archive", "acme", "--output", "csv"]));
    assert_eq!(archived, "archived\nacme\n");
    let refused = run(&node, &["member", "add", "alice", "team", "--namespace", "acme"]);
    assert!(stderr(&refused).contains("namespace_not_found"), "{}", stderr(&refused));
    let back = json(&node, &["namespace", "create", "acme"]);
    assert_eq!(
        (&back["archived_at"], &back["membership"]),
        (&Value::Null, &"one_per_group".into())
    );
    let wrong = run(&node, &["namespace", "create", "other", "--membership", "two_groups"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));
}

#[test]
fn members_are_added_listed_shown_and_removed() {
    let node = Node::embedded();
    let added = json(&node, &["member", "add", "alice/ü", "the team"]);
    assert_eq!((&added["user"], &added["group"]), (&"alice/ü".into(), &"the team".into()));
    json(&node, &["member", "add", "bob", "the team"]);
    wait_until("both are listed", || {
        json(&node, &["member", "list"]).as_array().unwrap().len() == 2
    });
    let csv = stdout(&run(&node, &["member", "list", "--user", "bob", "--output", "csv"]));
    assert!(csv.starts_with("user,group,joined_at,redemption\nbob,the team,"), "{csv}");
    assert_eq!(json(&node, &["member", "list", "--limit", "1"]).as_array().unwrap().len(), 1);
    assert_eq!(json(&node, &["member", "show", "alice/ü"])[0]["group"], "the team");
    let removed = json(&node, &["member", "remove", "alice/ü", "the team"]);
    assert_eq!(removed["left"], "the team");
    let erased = json(&node, &["member", "erase", "alice/ü"]);
    assert!(erased["alias"].as_str().unwrap().starts_with("erased-"), "{erased}");
    assert!(run(&node, &["member", "remove", "bob"]).status.success());
    let gone = run(&node, &["member", "show", "bob"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(stderr(&gone).contains("member_not_found"), "{}", stderr(&gone));
}

#[test]
fn what_happens_is_followed_from_where_one_stopped() {
    use std::io::BufRead as _;
    let node = Node::embedded();
    json(&node, &["invite", "create", "WELCOME", "--group", "team", "--max-uses", "2"]);
    json(&node, &["redeem", "WELCOME", "--user", "alice"]);
    let follow = |after: &str, output: &str| {
        command(node.directory(), &Settings::default())
            .env("REDEEMER_URL", &node.url)
            .args(["events", "--after", after, "--output", output])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut child = follow("start", "json");
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    let redeemed = std::iter::repeat_with(&mut next).find(|event| event["event"] == "redeemed");
    let redeemed = redeemed.unwrap();
    assert_eq!(redeemed["data"]["user"], "alice");
    // What happens while it follows comes too.
    json(&node, &["member", "add", "bob", "team"]);
    assert_eq!(next()["event"], "joined");
    child.kill().unwrap();
    child.wait().unwrap();
    let mut child = follow(redeemed["id"].as_str().unwrap(), "table");
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(line.contains("joined") && line.ends_with("bob in team"), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn uses_are_held_spent_given_back_and_taken_back() {
    let node = Node::embedded();
    let campaign = json(&node, &["campaign", "put", "spring", "--max-uses", "2"]);
    assert_eq!((&campaign["max_uses"], &campaign["uses"]), (&2.into(), &0.into()));
    let create = ["invite", "create", "SEAT", "--group", "team", "--unlimited"];
    let invite =
        json(&node, &[&create[..], &["--campaign", "spring", "--max-uses-per-user", "1"]].concat());
    assert_eq!((&invite["campaign"], &invite["max_uses_per_user"]), (&"spring".into(), &1.into()));
    let changed = json(&node, &["invite", "change", "SEAT", "--max-uses-per-user", "none"]);
    assert!(changed["max_uses_per_user"].is_null(), "{changed}");
    let hold = |user: &str| {
        let held =
            json(&node, &["reservation", "create", "SEAT", "--user", user, "--ttl-seconds", "900"]);
        held["id"].as_str().unwrap().to_owned()
    };
    let (alice, bob) = (hold("alice"), hold("bob"));
    assert_eq!(json(&node, &["campaign", "show", "spring"])["held"], 2);
    let full = run(&node, &["redeem", "SEAT", "--user", "carol"]);
    assert!(stderr(&full).contains("campaign_exhausted"), "{}", stderr(&full));
    let released = run(&node, &["reservation", "release", &bob]);
    assert!(stdout(&released).contains("holds nothing any more"), "{}", stdout(&released));
    assert_eq!(json(&node, &["reservation", "show", &bob])["state"], "released");
    let paid = r#"{"paid": 5}"#;
    let confirmed = json(&node, &["reservation", "confirm", &alice, "--metadata", paid]);
    assert_eq!(confirmed["user"], "alice");
    let held = hold("dave");
    let spent = json(&node, &["redeem", "SEAT", "--user", "dave", "--reservation", &held]);
    let id = spent["id"].as_str().unwrap();
    let undone = json(&node, &["redemption", "rollback", id, "--reason", "test"]);
    assert!(undone["rolled_back_at"].is_string(), "{undone}");
    wait_until("the ledger has it", || json(&node, &["campaign", "list"])[0]["uses"] == 1);
}

#[test]
fn redemptions_are_validated_listed_and_shown() {
    let node = Node::embedded();
    json(&node, &["invite", "create", "WELCOME", "--group", "team", "--max-uses", "2"]);
    assert_eq!(json(&node, &["validate", "welcome", "--user", "alice"])["allowed"], true);
    let alice = json(&node, &["redeem", "WELCOME", "--user", "alice"]);
    let bob = json(&node, &["redeem", "WELCOME", "--user", "bob"]);
    let refused = run(&node, &["validate", "WELCOME", "--user", "carol", "--output", "csv"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stdout(&refused).contains("false,invite_exhausted"), "{}", stdout(&refused));
    let shown = json(&node, &["redemption", "show", alice["id"].as_str().unwrap()]);
    assert_eq!(shown["position"], alice["position"]);
    wait_until("both are listed", || {
        json(&node, &["redemption", "list"]).as_array().unwrap().len() == 2
    });
    let users = |args: &[&str]| {
        let listed = json(&node, &[&["redemption", "list"], args].concat());
        let users =
            listed.as_array().unwrap().iter().map(|row| row["user"].as_str().unwrap().to_owned());
        users.collect::<Vec<_>>()
    };
    assert_eq!(users(&[]), ["bob", "alice"]);
    assert_eq!(users(&["--order", "asc"]), ["alice", "bob"]);
    assert_eq!(users(&["--after-position", alice["position"].as_str().unwrap()]), ["bob"]);
    assert_eq!(users(&["--user", "alice", "--code", "welcome", "--group", "team"]), ["alice"]);
    assert_eq!(users(&["--invite", bob["invite"].as_str().unwrap(), "--limit", "1"]), ["bob"]);
    assert_eq!(users(&["--before", "2020-01-01T00:00:00Z"]), [""; 0]);
}

#[test]
fn invites_are_changed_enabled_and_deleted() {
    let node = Node::embedded();
    let create = ["invite", "create", "SPRING", "--group", "team", "--max-uses", "1"];
    json(&node, &[&create[..], &["--expires-at", "2099-01-01T00:00:00Z"]].concat());
    let change = |args: &[&str]| json(&node, &[&["invite", "change", "SPRING"], args].concat());
    let changed = change(&["--max-uses", "5", "--expires-at", "none", "--user", "alice"]);
    assert_eq!(
        (&changed["max_uses"], &changed["expires_at"], &changed["user"]),
        (&5.into(), &Value::Null, &"alice".into())
    );
    let changed = change(&["--unlimited", "--user", "none", "--email-domain", "example.com"]);
    assert_eq!(
        (&changed["max_uses"], &changed["user"], &changed["email_domains"][0]),
        (&Value::Null, &Value::Null, &"example.com".into())
    );
    let changed = change(&["--email-domain", "none", "--metadata", r#"{"a":1}"#]);
    assert_eq!(
        (&changed["email_domains"], &changed["metadata"]["a"]),
        (&Value::Array(vec![]), &1.into())
    );
    let id = changed["id"].as_str().unwrap();
    assert_eq!(json(&node, &["invite", "disable", "SPRING"])["state"], "disabled");
    assert_eq!(json(&node, &["invite", "enable", id])["state"], "active");
    assert_eq!(json(&node, &["invite", "delete", id])["deleted"], id);
    let gone = run(&node, &["invite", "show", id]);
    assert!(stderr(&gone).contains("invite_not_found"), "{}", stderr(&gone));
}

/// Runs the program where no service is.
fn alone(args: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let output = command(directory.path(), &Settings::default()).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

/// The man pages of all commands, by the name of the command with dashes.
fn man_pages() -> Vec<(String, String)> {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    alone(&["man", "--dir", pages.to_str().unwrap()]);
    let pages = std::fs::read_dir(pages).unwrap().map(|page| page.unwrap().path());
    pages
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect()
}

#[test]
fn there_is_a_man_page_for_each_command_and_the_document_has_it_too() {
    let pages = man_pages();
    assert!(pages.len() > 40, "{}", pages.len());
    assert!(alone(&["man"]).contains("redeemer\\-audit\\-log"));
    let document = include_str!("../../docs/cli.md");
    let groups: Vec<_> =
        pages.iter().filter(|(_, page)| page.contains(".SH SUBCOMMANDS")).collect();
    for (name, page) in &pages {
        assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH OPTIONS"), "{name}: {page}");
        let of = |group: &str| Some(name.strip_prefix(group)?.strip_prefix('-')?.to_owned());
        // The longest is the nearest.
        let group = groups.iter().filter_map(|(group, page)| Some((group, page, of(group)?)));
        let Some((group, above, leaf)) = group.max_by_key(|(group, ..)| group.len()) else {
            continue;
        };
        assert!(above.contains(&name.replace('-', "\\-")), "the page of {group} lacks {name}");
        let row = match group.strip_prefix("redeemer-") {
            Some(group) => {
                document.lines().find(|line| line.starts_with(&format!("| `redeemer {group} ")))
            }
            None => document.lines().find(|line| line.starts_with(&format!("| `redeemer {leaf}"))),
        };
        assert!(row.is_some_and(|row| row.contains(&leaf)), "docs/cli.md lacks {group} {leaf}");
    }
}

#[test]
fn shells_can_complete_every_command() {
    let pages = man_pages();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = alone(&["completions", shell]);
        for (name, _) in &pages {
            let last = name.rsplit('-').next().unwrap();
            assert!(script.contains(last), "{shell} does not know {name}");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("redeemer.bash");
    std::fs::write(&file, alone(&["completions", "bash"])).unwrap();
    let bash = |args: &[&str]| {
        let output = std::process::Command::new("bash").args(args).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    bash(&["-n"]);
    let complete = |words: &str| {
        let typed = format!(
            "source \"$0\"; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _redeemer redeemer \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let words = bash(&["-c", &typed]);
        words.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete("redeemer name"), ["namespace"]);
    assert_eq!(complete("redeemer member re"), ["remove"]);
    assert_eq!(complete("redeemer key create --role re"), ["redeem", "read"]);
}
