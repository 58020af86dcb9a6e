//! How uses move between the parts of a namespace, and what all parts together have of them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::{Inner, PAUSE, Spread, SpreadError};
use crate::{
    domain::{
        Code, Given, Invite, InviteId, Millis, Namespace, Position, campaign,
        invite::Shown,
        spread::{Gave, HOME, Part, Pool, Search, Step, UNLIMITED},
    },
    gate::{
        GateError,
        give_uses::GiveUses,
        show_invite::{ShowInvite, Which},
        take_uses::TakeUses,
    },
};

/// Where and for what, and whether something is to be moved: who waits for that is not helped by a look.
type Searched = (Namespace, InviteId, bool);

/// Whose turn it is to search for uses for a shard.
#[derive(Default)]
struct Turn {
    /// How many searches have begun.
    begun: AtomicU64,
    /// The last one that ended, and how: what it found holds for all who came before it began.
    ended: tokio::sync::Mutex<Option<(u64, Found)>>,
}

/// The searches that are under way.
#[derive(Default)]
pub(super) struct Searches(Mutex<HashMap<Searched, Arc<Turn>>>);

impl Searches {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Searched, Arc<Turn>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// There were uses; the shard may have them still.
    Some,
    /// There was a moment since it began at which there was none anywhere.
    None { may_free_at: Option<Millis> },
    /// The namespace itself does not have the invite any more.
    Gone,
}

impl Spread {
    /// What all participants together have of an invite that was shown by its home.
    ///
    /// # Errors
    /// [`GateError`] when a shard gives no answer.
    pub async fn whole(&self, shown: Shown) -> Result<Shown, GateError> {
        let Some(total) = shown.invite.total else { return Ok(shown) };
        let parts = self.parts(&shown.invite.namespace).await?;
        let Invite { id, code, .. } = &shown.invite;
        let pool = Pool::Invite { id: *id, code: code.clone() };
        let moving = Moving { parts: &parts, pool };
        let shards = 1..moving.count();
        let looks = try_join_all(shards.map(|shard| self.give(&moving, HOME, shard, 0, 0))).await?;
        let Shown { mut invite, mut held, now } = shown;
        for part in looks {
            invite.uses += part.uses;
            invite.granted += part.granted;
            held += part.held;
        }
        invite.max_uses = (total < UNLIMITED).then_some(total);
        invite.total = None;
        Ok(Shown { invite, held, now })
    }

    /// What all participants together have of a campaign that was shown by its home.
    ///
    /// # Errors
    /// [`GateError`] when a shard gives no answer.
    pub async fn whole_campaign(
        &self,
        shown: campaign::Shown,
    ) -> Result<campaign::Shown, GateError> {
        let Some(total) = shown.campaign.total else { return Ok(shown) };
        let campaign::Shown { mut campaign, mut held } = shown;
        let parts = self.parts(&campaign.namespace).await?;
        let (namespace, name) = (campaign.namespace.clone(), campaign.name.clone());
        let moving = Moving { parts: &parts, pool: Pool::Campaign { namespace, name } };
        let shards = 1..moving.count();
        let looks = try_join_all(shards.map(|shard| self.give(&moving, HOME, shard, 0, 0))).await?;
        for part in looks {
            campaign.uses += part.uses;
            held += part.held;
        }
        campaign.max_uses = (total < UNLIMITED).then_some(total);
        campaign.total = None;
        Ok(campaign::Shown { campaign, held })
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
        let parts = self.parts(home).await?;
        let moving =
            Moving { parts: &parts, pool: Pool::Invite { id: invite, code: code.clone() } };
        let search = Search::new(moving.count() - 1, moving.count());
        let found = self.follow(&moving, search, deadline, |_| false).await?;
        // Held uses may become free again; the code is not free for another invite meanwhile.
        Ok(found == Found::None { may_free_at: None })
    }

    /// Brings free uses of an invite, or of a campaign, to its home until that has `wanted` that are neither spent nor
    /// held, or nobody else has any.
    ///
    /// # Errors
    /// [`SpreadError`] when a shard, or the ledger, gives no answer until `deadline`.
    pub async fn gather(
        &self,
        home: &Namespace,
        pool: Pool,
        wanted: u64,
        deadline: Instant,
    ) -> Result<(), SpreadError> {
        let parts = self.parts(home).await?;
        let moving = Moving { parts: &parts, pool };
        let enough = |part: &Part| part.shard == HOME && part.free() >= wanted;
        self.follow(&moving, Search::gather(moving.count()), deadline, enough).await?;
        Ok(())
    }

    /// Looks for uses for a shard, or waits for one who does.
    pub(super) async fn search(
        &self,
        moving: &Moving<'_>,
        shard: &Namespace,
        deadline: Instant,
    ) -> Result<Found, SpreadError> {
        let taker = moving.place_of(shard.participant());
        let search = Search::new(taker, moving.count());
        self.in_turn(moving, shard, search, deadline).await
    }

    /// Searches, or waits for one who does it for the same part.
    pub(super) async fn in_turn(
        &self,
        moving: &Moving<'_>,
        part: &Namespace,
        search: Search,
        deadline: Instant,
    ) -> Result<Found, SpreadError> {
        let key = (part.clone(), moving.pool.id(), search.moves());
        let turn = {
            let mut searches = self.inner.searches.lock();
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
            let found = self.follow(moving, search, deadline, |_| false).await?;
            *ended = Some((number, found));
            Ok(found)
        };
        let found = tokio::time::timeout_at(deadline, found).await;
        drop(turn);
        let mut searches = self.inner.searches.lock();
        // Nobody else waits: this map has one handle on it.
        if searches.get(&key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            searches.remove(&key);
        }
        drop(searches);
        found.unwrap_or(Err(SpreadError::TooLate))
    }

    /// Does what a search says until it has ended, or until `enough` of a taker that has just got something.
    async fn follow(
        &self,
        moving: &Moving<'_>,
        mut search: Search,
        deadline: Instant,
        enough: impl Fn(&Part) -> bool,
    ) -> Result<Found, SpreadError> {
        // Why one of them could not be asked: the others may have what is looked for, but what there is in all is not known.
        let mut unasked: Option<GateError> = None;
        let mut rounds = 0_u32;
        loop {
            if Instant::now() >= deadline {
                return Err(SpreadError::TooLate);
            }
            let step = search.step();
            if matches!(
                step,
                Step::Look(_) | Step::Moved | Step::Exhausted { .. } | Step::Gathered(_)
            ) && let Some(error) = unasked.take()
            {
                return Err(error.into());
            }
            match step {
                Step::Look(participant) => {
                    // Two say whether there is any; more are needed where others move uses meanwhile, or a Redis is
                    // being recovered.
                    rounds += 1;
                    if rounds > 2 {
                        tokio::time::sleep(PAUSE).await;
                    }
                    let part = self.give(moving, HOME, participant, 0, 0).await?;
                    if enough(&part) {
                        return Ok(Found::Some);
                    }
                    if is_gone(&part) {
                        return Ok(Found::Gone);
                    }
                    search.looked(part);
                }
                Step::Give { giver, known, divisor } => {
                    let taker = search.taker();
                    let part = match self.give(moving, taker, giver, known, divisor).await {
                        Ok(part) if is_gone(&part) => return Ok(Found::Gone),
                        Ok(part) => part,
                        Err(error) => {
                            unasked = Some(error);
                            Part::absent(giver)
                        }
                    };
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
                        taker: moving.parts[usize::from(taker)].clone(),
                        pool: moving.pool.clone(),
                        giver: moving.number(giver),
                        given: given.amount,
                    };
                    let mut part = moving.placed(take.run(&self.inner.gate).await?);
                    if part.is_absent() {
                        // Uses are on their way to a shard that has no copy, or whose Redis has lost it.
                        self.copy_again(moving).await?;
                        part = moving.placed(take.run(&self.inner.gate).await?);
                    }
                    metrics::counter!("redeemer_spread_moves_total").increment(1);
                    // It has something; those who could not be asked do not matter now.
                    unasked = None;
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

    /// Brings an invite to every shard, as its home has it. A campaign needs that not: who takes for it makes it.
    async fn copy_again(&self, moving: &Moving<'_>) -> Result<(), SpreadError> {
        let Pool::Invite { id, .. } = &moving.pool else { return Ok(()) };
        let which = Which::Id(*id);
        let question = ShowInvite { namespace: moving.parts[0].clone(), which };
        if let Some(shown) = question.run(&self.inner.gate).await? {
            self.share(&shown.invite).await?;
        }
        Ok(())
    }

    /// Calls `give_uses.lua` at a participant.
    pub(super) async fn give(
        &self,
        moving: &Moving<'_>,
        taker: u16,
        giver: u16,
        known: u64,
        divisor: u64,
    ) -> Result<Part, GateError> {
        let give = GiveUses {
            giver: moving.parts[usize::from(giver)].clone(),
            pool: moving.pool.clone(),
            taker: moving.number(taker),
            known,
            divisor,
        };
        Ok(moving.placed(give.run(&self.inner.gate).await?))
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
        let partition = gate.keys().partition_of(&moving.parts[usize::from(giver)]);
        let position = Position { partition, cursor: given.at };
        let waited = tokio::time::timeout_at(deadline, progress.wait(position)).await;
        waited.map_err(|_| SpreadError::TooLate)?;
        let (giver, taker) = (moving.number(giver), moving.number(taker));
        Ok(ledger.given(moving.pool.id(), giver, taker).await? >= given.amount)
    }
}

/// A pool whose uses move. A search counts the parts of the namespace from 0, Redis and the ledger know them by numbers
/// that stay the same whatever the spread.
pub(super) struct Moving<'a> {
    /// The namespace itself first.
    pub(super) parts: &'a [Namespace],
    pub(super) pool: Pool,
}

impl Moving<'_> {
    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.parts.len()).unwrap_or(u16::MAX)
    }

    fn number(&self, place: u16) -> u16 {
        self.parts[usize::from(place)].participant()
    }

    fn place_of(&self, number: u16) -> u16 {
        let place = self.parts.iter().position(|part| part.participant() == number);
        // One of a layout that was added a moment ago: none of the places, so that a search sees that something is
        // missing.
        place.and_then(|place| u16::try_from(place).ok()).unwrap_or(u16::MAX)
    }

    /// A part as Redis tells of it, with the places that a search counts by.
    fn placed(&self, part: Part) -> Part {
        Part {
            shard: self.place_of(part.shard),
            given: part.given.into_iter().map(|(to, given)| (self.place_of(to), given)).collect(),
            taken: part.taken.into_iter().map(|(by, taken)| (self.place_of(by), taken)).collect(),
            ..part
        }
    }
}

fn is_gone(part: &Part) -> bool {
    part.shard == HOME && part.is_absent()
}
