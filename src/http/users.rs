//! `DELETE …/users/{user}` forgets a person: another name, which says nothing, stands in the place of the user id in gate
//! and ledger, and what the application had said about the redemptions is gone. Uses stay spent, and all counts hold.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    State,
    problem::{Code, Problem},
    scope::Scope,
};
use crate::{
    domain::{Position, Refusal, UserId},
    gate::{
        audit,
        erase_user::{EraseUser, Erased},
        release::Release,
    },
};

/// What came of it.
#[derive(Serialize, ToSchema)]
#[schema(as = ErasedUser)]
struct View {
    /// What stands in the place of the user id.
    alias: UserId,
}

fn user_of(text: &str) -> Result<UserId, Problem> {
    UserId::parse(text).map_err(|_| missing())
}

fn missing() -> Problem {
    Problem::new(Code::UserNotFound, "Nothing is known of such a user in this namespace.")
}

pub(super) async fn erase(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let deadline = Instant::now() + state.request_timeout;
    let user = user_of(&path.1)?;
    let partition = state.gate.keys().partition_of(&scope.namespace);
    // One of them may speak of the person, and would bring the name back when it is replayed.
    if state.ledger.dead_letters(partition).await? > 0 {
        return Err(Problem::new(
            Code::DeadLettersWait,
            "The ledger could not take some changes of this partition, which may speak of the person. Ask the operator to \
             replay or drop them (redeemer dead-letters), then try again.",
        ));
    }
    // The ledger knows what is bound to the user once it is as far as the gate is now.
    let now = audit::read(&state.gate, partition, &[]).await?.at;
    reach(&state, Position { partition, cursor: now }, deadline).await.map_err(|()| {
        Problem::new(
            Code::LedgerUnavailable,
            "The ledger is behind the gate. Nothing was done; try again soon.",
        )
    })?;
    if !state.ledger.knows_user(&scope.namespace, &user).await? {
        return Err(missing());
    }
    let actor = scope.caller.actor();
    for reservation in state.ledger.reservations_of(&scope.namespace, &user).await? {
        Release { reservation, actor: actor.clone() }.run(&state.gate).await?;
    }
    let invites = state.ledger.invites_bound_to(&scope.namespace, &user).await?;
    let alias = UserId::erased(crate::ids::random());
    let erase = EraseUser {
        namespace: scope.namespace.clone(),
        user: user.clone(),
        alias: alias.clone(),
        invites,
        actor,
    };
    match erase.run(&state.gate).await? {
        Erased::Erased { cursor } => {
            state.gate.limited().forget(&scope.namespace, &user);
            reach(&state, Position { partition, cursor }, deadline).await.map_err(|()| {
                Problem::new(
                    Code::OutcomeUnknown,
                    "The gate has forgotten the user, and the ledger is not known to have done so yet. Repeat the request \
                     until it is answered with 404: then nothing is left.",
                )
                .with("reached", "gate")
            })?;
            Ok(HttpResponse::Ok().json(View { alias }))
        }
        Erased::NamespaceNotFound => Err(Refusal::NamespaceNotFound.into()),
    }
}

/// Waits until the ledger has come to a place.
async fn reach(state: &State, position: Position, deadline: Instant) -> Result<(), ()> {
    tokio::time::timeout_at(deadline, state.progress.wait(position)).await.map(drop).map_err(drop)
}

pub(super) mod docs {
    use super::View;
    use crate::http::{
        openapi::{GATE, LEDGER, Operation, Tag},
        problem::Code,
    };

    pub(in crate::http) fn erase() -> Operation {
        Operation::new("erase_user", Tag::Members, "Forget a person")
            .about(
                "Answers once the ledger has forgotten too. Uses stay spent, what is held is given back, and the same id \
                 is a new person from then on.",
            )
            .answers::<View>(200, "Another name stands in the place of the user id.")
            .problems(&[Code::UserNotFound, Code::NamespaceNotFound, Code::DeadLettersWait])
            .problems(GATE)
            .problems(LEDGER)
    }
}
