//! The ledger by itself: what both databases must do alike, and what only PostgreSQL can do.

use std::time::Duration;

use redeemer::{
    domain::{Cursor, Partition},
    ledger::{Appended, Lease, Ledger, LedgerError, Opened, PartitionState, rows::Rows},
};
use uuid::Uuid;

use crate::support::{
    eventually,
    ledger::{self, Sql, postgres_options},
    node::{Node, Settings},
    postgres::PostgresServer,
    redis::RedisServer,
    until_some,
};

const TTL: Duration = Duration::from_mins(1);

async fn lease_of(ledger: &Ledger, owner: &str) -> Lease {
    ledger.take_leases(owner, TTL, true).await.unwrap().remove(0)
}

/// A new ledger with one open partition.
async fn opened(url: &str) -> (Ledger, Lease) {
    let ledger = ledger::open(url).await;
    ledger.deployment(1, Uuid::from_u128(1)).await.unwrap();
    let lease = lease_of(&ledger, "first").await;
    let epoch = ledger.close_partition(&lease, 0, "test").await.unwrap().unwrap();
    ledger.open_partition(&lease, epoch, "lineage", None).await.unwrap();
    (ledger, lease)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_may_start_on_an_empty_one_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let url = ledger::url_in(directory.path());
    let starts = (0..8).map(|node| {
        let url = url.clone();
        tokio::spawn(async move {
            let ledger = ledger::open(&url).await;
            ledger.deployment(16, Uuid::from_u128(node)).await.unwrap().id
        })
    });
    let ids = futures_util::future::try_join_all(starts).await.unwrap();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let partitions = ledger::open(&url).await.partitions().await.unwrap();
    assert_eq!(partitions.len(), 16);
    assert!(partitions.iter().all(|row| row.state == PartitionState::New));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_lease_goes_to_one_of_many_who_ask_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let url = ledger::url_in(directory.path());
    let ledger = ledger::open(&url).await;
    ledger.deployment(16, Uuid::from_u128(1)).await.unwrap();
    let nodes = (0..8).map(|node| {
        let ledger = ledger.clone();
        tokio::spawn(async move {
            ledger.take_leases(&format!("node-{node}"), TTL, false).await.unwrap()
        })
    });
    let taken = futures_util::future::try_join_all(nodes).await.unwrap();
    let mut partitions: Vec<_> = taken.iter().flatten().map(|lease| lease.partition.0).collect();
    // Those that were being taken were passed over, and nobody got one that another has.
    partitions.sort_unstable();
    assert_eq!(partitions, (0..16).collect::<Vec<_>>());
    assert!(taken.iter().flatten().all(|lease| lease.token == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_replaced_while_it_was_paused_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (ledger, old) = opened(&ledger::url_in(directory.path())).await;
    let (from, to) = (Cursor { epoch: 1, seq: 0 }, Cursor { epoch: 1, seq: 3 });
    let new = lease_of(&ledger, "second").await;
    assert!(new.token > old.token);
    let appended = async |lease: &Lease, from, to| {
        ledger.append(lease, from, to, &Rows::default()).await.unwrap()
    };
    assert_eq!(appended(&old, from, to).await, Appended::Overtaken);
    assert_eq!(
        ledger.append_dead(&old, from, to, "entry", "reason").await.unwrap(),
        Appended::Overtaken
    );
    assert!(ledger.renew_leases(std::slice::from_ref(&old), TTL).await.unwrap().is_empty());
    assert!(ledger.close_partition(&old, 0, "late").await.unwrap().is_err());
    assert!(ledger.keep_closed(&old, "late").await.unwrap().is_err());
    assert_eq!(ledger.open_partition(&old, 1, "other", None).await.unwrap(), Opened::LeaseLost);
    let row = ledger.partition(Partition(0)).await.unwrap();
    assert_eq!((row.cursor, row.lineage.as_deref()), (from, Some("lineage")));
    // Nor does the new one write twice what it has written.
    assert_eq!(appended(&new, from, to).await, Appended::Appended);
    assert_eq!(appended(&new, from, to).await, Appended::Overtaken);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_partitions_is_refused_with_the_fix() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = ledger::open(&ledger::url_in(directory.path())).await;
    ledger.deployment(16, Uuid::from_u128(1)).await.unwrap();
    let error = ledger.deployment(8, Uuid::from_u128(2)).await.unwrap_err();
    assert!(matches!(error, LedgerError::Mismatch(_)), "{error:?}");
    assert!(error.to_string().contains("set gate.partitions = 16"), "{error}");
}

/// What the next version's migration may do to the tables: only add.
const NEXT_VERSION: &str = "
    ALTER TABLE invites ADD COLUMN colour TEXT;
    ALTER TABLE redemptions ADD COLUMN channel TEXT;
    CREATE TABLE colours (id TEXT PRIMARY KEY, shade BIGINT);
    INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        SELECT 9999, 'later', success, checksum, 0 FROM _sqlx_migrations WHERE version = 1;
    UPDATE deployment SET schema = schema + 1;
";

#[tokio::test(flavor = "multi_thread")]
async fn one_of_the_next_version_is_used_and_one_of_a_later_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let url = ledger::url_in(directory.path());
    let open = async || ledger::open(&url).await.deployment(4, Uuid::from_u128(1)).await;
    open().await.unwrap();
    let mut sql = Sql::connect(&url).await;
    sql.execute(NEXT_VERSION).await;
    assert_eq!(open().await.unwrap().partitions, 4);
    assert_eq!(sql.number("SELECT schema FROM deployment").await, 2, "it does not go back");
    sql.execute("UPDATE deployment SET schema = 3").await;
    let error = open().await.unwrap_err();
    assert!(error.to_string().contains("start a newer version"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_go_on_and_can_be_started_while_the_next_version_has_added_to_the_tables() {
    let redis = RedisServer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        redis_url: Some(redis.url()),
        ledger: Some(ledger::url_in(directory.path())),
        ..Settings::default()
    };
    let start = async || {
        let settings = settings.clone();
        tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
    };
    let first = start().await;
    first.invite("UPGRADE", "team", 1000).await;
    let grant = async |node: &Node, users: std::ops::Range<usize>| {
        for number in users {
            let reply = node.redeem("UPGRADE", &format!("user-{number}")).await;
            assert_eq!(reply.status, 201, "{}", reply.text);
        }
    };
    let upgrade = async {
        Sql::connect(settings.ledger.as_ref().unwrap()).await.execute(NEXT_VERSION).await;
    };
    tokio::join!(grant(&first, 0..100), upgrade);
    let second = start().await;
    tokio::join!(grant(&first, 100..200), grant(&second, 200..300));
    redis.run::<()>(&["FLUSHALL"]).await;
    for number in 0..300 {
        let again = until_some("the gate answers", async || {
            let reply = second.redeem("UPGRADE", &format!("user-{number}")).await;
            (reply.status != 503).then_some(reply)
        })
        .await;
        assert_eq!(again.status, 200, "{}", again.text);
    }
    let report = second.get("/v1/namespaces/default/consistency").await;
    assert_eq!(report.body["consistent"], true, "{}", report.text);
}

/// The backstops, whatever the gate and the sync may do wrong. SQL refuses them also from anybody else.
#[tokio::test(flavor = "multi_thread")]
async fn the_laws_hold_in_the_tables_themselves() {
    let directory = tempfile::tempdir().unwrap();
    let url = ledger::url_in(directory.path());
    ledger::open(&url).await.close().await;
    let mut sql = Sql::connect(&url).await;
    let invite = |id: u8, code: &str, uses: u8| {
        format!(
            "INSERT INTO invites (id, namespace, partition, code, grp, max_uses, uses, granted, starts_at, expires_at, disabled,
             user_id, email_domains, metadata, revision, created_at, updated_at, holds_code, epoch, seq, batch) VALUES ('00000000-0000-0000-0000-0000000000{id:02}', 'n', 0, '{code}', 'g', 2, {uses}, 0,
             NULL, NULL, FALSE, NULL, NULL, NULL, 1, 0, 0, TRUE, 1, {id}, NULL)"
        )
    };
    let redemption = |id: u8, user: &str, request: &str, ordinal: u8, exclusive: &str| {
        format!(
            "INSERT INTO redemptions (id, namespace, partition, invite, code, grp, user_id, request, ordinal, remaining,
             redeemed_at, exclusive_key, metadata, epoch, seq) VALUES ('00000000-0000-0000-0000-0000000000{id:02}', 'n', 0,
             '00000000-0000-0000-0000-000000000001', 'CODE', 'g', '{user}', '{request}', {ordinal}, 1, 0, {exclusive},
             NULL, 1, {id})"
        )
    };
    let member = |user: &str, group: &str| {
        format!("INSERT INTO members VALUES ('n', '{user}', '{group}', 0, NULL, 0, '*', 1, 1)")
    };
    for fine in [
        invite(1, "CODE", 2),
        redemption(11, "alice", "r1", 1, "'*'"),
        redemption(12, "bob", "r2", 2, "NULL"),
        member("alice", "g"),
    ] {
        sql.execute(&fine).await;
    }
    for (law, statement) in [
        ("no more uses than there are", invite(2, "OTHER", 3)),
        ("one invite holds a code", invite(3, "CODE", 0)),
        ("one live redemption a user", redemption(13, "alice", "r3", 3, "'*'")),
        ("one redemption a request", redemption(14, "bob", "r2", 4, "NULL")),
        ("one redemption a use", redemption(15, "carol", "r5", 2, "NULL")),
        ("one group a member", member("alice", "h")),
    ] {
        let refused = sql.try_execute(&statement).await.expect_err(law);
        let error = refused.as_database_error().unwrap();
        assert!(error.is_unique_violation() || error.is_check_violation(), "{law}: {error}");
    }
}

/// A node that counted as dead hands in what it had told after the others did, and after the leader has looked.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_ledger_has_is_not_waiting_to_be_written_down_again() {
    let directory = tempfile::tempdir().unwrap();
    let url = ledger::url_in(directory.path());
    let (ledger, _lease) = opened(&url).await;
    let mut sql = Sql::connect(&url).await;
    let id = |number: u8| format!("'00000000-0000-0000-0000-0000000000{number}'");
    sql.execute(&format!(
        "INSERT INTO redemptions (id, namespace, partition, invite, code, grp, user_id, request, ordinal, remaining,
         redeemed_at, exclusive_key, metadata, epoch, seq)
         VALUES ({}, 'n', 0, {}, 'CODE', 'g', 'alice', 'r1', 1, 1, 0, '*', NULL, 1, 1)",
        id(11),
        id(10)
    ))
    .await;
    for (number, user) in [(11, "alice"), (12, "bob")] {
        sql.execute(&format!(
            "INSERT INTO claims (id, node, namespace, partition, invite, code, grp, user_id, request, ordinal, remaining,
             redeemed_at, rule, actor, metadata, epoch, seq, outcome)
             VALUES ({}, 'late', 'n', 0, {}, 'CODE', 'g', '{user}', 'r{number}', {number}, 1, 0, 'one_group', 'test',
             NULL, 1, {number}, NULL)",
            id(number),
            id(10)
        ))
        .await;
    }
    let waiting = ledger.waiting_claims(Partition(0), 10).await.unwrap();
    let users: Vec<_> = waiting.iter().map(|one| one.claim.redemption.user.as_str()).collect();
    assert_eq!(users, ["bob"]);
    // Somebody who was erased meanwhile is not named by a claim either.
    sql.execute("UPDATE redemptions SET user_id = 'erased-1', request = 'id', metadata = NULL")
        .await;
    ledger.settle_known_claims(Partition(0)).await.unwrap();
    let known = "SELECT user_id || ' ' || request FROM claims WHERE outcome = 'known'";
    assert_eq!(sql.texts(known).await, ["erased-1 id"]);
}

/// A leader that was stopped in the middle of a transaction must not keep its partition from everybody else.
#[tokio::test(flavor = "multi_thread")]
async fn postgresql_ends_the_transaction_of_a_paused_leader() {
    let server = PostgresServer::start();
    let url = server.create_database("paused");
    let ledger = Ledger::open_postgres(&postgres_options(&url)).await.unwrap();
    ledger.deployment(1, Uuid::from_u128(1)).await.unwrap();
    // What a leader does first in a batch; then it is stopped. Its sessions have the limit of the options, shorter here.
    let with_time_out = format!("{url}&options=-c%20idle_in_transaction_session_timeout%3D200");
    let mut paused = Sql::connect(&with_time_out).await;
    paused.execute("BEGIN; UPDATE partitions SET cursor_seq = 7").await;
    eventually("somebody else gets the lease", async || {
        !ledger.take_leases("second", TTL, false).await.unwrap().is_empty()
    })
    .await;
    paused.try_execute("COMMIT").await.unwrap_err();
    assert_eq!(ledger.partition(Partition(0)).await.unwrap().cursor.seq, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_reached_over_tls_and_its_certificate_is_checked() {
    let server = PostgresServer::start_with_tls();
    server.create_database("tls");
    let url = |host: &str, mode: &str| {
        format!(
            "postgres://postgres@{host}:{}/tls?sslmode={mode}&sslrootcert={}",
            server.port(),
            server.certificate().display()
        )
    };
    let ledger = ledger::open(&url("localhost", "verify-full")).await;
    ledger.ping().await.unwrap();
    // The certificate is for localhost, and the server says no to whoever comes without TLS.
    for (host, mode) in [("127.0.0.1", "verify-full"), ("localhost", "disable")] {
        let error = Ledger::open_postgres(&postgres_options(&url(host, mode))).await.unwrap_err();
        assert!(matches!(error, LedgerError::Unavailable { .. }), "{host} {mode}: {error:?}");
    }
}

/// Whatever is asked of it at once, a node opens no more connections than it may.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_no_more_connections_of_postgresql_than_it_may() {
    let server = PostgresServer::start();
    let url = server.create_database("pool");
    let mut options = postgres_options(&url);
    options.connections_max = 6;
    let ledger = Ledger::open_postgres(&options).await.unwrap();
    ledger.deployment(1, Uuid::from_u128(1)).await.unwrap();
    let mut snapshots = Vec::new();
    for _ in 0..2 {
        let mut snapshot = ledger.snapshot(Partition(0)).await.unwrap();
        snapshot.next_page(1).await.unwrap();
        snapshots.push(snapshot);
    }
    let asked = (0..50).map(|number| {
        let ledger = ledger.clone();
        tokio::spawn(async move {
            ledger.beat(&format!("node-{number}"), TTL, false).await.unwrap();
            ledger.partitions().await.unwrap();
        })
    });
    futures_util::future::try_join_all(asked).await.unwrap();
    // Connections are kept, so that what was open at once is open still.
    let open = "SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = 'redeemer'";
    let open = Sql::connect(&url).await.number(open).await;
    assert!((4..=6).contains(&open), "{open}");
    drop(snapshots);
}
