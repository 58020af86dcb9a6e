//! Campaigns: limits that the invites of a namespace share. `PUT` makes one (201) or changes its limit (200), also while
//! its invites are redeemed; `GET` shows one as the gate has it or lists what the ledger has. A campaign stays for good:
//! its invites count on it.
//!
//! The ETag is the campaign's revision, which counts administrators' changes only.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    State,
    body::{Body, Presence},
    invites::{etag, if_match, limit_below_used, precondition_failed},
    page::{Query, single},
    problem::{Code, Problem},
    scope::Scope,
};
use crate::{
    domain::{
        Campaign, CampaignName, Millis, Namespace, Refusal,
        campaign::{CAMPAIGNS_MAX, Shown},
        invite::MAX_USES_MAX,
        spread::{Pool, UNLIMITED},
    },
    gate::{
        GateError,
        put_campaign::{CampaignPut, PutCampaign},
        show_campaign::ShowCampaign,
    },
    spread::SpreadError,
};

/// A campaign as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Campaign)]
struct View<'a> {
    name: &'a CampaignName,
    namespace: &'a Namespace,
    /// Of all its invites together; null means without limit.
    #[schema(required, minimum = 1)]
    max_uses: Option<u64>,
    uses: u64,
    /// Uses that are not spent and that reservations hold now; null in a list.
    #[schema(required)]
    held: Option<u64>,
    /// Uses that are not spent, held ones among them; null means without limit.
    #[schema(required)]
    remaining: Option<u64>,
    /// Counts administrators' changes, from 1.
    #[schema(minimum = 1)]
    revision: u64,
    created_at: Millis,
    updated_at: Millis,
    /// What the ledger knows, while the gate can not be asked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stale: bool,
}

impl<'a> View<'a> {
    fn new(campaign: &'a Campaign, held: Option<u64>) -> Self {
        Self {
            name: &campaign.name,
            namespace: &campaign.namespace,
            max_uses: campaign.max_uses,
            uses: campaign.uses,
            held,
            remaining: campaign.remaining(),
            revision: campaign.revision,
            created_at: campaign.created_at,
            updated_at: campaign.updated_at,
            stale: false,
        }
    }
}

pub(super) fn missing() -> Problem {
    Problem::new(
        Code::CampaignNotFound,
        "No campaign of this namespace has this name. Make it first: PUT …/campaigns/{name}.",
    )
}

/// The campaign of a path; what no name can be is no campaign's.
fn named(text: &str) -> Result<CampaignName, Problem> {
    CampaignName::parse(text).map_err(|_| missing())
}

pub(super) async fn put(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
    http: HttpRequest,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    let max_uses = body.count("max_uses", MAX_USES_MAX);
    if max_uses == Presence::Absent {
        body.wrong("max_uses", Code::InvalidRequest, "is needed; null means without limit");
    }
    body.finish()?;
    let name = CampaignName::parse(&path.1)
        .map_err(|error| Problem::new(Code::InvalidRequest, format!("In the path, {error}.")))?;
    let put = PutCampaign {
        namespace: scope.namespace,
        name,
        max_uses: max_uses.patch().flatten(),
        expected_revision: if_match(&http)?,
        actor: scope.caller.actor(),
    };
    let deadline = Instant::now() + state.request_timeout;
    let mut done = put.run(&state.gate).await?;
    if let CampaignPut::LimitBelowUsed { .. } = done
        && let Some(limit) = put.max_uses
        && state.spread.is_spread(&put.namespace).await?
    {
        // What other shards have left is to be taken from as well.
        done = lowered(&state, &put, limit, deadline).await?;
    }
    let (mut response, shown) = match done {
        CampaignPut::Created(shown) => (HttpResponse::Created(), shown),
        CampaignPut::Changed(shown) => (HttpResponse::Ok(), shown),
        CampaignPut::PreconditionFailed { revision } => return Err(precondition_failed(revision)),
        CampaignPut::LimitBelowUsed { uses, held } => return Err(limit_below_used(uses, held)),
        CampaignPut::TooMany => {
            return Err(Problem::new(
                Code::TooManyCampaigns,
                format!(
                    "A namespace has at most {CAMPAIGNS_MAX} campaigns. Use another namespace."
                ),
            ));
        }
        CampaignPut::NamespaceNotFound => return Err(Refusal::NamespaceNotFound.into()),
    };
    let Shown { campaign, held } = state.spread.whole_campaign(shown).await?;
    let location = format!("/v1/namespaces/{}/campaigns/{}", campaign.namespace, campaign.name);
    Ok(response
        .insert_header((header::LOCATION, location))
        .insert_header(etag(campaign.revision))
        .json(View::new(&campaign, Some(held))))
}

/// Lowers the limit of a campaign of a namespace that is spread: brings what shards have left home first.
async fn lowered(
    state: &State,
    put: &PutCampaign,
    limit: u64,
    deadline: Instant,
) -> Result<CampaignPut, Problem> {
    let (namespace, name) = (put.namespace.clone(), put.name.clone());
    let question = ShowCampaign { namespace: namespace.clone(), name: name.clone() };
    let pool = Pool::Campaign { namespace: namespace.clone(), name };
    loop {
        let Some(Shown { campaign, .. }) = question.run(&state.gate).await? else {
            return Ok(put.run(&state.gate).await?);
        };
        let before = campaign.total.or(campaign.max_uses).unwrap_or(UNLIMITED);
        let less = before.saturating_sub(limit);
        state.spread.gather(&namespace, pool.clone(), less, deadline).await?;
        match put.run(&state.gate).await? {
            CampaignPut::LimitBelowUsed { .. } => {}
            other => return Ok(other),
        }
        let Some(shown) = question.run(&state.gate).await? else { continue };
        let Shown { campaign, held } = state.spread.whole_campaign(shown).await?;
        // Else somebody has taken what was gathered a moment ago, or a use has become free.
        if campaign.uses + held > limit {
            return Ok(CampaignPut::LimitBelowUsed { uses: campaign.uses, held });
        }
        if Instant::now() >= deadline {
            return Err(SpreadError::TooLate.into());
        }
    }
}

pub(super) async fn show(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let (namespace, name) = (scope.namespace, named(&path.1)?);
    let question = ShowCampaign { namespace: namespace.clone(), name: name.clone() };
    let shown = match question.run(&state.gate).await {
        Ok(Some(shown)) => state.spread.whole_campaign(shown).await.map(Some),
        other => other,
    };
    match shown {
        Ok(Some(Shown { campaign, held })) => Ok(HttpResponse::Ok()
            .insert_header(etag(campaign.revision))
            .json(View::new(&campaign, Some(held)))),
        Ok(None) => Err(missing()),
        Err(error @ GateError::Unexpected { .. }) => Err(error.into()),
        Err(_) => {
            let campaign = state.ledger.campaign(&namespace, &name).await?.ok_or_else(missing)?;
            Ok(HttpResponse::Ok().json(View { stale: true, ..View::new(&campaign, None) }))
        }
    }
}

pub(super) async fn list(
    state: web::Data<State>,
    scope: Scope,
    query: Query,
) -> Result<HttpResponse, Problem> {
    let page = query.page()?;
    let after: Option<String> = page.after(|parts| Some(single(parts)?.clone()))?;
    let found = state.ledger.campaigns(&scope.namespace, after.as_deref(), page.limit).await?;
    let as_of = state.ledger.synced_at(state.gate.keys().partition_of(&scope.namespace)).await?;
    let rows: Vec<_> = found.rows.iter().map(|campaign| View::new(campaign, None)).collect();
    let next = found.next.as_deref().map(|next| [next]);
    Ok(page.answer(&rows, next.as_ref().map(<[_; 1]>::as_slice), as_of))
}

pub(super) mod docs {
    use super::{MAX_USES_MAX, View};
    use crate::http::{
        openapi::{Fields, GATE, LEDGER, Operation, Tag, count, nullable},
        problem::Code,
    };

    pub(in crate::http) fn put() -> Operation {
        Operation::new("put_campaign", Tag::Campaigns, "Make a campaign, or change its limit")
            .about("Invites join it when they are made, and stay.")
            .if_match()
            .takes(Fields::new().needs(
                "max_uses",
                nullable(count(MAX_USES_MAX)),
                "Of all its invites together; null means without limit.",
            ))
            .answers::<View>(201, "A new campaign.")
            .with(&["Location", "ETag"])
            .answers::<View>(200, "The campaign as it is now.")
            .with(&["Location", "ETag"])
            .problems(&[Code::NamespaceNotFound, Code::LimitBelowUsed, Code::TooManyCampaigns])
            .problems(GATE)
    }

    pub(in crate::http) fn show() -> Operation {
        Operation::new("show_campaign", Tag::Campaigns, "One campaign")
            .about("Shows the exact state of the gate, or while that can not be asked, with `stale`, the ledger's.")
            .answers::<View>(200, "The campaign.")
            .with(&["ETag"])
            .problems(&[Code::CampaignNotFound])
            .problems(LEDGER)
    }

    pub(in crate::http) fn list() -> Operation {
        Operation::new("list_campaigns", Tag::Campaigns, "Campaigns, by name")
            .lists::<View>("Campaigns that the ledger has.")
            .problems(LEDGER)
    }
}
