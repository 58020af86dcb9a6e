//! `GET /i/{ns}/{code}` shows a person whether an invite is open, `POST` there redeems it for whom the host application
//! has signed a token. docs/page.md says how an application uses it, and why it is built so.
//!
//! Looking never redeems, so link previews and crawlers may look; it goes the way of a validation, so that a wrong code
//! draws on the guessing budget of whoever asks. There is no script, no cookie and nothing from anywhere else: what a
//! `POST` may do it may by the token in its body alone, and a token that comes again (a double click, a page that is
//! loaded anew, the button of a page that says "try again") is the same request to the gate.
//!
//! A refusal is a [`Problem`] as everywhere; [`refusal`] turns it into a page. All that people read is in `words`.

mod words;

use std::{
    fmt::{self, Write as _},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, http::header, web};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;

use self::words::Words;
use super::{
    State,
    body::Form,
    problem::{Code, Problem},
    redemptions::{Asked, decide, settings_of},
};
use crate::{
    domain::{Code as InviteCode, Namespace, Outcome, Settings, UserId, UserToken, user_token},
    gate::redeem::{Mode, Redeem},
};

/// Where the page is.
pub(super) const PATH: &str = "/i/{ns}/{code}";
/// Where its stylesheet is.
pub(super) const STYLE_PATH: &str = "/i/page.css";
/// Who redeems here, as the gate notes it. No API key has such an id.
const ACTOR: &str = "page";

const STYLE: &str = include_str!("invite_page/page.css");
/// One stylesheet of its own, forms that lead back here, and nothing else; nobody may frame it.
const POLICY: &str = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// How the page is set up.
#[derive(Debug)]
pub struct PageOptions {
    /// Those whose invites have one.
    pub namespaces: Vec<Namespace>,
    /// What tokens may be signed with.
    pub keys: Vec<user_token::Key>,
    /// What people are invited to.
    pub title: String,
    /// Where a person gets a token, with places for `{namespace}` and `{code}`.
    pub sign_in_url: Option<String>,
    /// Where a person goes who is in, with the same places.
    pub done_url: Option<String>,
    /// How many proxies in front add the address that they see to `X-Forwarded-For`.
    pub proxies: usize,
}

/// What a person may do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Go elsewhere.
    Go { url: String, label: &'static str },
    /// Look again.
    Look { path: String },
    /// Send the same again.
    Send { path: String, token: SecretString },
}

/// An invite that somebody looks at.
struct Visit<'a> {
    state: &'a State,
    namespace: Namespace,
    settings: Arc<Settings>,
    code: InviteCode,
    ip: Option<IpAddr>,
}

/// The namespace, if it has a page.
fn namespace_of(state: &State, request: &HttpRequest) -> Result<Namespace, Problem> {
    Namespace::parse(request.match_info().query("ns"))
        .ok()
        .filter(|namespace| state.page.namespaces.contains(namespace))
        .ok_or_else(nowhere)
}

fn nowhere() -> Problem {
    Problem::new(Code::RouteNotFound, "There is no page here.")
}

impl<'a> Visit<'a> {
    async fn of(
        state: &'a State,
        request: &HttpRequest,
        namespace: Namespace,
    ) -> Result<Self, Problem> {
        let settings = settings_of(state, &namespace).await?;
        if settings.rate_guess.is_none() {
            // Anybody could try code after code.
            return Err(nowhere().because("the page needs a namespace with rate_guess"));
        }
        let code = settings.code(request.match_info().query("code"));
        let code = code.map_err(|error| Problem::new(Code::CodeMalformed, format!("{error}.")))?;
        let ip = address(request, state.page.proxies);
        Ok(Self { state, namespace, settings, code, ip })
    }

    /// A URL of the host application, for this invite.
    fn url(&self, template: Option<&String>) -> Option<String> {
        let url = template?.replace("{namespace}", self.namespace.as_str());
        Some(url.replace("{code}", self.code.as_str()))
    }

    fn sign_in(&self) -> Option<Next> {
        let url = self.url(self.state.page.sign_in_url.as_ref())?;
        Some(Next::Go { url, label: words::SIGN_IN })
    }

    fn done(&self) -> Option<Next> {
        let url = self.url(self.state.page.done_url.as_ref())?;
        Some(Next::Go { url, label: words::DONE })
    }

    fn question(&self, user: Option<UserId>, mode: Mode) -> Redeem {
        Redeem {
            namespace: self.namespace.clone(),
            code: self.code.clone(),
            user,
            ip: self.ip,
            email_domain: None,
            caller: ACTOR.to_owned(),
            mode,
        }
    }

    async fn look(&self) -> Result<HttpResponse, Problem> {
        let deadline = Instant::now() + self.state.request_timeout;
        let question = self.question(None, Mode::Validate);
        let (answer, _) = self.state.spread.redeem(question, false, deadline).await?;
        match answer.outcome {
            Outcome::Allowed => {
                let next = self.sign_in();
                let words = words::open(next.is_some());
                Ok(page(HttpResponse::Ok(), &self.state.page.title, &words, next.as_ref(), ""))
            }
            Outcome::Refused(refusal) => Err(refusal.into()),
            Outcome::Granted(_) | Outcome::Replayed(_) | Outcome::Held { .. } => {
                Err(Problem::unexpected("a validation was answered like something else"))
            }
        }
    }

    async fn redeem(&self, token: &str) -> Result<HttpResponse, Problem> {
        let deadline = Instant::now() + self.state.request_timeout;
        let Self { state, namespace, settings, .. } = self;
        let token = UserToken::verify(token, namespace, &state.page.keys, crate::ids::now())
            .map_err(|error| Problem::new(Code::UserTokenInvalid, format!("{error}.")))?;
        let mode = Mode::Redeem {
            request: token.request,
            redemption: crate::ids::redemption(),
            metadata: None,
            reservation: None,
        };
        let question =
            Redeem { email_domain: token.email_domain, ..self.question(Some(token.user), mode) };
        let spent = decide(state, question, settings, Asked { durability: None, deadline }).await?;
        let response = if spent.replayed { HttpResponse::Ok() } else { HttpResponse::Created() };
        let words = words::accepted(spent.replayed);
        Ok(page(response, &state.page.title, &words, self.done().as_ref(), ""))
    }

    /// Where a person may go on who is refused for good.
    fn after(&self, problem: Problem) -> Problem {
        let next = match problem.code {
            Code::AlreadyMember => self.done(),
            Code::UserTokenInvalid | Code::IdempotencyKeyReused | Code::AlreadyRolledBack => {
                self.sign_in()
            }
            _ => None,
        };
        problem.then(next)
    }
}

pub(super) async fn show(
    state: web::Data<State>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let namespace = namespace_of(&state, &request)?;
    let looked = async { Visit::of(&state, &request, namespace).await?.look().await };
    looked.await.map_err(|problem| {
        let path = request.path().to_owned();
        let next = problem.code.is_retryable().then_some(Next::Look { path });
        problem.then(next)
    })
}

pub(super) async fn redeem(
    state: web::Data<State>,
    request: HttpRequest,
    form: Result<Form, Problem>,
) -> Result<HttpResponse, Problem> {
    // Where there is no page, nobody is told what it would take.
    let namespace = namespace_of(&state, &request)?;
    let mut fields = form?.0;
    let token = fields.required("token", |text| Ok(text.to_owned()));
    fields.finish()?;
    let Some(token) = token else { return Err(fields.problem()) };
    let redeemed = async {
        let visit = Visit::of(&state, &request, namespace).await?;
        visit.redeem(&token).await.map_err(|problem| visit.after(problem))
    };
    redeemed.await.map_err(|problem| {
        if !problem.code.is_retryable() {
            return problem;
        }
        let path = request.path().to_owned();
        problem.then(Some(Next::Send { path, token: token.into() }))
    })
}

pub(super) async fn style() -> HttpResponse {
    HttpResponse::Ok().content_type("text/css; charset=utf-8").body(STYLE)
}

/// The page that says what is wrong.
pub(super) fn refusal(options: &PageOptions, problem: &Problem, request_id: &str) -> HttpResponse {
    // What an application did wrong is for its makers.
    let told = match problem.code {
        Code::UserTokenInvalid | Code::InvalidRequest => problem.detail(),
        _ => "",
    };
    let small = [problem.code.as_str(), told, request_id];
    let small: Vec<_> = small.into_iter().filter(|part| !part.is_empty()).collect();
    page(problem.head(), &options.title, &words::of(problem), problem.next(), &small.join(" · "))
}

/// The address of a person: that of the peer, or behind proxies what the outermost of them has added to
/// `X-Forwarded-For`. What stands further left, anybody may have written.
fn address(request: &HttpRequest, proxies: usize) -> Option<IpAddr> {
    let peer = request.peer_addr().map(|peer| peer.ip());
    let values = request.headers().get_all("x-forwarded-for");
    let values: Vec<_> = values.filter_map(|value| value.to_str().ok()).collect();
    if proxies == 0 { peer } else { forwarded(&values.join(","), proxies).or(peer) }
}

fn forwarded(hops: &str, proxies: usize) -> Option<IpAddr> {
    let hop = hops.rsplit(',').nth(proxies - 1)?.trim();
    // Some proxies add the port too.
    hop.parse().ok().or_else(|| Some(hop.parse::<SocketAddr>().ok()?.ip()))
}

/// Text that can not be taken for anything else in HTML, also between quotation marks.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            other => f.write_char(other),
        })
    }
}

impl fmt::Display for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Go { url, label } => {
                write!(f, r#"<a class="button" href="{}">{label}</a>"#, Escaped(url))
            }
            Self::Look { path } => {
                write!(f, r#"<a class="button" href="{}">{}</a>"#, Escaped(path), words::AGAIN)
            }
            Self::Send { path, token } => write!(
                f,
                r#"<form method="post" action="{}"><input type="hidden" name="token" value="{}"><button class="button">{}</button></form>"#,
                Escaped(path),
                Escaped(token.expose_secret()),
                words::AGAIN
            ),
        }
    }
}

fn page(
    mut response: HttpResponseBuilder,
    title: &str,
    words: &Words,
    next: Option<&Next>,
    small: &str,
) -> HttpResponse {
    let Words { tone, heading, text } = words;
    let (title, small) = (Escaped(title), Escaped(small));
    let next = next.map(ToString::to_string).unwrap_or_default();
    let body = format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{heading} · {title}</title>
<link rel="stylesheet" href="{STYLE_PATH}">
</head>
<body>
<main class="{class}">
<p class="title">{title}</p>
<svg class="mark" viewBox="0 0 24 24" aria-hidden="true"><path d="{path}"/></svg>
<h1>{heading}</h1>
<p>{text}</p>
{next}
</main>
<footer>{small}</footer>
</body>
</html>
"#,
        class = tone.class(),
        path = tone.path(),
        text = Escaped(text),
    );
    response
        .content_type("text/html; charset=utf-8")
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header(("cross-origin-opener-policy", "same-origin"))
        .insert_header(("x-robots-tag", "noindex, nofollow"))
        .body(body)
}

pub(super) mod docs {
    use serde_json::json;

    use crate::http::{
        openapi::{Fields, GATE, Operation, Tag},
        problem::Code,
    };

    /// What looking may be told.
    const REFUSALS: &[Code] = &[
        Code::RouteNotFound,
        Code::NamespaceNotFound,
        Code::CodeMalformed,
        Code::InviteNotFound,
        Code::InviteInvalid,
        Code::InviteDisabled,
        Code::InviteExpired,
        Code::InviteExhausted,
        Code::CampaignExhausted,
        Code::NotStarted,
        Code::RateLimited,
        Code::TooManyAttempts,
    ];

    pub(in crate::http) fn show() -> Operation {
        Operation::new("show_invite_page", Tag::People, "Is the invite open?")
            .about("A page; looking never redeems. See docs/page.md.")
            .answers_page(200, "It is, and leads on to the application.")
            .problems(REFUSALS)
            .problems(GATE)
    }

    pub(in crate::http) fn redeem() -> Operation {
        let token = json!({"type": "string", "maxLength": 4096});
        Operation::new("redeem_on_page", Tag::People, "Redeem it for whom the application has signed a token")
            .about("A page. The token is all the authority that it has; its `jti` makes a repeat recognisable.")
            .takes_form(Fields::new().needs("token", token, "A JWT, signed by HS256."))
            .answers_page(201, "The person is in.")
            .answers_page(200, "The person was in before.")
            .problems(REFUSALS)
            .problems(&[
                Code::UserTokenInvalid,
                Code::UserNotAllowed,
                Code::EmailDomainNotAllowed,
                Code::AlreadyMember,
                Code::AlreadyRolledBack,
                Code::UserLimitReached,
                Code::DurabilityUnavailable,
                Code::IdempotencyKeyReused,
            ])
            .problems(GATE)
    }

    pub(in crate::http) fn style() -> Operation {
        Operation::new("show_invite_page_style", Tag::People, "The stylesheet of the page")
            .answers_text("It.", &["text/css"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_place_in_the_page() {
        let text = "<script>alert('x')</script>\" onload=\"&";
        let told = Escaped(text).to_string();
        assert!(!told.contains(['<', '>', '"', '\'']), "{told}");
        assert!(told.starts_with("&lt;script&gt;") && told.ends_with("&quot;&amp;"));
    }

    #[test]
    fn only_what_the_proxies_in_front_have_added_counts() {
        let told = |hops, proxies| forwarded(hops, proxies).map(|ip| ip.to_string());
        assert_eq!(told("203.0.113.9", 1).unwrap(), "203.0.113.9");
        assert_eq!(told("10.9.9.9, 203.0.113.9", 1).unwrap(), "203.0.113.9");
        assert_eq!(told("10.9.9.9,203.0.113.9, 10.0.0.1", 2).unwrap(), "203.0.113.9");
        assert_eq!(told("2001:db8::1", 1).unwrap(), "2001:db8::1");
        assert_eq!(told("[2001:db8::1]:443", 1).unwrap(), "2001:db8::1");
        for (none, proxies) in [("", 1), ("203.0.113.9", 2), ("unknown", 1)] {
            assert_eq!(told(none, proxies), None, "{none}");
        }
    }
}
