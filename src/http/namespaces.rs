//! Namespaces and their settings: `PUT` makes one (201) or sets its rules (200), `PATCH` changes some of them, `DELETE`
//! archives it: it answers nobody from then on, and the ledger keeps all that it had. The membership rule and what
//! counts as a code are fixed when a namespace is made.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    State,
    body::Body,
    invites::{if_match, precondition_failed},
    page::{Query, single},
    problem::{Code, Problem},
    redemptions::durability,
    scope::{Caller, Scope},
};
use crate::{
    domain::{
        CodeCase, Durability, ErrorDetail, MembershipRule, Millis, Namespace, Quota, Refusal,
        Settings,
    },
    gate::{
        GateError,
        put_namespace::{Action, NamespacePut, PutNamespace, Rules, RulesPatch, Spreading},
        show_namespace::ShowNamespace,
    },
    spread::SpreadError,
};

/// How often the spread of a namespace can be changed: a new user is looked for in each layout.
const LAYOUTS_MAX: usize = 8;

/// A namespace as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = NamespaceSettings)]
struct View<'a> {
    name: &'a Namespace,
    #[schema(value_type = MembershipRule)]
    membership: &'static str,
    #[schema(value_type = CodeCase)]
    code_case: &'static str,
    /// Whether the last character of each code follows from the others.
    code_check: bool,
    #[schema(value_type = Durability)]
    durability: &'static str,
    #[schema(value_type = ErrorDetail)]
    error_detail: &'static str,
    /// Over how many partitions the users are spread.
    #[schema(minimum = 1, maximum = 256)]
    spread: u16,
    #[schema(required, value_type = Option<Quota>)]
    rate_user: Option<String>,
    #[schema(required, value_type = Option<Quota>)]
    rate_ip: Option<String>,
    #[schema(required, value_type = Option<Quota>)]
    rate_code: Option<String>,
    #[schema(required, value_type = Option<Quota>)]
    rate_namespace: Option<String>,
    #[schema(required, value_type = Option<Quota>)]
    rate_guess: Option<String>,
    /// Counts changes, from 1.
    #[schema(minimum = 1)]
    revision: u64,
    created_at: Millis,
    updated_at: Millis,
    /// Since when it answers nobody.
    #[schema(required)]
    archived_at: Option<Millis>,
    /// What the ledger knows, while the gate can not be asked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stale: bool,
}

impl<'a> View<'a> {
    fn new(name: &'a Namespace, settings: &Settings) -> Self {
        let quota = |quota: Option<Quota>| quota.map(|quota| quota.to_string());
        Self {
            name,
            membership: settings.membership.as_str(),
            spread: settings.spread,
            code_case: settings.code_case.as_str(),
            code_check: settings.code_check,
            durability: settings.durability.as_str(),
            error_detail: settings.error_detail.as_str(),
            rate_user: quota(settings.rate_user),
            rate_ip: quota(settings.rate_ip),
            rate_code: quota(settings.rate_code),
            rate_namespace: quota(settings.rate_namespace),
            rate_guess: quota(settings.rate_guess),
            revision: settings.revision,
            created_at: settings.created_at,
            updated_at: settings.updated_at,
            archived_at: settings.archived_at,
            stale: false,
        }
    }
}

fn missing() -> Problem {
    Refusal::NamespaceNotFound.into()
}

/// The rate limits that a body sets; null switches one off.
fn rates(body: &mut Body) -> [Option<Option<Quota>>; 5] {
    ["rate_user", "rate_ip", "rate_code", "rate_namespace", "rate_guess"]
        .map(|name| body.optional(name, Quota::parse).patch())
}

pub(super) async fn put(
    state: web::Data<State>,
    scope: Scope,
    http: HttpRequest,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    let new = &state.new_namespace;
    let membership = body.optional("membership", MembershipRule::parse).value();
    let code_case = body.optional("code_case", CodeCase::parse).value();
    let code_check = body
        .typed("code_check", |value| {
            value.as_bool().ok_or_else(|| "must be true or false".to_owned())
        })
        .value();
    let partitions = state.gate.keys().partitions().count() as u64;
    let spread = body.count("spread", partitions).value();
    let spread = spread.and_then(|spread| u16::try_from(spread).ok());
    let durability = durability(&state, &mut body).unwrap_or(new.durability);
    let error_detail =
        body.optional("error_detail", ErrorDetail::parse).value().unwrap_or(new.error_detail);
    let [user, ip, code, namespace, guess] = rates(&mut body);
    body.finish()?;
    // What is fixed and left out stays as it is.
    let question = ShowNamespace { namespace: scope.namespace.clone() };
    let fixed = match (membership, code_case, code_check, spread) {
        (Some(membership), Some(code_case), Some(code_check), Some(spread)) => {
            (membership, code_case, code_check, spread)
        }
        _ => match question.run(&state.gate).await? {
            Some((known, _)) => (known.membership, known.code_case, known.code_check, known.spread),
            None => (new.membership, new.code_case, new.code_check, new.spread),
        },
    };
    let rules = Rules {
        membership: membership.unwrap_or(fixed.0),
        code_case: code_case.unwrap_or(fixed.1),
        code_check: code_check.unwrap_or(fixed.2),
        durability,
        error_detail,
        rate_user: user.unwrap_or(new.rate_user),
        rate_ip: ip.unwrap_or(new.rate_ip),
        rate_code: code.unwrap_or(new.rate_code),
        rate_namespace: namespace.unwrap_or(new.rate_namespace),
        rate_guess: guess.unwrap_or(new.rate_guess),
        spread: spread.unwrap_or(fixed.3),
    };
    run(&state, scope, if_match(&http)?, Action::Put(rules)).await
}

pub(super) async fn patch(
    state: web::Data<State>,
    scope: Scope,
    http: HttpRequest,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    let fixed = ["membership", "code_case", "code_check"];
    body.refuse(&fixed, "can not be changed once a namespace is made");
    body.refuse_null(&["durability", "error_detail", "spread"]);
    let partitions = state.gate.keys().partitions().count() as u64;
    let spread = body.count("spread", partitions).value();
    let spread = spread.and_then(|spread| u16::try_from(spread).ok());
    let durability = durability(&state, &mut body);
    let error_detail = body.optional("error_detail", ErrorDetail::parse).value();
    let [rate_user, rate_ip, rate_code, rate_namespace, rate_guess] = rates(&mut body);
    body.finish()?;
    let patch = RulesPatch {
        durability,
        error_detail,
        rate_user,
        rate_ip,
        rate_code,
        rate_namespace,
        rate_guess,
        spread: None,
    };
    let Some(spread) = spread else {
        return run(&state, scope, if_match(&http)?, Action::Patch(patch)).await;
    };
    let asked = if_match(&http)?;
    loop {
        let question = ShowNamespace { namespace: scope.namespace.clone() };
        let (known, _) = question.run(&state.gate).await?.ok_or_else(missing)?;
        let spreading = spreading(&known, spread, &mut body)?;
        let patch = RulesPatch { spread: spreading, ..patch.clone() };
        // What is made of the rules as they were goes with them alone.
        let expected = asked.or(Some(known.revision));
        match run(&state, scope.clone(), expected, Action::Patch(patch)).await {
            Err(problem) if asked.is_none() && problem.code == Code::PreconditionFailed => {}
            other => return other,
        }
    }
}

pub(super) async fn archive(
    state: web::Data<State>,
    scope: Scope,
    http: HttpRequest,
) -> Result<HttpResponse, Problem> {
    run(&state, scope, if_match(&http)?, Action::Archive).await
}

/// Another spread after those that there were; nothing if it is what it is.
fn spreading(known: &Settings, spread: u16, body: &mut Body) -> Result<Option<Spreading>, Problem> {
    if spread == known.spread {
        return Ok(None);
    }
    if known.layouts.contains(&spread) {
        let detail = "is one that the namespace had before; take another number";
        body.wrong("spread", Code::InvalidRequest, detail);
        return Err(body.problem());
    }
    if known.layouts.len() >= LAYOUTS_MAX {
        let detail = format!("was changed {LAYOUTS_MAX} times, which is as often as it can be");
        body.wrong("spread", Code::InvalidRequest, &detail);
        return Err(body.problem());
    }
    let layouts = known.layouts.iter().copied().chain([known.spread]).collect();
    Ok(Some(Spreading { spread, layouts }))
}

/// The home has the new rules, and not every shard.
fn not_everywhere() -> Problem {
    Problem::new(
        Code::OutcomeUnknown,
        "The rules are changed, but the ledger has not come so far that all parts of the namespace could follow. They \
         will; send the same request again to hear that they have.",
    )
}

async fn run(
    state: &State,
    scope: Scope,
    expected_revision: Option<u64>,
    action: Action,
) -> Result<HttpResponse, Problem> {
    let deadline = Instant::now() + state.request_timeout;
    let archives = action == Action::Archive;
    let put = PutNamespace {
        namespace: scope.namespace,
        action,
        change: crate::ids::unique(),
        expected_revision,
        actor: scope.caller.actor(),
    };
    let answer = put.run(&state.gate).await?;
    if let NamespacePut::Created { settings, .. } | NamespacePut::Changed { settings, .. } = &answer
    {
        match state.spread.share_settings(&put.namespace, settings, deadline).await {
            Err(SpreadError::TooLate) => return Err(not_everywhere()),
            shared => shared?,
        }
    }
    let (mut response, settings) = match answer {
        NamespacePut::Changed { .. } if archives => return Ok(HttpResponse::NoContent().finish()),
        NamespacePut::Created { settings, .. } => (HttpResponse::Created(), settings),
        NamespacePut::Changed { settings, .. } => (HttpResponse::Ok(), settings),
        NamespacePut::NotFound => return Err(missing()),
        NamespacePut::PreconditionFailed { revision } => return Err(precondition_failed(revision)),
        NamespacePut::FixedRules { settings } => {
            let mut body = Body::default();
            let mut differs = |field: &str, asked: &str, known: &str| {
                if asked != known {
                    let detail =
                        format!("can not be changed once a namespace is made; here it is {known}");
                    body.wrong(field, Code::InvalidRequest, &detail);
                }
            };
            if let Action::Put(rules) = &put.action {
                let membership = rules.membership.as_str();
                differs("membership", membership, settings.membership.as_str());
                differs("code_case", rules.code_case.as_str(), settings.code_case.as_str());
                let word = |check| if check { "true" } else { "false" };
                differs("code_check", word(rules.code_check), word(settings.code_check));
                differs("spread", &rules.spread.to_string(), &settings.spread.to_string());
            }
            return Err(body.problem());
        }
    };
    response.insert_header((header::ETAG, format!("\"{}\"", settings.revision)));
    Ok(response.json(View::new(&put.namespace, &settings)))
}

pub(super) async fn show(state: web::Data<State>, scope: Scope) -> Result<HttpResponse, Problem> {
    let question = ShowNamespace { namespace: scope.namespace.clone() };
    let (settings, stale) = match question.run(&state.gate).await {
        Ok(shown) => (shown.map(|(settings, _)| settings), false),
        Err(error @ GateError::Unexpected { .. }) => return Err(error.into()),
        Err(_) => (state.ledger.namespace(&scope.namespace).await?, true),
    };
    let settings = settings.ok_or_else(missing)?;
    let shown = View { stale, ..View::new(&scope.namespace, &settings) };
    let mut response = HttpResponse::Ok();
    if !stale {
        response.insert_header((header::ETAG, format!("\"{}\"", settings.revision)));
    }
    Ok(response.json(shown))
}

pub(super) async fn list(
    state: web::Data<State>,
    caller: Caller,
    query: Query,
) -> Result<HttpResponse, Problem> {
    let page = query.page()?;
    let after = page.after(single)?;
    // A key that is tied to namespaces sees no others, and they are few.
    if let Some(only) = &caller.0.namespaces {
        let mut names: Vec<_> = only
            .iter()
            .filter(|name| after.as_deref().is_none_or(|after| name.as_str() > after))
            .collect();
        names.sort();
        let mut rows = Vec::new();
        for name in names {
            let known = state.ledger.namespace(name).await?;
            rows.extend(known.map(|settings| View::new(name, &settings)));
        }
        let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
        let is_last = rows.len() <= limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| !is_last).map(|last| [last.name.as_str()]);
        return Ok(page.answer(&rows, next.as_ref().map(<[_; 1]>::as_slice), None));
    }
    let found = state.ledger.namespaces(after.as_deref(), page.limit).await?;
    let rows: Vec<_> =
        found.rows.iter().map(|(name, settings)| View::new(name, settings)).collect();
    let next = found.next.as_deref().map(|name| [name]);
    Ok(page.answer(&rows, next.as_ref().map(<[_; 1]>::as_slice), None))
}

pub(super) mod docs {
    use super::{CodeCase, Durability, ErrorDetail, MembershipRule, Quota, View};
    use crate::domain::name::SPREAD_MAX;
    use crate::http::{
        openapi::{Fields, GATE, LEDGER, Operation, Tag, count, flag, word},
        problem::Code,
    };

    /// Not more than there are partitions.
    fn spread() -> serde_json::Value {
        count(SPREAD_MAX.into())
    }

    fn rates(fields: Fields) -> Fields {
        fields
            .may_be_null("rate_user", word::<Quota>(), "Attempts of a user; null switches it off.")
            .may_be_null("rate_ip", word::<Quota>(), "Attempts from an address.")
            .may_be_null("rate_code", word::<Quota>(), "Attempts on a code.")
            .may_be_null("rate_namespace", word::<Quota>(), "Attempts in the namespace.")
            .may_be_null(
                "rate_guess",
                word::<Quota>(),
                "Codes that do not exist, by address, else user, else API key.",
            )
    }

    pub(in crate::http) fn list() -> Operation {
        Operation::new("list_namespaces", Tag::Namespaces, "Namespaces, by name")
            .about("A key that is tied to namespaces sees no others.")
            .lists::<View>("Namespaces that the ledger has.")
            .problems(LEDGER)
    }

    pub(in crate::http) fn put() -> Operation {
        Operation::new("put_namespace", Tag::Namespaces, "Make a namespace, or set its rules")
            .about("What is left out gets its default, but for what is fixed, which stays. Brings an archived one back.")
            .if_match()
            .takes(rates(
                Fields::new()
                    .may_be_null("membership", word::<MembershipRule>(), "Fixed when it is made.")
                    .may_be_null("code_case", word::<CodeCase>(), "Fixed when it is made.")
                    .may_be_null("code_check", flag(), "Fixed when it is made.")
                    .may_be_null("durability", word::<Durability>(), "What answers promise at least.")
                    .may_be_null("error_detail", word::<ErrorDetail>(), "How much refusals tell.")
                    .may_be_null("spread", spread(), "Over how many partitions users are spread."),
            ))
            .answers::<View>(201, "It was made.")
            .with(&["ETag"])
            .leads_to(&[("show_namespace", &[]), ("change_namespace", &[]), ("archive_namespace", &[])])
            .answers::<View>(200, "Its rules were set.")
            .with(&["ETag"])
            .problems(&[Code::DurabilityUnavailable])
            .problems(GATE)
    }

    pub(in crate::http) fn show() -> Operation {
        Operation::new("show_namespace", Tag::Namespaces, "The rules of a namespace")
            .answers::<View>(200, "The namespace.")
            .with(&["ETag"])
            .problems(&[Code::NamespaceNotFound])
            .problems(LEDGER)
    }

    pub(in crate::http) fn patch() -> Operation {
        Operation::new("change_namespace", Tag::Namespaces, "Change some rules of a namespace")
            .about("A JSON merge patch (RFC 7396): null removes, what is left out stays.")
            .if_match()
            .takes(rates(
                Fields::new()
                    .may_have("durability", word::<Durability>(), "What answers promise at least.")
                    .may_have("error_detail", word::<ErrorDetail>(), "How much refusals tell.")
                    .may_have("spread", spread(), "Over how many partitions new users are spread."),
            ))
            .answers::<View>(200, "The namespace as it is now.")
            .with(&["ETag"])
            .problems(&[Code::DurabilityUnavailable, Code::NamespaceNotFound])
            .problems(GATE)
            .problems(LEDGER)
    }

    pub(in crate::http) fn archive() -> Operation {
        Operation::new("archive_namespace", Tag::Namespaces, "Archive a namespace")
            .about("It answers nobody from then on, and the ledger keeps all that it had.")
            .if_match()
            .answers_nothing(204, "It is archived.")
            .problems(&[Code::NamespaceNotFound])
            .problems(GATE)
    }
}
