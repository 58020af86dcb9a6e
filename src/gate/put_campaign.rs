//! `lua/put_campaign.lua`: make a campaign, or change its limit.

use super::{Gate, GateError, reply::Reply, script::PUT_CAMPAIGN};
pub use crate::domain::command::{CampaignPut, PutCampaign};
use crate::domain::{
    CampaignName, Namespace,
    campaign::{CAMPAIGNS_MAX, Shown},
};

impl PutCampaign {
    /// Runs the script.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<CampaignPut, GateError> {
        let keys = gate.keys();
        let script_keys = vec![
            keys.settings(&self.namespace),
            keys.campaigns(&self.namespace),
            keys.campaign_held(&self.namespace),
        ];
        let args = vec![
            self.namespace.to_string(),
            self.actor.clone(),
            self.name.to_string(),
            self.max_uses.map(|max| max.to_string()).unwrap_or_default(),
            self.expected_revision.map(|revision| revision.to_string()).unwrap_or_default(),
            CAMPAIGNS_MAX.to_string(),
        ];
        let partition = keys.partition_of(&self.namespace);
        let called = gate.call(partition, &PUT_CAMPAIGN, script_keys, args).await?;
        let mut reply = called.reply()?;
        Ok(match reply.text()? {
            "created" => CampaignPut::Created(shown(&mut reply, &self.namespace, &self.name)?),
            "changed" => CampaignPut::Changed(shown(&mut reply, &self.namespace, &self.name)?),
            "precondition_failed" => {
                called.refused(CampaignPut::PreconditionFailed { revision: reply.number()? })?
            }
            "limit_below_used" => {
                let (uses, held) = (reply.number()?, reply.number()?);
                called.refused(CampaignPut::LimitBelowUsed { uses, held })?
            }
            "too_many" => called.refused(CampaignPut::TooMany)?,
            "namespace_not_found" => called.refused(CampaignPut::NamespaceNotFound)?,
            other => return Err(reply.unknown(other)),
        })
    }
}

/// The fields of a campaign and what is held of it, as the scripts say them.
pub(super) fn shown(
    reply: &mut Reply<'_>,
    namespace: &Namespace,
    name: &CampaignName,
) -> Result<Shown, GateError> {
    let campaign = reply.fields()?.campaign(namespace, name.clone());
    let campaign = campaign.map_err(|error| reply.unknown(&error.0))?;
    Ok(Shown { campaign, held: reply.number()? })
}
