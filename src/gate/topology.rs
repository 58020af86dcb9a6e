//! What kind of Redis a URL names: one server, one behind sentinels, or a cluster.
//!
//! ```text
//! redis://[user:password@]host[:6379][/db]                     unix:///path
//! redis-sentinel://[user:password@]host[:26379],…[/db]?master=NAME[&sentinel_user=…][&sentinel_password=…]
//! redis-cluster://[user:password@]host[:6379],…
//! ```
//!
//! `rediss://`, `rediss-sentinel://` and `rediss-cluster://` use TLS for every connection. The user and the password are
//! those of the servers; sentinels have their own.

use percent_encoding::percent_decode_str;
use redis::{
    ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult,
    TlsCertificates,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};
use std::{fmt, path::Path, time::Duration};

/// The certificates that TLS uses, in PEM.
#[derive(Clone, Default)]
pub struct Tls {
    /// Who may have signed the servers' certificates; nothing means those that this system trusts.
    pub ca: Option<Vec<u8>>,
    /// This client's certificate and its key, for servers that ask for one.
    pub own: Option<(Vec<u8>, Vec<u8>)>,
}

/// How the servers that hold the gate are found.
#[derive(Clone)]
pub enum Topology {
    /// One server at a fixed place.
    Standalone(ConnectionInfo),
    /// One primary, and sentinels that say which server that is.
    Sentinel {
        /// Each sentinel.
        sentinels: Vec<ConnectionInfo>,
        /// What they call the primary.
        name: String,
        /// How to connect to it, but for its place.
        redis: ConnectionInfo,
    },
    /// Primaries that share the slots.
    Cluster {
        /// Some of its servers; they tell of the others.
        seeds: Vec<ConnectionInfo>,
    },
}

/// Says nothing of users and passwords.
impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standalone(_) => "Standalone",
            Self::Sentinel { .. } => "Sentinel",
            Self::Cluster { .. } => "Cluster",
        })
    }
}

/// What every message about a URL ends with.
const FORMS: &str = "use redis://host:port[/db], unix:///path, redis-sentinel://host:port,host:port?master=NAME or \
                     redis-cluster://host:port,host:port; with TLS, rediss…";

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;

impl Topology {
    /// Understands a URL.
    ///
    /// # Errors
    /// What is wrong with it, in words that repeat nothing of it.
    pub fn parse(url: &str, tls: &Tls) -> Result<Self, String> {
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| format!("there is no scheme; {FORMS}"))?;
        match scheme {
            "redis" | "rediss" | "unix" | "redis+unix" => {
                connection(url, tls).map(Self::Standalone)
            }
            "redis-sentinel" | "rediss-sentinel" => sentinel(tls_scheme(scheme), rest, tls),
            "redis-cluster" | "rediss-cluster" => cluster(tls_scheme(scheme), rest, tls),
            _ => Err(format!("the scheme is not known; {FORMS}")),
        }
    }

    /// One server that listens on a socket.
    ///
    /// # Errors
    /// Never; the crate's conversion could fail for other addresses.
    pub fn socket(path: &Path) -> RedisResult<Self> {
        ConnectionAddr::Unix(path.to_owned()).into_connection_info().map(Self::Standalone)
    }

    /// The command that opens it in a terminal; of sentinels, the one that asks where the primary is. It holds no
    /// password.
    #[must_use]
    pub fn redis_cli(&self) -> String {
        match self {
            Self::Standalone(redis) => client(redis, ""),
            Self::Cluster { seeds } => client(&seeds[0], " -c"),
            Self::Sentinel { sentinels, name, .. } => {
                format!("{} SENTINEL GET-MASTER-ADDR-BY-NAME {name}", client(&sentinels[0], ""))
            }
        }
    }

    /// How to connect to a server of it at this place.
    pub(super) fn at(&self, host: &str, port: u16) -> ConnectionInfo {
        let model = match self {
            Self::Standalone(redis) | Self::Sentinel { redis, .. } => redis,
            Self::Cluster { seeds } => &seeds[0],
        };
        moved(model, host, port)
    }
}

fn tls_scheme(scheme: &str) -> &'static str {
    if scheme.starts_with("rediss") { "rediss" } else { "redis" }
}

fn sentinel(scheme: &str, rest: &str, tls: &Tls) -> Result<Topology, String> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (mut name, mut user, mut password) = (None, None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8().map_err(|error| error.to_string())?;
        let slot = match key {
            "master" => &mut name,
            "sentinel_user" => &mut user,
            "sentinel_password" => &mut password,
            _ => return Err(format!("a parameter is not known; {FORMS}")),
        };
        *slot = Some(value.into_owned());
    }
    let name = name
        .filter(|name| !name.is_empty())
        .ok_or_else(|| format!("there is no ?master=NAME; {FORMS}"))?;
    let (login, places, path) = parts(rest);
    let redis = connection(&format!("{scheme}://{login}{}{path}", places[0]), tls)?;
    let sentinel = |place: &&str| {
        let (host, port) = host_and_port(place, SENTINEL_PORT)?;
        let info = connection(&format!("{scheme}://{host}:{port}"), tls)?;
        let mut own = info.redis_settings().clone();
        if let Some(user) = &user {
            own = own.set_username(user);
        }
        if let Some(password) = &password {
            own = own.set_password(password);
        }
        Ok(info.set_redis_settings(own))
    };
    let sentinels = places.iter().map(sentinel).collect::<Result<_, String>>()?;
    Ok(Topology::Sentinel { sentinels, name, redis })
}

fn cluster(scheme: &str, rest: &str, tls: &Tls) -> Result<Topology, String> {
    let (login, places, path) = parts(rest);
    if !path.trim_matches('/').is_empty() || rest.contains('?') {
        return Err(format!("a cluster has one database and no parameters; {FORMS}"));
    }
    let seed = |place: &&str| {
        let (host, port) = host_and_port(place, REDIS_PORT)?;
        connection(&format!("{scheme}://{login}{host}:{port}"), tls)
    };
    let seeds = places.iter().map(seed).collect::<Result<_, String>>()?;
    Ok(Topology::Cluster { seeds })
}

/// `user:password@`, the places, and `/path`.
fn parts(rest: &str) -> (&str, Vec<&str>, &str) {
    let login = rest.rfind('@').map_or(0, |at| at + 1);
    let (login, rest) = rest.split_at(login);
    let (places, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    (login, places.split(',').collect(), path)
}

fn host_and_port(place: &str, default: u16) -> Result<(&str, u16), String> {
    // A colon inside brackets belongs to an address of IPv6.
    let colon = place.rfind(':').filter(|colon| !place[*colon..].contains(']'));
    let (host, port) = match colon {
        Some(colon) => (&place[..colon], place[colon + 1..].parse().ok()),
        None => (place, Some(default)),
    };
    match port {
        Some(port) if !host.is_empty() => Ok((host, port)),
        _ => Err(format!("a place is not host:port; {FORMS}")),
    }
}

fn connection(url: &str, tls: &Tls) -> Result<ConnectionInfo, String> {
    let info = url.into_connection_info().map_err(|error| format!("{error}; {FORMS}"))?;
    let info = match info.addr() {
        ConnectionAddr::TcpTls { insecure: true, .. } => {
            return Err(
                "#insecure would accept anybody's certificate; name yours with redis.tls_ca_file"
                    .to_owned(),
            );
        }
        ConnectionAddr::TcpTls { .. } => {
            let client_tls = tls
                .own
                .clone()
                .map(|(cert, key)| ClientTlsConfig { client_cert: cert, client_key: key });
            let certificates = TlsCertificates { client_tls, root_cert: tls.ca.clone() };
            let client = redis::Client::build_with_tls(info, certificates)
                .map_err(|error| format!("the certificates can not be used: {error}"))?;
            client.get_connection_info().clone()
        }
        _ => info,
    };
    Ok(tuned(info))
}

/// The same connection to another place.
fn moved(model: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let host = host.to_owned();
    let addr = match model.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    model.clone().set_addr(addr)
}

fn client(info: &ConnectionInfo, flags: &str) -> String {
    let own = info.redis_settings();
    let at = match info.addr() {
        ConnectionAddr::Unix(path) => format!(" -s {}", path.display()),
        ConnectionAddr::TcpTls { host, port, .. } => format!(" -h {host} -p {port} --tls"),
        ConnectionAddr::Tcp(host, port) => format!(" -h {host} -p {port}"),
        _ => String::new(),
    };
    let user = own.username().map(|user| format!(" --user {user}")).unwrap_or_default();
    let password = if own.password().is_some() { " --askpass" } else { "" };
    let database = if own.db() == 0 { String::new() } else { format!(" -n {}", own.db()) };
    format!("redis-cli{flags}{at}{user}{password}{database}")
}

/// Small packets at once, and a probe when the other side is silent: a peer that vanished must not hold a lane.
fn tuned(info: ConnectionInfo) -> ConnectionInfo {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5));
    info.set_tcp_settings(TcpSettings::default().set_nodelay(true).set_keepalive(keepalive))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Topology, String> {
        Topology::parse(url, &Tls::default())
    }

    fn shown(info: &ConnectionInfo) -> String {
        let own = info.redis_settings();
        format!(
            "{}:{}@{}/{}",
            own.username().unwrap_or_default(),
            own.password().unwrap_or_default(),
            info.addr(),
            own.db()
        )
    }

    #[test]
    fn sentinels_have_users_of_their_own() {
        let url = "redis-sentinel://app:s%40t@one,two:7,[::1]:8/3?master=gate&sentinel_user=w&sentinel_password=%26";
        let Ok(Topology::Sentinel { sentinels, name, redis }) = parse(url) else { panic!() };
        let sentinels: Vec<_> = sentinels.iter().map(shown).collect();
        assert_eq!(sentinels, ["w:&@one:26379/0", "w:&@two:7/0", "w:&@::1:8/0"]);
        assert_eq!((name.as_str(), shown(&redis).as_str()), ("gate", "app:s@t@one:6379/3"));
        assert_eq!(shown(&moved(&redis, "there", 9)), "app:s@t@there:9/3");
    }

    #[test]
    fn the_servers_of_a_cluster_share_their_login() {
        let Ok(Topology::Cluster { seeds }) = parse("redis-cluster://app:pw@one,two:7") else {
            panic!()
        };
        let seeds: Vec<_> = seeds.iter().map(shown).collect();
        assert_eq!(seeds, ["app:pw@one:6379/0", "app:pw@two:7/0"]);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for url in [
            "one:6379",
            "http://:hush@one",
            "redis://:hush@one:port",
            "redis-sentinel://:hush@one,two",
            "redis-sentinel://:hush@one?master=",
            "redis-sentinel://:hush@one?master=a&mister=b",
            "redis-sentinel://:hush@one,?master=a",
            "redis-cluster://:hush@one:x",
            "redis-cluster://:hush@one/1",
            "redis-cluster://:hush@one?x=1",
            "redis-cluster://",
            "rediss://:hush@one#insecure",
        ] {
            let problem = parse(url).expect_err(url);
            assert!(!problem.contains("hush"), "{problem}");
        }
    }
}
