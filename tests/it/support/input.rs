//! What every refused request has, and paths with something in each of their places.

use super::node::Reply;

/// A path with something in each of its places.
pub fn filled(path: &str, namespace: &str) -> String {
    let id = "0198c3a2-7b1e-7c4d-9a55-0123456789ab";
    let filled = path
        .replace("{ns}", namespace)
        .replace("{id}", id)
        .replace("{code}", "NOBODY")
        .replace("{user}", "nobody")
        .replace("{group}", "nothing")
        .replace("{name}", "spring")
        .replace("vendor/{file}", "vendor/preact.mjs")
        .replace("{file}", "start.js");
    assert!(!filled.contains('{'), "nothing is known to put into {filled}");
    filled
}

/// A problem as it must be, with this status.
pub fn assert_problem(reply: &Reply, statuses: std::ops::Range<u16>, what: &str) {
    assert!(statuses.contains(&reply.status), "{what}: {} {}", reply.status, reply.text);
    assert_eq!(reply.header("content-type"), "application/problem+json", "{what}");
    for member in
        ["type", "title", "status", "detail", "instance", "code", "retryable", "request_id"]
    {
        assert!(!reply.body[member].is_null(), "{what}: {member} is missing in {}", reply.text);
    }
    assert_eq!(reply.body["status"], reply.status, "{what}");
    assert_eq!(reply.header("x-request-id"), reply.body["request_id"].as_str().unwrap(), "{what}");
}
