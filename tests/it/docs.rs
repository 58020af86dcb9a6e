//! What the README tells people to do, done.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use crate::support::node::{ADMIN_KEY, Node, Settings};

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// The code blocks of a language in the README, from a heading up to the next.
fn blocks(heading: &str, language: &str) -> Vec<String> {
    blocks_of(&readme(), heading, language)
}

/// The code blocks of a language in a document, from a heading up to the next.
pub fn blocks_of(text: &str, heading: &str, language: &str) -> Vec<String> {
    let mut sections = text.split("\n#").map(|section| section.trim_start_matches(['#', ' ']));
    let section = sections.find(|section| section.lines().next() == Some(heading)).unwrap();
    let mut found = Vec::new();
    for part in section.split("```").skip(1).step_by(2) {
        if let Some(code) = part.strip_prefix(&format!("{language}\n")) {
            found.push(code.to_owned());
        }
    }
    found
}

fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(status.success(), "{command:?}\n{stdout}\n{stderr}");
    stdout
}

/// A service with the invite SPRING, which has one use, and three answers: in, in again, too late.
fn try_three(call: impl Fn(&Node, &str, &str) -> Value) {
    let node = Node::embedded();
    tokio::runtime::Runtime::new().unwrap().block_on(node.invite("SPRING", "team", 1));
    assert_eq!(call(&node, "alice", "key-1")["replayed"], false);
    assert_eq!(call(&node, "alice", "key-1")["replayed"], true);
    assert_eq!(call(&node, "bob", "key-2")["code"], "invite_exhausted");
}

#[test]
fn the_python_example_redeems() {
    let code = blocks("From Python", "python").remove(0);
    try_three(|node, user, key| {
        let program = format!(
            "{code}\nredemption, problem = redeem('spring', '{user}', '{key}')\nprint(json.dumps(redemption or problem))"
        );
        let said = run(Command::new("python3")
            .args(["-c", &program])
            .env("REDEEMER_URL", &node.url)
            .env("REDEEMER_KEY", ADMIN_KEY));
        serde_json::from_str(&said).unwrap()
    });
}

#[test]
fn the_typescript_example_redeems() {
    let code = blocks("From TypeScript", "typescript").remove(0);
    let directory = tempfile::tempdir().unwrap();
    let (source, built) = (directory.path().join("redeem.ts"), directory.path().join("redeem.mjs"));
    try_three(|node, user, key| {
        fs::write(
            &source,
            format!(
                "{code}\nconst told = await redeem('spring', '{user}', '{key}');\nconsole.log(JSON.stringify(told.ok ? told.redemption : told.problem));\n"
            ),
        )
        .unwrap();
        run(Command::new("esbuild")
            .arg(&source)
            .args(["--format=esm", "--log-level=error"])
            .arg(format!("--outfile={}", built.display())));
        let said = run(Command::new("node")
            .arg(&built)
            .env("REDEEMER_URL", &node.url)
            .env("REDEEMER_KEY", ADMIN_KEY));
        serde_json::from_str(&said).unwrap()
    });
}

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    fs::create_dir(&data).unwrap();
    // Without a configured key, as on a first start.
    let settings =
        Settings { env: vec![("REDEEMER_AUTH__ADMIN_KEY", String::new())], ..Settings::default() };
    let node = Node::start_at(&data, &settings);
    // Whoever comes here has pasted the three lines of the banner before.
    let script = blocks("One redemption, end to end", "sh").join("\n");
    let lines = node
        .banner()
        .lines()
        .filter(|line| line.starts_with("curl ") || line.starts_with("redis-cli "));
    let script = lines.chain([script.as_str()]).collect::<Vec<_>>().join("\n");
    let script = script
        .replace("http://127.0.0.1:8080", &node.url)
        .replace("target/release/redeemer", env!("CARGO_BIN_EXE_redeemer"));
    let said = run(Command::new("bash")
        .args(["-ec", &script])
        .current_dir(directory.path())
        .env("REDEEMER_DATA__DIR", &data)
        .env("REDEEMER_URL", &node.url));
    assert!(
        said.contains("\"code\":\"SPRING\"") && said.contains("\"use\":1,\"remaining\":99"),
        "{said}"
    );
    assert!(said.contains("max_uses\n100\nuses\n1\n") && said.contains("group:team"), "{said}");
    // The answer that it shows has the fields of a real one.
    let shown: Value =
        serde_json::from_str(&blocks("One redemption, end to end", "json")[0]).unwrap();
    let answer = said
        .lines()
        .flat_map(|line| line.split("}{"))
        .find(|part| part.contains("\"replayed\""))
        .unwrap();
    for field in shown.as_object().unwrap().keys() {
        assert!(answer.contains(&format!("\"{field}\":")), "{field} is not in {answer}");
    }
}

/// A server that hangs up in the middle of its first answers, then gives a good one.
fn rude_server() -> String {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let rude = [
            "",
            "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{\"use\":",
            "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 6\r\n\r\n<html>",
        ];
        let good = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{\"use\":1}";
        for answer in rude.into_iter().chain([good]) {
            let (mut connection, _) = listener.accept().unwrap();
            let _read = connection.read(&mut [0; 4096]).unwrap();
            connection.write_all(answer.as_bytes()).unwrap();
        }
    });
    url
}

#[test]
fn the_examples_survive_a_connection_that_breaks() {
    let code = blocks("From Python", "python").remove(0);
    let program = format!("{code}\nprint(json.dumps(redeem('spring', 'bob', 'key')[0]))");
    let said = run(Command::new("python3")
        .args(["-c", &program])
        .env("REDEEMER_URL", rude_server())
        .env("REDEEMER_KEY", "k"));
    assert_eq!(said.trim(), "{\"use\": 1}");

    let code = blocks("From TypeScript", "typescript").remove(0);
    let directory = tempfile::tempdir().unwrap();
    let (source, built) = (directory.path().join("redeem.ts"), directory.path().join("redeem.mjs"));
    fs::write(
        &source,
        format!("{code}\nconsole.log(JSON.stringify(await redeem('spring', 'bob', 'key')));\n"),
    )
    .unwrap();
    run(Command::new("esbuild")
        .arg(&source)
        .args(["--format=esm", "--log-level=error"])
        .arg(format!("--outfile={}", built.display())));
    let said = run(Command::new("node")
        .arg(&built)
        .env("REDEEMER_URL", rude_server())
        .env("REDEEMER_KEY", "k"));
    assert_eq!(said.trim(), "{\"ok\":true,\"redemption\":{\"use\":1}}");
}
