//! Members: who is in which group. `PUT` lets a user join another way than by a code, under the same rule; `DELETE` ends
//! a membership, which leaves the use spent and lets the user redeem again. One user is shown as the gate has it, the
//! list as the ledger has it.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    State,
    body::Body,
    page::{Query, pair},
    problem::{Code, Problem},
    scope::Scope,
};
use crate::{
    domain::{Group, Member, Millis, Namespace, RedemptionId, Refusal, UserId},
    gate::{
        GateError,
        join::{Join, Joined},
        leave::{Leave, Left},
        show_member::ShowMember,
    },
    ledger::MemberFilter,
    spread::SpreadError,
};

/// A membership as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Member)]
pub(super) struct View<'a> {
    namespace: Namespace,
    user: &'a UserId,
    group: &'a Group,
    /// The redemption that made the user a member; null for one who joined another way.
    #[schema(required)]
    redemption: Option<RedemptionId>,
    joined_at: Millis,
    /// What the ledger knows, while the gate can not be asked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stale: bool,
}

impl<'a> View<'a> {
    pub(super) fn new(member: &'a Member, stale: bool) -> Self {
        let Member { namespace, user, group, redemption, joined_at } = member;
        let namespace = namespace.whole();
        Self { namespace, user, group, redemption: *redemption, joined_at: *joined_at, stale }
    }
}

/// All memberships of a user.
#[derive(Serialize, ToSchema)]
#[schema(as = Memberships)]
struct AllView<'a> {
    namespace: &'a Namespace,
    user: &'a UserId,
    memberships: Vec<View<'a>>,
    /// What the ledger knows, while the gate can not be asked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stale: bool,
}

fn missing() -> Problem {
    Problem::new(Code::MemberNotFound, "The user is not a member.")
}

fn namespace_missing() -> Problem {
    Refusal::NamespaceNotFound.into()
}

/// The user, and the group where the path has one.
fn named(user: &str, group: Option<&str>) -> Result<(UserId, Option<Group>), Problem> {
    let mut path = Body::default();
    let user = path.checked("user", UserId::parse(user));
    let group = group.and_then(|group| path.checked("group", Group::parse(group)));
    path.finish()?;
    user.map(|user| (user, group)).ok_or_else(|| path.problem())
}

/// The memberships of a user, and whether they come from the ledger because the gate can not be asked.
async fn memberships(
    state: &State,
    namespace: &Namespace,
    user: &UserId,
) -> Result<(Vec<Member>, bool), Problem> {
    let asked = async {
        let namespace = state.spread.shard_of(namespace, user).await?;
        ShowMember { namespace, user: user.clone() }.run(&state.gate).await
    };
    match asked.await {
        Ok(members) => Ok((members, false)),
        Err(error @ GateError::Unexpected { .. }) => Err(error.into()),
        Err(_) => {
            let filter = MemberFilter { user: Some(user.clone()), group: None };
            let parts = state.ledger.parts(namespace).await?;
            Ok((state.ledger.members_of(&parts, &filter, None, 1000).await?.rows, true))
        }
    }
}

pub(super) async fn show(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let (user, _) = named(&path.1, None)?;
    let (members, stale) = memberships(&state, &scope.namespace, &user).await?;
    if members.is_empty() {
        return Err(missing());
    }
    let memberships = members.iter().map(|member| View::new(member, false)).collect();
    let (namespace, user) = (&scope.namespace, &user);
    Ok(HttpResponse::Ok().json(AllView { namespace, user, memberships, stale }))
}

pub(super) async fn show_one(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String, String)>,
) -> Result<HttpResponse, Problem> {
    let (user, group) = named(&path.1, Some(&path.2))?;
    let (members, stale) = memberships(&state, &scope.namespace, &user).await?;
    let member = members
        .into_iter()
        .find(|member| Some(&member.group) == group.as_ref())
        .ok_or_else(missing)?;
    Ok(HttpResponse::Ok().json(View::new(&member, stale)))
}

pub(super) async fn join(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String, String)>,
) -> Result<HttpResponse, Problem> {
    let (user, group) = named(&path.1, Some(&path.2))?;
    let Some(group) = group else { return Err(missing()) };
    let actor = scope.caller.actor();
    let namespace = state.spread.shard_of(&scope.namespace, &user).await?;
    match (Join { namespace, user, group, actor }).run(&state.gate).await? {
        Joined::Elsewhere => Err(SpreadError::TooLate.into()),
        Joined::Joined(member) => Ok(HttpResponse::Created().json(View::new(&member, false))),
        Joined::Already(member) => Ok(HttpResponse::Ok().json(View::new(&member, false))),
        Joined::AlreadyMember { group, redemption } => {
            Err(Refusal::AlreadyMember { group, redemption }.into())
        }
        Joined::NamespaceNotFound => Err(namespace_missing()),
    }
}

pub(super) async fn leave(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String, String)>,
) -> Result<HttpResponse, Problem> {
    let (user, group) = named(&path.1, Some(&path.2))?;
    left(&state, scope, user, group).await
}

pub(super) async fn leave_all(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let (user, _) = named(&path.1, None)?;
    left(&state, scope, user, None).await
}

async fn left(
    state: &State,
    scope: Scope,
    user: UserId,
    group: Option<Group>,
) -> Result<HttpResponse, Problem> {
    let actor = scope.caller.actor();
    let namespace = state.spread.shard_of(&scope.namespace, &user).await?;
    match (Leave { namespace, user, group, actor }).run(&state.gate).await? {
        Left::Left(_) => Ok(HttpResponse::NoContent().finish()),
        Left::NotMember => Err(missing()),
        Left::NamespaceNotFound => Err(namespace_missing()),
    }
}

pub(super) async fn list(
    state: web::Data<State>,
    scope: Scope,
    mut query: Query,
) -> Result<HttpResponse, Problem> {
    let filter = MemberFilter {
        user: query.parameters.optional("user", UserId::parse).value(),
        group: query.parameters.optional("group", Group::parse).value(),
    };
    let page = query.page()?;
    let after = page.after(pair)?;
    let parts = state.ledger.parts(&scope.namespace).await?;
    let found = state.ledger.members_of(&parts, &filter, after.as_ref(), page.limit).await?;
    let as_of = state.as_of(&parts).await?;
    let next = found.next.as_ref().map(|(user, group)| [user.as_str(), group.as_str()]);
    let rows: Vec<_> = found.rows.iter().map(|member| View::new(member, false)).collect();
    Ok(page.answer(&rows, next.as_ref().map(<[_; 2]>::as_slice), as_of))
}

pub(super) mod docs {
    use super::{AllView, Group, UserId, View};
    use crate::http::{
        openapi::{GATE, LEDGER, Operation, Tag, word},
        problem::Code,
    };

    pub(in crate::http) fn list() -> Operation {
        Operation::new("list_members", Tag::Members, "Members, by user")
            .query("user", word::<UserId>(), "This user.")
            .query("group", word::<Group>(), "Of this group.")
            .lists::<View>("Members that the ledger has.")
            .problems(LEDGER)
    }

    pub(in crate::http) fn show() -> Operation {
        Operation::new("show_member", Tag::Members, "A user's memberships")
            .answers::<AllView>(200, "All memberships of the user.")
            .problems(&[Code::MemberNotFound])
            .problems(LEDGER)
    }

    pub(in crate::http) fn show_one() -> Operation {
        Operation::new("show_membership", Tag::Members, "One membership")
            .answers::<View>(200, "The membership.")
            .problems(&[Code::MemberNotFound])
            .problems(LEDGER)
    }

    pub(in crate::http) fn join() -> Operation {
        Operation::new("join", Tag::Members, "Let a user join without a code")
            .about("The membership rule of the namespace holds.")
            .answers::<View>(201, "The user has joined.")
            .leads_to(&[("show_membership", &["user", "group"]), ("leave", &["user", "group"])])
            .answers::<View>(200, "The user was in the group already.")
            .problems(&[Code::AlreadyMember, Code::NamespaceNotFound])
            .problems(GATE)
    }

    pub(in crate::http) fn leave() -> Operation {
        Operation::new("leave", Tag::Members, "End a membership")
            .about("The use stays spent, and the user may redeem again.")
            .answers_nothing(204, "The user has left.")
            .problems(&[Code::MemberNotFound, Code::NamespaceNotFound])
            .problems(GATE)
    }

    pub(in crate::http) fn leave_all() -> Operation {
        Operation::new("leave_all", Tag::Members, "End all memberships of a user")
            .answers_nothing(204, "The user has left.")
            .problems(&[Code::MemberNotFound, Code::NamespaceNotFound])
            .problems(GATE)
    }
}
