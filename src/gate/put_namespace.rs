//! `lua/put_namespace.lua`: make, change or archive a namespace.

use super::{Gate, GateError, reply::Reply, script::PUT_NAMESPACE};
pub use crate::domain::command::{
    Action, NamespacePut, PutNamespace, Rules, RulesPatch, Spreading,
};
use crate::domain::{ErrorDetail, Millis, Quota, Settings};

impl PutNamespace {
    /// Runs the script.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<NamespacePut, GateError> {
        let keys = gate.keys();
        let script_keys = vec![keys.settings(&self.namespace)];
        let called = gate
            .call(keys.partition_of(&self.namespace), &PUT_NAMESPACE, script_keys, self.args())
            .await?;
        gate.forget_settings(&self.namespace);
        let mut reply = called.reply()?;
        Ok(match reply.text()? {
            "created" => {
                let (settings, now) = shown(&mut reply)?;
                NamespacePut::Created { settings, now }
            }
            "changed" => {
                let (settings, now) = shown(&mut reply)?;
                NamespacePut::Changed { settings, now }
            }
            "not_found" => called.refused(NamespacePut::NotFound)?,
            "precondition_failed" => {
                called.refused(NamespacePut::PreconditionFailed { revision: reply.number()? })?
            }
            "fixed_rules" => {
                let settings =
                    reply.fields()?.settings().map_err(|error| reply.unknown(&error.0))?;
                called.refused(NamespacePut::FixedRules { settings })?
            }
            other => return Err(reply.unknown(other)),
        })
    }

    fn args(&self) -> Vec<String> {
        let (action, fields) = match &self.action {
            Action::Put(rules) => ("put", rules.fields()),
            Action::Ensure(rules) => ("ensure", rules.fields()),
            Action::Patch(patch) => ("patch", patch.fields()),
            Action::Archive => ("archive", Vec::new()),
        };
        let mut args = vec![
            self.namespace.to_string(),
            self.actor.clone(),
            action.to_owned(),
            self.change.to_string(),
            self.expected_revision.map(|revision| revision.to_string()).unwrap_or_default(),
        ];
        args.extend(fields.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        args
    }
}

/// Another spread as fields. Where the users were in the namespace itself, nobody new comes in there any more.
fn spreading(Spreading { spread, layouts }: &Spreading) -> [(&'static str, String); 3] {
    let text = layouts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let sealed = if layouts.contains(&1) { "1" } else { "" };
    [("spread", spread.to_string()), ("layouts", text), ("sealed", sealed.to_owned())]
}

/// A quota as a field: empty when the policy is off, which removes the field.
fn quota(quota: Option<Quota>) -> String {
    quota.map(|quota| quota.to_string()).unwrap_or_default()
}

/// How much refusals tell, as a field: empty for all of it, which removes the field.
fn error_detail(detail: ErrorDetail) -> String {
    match detail {
        ErrorDetail::Full => String::new(),
        ErrorDetail::Coarse => detail.as_str().to_owned(),
    }
}

impl Rules {
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("membership", self.membership.as_str().to_owned()),
            ("code_case", self.code_case.as_str().to_owned()),
            ("code_check", if self.code_check { "1" } else { "" }.to_owned()),
            ("durability", self.durability.as_str().to_owned()),
            ("error_detail", error_detail(self.error_detail)),
            ("rate_user", quota(self.rate_user)),
            ("rate_ip", quota(self.rate_ip)),
            ("rate_code", quota(self.rate_code)),
            ("rate_namespace", quota(self.rate_namespace)),
            ("rate_guess", quota(self.rate_guess)),
            ("spread", if self.spread > 1 { self.spread.to_string() } else { String::new() }),
        ]
    }
}

impl RulesPatch {
    fn fields(&self) -> Vec<(&'static str, String)> {
        [
            ("durability", self.durability.map(|durability| durability.as_str().to_owned())),
            ("error_detail", self.error_detail.map(error_detail)),
            ("rate_user", self.rate_user.map(quota)),
            ("rate_ip", self.rate_ip.map(quota)),
            ("rate_code", self.rate_code.map(quota)),
            ("rate_namespace", self.rate_namespace.map(quota)),
            ("rate_guess", self.rate_guess.map(quota)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .chain(self.spread.iter().flat_map(spreading))
        .collect()
    }
}

/// The clock of Redis and the rules of a namespace, as the scripts say them.
pub(super) fn shown(reply: &mut Reply<'_>) -> Result<(Settings, Millis), GateError> {
    let now = reply.parsed_number(Millis::from_ms)?;
    let settings = reply.fields()?.settings().map_err(|error| reply.unknown(&error.0))?;
    Ok((settings, now))
}
