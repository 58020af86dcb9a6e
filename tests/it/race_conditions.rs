//! What `docs/race-conditions.md` says, shown: an application that accepts invites with SQL alone, and the same with
//! redeemer. Where two transactions race, they are driven step by step, so that each ends as it must, every time.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;
use sqlx::{PgConnection, PgPool, Postgres, Transaction, postgres::PgPoolOptions};

use crate::support::{eventually, node::Node, postgres::shared_database};

/// The application's own tables.
const TABLES: &str = "
    CREATE TABLE users (id BIGINT PRIMARY KEY);
    CREATE TABLE invites (
        id BIGINT PRIMARY KEY,
        group_name TEXT NOT NULL,
        max_uses BIGINT NOT NULL,
        active BOOLEAN NOT NULL DEFAULT TRUE
    );
    CREATE TABLE used (
        invite BIGINT NOT NULL REFERENCES invites,
        user_id BIGINT NOT NULL REFERENCES users
    );
    CREATE TABLE memberships (
        user_id BIGINT NOT NULL REFERENCES users,
        group_name TEXT NOT NULL
    );
";

const LOCK: &str = "SELECT group_name, max_uses FROM invites WHERE id = $1 AND active FOR UPDATE";
const LOOK: &str = "SELECT group_name, max_uses FROM invites WHERE id = $1 AND active";
const COUNT: &str = "SELECT count(*) FROM used WHERE invite = $1";
const IS_MEMBER: &str = "SELECT EXISTS (SELECT FROM memberships WHERE user_id = $1)";
const JOIN: &str = "INSERT INTO memberships (user_id, group_name) VALUES ($1, $2)";
const JOIN_OR_NOT: &str =
    "INSERT INTO memberships (user_id, group_name) VALUES ($1, $2) ON CONFLICT DO NOTHING";
const USE: &str = "INSERT INTO used (invite, user_id) VALUES ($1, $2)";
const DEACTIVATE: &str = "UPDATE invites SET active = FALSE WHERE id = $1";
const SET_LIMIT: &str = "UPDATE invites SET max_uses = $2, active = FALSE WHERE id = $1";

const ONE_GROUP: &str = "ALTER TABLE memberships ADD UNIQUE (user_id)";

const ADD_COUNTER: &str = "
    ALTER TABLE invites ADD COLUMN uses BIGINT NOT NULL DEFAULT 0,
        ADD CHECK (uses <= max_uses)
";
const SPEND: &str = "UPDATE invites SET uses = uses + 1 WHERE id = $1 AND uses < max_uses";

const ADD_REQUEST: &str = "ALTER TABLE used ADD COLUMN request TEXT UNIQUE";
const BEFORE: &str = "SELECT user_id FROM used WHERE request = $1";
const USE_FOR_REQUEST: &str = "INSERT INTO used (invite, user_id, request) VALUES ($1, $2, $3)";

// Source: PostgreSQL documentation, appendix A, "Error Codes".
const UNIQUE_VIOLATION: &str = "23505";
const CHECK_VIOLATION: &str = "23514";
const SERIALIZATION_FAILURE: &str = "40001";
const DEADLOCK: &str = "40P01";

/// What the application tells a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    In,
    AllTaken,
    AlreadyMember,
}

/// The application: its database, and the steps of which it makes its transactions.
struct Application(PgPool);

impl Application {
    /// With users from 1 to 100.
    async fn start(database: &'static str) -> Self {
        let url = tokio::task::spawn_blocking(move || shared_database(database)).await.unwrap();
        let pool = PgPoolOptions::new().max_connections(50).connect(&url).await.unwrap();
        sqlx::raw_sql(TABLES).execute(&pool).await.unwrap();
        let application = Self(pool);
        application.alter("INSERT INTO users SELECT generate_series(1, 100)").await;
        application
    }

    async fn alter(&self, statement: &'static str) {
        sqlx::raw_sql(statement).execute(&self.0).await.unwrap();
    }

    async fn invite(&self, id: i64, group: &str, max_uses: i64) {
        let statement = "INSERT INTO invites (id, group_name, max_uses) VALUES ($1, $2, $3)";
        let query = sqlx::query(statement).bind(id).bind(group).bind(max_uses);
        query.execute(&self.0).await.unwrap();
    }

    async fn begin(&self) -> Transaction<'static, Postgres> {
        self.0.begin().await.unwrap()
    }

    async fn number(&self, question: &'static str) -> i64 {
        sqlx::query_scalar(question).fetch_one(&self.0).await.unwrap()
    }

    /// One user accepts, in one transaction, as the question has it.
    async fn accept(&self, invite: i64, user: i64) -> Answer {
        let mut transaction = self.begin().await;
        let Some((group, max_uses)) = look(&mut transaction, LOCK, invite).await else {
            return Answer::AllTaken;
        };
        let used = count(&mut transaction, invite).await;
        if is_member(&mut transaction, user).await {
            return Answer::AlreadyMember;
        }
        if used >= max_uses {
            return Answer::AllTaken;
        }
        join(&mut transaction, user, &group).await.unwrap();
        spend(&mut transaction, invite, user).await;
        if used + 1 == max_uses {
            deactivate(&mut transaction, invite).await;
        }
        transaction.commit().await.unwrap();
        Answer::In
    }

    /// Waits until the other transaction waits for somebody's lock.
    async fn waits_for_a_lock(&self, backend: i32) {
        eventually("it waits for a lock", async || {
            let question = "SELECT cardinality(pg_blocking_pids($1)) > 0";
            sqlx::query_scalar(question).bind(backend).fetch_one(&self.0).await.unwrap()
        })
        .await;
    }
}

/// The group and the limit of an active invite.
async fn look(
    connection: &mut PgConnection,
    statement: &'static str,
    invite: i64,
) -> Option<(String, i64)> {
    sqlx::query_as(statement).bind(invite).fetch_optional(connection).await.unwrap()
}

async fn count(connection: &mut PgConnection, invite: i64) -> i64 {
    sqlx::query_scalar(COUNT).bind(invite).fetch_one(connection).await.unwrap()
}

async fn is_member(connection: &mut PgConnection, user: i64) -> bool {
    sqlx::query_scalar(IS_MEMBER).bind(user).fetch_one(connection).await.unwrap()
}

async fn join(connection: &mut PgConnection, user: i64, group: &str) -> sqlx::Result<()> {
    sqlx::query(JOIN).bind(user).bind(group).execute(connection).await.map(drop)
}

async fn spend(connection: &mut PgConnection, invite: i64, user: i64) {
    sqlx::query(USE).bind(invite).bind(user).execute(connection).await.unwrap();
}

async fn deactivate(connection: &mut PgConnection, invite: i64) {
    sqlx::query(DEACTIVATE).bind(invite).execute(connection).await.unwrap();
}

async fn backend(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await.unwrap()
}

/// The code that PostgreSQL gives an error.
fn code_of(error: &sqlx::Error) -> String {
    error.as_database_error().unwrap().code().unwrap().into_owned()
}

async fn node() -> Node {
    tokio::task::spawn_blocking(Node::embedded).await.unwrap()
}

// Is the row lock enough?

#[tokio::test(flavor = "multi_thread")]
async fn the_row_lock_lets_in_exactly_n_of_fifty_clients() {
    let application = Application::start("races_row_lock").await;
    application.invite(1, "team", 20).await;
    let answers = join_all((1..=50).map(|user| application.accept(1, user))).await;
    let let_in = answers.iter().filter(|answer| **answer == Answer::In).count();
    let refused = answers.iter().filter(|answer| **answer == Answer::AllTaken).count();
    assert_eq!((let_in, refused), (20, 30));
    assert_eq!(application.number("SELECT count(*) FROM used").await, 20);
    assert_eq!(application.number("SELECT count(*) FROM invites WHERE active").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_lock_two_that_count_before_either_inserts_are_one_too_many() {
    let application = Application::start("races_no_lock").await;
    application.invite(1, "team", 1).await;
    let (mut one, mut two) = (application.begin().await, application.begin().await);
    for transaction in [&mut one, &mut two] {
        let (_, max_uses) = look(transaction, LOOK, 1).await.unwrap();
        assert!(count(transaction, 1).await < max_uses);
    }
    for (transaction, user) in [(&mut one, 1), (&mut two, 2)] {
        join(transaction, user, "team").await.unwrap();
        spend(transaction, 1, user).await;
    }
    for mut transaction in [one, two] {
        deactivate(&mut transaction, 1).await;
        transaction.commit().await.unwrap();
    }
    assert_eq!(application.number("SELECT count(*) FROM used").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_repeatable_read_the_count_behind_the_lock_is_an_old_one() {
    let application = Application::start("races_repeatable_read").await;
    application.invite(1, "team", 2).await;
    let mut transactions = Vec::new();
    for user in 1..=3 {
        let mut transaction = application.begin().await;
        sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            .execute(&mut *transaction)
            .await
            .unwrap();
        // Whatever is read first fixes what this transaction sees of all tables.
        assert!(!is_member(&mut transaction, user).await);
        transactions.push((transaction, user));
    }
    // One after the other: the lock does what it can.
    for (mut transaction, user) in transactions {
        look(&mut transaction, LOCK, 1).await.unwrap();
        assert_eq!(count(&mut transaction, 1).await, 0);
        join(&mut transaction, user, "team").await.unwrap();
        spend(&mut transaction, 1, user).await;
        transaction.commit().await.unwrap();
    }
    assert_eq!(application.number("SELECT count(*) FROM used").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_count_inside_the_statement_that_locks_is_as_old_as_its_waiting() {
    let application = Application::start("races_count_in_lock").await;
    application.invite(1, "team", 2).await;
    let (mut one, mut two) = (application.begin().await, application.begin().await);
    look(&mut one, LOCK, 1).await.unwrap();
    let two_backend = backend(&mut two).await;
    let waiting = tokio::spawn(async move {
        let statement = "SELECT (SELECT count(*) FROM used WHERE invite = $1) FROM invites WHERE id = $1 FOR UPDATE";
        let seen: i64 =
            sqlx::query_scalar(statement).bind(1_i64).fetch_one(&mut *two).await.unwrap();
        (seen, count(&mut two, 1).await)
    });
    application.waits_for_a_lock(two_backend).await;
    spend(&mut one, 1, 1).await;
    one.commit().await.unwrap();
    assert_eq!(waiting.await.unwrap(), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_changes_the_limit_without_the_lock_makes_it_wrong_for_all() {
    let application = Application::start("races_other_path").await;
    application.invite(1, "team", 3).await;
    assert_eq!(application.accept(1, 1).await, Answer::In);
    // An administrator lowers the limit to what is used; meanwhile somebody accepts.
    let mut admin = application.begin().await;
    assert_eq!(count(&mut admin, 1).await, 1);
    assert_eq!(application.accept(1, 2).await, Answer::In);
    sqlx::query(SET_LIMIT).bind(1_i64).bind(1_i64).execute(&mut *admin).await.unwrap();
    admin.commit().await.unwrap();
    assert_eq!(application.number("SELECT max_uses FROM invites").await, 1);
    assert_eq!(application.number("SELECT count(*) FROM used").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn once_that_path_takes_the_lock_too_the_others_wait_and_see_the_new_limit() {
    let application = Application::start("races_every_path").await;
    application.invite(1, "team", 3).await;
    assert_eq!(application.accept(1, 1).await, Answer::In);
    let mut admin = application.begin().await;
    look(&mut admin, LOCK, 1).await.unwrap();
    assert_eq!(count(&mut admin, 1).await, 1);
    let mut late = application.begin().await;
    let late_backend = backend(&mut late).await;
    let waiting = tokio::spawn(async move { look(&mut late, LOCK, 1).await });
    application.waits_for_a_lock(late_backend).await;
    sqlx::query(SET_LIMIT).bind(1_i64).bind(1_i64).execute(&mut *admin).await.unwrap();
    admin.commit().await.unwrap();
    assert_eq!(waiting.await.unwrap(), None);
    assert_eq!(application.number("SELECT count(*) FROM used").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn redeemer_lowers_a_limit_in_the_middle_of_a_rush_and_is_never_above_it() {
    let node = node().await;
    let id = node.invite("RUSH", "team", 40).await;
    let path = format!("/v1/namespaces/default/invites/{id}");
    let users: Vec<_> = (0..50).map(|number| format!("user-{number}")).collect();
    let rush = join_all(users.iter().map(|user| node.redeem("RUSH", user)));
    let lower = async {
        for limit in (5..40).rev().step_by(5) {
            let told = node.send(Method::PATCH, &path, &json!({"max_uses": limit})).await;
            let is_refused = (told.status, told.code()) == (409, "limit_below_used");
            assert!(told.status == 200 || is_refused, "{}", told.text);
        }
    };
    let (answers, ()) = tokio::join!(rush, lower);
    let let_in = answers.iter().filter(|answer| answer.status == 201).count() as u64;
    let invite = node.get(&path).await.body;
    assert_eq!(invite["uses"], let_in);
    assert!(let_in <= invite["max_uses"].as_u64().unwrap(), "{invite}");
}

// A query or an attribute?

/// Two transactions of user 1, each with the lock of another invite, and both know that the user has no group.
async fn two_codes_at_once(
    application: &Application,
) -> (Transaction<'static, Postgres>, Transaction<'static, Postgres>) {
    application.invite(1, "red", 10).await;
    application.invite(2, "blue", 10).await;
    let (mut red, mut blue) = (application.begin().await, application.begin().await);
    for (transaction, invite) in [(&mut red, 1), (&mut blue, 2)] {
        look(transaction, LOCK, invite).await.unwrap();
        assert!(!is_member(transaction, 1).await);
    }
    (red, blue)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_with_two_codes_joins_two_groups_where_only_a_query_forbids_it() {
    let application = Application::start("races_two_codes").await;
    let (mut red, mut blue) = two_codes_at_once(&application).await;
    join(&mut red, 1, "red").await.unwrap();
    join(&mut blue, 1, "blue").await.unwrap();
    spend(&mut red, 1, 1).await;
    spend(&mut blue, 2, 1).await;
    red.commit().await.unwrap();
    blue.commit().await.unwrap();
    assert_eq!(application.number("SELECT count(*) FROM memberships").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_unique_constraint_the_second_group_is_an_error() {
    let application = Application::start("races_unique").await;
    application.alter(ONE_GROUP).await;
    let (mut red, mut blue) = two_codes_at_once(&application).await;
    join(&mut red, 1, "red").await.unwrap();
    // The second insert waits until the first is decided.
    let blue_backend = backend(&mut blue).await;
    let waiting = tokio::spawn(async move { join(&mut blue, 1, "blue").await });
    application.waits_for_a_lock(blue_backend).await;
    spend(&mut red, 1, 1).await;
    red.commit().await.unwrap();
    // Nobody expected it, so the user sees an error 500.
    assert_eq!(code_of(&waiting.await.unwrap().unwrap_err()), UNIQUE_VIOLATION);
    assert_eq!(application.number("SELECT count(*) FROM memberships").await, 1);
    assert_eq!(application.number("SELECT count(*) FROM used").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_conflict_do_nothing_makes_an_answer_of_that_error() {
    let application = Application::start("races_on_conflict").await;
    application.alter(ONE_GROUP).await;
    let (mut red, mut blue) = two_codes_at_once(&application).await;
    join(&mut red, 1, "red").await.unwrap();
    let blue_backend = backend(&mut blue).await;
    let waiting = tokio::spawn(async move {
        let query = sqlx::query(JOIN_OR_NOT).bind(1_i64).bind("blue");
        query.execute(&mut *blue).await.unwrap().rows_affected()
    });
    application.waits_for_a_lock(blue_backend).await;
    spend(&mut red, 1, 1).await;
    red.commit().await.unwrap();
    // No row means: a member already. What the transaction did before is rolled back, or was not done yet.
    assert_eq!(waiting.await.unwrap(), 0);
    assert_eq!(application.number("SELECT count(*) FROM used").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn redeemer_answers_one_user_with_two_codes_by_one_201_and_one_409() {
    let node = node().await;
    node.invite("RED", "red", 10).await;
    node.invite("BLUE", "blue", 10).await;
    let (red, blue) = tokio::join!(node.redeem("RED", "alice"), node.redeem("BLUE", "alice"));
    let (won, lost) = if red.status == 201 { (red, blue) } else { (blue, red) };
    assert_eq!(won.status, 201, "{}", won.text);
    assert_eq!((lost.status, lost.code()), (409, "already_member"), "{}", lost.text);
    assert_eq!(lost.body["group"], won.body["group"]);
}

// Should more tables be locked?

#[tokio::test(flavor = "multi_thread")]
async fn two_locks_in_two_orders_are_a_deadlock() {
    const LOCK_USER: &str = "SELECT id FROM users WHERE id = $1 FOR UPDATE";
    let application = Application::start("races_deadlock").await;
    application.invite(1, "team", 10).await;
    let (mut one, mut two) = (application.begin().await, application.begin().await);
    look(&mut one, LOCK, 1).await.unwrap();
    sqlx::query(LOCK_USER).bind(1_i64).execute(&mut *two).await.unwrap();
    let one_backend = backend(&mut one).await;
    let first = tokio::spawn(async move {
        sqlx::query(LOCK_USER).bind(1_i64).execute(&mut *one).await.map(drop)
    });
    application.waits_for_a_lock(one_backend).await;
    let second = sqlx::query(LOCK).bind(1_i64).execute(&mut *two).await.map(drop);
    // Whoever was ended has let go of its lock, so the other one went on.
    let results = [first.await.unwrap(), second];
    let ended: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert_eq!(ended.iter().map(|error| code_of(error)).collect::<Vec<_>>(), [DEADLOCK]);
}

// How to test it is what this file does. What else?

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_with_a_condition_is_exact_without_select_for_update() {
    let application = Application::start("races_counter").await;
    application.alter(ADD_COUNTER).await;
    application.invite(1, "team", 20).await;
    let spent = join_all((1..=50).map(|user| {
        let application = &application;
        async move {
            let mut transaction = application.begin().await;
            let query = sqlx::query(SPEND).bind(1_i64);
            let is_mine = query.execute(&mut *transaction).await.unwrap().rows_affected() == 1;
            if is_mine {
                spend(&mut transaction, 1, user).await;
                transaction.commit().await.unwrap();
            }
            is_mine
        }
    }))
    .await;
    assert_eq!(spent.iter().filter(|is_mine| **is_mine).count(), 20);
    assert_eq!(application.number("SELECT uses FROM invites").await, 20);
    assert_eq!(application.number("SELECT count(*) FROM used").await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_constraint_stops_whoever_forgets_the_condition() {
    let application = Application::start("races_check").await;
    application.alter(ADD_COUNTER).await;
    application.invite(1, "team", 1).await;
    let forgetful = "UPDATE invites SET uses = uses + 1 WHERE id = 1";
    application.alter(forgetful).await;
    let error = sqlx::query(forgetful).execute(&application.0).await.unwrap_err();
    assert_eq!(code_of(&error), CHECK_VIOLATION);
}

#[tokio::test(flavor = "multi_thread")]
async fn serializable_needs_no_lock_but_one_of_two_must_begin_again() {
    let application = Application::start("races_serializable").await;
    application.invite(1, "team", 1).await;
    let (mut one, mut two) = (application.begin().await, application.begin().await);
    for transaction in [&mut one, &mut two] {
        sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            .execute(&mut **transaction)
            .await
            .unwrap();
        assert_eq!(count(transaction, 1).await, 0);
    }
    spend(&mut one, 1, 1).await;
    spend(&mut two, 1, 2).await;
    one.commit().await.unwrap();
    assert_eq!(code_of(&two.commit().await.unwrap_err()), SERIALIZATION_FAILURE);
    assert_eq!(application.number("SELECT count(*) FROM used").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_again_after_a_lost_reply_is_refused_by_sql() {
    let application = Application::start("races_lost_reply").await;
    application.invite(1, "team", 10).await;
    // It was committed; the answer never arrived; so the same request comes again.
    assert_eq!(application.accept(1, 1).await, Answer::In);
    assert_eq!(application.accept(1, 1).await, Answer::AlreadyMember);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_request_stored_sql_gives_the_repeat_its_first_answer() {
    let application = Application::start("races_stored_request").await;
    application.alter(ADD_REQUEST).await;
    application.invite(1, "team", 10).await;
    let accept = async |user: i64, request: &'static str| {
        let mut transaction = application.begin().await;
        let (group, _) = look(&mut transaction, LOCK, 1).await.unwrap();
        let before: Option<i64> = sqlx::query_scalar(BEFORE)
            .bind(request)
            .fetch_optional(&mut *transaction)
            .await
            .unwrap();
        if before == Some(user) {
            return Answer::In;
        }
        join(&mut transaction, user, &group).await.unwrap();
        let query = sqlx::query(USE_FOR_REQUEST).bind(1_i64).bind(user).bind(request);
        query.execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
        Answer::In
    };
    assert_eq!(accept(1, "signup-4711").await, Answer::In);
    assert_eq!(accept(1, "signup-4711").await, Answer::In);
    assert_eq!(application.number("SELECT count(*) FROM used").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn redeemer_answers_a_repeat_with_the_redemption_that_it_made_before() {
    let node = node().await;
    let id = node.invite("SPRING", "team", 10).await;
    let first = node.try_redeem("SPRING", "alice", "signup-4711").await.unwrap();
    let again = node.try_redeem("SPRING", "alice", "signup-4711").await.unwrap();
    assert_eq!((first.status, again.status), (201, 200), "{}", again.text);
    assert_eq!(again.body["id"], first.body["id"]);
    assert_eq!(again.body["replayed"], true);
    let invite = node.get(&format!("/v1/namespaces/default/invites/{id}")).await.body;
    assert_eq!(invite["uses"], 1);
}
