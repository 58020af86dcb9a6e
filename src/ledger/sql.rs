//! One SQL for two databases: a statement with its values, run on SQLite or on PostgreSQL, and the rows that come back.
//!
//! Statements are written once, in what both understand, with `$1` for values. Where they differ, [`Dialect`] has the
//! word; rows in bulk go to SQLite as `VALUES` and to PostgreSQL as one array per column.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Error, PgPool, Postgres, Row as _, Sqlite, SqlitePool, Transaction,
    postgres::{PgArguments, PgRow},
    query::Query as Statement,
    sqlite::{SqliteArguments, SqliteRow},
};
use uuid::Uuid;

use super::LedgerError;
use crate::trace;

/// Rows of one statement that SQLite is given. More would save little, and each number of rows is a statement of its own
/// to prepare and keep.
const SQLITE_ROWS_MAX: usize = 128;

/// Where two databases differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// The moment by the clock of the database, in milliseconds since 1970; in PostgreSQL not that at which the
    /// transaction began.
    pub(super) fn now_ms(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
            Self::Postgres => "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }

    /// The function that returns the greatest of its arguments.
    pub(super) fn greatest(self) -> &'static str {
        match self {
            Self::Sqlite => "MAX",
            Self::Postgres => "GREATEST",
        }
    }

    /// Locks the rows that a subquery finds, and passes over those that somebody else is writing. SQLite has one writer
    /// at a time anyway.
    pub(super) fn for_update_skip_locked(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => "FOR UPDATE SKIP LOCKED",
        }
    }

    /// Names the index for a table where the planner of SQLite would choose another, that keeps no order.
    pub(super) fn indexed_by(self, index: &'static str) -> String {
        match self {
            Self::Sqlite => format!("INDEXED BY {index}"),
            Self::Postgres => String::new(),
        }
    }

    /// How many of so many rows go into the next statement. SQLite gets a power of two, so that a few statements, which
    /// it has to parse only once, do for any number of rows.
    pub(super) fn rows_at_once(self, rows: usize) -> usize {
        match self {
            Self::Sqlite => rows.checked_ilog2().map_or(0, |log| 1 << log).min(SQLITE_ROWS_MAX),
            Self::Postgres => rows,
        }
    }
}

/// A value of a statement; each knows its type also when it is null.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    /// Text in SQLite.
    Id(Option<Uuid>),
    Bool(bool),
    Bytes(Vec<u8>),
}

macro_rules! value_from {
    ($($type:ty => |$from:ident| $value:expr),* $(,)?) => {
        $(impl From<$type> for Value { fn from($from: $type) -> Self { $value } })*
    };
}

value_from! {
    i64 => |number| Self::Int(Some(number)),
    Option<i64> => |number| Self::Int(number),
    // Counts are bounded far below 2^63 where they come in.
    u64 => |number| Self::Int(Some(i64::try_from(number).unwrap_or(i64::MAX))),
    Option<u64> => |number| number.map_or(Self::Int(None), Self::from),
    u32 => |number| Self::Int(Some(number.into())),
    u16 => |number| Self::Int(Some(number.into())),
    Option<u16> => |number| Self::Int(number.map(i64::from)),
    bool => |flag| Self::Bool(flag),
    &str => |text| Self::Text(Some(text.to_owned())),
    String => |text| Self::Text(Some(text)),
    Option<&str> => |text| Self::Text(text.map(ToOwned::to_owned)),
    Option<String> => |text| Self::Text(text),
    Uuid => |id| Self::Id(Some(id)),
    Option<Uuid> => |id| Self::Id(id),
    Vec<u8> => |bytes| Self::Bytes(bytes),
}

/// A statement and its values.
#[derive(Debug)]
pub(super) struct Query {
    text: String,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Single(Vec<Value>),
    /// Rows of one shape, for a statement that was made by [`bulk`].
    Rows(Vec<Vec<Value>>),
}

/// A statement, with `$1` for its first value.
pub(super) fn sql(text: impl Into<String>) -> Query {
    Query { text: text.into(), values: Values::Single(Vec::new()) }
}

/// A statement about many rows: `head`, then the rows as a table, then `tail`.
pub(super) fn bulk(dialect: Dialect, head: &str, rows: Vec<Vec<Value>>, tail: &str) -> Query {
    let columns = rows.first().map_or(0, Vec::len);
    let source = match dialect {
        Dialect::Postgres => {
            let arrays: Vec<_> = (1..=columns).map(|n| format!("${n}")).collect();
            format!("SELECT * FROM UNNEST({})", arrays.join(", "))
        }
        Dialect::Sqlite => {
            let row = format!("({})", vec!["?"; columns].join(", "));
            format!("VALUES {}", vec![row; rows.len()].join(", "))
        }
    };
    Query { text: format!("{head}{source}{tail}"), values: Values::Rows(rows) }
}

impl Query {
    /// Gives the next value.
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        if let Values::Single(values) = &mut self.values {
            values.push(value.into());
        }
        self
    }

    /// Adds to the text.
    pub(super) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Adds a value and the `$n` that stands for it.
    pub(super) fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        if let Values::Single(values) = &mut self.values {
            values.push(value.into());
            self.text = format!("{}${}", self.text, values.len());
        }
        self
    }

    /// Adds values with commas between them.
    pub(super) fn push_list<V: Into<Value>>(
        &mut self,
        values: impl Iterator<Item = V>,
    ) -> &mut Self {
        for (place, value) in values.enumerate() {
            self.push(if place == 0 { "" } else { ", " }).push_bind(value);
        }
        self
    }

    /// Runs it; returns how many rows it changed.
    pub(super) async fn execute(self, on: impl Into<On<'_>>) -> Result<u64, Error> {
        let on = on.into();
        trace::around(trace::sql(on.system(), &self.text), self.run_on(on)).await
    }

    async fn run_on(self, on: On<'_>) -> Result<u64, Error> {
        Ok(match on {
            On::Sqlite(pool) => self.for_sqlite().execute(pool).await?.rows_affected(),
            On::SqliteTx(tx) => self.for_sqlite().execute(&mut **tx).await?.rows_affected(),
            On::Postgres(pool, limit) => {
                within(limit, self.for_postgres().execute(pool)).await?.rows_affected()
            }
            On::PostgresTx(tx, limit) => {
                within(limit, self.for_postgres().execute(&mut **tx)).await?.rows_affected()
            }
        })
    }

    /// Runs it; returns all rows.
    pub(super) async fn fetch_all(self, on: impl Into<On<'_>>) -> Result<Vec<Row>, Error> {
        let on = on.into();
        trace::around(trace::sql(on.system(), &self.text), self.fetch_from(on)).await
    }

    async fn fetch_from(self, on: On<'_>) -> Result<Vec<Row>, Error> {
        Ok(match on {
            On::Sqlite(pool) => wrap(self.for_sqlite().fetch_all(pool).await?, Row::Sqlite),
            On::SqliteTx(tx) => wrap(self.for_sqlite().fetch_all(&mut **tx).await?, Row::Sqlite),
            On::Postgres(pool, limit) => {
                wrap(within(limit, self.for_postgres().fetch_all(pool)).await?, Row::Postgres)
            }
            On::PostgresTx(tx, limit) => {
                wrap(within(limit, self.for_postgres().fetch_all(&mut **tx)).await?, Row::Postgres)
            }
        })
    }

    /// Runs it; returns the row, if there is one.
    pub(super) async fn fetch_optional(self, on: impl Into<On<'_>>) -> Result<Option<Row>, Error> {
        Ok(self.fetch_all(on).await?.into_iter().next())
    }

    /// Runs it; returns the row.
    pub(super) async fn fetch_one(self, on: impl Into<On<'_>>) -> Result<Row, Error> {
        self.fetch_optional(on).await?.ok_or(Error::RowNotFound)
    }

    fn for_sqlite(self) -> Statement<'static, Sqlite, SqliteArguments> {
        let statement = sqlx::query(AssertSqlSafe(self.text));
        let values = match self.values {
            Values::Single(values) => values,
            Values::Rows(rows) => rows.into_iter().flatten().collect(),
        };
        values.into_iter().fold(statement, |statement, value| match value {
            Value::Int(number) => statement.bind(number),
            Value::Text(text) => statement.bind(text),
            Value::Id(id) => statement.bind(id.map(|id| id.to_string())),
            Value::Bool(flag) => statement.bind(flag),
            Value::Bytes(bytes) => statement.bind(bytes),
        })
    }

    fn for_postgres(self) -> Statement<'static, Postgres, PgArguments> {
        let statement = sqlx::query(AssertSqlSafe(self.text));
        match self.values {
            Values::Single(values) => {
                values.into_iter().fold(statement, |statement, value| match value {
                    Value::Int(number) => statement.bind(number),
                    Value::Text(text) => statement.bind(text),
                    Value::Id(id) => statement.bind(id),
                    Value::Bool(flag) => statement.bind(flag),
                    Value::Bytes(bytes) => statement.bind(bytes),
                })
            }
            Values::Rows(rows) => columns(rows).into_iter().fold(statement, bind_column),
        }
    }
}

/// Rows as columns.
fn columns(rows: Vec<Vec<Value>>) -> Vec<Vec<Value>> {
    let mut columns: Vec<Vec<Value>> = Vec::new();
    columns.resize_with(rows.first().map_or(0, Vec::len), || Vec::with_capacity(rows.len()));
    for row in rows {
        for (column, value) in columns.iter_mut().zip(row) {
            column.push(value);
        }
    }
    columns
}

/// Binds a column as an array of the type that its first value has.
fn bind_column(
    statement: Statement<'static, Postgres, PgArguments>,
    column: Vec<Value>,
) -> Statement<'static, Postgres, PgArguments> {
    macro_rules! array {
        ($variant:ident) => {{
            let array: Vec<_> = column
                .into_iter()
                .filter_map(|value| match value {
                    Value::$variant(value) => Some(value),
                    _ => None,
                })
                .collect();
            statement.bind(array)
        }};
    }
    match column.first() {
        Some(Value::Int(_)) | None => array!(Int),
        Some(Value::Text(_)) => array!(Text),
        Some(Value::Id(_)) => array!(Id),
        Some(Value::Bool(_)) => array!(Bool),
        Some(Value::Bytes(_)) => array!(Bytes),
    }
}

fn wrap<T>(rows: Vec<T>, wrap: fn(T) -> Row) -> Vec<Row> {
    rows.into_iter().map(wrap).collect()
}

/// A server that is gone without a word must not be waited for without end.
async fn within<T>(
    limit: Duration,
    run: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(limit, run).await.unwrap_or_else(|_| {
        let text = format!("no answer within {} s", limit.as_secs());
        Err(Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text)))
    })
}

/// Connections to the database.
#[derive(Debug, Clone)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    /// With the longest that an answer is waited for.
    Postgres(PgPool, Duration),
}

/// A transaction; dropped without a commit, nothing of it happened.
pub(super) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>, Duration),
}

/// What a statement runs on.
pub(super) enum On<'a> {
    Sqlite(&'a SqlitePool),
    SqliteTx(&'a mut Transaction<'static, Sqlite>),
    Postgres(&'a PgPool, Duration),
    PostgresTx(&'a mut Transaction<'static, Postgres>, Duration),
}

impl On<'_> {
    /// What OpenTelemetry calls the database. Source: its semantic conventions, `db.system.name`.
    fn system(&self) -> &'static str {
        match self {
            Self::Sqlite(_) | Self::SqliteTx(_) => "sqlite",
            Self::Postgres(..) | Self::PostgresTx(..) => "postgresql",
        }
    }
}

impl<'a> From<&'a Pool> for On<'a> {
    fn from(pool: &'a Pool) -> Self {
        match pool {
            Pool::Sqlite(pool) => On::Sqlite(pool),
            Pool::Postgres(pool, limit) => On::Postgres(pool, *limit),
        }
    }
}

impl<'a> From<&'a mut Tx> for On<'a> {
    fn from(tx: &'a mut Tx) -> Self {
        match tx {
            Tx::Sqlite(tx) => On::SqliteTx(tx),
            Tx::Postgres(tx, limit) => On::PostgresTx(tx, *limit),
        }
    }
}

impl Pool {
    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(..) => Dialect::Postgres,
        }
    }

    /// Begins a transaction that will write.
    pub(super) async fn begin(&self) -> Result<Tx, Error> {
        Ok(match self {
            // IMMEDIATE, or two that have read would wait for each other.
            Self::Sqlite(pool) => Tx::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres(pool, limit) => {
                Tx::Postgres(within(*limit, pool.begin()).await?, *limit)
            }
        })
    }

    /// Begins a transaction that reads everything as it was at one moment.
    pub(super) async fn begin_snapshot(&self) -> Result<Tx, Error> {
        const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
        Ok(match self {
            Self::Sqlite(pool) => Tx::Sqlite(pool.begin().await?),
            Self::Postgres(pool, limit) => {
                Tx::Postgres(within(*limit, pool.begin_with(SNAPSHOT)).await?, *limit)
            }
        })
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool, _) => pool.close().await,
        }
    }
}

impl Tx {
    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(..) => Dialect::Postgres,
        }
    }

    pub(super) async fn commit(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx, limit) => within(limit, tx.commit()).await,
        }
    }
}

/// A row that is read column by column; anything unexpected is [`LedgerError::Corrupt`]. What the columns of our tables
/// mean is in `columns`.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    pub(super) fn get<'r, T>(&'r self, name: &'static str) -> Result<T, LedgerError>
    where
        T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>,
        T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
    {
        let value = match self {
            Self::Sqlite(row) => row.try_get(name),
            Self::Postgres(row) => row.try_get(name),
        };
        value.map_err(|error| LedgerError::Corrupt(format!("column {name}: {error}")))
    }

    pub(super) fn maybe_id(&self, name: &'static str) -> Result<Option<Uuid>, LedgerError> {
        let corrupt =
            |error: &dyn std::fmt::Display| LedgerError::Corrupt(format!("column {name}: {error}"));
        match self {
            Self::Sqlite(row) => {
                let text: Option<&str> = row.try_get(name).map_err(|error| corrupt(&error))?;
                text.map(Uuid::parse_str).transpose().map_err(|error| corrupt(&error))
            }
            Self::Postgres(row) => row.try_get(name).map_err(|error| corrupt(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_to_sqlite_as_values_and_to_postgres_as_columns() {
        let rows = || vec![vec![Value::from(1_u64), Value::from("a")]; 3];
        let query = bulk(Dialect::Sqlite, "INSERT INTO t ", rows(), " ON CONFLICT DO NOTHING");
        assert_eq!(
            query.text,
            "INSERT INTO t VALUES (?, ?), (?, ?), (?, ?) ON CONFLICT DO NOTHING"
        );
        let query = bulk(Dialect::Postgres, "INSERT INTO t ", rows(), "");
        assert_eq!(query.text, "INSERT INTO t SELECT * FROM UNNEST($1, $2)");
        assert_eq!(columns(rows()).iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
    }

    #[test]
    fn any_number_of_rows_goes_to_sqlite_in_a_few_sizes() {
        let mut left = 300;
        let mut sizes = Vec::new();
        while left > 0 {
            sizes.push(Dialect::Sqlite.rows_at_once(left));
            left -= sizes[sizes.len() - 1];
        }
        assert_eq!(sizes, [128, 128, 32, 8, 4]);
        assert_eq!(Dialect::Postgres.rows_at_once(300), 300);
    }

    #[test]
    fn values_are_numbered_as_they_are_pushed() {
        let mut query = sql("SELECT * FROM t WHERE a = $1").bind("x");
        query.push(" AND b < ").push_bind(7_u64).push(" AND c = ").push_bind(true);
        assert_eq!(query.text, "SELECT * FROM t WHERE a = $1 AND b < $2 AND c = $3");
    }
}
