//! Rate limits: the generic cell rate algorithm (GCRA, ITU-T I.371 annex A) in whole microseconds.
//!
//! A key remembers one number: the theoretical arrival time (TAT), the moment at which its budget is full again. This
//! module is what `lua/redeem.lua` does with that number; the scripts are tested against it.

use std::net::IpAddr;

use super::name::Malformed;

/// So many attempts in so many seconds; all of them may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    count: u64,
    window_seconds: u64,
}

impl Quota {
    /// # Errors
    /// [`Malformed`] unless `count` is 1 to 1,000,000 per second of the window and the window 1 to 86,400 seconds:
    /// beyond that an attempt would cost less than a microsecond, or a key outlive a day.
    pub fn new(count: u64, window_seconds: u64) -> Result<Self, Malformed> {
        if !(1..=86_400).contains(&window_seconds) {
            return Err(Malformed("a rate limit's window is 1 to 86400 seconds".to_owned()));
        }
        if count == 0 || count > window_seconds * 1_000_000 {
            return Err(Malformed(
                "a rate limit's count is 1 to 1000000 for each second of its window".to_owned(),
            ));
        }
        Ok(Self { count, window_seconds })
    }

    /// Reads `10/60`: ten attempts in sixty seconds.
    ///
    /// # Errors
    /// [`Malformed`] when the text is not two numbers with a `/`, or they are out of range (see [`Quota::new`]).
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let parts = text
            .split_once('/')
            .and_then(|(count, window)| Some((count.parse().ok()?, window.parse().ok()?)));
        match parts {
            Some((count, window)) => Self::new(count, window),
            None => Err(Malformed("a rate limit is <count>/<seconds>, such as 10/60".to_owned())),
        }
    }

    /// Attempts in a window.
    #[must_use]
    pub fn count(self) -> u64 {
        self.count
    }

    /// The window, in seconds.
    #[must_use]
    pub fn window_seconds(self) -> u64 {
        self.window_seconds
    }

    fn window_us(self) -> u64 {
        self.window_seconds * 1_000_000
    }

    /// What one attempt costs, in microseconds of budget.
    fn interval_us(self) -> u64 {
        self.window_us() / self.count
    }
}

impl std::fmt::Display for Quota {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.count, self.window_seconds)
    }
}

/// Which limit: by what the attempts are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Attempts of one user.
    User,
    /// Attempts from one address.
    Ip,
    /// Attempts on one code.
    Code,
    /// Attempts in the whole namespace.
    Namespace,
    /// Misses: codes that do not exist, by address, else by user, else by API key.
    Guess,
}

impl Policy {
    /// Every policy, in the order that they are checked.
    pub const ALL: [Self; 5] = [Self::User, Self::Ip, Self::Code, Self::Namespace, Self::Guess];

    /// The word used in Redis, headers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Ip => "ip",
            Self::Code => "code",
            Self::Namespace => "namespace",
            Self::Guess => "guess",
        }
    }

    /// # Errors
    /// [`Malformed`] when the text is none of the five words.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == text)
            .ok_or_else(|| Malformed(format!("{text:?} is not a rate-limit policy")))
    }
}

/// By what the attempts from an address are counted: an IPv4 address, or the /64 of an IPv6 address, since one person
/// has all of that (RFC 6177). An IPv4 address in IPv6 form is the IPv4 address.
#[must_use]
pub fn address_subject(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            format!("{}/64", std::net::Ipv6Addr::from(network))
        }
    }
}

/// What is left of a budget after an answer, for the `RateLimit` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateStatus {
    /// Which policy touched the request.
    pub policy: Policy,
    /// Its quota.
    pub quota: Quota,
    /// Attempts left now.
    pub remaining: u64,
    /// Until the budget is full again, in milliseconds, rounded up.
    pub reset_ms: u64,
}

/// What one more attempt would mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It fits; charging it means remembering this TAT, in microseconds since 1970.
    Fits {
        /// The TAT after the charge.
        tat_us: u64,
    },
    /// It does not fit.
    Wait {
        /// Until it would fit, in milliseconds, rounded up.
        retry_after_ms: u64,
    },
}

/// A stored TAT as it counts now: never more than one window ahead, so that a clock that was once in the future can
/// lock nobody out for longer than that.
#[must_use]
pub fn clamp(quota: Quota, stored_tat_us: Option<u64>, now_us: u64) -> u64 {
    stored_tat_us.unwrap_or(now_us).clamp(now_us, now_us + quota.window_us())
}

/// Whether one more attempt fits at `now_us` (microseconds since 1970), given the TAT stored for its key.
#[must_use]
pub fn check(quota: Quota, stored_tat_us: Option<u64>, now_us: u64) -> Verdict {
    let tat_us = clamp(quota, stored_tat_us, now_us) + quota.interval_us();
    let ahead_us = tat_us - now_us;
    if ahead_us <= quota.window_us() {
        Verdict::Fits { tat_us }
    } else {
        Verdict::Wait { retry_after_ms: (ahead_us - quota.window_us()).div_ceil(1000) }
    }
}

/// What is left of a budget that is `ahead_us` microseconds from full, at most one window.
#[must_use]
pub fn status(policy: Policy, quota: Quota, ahead_us: u64) -> RateStatus {
    RateStatus {
        policy,
        quota,
        remaining: quota.window_us().saturating_sub(ahead_us) / quota.interval_us(),
        reset_ms: ahead_us.div_ceil(1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attempts `times` at one moment and counts those that fit.
    fn burst(quota: Quota, tat: &mut Option<u64>, now_us: u64, times: u64) -> u64 {
        (0..times)
            .filter(|_| match check(quota, *tat, now_us) {
                Verdict::Fits { tat_us } => {
                    *tat = Some(tat_us);
                    true
                }
                Verdict::Wait { .. } => false,
            })
            .count() as u64
    }

    #[test]
    fn exactly_the_quota_fits_at_once_and_again_after_a_window() {
        for (count, window) in [(1, 1), (10, 60), (7, 3), (20, 3600), (1_000_000, 1)] {
            let quota = Quota::new(count, window).unwrap();
            let mut tat = None;
            let now = 1_764_000_000_000_000;
            let times = count.min(1000) + 5;
            let expected = count.min(times);
            assert_eq!(burst(quota, &mut tat, now, times), expected, "{quota}");
            assert_eq!(
                burst(quota, &mut tat, now + window * 1_000_000, times),
                expected,
                "{quota}"
            );
        }
    }

    #[test]
    fn after_the_wait_that_it_names_one_attempt_fits() {
        let quota = Quota::parse("7/3").unwrap();
        let mut tat = None;
        let now = 1_764_000_000_000_000;
        burst(quota, &mut tat, now, 7);
        let Verdict::Wait { retry_after_ms } = check(quota, tat, now) else {
            panic!("the budget is spent")
        };
        assert_eq!(burst(quota, &mut tat, now + retry_after_ms * 1000, 2), 1);
    }

    #[test]
    fn a_stored_time_in_the_far_future_counts_as_one_window() {
        let quota = Quota::parse("10/60").unwrap();
        let now = 1_764_000_000_000_000;
        assert_eq!(check(quota, Some(u64::MAX / 2), now), Verdict::Wait { retry_after_ms: 6000 });
        assert_eq!(status(Policy::User, quota, 60_000_000).remaining, 0);
        assert_eq!(status(Policy::User, quota, 0).remaining, 10);
    }

    #[test]
    fn one_persons_addresses_count_as_one() {
        let subject = |text: &str| address_subject(text.parse().unwrap());
        assert_eq!(subject("203.0.113.9"), "203.0.113.9");
        assert_eq!(subject("::ffff:203.0.113.9"), "203.0.113.9");
        assert_eq!(subject("2001:db8:1:2:3::4"), "2001:db8:1:2::/64");
        assert_eq!(subject("2001:db8:1:2::"), subject("2001:db8:1:2:ffff::1"));
    }

    #[test]
    fn a_quota_out_of_range_is_refused() {
        for bad in ["", "10", "0/60", "10/0", "10/86401", "2000001/2", "-1/60", "1.5/60", "10/60/1"]
        {
            assert!(Quota::parse(bad).is_err(), "{bad:?}");
        }
    }
}
