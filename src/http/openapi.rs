//! The OpenAPI document, made from `ENDPOINTS` and what stands next to each handler.
//!
//! An endpoint names an `Operation`: what it takes, each status that it answers with, each problem. What follows from
//! the endpoint itself (its path, its role, whether it has a body) is added here, in one place. In a debug build, and so
//! in every test, the guard lets no answer out that the document does not have.
//!
//! Schemas of answers are derived from the very types that are written out; schemas of words are in `words`.

mod problems;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use actix_web::http::Method;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

#[cfg(debug_assertions)]
use super::problem::Problem;
use super::{ENDPOINTS, Endpoint, page::LIMIT_MAX, problem::Code};

/// What the gate may be unable to say.
pub(super) const GATE: &[Code] =
    &[Code::GateUnavailable, Code::Fenced, Code::Overloaded, Code::OutcomeUnknown, Code::Internal];
/// What the ledger may be unable to say.
pub(super) const LEDGER: &[Code] = &[Code::LedgerUnavailable, Code::Internal];

/// The parts of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    Redemptions,
    Validations,
    Reservations,
    Invites,
    Campaigns,
    Batches,
    Members,
    Namespaces,
    Events,
    Webhooks,
    Exports,
    Keys,
    Audit,
    People,
    Service,
}

impl Tag {
    const ALL: &[Self] = &[
        Self::Redemptions,
        Self::Validations,
        Self::Reservations,
        Self::Invites,
        Self::Campaigns,
        Self::Batches,
        Self::Members,
        Self::Namespaces,
        Self::Events,
        Self::Webhooks,
        Self::Exports,
        Self::Keys,
        Self::Audit,
        Self::People,
        Self::Service,
    ];

    fn about(self) -> (&'static str, &'static str) {
        match self {
            Self::Redemptions => ("Redemptions", "Uses of codes, spent exactly once."),
            Self::Validations => ("Validations", "What a redemption would be told."),
            Self::Reservations => {
                ("Reservations", "Uses that are held while something else completes.")
            }
            Self::Campaigns => ("Campaigns", "Limits that invites share."),
            Self::Invites => ("Invites", "What codes stand for."),
            Self::Batches => ("Batches", "Codes in bulk."),
            Self::Members => ("Members", "Who is in which group."),
            Self::Namespaces => ("Namespaces", "Isolated domains and their rules."),
            Self::Events => ("Events", "What happens, as it happens."),
            Self::Webhooks => ("Webhooks", "Who is told what happens."),
            Self::Exports => ("Exports", "Everything, in and out."),
            Self::Keys => ("Keys", "Who may ask."),
            Self::Audit => ("Audit log", "Who changed what."),
            Self::People => ("Page", "For people, where the operator has it: docs/page.md."),
            Self::Service => ("Service", "Health, metrics and documentation."),
        }
    }
}

/// What the document says of an endpoint.
pub(super) struct Operation {
    id: &'static str,
    tag: Tag,
    summary: &'static str,
    about: &'static str,
    /// Whether If-Match or If-None-Match is understood.
    conditions: Vec<&'static str>,
    query: Vec<Value>,
    body: Option<Value>,
    /// Whether its body is a form.
    is_form: bool,
    /// The types that it takes instead of JSON.
    text_types: &'static [&'static str],
    answers: Vec<Answer>,
    problems: Vec<Code>,
    /// Whether its answers may say what is left of rate limits.
    rated: bool,
    schemas: BTreeMap<String, Value>,
}

/// A success.
struct Answer {
    status: u16,
    what: &'static str,
    content: Map<String, Value>,
    headers: Vec<&'static str>,
    /// Operations that go on from here, each with the members of the answer that its path takes.
    next: Vec<(&'static str, &'static [&'static str])>,
}

impl Operation {
    /// An operation that takes nothing and answers nothing yet.
    pub(super) fn new(id: &'static str, tag: Tag, summary: &'static str) -> Self {
        Self {
            id,
            tag,
            summary,
            about: "",
            conditions: Vec::new(),
            query: Vec::new(),
            body: None,
            is_form: false,
            text_types: &[],
            answers: Vec::new(),
            problems: Vec::new(),
            rated: false,
            schemas: BTreeMap::new(),
        }
    }

    /// More than the summary says.
    pub(super) fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    /// A parameter of the query string, which may be left out.
    pub(super) fn query(mut self, name: &str, schema: Value, what: &str) -> Self {
        let mut parameter = json!({"name": name, "in": "query", "description": what});
        parameter["schema"] = schema;
        self.query.push(parameter);
        self
    }

    /// It changes only what is at the revision that If-Match names.
    pub(super) fn if_match(mut self) -> Self {
        self.conditions.push("If-Match");
        self.problems.extend([Code::InvalidRequest, Code::PreconditionFailed]);
        self
    }

    /// It takes a JSON object with these fields.
    pub(super) fn takes(mut self, fields: Fields) -> Self {
        let words = self.id.split('_').filter_map(|word| word.split_at_checked(1));
        let name: String = words.map(|(first, rest)| first.to_ascii_uppercase() + rest).collect();
        let name = format!("{name}Request");
        self.body = Some(reference(&name));
        self.schemas.insert(name, fields.schema());
        self
    }

    /// It takes a form with these fields.
    pub(super) fn takes_form(self, fields: Fields) -> Self {
        Self { is_form: true, ..self.takes(fields) }
    }

    /// It takes text of one of these types.
    pub(super) fn takes_text(mut self, types: &'static [&'static str]) -> Self {
        self.text_types = types;
        self
    }

    fn answer(
        mut self,
        status: u16,
        what: &'static str,
        content: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Self {
        let content = content
            .into_iter()
            .map(|(media, schema)| (media.to_owned(), json!({"schema": schema})))
            .collect();
        self.answers.push(Answer { status, what, content, headers: Vec::new(), next: Vec::new() });
        self
    }

    /// A success that is a `T` in JSON.
    pub(super) fn answers<T: ToSchema>(mut self, status: u16, what: &'static str) -> Self {
        let schema = self.register::<T>();
        self.answer(status, what, [("application/json", schema)])
    }

    /// A success that is a JSON object of any form.
    pub(super) fn answers_any(self, what: &'static str) -> Self {
        self.answer(200, what, [("application/json", json!({"type": "object"}))])
    }

    /// A page of a list.
    pub(super) fn lists<T: ToSchema>(mut self, what: &'static str) -> Self {
        let row = self.register::<T>();
        let name = format!("{}List", T::name());
        let list = json!({
            "type": "object",
            "description": what,
            "properties": {
                "data": {"type": "array", "items": row, "maxItems": LIMIT_MAX},
                "next_cursor": nullable(reference("Cursor")),
                "as_of": nullable(reference("Time")),
            },
            "required": ["data", "next_cursor", "as_of"],
        });
        let schema = reference(&name);
        self.schemas.insert(name, list);
        let limit = json!({"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": 100});
        let mut listed = self
            .query("limit", limit, "Most rows of the page.")
            .query(
                "cursor",
                reference("Cursor"),
                "Where to go on: the next_cursor of the page before.",
            )
            .answer(200, what, [("application/json", schema)])
            .with(&["Link"]);
        listed.problems.push(Code::InvalidRequest);
        listed
    }

    /// A success without a body.
    pub(super) fn answers_nothing(self, status: u16, what: &'static str) -> Self {
        self.answer(status, what, [])
    }

    /// A success that is text of one of these types.
    pub(super) fn answers_text(self, what: &'static str, types: &[&'static str]) -> Self {
        self.answer(200, what, types.iter().map(|media| (*media, json!({"type": "string"}))))
    }

    /// A success that is a page for people.
    pub(super) fn answers_page(self, status: u16, what: &'static str) -> Self {
        self.answer(status, what, [("text/html", json!({"type": "string"}))])
    }

    /// Headers of the answer that was named last.
    pub(super) fn with(mut self, headers: &[&'static str]) -> Self {
        if let Some(answer) = self.answers.last_mut() {
            answer.headers.extend(headers);
        }
        self
    }

    /// Operations that go on from the answer that was named last, each with the members of it that its path takes
    /// besides the namespace.
    pub(super) fn leads_to(mut self, next: &[(&'static str, &'static [&'static str])]) -> Self {
        if let Some(answer) = self.answers.last_mut() {
            answer.next.extend(next);
        }
        self
    }

    /// Its answers may say what is left of rate limits.
    pub(super) fn rated(mut self) -> Self {
        self.rated = true;
        self
    }

    /// Problems that it may answer with, besides those that follow from the endpoint.
    pub(super) fn problems(mut self, problems: &[Code]) -> Self {
        self.problems.extend(problems);
        self
    }

    fn register<T: ToSchema>(&mut self) -> Value {
        let mut nested = Vec::new();
        T::schemas(&mut nested);
        nested.push((T::name().into_owned(), T::schema()));
        for (name, schema) in nested {
            self.schemas.insert(name, serde_json::to_value(schema).unwrap_or_default());
        }
        reference(&T::name())
    }

    fn is_json(&self) -> bool {
        self.answers.iter().all(|answer| {
            answer.content.is_empty() || answer.content.contains_key("application/json")
        })
    }
}

/// The fields of a body.
#[derive(Default)]
pub(super) struct Fields {
    properties: Map<String, Value>,
    required: Vec<&'static str>,
}

impl Fields {
    /// No fields yet.
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn field(mut self, name: &'static str, schema: Value, what: &str) -> Self {
        let mut schema = schema;
        schema["description"] = json!(what);
        self.properties.insert(name.to_owned(), schema);
        self
    }

    /// A field that must be there.
    pub(super) fn needs(mut self, name: &'static str, schema: Value, what: &str) -> Self {
        self.required.push(name);
        self.field(name, schema, what)
    }

    /// A field that may be left out, and not null.
    pub(super) fn may_have(self, name: &'static str, schema: Value, what: &str) -> Self {
        self.field(name, schema, what)
    }

    /// A field that may be left out or null.
    pub(super) fn may_be_null(self, name: &'static str, schema: Value, what: &str) -> Self {
        self.field(name, nullable(schema), what)
    }

    fn schema(self) -> Value {
        let mut schema = json!({"type": "object", "properties": self.properties});
        if !self.required.is_empty() {
            schema["required"] = json!(self.required);
        }
        schema
    }
}

/// The schema of a word.
pub(super) fn word<T: ToSchema>() -> Value {
    reference(&T::name())
}

/// The schema with this name.
pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// A whole number from 1 on.
pub(super) fn count(max: u64) -> Value {
    json!({"type": "integer", "minimum": 1, "maximum": max})
}

/// Yes or no.
pub(super) fn flag() -> Value {
    json!({"type": "boolean"})
}

/// The schema, or null.
pub(super) fn nullable(schema: Value) -> Value {
    let either = Value::from(vec![schema, json!({"type": "null"})]);
    json!({"oneOf": either})
}

/// What a problem of this endpoint can be: what its operation names, and what follows from the endpoint.
fn problems_of(endpoint: &Endpoint, operation: &Operation) -> BTreeSet<Code> {
    let mut problems: BTreeSet<_> = operation.problems.iter().copied().collect();
    problems.insert(Code::Internal);
    let is_post = endpoint.method == Method::POST;
    let has_parameters = endpoint.path.contains('{') || !operation.query.is_empty();
    if is_post || has_parameters || operation.body.is_some() {
        problems.insert(Code::InvalidRequest);
    }
    if operation.is_json() {
        problems.insert(Code::NotAcceptable);
    }
    if endpoint.role.is_some() {
        problems.extend([Code::Unauthorized, Code::Forbidden]);
    }
    if endpoint.role.is_some() || endpoint.is_for_people() {
        let stuck =
            if endpoint.method == Method::GET { Code::Overloaded } else { Code::OutcomeUnknown };
        problems.insert(stuck);
    }
    if operation.body.is_some() {
        problems.extend([Code::RequestTimeout, Code::BodyTooLarge, Code::UnsupportedMediaType]);
    }
    problems
}

/// What an answer has that the document does not: its status, its problem, or a member of that. Only debug builds ask.
#[cfg(debug_assertions)]
pub(super) fn undeclared(
    endpoint: &Endpoint,
    status: u16,
    problem: Option<&Problem>,
) -> Option<String> {
    let operation = (endpoint.operation?)();
    let what = match problem {
        None if operation.answers.iter().any(|answer| answer.status == status) => return None,
        None => status.to_string(),
        Some(problem) if !problems_of(endpoint, &operation).contains(&problem.code) => {
            problem.code.as_str().to_owned()
        }
        Some(problem) => {
            let known = problems::members(problem.code);
            let is_known = |name: &str| known.iter().any(|(known, ..)| *known == name);
            let stranger = problem.members().find(|name| !is_known(name))?;
            format!("{} with {stranger}", problem.code.as_str())
        }
    };
    Some(format!("{} answers {what}, which its operation does not declare", operation.id))
}

/// The whole document.
pub(super) fn document() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    let mut schemas: BTreeMap<String, Value> = BTreeMap::new();
    for endpoint in ENDPOINTS {
        let Some(operation) = endpoint.operation.map(|operation| operation()) else { continue };
        let method = endpoint.method_text.to_ascii_lowercase();
        paths.entry(endpoint.path).or_default().insert(method, described(endpoint, &operation));
        schemas.extend(operation.schemas);
    }
    schemas.extend(words::all().into_iter().map(|(name, schema)| (name.to_owned(), schema)));
    schemas.extend(Code::ALL.iter().map(|code| (problems::name(*code), problems::schema(*code))));
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "redeemer",
            "version": env!("CARGO_PKG_VERSION"),
            "description": env!("CARGO_PKG_DESCRIPTION"),
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": Tag::ALL.iter().map(|tag| {
            let (name, description) = tag.about();
            json!({"name": name, "description": description})
        }).collect::<Vec<_>>(),
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {
                "type": "http", "scheme": "bearer", "bearerFormat": "rdm_<id>_<secret>",
                "description": "An API key. It has a role, and may be tied to namespaces.",
            }},
            "headers": headers(),
            "schemas": schemas,
        },
    });
    close(&mut document);
    let text = document.to_string();
    if let Some(Value::Object(schemas)) = document.pointer_mut("/components/schemas") {
        // A word or a problem that nothing speaks of.
        schemas.retain(|name, _| text.contains(&format!("\"#/components/schemas/{name}\"")));
    }
    document
}

/// The document as text, as it is served, printed and committed.
#[must_use]
pub fn text() -> String {
    format!("{:#}\n", document())
}

/// Closes every object that names its properties.
fn close(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("type") == Some(&json!("object"))
                && map.contains_key("properties")
                && !map.contains_key("additionalProperties")
            {
                map.insert("additionalProperties".to_owned(), json!(false));
            }
            map.values_mut().for_each(close);
        }
        Value::Array(values) => values.iter_mut().for_each(close),
        _ => {}
    }
}

fn described(endpoint: &Endpoint, operation: &Operation) -> Value {
    let role = match endpoint.role {
        Some(role) => format!("Needs a key with the role `{}`.", role.as_str()),
        None => "Needs no key.".to_owned(),
    };
    let about =
        if operation.about.is_empty() { role } else { format!("{} {role}", operation.about) };
    let mut described = json!({
        "operationId": operation.id,
        "tags": [operation.tag.about().0],
        "summary": operation.summary,
        "description": about,
    });
    if endpoint.role.is_none() {
        described["security"] = json!([]);
    }
    let parameters = parameters(endpoint, operation);
    if !parameters.is_empty() {
        described["parameters"] = json!(parameters);
    }
    if let Some(schema) = &operation.body {
        let media = if operation.is_form {
            "application/x-www-form-urlencoded"
        } else {
            "application/json"
        };
        let mut content = json!({media: {"schema": schema}});
        if endpoint.method == Method::PATCH {
            content["application/merge-patch+json"] = json!({"schema": schema});
        }
        described["requestBody"] = json!({"required": true, "content": content});
    }
    if !operation.text_types.is_empty() {
        let types = operation.text_types.iter();
        let content: Map<String, Value> = types
            .map(|media| ((*media).to_owned(), json!({"schema": {"type": "string"}})))
            .collect();
        described["requestBody"] = json!({"required": true, "content": content});
    }
    described["responses"] = responses(endpoint, operation);
    described
}

fn parameters(endpoint: &Endpoint, operation: &Operation) -> Vec<Value> {
    let mut parameters = Vec::new();
    let mut collection = "";
    for part in endpoint.path.split('/') {
        match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(name) => parameters.push(json!({
                "name": name, "in": "path", "required": true, "schema": path_schema(collection, name),
            })),
            None => collection = part,
        }
    }
    if endpoint.has_idempotency_key() {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header",
            "description": "Your name for this request: a repeat with the same one gets the same answer.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        }));
    }
    for condition in &operation.conditions {
        parameters.push(json!({
            "name": condition, "in": "header", "description": "The ETag of an earlier answer, or *.",
            "schema": {"type": "string", "pattern": r#"^(\*|"[0-9]{1,19}")$"#, "examples": ["\"1\""]},
        }));
    }
    parameters.extend(operation.query.iter().cloned());
    parameters
}

/// What may stand in a place of a path below a collection.
fn path_schema(collection: &str, name: &str) -> Value {
    let word = match (collection, name) {
        (_, "ns") => "Namespace",
        (_, "user") => "UserId",
        (_, "group") => "Group",
        (_, "code") => "TypedCode",
        ("invites", "id") => "InviteId",
        ("redemptions", "id") => "RedemptionId",
        ("batches", "id") => "BatchId",
        ("webhooks", "id") => "WebhookId",
        ("deliveries", "id") => "DeliveryId",
        ("reservations", "id") => "ReservationId",
        ("campaigns", "name") => "CampaignName",
        ("keys", "id") => "KeyId",
        _ => return json!({"type": "string", "minLength": 1}),
    };
    reference(word)
}

fn responses(endpoint: &Endpoint, operation: &Operation) -> Value {
    let mut always = vec!["X-Request-Id"];
    if endpoint.has_idempotency_key() {
        always.push("Idempotency-Key");
    }
    let rates = |is_rated| -> &[&str] {
        if operation.rated && is_rated { &["RateLimit-Policy", "RateLimit"] } else { &[] }
    };
    let mut responses: BTreeMap<String, Value> = BTreeMap::new();
    for answer in &operation.answers {
        let names = always.iter().chain(rates(true)).chain(&answer.headers);
        let mut response = json!({"description": answer.what, "headers": header_references(names)});
        if !answer.content.is_empty() {
            response["content"] = json!(answer.content);
        }
        for (id, members) in &answer.next {
            let mut parameters: Map<_, _> = members
                .iter()
                .map(|name| ((*name).to_owned(), json!(format!("$response.body#/{name}"))))
                .collect();
            if endpoint.path.contains("{ns}") {
                parameters.insert("ns".to_owned(), json!("$request.path.ns"));
            }
            response["links"][id] = json!({"operationId": id, "parameters": parameters});
        }
        responses.insert(answer.status.to_string(), response);
    }
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in problems_of(endpoint, operation) {
        by_status.entry(code.status().as_u16()).or_default().push(code);
    }
    for (status, codes) in by_status {
        let own: &[&str] = match status {
            401 => &["WWW-Authenticate"],
            429 | 503 => &["Retry-After"],
            _ => &[],
        };
        let names =
            always.iter().chain(rates(codes.iter().any(|code| code.is_refusal()))).chain(own);
        let titles = codes.iter().map(|code| format!("`{}`: {}.", code.as_str(), code.title()));
        let mut schemas: Vec<_> =
            codes.iter().map(|code| reference(&problems::name(*code))).collect();
        let schema = if schemas.len() == 1 { schemas.remove(0) } else { json!({"oneOf": schemas}) };
        let content = if endpoint.is_for_people() {
            json!({"text/html": {"schema": {"type": "string"}}})
        } else {
            json!({"application/problem+json": {"schema": schema}})
        };
        let response = json!({
            "description": titles.collect::<Vec<_>>().join(" "),
            "headers": header_references(names),
            "content": content,
        });
        // No operation has a status that is both a success and a problem.
        responses.insert(status.to_string(), response);
    }
    json!(responses)
}

fn header_references<'a>(names: impl Iterator<Item = &'a &'a str>) -> Value {
    let reference =
        |name: &&str| ((*name).to_owned(), json!({"$ref": format!("#/components/headers/{name}")}));
    Value::Object(names.map(reference).collect())
}

fn headers() -> Value {
    let text = |required: bool, pattern: &str, what: &str| json!({"description": what, "required": required, "schema": {"type": "string", "pattern": pattern}});
    json!({
        "X-Request-Id": text(true, "^[!-~]{1,128}$", "The request's id: yours if you sent one."),
        "Idempotency-Key": text(false, "^[!-~]{1,255}$", "The key that the request had, or was given."),
        "ETag": text(false, r#"^"[0-9]+"$"#, "The revision: send it back in If-Match to change only what you have seen."),
        "Location": text(true, "^/v1/", "Where it is."),
        "Link": text(false, r#"^<.+>; rel="next"$"#, "The next page, while there is one."),
        "RateLimit-Policy": text(false, r#"^"[a-z]+";q=[0-9]+;w=[0-9]+"#, "The limits that the request touched."),
        "RateLimit": text(false, r#"^"[a-z]+";r=[0-9]+;t=[0-9]+"#, "What is left of them."),
        "Retry-After": {
            "description": "Seconds to wait.", "required": true, "schema": {"type": "integer", "minimum": 1},
        },
        "WWW-Authenticate": text(true, "^Bearer$", "How to say who asks."),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_documented() {
        for endpoint in ENDPOINTS {
            assert!(
                endpoint.operation.is_some(),
                "{} {} is not documented: write a function with the name of its handler into the module `docs` of the \
                 same file, which returns an openapi::Operation, and take `undocumented` out of ENDPOINTS",
                endpoint.method_text,
                endpoint.path
            );
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_a_success() {
        let mut names = BTreeSet::new();
        for operation in ENDPOINTS.iter().filter_map(|endpoint| endpoint.operation) {
            let operation = operation();
            assert!(names.insert(operation.id), "{} is the name of two operations", operation.id);
            assert!(!operation.answers.is_empty(), "{} never succeeds", operation.id);
        }
    }

    #[test]
    fn the_guard_and_the_document_agree_on_what_answers_in_json() {
        for endpoint in ENDPOINTS {
            let Some(operation) = endpoint.operation else { continue };
            assert_eq!(endpoint.is_json(), operation().is_json(), "{}", endpoint.path);
        }
    }

    #[test]
    fn every_place_in_a_path_has_a_word() {
        for (path, item) in document()["paths"].as_object().unwrap() {
            for operation in item.as_object().unwrap().values() {
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    let has_word = parameter["in"] != "path"
                        || parameter["schema"]["$ref"].is_string()
                        || parameter["name"] == "file";
                    assert!(has_word, "path_schema does not know {} of {path}", parameter["name"]);
                }
            }
        }
    }

    /// Every `$ref` below a value.
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_object_is_closed() {
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 50);
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            let is_open = schema["type"] == "object" && schema["additionalProperties"] != false;
            assert!(!is_open || name == "Metadata", "{name} is open");
        }
    }
}
