//! Moves between shards, every interleaving: the real `Part` and `Search`, between them a network that loses answers and
//! delays calls, servers that forget what the ledger does not have, movers that die, and a ledger that follows when it
//! likes. A checker visits every state that a small case can come into.
//!
//! What the checker can find is shown by planted faults: it has to find a history for each.

use std::collections::BTreeSet;

use redeemer::domain::{
    Cursor,
    spread::{Gave, HOME, Part, Search, Step},
};
use stateright::{Checker, Model, Property};

/// A small case: who asks, and how much may go wrong.
#[derive(Clone)]
struct Case {
    /// The share of each shard, and how much of it is spent; all of it is in the ledger.
    shards: Vec<(u64, u64)>,
    /// At which shard each user asks for a use.
    users: Vec<u16>,
    /// Whether somebody brings all free uses home meanwhile.
    gathers: bool,
    /// How many uses may be given in all. Two searches can take the last one from each other for ever, so what comes after
    /// that is not looked at.
    moves: u64,
    chaos: Chaos,
    planted: Option<Fault>,
}

/// How often each of these may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Chaos {
    /// A mover dies.
    crashes: u8,
    /// A shard fails over to what the ledger has.
    failovers: u8,
    /// A call is made whose answer nobody hears; it may be late.
    lost_answers: u8,
    /// A redemption is taken back.
    rollbacks: u8,
    /// A use is held; what is held is given back.
    holds: u8,
}

/// What somebody might get wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A taker is credited before the ledger has the debit.
    CreditBeforeLedger,
    /// A taker is credited when the ledger's cursor has passed the place of the debit, whatever the row says.
    CursorForRow,
    /// A taker adds what was given, instead of coming up to it.
    TakeAdds,
    /// Exhausted after one look at each shard.
    OneLook,
    /// Parts do not tell what came and went.
    NoCounters,
    /// After a failover, what users were told is written into the ledger without what it was spent from.
    ClaimsWithoutMoves,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    shards: Vec<Shard>,
    users: Vec<User>,
    /// Calls that are still on their way, and whose answers nobody waits for.
    late: BTreeSet<Call>,
    left: Chaos,
}

/// One shard, in Redis and in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Shard {
    gate: Part,
    seq: u64,
    /// What the outbox says after each change that the ledger does not have.
    outbox: Vec<(Cursor, Part)>,
    ledger: Part,
    cursor: Cursor,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum User {
    Asks,
    Searches {
        search: Search,
        /// Whether there was a moment without a free use since the search began.
        dry: bool,
        /// Whether the last look at the taker was at such a moment.
        dry_between: bool,
        /// For [`Fault::OneLook`]: what was seen in the first round.
        memory: Vec<Part>,
    },
    Granted,
    Exhausted {
        dry: bool,
        dry_between: bool,
    },
    Gone,
}

/// A call that changes a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Call {
    Give { giver: u16, taker: u16, known: u64, divisor: u64 },
    Take { taker: u16, giver: u16, amount: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// The user asks the gate for a use.
    Ask(usize),
    /// The user's search does its next step.
    Step(usize),
    /// It calls, and hears nothing: the call comes late, and it calls again.
    LoseAnswer(usize),
    Late(Call),
    /// The node that searches dies.
    Crash(usize),
    /// The ledger gets the next change of a shard.
    Sync(u16),
    /// A shard goes on from the ledger, with or without what its users were told.
    FailOver {
        shard: u16,
        claims: bool,
    },
    RollBack(u16),
    Hold(u16),
    Release(u16),
    /// What has come is kept no more for those who waited for it.
    Expire(u16),
}

impl Shard {
    fn new(shard: u16, (max_uses, uses): (u64, u64), total: Option<u64>) -> Self {
        let gate = Part { epoch: 1, total, max_uses, uses, granted: uses, ..Part::absent(shard) };
        let cursor = Cursor { epoch: 1, seq: 0 };
        Self { ledger: gate.clone(), gate, seq: 0, outbox: Vec::new(), cursor }
    }

    /// The place of its next change.
    fn next(&self) -> Cursor {
        Cursor { epoch: self.gate.epoch, seq: self.seq + 1 }
    }

    fn change(&mut self, change: impl FnOnce(&mut Part)) {
        let next = self.next();
        change(&mut self.gate);
        self.gate.kept = self.gate.kept.min(self.gate.free());
        self.seq = next.seq;
        // Nobody writes down that something is kept for a moment.
        self.outbox.push((next, Part { kept: 0, ..self.gate.clone() }));
    }
}

impl User {
    fn searches(search: Search) -> Self {
        Self::Searches { search, dry: false, dry_between: false, memory: Vec::new() }
    }
}

impl State {
    fn shard(&mut self, shard: u16) -> &mut Shard {
        &mut self.shards[usize::from(shard)]
    }

    fn gate(&self, shard: u16) -> &Part {
        &self.shards[usize::from(shard)].gate
    }

    fn gates(&self) -> impl Iterator<Item = &Part> {
        self.shards.iter().map(|shard| &shard.gate)
    }

    fn ledgers(&self) -> impl Iterator<Item = &Part> {
        self.shards.iter().map(|shard| &shard.ledger)
    }

    /// How many uses were ever given.
    fn given(&self) -> u64 {
        self.gates().flat_map(|part| part.given.values()).map(|given| given.amount).sum()
    }

    /// Whether there is no free use, neither in a share nor in transit.
    fn is_dry(&self, total: u64) -> bool {
        self.gates().map(|part| part.uses + part.held).sum::<u64>() == total
    }

    fn give(&mut self, giver: u16, taker: u16, known: u64, divisor: u64) -> Gave {
        let shard = self.shard(giver);
        let (next, before) = (shard.next(), shard.gate.max_uses);
        let mut after = shard.gate.clone();
        let gave = after.give(taker, known, divisor, next);
        if after.max_uses != before {
            shard.change(|part| *part = after);
        }
        gave
    }

    fn take(&mut self, taker: u16, giver: u16, amount: u64, planted: Option<Fault>) {
        let shard = self.shard(taker);
        let mut after = shard.gate.clone();
        if planted == Some(Fault::TakeAdds) {
            after.max_uses += amount - after.taken_from(giver).min(amount - 1);
            after.taken.insert(giver, amount);
            shard.change(|part| *part = after);
        } else if after.take(giver, amount) {
            shard.change(|part| *part = Part { kept: 1, ..after });
        }
    }

    /// What the ledger has of a move, and whether it has passed its place.
    fn has(&self, taker: u16, giver: u16, amount: u64, at: Cursor) -> (bool, bool) {
        let giver = &self.shards[usize::from(giver)];
        (giver.ledger.given_to(taker) >= amount, giver.cursor >= at)
    }

    fn fail_over(&mut self, shard: u16, claims: bool, planted: Option<Fault>) {
        let debits: Vec<_> =
            self.ledgers().map(|giver| (giver.shard, giver.given_to(shard))).collect();
        let shard = self.shard(shard);
        let told = shard.gate.clone();
        if claims {
            if planted != Some(Fault::ClaimsWithoutMoves) {
                for (giver, given) in debits {
                    shard.ledger.take(giver, given);
                }
            }
            (shard.ledger.uses, shard.ledger.granted) = (told.uses, told.granted);
            (shard.ledger.held, shard.ledger.holds) = (told.held, told.holds);
        }
        shard.ledger.epoch = told.epoch + 1;
        shard.cursor = Cursor { epoch: shard.ledger.epoch, seq: 0 };
        shard.gate = shard.ledger.clone();
        shard.outbox.clear();
        shard.seq = 0;
    }
}

impl Case {
    fn total(&self) -> u64 {
        self.shards.iter().map(|(max_uses, _)| max_uses).sum()
    }

    fn count(&self) -> u16 {
        u16::try_from(self.shards.len()).unwrap()
    }

    /// A part as a search is told.
    fn told(&self, part: &Part) -> Part {
        let part = part.clone();
        if self.planted == Some(Fault::NoCounters) {
            return Part { epoch: 0, granted: 0, holds: 0, ..part };
        }
        part
    }

    /// Whether a taker may be credited; nothing while it has to wait, and not if the giver has forgotten the debit.
    fn may_take(&self, (row, passed): (bool, bool)) -> Option<bool> {
        match self.planted {
            Some(Fault::CreditBeforeLedger) => Some(true),
            Some(Fault::CursorForRow) => passed.then_some(true),
            _ if row => Some(true),
            _ => passed.then_some(false),
        }
    }

    /// The call that a step is, if it changes something and can be made now.
    fn call(&self, state: &State, searcher: u16, step: &Step) -> Option<Call> {
        match *step {
            Step::Give { giver, known, divisor } => {
                Some(Call::Give { giver, taker: searcher, known, divisor })
            }
            Step::Take { taker, giver, given } => {
                let has = state.has(taker, giver, given.amount, given.at);
                let amount = given.amount;
                (self.may_take(has) == Some(true)).then_some(Call::Take { taker, giver, amount })
            }
            _ => None,
        }
    }

    fn ask(&self, state: &mut State, user: usize) {
        let at = self.at(user);
        if state.gate(at).free() > 0 {
            state.shard(at).change(|part| {
                part.uses += 1;
                part.granted += 1;
            });
            state.users[user] = User::Granted;
        } else {
            state.users[user] = User::searches(Search::new(at, self.count()));
        }
    }

    /// For which shard a user searches; who gathers does so for the home.
    fn at(&self, user: usize) -> u16 {
        self.users.get(user).copied().unwrap_or(HOME)
    }

    /// One step of a user's search. Nothing where it has to wait for the ledger.
    fn step(&self, state: &mut State, user: usize) -> Option<()> {
        let User::Searches { mut search, dry, mut dry_between, mut memory } =
            state.users[user].clone()
        else {
            return None;
        };
        let at = self.at(user);
        let second = memory.len() >= self.shards.len();
        let seen = |state: &State, memory: &mut Vec<Part>, shard: u16| {
            if self.planted != Some(Fault::OneLook) {
                return self.told(state.gate(shard));
            }
            if let Some(part) = memory.iter().find(|part| part.shard == shard).filter(|_| second) {
                return part.clone();
            }
            memory.push(state.gate(shard).clone());
            state.gate(shard).clone()
        };
        match search.step() {
            Step::Look(shard) => {
                dry_between = state.is_dry(self.total());
                search.looked(seen(state, &mut memory, shard));
            }
            Step::Give { giver, .. } if second => {
                search.gave(Gave::Nothing, seen(state, &mut memory, giver));
            }
            Step::Give { giver, known, divisor } => {
                let gave = state.give(giver, at, known, divisor);
                search.gave(gave, seen(state, &mut memory, giver));
            }
            Step::Take { taker, giver, given } => {
                if self.may_take(state.has(taker, giver, given.amount, given.at))? {
                    state.take(taker, giver, given.amount, self.planted);
                    search.took(self.told(state.gate(taker)));
                } else {
                    search.lost();
                }
                memory.clear();
            }
            Step::Moved | Step::Exhausted { .. } | Step::Gathered(_) => return None,
        }
        state.users[user] = match search.step() {
            Step::Moved => User::Asks,
            Step::Exhausted { .. } => User::Exhausted { dry, dry_between },
            Step::Gathered(_) => User::Gone,
            _ => User::Searches { search, dry, dry_between, memory },
        };
        Some(())
    }

    fn apply(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Ask(user) => self.ask(state, user),
            Action::Step(user) => self.step(state, user)?,
            Action::LoseAnswer(user) => {
                let User::Searches { search, .. } = &state.users[user] else { return None };
                let call = self.call(state, self.at(user), &search.step())?;
                state.left.lost_answers -= 1;
                state.late.insert(call);
            }
            Action::Late(call) => {
                state.late.remove(&call);
                match call {
                    Call::Give { giver, taker, known, divisor } => {
                        state.give(giver, taker, known, divisor);
                    }
                    Call::Take { taker, giver, amount } => {
                        state.take(taker, giver, amount, self.planted);
                    }
                }
            }
            Action::Crash(user) => {
                state.left.crashes -= 1;
                state.users[user] = User::Gone;
            }
            Action::Sync(shard) => {
                let shard = state.shard(shard);
                (shard.cursor, shard.ledger) = shard.outbox.remove(0);
            }
            Action::FailOver { shard, claims } => {
                state.left.failovers -= 1;
                state.fail_over(shard, claims, self.planted);
            }
            Action::RollBack(shard) => {
                state.left.rollbacks -= 1;
                state.shard(shard).change(|part| part.uses -= 1);
            }
            Action::Hold(shard) => {
                state.left.holds -= 1;
                state.shard(shard).change(|part| {
                    part.held += 1;
                    part.holds += 1;
                });
            }
            Action::Release(shard) => state.shard(shard).change(|part| part.held -= 1),
            Action::Expire(shard) => state.shard(shard).gate.kept = 0,
        }
        Some(())
    }
}

impl Model for Case {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let total = |shard: u16| (shard == 0).then(|| self.total());
        let shards = (0_u16..).zip(&self.shards);
        let gathers = self.gathers.then(|| User::searches(Search::gather(self.count())));
        vec![State {
            shards: shards.map(|(shard, uses)| Shard::new(shard, *uses, total(shard))).collect(),
            users: self.users.iter().map(|_| User::Asks).chain(gathers).collect(),
            late: BTreeSet::new(),
            left: self.chaos,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let left = &state.left;
        for (number, user) in state.users.iter().enumerate() {
            match user {
                User::Asks => actions.push(Action::Ask(number)),
                User::Searches { .. } => {
                    actions.push(Action::Step(number));
                    actions.extend((left.lost_answers > 0).then_some(Action::LoseAnswer(number)));
                    actions.extend((left.crashes > 0).then_some(Action::Crash(number)));
                }
                User::Granted | User::Exhausted { .. } | User::Gone => {}
            }
        }
        actions.extend(state.late.iter().map(|call| Action::Late(*call)));
        for (number, shard) in (0..).zip(&state.shards) {
            let gate = &shard.gate;
            if !shard.outbox.is_empty() {
                actions.push(Action::Sync(number));
                if left.failovers > 0 {
                    actions.push(Action::FailOver { shard: number, claims: false });
                    actions.push(Action::FailOver { shard: number, claims: true });
                }
            }
            actions
                .extend((left.rollbacks > 0 && gate.uses > 0).then_some(Action::RollBack(number)));
            actions.extend((left.holds > 0 && gate.free() > 0).then_some(Action::Hold(number)));
            actions.extend((gate.held > 0).then_some(Action::Release(number)));
            actions.extend((gate.kept > 0).then_some(Action::Expire(number)));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.apply(&mut state, action)?;
        if state.is_dry(self.total()) {
            for user in &mut state.users {
                if let User::Searches { dry, .. } = user {
                    *dry = true;
                }
            }
        }
        Some(state)
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.given() <= self.moves
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_MORE, |case: &Self, state: &State| {
                let fits = |part: &Part| part.uses + part.held <= part.max_uses;
                let spent: u64 = state.gates().map(|part| part.uses + part.held).sum();
                state.gates().all(fits) && spent <= case.total()
            }),
            Property::always(CONSERVED, |case: &Self, state: &State| {
                let gates: Vec<_> = state.gates().collect();
                adds_up(&gates, case.total())
            }),
            Property::always(LEDGER, |case: &Self, state: &State| {
                let ledgers: Vec<_> = state.ledgers().collect();
                ledgers.iter().all(|part| part.uses <= part.max_uses)
                    && adds_up(&ledgers, case.total())
            }),
            Property::always(DEBIT_FIRST, |_, state: &State| {
                let debited = |taker: &Part, giver: &Part| {
                    taker.taken_from(giver.shard) <= giver.given_to(taker.shard)
                };
                let all = |taker| state.ledgers().all(|giver| debited(taker, giver));
                state.gates().all(all)
            }),
            Property::always(TRUE, |_, state: &State| {
                state.users.iter().all(|user| !matches!(user, User::Exhausted { dry: false, .. }))
            }),
            Property::always(TRUE_BETWEEN, |_, state: &State| {
                let wrong =
                    |user: &User| matches!(user, User::Exhausted { dry_between: false, .. });
                !state.users.iter().any(wrong)
            }),
            Property::eventually(ANSWERED, |case: &Self, state: &State| {
                let waits = |user: &User| matches!(user, User::Asks | User::Searches { .. });
                !state.users.iter().any(waits) || state.given() == case.moves
            }),
            Property::sometimes(SPENT, |case: &Self, state: &State| {
                state.gates().map(|part| part.uses).sum::<u64>() == case.total()
            }),
            Property::sometimes(EXHAUSTED, |_, state: &State| {
                state.users.iter().any(|user| matches!(user, User::Exhausted { .. }))
            }),
        ]
    }
}

const NO_MORE: &str = "no more uses are spent and held than there are";
const CONSERVED: &str = "the shares and what is in transit are the limit";
const LEDGER: &str = "the rows of the ledger hold";
const DEBIT_FIRST: &str = "nothing is taken that the ledger does not have as given";
const TRUE: &str = "exhausted: there was a moment without a free use";
const TRUE_BETWEEN: &str = "exhausted: there was no free use between the rounds";
const ANSWERED: &str = "everybody is answered";
const SPENT: &str = "all uses are spent";
const EXHAUSTED: &str = "somebody hears that there is none";

/// Whether the shares and what is in transit are the total, and nothing is taken that is not given.
fn adds_up(parts: &[&Part], total: u64) -> bool {
    let shares: u64 = parts.iter().map(|part| part.max_uses).sum();
    let pairs = parts.iter().flat_map(|giver| parts.iter().map(move |taker| (giver, taker)));
    let in_transit: Option<u64> = pairs
        .map(|(giver, taker)| {
            giver.given_to(taker.shard).checked_sub(taker.taken_from(giver.shard))
        })
        .sum();
    in_transit.is_some_and(|in_transit| shares + in_transit == total)
}

const CALM: Chaos = Chaos { crashes: 0, failovers: 0, lost_answers: 0, rollbacks: 0, holds: 0 };

impl Case {
    /// Users who ask at these shards, where each shard has this share and has spent that much of it.
    fn new<const S: usize>(shards: [(u64, u64); S], users: &[u16], chaos: Chaos) -> Self {
        let (shards, users) = (shards.into(), users.into());
        Self { shards, users, gathers: false, moves: 3, chaos, planted: None }
    }

    fn holds(self) {
        self.checker().threads(2).spawn_bfs().join().assert_properties();
    }

    /// The checker finds a history that breaks the property.
    fn breaks(mut self, planted: Fault, property: &'static str) {
        self.planted = Some(planted);
        self.checker().spawn_bfs().join().assert_any_discovery(property);
    }
}

#[test]
fn movers_that_die_answers_that_are_lost_and_failovers_double_nothing() {
    let chaos = Chaos { crashes: 1, failovers: 1, lost_answers: 1, ..CALM };
    Case::new([(2, 0), (0, 0)], &[1, 1, 0], chaos).holds();
}

#[test]
fn uses_that_come_back_are_found_or_exhausted_is_the_truth() {
    let chaos = Chaos { failovers: 1, rollbacks: 1, holds: 1, ..CALM };
    Case::new([(1, 0), (0, 0)], &[1, 0], chaos).holds();
}

#[test]
fn the_same_among_three_shards() {
    let chaos = Chaos { rollbacks: 1, holds: 1, ..CALM };
    Case::new([(1, 0), (0, 0), (1, 0)], &[1, 2], chaos).holds();
    let chaos = Chaos { crashes: 1, failovers: 1, lost_answers: 1, ..CALM };
    Case::new([(1, 0), (0, 0), (0, 0)], &[1, 2], chaos).holds();
}

#[test]
fn uses_are_gathered_while_others_search() {
    let chaos = Chaos { crashes: 1, failovers: 1, ..CALM };
    let case = Case::new([(1, 0), (1, 1)], &[1, 1], chaos);
    Case { gathers: true, ..case }.holds();
}

#[test]
fn a_credit_before_the_ledger_has_the_debit_doubles_uses() {
    let case = Case::new([(2, 0), (0, 0)], &[1, 1], Chaos { failovers: 1, ..CALM });
    case.clone().breaks(Fault::CreditBeforeLedger, CONSERVED);
    case.breaks(Fault::CreditBeforeLedger, NO_MORE);
}

#[test]
fn a_cursor_that_has_passed_the_debit_does_not_mean_that_the_ledger_has_it() {
    let case = Case::new([(2, 0), (0, 0)], &[1, 1], Chaos { failovers: 1, ..CALM });
    case.breaks(Fault::CursorForRow, CONSERVED);
}

#[test]
fn a_take_that_adds_doubles_what_is_taken_twice() {
    let case = Case::new([(2, 0), (0, 0)], &[1, 1], Chaos { lost_answers: 1, ..CALM });
    case.breaks(Fault::TakeAdds, CONSERVED);
}

#[test]
fn one_look_at_each_shard_can_miss_a_use_that_was_free_all_the_time() {
    let case = Case::new([(2, 1), (0, 0)], &[0, 1], Chaos { rollbacks: 1, ..CALM });
    case.breaks(Fault::OneLook, TRUE);
}

#[test]
fn two_looks_can_miss_what_came_and_went_unless_it_is_counted() {
    let case = Case::new([(1, 1), (0, 0)], &[1, 0], Chaos { rollbacks: 1, ..CALM });
    case.breaks(Fault::NoCounters, TRUE_BETWEEN);
}

#[test]
fn what_users_were_told_needs_the_moves_that_it_was_spent_from() {
    let case = Case::new([(2, 0), (0, 0)], &[1], Chaos { failovers: 1, ..CALM });
    case.breaks(Fault::ClaimsWithoutMoves, LEDGER);
}
