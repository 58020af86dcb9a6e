//! What clients ask while faults strike. Who asks for what, how often and how patiently follows from the seed alone;
//! when, and in which order it comes, is left to the machine.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, Stream, StreamExt as _, future, stream};
use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    Counts, TortureError,
    deployment::Clients,
    faults,
    history::{Operation, Told},
};
use crate::{
    client::{Client, ClientError},
    domain::{Durability, InviteId, Namespace, RequestId, UserId},
};

/// How often a state is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Codes of a wave, and the group of each. A user who asks for two may ask for two of one group.
const CODES: [(&str, &str); 4] = [("A", "alpha"), ("B", "beta"), ("C", "alpha"), ("D", "gamma")];
/// Users of a wave for each of its uses, so that many are refused.
const USERS_PER_USE: u64 = 2;

/// Those who ask.
pub(super) struct Load<'a> {
    pub(super) clients: Clients,
    pub(super) namespace: Namespace,
    pub(super) seed: u64,
    pub(super) uses: u64,
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
    pub(super) async fn rush(
        &self,
        stop: &CancellationToken,
    ) -> Result<Vec<Operation>, TortureError> {
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
        let mut history = Vec::new();
        while let Some(operations) = asked.next().await {
            history.extend(operations?);
        }
        Ok(history)
    }

    /// Asks once more for every key that ever was unknown, until there is a definite answer or `until`.
    pub(super) async fn settle(&self, history: &[Operation], until: Instant) -> Vec<Operation> {
        let unknown: BTreeMap<_, _> = history
            .iter()
            .filter(|operation| matches!(operation.told, Told::Unknown(_)))
            .map(|operation| ((&operation.user, &operation.key), operation))
            .collect();
        let codes: BTreeMap<InviteId, String> = self.counts.codes();
        let asked = stream::iter(unknown.into_values().enumerate()).map(async |(number, one)| {
            let mut random = faults::random(self.seed, &[3, number as u64]);
            let code = codes.get(&one.invite).map(String::as_str).unwrap_or_default();
            let ask = Ask {
                code,
                invite: one.invite,
                user: &one.user,
                key: &one.key,
                level: Durability::Ledger,
                cancelled_after: None,
            };
            let mut operations = Vec::new();
            while Instant::now() < until {
                operations.extend(self.ask(&ask, &mut random).await);
                if operations.last().is_some_and(|last: &Operation| last.told.is_definite()) {
                    break;
                }
                tokio::time::sleep(LOOK).await;
            }
            operations
        });
        asked.buffer_unordered(self.at_once).concat().await
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
                    Err(ClientError::Problem(problem)) if problem.status == 503 => {}
                    Err(ClientError::Transport { .. }) => {}
                    answer => return answer,
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Makes the namespace, and waits until the ledger has it: what a fault may lose is no ground to stand on.
    pub(super) async fn make_namespace(&self) -> Result<(), TortureError> {
        self.anybody(Method::PUT, "", Some(&json!({})), None).await?;
        while self.get("").await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
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
        loop {
            let mut invites = Vec::new();
            for (code, group, max_uses) in &all {
                let body = json!({"code": code, "group": group, "max_uses": max_uses});
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
    async fn user(&self, wave: &Wave, number: u64, stop: &CancellationToken) -> Vec<Operation> {
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
            return Vec::new();
        };
        let pursuits = wanted.into_iter().map(|which| {
            let random = faults::random(self.seed, &[2, wave.number, number * 10 + which as u64]);
            self.pursue(&user, &wave.invites[which], random, stop)
        });
        future::join_all(pursuits).await.concat()
    }

    /// Asks until there is a definite answer, or patience ends; then perhaps again, as if the answer had been lost.
    async fn pursue(
        &self,
        user: &UserId,
        (code, invite): &(String, InviteId),
        mut random: StdRng,
        stop: &CancellationToken,
    ) -> Vec<Operation> {
        let Ok(key) = RequestId::parse(&format!("{user}/{code}")) else { return Vec::new() };
        let impatient = random.random_range(0..10) == 0;
        let mut patience: u32 = if impatient { random.random_range(1..4) } else { u32::MAX };
        let mut repeats: u32 =
            if random.random_range(0..3) == 0 { random.random_range(1..4) } else { 0 };
        let mut operations: Vec<Operation> = Vec::new();
        while patience > 0 && !stop.is_cancelled() {
            patience -= 1;
            let level =
                if random.random_range(0..5) < 2 { Durability::Ledger } else { Durability::Gate };
            let cancelled_after = (random.random_range(0..12) == 0)
                .then(|| Duration::from_millis(random.random_range(0..40)));
            let ask = Ask { code, invite: *invite, user, key: &key, level, cancelled_after };
            let operation = self.ask(&ask, &mut random).await;
            let is_definite = operation.as_ref().is_some_and(|one| one.told.is_definite());
            operations.extend(operation);
            if is_definite {
                if repeats == 0 {
                    break;
                }
                repeats -= 1;
            }
            let pause = Duration::from_millis(random.random_range(1..150));
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
        operations
    }

    /// One request to one node; nothing if none is there to be asked.
    async fn ask(&self, ask: &Ask<'_>, random: &mut StdRng) -> Option<Operation> {
        let there: Vec<Client> =
            self.clients.iter().filter_map(|client| client.borrow().clone()).collect();
        let client = there.choose(random)?;
        let Ask { code, invite, user, key, level, cancelled_after } = *ask;
        let body = json!({"code": code, "user": user, "durability": level.as_str()});
        let invoked = self.started.elapsed();
        let sent = client.redeem(&self.namespace, &body, Some(key.as_str()));
        let answer = match cancelled_after {
            Some(after) => tokio::time::timeout(after, sent).await.ok(),
            None => Some(sent.await),
        };
        let told = match answer {
            None => Told::Unknown("cancelled".to_owned()),
            Some(Err(error)) => Told::of(Err(error)),
            Some(Ok(answer)) => match serde_json::from_value(answer.clone()) {
                Ok(redemption) => Told::of(Ok(redemption)),
                Err(_) => Told::Unexpected(answer.to_string()),
            },
        };
        self.counts.told(&told);
        Some(Operation {
            invoked,
            returned: self.started.elapsed(),
            user: user.clone(),
            invite,
            key: key.clone(),
            asked: level,
            told,
        })
    }
}

/// One request.
struct Ask<'a> {
    code: &'a str,
    invite: InviteId,
    user: &'a UserId,
    key: &'a RequestId,
    level: Durability,
    /// When the client hangs up, whatever comes.
    cancelled_after: Option<Duration>,
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
        let count = match told {
            Told::Granted(grant) if grant.replayed => &self.replayed,
            Told::Granted(_) => &self.granted,
            Told::Exhausted | Told::AlreadyMember => &self.refused,
            Told::Unknown(_) | Told::Unexpected(_) => &self.unknown,
            Told::NothingDone(_) => &self.nothing_done,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}
