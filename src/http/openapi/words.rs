//! The words of the domain as the document has them: each a schema of its own, with the bounds that `parse` keeps.
//!
//! JSON Schema counts characters where this service counts bytes (users, groups, e-mail addresses, metadata); the
//! descriptions say so.

use std::borrow::Cow;

use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Object, RefOr, Schema},
};

use crate::domain::{
    Alphabet, BatchId, BatchState, CampaignName, Code, CodeCase, DeliveryId, DeliveryState,
    Durability, EmailDomain, ErrorDetail, Group, InviteId, InviteState, MembershipRule, Millis,
    Namespace, Policy, Position, Positions, Quota, RedemptionId, ReservationId, Role, UserId,
    WebhookId, event,
    invite::EMAIL_DOMAINS_MAX,
    webhook::{URL_BYTES_MAX, WebhookState},
};
use crate::ledger::PartitionState;

/// Text without control characters.
const TEXT: &str = r"^[^\u0000-\u001f\u007f-\u009f]+$";
/// A UUID as it is written here: 36 characters.
const UUID: &str = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$";

/// Declares the schema of each type, and of words that have no type of their own.
macro_rules! words {
    ($($type:ty, $name:literal = $schema:expr;)* ; $($word:literal = $word_schema:expr;)*) => {
        $(
            impl PartialSchema for $type {
                fn schema() -> RefOr<Schema> {
                    serde_json::from_value($schema).unwrap_or_else(|_| Object::new().into())
                }
            }

            impl ToSchema for $type {
                fn name() -> Cow<'static, str> {
                    Cow::Borrowed($name)
                }
            }
        )*

        /// Every word with its schema.
        pub(super) fn all() -> Vec<(&'static str, Value)> {
            vec![$(($name, $schema),)* $(($word, $word_schema),)*]
        }
    };
}

words! {
    Namespace, "Namespace" = json!({
        "type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[a-z0-9-]+$", "examples": ["default"],
        "description": "An isolated domain of codes, members and settings.",
    });
    Code, "Code" = json!({
        "type": "string", "minLength": 1, "maxLength": Code::CHARS_MAX, "pattern": "^[A-Za-z0-9_-]+$",
        "examples": ["WELCOME"], "description": "A code as the namespace keeps it.",
    });
    UserId, "UserId" = json!({
        "type": "string", "minLength": 1, "maxLength": 128, "pattern": TEXT, "examples": ["alice"],
        "description": "Your id for a person: 1 to 128 bytes of UTF-8 without control characters.",
    });
    Group, "Group" = json!({
        "type": "string", "minLength": 1, "maxLength": 128, "pattern": TEXT, "examples": ["team"],
        "description": "What an invite lets a user into: 1 to 128 bytes of UTF-8 without control characters.",
    });
    InviteId, "InviteId" = id("An invite.");
    RedemptionId, "RedemptionId" = id("A redemption.");
    BatchId, "BatchId" = id("A batch.");
    WebhookId, "WebhookId" = id("A webhook.");
    DeliveryId, "DeliveryId" = id("A delivery: the webhook-id of its messages.");
    WebhookState, "WebhookState" = one_of(
        WebhookState::ALL.map(WebhookState::as_str),
        "Whether a webhook is served: yes; yes, and its last attempts have failed; no.",
    );
    DeliveryState, "DeliveryState" = one_of(
        DeliveryState::ALL.map(DeliveryState::as_str),
        "How a delivery goes: it is to be tried; the receiver has it; it was given up.",
    );
    ReservationId, "ReservationId" = id("A reservation.");
    CampaignName, "CampaignName" = json!({
        "type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[a-z0-9-]+$", "examples": ["spring"],
        "description": "A limit that invites share.",
    });
    Position, "Position" = json!({
        "type": "string", "pattern": "^[0-9]+/[0-9]+-[0-9]+$", "examples": ["6/1-3"],
        "description": "partition/epoch-seq: a change's place among all changes.",
    });
    Positions, "Positions" = json!({
        "type": "string", "pattern": "^[0-9]+/[0-9]+-[0-9]+(,[0-9]+/[0-9]+-[0-9]+)*$", "examples": ["6/1-3"],
        "description": "A position; of a namespace that is spread, one of each of its partitions, with commas between them.",
    });
    Millis, "Time" = json!({
        "type": "string", "format": "date-time", "examples": ["2026-11-23T17:14:52.712Z"],
        "description": "RFC 3339 with an offset, of the years 1970 to 9999. Answers have milliseconds and Z.",
    });
    PartitionState, "PartitionState" = one_of(
        PartitionState::ALL.map(PartitionState::as_str),
        "Whether a partition serves: it was never opened; yes; not until recovery has opened it.",
    );
    Policy, "Policy" = one_of(Policy::ALL.map(Policy::as_str), "A rate limit.");
    MembershipRule, "MembershipRule" = one_of(
        MembershipRule::ALL.map(MembershipRule::as_str),
        "How many memberships a user may hold: in one group at most, in each group one, by each invite one, any number.",
    );
    CodeCase, "CodeCase" = one_of(
        CodeCase::ALL.map(CodeCase::as_str),
        "What is the same code: whatever the case; only itself; whatever the case, separators and look-alikes.",
    );
    Durability, "Durability" = one_of(
        Durability::ALL.map(Durability::as_str),
        "What an answer promises: Redis has it, replicas have it, SQL has committed it.",
    );
    ErrorDetail, "ErrorDetail" = one_of(
        ErrorDetail::ALL.map(ErrorDetail::as_str),
        "How much refusals tell: what is the matter, or of a code that can not be used nothing, not even whether it exists.",
    );
    InviteState, "InviteState" = one_of(
        InviteState::ALL.map(InviteState::as_str),
        "What an invite is now; it follows from its fields and the time.",
    );
    BatchState, "BatchState" = one_of(
        [BatchState::Waiting, BatchState::Running, BatchState::Finished, BatchState::Failed].map(BatchState::as_str),
        "How a batch goes.",
    );
    Alphabet, "Alphabet" = one_of(
        Alphabet::ALL.map(Alphabet::as_str),
        "What random characters are drawn from: digits and letters that are not mistaken, digits, letters.",
    );
    Role, "Role" = one_of(Role::ALL.map(Role::as_str), "What an API key may do.");
    Quota, "Quota" = json!({
        "type": "string", "pattern": "^[0-9]+/[0-9]+$", "maxLength": 18, "examples": ["10/60"],
        "description": "count/seconds: a window of 1 to 86400 seconds, and 1 to 1000000 attempts for each of its seconds.",
    });
    EmailDomain, "EmailDomain" = json!({
        "type": "string", "minLength": 1, "maxLength": 253, "examples": ["example.com"],
        "pattern": r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$",
        "description": "A host name; kept in lower case.",
    });
    ;
    "TypedCode" = json!({
        "type": "string", "minLength": 1, "maxLength": 2 * Code::CHARS_MAX, "pattern": "^[A-Za-z0-9_ -]+$",
        "examples": ["WELCOME"],
        "description": "A code as a person typed it. It has 1 to 64 characters besides the spaces around it, and those \
                        within it that a lenient namespace takes; one with check characters wants the last to fit.",
    });
    "Pattern" = json!({
        "type": "string", "minLength": 1, "maxLength": Code::CHARS_MAX, "examples": ["SPRING-####-####"],
        "pattern": r"^[A-Za-z0-9_#-]*#[A-Za-z0-9_#-]*\*?$",
        "description": "What codes look like: # is a random character (1 to 20 of them), * at the end a check \
                        character; the rest stands for itself.",
    });
    "Email" = json!({
        "type": "string", "minLength": 3, "maxLength": 254, "examples": ["alice@example.com"],
        "pattern": r"^[^\u0000-\u001f\u007f-\u009f]+@[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$",
        "description": "The person's e-mail address, at most 254 bytes; its domain is checked, and nothing of it is kept.",
    });
    "IpAddress" = json!({
        "anyOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}],
        "examples": ["203.0.113.9"],
        "description": "The person's address, for rate limits; the caller's own is never used.",
    });
    "Metadata" = json!({
        "type": "object", "examples": [{"campaign": "spring"}],
        "description": "A JSON object of your own, of at most 4096 bytes.",
    });
    "EmailDomains" = json!({
        "type": "array", "items": {"$ref": "#/components/schemas/EmailDomain"}, "maxItems": EMAIL_DOMAINS_MAX,
        "description": "The only e-mail domains whose users may redeem; an empty list means any.",
    });
    "ReceiverUrl" = json!({
        "type": "string", "format": "uri", "minLength": 10, "maxLength": URL_BYTES_MAX, "pattern": "^https?://",
        "examples": ["https://example.com/hook"],
        "description": "https, without user, password or fragment, at an address of the public internet.",
    });
    "EventTypes" = json!({
        "type": "array", "minItems": 1, "items": {"type": "string", "enum": event::TYPES},
        "description": "Types of events.",
    });
    "KeyId" = json!({
        "type": "string", "minLength": 16, "maxLength": 16, "pattern": "^[a-z2-7]+$", "examples": ["aaaaaaaaaaaaaaaa"],
        "description": "What stands between the underscores of an API key.",
    });
    "Cursor" = json!({
        "type": "string", "pattern": "^[A-Za-z0-9_-]+$", "description": "The next_cursor of the page before.",
    });
}

fn id(what: &str) -> Value {
    json!({
        "type": "string", "format": "uuid", "pattern": UUID, "examples": ["01a20967-458c-743e-8cdd-822b75511292"],
        "description": what,
    })
}

fn one_of(words: impl AsRef<[&'static str]>, what: &str) -> Value {
    json!({"type": "string", "enum": words.as_ref(), "description": what})
}
