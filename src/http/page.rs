//! Lists: their query strings, their pages, and how to get the next one.

use std::future::{Ready, ready};

use actix_web::{FromRequest, HttpRequest, HttpResponse, dev::Payload, http::header, web};
use serde::Serialize;
use serde_json::json;

use super::{
    body::Body,
    problem::{Code, Problem},
};
use crate::domain::{InviteId, Malformed, Millis};

/// Rows of a page unless the query says otherwise.
const LIMIT: u32 = 100;
/// The most rows of a page.
pub(super) const LIMIT_MAX: u32 = 1000;

/// The query string of a list, whose parameters are taken out one by one like the fields of a body.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) parameters: Body,
    path: String,
    text: String,
}

/// Which page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) limit: u32,
    /// What the page before ended with.
    after: Option<Vec<String>>,
    path: String,
    text: String,
}

impl FromRequest for Query {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let text = request.query_string().to_owned();
        let pairs = web::Query::<Vec<(String, String)>>::from_query(&text);
        let parameters = pairs
            .map_err(|error| {
                Problem::new(
                    Code::InvalidRequest,
                    format!("The query string can not be read: {error}."),
                )
            })
            .and_then(|pairs| Body::from_pairs(&pairs));
        ready(parameters.map(|parameters| Self {
            parameters,
            path: request.path().to_owned(),
            text,
        }))
    }
}

impl Query {
    /// The page, once everything else has been taken out.
    pub(super) fn page(mut self) -> Result<Page, Problem> {
        let limit = self.parameters.optional("limit", |text| {
            let limit = text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
            limit.ok_or_else(|| Malformed(format!("limit is a whole number from 1 to {LIMIT_MAX}")))
        });
        let after = self.parameters.optional("cursor", |text| {
            decode(text).ok_or_else(|| {
                Malformed("a cursor is the next_cursor of the page before".to_owned())
            })
        });
        self.parameters.finish()?;
        Ok(Page {
            limit: limit.value().unwrap_or(LIMIT),
            after: after.value(),
            path: self.path,
            text: self.text,
        })
    }
}

impl Page {
    /// What the page before ended with, read as `read` does; nothing for the first page.
    pub(super) fn after<T>(
        &self,
        read: impl FnOnce(&[String]) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(parts) = &self.after else { return Ok(None) };
        read(parts).map(Some).ok_or_else(|| {
            Problem::new(
                Code::InvalidRequest,
                "This cursor belongs to another list. Start without one.",
            )
        })
    }

    /// The answer with these rows; `next` is what the page ended with if more follow, `as_of` how far the ledger is.
    pub(super) fn answer(
        &self,
        rows: &[impl Serialize],
        next: Option<&[&str]>,
        as_of: Option<Millis>,
    ) -> HttpResponse {
        let next = next.map(encode);
        let mut response = HttpResponse::Ok();
        if let Some(cursor) = &next {
            let kept = self
                .text
                .split('&')
                .filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="));
            let query: Vec<_> =
                kept.map(str::to_owned).chain([format!("cursor={cursor}")]).collect();
            response.insert_header((
                header::LINK,
                format!("<{}?{}>; rel=\"next\"", self.path, query.join("&")),
            ));
        }
        response.json(json!({"data": rows, "next_cursor": next, "as_of": as_of}))
    }
}

/// Two of a cursor's parts.
pub(super) fn pair(parts: &[String]) -> Option<(String, String)> {
    let [a, b] = parts else { return None };
    Some((a.clone(), b.clone()))
}

/// The parts of a cursor that names a code and an invite.
pub(super) fn code_and_id(parts: &[String]) -> Option<(String, InviteId)> {
    let [code, id] = parts else { return None };
    Some((code.clone(), id.parse().ok()?))
}

/// The one part of a cursor.
pub(super) fn single(parts: &[String]) -> Option<String> {
    let [only] = parts else { return None };
    Some(only.clone())
}

/// None of the parts can hold a control character.
fn encode(parts: &[&str]) -> String {
    data_encoding::BASE64URL_NOPAD.encode(parts.join("\n").as_bytes())
}

pub(super) fn decode(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return None;
    }
    let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
    Some(String::from_utf8(bytes).ok()?.split('\n').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text_and_nonsense_is_none() {
        assert_eq!(decode(&encode(&["a b", "ü"])).unwrap(), ["a b", "ü"]);
        for bad in ["", "*", "a", "_w"] {
            assert!(decode(bad).is_none(), "{bad:?}");
        }
    }
}
