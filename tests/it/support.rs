//! Real servers for the tests: each test starts its own, on a socket or a free port, and leaves nothing behind.

pub mod bench;
pub mod haproxy;
pub mod history;
pub mod input;
pub mod ledger;
pub mod node;
pub mod postgres;
pub mod proxy;
pub mod receiver;
pub mod redis;

use std::{
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// How long a state may take to come about on a busy machine, before a test says that it never will.
const PATIENCE: Duration = Duration::from_mins(1);

/// How many times as much as usual is to be tried: `TEST_EFFORT`.
pub fn effort() -> u32 {
    std::env::var("TEST_EFFORT").map_or(1, |effort| effort.parse().unwrap())
}

/// Waits for a state.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    until_some(what, async || is_so().await.then_some(())).await;
}

/// Waits for a state, in a test without a runtime.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < until, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until there is something.
pub async fn until_some<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A port that nobody uses now, and that the system gives to nobody who asks for any, before it is used or while whoever
/// does is away. (It gives those from 32768 on. Source: Linux, ip-sysctl, `ip_local_port_range`.)
pub fn lasting_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test programs that run at the same time begin at different places.
    let from = (std::process::id() % 64) as u16 * 256;
    loop {
        let port = 12_000 + (from + NEXT.fetch_add(1, Ordering::Relaxed)) % 16_384;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
