//! Stretches of time, and how many of them there are at once.

use std::time::Duration;

/// From a moment on, up to another one or for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: Duration,
    pub(super) to: Option<Duration>,
}

impl Span {
    /// What is known of the end alone.
    pub(super) const IN_THE_END: Self = Self { from: Duration::MAX, to: None };

    /// Whether it may be going on at some moment from the one to the other.
    pub(super) fn meets(self, from: Duration, to: Duration) -> bool {
        self.from <= to && self.to.is_none_or(|end| end >= from)
    }

    /// Whether it is going on at every moment from the one to the other.
    pub(super) fn covers(self, from: Duration, to: Duration) -> bool {
        self.from <= from && self.to.is_none_or(|end| end > to)
    }

    /// Whether both are going on at some moment.
    pub(super) fn overlaps(self, other: Self) -> bool {
        self.from.max(other.from) < self.end().min(other.end())
            || self.to.is_none() && other.to.is_none()
    }

    fn end(self) -> Duration {
        self.to.unwrap_or(Duration::MAX)
    }
}

/// The same moments in as few stretches as can be.
pub(super) fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|span| span.from);
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if last.to.is_none_or(|end| end >= span.from) => {
                last.to = last.to.zip(span.to).map(|(one, other)| one.max(other));
            }
            _ => merged.push(span),
        }
    }
    merged
}

/// The moment when most of them are going on at once, and how many; at its end none is going on any more.
pub(super) fn busiest(spans: impl IntoIterator<Item = Span>) -> (Duration, usize) {
    let mut changes = Vec::new();
    for span in spans {
        changes.push((span.from, true));
        changes.extend(span.to.map(|end| (end, false)));
    }
    // Ends come before beginnings.
    changes.sort_unstable();
    let (mut now, mut busiest) = (0, (Duration::ZERO, 0));
    for (at, begins) in changes {
        if begins {
            now += 1;
            if now > busiest.1 {
                busiest = (at, now);
            }
        } else {
            now -= 1;
        }
    }
    busiest
}

/// How many may be going on at a moment; at its end each still may.
pub(super) struct Crowd {
    beginnings: Vec<Duration>,
    ends: Vec<Duration>,
}

impl Crowd {
    pub(super) fn new(spans: impl IntoIterator<Item = Span>) -> Self {
        let (mut beginnings, mut ends) = (Vec::new(), Vec::new());
        for span in spans {
            beginnings.push(span.from);
            ends.extend(span.to);
        }
        beginnings.sort_unstable();
        ends.sort_unstable();
        Self { beginnings, ends }
    }

    /// The most that may be going on at one moment from the one to the other, without `own`, which are among them.
    pub(super) fn most(&self, from: Duration, to: Duration, own: &[Span]) -> usize {
        let after = |at: Duration| self.beginnings.partition_point(|begins| *begins <= at);
        let count = |at: Duration| {
            let ended = self.ends.partition_point(|ends| *ends < at);
            let mine = own.iter().filter(|span| span.meets(at, at)).count();
            after(at) - ended - mine
        };
        let later = &self.beginnings[after(from)..after(to)];
        // More there can be only where one begins.
        later.iter().copied().chain([from]).map(count).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: u64, to: Option<u64>) -> Span {
        Span { from: Duration::from_secs(from), to: to.map(Duration::from_secs) }
    }

    #[test]
    fn what_overlaps_or_touches_is_one() {
        let spans = vec![span(5, Some(6)), span(1, Some(3)), span(3, Some(4)), span(8, None)];
        assert_eq!(merged(spans), [span(1, Some(4)), span(5, Some(6)), span(8, None)]);
        assert_eq!(merged(vec![span(1, None), span(2, Some(3))]), [span(1, None)]);
    }

    #[test]
    fn what_ends_when_another_begins_is_certainly_not_there_with_it_and_may_be() {
        let (one, other) = (span(1, Some(3)), span(3, None));
        assert_eq!(busiest([one, other]).1, 1);
        assert!(!one.overlaps(other) && one.overlaps(span(2, Some(3))));
        assert!(other.overlaps(Span::IN_THE_END) && !one.overlaps(Span::IN_THE_END));
        let crowd = Crowd::new([one, other]);
        let at = Duration::from_secs;
        assert_eq!(crowd.most(at(3), at(3), &[]), 2);
        assert_eq!(crowd.most(at(3), at(3), &[other]), 1);
        assert_eq!(crowd.most(at(4), at(9), &[]), 1);
        assert_eq!(crowd.most(at(0), at(9), &[]), 2);
        assert_eq!(crowd.most(at(0), at(0), &[]), 0);
    }
}
