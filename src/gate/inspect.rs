//! What Redis holds of a code or a user, with the commands that show it, for people with `redis-cli`.

use redis::{RedisError, Value};

use super::{
    Gate, GateError,
    key::Keyspace,
    redeem::{self, Mode, Redeem},
    survey,
};
use crate::domain::{Code, Fence, Namespace, Policy, UserId};

/// What to look at.
#[derive(Debug, Clone)]
pub struct Inspect {
    /// Where.
    pub namespace: Namespace,
    /// A code.
    pub code: Option<Code>,
    /// A user.
    pub user: Option<UserId>,
}

/// A command and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its words.
    pub command: Vec<String>,
    /// The reply, line by line: field and value of a hash, else one word.
    pub reply: Vec<Vec<String>>,
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
    /// Admits the gate to what Redis says that the partition is open on, and folds the code as its namespace does.
    ///
    /// # Errors
    /// [`GateError`] when Redis does not answer.
    pub async fn begin(&mut self, gate: &Gate) -> Result<(), GateError> {
        let partition = gate.keys().partition_of(&self.namespace);
        let survey = survey::run(gate, partition).await?;
        let Some(meta) = survey.meta else { return Ok(()) };
        let (deployment, epoch) = (meta.deployment, meta.cursor.epoch);
        gate.set_fence(partition, Some(Fence { deployment, lineage: survey.lineage, epoch }));
        let settings = match gate.settings(&self.namespace).await {
            Err(GateError::Fenced) => return Ok(()),
            other => other?,
        };
        if let (Some(code), Some(settings)) = (&self.code, settings) {
            self.code = Code::parse(code.as_str(), settings.code_case).ok();
        }
        Ok(())
    }

    /// Looks, by plain reads.
    ///
    /// # Errors
    /// [`GateError::Unavailable`] when Redis does not answer.
    pub async fn run(&self, gate: &Gate) -> Result<Vec<Shown>, GateError> {
        let unavailable =
            |cause: RedisError| GateError::Unavailable { doing: "looking at keys", cause };
        let partition = gate.keys().partition_of(&self.namespace);
        let mut connection = gate.pooled(partition).await.map_err(unavailable)?;
        let commands = self.commands(gate.keys());
        let mut shown = Vec::with_capacity(commands.len());
        for command in commands {
            let mut sent = redis::cmd(&command[0]);
            sent.arg(&command[1..]);
            let reply: Value = sent.query_async(&mut connection).await.map_err(unavailable)?;
            shown.push(Shown { command, reply: lines(&reply) });
        }
        Ok(shown)
    }

    /// The plain reads that show it, each with its words.
    #[must_use]
    pub fn commands(&self, keys: &Keyspace) -> Vec<Vec<String>> {
        let partition = keys.partition_of(&self.namespace);
        let mut commands = vec![
            vec!["HGETALL".to_owned(), keys.meta(partition)],
            vec!["HGETALL".to_owned(), keys.settings(&self.namespace)],
        ];
        if let Some(code) = &self.code {
            commands.push(vec!["HGETALL".to_owned(), keys.invite(&self.namespace, code)]);
            let held = ["ZRANGE", &keys.held(&self.namespace, code), "0", "-1", "WITHSCORES"];
            commands.push(held.map(str::to_owned).to_vec());
            commands.push(vec!["HGETALL".to_owned(), keys.campaigns(&self.namespace)]);
        }
        if let Some(user) = &self.user {
            commands.push(vec!["HGETALL".to_owned(), keys.member(&self.namespace, user)]);
            let rate = keys.rate(&self.namespace, Policy::User, "user", user.as_str());
            commands.extend(["GET", "PTTL"].map(|command| vec![command.to_owned(), rate.clone()]));
        }
        commands
    }

    /// A validation of the code as a call that can be made by hand; nothing when no code is looked at, or the
    /// partition or the namespace is not there.
    ///
    /// # Errors
    /// [`GateError`] when Redis does not answer.
    pub async fn dry_run(&self, gate: &Gate) -> Result<Option<DryRun>, GateError> {
        let Some(code) = &self.code else { return Ok(None) };
        let partition = gate.keys().partition_of(&self.namespace);
        let Some(fence) = gate.fence(partition) else { return Ok(None) };
        let Some(settings) = gate.settings(&self.namespace).await? else { return Ok(None) };
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
        let batch = redeem::Batch::new(
            gate.keys(),
            partition,
            &fence,
            None,
            outbox_max,
            false,
            &[(&request, &*settings)],
        );
        let (keys, args) = batch.call.into_words();
        Ok(Some(DryRun { keys, args }))
    }
}

/// Words as a shell reads them back.
#[must_use]
pub fn in_shell(words: &[String]) -> String {
    words.iter().map(|text| word_in_shell(text)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it back.
#[must_use]
pub fn word_in_shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A reply as people read it.
fn lines(reply: &Value) -> Vec<Vec<String>> {
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Int(number) => number.to_string(),
        Value::Nil => "(nil)".to_owned(),
        other => format!("{other:?}"),
    };
    match reply {
        Value::Array(values) => {
            let mut lines: Vec<Vec<_>> =
                values.chunks(2).map(|pair| pair.iter().map(text).collect()).collect();
            lines.sort();
            lines
        }
        other => vec![vec![text(other)]],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_survives_the_shell() {
        assert_eq!(word_in_shell("/a/b-c.d"), "/a/b-c.d");
        assert_eq!(word_in_shell("/a b/it's"), r"'/a b/it'\''s'");
        assert_eq!(word_in_shell(""), "''");
        assert_eq!(word_in_shell("rdm:{06a}:meta"), "'rdm:{06a}:meta'");
    }
}
