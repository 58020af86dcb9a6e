//! A PostgreSQL server of one's own, and the one that all tests of this process share.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::LazyLock,
};

use tempfile::TempDir;

use super::{lasting_port, node::signal, wait_until};

/// PostgreSQL refuses to run as root; this is whom it runs as then. Source: Debian policy, §9.2.2 (nobody).
const NOBODY: u32 = 65_534;

/// The port that a server on a socket alone is known by.
const PORT: u16 = 5432;

/// A server in a temporary directory, on a unix socket; gone when it is dropped.
pub struct PostgresServer {
    directory: TempDir,
    settings: Vec<String>,
    port: u16,
    child: Child,
}

impl PostgresServer {
    pub fn start() -> Self {
        Self::start_in(make(), PORT, Vec::new())
    }

    /// On a port of the loopback too, with a certificate for `localhost`; whoever comes there without TLS is refused.
    pub fn start_with_tls() -> Self {
        let directory = make();
        let data = directory.path().join("data");
        let made = own("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
            .args([
                "-subj",
                "/CN=localhost",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-keyout",
            ])
            .arg(data.join("server.key"))
            .arg("-out")
            .arg(data.join("server.crt"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let rules =
            "local all all trust\nhostssl all all all trust\nhostnossl all all all reject\n";
        std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
        let port = lasting_port();
        let settings = vec!["ssl=on".to_owned(), "listen_addresses=127.0.0.1".to_owned()];
        Self::start_in(directory, port, settings)
    }

    fn start_in(directory: TempDir, port: u16, settings: Vec<String>) -> Self {
        let child = spawn(directory.path(), port, &settings);
        let server = Self { directory, settings, port, child };
        server.wait();
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("data/server.crt")
    }

    /// A new database of this name; returns its URL.
    pub fn create_database(&self, name: &str) -> String {
        create_database(self.directory.path(), self.port, name)
    }

    /// Whether a statement goes through in a database.
    pub fn does(&self, database: &str, statement: &str) -> bool {
        psql(self.directory.path(), self.port, database, statement).is_ok()
    }

    /// Kills it and all its processes without a warning.
    pub fn kill(&mut self) {
        // What it has forked ends by itself when it is gone, and must have before another one starts.
        let forked = children_of(self.child.id());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let is_there = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        wait_until("the processes of PostgreSQL have ended", || !forked.iter().any(is_there));
    }

    /// Starts it again where it was.
    pub fn restart(&mut self) {
        self.child = spawn(self.directory.path(), self.port, &self.settings);
        self.wait();
    }

    /// Stops or continues all its processes.
    pub fn signal(&self, name: &str) {
        for pid in children_of(self.child.id()) {
            // Those that served a client may have ended meanwhile.
            drop(Command::new("kill").args(["-s", name, &pid.to_string()]).output());
        }
        signal(self.child.id(), name);
    }

    fn wait(&self) {
        wait_until("PostgreSQL answers", || self.does("postgres", "SELECT 1"));
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        for name in ["CONT", "QUIT"] {
            let pid = self.child.id().to_string();
            drop(Command::new("kill").args(["-s", name, &pid]).output());
        }
        drop(self.child.wait());
    }
}

/// A database of the server that all tests of this process share; the same for the same name.
pub fn shared_database(name: &str) -> String {
    create_database(SHARED.as_path(), PORT, name)
}

/// Nothing is dropped at the end of a process, so somebody else waits for that end and then cleans up.
static SHARED: LazyLock<PathBuf> = LazyLock::new(|| {
    let server = PostgresServer::start();
    let pid = server.child.id().to_string();
    let directory = server.directory.path().to_owned();
    let script = "read -r _; kill -s QUIT \"$0\"; while kill -0 \"$0\" 2>/dev/null; do sleep 0.1; done; rm -rf \"$1\"";
    let watcher = Command::new("sh")
        .args(["-c", script, &pid])
        .arg(&directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::mem::forget((server, watcher));
    directory
});

/// A directory with a new cluster in it.
fn make() -> TempDir {
    let directory = tempfile::Builder::new().prefix("rdm-pg-").tempdir().unwrap();
    if is_root() {
        std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let made = own("initdb")
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"])
        // The order of this collation is not that of the bytes, and must not matter.
        .args(["--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8", "--pgdata"])
        .arg(directory.path().join("data"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    directory
}

fn spawn(directory: &Path, port: u16, settings: &[String]) -> Child {
    let mut command = own("postgres");
    command.arg("-D").arg(directory.join("data")).arg("-k").arg(directory);
    command.args(["-p", &port.to_string()]);
    let always = ["listen_addresses=", "max_connections=500", "fsync=off", "shared_buffers=32MB"];
    for setting in always.into_iter().chain(settings.iter().map(String::as_str)) {
        command.args(["-c", setting]);
    }
    let log = std::fs::File::create(directory.join("log")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

fn create_database(directory: &Path, port: u16, name: &str) -> String {
    if let Err(error) = psql(directory, port, "postgres", &format!("CREATE DATABASE \"{name}\"")) {
        assert!(error.contains("already exists"), "{error}");
    }
    format!("postgres://postgres@localhost:{port}/{name}?host={}", directory.display())
}

fn psql(directory: &Path, port: u16, database: &str, statement: &str) -> Result<(), String> {
    let output = own("psql")
        .args(["-U", "postgres", "-X", "-q", "-p", &port.to_string(), "-h"])
        .arg(directory)
        .args(["-d", database, "-c", statement])
        .output()
        .unwrap();
    let told = || String::from_utf8_lossy(&output.stderr).into_owned();
    output.status.success().then_some(()).ok_or_else(told)
}

/// A program, also one of those that Debian keeps out of PATH, to be run by somebody whom PostgreSQL accepts.
fn own(name: &str) -> Command {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut paths = versions.map(|version| version.path().join("bin").join(name));
    let found = paths.find(|path| path.exists());
    let mut command = Command::new(found.unwrap_or_else(|| PathBuf::from(name)));
    command.current_dir("/");
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn children_of(pid: u32) -> Vec<u32> {
    let output =
        Command::new("ps").args(["-o", "pid=", "--ppid", &pid.to_string()]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
