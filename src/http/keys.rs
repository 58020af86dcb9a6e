//! API keys: `POST` makes one and shows it this once, `GET` lists them without their secrets, `DELETE` revokes one.
//! `GET /v1/keys/self` shows the one that asks.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    State,
    body::Body,
    guard::IdempotencyKey,
    page::Query,
    problem::{Code, Problem},
    scope::Caller,
};
use crate::{
    domain::{ApiKey, Malformed, Millis, Namespace, Role, Token},
    ledger::LedgerError,
};

/// The most namespaces that a key is tied to.
const NAMESPACES_MAX: usize = 64;
/// The longest name, in characters.
const NAME_CHARS_MAX: usize = 100;

/// A key as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey)]
struct View<'a> {
    /// What stands between the underscores of the key.
    id: &'a str,
    name: &'a str,
    #[schema(value_type = Role)]
    role: &'static str,
    /// The only namespaces that it may touch; null means all.
    #[schema(required)]
    namespaces: Option<&'a [Namespace]>,
    created_at: Millis,
    /// Null for a key that goes on until it is revoked.
    #[schema(required)]
    expires_at: Option<Millis>,
    #[schema(required)]
    revoked_at: Option<Millis>,
    /// The key itself, shown only once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    key: Option<String>,
}

impl<'a> View<'a> {
    fn new(key: &'a ApiKey) -> Self {
        Self {
            id: &key.id,
            name: &key.name,
            role: key.role.as_str(),
            namespaces: key.namespaces.as_deref(),
            created_at: key.created_at,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            key: None,
        }
    }
}

fn parse_name(text: &str) -> Result<String, Malformed> {
    if text.is_empty()
        || text.chars().count() > NAME_CHARS_MAX
        || text.chars().any(char::is_control)
    {
        return Err(Malformed(format!("a name is 1 to {NAME_CHARS_MAX} characters of text")));
    }
    Ok(text.to_owned())
}

fn parse_namespaces(value: &Value) -> Result<Vec<Namespace>, String> {
    let Value::Array(values) = value else { return Err("must be a list of namespaces".to_owned()) };
    if !(1..=NAMESPACES_MAX).contains(&values.len()) {
        return Err(format!("must have 1 to {NAMESPACES_MAX} namespaces; null means all"));
    }
    let parse = |value: &Value| Namespace::parse(value.as_str().unwrap_or_default());
    values.iter().map(parse).collect::<Result<_, Malformed>>().map_err(|error| error.0)
}

pub(super) async fn create(
    state: web::Data<State>,
    caller: Caller,
    request: IdempotencyKey,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    let name = body.required("name", parse_name);
    let role = body.required("role", Role::parse);
    let namespaces = body.typed("namespaces", |value| parse_namespaces(&value)).value();
    let now = crate::ids::now();
    let expires_at = body.time("expires_at").value();
    if expires_at.is_some_and(|end| end <= now) {
        body.wrong("expires_at", Code::InvalidRequest, "must lie in the future");
    }
    if role == Some(Role::Admin) && namespaces.is_some() {
        // It could make itself a key without these bounds.
        body.wrong(
            "namespaces",
            Code::InvalidRequest,
            "an admin key is not tied to namespaces; use the role manage",
        );
    }
    body.finish()?;
    let (Some(name), Some(role)) = (name, role) else { return Err(body.problem()) };
    let token: Token = crate::ids::token(&caller.actor(), request.0.as_ref());
    let key = ApiKey {
        id: token.id().to_owned(),
        name,
        role,
        namespaces,
        secret_sha256: token.secret_sha256(),
        created_at: now,
        expires_at,
        revoked_at: None,
    };
    match state.ledger.insert_key(&key, &caller.by()).await {
        Err(LedgerError::Rejected { .. }) if request.0.is_some() => {
            return Err(Problem::new(
                Code::IdempotencyKeyReused,
                format!("This Idempotency-Key has made the key {}, which is shown only once. Revoke it and make another.", key.id),
            )
            .with("key", key.id));
        }
        other => other?,
    }
    // This node knows at once; the others look every now and then.
    state.keys.catch_up(&state.ledger).await?;
    let shown = View { key: Some(token.reveal()), ..View::new(&key) };
    Ok(HttpResponse::Created().json(shown))
}

pub(super) async fn list(state: web::Data<State>, query: Query) -> Result<HttpResponse, Problem> {
    let page = query.page()?;
    let after = page.after(super::page::single)?;
    let keys = state.ledger.keys().await?;
    let rest = keys.iter().skip_while(|key| after.as_ref().is_some_and(|after| key.id != *after));
    let mut rest = rest.skip(usize::from(after.is_some()));
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let shown: Vec<_> = rest.by_ref().take(limit).collect();
    let next = shown.last().filter(|_| rest.next().is_some()).map(|last| [last.id.as_str()]);
    let rows: Vec<_> = shown.iter().map(|key| View::new(key)).collect();
    Ok(page.answer(&rows, next.as_ref().map(<[_; 1]>::as_slice), None))
}

pub(super) async fn show_own(Caller(key, _): Caller) -> HttpResponse {
    HttpResponse::Ok().json(View::new(&key))
}

pub(super) async fn revoke(
    state: web::Data<State>,
    caller: Caller,
    path: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    if !state.ledger.revoke_key(&path, crate::ids::now(), &caller.by()).await? {
        return Err(Problem::new(Code::KeyNotFound, "No API key has this id."));
    }
    state.keys.catch_up(&state.ledger).await?;
    Ok(HttpResponse::NoContent().finish())
}

pub(super) mod docs {
    use serde_json::json;

    use super::{Millis, NAME_CHARS_MAX, NAMESPACES_MAX, Namespace, Role, View};
    use crate::http::{
        openapi::{Fields, LEDGER, Operation, Tag, word},
        problem::Code,
    };

    pub(in crate::http) fn create() -> Operation {
        let name = json!({
            "type": "string", "minLength": 1, "maxLength": NAME_CHARS_MAX, "examples": ["signup"],
            "pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$",
        });
        let namespaces = json!({
            "type": "array", "items": word::<Namespace>(), "minItems": 1, "maxItems": NAMESPACES_MAX,
        });
        Operation::new("create_key", Tag::Keys, "Make an API key, and show it this once")
            .about("A repeat with the same Idempotency-Key makes no second key, and can not show the first again.")
            .takes(
                Fields::new()
                    .needs("name", name, "What its owner calls it.")
                    .needs("role", word::<Role>(), "What it may do.")
                    .may_be_null("expires_at", word::<Millis>(), "When it ends, if not only by being revoked.")
                    .may_be_null("namespaces", namespaces, "The only ones that it may touch; not for the role admin."),
            )
            .answers::<View>(201, "The key.")
            .leads_to(&[("revoke_key", &["id"])])
            .problems(&[Code::IdempotencyKeyReused])
            .problems(LEDGER)
    }

    pub(in crate::http) fn list() -> Operation {
        Operation::new("list_keys", Tag::Keys, "API keys, without their secrets")
            .lists::<View>("API keys.")
            .problems(LEDGER)
    }

    pub(in crate::http) fn show_own() -> Operation {
        Operation::new(
            "show_own_key",
            Tag::Keys,
            "The API key that asks: what it may do, and where",
        )
        .answers::<View>(200, "The key, without its secret.")
    }

    pub(in crate::http) fn revoke() -> Operation {
        Operation::new("revoke_key", Tag::Keys, "Revoke an API key")
            .answers_nothing(204, "It opens nothing any more.")
            .problems(&[Code::KeyNotFound])
            .problems(LEDGER)
    }
}
