//! `redeemer demo`: many users rush one code, then the proof that nothing was spent twice or refused too early.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Common,
    invite::all,
    output::{Column, Output, say},
};
use crate::{
    client::{Client, ClientError, Redemption},
    domain::{Namespace, Partition},
};

/// How often it looks whether the ledger has everything.
const LOOK: Duration = Duration::from_millis(50);
/// How long it looks.
const LOOK_FOR: Duration = Duration::from_mins(1);
/// How often one request is repeated while its outcome is unknown.
const REPEATS_MAX: u32 = 20;

#[derive(Debug, Args)]
#[command(
    after_help = "It needs an admin key, for it makes a namespace \"demo\" of its own, or with --spread 3 \"demo-3\". Exits with 0 if everything
was proven.

Examples:
  redeemer demo --users 10000 --uses 1000
  redeemer demo --spread 3"
)]
pub(super) struct Demo {
    /// How many users ask
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    users: u64,
    /// How many uses the code has
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    uses: u64,
    /// Over how many partitions the users are spread
    #[arg(long, value_name = "N")]
    spread: Option<u16>,
    /// How many ask at the same time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    at_once: u64,
}

/// What came of the rush.
#[derive(Default)]
struct Counts {
    granted: AtomicU64,
    exhausted: AtomicU64,
    repeated: AtomicU64,
}

/// How one user fared.
enum Told {
    Granted(Redemption),
    Exhausted,
}

impl Demo {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let client = common.client()?;
        let (name, rules) = match self.spread {
            None => ("demo".to_owned(), json!({})),
            Some(spread) => (format!("demo-{spread}"), json!({"spread": spread})),
        };
        let namespace = Namespace::parse(&name)?;
        let base = format!("/v1/namespaces/{namespace}");
        client
            .ask(Method::PUT, &base, Some(&rules))
            .await
            .with_context(|| format!("making the namespace {namespace}"))?;
        let run = crate::ids::characters::<6>(b"abcdefghjkmnpqrstuvwxyz23456789");
        let code = format!("RUSH-{}", run.to_uppercase());
        let invite = json!({"code": code, "group": "rush", "max_uses": self.uses});
        let invite = client.ask(Method::POST, &format!("{base}/invites"), Some(&invite)).await?;
        let invite = invite["id"].as_str().unwrap_or_default().to_owned();

        let counts = Counts::default();
        let started = Instant::now();
        let told = self.rush(&client, &namespace, &code, &run, &counts).await?;
        let took = started.elapsed();
        let shown = client.ask(Method::GET, &format!("{base}/invites/{invite}"), None).await?;
        let in_ledger = self.wait_for_ledger(&client, &base, &invite, &told).await?;

        let proof = self.proof(&told, &shown, &in_ledger);
        let is_proven = proof.iter().all(|line| line["ok"] == "yes");
        if common.output == Output::Table {
            let requests = self.users + counts.repeated.load(Ordering::Relaxed);
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            let rate = requests as f64 / took.as_secs_f64();
            say(&format!(
                "{} users asked for {code} ({} uses), {} at once: {requests} requests in {:.1} s, {rate:.0} a second.\n",
                self.users,
                self.uses,
                self.at_once,
                took.as_secs_f64()
            ));
        }
        let columns: [Column; 4] =
            [("PROVEN", "ok"), ("WHAT", "what"), ("EXPECTED", "expected"), ("FOUND", "found")];
        common.output.rows(&columns, &proof)?;
        Ok(if is_proven { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Every user asks, and each tenth asks again with the same key, as if the first answer had been lost.
    async fn rush(
        &self,
        client: &Client,
        namespace: &Namespace,
        code: &str,
        run: &str,
        counts: &Counts,
    ) -> anyhow::Result<Vec<Told>> {
        let style =
            ProgressStyle::with_template("{bar:40} {pos}/{len} users {per_sec} {wide_msg}")?;
        let bar = ProgressBar::new(self.users).with_style(style);
        let at_once = usize::try_from(self.at_once).unwrap_or(1);
        let mut told = Vec::new();
        let mut answers = stream::iter(0..self.users)
            .map(|number| async move {
                let user = format!("demo-{run}-{number}");
                let first = ask(client, namespace, code, &user, counts).await?;
                if number % 10 == 0 {
                    counts.repeated.fetch_add(1, Ordering::Relaxed);
                    check_repeat(&first, &ask(client, namespace, code, &user, counts).await?)?;
                }
                anyhow::Ok(first)
            })
            .buffer_unordered(at_once);
        while let Some(answer) = answers.next().await {
            let answer = answer?;
            match &answer {
                Told::Granted(_) => counts.granted.fetch_add(1, Ordering::Relaxed),
                Told::Exhausted => counts.exhausted.fetch_add(1, Ordering::Relaxed),
            };
            told.push(answer);
            bar.inc(1);
            let (granted, exhausted) =
                (counts.granted.load(Ordering::Relaxed), counts.exhausted.load(Ordering::Relaxed));
            bar.set_message(format!("{granted} granted, {exhausted} refused"));
        }
        bar.finish_and_clear();
        Ok(told)
    }

    /// The redemptions that the ledger has, once it has as many as were granted.
    async fn wait_for_ledger(
        &self,
        client: &Client,
        base: &str,
        invite: &str,
        told: &[Told],
    ) -> anyhow::Result<Vec<Value>> {
        let granted = told.iter().filter(|told| matches!(told, Told::Granted(_))).count();
        let until = Instant::now() + LOOK_FOR;
        loop {
            let rows =
                all(client, &format!("{base}/redemptions"), &format!("&invite={invite}")).await?;
            if rows.len() >= granted || Instant::now() >= until {
                return Ok(rows);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn proof(&self, told: &[Told], invite: &Value, in_ledger: &[Value]) -> Vec<Value> {
        let granted: Vec<_> = told
            .iter()
            .filter_map(|told| match told {
                Told::Granted(redemption) => Some(redemption),
                Told::Exhausted => None,
            })
            .collect();
        let expected = self.uses.min(self.users);
        let distinct = |values: BTreeSet<String>| values.len() as u64;
        let users = distinct(granted.iter().map(|redemption| redemption.user.clone()).collect());
        // Where the namespace is spread, each of its partitions counts its own.
        let mut ordinals: BTreeMap<Partition, BTreeSet<u64>> = BTreeMap::new();
        for redemption in &granted {
            ordinals.entry(redemption.position.partition).or_default().insert(redemption.ordinal);
        }
        let is_whole = |row: &BTreeSet<u64>| row.last() == Some(&(row.len() as u64));
        let row = ordinals.values().all(is_whole)
            && ordinals.values().map(|row| row.len() as u64).sum::<u64>() == expected;
        let ids: BTreeSet<String> =
            granted.iter().map(|redemption| redemption.id.to_string()).collect();
        let in_ledger: BTreeSet<String> =
            in_ledger.iter().filter_map(|row| row["id"].as_str().map(str::to_owned)).collect();
        let line = |what: &str, expected: &Value, found: &Value| json!({"ok": if expected == found { "yes" } else { "NO" }, "what": what, "expected": expected, "found": found});
        vec![
            line("uses granted", &json!(expected), &json!(granted.len())),
            line(
                "users refused, all as exhausted",
                &json!(self.users - expected),
                &json!(told.len() - granted.len()),
            ),
            line("users who got one", &json!(expected), &json!(users)),
            line("the uses are numbered 1 to the last without a gap", &json!(true), &json!(row)),
            line("uses that Redis counts", &json!(expected), &invite["uses"]),
            line("redemptions in the ledger", &json!(expected), &json!(in_ledger.len())),
            line(
                "they are the ones that the users were told",
                &json!(true),
                &json!(in_ledger == ids),
            ),
        ]
    }
}

/// Asks for one user, again with the same key while the outcome is unknown or the service asks to come back.
async fn ask(
    client: &Client,
    namespace: &Namespace,
    code: &str,
    user: &str,
    counts: &Counts,
) -> anyhow::Result<Told> {
    let body = json!({"code": code, "user": user});
    let mut repeats = 0;
    loop {
        match client.redeem(namespace, &body, Some(user)).await {
            Ok(answer) => return Ok(Told::Granted(serde_json::from_value(answer)?)),
            Err(ClientError::Problem(problem)) if problem.code == "invite_exhausted" => {
                return Ok(Told::Exhausted);
            }
            Err(error) if repeats < REPEATS_MAX && may_repeat(&error) => {
                repeats += 1;
                counts.repeated.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn may_repeat(error: &ClientError) -> bool {
    match error {
        ClientError::Problem(problem) => problem.status == 503,
        ClientError::Transport { .. } => true,
        ClientError::Foreign { .. } => false,
    }
}

fn check_repeat(first: &Told, again: &Told) -> anyhow::Result<()> {
    match (first, again) {
        (Told::Granted(first), Told::Granted(again)) if first.id == again.id && again.replayed => {
            Ok(())
        }
        (Told::Exhausted, Told::Exhausted) => Ok(()),
        _ => anyhow::bail!(
            "a repeat with the same key was answered otherwise than the first request"
        ),
    }
}
