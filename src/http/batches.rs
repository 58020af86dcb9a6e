//! Codes in bulk: `POST …/batches` orders them (202) and a node makes them, `GET …/batches/{id}` says how far that is,
//! `GET …/batches/{id}/codes` downloads them as CSV or NDJSON, as far as the ledger has them.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use futures_util::stream;
use serde::Serialize;
use serde_json::{json, value::RawValue};
use utoipa::ToSchema;

use super::{
    State,
    body::{Body, Presence, stored_metadata},
    campaigns,
    guard::IdempotencyKey,
    invites::{email_domains, key_reused, with_shards},
    page::Query,
    problem::{Code, Problem},
    redemptions::settings_of,
    scope::Scope,
};
use crate::{
    domain::{
        Alphabet, Batch, BatchId, BatchOrder, BatchState, CampaignName, CodeCase, EmailDomain,
        Group, Invite, InviteId, Malformed, Millis, Namespace, Pattern, Settings,
        invite::{MAX_USES_MAX, Shown},
        pattern::{COUNT_MAX, SHARE_MIN},
    },
    gate::show_campaign::ShowCampaign,
    ledger::{InviteFilter, LedgerError},
};

/// Codes that are read from the ledger at once.
const PAGE: u32 = 1000;

/// A batch as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Batch)]
struct View<'a> {
    id: BatchId,
    namespace: &'a Namespace,
    #[schema(value_type = BatchState)]
    state: &'static str,
    /// Why it failed.
    #[schema(required)]
    reason: Option<&'a str>,
    #[schema(minimum = 1)]
    count: u64,
    /// So many are in gate and ledger.
    done: u64,
    pattern: &'a str,
    #[schema(value_type = Alphabet)]
    alphabet: &'static str,
    group: &'a Group,
    /// Of each; null means without limit.
    #[schema(required, minimum = 1)]
    max_uses: Option<u64>,
    #[schema(required, minimum = 1)]
    max_uses_per_user: Option<u64>,
    #[schema(required)]
    campaign: Option<&'a CampaignName>,
    #[schema(required)]
    starts_at: Option<Millis>,
    #[schema(required)]
    expires_at: Option<Millis>,
    #[schema(max_items = 32)]
    email_domains: &'a [EmailDomain],
    #[schema(required, value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    /// The API key that ordered it.
    created_by: &'a str,
    created_at: Millis,
    #[schema(required)]
    started_at: Option<Millis>,
    #[schema(required)]
    finished_at: Option<Millis>,
}

impl<'a> View<'a> {
    fn new(batch: &'a Batch) -> Result<Self, Problem> {
        let order = &batch.order;
        Ok(Self {
            id: order.id,
            namespace: &order.namespace,
            state: batch.state.as_str(),
            reason: batch.reason.as_deref(),
            count: order.count,
            done: batch.done,
            pattern: order.pattern.as_str(),
            alphabet: order.alphabet.as_str(),
            group: &order.group,
            max_uses: order.max_uses,
            max_uses_per_user: order.max_uses_per_user,
            campaign: order.campaign.as_ref(),
            starts_at: order.starts_at,
            expires_at: order.expires_at,
            email_domains: &order.email_domains,
            metadata: stored_metadata(order.metadata.clone())?,
            created_by: &order.actor,
            created_at: batch.created_at,
            started_at: batch.started_at,
            finished_at: batch.finished_at,
        })
    }
}

fn missing() -> Problem {
    Problem::new(Code::BatchNotFound, "No batch of this namespace has this id.")
}

async fn find(state: &State, scope: &Scope, id: &str) -> Result<Batch, Problem> {
    let id: BatchId = id.parse().map_err(|_| missing())?;
    state.ledger.batch(&scope.namespace, id).await?.ok_or_else(missing)
}

pub(super) async fn create(
    state: web::Data<State>,
    scope: Scope,
    request: IdempotencyKey,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    let settings = settings_of(&state, &scope.namespace).await?;
    let count = body.count("count", COUNT_MAX);
    if matches!(count, Presence::Absent | Presence::Null) {
        body.wrong("count", Code::InvalidRequest, "is needed");
    }
    let count = count.value();
    let alphabet = body.optional("alphabet", Alphabet::parse).value().unwrap_or_default();
    let pattern = body.required("pattern", Pattern::parse);
    if let (Some(count), Some(pattern)) = (count, &pattern)
        && let Err(error) = fits(pattern, alphabet, count, &settings)
    {
        body.wrong("pattern", Code::InvalidRequest, &error.0);
    }
    let group = body.required("group", Group::parse);
    let max_uses = body.count("max_uses", MAX_USES_MAX);
    if max_uses == Presence::Absent {
        body.wrong("max_uses", Code::InvalidRequest, "is needed; null means without limit");
    }
    let max_uses_per_user = body.count("max_uses_per_user", MAX_USES_MAX).value();
    let campaign = body.optional("campaign", CampaignName::parse).value();
    let (starts_at, expires_at) = (body.time("starts_at").value(), body.time("expires_at").value());
    let email_domains = email_domains(&mut body).unwrap_or_default();
    let metadata = body.metadata().value();
    if let (Some(start), Some(end)) = (starts_at, expires_at)
        && end <= start
    {
        body.wrong("expires_at", Code::InvalidRequest, "must lie after starts_at");
    }
    body.finish()?;
    let (Some(count), Some(pattern), Some(group), Some(max_uses)) =
        (count, pattern, group, max_uses.patch())
    else {
        return Err(body.problem());
    };
    let actor = scope.caller.actor();
    let order = BatchOrder {
        id: crate::ids::batch(&scope.namespace, &actor, request.0.as_ref()),
        namespace: scope.namespace,
        count,
        pattern,
        alphabet,
        group,
        max_uses,
        max_uses_per_user,
        campaign,
        starts_at,
        expires_at,
        email_domains,
        metadata,
        actor,
    };
    if let Some(name) = &order.campaign {
        let question = ShowCampaign { namespace: order.namespace.clone(), name: name.clone() };
        question.run(&state.gate).await?.ok_or_else(campaigns::missing)?;
    }
    state.ledger.insert_batch(&order, crate::ids::secret(), &scope.caller.by()).await?;
    let batch = state.ledger.batch(&order.namespace, order.id).await?.ok_or_else(missing)?;
    if batch.order != order {
        return Err(key_reused("batch"));
    }
    state.ordered.notify_one();
    let location = format!("/v1/namespaces/{}/batches/{}", order.namespace, order.id);
    Ok(HttpResponse::Accepted()
        .insert_header((header::LOCATION, location))
        .json(View::new(&batch)?))
}

/// Whether so many codes of a pattern can be made that nobody guesses.
fn fits(
    pattern: &Pattern,
    alphabet: Alphabet,
    count: u64,
    settings: &Settings,
) -> Result<(), Malformed> {
    if settings.code_check && !pattern.has_check() {
        return Err(Malformed(
            "must end with *: codes of this namespace end in a check character".to_owned(),
        ));
    }
    let space = pattern.space(alphabet);
    let needed = u128::from(count) * SHARE_MIN;
    if space < needed {
        return Err(Malformed(format!(
            "makes {space} different codes, so that {count} of them could be guessed; add # until there are \
             {needed} ({SHARE_MIN} for each), or order fewer"
        )));
    }
    Ok(())
}

pub(super) async fn show(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(View::new(&find(&state, &scope, &path.1).await?)?))
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Csv,
    Ndjson,
}

impl Format {
    pub(super) fn parse(text: &str) -> Result<Self, Malformed> {
        match text {
            "csv" => Ok(Self::Csv),
            "ndjson" => Ok(Self::Ndjson),
            _ => Err(Malformed("format is csv or ndjson".to_owned())),
        }
    }

    /// The first of the media types that a client accepts and that there is. Source: RFC 9110 §12.5.1, without weights.
    pub(super) fn accepted(http: &HttpRequest) -> Option<Self> {
        let ranges: Vec<_> = http
            .headers()
            .get_all(header::ACCEPT)
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|range| range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
            .collect();
        if ranges.is_empty() {
            return Some(Self::Csv);
        }
        ranges.iter().find_map(|range| match range.as_str() {
            "text/csv" | "text/*" | "*/*" => Some(Self::Csv),
            "application/x-ndjson" | "application/*" => Some(Self::Ndjson),
            _ => None,
        })
    }

    /// What a client is told that accepts none of them.
    pub(super) fn not_acceptable() -> Problem {
        Problem::new(
            Code::NotAcceptable,
            "Accept text/csv or application/x-ndjson, or ask for ?format=csv or ?format=ndjson.",
        )
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8",
            Self::Ndjson => "application/x-ndjson",
        }
    }
}

pub(super) async fn codes(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
    http: HttpRequest,
    mut query: Query,
) -> Result<HttpResponse, Problem> {
    let asked = query.parameters.optional("format", Format::parse).value();
    query.parameters.finish()?;
    let format = asked.or_else(|| Format::accepted(&http)).ok_or_else(Format::not_acceptable)?;
    let batch = find(&state, &scope, &path.1).await?;
    let settings = state.ledger.namespace(&scope.namespace).await?;
    let case = settings.map(|settings| settings.code_case).unwrap_or_default();
    let mut response = HttpResponse::Ok();
    response.content_type(format.content_type());
    let request_id = scope.caller.1;
    let download = Download { state, request_id, batch, case, format, place: Place::Start };
    // A page at a time, whatever the batch's size. Where one can not be read the connection is cut, so that nobody takes
    // a part for the whole.
    Ok(response.streaming(stream::try_unfold(download, Download::next)))
}

/// A download under way.
struct Download {
    state: web::Data<State>,
    request_id: String,
    batch: Batch,
    case: CodeCase,
    format: Format,
    place: Place,
}

enum Place {
    Start,
    After(String, InviteId),
    End,
}

impl Download {
    async fn next(mut self) -> Result<Option<(web::Bytes, Self)>, std::io::Error> {
        let after = match std::mem::replace(&mut self.place, Place::End) {
            Place::Start => None,
            Place::After(code, id) => Some((code, id)),
            Place::End => return Ok(None),
        };
        let filter = InviteFilter { batch: Some(self.batch.order.id), ..InviteFilter::default() };
        let namespace = &self.batch.order.namespace;
        let now = crate::ids::now();
        let ledger = &self.state.ledger;
        let page = ledger.invites(namespace, &filter, now, after.as_ref(), PAGE).await;
        let page = page.map_err(|error: LedgerError| {
            let (request_id, cause) = (&self.request_id, crate::sync::chain(&error));
            tracing::warn!(request_id, cause, "a download was cut");
            std::io::Error::other(error)
        })?;
        let rows = with_shards(&self.state, namespace, page.rows).await;
        let rows = rows.map_err(|error| std::io::Error::other(error.to_string()))?;
        let bytes = match self.format {
            Format::Csv => self.csv(&rows, after.is_none())?,
            Format::Ndjson => self.ndjson(&rows).into_bytes(),
        };
        if let Some((code, id)) = page.next {
            self.place = Place::After(code, id);
        }
        Ok(Some((bytes.into(), self)))
    }

    fn csv(&self, rows: &[Shown], first: bool) -> Result<Vec<u8>, csv::Error> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        if first {
            writer.write_record(["code", "id", "max_uses", "uses", "state"])?;
        }
        for Shown { invite, now, .. } in rows {
            let max_uses = invite.max_uses.map(|max| max.to_string()).unwrap_or_default();
            let (id, uses) = (invite.id.to_string(), invite.uses.to_string());
            let state = invite.state(*now).as_str();
            writer.write_record([self.print(invite), id, max_uses, uses, state.to_owned()])?;
        }
        writer.into_inner().map_err(|error| csv::Error::from(error.into_error()))
    }

    fn ndjson(&self, rows: &[Shown]) -> String {
        let line = |Shown { invite, now, .. }: &Shown| {
            let line = json!({
                "code": self.print(invite),
                "id": invite.id,
                "max_uses": invite.max_uses,
                "uses": invite.uses,
                "state": invite.state(*now),
            });
            format!("{line}\n")
        };
        rows.iter().map(line).collect()
    }

    fn print(&self, invite: &Invite) -> String {
        self.batch.order.pattern.print(&invite.code, self.case)
    }
}

pub(super) mod docs {
    use super::{Alphabet, COUNT_MAX, View};
    use crate::http::{
        invites::docs::chosen,
        openapi::{Fields, GATE, LEDGER, Operation, Tag, count, reference, word},
        problem::Code,
    };

    pub(in crate::http) fn create() -> Operation {
        let fields = Fields::new()
            .needs("count", count(COUNT_MAX), "How many codes; exactly so many are made.")
            .needs(
                "pattern",
                reference("Pattern"),
                "What codes look like. It must make at least 10,000 different codes for each that is ordered.",
            )
            .may_be_null("alphabet", word::<Alphabet>(), "What random characters are drawn from.");
        Operation::new(
            "create_batch",
            Tag::Batches,
            "Have many invites made, each with a code of its own",
        )
        .takes(chosen(fields))
        .answers::<View>(202, "It is ordered; its Location says how far it is.")
        .with(&["Location"])
        .leads_to(&[("show_batch", &["id"]), ("download_codes", &["id"])])
        .problems(&[Code::NamespaceNotFound, Code::CampaignNotFound, Code::IdempotencyKeyReused])
        .problems(GATE)
        .problems(LEDGER)
    }

    pub(in crate::http) fn show() -> Operation {
        Operation::new("show_batch", Tag::Batches, "How far a batch is")
            .answers::<View>(200, "The batch.")
            .problems(&[Code::BatchNotFound])
            .problems(LEDGER)
    }

    pub(in crate::http) fn codes() -> Operation {
        let formats = serde_json::json!({"type": "string", "enum": ["csv", "ndjson"]});
        Operation::new("download_codes", Tag::Batches, "The codes of a batch, in order")
            .about("Streamed, as far as the ledger has them; if it can not be finished, the connection is cut.")
            .query("format", formats, "Instead of the header Accept.")
            .answers_text("The codes.", &["text/csv", "application/x-ndjson"])
            .problems(&[Code::BatchNotFound, Code::NotAcceptable])
            .problems(LEDGER)
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn the_first_format_that_there_is_of_those_accepted_is_taken() {
        let accepted = |accept: &str| {
            Format::accepted(
                &TestRequest::get().insert_header(("accept", accept)).to_http_request(),
            )
        };
        assert_eq!(accepted("*/*"), Some(Format::Csv));
        assert_eq!(accepted("text/html, application/x-ndjson;q=0.9"), Some(Format::Ndjson));
        assert_eq!(accepted("application/x-ndjson, text/csv"), Some(Format::Ndjson));
        assert_eq!(accepted("application/json"), None);
        assert_eq!(Format::accepted(&TestRequest::get().to_http_request()), Some(Format::Csv));
    }
}
