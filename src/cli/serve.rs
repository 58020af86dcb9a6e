//! `redeemer serve`

use std::path::PathBuf;

use clap::Args;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

use super::{Common, output::say, reachable};
use crate::{
    app::{self, App},
    config::{Config, Log, masked_url},
    domain::{Code, CodeCase, Namespace},
    gate::{inspect::word_in_shell as word, key::Keyspace},
};

/// The invite of the three lines that the banner prints.
const EXAMPLE: &str = "WELCOME";

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  redeemer serve
  redeemer serve --bind 127.0.0.1:9000 --data-dir ./data
  REDEEMER_REDIS__URL=redis://127.0.0.1:6379 redeemer serve

`redeemer config show` lists every setting with where its value came from.")]
pub(super) struct Serve {
    /// Address and port to listen on (http.bind)
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<String>,
    /// Where the embedded Redis, the ledger and the first admin key lie (data.dir)
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// An existing Redis instead of the embedded one (redis.url)
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,
    /// The ledger (ledger.url)
    #[arg(long, value_name = "URL")]
    ledger_url: Option<String>,
}

impl Serve {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let config = common.config(self.flags())?;
        let _log = start_log(&config.log);
        let app = app::build(config).await?;
        let banner = Banner::new(&app)?;
        let mut readiness = app.readiness();
        let shutdown = CancellationToken::new();
        let told = {
            let shutdown = shutdown.clone();
            async move {
                let ready = readiness.wait_for(crate::http::Readiness::is_ready);
                if let Some(Ok(_)) = shutdown.run_until_cancelled(ready).await {
                    banner.print();
                    tell_manager(NotifyState::Ready);
                }
                keep_watchdog_quiet(&shutdown).await;
                tell_manager(NotifyState::Stopping);
            }
        };
        let stop = stop_on_signal(shutdown.clone());
        let run = app.run(shutdown.clone());
        tokio::pin!(run);
        let ended = tokio::select! {
            ended = &mut run => ended,
            ((), stopped) = async { tokio::join!(told, stop) } => {
                stopped?;
                run.await
            }
        };
        ended?;
        Ok(())
    }

    fn flags(self) -> Vec<(String, String)> {
        let data_dir = self.data_dir.map(|dir| dir.display().to_string());
        let flags = [
            ("http.bind", self.bind),
            ("data.dir", data_dir),
            ("redis.url", self.redis_url),
            ("ledger.url", self.ledger_url),
        ];
        flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

/// Tells whoever started this process how it is, if that is a service manager that listens. Source: sd_notify(3).
fn tell_manager(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager can not be told how this process is");
    }
}

/// Until `shutdown`, says often enough that this process still gets things done, if a service manager wants to hear it.
async fn keep_watchdog_quiet(shutdown: &CancellationToken) {
    let Some(longest) = sd_notify::watchdog_enabled() else { return shutdown.cancelled().await };
    let mut tick = tokio::time::interval(longest / 2);
    while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
        tell_manager(NotifyState::Watchdog);
    }
}

/// Stops at the first Ctrl-C or SIGTERM; the second one ends the process at once.
async fn stop_on_signal(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    shutdown.cancel();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        super::output::complain("stopping at once");
        std::process::exit(130);
    });
    Ok(())
}

/// Lines go to standard error by way of a thread, so that a slow terminal does not hold up a request.
fn start_log(log: &Log) -> WorkerGuard {
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let builder =
        tracing_subscriber::fmt().with_env_filter(EnvFilter::new(&log.level)).with_writer(writer);
    if log.json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
    guard
}

/// What a person needs to know once the service is ready.
struct Banner {
    text: String,
}

impl Banner {
    fn new(app: &App) -> anyhow::Result<Self> {
        let config = app.config();
        let url = format!("http://{}", reachable(app.address()?));
        let redis = match (app.local_server(), &config.redis.place) {
            (Some(server), _) => {
                format!("{} (embedded), {}", server.description(), server.socket().display())
            }
            (None, Some(place)) => masked_url(&place.url),
            (None, None) => String::new(),
        };
        let key = AdminKey::of(config);
        let namespace = Namespace::default_namespace();
        let keys = Keyspace::new(&config.redis.key_prefix, config.gate.partitions);
        let invite =
            Code::parse(EXAMPLE, CodeCase::Sensitive).map(|code| keys.invite(&namespace, &code))?;
        let post = |path: &str, body: &str, more: &str| {
            format!(
                "curl -sS {url}/v1/namespaces/default/{path} -H \"Authorization: Bearer {}\" -H 'Content-Type: application/json'{more} -d '{body}' -w '\\n'",
                key.in_shell()
            )
        };
        // The idempotency key makes the first line work on every start: it makes the same invite, or finds it made.
        let create = post(
            "invites",
            &format!("{{\"code\":\"{EXAMPLE}\",\"group\":\"team\",\"max_uses\":100}}"),
            " -H 'Idempotency-Key: welcome'",
        );
        let redeem =
            post("redemptions", &format!("{{\"code\":\"{EXAMPLE}\",\"user\":\"alice\"}}"), "");
        let look = format!("{} HGETALL '{invite}'", redis_cli(app));
        let text = format!(
            "\nredeemer {version} is ready.\n\n  \
             address    {url}\n  \
             console    {url}/console\n  \
             admin key  {key}\n  \
             Redis      {redis}\n  \
             ledger     {ledger}\n  \
             settings   {settings}\n\n\
             Make an invite, redeem it, and look at it:\n\n{create}\n\n{redeem}\n\n{look}\n",
            version = env!("CARGO_PKG_VERSION"),
            key = key.place(),
            ledger = config.ledger.place,
            settings = settings(config),
        );
        Ok(Self { text })
    }

    fn print(&self) {
        say(&self.text);
    }
}

/// Every setting that is not the default, with where it came from.
fn settings(config: &Config) -> String {
    let own =
        config.settings.iter().filter(|setting| setting.origin != crate::config::Origin::Default);
    let told: Vec<_> =
        own.map(|setting| format!("{} from {}", setting.key, setting.origin)).collect();
    if told.is_empty() { "all defaults".to_owned() } else { told.join(", ") }
}

/// Where the admin key can be got from.
enum AdminKey {
    File(PathBuf),
    Configured,
}

impl AdminKey {
    fn of(config: &Config) -> Self {
        if config.auth.admin_key.is_some() {
            return Self::Configured;
        }
        let file = config.admin_key_file();
        Self::File(std::path::absolute(&file).unwrap_or(file))
    }

    fn place(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Configured => "auth.admin_key".to_owned(),
        }
    }

    /// What a shell puts in its place.
    fn in_shell(&self) -> String {
        match self {
            Self::File(path) => format!("$(cat {})", word(&path.display().to_string())),
            Self::Configured => "$REDEEMER_AUTH__ADMIN_KEY".to_owned(),
        }
    }
}

/// The command that opens this Redis in a terminal.
fn redis_cli(app: &App) -> String {
    match (app.local_server(), &app.config().redis.place) {
        (Some(server), _) => format!(
            "{} -s {}",
            server.client_program(),
            word(&server.socket().display().to_string())
        ),
        (None, Some(place)) => place.topology.redis_cli(),
        (None, None) => "redis-cli".to_owned(),
    }
}
