//! `/console`: a page for operators, whose files are part of the program, nothing from anywhere else.
//!
//! The page answers without a key, since it is the same for everybody and a browser that opens it has none to send. It
//! asks for one, keeps it, and uses the API as everybody does. Where it is on the page stands in the fragment of its
//! address, which no browser sends.

use std::sync::LazyLock;

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use super::problem::{Code, Problem};

/// Nothing in the page itself, no other server, nobody who frames it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The files of a directory of `console/`.
macro_rules! files {
    ($directory:literal: $($name:literal)*) => {
        LazyLock::new(|| vec![$(
            File::new($name, include_bytes!(concat!("../../console/", $directory, $name)))
        ),*])
    };
}

static FILES: LazyLock<Vec<File>> = files!("":
    "index.html" "console.css" "icon.svg" "start.js" "html.js" "api.js" "ui.js" "chart.js" "signin.js" "overview.js"
    "invites.js" "invite.js" "batches.js" "live.js" "members.js" "limits.js" "webhooks.js" "audit.js" "settings.js"
);

static VENDORED: LazyLock<Vec<File>> = files!("vendor/":
    "preact.mjs" "hooks.mjs" "htm.mjs" "uplot.mjs" "uplot.css" "uqr.mjs" "licenses.txt"
);

struct File {
    name: &'static str,
    bytes: &'static [u8],
    etag: String,
}

impl File {
    fn new(name: &'static str, bytes: &'static [u8]) -> Self {
        Self { name, bytes, etag: format!("\"{}\"", HEXLOWER.encode(&Sha256::digest(bytes))) }
    }

    fn content_type(&self) -> &'static str {
        match self.name.rsplit('.').next() {
            Some("html") => "text/html; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("svg") => "image/svg+xml",
            Some("js" | "mjs") => "text/javascript; charset=utf-8",
            _ => "text/plain; charset=utf-8",
        }
    }

    /// The file, or that it is the one that the browser has. It is asked each time, since nodes of two versions may
    /// stand behind one address and their files do not go together.
    fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let known = request.headers().get(header::IF_NONE_MATCH).and_then(|it| it.to_str().ok());
        let is_known = known.is_some_and(|known| {
            known.split(',').any(|one| one.trim().trim_start_matches("W/") == self.etag)
        });
        let mut response = if is_known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
        response
            .insert_header((header::ETAG, self.etag.as_str()))
            .insert_header((header::CACHE_CONTROL, "no-cache"))
            .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
            .insert_header((header::REFERRER_POLICY, "no-referrer"))
            .insert_header(("cross-origin-opener-policy", "same-origin"))
            .insert_header(("cross-origin-resource-policy", "same-origin"));
        if is_known {
            response.finish()
        } else {
            response.content_type(self.content_type()).body(self.bytes)
        }
    }
}

fn find(
    files: &'static [File],
    name: &str,
    request: &HttpRequest,
) -> Result<HttpResponse, Problem> {
    let missing =
        || Problem::new(Code::RouteNotFound, "There is no such file; the page is at /console.");
    files.iter().find(|file| file.name == name).map(|file| file.answer(request)).ok_or_else(missing)
}

pub(super) async fn page(request: HttpRequest) -> Result<HttpResponse, Problem> {
    find(&FILES, "index.html", &request)
}

pub(super) async fn file(
    path: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    find(&FILES, &path, &request)
}

pub(super) async fn vendored(
    path: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    find(&VENDORED, &path, &request)
}

pub(super) mod docs {
    use super::Code;
    use crate::http::openapi::{Operation, Tag};

    fn shows(operation: Operation, types: &[&'static str]) -> Operation {
        operation
            .answers_text("The file.", types)
            .answers_nothing(304, "It is the one that If-None-Match names.")
            .problems(&[Code::RouteNotFound])
    }

    pub(in crate::http) fn page() -> Operation {
        let operation = Operation::new("show_console", Tag::Service, "The console");
        shows(operation.about("A page for operators, which asks for a key."), &["text/html"])
    }

    pub(in crate::http) fn file() -> Operation {
        let operation = Operation::new("show_console_file", Tag::Service, "A file of that page");
        shows(operation, &["text/html", "text/css", "text/javascript", "image/svg+xml"])
    }

    pub(in crate::http) fn vendored() -> Operation {
        let about = "A file of that page that others have written";
        let operation = Operation::new("show_console_vendored", Tag::Service, about);
        shows(operation, &["text/css", "text/javascript", "text/plain"])
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    const PLACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/console");

    #[test]
    fn every_file_of_the_console_is_part_of_the_program() {
        for (directory, files) in [("", &FILES), ("/vendor", &VENDORED)] {
            let entries = fs::read_dir(format!("{PLACE}{directory}")).unwrap().map(Result::unwrap);
            let names = entries.filter(|entry| entry.file_type().unwrap().is_file());
            let there: BTreeSet<_> =
                names.map(|entry| entry.file_name().into_string().unwrap()).collect();
            let mut known: BTreeSet<_> = files.iter().map(|file| file.name.to_owned()).collect();
            if directory == "/vendor" {
                known.insert("README.md".to_owned());
            }
            assert_eq!(there, known);
        }
    }

    #[test]
    fn what_others_have_written_is_as_its_readme_says() {
        let readme = fs::read_to_string(format!("{PLACE}/vendor/README.md")).unwrap();
        let licenses = fs::read_to_string(format!("{PLACE}/vendor/licenses.txt")).unwrap();
        for file in VENDORED.iter().filter(|file| file.name != "licenses.txt") {
            let row = format!("| `{}` | ", file.name);
            let row = readme.lines().find_map(|line| line.strip_prefix(&row)).unwrap();
            let [package, _, license, digest] = row.split(" | ").collect::<Vec<_>>()[..] else {
                panic!("{row}")
            };
            assert!(licenses.contains(&format!("==== {} ====", package.replace(' ', "-"))));
            assert!(["MIT", "Apache-2.0"].contains(&license), "{row}");
            // The one word that is another one here.
            let text = std::str::from_utf8(file.bytes).unwrap();
            let text = if file.name == "hooks.mjs" {
                text.replacen("from\"./preact.mjs\"", "from\"preact\"", 1)
            } else {
                text.to_owned()
            };
            let found = HEXLOWER.encode(&Sha256::digest(text.as_bytes()));
            assert_eq!(digest, format!("`{found}` |"), "{}", file.name);
        }
    }
}
