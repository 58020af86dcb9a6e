//! The rules of a namespace.

use super::{
    Code, CodeCase, MembershipRule, Millis, Namespace, Policy, Quota, UserId, check,
    name::Malformed,
};

/// What an answer promises: see the reliability notes for what each level may lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub enum Durability {
    /// The script has run.
    #[default]
    Gate,
    /// Replicas have acknowledged it.
    Replicated,
    /// The ledger has committed it.
    Ledger,
}

impl Durability {
    /// Every level, the weakest first.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Replicated, Self::Ledger];

    /// The word used in Redis, SQL and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Replicated => "replicated",
            Self::Ledger => "ledger",
        }
    }

    /// # Errors
    /// [`Malformed`] when the text is none of the three words.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        match text {
            "gate" => Ok(Self::Gate),
            "replicated" => Ok(Self::Replicated),
            "ledger" => Ok(Self::Ledger),
            _ => Err(Malformed("durability is gate, replicated or ledger".to_owned())),
        }
    }
}

/// How much a refusal tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum ErrorDetail {
    /// What is the matter.
    #[default]
    Full,
    /// Of a code that can not be used, nothing: not even whether it exists. For sign-up pages that anybody may try.
    Coarse,
}

impl ErrorDetail {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Full, Self::Coarse];

    /// The word used in Redis, SQL and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Coarse => "coarse",
        }
    }

    /// # Errors
    /// [`Malformed`] when the text is neither word.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        Self::ALL
            .into_iter()
            .find(|detail| detail.as_str() == text)
            .ok_or_else(|| Malformed("error_detail is full or coarse".to_owned()))
    }
}

/// The rules of a namespace, as gate and ledger keep them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How many memberships a user may hold; fixed when the namespace is made.
    pub membership: MembershipRule,
    /// What counts as the same code; fixed when the namespace is made.
    pub code_case: CodeCase,
    /// Whether the last character of each code follows from the others; fixed when the namespace is made.
    pub code_check: bool,
    /// What an answer promises unless the request asks for more.
    pub durability: Durability,
    /// How much a refusal tells.
    pub error_detail: ErrorDetail,
    /// Attempts per user; nothing means that this policy is off, here and below.
    pub rate_user: Option<Quota>,
    /// Attempts per address.
    pub rate_ip: Option<Quota>,
    /// Attempts per code.
    pub rate_code: Option<Quota>,
    /// Attempts in the namespace.
    pub rate_namespace: Option<Quota>,
    /// Misses per address, else user, else API key.
    pub rate_guess: Option<Quota>,
    /// Over how many partitions new users are spread; 1 means that they come into the namespace itself.
    pub spread: u16,
    /// Over how many they were before, the oldest first, and never the same twice. Who came then stays where they are.
    pub layouts: Vec<u16>,
    /// Nobody who is not known here comes in here any more: the spread is another by now.
    pub sealed: bool,
    /// Counts changes, from 1.
    pub revision: u64,
    /// When the namespace was made, by the clock of Redis.
    pub created_at: Millis,
    /// When it was last changed, by the clock of Redis.
    pub updated_at: Millis,
    /// Since when it answers nobody; the ledger keeps all that it had.
    pub archived_at: Option<Millis>,
}

impl Settings {
    /// Whether uses of an invite can lie in several partitions.
    #[must_use]
    pub fn is_spread(&self) -> bool {
        self.spread > 1 || !self.layouts.is_empty()
    }

    /// Where a user may be, the last one being where new users come: nobody is in two of them, since who is not known in
    /// one that is [`sealed`](Self::sealed) does not come in there any more.
    #[must_use]
    pub fn places_of(&self, namespace: &Namespace, user: &UserId) -> Vec<Namespace> {
        let layouts = self.layouts.iter().chain([&self.spread]);
        layouts.map(|spread| namespace.shard_of(user, *spread)).collect()
    }

    /// Where users of the namespace are: its shards of every layout, and itself if it was one.
    #[must_use]
    pub fn shards(&self, namespace: &Namespace) -> Vec<Namespace> {
        let layouts = self.layouts.iter().chain([&self.spread]);
        layouts
            .flat_map(|spread| match spread {
                1 => vec![namespace.clone()],
                spread => namespace.shards(*spread).collect(),
            })
            .collect()
    }

    /// Everything that the namespace consists of: itself, and its shards of every layout.
    #[must_use]
    pub fn parts(&self, namespace: &Namespace) -> Vec<Namespace> {
        let shards = self.shards(namespace).into_iter().filter(|shard| shard != namespace);
        std::iter::once(namespace.clone()).chain(shards).collect()
    }

    /// Reads the layouts as they are stored: numbers with commas between them.
    ///
    /// # Errors
    /// [`Malformed`] when they are something else.
    pub fn parse_layouts(text: &str) -> Result<Vec<u16>, Malformed> {
        let layout = |text: &str| {
            text.parse().map_err(|_| Malformed(format!("{text:?} is no count of shards")))
        };
        text.split(',').map(layout).collect()
    }

    /// The layouts as they are stored; nothing where there was no other.
    #[must_use]
    pub fn layouts_text(&self) -> Option<String> {
        let texts: Vec<_> = self.layouts.iter().map(ToString::to_string).collect();
        (!texts.is_empty()).then(|| texts.join(","))
    }

    /// Reads a code that somebody typed, by the rules of this namespace.
    ///
    /// # Errors
    /// [`Malformed`] when it can not be a code of this namespace.
    pub fn code(&self, typed: &str) -> Result<Code, Malformed> {
        let code = Code::parse(typed, self.code_case)?;
        if self.code_check && !check::fits(code.as_str()) {
            return Err(Malformed(
                "its last character does not fit the others: something is mistyped".to_owned(),
            ));
        }
        Ok(code)
    }

    /// The quota of a policy, if it is on.
    #[must_use]
    pub fn quota(&self, policy: Policy) -> Option<Quota> {
        match policy {
            Policy::User => self.rate_user,
            Policy::Ip => self.rate_ip,
            Policy::Code => self.rate_code,
            Policy::Namespace => self.rate_namespace,
            Policy::Guess => self.rate_guess,
        }
    }
}
