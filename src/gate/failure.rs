//! What a failed call means for the one who waits for it.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::{GateError, script::Call};

/// What is known about a script after its call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing: it may have run, or may yet run.
    Unknown,
    /// It was refused before any effect, by a server that can not serve now or is no longer the primary.
    NotNow,
    /// It was refused before any effect, and asking again soon would not help: Redis has no memory left, can not
    /// write its files, or does not allow this user the command.
    Refused,
    /// The script itself failed.
    Script,
}

impl Failure {
    /// The word used in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NotNow => "not_now",
            Self::Refused => "refused",
            Self::Script => "script",
        }
    }
}

/// Tells what an error means.
///
/// A script that begins with `#!` is refused before any effect when Redis is out of memory, read-only, short of
/// replicas or unable to persist. Source: Redis documentation, "Scripting with Lua", script flags.
pub(super) fn classify(error: &RedisError) -> Failure {
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly,
        ) => Failure::NotNow,
        ErrorKind::Server(ServerErrorKind::NoPerm) | ErrorKind::AuthenticationFailed => {
            Failure::Refused
        }
        ErrorKind::Server(_) | ErrorKind::Extension => match error.code() {
            Some("BUSY" | "NOREPLICAS") => Failure::NotNow,
            Some("OOM" | "MISCONF" | "NOAUTH" | "WRONGPASS") => Failure::Refused,
            _ => Failure::Script,
        },
        _ => Failure::Unknown,
    }
}

/// Why a call that is not tried again gave no answer.
pub(super) fn once(call: &Call, cause: RedisError) -> GateError {
    match classify(&cause) {
        Failure::Script => {
            GateError::Unexpected { script: call.script().name, message: cause.to_string() }
        }
        Failure::Unknown | Failure::NotNow | Failure::Refused => {
            GateError::Unavailable { doing: "looking after a partition", cause }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_redis_refuses_before_any_effect_is_known_not_to_have_run() {
        let dropped = RedisError::from(std::io::Error::new(std::io::ErrorKind::BrokenPipe, "gone"));
        assert_eq!(classify(&dropped), Failure::Unknown);
        let said = |code: &str| redis::make_extension_error(code.to_owned(), None);
        assert_eq!(classify(&said("OOM")), Failure::Refused);
        assert_eq!(classify(&said("NOREPLICAS")), Failure::NotNow);
        assert_eq!(classify(&said("WRONGTYPE")), Failure::Script);
    }
}
