//! Uses that are held, given back and taken back, and limits that invites share: over HTTP, on a running service.

use futures_util::{StreamExt, future::join_all, stream};
use redeemer::{
    domain::{
        CampaignName, Code, CodeCase, Group, InviteId, MembershipRule, Millis, Namespace, Outcome,
        RedemptionId, Refusal, RequestId, ReservationId, UserId,
    },
    gate::{
        create_invite::{CreateInvite, Created},
        put_campaign::{CampaignPut, PutCampaign},
        redeem::{Mode, Redeem},
        rollback::{Rollback, RollbackAnswer},
    },
    ledger::{By, Rebuild},
    recovery::Admission,
};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    recovery,
    support::{
        bench::{Bench, admit},
        eventually,
        ledger::{self, Sql},
        node::{Node, Reply, Settings, json_body, send},
        proxy::{Fault, Proxy},
        redis::RedisServer,
        until_some,
    },
};

const NS: &str = "/v1/namespaces/default";

async fn node() -> Node {
    tokio::task::spawn_blocking(Node::embedded).await.unwrap()
}

/// A namespace whose limits are out of the way.
async fn namespace(node: &Node, name: &str, membership: &str) -> String {
    let path = format!("/v1/namespaces/{name}");
    let rules = json!({"membership": membership, "rate_user": null});
    assert_eq!(node.send(Method::PUT, &path, &rules).await.status, 201);
    path
}

async fn invite(node: &Node, ns: &str, body: &Value) -> String {
    let made = node.post(&format!("{ns}/invites"), body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    made.header("location").to_owned()
}

async fn reserve(node: &Node, ns: &str, code: &str, user: &str) -> Reply {
    node.post(&format!("{ns}/reservations"), &json!({"code": code, "user": user})).await
}

async fn redeem(node: &Node, ns: &str, code: &str, user: &str) -> Reply {
    node.post(&format!("{ns}/redemptions"), &json!({"code": code, "user": user})).await
}

fn id(reply: &Reply) -> &str {
    reply.body["id"].as_str().unwrap()
}

fn assert_is(reply: &Reply, status: u16, code: &str) {
    assert_eq!((reply.status, reply.code()), (status, code), "{}", reply.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_use_is_for_its_holder_alone() {
    let node = node().await;
    node.invite("SEAT", "team", 1).await;
    let held = reserve(&node, NS, "seat", "alice").await;
    assert_eq!((held.status, &held.body["state"]), (201, &json!("held")), "{}", held.text);
    let path = held.header("location").to_owned();
    assert_eq!(path, format!("{NS}/reservations/{}", id(&held)));
    // The id follows from what it says, so whoever knows that knows the id.
    let until = held.body["expires_at"].as_str().unwrap();
    let until = Millis::from(until.parse::<jiff::Timestamp>().unwrap());
    let made = ReservationId::of(
        &Namespace::default_namespace(),
        held.body["invite"].as_str().unwrap().parse().unwrap(),
        &UserId::parse("alice").unwrap(),
        until,
    );
    assert_eq!(id(&held), made.to_string());

    // To everybody else there is none, for as long as it is held.
    for refused in [redeem(&node, NS, "SEAT", "bob").await, reserve(&node, NS, "SEAT", "bob").await]
    {
        assert_is(&refused, 410, "invite_exhausted");
        assert_eq!(refused.body["may_free_at"], held.body["expires_at"]);
    }
    let shown = node.get(&format!("{NS}/invites/by-code/SEAT")).await;
    assert_eq!(
        [&shown.body["held"], &shown.body["uses"], &shown.body["remaining"]],
        [&json!(1), &json!(0), &json!(1)]
    );
    let allowed =
        node.post(&format!("{NS}/validations"), &json!({"code": "SEAT", "user": "alice"})).await;
    assert_eq!(allowed.body["allowed"], true);

    // Asking again holds nothing more.
    let again = reserve(&node, NS, "SEAT", "alice").await;
    assert_eq!((again.status, &again.body["replayed"]), (200, &json!(true)), "{}", again.text);
    assert_eq!((id(&again), &again.body["expires_at"]), (id(&held), &held.body["expires_at"]));

    // Neither a lower limit nor a deletion takes it away.
    let invite = format!("{NS}/invites/{}", held.body["invite"].as_str().unwrap());
    let in_use = node.delete(&invite).await;
    assert_is(&in_use, 409, "invite_in_use");
    assert_eq!(in_use.body["held"], 1);

    let confirmed = node.post(&format!("{path}/confirm"), &json!({"metadata": {"paid": 5}})).await;
    assert_eq!((confirmed.status, &confirmed.body["use"]), (201, &json!(1)), "{}", confirmed.text);
    // Also without a key a repeat is told the same.
    let repeated = node.post(&format!("{path}/confirm"), &json!({})).await;
    assert_eq!((repeated.status, id(&repeated)), (200, id(&confirmed)), "{}", repeated.text);
    let shown = node.get(&path).await;
    assert_eq!(
        (&shown.body["state"], &shown.body["redemption"]),
        (&json!("confirmed"), &confirmed.body["id"])
    );
    let late = node.delete(&path).await;
    assert_is(&late, 409, "reservation_confirmed");
    assert_eq!(late.body["redemption"], confirmed.body["id"]);
    assert_is(&reserve(&node, NS, "SEAT", "alice").await, 409, "already_member");
    assert_is(&redeem(&node, NS, "SEAT", "bob").await, 410, "invite_exhausted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_that_is_given_back_is_anybodys() {
    let node = node().await;
    node.invite("SEAT", "team", 1).await;
    let held = reserve(&node, NS, "SEAT", "alice").await;
    let path = held.header("location").to_owned();
    assert_eq!(node.delete(&path).await.status, 204);
    assert_eq!(node.get(&path).await.body["state"], "released");
    assert_eq!(node.delete(&path).await.status, 204, "it holds nothing, which was asked for");
    assert_is(&node.post(&format!("{path}/confirm"), &json!({})).await, 410, "reservation_expired");
    let named = json!({"code": "SEAT", "user": "alice", "reservation": id(&held)});
    let named = node.post(&format!("{NS}/redemptions"), &named).await;
    assert_is(&named, 410, "reservation_expired");
    assert_eq!(redeem(&node, NS, "SEAT", "bob").await.status, 201);
    let nobody = node.get(&format!("{NS}/reservations/0198c3a2-7b1e-7c4d-9a55-0123456789ab")).await;
    assert_is(&nobody, 404, "reservation_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn from_its_deadline_on_it_counts_for_nothing() {
    let node = node().await;
    node.invite("SEAT", "team", 1).await;
    let body = json!({"code": "SEAT", "user": "alice", "ttl_seconds": 1});
    let held = node.post(&format!("{NS}/reservations"), &body).await;
    assert_eq!(held.status, 201, "{}", held.text);
    // Nobody looks meanwhile; the first who does gets the use.
    eventually("the deadline comes", async || redeem(&node, NS, "SEAT", "bob").await.status == 201)
        .await;
    let path = held.header("location");
    assert_eq!(node.get(path).await.body["state"], "expired");
    assert_is(&node.post(&format!("{path}/confirm"), &json!({})).await, 410, "reservation_expired");

    // It never outlives the window of its invite.
    let soon = Millis::from_ms(redeemer::ids::now().as_ms() + 60_000).unwrap().to_string();
    let body = json!({"code": "WINDOW", "group": "team", "max_uses": 1, "expires_at": soon});
    invite(&node, NS, &body).await;
    let held = reserve(&node, NS, "WINDOW", "carol").await;
    assert_eq!(held.body["expires_at"], json!(soon), "{}", held.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn redeeming_spends_what_one_holds() {
    let node = node().await;
    node.invite("TWO", "team", 2).await;
    let held = reserve(&node, NS, "TWO", "alice").await;
    assert_eq!(redeem(&node, NS, "TWO", "alice").await.status, 201);
    assert_eq!(node.get(held.header("location")).await.body["state"], "confirmed");
    assert_eq!(node.get(&format!("{NS}/invites/by-code/TWO")).await.body["held"], 0);
    assert_eq!(redeem(&node, NS, "TWO", "bob").await.status, 201, "alice holds no second use");

    // By code and user, without asking the ledger what is held.
    node.invite("NAMED", "others", 1).await;
    let held = reserve(&node, NS, "NAMED", "carol").await;
    let body = json!({"code": "NAMED", "user": "carol", "reservation": id(&held)});
    assert_eq!(node.post(&format!("{NS}/redemptions"), &body).await.status, 201);
}

/// Half of them reserve first, and some of these let go: exactly as many get in as there are uses.
#[tokio::test(flavor = "multi_thread")]
async fn holders_and_redeemers_together_get_exactly_all_uses() {
    let node = node().await;
    let ns = namespace(&node, "rush", "one_group").await;
    invite(&node, &ns, &json!({"code": "RUSH", "group": "team", "max_uses": 20})).await;
    let one = async |number: usize| -> bool {
        let user = format!("user-{number}");
        if number.is_multiple_of(2) {
            return redeem(&node, &ns, "RUSH", &user).await.status == 201;
        }
        let held = reserve(&node, &ns, "RUSH", &user).await;
        if held.status != 201 {
            assert_is(&held, 410, "invite_exhausted");
            return false;
        }
        let path = held.header("location").to_owned();
        if number.is_multiple_of(3) {
            assert_eq!(node.delete(&path).await.status, 204);
            return false;
        }
        let confirmed = node.post(&format!("{path}/confirm"), &json!({})).await;
        assert_eq!(confirmed.status, 201, "what is held is there: {}", confirmed.text);
        true
    };
    let granted = join_all((0..80).map(one)).await.into_iter().filter(|granted| *granted).count();
    // Whoever was refused because of a use that was given back since, gets it now.
    let late = join_all((100..180).map(|number| {
        let (node, ns, user) = (&node, &ns, format!("user-{number}"));
        async move { redeem(node, ns, "RUSH", &user).await.status == 201 }
    }));
    let late = late.await.into_iter().filter(|granted| *granted).count();
    assert_eq!(granted + late, 20);
    let shown = node.get(&format!("{ns}/invites/by-code/RUSH")).await;
    assert_eq!([&shown.body["uses"], &shown.body["held"]], [&json!(20), &json!(0)]);
    assert_consistent(&node, &ns).await;
}

async fn assert_consistent(node: &Node, ns: &str) {
    let report = node.get(&format!("{ns}/consistency")).await;
    assert_eq!((report.status, &report.body["consistent"]), (200, &json!(true)), "{}", report.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redemption_that_is_rolled_back_frees_its_use_and_its_user() {
    let node = node().await;
    node.invite("ONE", "team", 1).await;
    node.invite("OTHER", "others", 5).await;
    let request = node.request(Method::POST, &format!("{NS}/redemptions"));
    let request = request.header("idempotency-key", "first");
    let body = json!({"code": "ONE", "user": "alice"});
    let first = send(json_body(request, &body)).await.unwrap();
    assert_eq!(first.status, 201);
    assert_is(&redeem(&node, NS, "OTHER", "alice").await, 409, "already_member");
    let path = format!("{NS}/redemptions/{}", id(&first));
    let undone = node.post(&format!("{path}/rollback"), &json!({"reason": "payment failed"})).await;
    assert_eq!((undone.status, &undone.body["replayed"]), (200, &json!(false)), "{}", undone.text);
    assert_eq!(undone.body["rollback_reason"], "payment failed");

    // Read at once, and later from the ledger.
    let shown = node.get(&path).await;
    assert_eq!(shown.body["rolled_back_at"], undone.body["rolled_back_at"], "{}", shown.text);
    eventually("the ledger has it", async || {
        node.get(&path).await.body["rollback_reason"] == "payment failed"
    })
    .await;
    let list = node.get(&format!("{NS}/redemptions?user=alice")).await;
    assert_eq!(list.body["data"][0]["rolled_back_at"], undone.body["rolled_back_at"]);
    assert_is(&node.get(&format!("{NS}/members/alice/team")).await, 404, "member_not_found");

    // The same request stays answered, a new one is free to go elsewhere; the use is bob's.
    let request = node.request(Method::POST, &format!("{NS}/redemptions"));
    let repeat = send(json_body(request.header("idempotency-key", "first"), &body)).await.unwrap();
    assert_is(&repeat, 409, "already_rolled_back");
    assert_eq!(repeat.body["redemption"], first.body["id"]);
    assert_eq!(redeem(&node, NS, "OTHER", "alice").await.status, 201);
    let second = redeem(&node, NS, "ONE", "bob").await;
    assert_eq!((second.status, &second.body["use"]), (201, &json!(2)), "numbers are not reused");

    // Once more changes nothing, whatever the reason.
    let again = node.post(&format!("{path}/rollback"), &json!({"reason": "another"})).await;
    assert_eq!((again.status, &again.body["replayed"]), (200, &json!(true)), "{}", again.text);
    assert_eq!(again.body["rolled_back_at"], undone.body["rolled_back_at"]);
    let shown = node.get(&format!("{NS}/invites/by-code/ONE")).await;
    assert_eq!(shown.body["uses"], 1);
    let unknown = format!("{NS}/redemptions/0198c3a2-7b1e-7c4d-9a55-0123456789ab/rollback");
    assert_is(&node.post(&unknown, &json!({"reason": "x"})).await, 404, "redemption_not_found");
    for reason in [json!(""), json!("x".repeat(257)), json!("a\nb"), json!(5), Value::Null] {
        let bad = node.post(&format!("{path}/rollback"), &json!({"reason": reason})).await;
        assert_is(&bad, 400, "invalid_request");
    }
    assert_consistent(&node, NS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_neither_enables_an_invite_nor_takes_a_code_from_another() {
    let node = node().await;
    let off = node.invite("OFF", "team", 1).await;
    let spent = redeem(&node, NS, "OFF", "alice").await;
    let switch = json!({"disabled": true});
    assert_eq!(node.send(Method::PATCH, &format!("{NS}/invites/{off}"), &switch).await.status, 200);
    let rollback = |reply: &Reply| format!("{NS}/redemptions/{}/rollback", id(reply));
    let reason = json!({"reason": "test"});
    assert_eq!(node.post(&rollback(&spent), &reason).await.status, 200);
    let shown = node.get(&format!("{NS}/invites/{off}")).await;
    assert_eq!((&shown.body["state"], &shown.body["uses"]), (&json!("disabled"), &json!(0)));

    let old = node.invite("CODE", "team", 1).await;
    let spent = redeem(&node, NS, "CODE", "bob").await;
    let new = node.invite("CODE", "team", 1).await;
    let taken = node.post(&rollback(&spent), &reason).await;
    assert_is(&taken, 409, "code_taken");
    assert_eq!(taken.body["invite"], json!(new));
    assert_eq!(node.get(&format!("{NS}/members/bob/team")).await.status, 200, "nothing happened");
    // Once the code is free again, the old invite has it again.
    assert_eq!(node.delete(&format!("{NS}/invites/{new}")).await.status, 204);
    assert_eq!(node.post(&rollback(&spent), &reason).await.status, 200);
    let shown = node.get(&format!("{NS}/invites/by-code/CODE")).await;
    assert_eq!((&shown.body["id"], &shown.body["state"]), (&json!(old), &json!("active")));
    assert_eq!(redeem(&node, NS, "CODE", "carol").await.status, 201);
    assert_consistent(&node, NS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_each_invite_counts_a_rollback_leaves_the_other_redemptions_of_a_group() {
    let node = node().await;
    let ns = namespace(&node, "each", "one_per_invite").await;
    for code in ["A", "B"] {
        invite(&node, &ns, &json!({"code": code, "group": "team", "max_uses": 5})).await;
    }
    let first = redeem(&node, &ns, "A", "alice").await;
    let second = redeem(&node, &ns, "B", "alice").await;
    let member = format!("{ns}/members/alice/team");
    assert_eq!(node.get(&member).await.body["redemption"], second.body["id"]);
    let rollback = |reply: &Reply| format!("{ns}/redemptions/{}/rollback", id(reply));
    let reason = json!({"reason": "test"});
    assert_eq!(node.post(&rollback(&second), &reason).await.status, 200);
    assert_eq!(node.get(&member).await.body["redemption"], first.body["id"]);
    assert_consistent(&node, &ns).await;
    assert_eq!(node.post(&rollback(&first), &reason).await.status, 200);
    assert_is(&node.get(&member).await, 404, "member_not_found");
    assert_consistent(&node, &ns).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_spends_as_many_uses_as_one_may() {
    let node = node().await;
    let ns = namespace(&node, "often", "unlimited").await;
    let body = json!({"code": "TWICE", "group": "team", "max_uses": 9, "max_uses_per_user": 2});
    let path = invite(&node, &ns, &body).await;
    assert_eq!(redeem(&node, &ns, "TWICE", "alice").await.status, 201);
    let second = redeem(&node, &ns, "TWICE", "alice").await;
    assert_eq!(second.status, 201);
    assert_is(&redeem(&node, &ns, "TWICE", "alice").await, 409, "user_limit_reached");
    assert_is(&reserve(&node, &ns, "TWICE", "alice").await, 409, "user_limit_reached");
    assert_eq!(redeem(&node, &ns, "TWICE", "bob").await.status, 201);
    // What was rolled back does not count, and the limit can be moved.
    let rollback = format!("{ns}/redemptions/{}/rollback", id(&second));
    assert_eq!(node.post(&rollback, &json!({"reason": "test"})).await.status, 200);
    assert_eq!(redeem(&node, &ns, "TWICE", "alice").await.status, 201);
    let raised = node.send(Method::PATCH, &path, &json!({"max_uses_per_user": null})).await;
    assert_eq!((raised.status, &raised.body["max_uses_per_user"]), (200, &Value::Null));
    assert_eq!(redeem(&node, &ns, "TWICE", "alice").await.status, 201);
    assert_consistent(&node, &ns).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_campaign_holds_across_its_codes() {
    let node = node().await;
    let ns = namespace(&node, "camp", "one_per_invite").await;
    let campaign = format!("{ns}/campaigns/spring");
    let codes: Vec<_> = (0..6).map(|number| format!("SPRING-{number}")).collect();
    let body = json!({"code": codes[0], "group": "team", "max_uses": 50, "campaign": "spring"});
    let early = node.post(&format!("{ns}/invites"), &body).await;
    assert_is(&early, 404, "campaign_not_found");
    let made = node.send(Method::PUT, &campaign, &json!({"max_uses": 30})).await;
    assert_eq!((made.status, made.header("etag")), (201, "\"1\""), "{}", made.text);
    for code in &codes {
        let body = json!({"code": code, "group": code, "max_uses": 50, "campaign": "spring"});
        invite(&node, &ns, &body).await;
    }
    // All at once, over all codes: exactly as many as the campaign has.
    let asked = (0..120).map(|number| {
        let (node, ns, code) = (&node, &ns, &codes[number % codes.len()]);
        async move { redeem(node, ns, code, &format!("user-{number}")).await }
    });
    let replies = join_all(asked).await;
    let granted: Vec<_> = replies.iter().filter(|reply| reply.status == 201).collect();
    assert_eq!(granted.len(), 30);
    for refused in replies.iter().filter(|reply| reply.status != 201) {
        assert_is(refused, 410, "campaign_exhausted");
    }
    let shown = node.get(&campaign).await;
    assert_eq!([&shown.body["uses"], &shown.body["remaining"]], [&json!(30), &json!(0)]);

    // One taken back is there for another, be it held or spent.
    let rollback = format!("{ns}/redemptions/{}/rollback", id(granted[0]));
    assert_eq!(node.post(&rollback, &json!({"reason": "test"})).await.status, 200);
    let held = reserve(&node, &ns, &codes[3], "late").await;
    assert_eq!(held.status, 201, "{}", held.text);
    assert_eq!(node.get(&campaign).await.body["held"], 1);
    assert_is(&redeem(&node, &ns, &codes[4], "later").await, 410, "campaign_exhausted");
    let confirm = format!("{}/confirm", held.header("location"));
    assert_eq!(node.post(&confirm, &json!({})).await.status, 201);

    // The limit moves, never below what is spent.
    let low = node.send(Method::PUT, &campaign, &json!({"max_uses": 29})).await;
    assert_is(&low, 409, "limit_below_used");
    let stale = node.request(Method::PUT, &campaign).header("if-match", "\"9\"");
    let stale = send(json_body(stale, &json!({"max_uses": 31}))).await.unwrap();
    assert_is(&stale, 412, "precondition_failed");
    let raised = node.send(Method::PUT, &campaign, &json!({"max_uses": 31})).await;
    assert_eq!((raised.status, raised.header("etag")), (200, "\"2\""), "{}", raised.text);
    assert_eq!(redeem(&node, &ns, &codes[4], "later").await.status, 201);
    assert_is(&redeem(&node, &ns, &codes[5], "last").await, 410, "campaign_exhausted");
    assert_consistent(&node, &ns).await;
    eventually("the ledger has it", async || {
        let list = node.get(&format!("{ns}/campaigns")).await;
        list.body["data"][0]["uses"] == 31
    })
    .await;

    // Codes in bulk may share it too.
    let order = json!({"count": 3, "pattern": "BULK-######", "group": "g", "max_uses": 1, "campaign": "none"});
    assert_is(&node.post(&format!("{ns}/batches"), &order).await, 404, "campaign_not_found");
    let order = json!({"count": 3, "pattern": "BULK-######", "group": "g", "max_uses": 1, "campaign": "spring"});
    let ordered = node.post(&format!("{ns}/batches"), &order).await;
    assert_eq!((ordered.status, &ordered.body["campaign"]), (202, &json!("spring")));
    let batch = ordered.header("location").to_owned();
    eventually("the batch is made", async || node.get(&batch).await.body["state"] == "finished")
        .await;
    let listed = node.get(&format!("{ns}/invites?batch={}", id(&ordered))).await;
    let code = listed.body["data"][0]["code"].as_str().unwrap();
    assert_is(&redeem(&node, &ns, code, "bulk").await, 410, "campaign_exhausted");
}

/// An invite of a campaign with three uses: two are held, one is spent, and one more was spent and taken back.
async fn hold_spend_and_take_back(bench: &Bench, namespace: &Namespace) {
    let (gate, actor) = (&bench.gate, "test".to_owned());
    let name = CampaignName::parse("spring").unwrap();
    let put = PutCampaign {
        namespace: namespace.clone(),
        name: name.clone(),
        max_uses: Some(5),
        expected_revision: None,
        actor: actor.clone(),
    };
    assert!(matches!(put.run(gate).await.unwrap(), CampaignPut::Created(_)));
    let code = Code::parse("HELD", CodeCase::Sensitive).unwrap();
    let create = CreateInvite {
        id: InviteId(Uuid::from_u128(7)),
        namespace: namespace.clone(),
        code: code.clone(),
        group: Group::parse("team").unwrap(),
        max_uses: Some(3),
        max_uses_per_user: Some(2),
        campaign: Some(name),
        starts_at: None,
        expires_at: None,
        user: None,
        email_domains: Vec::new(),
        metadata: None,
        exhausted: None,
        actor: actor.clone(),
    };
    assert!(matches!(create.run(gate).await.unwrap(), Created::Created(_)));
    let ask = async |user: &str, mode: Mode| {
        let request = Redeem {
            namespace: namespace.clone(),
            code: code.clone(),
            user: Some(UserId::parse(user).unwrap()),
            ip: None,
            email_domain: None,
            caller: "test".to_owned(),
            mode,
        };
        gate.redeem(request).await.unwrap().outcome
    };
    let redeem = |user: &str, number: u128| Mode::Redeem {
        request: RequestId::parse(user).unwrap(),
        redemption: RedemptionId(Uuid::from_u128(number)),
        metadata: None,
        reservation: None,
    };
    for user in ["alice", "bob"] {
        let held = ask(user, Mode::Reserve { ttl_ms: 600_000 }).await;
        assert!(matches!(held, Outcome::Held { replayed: false, .. }), "{held:?}");
    }
    let Outcome::Granted(redemption) = ask("carol", redeem("carol", 11)).await else {
        panic!("there is one left")
    };
    let full = ask("dave", redeem("dave", 12)).await;
    assert!(matches!(full, Outcome::Refused(Refusal::Exhausted { may_free_at: Some(_) })));
    let rollback = Rollback { redemption, reason: "test".to_owned(), actor };
    let undone = rollback.run(gate).await.unwrap();
    assert!(matches!(undone, RollbackAnswer::RolledBack { replayed: false, .. }), "{undone:?}");
    assert!(matches!(ask("dave", redeem("dave", 13)).await, Outcome::Granted(_)));
}

/// Reservations, campaigns and what was rolled back come back from the ledger as they were, and go from the gate into a
/// ledger that is behind.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_and_taken_back_survives_a_rebuild_in_both_directions() {
    let bench = Bench::start().await;
    let namespace = bench.namespace("acme", MembershipRule::OnePerInvite).await;
    hold_spend_and_take_back(&bench, &namespace).await;
    recovery::carry(&bench).await;
    let before = recovery::contents(&bench).await;
    assert!(before.keys().any(|key| key.ends_with(":held:HELD")), "{before:?}");
    assert!(before.keys().any(|key| key.ends_with(":campaign-held")), "{before:?}");
    bench.redis.run::<()>(&["FLUSHALL"]).await;
    bench.admit().await;
    assert_eq!(recovery::contents(&bench).await, before);

    let (other, deployment, lease, directory) = recovery::another_ledger(9).await;
    other.request_rebuild(None, Rebuild::FromGate, &By::node()).await.unwrap();
    let admitted = admit(&bench.gate, &other, &deployment, &lease).await;
    assert!(matches!(admitted, Admission::Open(..)), "{admitted:?}");
    let url = ledger::url_in(directory.path());
    let mut sql = Sql::connect(&url).await;
    assert_eq!(sql.number("SELECT COUNT(*) FROM reservations WHERE state = 'held'").await, 2);
    assert_eq!(sql.number("SELECT uses FROM campaigns").await, 1);
    let undone = "SELECT COUNT(*) FROM redemptions WHERE rolled_back_at IS NOT NULL";
    assert_eq!(sql.number(undone).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_has_a_thousand_campaigns_at_most() {
    let node = node().await;
    let put = async |number: usize| {
        let path = format!("{NS}/campaigns/campaign-{number}");
        node.send(Method::PUT, &path, &json!({"max_uses": null})).await
    };
    let made = stream::iter((0..1000).map(put)).buffer_unordered(16);
    made.for_each(async |reply| assert_eq!(reply.status, 201, "{}", reply.text)).await;
    assert_is(&put(1000).await, 409, "too_many_campaigns");
    assert_eq!(put(7).await.status, 200, "those that are there stay as they are");
    let limited = format!("{NS}/campaigns/campaign-8");
    assert_eq!(node.send(Method::PUT, &limited, &json!({"max_uses": 5})).await.status, 200);
    let listed = until_some("the ledger has them", async || {
        let listed = node.get(&format!("{NS}/campaigns?limit=2")).await;
        (listed.body["data"][1]["name"] == "campaign-1").then_some(listed)
    })
    .await;
    assert!(listed.header("link").contains("cursor="), "{}", listed.text);
}

/// A node that gives up early, a way to cut its Redis off, and one to keep the ledger from everybody.
async fn cut_off() -> (Node, RedisServer, Proxy, Sql) {
    let redis = RedisServer::plain().await;
    let proxy = Proxy::start(redis.socket()).await;
    let env = vec![
        ("REDEEMER_HTTP__REQUEST_TIMEOUT_MS", "5000".to_owned()),
        ("REDEEMER_GATE__DEADLINE_MS", "2000".to_owned()),
    ];
    let settings = Settings { redis_url: Some(proxy.url()), env, ..Settings::default() };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    let ledger = Sql::connect(&node.ledger_url()).await;
    (node, redis, proxy, ledger)
}

/// Asks for a reservation in each way there is.
async fn look_for(node: &Node, id: &str) -> [Reply; 3] {
    let path = format!("{NS}/reservations/{id}");
    [
        node.get(&path).await,
        node.post(&format!("{path}/confirm"), &json!({})).await,
        node.delete(&path).await,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_only_the_gate_has_is_not_missing_while_the_gate_can_not_be_asked() {
    let (node, _redis, proxy, mut ledger) = cut_off().await;
    node.invite("CUT", "team", 5).await;
    ledger.hold().await;
    let held = reserve(&node, NS, "CUT", "alice").await;
    assert_eq!(held.status, 201, "{}", held.text);
    proxy.set(Fault::Refuse);
    for reply in look_for(&node, id(&held)).await {
        assert_is(&reply, 503, "gate_unavailable");
    }
    proxy.set(Fault::None);
    ledger.let_go().await;
    let path = format!("{NS}/reservations/{}/confirm", id(&held));
    let spent = until_some("the gate answers", async || {
        let reply = node.post(&path, &json!({})).await;
        (reply.status != 503).then_some(reply)
    })
    .await;
    assert_eq!(spent.status, 201, "{}", spent.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_emptied_redis_had_is_not_missing_before_nodes_have_handed_in_what_they_told() {
    let (node, redis, _proxy, mut ledger) = cut_off().await;
    node.invite("EMPTIED", "team", 5).await;
    let code = format!("{NS}/invites/by-code/EMPTIED");
    eventually("the ledger has the invite", async || {
        ledger.number("SELECT COUNT(*) FROM invites").await == 1
    })
    .await;
    assert_eq!(node.get(&code).await.status, 200);
    ledger.hold().await;
    let told = redeem(&node, NS, "EMPTIED", "alice").await;
    let held = reserve(&node, NS, "EMPTIED", "bob").await;
    assert_eq!((told.status, held.status), (201, 201), "{} {}", told.text, held.text);
    redis.run::<()>(&["FLUSHALL"]).await;
    let path = format!("{NS}/redemptions/{}", id(&told));
    let rolled_back = node.post(&format!("{path}/rollback"), &json!({"reason": "test"})).await;
    for reply in [node.get(&path).await, rolled_back] {
        assert_is(&reply, 503, "fenced");
    }
    for reply in look_for(&node, id(&held)).await {
        assert_is(&reply, 503, "fenced");
    }
    ledger.let_go().await;
    eventually("the partition is open again", async || {
        node.get(&format!("{NS}/reservations/{}", id(&held))).await.status != 503
    })
    .await;
    let found = node.get(&path).await;
    assert_eq!((found.status, &found.body["user"]), (200, &json!("alice")), "{}", found.text);
    // Nobody keeps what was held; only the leader may have read it before it was lost, and then the ledger has it.
    let looked = node.get(&format!("{NS}/reservations/{}", id(&held))).await;
    if looked.status == 200 {
        assert_eq!(ledger.number("SELECT COUNT(*) FROM reservations").await, 1);
        return;
    }
    for reply in look_for(&node, id(&held)).await {
        assert_is(&reply, 404, "reservation_not_found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmation_that_is_repeated_promises_what_the_repeat_asks_for() {
    let (node, _redis, _proxy, mut ledger) = cut_off().await;
    node.invite("LEVEL", "team", 5).await;
    let held = reserve(&node, NS, "LEVEL", "alice").await;
    let path = format!("{NS}/reservations/{}/confirm", id(&held));
    ledger.hold().await;
    let spent = node.post(&path, &json!({})).await;
    assert_eq!((spent.status, &spent.body["durability"]), (201, &json!("gate")), "{}", spent.text);
    let weak = node.post(&path, &json!({})).await;
    assert_eq!((weak.status, &weak.body["durability"]), (200, &json!("gate")), "{}", weak.text);
    let strong = json!({"durability": "ledger"});
    let unknown = node.post(&path, &strong).await;
    assert_is(&unknown, 503, "outcome_unknown");
    assert_eq!(unknown.body["reached"], "gate");
    ledger.let_go().await;
    let known = until_some("the ledger has it", async || {
        let reply = node.post(&path, &strong).await;
        (reply.status != 503).then_some(reply)
    })
    .await;
    assert_eq!((known.status, &known.body["durability"]), (200, &json!("ledger")));
    assert_eq!(id(&known), id(&spent));
}
