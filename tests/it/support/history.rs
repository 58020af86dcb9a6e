//! Clients that write down what they asked and were told, and what is there in the end, for `redeemer::torture::check`.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

use redeemer::{
    client::Client,
    domain::{Durability, InviteId, Namespace, RequestId, UserId},
    torture::{
        check::{self, MayLose},
        history::{History, InviteRow, Operation, Outcome, RedemptionRow, Told},
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::node::{ADMIN_KEY, Node};

/// One who asks for a use after the other, each for a new user.
pub struct Asker<'a> {
    pub client: Client,
    pub started: Instant,
    pub stop: &'a AtomicBool,
    /// Numbers the users of all askers.
    pub users: &'a AtomicU64,
    /// The codes, in turn.
    pub invites: &'a [(String, InviteId)],
    /// How often a request without a definite answer is sent again, with the same key.
    pub repeats: usize,
}

impl Asker<'_> {
    /// Asks until it is told to stop.
    pub async fn run(&self) -> History {
        let mut history = History::default();
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.users.fetch_add(1, Ordering::Relaxed);
            let place = usize::try_from(number).unwrap() % self.invites.len();
            for _ in 0..=self.repeats {
                let operation = self.ask(number, &self.invites[place]).await;
                let is_definite = operation.told.is_definite();
                history.operations.push(operation);
                if is_definite {
                    break;
                }
            }
        }
        history
    }

    async fn ask(&self, number: u64, (code, invite): &(String, InviteId)) -> Operation {
        let user = format!("user-{number}");
        let body = json!({"code": code, "user": user});
        let key = format!("key-{number}");
        // Who does not repeat needs no key: every other one has none then.
        let sent = (self.repeats > 0 || number.is_multiple_of(2)).then_some(key.as_str());
        let invoked = self.started.elapsed();
        let answer = self.client.redeem(&Namespace::default_namespace(), &body, sent).await;
        Operation {
            invoked,
            returned: self.started.elapsed(),
            user: UserId::parse(&user).unwrap(),
            invite: *invite,
            key: RequestId::parse(&key).unwrap(),
            reservation: None,
            asked: Durability::Gate,
            told: Told::of(Some(answer)),
        }
    }
}

/// A client of whatever listens there, with connections of its own.
pub fn client(url: &str) -> Client {
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::new(url, ADMIN_KEY.into()).unwrap()
}

/// No reading of the history breaks a law.
#[track_caller]
pub fn assert_lawful(history: &History, outcome: &Outcome) {
    let findings = check::check(history, outcome, MayLose::Nothing);
    assert!(findings.is_empty(), "{findings:#?}");
}

/// What a node lists of the namespace `default`, once the ledger has everything.
pub async fn outcome(node: &Node, started: Instant) -> Outcome {
    let mut outcome = Outcome::default();
    for row in rows(node, "invites").await {
        let invite = InviteRow {
            code: field(&row, "code"),
            max_uses: field(&row, "max_uses"),
            uses: field(&row, "uses"),
            held: field(&row, "held"),
            // These tests make none.
            campaign: None,
        };
        outcome.invites.insert(field(&row, "id"), invite);
    }
    for row in rows(node, "redemptions").await {
        outcome.redemptions.push(RedemptionRow {
            id: field(&row, "id"),
            user: user(&row),
            invite: field(&row, "invite"),
            ordinal: field(&row, "use"),
            position: field(&row, "position"),
            rolled_back_at: field(&row, "rolled_back_at"),
        });
    }
    for row in rows(node, "members").await {
        outcome.members.push((user(&row), field(&row, "redemption")));
    }
    outcome.at = started.elapsed();
    outcome
}

async fn rows(node: &Node, list: &str) -> Vec<Value> {
    let mut rows = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/namespaces/default/{list}?limit=1000{cursor}");
        let page = node.get(&path).await.body;
        rows.extend(page["data"].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return rows,
        }
    }
}

fn field<T: DeserializeOwned>(row: &Value, name: &str) -> T {
    serde_json::from_value(row[name].clone()).unwrap()
}

fn user(row: &Value) -> UserId {
    UserId::parse(row["user"].as_str().unwrap()).unwrap()
}
