//! What goes in one call, and what one bad request does to the others.

use std::{task::Poll, time::Duration};

use futures_util::future::{join_all, poll_immediate};
use redeemer::{
    domain::{
        Code, CodeCase, Group, InviteId, MembershipRule, Namespace, Outcome, RedemptionId,
        RequestId, UserId,
    },
    gate::{
        Gate, GateError, GateOptions,
        create_invite::{CreateInvite, Created},
        redeem::{Mode, Redeem},
    },
};
use uuid::Uuid;

use crate::support::{
    bench::{Bench, gate_options},
    eventually,
    proxy::{Fault, Proxy},
};

fn request(namespace: &Namespace, number: u32) -> Redeem {
    Redeem {
        namespace: namespace.clone(),
        code: Code::parse("WELCOME", CodeCase::Sensitive).unwrap(),
        user: Some(UserId::parse(&format!("user-{number}")).unwrap()),
        ip: None,
        email_domain: None,
        caller: "test".to_owned(),
        mode: Mode::Redeem {
            request: RequestId::from_uuid(Uuid::from_u128(u128::from(number))),
            redemption: RedemptionId(Uuid::from_u128(1000 + u128::from(number))),
            metadata: None,
            reservation: None,
        },
    }
}

async fn invite(bench: &Bench, namespace: &Namespace, code: &str, max_uses: Option<u64>) {
    let create = CreateInvite {
        id: InviteId(Uuid::from_bytes(std::array::from_fn(|i| code.as_bytes()[i % code.len()]))),
        namespace: namespace.clone(),
        code: Code::parse(code, CodeCase::Sensitive).unwrap(),
        group: Group::parse("team").unwrap(),
        max_uses,
        max_uses_per_user: None,
        campaign: None,
        starts_at: None,
        expires_at: None,
        user: None,
        email_domains: Vec::new(),
        metadata: None,
        exhausted: None,
        actor: "test".to_owned(),
    };
    assert!(matches!(create.run(&bench.gate).await.unwrap(), Created::Created { .. }));
}

#[tokio::test]
async fn sixty_four_requests_that_wait_for_one_reply_go_in_one_call() {
    let bench = Bench::start().await;
    let namespace = bench.namespace("acme", MembershipRule::OneGroup).await;
    invite(&bench, &namespace, "WELCOME", None).await;
    // A gate of its own behind a proxy, so that only its calls are held.
    let proxy = Proxy::start(bench.redis.socket()).await;
    // One that gives up on a reply asks again, which is a call more.
    let reply_timeout = std::time::Duration::from_mins(1);
    let options = GateOptions { reply_timeout, ..gate_options(&proxy.url(), None) };
    let (gate, lanes) = Gate::new(options).unwrap();
    tokio::spawn(lanes);
    gate.set_fence(
        redeemer::domain::Partition(0),
        bench.gate.fence(redeemer::domain::Partition(0)).map(|fence| (*fence).clone()),
    );
    // The first one loads what is loaded once: the rules, the connection, the script.
    gate.redeem(request(&namespace, 0)).await.unwrap();

    let before = bench.redis.calls("evalsha").await;
    proxy.set(Fault::HoldReplies);
    let first = tokio::spawn({
        let (gate, request) = (gate.clone(), request(&namespace, 1));
        async move { gate.redeem(request).await.unwrap() }
    });
    eventually("the first call has run", async || bench.redis.calls("evalsha").await == before + 1)
        .await;
    let mut waiting: Vec<_> =
        (2..66).map(|number| Box::pin(gate.redeem(request(&namespace, number)))).collect();
    for one in &mut waiting {
        assert!(poll_immediate(one).await.is_none(), "it waits for the first reply");
    }
    proxy.set(Fault::None);
    for answer in join_all(waiting).await {
        assert!(matches!(answer.unwrap().outcome, Outcome::Granted(_)));
    }
    assert!(matches!(first.await.unwrap().outcome, Outcome::Granted(_)));
    assert_eq!(bench.redis.calls("evalsha").await - before, 2);
}

#[tokio::test]
async fn a_rush_costs_no_command_of_a_check_out_and_few_calls() {
    let bench = Bench::start().await;
    let namespace = bench.namespace("acme", MembershipRule::OneGroup).await;
    invite(&bench, &namespace, "WELCOME", None).await;
    // The lane checks its connection out of the pool once.
    bench.gate.redeem(request(&namespace, 1_000_000)).await.unwrap();
    bench.redis.run::<()>(&["CONFIG", "RESETSTAT"]).await;
    let rush = (0..640).map(|number| bench.gate.redeem(request(&namespace, number)));
    for answer in join_all(rush).await {
        assert!(matches!(answer.unwrap().outcome, Outcome::Granted(_)));
    }
    for command in ["ping", "unwatch"] {
        assert_eq!(bench.redis.calls(command).await, 0, "{command}");
    }
    let calls = bench.redis.calls("evalsha").await;
    assert!((10..=11).contains(&calls), "{calls} calls for 640 requests at 64 a call");
}

#[tokio::test]
async fn one_poisoned_key_in_a_batch_fails_only_its_own_request() {
    let bench = Bench::start().await;
    for (name, poisoned) in [("members", "member:user-3"), ("invites", "invite:BAD")] {
        let namespace = bench.namespace(name, MembershipRule::OneGroup).await;
        invite(&bench, &namespace, "WELCOME", Some(10)).await;
        let stem = bench.gate.keys().pattern(redeemer::domain::Partition(0)).replace('*', name);
        bench.redis.run::<()>(&["SET", &format!("{stem}:{poisoned}"), "poison"]).await;
        let mut requests: Vec<_> = (0..6).map(|number| request(&namespace, number)).collect();
        if name == "invites" {
            requests[3].code = Code::parse("BAD", CodeCase::Sensitive).unwrap();
        }
        bench.gate.settings(&namespace).await.unwrap();
        let before = bench.redis.calls("evalsha").await;
        let answers =
            join_all(requests.into_iter().map(|request| bench.gate.redeem(request))).await;
        assert_eq!(bench.redis.calls("evalsha").await - before, 1, "they went in one call");
        for (number, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(answer) => {
                    assert_ne!(number, 3);
                    assert!(matches!(answer.outcome, Outcome::Granted(_)));
                }
                Err(error) => {
                    assert_eq!(number, 3, "{error}");
                    assert!(matches!(error, GateError::Unexpected { .. }), "{error}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_request_whose_caller_has_left_is_decided_all_the_same() {
    let bench = Bench::start().await;
    let namespace = bench.namespace("acme", MembershipRule::OneGroup).await;
    invite(&bench, &namespace, "WELCOME", Some(10)).await;
    bench.gate.settings(&namespace).await.unwrap();
    {
        let mut asked = Box::pin(bench.gate.redeem(request(&namespace, 1)));
        assert_eq!(futures_util::poll!(&mut asked).map(drop), Poll::Pending);
        // Dropped here, as when a client closes its connection.
    }
    let key = format!(
        "{}:invite:WELCOME",
        bench.gate.keys().pattern(redeemer::domain::Partition(0)).replace('*', "acme")
    );
    eventually("the use is spent", async || {
        bench.redis.run::<u64>(&["HGET", &key, "uses"]).await == 1
    })
    .await;
    let again =
        tokio::time::timeout(Duration::from_secs(30), bench.gate.redeem(request(&namespace, 1)));
    assert!(matches!(again.await.unwrap().unwrap().outcome, Outcome::Replayed(_)));
}
