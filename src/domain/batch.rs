//! A batch: many invites, made by the service itself from one request.

use super::{
    Alphabet, BatchId, CampaignName, EmailDomain, Group, Millis, Namespace, Pattern,
    name::Malformed,
};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchOrder {
    /// Its id, made by the node.
    pub id: BatchId,
    /// Where.
    pub namespace: Namespace,
    /// How many invites: 1 to [`COUNT_MAX`](super::pattern::COUNT_MAX).
    pub count: u64,
    /// What their codes look like.
    pub pattern: Pattern,
    /// What their codes are made of.
    pub alphabet: Alphabet,
    /// What a redemption of each lets the user into.
    pub group: Group,
    /// Uses of each; nothing means without limit.
    pub max_uses: Option<u64>,
    /// How many of them one user may spend; nothing means without limit.
    pub max_uses_per_user: Option<u64>,
    /// The campaign that they are to belong to.
    pub campaign: Option<CampaignName>,
    /// Before this moment nobody may redeem.
    pub starts_at: Option<Millis>,
    /// From this moment on nobody may redeem.
    pub expires_at: Option<Millis>,
    /// The only e-mail domains whose users may redeem; empty means any.
    pub email_domains: Vec<EmailDomain>,
    /// The application's own JSON object for each, as text.
    pub metadata: Option<String>,
    /// Who asked: the id of an API key.
    pub actor: String,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What was asked for.
    pub order: BatchOrder,
    /// How it goes.
    pub state: BatchState,
    /// So many of the first are in the ledger.
    pub done: u64,
    /// Why it failed, for people.
    pub reason: Option<String>,
    /// When it was asked for, by the clock of the ledger, as all three.
    pub created_at: Millis,
    /// When the first node began.
    pub started_at: Option<Millis>,
    /// When it was finished, or failed.
    pub finished_at: Option<Millis>,
}

/// How a batch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchState {
    /// Nobody has begun.
    Waiting,
    /// A node is at it, or will go on.
    Running,
    /// All of it is in gate and ledger.
    Finished,
    /// It will not be finished; what was made stays.
    Failed,
}

impl BatchState {
    /// The word used in SQL and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }

    /// # Errors
    /// [`Malformed`] when the text is none of the four words.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        [Self::Waiting, Self::Running, Self::Finished, Self::Failed]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| Malformed("a batch is waiting, running, finished or failed".to_owned()))
    }
}
