//! Traces by OpenTelemetry: what is recorded waits in a queue, and one task sends it.

use std::{future::Future, sync::OnceLock, time::Duration};

use opentelemetry::{
    Context, KeyValue, Value,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::{SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter as _, SpanProcessor},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{TraceError, TraceOptions};
use crate::sync::chain;

/// Most spans that are sent at once, and how long they gather.
const BATCH_MAX: usize = 512;
const GATHER: Duration = Duration::from_millis(500);

/// What makes spans. There is one, as there is one log; nothing until the service is to be traced.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

tokio::task_local! {
    static CURRENT: Span;
}

/// A span that is being recorded, or nothing. It ends with the last of its clones.
#[derive(Debug, Clone, Default)]
pub struct Span(Option<Context>);

pub(super) enum Kind {
    Internal,
    Client,
}

impl From<Kind> for SpanKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Internal => Self::Internal,
            Kind::Client => Self::Client,
        }
    }
}

impl Span {
    /// A request that came in, with whatever its `traceparent` says.
    #[must_use]
    pub fn server<'a>(method: &str, route: &str, header: impl Fn(&str) -> Option<&'a str>) -> Self {
        let Some(tracer) = TRACER.get() else { return Self::default() };
        let caller =
            Caller { traceparent: header("traceparent"), tracestate: header("tracestate") };
        let caller = TraceContextPropagator::new().extract_with_context(&Context::new(), &caller);
        Self::start(tracer, &caller, || format!("{method} {route}"), SpanKind::Server)
    }

    /// A call to somebody else that no request waits for: a trace of its own.
    #[must_use]
    pub fn call_out(method: &'static str) -> Self {
        let Some(tracer) = TRACER.get() else { return Self::default() };
        Self::start(tracer, &Context::new(), || method.to_owned(), SpanKind::Client)
    }

    /// What nobody records is nothing.
    fn start(
        tracer: &SdkTracer,
        parent: &Context,
        name: impl FnOnce() -> String,
        kind: SpanKind,
    ) -> Self {
        let span = tracer.span_builder("").with_kind(kind).start_with_context(tracer, parent);
        let context = parent.with_span(span);
        if !context.span().is_recording() {
            return Self::default();
        }
        context.span().update_name(name());
        Self(Some(context))
    }

    /// Whether anything is kept of it.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.0.is_some()
    }

    /// Says something about it.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// Says that something has happened now.
    pub fn event(&self, name: &'static str) {
        if let Some(context) = &self.0 {
            context.span().add_event(name, Vec::new());
        }
    }

    /// Says that it failed, and in which of few ways. Never with the words of an error: those may hold anything.
    pub fn fail(&self, kind: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new("error.type", kind));
            context.span().set_status(Status::error(""));
        }
    }

    /// What tells a callee that it is part of this.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        let mut header = Header(None);
        TraceContextPropagator::new().inject_context(self.0.as_ref()?, &mut header);
        header.0
    }

    pub(super) fn link(&self, other: &Self) {
        if let (Some(context), Some(other)) = (&self.0, &other.0) {
            context.span().add_link(other.span().span_context().clone(), Vec::new());
        }
    }
}

pub(super) fn current() -> Span {
    CURRENT.try_with(Clone::clone).unwrap_or_default()
}

pub(super) fn child(parent: &Span, name: impl FnOnce() -> String, kind: Kind) -> Span {
    match (&parent.0, TRACER.get()) {
        (Some(parent), Some(tracer)) => Span::start(tracer, parent, name, kind.into()),
        _ => Span::default(),
    }
}

pub(super) async fn scope<T>(span: Span, work: impl Future<Output = T>) -> T {
    CURRENT.scope(span, work).await
}

/// What a caller says of its own span.
struct Caller<'a> {
    traceparent: Option<&'a str>,
    tracestate: Option<&'a str>,
}

impl Extractor for Caller<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.traceparent,
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// The one header that goes out. `tracestate` stays here: it may hold what a caller did not mean for receivers.
struct Header(Option<String>);

impl Injector for Header {
    fn set(&mut self, key: &str, value: String) {
        if key == "traceparent" {
            self.0 = Some(value);
        }
    }
}

/// The entrance of the queue: never waits, or a collector that is slow would slow the service down.
#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: metrics::Counter,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.dropped.increment(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends what is recorded.
#[derive(Debug)]
pub struct Export {
    spans: mpsc::Receiver<SpanData>,
    exporter: SpanExporter,
    /// Whether the last batch was taken.
    could: bool,
}

/// Begins to record. What is recorded waits until [`Export::run`].
///
/// # Errors
/// When nothing can be sent there.
pub fn start(options: &TraceOptions) -> Result<Export, TraceError> {
    let failed = |error: &(dyn std::error::Error + 'static)| TraceError(chain(error));
    let http = reqwest::Client::builder()
        .timeout(options.timeout)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| failed(&error))?;
    let resource = Resource::builder()
        .with_service_name(options.service_name.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", options.instance.clone()))
        .build();
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(http)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&options.url)
        .with_timeout(options.timeout)
        .build()
        .map_err(|error| failed(&error))?;
    exporter.set_resource(&resource);
    let (sender, spans) = mpsc::channel(options.queue_max);
    // What may grow from nothing is there before.
    for result in ["sent", "failed", "dropped"] {
        counter(result).increment(0);
    }
    let queue = Queue { spans: sender, dropped: counter("dropped") };
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(options.sample_ratio)));
    let provider = SdkTracerProvider::builder()
        .with_span_processor(queue)
        .with_sampler(sampler)
        .with_resource(resource)
        .build();
    // The provider lives on in its tracer.
    let tracer = provider.tracer("redeemer");
    TRACER.set(tracer).map_err(|_| TraceError("there is one service in a process".to_owned()))?;
    Ok(Export { spans, exporter, could: true })
}

fn counter(result: &'static str) -> metrics::Counter {
    metrics::counter!("redeemer_trace_spans_total", "result" => result)
}

impl Export {
    /// Sends what comes until `stop`, then what is left.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some(batch) = stop.run_until_cancelled(self.next()).await {
            self.send(batch).await;
        }
        self.spans.close();
        let mut left = Vec::new();
        while self.spans.recv_many(&mut left, BATCH_MAX).await > 0 {
            self.send(std::mem::take(&mut left)).await;
        }
    }

    /// What is to be sent next. Dropped while it waits, it has taken nothing.
    async fn next(&mut self) -> Vec<SpanData> {
        loop {
            if self.spans.len() >= BATCH_MAX {
                break;
            }
            tokio::time::sleep(GATHER).await;
            if !self.spans.is_empty() {
                break;
            }
        }
        let mut batch = Vec::new();
        while batch.len() < BATCH_MAX
            && let Ok(span) = self.spans.try_recv()
        {
            batch.push(span);
        }
        batch
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let sent = self.exporter.export(batch).await;
        counter(if sent.is_ok() { "sent" } else { "failed" }).increment(count);
        // Once, and not with each batch.
        if let Err(error) = &sent
            && self.could
        {
            tracing::warn!(
                error = chain(error),
                "spans can not be sent; they are dropped until they can"
            );
        }
        self.could = sent.is_ok();
    }
}
