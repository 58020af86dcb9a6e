//! `lua/show_namespace.lua`: the rules of a namespace.

use super::{Gate, GateError, put_namespace::shown, script::SHOW_NAMESPACE};
use crate::domain::{Millis, Namespace, Settings};

/// The question.
#[derive(Debug, Clone)]
pub struct ShowNamespace {
    /// Which.
    pub namespace: Namespace,
}

impl ShowNamespace {
    /// The rules, also of an archived namespace, and the clock of Redis; nothing when it was never made.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Option<(Settings, Millis)>, GateError> {
        let keys = gate.keys();
        let script_keys = vec![keys.settings(&self.namespace)];
        let called = gate
            .call(keys.partition_of(&self.namespace), &SHOW_NAMESPACE, script_keys, Vec::new())
            .await?;
        let mut reply = called.reply()?;
        match reply.text()? {
            "namespace" => shown(&mut reply).map(Some),
            "not_found" => Ok(None),
            other => Err(reply.unknown(other)),
        }
    }
}
