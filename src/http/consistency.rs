//! `GET …/consistency`: does the gate hold what the ledger says of this namespace, and does the ledger say what can be?
//! It looks at every key of the partitions that the namespace lies in, also while both sides move, one such look at a time.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    State,
    page::Query,
    problem::{Code, Problem},
    scope::Scope,
};
use crate::audit::{self, AuditError, Difference, Mend};

/// Differences of one answer; `redeemer audit` lists all.
const SHOWN_MAX: usize = 1000;

/// What was found.
#[derive(Serialize, ToSchema)]
#[schema(as = Consistency)]
struct View<'a> {
    consistent: bool,
    /// The partition of the namespace itself.
    partition: u16,
    /// All that were looked at: several if the namespace is spread.
    #[schema(min_items = 1, max_items = 256)]
    partitions: Vec<u16>,
    /// Keys of them that were compared.
    compared: u64,
    differences_count: usize,
    #[schema(max_items = 1000)]
    differences: &'a [Difference],
    /// Laws that the ledger's own rows break.
    #[schema(max_items = 1000)]
    broken_laws: &'a [String],
    /// Keys that changed each time they were looked at.
    not_compared: Vec<String>,
}

pub(super) async fn show(
    state: web::Data<State>,
    scope: Scope,
    query: Query,
) -> Result<HttpResponse, Problem> {
    query.page()?;
    let Ok(_turn) = state.audits.try_acquire() else {
        return Err(Problem::new(Code::Overloaded, "Another look is under way. Try again soon."));
    };
    let keys = state.gate.keys();
    let parts = state.ledger.parts(&scope.namespace).await?;
    let own = |key: &str| parts.iter().any(|part| keys.is_of(part, key));
    // Others may have a key of their own.
    let concerns = |namespace: Option<&str>| {
        namespace.is_none_or(|name| parts.iter().any(|part| part.as_str() == name))
    };
    let partitions = state.partitions_of(&parts);
    let (mut compared, mut differences) = (0, Vec::new());
    let (mut broken, mut busy) = (Vec::new(), Vec::new());
    for partition in &partitions {
        let report = audit::run(&state.gate, &state.ledger, &state.progress, *partition, Mend::No);
        let report = report.await?;
        compared += report.compared;
        differences.extend(report.differences.into_iter().filter(|found| own(&found.key)));
        let breaches = report.broken.into_iter();
        let breaches = breaches.filter(|breach| concerns(breach.namespace.as_deref()));
        broken.extend(breaches.map(|breach| breach.what));
        busy.extend(report.busy.into_iter().filter(|key| own(key)));
    }
    Ok(HttpResponse::Ok().json(View {
        consistent: differences.is_empty() && broken.is_empty(),
        partition: keys.partition_of(&scope.namespace).0,
        partitions: partitions.iter().map(|partition| partition.0).collect(),
        compared,
        differences_count: differences.len(),
        differences: &differences[..differences.len().min(SHOWN_MAX)],
        broken_laws: &broken[..broken.len().min(SHOWN_MAX)],
        not_compared: busy,
    }))
}

impl From<AuditError> for Problem {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Gate(error) => error.into(),
            AuditError::Ledger(error) => error.into(),
            AuditError::DeadLetters(_) => {
                Self::unexpected("an audit that mends nothing minds dead letters")
            }
            AuditError::Behind => Self::new(
                Code::LedgerUnavailable,
                "The ledger is behind the gate and does not come nearer. Ask the operator to look at `redeemer status`.",
            ),
        }
    }
}

pub(super) mod docs {
    use super::View;
    use crate::http::{
        openapi::{GATE, LEDGER, Operation, Tag},
        problem::Code,
    };

    pub(in crate::http) fn show() -> Operation {
        Operation::new("check_consistency", Tag::Namespaces, "Do gate and ledger agree?")
            .about(
                "Reads the whole partition, or all of a namespace that is spread, also while both sides move; one such look \
                 at a time.",
            )
            .answers::<View>(200, "What was found.")
            .problems(&[Code::Overloaded, Code::InvalidRequest])
            .problems(GATE)
            .problems(LEDGER)
    }
}
