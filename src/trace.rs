//! Traces: what a request waited for, sent to a collector of OpenTelemetry.
//!
//! A span that nobody records is nothing at all, so a request that is not traced costs the decision and no more. Which one
//! is current goes with the task; what works for several at once, such as a batch, names the others as links. Names and
//! attributes are those of the semantic conventions. No span holds a code, a user, a key or a path: paths have codes and
//! users in them, so `url.path` is left out and `http.route` stands for it.
//!
//! Built without the feature `otel`, everything here does nothing.

#[cfg(not(feature = "otel"))]
mod off;
#[cfg(feature = "otel")]
mod otel;

#[cfg(not(feature = "otel"))]
use off as imp;
#[cfg(feature = "otel")]
use otel as imp;

pub use imp::{Export, Span, start};

use std::{fmt, future::Future};

/// Where the spans of a service go.
#[derive(Debug, Clone)]
pub struct TraceOptions {
    /// The URL that takes them.
    pub url: String,
    /// The share that is traced of what comes without a caller's decision, from 0 to 1.
    pub sample_ratio: f64,
    /// What the service is called.
    pub service_name: String,
    /// Which of its processes this is.
    pub instance: String,
    /// Most spans that wait to be sent.
    pub queue_max: usize,
    /// Longest wait for the receiver.
    pub timeout: std::time::Duration,
}

/// Why there can be no traces.
#[derive(Debug, thiserror::Error)]
#[error("traces can not be sent to trace.endpoint: {0}")]
pub struct TraceError(String);

/// The current span; nothing outside of [`within`].
#[must_use]
pub fn current() -> Span {
    imp::current()
}

/// Works on with this span as the current one.
pub async fn within<T>(span: &Span, work: impl Future<Output = T>) -> T {
    if span.is_recording() { imp::scope(span.clone(), work).await } else { work.await }
}

/// Works on with this span as the current one, which an error marks as failed.
///
/// # Errors
/// Those of the work.
pub async fn around<T, E: fmt::Debug>(
    span: Span,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let result = within(&span, work).await;
    if result.is_err() {
        // Source: the semantic conventions' word for what has no name.
        span.fail("_OTHER");
    }
    result
}

/// A part of the current span.
#[must_use]
pub fn part(name: &'static str) -> Span {
    imp::child(&current(), || name.into(), imp::Kind::Internal)
}

/// A part of the first of these that is recorded, linked to the others.
#[must_use]
pub fn part_of_all<'a>(name: &'static str, spans: impl Iterator<Item = &'a Span>) -> Span {
    let mut recorded = spans.filter(|span| span.is_recording());
    let Some(first) = recorded.next() else { return Span::default() };
    let part = imp::child(first, || name.into(), imp::Kind::Internal);
    recorded.for_each(|other| part.link(other));
    part
}

/// A call of a script in Redis.
#[must_use]
pub fn redis(script: &'static str) -> Span {
    let span = imp::child(&current(), || format!("EVALSHA {script}"), imp::Kind::Client);
    span.set("db.system.name", "redis");
    span.set("db.operation.name", "EVALSHA");
    span.set("db.stored_procedure.name", script);
    span
}

/// A statement in SQL. Its text has no values in it, and is long: what it does to which table says enough.
#[must_use]
pub fn sql(system: &'static str, text: &str) -> Span {
    let span = imp::child(&current(), || summary(text), imp::Kind::Client);
    if span.is_recording() {
        span.set("db.system.name", system);
        span.set("db.query.summary", summary(text));
        span.set(
            "db.operation.name",
            summary(text).split(' ').next().unwrap_or_default().to_owned(),
        );
    }
    span
}

/// The verb of a statement and the first table that it names.
fn summary(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let verb = words.first().copied().unwrap_or_default();
    let mut pairs = words.windows(2);
    let table = pairs.find(|pair| ["FROM", "INTO", "UPDATE"].contains(&pair[0]));
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    match table.map(|pair| pair[1].split(|c| !is_name(c)).next().unwrap_or_default()) {
        Some(table) if !table.is_empty() => format!("{verb} {table}"),
        _ => verb.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_told_by_its_verb_and_its_first_table() {
        for (text, told) in [
            ("SELECT a, b FROM invites WHERE code = $1", "SELECT invites"),
            ("INSERT INTO t (a) VALUES ($1)", "INSERT t"),
            ("UPDATE partitions SET a = $1", "UPDATE partitions"),
            ("DELETE FROM x", "DELETE x"),
            ("SELECT 1", "SELECT"),
            ("SELECT a FROM (SELECT 1)", "SELECT"),
            ("", ""),
        ] {
            assert_eq!(summary(text), told);
        }
    }
}
