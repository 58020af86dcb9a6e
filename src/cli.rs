//! The command line: parse, call, print. It decides nothing.

mod audit;
mod audit_log;
mod backup;
mod campaign;
mod codes;
mod config;
mod dead_letters;
mod demo;
mod events;
mod export;
mod healthcheck;
mod import;
mod inspect;
mod invite;
mod key;
mod member;
mod namespace;
mod openapi;
mod output;
mod rebuild;
mod redeem;
mod redemption;
mod reservation;
mod serve;
mod shell;
mod stats;
mod status;
mod torture;
mod validate;
mod webhook;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use secrecy::SecretString;

use self::output::Output;
use crate::{
    app,
    client::{Client, ClientError},
    config::{Config, Problems, Sources},
    domain::Namespace,
    ledger::{By, Ledger},
};

/// Wrong usage or configuration; clap uses the same.
const WRONG_USAGE: u8 = 2;
/// It is not known whether it was done.
const UNKNOWN: u8 = 3;

/// Redeem invite codes: N uses are spent exactly N times, however many ask at once.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Examples:
  redeemer serve
  redeemer invite create WELCOME --group team --max-uses 100
  redeemer codes generate --count 1000 --pattern 'SPRING-####-####' --group team --max-uses 1
  redeemer redeem WELCOME --user alice
  redeemer inspect --code WELCOME
  redeemer demo

Exit codes: 0 done, 1 refused or failed, 2 wrong usage or configuration, 3 it is not known whether it was done."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Configuration file; without it, redeemer.toml is read where there is one
    #[arg(long, value_name = "FILE", env = "REDEEMER_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// How to print: table for people, json or csv for programs
    #[arg(long, value_enum, default_value_t = Output::Table, global = true)]
    output: Output,
    /// The service to ask; without it, the one of the configuration on this machine
    #[arg(long, value_name = "URL", env = "REDEEMER_URL", global = true)]
    url: Option<String>,
    /// API key; without it, the configured admin key or the one in the data directory
    #[arg(long, value_name = "KEY", env = "REDEEMER_KEY", hide_env_values = true, global = true)]
    key: Option<String>,
    /// File that has the API key
    #[arg(long, value_name = "FILE", env = "REDEEMER_KEY_FILE", global = true)]
    key_file: Option<PathBuf>,
    /// Namespace
    #[arg(long, short, value_name = "NAME", default_value = "default", value_parser = parse_namespace, global = true)]
    namespace: Namespace,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service
    Serve(serve::Serve),
    /// Make, list, show, change and archive namespaces
    #[command(subcommand)]
    Namespace(namespace::Command),
    /// Make, list, show, change and delete invites
    #[command(subcommand)]
    Invite(invite::Command),
    /// Make codes in bulk, and download them
    #[command(subcommand)]
    Codes(codes::Command),
    /// Download everything of a kind: as CSV, or with --output json as NDJSON
    Export(export::Export),
    /// Take over invites with spent uses, or members who joined elsewhere
    Import(import::Import),
    /// Show how requests ended over time, what is left, and how far the ledger is
    Stats(stats::Stats),
    /// Follow what happens, until it is stopped
    Events(events::Events),
    /// Spend one use of a code for a user
    Redeem(redeem::Redeem),
    /// Say what a redemption would be told, without one
    Validate(validate::Validate),
    /// List and show redemptions, and take them back
    #[command(subcommand)]
    Redemption(redemption::Command),
    /// Hold a use while a form or a payment completes
    #[command(subcommand)]
    Reservation(reservation::Command),
    /// Make, change, list and show limits that invites share
    #[command(subcommand)]
    Campaign(campaign::Command),
    /// Let users join and leave another way than by a code, and show who is in
    #[command(subcommand)]
    Member(member::Command),
    /// Show what Redis holds of a code or a user, with the redis-cli commands that show it
    Inspect(inspect::Inspect),
    /// Have events sent to a URL, and see what became of them
    #[command(subcommand)]
    Webhook(webhook::Command),
    /// Make, list and revoke API keys
    #[command(subcommand)]
    Key(key::Command),
    /// Show whether the service is well, and how far each partition's ledger is
    #[command(after_help = "Exit code 0: ready for requests; 1: not.

Example:
  redeemer status --output json")]
    Status,
    /// Throw away what Redis has and build it anew from the ledger
    Rebuild(rebuild::Rebuild),
    /// Compare what Redis holds with what the ledger says
    Audit(audit::Audit),
    /// Show who changed what
    AuditLog(audit_log::AuditLog),
    /// Show the changes that the ledger could not take, and try them again
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Copy the ledger, also while the service runs
    Backup(backup::Backup),
    /// Put a backup's ledger into an empty data directory
    Restore(backup::Restore),
    /// Check and show the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Print the OpenAPI document of the HTTP API
    #[command(after_help = "Example:
  redeemer openapi > openapi.json")]
    Openapi,
    /// Exit with 0 if the service is ready for requests
    #[command(after_help = "Example:
  redeemer healthcheck --url http://127.0.0.1:8080")]
    Healthcheck,
    /// Let 10,000 users rush a code with 1,000 uses, then prove what came of it
    Demo(demo::Demo),
    /// Let users rush a deployment of its own while nodes and Redis are killed, then prove what came of it
    Torture(torture::Torture),
    /// Print what a shell needs to complete commands
    Completions(shell::Completions),
    /// Print the man page, or write those of all commands
    Man(shell::ManPages),
}

/// Runs the command that the arguments name, and says how it went.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    // One provider of cryptography in the program, or TLS would not know which to take.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        output::complain("another provider of cryptography is installed");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::complain(&format!("no threads can be started: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(execute(cli)) {
        Ok(code) => code,
        Err(error) => {
            output::complain(&format!("{error:#}"));
            exit_code(&error)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    let unknown = |error: &ClientError| error.is_unknown();
    if error.downcast_ref::<ClientError>().is_some_and(unknown) {
        ExitCode::from(UNKNOWN)
    } else if error.is::<Problems>() {
        ExitCode::from(WRONG_USAGE)
    } else {
        ExitCode::FAILURE
    }
}

async fn execute(Cli { command, common }: Cli) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(serve) => serve.run(&common).await?,
        Command::Namespace(command) => command.run(&common).await?,
        Command::Invite(command) => command.run(&common).await?,
        Command::Codes(command) => return command.run(&common).await,
        Command::Export(export) => return export.run(&common).await,
        Command::Import(import) => return import.run(&common).await,
        Command::Stats(stats) => return stats.run(&common).await,
        Command::Events(events) => events.run(&common).await?,
        Command::Redeem(redeem) => redeem.run(&common).await?,
        Command::Validate(validate) => return validate.run(&common).await,
        Command::Redemption(command) => command.run(&common).await?,
        Command::Reservation(command) => command.run(&common).await?,
        Command::Campaign(command) => command.run(&common).await?,
        Command::Member(command) => command.run(&common).await?,
        Command::Inspect(inspect) => inspect.run(&common).await?,
        Command::Webhook(command) => command.run(&common).await?,
        Command::Key(command) => command.run(&common).await?,
        Command::Status => return status::run(&common).await,
        Command::Rebuild(rebuild) => rebuild.run(&common).await?,
        Command::Audit(audit) => return audit.run(&common).await,
        Command::AuditLog(log) => log.run(&common).await?,
        Command::DeadLetters(command) => return command.run(&common).await,
        Command::Backup(backup) => backup.run(&common).await?,
        Command::Restore(restore) => restore.run(&common).await?,
        Command::Config(command) => command.run(&common)?,
        Command::Openapi => openapi::run(),
        Command::Healthcheck => return healthcheck::run(&common).await,
        Command::Demo(demo) => return demo.run(&common).await,
        Command::Torture(torture) => return torture.run(&common).await,
        Command::Completions(completions) => completions.run(Cli::command())?,
        Command::Man(pages) => pages.run(Cli::command())?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Common {
    /// The configuration of this machine, with these flags on top.
    fn config(&self, flags: Vec<(String, String)>) -> Result<Config, Problems> {
        let here = PathBuf::from("redeemer.toml");
        let file = self.config.clone().or_else(|| here.is_file().then_some(here));
        let env: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Config::load(&Sources { file, env, flags })
    }

    /// A client of the service that the flags or the configuration name.
    fn client(&self) -> anyhow::Result<Client> {
        let config = self.config(Vec::new())?;
        let key = self.api_key(&config)?;
        Ok(Client::new(&self.service(&config), key)?)
    }

    /// Where the service is.
    fn service(&self, config: &Config) -> String {
        self.url.clone().unwrap_or_else(|| format!("http://{}", reachable(config.http.bind)))
    }

    fn api_key(&self, config: &Config) -> anyhow::Result<SecretString> {
        if let Some(key) = self.key.as_ref().filter(|key| !key.trim().is_empty()) {
            return Ok(SecretString::from(key.trim()));
        }
        if let Some(path) = &self.key_file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("the API key in {} can not be read", path.display()))?;
            return Ok(SecretString::from(text.trim()));
        }
        // This machine's key is for this machine's service.
        let here = format!("http://{}", reachable(config.http.bind));
        if let Some(url) =
            self.url.as_ref().filter(|url| url.trim_end_matches('/') != here && !is_local(url))
        {
            anyhow::bail!("no API key for {url}: set REDEEMER_KEY, --key or --key-file");
        }
        if let Some(key) = &config.auth.admin_key {
            return Ok(key.clone());
        }
        let path = config.admin_key_file();
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "no API key: set REDEEMER_KEY, --key or --key-file, since {} can not be read",
                path.display()
            )
        })?;
        Ok(SecretString::from(text.trim()))
    }

    /// A path below this namespace.
    fn path(&self, rest: &str) -> String {
        format!("/v1/namespaces/{}{rest}", self.namespace)
    }
}

/// The service's ledger, from its configuration; one that is not there is not made.
async fn ledger(config: &Config) -> anyhow::Result<Ledger> {
    if let Some(path) = config.ledger.place.missing_file() {
        anyhow::bail!(
            "there is no ledger at {}; set data.dir or ledger.url as the service has it",
            path.display()
        );
    }
    app::ledger(config).await.map_err(anyhow::Error::msg)
}

/// Whoever uses this program on the ledger itself, without an API key: what the system calls them.
fn by_hand() -> By {
    let name = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let name = name.filter(|name| (1..=64).contains(&name.len()));
    let name = name.unwrap_or_else(|| rustix::process::getuid().as_raw().to_string());
    By { actor: format!("cli:{name}"), request_id: None }
}

/// Where a service that listens on `bind` can be reached from this machine.
fn reachable(mut bind: std::net::SocketAddr) -> std::net::SocketAddr {
    if bind.ip().is_unspecified() {
        bind.set_ip(match bind {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    bind
}

/// Whether a service is on this machine.
fn is_local(url: &str) -> bool {
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    address.parse().is_ok_and(|address: std::net::SocketAddr| address.ip().is_loopback())
}

fn parse_namespace(text: &str) -> Result<Namespace, String> {
    Namespace::parse(text).map_err(|error| error.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        // Or one would silently be taken for the other.
        let command = Cli::command();
        let of_all: Vec<_> = command.get_arguments().map(|one| one.get_id().clone()).collect();
        let mut open: Vec<_> = command.get_subcommands().collect();
        while let Some(command) = open.pop() {
            open.extend(command.get_subcommands());
            let mut own = command.get_arguments().map(clap::Arg::get_id);
            let name = command.get_name();
            assert_eq!(
                own.find(|id| of_all.contains(id)),
                None,
                "{name} takes it in another sense"
            );
        }
    }

    #[test]
    fn every_command_has_an_example() {
        fn look(command: &clap::Command, words: &str, above: &str, lacking: &mut Vec<String>) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let words = format!("{words} {}", command.get_name());
            let has_example = help.contains(&words) || above.contains(&words);
            if command.get_subcommands().next().is_none() && !has_example {
                lacking.push(words.clone());
            }
            for below in command.get_subcommands() {
                look(below, &words, &help, lacking);
            }
        }
        let mut lacking = Vec::new();
        for command in Cli::command().get_subcommands() {
            look(command, "redeemer", "", &mut lacking);
        }
        assert_eq!(lacking, [""; 0]);
    }
}
