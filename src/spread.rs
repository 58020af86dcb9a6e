//! Namespaces that are spread over several partitions: which shard a request goes to, and how it gets a use that lies in
//! another one.
//!
//! [`crate::domain::spread`] decides; this module does what it says. A shard that has no use left answers `dry`. Whoever asked then
//! finds out whether another participant has one, moves some over, and asks again. One does that for all that wait for
//! the same invite in the same shard.

mod copies;
mod moves;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use self::moves::{Found, Moving, Searches};
use crate::{
    domain::{
        Answer, Millis, Namespace, Outcome, Refusal, Settings, UserId,
        spread::{HOME, Pool, Search},
    },
    gate::{
        Ask, Asked, Gate, GateError,
        redeem::{Dry, Redeem},
        show_member::ShowMember,
    },
    ledger::{Ledger, LedgerError},
    sync::progress::Progress,
};

/// Before something is looked at again that is being changed or recovered.
const PAUSE: Duration = Duration::from_millis(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SpreadError {
    /// The gate has none.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The ledger, which must have what one shard has given before another gets it, has none.
    #[error("moving uses between shards")]
    Ledger(#[from] LedgerError),
    /// Uses could not be moved in time. Nothing was spent.
    #[error("uses could not be moved between shards in time")]
    TooLate,
}

impl SpreadError {
    /// Uses that could not be moved in time mean that nothing was spent, unless an earlier attempt may have spent one.
    fn or_unknown(self, unknown: bool) -> Self {
        match self {
            Self::TooLate => too_late(unknown),
            other => other,
        }
    }
}

/// What knows how namespaces are spread. Cheap to clone.
#[derive(Clone)]
pub struct Spread {
    inner: Arc<Inner>,
}

struct Inner {
    gate: Gate,
    ledger: Ledger,
    progress: Progress,
    searches: Searches,
}

impl Spread {
    /// Of this gate and this ledger.
    #[must_use]
    pub fn new(gate: Gate, ledger: Ledger, progress: Progress) -> Self {
        Self { inner: Arc::new(Inner { gate, ledger, progress, searches: Searches::default() }) }
    }

    /// As [`Self::rules`], but as they are now: what is decided by them is not looked at again.
    async fn rules_now(&self, namespace: &Namespace) -> Result<Option<Arc<Settings>>, GateError> {
        let settings = self.inner.gate.settings_now(namespace).await?;
        Ok(settings.filter(|settings| settings.is_spread()))
    }

    /// The rules of a namespace that is, or was, spread over several partitions; nothing if it is not, or does not exist.
    async fn rules(&self, namespace: &Namespace) -> Result<Option<Arc<Settings>>, GateError> {
        let settings = self.inner.gate.settings(namespace).await?;
        Ok(settings.filter(|settings| settings.is_spread()))
    }

    /// Whether a namespace is, or was, spread over several partitions.
    ///
    /// # Errors
    /// [`GateError`] when its rules are not in memory and Redis can not be asked.
    pub async fn is_spread(&self, namespace: &Namespace) -> Result<bool, GateError> {
        Ok(self.rules_now(namespace).await?.is_some())
    }

    /// The shard that a user is in, or would come into; the namespace itself if it is not spread.
    ///
    /// # Errors
    /// [`GateError`] when a shard gives no answer.
    pub async fn shard_of(
        &self,
        namespace: &Namespace,
        user: &UserId,
    ) -> Result<Namespace, GateError> {
        let Some(settings) = self.rules_now(namespace).await? else {
            return Ok(namespace.clone());
        };
        let mut places = settings.places_of(namespace, user);
        let newest = places.pop().unwrap_or_else(|| namespace.clone());
        for place in places {
            let question = ShowMember { namespace: place.clone(), user: user.clone() };
            if question.remembered(&self.inner.gate).await?.1 {
                return Ok(place);
            }
        }
        Ok(newest)
    }

    /// Where the users of a namespace are: its shards of every layout, and itself if it was one.
    ///
    /// # Errors
    /// As [`Self::is_spread`].
    pub async fn shards(&self, namespace: &Namespace) -> Result<Vec<Namespace>, GateError> {
        let settings = self.rules_now(namespace).await?;
        Ok(settings.map_or_else(|| vec![namespace.clone()], |settings| settings.shards(namespace)))
    }

    /// Everything that a namespace consists of: itself, and its shards of every layout.
    ///
    /// # Errors
    /// As [`Self::is_spread`].
    pub async fn parts(&self, namespace: &Namespace) -> Result<Vec<Namespace>, GateError> {
        let settings = self.rules_now(namespace).await?;
        Ok(settings.map_or_else(|| vec![namespace.clone()], |settings| settings.parts(namespace)))
    }

    /// As [`Gate::ask`], in a namespace as people know it: the uses are found wherever they are. Says too whether as
    /// many replicas have the answer as the options say.
    ///
    /// # Errors
    /// [`SpreadError`] when there is no answer until `deadline`.
    pub async fn redeem(
        &self,
        request: Redeem,
        replicated: bool,
        deadline: Instant,
    ) -> Result<(Answer, bool), SpreadError> {
        let gate = &self.inner.gate;
        if self.rules(&request.namespace).await?.is_none() {
            return match gate.ask(request, Ask { replicated, ..Ask::default() }).await? {
                Asked::Answer(answer, replicated) => Ok((answer, replicated)),
                // It has been spread since its rules were looked at, and this shard of it is sealed.
                Asked::Dry { request, unknown, .. } => {
                    gate.forget_settings(&request.namespace);
                    let ask = Ask { replicated, patient: true, unknown };
                    self.redeem_spread(request, ask, deadline).await
                }
            };
        }
        let ask = Ask { replicated, patient: true, unknown: false };
        self.redeem_spread(request, ask, deadline).await
    }

    async fn redeem_spread(
        &self,
        mut request: Redeem,
        mut how: Ask,
        deadline: Instant,
    ) -> Result<(Answer, bool), SpreadError> {
        let Inner { gate, .. } = &*self.inner;
        let home = request.namespace.clone();
        // The places where the user may be that are known not to have it.
        let mut passed = 0;
        let mut last_words = LastWords::default();
        loop {
            let Some(settings) = gate.settings(&home).await? else {
                let outcome = Outcome::Refused(Refusal::NamespaceNotFound);
                return Ok((Answer { outcome, rates: Vec::new() }, false));
            };
            let places = match &request.user {
                Some(user) => settings.places_of(&home, user),
                // One who names nobody may be told of any shard.
                None => vec![home.shard_at(1, settings.spread)],
            };
            let Some(place) = places.get(passed) else {
                // The last one is sealed: the spread is another by now.
                if Instant::now() >= deadline {
                    return Err(too_late(how.unknown));
                }
                gate.forget_settings(&home);
                tokio::time::sleep(PAUSE).await;
                passed = 0;
                continue;
            };
            request.namespace = place.clone();
            let (dry, back, unknown) = match gate.ask(request.clone(), how).await? {
                Asked::Answer(answer, replicated) => {
                    let is_missing = answer.outcome == Outcome::Refused(Refusal::NamespaceNotFound);
                    if is_missing
                        && place.participant() != HOME
                        && Instant::now() < deadline
                        && self.make_shard(&home, place).await?
                    {
                        continue;
                    }
                    // Only this shard has said so: its copy was made since the home was asked and knew no such code, or
                    // it was the other limit of the two, the invite's or its campaign's, that all were asked for.
                    if !last_words.hold(&answer) {
                        if Instant::now() >= deadline {
                            return Err(too_late(how.unknown));
                        }
                        how.patient = true;
                        continue;
                    }
                    return Ok((last_words.told(answer), replicated));
                }
                Asked::Dry { dry, request, unknown } => (dry, request, unknown),
            };
            (request, how.unknown) = (back, unknown);
            if Instant::now() >= deadline {
                return Err(too_late(unknown));
            }
            match dry {
                Dry::Elsewhere => {
                    passed += 1;
                    // What is known so far was about another place.
                    how.patient = true;
                }
                Dry::Unknown => {
                    // What the home does not know nobody does.
                    how.patient = place.participant() != HOME
                        && self.copy_code(&home, place, &request.code).await?;
                }
                Dry::Exhausted { invite: id, campaign } => {
                    let parts = settings.parts(&home);
                    if let Some(name) = campaign {
                        // A use of the invite is of no good to anybody without one of its campaign.
                        let pool = Pool::Campaign { namespace: home.clone(), name };
                        let moving = Moving { parts: &parts, pool };
                        let look = Search::look(moving.count());
                        let found = self.in_turn(&moving, &home, look, deadline).await;
                        let found = found.map_err(|error| error.or_unknown(how.unknown))?;
                        if matches!(found, Found::None { .. }) {
                            how.patient = false;
                            last_words.campaign_exhausted = true;
                            continue;
                        }
                    }
                    let pool = Pool::Invite { id: id.of_whole(place), code: request.code.clone() };
                    let moving = Moving { parts: &parts, pool };
                    let found = self.search(&moving, place, deadline).await;
                    match found.map_err(|error| error.or_unknown(how.unknown))? {
                        Found::Some => {}
                        Found::None { may_free_at } => {
                            how.patient = false;
                            last_words.exhausted = Some(may_free_at);
                        }
                        Found::Gone => {
                            how.patient = self.forget_copy(place, id).await?;
                            last_words.exhausted = (!how.patient).then_some(None);
                        }
                    }
                }
                Dry::CampaignExhausted(name) => {
                    let parts = settings.parts(&home);
                    let pool = Pool::Campaign { namespace: home.clone(), name };
                    let moving = Moving { parts: &parts, pool };
                    let found = self.search(&moving, place, deadline).await;
                    match found.map_err(|error| error.or_unknown(how.unknown))? {
                        Found::Some => {}
                        Found::None { .. } => {
                            how.patient = false;
                            last_words.campaign_exhausted = true;
                        }
                        // A campaign stays for good: its home has forgotten it in a failover, and its invites with it.
                        Found::Gone => return Err(too_late(how.unknown)),
                    }
                }
            }
        }
    }
}

fn too_late(unknown: bool) -> SpreadError {
    if unknown { GateError::OutcomeUnknown { cause: None }.into() } else { SpreadError::TooLate }
}

/// What is known of all parts together, and a shard alone can not say.
#[derive(Debug, Default)]
struct LastWords {
    /// There was a moment at which no use of the invite was free anywhere; then the first of all reservations that end.
    exhausted: Option<Option<Millis>>,
    /// There was a moment at which none of its campaign's was, whether or not one of the invite's.
    campaign_exhausted: bool,
}

impl LastWords {
    /// Whether a shard's answer is so for all parts.
    fn hold(&self, answer: &Answer) -> bool {
        match answer.outcome {
            Outcome::Refused(Refusal::Exhausted { .. }) => {
                self.exhausted.is_some() || self.campaign_exhausted
            }
            Outcome::Refused(Refusal::CampaignExhausted) => self.campaign_exhausted,
            _ => true,
        }
    }

    fn told(&self, mut answer: Answer) -> Answer {
        if let Outcome::Refused(Refusal::Exhausted { .. }) = answer.outcome {
            answer.outcome = Outcome::Refused(match self.exhausted {
                Some(may_free_at) => Refusal::Exhausted { may_free_at },
                None => Refusal::CampaignExhausted,
            });
        }
        answer
    }
}
