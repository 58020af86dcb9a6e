//! A client of the HTTP API, for the command line, the demonstration and the torture.
//!
//! It never repeats a request by itself: whoever calls decides, with the same idempotency key.

use std::{fmt, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::domain::{Millis, Namespace, Position, RedemptionId, ReservationId};

/// Longest wait for an answer: longer than the service itself tries.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long an unused connection is kept: a node closes one that it has heard nothing on after ten seconds, with a 408
/// that a request which is just being sent would take for its answer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest download.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_hours(1);

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The service said no.
    #[error("{0}")]
    Problem(Problem),
    /// The service did not answer; what became of the request is not known.
    #[error("{url} does not answer; is the service running? (`redeemer serve` starts it)")]
    Transport {
        /// What was asked.
        url: String,
        /// Why it failed.
        #[source]
        cause: reqwest::Error,
    },
    /// The answer is not one of redeemer's.
    #[error("{url} answered {status}, which is not an answer of redeemer: {text}")]
    Foreign {
        /// What was asked.
        url: String,
        /// The status.
        status: StatusCode,
        /// The beginning of the body.
        text: String,
    },
}

impl ClientError {
    /// Whether the request may have been carried out.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::Problem(problem) => problem.code == "outcome_unknown",
            Self::Transport { cause, .. } => !cause.is_connect() && !cause.is_builder(),
            // A balancer gave up waiting, or an answer came broken.
            Self::Foreign { status, .. } => status.is_server_error() || status.is_success(),
        }
    }
}

/// The body of an answer that is not a success (RFC 9457).
#[derive(Debug, Clone, Deserialize)]
pub struct Problem {
    /// The status.
    pub status: u16,
    /// The stable word.
    pub code: String,
    /// A sentence with what to do.
    pub detail: String,
    /// Whether the same request may fare better later.
    pub retryable: bool,
    /// What to tell an operator.
    pub request_id: String,
    /// Each field that is wrong.
    #[serde(default)]
    pub errors: Vec<FieldError>,
    /// Which redemption it speaks of.
    #[serde(default)]
    pub redemption: Option<RedemptionId>,
    /// Since when that redemption counts for nothing.
    #[serde(default)]
    pub rolled_back_at: Option<Millis>,
    /// How long to wait, in seconds.
    #[serde(skip)]
    pub retry_after: Option<String>,
    /// What makes a repeat recognisable.
    #[serde(skip)]
    pub idempotency_key: Option<String>,
}

/// A field that is wrong.
#[derive(Debug, Clone, Deserialize)]
pub struct FieldError {
    /// Which.
    pub pointer: String,
    /// Why.
    pub detail: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if self.errors.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        for error in &self.errors {
            write!(f, "\n  {}: {}", error.pointer.trim_start_matches('/'), error.detail)?;
        }
        if let Some(seconds) = &self.retry_after {
            write!(f, "\n  retry after: {seconds} s")?;
        }
        if let Some(key) = self.idempotency_key.as_ref().filter(|_| self.status >= 500) {
            write!(f, "\n  idempotency key: {key}")?;
        }
        if self.status >= 500 {
            write!(f, "\n  request id: {}", self.request_id)?;
        }
        Ok(())
    }
}

/// What a redemption's answer says.
#[derive(Debug, Clone, Deserialize)]
pub struct Redemption {
    /// Its id.
    pub id: RedemptionId,
    /// Who.
    pub user: String,
    /// Which use of the invite this was.
    #[serde(rename = "use")]
    pub ordinal: u64,
    /// Whether an earlier request has spent the use.
    pub replayed: bool,
    /// The level that the answer promises.
    pub durability: String,
    /// Its place among all changes.
    pub position: Position,
    /// Since when it counts for nothing.
    pub rolled_back_at: Option<Millis>,
}

/// What a reservation's answer says.
#[derive(Debug, Clone, Deserialize)]
pub struct Reservation {
    /// Its id.
    pub id: ReservationId,
}

/// A client of one service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    key: SecretString,
}

impl Client {
    /// A client for the service at `url`, such as `http://127.0.0.1:8080`, with an API key.
    ///
    /// # Errors
    /// When the system can not give it what it needs.
    pub fn new(url: &str, key: SecretString) -> Result<Self, reqwest::Error> {
        let mut builder = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE_TIMEOUT);
        if url.starts_with("http://") {
            // Without TLS the key is for this service's eyes only, so no proxy; and no certificates need to be there.
            builder = builder.no_proxy().tls_certs_only([]);
        }
        let http = builder.build()?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), key })
    }

    /// Asks for a path such as `/v1/keys` and returns the JSON of the answer, null where it has none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        self.ask_with(method, path, body, None).await
    }

    /// Sends something that can be repeated with the same key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post(
        &self,
        path: &str,
        body: &Value,
        idempotency_key: Option<&str>,
    ) -> Result<Value, ClientError> {
        self.ask_with(Method::POST, path, Some(body), idempotency_key).await
    }

    /// Spends one use of a code.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn redeem(
        &self,
        namespace: &Namespace,
        body: &Value,
        idempotency_key: Option<&str>,
    ) -> Result<Value, ClientError> {
        let path = format!("/v1/namespaces/{namespace}/redemptions");
        self.post(&path, body, idempotency_key).await
    }

    /// Whether the service should be sent requests, check by check, with a 503 just as with a 200.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn readiness(&self) -> Result<Value, ClientError> {
        let url = format!("{}/readyz?verbose", self.url);
        let transport = |cause| ClientError::Transport { url: url.clone(), cause };
        let response = self.http.get(&url).send().await.map_err(transport)?;
        let status = response.status();
        let text = response.text().await.map_err(transport)?;
        serde_json::from_str(&text).map_err(|_| ClientError::Foreign {
            url,
            status,
            text: beginning(&text),
        })
    }

    /// Downloads a path in one of the formats that it has, piece by piece, however long that takes.
    ///
    /// # Errors
    /// [`ClientError`], also when the service cuts the download short.
    pub async fn download<E: From<ClientError>>(
        &self,
        path: &str,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let url = format!("{}{path}", self.url);
        let request = self.http.get(&url);
        self.stream(url, request, take).await
    }

    /// Uploads a file to a path, and takes the answer piece by piece, also while it is still being sent.
    ///
    /// # Errors
    /// [`ClientError`], also when the service cuts the answer short.
    pub async fn upload<E: From<ClientError>>(
        &self,
        path: &str,
        media_type: &str,
        file: tokio::fs::File,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let url = format!("{}{path}", self.url);
        let request = self.http.post(&url).header(header::CONTENT_TYPE, media_type).body(file);
        self.stream(url, request, take).await
    }

    async fn stream<E: From<ClientError>>(
        &self,
        url: String,
        request: reqwest::RequestBuilder,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let transport = |cause| ClientError::Transport { url: url.clone(), cause };
        let request = request.bearer_auth(self.key.expose_secret()).timeout(DOWNLOAD_TIMEOUT);
        let mut response = request.send().await.map_err(transport)?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await.map_err(transport)?;
            let problem: Result<Problem, _> = serde_json::from_str(&text);
            let foreign = |_| ClientError::Foreign { url, status, text: beginning(&text) };
            return Err(problem.map_or_else(foreign, ClientError::Problem).into());
        }
        while let Some(piece) = response.chunk().await.map_err(transport)? {
            take(&piece)?;
        }
        Ok(())
    }

    async fn ask_with(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        idempotency_key: Option<&str>,
    ) -> Result<Value, ClientError> {
        let url = format!("{}{path}", self.url);
        let transport = |cause| ClientError::Transport { url: url.clone(), cause };
        let mut request = self.http.request(method, &url).bearer_auth(self.key.expose_secret());
        if let Some(body) = body {
            request =
                request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
        }
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let response = request.send().await.map_err(transport)?;
        let status = response.status();
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let (retry_after, key) = (header("retry-after"), header("idempotency-key"));
        let text = response.text().await.map_err(transport)?;
        let foreign = || ClientError::Foreign { url: url.clone(), status, text: beginning(&text) };
        if !status.is_success() {
            let problem: Result<Problem, _> = serde_json::from_str(&text);
            return Err(problem.map_or_else(
                |_| foreign(),
                |problem| {
                    ClientError::Problem(Problem { retry_after, idempotency_key: key, ..problem })
                },
            ));
        }
        if text.is_empty() {
            Ok(json!(null))
        } else {
            serde_json::from_str(&text).map_err(|_| foreign())
        }
    }
}

fn beginning(text: &str) -> String {
    text.chars().take(200).collect()
}

/// A part of a path, percent-encoded but for the unreserved characters. Source: RFC 3986 §2.3.
#[must_use]
pub fn encoded(part: &str) -> String {
    const RESERVED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(part, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_path_can_hold_anything() {
        assert_eq!(encoded("a-b._~1"), "a-b._~1");
        assert_eq!(encoded("a/b c%ü"), "a%2Fb%20c%25%C3%BC");
    }
}
