//! `/openapi.json`, and Swagger UI at `/docs`: files that are part of the program, nothing from anywhere else.
//!
//! Both answer without a key: what they show is the same for everybody and stands in the repository, and a browser that
//! opens a page has no key to send. Whoever tries a request there gives the page a key, which it keeps in its memory.

use std::sync::{Arc, LazyLock};

use actix_web::{HttpResponse, http::header, web};

use super::{
    openapi,
    problem::{Code, Problem},
};

static DOCUMENT: LazyLock<web::Bytes> = LazyLock::new(|| openapi::text().into());

/// The page loads these two scripts and one sheet, and asks this service alone; nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Swagger UI's own page names its files relative to a path that ends in a slash; this one is at `/docs`.
const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>redeemer</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"#;

/// No validator, which would be somebody else's server; no key is kept once the page is closed.
const START: &str = r##"SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayOperationId: true,
  docExpansion: "none",
  validatorUrl: null,
  persistAuthorization: false,
});
"##;

/// Of Swagger UI's files, those that the page loads.
const FILES: [&str; 3] = ["swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"];

pub(super) async fn document() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(DOCUMENT.clone())
}

pub(super) async fn page() -> HttpResponse {
    guarded("text/html; charset=utf-8", PAGE.into())
}

pub(super) async fn file(path: web::Path<String>) -> Result<HttpResponse, Problem> {
    if *path == "start.js" {
        return Ok(guarded("text/javascript; charset=utf-8", START.into()));
    }
    let missing =
        || Problem::new(Code::RouteNotFound, "There is no such file; the page is at /docs.");
    let name = FILES.into_iter().find(|file| *file == *path).ok_or_else(missing)?;
    let config = Arc::new(utoipa_swagger_ui::Config::from("/openapi.json"));
    let file = utoipa_swagger_ui::serve(name, config)
        .map_err(|error| Problem::unexpected(&format!("{name} of Swagger UI: {error}")))?
        .ok_or_else(|| Problem::unexpected(&format!("{name} of Swagger UI is missing")))?;
    Ok(guarded(&file.content_type, file.bytes.into_owned().into()))
}

fn guarded(content_type: &str, bytes: web::Bytes) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(content_type)
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header(("cross-origin-opener-policy", "same-origin"))
        .insert_header(("cross-origin-resource-policy", "same-origin"))
        .body(bytes)
}

pub(super) mod docs {
    use super::Code;
    use crate::http::openapi::{Operation, Tag};

    pub(in crate::http) fn document() -> Operation {
        Operation::new("show_document", Tag::Service, "This document").answers_any("OpenAPI 3.1.")
    }

    pub(in crate::http) fn page() -> Operation {
        Operation::new("show_manual", Tag::Service, "This document for people")
            .answers_text("Swagger UI.", &["text/html"])
    }

    pub(in crate::http) fn file() -> Operation {
        Operation::new("show_manual_file", Tag::Service, "A file of that page")
            .answers_text("The file.", &["text/css", "text/javascript", "image/png"])
            .problems(&[Code::RouteNotFound])
    }
}
