//! `POST …/validations` says what a redemption would be told and spends nothing but the guessing budget:
//! `{"allowed": true}`, or `{"allowed": false, "code": …, "detail": …}`, both with 200.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    State,
    body::Body,
    problem::{Code, Problem, rate_headers},
    redemptions::settings_of,
    scope::Scope,
};
use crate::{
    domain::{EmailDomain, Outcome, UserId},
    gate::redeem::{Mode, Redeem},
};

/// What a redemption would be told.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = Validation)]
struct View {
    allowed: bool,
    /// The problem that a redemption would be.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, pattern = "^[a-z_]+$", example = "invite_exhausted")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    detail: Option<String>,
}

pub(super) async fn validate(
    state: web::Data<State>,
    scope: Scope,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    let settings = settings_of(&state, &scope.namespace).await?;
    let code = body.code(|text| settings.code(text));
    let user = body.optional("user", UserId::parse).value();
    let ip = body.ip();
    let email_domain = body.optional("email", EmailDomain::of_address).value();
    body.finish()?;
    let Some(code) = code else { return Err(body.problem()) };
    let caller = scope.caller.actor();
    let question = Redeem {
        namespace: scope.namespace,
        code,
        user,
        ip,
        email_domain,
        caller,
        mode: Mode::Validate,
    };
    let deadline = Instant::now() + state.request_timeout;
    let (answer, _) = state.spread.redeem(question, false, deadline).await?;
    let problem = match answer.outcome {
        Outcome::Allowed => None,
        Outcome::Refused(refusal) => Some(Problem::from(refusal)),
        Outcome::Granted(_) | Outcome::Replayed(_) | Outcome::Held { .. } => {
            return Err(Problem::unexpected("a validation was answered like something else"));
        }
    };
    // What says nothing about the code is an answer to the request itself.
    let problem = match problem {
        Some(problem) if problem.code.status().is_server_error() => {
            return Err(problem.with_rates(answer.rates));
        }
        Some(problem)
            if matches!(
                problem.code,
                Code::RateLimited | Code::TooManyAttempts | Code::NamespaceNotFound
            ) =>
        {
            return Err(problem.with_rates(answer.rates));
        }
        other => other,
    };
    let mut response = HttpResponse::Ok();
    for header in rate_headers(&answer.rates) {
        response.insert_header(header);
    }
    Ok(match problem {
        None => response.json(View { allowed: true, ..View::default() }),
        Some(problem) => response.json(View {
            allowed: false,
            code: Some(problem.code.as_str()),
            detail: Some(problem.detail().to_owned()),
        }),
    })
}

pub(super) mod docs {
    use super::{UserId, View};
    use crate::http::{
        openapi::{Fields, GATE, Operation, Tag, reference, word},
        problem::Code,
    };

    pub(in crate::http) fn validate() -> Operation {
        Operation::new("validate", Tag::Validations, "Say what a redemption would be told")
            .about("Spends nothing but the guessing budget.")
            .takes(
                Fields::new()
                    .needs("code", reference("TypedCode"), "What the person typed.")
                    .may_be_null("user", word::<UserId>(), "Your id for the person, if it has one.")
                    .may_be_null(
                        "ip",
                        reference("IpAddress"),
                        "The person's address, for rate limits.",
                    )
                    .may_be_null("email", reference("Email"), "The person's e-mail address."),
            )
            .answers::<View>(200, "Whether it would be granted, else why not.")
            .rated()
            .problems(&[
                Code::CodeMalformed,
                Code::NamespaceNotFound,
                Code::RateLimited,
                Code::TooManyAttempts,
            ])
            .problems(GATE)
    }
}
