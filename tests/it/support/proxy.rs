//! A proxy in front of Redis that can go wrong on command.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};

/// What the proxy does with traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Everything goes through.
    None,
    /// Connections are closed as they come, and open ones at once.
    Refuse,
    /// Requests go through, replies wait until the fault is over.
    HoldReplies,
    /// Requests go through; the connection is closed instead of a reply.
    ResetAfterForwarding,
    /// Requests go through, replies are thrown away.
    SwallowReplies,
    /// Requests go through; the first bytes of a reply too, then the connection is closed.
    CutMidFrame,
}

/// A proxy from a TCP port to a unix socket.
pub struct Proxy {
    port: u16,
    target: Arc<watch::Sender<PathBuf>>,
    fault: Arc<watch::Sender<Fault>>,
    spoilt: Arc<Mutex<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fault = Arc::new(watch::Sender::new(Fault::None));
        let faults = fault.clone();
        let spoilt = Arc::new(Mutex::new(Vec::new()));
        let all_spoilt = spoilt.clone();
        let target = Arc::new(watch::Sender::new(socket));
        let targets = target.clone();
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(carry(
                    client,
                    targets.subscribe(),
                    faults.subscribe(),
                    all_spoilt.clone(),
                ));
            }
        });
        Self { port, target, fault, spoilt, task }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Sends new connections to another server, and closes those that are open.
    pub fn retarget(&self, socket: PathBuf) {
        self.target.send_replace(socket);
    }

    /// Whether a reply with this text has fallen victim to the fault that was set last.
    pub fn has_spoilt(&self, text: &str) -> bool {
        let spoilt = self.spoilt.lock().unwrap_or_else(PoisonError::into_inner);
        spoilt.windows(text.len()).any(|window| window == text.as_bytes())
    }

    pub fn set(&self, fault: Fault) {
        self.spoilt.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.fault.send_replace(fault);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    client: TcpStream,
    mut target: watch::Receiver<PathBuf>,
    mut faults: watch::Receiver<Fault>,
    spoilt: Arc<Mutex<Vec<u8>>>,
) {
    let socket = target.borrow_and_update().clone();
    if *faults.borrow() == Fault::Refuse {
        return;
    }
    let Ok(server) = UnixStream::connect(socket).await else { return };
    client.set_nodelay(true).unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests =
        tokio::spawn(async move { drop(tokio::io::copy(&mut from_client, &mut to_server).await) });
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = from_server.read(&mut bytes) => read.unwrap_or(0),
            moved = target.changed() => {
                drop(moved);
                break;
            }
            refused = faults.wait_for(|fault| *fault == Fault::Refuse) => {
                drop(refused);
                break;
            }
        };
        if read == 0 {
            break;
        }
        let fault = *faults.borrow();
        if !matches!(fault, Fault::None | Fault::HoldReplies) {
            let mut spoilt = spoilt.lock().unwrap_or_else(PoisonError::into_inner);
            spoilt.extend_from_slice(&bytes[..read]);
        }
        match fault {
            Fault::None => {}
            Fault::HoldReplies => drop(faults.wait_for(|fault| *fault != Fault::HoldReplies).await),
            Fault::SwallowReplies => continue,
            Fault::CutMidFrame => {
                drop(to_client.write_all(&bytes[..read.min(3)]).await);
                break;
            }
            Fault::Refuse | Fault::ResetAfterForwarding => break,
        }
        if to_client.write_all(&bytes[..read]).await.is_err() {
            break;
        }
    }
    requests.abort();
}
