//! The OpenAPI document and the pages that show it.

use std::{fs, path::Path};

use reqwest::Method;

use crate::support::node::{Node, send};

fn committed() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json")).unwrap()
}

#[test]
fn the_committed_document_is_what_the_code_says() {
    assert!(
        committed() == redeemer::http::openapi::text(),
        "docs/openapi.json is not what the code says; `make openapi` writes it anew"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_served_and_printed_as_it_is_committed() {
    let node = Node::embedded();
    let served = send(node.bare(Method::GET, "/openapi.json")).await.unwrap();
    assert_eq!((served.status, served.header("content-type")), (200, "application/json"));
    assert_eq!(served.text, committed());
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_redeemer"));
    let printed = command.arg("openapi").output().unwrap();
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), committed());
}

#[tokio::test(flavor = "multi_thread")]
async fn swagger_ui_needs_nothing_from_anywhere_else() {
    let node = Node::embedded();
    let page = send(node.bare(Method::GET, "/docs")).await.unwrap();
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(!page.text.contains("//"), "the page names another server: {}", page.text);
    // Nothing in the page itself that its policy would have to allow.
    assert!(!page.text.contains("<script>") && !page.text.contains("<style"), "{}", page.text);
    let mut files = Vec::new();
    for attribute in ["href=\"", "src=\""] {
        let parts = page.text.split(attribute).skip(1);
        files.extend(parts.map(|rest| rest.split('"').next().unwrap()));
    }
    assert_eq!(files.len(), 4, "{files:?}");
    for (path, kind) in files.iter().map(|file| (*file, file.rsplit('.').next().unwrap())) {
        let file = send(node.bare(Method::GET, path)).await.unwrap();
        assert_eq!(file.status, 200, "{path}");
        let expected = match kind {
            "css" => "text/css",
            "js" => "text/javascript",
            _ => "image/png",
        };
        assert!(file.header("content-type").starts_with(expected), "{path}: {:?}", file.headers);
        for (header, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(file.header(header), value, "{path}");
        }
        let policy = file.header("content-security-policy");
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "connect-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.split("; ").any(|one| one == part), "{path}: {policy}");
        }
    }
    let start = send(node.bare(Method::GET, "/docs/start.js")).await.unwrap();
    assert!(start.text.contains("url: \"/openapi.json\"") && !start.text.contains("://"));
    for missing in ["/docs/index.html", "/docs/..%2fCargo.toml", "/docs/nothing.js"] {
        assert_eq!(node.get(missing).await.code(), "route_not_found", "{missing}");
    }
}
