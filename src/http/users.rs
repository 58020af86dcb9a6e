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
    domain::{Namespace, Position, Positions, Refusal, UserId},
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
    let parts = state.ledger.parts(&scope.namespace).await?;
    let partitions = state.partitions_of(&parts);
    // One of them may speak of the person, and would bring the name back when it is replayed.
    for partition in &partitions {
        if state.ledger.dead_letters(*partition).await? > 0 {
            return Err(Problem::new(
                Code::DeadLettersWait,
                "The ledger could not take some changes of this partition, which may speak of the person. Ask the \
                 operator to replay or drop them (redeemer dead-letters), then try again.",
            ));
        }
    }
    // The ledger knows what is bound to the user once it is as far as the gate is now.
    for partition in partitions {
        let now = audit::read(&state.gate, partition, &[]).await?.at;
        reach(&state, Position { partition, cursor: now }, deadline).await.map_err(|()| {
            Problem::new(
                Code::LedgerUnavailable,
                "The ledger is behind the gate. Nothing was done; try again soon.",
            )
        })?;
    }
    let (home, shards) = (&parts[0], &parts[1..]);
    let shard = state.spread.shard_of(home, &user).await?;
    let mut about = Vec::new();
    for part in &parts {
        if state.ledger.knows_user(part, &user).await? {
            about.push(part.clone());
        }
    }
    if about.is_empty() {
        return Err(missing());
    }
    // The namespace itself first, whose log says it once for all: an invite that is copied from now on names nobody any
    // more. Then the user's own shard, also where only a change is under way that the ledger does not have yet.
    about.retain(|part| part != home && *part != shard);
    if shard != *home {
        about.insert(0, shard);
    }
    about.insert(0, home.clone());
    let alias = UserId::erased(crate::ids::random());
    while !about.is_empty() {
        let mut reached = Positions::default();
        for part in &about {
            match erase_in(&state, part, &user, &alias, &scope.caller.actor()).await? {
                Erased::Erased { cursor } => {
                    let partition = state.gate.keys().partition_of(part);
                    reached.set(Position { partition, cursor });
                }
                Erased::NamespaceNotFound if part == home => {
                    return Err(Refusal::NamespaceNotFound.into());
                }
                // A shard that nothing was ever copied to.
                Erased::NamespaceNotFound => {}
            }
        }
        state.gate.limited().forget(home, &user);
        for position in reached.iter() {
            reach(&state, position, deadline).await.map_err(|()| {
                Problem::new(
                    Code::OutcomeUnknown,
                    "The gate has forgotten the user, and the ledger is not known to have done so yet. Repeat the request \
                     until it is answered with 404: then nothing is left.",
                )
                .with("reached", "gate")
            })?;
        }
        // An invite may have been copied meanwhile, by one who had read it before.
        about.clear();
        for part in shards {
            if !state.ledger.invites_bound_to(part, &user).await?.is_empty() {
                about.push(part.clone());
            }
        }
    }
    Ok(HttpResponse::Ok().json(View { alias }))
}

/// Puts another name in the place of a user's in a part of the namespace.
async fn erase_in(
    state: &State,
    part: &Namespace,
    user: &UserId,
    alias: &UserId,
    actor: &str,
) -> Result<Erased, Problem> {
    for reservation in state.ledger.reservations_of(part, user).await? {
        Release { reservation, actor: actor.to_owned() }.run(&state.gate).await?;
    }
    let erase = EraseUser {
        namespace: part.clone(),
        user: user.clone(),
        alias: alias.clone(),
        invites: state.ledger.invites_bound_to(part, user).await?,
        actor: actor.to_owned(),
    };
    Ok(erase.run(&state.gate).await?)
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
