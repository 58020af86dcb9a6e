//! `redeemer openapi`: the document of the HTTP API, as the service serves it.

use super::output::say;

pub(super) fn run() {
    say(crate::http::openapi::text().trim_end());
}
