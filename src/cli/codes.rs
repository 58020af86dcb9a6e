//! `redeemer codes generate|show|download`

use std::{
    fs::File,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{
    Common,
    invite::parse_json,
    namespace::words,
    output::{Column, Output, complain, pass_on},
};
use crate::{
    client::{Client, ClientError},
    domain::{Alphabet, BatchId},
};

/// How often it looks how far the service is.
const LOOK: Duration = Duration::from_millis(200);
/// How long it looks for a service that does not answer.
const PATIENCE: u32 = 300;

#[derive(Debug, Subcommand)]
#[command(after_help = "In a pattern # is a random character, and * at the end a check character.

Examples:
  redeemer codes generate --count 1000000 --pattern 'SPRING-####-####' --group team --max-uses 1
  redeemer codes generate --count 50 --pattern '######' --alphabet digits --group team --max-uses 1
  redeemer codes show 01a20967-45a7-7482-bb99-70136ac4558d
  redeemer codes download 01a20967-45a7-7482-bb99-70136ac4558d --file codes.csv")]
pub(super) enum Command {
    /// Make many codes; the service goes on also when this command is ended
    Generate(Generate),
    /// Show how far a batch is
    Show {
        /// Its id
        batch: BatchId,
    },
    /// Download the codes of a batch: as CSV, or with --output json as NDJSON
    Download {
        /// Its id
        batch: BatchId,
        /// Where to write them; without it, to standard output
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Generate {
    /// How many
    #[arg(long, value_name = "N")]
    count: u64,
    /// What they look like
    #[arg(long)]
    pattern: String,
    /// What random characters are; unambiguous, the default, has digits and letters that nobody mistakes
    #[arg(long, value_name = "NAME", value_parser = words(Alphabet::ALL.map(Alphabet::as_str)))]
    alphabet: Option<String>,
    /// What a redemption lets the user into
    #[arg(long)]
    group: String,
    /// How many may redeem each
    #[arg(long, value_name = "N", required_unless_present = "unlimited")]
    max_uses: Option<u64>,
    /// Any number may redeem each
    #[arg(long, conflicts_with = "max_uses")]
    unlimited: bool,
    /// How many of these one user may spend
    #[arg(long, value_name = "N")]
    max_uses_per_user: Option<u64>,
    /// The campaign whose limit they share with others
    #[arg(long, value_name = "NAME")]
    campaign: Option<String>,
    /// From when on, such as 2026-12-24T00:00:00Z
    #[arg(long, value_name = "TIME")]
    starts_at: Option<String>,
    /// Until when
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// An e-mail domain whose users may redeem; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    email_domain: Vec<String>,
    /// A JSON object of your own
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    metadata: Option<Value>,
    /// What makes a repeat recognisable
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Do not wait until they are made
    #[arg(long)]
    no_wait: bool,
}

const COLUMNS: [Column; 10] = [
    ("ID", "id"),
    ("STATE", "state"),
    ("REASON", "reason"),
    ("COUNT", "count"),
    ("DONE", "done"),
    ("PATTERN", "pattern"),
    ("GROUP", "group"),
    ("MAX", "max_uses"),
    ("CREATED", "created_at"),
    ("FINISHED", "finished_at"),
];

impl Command {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let client = common.client()?;
        let show = async |batch: BatchId| {
            client.ask(Method::GET, &common.path(&format!("/batches/{batch}")), None).await
        };
        match self {
            Self::Generate(generate) => {
                let wait = !generate.no_wait;
                let key = generate.idempotency_key.clone();
                let key = key.unwrap_or_else(|| crate::ids::unique().to_string());
                let path = common.path("/batches");
                let ordered = client.post(&path, &generate.body(), Some(&key)).await;
                let mut batch =
                    ordered.with_context(|| format!("with the idempotency key {key}"))?;
                if wait {
                    batch = watch(&client, common, batch).await?;
                }
                common.output.one(&COLUMNS, &batch)?;
                if batch["state"] == "failed" {
                    complain(batch["reason"].as_str().unwrap_or_default());
                    return Ok(ExitCode::FAILURE);
                }
            }
            Self::Show { batch } => common.output.one(&COLUMNS, &show(batch).await?)?,
            Self::Download { batch, file } => {
                if show(batch).await?["state"] != "finished" {
                    complain("this batch is not finished; these are the codes that there are");
                }
                let format = if common.output == Output::Json { "ndjson" } else { "csv" };
                let path = common.path(&format!("/batches/{batch}/codes?format={format}"));
                download(&client, &path, file).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Generate {
    fn body(self) -> Value {
        let mut body = Map::new();
        body.insert("count".to_owned(), json!(self.count));
        body.insert("pattern".to_owned(), json!(self.pattern));
        body.insert("group".to_owned(), json!(self.group));
        body.insert("max_uses".to_owned(), json!(self.max_uses));
        body.insert("max_uses_per_user".to_owned(), json!(self.max_uses_per_user));
        let optional = [
            ("alphabet", self.alphabet),
            ("campaign", self.campaign),
            ("starts_at", self.starts_at),
            ("expires_at", self.expires_at),
        ];
        body.extend(
            optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))),
        );
        if !self.email_domain.is_empty() {
            body.insert("email_domains".to_owned(), json!(self.email_domain));
        }
        if let Some(metadata) = self.metadata {
            body.insert("metadata".to_owned(), metadata);
        }
        Value::Object(body)
    }
}

/// Shows how far a batch is until it has come to an end.
async fn watch(client: &Client, common: &Common, mut batch: Value) -> anyhow::Result<Value> {
    let id = batch["id"].as_str().unwrap_or_default().to_owned();
    let path = common.path(&format!("/batches/{id}"));
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} codes {per_sec} {wide_msg}")?;
    let bar = ProgressBar::new(batch["count"].as_u64().unwrap_or_default()).with_style(style);
    bar.set_message(format!("batch {id}"));
    let mut unanswered = 0;
    while matches!(batch["state"].as_str(), Some("waiting" | "running")) {
        bar.set_position(batch["done"].as_u64().unwrap_or_default());
        tokio::time::sleep(LOOK).await;
        match client.ask(Method::GET, &path, None).await {
            Ok(now) => (batch, unanswered) = (now, 0),
            Err(error) if unanswered < PATIENCE && may_come_back(&error) => unanswered += 1,
            Err(error) => {
                return Err(error).with_context(|| format!("the service goes on with batch {id}"));
            }
        }
    }
    bar.finish_and_clear();
    Ok(batch)
}

fn may_come_back(error: &ClientError) -> bool {
    match error {
        ClientError::Problem(problem) => problem.retryable,
        ClientError::Transport { .. } => true,
        ClientError::Foreign { .. } => false,
    }
}

/// Writes a download to a file, which others can not read, or to standard output.
async fn download(client: &Client, path: &str, file: Option<PathBuf>) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let Some(name) = file else {
        return match client.download(path, |bytes| Ok(pass_on(bytes)?)).await {
            // Whoever reads has seen enough.
            Err(error) if is_broken_pipe(&error) => Ok(()),
            other => other,
        };
    };
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let cannot = || format!("{} can not be written", name.display());
    let mut writer = io::BufWriter::new(options.open(&name).with_context(cannot)?);
    let style = ProgressStyle::with_template("{spinner} {bytes} {bytes_per_sec}")?;
    let bar = ProgressBar::new_spinner().with_style(style);
    client
        .download(path, |bytes| {
            bar.inc(bytes.len() as u64);
            writer.write_all(bytes).with_context(cannot)
        })
        .await?;
    bar.finish_and_clear();
    writer.flush().with_context(cannot)
}

pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
