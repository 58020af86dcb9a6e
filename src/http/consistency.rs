//! `GET …/consistency`: does the gate hold what the ledger says of this namespace, and does the ledger say what can be?
//! It looks at every key of the namespace's partition, also while both sides move, one such look at a time.

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
    partition: u16,
    /// Keys of the partition that were compared.
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
    let partition = keys.partition_of(&scope.namespace);
    let report =
        audit::run(&state.gate, &state.ledger, &state.progress, partition, Mend::No).await?;
    let own = |key: &str| keys.is_of(&scope.namespace, key);
    let differences: Vec<_> =
        report.differences.into_iter().filter(|difference| own(&difference.key)).collect();
    // Others may have a key of their own.
    let concerns =
        |namespace: Option<&str>| namespace.is_none_or(|name| name == scope.namespace.as_str());
    let broken = report.broken.into_iter().filter(|breach| concerns(breach.namespace.as_deref()));
    let broken: Vec<_> = broken.map(|breach| breach.what).collect();
    let busy: Vec<_> = report.busy.into_iter().filter(|key| own(key)).collect();
    Ok(HttpResponse::Ok().json(View {
        consistent: differences.is_empty() && broken.is_empty(),
        partition: partition.0,
        compared: report.compared,
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
                "Reads the whole partition, also while both sides move; one such look at a time.",
            )
            .answers::<View>(200, "What was found.")
            .problems(&[Code::Overloaded, Code::InvalidRequest])
            .problems(GATE)
            .problems(LEDGER)
    }
}
