//! Load and faults for a deployment of its own, and then the question whether a law was broken.
//!
//! [`history`] is what clients asked and were told; [`check`] decides the laws from it and from what was there in the
//! end, and is pure. [`faults`] makes the plan of the faults from a seed. The deployment is a [`redis`] of some kind and
//! some nodes, children of this process; everything but the faults goes over HTTP, as anybody's requests do.

pub mod check;
mod deployment;
pub mod faults;
pub mod history;
mod load;
pub mod redis;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use secrecy::SecretString;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::{
    check::{Finding, Law, MayLose},
    deployment::Deployment,
    faults::Fault,
    history::{
        CampaignRow, History, HoldTold, InviteRow, Operation, Outcome, RedemptionRow, ReleaseTold,
        RollbackTold, Told,
    },
    load::Load,
};
use crate::{
    client::ClientError,
    domain::{CampaignName, Durability, InviteId, Malformed, Namespace},
};

/// How long a process may take to be ready, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_mins(2);
/// How much of a log is shown when its process has ended.
const LAST_LINES: usize = 20;
/// How long it may take, once no fault strikes any more, until every key has a definite answer.
const SETTLED_WITHIN: Duration = Duration::from_mins(5);
/// How long a question may go without an answer while no fault strikes.
const ANSWERED_WITHIN: Duration = Duration::from_mins(5);
/// How much longer than wanted faults strike while some kind of answer has not been told: it would be proven by nothing.
const LONGER_AT_MOST: Duration = Duration::from_mins(1);
/// How often they are compared while faults strike.
const COMPARE_EVERY: Duration = Duration::from_millis(700);
/// The namespace that is tortured.
const NAMESPACE: &str = "torture";

/// What to do.
#[derive(Debug)]
pub struct Options {
    /// All random choices follow from it.
    pub seed: u64,
    /// How long faults strike.
    pub duration: Duration,
    /// How many users ask at the same time.
    pub clients: usize,
    /// The most uses of a code.
    pub uses: u64,
    /// How many nodes.
    pub nodes: u32,
    /// Over how many partitions the namespace is spread.
    pub spread: u16,
    /// What kind of Redis.
    pub redis: redis::Kind,
    /// Whether faults may lose what Redis has and the ledger has not.
    pub lossy: bool,
    /// The ledger; nothing means a SQLite file in the directory.
    pub ledger: Option<String>,
    /// The program of the nodes.
    pub program: PathBuf,
    /// The redis-server.
    pub redis_server: PathBuf,
    /// Where everything lies.
    pub directory: PathBuf,
    /// A file that gets the whole history, a line for each request, and then what invites and campaigns say in the end.
    pub history: Option<PathBuf>,
    /// What nodes log.
    pub log_level: &'static str,
    /// The admin key of the nodes.
    pub key: SecretString,
}

impl Options {
    /// Few, so that more happens to each in a minute.
    fn partitions(&self) -> u16 {
        self.spread.max(2)
    }

    /// Whether faults may lose what was told below level `ledger`: where replicas take over, that is what they have
    /// missed.
    fn may_lose(&self) -> bool {
        self.lossy || self.redis != redis::Kind::Standalone
    }
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum TortureError {
    /// A file, directory or program could not be used.
    #[error("{doing} {path}", path = path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
    /// A process could not be sent a signal.
    #[error("sending a signal")]
    Signal(#[source] io::Error),
    /// A state did not come about.
    #[error("waited in vain until {0}")]
    NeverCame(String),
    /// A process ended that nobody had killed.
    #[error("{who} has ended by itself ({how}); its log ends with\n{said}")]
    EndedAlone {
        /// Which.
        who: String,
        /// How.
        how: String,
        /// The end of its log.
        said: String,
    },
    /// No HTTP client can be made.
    #[error("making an HTTP client")]
    Http(#[source] reqwest::Error),
    /// A question that is not part of the load was refused.
    #[error(transparent)]
    Client(Box<ClientError>),
    /// An answer lacks what it must have.
    #[error("an answer could not be read: {0}")]
    Unreadable(String),
    /// Somebody asked to stop.
    #[error("stopped before there was a verdict")]
    Interrupted,
}

impl TortureError {
    fn io(doing: &'static str, path: &Path, cause: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), cause }
    }
}

impl From<ClientError> for TortureError {
    fn from(error: ClientError) -> Self {
        Self::Client(Box::new(error))
    }
}

impl From<Malformed> for TortureError {
    fn from(malformed: Malformed) -> Self {
        Self::Unreadable(malformed.0)
    }
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// New grants that were told.
    pub granted: AtomicU64,
    /// Grants that were told again.
    pub replayed: AtomicU64,
    /// Uses that are held, as was told.
    pub held: AtomicU64,
    /// Uses that were given back: held ones that were released, and redemptions that were rolled back.
    pub given_back: AtomicU64,
    /// Refusals.
    pub refused: AtomicU64,
    /// Those of them by a campaign that had no use left.
    pub campaign_exhausted: AtomicU64,
    /// Requests whose outcome the client did not learn.
    pub unknown: AtomicU64,
    /// Requests of which it was told that nothing was done.
    pub nothing_done: AtomicU64,
    /// Faults, in the order of [`Fault::ALL`].
    pub faults: [AtomicU64; Fault::ALL.len()],
    codes: Mutex<BTreeMap<InviteId, String>>,
}

impl Counts {
    /// All requests that were sent.
    #[must_use]
    pub fn requests(&self) -> u64 {
        let Self { granted, replayed, held, given_back, refused, unknown, nothing_done, .. } = self;
        [granted, replayed, held, given_back, refused, unknown, nothing_done]
            .into_iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    /// Waits until every kind of answer that the laws are about has been told.
    async fn until_all_kinds(&self) {
        let Self { granted, held, given_back, refused, campaign_exhausted, .. } = self;
        let kinds = [granted, held, given_back, refused, campaign_exhausted];
        while kinds.iter().any(|kind| kind.load(Ordering::Relaxed) == 0) {
            tokio::time::sleep(COMPARE_EVERY).await;
        }
    }

    /// All faults that struck.
    #[must_use]
    pub fn strikes(&self) -> u64 {
        self.faults.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// How often a fault struck.
    #[must_use]
    pub fn of(&self, fault: Fault) -> u64 {
        self.faults[fault as usize].load(Ordering::Relaxed)
    }

    fn struck(&self, fault: Fault) {
        self.faults[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn add_invites(&self, invites: &[(String, InviteId)]) {
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        codes.extend(invites.iter().map(|(code, id)| (*id, code.clone())));
    }

    fn codes(&self) -> BTreeMap<InviteId, String> {
        self.codes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Verdict {
    /// Every law with what was looked at, in numbers.
    pub laws: Vec<(Law, String)>,
    /// Every breach.
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// Whether no law was broken.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.findings.is_empty()
    }

    /// The breaches of one law.
    pub fn breaches(&self, law: Law) -> impl Iterator<Item = &str> {
        self.findings.iter().filter(move |finding| finding.law == law).map(|it| it.what.as_str())
    }
}

/// Starts a deployment, lets users rush it while faults strike, and decides whether a law was broken. All that it
/// started has ended when it returns.
///
/// # Errors
/// [`TortureError`] when it could not be brought to an end, or a process ended that nobody had killed.
pub async fn run(
    options: &Options,
    counts: &Counts,
    interrupted: &CancellationToken,
) -> Result<Verdict, TortureError> {
    let mut deployment = Deployment::new(options)?;
    let torture = async {
        deployment.start().await?;
        torture(&mut deployment, options, counts).await
    };
    let ended = interrupted.run_until_cancelled(torture).await;
    deployment.stop().await;
    ended.unwrap_or(Err(TortureError::Interrupted))
}

async fn torture(
    deployment: &mut Deployment,
    options: &Options,
    counts: &Counts,
) -> Result<Verdict, TortureError> {
    let load = Load {
        clients: deployment.clients(),
        namespace: Namespace::parse(NAMESPACE)?,
        seed: options.seed,
        uses: options.uses,
        spread: options.spread,
        at_once: options.clients,
        counts,
        started: Instant::now(),
    };
    in_time("the namespace is made", load.make_namespace()).await?;
    let stop = CancellationToken::new();
    let (mut history, (), (), mut looks) = tokio::try_join!(
        load.rush(&stop),
        deployment.torment(options, counts, &stop),
        async {
            tokio::time::sleep(options.duration).await;
            // On a busy machine that may have been too short for some kind of answer.
            drop(tokio::time::timeout(LONGER_AT_MOST, counts.until_all_kinds()).await);
            stop.cancel();
            Ok(())
        },
        compare_now_and_then(&load, options.may_lose(), &stop),
    )?;
    let is_unknown = |one: &&Operation| matches!(one.told, Told::Unknown(_));
    let unknown = history.operations.iter().filter(is_unknown).count();
    let settled = load.settle(&history, Instant::now() + SETTLED_WITHIN).await;
    let keys = settled.operations.iter().map(|one| (&one.user, &one.key));
    let repeated = keys.collect::<BTreeSet<_>>().len();
    history.extend(settled);
    // Also if nothing can be listed after it.
    write_down(options, &history.lines())?;
    let compared = looks.in_the_end(&load).await;
    let outcome = in_time("everything is listed", outcome(&load)).await?;
    write_down(options, &(history.lines() + &outcome.lines()))?;
    let may_lose = if options.may_lose() { MayLose::BelowLedger } else { MayLose::Nothing };
    let mut findings = check::check(&history, &outcome, may_lose);
    let law = Law::BothSidesAgree;
    findings.extend(looks.differing.iter().map(|what| Finding { law, what: what.clone() }));
    // Without it nothing is proven, but what is broken is known.
    if findings.is_empty() {
        compared?;
    }
    let told = numbers(&history, &outcome, unknown, repeated, &looks);
    Ok(Verdict { laws: Law::ALL.into_iter().zip(told).collect(), findings })
}

fn write_down(options: &Options, lines: &str) -> Result<(), TortureError> {
    let Some(path) = &options.history else { return Ok(()) };
    std::fs::write(path, lines).map_err(|cause| TortureError::io("writing", path, cause))
}

fn ended_alone(who: &str, ended: io::Result<std::process::ExitStatus>, log: &Path) -> TortureError {
    let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    let said = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
    TortureError::EndedAlone { who: who.to_owned(), how, said }
}

/// What would otherwise be waited for without an end.
async fn in_time<T>(
    what: &str,
    work: impl Future<Output = Result<T, TortureError>>,
) -> Result<T, TortureError> {
    let never = |_| TortureError::NeverCame(what.to_owned());
    tokio::time::timeout(ANSWERED_WITHIN, work).await.map_err(never)?
}

/// What the comparisons of gate and ledger said.
#[derive(Default)]
struct Looks {
    /// Whether the faults may lose what was told below level `ledger`.
    may_lose: bool,
    answered: u64,
    compared: u64,
    differing: Vec<String>,
}

impl Looks {
    fn add(&mut self, report: &Value) {
        self.answered += 1;
        self.compared += report["compared"].as_u64().unwrap_or_default();
        // What a node could hand in too late only and was refused is written down as lost, which is no difference.
        let broken: Vec<_> = report["broken_laws"].as_array().into_iter().flatten().collect();
        let is_a_loss =
            |law: &&Value| law.as_str().is_some_and(|law| law.contains(" that is lost: "));
        let only_losses = self.may_lose && !broken.is_empty() && broken.iter().all(is_a_loss);
        let is_empty = report["differences"].as_array().is_some_and(Vec::is_empty);
        if report["consistent"] != true && !(only_losses && is_empty) {
            let (differences, broken) = (&report["differences"], &report["broken_laws"]);
            self.differing.push(format!("gate and ledger differ: {differences}, {broken}"));
        }
    }

    /// Once more, when nothing moves: now every key must have been compared.
    async fn in_the_end(&mut self, load: &Load<'_>) -> Result<(), TortureError> {
        let look = async {
            loop {
                let report = load.get("/consistency").await?;
                if report["not_compared"].as_array().is_some_and(Vec::is_empty) {
                    return Ok::<_, ClientError>(report);
                }
            }
        };
        let look = async { Ok(look.await?) };
        self.add(&in_time("gate and ledger are compared in the end", look).await?);
        Ok(())
    }
}

/// Both sides may be compared while they move, and while faults strike; there may be no answer, but none that is wrong.
async fn compare_now_and_then(
    load: &Load<'_>,
    may_lose: bool,
    stop: &CancellationToken,
) -> Result<Looks, TortureError> {
    let mut looks = Looks { may_lose, ..Looks::default() };
    while stop.run_until_cancelled(tokio::time::sleep(COMPARE_EVERY)).await.is_some() {
        if let Some(report) = stop.run_until_cancelled(load.get("/consistency")).await {
            looks.add(&report?);
        }
    }
    Ok(looks)
}

/// What is there, as anybody can see it.
async fn outcome(load: &Load<'_>) -> Result<Outcome, TortureError> {
    let mut outcome = Outcome::default();
    for row in rows(load, "/invites").await? {
        let invite = InviteRow {
            code: field(&row, "code")?,
            max_uses: field(&row, "max_uses")?,
            uses: field(&row, "uses")?,
            held: field(&row, "held")?,
            campaign: field::<Option<String>>(&row, "campaign")?
                .map(|name| CampaignName::parse(&name))
                .transpose()?,
        };
        outcome.invites.insert(field(&row, "id")?, invite);
    }
    for row in rows(load, "/campaigns").await? {
        let campaign =
            CampaignRow { max_uses: field(&row, "max_uses")?, uses: field(&row, "uses")? };
        let name = CampaignName::parse(&field::<String>(&row, "name")?)?;
        outcome.campaigns.insert(name, campaign);
    }
    for row in rows(load, "/redemptions").await? {
        outcome.redemptions.push(RedemptionRow {
            id: field(&row, "id")?,
            user: user(&row)?,
            invite: field(&row, "invite")?,
            ordinal: field(&row, "use")?,
            position: field(&row, "position")?,
            rolled_back_at: field(&row, "rolled_back_at")?,
        });
    }
    for row in rows(load, "/members").await? {
        outcome.members.push((user(&row)?, field(&row, "redemption")?));
    }
    outcome.at = load.started.elapsed();
    Ok(outcome)
}

/// All rows of a list.
async fn rows(load: &Load<'_>, path: &str) -> Result<Vec<Value>, TortureError> {
    let mut rows = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = load.get(&format!("{path}?limit=1000{cursor}")).await?;
        rows.extend(page["data"].as_array().cloned().unwrap_or_default());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(rows),
        }
    }
}

fn field<T: serde::de::DeserializeOwned>(row: &Value, name: &str) -> Result<T, TortureError> {
    serde_json::from_value(row[name].clone())
        .map_err(|error| TortureError::Unreadable(format!("{name} of {row}: {error}")))
}

fn user(row: &Value) -> Result<crate::domain::UserId, TortureError> {
    Ok(crate::domain::UserId::parse(&field::<String>(row, "user")?)?)
}

/// What was looked at, law by law.
fn numbers(
    history: &History,
    outcome: &Outcome,
    unknown: usize,
    repeated: usize,
    looks: &Looks,
) -> Vec<String> {
    let History { operations, holds, releases, rollbacks } = history;
    let count = |is: &dyn Fn(&Operation) -> bool| operations.iter().filter(|one| is(one)).count();
    let ids = |is: &dyn Fn(&history::Grant) -> bool| {
        let grants = operations.iter().filter_map(Operation::grant);
        grants.filter(|grant| is(grant)).map(|grant| grant.id).collect::<BTreeSet<_>>().len()
    };
    let used_up =
        outcome.invites.values().filter(|row| row.uses + row.held == row.max_uses).count();
    let users: BTreeSet<_> = operations.iter().map(|one| &one.user).collect();
    let keys: BTreeSet<_> = operations.iter().map(|one| (&one.user, &one.key)).collect();
    let codes: BTreeSet<_> = operations.iter().map(|one| (&one.user, one.invite)).collect();
    let held: BTreeSet<_> = holds
        .iter()
        .filter_map(|one| match one.told {
            HoldTold::Held(id) => Some(id),
            _ => None,
        })
        .collect();
    let is_released = |one: &&history::Release| one.told == ReleaseTold::Released;
    let released = releases.iter().filter(is_released).map(|one| one.reservation);
    let released = released.collect::<BTreeSet<_>>().len();
    let is_taken_back = |one: &&history::Rollback| matches!(one.told, RollbackTold::RolledBack(_));
    let taken_back = rollbacks.iter().filter(is_taken_back).map(|one| one.redemption);
    let taken_back = taken_back.collect::<BTreeSet<_>>().len();
    let rolled_back = outcome.redemptions.iter().filter(|row| row.rolled_back_at.is_some()).count();
    vec![
        format!(
            "{} redemptions of {} invites, {rolled_back} of them rolled back; {used_up} invites used up; {} campaigns",
            outcome.redemptions.len(),
            outcome.invites.len(),
            outcome.campaigns.len()
        ),
        format!(
            "{} refusals as exhausted, {} by a campaign, {} as a member elsewhere",
            count(&|one| one.told == Told::Exhausted),
            count(&|one| one.told == Told::CampaignExhausted),
            count(&|one| one.told == Told::AlreadyMember)
        ),
        format!(
            "{} users, {} times one asked for another code too, {} members",
            users.len(),
            codes.len() - users.len(),
            outcome.members.len()
        ),
        format!(
            "{} keys; {unknown} answers unknown, {repeated} keys asked again; {} answers that it was rolled back",
            keys.len(),
            count(&|one| matches!(one.told, Told::RolledBack(_)))
        ),
        format!(
            "{} redemptions acknowledged, {} at level ledger, {} lost that may be; {} reservations, {released} released; {taken_back} rollbacks",
            ids(&|_| true),
            ids(&|grant| grant.durability == Durability::Ledger),
            check::lost(history, outcome),
            held.len()
        ),
        format!("{} looks, {} keys compared", looks.answered, looks.compared),
    ]
}

impl Verdict {
    /// As a program would read it.
    #[must_use]
    pub fn json(&self) -> Vec<Value> {
        let law = |(law, numbers): &(Law, String)| {
            let (number, what) = law.title();
            let breaches: Vec<_> = self.breaches(*law).collect();
            let verdict = if breaches.is_empty() { "PROVEN" } else { "BROKEN" };
            json!({"law": number, "verdict": verdict, "what": what, "numbers": numbers, "findings": breaches})
        };
        self.laws.iter().map(law).collect()
    }
}
