//! The examples, run as their readers would run them, against a real service.

use std::{
    path::Path,
    process::{Command, Output},
};

use crate::support::node::{ADMIN_KEY, Node};

/// A path of the checkout.
fn here(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn said(command: &mut Command) -> (bool, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.success(), text(stdout), text(stderr))
}

#[test]
fn the_django_example_passes_its_own_tests() {
    let python = here("target/venv/bin/python");
    assert!(python.exists(), "Django is missing: scripts/setup test installs it");
    let node = Node::embedded();
    let directory = tempfile::tempdir().unwrap();
    let django = |args: &[&str]| {
        said(
            Command::new(&python)
                .arg("manage.py")
                .args(args)
                .current_dir(here("examples/django"))
                .env("DATABASE", directory.path().join("db.sqlite3"))
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .env("REDEEMER_URL", &node.url)
                .env("REDEEMER_KEY", ADMIN_KEY),
        )
    };
    let (is_done, out, log) = django(&["test", "--noinput"]);
    assert!(is_done && log.contains("\nOK\n"), "{out}\n{log}");
    // What its README says to type: the tables are those of the models, and the job runs.
    for args in [&["makemigrations", "--check", "--dry-run"][..], &["migrate"], &["reconcile"]] {
        let (is_done, out, log) = django(args);
        assert!(is_done, "{args:?}\n{out}\n{log}");
    }
}

/// What the walk prints, one part per request: what was asked, and the lines of the answer.
fn parts(walk: &str) -> Vec<(&str, &str)> {
    walk.split("> ").skip(1).map(|part| part.split_once('\n').unwrap()).collect()
}

#[test]
fn the_walk_with_curl_is_answered_as_it_says() {
    let node = Node::embedded();
    let walk = || {
        let (is_done, out, log) = said(
            Command::new(here("examples/curl.sh"))
                .env("REDEEMER_URL", &node.url)
                .env("REDEEMER_KEY", ADMIN_KEY)
                .env_remove("NAMESPACE"),
        );
        assert!(is_done, "{out}\n{log}");
        out
    };
    let statuses = |parts: &[(&str, &str)]| -> Vec<u16> {
        let status = |answer: &str| answer.split_whitespace().nth(1).unwrap().parse().unwrap();
        parts.iter().map(|(_, answer)| status(answer)).collect()
    };
    let out = walk();
    let first = parts(&out);
    let expected = [201, 201, 201, 200, 410, 200, 410, 410, 429, 200, 200];
    assert_eq!(statuses(&first), expected, "{out}");
    for (number, text) in [
        (2, "\"replayed\":false"),
        (3, "\"replayed\":true"),
        (4, "\"code\":\"invite_exhausted\""),
        (5, "{\"allowed\":false,\"code\":\"invite_exhausted\""),
        (8, "ratelimit-policy: \"user\";q=3;w=3600"),
        (8, "ratelimit: \"user\";r=0;t="),
        (8, "retry-after: "),
        (8, "\"code\":\"rate_limited\""),
        (9, "\"state\":\"exhausted\""),
        (10, "\"next_cursor\":null"),
    ] {
        let (asked, answer) = first[number];
        assert!(answer.contains(text), "{asked} lacks {text}:\n{answer}");
    }
    // Whoever walks again finds what is there: the same invite, the same redemption.
    let out = walk();
    let again = parts(&out);
    assert_eq!(statuses(&again[..4]), [200, 201, 200, 200], "{out}");
    let id = |answer: &str| answer.split("\"id\":").nth(1).unwrap()[..38].to_owned();
    assert_eq!([id(again[1].1), id(again[2].1)], [id(first[1].1), id(first[2].1)]);
}
