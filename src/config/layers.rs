//! The layers of the configuration, kept apart so that every value knows where it came from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use config::{Environment, File, FileFormat, Value, ValueKind};

use super::{DEFAULT, Problems};

/// Where the configuration is read from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A file that must exist.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Keys and values given on the command line.
    pub flags: Vec<(String, String)>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `config/default.toml`.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Env(name) => f.write_str(name),
            Self::Flag => f.write_str("a flag"),
        }
    }
}

/// A setting as it may be shown.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Its key.
    pub key: String,
    /// Its value, masked where it is a secret.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Keys whose values are secret.
const SECRETS: [&str; 3] = ["auth.admin_key", "page.token_secret", "page.token_secret_previous"];
/// Keys whose values are URLs that may hold a password.
const URLS: [&str; 2] = ["redis.url", "ledger.url"];
/// Variables without the prefix that other programs use too.
const PLAIN: [(&str, &str); 2] = [("REDIS_URL", "redis.url"), ("DATABASE_URL", "ledger.url")];
/// Variables with the prefix that are not settings of the service.
const OTHER: [&str; 4] = ["REDEEMER_CONFIG", "REDEEMER_URL", "REDEEMER_KEY", "REDEEMER_KEY_FILE"];

/// All values, each of the strongest layer that has it.
pub(super) struct Layers {
    values: BTreeMap<String, (String, Origin)>,
    known: BTreeSet<String>,
}

impl Layers {
    pub(super) fn read(sources: &Sources) -> Result<Self, Problems> {
        let defaults = flatten(File::from_str(DEFAULT, FileFormat::Toml))
            .map_err(|error| Problems(vec![error]))?;
        let known = defaults.keys().cloned().collect();
        let mut layers = Self { values: BTreeMap::new(), known };
        layers.add(defaults, |_| Origin::Default);
        let mut problems = Vec::new();
        if let Some(path) = &sources.file {
            match flatten(File::from(path.as_path()).format(FileFormat::Toml)) {
                Ok(values) => layers.add(values, |_| Origin::File(path.clone())),
                Err(error) => {
                    problems.push(format!("{}: {}", path.display(), without_source(&error)));
                }
            }
        }
        for (name, key) in PLAIN {
            if let Some(value) = sources.env.get(name) {
                layers.set(key, value.clone(), Origin::Env(name.to_owned()));
            }
        }
        let own = |(name, _): &(&String, &String)| {
            name.starts_with("REDEEMER_") && !OTHER.contains(&name.as_str())
        };
        // A setting may have such a name itself.
        let is_file = |(name, _): &(&String, &String)| {
            name.ends_with("_FILE") && !layers.known.contains(&key_of(name))
        };
        let (files, plain): (Vec<_>, Vec<_>) = sources.env.iter().filter(own).partition(is_file);
        let plain = plain.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let environment = Environment::with_prefix("REDEEMER")
            .prefix_separator("_")
            .separator("__")
            .source(Some(plain));
        match flatten(environment) {
            Ok(values) => layers.add(values, |key| Origin::Env(variable(key))),
            Err(error) => problems.push(error),
        }
        for (name, path) in files {
            let key = key_of(name.trim_end_matches("_FILE"));
            match std::fs::read_to_string(Path::new(path)) {
                Ok(text) => layers.set(&key, text.trim_end().to_owned(), Origin::Env(name.clone())),
                Err(error) => {
                    problems.push(format!("{name} names {path}, which can not be read: {error}"));
                }
            }
        }
        for (key, value) in &sources.flags {
            layers.set(key, value.clone(), Origin::Flag);
        }
        if problems.is_empty() { Ok(layers) } else { Err(Problems(problems)) }
    }

    fn add(&mut self, values: BTreeMap<String, String>, origin: impl Fn(&str) -> Origin) {
        for (key, value) in values {
            let origin = origin(&key);
            self.set(&key, value, origin);
        }
    }

    fn set(&mut self, key: &str, value: String, origin: Origin) {
        self.values.insert(key.to_owned(), (value, origin));
    }

    pub(super) fn value(&self, key: &str) -> Option<String> {
        self.values.get(key).map(|(value, _)| value.clone())
    }

    /// The value and its origin, for a message.
    pub(super) fn shown(&self, key: &str) -> String {
        match self.values.get(key) {
            Some((value, origin)) => format!("{:?} (from {origin})", mask(key, value)),
            None => "nothing".to_owned(),
        }
    }

    /// A problem for every key that is none.
    pub(super) fn unknown(&self) -> Vec<String> {
        let unknown = self.values.iter().filter(|(key, _)| !self.known.contains(*key));
        unknown
            .map(|(key, (_, origin))| {
                format!(
                    "{key} (from {origin}) is not a setting; `redeemer config show` lists them all"
                )
            })
            .collect()
    }

    pub(super) fn settings(&self) -> Vec<Setting> {
        let setting = |(key, (value, origin)): (&String, &(String, Origin))| Setting {
            key: key.clone(),
            value: mask(key, value),
            origin: origin.clone(),
        };
        self.values.iter().map(setting).collect()
    }
}

/// `redis.url` is REDEEMER_REDIS__URL.
fn variable(key: &str) -> String {
    format!("REDEEMER_{}", key.to_uppercase().replace('.', "__"))
}

/// REDEEMER_REDIS__URL is `redis.url`.
fn key_of(variable: &str) -> String {
    variable.trim_start_matches("REDEEMER_").to_lowercase().replace("__", ".")
}

fn mask(key: &str, value: &str) -> String {
    if value.is_empty() {
        String::new()
    } else if SECRETS.contains(&key) {
        "***".to_owned()
    } else if URLS.contains(&key) {
        mask_url(value)
    } else {
        value.to_owned()
    }
}

/// A URL with what stands before its last `@` and after its `?` masked: both may hold a password.
pub(super) fn mask_url(url: &str) -> String {
    let (place, query) = url.split_once('?').map_or((url, ""), |(place, _)| (place, "?***"));
    match (place.find("://"), place.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => {
            format!("{}***{}{query}", &place[..scheme + 3], &place[at..])
        }
        _ => format!("{place}{query}"),
    }
}

/// A parse error without the lines of the file that it quotes: one of them may hold a secret.
fn without_source(error: &str) -> String {
    let quotes =
        |line: &&str| !line.trim_start().starts_with(|c: char| c.is_ascii_digit() || c == '|');
    error.lines().filter(quotes).collect::<Vec<_>>().join(" ")
}

/// All values of one source by dotted keys.
fn flatten(
    source: impl config::Source + Send + Sync + 'static,
) -> Result<BTreeMap<String, String>, String> {
    let built =
        config::Config::builder().add_source(source).build().map_err(|error| error.to_string())?;
    let tables =
        built.try_deserialize::<BTreeMap<String, Value>>().map_err(|error| error.to_string())?;
    let mut values = BTreeMap::new();
    for (name, value) in tables {
        flatten_into(&mut values, name, value)?;
    }
    Ok(values)
}

fn flatten_into(
    values: &mut BTreeMap<String, String>,
    name: String,
    value: Value,
) -> Result<(), String> {
    if let ValueKind::Table(table) = value.kind {
        return table
            .into_iter()
            .try_for_each(|(key, value)| flatten_into(values, format!("{name}.{key}"), value));
    }
    let text = value.into_string().map_err(|error| format!("{name}: {error}"))?;
    values.insert(name, text);
    Ok(())
}
