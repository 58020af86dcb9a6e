//! What Redis holds of a code or a user, with the commands that show it, for people with `redis-cli`.

use std::{collections::VecDeque, sync::Arc};

use redis::{RedisError, Value};

use super::{
    Gate, GateError,
    key::Keyspace,
    redeem::{self, Mode, Redeem},
    survey,
};
use crate::domain::{
    CampaignName, Code, Fence, InviteId, Namespace, Partition, Policy, Settings, UserId,
};

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
    /// Admits the gate to what Redis says that the partitions are open on, and folds the code as its namespace does.
    ///
    /// # Errors
    /// [`GateError`] when Redis does not answer.
    pub async fn begin(&mut self, gate: &Gate) -> Result<(), GateError> {
        if !admit(gate, gate.keys().partition_of(&self.namespace)).await? {
            return Ok(());
        }
        let Some(settings) = self.settings(gate).await? else { return Ok(()) };
        for part in settings.parts(&self.namespace).iter().skip(1) {
            admit(gate, gate.keys().partition_of(part)).await?;
        }
        if let Some(code) = &self.code {
            self.code = Code::parse(code.as_str(), settings.code_case).ok();
        }
        Ok(())
    }

    /// The rules of the namespace; nothing if it or its partition is not there.
    async fn settings(&self, gate: &Gate) -> Result<Option<Arc<Settings>>, GateError> {
        match gate.settings(&self.namespace).await {
            Err(GateError::Fenced) => Ok(None),
            other => other,
        }
    }

    /// Where the user may be: of a namespace that is spread, the shard of each layout, the last one being the newest.
    fn places(&self, settings: Option<&Settings>) -> Vec<Namespace> {
        let home = &self.namespace;
        match (settings, &self.user) {
            (Some(settings), Some(user)) => settings.places_of(home, user),
            (Some(settings), None) => vec![home.shard_at(1, settings.spread)],
            (None, _) => vec![home.clone()],
        }
    }

    /// Looks, by plain reads: at the namespace itself, and if it is spread, for a code at each of its shards and for a
    /// user at those where the user may be.
    ///
    /// # Errors
    /// [`GateError`] when Redis does not answer.
    pub async fn run(&self, gate: &Gate) -> Result<Vec<Shown>, GateError> {
        let settings = self.settings(gate).await?;
        let settings = settings.as_deref();
        let home = || vec![self.namespace.clone()];
        let parts = settings.map_or_else(home, |settings| settings.parts(&self.namespace));
        let places = self.places(settings);
        let mut shown = Vec::new();
        for part in &parts {
            let has_user = self.user.is_some() && places.contains(part);
            if *part == self.namespace || self.code.is_some() || has_user {
                self.look_at(gate, part, parts.len() > 1, has_user, &mut shown).await?;
            }
        }
        Ok(shown)
    }

    /// The plain reads that show a part of the namespace, each with its words; of a user only where `has_user` says that
    /// the user may be there.
    #[must_use]
    pub fn commands(
        &self,
        keys: &Keyspace,
        part: &Namespace,
        is_spread: bool,
        has_user: bool,
    ) -> Vec<Vec<String>> {
        let partition = keys.partition_of(part);
        let mut commands = vec![
            vec!["HGETALL".to_owned(), keys.meta(partition)],
            vec!["HGETALL".to_owned(), keys.settings(part)],
        ];
        if let Some(code) = &self.code {
            commands.push(vec!["HGETALL".to_owned(), keys.invite(part, code)]);
            let held = ["ZRANGE", &keys.held(part, code), "0", "-1", "WITHSCORES"];
            commands.push(held.map(str::to_owned).to_vec());
            if !is_spread {
                commands.push(vec!["HGETALL".to_owned(), keys.campaigns(part)]);
            }
        }
        if let Some(user) = self.user.as_ref().filter(|_| has_user) {
            commands.push(vec!["HGETALL".to_owned(), keys.member(part, user)]);
            let rate = keys.rate(part, Policy::User, "user", user.as_str());
            commands.extend(["GET", "PTTL"].map(|command| vec![command.to_owned(), rate.clone()]));
        }
        commands
    }

    /// Looks at a part of the namespace.
    async fn look_at(
        &self,
        gate: &Gate,
        part: &Namespace,
        is_spread: bool,
        has_user: bool,
        shown: &mut Vec<Shown>,
    ) -> Result<(), GateError> {
        let keys = gate.keys();
        let partition = keys.partition_of(part);
        let commands = self.commands(keys, part, is_spread, has_user);
        let unavailable =
            |cause: RedisError| GateError::Unavailable { doing: "looking at keys", cause };
        let mut connection = gate.pooled(partition).await.map_err(unavailable)?;
        let mut commands = VecDeque::from(commands);
        while let Some(command) = commands.pop_front() {
            let mut sent = redis::cmd(&command[0]);
            sent.arg(&command[1..]);
            let reply: Value = sent.query_async(&mut connection).await.map_err(unavailable)?;
            let reply = lines(&reply);
            let invite = self.code.as_ref().map(|code| keys.invite(part, code));
            if is_spread && command.get(1) == invite.as_ref() {
                // What it has given and got has its id in the name of the key.
                let field =
                    |name| reply.iter().find(|line| line[0] == name).and_then(|line| line.get(1));
                let id = field("id").and_then(|id| id.parse().ok());
                commands.extend(id.map(|id| vec!["HGETALL".to_owned(), keys.moves(part, id)]));
                let campaign = field("campaign").and_then(|name| CampaignName::parse(name).ok());
                if let Some(campaign) = campaign {
                    let id = InviteId::of_campaign(part, &campaign);
                    let keys = [keys.campaigns(part), keys.moves(part, id)];
                    commands.extend(keys.map(|key| vec!["HGETALL".to_owned(), key]));
                }
            }
            shown.push(Shown { command, reply });
        }
        Ok(())
    }

    /// A validation of the code as a call that can be made by hand; nothing when no code is looked at, or the
    /// partition or the namespace is not there.
    ///
    /// # Errors
    /// [`GateError`] when Redis does not answer.
    pub async fn dry_run(&self, gate: &Gate) -> Result<Option<DryRun>, GateError> {
        let Some(code) = &self.code else { return Ok(None) };
        let Some(settings) = self.settings(gate).await? else { return Ok(None) };
        let Some(namespace) = self.places(Some(&settings)).pop() else { return Ok(None) };
        let partition = gate.keys().partition_of(&namespace);
        let Some(fence) = gate.fence(partition) else { return Ok(None) };
        let request = Redeem {
            namespace,
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
            &[(&request, &*settings).into()],
        );
        let (keys, args) = batch.call.into_words();
        Ok(Some(DryRun { keys, args }))
    }
}

/// Admits the gate to what Redis says that a partition is open on; says whether there is anything.
async fn admit(gate: &Gate, partition: Partition) -> Result<bool, GateError> {
    let survey = survey::run(gate, partition).await?;
    let Some(meta) = survey.meta else { return Ok(false) };
    let (deployment, epoch) = (meta.deployment, meta.cursor.epoch);
    gate.set_fence(partition, Some(Fence { deployment, lineage: survey.lineage, epoch }));
    Ok(true)
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
