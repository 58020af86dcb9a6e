//! A receiver of webhooks, or of spans, that can be told what to answer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A status without a body.
    Status(u16),
    /// Somewhere else.
    Redirect(String),
    /// Nothing, until it is told otherwise; then it hangs up.
    Silence,
}

/// What it was sent.
#[derive(Debug, Clone)]
pub struct Message {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub text: String,
    pub bytes: Vec<u8>,
}

impl Message {
    pub fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    pub fn body(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }
}

pub struct Receiver {
    pub url: String,
    received: Arc<Mutex<Vec<Message>>>,
    answer: Arc<watch::Sender<Answer>>,
    task: tokio::task::JoinHandle<()>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(watch::Sender::new(Answer::Status(204)));
        let (all, answers) = (received.clone(), answer.clone());
        let task = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(connection, all.clone(), answers.subscribe()));
            }
        });
        Self { url, received, answer, task }
    }

    pub fn answer(&self, answer: Answer) {
        self.answer.send_replace(answer);
    }

    pub fn received(&self) -> Vec<Message> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut connection: TcpStream,
    received: Arc<Mutex<Vec<Message>>>,
    mut answers: watch::Receiver<Answer>,
) {
    let Some(message) = read(&mut connection).await else { return };
    // Before anybody can see that it has come, and think of another answer for the next one.
    let answer = answers.borrow_and_update().clone();
    received.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    let text = match answer {
        Answer::Status(status) => format!("HTTP/1.1 {status} X\r\n"),
        Answer::Redirect(to) => format!("HTTP/1.1 307 X\r\nlocation: {to}\r\n"),
        Answer::Silence => {
            drop(answers.changed().await);
            return;
        }
    };
    let text = format!("{text}content-length: 0\r\nconnection: close\r\n\r\n");
    drop(connection.write_all(text.as_bytes()).await);
}

async fn read(connection: &mut TcpStream) -> Option<Message> {
    let mut bytes = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        if let httparse::Status::Complete(head) = request.parse(&bytes).unwrap() {
            let headers: BTreeMap<String, String> = request
                .headers
                .iter()
                .map(|it| (it.name.to_lowercase(), String::from_utf8(it.value.to_vec()).unwrap()))
                .collect();
            let length: usize = headers["content-length"].parse().unwrap();
            if bytes.len() >= head + length {
                let path = request.path.unwrap().to_owned();
                let bytes = bytes[head..].to_vec();
                let text = String::from_utf8_lossy(&bytes).into_owned();
                return Some(Message { path, headers, text, bytes });
            }
        }
        let mut more = [0; 4096];
        let count = connection.read(&mut more).await.unwrap_or(0);
        if count == 0 {
            return None;
        }
        bytes.extend_from_slice(&more[..count]);
    }
}
