//! The ledger of a test, seen with SQL; in SQLite, or with `TEST_LEDGER=postgres` in PostgreSQL.

use std::{path::Path, time::Duration};

use redeemer::ledger::{Ledger, LedgerError, PostgresOptions, SqliteOptions};
use sqlx::{Any, AnyConnection, AssertSqlSafe, Connection as _, any::AnyRow};

use super::postgres;

/// The URL of the ledger that belongs to a directory.
pub fn url_in(directory: &Path) -> String {
    match std::env::var("TEST_LEDGER").as_deref() {
        Ok("postgres") => {
            let name: String = directory.to_string_lossy().replace(['/', '.'], "_");
            // Longer names are cut. Source: PostgreSQL documentation, "Identifiers and Key Words".
            postgres::shared_database(&name[name.len().saturating_sub(63)..])
        }
        Ok(other) if other != "sqlite" => panic!("TEST_LEDGER is sqlite or postgres, not {other}"),
        _ => sqlite_url_in(directory),
    }
}

pub fn sqlite_url_in(directory: &Path) -> String {
    format!("sqlite:{}", directory.join("ledger.sqlite").display())
}

/// Opens it as a node does.
pub async fn open(url: &str) -> Ledger {
    try_open(url).await.unwrap()
}

pub async fn try_open(url: &str) -> Result<Ledger, LedgerError> {
    match url.strip_prefix("sqlite:") {
        Some(path) => {
            let options = SqliteOptions {
                path: path.into(),
                connections_max: 4,
                busy_timeout: Duration::from_secs(30),
            };
            Ledger::open_sqlite(&options).await
        }
        None => Ledger::open_postgres(&postgres_options(url)).await,
    }
}

pub fn postgres_options(url: &str) -> PostgresOptions {
    PostgresOptions {
        url: url.into(),
        connections_max: 8,
        connect_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_secs(4),
    }
}

/// A connection beside the program's own.
pub struct Sql(AnyConnection);

impl Sql {
    pub async fn connect(url: &str) -> Self {
        sqlx::any::install_default_drivers();
        let mut sql = Self(AnyConnection::connect(url).await.unwrap());
        if url.starts_with("sqlite") {
            // As long as tests are patient: whoever waits for a lock there may be passed by others.
            sql.execute("PRAGMA busy_timeout = 60000").await;
        }
        sql
    }

    pub async fn execute(&mut self, statement: &str) {
        self.try_execute(statement).await.unwrap();
    }

    pub async fn try_execute(&mut self, statement: &str) -> sqlx::Result<()> {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.0).await.map(drop)
    }

    pub async fn rows(&mut self, statement: &str) -> Vec<AnyRow> {
        sqlx::query(AssertSqlSafe(statement)).fetch_all(&mut self.0).await.unwrap()
    }

    /// The one number that a statement finds.
    pub async fn number(&mut self, statement: &str) -> i64 {
        self.value(statement).await
    }

    /// The one column of all rows, as text.
    pub async fn texts(&mut self, statement: &str) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(statement)).fetch_all(&mut self.0).await.unwrap()
    }

    async fn value<T>(&mut self, statement: &str) -> T
    where
        T: Send + Unpin,
        (T,): for<'r> sqlx::FromRow<'r, AnyRow>,
    {
        sqlx::query_scalar::<Any, T>(AssertSqlSafe(statement)).fetch_one(&mut self.0).await.unwrap()
    }

    /// Lets nobody else write until [`Self::let_go`].
    pub async fn hold(&mut self) {
        if self.0.backend_name() == "SQLite" {
            self.execute("BEGIN IMMEDIATE").await;
        } else {
            self.execute("BEGIN").await;
            self.execute("LOCK TABLE partitions IN EXCLUSIVE MODE").await;
        }
    }

    pub async fn let_go(&mut self) {
        self.execute("ROLLBACK").await;
    }
}
