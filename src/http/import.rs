//! `POST …/import/{invites,members}` takes over what was made elsewhere, line by line, NDJSON or CSV, whatever the size.
//!
//! The answer is NDJSON and begins at once. While the body is read it says now and then how far that is; then comes every
//! bad line with its number and its reason, and a summary last. Bad lines wait in a file meanwhile: a client that reads
//! only when it has sent everything must not be waited for by a service that waits for it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead as _, BufReader, BufWriter, Seek as _, SeekFrom, Write as _},
    sync::Arc,
    time::Duration,
};

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    State,
    body::{Body, Presence},
    invites::{email_domains, taken},
    problem::{Code, Problem},
    redemptions::settings_of,
    scope::Scope,
};
use crate::{
    domain::{
        Group, Millis, Namespace, Position, Positions, Refusal, Settings, UserId,
        invite::MAX_USES_MAX,
    },
    gate::{
        GateError,
        import_invites::{ImportInvites, Imported, ImportedInvite, InviteImport},
        import_members::{ImportMembers, MemberImport},
    },
    sync::{chain, unquoted},
};

/// Lines of one call of the gate.
const CALL_LINES: usize = 200;
/// The longest line, in bytes; one with the largest metadata has some 6000.
const LINE_BYTES_MAX: usize = 32 * 1024;
/// Bad lines after which an import stops: then it is not the lines that are wrong.
const BAD_LINES_MAX: u64 = 100_000;
/// Lines that the gate may be ahead of the ledger: what is redeemed meanwhile waits behind them.
const AHEAD_MAX: u64 = 5000;
/// How often it is said how far it is.
const TELL: Duration = Duration::from_secs(1);
/// How long the gate or the ledger may be away.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long is waited before the gate is asked again.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Invites,
    Members,
}

impl What {
    /// What a line needs, and what it may have besides.
    fn columns(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Invites => (
                &["code", "group", "max_uses"],
                &[
                    "uses",
                    "max_uses_per_user",
                    "starts_at",
                    "expires_at",
                    "disabled",
                    "user",
                    "email_domains",
                    "metadata",
                ],
            ),
            Self::Members => (&["user", "group"], &["joined_at"]),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Csv,
    Ndjson,
}

pub(super) async fn invites(
    state: web::Data<State>,
    scope: Scope,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    start(What::Invites, state, scope, &http, payload).await
}

pub(super) async fn members(
    state: web::Data<State>,
    scope: Scope,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    start(What::Members, state, scope, &http, payload).await
}

async fn start(
    what: What,
    state: web::Data<State>,
    scope: Scope,
    http: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let media_type = http.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let format = match media_type.to_ascii_lowercase().as_str() {
        "text/csv" => Format::Csv,
        "application/x-ndjson" => Format::Ndjson,
        _ => {
            return Err(Problem::new(
                Code::UnsupportedMediaType,
                "Send lines with Content-Type: application/x-ndjson or text/csv.",
            ));
        }
    };
    let settings = settings_of(&state, &scope.namespace).await?;
    let Ok(permit) = state.imports.clone().try_acquire_owned() else {
        return Err(Problem::new(
            Code::Overloaded,
            "This node takes as many imports at once as it may. Nothing was done; try again soon.",
        ));
    };
    let mut lines = Lines { payload, names: None, waiting: Vec::new(), at: 0, line: 0, bytes: 0 };
    if format == Format::Csv {
        lines.read_names(what, state.import_bytes_max, state.request_timeout).await?;
    }
    let unusable = |error: io::Error| Problem::internal("making a file for bad lines", &error);
    let run = Import {
        what,
        lines,
        state,
        scope,
        settings,
        report: BufWriter::new(tempfile::tempfile().map_err(unusable)?),
        counts: Counts::default(),
        position: Positions::default(),
        ahead: 0,
        told: Instant::now(),
        phase: Phase::Reading,
        stopped: None,
        _permit: permit,
    };
    let mut response = HttpResponse::Ok();
    response.content_type("application/x-ndjson");
    Ok(response.streaming(stream::try_unfold(run, Import::next)))
}

#[derive(Debug, Default)]
struct Counts {
    lines: u64,
    imported: u64,
    unchanged: u64,
    bad: u64,
}

enum Phase {
    Reading,
    Telling(BufReader<File>),
    Summary,
    End,
}

/// An import under way.
struct Import {
    what: What,
    lines: Lines,
    state: web::Data<State>,
    scope: Scope,
    settings: Arc<Settings>,
    /// The bad lines so far.
    report: BufWriter<File>,
    counts: Counts,
    /// Where the ledger must be to have all of it.
    position: Positions,
    /// Lines since the ledger was waited for.
    ahead: u64,
    told: Instant,
    phase: Phase,
    /// Why it does not go on.
    stopped: Option<String>,
    _permit: OwnedSemaphorePermit,
}

impl Import {
    async fn next(mut self) -> Result<Option<(web::Bytes, Self)>, io::Error> {
        loop {
            match &mut self.phase {
                Phase::Reading => {
                    if self.stopped.is_none() && self.step().await? {
                        if self.told.elapsed() < TELL {
                            continue;
                        }
                        self.told = Instant::now();
                        let text = format!("{}\n", json!({"progress": self.counts()}));
                        return Ok(Some((text.into(), self)));
                    }
                    self.wait_for_ledger().await;
                    self.report.flush()?;
                    let mut file = self.report.get_ref().try_clone()?;
                    file.seek(SeekFrom::Start(0))?;
                    self.phase = Phase::Telling(BufReader::new(file));
                }
                Phase::Telling(report) => {
                    let bytes = report.fill_buf()?.to_vec();
                    report.consume(bytes.len());
                    if !bytes.is_empty() {
                        return Ok(Some((bytes.into(), self)));
                    }
                    self.phase = Phase::Summary;
                }
                Phase::Summary => {
                    self.phase = Phase::End;
                    let mut summary = self.counts();
                    summary["complete"] = json!(self.stopped.is_none());
                    summary["stopped"] = json!(self.stopped);
                    let position = Some(&self.position).filter(|all| all.iter().next().is_some());
                    summary["position"] = json!(position);
                    let text = format!("{}\n", json!({"summary": summary}));
                    return Ok(Some((text.into(), self)));
                }
                Phase::End => return Ok(None),
            }
        }
    }

    fn counts(&self) -> Value {
        let Counts { lines, imported, unchanged, bad } = self.counts;
        json!({"lines": lines, "imported": imported, "unchanged": unchanged, "bad": bad})
    }

    /// Takes over some lines; says whether there may be more.
    async fn step(&mut self) -> io::Result<bool> {
        if self.state.stopping.is_cancelled() {
            self.stopped = Some("the node stops; send it again to another one".to_owned());
            return Ok(false);
        }
        let max = self.state.import_bytes_max;
        let lines = match self.lines.next(max, self.state.request_timeout).await {
            Ok(lines) => lines,
            Err(why) => {
                self.stopped = Some(why);
                return Ok(false);
            }
        };
        if lines.is_empty() {
            return Ok(false);
        }
        self.counts.lines += lines.len() as u64;
        let mut good = Vec::new();
        let (mut invites, mut members) = (Vec::new(), Vec::new());
        for (number, body) in lines {
            let read = body.and_then(|body| {
                match self.what {
                    What::Invites => invites.push(self.invite(body)?),
                    What::Members => members.push(member(body)?),
                }
                Ok(())
            });
            match read {
                Ok(()) => good.push(number),
                Err(problem) => self.bad(number, &problem)?,
            }
        }
        match self.what {
            What::Invites => self.import_invites(good, invites).await?,
            What::Members => self.import_members(good, members).await?,
        }
        if self.counts.bad >= BAD_LINES_MAX {
            self.stopped = Some(format!("{BAD_LINES_MAX} lines are bad; mend them first"));
        }
        if self.ahead >= AHEAD_MAX {
            self.wait_for_ledger().await;
        }
        Ok(true)
    }

    /// Takes over invites, whose lines have these numbers.
    async fn import_invites(
        &mut self,
        numbers: Vec<u64>,
        invites: Vec<ImportedInvite>,
    ) -> io::Result<()> {
        let (namespace, actor) = (self.scope.namespace.clone(), self.scope.caller.actor());
        let gate = self.state.gate.clone();
        let import = ImportInvites { namespace, invites, actor };
        let told =
            self.ask(&import.namespace, async || import.run(&gate).await, numbers.is_empty());
        for ((number, invite), one) in numbers.iter().zip(&import.invites).zip(told.await) {
            match one {
                InviteImport::Imported => self.counts.imported += 1,
                InviteImport::Unchanged => self.counts.unchanged += 1,
                InviteImport::CodeTaken { by } => {
                    self.bad(*number, &taken(invite.code.as_str(), by))?;
                }
            }
        }
        Ok(())
    }

    /// Takes over members, whose lines have these numbers, each in the shard that the user belongs to.
    async fn import_members(
        &mut self,
        numbers: Vec<u64>,
        members: Vec<(UserId, Group, Option<Millis>)>,
    ) -> io::Result<()> {
        let gate = self.state.gate.clone();
        let mut shards: BTreeMap<Namespace, (Vec<u64>, Vec<_>)> = BTreeMap::new();
        for (number, member) in numbers.into_iter().zip(members) {
            let shard = match self.shard_of(&member.0).await {
                Ok(shard) => shard,
                Err(error) => {
                    self.stopped = Some(Problem::from(error).detail().to_owned());
                    return Ok(());
                }
            };
            let (numbers, members) = shards.entry(shard).or_default();
            numbers.push(number);
            members.push(member);
        }
        for (namespace, (numbers, members)) in shards {
            if self.stopped.is_some() {
                break;
            }
            let import = ImportMembers { namespace, members, actor: self.scope.caller.actor() };
            let told = self.ask(&import.namespace, async || import.run(&gate).await, false);
            for (number, one) in numbers.into_iter().zip(told.await) {
                match one {
                    MemberImport::Imported => self.counts.imported += 1,
                    MemberImport::Unchanged => self.counts.unchanged += 1,
                    MemberImport::Elsewhere => {
                        let why =
                            "the spread of the namespace is being changed; import the same again";
                        self.stopped = Some(why.to_owned());
                    }
                    MemberImport::AlreadyMember { group, redemption } => {
                        self.bad(number, &Refusal::AlreadyMember { group, redemption }.into())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Where a user is, or comes in.
    async fn shard_of(&self, user: &UserId) -> Result<Namespace, GateError> {
        let home = &self.scope.namespace;
        match &self.settings.places_of(home, user)[..] {
            [only] => Ok(only.clone()),
            _ => self.state.spread.shard_of(home, user).await,
        }
    }

    /// Asks the gate until it says something; notes why it does not.
    async fn ask<T>(
        &mut self,
        namespace: &Namespace,
        run: impl AsyncFn() -> Result<Imported<T>, GateError>,
        is_empty: bool,
    ) -> Vec<T> {
        if is_empty {
            return Vec::new();
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let why = match run().await {
                Ok(Imported::Done { told, cursor }) => {
                    let partition = self.state.gate.keys().partition_of(namespace);
                    self.position.set(Position { partition, cursor });
                    self.ahead += told.len() as u64;
                    return told;
                }
                Ok(Imported::NamespaceNotFound) => {
                    self.stopped = Some("the namespace was archived".to_owned());
                    return Vec::new();
                }
                Ok(Imported::Overloaded) => "the ledger is too far behind".to_owned(),
                Err(error @ GateError::Unexpected { .. }) => {
                    let (request_id, cause) = (&self.scope.caller.1, unquoted(&chain(&error)));
                    tracing::error!(request_id, cause, "an import can not go on");
                    self.stopped = Some("the gate holds something unexpected".to_owned());
                    return Vec::new();
                }
                Err(error) => Problem::from(error).detail().to_owned(),
            };
            if Instant::now() >= until {
                self.stopped = Some(why);
                return Vec::new();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn wait_for_ledger(&mut self) {
        self.ahead = 0;
        let until = Instant::now() + PATIENCE;
        for position in self.position.iter() {
            drop(tokio::time::timeout_at(until, self.state.progress.wait(position)).await);
        }
    }

    fn bad(&mut self, line: u64, problem: &Problem) -> io::Result<()> {
        self.counts.bad += 1;
        let mut told = problem.about();
        told["line"] = json!(line);
        writeln!(self.report, "{told}")
    }

    fn invite(&self, mut body: Body) -> Result<ImportedInvite, Problem> {
        let code = body.code(|text| self.settings.code(text));
        let group = body.required("group", Group::parse);
        let max_uses = body.count("max_uses", MAX_USES_MAX);
        if max_uses == Presence::Absent {
            body.wrong("max_uses", Code::InvalidRequest, "is needed; null means without limit");
        }
        let max_uses = max_uses.patch();
        let uses = body.typed("uses", |value| {
            let number = value.as_u64().filter(|number| *number <= MAX_USES_MAX);
            number.ok_or_else(|| format!("must be a whole number from 0 to {MAX_USES_MAX}"))
        });
        let uses = uses.value().unwrap_or_default();
        if max_uses.flatten().is_some_and(|max| uses > max) {
            body.wrong("uses", Code::InvalidRequest, "must not be more than max_uses");
        }
        let max_uses_per_user = body.count("max_uses_per_user", MAX_USES_MAX).value();
        let (starts_at, expires_at) =
            (body.time("starts_at").value(), body.time("expires_at").value());
        if let (Some(start), Some(end)) = (starts_at, expires_at)
            && end <= start
        {
            body.wrong("expires_at", Code::InvalidRequest, "must lie after starts_at");
        }
        let disabled = body.typed("disabled", |value| {
            value.as_bool().ok_or_else(|| "must be true or false".to_owned())
        });
        let user = body.optional("user", UserId::parse).value();
        let email_domains = email_domains(&mut body).unwrap_or_default();
        let metadata = body.metadata().value();
        body.finish()?;
        let (Some(code), Some(group), Some(max_uses)) = (code, group, max_uses) else {
            return Err(body.problem());
        };
        let mut invite = ImportedInvite {
            id: crate::domain::InviteId(uuid::Uuid::nil()),
            code,
            group,
            max_uses,
            max_uses_per_user,
            uses,
            starts_at,
            expires_at,
            disabled: disabled.value().unwrap_or_default(),
            user,
            email_domains,
            metadata,
        };
        invite.id = crate::ids::imported_invite(&self.scope.namespace, &invite);
        Ok(invite)
    }
}

fn member(mut body: Body) -> Result<(UserId, Group, Option<Millis>), Problem> {
    let user = body.required("user", UserId::parse);
    let group = body.required("group", Group::parse);
    let joined_at = body.time("joined_at").value();
    body.finish()?;
    let (Some(user), Some(group)) = (user, group) else { return Err(body.problem()) };
    Ok((user, group, joined_at))
}

/// A body as lines.
struct Lines {
    payload: web::Payload,
    /// What the first line of CSV calls the columns; nothing for NDJSON.
    names: Option<Vec<String>>,
    /// What was read, of which everything before `at` is done with.
    waiting: Vec<u8>,
    at: usize,
    /// The number of the last line.
    line: u64,
    bytes: u64,
}

type Line = (u64, Result<Body, Problem>);

impl Lines {
    /// Reads what the first line of CSV calls the columns: with wrong names every line would be wrong.
    async fn read_names(
        &mut self,
        what: What,
        bytes_max: u64,
        timeout: Duration,
    ) -> Result<(), Problem> {
        let wrong = |detail: String| Problem::new(Code::InvalidRequest, detail);
        let Some(line) = self.line(bytes_max, timeout).await.map_err(wrong)? else { return Ok(()) };
        let names = record(&line)?;
        let (needed, others) = what.columns();
        let unknown =
            |name: &&String| !needed.contains(&name.as_str()) && !others.contains(&name.as_str());
        if let Some(name) = names.iter().find(unknown) {
            let all = [needed, others].concat().join(", ");
            return Err(wrong(format!("The first line names a column {name:?}; there are {all}.")));
        }
        if let Some(name) = needed.iter().find(|name| !names.iter().any(|one| one == **name)) {
            return Err(wrong(format!(
                "The first line does not name the column {name:?}, which is needed."
            )));
        }
        self.names = Some(names);
        Ok(())
    }

    /// The next lines, at most for one call; none at the end. Empty ones do not count.
    async fn next(&mut self, bytes_max: u64, timeout: Duration) -> Result<Vec<Line>, String> {
        let mut lines = Vec::new();
        while lines.len() < CALL_LINES
            && let Some(line) = self.line(bytes_max, timeout).await?
        {
            let body = match &self.names {
                None => Body::parse(&line),
                Some(names) => record(&line).and_then(|cells| fields(names, cells)),
            };
            lines.push((self.line, body));
        }
        Ok(lines)
    }

    /// The next line that is not empty, without its end.
    async fn line(&mut self, bytes_max: u64, timeout: Duration) -> Result<Option<Vec<u8>>, String> {
        loop {
            let line = match self.take() {
                Some(line) => line,
                None if self.waiting.len() - self.at > LINE_BYTES_MAX => {
                    return Err(format!(
                        "line {} has more than {LINE_BYTES_MAX} bytes",
                        self.line + 1
                    ));
                }
                None => match tokio::time::timeout(timeout, self.payload.next()).await {
                    Ok(Some(Ok(piece))) => {
                        self.bytes += piece.len() as u64;
                        if self.bytes > bytes_max {
                            return Err(format!(
                                "an import has at most {bytes_max} bytes; send the rest in another one"
                            ));
                        }
                        self.waiting.drain(..self.at);
                        self.at = 0;
                        self.waiting.extend_from_slice(&piece);
                        continue;
                    }
                    Ok(Some(Err(error))) => {
                        return Err(format!("the body could not be read: {error}"));
                    }
                    // A last line may go without its end.
                    Ok(None) if self.at < self.waiting.len() => {
                        let rest = self.waiting.split_off(self.at);
                        self.waiting.clear();
                        self.at = 0;
                        self.line += 1;
                        rest
                    }
                    Ok(None) => return Ok(None),
                    Err(_) => return Err("the rest of the body did not arrive in time".to_owned()),
                },
            };
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(line.to_vec()));
            }
        }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let rest = &self.waiting[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = rest[..end].to_vec();
        self.at += end + 1;
        self.line += 1;
        Some(line)
    }
}

/// The cells of a line. No cell of ours holds a line end.
fn record(line: &[u8]) -> Result<Vec<String>, Problem> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(line);
    let mut record = csv::StringRecord::new();
    let read = reader.read_record(&mut record);
    match read {
        Ok(true) => Ok(record.iter().map(str::to_owned).collect()),
        Ok(false) => Ok(Vec::new()),
        Err(error) => {
            Err(Problem::new(Code::InvalidRequest, format!("The line is not CSV: {error}.")))
        }
    }
}

/// Cells as fields: numbers, switches, lists with commas and objects as JSON, each where the field has one; an empty cell
/// is null.
fn fields(names: &[String], cells: Vec<String>) -> Result<Body, Problem> {
    if cells.len() != names.len() {
        let detail = format!("The line has {} cells, the first one {}.", cells.len(), names.len());
        return Err(Problem::new(Code::InvalidRequest, detail));
    }
    let value = |name: &str, cell: String| match name {
        _ if cell.is_empty() => Value::Null,
        "max_uses" | "max_uses_per_user" | "uses" => {
            cell.parse::<u64>().map_or(Value::String(cell), Value::from)
        }
        "disabled" => cell.parse::<bool>().map_or(Value::String(cell), Value::from),
        "email_domains" => cell.split(',').map(str::trim).collect(),
        "metadata" => serde_json::from_str(&cell).unwrap_or(Value::String(cell)),
        _ => Value::String(cell),
    };
    let fields = names.iter().zip(cells).map(|(name, cell)| (name.clone(), value(name, cell)));
    Body::of(fields.collect())
}

pub(super) mod docs {
    use crate::http::{
        openapi::{GATE, LEDGER, Operation, Tag},
        problem::Code,
    };

    fn import(id: &'static str, summary: &'static str) -> Operation {
        Operation::new(id, Tag::Exports, summary)
            .about(
                "One on each line. The answer begins at once: how far it is, then each bad line with its number, a \
                 summary last. A line that comes again changes nothing.",
            )
            .takes_text(&["application/x-ndjson", "text/csv"])
            .answers_text("What became of it.", &["application/x-ndjson"])
            .problems(&[Code::NamespaceNotFound, Code::UnsupportedMediaType, Code::Overloaded])
            .problems(GATE)
            .problems(LEDGER)
    }

    pub(in crate::http) fn invites() -> Operation {
        import("import_invites", "Take over invites, with the uses that are spent")
    }

    pub(in crate::http) fn members() -> Operation {
        import("import_members", "Take over members who joined elsewhere")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_what_their_fields_are() {
        let names: Vec<_> =
            ["code", "max_uses", "email_domains", "metadata"].map(str::to_owned).into();
        let cells = record(b"A,5,\"a.example, b.example\",\"{\"\"x\"\":1}\"").unwrap();
        let mut body = fields(&names, cells).unwrap();
        assert_eq!(body.count("max_uses", 9), Presence::Value(5));
        assert_eq!(email_domains(&mut body).unwrap().len(), 2);
        assert_eq!(body.metadata(), Presence::Value("{\"x\":1}".to_owned()));
        let mut empty = fields(&names, vec![String::new(); 4]).unwrap();
        assert_eq!(empty.count("max_uses", 9), Presence::Null);
        assert!(fields(&names, vec!["A".to_owned()]).is_err());
    }
}
