//! `lua/survey.lua`: what a partition of this Redis is open on, and how far its outbox goes.

use std::time::Duration;

use super::{
    Gate, GateError,
    fields::{Fields, millis},
    key::Keyspace,
    reply::Reply,
    script::{Call, SURVEY},
};
use crate::domain::{Cursor, Fence, Millis, Partition};

/// What Redis has of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// `master_replid` of this server: the history that it is on; empty of a replica, which is on its primary's.
    pub lineage: String,
    /// Its clock.
    pub now: Millis,
    /// Changes in the outbox.
    pub outbox_len: u64,
    /// When the first of them was made.
    pub oldest_at: Option<Millis>,
    /// The first and the last change's place.
    pub outbox: Option<(Cursor, Cursor)>,
    /// What the partition is open on; nothing when Redis knows nothing of it.
    pub meta: Option<Meta>,
}

/// The partition's own word on what it is open on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The deployment that opened it.
    pub deployment: String,
    /// The history that it was opened on; empty while it is closed.
    pub lineage: String,
    /// Its epoch and how many changes it has seen in it.
    pub cursor: Cursor,
    /// Where the ledger was when it was opened.
    pub opened_from: Option<Cursor>,
    /// Whether a rebuild began and did not finish.
    pub building: bool,
}

impl Survey {
    /// How long ago something was, by the clock of Redis.
    #[must_use]
    pub fn since(&self, at: Millis) -> Duration {
        Duration::from_millis(u64::try_from(self.now.as_ms() - at.as_ms()).unwrap_or_default())
    }

    /// Whether every fenced script with this fence would be served here.
    #[must_use]
    pub fn is_open_on(&self, fence: &Fence) -> bool {
        self.lineage == fence.lineage
            && self.meta.as_ref().is_some_and(|meta| {
                meta.deployment == fence.deployment
                    && meta.lineage == fence.lineage
                    && meta.cursor.epoch == fence.epoch
            })
    }
}

/// Looks at a partition, whether or not it is admitted.
///
/// # Errors
/// [`GateError`] when there is no answer, or it is a replica's.
pub async fn run(gate: &Gate, partition: Partition) -> Result<Survey, GateError> {
    let survey = read(&gate.once(partition, &call(gate.keys(), partition)).await?)?;
    if survey.lineage.is_empty() {
        gate.inner.servers.doubt();
        let cause = (redis::ErrorKind::Server(redis::ServerErrorKind::ReadOnly), "it is a replica");
        return Err(GateError::Unavailable {
            doing: "looking at a partition",
            cause: cause.into(),
        });
    }
    Ok(survey)
}

pub(super) fn call(keys: &Keyspace, partition: Partition) -> Call {
    Call::new(&SURVEY, vec![keys.meta(partition), keys.outbox(partition)], Vec::new())
}

pub(super) fn read(value: &redis::Value) -> Result<Survey, GateError> {
    let mut reply = Reply::new(&SURVEY, value)?;
    let word = reply.text()?;
    if word != "survey" {
        return Err(reply.unknown(word));
    }
    let lineage = reply.text()?.to_owned();
    let now = reply.parsed_number(Millis::from_ms)?;
    let outbox_len = reply.number()?;
    let first: Option<Cursor> = reply.optional(str::parse)?;
    // A change that nobody understands may have been made at any time.
    let oldest_at = millis(reply.text()?).ok();
    let last: Option<Cursor> = reply.optional(str::parse)?;
    let fields = reply.fields()?;
    let meta = if fields.0.is_empty() {
        None
    } else {
        Some(meta(&fields).map_err(|error| reply.unknown(&error.0))?)
    };
    Ok(Survey { lineage, now, outbox_len, oldest_at, outbox: first.zip(last), meta })
}

fn meta(fields: &Fields) -> Result<Meta, crate::domain::Malformed> {
    Ok(Meta {
        deployment: fields.text("deployment")?.to_owned(),
        lineage: fields.text("lineage")?.to_owned(),
        cursor: Cursor { epoch: fields.number("epoch")?, seq: fields.number("seq")? },
        opened_from: fields.optional("opened_from", str::parse)?,
        building: fields.0.contains_key("builder"),
    })
}
