//! Namespaces that are spread over several partitions: which shard a request goes to, and how it gets a use that lies in
//! another one.
//!
//! [`crate::domain::spread`] decides; this module does what it says. A shard that has no use left answers `dry`. Whoever asked then
//! finds out whether another participant has one, moves some over, and asks again. One does that for all that wait for
//! the same invite in the same shard.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::try_join_all;
use tokio::time::Instant;

use crate::{
    domain::{
        Answer, Code, Given, Invite, InviteId, Millis, Namespace, Outcome, Position, Refusal,
        Settings, UserId,
        invite::Shown,
        spread::{Gave, HOME, Part, Search, Step, UNLIMITED},
    },
    gate::{
        Ask, Asked, Gate, GateError,
        copy_invite::{Copied, CopyInvite},
        copy_namespace::CopyNamespace,
        give_uses::GiveUses,
        redeem::{Dry, Redeem},
        show_invite::{ShowInvite, Which},
        show_namespace::ShowNamespace,
        take_uses::TakeUses,
    },
    ledger::{Ledger, LedgerError},
    sync::progress::Progress,
};

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

/// What knows how namespaces are spread. Cheap to clone.
#[derive(Clone)]
pub struct Spread {
    inner: Arc<Inner>,
}

struct Inner {
    gate: Gate,
    ledger: Ledger,
    progress: Progress,
    searches: Mutex<HashMap<(Namespace, InviteId), Arc<Turn>>>,
}

/// Whose turn it is to search for uses of an invite for a shard.
#[derive(Default)]
struct Turn {
    /// How many searches have begun.
    begun: AtomicU64,
    /// The last one that ended, and how: what it found holds for all who came before it began.
    ended: tokio::sync::Mutex<Option<(u64, Found)>>,
}

/// How a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// There were uses; the shard may have them still.
    Some,
    /// There was a moment since it began at which there was none anywhere.
    None { may_free_at: Option<Millis> },
}

impl Spread {
    /// Of this gate and this ledger.
    #[must_use]
    pub fn new(gate: Gate, ledger: Ledger, progress: Progress) -> Self {
        Self { inner: Arc::new(Inner { gate, ledger, progress, searches: Mutex::default() }) }
    }

    /// Over how many shards a namespace is spread; 1 if it is not, or does not exist.
    ///
    /// # Errors
    /// [`GateError`] when its rules are not in memory and Redis can not be asked.
    pub async fn of(&self, namespace: &Namespace) -> Result<u16, GateError> {
        Ok(self.inner.gate.settings(namespace).await?.map_or(1, |settings| settings.spread))
    }

    /// The shard that a user belongs to; the namespace itself if it is not spread.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub async fn shard_of(
        &self,
        namespace: &Namespace,
        user: &UserId,
    ) -> Result<Namespace, GateError> {
        Ok(namespace.shard_of(user, self.of(namespace).await?))
    }

    /// Where the users of a namespace are: its shards, or itself if it is not spread.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub async fn shards(&self, namespace: &Namespace) -> Result<Vec<Namespace>, GateError> {
        let spread = self.of(namespace).await?;
        if spread < 2 {
            return Ok(vec![namespace.clone()]);
        }
        Ok(namespace.shards(spread).collect())
    }

    /// Everything that a namespace consists of: itself, and its shards if it is spread.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub async fn parts(&self, namespace: &Namespace) -> Result<Vec<Namespace>, GateError> {
        let spread = self.of(namespace).await?;
        let shards = (spread > 1).then(|| namespace.shards(spread)).into_iter().flatten();
        Ok(std::iter::once(namespace.clone()).chain(shards).collect())
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
        let home = request.namespace.clone();
        let spread = self.of(&home).await?;
        let mut how = Ask { replicated, patient: spread > 1, unknown: false };
        let mut request = request;
        if spread > 1 {
            // One who names nobody may be told of any shard.
            let shard = |user| home.shard_of(user, spread);
            request.namespace = request.user.as_ref().map_or_else(|| home.shard(1, spread), shard);
        }
        let mut last_word = None;
        loop {
            let asked = self.inner.gate.ask(request.clone(), how).await?;
            let (dry, back, unknown) = match asked {
                Asked::Answer(answer, replicated) => {
                    if spread > 1
                        && answer.outcome == Outcome::Refused(Refusal::NamespaceNotFound)
                        && how.patient
                        && self.make_shard(&home, &request.namespace).await?
                    {
                        continue;
                    }
                    return Ok((with_last_word(answer, last_word), replicated));
                }
                Asked::Dry { dry, request, unknown } => (dry, request, unknown),
            };
            (request, how.unknown) = (back, unknown);
            if Instant::now() >= deadline {
                return Err(if unknown {
                    GateError::OutcomeUnknown { cause: None }.into()
                } else {
                    SpreadError::TooLate
                });
            }
            match dry {
                Dry::Unknown => {
                    // What the home does not know nobody does.
                    how.patient = self.copy_code(&home, &request.namespace, &request.code).await?;
                }
                Dry::Exhausted(id) => {
                    let invite = id.of_whole(&request.namespace);
                    let question = Moving { home: &home, spread, invite, code: &request.code };
                    let found = self.search(&question, &request.namespace, deadline).await?;
                    if let Found::None { may_free_at } = found {
                        how.patient = false;
                        last_word = Some(may_free_at);
                    }
                }
            }
        }
    }

    /// Makes a shard that is missing; says whether its namespace is there at all.
    async fn make_shard(&self, home: &Namespace, shard: &Namespace) -> Result<bool, GateError> {
        let question = ShowNamespace { namespace: home.clone() };
        let Some((settings, _)) = question.run(&self.inner.gate).await? else { return Ok(false) };
        if settings.archived_at.is_some() {
            return Ok(false);
        }
        self.copy_settings(shard, settings).await?;
        Ok(true)
    }

    async fn copy_settings(&self, shard: &Namespace, settings: Settings) -> Result<(), GateError> {
        CopyNamespace { shard: shard.clone(), settings }.run(&self.inner.gate).await
    }

    /// Brings the rules of a namespace to all its shards. What is answered after that holds everywhere.
    ///
    /// # Errors
    /// [`GateError`] when a shard gives no answer; doing it again is safe.
    pub async fn share_settings(
        &self,
        home: &Namespace,
        settings: &Settings,
    ) -> Result<(), GateError> {
        if settings.spread < 2 {
            return Ok(());
        }
        let shards: Vec<_> = home.shards(settings.spread).collect();
        try_join_all(shards.iter().map(|shard| self.copy_settings(shard, settings.clone())))
            .await?;
        Ok(())
    }

    /// Brings what a code stands for into a shard that does not know it; says whether there is anything.
    async fn copy_code(
        &self,
        home: &Namespace,
        shard: &Namespace,
        code: &Code,
    ) -> Result<bool, GateError> {
        let which = Which::Code(code.clone());
        let question = ShowInvite { namespace: home.clone(), which };
        let Some(Shown { invite, .. }) = question.run(&self.inner.gate).await? else {
            return Ok(false);
        };
        self.copy(home, shard, invite, true).await?;
        Ok(true)
    }

    async fn copy(
        &self,
        home: &Namespace,
        shard: &Namespace,
        invite: Invite,
        is_current: bool,
    ) -> Result<(), GateError> {
        let copy = CopyInvite { shard: shard.clone(), invite, is_current };
        // A shard that is missing is made once.
        if copy.run(&self.inner.gate).await? == Copied::NoShard
            && self.make_shard(home, shard).await?
        {
            copy.run(&self.inner.gate).await?;
        }
        Ok(())
    }

    /// Brings an invite, as its home has it, to all shards. What is answered after that holds everywhere.
    ///
    /// # Errors
    /// [`GateError`] when a shard gives no answer; doing it again is safe.
    pub async fn share(&self, invite: &Invite) -> Result<(), GateError> {
        if invite.total.is_none() {
            return Ok(());
        }
        let home = &invite.namespace;
        let which = Which::Code(invite.code.clone());
        let current = ShowInvite { namespace: home.clone(), which }.run(&self.inner.gate).await?;
        let is_current = current.is_some_and(|current| current.invite.id == invite.id);
        let shards: Vec<_> = home.shards(self.of(home).await?).collect();
        let copies = shards.iter().map(|shard| self.copy(home, shard, invite.clone(), is_current));
        try_join_all(copies).await?;
        Ok(())
    }

    /// What all participants together have of an invite that was shown by its home.
    ///
    /// # Errors
    /// [`GateError`] when a shard gives no answer.
    pub async fn whole(&self, shown: Shown) -> Result<Shown, GateError> {
        let Some(total) = shown.invite.total else { return Ok(shown) };
        let home = shown.invite.namespace.clone();
        let spread = self.of(&home).await?;
        let Invite { id, code, .. } = &shown.invite;
        let moving = Moving { home: &home, spread, invite: *id, code };
        let looks = (1..=spread).map(|participant| self.give(&moving, HOME, participant, 0, 0));
        let parts = try_join_all(looks).await?;
        let Shown { mut invite, mut held, now } = shown;
        for part in parts {
            invite.uses += part.uses;
            invite.granted += part.granted;
            held += part.held;
        }
        invite.max_uses = (total < UNLIMITED).then_some(total);
        invite.total = None;
        Ok(Shown { invite, held, now })
    }

    /// Whether there was a moment since this call at which no use of an invite was free anywhere, in a namespace that is
    /// spread.
    ///
    /// # Errors
    /// [`SpreadError`] when that can not be found out until `deadline`.
    pub async fn is_exhausted(
        &self,
        home: &Namespace,
        invite: InviteId,
        code: &Code,
        deadline: Instant,
    ) -> Result<bool, SpreadError> {
        let spread = self.of(home).await?;
        let moving = Moving { home, spread, invite, code };
        let found = self.follow(&moving, Search::new(1, spread + 1), deadline, |_| false).await?;
        // Held uses may become free again; the code is not free for another invite meanwhile.
        Ok(found == Found::None { may_free_at: None })
    }

    /// Brings free uses of an invite to its home until that has `wanted` that are neither spent nor held, or nobody else
    /// has any.
    ///
    /// # Errors
    /// [`SpreadError`] when a shard, or the ledger, gives no answer until `deadline`.
    pub async fn gather(
        &self,
        home: &Namespace,
        invite: InviteId,
        code: &Code,
        wanted: u64,
        deadline: Instant,
    ) -> Result<(), SpreadError> {
        let spread = self.of(home).await?;
        let moving = Moving { home, spread, invite, code };
        let enough = |part: &Part| part.shard == HOME && part.free() >= wanted;
        self.follow(&moving, Search::gather(spread + 1), deadline, enough).await?;
        Ok(())
    }

    /// Looks for uses for a shard, or waits for one who does.
    async fn search(
        &self,
        moving: &Moving<'_>,
        shard: &Namespace,
        deadline: Instant,
    ) -> Result<Found, SpreadError> {
        let key = (shard.clone(), moving.invite);
        let turn = {
            let mut searches = self.searches();
            searches.entry(key.clone()).or_default().clone()
        };
        let came = turn.begun.load(Ordering::SeqCst);
        let found = async {
            let mut ended = turn.ended.lock().await;
            if let Some((number, found)) = *ended
                && number > came
            {
                return Ok(found);
            }
            let number = turn.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let search = Search::new(shard.participant(), moving.spread + 1);
            let found = self.follow(moving, search, deadline, |_| false).await?;
            *ended = Some((number, found));
            Ok(found)
        };
        let found = tokio::time::timeout_at(deadline, found).await;
        drop(turn);
        let mut searches = self.searches();
        // Nobody else waits: this map has one handle on it.
        if searches.get(&key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            searches.remove(&key);
        }
        drop(searches);
        found.unwrap_or(Err(SpreadError::TooLate))
    }

    fn searches(&self) -> std::sync::MutexGuard<'_, HashMap<(Namespace, InviteId), Arc<Turn>>> {
        self.inner.searches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what a search says until it has ended, or until `enough` of a taker that has just got something.
    async fn follow(
        &self,
        moving: &Moving<'_>,
        mut search: Search,
        deadline: Instant,
        enough: impl Fn(&Part) -> bool,
    ) -> Result<Found, SpreadError> {
        loop {
            if Instant::now() >= deadline {
                return Err(SpreadError::TooLate);
            }
            match search.step() {
                Step::Look(participant) => {
                    let part = self.give(moving, HOME, participant, 0, 0).await?;
                    if enough(&part) {
                        return Ok(Found::Some);
                    }
                    search.looked(part);
                }
                Step::Give { giver, known, divisor } => {
                    let taker = search.taker();
                    let part = self.give(moving, taker, giver, known, divisor).await?;
                    let given = part.given.get(&taker).copied();
                    let given = given.filter(|given| given.amount > known);
                    search.gave(given.map_or(Gave::Nothing, Gave::Given), part);
                }
                Step::Take { taker, giver, given } => {
                    if !self.ledger_has(moving, giver, taker, given, deadline).await? {
                        search.lost();
                        continue;
                    }
                    let take = TakeUses {
                        taker: moving.participant(taker),
                        invite: moving.invite,
                        code: moving.code.clone(),
                        giver,
                        given: given.amount,
                    };
                    let part = take.run(&self.inner.gate).await?;
                    metrics::counter!("redeemer_spread_moves_total").increment(1);
                    if enough(&part) {
                        return Ok(Found::Some);
                    }
                    search.took(part);
                }
                Step::Moved | Step::Gathered(_) => return Ok(Found::Some),
                Step::Exhausted { may_free_at } => return Ok(Found::None { may_free_at }),
            }
        }
    }

    /// Calls `give_uses.lua` at a participant.
    async fn give(
        &self,
        moving: &Moving<'_>,
        taker: u16,
        giver: u16,
        known: u64,
        divisor: u64,
    ) -> Result<Part, GateError> {
        let give = GiveUses {
            giver: moving.participant(giver),
            invite: moving.invite,
            code: moving.code.clone(),
            taker,
            known,
            divisor,
        };
        give.run(&self.inner.gate).await
    }

    /// Waits until the ledger is where a giver wrote down what it gave, and says whether it has that: after a failover
    /// the giver may have forgotten it.
    async fn ledger_has(
        &self,
        moving: &Moving<'_>,
        giver: u16,
        taker: u16,
        given: Given,
        deadline: Instant,
    ) -> Result<bool, SpreadError> {
        let Inner { gate, ledger, progress, .. } = &*self.inner;
        let partition = gate.keys().partition_of(&moving.participant(giver));
        let position = Position { partition, cursor: given.at };
        let waited = tokio::time::timeout_at(deadline, progress.wait(position)).await;
        waited.map_err(|_| SpreadError::TooLate)?;
        Ok(ledger.given(moving.invite, giver, taker).await? >= given.amount)
    }
}

/// An invite whose uses move.
struct Moving<'a> {
    home: &'a Namespace,
    spread: u16,
    invite: InviteId,
    code: &'a Code,
}

impl Moving<'_> {
    fn participant(&self, number: u16) -> Namespace {
        if number == HOME { self.home.clone() } else { self.home.shard(number, self.spread) }
    }
}

/// A shard knows only of its own reservations; the first of all that end is the one that counts.
fn with_last_word(answer: Answer, last_word: Option<Option<Millis>>) -> Answer {
    match (answer, last_word) {
        (
            Answer { outcome: Outcome::Refused(Refusal::Exhausted { .. }), rates },
            Some(may_free_at),
        ) => Answer { outcome: Outcome::Refused(Refusal::Exhausted { may_free_at }), rates },
        (answer, _) => answer,
    }
}
