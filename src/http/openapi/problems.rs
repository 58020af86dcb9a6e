//! The schema of each problem: a closed object with the members that this code has.

use serde_json::{Map, Value, json};

use super::{nullable, reference};
use crate::http::problem::Code;

/// Members besides those that every problem has: name, schema, and whether it is always there.
pub(super) fn members(code: Code) -> Vec<(&'static str, Value, bool)> {
    let count = || json!({"type": "integer", "minimum": 0});
    match code {
        Code::InvalidRequest | Code::CodeMalformed | Code::DurabilityUnavailable => {
            let error = json!({
                "type": "object",
                "properties": {
                    "pointer": {"type": "string", "pattern": "^/", "description": "Which field: a JSON pointer."},
                    "code": {"type": "string", "enum": ["invalid_request", "code_malformed", "durability_unavailable"]},
                    "detail": {"type": "string"},
                },
                "required": ["pointer", "code", "detail"],
            });
            vec![("errors", json!({"type": "array", "items": error, "minItems": 1}), false)]
        }
        Code::NotStarted => vec![("starts_at", reference("Time"), true)],
        Code::InviteExpired => vec![("expires_at", reference("Time"), true)],
        Code::AlreadyMember => vec![
            ("group", reference("Group"), true),
            ("redemption", nullable(reference("RedemptionId")), true),
        ],
        Code::CodeTaken => vec![("invite", reference("InviteId"), true)],
        Code::LimitBelowUsed | Code::InviteInUse => {
            vec![("uses", count(), true), ("held", count(), true)]
        }
        Code::InviteExhausted => vec![("may_free_at", nullable(reference("Time")), true)],
        Code::AlreadyRolledBack => vec![
            ("redemption", reference("RedemptionId"), true),
            ("rolled_back_at", reference("Time"), true),
        ],
        Code::ReservationConfirmed => vec![("redemption", reference("RedemptionId"), true)],
        Code::PreconditionFailed => vec![("revision", count(), true)],
        Code::RateLimited | Code::TooManyAttempts => vec![("policy", reference("Policy"), true)],
        Code::IdempotencyKeyReused => vec![("key", reference("KeyId"), false)],
        Code::OutcomeUnknown => {
            vec![("reached", json!({"type": "string", "enum": ["none", "gate"]}), true)]
        }
        _ => Vec::new(),
    }
}

/// What the schema of a problem is called.
pub(super) fn name(code: Code) -> String {
    format!("{code:?}Problem")
}

/// The schema of a problem. Source of the first five members: RFC 9457.
pub(super) fn schema(code: Code) -> Value {
    let word = code.as_str();
    let mut properties = json!({
        "type": {"type": "string", "const": format!("urn:redeemer:problem:{word}")},
        "title": {"type": "string", "const": code.title()},
        "status": {"type": "integer", "const": code.status().as_u16()},
        "detail": {"type": "string", "description": "What to do."},
        "instance": {"type": "string", "description": "The path of the request."},
        "code": {"type": "string", "const": word},
        "retryable": {
            "type": "boolean", "const": code.is_retryable(),
            "description": "Whether the same request may fare better later.",
        },
        "request_id": {"type": "string", "description": "As in the header X-Request-Id."},
    });
    let mut required: Vec<_> =
        properties.as_object().into_iter().flat_map(Map::keys).cloned().collect();
    for (name, schema, is_always_there) in members(code) {
        properties[name] = schema;
        if is_always_there {
            required.push(name.to_owned());
        }
    }
    json!({
        "type": "object", "description": format!("{}.", code.title()), "properties": properties, "required": required,
    })
}
