//! Many at once, over several nodes: exactly N of N uses, one membership each, nobody refused too early.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    eventually, ledger,
    node::{Node, Reply, Settings},
    redis::RedisServer,
};

/// Two nodes that share one Redis and one SQLite file.
struct Pair {
    nodes: Arc<[Node; 2]>,
    _redis: RedisServer,
    _directory: tempfile::TempDir,
}

impl Pair {
    async fn start() -> Self {
        let redis = RedisServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            redis_url: Some(redis.url()),
            ledger: Some(ledger::url_in(directory.path())),
            ..Settings::default()
        };
        // One after the other: each waits in a thread of its own until it is ready.
        let start = || {
            let settings = settings.clone();
            tokio::task::spawn_blocking(move || Node::start(&settings))
        };
        let nodes = Arc::new([start().await.unwrap(), start().await.unwrap()]);
        Self { nodes, _redis: redis, _directory: directory }
    }
}

/// What one request was told, and when.
struct Told {
    invoked: Instant,
    returned: Instant,
    reply: Reply,
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_clients_over_two_nodes_exactly_n_get_a_use() {
    let pair = Pair::start().await;
    for uses in [1, 7, 100] {
        let code = format!("RUSH-{uses}");
        let invite = pair.nodes[0].invite(&code, "team", uses).await;
        // Each client speaks for three users, so that there are more than uses.
        let clients = (0..50).map(|client| {
            let (nodes, code) = (pair.nodes.clone(), code.clone());
            tokio::spawn(async move {
                let mut told = Vec::new();
                for turn in 0..3 {
                    let user = format!("{code}-{client}-{turn}");
                    let invoked = Instant::now();
                    let reply = nodes[client % 2].redeem(&code, &user).await;
                    told.push(Told { invoked, returned: Instant::now(), reply });
                }
                told
            })
        });
        let told: Vec<Told> =
            join_all(clients).await.into_iter().flat_map(Result::unwrap).collect();
        let (granted, refused): (Vec<_>, Vec<_>) =
            told.iter().partition(|told| told.reply.status == 201);
        let ordinals: BTreeSet<u64> =
            granted.iter().map(|told| told.reply.body["use"].as_u64().unwrap()).collect();
        assert_eq!(granted.len() as u64, uses);
        assert_eq!(ordinals, (1..=uses).collect());
        for refusal in refused {
            assert_eq!((refusal.reply.status, refusal.reply.code()), (410, "invite_exhausted"));
            // Nobody was refused while a use was free.
            let asked_before =
                granted.iter().filter(|grant| grant.invoked < refusal.returned).count() as u64;
            assert_eq!(asked_before, uses);
        }
        let path = format!("/v1/namespaces/default/redemptions?invite={invite}&limit=1000");
        eventually("the ledger has them all", async || {
            pair.nodes[1].get(&path).await.body["data"].as_array().unwrap().len() as u64 == uses
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_redeems_two_codes_at_once_joins_one_group_and_spends_one_use() {
    let pair = Pair::start().await;
    let red = pair.nodes[0].invite("RED", "red", 100).await;
    let blue = pair.nodes[0].invite("BLUE", "blue", 100).await;
    for turn in 0..25 {
        let user = format!("user-{turn}");
        let (one, two) =
            tokio::join!(pair.nodes[0].redeem("RED", &user), pair.nodes[1].redeem("BLUE", &user));
        let mut statuses = [one.status, two.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409], "{} {}", one.text, two.text);
        let (won, lost) = if one.status == 201 { (one, two) } else { (two, one) };
        assert_eq!(lost.code(), "already_member");
        assert_eq!(lost.body["group"], won.body["group"]);
        assert_eq!(lost.body["redemption"], won.body["id"]);
        let member = pair.nodes[0].get(&format!("/v1/namespaces/default/members/{user}")).await;
        assert_eq!(member.body["memberships"].as_array().unwrap().len(), 1);
    }
    let mut uses = 0;
    for id in [red, blue] {
        let invite = pair.nodes[0].get(&format!("/v1/namespaces/default/invites/{id}")).await;
        uses += invite.body["uses"].as_u64().unwrap();
    }
    assert_eq!(uses, 25);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_redeems_one_code_from_two_nodes_at_once_spends_one_use() {
    let pair = Pair::start().await;
    let id = pair.nodes[0].invite("SAME", "team", 100).await;
    for turn in 0..25 {
        let user = format!("user-{turn}");
        let (one, two) =
            tokio::join!(pair.nodes[0].redeem("SAME", &user), pair.nodes[1].redeem("SAME", &user));
        let mut statuses = [one.status, two.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 201], "{} {}", one.text, two.text);
        assert_eq!(one.body["id"], two.body["id"]);
    }
    let invite = pair.nodes[0].get(&format!("/v1/namespaces/default/invites/{id}")).await;
    assert_eq!(invite.body["uses"], 25);
    assert_eq!(invite.body["state"], json!("active"));
}
