//! Calls to receivers that somebody else has named, which must not become calls to what only this machine can reach.
//!
//! The name of a receiver is resolved once for each connection, every address that comes back is looked at, and the
//! connection goes to one of just those. So a name that changes its mind between the look and the call gains nothing.
//! No redirect is followed, no proxy of the environment is used, and nothing of an answer but its status is kept.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{CONTENT_TYPE, HeaderMap},
    redirect::Policy,
};

use crate::{
    domain::{Malformed, webhook},
    sync::chain,
    trace::{self, Span},
};

/// So much of an answer is read, so that its connection can be used again.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Longest wait for the addresses of a name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(4);

/// Makes calls. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbound {
    http: reqwest::Client,
    allow_private: bool,
}

/// Why nobody is called there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// It leads to what may not be called.
    #[error("{host} is {address}, which is no address of the public internet")]
    Private {
        /// The name.
        host: String,
        /// What it stands for.
        address: IpAddr,
    },
    /// It leads nowhere.
    #[error("{0} can not be resolved")]
    Unknown(String),
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Called {
    /// It was answered with this status.
    Answered(u16),
    /// It was not, and why.
    Failed(String),
}

impl Outbound {
    /// Calls that last no longer than `timeout`; with `allow_private` also to private addresses, and without TLS.
    ///
    /// # Errors
    /// When the system can not give what is needed.
    pub fn new(timeout: Duration, allow_private: bool) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .timeout(timeout)
            .redirect(Policy::none())
            .no_proxy()
            .https_only(!allow_private)
            .user_agent(concat!("redeemer/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Resolver { allow_private })
            .build()?;
        Ok(Self { http, allow_private })
    }

    /// Reads the URL of a receiver.
    ///
    /// # Errors
    /// [`Malformed`] when nobody is called at such a URL.
    pub fn parse(&self, text: &str) -> Result<Url, Malformed> {
        let malformed = |what: &str| Malformed(what.to_owned());
        if text.len() > webhook::URL_BYTES_MAX {
            return Err(Malformed(format!("a URL has at most {} bytes", webhook::URL_BYTES_MAX)));
        }
        let url: Url = text.parse().map_err(|_| malformed("must be a URL"))?;
        match url.scheme() {
            "https" => {}
            "http" if self.allow_private => {}
            "http" => {
                return Err(malformed("must be https (webhooks.allow_private allows http too)"));
            }
            _ => return Err(malformed("must be https")),
        }
        if url.host().is_none() || !url.username().is_empty() || url.password().is_some() {
            return Err(malformed("must name a host, and no user or password"));
        }
        if url.fragment().is_some() {
            return Err(malformed("must have no fragment"));
        }
        Ok(url)
    }

    /// Whether a receiver may be called, as far as can be said now: it is looked at again for each connection.
    ///
    /// # Errors
    /// [`Forbidden`] when it may not.
    pub async fn check(&self, url: &Url) -> Result<(), Forbidden> {
        let host = url.host_str().unwrap_or_default();
        match literal(host) {
            Some(address) => self.check_address(host, address),
            None => resolve(host, self.allow_private).await.map(drop),
        }
    }

    /// Sends JSON to a receiver, with the `traceparent` of this call if it is traced.
    pub async fn post(&self, url: &str, mut headers: HeaderMap, body: String) -> Called {
        let span = Span::call_out("POST");
        span.set("http.request.method", "POST");
        if let Some(value) = span.traceparent().and_then(|text| text.parse().ok()) {
            headers.insert("traceparent", value);
        }
        let called = trace::within(&span, self.send(url, headers, body, &span)).await;
        match &called {
            Called::Answered(status) => {
                span.set("http.response.status_code", i64::from(*status));
                if *status >= 400 {
                    span.fail(status.to_string());
                }
            }
            Called::Failed(_) => span.fail("no_answer"),
        }
        called
    }

    async fn send(&self, url: &str, headers: HeaderMap, body: String, span: &Span) -> Called {
        let url = match self.parse(url) {
            Ok(url) => url,
            Err(error) => return Called::Failed(error.0),
        };
        // An address that stands in the URL itself is never resolved.
        let host = url.host_str().unwrap_or_default();
        // And no `url.full`: it may hold what only the receiver should know.
        span.set("server.address", host.to_owned());
        span.set("server.port", i64::from(url.port_or_known_default().unwrap_or_default()));
        if let Some(address) = literal(host)
            && let Err(error) = self.check_address(host, address)
        {
            return Called::Failed(error.to_string());
        }
        let request = self.http.post(url).headers(headers);
        let request = request.header(CONTENT_TYPE, "application/json").body(body);
        match request.send().await {
            Ok(mut response) => {
                let status = response.status().as_u16();
                let mut read = 0;
                while read < ANSWER_BYTES_MAX
                    && let Ok(Some(piece)) = response.chunk().await
                {
                    read += piece.len();
                }
                Called::Answered(status)
            }
            Err(error) if error.is_timeout() => Called::Failed("no answer in time".to_owned()),
            // The URL may hold what only the receiver should know.
            Err(error) => Called::Failed(chain(&error.without_url())),
        }
    }

    fn check_address(&self, host: &str, address: IpAddr) -> Result<(), Forbidden> {
        if self.allow_private || webhook::is_public(address) {
            Ok(())
        } else {
            Err(Forbidden::Private { host: host.to_owned(), address })
        }
    }
}

/// The address that a host is, if it is one.
fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// All addresses of a name, if all of them may be called.
async fn resolve(host: &str, allow_private: bool) -> Result<Vec<SocketAddr>, Forbidden> {
    let unknown = || Forbidden::Unknown(host.to_owned());
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, 0))).await;
    let found: Vec<_> = found.map_err(|_| unknown())?.map_err(|_| unknown())?.collect();
    if found.is_empty() {
        return Err(unknown());
    }
    let private = found.iter().find(|address| !webhook::is_public(address.ip()));
    match private.filter(|_| !allow_private) {
        Some(address) => Err(Forbidden::Private { host: host.to_owned(), address: address.ip() }),
        None => Ok(found),
    }
}

struct Resolver {
    allow_private: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found = resolve(name.as_str(), allow_private).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbound(allow_private: bool) -> Outbound {
        drop(rustls::crypto::ring::default_provider().install_default());
        Outbound::new(Duration::from_secs(1), allow_private).unwrap()
    }

    #[test]
    fn a_receiver_is_named_by_an_https_url_without_secrets() {
        let strict = outbound(false);
        assert!(strict.parse("https://example.com/hook?a=b").is_ok());
        for bad in [
            "",
            "example.com",
            "http://example.com",
            "ftp://example.com",
            "https://user:hush@example.com",
            "https://example.com/#part",
            &format!("https://example.com/{}", "x".repeat(2048)),
        ] {
            assert!(strict.parse(bad).is_err(), "{bad:?}");
        }
        assert!(outbound(true).parse("http://example.com").is_ok());
    }

    #[tokio::test]
    async fn no_spelling_of_a_private_address_is_called() {
        let strict = outbound(false);
        for url in [
            "https://127.0.0.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f.0.0.1/",
            "https://0177.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://169.254.169.254/latest/meta-data",
            "https://localhost/",
        ] {
            let parsed = strict.parse(url).unwrap();
            let error = strict.check(&parsed).await.unwrap_err();
            assert!(matches!(error, Forbidden::Private { .. }), "{url}: {error}");
            let Called::Failed(why) = strict.post(url, HeaderMap::new(), String::new()).await
            else {
                panic!("{url} was called");
            };
            assert!(why.contains("no address of the public internet"), "{url}: {why}");
        }
    }
}
