//! `lua/show_campaign.lua`: the exact state of one campaign.

use super::{Gate, GateError, put_campaign::shown, script::SHOW_CAMPAIGN};
use crate::domain::{CampaignName, Namespace, campaign::Shown};

/// The question.
#[derive(Debug, Clone)]
pub struct ShowCampaign {
    /// Where.
    pub namespace: Namespace,
    /// Which.
    pub name: CampaignName,
}

impl ShowCampaign {
    /// The campaign as it is now, or nothing when there is none.
    ///
    /// # Errors
    /// [`GateError`] when there is no answer.
    pub async fn run(&self, gate: &Gate) -> Result<Option<Shown>, GateError> {
        let keys = gate.keys();
        let script_keys = vec![
            keys.settings(&self.namespace),
            keys.campaigns(&self.namespace),
            keys.campaign_held(&self.namespace),
        ];
        let args = vec![self.name.to_string()];
        let partition = keys.partition_of(&self.namespace);
        let called = gate.call(partition, &SHOW_CAMPAIGN, script_keys, args).await?;
        let mut reply = called.reply()?;
        match reply.text()? {
            "campaign" => shown(&mut reply, &self.namespace, &self.name).map(Some),
            "not_found" => Ok(None),
            other => Err(reply.unknown(other)),
        }
    }
}
