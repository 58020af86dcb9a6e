//! What the invites of a campaign share moves between the parts of a namespace as an invite's uses do: it is never passed,
//! and nobody is refused while some of it is free.

use redeemer::domain::CampaignName;

use super::*;

const EXHAUSTED: &str = "campaign_exhausted";

fn pool() -> Pool {
    let name = CampaignName::parse("spring").unwrap();
    Pool::Campaign { namespace: home(), name }
}

impl Pair {
    /// A namespace with a campaign that has so many uses.
    async fn with_campaign(spread: u16, max_uses: u64) -> Self {
        let pair = Self::start(spread).await;
        let made = pair.put(&json!({"max_uses": max_uses})).await;
        assert_eq!(made.status, 201, "{}", made.text);
        pair
    }

    async fn put(&self, body: &Value) -> Reply {
        self.nodes[0].send(Method::PUT, &format!("{BASE}/campaigns/spring"), body).await
    }

    async fn campaign(&self) -> Value {
        let shown = self.nodes[1].get(&format!("{BASE}/campaigns/spring")).await;
        assert_eq!(shown.status, 200, "{}", shown.text);
        shown.body
    }

    /// An invite of the campaign, with a limit of its own if one is given.
    async fn of_campaign(&self, code: &str, max_uses: Option<u64>) -> Made {
        let body =
            json!({"code": code, "group": "team", "max_uses": max_uses, "campaign": "spring"});
        self.make(body).await
    }
}

async fn rush(spread: u16) {
    let cap = 25;
    let pair = Pair::with_campaign(spread, cap).await;
    // One of the two may be used up before the campaign is.
    pair.of_campaign("ONE", Some(15)).await;
    pair.of_campaign("TWO", None).await;
    let clients = (0..40).map(|client| {
        let nodes = pair.nodes.clone();
        tokio::spawn(async move {
            let mut told = Vec::new();
            for code in ["ONE", "TWO"] {
                let body = json!({"code": code, "user": format!("{code}-{client}")});
                let invoked = Instant::now();
                let reply = nodes[client % 2].post(&format!("{BASE}/redemptions"), &body).await;
                told.push(Told { invoked, returned: Instant::now(), reply });
            }
            told
        })
    });
    let told: Vec<Told> = join_all(clients).await.into_iter().flat_map(Result::unwrap).collect();
    let (granted, refused): (Vec<_>, Vec<_>) =
        told.iter().partition(|told| told.reply.status == 201);
    assert_eq!(granted.len() as u64, cap);
    let asked_before = |refusal: &Told, code: Option<&str>| {
        let of_it = |grant: &&&Told| code.is_none_or(|code| grant.reply.body["code"] == code);
        let asked = granted.iter().filter(of_it).filter(|one| one.invoked < refusal.returned);
        asked.count() as u64
    };
    for refusal in refused {
        let reply = &refusal.reply;
        match (reply.status, reply.code()) {
            (410, EXHAUSTED) => assert_eq!(asked_before(refusal, None), cap),
            (410, "invite_exhausted") => assert_eq!(asked_before(refusal, Some("ONE")), 15),
            _ => panic!("{}", reply.text),
        }
    }
    let shown = pair.campaign().await;
    assert_eq!((&shown["uses"], &shown["max_uses"]), (&json!(cap), &json!(cap)));
    eventually("the ledger has all of them", async || {
        let listed = pair.nodes[0].get(&format!("{BASE}/campaigns")).await;
        listed.body["data"]
            == json!([{
                "name": "spring", "namespace": "acme", "max_uses": cap, "uses": cap, "held": null,
                "remaining": 0, "revision": 1, "created_at": shown["created_at"],
                "updated_at": shown["updated_at"],
            }])
    })
    .await;
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_clients_exactly_n_get_a_use_of_a_campaign_in_three_partitions() {
    rush(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_clients_exactly_n_get_a_use_of_a_campaign_in_sixteen_partitions() {
    rush(16).await;
}

/// The last use of the invite may be in another part than the last one of its campaign, and somebody asks in both.
#[tokio::test(flavor = "multi_thread")]
async fn every_use_is_found_of_an_invite_that_has_the_limit_of_its_campaign() {
    let pair = Pair::with_campaign(16, 20).await;
    let made = pair.of_campaign("BOTH", Some(20)).await;
    let clients = (0..60).map(|client| {
        let nodes = pair.nodes.clone();
        tokio::spawn(async move {
            let body = json!({"code": "BOTH", "user": format!("both-{client}")});
            nodes[client % 2].post(&format!("{BASE}/redemptions"), &body).await
        })
    });
    let replies: Vec<Reply> = join_all(clients).await.into_iter().map(Result::unwrap).collect();
    let granted = replies.iter().filter(|reply| reply.status == 201).count();
    assert_eq!(granted, 20);
    for reply in replies.iter().filter(|reply| reply.status != 201) {
        let told = (reply.status, reply.code());
        assert!([(410, "invite_exhausted"), (410, EXHAUSTED)].contains(&told), "{}", reply.text);
    }
    assert_eq!(pair.show(made.id).await["uses"], 20);
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_of_a_campaign_that_comes_back_in_one_shard_goes_to_another() {
    let pair = Pair::with_campaign(3, 4).await;
    let made = pair.of_campaign("BACK", None).await;
    let (held, spent) = (pair.user(1, 0), pair.user(2, 0));
    let reserved = pair.reserve("BACK", &held, 600).await;
    assert_eq!(reserved.status, 201, "{}", reserved.text);
    let id = pair.granted("BACK", &spent).await["id"].clone();
    pair.spend_all_or(&made, 3, 2, EXHAUSTED).await;
    let shown = pair.campaign().await;
    assert_eq!((&shown["uses"], &shown["held"]), (&json!(3), &json!(1)));

    let path = format!("{BASE}/redemptions/{}/rollback", id.as_str().unwrap());
    let undone = pair.nodes[0].post(&path, &json!({"reason": "test"})).await;
    assert_eq!(undone.status, 200, "{}", undone.text);
    pair.granted("BACK", &pair.user(3, 500)).await;
    pair.all_hear("BACK", 410, EXHAUSTED).await;
    let path = format!("{BASE}/reservations/{}", reserved.body["id"].as_str().unwrap());
    assert_eq!(pair.nodes[0].delete(&path).await.status, 204);
    pair.granted("BACK", &pair.user(2, 501)).await;
    pair.all_hear("BACK", 410, EXHAUSTED).await;
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaigns_limit_is_raised_and_lowered_while_users_redeem_and_is_never_passed() {
    let pair = Pair::with_campaign(3, 10).await;
    pair.of_campaign("MOVING", None).await;
    let highest = 60;
    let done = Arc::new(AtomicBool::new(false));
    let clients = (0..8).map(|client| {
        let (nodes, done) = (pair.nodes.clone(), done.clone());
        tokio::spawn(async move {
            let mut granted = 0_u64;
            let mut turn = 0;
            while !done.load(Ordering::SeqCst) {
                let body = json!({"code": "MOVING", "user": format!("mover-{client}-{turn}")});
                let reply = nodes[client % 2].post(&format!("{BASE}/redemptions"), &body).await;
                match (reply.status, reply.code()) {
                    (201, _) => granted += 1,
                    (410, EXHAUSTED) | (503, "overloaded") => {}
                    _ => panic!("{}", reply.text),
                }
                turn += 1;
            }
            granted
        })
    });
    let clients: Vec<_> = clients.collect();
    for limit in [20, 12, 30, 25, 60, 40] {
        let changed = pair.put(&json!({"max_uses": limit})).await;
        match changed.status {
            200 => assert_eq!(changed.body["max_uses"], limit, "{}", changed.text),
            503 => assert_eq!(changed.code(), "overloaded", "{}", changed.text),
            _ => {
                assert_eq!((changed.status, changed.code()), (409, "limit_below_used"));
                assert!(changed.body["uses"].as_u64().unwrap() > limit, "{}", changed.text);
            }
        }
        let shown = pair.campaign().await;
        let (uses, max_uses) = (&shown["uses"], &shown["max_uses"]);
        assert!(uses.as_u64().unwrap() <= max_uses.as_u64().unwrap(), "{shown}");
    }
    let changed = pair.put(&json!({"max_uses": highest})).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    eventually("all are spent", async || pair.campaign().await["uses"] == highest).await;
    done.store(true, Ordering::SeqCst);
    let granted: u64 = join_all(clients).await.into_iter().map(Result::unwrap).sum();
    assert_eq!(granted, highest);
    pair.all_hear("MOVING", 410, EXHAUSTED).await;
    // Without a limit there is always one, and the limit that is set then is what is spent already.
    let free = pair.put(&json!({"max_uses": null})).await;
    assert_eq!((free.status, &free.body["remaining"]), (200, &Value::Null), "{}", free.text);
    for number in 0..6_u16 {
        pair.granted("MOVING", &pair.user(1 + number % 3, 700 + usize::from(number))).await;
    }
    let low = pair.put(&json!({"max_uses": 65})).await;
    assert_eq!((low.status, low.code(), &low.body["uses"]), (409, "limit_below_used", &json!(66)));
    let exact = pair.put(&json!({"max_uses": 66})).await;
    assert_eq!((exact.status, &exact.body["remaining"]), (200, &json!(0)), "{}", exact.text);
    pair.all_hear("MOVING", 410, EXHAUSTED).await;
    pair.assert_consistent().await;
}

/// Made and used while the namespace was in one partition.
#[tokio::test(flavor = "multi_thread")]
async fn the_campaigns_of_a_namespace_that_comes_to_be_spread_keep_their_limits() {
    let pair = Pair::with_campaign(1, 9).await;
    let made = pair.of_campaign("OLD", None).await;
    for number in 0..4 {
        pair.granted("OLD", &format!("early-{number}")).await;
    }
    let path = format!("{BASE}/campaigns/quiet");
    let quiet = json!({"max_uses": null});
    assert_eq!(pair.nodes[0].send(Method::PUT, &path, &quiet).await.status, 201);
    let changed = pair.nodes[0].send(Method::PATCH, BASE, &json!({"spread": 3})).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    let pair = Pair { spread: 3, ..pair };
    pair.spend_all_or(&made, 2, 5, EXHAUSTED).await;
    let shown = pair.campaign().await;
    assert_eq!((&shown["uses"], &shown["max_uses"]), (&json!(9), &json!(9)));
    let told = pair.nodes[0].get(&format!("{BASE}/audit")).await;
    assert!(told.text.contains("campaign_put") && !told.text.contains("campaign_copied"));
    // One that no shard has heard of is lowered too.
    let lowered = pair.nodes[0].send(Method::PUT, &path, &json!({"max_uses": 2})).await;
    assert_eq!((lowered.status, &lowered.body["max_uses"]), (200, &json!(2)), "{}", lowered.text);
    pair.assert_consistent().await;
}

/// Its shards stay, so its limits go on to be those of all parts.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_whose_spread_was_lowered_to_one_keeps_the_limits_of_its_campaigns() {
    let pair = Pair::with_campaign(3, 20).await;
    let made = pair.of_campaign("ONE", None).await;
    for shard in 1..=3 {
        for number in 0..3 {
            pair.granted("ONE", &pair.user(shard, number)).await;
        }
    }
    let lowered = pair.nodes[0].send(Method::PATCH, BASE, &json!({"spread": 1})).await;
    assert_eq!((lowered.status, &lowered.body["spread"]), (200, &json!(1)), "{}", lowered.text);
    pair.granted("ONE", "at-home").await;
    pair.assert_consistent().await;
    pair.rebuild_all().await;
    // What it is made with is as it was.
    let again = pair.nodes[0].send(Method::PUT, BASE, &json!({"spread": 1})).await;
    assert_eq!(again.status, 200, "{}", again.text);
    let same = pair.put(&json!({"max_uses": 20})).await;
    assert_eq!((same.status, &same.body["uses"]), (200, &json!(10)), "{}", same.text);
    pair.spend_all_or(&made, 2, 10, EXHAUSTED).await;
    let shown = pair.campaign().await;
    assert_eq!((&shown["uses"], &shown["max_uses"]), (&json!(20), &json!(20)));
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_of_a_campaign_on_their_way_to_a_shard_that_does_not_know_it_are_found() {
    let pair = Pair::with_campaign(3, 6).await;
    let body = json!({"count": 1, "pattern": "####-####", "group": "team", "max_uses": 9, "campaign": "spring"});
    let made = pair.batch(&body).await;
    let gate = pair.gate().await;
    assert!(pair.give(&gate, &pool(), (2, 1), 0, 0).await.is_absent());
    pair.give(&gate, &pool(), (HOME, 2), 0, 1).await;
    pair.spend_all_or(&made, 1, 6, EXHAUSTED).await;
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_forgets_what_it_gave_of_a_campaign_has_credited_nobody() {
    let pair = Pair::with_campaign(3, 8).await;
    let made = pair.of_campaign("DEBIT", None).await;
    eventually("the ledger has the invite", async || {
        let sql = "SELECT COUNT(*) FROM invites WHERE total IS NOT NULL";
        Sql::connect(&pair.ledger).await.number(sql).await == 1
    })
    .await;
    let gate = pair.gate().await;
    let mut sql = Sql::connect(&pair.ledger).await;
    sql.hold().await;
    pair.give(&gate, &pool(), (HOME, 1), 0, 1).await;
    pair.redis.run::<()>(&["FLUSHALL"]).await;
    sql.let_go().await;
    drop(sql);
    pair.spend_all_or(&made, 2, 8, EXHAUSTED).await;
    assert_eq!(pair.campaign().await["uses"], 8);
    pair.assert_consistent().await;
}

/// Both what it got and what it has told of it; the nodes bring that back, and nothing is got twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_forgets_what_it_got_of_a_campaign_gets_it_again() {
    let pair = Pair::with_campaign(3, 9).await;
    let made = pair.of_campaign("CREDIT", None).await;
    let gate = pair.gate().await;
    let given = pair.give(&gate, &pool(), (HOME, 1), 0, 1).await;
    let amount = pair.given(&given, 1).amount;
    let share = pair.give(&gate, &made.pool(), (HOME, 1), 0, 2).await;
    let share = pair.given(&share, 1).amount;
    eventually("the ledger has what was given", async || {
        let sql = "SELECT COUNT(*) FROM moves WHERE own = 0 AND given > 0";
        Sql::connect(&pair.ledger).await.number(sql).await == 2
    })
    .await;
    let mut sql = Sql::connect(&pair.ledger).await;
    sql.hold().await;
    assert_eq!(pair.take(&gate, &pool(), (HOME, 1), amount).await.max_uses, 9);
    let mut told = BTreeMap::new();
    for number in 0..5 {
        let user = pair.user(1, number);
        let reply = pair.redeem(number % 2, "CREDIT", &user).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        told.insert(user, reply.body["id"].clone());
    }
    assert_eq!(pair.give(&gate, &made.pool(), (1, 2), 0, 0).await.max_uses, share);
    pair.redis.run::<()>(&["FLUSHALL"]).await;
    sql.let_go().await;
    drop(sql);
    for (user, id) in told {
        let again = until_some("there is an answer", async || {
            let reply = pair.redeem(0, "CREDIT", &user).await;
            (reply.status != 503).then_some(reply)
        })
        .await;
        assert_eq!((again.status, &again.body["id"]), (200, &id), "{}", again.text);
    }
    pair.spend_all_or(&made, 2, 4, EXHAUSTED).await;
    assert_eq!(pair.campaign().await["uses"], 9);
    pair.assert_consistent().await;
}

/// The shard where it is held hears of the new invite when somebody there asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_of_an_invite_that_has_lost_its_code_is_free_for_its_campaign() {
    let pair = Pair::with_campaign(3, 2).await;
    let first = pair.of_campaign("CODE", None).await;
    let other = pair.of_campaign("OTHER", None).await;
    let held = pair.reserve("CODE", &pair.user(1, 0), 600).await;
    assert_eq!(held.status, 201, "{}", held.text);
    let off = pair.patch(first.id, &json!({"disabled": true})).await;
    assert_eq!(off.status, 200, "{}", off.text);
    let second = pair.make(json!({"code": "CODE", "group": "team", "max_uses": 5})).await;
    assert_ne!(first.id, second.id);
    pair.granted("CODE", &pair.user(1, 1)).await;
    assert_eq!(pair.campaign().await["held"], 0);
    pair.spend_all_or(&other, 2, 2, EXHAUSTED).await;
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shares_of_a_campaign_are_built_anew_and_nobody_hears_of_copies() {
    let pair = Pair::with_campaign(3, 30).await;
    let made = pair.of_campaign("BUILT", Some(100)).await;
    for shard in 1..=3 {
        for number in 0..3 {
            pair.granted("BUILT", &pair.user(shard, number)).await;
        }
    }
    eventually("the ledger has all of it", async || {
        let sql = "SELECT COUNT(*) FROM redemptions WHERE rolled_back_at IS NULL";
        Sql::connect(&pair.ledger).await.number(sql).await == 9
    })
    .await;
    let gate = pair.gate().await;
    let before = pair.give(&gate, &pool(), (1, 2), 0, 0).await;
    pair.rebuild_all().await;
    let after = pair.give(&pair.gate().await, &pool(), (1, 2), 0, 0).await;
    // How often there was a grant is counted from there on, in another epoch.
    let after = Part { epoch: before.epoch, granted: before.granted, kept: before.kept, ..after };
    assert_eq!(after, before);
    pair.spend_all_or(&made, 3, 21, EXHAUSTED).await;
    let put = pair.nodes[0].get(&format!("{BASE}/audit?action=campaign_put")).await;
    assert_eq!(put.body["data"].as_array().unwrap().len(), 1, "{}", put.text);
    pair.assert_consistent().await;
}
