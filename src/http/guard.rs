//! The one middleware: every request passes it, and no answer leaves without it.
//!
//! On the way in it names the request, finds the endpoint (else 404 or 405), asks for the key and compares its role. On
//! the way out it turns every problem into its body, writes one log line and counts.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::{Ready, ready},
    rc::Rc,
    time::{Duration, Instant},
};

use actix_web::{
    Error, FromRequest, HttpMessage, HttpRequest, HttpResponse,
    body::{BoxBody, MessageBody},
    dev::{Payload, ServiceRequest, ServiceResponse},
    error::InternalError,
    http::{
        ConnectionType, Method, StatusCode,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};

use percent_encoding::percent_decode_str;

#[cfg(debug_assertions)]
use super::openapi;
use super::{
    CONFIRM, Endpoint, REDEMPTIONS, State, invite_page,
    problem::{Code, Problem},
    scope::Caller,
};
use crate::{
    domain::RequestId,
    sync::unquoted,
    trace::{self, Span},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The request id that makes a repeat recognisable: what the client sent as Idempotency-Key, or for a redemption
/// without one, what this node made.
#[derive(Debug, Clone, Default)]
pub(super) struct IdempotencyKey(pub(super) Option<RequestId>);

impl FromRequest for IdempotencyKey {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(request.extensions().get::<Self>().cloned().unwrap_or_default()))
    }
}

/// What is known about a request from its head.
struct Head {
    started: Instant,
    method: Method,
    path: String,
    request_id: String,
    endpoint: Option<&'static Endpoint>,
    /// What goes back on every answer.
    idempotency_key: Option<RequestId>,
    /// Who asks.
    key_id: Option<String>,
    /// What is traced of it.
    span: Span,
    /// Whether its connection should not be used again.
    is_last: bool,
    state: web::Data<State>,
}

/// Guards the endpoints of one path.
pub(super) async fn guard(
    here: Rc<[&'static Endpoint]>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some(state) = request.app_data::<web::Data<State>>().cloned() else {
        return Err(Problem::unexpected("the state of the service is missing").into());
    };
    let mut head = Head {
        started: Instant::now(),
        method: request.method().clone(),
        path: request.path().to_owned(),
        request_id: request_id(request.headers()),
        endpoint: None,
        idempotency_key: None,
        key_id: None,
        span: Span::default(),
        is_last: state.is_draining(),
        state: state.clone(),
    };
    if let Err(problem) = let_in(&state, &here, &request, &mut head) {
        let response = head.refuse(&problem);
        return Ok(request.into_response(response));
    }
    // Only now: strangers have nothing traced.
    head.begin_span(request.headers());
    let span = head.span.clone();
    // Body and answer have a limit of their own each; this is for what is stuck in between.
    let answer = trace::within(&span, next.call(request));
    let answer = match tokio::time::timeout(state.request_timeout * 2, answer).await {
        Ok(answer) => answer?,
        Err(_) => {
            let problem = if matches!(head.method, Method::GET | Method::HEAD) {
                Problem::new(Code::Overloaded, "The answer took too long. Try again soon.")
            } else {
                Problem::new(
                    Code::OutcomeUnknown,
                    "The answer took too long. Repeat the request with the same Idempotency-Key to learn the outcome.",
                )
                .with("reached", "none")
            };
            let response = head.refuse(&problem);
            return Err(InternalError::from_response(problem, response).into());
        }
    };
    // It may have begun to stop meanwhile.
    head.is_last = state.is_draining();
    let (request, response) = answer.into_parts();
    let response = match response.error() {
        Some(error) => {
            let mapped;
            let problem = match error.as_error::<Problem>() {
                Some(problem) => problem,
                None => {
                    mapped = problem_of(error);
                    &mapped
                }
            };
            head.refuse(problem)
        }
        None => head.answer(response.map_into_boxed_body()),
    };
    Ok(ServiceResponse::new(request, response))
}

/// Finds the endpoint and opens it, or says why not.
fn let_in(
    state: &State,
    here: &[&'static Endpoint],
    request: &ServiceRequest,
    head: &mut Head,
) -> Result<(), Problem> {
    if here.is_empty() {
        return Err(Problem::new(
            Code::RouteNotFound,
            "There is nothing at this path; docs/api.md lists all paths.",
        ));
    }
    let method = if head.method == Method::HEAD { &Method::GET } else { &head.method };
    let Some(endpoint) = here.iter().find(|endpoint| endpoint.method == *method) else {
        let methods: Vec<_> = here.iter().map(|endpoint| endpoint.method.as_str()).collect();
        return Err(Problem::new(
            Code::MethodNotAllowed,
            format!("This path has {}.", methods.join(", ")),
        )
        .with_allow(methods.join(", ")));
    };
    head.endpoint = Some(endpoint);
    // The router would put a replacement character there, and two names would become one.
    if percent_decode_str(&head.path).decode_utf8().is_err() {
        return Err(Problem::new(Code::InvalidRequest, "The path is not percent-encoded UTF-8."));
    }
    if endpoint.has_idempotency_key() {
        if request.headers().get_all(&IDEMPOTENCY_KEY).nth(1).is_some() {
            return Err(Problem::new(
                Code::InvalidRequest,
                "Send one Idempotency-Key, not several.",
            ));
        }
        let sent = request.headers().get(&IDEMPOTENCY_KEY);
        let sent =
            sent.map(|value| RequestId::parse(value.to_str().unwrap_or_default())).transpose();
        let key = sent.map_err(|error| {
            Problem::new(Code::InvalidRequest, format!("Idempotency-Key: {error}."))
        })?;
        head.idempotency_key = key
            .or_else(|| [REDEMPTIONS, CONFIRM].contains(&endpoint.path).then(crate::ids::request));
        request.extensions_mut().insert(IdempotencyKey(head.idempotency_key.clone()));
    }
    if !accepts_json(request.headers()) && endpoint.is_json() {
        return Err(Problem::new(
            Code::NotAcceptable,
            "Answers are application/json; accept that.",
        ));
    }
    let Some(role) = endpoint.role else { return Ok(()) };
    let authorization =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = authorization.and_then(|header| state.keys.open(header, crate::ids::now())).ok_or_else(|| {
        Problem::new(
            Code::Unauthorized,
            "Send Authorization: Bearer <API key>, with a key that is neither revoked nor expired.",
        )
    })?;
    head.key_id = Some(key.id.clone());
    if !key.role.includes(role) {
        let detail = format!(
            "This needs the role {}; this API key has {}.",
            role.as_str(),
            key.role.as_str()
        );
        return Err(Problem::new(Code::Forbidden, detail));
    }
    request.extensions_mut().insert(Caller(key, head.request_id.clone()));
    Ok(())
}

/// The id that the caller gave the request, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let sent = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let sent = sent.filter(|text| {
        (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    });
    sent.map_or_else(|| crate::ids::unique().to_string(), str::to_owned)
}

/// Source: RFC 9110 §12.5.1; weights are not looked at, but that a type is not refused with `q=0`.
fn accepts_json(headers: &HeaderMap) -> bool {
    let mut values =
        headers.get_all(header::ACCEPT).filter_map(|value| value.to_str().ok()).peekable();
    let accepts = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        let refused = parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
        let json = ["*/*", "application/*", "application/json", "application/problem+json"];
        json.contains(&media_type.as_str()) && !refused
    };
    values.peek().is_none() || values.flat_map(|value| value.split(',')).any(accepts)
}

/// What an error of the framework means.
fn problem_of(error: &Error) -> Problem {
    match error.as_response_error().status_code() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(Code::BodyTooLarge, "The body is too long."),
        StatusCode::REQUEST_TIMEOUT => {
            Problem::new(Code::RequestTimeout, "The request did not arrive in time.")
        }
        status if status.is_client_error() => Problem::new(Code::InvalidRequest, error.to_string()),
        _ => Problem::unexpected(&error.to_string()),
    }
}

impl Head {
    fn begin_span(&mut self, headers: &HeaderMap) {
        let Some(endpoint) = self.endpoint.filter(|endpoint| endpoint.role.is_some()) else {
            return;
        };
        let header = |name: &str| headers.get(name)?.to_str().ok();
        let span = Span::server(endpoint.method_text, endpoint.path, header);
        if span.is_recording() {
            span.set("http.request.method", endpoint.method_text);
            span.set("http.route", endpoint.path);
            // Whoever wants TLS has put something in front.
            span.set("url.scheme", "http");
            span.set("redeemer.request_id", self.request_id.clone());
        }
        self.span = span;
    }

    fn end_span(&self, status: StatusCode, problem: Option<&Problem>) {
        let span = &self.span;
        span.set("http.response.status_code", i64::from(status.as_u16()));
        if let Some(problem) = problem {
            let code = problem.code.as_str();
            span.set("redeemer.problem", code);
            // A refusal is an answer like any other.
            if status.is_server_error() {
                span.fail(code);
            }
        }
    }

    fn refuse(&self, problem: &Problem) -> HttpResponse {
        #[cfg(debug_assertions)]
        if let Some(endpoint) = self.endpoint
            && let Some(what) =
                openapi::undeclared(endpoint, problem.code.status().as_u16(), Some(problem))
        {
            return self.tell(&Problem::unexpected(&what));
        }
        self.tell(problem)
    }

    /// A problem as its reader understands it.
    fn tell(&self, problem: &Problem) -> HttpResponse {
        let response = if self.endpoint.is_some_and(Endpoint::is_for_people) {
            invite_page::refusal(&self.state.page, problem, &self.request_id)
        } else {
            problem.response(&self.path, &self.request_id)
        };
        self.finish(response, Some(problem))
    }

    fn answer(&self, response: HttpResponse) -> HttpResponse {
        #[cfg(debug_assertions)]
        if let Some(endpoint) = self.endpoint
            && let Some(what) = openapi::undeclared(endpoint, response.status().as_u16(), None)
        {
            return self.refuse(&Problem::unexpected(&what));
        }
        self.finish(response, None)
    }

    /// Adds what every answer has, writes the log line and counts.
    fn finish(&self, mut response: HttpResponse, problem: Option<&Problem>) -> HttpResponse {
        if self.is_last {
            response.head_mut().set_connection_type(ConnectionType::Close);
        }
        let headers = response.headers_mut();
        // Files of pages may be, answers of the API never.
        let may_be_kept = headers.contains_key(header::CACHE_CONTROL);
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set(REQUEST_ID, &self.request_id);
        set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        if !may_be_kept {
            set(header::CACHE_CONTROL, "no-store");
        }
        if let Some(key) = &self.idempotency_key {
            set(IDEMPOTENCY_KEY, key.as_str());
        }
        self.log(response.status(), problem);
        self.end_span(response.status(), problem);
        response
    }

    fn log(&self, status: StatusCode, problem: Option<&Problem>) {
        let elapsed = self.started.elapsed();
        // The pattern and never the path: paths hold codes and users.
        let route = self.endpoint.map_or("none", |endpoint| endpoint.path);
        let method = self.endpoint.map_or("none", |endpoint| endpoint.method_text);
        count(Counted { method, route, status: status.as_u16() }, elapsed.as_secs_f64());
        problem.inspect(|problem| count_problem(problem));
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let Self { request_id, method, .. } = self;
        let (status, key) = (status.as_u16(), self.key_id.as_deref().unwrap_or("none"));
        match problem {
            Some(problem) if status == 500 => tracing::error!(
                request_id, %method, route, status, key, micros,
                code = problem.code.as_str(), cause = problem.cause().map(unquoted), "request"
            ),
            // One line a second tells as much as thousands, which would take from those who can be served.
            Some(problem) if problem.code == Code::Overloaded && route == REDEMPTIONS => {
                if let Some(refused) = SHED.with_borrow_mut(Shed::add) {
                    tracing::warn!(
                        refused,
                        code = problem.code.as_str(),
                        "requests are refused: too many wait"
                    );
                }
            }
            Some(problem) if status > 500 => tracing::warn!(
                request_id, %method, route, status, key, micros,
                code = problem.code.as_str(), cause = problem.cause(), "request"
            ),
            Some(problem) => tracing::info!(
                request_id, %method, route, status, key, micros,
                code = problem.code.as_str(), cause = problem.cause(), "request"
            ),
            None if self.endpoint.is_some_and(|endpoint| {
                endpoint.role.is_none() && endpoint.method == Method::GET
            }) =>
            {
                tracing::debug!(request_id, %method, route, status, micros, "request");
            }
            None => tracing::info!(request_id, %method, route, status, key, micros, "request"),
        }
    }
}

/// Requests that this thread has refused because too many wait, and when it last said so.
#[derive(Default)]
struct Shed {
    refused: u64,
    said: Option<Instant>,
}

impl Shed {
    /// Counts one more; returns how many there were since the last word, if it is time for another.
    fn add(&mut self) -> Option<u64> {
        self.refused += 1;
        if self.said.is_some_and(|said| said.elapsed() < Duration::from_secs(1)) {
            return None;
        }
        self.said = Some(Instant::now());
        Some(std::mem::take(&mut self.refused))
    }
}

/// What an answer is counted by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Counted {
    method: &'static str,
    route: &'static str,
    status: u16,
}

thread_local! {
    static SHED: RefCell<Shed> = RefCell::default();
    /// Looking a metric up by its labels would cost each request more than counting does.
    static HANDLES: RefCell<HashMap<Counted, (metrics::Counter, metrics::Histogram)>> = RefCell::default();
    static PROBLEMS: RefCell<HashMap<Code, metrics::Counter>> = RefCell::default();
}

fn count(counted: Counted, seconds: f64) {
    HANDLES.with_borrow_mut(|handles| {
        let (requests, time) = handles.entry(counted).or_insert_with(|| {
            let Counted { method, route, status } = counted;
            let status = status.to_string();
            (
                metrics::counter!("redeemer_http_requests_total", "method" => method, "route" => route, "status" => status),
                metrics::histogram!("redeemer_http_request_seconds", "route" => route),
            )
        });
        requests.increment(1);
        time.record(seconds);
    });
}

fn count_problem(problem: &Problem) {
    let code = problem.code;
    PROBLEMS.with_borrow_mut(|counters| {
        let new = || metrics::counter!("redeemer_problems_total", "code" => code.as_str());
        counters.entry(code).or_insert_with(new).increment(1);
    });
    if let Some(policy) = problem.policy() {
        metrics::counter!("redeemer_rate_limited_total", "policy" => policy.to_owned())
            .increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_accepted_unless_the_caller_says_otherwise() {
        let accepts = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_str(text).unwrap());
            accepts_json(&headers)
        };
        assert!(accepts_json(&HeaderMap::new()));
        for good in [
            "*/*",
            "application/json",
            "text/html, application/*;q=0.8",
            "Application/Problem+JSON",
        ] {
            assert!(accepts(good), "{good}");
        }
        for bad in ["text/html", "application/json;q=0", "application/xml"] {
            assert!(!accepts(bad), "{bad}");
        }
    }
}
