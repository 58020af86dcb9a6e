//! Invites: `POST` makes one (its code given or made up), `GET` shows one as the gate has it or lists what the ledger
//! has, `PATCH` (JSON merge patch, RFC 7396) changes one while it is hot, `DELETE` removes one that nobody has redeemed.
//!
//! The ETag is the invite's revision, which counts administrators' changes only: uses never spoil an If-Match.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    State,
    body::{Body, Presence, stored_metadata},
    campaigns,
    guard::IdempotencyKey,
    page::{Query, code_and_id},
    problem::{Code, Problem},
    redemptions::settings_of,
    scope::Scope,
};
use crate::{
    domain::{
        BatchId, CampaignName, Code as InviteCode, EmailDomain, Group, InviteId, InviteState,
        Malformed, Millis, Namespace, Settings, UserId,
        invite::{EMAIL_DOMAINS_MAX, MAX_USES_MAX, Shown},
        spread::{Pool, UNLIMITED},
    },
    gate::{
        GateError,
        change_invite::{ChangeInvite, Changed, InvitePatch},
        create_invite::{CreateInvite, Created},
        delete_invite::{DeleteInvite, Deleted},
        inspect::{Inspect, in_shell},
        show_invite::{ShowInvite, Which},
    },
    ledger::InviteFilter,
    spread::SpreadError,
};

/// How often a made-up code is made up anew when it is taken: of 2⁶⁰ codes, one clash is rare and three never happen.
const MADE_UP_TRIES: usize = 3;

/// An invite as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Invite)]
pub(super) struct View<'a> {
    id: InviteId,
    namespace: &'a Namespace,
    code: &'a InviteCode,
    group: &'a Group,
    /// Null means without limit.
    #[schema(required, minimum = 1)]
    max_uses: Option<u64>,
    /// How many of them one user may spend; null means without limit.
    #[schema(required, minimum = 1)]
    max_uses_per_user: Option<u64>,
    /// The limit that it shares with others, besides its own.
    #[schema(required)]
    campaign: Option<&'a CampaignName>,
    uses: u64,
    /// Uses that are not spent and that reservations hold now.
    held: u64,
    /// Uses that are not spent, held ones among them; null means without limit.
    #[schema(required)]
    remaining: Option<u64>,
    state: InviteState,
    /// From this moment on it can be redeemed.
    #[schema(required)]
    starts_at: Option<Millis>,
    /// Up to this moment it can be redeemed.
    #[schema(required)]
    expires_at: Option<Millis>,
    /// The only user who may redeem.
    #[schema(required)]
    user: Option<&'a UserId>,
    /// The only e-mail domains whose users may redeem; none means any.
    #[schema(max_items = 32)]
    email_domains: &'a [EmailDomain],
    #[schema(required, value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    /// With what it was made.
    #[schema(required)]
    batch: Option<BatchId>,
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
    pub(super) fn new(Shown { invite, held, now }: &'a Shown) -> Result<Self, Problem> {
        Ok(Self {
            id: invite.id,
            namespace: &invite.namespace,
            code: &invite.code,
            group: &invite.group,
            max_uses: invite.max_uses,
            max_uses_per_user: invite.max_uses_per_user,
            campaign: invite.campaign.as_ref(),
            uses: invite.uses,
            held: *held,
            remaining: invite.remaining(),
            state: invite.state(*now),
            starts_at: invite.starts_at,
            expires_at: invite.expires_at,
            user: invite.user.as_ref(),
            email_domains: &invite.email_domains,
            metadata: stored_metadata(invite.metadata.clone())?,
            batch: invite.batch,
            revision: invite.revision,
            created_at: invite.created_at,
            updated_at: invite.updated_at,
            stale: false,
        })
    }
}

/// Commands for a terminal.
#[derive(Serialize, ToSchema)]
#[schema(as = Commands)]
struct CommandsView {
    /// The last one is this program's own, and tells besides whether a redemption would be granted.
    commands: Vec<String>,
}

pub(super) fn etag(revision: u64) -> (header::HeaderName, String) {
    (header::ETAG, format!("\"{revision}\""))
}

fn missing() -> Problem {
    Problem::new(Code::InviteNotFound, "No invite of this namespace has this code or id.")
}

pub(super) fn taken(code: &str, by: InviteId) -> Problem {
    Problem::new(
        Code::CodeTaken,
        format!(
            "A live invite has the code {code}. Choose another code, or let that invite end first."
        ),
    )
    .with("invite", by.to_string())
}

pub(super) async fn create(
    state: web::Data<State>,
    scope: Scope,
    request: IdempotencyKey,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    let deadline = Instant::now() + state.request_timeout;
    let settings = settings_of(&state, &scope.namespace).await?;
    let wanted = body.optional_code(|text| settings.code(text));
    let group = body.required("group", Group::parse);
    let max_uses = body.count("max_uses", MAX_USES_MAX);
    if max_uses == Presence::Absent {
        body.wrong("max_uses", Code::InvalidRequest, "is needed; null means without limit");
    }
    let max_uses_per_user = body.count("max_uses_per_user", MAX_USES_MAX).value();
    let campaign = body.optional("campaign", CampaignName::parse).value();
    let (starts_at, expires_at) = (body.time("starts_at").value(), body.time("expires_at").value());
    let user = body.optional("user", UserId::parse).value();
    let email_domains = email_domains(&mut body).unwrap_or_default();
    let metadata = body.metadata().value();
    if let (Some(start), Some(end)) = (starts_at, expires_at)
        && end <= start
    {
        body.wrong("expires_at", Code::InvalidRequest, "must lie after starts_at");
    }
    body.finish()?;
    let (Some(group), Some(max_uses)) = (group, max_uses.patch()) else {
        return Err(body.problem());
    };
    let wanted = wanted.value();
    let mut create = CreateInvite {
        id: crate::ids::invite(&scope.namespace, &scope.caller.actor(), request.0.as_ref()),
        namespace: scope.namespace,
        code: wanted.clone().unwrap_or_else(|| made_up(&settings)),
        group,
        max_uses,
        max_uses_per_user,
        campaign,
        starts_at,
        expires_at,
        user,
        email_domains,
        metadata,
        exhausted: None,
        actor: scope.caller.actor(),
    };
    let mut tries = 1;
    loop {
        match create.run(&state.gate).await? {
            Created::Created(shown) => {
                // Where it has taken the code of another one, every shard must know before anybody is told.
                state.spread.share(&shown.invite).await?;
                return created(&state.spread.whole(shown).await?, &create);
            }
            Created::CodeTaken { .. } if wanted.is_none() && tries < MADE_UP_TRIES => {
                create.code = made_up(&settings);
                tries += 1;
            }
            Created::CodeTaken { by } => {
                // Whether one that is spread over shards has ended is seen only by looking at all of them.
                let (home, code) = (&create.namespace, &create.code);
                if create.exhausted == Some(by)
                    || !settings.is_spread()
                    || !state.spread.is_exhausted(home, by, code, deadline).await?
                {
                    return Err(taken(create.code.as_str(), by));
                }
                create.exhausted = Some(by);
            }
            // The first request with this key made the code up; it is the same invite.
            Created::IdTaken { code } if wanted.is_none() => create.code = code,
            Created::IdTaken { .. } => return Err(key_reused("invite")),
            Created::CampaignNotFound => return Err(campaigns::missing()),
            Created::NamespaceNotFound => {
                return Err(Problem::new(
                    Code::NamespaceNotFound,
                    "There is no such namespace, or it was archived.",
                ));
            }
        }
    }
}

/// The answer to a new invite, or to a repeat that asks for the same one.
fn created(shown: &Shown, asked: &CreateInvite) -> Result<HttpResponse, Problem> {
    let invite = &shown.invite;
    let fixed = (&invite.group, &invite.campaign) == (&asked.group, &asked.campaign);
    // What an administrator has changed since says no more what was asked for.
    let was_changed = invite.revision > 1;
    let rest = (invite.max_uses, invite.max_uses_per_user, invite.starts_at, invite.expires_at)
        == (asked.max_uses, asked.max_uses_per_user, asked.starts_at, asked.expires_at)
        && (&invite.user, &invite.email_domains, &invite.metadata)
            == (&asked.user, &asked.email_domains, &asked.metadata);
    if !fixed || !was_changed && !rest {
        return Err(key_reused("invite"));
    }
    let location = format!("/v1/namespaces/{}/invites/{}", invite.namespace, invite.id);
    Ok(HttpResponse::Created()
        .insert_header((header::LOCATION, location))
        .insert_header(etag(invite.revision))
        .json(View::new(shown)?))
}

/// A key that has made another one of the same kind.
pub(super) fn key_reused(what: &str) -> Problem {
    Problem::new(
        Code::IdempotencyKeyReused,
        format!("This Idempotency-Key has made another {what}. Use a new key for a new {what}."),
    )
}

/// A code that nobody guesses: 12 characters of 32 that are hard to mistake for each other, in three groups. Where codes
/// have a check character, one of 36 has a fitting one by itself.
fn made_up(settings: &Settings) -> InviteCode {
    const ALPHABET: &[u8; 32] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";
    loop {
        let characters = crate::ids::characters::<12>(ALPHABET);
        let text = [&characters[..4], &characters[4..8], &characters[8..]].join("-");
        if let Ok(code) = settings.code(&text) {
            return code;
        }
    }
}

pub(super) async fn show(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let id: InviteId = path.1.parse().map_err(|_| missing())?;
    let from_ledger = state.ledger.invite(&scope.namespace, id, crate::ids::now());
    shown(&state, &scope.namespace, Which::Id(id), from_ledger).await
}

pub(super) async fn show_by_code(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let known = match state.gate.settings(&scope.namespace).await {
        Ok(known) => known,
        Err(GateError::Unexpected { .. }) => None,
        Err(_) => state.ledger.namespace(&scope.namespace).await?.map(Arc::new),
    };
    let Some(settings) = known else {
        return Err(Problem::new(
            Code::NamespaceNotFound,
            "There is no such namespace, or it was archived.",
        ));
    };
    let code = settings
        .code(&path.1)
        .map_err(|error| Problem::new(Code::CodeMalformed, format!("In the path, {error}.")))?;
    let from_ledger = state.ledger.invite_by_code(&scope.namespace, &code, crate::ids::now());
    shown(&state, &scope.namespace, Which::Code(code.clone()), from_ledger).await
}

/// The commands that show what Redis holds of an invite, for people with a terminal.
pub(super) async fn commands(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let Scope { namespace, .. } = scope;
    let id: InviteId = path.1.parse().map_err(|_| missing())?;
    let question = ShowInvite { namespace: namespace.clone(), which: Which::Id(id) };
    let shown = question.run(&state.gate).await?.ok_or_else(missing)?;
    let (code, campaign) = (shown.invite.code, shown.invite.campaign);
    let question = ShowInvite { namespace: namespace.clone(), which: Which::Code(code.clone()) };
    let current = question.run(&state.gate).await?.map(|shown| shown.invite.id);
    let keys = state.gate.keys();
    let command = format!("redeemer inspect --namespace {namespace} --code {code}");
    let look = Inspect { namespace: namespace.clone(), code: Some(code), user: None };
    let parts = state.spread.parts(&namespace).await?;
    let is_spread = parts.len() > 1;
    let mut words = Vec::new();
    for part in &parts {
        let id_there = id.of_whole(part);
        words.extend(look.commands(keys, part, is_spread, false));
        if current != Some(id) {
            // Another invite has its code by now.
            words.push(vec!["HGETALL".to_owned(), keys.retired(part, id_there)]);
        }
        if is_spread {
            words.push(vec!["HGETALL".to_owned(), keys.moves(part, id_there)]);
        }
        if let Some(name) = campaign.as_ref().filter(|_| is_spread) {
            let moves = keys.moves(part, InviteId::of_campaign(part, name));
            words.extend([keys.campaigns(part), moves].map(|key| vec!["HGETALL".to_owned(), key]));
        }
    }
    let cli = state.gate.redis_cli();
    let commands = words.iter().map(|words| format!("{cli} {}", in_shell(words)));
    let commands = commands.chain([command]).collect();
    Ok(HttpResponse::Ok().json(CommandsView { commands }))
}

/// What the gate has, or while it can not be asked, what the ledger has.
async fn shown(
    state: &State,
    namespace: &Namespace,
    which: Which,
    from_ledger: impl Future<Output = Result<Option<Shown>, crate::ledger::LedgerError>>,
) -> Result<HttpResponse, Problem> {
    let question = ShowInvite { namespace: namespace.clone(), which };
    let shown = match question.run(&state.gate).await {
        Ok(Some(shown)) => state.spread.whole(shown).await.map(Some),
        other => other,
    };
    match shown {
        Ok(Some(shown)) => Ok(HttpResponse::Ok()
            .insert_header(etag(shown.invite.revision))
            .json(View::new(&shown)?)),
        Ok(None) => Err(missing()),
        Err(error @ GateError::Unexpected { .. }) => Err(error.into()),
        Err(_) => {
            let shown = from_ledger.await?.ok_or_else(missing)?;
            let [shown] = &mut with_shards(state, namespace, vec![shown]).await?[..] else {
                return Err(missing());
            };
            Ok(HttpResponse::Ok().json(View { stale: true, ..View::new(shown)? }))
        }
    }
}

/// Invites as the ledger has them, with what it has of them in the shards of their namespace.
pub(super) async fn with_shards(
    state: &State,
    namespace: &Namespace,
    mut rows: Vec<Shown>,
) -> Result<Vec<Shown>, Problem> {
    if rows.iter().all(|row| row.invite.total.is_none()) {
        return Ok(rows);
    }
    let settings = state.ledger.namespace(namespace).await?;
    let parts = settings.map(|settings| settings.parts(namespace)).unwrap_or_default();
    let ids: Vec<_> = rows.iter().map(|row| row.invite.id).collect();
    let counts =
        state.ledger.in_shards(parts.get(1..).unwrap_or_default(), &ids, crate::ids::now()).await?;
    for Shown { invite, held, .. } in &mut rows {
        let Some(total) = invite.total.take() else { continue };
        invite.max_uses = (total < UNLIMITED).then_some(total);
        let (uses, held_there) = counts.get(&invite.id).copied().unwrap_or_default();
        (invite.uses, *held) = (invite.uses + uses, *held + held_there);
    }
    Ok(rows)
}

pub(super) async fn list(
    state: web::Data<State>,
    scope: Scope,
    mut query: Query,
) -> Result<HttpResponse, Problem> {
    let known = state.ledger.namespace(&scope.namespace).await?;
    let case = known.map(|settings| settings.code_case).unwrap_or_default();
    let parameters = &mut query.parameters;
    let filter = InviteFilter {
        state: parameters.optional("state", InviteState::parse).value(),
        group: parameters.optional("group", Group::parse).value(),
        prefix: parameters
            .optional("prefix", |text| {
                InviteCode::parse(text, case).map(|code| code.as_str().to_owned())
            })
            .value(),
        batch: parameters.optional("batch", str::parse).value(),
    };
    let page = query.page()?;
    let after = page.after(code_and_id)?;
    let now = crate::ids::now();
    let found =
        state.ledger.invites(&scope.namespace, &filter, now, after.as_ref(), page.limit).await?;
    let as_of = state.as_of(&state.ledger.parts(&scope.namespace).await?).await?;
    let found_rows = with_shards(&state, &scope.namespace, found.rows).await?;
    let rows = found_rows.iter().map(View::new).collect::<Result<Vec<_>, _>>()?;
    let next = found.next.map(|(code, id)| [code, id.to_string()]);
    let next = next.as_ref().map(|[code, id]| [code.as_str(), id.as_str()]);
    Ok(page.answer(&rows, next.as_ref().map(<[_; 2]>::as_slice), as_of))
}

pub(super) async fn change(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
    http: HttpRequest,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    body.refuse_null(&["disabled"]);
    let patch = InvitePatch {
        max_uses: body.count("max_uses", MAX_USES_MAX).patch(),
        max_uses_per_user: body.count("max_uses_per_user", MAX_USES_MAX).patch(),
        starts_at: body.time("starts_at").patch(),
        expires_at: body.time("expires_at").patch(),
        disabled: body
            .typed("disabled", |value| {
                value.as_bool().ok_or_else(|| "must be true or false".to_owned())
            })
            .value(),
        user: body.optional("user", UserId::parse).patch(),
        email_domains: email_domains(&mut body),
        metadata: body.metadata().patch(),
    };
    body.refuse(&["code", "group", "campaign"], "can not be changed; make another invite");
    body.finish()?;
    let id: InviteId = path.1.parse().map_err(|_| missing())?;
    let change = ChangeInvite {
        id,
        namespace: scope.namespace,
        change: crate::ids::unique(),
        expected_revision: if_match(&http)?,
        patch,
        actor: scope.caller.actor(),
    };
    let deadline = Instant::now() + state.request_timeout;
    let mut changed = change.run(&state.gate).await?;
    if let Changed::LimitBelowUsed { .. } = changed
        && let Some(Some(limit)) = change.patch.max_uses
        && state.spread.is_spread(&change.namespace).await?
    {
        // What other shards have left is to be taken from as well.
        changed = lowered(&state, &change, limit, deadline).await?;
    }
    match changed {
        Changed::Changed(shown) => {
            state.spread.share(&shown.invite).await?;
            let shown = state.spread.whole(shown).await?;
            Ok(HttpResponse::Ok()
                .insert_header(etag(shown.invite.revision))
                .json(View::new(&shown)?))
        }
        Changed::NotFound => Err(missing()),
        Changed::PreconditionFailed { revision } => Err(precondition_failed(revision)),
        Changed::LimitBelowUsed { uses, held } => Err(limit_below_used(uses, held)),
        Changed::CodeTaken { by } => Err(taken("of this invite", by)),
        Changed::WindowReversed => {
            body.wrong("expires_at", Code::InvalidRequest, "must lie after starts_at");
            Err(body.problem())
        }
    }
}

/// Deletes an invite of a namespace that is spread, once all its uses are home, and then its copies.
async fn deleted_everywhere(
    state: &State,
    delete: &DeleteInvite,
    deadline: Instant,
) -> Result<Deleted, Problem> {
    let (home, id) = (&delete.namespace, delete.id);
    let question = ShowInvite { namespace: home.clone(), which: Which::Id(id) };
    loop {
        let Some(shown) = question.run(&state.gate).await? else { return Ok(Deleted::NotFound) };
        let code = shown.invite.code.clone();
        let Shown { invite, held, .. } = state.spread.whole(shown).await?;
        if invite.granted > 0 || held > 0 {
            return Ok(Deleted::InUse { uses: invite.uses, held });
        }
        match delete.run(&state.gate).await? {
            Deleted::UsesElsewhere if Instant::now() < deadline => {
                let pool = Pool::Invite { id, code };
                state.spread.gather(home, pool, u64::MAX, deadline).await?;
            }
            Deleted::Deleted => break,
            other => return Ok(other),
        }
    }
    for shard in state.spread.parts(home).await?.split_off(1) {
        let actor = delete.actor.clone();
        let id = id.of_whole(&shard);
        DeleteInvite { id, namespace: shard, expected_revision: None, actor }
            .run(&state.gate)
            .await?;
    }
    Ok(Deleted::Deleted)
}

/// Lowers the limit of an invite of a namespace that is spread: brings what shards have left home first.
async fn lowered(
    state: &State,
    change: &ChangeInvite,
    limit: u64,
    deadline: Instant,
) -> Result<Changed, Problem> {
    let (home, id) = (&change.namespace, change.id);
    loop {
        let which = Which::Id(id);
        let question = ShowInvite { namespace: home.clone(), which };
        let Some(Shown { invite, .. }) = question.run(&state.gate).await? else {
            return Ok(Changed::NotFound);
        };
        let less = invite.total.unwrap_or_default().saturating_sub(limit);
        let pool = Pool::Invite { id, code: invite.code };
        state.spread.gather(home, pool, less, deadline).await?;
        match change.run(&state.gate).await? {
            Changed::LimitBelowUsed { .. } => {}
            other => return Ok(other),
        }
        let Some(shown) = question.run(&state.gate).await? else { return Ok(Changed::NotFound) };
        let Shown { invite, held, .. } = state.spread.whole(shown).await?;
        // Else somebody has taken what was gathered a moment ago, or a use has become free.
        if invite.uses + held > limit {
            return Ok(Changed::LimitBelowUsed { uses: invite.uses, held });
        }
        if Instant::now() >= deadline {
            return Err(SpreadError::TooLate.into());
        }
    }
}

pub(super) async fn delete(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
    http: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let id: InviteId = path.1.parse().map_err(|_| missing())?;
    let expected_revision = if_match(&http)?;
    let actor = scope.caller.actor();
    let delete = DeleteInvite { id, namespace: scope.namespace, expected_revision, actor };
    let deadline = Instant::now() + state.request_timeout;
    let deleted = if state.spread.is_spread(&delete.namespace).await? {
        deleted_everywhere(&state, &delete, deadline).await?
    } else {
        delete.run(&state.gate).await?
    };
    match deleted {
        Deleted::UsesElsewhere => Err(SpreadError::TooLate.into()),
        Deleted::Deleted => Ok(HttpResponse::NoContent().finish()),
        Deleted::NotFound => Err(missing()),
        Deleted::InUse { uses, held } => Err(Problem::new(
            Code::InviteInUse,
            format!(
                "{uses} uses are spent and {held} held, or were; their record stays. Disable the invite instead."
            ),
        )
        .with("uses", uses)
        .with("held", held)),
        Deleted::PreconditionFailed { revision } => Err(precondition_failed(revision)),
    }
}

/// The revision that an If-Match header asks for; nothing without one, or for `*`.
pub(super) fn if_match(http: &HttpRequest) -> Result<Option<u64>, Problem> {
    let Some(header) = http.headers().get(header::IF_MATCH) else { return Ok(None) };
    let text = header.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let revision = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .and_then(|text| text.parse().ok());
    revision.map(Some).ok_or_else(|| {
        Problem::new(
            Code::InvalidRequest,
            "If-Match is the ETag of an earlier answer, with its quotation marks, or *.",
        )
    })
}

/// A limit that is less than what is spent and held.
pub(super) fn limit_below_used(uses: u64, held: u64) -> Problem {
    Problem::new(
        Code::LimitBelowUsed,
        format!("{uses} uses are spent and {held} held. The limit can not be less than that."),
    )
    .with("uses", uses)
    .with("held", held)
}

pub(super) fn precondition_failed(revision: u64) -> Problem {
    Problem::new(
        Code::PreconditionFailed,
        format!("It is at revision {revision} now. Read it again, then decide whether your change still fits."),
    )
    .with("revision", revision)
}

pub(super) fn email_domains(body: &mut Body) -> Option<Vec<EmailDomain>> {
    let domains = body.typed("email_domains", |value| {
        let Value::Array(values) = value else {
            return Err("must be a list of e-mail domains".to_owned());
        };
        if values.len() > EMAIL_DOMAINS_MAX {
            return Err(format!("must have at most {EMAIL_DOMAINS_MAX} domains"));
        }
        let parse = |value: &Value| EmailDomain::parse(value.as_str().unwrap_or_default());
        values.iter().map(parse).collect::<Result<_, Malformed>>().map_err(|error| error.0)
    });
    domains.patch().map(Option::unwrap_or_default)
}

pub(super) mod docs {
    use super::{
        BatchId, CampaignName, CommandsView, Group, InviteState, MAX_USES_MAX, Millis, UserId, View,
    };
    use crate::http::{
        openapi::{Fields, GATE, LEDGER, Operation, Tag, count, flag, nullable, reference, word},
        problem::Code,
    };

    /// What the maker of invites chooses, whether for one or for many.
    pub(in crate::http) fn chosen(fields: Fields) -> Fields {
        fields
            .needs("group", word::<Group>(), "What a redemption lets the user into.")
            .needs("max_uses", nullable(count(MAX_USES_MAX)), "Null means without limit.")
            .may_be_null(
                "max_uses_per_user",
                count(MAX_USES_MAX),
                "How many of them one user may spend; null means without limit.",
            )
            .may_be_null(
                "campaign",
                word::<CampaignName>(),
                "The campaign that it is to belong to, for good.",
            )
            .may_be_null("starts_at", word::<Millis>(), "From this moment on it can be redeemed.")
            .may_be_null(
                "expires_at",
                word::<Millis>(),
                "Up to this moment it can be redeemed; later than starts_at.",
            )
            .may_be_null(
                "email_domains",
                reference("EmailDomains"),
                "The only e-mail domains whose users may redeem.",
            )
            .may_be_null("metadata", reference("Metadata"), "Your own.")
    }

    pub(in crate::http) fn create() -> Operation {
        Operation::new("create_invite", Tag::Invites, "Make an invite")
            .takes(
                chosen(Fields::new().may_be_null(
                    "code",
                    reference("TypedCode"),
                    "Made up when left out.",
                ))
                .may_be_null(
                    "user",
                    word::<UserId>(),
                    "The only user who may redeem.",
                ),
            )
            .answers::<View>(201, "The invite, also to a repeat with the same Idempotency-Key.")
            .with(&["Location", "ETag"])
            .leads_to(&[
                ("show_invite", &["id"]),
                ("change_invite", &["id"]),
                ("delete_invite", &["id"]),
            ])
            .problems(&[
                Code::CodeMalformed,
                Code::NamespaceNotFound,
                Code::CampaignNotFound,
                Code::CodeTaken,
                Code::IdempotencyKeyReused,
            ])
            .problems(GATE)
    }

    pub(in crate::http) fn list() -> Operation {
        Operation::new("list_invites", Tag::Invites, "Invites, by code")
            .query("state", word::<InviteState>(), "That are this now.")
            .query("group", word::<Group>(), "Of this group.")
            .query("prefix", reference("TypedCode"), "Whose code begins so.")
            .query("batch", word::<BatchId>(), "Of this batch.")
            .lists::<View>("Invites that the ledger has.")
            .problems(LEDGER)
    }

    pub(in crate::http) fn show() -> Operation {
        Operation::new("show_invite", Tag::Invites, "One invite, ended ones too")
            .about("Shows the exact state of the gate, or while that can not be asked, with `stale`, the ledger's.")
            .answers::<View>(200, "The invite.")
            .with(&["ETag"])
            .problems(&[Code::InviteNotFound])
            .problems(LEDGER)
    }

    pub(in crate::http) fn commands() -> Operation {
        Operation::new(
            "show_invite_commands",
            Tag::Invites,
            "Commands that show what Redis holds of an invite",
        )
        .about("They name the place of Redis, and no password.")
        .answers::<CommandsView>(200, "The commands, for a shell.")
        .problems(&[Code::InviteNotFound])
        .problems(GATE)
    }

    pub(in crate::http) fn show_by_code() -> Operation {
        Operation::new("show_invite_by_code", Tag::Invites, "The invite that has this code now")
            .answers::<View>(200, "The invite.")
            .with(&["ETag"])
            .problems(&[Code::InviteNotFound, Code::NamespaceNotFound, Code::CodeMalformed])
            .problems(LEDGER)
    }

    pub(in crate::http) fn change() -> Operation {
        Operation::new("change_invite", Tag::Invites, "Change an invite, also while it is redeemed")
            .about("A JSON merge patch (RFC 7396): null removes, what is left out stays.")
            .if_match()
            .takes(
                Fields::new()
                    .may_be_null("max_uses", count(MAX_USES_MAX), "Null means without limit.")
                    .may_be_null(
                        "max_uses_per_user",
                        count(MAX_USES_MAX),
                        "How many of them one user may spend; null means without limit.",
                    )
                    .may_be_null(
                        "starts_at",
                        word::<Millis>(),
                        "From this moment on it can be redeemed.",
                    )
                    .may_be_null(
                        "expires_at",
                        word::<Millis>(),
                        "Up to this moment it can be redeemed.",
                    )
                    .may_have("disabled", flag(), "Whether it is switched off.")
                    .may_be_null("user", word::<UserId>(), "The only user who may redeem.")
                    .may_be_null("email_domains", reference("EmailDomains"), "The only domains.")
                    .may_be_null("metadata", reference("Metadata"), "Your own."),
            )
            .answers::<View>(200, "The invite as it is now.")
            .with(&["ETag"])
            .problems(&[Code::InviteNotFound, Code::LimitBelowUsed, Code::CodeTaken])
            .problems(GATE)
    }

    pub(in crate::http) fn delete() -> Operation {
        Operation::new("delete_invite", Tag::Invites, "Delete an invite that nobody has redeemed")
            .if_match()
            .answers_nothing(204, "It is gone.")
            .problems(&[Code::InviteNotFound, Code::InviteInUse])
            .problems(GATE)
    }
}
