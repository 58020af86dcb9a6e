//! `GET …/events`: what happens in a namespace, as server-sent events, from the ledger. The id of an event is its
//! position; `Last-Event-ID`, which browsers send by themselves, or `?after=` goes on right behind it. In a namespace that
//! is spread over partitions it is a position of each of them.
//!
//! A stream holds a page at a time and reads the next one when the client has taken it, so one who reads slowly keeps
//! nobody waiting.
//!
//! Source: <https://html.spec.whatwg.org/multipage/server-sent-events.html>

use std::{fmt::Write as _, io, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, header},
    web,
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    State,
    body::Presence,
    page::Query,
    problem::{Code, Problem},
    redemptions::View,
    scope::Scope,
};
use crate::{
    domain::{Durability, Event, Malformed, Positions, event::What},
    feed::Follower,
    sync::chain,
};

/// Events that are read at once.
const PAGE: u32 = 200;
/// How often something is sent when nothing happens: more often than balancers cut silent connections.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often it is looked whether the client's key still opens.
const LOOK: Duration = Duration::from_secs(1);
/// How long a client is to wait before it comes back.
const RETRY_MS: u64 = 1000;
/// What `after` says for everything that there is.
const START: &str = "start";

/// What is told of an event: the redemption as the API shows it, or what was done, to what and by whom.
fn data(event: &Event) -> Result<Value, serde_json::Error> {
    match &event.what {
        What::Redeemed { redemption, metadata } => {
            let view = View::new(redemption, false, Durability::Ledger);
            let mut value = serde_json::to_value(view)?;
            if let Some(metadata) = metadata {
                value["metadata"] = serde_json::from_str(metadata)?;
            }
            Ok(value)
        }
        What::Changed { action, subject, actor, namespace, at } => Ok(json!({
            "position": event.position,
            "namespace": namespace,
            "action": action,
            "subject": subject,
            "actor": actor,
            "at": at,
        })),
    }
}

/// An event as webhooks tell it.
///
/// # Errors
/// When the ledger holds metadata that is not JSON.
pub fn message(event: &Event) -> Result<String, serde_json::Error> {
    let message = json!({"type": event.kind(), "timestamp": event.at(), "data": data(event)?});
    serde_json::to_string(&message)
}

/// Where to begin: in partitions that are not named with the first event.
fn after(text: &str) -> Result<Positions, Malformed> {
    if text == START {
        return Ok(Positions::default());
    }
    text.parse().map_err(|error: Malformed| {
        Malformed(format!("{error}; send the id of the last event that you have, or {START:?}"))
    })
}

pub(super) async fn stream(
    state: web::Data<State>,
    scope: Scope,
    http: HttpRequest,
    mut query: Query,
) -> Result<HttpResponse, Problem> {
    let asked = query.parameters.optional("after", after);
    let last = http.headers().get("last-event-id").map(|value| value.to_str().unwrap_or_default());
    // What the client has seen goes before where it once began.
    let asked = match last.filter(|last| !last.is_empty()) {
        Some(last) => match after(last) {
            Ok(last) => Presence::Value(last),
            Err(error) => {
                let detail = format!("Last-Event-ID: {error}.");
                return Err(Problem::new(Code::InvalidRequest, detail));
            }
        },
        None => asked,
    };
    let partitions = state.feed.partitions_of(&scope.namespace).await?;
    if let Presence::Value(positions) = &asked
        && !positions.iter().all(|position| partitions.contains(&position.partition))
    {
        query.parameters.wrong("after", Code::InvalidRequest, "is a position of another namespace");
    }
    query.parameters.finish()?;
    if state.ledger.namespace(&scope.namespace).await?.is_none()
        && state.gate.settings(&scope.namespace).await?.is_none()
    {
        return Err(Problem::new(Code::NamespaceNotFound, "There is no such namespace."));
    }
    let from = match asked.value() {
        Some(positions) => positions,
        None => state.ledger.cursors().await?,
    };
    let Ok(permit) = state.streams.clone().try_acquire_owned() else {
        return Err(Problem::new(
            Code::Overloaded,
            "This node serves as many streams as it may (events.streams_max). Try again soon.",
        ));
    };
    let authorization = http.headers().get(header::AUTHORIZATION);
    let follower = state.feed.follow(scope.namespace.clone(), &from).await?;
    let stream = Stream {
        authorization: authorization.and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned(),
        scope,
        state,
        follower,
        is_new: true,
        _permit: permit,
    };
    let mut response = HttpResponse::Ok();
    response.content_type("text/event-stream");
    // Or nginx keeps events until it has some kilobytes of them.
    response.insert_header(("x-accel-buffering", "no"));
    if http.method() == Method::HEAD {
        // Its connection would wait for the end of a body that has none.
        return Ok(response.finish());
    }
    Ok(response.streaming(stream::try_unfold(stream, Stream::next)))
}

/// A stream under way.
struct Stream {
    state: web::Data<State>,
    scope: Scope,
    /// What the client's key was.
    authorization: String,
    follower: Follower,
    is_new: bool,
    _permit: OwnedSemaphorePermit,
}

impl Stream {
    /// What is sent next. A stream ends when the node stops, the key is revoked or the ledger can not be read; clients
    /// come back where they were.
    async fn next(mut self) -> Result<Option<(web::Bytes, Self)>, io::Error> {
        if std::mem::take(&mut self.is_new) {
            // So that one who is cut off before the first event comes back to where it began.
            let text = format!("retry: {RETRY_MS}\n{}", self.place());
            return Ok(Some((text.into(), self)));
        }
        let mut quiet = Duration::ZERO;
        loop {
            let stopping = self.state.stopping.clone();
            let mut place = self.follower.positions();
            let found = tokio::select! {
                () = stopping.cancelled() => return Ok(None),
                found = self.follower.next(PAGE, LOOK) => found,
            };
            let key = self.state.keys.open(&self.authorization, crate::ids::now());
            if !key.is_some_and(|key| key.covers(&self.scope.namespace)) {
                return Ok(None);
            }
            let found = match found {
                Ok(found) => found,
                Err(error) => {
                    let (request_id, cause) = (&self.scope.caller.1, chain(&error));
                    tracing::warn!(request_id, cause, "a stream of events was cut");
                    return Ok(None);
                }
            };
            quiet += LOOK;
            let mut text = String::new();
            match found {
                None if quiet < HEARTBEAT => continue,
                None => text = format!(": nothing happened\n{}", self.place()),
                Some((events, _)) => {
                    for event in &events {
                        place.set(event.position);
                        write(&mut text, event, &place)?;
                    }
                }
            }
            return Ok(Some((text.into(), self)));
        }
    }

    /// Says where the stream is, which clients note and do not take for an event.
    fn place(&self) -> String {
        format!("id: {}\n\n", self.follower.positions())
    }
}

/// Writes an event; a client that has it is at `place`.
fn write(text: &mut String, event: &Event, place: &Positions) -> Result<(), io::Error> {
    // JSON has no line breaks of its own.
    let data = data(event).map_err(io::Error::other)?;
    let written = write!(text, "id: {place}\nevent: {}\ndata: {data}\n\n", event.kind());
    written.map_err(io::Error::other)
}

pub(super) mod docs {
    use crate::http::{
        openapi::{GATE, LEDGER, Operation, Tag},
        problem::Code,
    };

    pub(in crate::http) fn stream() -> Operation {
        let after = serde_json::json!({
            "type": "string", "pattern": "^(start|[0-9]+/[0-9]+-[0-9]+(,[0-9]+/[0-9]+-[0-9]+)*)$",
        });
        Operation::new("stream_events", Tag::Events, "What happens in the namespace, as it happens")
            .about(
                "Server-sent events whose id is their position, in a namespace that is spread one of each partition. \
                 Last-Event-ID goes on right behind it, at any node. A stream ends when its node stops; come back.",
            )
            .query("after", after, "Begin after this position, or with the first event there ever was.")
            .answers_text("The stream.", &["text/event-stream"])
            .problems(&[Code::NamespaceNotFound, Code::Overloaded])
            .problems(GATE)
            .problems(LEDGER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Millis, Namespace};

    #[test]
    fn an_event_is_one_block_of_lines() {
        let event = Event {
            position: "6/1-3".parse().unwrap(),
            what: What::Changed {
                action: "joined".to_owned(),
                subject: "alice in team".to_owned(),
                actor: "a\nb".to_owned(),
                namespace: Namespace::default_namespace(),
                at: Millis::default(),
            },
        };
        let mut text = String::new();
        write(&mut text, &event, &"6/1-3".parse().unwrap()).unwrap();
        assert!(
            text.starts_with("id: 6/1-3\nevent: joined\ndata: {\"position\":\"6/1-3\","),
            "{text}"
        );
        assert_eq!((text.matches('\n').count(), text.ends_with("}\n\n")), (4, true), "{text}");
        let message: Value = serde_json::from_str(&message(&event).unwrap()).unwrap();
        assert_eq!(message["type"], "joined");
        assert_eq!(message["timestamp"], "1970-01-01T00:00:00.000Z");
    }
}
