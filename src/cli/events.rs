//! `redeemer events`

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{
    Common,
    codes::is_broken_pipe,
    output::{Output, complain, pass_on},
};
use crate::client::{ClientError, encoded};

/// How long it waits before it comes back to a stream that has ended.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  redeemer events
  redeemer events --after start --output json | jq -r .data.user
  redeemer events --after 6/1-3")]
pub(super) struct Events {
    /// Begin behind this position, or at the start; without it, with what happens next
    #[arg(long, value_name = "POSITION")]
    after: Option<String>,
}

impl Events {
    /// Prints what happens until it is stopped; a stream that ends is taken up where it was.
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = common.client()?;
        let mut stream = Stream { last: self.after, ..Stream::default() };
        loop {
            let query = stream.last.as_deref().map(|last| format!("?after={}", encoded(last)));
            let path = common.path(&format!("/events{}", query.unwrap_or_default()));
            stream.waiting.clear();
            let taken = client.download(&path, |bytes| -> anyhow::Result<()> {
                for event in stream.feed(bytes) {
                    pass_on(event.line(common.output).as_bytes())?;
                }
                Ok(())
            });
            match taken.await {
                Ok(()) => {}
                // Whoever reads has seen enough.
                Err(error) if is_broken_pipe(&error) => return Ok(()),
                Err(error) if error.downcast_ref::<ClientError>().is_some_and(comes_back) => {
                    complain("the stream was cut; going on where it was");
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn comes_back(error: &ClientError) -> bool {
    match error {
        ClientError::Problem(problem) => problem.status == 503,
        ClientError::Transport { .. } => true,
        ClientError::Foreign { .. } => false,
    }
}

/// What came of a stream of server-sent events, and has not been understood yet.
#[derive(Debug, Default)]
struct Stream {
    waiting: Vec<u8>,
    /// Where it is.
    last: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Event {
    id: String,
    kind: String,
    data: Value,
}

impl Stream {
    /// The events that are whole now. Source: HTML Living Standard, "Server-sent events"; the service sends one `data` line
    /// with each.
    fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.waiting.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.waiting.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = self.waiting.drain(..end + 2).collect();
            let block = String::from_utf8_lossy(&block).into_owned();
            let field = |name: &str| {
                let mut lines = block.lines();
                lines.find_map(|line| {
                    line.strip_prefix(name)?.strip_prefix(':').map(str::trim_start)
                })
            };
            if let Some(id) = field("id") {
                self.last = Some(id.to_owned());
            }
            let data = field("data").and_then(|data| serde_json::from_str(data).ok());
            if let (Some(kind), Some(data)) = (field("event"), data) {
                let id = self.last.clone().unwrap_or_default();
                events.push(Event { id, kind: kind.to_owned(), data });
            }
        }
        events
    }
}

impl Event {
    fn line(&self, output: Output) -> String {
        let Self { id, kind, data } = self;
        if output == Output::Json {
            return format!("{}\n", json!({"id": id, "event": kind, "data": data}));
        }
        let what = [&data["subject"], &data["user"]].into_iter().find_map(Value::as_str);
        let at = [&data["at"], &data["redeemed_at"]].into_iter().find_map(Value::as_str);
        let (what, at) = (what.unwrap_or_default(), at.unwrap_or_default());
        let code = data["code"].as_str().map(|code| format!(" {code}")).unwrap_or_default();
        format!("{at}  {id}  {kind}{code}  {what}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let text = ": hello\n\nid: 6/1-3\nevent: left\ndata: {\"subject\":\"alice from team\"}\n\nid: 6/1-9\n\n";
        for size in 1..text.len() {
            let mut stream = Stream::default();
            let events: Vec<_> =
                text.as_bytes().chunks(size).flat_map(|bytes| stream.feed(bytes)).collect();
            let data = json!({"subject": "alice from team"});
            let expected = Event { id: "6/1-3".to_owned(), kind: "left".to_owned(), data };
            assert_eq!(events, [expected], "{size}");
            assert_eq!(stream.last.as_deref(), Some("6/1-9"));
        }
    }
}
