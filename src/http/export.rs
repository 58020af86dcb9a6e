//! `GET …/export/{redemptions,invites,members}`: everything that the ledger has of a namespace, as CSV or NDJSON, a page
//! at a time whatever the size. Rows have the fields of the API; a cursor of the list of the same name goes on behind a
//! row, so that what was cut can be taken up again.

use std::{collections::HashMap, io};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, header::HeaderName},
    web,
};
use futures_util::stream;
use serde_json::Value;

use super::{
    State,
    batches::Format,
    invites, members,
    page::{self, Query},
    problem::{Code, Problem},
    redemptions,
    scope::Scope,
};
use crate::{
    domain::{Cursor, Durability, InviteId, Malformed, Namespace},
    ledger::{InviteFilter, LedgerError, MemberFilter, RedemptionFilter},
};

/// Rows that are read from the ledger at once.
const PAGE: u32 = 1000;
/// How far the ledger was when the download began.
const AS_OF: HeaderName = HeaderName::from_static("x-as-of");

/// Where a download is.
enum Place {
    Redemptions(HashMap<Namespace, Cursor>),
    Invites(Option<(String, InviteId)>),
    Members(Option<(String, String)>),
    End,
}

impl Place {
    /// The columns of its CSV: fields of the API.
    fn columns(&self) -> &'static [&'static str] {
        match self {
            Self::Redemptions(_) => &[
                "id",
                "invite",
                "code",
                "group",
                "user",
                "use",
                "remaining",
                "redeemed_at",
                "position",
                "metadata",
                "rolled_back_at",
                "rollback_reason",
            ],
            Self::Invites(_) => &[
                "id",
                "code",
                "group",
                "max_uses",
                "uses",
                "held",
                "state",
                "starts_at",
                "expires_at",
                "user",
                "email_domains",
                "metadata",
                "batch",
                "campaign",
                "revision",
                "created_at",
                "updated_at",
            ],
            Self::Members(_) => &["user", "group", "redemption", "joined_at"],
            Self::End => &[],
        }
    }
}

/// A download under way.
struct Download {
    state: web::Data<State>,
    request_id: String,
    /// What the namespace consists of.
    parts: Vec<Namespace>,
    format: Format,
    /// Whether cells that a spreadsheet would take for formulas are quoted.
    for_spreadsheet: bool,
    columns: &'static [&'static str],
    place: Place,
    is_first: bool,
}

pub(super) async fn redemptions(
    state: web::Data<State>,
    scope: Scope,
    http: HttpRequest,
    query: Query,
) -> Result<HttpResponse, Problem> {
    let read = |parts: &[Namespace], lines: &[String]| {
        Some(Place::Redemptions(redemptions::places(parts, lines)?))
    };
    start(state, scope, &http, query, read).await
}

pub(super) async fn invites(
    state: web::Data<State>,
    scope: Scope,
    http: HttpRequest,
    query: Query,
) -> Result<HttpResponse, Problem> {
    start(state, scope, &http, query, |_, lines| Some(Place::Invites(page::code_and_id(lines))))
        .await
}

pub(super) async fn members(
    state: web::Data<State>,
    scope: Scope,
    http: HttpRequest,
    query: Query,
) -> Result<HttpResponse, Problem> {
    start(state, scope, &http, query, |_, lines| Some(Place::Members(page::pair(lines)))).await
}

async fn start(
    state: web::Data<State>,
    scope: Scope,
    http: &HttpRequest,
    mut query: Query,
    place: impl Fn(&[Namespace], &[String]) -> Option<Place>,
) -> Result<HttpResponse, Problem> {
    let asked = query.parameters.optional("format", Format::parse).value();
    let for_spreadsheet = query.parameters.optional("spreadsheet", |text| match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Malformed("spreadsheet is true or false".to_owned())),
    });
    let parts = state.ledger.parts(&scope.namespace).await?;
    let begin = query.parameters.optional("cursor", |text| {
        let lines = page::decode(text);
        let begin = lines.and_then(|lines| place(&parts, &lines)).filter(Place::is_known);
        begin.ok_or_else(|| Malformed("a cursor is one of the list of the same name".to_owned()))
    });
    query.parameters.finish()?;
    let format = asked.or_else(|| Format::accepted(http)).ok_or_else(Format::not_acceptable)?;
    if state.ledger.namespace(&scope.namespace).await?.is_none()
        && state.gate.settings(&scope.namespace).await?.is_none()
    {
        return Err(Problem::new(Code::NamespaceNotFound, "There is no such namespace."));
    }
    let as_of = state.as_of(&parts).await?;
    let begin = begin.value();
    let is_first = begin.is_none();
    let place = begin.or_else(|| place(&parts, &[])).unwrap_or(Place::End);
    let mut response = HttpResponse::Ok();
    response.content_type(format.content_type());
    if let Some(as_of) = as_of {
        response.insert_header((AS_OF, as_of.to_string()));
    }
    if http.method() == Method::HEAD {
        return Ok(response.finish());
    }
    let download = Download {
        state,
        request_id: scope.caller.1,
        parts,
        format,
        for_spreadsheet: for_spreadsheet.value().unwrap_or_default(),
        columns: place.columns(),
        place,
        is_first,
    };
    // Where a page can not be read the connection is cut, so that nobody takes a part for the whole.
    Ok(response.streaming(stream::try_unfold(download, Download::next)))
}

impl Place {
    /// Whether it is behind a row.
    fn is_known(&self) -> bool {
        match self {
            Self::Redemptions(places) => !places.is_empty(),
            Self::Invites(place) => place.is_some(),
            Self::Members(place) => place.is_some(),
            Self::End => false,
        }
    }
}

impl Download {
    async fn next(mut self) -> Result<Option<(web::Bytes, Self)>, io::Error> {
        let place = std::mem::replace(&mut self.place, Place::End);
        let Some(rows) = self.page(place).await.map_err(|error| {
            let request_id = &self.request_id;
            tracing::warn!(request_id, cause = error.cause(), "a download was cut");
            io::Error::other(error.to_string())
        })?
        else {
            return Ok(None);
        };
        let bytes = match self.format {
            Format::Csv => self.csv(&rows)?,
            Format::Ndjson => {
                let lines = rows.iter().map(|row| format!("{row}\n"));
                lines.collect::<String>().into_bytes()
            }
        };
        self.is_first = false;
        Ok(Some((bytes.into(), self)))
    }

    async fn page(&mut self, place: Place) -> Result<Option<Vec<Value>>, Problem> {
        let ledger = &self.state.ledger;
        let broken = |error: serde_json::Error| Problem::internal("writing a row", &error);
        let unread = |error: LedgerError| Problem::from(error);
        Ok(Some(match place {
            Place::End => return Ok(None),
            Place::Redemptions(before) => {
                let all = |part: &Namespace| (part.clone(), RedemptionFilter::default());
                let parts: Vec<_> = self.parts.iter().map(all).collect();
                let page = ledger.redemptions_of(&parts, &before, PAGE).await.map_err(unread)?;
                if let Some(next) = page.next {
                    self.place = Place::Redemptions(next);
                }
                let view = |row: crate::ledger::RedemptionRecord| {
                    let view = redemptions::View::new(&row.redemption, false, Durability::Ledger);
                    let view = view.rolled_back(row.rolled_back_at, row.rollback_reason);
                    serde_json::to_value(view.with_metadata(row.metadata)?).map_err(broken)
                };
                page.rows.into_iter().map(view).collect::<Result<_, Problem>>()?
            }
            Place::Invites(after) => {
                let (filter, now) = (InviteFilter::default(), crate::ids::now());
                let home = &self.parts[0];
                let page = ledger.invites(home, &filter, now, after.as_ref(), PAGE).await;
                let page = page.map_err(unread)?;
                let rows = invites::with_shards(&self.state, home, page.rows).await?;
                if let Some(next) = page.next {
                    self.place = Place::Invites(Some(next));
                }
                let view =
                    |invite| serde_json::to_value(invites::View::new(invite)?).map_err(broken);
                rows.iter().map(view).collect::<Result<_, Problem>>()?
            }
            Place::Members(after) => {
                let filter = MemberFilter::default();
                let page = ledger.members_of(&self.parts, &filter, after.as_ref(), PAGE).await;
                let page = page.map_err(unread)?;
                if let Some(next) = page.next {
                    self.place = Place::Members(Some(next));
                }
                let view = |member| {
                    serde_json::to_value(members::View::new(member, false)).map_err(broken)
                };
                page.rows.iter().map(view).collect::<Result<_, Problem>>()?
            }
        }))
    }

    fn csv(&self, rows: &[Value]) -> Result<Vec<u8>, csv::Error> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        if self.is_first {
            writer.write_record(self.columns)?;
        }
        for row in rows {
            let cells = self.columns.iter().map(|column| cell(&row[*column], self.for_spreadsheet));
            writer.write_record(cells)?;
        }
        writer.into_inner().map_err(|error| csv::Error::from(error.into_error()))
    }
}

/// A value as a cell: text as it is, nothing for null and for an empty list, lists with commas, objects as JSON.
fn cell(value: &Value, for_spreadsheet: bool) -> String {
    let text = match value {
        Value::Null => return String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        other => return other.to_string(),
    };
    // Source: OWASP, "CSV Injection". What begins so is run when somebody opens the file.
    if for_spreadsheet && text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        format!("'{text}")
    } else {
        text
    }
}

pub(super) mod docs {
    use crate::http::{
        openapi::{GATE, LEDGER, Operation, Tag, flag, reference},
        problem::Code,
    };

    fn export(id: &'static str, summary: &'static str) -> Operation {
        let formats = serde_json::json!({"type": "string", "enum": ["csv", "ndjson"]});
        Operation::new(id, Tag::Exports, summary)
            .about("Streamed, as far as the ledger has it; if it can not be finished, the connection is cut.")
            .query("format", formats, "Instead of the header Accept.")
            .query("spreadsheet", flag(), "Put ' before what a spreadsheet would take for a formula.")
            .query("cursor", reference("Cursor"), "Go on behind a row, without the line of column names.")
            .answers_text("One row on each line.", &["text/csv", "application/x-ndjson"])
            .problems(&[Code::NamespaceNotFound, Code::NotAcceptable])
            .problems(GATE)
            .problems(LEDGER)
    }

    pub(in crate::http) fn redemptions() -> Operation {
        export("export_redemptions", "All redemptions, the newest first")
    }

    pub(in crate::http) fn invites() -> Operation {
        export("export_invites", "All invites, by code")
    }

    pub(in crate::http) fn members() -> Operation {
        export("export_members", "All members, by user")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cell_is_exact_unless_it_is_for_a_spreadsheet() {
        for (value, exact, guarded) in [
            (json!(null), "", ""),
            (json!(5), "5", "5"),
            (json!("=1+1"), "=1+1", "'=1+1"),
            (json!("@alice"), "@alice", "'@alice"),
            (json!("alice=1"), "alice=1", "alice=1"),
            (json!(["a.example", "b.example"]), "a.example,b.example", "a.example,b.example"),
            (json!({"a": 1}), "{\"a\":1}", "{\"a\":1}"),
        ] {
            assert_eq!(cell(&value, false), exact);
            assert_eq!(cell(&value, true), guarded);
        }
    }
}
