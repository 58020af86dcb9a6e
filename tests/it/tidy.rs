//! What a reader relies on: the walls between the parts, scripts that say what they do, and documents that are whole.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use redeemer::{gate::script, http::metrics::DESCRIBED};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file below a directory.
fn files(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found
}

/// The source of a part: its file and those in the directory of its name.
fn part(name: &str) -> Vec<(PathBuf, String)> {
    let own = root().join(format!("src/{name}.rs"));
    let mut paths = if root().join(format!("src/{name}")).is_dir() {
        files(&format!("src/{name}"))
    } else {
        Vec::new()
    };
    paths.push(own);
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// No line of a part's code, comments aside, has any of these.
fn assert_none(name: &str, forbidden: &[&str]) {
    for (path, text) in part(name) {
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for word in forbidden {
                assert!(!line.contains(word), "{} must not know {word}: {line}", path.display());
            }
        }
    }
}

#[test]
fn the_domain_is_pure() {
    let io =
        ["redis::", "sqlx", "actix", "tokio", "reqwest", "std::fs", "std::net::Tcp", "crate::"];
    assert_none("domain", &io);
}

#[test]
fn gate_and_ledger_never_see_each_other() {
    assert_none("gate", &["crate::ledger", "sqlx", "actix", "crate::http", "crate::sync"]);
    assert_none("ledger", &["crate::gate", "redis", "actix", "crate::http", "crate::sync"]);
}

#[test]
fn the_torture_knows_only_what_a_client_can_know() {
    let inside = [
        "crate::app",
        "crate::config",
        "crate::gate",
        "crate::http",
        "crate::ids",
        "crate::ledger",
        "crate::local_server",
        "crate::recovery",
        "crate::sync",
        "sqlx",
        "actix",
    ];
    assert_none("torture", &inside);
}

#[test]
fn keys_status_codes_and_tasks_have_one_place_each() {
    let all: Vec<_> = files("src")
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect();
    for (path, text) in &all {
        let code = text.split("#[cfg(test)]").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        for line in lines {
            let formats_key = line.contains(":meta\"")
                || line.contains(":outbox\"")
                || line.contains("{{{tag}}}");
            assert!(!formats_key || name == "src/gate/key.rs", "{name} formats a key: {line}");
            let names_status =
                line.contains("_not_found\", 4") || line.contains("StatusCode::from_u16");
            assert!(
                !names_status || name == "src/http/problem.rs",
                "{name} names a status: {line}"
            );
            let spawns = line.contains("tokio::spawn(") || line.contains("thread::spawn(");
            // The second signal ends the process; nothing is left to own that task.
            let owner = name == "src/app.rs" || name == "src/cli/serve.rs";
            assert!(!spawns || owner, "{name} starts a task: {line}");
        }
    }
}

const HEAD_END: &str = "-- End of the head.\n";

#[test]
fn every_fenced_script_has_the_same_head() {
    let head = |source: &str| {
        let start = source.find("-- The head, the same in every fenced script")?;
        Some(source[start..source.find(HEAD_END)?].to_owned())
    };
    let heads: BTreeSet<_> = script::ALL.iter().filter_map(|script| head(script.source)).collect();
    assert_eq!(heads.len(), 1, "the heads differ");
    // These bring a partition to be open at all, so they have no fence to check.
    let without: Vec<_> = script::ALL
        .iter()
        .filter(|script| head(script.source).is_none())
        .map(|script| script.name)
        .collect();
    assert_eq!(without, ["survey", "close", "adopt", "rebuild"]);
}

#[test]
fn every_script_is_a_file_and_every_file_a_script() {
    let names: BTreeSet<_> = script::ALL.iter().map(|script| script.name.to_owned()).collect();
    let files: BTreeSet<_> = files("lua")
        .iter()
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, files);
}

/// The numbers in `KEYS[3]` or `KEYS[3..]`, at or below the largest that is written out.
fn numbers(text: &str, what: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices(&format!("{what}[")) {
        let digits: String =
            text[at + what.len() + 1..].chars().take_while(char::is_ascii_digit).collect();
        found.extend(digits.parse::<u32>());
    }
    found
}

#[test]
fn a_scripts_header_names_the_keys_values_and_replies_that_its_body_uses() {
    for script in script::ALL {
        let source = script.source;
        assert!(
            source.starts_with("#!lua"),
            "{}: a script without #!lua may stop half-way",
            script.name
        );
        let comments: String = source
            .lines()
            .filter(|line| line.starts_with("--") || line.starts_with("#!"))
            .fold(String::new(), |all, line| all + line + "\n");
        let header = source
            .lines()
            .take_while(|line| line.starts_with("--") || line.starts_with("#!"))
            .fold(String::new(), |all, line| all + line + "\n");
        let body: String = source
            .lines()
            .filter(|line| !line.trim_start().starts_with("--"))
            .fold(String::new(), |all, line| all + line + "\n");
        for what in ["KEYS", "ARGV"] {
            let (told, used) = (numbers(&comments, what), numbers(&body, what));
            let open_ended = comments.contains("..]");
            for number in &used {
                let is_told = told.contains(number)
                    || open_ended && told.iter().max().is_some_and(|last| number >= last);
                assert!(is_told, "{}: {what}[{number}] is used and not in the header", script.name);
            }
        }
        // Each reply begins with a word, and the header has it.
        for (at, _) in body.match_indices("return {'") {
            let word: String = body[at + 9..].chars().take_while(|c| *c != '\'').collect();
            assert!(
                header.contains(&format!("'{word}'")) || header.contains(&word),
                "{}: reply {word:?} is not in the header",
                script.name
            );
        }
        // And the other way round.
        for (at, _) in header.match_indices("{'") {
            let word: String = header[at + 2..].chars().take_while(|c| *c != '\'').collect();
            assert!(
                body.contains(&format!("'{word}'")),
                "{}: the header has {word:?}, which no reply has",
                script.name
            );
        }
    }
}

#[test]
fn every_problem_code_is_documented_and_tested() {
    let api = read("docs/api.md");
    let tests: String = files("tests")
        .into_iter()
        .filter(|path| !path.ends_with("tidy.rs"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    // What no test can bring about: a service that is wrong about itself, and a ledger that can not even be read.
    let untested = ["internal", "ledger_unavailable"];
    for code in redeemer::http::problem::Code::ALL {
        let row = format!("| `{}` | {} |", code.as_str(), code.status().as_u16());
        assert!(api.contains(&row), "docs/api.md lacks: {row}");
        let tested = tests.contains(&format!("\"{}\"", code.as_str()));
        assert!(tested || untested.contains(&code.as_str()), "no test sees {}", code.as_str());
    }
}

#[test]
fn every_route_is_documented() {
    let api = read("docs/api.md");
    for (method, path, role) in redeemer::http::endpoints() {
        let role = role.map_or("–", redeemer::domain::Role::as_str);
        let row = format!("| `{method} {path}` | {role} |");
        assert!(api.contains(&row), "docs/api.md lacks: {row}");
    }
}

#[test]
fn every_metric_is_described_and_documented_in_the_same_words() {
    let api = read("docs/api.md");
    let described: BTreeSet<_> = DESCRIBED.iter().map(|(name, _)| (*name).to_owned()).collect();
    for (name, says) in DESCRIBED {
        let row = format!("| `{name}` | {says} |");
        assert!(api.contains(&row), "docs/api.md lacks: {row}");
    }
    let mut counted = BTreeSet::new();
    for path in files("src") {
        let text = fs::read_to_string(path).unwrap();
        for (at, _) in text.match_indices("\"redeemer_") {
            counted.insert(text[at + 1..].chars().take_while(|c| *c != '"').collect::<String>());
        }
    }
    assert_eq!(counted, described);
}

/// Every document, as GitHub or an editor would show it.
fn documents() -> Vec<(PathBuf, String)> {
    let here = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let below = ["docs", "deploy", "examples", "tests"].into_iter().flat_map(files);
    here.chain(below)
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect()
}

/// What a link to a heading is called: GitHub keeps letters, digits, `-` and `_`, and makes spaces dashes.
fn anchors(text: &str) -> BTreeSet<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let headings = prose.lines().filter_map(|line| line.split_once("# "));
    let headings = headings.filter(|(marks, _)| marks.chars().all(|c| c == '#'));
    let name = |(_, title): (&str, &str)| -> String {
        let kept = title.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
    };
    headings.map(name).collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut checked = 0;
    for (path, text) in documents() {
        for (at, _) in text.match_indices("](") {
            let link: String = text[at + 2..].chars().take_while(|c| *c != ')').collect();
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target =
                if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{} links to {link}, which is not there", path.display());
            if !anchor.is_empty() && target.extension().is_some_and(|kind| kind == "md") {
                let there = anchors(&fs::read_to_string(&target).unwrap());
                assert!(there.contains(anchor), "{}: {link} has no such heading", path.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 100, "only {checked} links were found");
}

#[test]
fn nothing_in_the_documents_is_left_to_be_filled_in() {
    for (path, text) in documents() {
        for word in ["MEASURED", "TODO", "TBD", "FIXME", "belongs here", "belong here"] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}

/// What the comments of files that are deployed refer to is there too.
#[test]
fn files_that_are_deployed_refer_to_sections_that_exist() {
    let mut all = files("deploy");
    all.extend(["docker-compose.yml", "config/default.toml"].map(|path| root().join(path)));
    for path in all {
        let text = fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices("docs/") {
            let part = |c: &char| c.is_ascii_alphanumeric() || "/.-_#".contains(*c);
            let named: String = text[at..].chars().take_while(part).collect();
            let (file, anchor) = named.split_once('#').unwrap_or((&named, ""));
            let Some((name, _)) = file.split_once(".md") else { continue };
            let document = &format!("{name}.md");
            assert!(root().join(document).exists(), "{}: {named}", path.display());
            let there = anchors(&read(document));
            assert!(anchor.is_empty() || there.contains(anchor), "{}: {named}", path.display());
        }
    }
}

#[test]
fn every_fault_in_the_documents_names_a_test() {
    let tests: String =
        files("tests").into_iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let text = read("docs/reliability.md");
    let faults = text.split("## Faults").nth(1).unwrap();
    let rows: Vec<_> = faults
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'))
        .skip(1)
        .collect();
    assert!(rows.len() > 20);
    for row in rows {
        let named = quoted(row.trim_end_matches('|').rsplit('|').next().unwrap());
        assert!(!named.is_empty(), "{row}");
        for test in named {
            assert!(tests.contains(&format!("fn {test}()")), "no test {test}");
        }
    }
}

/// What stands between single backquotes, outside of code blocks.
fn quoted(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn every_test_in_the_document_about_races_exists() {
    let tests: String =
        files("tests").into_iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let text = read("docs/race-conditions.md");
    // Nothing else there is a word of so many words.
    let named: BTreeSet<_> =
        quoted(&text).into_iter().filter(|word| word.matches('_').count() > 3).collect();
    assert!(named.len() > 15);
    for test in &named {
        assert!(tests.contains(&format!("fn {test}()")), "no test {test}");
    }
    // And nothing is shown that the document does not tell.
    let own = read("tests/it/race_conditions.rs");
    for part in own.split("#[tokio::test").skip(1) {
        let (_, name) = part.split_once("async fn ").unwrap();
        let (name, _) = name.split_once('(').unwrap();
        assert!(named.contains(name), "docs/race-conditions.md lacks {name}");
    }
}

#[test]
fn every_test_in_the_documents_about_operations_exists() {
    let tests: String =
        files("tests").into_iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let text = ["docs/operations.md", "docs/nodes.md", "docs/which-redis.md"].map(read).concat();
    // Metrics and variables are words of so many words too.
    let is_test = |word: &&str| {
        word.matches('_').count() > 3
            && !word.starts_with("redeemer_")
            && !word.contains(|c: char| c.is_ascii_uppercase())
    };
    let named: Vec<_> = quoted(&text).into_iter().filter(is_test).collect();
    assert!(named.len() > 5);
    for test in named {
        assert!(tests.contains(&format!("fn {test}()")), "no test {test}");
    }
}

/// The README's table and the example know what to tell a person whose redemption is refused.
#[test]
fn there_is_a_message_for_each_refusal() {
    let (table, example) = (read("README.md"), read("examples/django/signup/redeemer.py"));
    let table = table.split("## What to tell the person").nth(1).unwrap();
    let table = table.split("\n## ").next().unwrap();
    for code in redeemer::http::problem::Code::ALL.iter().filter(|code| code.is_refusal()) {
        let code = code.as_str();
        // Only who holds reservations can be told of one.
        if code != "reservation_expired" {
            assert!(table.contains(&format!("`{code}`")), "README.md lacks {code}");
            assert!(example.contains(&format!("\"{code}\": ")), "the example lacks {code}");
        }
    }
}

#[test]
fn every_test_in_the_document_about_applications_exists() {
    let tests = read("examples/django/signup/tests.py");
    let text = read("docs/application.md");
    let named: BTreeSet<_> = quoted(&text).into_iter().filter(|w| w.starts_with("test_")).collect();
    assert!(named.len() > 5);
    for test in named {
        assert!(tests.contains(&format!("def {test}(")), "no test {test}");
    }
}

#[test]
fn the_sql_in_the_document_about_races_is_what_its_tests_run() {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let tests = one_line(&read("tests/it/race_conditions.rs"));
    let text = read("docs/race-conditions.md");
    let blocks = text.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let lines = blocks.flat_map(str::lines).filter(|line| !line.starts_with("--"));
    let all = lines.collect::<Vec<_>>().join("\n");
    let statements: Vec<_> = all.split(';').map(one_line).filter(|one| !one.is_empty()).collect();
    assert!(statements.len() > 10);
    for statement in statements {
        assert!(tests.contains(&statement), "no test runs: {statement}");
    }
}

/// A newer version may add columns while this one runs, and PostgreSQL then refuses a prepared `SELECT *`.
#[test]
fn the_ledger_names_the_columns_that_it_reads() {
    for (path, text) in part("ledger") {
        let all =
            text.lines().find(|line| line.contains("SELECT * FROM ") && !line.contains("UNNEST("));
        let is_a_test = |line: &str| line.contains("FROM t ");
        assert!(all.is_none_or(is_a_test), "{}: {all:?}", path.display());
    }
}
