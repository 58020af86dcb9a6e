//! HAProxy as users run it: with `deploy/haproxy/haproxy.cfg`.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::{eventually, lasting_port};

/// A balancer in front of three nodes; gone when it is dropped.
pub struct Balancer {
    pub url: String,
    status: String,
    directory: TempDir,
    child: Child,
}

impl Balancer {
    /// For the nodes at these addresses, which need not be there yet.
    pub async fn start(nodes: &[String; 3]) -> Self {
        Self::start_with(nodes, &[]).await
    }

    /// With more of its variables.
    pub async fn start_with(nodes: &[String; 3], env: &[(&str, String)]) -> Self {
        let directory = tempfile::Builder::new().prefix("rdm-haproxy-").tempdir().unwrap();
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/haproxy/haproxy.cfg");
        let [bind, status] = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut command = program();
        command.arg("-f").arg(config).arg("-db");
        command.env("REDEEMER_BALANCER_BIND", &bind).env("REDEEMER_BALANCER_STATUS", &status);
        for (node, number) in nodes.iter().zip(1..) {
            command.env(format!("REDEEMER_NODE_{number}"), node);
        }
        command.envs(env.iter().map(|(name, value)| (name, value)));
        let errors = log.try_clone().unwrap();
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().unwrap();
        let balancer = Self { url: format!("http://{bind}"), status, directory, child };
        eventually("the balancer answers", async || balancer.metrics().await.is_some()).await;
        balancer
    }

    /// What it has written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Waits until it sends requests to so many nodes.
    pub async fn until_up(&self, count: usize) {
        eventually("the balancer knows its nodes", async || {
            let metrics = self.metrics().await.unwrap_or_default();
            let lines = metrics.lines().filter(|line| {
                line.starts_with("haproxy_server_status{")
                    && line.contains("state=\"UP\"")
                    && line.ends_with(" 1")
            });
            lines.count() == count
        })
        .await;
    }

    async fn metrics(&self) -> Option<String> {
        // Whoever comes first; the others find it done.
        drop(rustls::crypto::ring::default_provider().install_default());
        let url = format!("http://{}/metrics", self.status);
        reqwest::get(url).await.ok()?.text().await.ok()
    }
}

/// Debian keeps it out of the PATH of most users.
fn program() -> Command {
    let sbin = Path::new("/usr/sbin/haproxy");
    Command::new(if sbin.exists() { sbin } else { Path::new("haproxy") })
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let told =
                log.lines().filter(|line| !line.contains(" 201 ") && !line.contains(" 410 "));
            let told: Vec<_> = told.collect();
            eprintln!("--- log of the balancer\n{}", told.join("\n"));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
