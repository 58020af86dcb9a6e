//! What the gate needs of the Redis that it runs on.

use redis::RedisError;

use super::{Gate, GateError, link};

/// The oldest version that can run the scripts: script flags came with it.
const MAJOR_MIN: u32 = 7;

/// Why a Redis can not be a gate, with the exact fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
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
}

/// What a Redis says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// Its version.
    pub version: String,
    /// Its `maxmemory-policy`.
    pub policy: String,
}

impl ServerInfo {
    /// Everything that keeps this Redis from being a gate.
    #[must_use]
    pub fn unfit(&self) -> Vec<Unfit> {
        let mut found = Vec::new();
        let major = self.version.split('.').next().and_then(|major| major.parse().ok());
        if major.is_none_or(|major: u32| major < MAJOR_MIN) {
            found.push(Unfit::TooOld { version: self.version.clone() });
        }
        if self.policy != "noeviction" {
            found.push(Unfit::Evicts { policy: self.policy.clone() });
        }
        found
    }

    fn parse(info: &str) -> Self {
        let value = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        Self { version: value("redis_version"), policy: value("maxmemory_policy") }
    }
}

/// Asks Redis what it is. The policy is read from INFO, since CONFIG is often not allowed.
///
/// # Errors
/// [`GateError::Unavailable`] when it does not answer.
pub async fn info(gate: &Gate) -> Result<ServerInfo, GateError> {
    let unavailable =
        |cause: RedisError| GateError::Unavailable { doing: "asking what it is", cause };
    let mut connection =
        gate.inner.pool.get().await.map_err(|error| unavailable(link::pool_error(error)))?;
    let mut text = String::new();
    for section in ["server", "memory"] {
        let part: String = redis::cmd("INFO")
            .arg(section)
            .query_async(&mut connection)
            .await
            .map_err(unavailable)?;
        text.push_str(&part);
    }
    Ok(ServerInfo::parse(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_or_forgetful_redis_is_unfit() {
        let info = |version: &str, policy: &str| {
            ServerInfo::parse(&format!(
                "# Server\r\nredis_version:{version}\r\n# Memory\r\nmaxmemory_policy:{policy}\r\n"
            ))
        };
        assert!(info("7.0.15", "noeviction").unfit().is_empty());
        assert_eq!(
            info("6.2.1", "noeviction").unfit(),
            [Unfit::TooOld { version: "6.2.1".to_owned() }]
        );
        assert_eq!(
            info("8.0.0", "volatile-ttl").unfit(),
            [Unfit::Evicts { policy: "volatile-ttl".to_owned() }]
        );
        assert_eq!(info("", "").unfit().len(), 2);
    }
}
