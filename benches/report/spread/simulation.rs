//! A rush on one invite of a spread namespace, in virtual time: the real [`Part`] and [`Search`], and between them nothing
//! but delays. The same seed gives the same rush.
//!
//! Users are in the shards 1 and up; the home only gives. With one shard nothing is spread.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts and microseconds are far below 2^53"
)]

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use anyhow::{bail, ensure};
use redeemer::domain::{
    Cursor,
    spread::{HOME, Part, Search, Step},
};

/// Who comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Users {
    /// Everybody as often as everybody else.
    Uniform,
    /// The n-th user 1/n times as often as the first, so that the shard of the first has far more to do.
    Skewed,
}

/// What is to happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rush {
    pub(crate) shards: u16,
    /// Each searches for itself, once at a time for each shard.
    pub(crate) nodes: u64,
    pub(crate) users: Users,
    pub(crate) uses: u64,
    /// How many ask, more than there are uses.
    pub(crate) requests: u64,
    pub(crate) requests_per_second: f64,
    /// From a node to Redis and back.
    pub(crate) call_us: u64,
    /// From a script until the ledger has what it did.
    pub(crate) ledger_us: u64,
    /// Requests that wait for the same go in one call, at most so many.
    pub(crate) batch_max: usize,
    pub(crate) seed: u64,
}

/// What came of it.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Calls that would not be without moves, for each redemption: until 95 % of the uses are spent, and from then on.
    /// Those of searches, and those in which requests ask again.
    pub(crate) extra_calls: [f64; 2],
    /// How long a request waited for moves, of those that were granted: all but one in a hundred waited less.
    pub(crate) p99_us: u64,
    /// From the moment at which one use was left until somebody had it.
    pub(crate) last_use_us: u64,
    /// Requests of the busiest shard over those of the mean, until all uses were spent.
    pub(crate) imbalance: f64,
    /// Calls for each request that heard that there is none, its own included.
    pub(crate) calls_per_refusal: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Request {
    node: u64,
    shard: u16,
    /// When it first heard that its shard has none.
    dry_since_us: Option<u64>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The script runs for a request.
    Ask(Request),
    /// The node hears that the shard has none.
    Dry(Request),
    /// A node goes on with its search for a shard.
    Step(u64, u16),
    /// The script of a step runs.
    Call(u64, u16),
}

/// A search of one node for one shard, and who waits for it.
struct Turn {
    search: Search,
    /// Those who came before it began.
    before: Vec<Request>,
    /// Those who came since.
    since: Vec<Request>,
}

struct Simulation {
    rush: Rush,
    now_us: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    parts: Vec<Part>,
    /// When the ledger has what was given, by its place.
    in_ledger_us: Vec<u64>,
    turns: BTreeMap<(u64, u16), Turn>,
    spent: u64,
    one_left_us: u64,
    /// Requests by shard, while there are uses.
    asked: Vec<u64>,
    /// Extra calls until 95 % of the uses are spent, until all are, and all calls from then on.
    calls: [u64; 3],
    /// What everybody waited who was granted a use.
    waits_us: Vec<u64>,
    refused: u64,
    last_use_us: u64,
    /// The first thing that must not be.
    wrong: Option<&'static str>,
}

/// SplitMix64: the next number, evenly from 0 to 1.
fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    (mixed(*state) >> 11) as f64 / (1_u64 << 53) as f64
}

fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// How many users there are to come.
const USERS: f64 = 1_000_000.0;

impl Rush {
    /// The home has no users of its own, unless it is alone.
    fn participants(&self) -> u16 {
        if self.shards > 1 { self.shards + 1 } else { 1 }
    }

    /// # Errors
    /// When a use was not found, or somebody heard too early that there is none.
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let mut parts: Vec<_> = (0..self.participants()).map(Part::absent).collect();
        parts[usize::from(HOME)].total = Some(self.uses);
        parts[usize::from(HOME)].max_uses = self.uses;
        let mut simulation = Simulation {
            rush: self,
            now_us: 0,
            events: BinaryHeap::new(),
            order: 0,
            parts,
            in_ledger_us: Vec::new(),
            turns: BTreeMap::new(),
            spent: 0,
            one_left_us: 0,
            asked: vec![0; usize::from(self.shards)],
            calls: [0; 3],
            waits_us: Vec::new(),
            refused: 0,
            last_use_us: 0,
            wrong: None,
        };
        let mut seed = self.seed;
        for number in 0..self.requests {
            let came_us = (number as f64 * 1e6 / self.requests_per_second) as u64;
            let user = match self.users {
                Users::Uniform => USERS * random(&mut seed),
                Users::Skewed => USERS.powf(random(&mut seed)),
            };
            let hash = mixed(user as u64) >> 48;
            let first = u16::from(self.shards > 1);
            let shard = first + ((hash * u64::from(self.shards)) >> 16) as u16;
            let request = Request { node: number % self.nodes, shard, dry_since_us: None };
            simulation.at(came_us + self.call_us / 2, Event::Ask(request));
        }
        simulation.run()
    }
}

impl Simulation {
    fn at(&mut self, at_us: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at_us, self.order, event)));
    }

    /// Half of a call later: the way there, or the way back.
    fn soon(&mut self, event: Event) {
        self.at(self.now_us + self.rush.call_us / 2, event);
    }

    fn run(mut self) -> anyhow::Result<Outcome> {
        while let Some(Reverse((at_us, _, event))) = self.events.pop() {
            self.now_us = at_us;
            match event {
                Event::Ask(request) => self.ask(request),
                Event::Dry(request) => self.dry(request),
                Event::Step(node, shard) => self.step(node, shard),
                Event::Call(node, shard) => self.call(node, shard),
            }
        }
        if let Some(wrong) = self.wrong {
            bail!("{wrong}");
        }
        ensure!(self.spent == self.rush.uses, "{} of {} uses found", self.spent, self.rush.uses);
        ensure!(self.spent + self.refused == self.rush.requests, "not everybody was answered");
        self.waits_us.sort_unstable();
        let granted = self.waits_us.len();
        let busiest = self.asked.iter().max().copied().unwrap_or_default();
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let until_95 = self.rush.uses * 95 / 100;
        Ok(Outcome {
            extra_calls: [
                share(self.calls[0], until_95),
                share(self.calls[1], self.rush.uses - until_95),
            ],
            p99_us: self.waits_us[granted * 99 / 100],
            last_use_us: self.last_use_us,
            imbalance: share(busiest * self.asked.len() as u64, self.asked.iter().sum()),
            calls_per_refusal: share(self.calls[2], self.refused),
        })
    }

    /// Calls that are there because of moves, or because there are no uses any more.
    fn extra(&mut self, calls: u64) {
        let time = match self.spent {
            spent if spent == self.rush.uses => 2,
            spent if spent >= self.rush.uses * 95 / 100 => 1,
            _ => 0,
        };
        self.calls[time] += calls;
    }

    fn ask(&mut self, request: Request) {
        if self.spent == self.rush.uses {
            self.calls[2] += u64::from(request.dry_since_us.is_none());
        } else if request.dry_since_us.is_none() {
            self.asked[usize::from(request.shard % self.rush.shards)] += 1;
        }
        let part = &mut self.parts[usize::from(request.shard)];
        if part.free() == 0 {
            self.soon(Event::Dry(request));
            return;
        }
        part.uses += 1;
        part.granted += 1;
        self.spent += 1;
        match self.rush.uses - self.spent {
            1 => self.one_left_us = self.now_us,
            0 => self.last_use_us = self.now_us - self.one_left_us,
            _ => {}
        }
        self.waits_us.push(request.dry_since_us.map_or(0, |since_us| self.now_us - since_us));
    }

    fn dry(&mut self, mut request: Request) {
        request.dry_since_us.get_or_insert(self.now_us);
        let place = (request.node, request.shard);
        match self.turns.get_mut(&place) {
            Some(turn) => turn.since.push(request),
            None => self.begin(place, vec![request]),
        }
    }

    fn begin(&mut self, place: (u64, u16), before: Vec<Request>) {
        let search = Search::new(place.1, self.rush.participants());
        self.turns.insert(place, Turn { search, before, since: Vec::new() });
        self.step(place.0, place.1);
    }

    fn step(&mut self, node: u64, shard: u16) {
        let Some(turn) = self.turns.get_mut(&(node, shard)) else { return };
        match turn.search.step() {
            Step::Look(_) | Step::Give { .. } => self.soon(Event::Call(node, shard)),
            Step::Take { given, .. } => {
                let place = usize::try_from(given.at.seq).unwrap_or(usize::MAX);
                let from_us = self.now_us.max(self.in_ledger_us[place]);
                self.at(from_us + self.rush.call_us / 2, Event::Call(node, shard));
            }
            Step::Moved => {
                let Some(turn) = self.turns.remove(&(node, shard)) else { return };
                let waiting: Vec<_> = turn.before.into_iter().chain(turn.since).collect();
                self.extra(waiting.len().div_ceil(self.rush.batch_max) as u64);
                for request in waiting {
                    self.soon(Event::Ask(request));
                }
            }
            Step::Exhausted { .. } => {
                if self.spent < self.rush.uses {
                    self.wrong = Some("somebody heard that there is none while a use was free");
                }
                let Some(turn) = self.turns.remove(&(node, shard)) else { return };
                self.refused += turn.before.len() as u64;
                if !turn.since.is_empty() {
                    self.begin((node, shard), turn.since);
                }
            }
            Step::Gathered(_) => {}
        }
    }

    /// The script of a step runs; its answer is there half a call later.
    fn call(&mut self, node: u64, shard: u16) {
        self.extra(1);
        let Some(turn) = self.turns.get_mut(&(node, shard)) else { return };
        let search = &mut turn.search;
        match search.step() {
            Step::Look(at) => search.looked(self.parts[usize::from(at)].clone()),
            Step::Give { giver, known, divisor } => {
                let part = &mut self.parts[usize::from(giver)];
                let at = Cursor { epoch: 1, seq: self.in_ledger_us.len() as u64 };
                let gave = part.give(shard, known, divisor, at);
                self.in_ledger_us.push(self.now_us + self.rush.ledger_us);
                search.gave(gave, part.clone());
            }
            Step::Take { taker, giver, given } => {
                let part = &mut self.parts[usize::from(taker)];
                part.take(giver, given.amount);
                search.took(part.clone());
            }
            Step::Moved | Step::Exhausted { .. } | Step::Gathered(_) => {}
        }
        self.soon(Event::Step(node, shard));
    }
}
