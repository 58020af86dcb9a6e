//! What the gate needs of the Redis that it runs on.

use redis::RedisError;

use super::{Gate, GateError, servers::Server};

/// The oldest version that can run the scripts: script flags came with it.
const MAJOR_MIN: u32 = 7;

/// Why a Redis can not be a gate, with the exact fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Unfit {
    /// It is too old.
    #[error(
        "Redis {version} is too old: the scripts need Redis 7.0 or Valkey 7.2; upgrade it, or point redis.url to a newer one"
    )]
    TooOld {
        /// What it is.
        version: String,
    },
    /// It throws keys away when its memory is full, and with them the record of what is spent.
    #[error(
        "Redis would evict keys (maxmemory-policy is {policy}), and spent uses would be granted again; run `redis-cli CONFIG SET maxmemory-policy noeviction` and put that into its configuration"
    )]
    Evicts {
        /// Its policy.
        policy: String,
    },
    /// It takes no writes.
    #[error(
        "Redis is a replica and takes no writes; point redis.url to its primary, or let sentinels say which that is (redis-sentinel://host:26379?master=NAME)"
    )]
    Replica,
    /// It has only some of the partitions.
    #[error(
        "Redis is one server of a cluster and has only some of the keys; use redis-cluster://host:port in redis.url"
    )]
    OneOfCluster,
}

/// What a Redis says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ServerInfo {
    version: String,
    /// Its `maxmemory-policy`.
    policy: String,
    /// `master` or `slave`.
    role: String,
    is_of_cluster: bool,
}

impl ServerInfo {
    /// Everything that keeps this Redis from being a gate; `fixed` says that it was named itself, not found by others'
    /// word.
    fn unfit(&self, fixed: bool) -> Vec<Unfit> {
        let mut found = Vec::new();
        let major = self.version.split('.').next().and_then(|major| major.parse().ok());
        if major.is_none_or(|major: u32| major < MAJOR_MIN) {
            found.push(Unfit::TooOld { version: self.version.clone() });
        }
        if self.policy != "noeviction" {
            found.push(Unfit::Evicts { policy: self.policy.clone() });
        }
        if fixed && self.role == "slave" {
            found.push(Unfit::Replica);
        }
        if fixed && self.is_of_cluster {
            found.push(Unfit::OneOfCluster);
        }
        found
    }

    fn parse(info: &str) -> Self {
        let value = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        Self {
            version: value("redis_version"),
            policy: value("maxmemory_policy"),
            role: value("role"),
            is_of_cluster: value("cluster_enabled") == "1",
        }
    }
}

/// Asks each Redis that serves a partition what it is; returns everything that keeps one from being a gate, with where
/// that one is unless the URL says it.
///
/// # Errors
/// [`GateError::Unavailable`] when one does not answer.
pub async fn unfit(gate: &Gate) -> Result<Vec<String>, GateError> {
    let unavailable =
        |cause: RedisError| GateError::Unavailable { doing: "asking what it is", cause };
    let servers = &gate.inner.servers;
    let mut found = Vec::new();
    for server in servers.all().await.map_err(unavailable)? {
        let info = info(&server).await.inspect_err(|_| servers.doubt()).map_err(unavailable)?;
        let unfit = info.unfit(servers.is_fixed());
        found.extend(unfit.iter().map(|unfit| {
            if servers.is_fixed() {
                unfit.to_string()
            } else {
                format!("{unfit} ({})", server.place())
            }
        }));
    }
    Ok(found)
}

/// The policy is read from INFO, since CONFIG is often not allowed.
async fn info(server: &Server) -> Result<ServerInfo, RedisError> {
    let mut connection = server.pooled().await?;
    let mut text = String::new();
    for section in ["server", "memory", "replication", "cluster"] {
        let part: String = redis::cmd("INFO").arg(section).query_async(&mut connection).await?;
        text.push_str(&part);
    }
    Ok(ServerInfo::parse(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_or_forgetful_redis_is_unfit() {
        let unfit = |version: &str, policy: &str| {
            let text = format!(
                "# Server\r\nredis_version:{version}\r\n# Memory\r\nmaxmemory_policy:{policy}\r\n"
            );
            ServerInfo::parse(&text).unfit(true)
        };
        assert!(unfit("7.0.15", "noeviction").is_empty());
        assert_eq!(unfit("6.2.1", "noeviction"), [Unfit::TooOld { version: "6.2.1".to_owned() }]);
        let evicts = Unfit::Evicts { policy: "volatile-ttl".to_owned() };
        assert_eq!(unfit("8.0.0", "volatile-ttl"), [evicts]);
        assert_eq!(unfit("", "").len(), 2);
    }

    #[test]
    fn a_replica_and_a_part_of_a_cluster_are_unfit_where_the_url_names_them() {
        let info = ServerInfo::parse(
            "redis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\nrole:slave\r\ncluster_enabled:1\r\n",
        );
        assert_eq!(info.unfit(true), [Unfit::Replica, Unfit::OneOfCluster]);
        assert!(info.unfit(false).is_empty());
    }
}
