//! `cargo bench --bench script`: the redeem script on a real Redis, one request and many in a call, and what is done for
//! each request on the way there. It shows what a change of the script is worth; what people get is in `--bench report`.

#![expect(clippy::unwrap_used, reason = "a benchmark that can not run has nothing to say")]

#[expect(dead_code, reason = "the report needs the rest")]
#[path = "report/load.rs"]
mod load;
#[expect(dead_code, reason = "the report needs the rest")]
#[path = "report/servers.rs"]
mod servers;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::try_join_all;
use redeemer::{
    domain::{Code, CodeCase, Namespace, Policy, Quota, UserId, rate_limit},
    gate::key::Keyspace,
};

use self::servers::{Fsync, Place, RedisServer, Service, open_gate, question};

/// Requests of one call.
const BATCHES: [u64; 3] = [1, 16, 64];

fn script(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = RedisServer::start(Fsync::EverySecond).unwrap();
    // It makes the namespace and the invite, and opens the partitions; nobody empties the outbox then.
    Service::start(Place::new(Some(server.redis.clone()), None).unwrap()).unwrap().stop().unwrap();
    let mut group = c.benchmark_group("redeem.lua");
    let mut number = 0;
    for size in BATCHES {
        let gate = runtime.block_on(open_gate(&server.redis, 64)).unwrap();
        group.throughput(Throughput::Elements(size));
        group.bench_function(format!("{size} in a call"), |bencher| {
            bencher.iter_batched(
                || {
                    number += size;
                    (number - size..number)
                        .map(|number| question(number).unwrap())
                        .collect::<Vec<_>>()
                },
                // On one thread they are all in line before the lane looks, so they go in one call.
                |batch| {
                    let asked = batch.into_iter().map(|request| gate.redeem(request));
                    runtime.block_on(try_join_all(asked)).unwrap()
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn pure(c: &mut Criterion) {
    let mut group = c.benchmark_group("per request");
    let keys = Keyspace::new("rdm", 16);
    let namespace = Namespace::default_namespace();
    let user = UserId::parse("user-0123456").unwrap();
    group.bench_function("parse a code", |bencher| {
        bencher.iter(|| Code::parse(black_box("spring-2027"), CodeCase::Insensitive));
    });
    group.bench_function("parse a user", |bencher| {
        bencher.iter(|| UserId::parse(black_box("user-0123456")));
    });
    group.bench_function("a member's key", |bencher| {
        bencher.iter(|| keys.member(black_box(&namespace), black_box(&user)));
    });
    group.bench_function("a rate limit's key", |bencher| {
        bencher.iter(|| keys.rate(black_box(&namespace), Policy::User, "", user.as_str()));
    });
    group.bench_function("the subject of an address", |bencher| {
        let address = "2001:db8:1:2::3".parse().unwrap();
        bencher.iter(|| rate_limit::address_subject(black_box(address)));
    });
    group.bench_function("parse a quota", |bencher| {
        bencher.iter(|| Quota::parse(black_box("10/60")));
    });
    group.finish();
}

criterion_group!(benches, pure, script);
criterion_main!(benches);
