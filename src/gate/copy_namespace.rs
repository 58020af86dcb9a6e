//! `lua/copy_namespace.lua`: bring the rules of a shard to what its namespace has.

use super::{Gate, GateError, fields, script::COPY_NAMESPACE};
use crate::domain::{Namespace, Settings};

/// The actor of what is copied.
const ACTOR: &str = "spread";

/// The rules to copy.
#[derive(Debug, Clone)]
pub struct CopyNamespace {
    /// The shard.
    pub shard: Namespace,
    /// What its namespace has.
    pub settings: Settings,
}

impl CopyNamespace {
    /// Runs the script. Afterwards the shard has these rules, or newer ones.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<(), GateError> {
        let keys = gate.keys();
        // A shard of an earlier spread lets nobody new in. Which spread is the newest only the home says.
        let sealed = self.shard.shard_number().is_none_or(|(_, of)| of != self.settings.spread);
        let of_home = self.settings.clone();
        let settings = Settings { spread: 1, layouts: Vec::new(), sealed, ..of_home };
        let fields = fields::of_settings(&self.shard, &settings);
        let mut args = vec![self.shard.to_string(), ACTOR.to_owned()];
        args.extend(fields.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        let partition = keys.partition_of(&self.shard);
        let called =
            gate.call(partition, &COPY_NAMESPACE, vec![keys.settings(&self.shard)], args).await?;
        gate.forget_settings(&self.shard);
        let mut reply = called.reply()?;
        match reply.text()? {
            "copied" => Ok(()),
            other => Err(reply.unknown(other)),
        }
    }
}
