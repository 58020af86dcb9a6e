//! `GET /v1/status`: each partition, as the ledger has it and as its outbox in Redis is now.

use actix_web::{HttpResponse, web};
use futures_util::future::join_all;
use serde::Serialize;
use utoipa::ToSchema;

use super::{State, problem::Problem};
use crate::{
    domain::{Millis, Partition, Position},
    gate::survey::{self, Survey},
    ledger::{PartitionRow, PartitionState},
};

/// How the deployment is, as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Status)]
struct View<'a> {
    version: &'static str,
    /// What the node that answers is called where it leads partitions.
    node: &'a str,
    #[schema(min_items = 1, max_items = 256)]
    partitions: Vec<PartitionView<'a>>,
}

/// A partition as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = PartitionStatus)]
struct PartitionView<'a> {
    partition: u16,
    #[schema(value_type = PartitionState)]
    state: &'static str,
    /// Why it is closed, for people.
    #[schema(required)]
    reason: Option<&'a str>,
    /// How often it was opened anew.
    epoch: u64,
    /// The last change that the ledger has.
    position: Position,
    /// When the ledger last got something of it.
    #[schema(required)]
    synced_at: Option<Millis>,
    /// The node that carries its changes over; null while there is none.
    #[schema(required)]
    leader: Option<&'a str>,
    /// Changes that the ledger does not have yet; null while Redis can not be asked.
    #[schema(required)]
    outbox_entries: Option<u64>,
    /// How long the oldest of them has waited.
    #[schema(required)]
    outbox_age_ms: Option<u64>,
}

impl<'a> PartitionView<'a> {
    fn new(row: &'a PartitionRow, survey: Option<&Survey>) -> Self {
        let age = survey.and_then(|survey| Some(survey.since(survey.oldest_at?)));
        Self {
            partition: row.partition.0,
            state: row.state.as_str(),
            reason: row.reason.as_deref(),
            epoch: row.epoch,
            position: Position { partition: row.partition, cursor: row.cursor },
            synced_at: row.synced_at,
            leader: row.lease_owner.as_deref().filter(|_| row.lease_live),
            outbox_entries: survey.map(|survey| survey.outbox_len),
            outbox_age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

pub(super) async fn show(state: web::Data<State>) -> Result<HttpResponse, Problem> {
    let rows = state.ledger.partitions().await?;
    let look = async |partition: Partition| survey::run(&state.gate, partition).await.ok();
    let surveys = join_all(rows.iter().map(|row| look(row.partition))).await;
    let partitions = rows.iter().zip(&surveys);
    let partitions =
        partitions.map(|(row, survey)| PartitionView::new(row, survey.as_ref())).collect();
    let version = env!("CARGO_PKG_VERSION");
    Ok(HttpResponse::Ok().json(View { version, node: &state.node, partitions }))
}

pub(super) mod docs {
    use super::View;
    use crate::http::openapi::{LEDGER, Operation, Tag};

    pub(in crate::http) fn show() -> Operation {
        Operation::new(
            "show_status",
            Tag::Service,
            "Which partitions serve, who leads them, how far the ledger is",
        )
        .answers::<View>(200, "Each partition.")
        .problems(LEDGER)
    }
}
