//! `GET …/stats`: how requests ended over time, what is left, and how far the ledger is.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    State,
    page::Query,
    problem::{Code, Problem},
    scope::Scope,
};
use crate::{
    domain::{Malformed, Millis, Namespace, Position, Positions},
    gate::survey,
    outcomes::MINUTE_MS,
};

/// The most steps of an answer.
const STEPS_MAX: u64 = 1500;
/// What is shown unless the query says otherwise: an hour.
const SPAN_MS: u64 = 60 * MINUTE_MS;

/// How long a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Minute,
    Hour,
    Day,
}

impl Step {
    const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    fn parse(text: &str) -> Result<Self, Malformed> {
        let known = Self::ALL.into_iter().find(|step| step.as_str() == text);
        known.ok_or_else(|| Malformed("step is minute, hour or day".to_owned()))
    }

    fn ms(self) -> u64 {
        match self {
            Self::Minute => MINUTE_MS,
            Self::Hour => 60 * MINUTE_MS,
            Self::Day => 24 * 60 * MINUTE_MS,
        }
    }
}

/// How it goes in a namespace.
#[derive(Serialize, ToSchema)]
#[schema(as = Stats)]
struct View<'a> {
    namespace: &'a Namespace,
    from: Millis,
    to: Millis,
    step: &'static str,
    /// The sums of all steps.
    totals: BTreeMap<String, u64>,
    /// Those in which something happened, in order.
    steps: Vec<StepView>,
    invites: Invites,
    sync: Sync,
}

/// One step.
#[derive(Serialize, ToSchema)]
#[schema(as = StatsStep)]
struct StepView {
    /// When it began.
    at: Millis,
    /// granted, replayed, or the code of a refusal, and how often.
    outcomes: BTreeMap<String, u64>,
}

/// What the invites hold, as the ledger has it.
#[derive(Serialize, ToSchema)]
#[schema(as = StatsInvites)]
struct Invites {
    active: u64,
    scheduled: u64,
    exhausted: u64,
    expired: u64,
    disabled: u64,
    /// Spent uses of all of them.
    uses: u64,
    /// What is left of those that are active and have a limit.
    remaining: u64,
    /// Active ones without a limit.
    unlimited: u64,
}

/// How far the ledger is.
#[derive(Serialize, ToSchema)]
#[schema(as = StatsSync)]
struct Sync {
    /// When it last got something of this namespace's partition; of several, of the one that this was longest ago.
    #[schema(required)]
    as_of: Option<Millis>,
    /// The last change that it has.
    position: Positions,
    /// Changes of the partition that it does not have yet, in a namespace that is spread of the one that has most; null
    /// while Redis can not be asked.
    #[schema(required)]
    behind: Option<u64>,
}

pub(super) async fn show(
    state: web::Data<State>,
    scope: Scope,
    mut query: Query,
) -> Result<HttpResponse, Problem> {
    let now = crate::ids::now();
    let step = query.parameters.optional("step", Step::parse).value().unwrap_or(Step::Minute);
    let to = query.parameters.time("to").value().unwrap_or_else(|| now.plus_ms(step.ms()));
    let from = query
        .parameters
        .time("from")
        .value()
        .unwrap_or_else(|| minus(to, SPAN_MS.max(60 * step.ms())));
    let span = u64::try_from(to.as_ms() - from.as_ms()).unwrap_or_default();
    if span == 0 {
        query.parameters.wrong("from", Code::InvalidRequest, "must lie before to");
    } else if span.div_ceil(step.ms()) > STEPS_MAX {
        let detail =
            format!("is so early that there are more than {STEPS_MAX} steps; take longer ones");
        query.parameters.wrong("from", Code::InvalidRequest, &detail);
    }
    query.parameters.finish()?;
    // Whole steps.
    let from = minus(from, u64::try_from(from.as_ms()).unwrap_or_default() % step.ms());
    let namespace = &scope.namespace;
    if state.ledger.namespace(namespace).await?.is_none()
        && state.gate.settings(namespace).await?.is_none()
    {
        return Err(Problem::new(Code::NamespaceNotFound, "There is no such namespace."));
    }
    let (mut totals, mut steps): (BTreeMap<String, u64>, Vec<StepView>) = Default::default();
    for (at, outcome, count) in state.ledger.outcomes(namespace, from, to, step.ms()).await? {
        *totals.entry(outcome.clone()).or_default() += count;
        if steps.last().is_none_or(|last| last.at != at) {
            steps.push(StepView { at, outcomes: BTreeMap::new() });
        }
        if let Some(last) = steps.last_mut() {
            last.outcomes.insert(outcome, count);
        }
    }
    let parts = state.ledger.parts(namespace).await?;
    let found = state.ledger.invite_totals(namespace, &parts[1..], now).await?;
    let sync = sync(&state, &parts).await?;
    let shown = View {
        namespace,
        from,
        to,
        step: step.as_str(),
        totals,
        steps,
        invites: Invites {
            active: found.active,
            scheduled: found.scheduled,
            exhausted: found.exhausted,
            expired: found.expired,
            disabled: found.disabled,
            uses: found.uses,
            remaining: found.remaining,
            unlimited: found.unlimited,
        },
        sync,
    };
    Ok(HttpResponse::Ok().json(shown))
}

/// How far the ledger is with these parts of a namespace.
async fn sync(state: &State, parts: &[Namespace]) -> Result<Sync, Problem> {
    let mut sync = Sync { as_of: None, position: Positions::default(), behind: Some(0) };
    for (number, partition) in state.partitions_of(parts).into_iter().enumerate() {
        // The gate first: what the ledger has by then is not behind.
        let gate = survey::run(&state.gate, partition).await.ok().and_then(|survey| survey.meta);
        let row = state.ledger.partition(partition).await?;
        let behind = gate.map(|meta| meta.cursor).and_then(|gate| {
            let is_same = gate.epoch == row.cursor.epoch;
            is_same.then(|| gate.seq.saturating_sub(row.cursor.seq))
        });
        sync.as_of = if number == 0 { row.synced_at } else { sync.as_of.min(row.synced_at) };
        sync.position.set(Position { partition, cursor: row.cursor });
        sync.behind = sync.behind.zip(behind).map(|(one, other)| one.max(other));
    }
    Ok(sync)
}

fn minus(time: Millis, ms: u64) -> Millis {
    Millis::from_ms(time.as_ms().saturating_sub_unsigned(ms)).unwrap_or_default()
}

pub(super) mod docs {
    use super::{Millis, Step, View};
    use crate::http::{
        openapi::{GATE, LEDGER, Operation, Tag, word},
        problem::Code,
    };

    pub(in crate::http) fn show() -> Operation {
        let steps = serde_json::json!({"type": "string", "enum": Step::ALL.map(Step::as_str)});
        Operation::new("show_stats", Tag::Namespaces, "How it goes in a namespace")
            .query(
                "from",
                word::<Millis>(),
                "From this moment on; 60 steps before to, unless it is named.",
            )
            .query("to", word::<Millis>(), "Up to this moment; now, unless it is named.")
            .query("step", steps, "How long a step is: a minute, unless it is named.")
            .answers::<View>(200, "Counts by outcome, what is left, and how far the ledger is.")
            .problems(&[Code::NamespaceNotFound])
            .problems(GATE)
            .problems(LEDGER)
    }
}
