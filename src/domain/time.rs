//! Time as the gate counts it.

use std::fmt;

use jiff::Timestamp;

use super::name::Malformed;

/// A moment in whole milliseconds since 1970-01-01T00:00:00Z, from 0 to the end of the year 9999.
///
/// Milliseconds, since a Lua number turned into text keeps 14 digits: microseconds since 1970 have 16 and would be
/// mangled. As JSON a moment is RFC 3339 text in UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(i64);

impl Millis {
    /// The last moment: 9999-12-31T23:59:59.999Z. It has 15 digits, so scripts print it with `%.0f`.
    const LAST: i64 = 253_402_300_799_999;

    /// # Errors
    /// [`Malformed`] when the number is negative or past the year 9999.
    pub fn from_ms(ms: i64) -> Result<Self, Malformed> {
        if (0..=Self::LAST).contains(&ms) {
            Ok(Self(ms))
        } else {
            Err(Malformed("a time lies between the years 1970 and 9999".to_owned()))
        }
    }

    /// Reads RFC 3339 text with an offset, such as `2026-11-23T08:00:00Z`; anything finer than a millisecond is cut.
    ///
    /// # Errors
    /// [`Malformed`] when the text is not such a time, or lies outside the years 1970 to 9999.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let malformed = || {
            Malformed("a time is RFC 3339 with an offset, such as 2026-11-23T08:00:00Z".to_owned())
        };
        let time: Timestamp = text.parse().map_err(|_| malformed())?;
        Self::from_ms(time.as_millisecond())
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn as_ms(self) -> i64 {
        self.0
    }

    /// To the minute, as people read it: `1 December 2026 at 09:00 UTC`.
    #[must_use]
    pub fn for_people(self) -> String {
        let time = Timestamp::from_millisecond(self.0).unwrap_or_default();
        time.strftime("%-d %B %Y at %H:%M UTC").to_string()
    }

    /// This moment and so many milliseconds, no later than the last one.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add_unsigned(ms).min(Self::LAST))
    }
}

impl From<Timestamp> for Millis {
    fn from(time: Timestamp) -> Self {
        Self(time.as_millisecond().clamp(0, Self::LAST))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = Timestamp::from_millisecond(self.0).map_err(|_| fmt::Error)?;
        write!(f, "{time:.3}")
    }
}

impl serde::Serialize for Millis {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Millis {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_its_text() {
        let time = Millis::from_ms(1_764_000_000_123).unwrap();
        assert_eq!(time.to_string(), "2025-11-24T16:00:00.123Z");
        assert_eq!(time.for_people(), "24 November 2025 at 16:00 UTC");
        assert_eq!(Millis::parse(&time.to_string()).unwrap(), time);
        assert_eq!(Millis::parse("2025-11-24T17:00:00.1239+01:00").unwrap(), time);
    }

    #[test]
    fn a_time_without_an_offset_is_refused() {
        for bad in ["", "2025-11-24", "2025-11-24T16:00:00", "tomorrow", "1960-01-01T00:00:00Z"] {
            assert!(Millis::parse(bad).is_err(), "{bad:?}");
        }
    }
}
