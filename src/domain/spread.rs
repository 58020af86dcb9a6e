//! One invite in many partitions: how its uses move, and how it is known that none is left.
//!
//! A *spread* namespace consists of shards, each an ordinary namespace in a partition of its own. A user belongs to one
//! of them, an invite to all: each shard has a [`Part`] of it, and its share, `max_uses`, is what it may spend. A shard
//! spends from its share in one script call and asks nobody. Number 0 is the [`HOME`], the namespace that people know: it
//! has the whole limit at first, and alone knows it; where it has users of its own, they spend from its share like others.
//! A share that runs dry gets uses from other shards by *moves*.
//!
//! # A move
//!
//! From giver `j` to taker `k`, in three steps, each of which can be repeated, come late, or never happen:
//!
//! ```text
//! 1. give, at j     max_uses -= n, given[k] += n; one outbox entry with both
//! 2. the ledger has that entry
//! 3. take, at k     n = given[k] - taken[j]; max_uses += n, taken[j] += n; one outbox entry with both
//! ```
//!
//! `given` and `taken` only grow: how much *ever* went from `j` to `k`. So for each pair `given - taken` is in transit,
//! and taking is not "add n" but "come up to `given`". This is the escrow of a bounded counter: a matrix of cumulative
//! transfers, of which each cell has one writer. Four things follow.
//!
//! - **Nothing is doubled.** Everywhere and always, the shares and what is in transit are the limit, no more and no less:
//!   a giver is debited first, and a repeated or late take finds that it has come up already.
//! - **A crash strands, at worst.** Whoever moved may die after any step. The parts still show `given > taken`, and
//!   anybody completes the move by steps 2 and 3 ([`Search`] does so when it meets one).
//! - **A failover loses no debit that was credited.** Redis may lose its last changes, and a partition then goes on from
//!   the ledger. A giver that forgets a debit was not credited to anybody yet: that is step 2. A taker that forgets a
//!   credit has forgotten `taken` with it, and is credited again.
//! - **Two movers of one pair do not add up.** Who asks says how much it has seen the taker take (`known`); a giver that
//!   has given more repeats that and gives nothing new.
//!
//! Step 2 asks for the *row*: the ledger says that `j` has given `k` so much. That the ledger's cursor has passed the
//! place of the entry is not enough: a later epoch is past all places of the one before, those too that were lost.
//!
//! How much a giver gives is chosen so that few moves are needed: the home has an equal portion for each shard and keeps
//! one, so that people who come once each find a use in their own shard until most are spent. After that a shard that
//! runs dry gets half of what another one has: the home first, then the one that gave it least so far.
//!
//! # When none is left
//!
//! Looking at one shard after the other proves nothing: a use may move, or come back by a rollback, behind the looker's
//! back. So it looks twice. If each part is the same in the second round as in the first, then it was so at the moment
//! between the rounds, in all shards at once; and if the shares seen add up to the limit, nothing was in transit. At that
//! moment nobody had a free use, and `exhausted` is the truth. For this a part that was changed and changed back must not
//! look the same, hence its counters that only grow, and the epoch (see [`Part`]).

use std::collections::BTreeMap;

use super::{CampaignName, Code, Cursor, InviteId, Millis, Namespace};

/// The shard that has an invite's administrative fields and its limit.
pub const HOME: u16 = 0;

/// The limit of an invite without one: the scripts count exactly up to 2^53.
pub const UNLIMITED: u64 = 1 << 52;

/// Whose uses move: those of an invite, or those that a campaign's invites share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pool {
    /// An invite's.
    Invite {
        /// By its id in the namespace itself.
        id: InviteId,
        /// Its code.
        code: Code,
    },
    /// A campaign's.
    Campaign {
        /// Of this namespace, not of a shard.
        namespace: Namespace,
        /// Its name.
        name: CampaignName,
    },
}

impl Pool {
    /// By what it is known in the namespace itself.
    #[must_use]
    pub fn id(&self) -> InviteId {
        match self {
            Self::Invite { id, .. } => *id,
            Self::Campaign { namespace, name } => InviteId::of_campaign(namespace, name),
        }
    }

    /// By what it is known at a participant.
    #[must_use]
    pub fn id_in(&self, participant: &Namespace) -> InviteId {
        self.id().of_whole(participant)
    }
}

/// What one shard has of an invite, or of a campaign, as its partition's Redis says at one moment.
///
/// Two looks at a part are equal only if nothing happened in between. Uses that came and went leave their trace: `granted`
/// counts each grant, `holds` each hold, `given` and `taken` each move, `revision` each change by hand; and what a
/// failover took back shows in `epoch`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Part {
    /// Whose.
    pub shard: u16,
    /// The epoch of its partition.
    pub epoch: u64,
    /// Counts administrative changes.
    pub revision: u64,
    /// The limit of all shards together, or [`UNLIMITED`]: at the home alone.
    pub total: Option<u64>,
    /// Its share: what it may spend and hold.
    pub max_uses: u64,
    /// How many it has spent.
    pub uses: u64,
    /// How many live reservations hold.
    pub held: u64,
    /// How many it ever granted: a use that was rolled back and spent again counts twice.
    pub granted: u64,
    /// How many reservations it ever made.
    pub holds: u64,
    /// The first deadline of a live reservation.
    pub may_free_at: Option<Millis>,
    /// How many of its free uses it gives to nobody for now, 0 or 1: one that has just come is for those who have waited
    /// for it there.
    pub kept: u64,
    /// What it ever gave, by taker.
    pub given: BTreeMap<u16, Given>,
    /// What it ever took, by giver.
    pub taken: BTreeMap<u16, u64>,
}

/// What a shard ever gave to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Given {
    /// How many uses, in all moves together.
    pub amount: u64,
    /// The place of the last one in the giver's outbox.
    pub at: Cursor,
}

/// What a giver answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gave {
    /// So much, now or before.
    Given(Given),
    /// It has no free use, but what it keeps.
    Nothing,
}

impl Part {
    /// Of a shard that does not have the invite.
    #[must_use]
    pub fn absent(shard: u16) -> Self {
        Self {
            shard,
            epoch: 0,
            revision: 0,
            total: None,
            max_uses: 0,
            uses: 0,
            held: 0,
            granted: 0,
            holds: 0,
            may_free_at: None,
            kept: 0,
            given: BTreeMap::new(),
            taken: BTreeMap::new(),
        }
    }

    /// Whether its shard does not have the invite. Epochs begin with 1.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.epoch == 0
    }

    /// How many uses it can spend or give.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.max_uses.saturating_sub(self.uses + self.held)
    }

    /// How much it ever gave to a shard.
    #[must_use]
    pub fn given_to(&self, taker: u16) -> u64 {
        self.given.get(&taker).map_or(0, |given| given.amount)
    }

    /// How much it ever took from a shard.
    #[must_use]
    pub fn taken_from(&self, giver: u16) -> u64 {
        self.taken.get(&giver).copied().unwrap_or_default()
    }

    /// `lua/give_uses.lua`: gives a portion of what is free, unless more was given before than the taker is `known` to
    /// have taken. With a `divisor` of 0 nothing new is given; with 1 the portion is all. Else there is one portion for each of so many participants
    /// that was not given anything yet, and there are at least two; so the first ones are equal, and the giver keeps one.
    /// What is [`kept`](Self::kept) is not divided, but is part of all. `at` is the place of the change, if it becomes one.
    pub fn give(&mut self, taker: u16, known: u64, divisor: u64, at: Cursor) -> Gave {
        if let Some(outstanding) = self.given.get(&taker).filter(|given| given.amount > known) {
            return Gave::Given(*outstanding);
        }
        if divisor == 0 {
            return Gave::Nothing;
        }
        let portions = divisor.saturating_sub(self.given.len() as u64).max(divisor.min(2));
        let kept = if divisor == 1 { 0 } else { self.kept };
        let portion = self.free().saturating_sub(kept).div_ceil(portions);
        if portion == 0 {
            return Gave::Nothing;
        }
        let given = Given { amount: self.given_to(taker) + portion, at };
        self.max_uses -= portion;
        self.given.insert(taker, given);
        Gave::Given(given)
    }

    /// `lua/take_uses.lua`: comes up to what the giver has ever given, and says whether that was a change. Only for
    /// amounts that the ledger has.
    pub fn take(&mut self, giver: u16, given: u64) -> bool {
        let more = given.saturating_sub(self.taken_from(giver));
        if more > 0 {
            self.max_uses += more;
            self.taken.insert(giver, given);
        }
        more > 0
    }
}

/// Into how many portions a giver divides what it has free (see [`Part::give`]): the home has one for each, so that
/// nobody has to come again before most uses are spent; between two others it is half and half.
#[must_use]
pub fn divisor(giver: u16, shards: u16) -> u64 {
    if giver == HOME { u64::from(shards) } else { 2 }
}

/// What is to be done next, and how the answer is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// Read this shard's part: [`Search::looked`].
    Look(u16),
    /// Call `give_uses.lua` at the giver: [`Search::gave`].
    Give {
        /// Where.
        giver: u16,
        /// How much the taker is known to have taken from it.
        known: u64,
        /// See [`Part::give`].
        divisor: u64,
    },
    /// Wait until the ledger's row says that the giver has given the taker this amount, then call `take_uses.lua` at the
    /// taker: [`Search::took`]. If the ledger has passed the place and the row does not say so, then the giver has
    /// forgotten it: [`Search::lost`].
    Take {
        /// Where.
        taker: u16,
        /// From whom.
        giver: u16,
        /// How much, and from where on the ledger can have it.
        given: Given,
    },
    /// Ask the gate again: there were free uses in the taker's share.
    Moved,
    /// There was a moment since the search began at which no shard had a free use, and none was in transit.
    Exhausted {
        /// The first deadline of a reservation that was live then.
        may_free_at: Option<Millis>,
    },
    /// The home has what the others had free. These are all parts, the home's first.
    Gathered(Vec<Part>),
}

/// What a search is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Goal {
    /// Some free uses in the taker's share, or the certainty that there are none.
    Some,
    /// All free uses in the home's share.
    All,
    /// The certainty that there are none, or that some may be free.
    Look,
}

/// Looks for free uses and moves them, on behalf of one shard. It does nothing itself: whoever drives it does what
/// [`Search::step`] says, and tells what came of it.
///
/// It goes round by round. In a round it looks at the taker and asks every other shard to give, the home first. One that
/// gives nothing answers with its part, so asking is looking.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Search {
    goal: Goal,
    taker: u16,
    shards: u16,
    /// The parts seen in this round, the taker's first.
    seen: Vec<Part>,
    /// Those of the round before, if nothing was moved since.
    before: Vec<Part>,
    /// Whether something was moved in this round.
    moved: bool,
    step: Step,
}

impl Search {
    /// For a shard whose share has run dry. Ends with [`Step::Moved`] or [`Step::Exhausted`].
    #[must_use]
    pub fn new(taker: u16, shards: u16) -> Self {
        Self::with(Goal::Some, taker, shards)
    }

    /// To bring all free uses home, before the limit or the spread is lowered. Ends with [`Step::Gathered`] after a round
    /// in which nobody had any. While others redeem and search, that may take long: who needs only so many uses at home
    /// can stop as soon as its part has them.
    #[must_use]
    pub fn gather(shards: u16) -> Self {
        Self::with(Goal::All, HOME, shards)
    }

    /// Moves nothing. Ends with [`Step::Moved`] when somebody has a free use or one is in transit, or [`Step::Exhausted`].
    #[must_use]
    pub fn look(shards: u16) -> Self {
        Self::with(Goal::Look, HOME, shards)
    }

    fn with(goal: Goal, taker: u16, shards: u16) -> Self {
        let (seen, before) = (Vec::new(), Vec::new());
        Self { goal, taker, shards, seen, before, moved: false, step: Step::Look(taker) }
    }

    /// Whether it moves what it finds.
    #[must_use]
    pub fn moves(&self) -> bool {
        self.goal != Goal::Look
    }

    /// Whom the uses are for.
    #[must_use]
    pub fn taker(&self) -> u16 {
        self.taker
    }

    /// What is to be done next. Until its answer is told it stays the same: it can be repeated.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step.clone()
    }

    /// The answer to [`Step::Look`].
    pub fn looked(&mut self, part: Part) {
        if self.goal != Goal::All && part.free() > 0 {
            self.step = Step::Moved;
        } else {
            self.see(part);
        }
    }

    /// The answer to [`Step::Give`], and the giver's part after it.
    pub fn gave(&mut self, gave: Gave, part: Part) {
        match gave {
            _ if self.goal == Goal::Look && (part.free() > 0 || gave != Gave::Nothing) => {
                self.step = Step::Moved;
            }
            Gave::Given(given) => {
                self.step = Step::Take { taker: self.taker, giver: part.shard, given };
            }
            Gave::Nothing => self.see(part),
        }
    }

    /// The answer to [`Step::Take`]: the taker's part after it, whether it was a change or not.
    pub fn took(&mut self, part: Part) {
        if part.shard != self.taker {
            self.begin();
        } else if self.goal == Goal::Some {
            self.step = Step::Moved;
        } else {
            // The same giver again: it may have repeated what it gave before.
            self.seen[0] = part;
            self.moved = true;
            self.step = self.ask();
        }
    }

    /// The answer to [`Step::Take`] when a failover of the giver came before the ledger had it.
    pub fn lost(&mut self) {
        self.begin();
    }

    fn begin(&mut self) {
        *self = Self::with(self.goal, self.taker, self.shards);
    }

    fn see(&mut self, part: Part) {
        self.seen.push(part);
        self.step =
            if self.seen.len() < usize::from(self.shards) { self.ask() } else { self.judge() };
    }

    /// The next of a round: the taker, the home, and of the others the one that gave it least so far. One that has given
    /// a half has less than one that has given nothing.
    fn ask(&self) -> Step {
        let Some(taker) = self.seen.first() else { return Step::Look(self.taker) };
        let others = (1..self.shards).map(|distance| (self.taker + distance) % self.shards);
        let open = others.filter(|shard| self.seen.iter().all(|part| part.shard != *shard));
        let next = open.min_by_key(|shard| (*shard != HOME, taker.taken_from(*shard)));
        // A whole round is judged, so there is one unless the taker is alone.
        next.map_or(Step::Look(self.taker), |giver| {
            let divisor = match self.goal {
                Goal::Some => divisor(giver, self.shards),
                Goal::All => 1,
                Goal::Look => 0,
            };
            Step::Give { giver, known: taker.taken_from(giver), divisor }
        })
    }

    /// What a whole round means in which nobody had anything to give.
    fn judge(&mut self) -> Step {
        if let Some(stranded) = in_transit(&self.seen) {
            return if self.goal == Goal::Look { Step::Moved } else { stranded };
        }
        let round = std::mem::take(&mut self.seen);
        if self.goal == Goal::All {
            if std::mem::take(&mut self.moved) {
                return self.ask();
            }
            return Step::Gathered(round);
        }
        let Some(total) = round.iter().find_map(|part| part.total) else {
            // The home does not have it any more. The gate knows what that means.
            return Step::Moved;
        };
        let shares: u64 = round.iter().map(|part| part.max_uses).sum();
        // A use that is kept is spent in a moment, or given.
        let is_none_free = round.iter().all(|part| part.free() == 0);
        if is_none_free && shares == total && round == self.before {
            let may_free_at = round.iter().filter_map(|part| part.may_free_at).min();
            return Step::Exhausted { may_free_at };
        }
        self.before = round;
        self.ask()
    }
}

/// The step that completes a move of which only the debit is seen.
fn in_transit(parts: &[Part]) -> Option<Step> {
    let stranded = |taker: &Part| {
        parts.iter().find_map(|giver| {
            let given = *giver.given.get(&taker.shard)?;
            let (taker_shard, known) = (taker.shard, taker.taken_from(giver.shard));
            (given.amount > known).then_some(Step::Take {
                taker: taker_shard,
                giver: giver.shard,
                given,
            })
        })
    };
    parts.iter().find_map(stranded)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shards that answer at once, and whose ledger has everything.
    struct Shards {
        parts: Vec<Part>,
        seq: u64,
    }

    impl Shards {
        /// The home has all uses.
        fn new(count: u16, total: u64) -> Self {
            let mut parts: Vec<_> = (0..count).map(Part::absent).collect();
            parts[0].total = Some(total);
            parts[0].max_uses = total;
            Self { parts, seq: 0 }
        }

        fn spend(&mut self, shard: u16, uses: u64) {
            let part = self.part(shard);
            assert!(part.free() >= uses);
            part.uses += uses;
            part.granted += uses;
        }

        fn part(&mut self, shard: u16) -> &mut Part {
            &mut self.parts[usize::from(shard)]
        }

        fn give(&mut self, giver: u16, taker: u16, known: u64, divisor: u64) -> Gave {
            self.seq += 1;
            let at = Cursor { epoch: 1, seq: self.seq };
            self.part(giver).give(taker, known, divisor, at)
        }

        /// Does what the search says, once; returns what that was.
        fn follow(&mut self, search: &mut Search) -> Step {
            let step = search.step();
            match &step {
                Step::Look(shard) => search.looked(self.part(*shard).clone()),
                Step::Give { giver, known, divisor } => {
                    let gave = self.give(*giver, search.taker, *known, *divisor);
                    search.gave(gave, self.part(*giver).clone());
                }
                Step::Take { taker, giver, given } => {
                    self.part(*taker).take(*giver, given.amount);
                    search.took(self.part(*taker).clone());
                }
                Step::Moved | Step::Exhausted { .. } | Step::Gathered(_) => {}
            }
            step
        }

        /// Follows it to its end; returns that, and the steps before.
        fn run(&mut self, search: &mut Search) -> (Step, Vec<Step>) {
            let mut steps = Vec::new();
            loop {
                match self.follow(search) {
                    end @ (Step::Moved | Step::Exhausted { .. } | Step::Gathered(_)) => {
                        return (end, steps);
                    }
                    step => steps.push(step),
                }
                assert!(steps.len() < 100, "no end: {steps:?}");
            }
        }

        /// Every use is in a share or in transit, and no share is overdrawn.
        fn check(&self) {
            let all = || self.parts.iter();
            let shares: u64 = all().map(|part| part.max_uses).sum();
            let given: u64 = all().flat_map(|part| part.given.values()).map(|one| one.amount).sum();
            let taken: u64 = all().flat_map(|part| part.taken.values()).sum();
            assert_eq!(Some(shares + given - taken), self.parts[0].total);
            assert!(all().all(|part| part.uses + part.held <= part.max_uses));
        }
    }

    const EXHAUSTED: Step = Step::Exhausted { may_free_at: None };

    fn asked(steps: &[Step]) -> Vec<u16> {
        let asked = |step: &Step| match step {
            Step::Look(shard) => Some(*shard),
            Step::Give { giver, .. } => Some(*giver),
            _ => None,
        };
        steps.iter().filter_map(asked).collect()
    }

    #[test]
    fn a_giver_gives_a_portion_of_what_is_free_rounded_up() {
        let mut shards = Shards::new(4, 10);
        shards.spend(0, 1);
        shards.part(0).held = 1;
        let at = Cursor { epoch: 1, seq: 1 };
        assert_eq!(shards.give(0, 2, 0, 3), Gave::Given(Given { amount: 3, at }));
        assert_eq!(shards.part(0).max_uses, 7);
        assert_eq!(shards.part(0).free(), 5);
        shards.check();
    }

    #[test]
    fn the_first_portions_are_equal_then_come_halves_and_one_is_everything() {
        let mut shards = Shards::new(4, 40);
        let mut given = |taker, known, divisor| match shards.give(0, taker, known, divisor) {
            Gave::Given(given) => given.amount - known,
            Gave::Nothing => 0,
        };
        assert_eq!([given(1, 0, 4), given(2, 0, 4), given(3, 0, 4)], [10, 10, 10]);
        assert_eq!([given(1, 10, 4), given(2, 10, 4)], [5, 3]);
        assert_eq!([given(3, 10, 1), given(3, 12, 1)], [2, 0]);
    }

    #[test]
    fn what_was_given_and_not_taken_is_repeated_and_nothing_is_added() {
        let mut shards = Shards::new(2, 10);
        let first = shards.give(0, 1, 0, 2);
        assert_eq!(shards.give(0, 1, 0, 2), first);
        assert_eq!(shards.part(0).max_uses, 5);
        assert!(shards.part(1).take(0, 5));
        // Who has not heard of that yet is answered the same.
        assert_eq!(shards.give(0, 1, 4, 2), first);
        assert_eq!(shards.part(0).max_uses, 5);
        let at = Cursor { epoch: 1, seq: 4 };
        assert_eq!(shards.give(0, 1, 5, 2), Gave::Given(Given { amount: 8, at }));
        shards.check();
    }

    #[test]
    fn nothing_free_is_nothing_given() {
        let mut shards = Shards::new(2, 2);
        shards.spend(0, 1);
        shards.part(0).held = 1;
        let before = shards.part(0).clone();
        assert_eq!(shards.give(0, 1, 0, 1), Gave::Nothing);
        assert_eq!(shards.give(1, 0, 0, 1), Gave::Nothing);
        assert_eq!(*shards.part(0), before);
    }

    #[test]
    fn a_take_comes_up_to_what_was_given_however_often_and_late() {
        let mut part = Part::absent(1);
        assert!(part.take(0, 3));
        assert!(!part.take(0, 3));
        assert!(part.take(0, 7));
        assert!(!part.take(0, 3), "late");
        assert!(part.take(2, 1));
        assert_eq!((part.max_uses, part.taken_from(0), part.taken_from(2)), (8, 7, 1));
    }

    #[test]
    fn the_home_has_a_portion_for_each_and_others_share_by_halves() {
        assert_eq!([divisor(0, 2), divisor(0, 16), divisor(3, 16)], [2, 16, 2]);
    }

    #[test]
    fn a_taker_that_has_free_uses_by_now_only_asks_again() {
        let mut shards = Shards::new(3, 9);
        let (end, steps) = shards.run(&mut Search::new(0, 3));
        assert_eq!((end, steps), (Step::Moved, vec![Step::Look(0)]));
    }

    #[test]
    fn the_home_is_asked_first() {
        let mut shards = Shards::new(3, 9);
        let (end, steps) = shards.run(&mut Search::new(2, 3));
        assert_eq!(end, Step::Moved);
        let given = Given { amount: 3, at: Cursor { epoch: 1, seq: 1 } };
        let give = Step::Give { giver: 0, known: 0, divisor: 3 };
        let take = Step::Take { taker: 2, giver: 0, given };
        assert_eq!(steps, [Step::Look(2), give, take]);
        assert_eq!(shards.part(2).free(), 3);
        shards.check();
    }

    #[test]
    fn then_the_others_beginning_behind_the_taker_and_with_those_that_gave_it_least() {
        let mut shards = Shards::new(5, 5);
        shards.spend(0, 5);
        let (end, steps) = shards.run(&mut Search::new(2, 5));
        assert_eq!(end, EXHAUSTED);
        assert_eq!(asked(&steps), [2, 0, 3, 4, 1, 2, 0, 3, 4, 1]);
        shards.part(2).taken = [(0, 9), (3, 5), (1, 2)].into();
        shards.part(0).given = [(2, Given { amount: 9, at: Cursor { epoch: 1, seq: 1 } })].into();
        let mut search = Search::new(2, 5);
        let steps: Vec<_> = (0..5).map(|_| shards.follow(&mut search)).collect();
        assert_eq!(asked(&steps), [2, 0, 4, 1, 3]);
    }

    #[test]
    fn a_look_moves_nothing_and_tells_whether_a_use_may_be_free() {
        let mut shards = Shards::new(3, 4);
        let look = |shards: &mut Shards| {
            let before = shards.parts.clone();
            let (found, _) = shards.run(&mut Search::look(3));
            assert_eq!(shards.parts, before);
            found
        };
        assert_eq!(look(&mut shards), Step::Moved);
        shards.spend(HOME, 3);
        // On its way.
        let Gave::Given(given) = shards.give(HOME, 2, 0, 1) else { panic!("it has one") };
        assert_eq!(look(&mut shards), Step::Moved);
        shards.part(2).take(HOME, given.amount);
        shards.part(2).kept = 1;
        assert_eq!(look(&mut shards), Step::Moved);
        shards.spend(2, 1);
        assert_eq!(look(&mut shards), Step::Exhausted { may_free_at: None });
    }

    #[test]
    fn what_is_kept_is_given_to_nobody_but_an_administrator_and_is_free() {
        let mut shards = Shards::new(3, 2);
        shards.part(HOME).kept = 1;
        assert!(matches!(shards.give(HOME, 1, 0, 2), Gave::Given(Given { amount: 1, .. })));
        assert_eq!(shards.give(HOME, 2, 0, 2), Gave::Nothing);
        assert!(matches!(shards.give(HOME, 2, 0, 1), Gave::Given(Given { amount: 1, .. })));
    }

    #[test]
    fn the_last_use_is_found_wherever_it_is() {
        for (from, to) in [(0, 1), (0, 3), (1, 0), (1, 2), (1, 3), (3, 2)] {
            let mut shards = Shards::new(4, 3);
            if from != HOME {
                shards.give(0, from, 0, 1);
                shards.part(from).take(0, 3);
            }
            shards.spend(from, 2);
            assert_eq!(shards.run(&mut Search::new(to, 4)).0, Step::Moved, "{from} to {to}");
            shards.spend(to, 1);
            assert_eq!(shards.run(&mut Search::new(to, 4)).0, EXHAUSTED, "{from} to {to}");
            shards.check();
        }
    }

    #[test]
    fn what_an_earlier_mover_left_for_the_taker_is_taken() {
        let mut shards = Shards::new(3, 2);
        assert!(matches!(shards.give(0, 1, 0, 1), Gave::Given(_)));
        assert_eq!(shards.run(&mut Search::new(1, 3)).0, Step::Moved);
        assert_eq!(shards.part(1).free(), 2);
        shards.check();
    }

    #[test]
    fn what_is_stranded_on_its_way_to_another_is_brought_there_and_the_search_begins_anew() {
        let mut shards = Shards::new(3, 2);
        let Gave::Given(given) = shards.give(0, 1, 0, 1) else { panic!("the home has two") };
        let (end, steps) = shards.run(&mut Search::new(2, 3));
        assert_eq!(end, Step::Moved);
        assert!(steps.contains(&Step::Take { taker: 1, giver: 0, given }), "{steps:?}");
        assert_eq!([shards.part(1).free(), shards.part(2).free()], [1, 1]);
        shards.check();
    }

    #[test]
    fn exhausted_names_the_first_deadline_of_what_is_held() {
        let mut shards = Shards::new(3, 3);
        let moment = |ms| Some(Millis::from_ms(ms).unwrap());
        shards.give(0, 1, 0, 3);
        shards.part(1).take(0, 1);
        for (shard, until) in [(0, moment(9)), (1, moment(7))] {
            let part = shards.part(shard);
            (part.held, part.holds, part.may_free_at) = (part.max_uses, part.max_uses, until);
        }
        let (end, _) = shards.run(&mut Search::new(2, 3));
        assert_eq!(end, Step::Exhausted { may_free_at: moment(7) });
    }

    #[test]
    fn a_use_that_comes_back_behind_the_search_is_found_in_the_second_round() {
        let mut shards = Shards::new(3, 4);
        shards.spend(0, 4);
        let mut search = Search::new(1, 3);
        for _ in 0..2 {
            shards.follow(&mut search);
        }
        shards.part(0).uses -= 1;
        let (end, steps) = shards.run(&mut search);
        assert_eq!((end, asked(&steps)), (Step::Moved, vec![2, 1, 0]));
    }

    #[test]
    fn a_part_that_has_changed_costs_another_round() {
        let back_and_gone = |part: &mut Part| part.granted += 1;
        let held_again = |part: &mut Part| part.holds += 1;
        let failed_over = |part: &mut Part| part.epoch += 1;
        for change in [back_and_gone, held_again, failed_over] {
            let mut shards = Shards::new(2, 4);
            shards.spend(0, 4);
            let mut search = Search::new(1, 2);
            for _ in 0..2 {
                shards.follow(&mut search);
            }
            change(shards.part(0));
            let (end, steps) = shards.run(&mut search);
            assert_eq!((end, asked(&steps)), (EXHAUSTED, vec![1, 0, 1, 0]));
        }
    }

    #[test]
    fn shares_that_do_not_add_up_are_no_proof() {
        let mut shards = Shards::new(3, 4);
        shards.spend(0, 4);
        // As if a move from 2 to 1 was seen at the taker before and at the giver after it.
        shards.part(0).total = Some(5);
        let mut search = Search::new(1, 3);
        for _ in 0..9 {
            assert!(matches!(shards.follow(&mut search), Step::Look(_) | Step::Give { .. }));
        }
        shards.part(0).total = Some(4);
        assert_eq!(shards.run(&mut search).0, EXHAUSTED);
    }

    #[test]
    fn a_debit_that_was_lost_is_searched_for_anew() {
        let mut shards = Shards::new(2, 4);
        let mut search = Search::new(1, 2);
        let home = shards.part(0).clone();
        for _ in 0..2 {
            shards.follow(&mut search);
        }
        assert!(matches!(search.step(), Step::Take { .. }));
        *shards.part(0) = home;
        search.lost();
        assert_eq!(search, Search::new(1, 2));
        assert_eq!(shards.run(&mut search).0, Step::Moved);
        shards.check();
    }

    #[test]
    fn an_invite_that_the_home_does_not_have_is_for_the_gate_to_judge() {
        let mut shards = Shards::new(2, 0);
        *shards.part(0) = Part::absent(0);
        assert_eq!(shards.run(&mut Search::new(1, 2)).0, Step::Moved);
    }

    #[test]
    fn one_shard_alone_is_exhausted_when_it_is_twice() {
        let mut shards = Shards::new(1, 2);
        assert_eq!(shards.run(&mut Search::new(0, 1)).0, Step::Moved);
        shards.spend(0, 2);
        let (end, steps) = shards.run(&mut Search::new(0, 1));
        assert_eq!((end, steps.len()), (EXHAUSTED, 2));
    }

    #[test]
    fn no_limit_is_shared_like_any_other() {
        let mut shards = Shards::new(3, UNLIMITED);
        for taker in [1, 2, 1] {
            shards.part(taker).uses = shards.part(taker).max_uses;
            assert_eq!(shards.run(&mut Search::new(taker, 3)).0, Step::Moved);
            shards.check();
        }
    }

    #[test]
    fn everything_free_is_gathered_also_what_was_on_its_way() {
        let mut shards = Shards::new(4, 20);
        shards.give(0, 1, 0, 2);
        shards.part(1).take(0, 10);
        shards.spend(1, 1);
        shards.give(1, 2, 0, 3);
        shards.part(2).take(1, 3);
        // Two moves that nobody completed: one to the home, one between others.
        shards.give(2, 0, 0, 3);
        shards.give(1, 3, 0, 3);
        let (end, _) = shards.run(&mut Search::gather(4));
        let Step::Gathered(parts) = end else { panic!("{end:?}") };
        assert_eq!(parts, [0, 1, 2, 3].map(|shard| shards.part(shard).clone()));
        let shares = [0, 1, 2, 3].map(|shard| shards.part(shard).max_uses);
        assert_eq!(shares, [19, 1, 0, 0]);
        shards.check();
    }

    #[test]
    fn gathering_where_nobody_else_has_anything_is_one_round() {
        let mut shards = Shards::new(3, 5);
        let (end, steps) = shards.run(&mut Search::gather(3));
        assert_eq!(asked(&steps), [0, 1, 2]);
        assert!(matches!(end, Step::Gathered(parts) if parts.len() == 3));
    }
}
