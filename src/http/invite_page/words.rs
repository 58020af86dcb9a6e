//! All that people read on the page.

use crate::{
    domain::Millis,
    http::problem::{Code, Problem},
};

/// Leads to where a person says who it is.
pub(super) const SIGN_IN: &str = "Continue";
/// Leads on once a person is in.
pub(super) const DONE: &str = "Continue";
/// Does the same again.
pub(super) const AGAIN: &str = "Try again";

/// How a page looks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tone {
    /// Something can be had.
    Open,
    /// It is had.
    Done,
    /// Not now.
    Wait,
    /// No.
    Closed,
}

impl Tone {
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Done => "done",
            Self::Wait => "wait",
            Self::Closed => "closed",
        }
    }

    /// A letter, a tick, a clock, a cross: strokes in a square of 24 by 24.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Open => "M3 6.5h18v12H3zM3 7l9 7 9-7",
            Self::Done => "M4 12.5l5.5 5.5L20 6.5",
            Self::Wait => "M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18M12 7v5l3.5 2",
            Self::Closed => "M6 6l12 12M18 6L6 18",
        }
    }
}

/// What a page says.
#[derive(Debug)]
pub(super) struct Words {
    pub(super) tone: Tone,
    pub(super) heading: &'static str,
    pub(super) text: String,
}

fn words(tone: Tone, heading: &'static str, text: impl Into<String>) -> Words {
    Words { tone, heading, text: text.into() }
}

/// The invite is open, and the page knows where to go on or does not.
pub(super) fn open(leads_on: bool) -> Words {
    let text = if leads_on {
        "This invitation is open. Continue to accept it."
    } else {
        "This invitation is open. Accept it where you have your account."
    };
    words(Tone::Open, "You are invited", text)
}

/// The person is in, now or since an earlier request.
pub(super) fn accepted(before: bool) -> Words {
    let text = if before {
        "You have accepted this invitation already. Nothing was used twice."
    } else {
        "The invitation is accepted."
    };
    words(Tone::Done, "You are in", text)
}

/// What is wrong, for the person.
pub(super) fn of(problem: &Problem) -> Words {
    use Tone::{Closed, Done, Wait};
    match problem.code {
        Code::NotStarted => words(
            Wait,
            "Not open yet",
            format!("This invitation opens {}.", moment(problem, "starts_at")),
        ),
        Code::InviteExpired => {
            let text = format!(
                "This invitation ended {}. Ask for a new one.",
                moment(problem, "expires_at")
            );
            words(Closed, "This invitation has ended", text)
        }
        Code::InviteExhausted if problem.member("may_free_at").is_some() => words(
            Wait,
            "No place is left just now",
            format!(
                "A place that is held for somebody may be free {}.",
                moment(problem, "may_free_at")
            ),
        ),
        Code::InviteExhausted | Code::CampaignExhausted => words(
            Closed,
            "No place is left",
            "All places of this invitation are taken. Ask for a new one.",
        ),
        Code::InviteDisabled => words(
            Closed,
            "This invitation was withdrawn",
            "It can not be used any more. Ask for a new one.",
        ),
        Code::InviteNotFound | Code::CodeMalformed => words(
            Closed,
            "There is no such invitation",
            "Check the link or the code for typing mistakes, or ask for a new one.",
        ),
        Code::InviteInvalid => words(
            Closed,
            "This invitation can not be used",
            "Check the link or the code for typing mistakes, or ask for a new one.",
        ),
        Code::UserNotAllowed => words(
            Closed,
            "This invitation is for somebody else",
            "It was made for one person. If that is you, sign in with the account that it was sent to.",
        ),
        Code::EmailDomainNotAllowed => words(
            Closed,
            "This invitation is for others",
            "It is for e-mail addresses of certain organisations. Sign in with such an address.",
        ),
        Code::AlreadyMember => words(
            Done,
            "You are a member already",
            "The invitation was not used: it is still there for somebody else.",
        ),
        Code::UserLimitReached => words(
            Closed,
            "You have used this invitation",
            "Nobody may use it more often than you have.",
        ),
        Code::AlreadyRolledBack => words(
            Closed,
            "Your place was taken back",
            "You had accepted this invitation, and that was undone since. Begin anew to accept it again.",
        ),
        Code::RateLimited | Code::TooManyAttempts => words(
            Wait,
            "Too many attempts",
            format!("Try again {}.", wait(problem.retry_after_seconds())),
        ),
        Code::UserTokenInvalid => words(
            Closed,
            "Please begin anew",
            "It is not known who you are, or it is too long ago that you signed in. Go back to the application and try again.",
        ),
        Code::IdempotencyKeyReused => words(
            Closed,
            "Please begin anew",
            "This was meant for another invitation. Go back to the application and try again.",
        ),
        Code::OutcomeUnknown => words(
            Wait,
            "One moment, please",
            "It is not known yet whether this was done. Try again to find out: nothing is used twice.",
        ),
        code if code.is_retryable() => words(
            Wait,
            "One moment, please",
            "This does not work just now, and nothing was used. Try again soon.",
        ),
        Code::RouteNotFound | Code::NamespaceNotFound => {
            words(Closed, "There is nothing here", "Check the link for typing mistakes.")
        }
        _ => words(Closed, "That did not work", "Go back to the application and try again."),
    }
}

/// Such as "on 1 December 2026 at 09:00 UTC".
fn moment(problem: &Problem, member: &str) -> String {
    let at = problem.member(member).and_then(|text| Millis::parse(text).ok());
    at.map_or_else(|| "later".to_owned(), |at| format!("on {}", at.for_people()))
}

/// Such as "in 40 seconds".
fn wait(seconds: Option<u64>) -> String {
    match seconds {
        None => "soon".to_owned(),
        Some(1) => "in a second".to_owned(),
        Some(seconds @ 2..120) => format!("in {seconds} seconds"),
        Some(seconds @ 120..7200) => format!("in {} minutes", seconds.div_ceil(60)),
        Some(seconds) => format!("in {} hours", seconds.div_ceil(3600)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_in_what_people_count_in() {
        for (seconds, told) in [
            (1, "in a second"),
            (40, "in 40 seconds"),
            (121, "in 3 minutes"),
            (3600, "in 60 minutes"),
            (7201, "in 3 hours"),
        ] {
            assert_eq!(wait(Some(seconds)), told);
        }
        assert_eq!(wait(None), "soon");
    }

    #[test]
    fn every_problem_has_words() {
        for code in Code::ALL {
            let words = of(&Problem::new(*code, ""));
            assert!(!words.heading.is_empty() && words.text.ends_with('.'), "{words:?}");
        }
    }
}
