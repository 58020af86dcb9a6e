//! What stands in the place of traces where they are not built in.

use std::future::Future;

use tokio_util::sync::CancellationToken;

use super::{TraceError, TraceOptions};

/// A span that is not there.
#[derive(Debug, Clone, Default)]
pub struct Span(());

/// What sends nothing.
#[derive(Debug)]
pub struct Export;

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Internal,
    Client,
}

/// Never called: the configuration has no endpoint.
///
/// # Errors
/// Always.
pub fn start(_: &TraceOptions) -> Result<Export, TraceError> {
    Err(TraceError("this program was built without traces".to_owned()))
}

impl Export {
    /// Ends at once.
    pub fn run(self, _: CancellationToken) -> std::future::Ready<()> {
        std::future::ready(())
    }
}

#[expect(clippy::unused_self, reason = "the other one has a self to speak of")]
impl Span {
    /// Nothing.
    #[must_use]
    pub fn server<'a>(_: &str, _: &str, _: impl Fn(&str) -> Option<&'a str>) -> Self {
        Self(())
    }

    /// Nothing.
    #[must_use]
    pub fn call_out(_: &'static str) -> Self {
        Self(())
    }

    /// Never.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        false
    }

    /// Does nothing.
    pub fn set<V>(&self, _: &'static str, _: V) {}

    /// Does nothing.
    pub fn event(&self, _: &'static str) {}

    /// Does nothing.
    pub fn fail<V>(&self, _: V) {}

    /// Nothing.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        None
    }

    pub(super) fn link(&self, _: &Self) {}
}

pub(super) fn current() -> Span {
    Span(())
}

pub(super) fn child(_: &Span, _: impl FnOnce() -> String, _: Kind) -> Span {
    Span(())
}

pub(super) async fn scope<T>(_: Span, work: impl Future<Output = T>) -> T {
    work.await
}
