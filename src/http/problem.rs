//! Problems: the only place that knows which status an answer has.
//!
//! Every answer that is not a success is `application/problem+json` (RFC 9457) with a stable `code`. Clients get what
//! they can act on; the cause chain goes to the log, once.

use std::fmt;

use actix_web::{
    HttpResponse, HttpResponseBuilder, ResponseError,
    http::{StatusCode, header},
};
use serde_json::{Map, Value, json};

use super::invite_page::Next;
use crate::{
    domain::{RateStatus, Refusal},
    gate::GateError,
    ledger::LedgerError,
    spread::SpreadError,
};

/// Declares every code once, with its status, whether repeating the request can help, and its title.
macro_rules! codes {
    ($($name:ident = $code:literal, $status:literal, $retryable:literal, $title:literal;)*) => {
        /// What is wrong, in a word that never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the titles say it")]
        pub enum Code { $($name),* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// The HTTP status.
            #[must_use]
            pub fn status(self) -> StatusCode {
                let status: u16 = match self { $(Self::$name => $status),* };
                StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }

            /// Whether the same request may fare better later.
            #[must_use]
            pub fn is_retryable(self) -> bool {
                match self { $(Self::$name => $retryable),* }
            }

            /// Whether the gate says it of a redemption once its limits have been looked at.
            #[must_use]
            pub fn is_refusal(self) -> bool {
                REFUSALS.contains(&self)
            }

            /// A short sentence for people.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title),* }
            }
        }
    };
}

codes! {
    InvalidRequest = "invalid_request", 400, false, "The request is not what it should be";
    CodeMalformed = "code_malformed", 400, false, "This can not be an invite code";
    DurabilityUnavailable = "durability_unavailable", 400, false, "This durability level is not available";
    Unauthorized = "unauthorized", 401, false, "A valid API key is needed";
    Forbidden = "forbidden", 403, false, "This API key may not do that";
    UserNotAllowed = "user_not_allowed", 403, false, "The invite is bound to another user";
    EmailDomainNotAllowed = "email_domain_not_allowed", 403, false, "The invite is for other e-mail domains";
    UserTokenInvalid = "user_token_invalid", 403, false, "The token does not say who the person is";
    NotStarted = "not_started", 403, true, "The invite can not be used yet";
    InviteNotFound = "invite_not_found", 404, false, "There is no such invite";
    InviteInvalid = "invite_invalid", 404, false, "The code can not be used";
    RedemptionNotFound = "redemption_not_found", 404, false, "There is no such redemption";
    ReservationNotFound = "reservation_not_found", 404, false, "There is no such reservation";
    CampaignNotFound = "campaign_not_found", 404, false, "There is no such campaign";
    MemberNotFound = "member_not_found", 404, false, "The user is not a member";
    UserNotFound = "user_not_found", 404, false, "Nothing is known of such a user";
    NamespaceNotFound = "namespace_not_found", 404, false, "There is no such namespace";
    KeyNotFound = "key_not_found", 404, false, "There is no such API key";
    BatchNotFound = "batch_not_found", 404, false, "There is no such batch";
    WebhookNotFound = "webhook_not_found", 404, false, "There is no such webhook";
    DeliveryNotFound = "delivery_not_found", 404, false, "There is no such delivery";
    RouteNotFound = "route_not_found", 404, false, "There is no such path";
    MethodNotAllowed = "method_not_allowed", 405, false, "The path does not have this method";
    NotAcceptable = "not_acceptable", 406, false, "Answers are JSON";
    RequestTimeout = "request_timeout", 408, true, "The request took too long to arrive";
    AlreadyMember = "already_member", 409, false, "The user is a member already";
    CodeTaken = "code_taken", 409, false, "A live invite has this code";
    LimitBelowUsed = "limit_below_used", 409, false, "More uses are spent than this limit allows";
    InviteInUse = "invite_in_use", 409, false, "The invite has redemptions or reservations";
    UserLimitReached = "user_limit_reached", 409, false, "The user has spent as many uses as one user may";
    AlreadyRolledBack = "already_rolled_back", 409, false, "The redemption was rolled back";
    ReservationConfirmed = "reservation_confirmed", 409, false, "The reservation has become a redemption";
    DeadLettersWait = "dead_letters_wait", 409, true, "The ledger could not take some changes";
    TooManyCampaigns = "too_many_campaigns", 409, false, "The namespace has as many campaigns as it may";
    TooManyWebhooks = "too_many_webhooks", 409, false, "The namespace has as many webhooks as it may";
    InviteExhausted = "invite_exhausted", 410, false, "All uses of the invite are spent or held";
    CampaignExhausted = "campaign_exhausted", 410, false, "All uses of the campaign are spent or held";
    ReservationExpired = "reservation_expired", 410, false, "The reservation holds nothing any more";
    InviteExpired = "invite_expired", 410, false, "The invite has expired";
    InviteDisabled = "invite_disabled", 410, false, "The invite is switched off";
    PreconditionFailed = "precondition_failed", 412, false, "It was changed meanwhile";
    BodyTooLarge = "body_too_large", 413, false, "The body is too long";
    UnsupportedMediaType = "unsupported_media_type", 415, false, "The body must be JSON";
    IdempotencyKeyReused = "idempotency_key_reused", 422, false, "The idempotency key belongs to another request";
    RateLimited = "rate_limited", 429, true, "Too many attempts";
    TooManyAttempts = "too_many_attempts", 429, true, "Too many codes that do not exist";
    Internal = "internal", 500, true, "Something is wrong with the service";
    OutcomeUnknown = "outcome_unknown", 503, true, "It is not known whether this was done";
    Fenced = "fenced", 503, true, "The service is being brought up to date";
    GateUnavailable = "gate_unavailable", 503, true, "The gate can not be reached";
    LedgerUnavailable = "ledger_unavailable", 503, true, "The ledger can not be reached";
    Overloaded = "overloaded", 503, true, "Too much at once";
}

/// What comes with what is left of rate limits.
const REFUSALS: &[Code] = &[
    Code::UserNotAllowed,
    Code::EmailDomainNotAllowed,
    Code::NotStarted,
    Code::InviteNotFound,
    Code::InviteInvalid,
    Code::AlreadyMember,
    Code::UserLimitReached,
    Code::ReservationExpired,
    Code::InviteExhausted,
    Code::CampaignExhausted,
    Code::InviteExpired,
    Code::InviteDisabled,
    Code::RateLimited,
    Code::TooManyAttempts,
];

/// An answer that is not a success.
#[derive(Debug)]
pub struct Problem {
    /// What is wrong.
    pub code: Code,
    /// In a box, since it travels as an error through every handler.
    parts: Box<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    detail: String,
    members: Map<String, Value>,
    retry_after_seconds: Option<u64>,
    /// The methods that the path has.
    allow: Option<String>,
    rates: Vec<RateStatus>,
    /// What a person may do who is told so on a page.
    next: Option<Next>,
    /// For the log, never for the client.
    cause: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.parts.detail)
    }
}

impl Problem {
    /// A problem with a sentence that tells the client what to do.
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        // A client that waits a second meets another node, or this one recovered.
        let retry_after_seconds = (code.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        let parts = Parts { detail: detail.into(), retry_after_seconds, ..Parts::default() };
        Self { code, parts: Box::new(parts) }
    }

    /// Adds a member to the body.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.parts.members.insert(name.to_owned(), value.into());
        self
    }

    /// Adds what is left of the budgets that were checked.
    pub(super) fn with_rates(mut self, rates: Vec<RateStatus>) -> Self {
        self.parts.rates = rates;
        self
    }

    /// Adds the methods that the path has.
    pub(super) fn with_allow(mut self, methods: String) -> Self {
        self.parts.allow = Some(methods);
        self
    }

    /// Adds what a person may do who is told so on a page.
    pub(super) fn then(mut self, next: Option<Next>) -> Self {
        self.parts.next = next;
        self
    }

    /// Adds a cause that is no error, for the log.
    pub(super) fn because(mut self, cause: &str) -> Self {
        self.parts.cause = Some(cause.to_owned());
        self
    }

    fn retry_after_ms(mut self, ms: u64) -> Self {
        self.parts.retry_after_seconds = Some(ms.div_ceil(1000).max(1));
        self
    }

    /// Something that this program holds is not what it should be.
    pub(super) fn internal(what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::unexpected(&format!("{what}: {}", crate::sync::chain(error)))
    }

    /// An answer that can not be.
    pub(super) fn unexpected(what: &str) -> Self {
        let detail = "Something is wrong with the service. Report the request_id to its operator.";
        Self::new(Code::Internal, detail).because(what)
    }

    /// The sentence for the client.
    pub(super) fn detail(&self) -> &str {
        &self.parts.detail
    }

    /// The names of the members that it adds to the body.
    #[cfg(debug_assertions)]
    pub(super) fn members(&self) -> impl Iterator<Item = &str> {
        self.parts.members.keys().map(String::as_str)
    }

    /// A member of the body that is text.
    pub(super) fn member(&self, name: &str) -> Option<&str> {
        self.parts.members.get(name).and_then(Value::as_str)
    }

    /// The rate limit that refused the request, if one did.
    pub(super) fn policy(&self) -> Option<&str> {
        self.member("policy")
    }

    /// How long to wait before it is asked again.
    pub(super) fn retry_after_seconds(&self) -> Option<u64> {
        self.parts.retry_after_seconds
    }

    /// What a person may do who is told so on a page.
    pub(super) fn next(&self) -> Option<&Next> {
        self.parts.next.as_ref()
    }

    /// Adds the cause, for the log.
    pub(super) fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        self.parts.cause = Some(crate::sync::chain(error));
        self
    }

    /// What is wrong, without what belongs to an answer of its own.
    pub(super) fn about(&self) -> Value {
        let mut about = self.parts.members.clone();
        about.insert("code".to_owned(), self.code.as_str().into());
        about.insert("detail".to_owned(), self.parts.detail.as_str().into());
        Value::Object(about)
    }

    /// The cause, for the log.
    pub(super) fn cause(&self) -> Option<&str> {
        self.parts.cause.as_deref()
    }

    /// The answer, for the request with this id.
    pub(super) fn response(&self, instance: &str, request_id: &str) -> HttpResponse {
        let mut body = json!({
            "type": format!("urn:redeemer:problem:{}", self.code.as_str()),
            "title": self.code.title(),
            "status": self.code.status().as_u16(),
            "detail": self.parts.detail,
            "instance": instance,
            "code": self.code.as_str(),
            "retryable": self.code.is_retryable(),
            "request_id": request_id,
        });
        if let Value::Object(body) = &mut body {
            body.extend(self.parts.members.clone());
        }
        self.head().content_type("application/problem+json").body(body.to_string())
    }

    /// The head of the answer, whatever its body is.
    pub(super) fn head(&self) -> HttpResponseBuilder {
        let mut response = HttpResponse::build(self.code.status());
        if let Some(seconds) = self.parts.retry_after_seconds {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        if let Some(methods) = &self.parts.allow {
            response.insert_header((header::ALLOW, methods.as_str()));
        }
        if self.code == Code::Unauthorized {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        for header in rate_headers(&self.parts.rates) {
            response.insert_header(header);
        }
        response
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.code.status()
    }

    /// The guard replaces this by one that knows the request.
    fn error_response(&self) -> HttpResponse {
        HttpResponse::new(self.code.status())
    }
}

/// `RateLimit-Policy` and `RateLimit` for the policies that touched a request.
/// Source: IETF draft-ietf-httpapi-ratelimit-headers.
pub(super) fn rate_headers(rates: &[RateStatus]) -> Vec<(&'static str, String)> {
    if rates.is_empty() {
        return Vec::new();
    }
    let list =
        |item: fn(&RateStatus) -> String| rates.iter().map(item).collect::<Vec<_>>().join(", ");
    let policies = list(|rate| {
        format!(
            "\"{}\";q={};w={}",
            rate.policy.as_str(),
            rate.quota.count(),
            rate.quota.window_seconds()
        )
    });
    let left = list(|rate| {
        format!(
            "\"{}\";r={};t={}",
            rate.policy.as_str(),
            rate.remaining,
            rate.reset_ms.div_ceil(1000)
        )
    });
    vec![("ratelimit-policy", policies), ("ratelimit", left)]
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NamespaceNotFound => Self::new(
                Code::NamespaceNotFound,
                "There is no such namespace, or it was archived.",
            ),
            Refusal::RequestIdReused => Self::new(
                Code::IdempotencyKeyReused,
                "This user has used this Idempotency-Key for another code. Use a new key for a new request.",
            ),
            Refusal::Overloaded => Self::new(
                Code::Overloaded,
                "The record of earlier redemptions must catch up first. Try again soon.",
            ),
            Refusal::RateLimited { policy, retry_after_ms } => {
                Self::new(Code::RateLimited, "Too many attempts. Wait as long as Retry-After says.")
                    .with("policy", policy.as_str())
                    .retry_after_ms(retry_after_ms)
            }
            Refusal::TooManyAttempts { retry_after_ms } => Self::new(
                Code::TooManyAttempts,
                "Too many codes that do not exist were tried. Wait as long as Retry-After says.",
            )
            .with("policy", "guess")
            .retry_after_ms(retry_after_ms),
            Refusal::NotFound => Self::new(
                Code::InviteNotFound,
                "No invite has this code. Check it for typing mistakes.",
            ),
            Refusal::Invalid => Self::new(
                Code::InviteInvalid,
                "This code can not be used. Check it for typing mistakes, or ask for a new one.",
            ),
            Refusal::Disabled => {
                Self::new(Code::InviteDisabled, "This invite was switched off. Ask for a new one.")
            }
            Refusal::NotStarted { starts_at } => {
                Self::new(Code::NotStarted, format!("This invite can be used from {starts_at} on."))
                    .with("starts_at", starts_at.to_string())
            }
            Refusal::Expired { expires_at } => Self::new(
                Code::InviteExpired,
                format!("This invite expired at {expires_at}. Ask for a new one."),
            )
            .with("expires_at", expires_at.to_string()),
            Refusal::UserNotAllowed => {
                Self::new(Code::UserNotAllowed, "This invite was made for another user.")
            }
            Refusal::EmailDomainNotAllowed => Self::new(
                Code::EmailDomainNotAllowed,
                "This invite is for e-mail addresses of other domains. Send the user's address in `email`.",
            ),
            Refusal::AlreadyMember { group, redemption } => Self::new(
                Code::AlreadyMember,
                format!(
                    "The user is in group {group:?} already. No use was spent.",
                    group = group.as_str()
                ),
            )
            .with("group", group.as_str())
            .with("redemption", redemption.map(|id| id.to_string())),
            Refusal::AlreadyRolledBack { redemption, at } => Self::new(
                Code::AlreadyRolledBack,
                format!(
                    "This request was granted, and its redemption was rolled back at {at}. Use a new Idempotency-Key to \
                     redeem again."
                ),
            )
            .with("redemption", redemption.to_string())
            .with("rolled_back_at", at.to_string()),
            Refusal::UserLimitReached => Self::new(
                Code::UserLimitReached,
                "This user has spent as many uses of this invite as one user may. No use was spent.",
            ),
            Refusal::ReservationExpired => Self::new(
                Code::ReservationExpired,
                "The reservation holds nothing any more: its time is over, or it was released. Redeem without it, or reserve \
                 again.",
            ),
            Refusal::Exhausted { may_free_at: None } => Self::new(
                Code::InviteExhausted,
                "All uses of this invite are spent. Ask for a new one.",
            )
            .with("may_free_at", Value::Null),
            Refusal::Exhausted { may_free_at: Some(at) } => Self::new(
                Code::InviteExhausted,
                format!(
                    "All uses of this invite are spent or held by others. One that is held may be free again at {at}."
                ),
            )
            .with("may_free_at", at.to_string()),
            Refusal::CampaignExhausted => Self::new(
                Code::CampaignExhausted,
                "All uses of this invite's campaign are spent or held by others. Ask for another invite.",
            ),
        }
    }
}

impl From<GateError> for Problem {
    fn from(error: GateError) -> Self {
        let problem = match &error {
            GateError::OutcomeUnknown { .. } => Self::new(
                Code::OutcomeUnknown,
                "The gate did not answer in time. Repeat the request with the same Idempotency-Key to learn the outcome; nothing is spent twice.",
            )
            .with("reached", "none"),
            GateError::Fenced => {
                Self::new(Code::Fenced, "The gate is being recovered. Nothing was done; try again soon.")
            }
            GateError::Unavailable { .. } => {
                Self::new(Code::GateUnavailable, "The gate can not be reached. Nothing was done; try again soon.")
            }
            GateError::Overloaded => {
                Self::new(Code::Overloaded, "Too many requests are waiting. Nothing was done; try again soon.")
            }
            GateError::Unexpected { .. } => {
                Self::new(Code::Internal, "The gate holds something unexpected. Report the request_id to the operator.")
            }
        };
        problem.caused_by(&error)
    }
}

impl From<SpreadError> for Problem {
    fn from(error: SpreadError) -> Self {
        match error {
            SpreadError::Gate(error) => error.into(),
            SpreadError::Ledger(error) => error.into(),
            SpreadError::TooLate => Self::new(
                Code::Overloaded,
                "The uses that are left lie in other partitions and could not be brought here in time. Nothing was \
                 spent; try again soon.",
            )
            .caused_by(&error),
        }
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        let problem = match &error {
            LedgerError::Unavailable { .. } => {
                Self::new(Code::LedgerUnavailable, "The ledger can not be reached. Try again soon.")
            }
            LedgerError::Rejected { .. } | LedgerError::Corrupt(_) | LedgerError::Mismatch(_) => {
                Self::new(
                    Code::Internal,
                    "The ledger holds something unexpected. Report the request_id to the operator.",
                )
            }
        };
        problem.caused_by(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Policy, Quota};

    #[test]
    fn every_code_is_a_word_with_an_error_status() {
        let mut words: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        for code in Code::ALL {
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{code:?}");
            assert!(!code.title().is_empty());
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Code::ALL.len());
    }

    #[test]
    fn rates_are_told_as_the_draft_says() {
        let quota = Quota::parse("20/60").unwrap();
        let rates = [RateStatus { policy: Policy::Ip, quota, remaining: 7, reset_ms: 29_001 }];
        let headers = rate_headers(&rates);
        assert_eq!(headers[0], ("ratelimit-policy", "\"ip\";q=20;w=60".to_owned()));
        assert_eq!(headers[1], ("ratelimit", "\"ip\";r=7;t=30".to_owned()));
    }
}
