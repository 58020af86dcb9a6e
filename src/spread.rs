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
    time::Duration,
};

use futures_util::future::try_join_all;
use tokio::time::Instant;

use crate::{
    domain::{
        Answer, Code, Given, Invite, InviteId, Millis, Namespace, Outcome, Position, Refusal,
        Settings, UserId, campaign,
        invite::Shown,
        spread::{Gave, HOME, Part, Pool, Search, Step, UNLIMITED},
    },
    gate::{
        Ask, Asked, Gate, GateError,
        copy_invite::{Copied, CopyInvite},
        copy_namespace::CopyNamespace,
        delete_invite::{DeleteInvite, Deleted},
        give_uses::GiveUses,
        redeem::{Dry, Redeem},
        show_invite::{ShowInvite, Which},
        show_member::ShowMember,
        show_namespace::ShowNamespace,
        take_uses::TakeUses,
    },
    ledger::{Ledger, LedgerError},
    sync::progress::Progress,
};

/// Who removes copies of what was deleted.
const ACTOR: &str = "spread";

/// Before something is looked at again that is being changed or recovered.
const PAUSE: Duration = Duration::from_millis(10);

/// How long a change of rules is waited for until the ledger has it.
const PATIENCE: Duration = Duration::from_secs(5);

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
    searches: Mutex<HashMap<Searched, Arc<Turn>>>,
}

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

/// How a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// There were uses; the shard may have them still.
    Some,
    /// There was a moment since it began at which there was none anywhere.
    None { may_free_at: Option<Millis> },
    /// The namespace itself does not have the invite any more.
    Gone,
}

impl Spread {
    /// Of this gate and this ledger.
    #[must_use]
    pub fn new(gate: Gate, ledger: Ledger, progress: Progress) -> Self {
        Self { inner: Arc::new(Inner { gate, ledger, progress, searches: Mutex::default() }) }
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

    /// Removes the copy of an invite that was deleted while it was copied; says whether the shard has none now.
    async fn forget_copy(&self, shard: &Namespace, id: InviteId) -> Result<bool, GateError> {
        let (namespace, actor) = (shard.clone(), ACTOR.to_owned());
        let delete = DeleteInvite { id, namespace, expected_revision: None, actor };
        let deleted = delete.run(&self.inner.gate).await?;
        Ok(matches!(deleted, Deleted::Deleted | Deleted::NotFound))
    }

    /// Makes a shard that is missing; says whether its namespace is there at all.
    async fn make_shard(&self, home: &Namespace, shard: &Namespace) -> Result<bool, SpreadError> {
        let question = ShowNamespace { namespace: home.clone() };
        let Some((settings, _)) = question.run(&self.inner.gate).await? else { return Ok(false) };
        if settings.archived_at.is_some() || !settings.parts(home).contains(shard) {
            return Ok(false);
        }
        self.share_settings(home, &settings).await?;
        Ok(true)
    }

    /// Brings the rules of a namespace to all its shards. What is answered after that holds everywhere.
    ///
    /// Nobody comes into a shard of the newest spread before the ledger has that spread, and that all earlier ones are
    /// sealed: a Redis that loses either would let somebody in who is in another place by then.
    ///
    /// # Errors
    /// [`SpreadError`] when a shard, or the ledger, gives no answer in time; doing it again is safe.
    pub async fn share_settings(
        &self,
        home: &Namespace,
        settings: &Settings,
    ) -> Result<(), SpreadError> {
        if !settings.is_spread() {
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        self.until_ledger_has(home, deadline, |known| {
            (known.spread, &known.layouts) == (settings.spread, &settings.layouts)
        })
        .await?;
        let shards = settings.parts(home).split_off(1);
        let is_newest =
            |shard: &&Namespace| shard.shard_number().is_some_and(|(_, of)| of == settings.spread);
        let (newest, earlier): (Vec<_>, Vec<_>) = shards.iter().partition(is_newest);
        let copy = |shard: &Namespace| {
            let copy = CopyNamespace { shard: shard.clone(), settings: settings.clone() };
            async move { copy.run(&self.inner.gate).await }
        };
        try_join_all(earlier.iter().map(|shard| copy(shard))).await?;
        for shard in earlier {
            self.until_ledger_has(shard, deadline, |known| known.sealed).await?;
        }
        try_join_all(newest.iter().map(|shard| copy(shard))).await?;
        Ok(())
    }

    /// Waits until the ledger has the rules of a namespace, or of a shard, as they are wanted.
    async fn until_ledger_has(
        &self,
        namespace: &Namespace,
        deadline: Instant,
        is_so: impl Fn(&Settings) -> bool,
    ) -> Result<(), SpreadError> {
        let Inner { gate, ledger, progress, .. } = &*self.inner;
        let partition = gate.keys().partition_of(namespace);
        while !ledger.namespace(namespace).await?.is_some_and(|known| is_so(&known)) {
            if Instant::now() >= deadline {
                return Err(SpreadError::TooLate);
            }
            // Somebody waits, so the sync does not gather more.
            let next = progress.cursor(partition).next();
            let more = progress.wait(Position { partition, cursor: next });
            drop(tokio::time::timeout(PAUSE, more).await);
        }
        Ok(())
    }

    /// Brings what a code stands for into a shard that does not know it; says whether there is anything.
    async fn copy_code(
        &self,
        home: &Namespace,
        shard: &Namespace,
        code: &Code,
    ) -> Result<bool, SpreadError> {
        let which = Which::Code(code.clone());
        let question = ShowInvite { namespace: home.clone(), which };
        let Some(Shown { invite, .. }) = question.run(&self.inner.gate).await? else {
            return Ok(false);
        };
        if invite.total.is_none() {
            // It was made before its namespace was spread: a look gives it its total, before any shard has it.
            let parts = [home.clone()];
            let pool = Pool::Invite { id: invite.id, code: code.clone() };
            self.give(&Moving { parts: &parts, pool }, HOME, HOME, 0, 0).await?;
        }
        self.copy(home, shard, invite, true).await?;
        Ok(true)
    }

    async fn copy(
        &self,
        home: &Namespace,
        shard: &Namespace,
        invite: Invite,
        is_current: bool,
    ) -> Result<(), SpreadError> {
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
    /// [`SpreadError`] when a shard gives no answer; doing it again is safe.
    pub async fn share(&self, invite: &Invite) -> Result<(), SpreadError> {
        if invite.total.is_none() {
            return Ok(());
        }
        let home = &invite.namespace;
        let which = Which::Code(invite.code.clone());
        let current = ShowInvite { namespace: home.clone(), which }.run(&self.inner.gate).await?;
        let is_current = current.is_some_and(|current| current.invite.id == invite.id);
        let parts = self.parts(home).await?;
        let shards = parts[1..].iter();
        let copies = shards.map(|shard| self.copy(home, shard, invite.clone(), is_current));
        try_join_all(copies).await?;
        Ok(())
    }

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

    /// Brings free uses of an invite, or of a campaign, to its home until that has `wanted` that are neither spent nor held, or nobody else
    /// has any.
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
    async fn search(
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
    async fn in_turn(
        &self,
        moving: &Moving<'_>,
        part: &Namespace,
        search: Search,
        deadline: Instant,
    ) -> Result<Found, SpreadError> {
        let key = (part.clone(), moving.pool.id(), search.moves());
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

    fn searches(&self) -> std::sync::MutexGuard<'_, HashMap<Searched, Arc<Turn>>> {
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
    async fn give(
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
struct Moving<'a> {
    /// The namespace itself first.
    parts: &'a [Namespace],
    pool: Pool,
}

impl Moving<'_> {
    fn count(&self) -> u16 {
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
