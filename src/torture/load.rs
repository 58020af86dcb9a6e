//! What clients ask while faults strike. Who asks for what, how often and how patiently follows from the seed alone;
//! when, and in which order it comes, is left to the machine.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, Stream, StreamExt as _, future, stream};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    Counts, TortureError,
    deployment::Clients,
    faults,
    history::{
        Answer, HELD_FOR, History, Hold, HoldTold, Operation, Release, ReleaseTold, Rollback,
        RollbackTold, Told, UsedUp,
    },
};
use crate::{
    client::{Client, ClientError},
    domain::{
        Durability, InviteId, Namespace, RedemptionId, RequestId, ReservationId, UserId,
        campaign::CAMPAIGNS_MAX,
    },
};

/// How often a state is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Codes of a wave, and the group of each. A user who asks for two may ask for two of one group.
const CODES: [(&str, &str); 4] = [("A", "alpha"), ("B", "beta"), ("C", "alpha"), ("D", "gamma")];
/// Some who got this code give it back. What A and D have is spent for good.
const GIVEN_BACK: usize = 1;
/// Some who want this code have a use held first.
const RESERVED: usize = 2;
/// The invites of these two belong to one campaign: its uses come free when they are released and when they are rolled
/// back.
const IN_CAMPAIGN: [usize; 2] = [GIVEN_BACK, RESERVED];
/// Users of a wave for each of its uses, so that many are refused.
const USERS_PER_USE: u64 = 2;

/// Those who ask.
pub(super) struct Load<'a> {
    pub(super) clients: Clients,
    pub(super) namespace: Namespace,
    pub(super) seed: u64,
    pub(super) uses: u64,
    pub(super) spread: u16,
    pub(super) at_once: usize,
    pub(super) counts: &'a Counts,
    pub(super) started: Instant,
}

/// Some codes, and the users who ask for them. One wave after the other, since a code that is used up tells no more.
struct Wave {
    number: u64,
    invites: Vec<(String, InviteId)>,
    users: u64,
}

impl Load<'_> {
    /// Wave after wave, until `stop`.
    pub(super) async fn rush(&self, stop: &CancellationToken) -> Result<History, TortureError> {
        let waves = stream::unfold(0, |number| {
            let wave = self.wave(number);
            stop.run_until_cancelled(wave).map(move |wave| Some((wave?, number + 1)))
        });
        let users = waves.flat_map(|wave| match wave {
            Ok(wave) => stream::iter(users_of(wave).map(Ok).collect::<Vec<_>>()),
            Err(error) => stream::iter(vec![Err(error)]),
        });
        let asked = users.map(async |user| {
            let (wave, user) = user?;
            Ok::<_, TortureError>(self.user(&wave, user, stop).await)
        });
        // Nobody new comes after the end; whoever is there gets an answer.
        let mut asked = std::pin::pin!(until(asked, stop).buffer_unordered(self.at_once));
        let mut history = History::default();
        while let Some(of_one) = asked.next().await {
            history.extend(of_one?);
        }
        Ok(history)
    }

    /// Asks once more for every key that ever was unknown, and for every rollback, until there is a definite answer or
    /// `until`.
    pub(super) async fn settle(&self, history: &History, until: Instant) -> History {
        let unknown: BTreeMap<_, _> = history
            .operations
            .iter()
            .filter(|operation| matches!(operation.told, Told::Unknown(_)))
            .map(|operation| ((&operation.user, &operation.key), operation))
            .collect();
        let codes: BTreeMap<InviteId, String> = self.counts.codes();
        let asked = stream::iter(unknown.into_values().enumerate()).map(async |(number, one)| {
            let random = faults::random(self.seed, &[3, number as u64]);
            let wanted = Wanted {
                user: &one.user,
                code: codes.get(&one.invite).map(String::as_str).unwrap_or_default(),
                invite: one.invite,
            };
            let ask = async |random: &mut StdRng| {
                let level = Durability::Ledger;
                self.ask(wanted, &one.key, one.reservation, level, None, random).await
            };
            settled(random, until, ask, |it: &Operation| it.told.is_definite()).await
        });
        let operations = asked.buffer_unordered(self.at_once).concat().await;
        let unknown: BTreeMap<_, _> = history
            .rollbacks
            .iter()
            .filter(|rollback| matches!(rollback.told, RollbackTold::Unknown(_)))
            .map(|rollback| (rollback.redemption, rollback))
            .collect();
        let asked = stream::iter(unknown.into_values().enumerate()).map(async |(number, one)| {
            let random = faults::random(self.seed, &[5, number as u64]);
            let wanted = Wanted { user: &one.user, code: "", invite: one.invite };
            let ask = async |random: &mut StdRng| {
                self.roll_back(wanted, one.redemption, None, random).await
            };
            settled(random, until, ask, |it: &Rollback| it.told.is_definite()).await
        });
        let rollbacks = asked.buffer_unordered(self.at_once).concat().await;
        History { operations, rollbacks, ..History::default() }
    }

    /// A question that changes nothing, to any node.
    pub(super) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.anybody(Method::GET, path, None, None).await
    }

    /// Asks one node after the other, and again, until one has an answer other than that it can not tell now.
    async fn anybody(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Result<Value, ClientError> {
        let path = format!("/v1/namespaces/{}{path}", self.namespace);
        loop {
            for client in self.clients.iter().filter_map(|client| client.borrow().clone()) {
                let answer = match (key, body) {
                    (Some(_), Some(body)) => client.post(&path, body, key).await,
                    _ => client.ask(method.clone(), &path, body).await,
                };
                match answer {
                    Err(ClientError::Problem(problem)) if [408, 503].contains(&problem.status) => {}
                    Err(
                        ClientError::Transport { .. }
                        | ClientError::Foreign { status: StatusCode::REQUEST_TIMEOUT, .. },
                    ) => {}
                    answer => return answer,
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Makes the namespace, and waits until the ledger has it: what a fault may lose is no ground to stand on.
    pub(super) async fn make_namespace(&self) -> Result<(), TortureError> {
        self.anybody(Method::PUT, "", Some(&json!({"spread": self.spread})), None).await?;
        while self.get("").await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Makes the campaign of a wave, and waits until the ledger has it; none where there can be none.
    async fn campaign(&self, wave: u64, max_uses: u64) -> Result<Option<String>, TortureError> {
        // A namespace can have no more.
        if wave >= CAMPAIGNS_MAX {
            return Ok(None);
        }
        let name = format!("w{wave}");
        loop {
            let path = format!("/campaigns/{name}");
            self.anybody(Method::PUT, &path, Some(&json!({"max_uses": max_uses})), None).await?;
            let listed = self.get(&format!("/campaigns?limit={CAMPAIGNS_MAX}")).await?;
            let is_it = |row: &Value| row["name"] == name.as_str();
            if listed["data"].as_array().is_some_and(|rows| rows.iter().any(is_it)) {
                return Ok(Some(name));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Makes the invites of a wave, and waits until the ledger has them.
    async fn wave(&self, number: u64) -> Result<Arc<Wave>, TortureError> {
        let mut random = faults::random(self.seed, &[4, number]);
        let all: Vec<(String, &str, u64)> = CODES
            .iter()
            .map(|(letter, group)| {
                let uses = match *letter {
                    "D" => 1,
                    _ => random.random_range(1..=self.uses),
                };
                (format!("W{number}-{letter}"), *group, uses)
            })
            .collect();
        let shared: u64 = IN_CAMPAIGN.iter().map(|which| all[*which].2).sum();
        // Mostly less than its invites have, and enough for one of them to be used up before it.
        let max_uses = random.random_range(shared.div_ceil(2)..=shared);
        let campaign = self.campaign(number, max_uses).await?;
        loop {
            let mut invites = Vec::new();
            for (which, (code, group, max_uses)) in all.iter().enumerate() {
                let mut body = json!({"code": code, "group": group, "max_uses": max_uses});
                if let Some(name) = campaign.as_ref().filter(|_| IN_CAMPAIGN.contains(&which)) {
                    body["campaign"] = json!(name);
                }
                let made = self.anybody(Method::POST, "/invites", Some(&body), Some(code)).await?;
                let id: InviteId = serde_json::from_value(made["id"].clone())
                    .map_err(|_| TortureError::NeverCame(format!("{code} has an id")))?;
                invites.push((code.clone(), id));
            }
            let listed = self.get(&format!("/invites?prefix=W{number}-")).await?;
            if listed["data"].as_array().is_some_and(|rows| rows.len() == all.len()) {
                self.counts.add_invites(&invites);
                let uses: u64 = all.iter().map(|(_, _, uses)| uses).sum();
                return Ok(Arc::new(Wave { number, invites, users: uses * USERS_PER_USE }));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One user asks for one code, or for two at the same time.
    async fn user(&self, wave: &Wave, number: u64, stop: &CancellationToken) -> History {
        let mut random = faults::random(self.seed, &[2, wave.number, number]);
        let count = if random.random_range(0..10) < 3 { 2 } else { 1 };
        let mut wanted: Vec<usize> = Vec::new();
        while wanted.len() < count {
            // The only use of the last code is wanted by few.
            let one = random.random_range(0..CODES.len() * 3).min(CODES.len() * 3 - 2) / 3;
            if !wanted.contains(&one) {
                wanted.push(one);
            }
        }
        let Ok(user) = UserId::parse(&format!("user-{}-{number}", wave.number)) else {
            return History::default();
        };
        let pursuits = wanted.into_iter().map(async |which| {
            let mut random =
                faults::random(self.seed, &[2, wave.number, number * 10 + which as u64]);
            let wanted = wave.wanted(&user, which);
            match which {
                RESERVED if random.random_bool(0.5) => {
                    self.reserve_first(wanted, &mut random, stop).await
                }
                GIVEN_BACK => self.perhaps_give_back(wave, wanted, &mut random, stop).await,
                _ => self.redeem(wanted, "", None, &mut random, stop).await,
            }
        });
        let mut history = History::default();
        for of_one_code in future::join_all(pursuits).await {
            history.extend(of_one_code);
        }
        history
    }

    /// Asks with one key until there is a definite answer, or patience ends; then perhaps again, as if the answer had been
    /// lost.
    async fn redeem(
        &self,
        wanted: Wanted<'_>,
        suffix: &str,
        reservation: Option<ReservationId>,
        random: &mut StdRng,
        stop: &CancellationToken,
    ) -> History {
        let Wanted { user, code, .. } = wanted;
        let Ok(key) = RequestId::parse(&format!("{user}/{code}{suffix}")) else {
            return History::default();
        };
        let ask = async |random: &mut StdRng| {
            let level =
                if random.random_range(0..5) < 2 { Durability::Ledger } else { Durability::Gate };
            let patience = hangs_up(random);
            self.ask(wanted, &key, reservation, level, patience, random).await
        };
        let is_definite = |one: &Operation| one.told.is_definite();
        let operations = pursue(random, stop, ask, is_definite).await;
        History { operations, ..History::default() }
    }

    /// Has a use held, and then spends it, gives it back, does both at once, or walks away.
    async fn reserve_first(
        &self,
        wanted: Wanted<'_>,
        random: &mut StdRng,
        stop: &CancellationToken,
    ) -> History {
        let ask = async |random: &mut StdRng| {
            let patience = hangs_up(random);
            self.hold(wanted, patience, random).await
        };
        let holds = pursue(random, stop, ask, |one: &Hold| one.told.is_definite()).await;
        let held = holds.iter().rev().find_map(|one| match one.told {
            HoldTold::Held(id) => Some(id),
            _ => None,
        });
        let mut history = History { holds, ..History::default() };
        let Some(id) = held else { return history };
        match random.random_range(0..10) {
            0..6 => {
                let spent = self.redeem(wanted, "", Some(id), random, stop).await;
                let is_spent = spent.operations.iter().any(|one| one.grant().is_some());
                history.extend(spent);
                // Also one who only lost patience.
                if !is_spent && random.random_bool(0.5) {
                    history.extend(self.give_up(wanted, id, random, stop).await);
                }
            }
            6..8 => history.extend(self.give_up(wanted, id, random, stop).await),
            8 => {
                let mut other = StdRng::from_rng(random);
                let (spent, released) = future::join(
                    self.redeem(wanted, "", Some(id), random, stop),
                    self.give_up(wanted, id, &mut other, stop),
                )
                .await;
                history.extend(spent);
                history.extend(released);
            }
            _ => {}
        }
        history
    }

    /// Gives a held use back.
    async fn give_up(
        &self,
        wanted: Wanted<'_>,
        id: ReservationId,
        random: &mut StdRng,
        stop: &CancellationToken,
    ) -> History {
        let ask = async |random: &mut StdRng| {
            let patience = hangs_up(random);
            self.release(wanted, id, patience, random).await
        };
        let releases = pursue(random, stop, ask, |one: &Release| one.told.is_definite()).await;
        History { releases, ..History::default() }
    }

    /// Redeems; some then have it taken back, and some of these redeem once more, be it the same code or another.
    async fn perhaps_give_back(
        &self,
        wave: &Wave,
        wanted: Wanted<'_>,
        random: &mut StdRng,
        stop: &CancellationToken,
    ) -> History {
        let mut history = self.redeem(wanted, "", None, random, stop).await;
        let granted = history.operations.iter().rev().find_map(Operation::grant);
        let granted = granted.map(|grant| grant.id).filter(|_| random.random_range(0..5) < 2);
        let Some(id) = granted else { return history };
        let ask = async |random: &mut StdRng| {
            let patience = hangs_up(random);
            self.roll_back(wanted, id, patience, random).await
        };
        let is_definite = |one: &Rollback| one.told.is_definite();
        let mut other = StdRng::from_rng(random);
        let meanwhile = async {
            // The same key again, while it is under way.
            let repeats = other.random_bool(0.5);
            if repeats {
                self.redeem(wanted, "", None, &mut other, stop).await
            } else {
                History::default()
            }
        };
        let (rollbacks, repeated) =
            future::join(pursue(random, stop, ask, is_definite), meanwhile).await;
        history.extend(repeated);
        let is_done = |one: &Rollback| matches!(one.told, RollbackTold::RolledBack(_));
        let is_done = rollbacks.iter().any(is_done);
        history.rollbacks.extend(rollbacks);
        if is_done && random.random_range(0..3) < 2 {
            let which = if random.random_bool(0.5) {
                GIVEN_BACK
            } else {
                random.random_range(0..CODES.len())
            };
            let next = wave.wanted(wanted.user, which);
            history.extend(self.redeem(next, "/again", None, random, stop).await);
        }
        if random.random_bool(0.5) {
            history.extend(self.redeem(wanted, "", None, random, stop).await);
        }
        history
    }

    /// One request for a use, to one node; nothing if none is there to be asked.
    async fn ask(
        &self,
        Wanted { user, code, invite }: Wanted<'_>,
        key: &RequestId,
        reservation: Option<ReservationId>,
        level: Durability,
        patience: Option<Duration>,
        random: &mut StdRng,
    ) -> Option<Operation> {
        let (path, body) = match reservation {
            Some(id) if random.random_bool(0.5) => {
                (format!("reservations/{id}/confirm"), json!({"durability": level.as_str()}))
            }
            _ => {
                let mut body = json!({"code": code, "user": user, "durability": level.as_str()});
                if let Some(id) = reservation {
                    body["reservation"] = json!(id);
                }
                ("redemptions".to_owned(), body)
            }
        };
        let sends = async |client: Client| {
            let path = format!("/v1/namespaces/{}/{path}", self.namespace);
            client.post(&path, &body, Some(key.as_str())).await
        };
        let Sent { invoked, returned, answer } = self.send(patience, random, sends).await?;
        let told = Told::of(answer);
        self.counts.told(&told);
        Some(Operation {
            invoked,
            returned,
            user: user.clone(),
            invite,
            key: key.clone(),
            reservation,
            asked: level,
            told,
        })
    }

    /// One request to hold a use.
    async fn hold(
        &self,
        Wanted { user, code, invite }: Wanted<'_>,
        patience: Option<Duration>,
        random: &mut StdRng,
    ) -> Option<Hold> {
        let body = json!({"code": code, "user": user, "ttl_seconds": HELD_FOR.as_secs()});
        let sends = async |client: Client| {
            let path = format!("/v1/namespaces/{}/reservations", self.namespace);
            client.post(&path, &body, None).await
        };
        let Sent { invoked, returned, answer } = self.send(patience, random, sends).await?;
        let told = HoldTold::of(answer);
        self.counts.used_up(told.used_up());
        add(match told {
            HoldTold::Held(_) => &self.counts.held,
            HoldTold::Exhausted | HoldTold::CampaignExhausted | HoldTold::AlreadyMember => {
                &self.counts.refused
            }
            HoldTold::Unknown(_) | HoldTold::Unexpected(_) => &self.counts.unknown,
            HoldTold::NothingDone(_) => &self.counts.nothing_done,
        });
        Some(Hold { invoked, returned, user: user.clone(), invite, told })
    }

    /// One request to give a held use back.
    async fn release(
        &self,
        Wanted { user, invite, .. }: Wanted<'_>,
        reservation: ReservationId,
        patience: Option<Duration>,
        random: &mut StdRng,
    ) -> Option<Release> {
        let sends = async |client: Client| {
            let path = format!("/v1/namespaces/{}/reservations/{reservation}", self.namespace);
            client.ask(Method::DELETE, &path, None).await
        };
        let Sent { invoked, returned, answer } = self.send(patience, random, sends).await?;
        let told = ReleaseTold::of(answer);
        add(match told {
            ReleaseTold::Released => &self.counts.given_back,
            ReleaseTold::Spent(_) | ReleaseTold::NotFound => &self.counts.refused,
            ReleaseTold::Unknown(_) | ReleaseTold::Unexpected(_) => &self.counts.unknown,
            ReleaseTold::NothingDone(_) => &self.counts.nothing_done,
        });
        Some(Release { invoked, returned, user: user.clone(), invite, reservation, told })
    }

    /// One request to take a redemption back.
    async fn roll_back(
        &self,
        Wanted { user, invite, .. }: Wanted<'_>,
        redemption: RedemptionId,
        patience: Option<Duration>,
        random: &mut StdRng,
    ) -> Option<Rollback> {
        let body = json!({"reason": "torture"});
        let sends = async |client: Client| {
            let path =
                format!("/v1/namespaces/{}/redemptions/{redemption}/rollback", self.namespace);
            client.post(&path, &body, None).await
        };
        let Sent { invoked, returned, answer } = self.send(patience, random, sends).await?;
        let told = RollbackTold::of(answer);
        add(match told {
            RollbackTold::RolledBack(_) => &self.counts.given_back,
            RollbackTold::NotFound => &self.counts.refused,
            RollbackTold::Unknown(_) | RollbackTold::Unexpected(_) => &self.counts.unknown,
            RollbackTold::NothingDone(_) => &self.counts.nothing_done,
        });
        Some(Rollback { invoked, returned, user: user.clone(), invite, redemption, told })
    }

    /// One request to one node; nothing if none is there to be asked. After its patience the client hangs up.
    async fn send(
        &self,
        patience: Option<Duration>,
        random: &mut StdRng,
        sends: impl AsyncFnOnce(Client) -> Result<Value, ClientError>,
    ) -> Option<Sent> {
        let there: Vec<Client> =
            self.clients.iter().filter_map(|client| client.borrow().clone()).collect();
        let client = there.choose(random)?;
        let invoked = self.started.elapsed();
        let sent = sends(client.clone());
        let answer = match patience {
            Some(patience) => tokio::time::timeout(patience, sent).await.ok(),
            None => Some(sent.await),
        };
        Some(Sent { invoked, returned: self.started.elapsed(), answer })
    }
}

/// What a user wants.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    user: &'a UserId,
    code: &'a str,
    invite: InviteId,
}

/// One request and its answer.
struct Sent {
    invoked: Duration,
    returned: Duration,
    answer: Answer,
}

impl Wave {
    fn wanted<'a>(&'a self, user: &'a UserId, which: usize) -> Wanted<'a> {
        let (code, invite) = &self.invites[which];
        Wanted { user, code, invite: *invite }
    }
}

/// When a client hangs up, whatever comes; few do.
fn hangs_up(random: &mut StdRng) -> Option<Duration> {
    (random.random_range(0..12) == 0).then(|| Duration::from_millis(random.random_range(0..40)))
}

/// Asks until there is a definite answer, or patience ends; then perhaps again, as if the answer had been lost.
async fn pursue<T>(
    random: &mut StdRng,
    stop: &CancellationToken,
    ask: impl AsyncFn(&mut StdRng) -> Option<T>,
    is_definite: impl Fn(&T) -> bool,
) -> Vec<T> {
    let impatient = random.random_range(0..10) == 0;
    let mut patience: u32 = if impatient { random.random_range(1..4) } else { u32::MAX };
    let mut repeats: u32 =
        if random.random_range(0..3) == 0 { random.random_range(1..4) } else { 0 };
    let mut asked = Vec::new();
    while patience > 0 && !stop.is_cancelled() {
        patience -= 1;
        let one = ask(random).await;
        let is_definite = one.as_ref().is_some_and(&is_definite);
        asked.extend(one);
        if is_definite {
            if repeats == 0 {
                break;
            }
            repeats -= 1;
        }
        let pause = Duration::from_millis(random.random_range(1..150));
        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
    asked
}

/// Asks until there is a definite answer, or `until`.
async fn settled<T>(
    mut random: StdRng,
    until: Instant,
    ask: impl AsyncFn(&mut StdRng) -> Option<T>,
    is_definite: impl Fn(&T) -> bool,
) -> Vec<T> {
    let mut asked = Vec::new();
    while Instant::now() < until {
        asked.extend(ask(&mut random).await);
        if asked.last().is_some_and(&is_definite) {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    asked
}

fn users_of(wave: Arc<Wave>) -> impl Iterator<Item = (Arc<Wave>, u64)> {
    (0..wave.users).map(move |user| (wave.clone(), user))
}

/// What a stream has before `stop`.
fn until<S: Stream>(stream: S, stop: &CancellationToken) -> impl Stream<Item = S::Item> {
    stream.take_until(stop.cancelled())
}

impl Counts {
    fn told(&self, told: &Told) {
        self.used_up(told.used_up());
        let count = match told {
            Told::Granted(grant) if grant.replayed => &self.replayed,
            Told::Granted(_) => &self.granted,
            Told::Exhausted
            | Told::CampaignExhausted
            | Told::AlreadyMember
            | Told::NotHeld(_)
            | Told::RolledBack(_) => &self.refused,
            Told::Unknown(_) | Told::Unexpected(_) => &self.unknown,
            Told::NothingDone(_) => &self.nothing_done,
        };
        add(count);
    }

    fn used_up(&self, used_up: Option<UsedUp>) {
        if used_up == Some(UsedUp::Campaign) {
            add(&self.campaign_exhausted);
        }
    }
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}
