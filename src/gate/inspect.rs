//! What Redis holds of a code or a user, with the commands that show it, for people with `redis-cli`.

use redis::{RedisError, Value};

use super::{
    Gate, GateError, link,
    redeem::{self, Mode, Redeem},
    show_namespace::ShowNamespace,
    survey,
};
use crate::domain::{Code, Fence, Namespace, Policy, UserId};

/// What to look at.
#[derive(Debug, Clone)]
pub struct Inspect {
    /// Where.
    pub namespace: Namespace,
    /// A code, normalised.
    pub code: Option<Code>,
    /// A user.
    pub user: Option<UserId>,
}

/// A command and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its words.
    pub command: Vec<String>,
    /// The reply, line by line.
    pub reply: Vec<String>,
}

/// The words of a call of `lua/redeem.lua` by `redis-cli --eval`: its keys and its values. It asks whether the code
/// would be granted and spends nothing but the guessing budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    /// KEYS.
    pub keys: Vec<String>,
    /// ARGV.
    pub args: Vec<String>,
}

impl Inspect {
    /// Looks, by plain reads.
    ///
    /// # Errors
    /// [`GateError::Unavailable`] when Redis does not answer.
    pub async fn run(&self, gate: &Gate) -> Result<Vec<Shown>, GateError> {
        let keys = gate.keys();
        let partition = keys.partition_of(&self.namespace);
        let mut commands = vec![
            vec!["HGETALL".to_owned(), keys.meta(partition)],
            vec!["HGETALL".to_owned(), keys.settings(&self.namespace)],
        ];
        if let Some(code) = &self.code {
            commands.push(vec!["HGETALL".to_owned(), keys.invite(&self.namespace, code)]);
        }
        if let Some(user) = &self.user {
            commands.push(vec!["HGETALL".to_owned(), keys.member(&self.namespace, user)]);
            let rate = keys.rate(&self.namespace, Policy::User, "user", user.as_str());
            commands.extend(["GET", "PTTL"].map(|command| vec![command.to_owned(), rate.clone()]));
        }
        let unavailable =
            |cause: RedisError| GateError::Unavailable { doing: "looking at keys", cause };
        let mut connection =
            gate.inner.pool.get().await.map_err(|error| unavailable(link::pool_error(error)))?;
        let mut shown = Vec::with_capacity(commands.len());
        for command in commands {
            let mut sent = redis::cmd(&command[0]);
            sent.arg(&command[1..]);
            let reply: Value = sent.query_async(&mut connection).await.map_err(unavailable)?;
            shown.push(Shown { command, reply: lines(&reply) });
        }
        Ok(shown)
    }

    /// A validation of the code as a call that can be made by hand; nothing when no code is looked at, or the
    /// partition or the namespace is not there.
    ///
    /// # Errors
    /// [`GateError`] when Redis does not answer.
    pub async fn dry_run(&self, gate: &Gate) -> Result<Option<DryRun>, GateError> {
        let Some(code) = &self.code else { return Ok(None) };
        let partition = gate.keys().partition_of(&self.namespace);
        let survey = survey::run(gate, partition).await?;
        let Some(meta) = survey.meta else { return Ok(None) };
        let fence = Fence {
            deployment: meta.deployment,
            lineage: survey.lineage,
            epoch: meta.cursor.epoch,
        };
        gate.set_fence(partition, Some(fence.clone()));
        let Some((settings, _)) =
            (ShowNamespace { namespace: self.namespace.clone() }).run(gate).await?
        else {
            return Ok(None);
        };
        let request = Redeem {
            namespace: self.namespace.clone(),
            code: code.clone(),
            user: self.user.clone(),
            ip: None,
            email_domain: None,
            caller: "inspect".to_owned(),
            mode: Mode::Validate,
        };
        let outbox_max = gate.inner.options.outbox_max;
        let call = redeem::call(
            gate.keys(),
            partition,
            &fence,
            None,
            outbox_max,
            [(&request, &settings)].into_iter(),
        );
        let (keys, args) = call.into_words();
        Ok(Some(DryRun { keys, args }))
    }
}

/// A reply as people read it: field and value on one line, where there are such.
fn lines(reply: &Value) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Int(number) => number.to_string(),
        Value::Nil => "(nil)".to_owned(),
        other => format!("{other:?}"),
    };
    match reply {
        Value::Array(values) if values.is_empty() => vec!["(nothing)".to_owned()],
        Value::Array(values) => {
            let pair = |pair: &[Value]| pair.iter().map(text).collect::<Vec<_>>().join("  ");
            let mut lines: Vec<_> = values.chunks(2).map(pair).collect();
            lines.sort();
            lines
        }
        Value::Map(pairs) => {
            pairs.iter().map(|(name, value)| format!("{}  {}", text(name), text(value))).collect()
        }
        other => vec![text(other)],
    }
}
