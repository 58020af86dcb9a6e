//! The embedded default's Redis: finds a server program, starts it as a child, watches it and stops it.
//!
//! The child listens on a unix socket only, keeps its data in `<data directory>/redis`, and writes every change to its
//! append-only file before it answers (`appendfsync always`): batches make that cheap.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};
use tokio::{
    process::{Child, Command},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// The oldest server that can run the scripts: script flags came with it.
const MAJOR_MIN: u32 = 7;
/// The longest path of a unix socket that every system takes, in bytes. Source: unix(7), `sun_path`.
const SOCKET_BYTES_MAX: usize = 100;
/// How long a server may take to stop; it writes its files first.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How often its state is looked at while it starts or stops.
const LOOK: Duration = Duration::from_millis(5);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum LocalServerError {
    /// No program was found.
    #[error(
        "no redis-server or valkey-server was found. Install one ({install}), name one with redis.server, or set redis.url to use a Redis that runs already"
    )]
    NotFound {
        /// How to install one on this system.
        install: &'static str,
    },
    /// The program is too old, or is no Redis.
    #[error("{program} is not Redis 7.0 or Valkey: it says {said:?}. Install a newer one, or name one with redis.server", program = program.display())]
    Unfit {
        /// Which program.
        program: PathBuf,
        /// What `--version` printed.
        said: String,
    },
    /// Another process uses the data directory.
    #[error("another redeemer (process {pid}) uses {path}; stop it, or set data.dir to another directory", path = path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// Who uses it.
        pid: String,
    },
    /// A file or directory could not be used.
    #[error("{doing} {path}", path = path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
    /// A server that an earlier process left behind does not end.
    #[error("a redis-server (process {pid}) from an earlier start still uses {path} and does not stop; end it, then start again", path = path.display())]
    LeftBehind {
        /// Which process.
        pid: String,
        /// The directory of its data.
        path: PathBuf,
    },
    /// The server ended while it started.
    #[error("the redis-server that was started has ended ({status}); its log is {log}", log = log.display())]
    Ended {
        /// How.
        status: String,
        /// Where it says why.
        log: PathBuf,
    },
}

/// A data directory that is this process's own until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the lock; the kernel lets go of it when the process ends, however it does.
    lock: File,
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // Closing it is not enough: a child that is just being started has the file too, until it runs its own program.
        if let Err(cause) = rustix::fs::flock(&self.lock, FlockOperation::Unlock) {
            tracing::warn!(%cause, path = %self.path.display(), "the data directory is not unlocked yet");
        }
    }
}

impl DataDir {
    /// Makes the directory, readable by its owner only, and locks it.
    ///
    /// # Errors
    /// [`LocalServerError::InUse`] when another process has it.
    pub fn lock(path: &Path) -> Result<Self, LocalServerError> {
        make_private_dir(path)?;
        let lock_path = path.join("lock");
        let failed =
            |cause| LocalServerError::Io { doing: "locking", path: lock_path.clone(), cause };
        let mut options = File::options();
        let mut lock = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed)?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let pid = fs::read_to_string(&lock_path).unwrap_or_default().trim().to_owned();
            return Err(LocalServerError::InUse { path: path.to_owned(), pid });
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { path: path.to_owned(), lock })
    }
}

/// A running server.
#[derive(Debug)]
pub struct LocalServer {
    program: PathBuf,
    version: String,
    directory: PathBuf,
    socket: PathBuf,
    child: Child,
    _data_dir: DataDir,
}

impl LocalServer {
    /// Starts a server for a data directory and waits until it has loaded its data. A server that an earlier process
    /// left behind there is stopped first.
    ///
    /// # Errors
    /// [`LocalServerError`]; nothing runs then.
    pub async fn start(
        data_dir: DataDir,
        program: Option<&Path>,
    ) -> Result<Self, LocalServerError> {
        let (program, version) = find(program).await?;
        let directory = data_dir.path.join("redis");
        make_private_dir(&directory)?;
        let socket = socket_path(&directory)?;
        stop_left_behind(&directory, &socket).await?;
        write_config(&directory, &socket)?;
        let child = spawn(&program, &directory)?;
        let mut server = Self { program, version, directory, socket, child, _data_dir: data_dir };
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// How to reach it: `unix://…`.
    #[must_use]
    pub fn url(&self) -> String {
        url_of(&self.socket)
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The program that opens it in a terminal.
    #[must_use]
    pub fn client_program(&self) -> &'static str {
        let name = self.program.file_name().unwrap_or_default();
        if name == "valkey-server" { "valkey-cli" } else { "redis-cli" }
    }

    /// What runs: the program and its version.
    #[must_use]
    pub fn description(&self) -> String {
        format!("{} {}", self.program.display(), self.version)
    }

    /// Starts the server again whenever it ends, until `stop`; then returns it, still running.
    ///
    /// # Errors
    /// [`LocalServerError`] when it can not be started any more.
    pub async fn watch(mut self, stop: CancellationToken) -> Result<Self, LocalServerError> {
        let mut pause = Duration::from_millis(50);
        loop {
            let started = Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return Ok(self),
                ended = self.child.wait() => ended,
            };
            tracing::error!(
                status = status(ended),
                "the embedded redis-server has ended; starting it again"
            );
            // One that runs for a while and ends is another matter than one that can not start.
            pause = if started.elapsed() > Duration::from_secs(10) {
                Duration::from_millis(50)
            } else {
                pause
            };
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
                // It has ended, or never became a server: there is at most one on its files.
                drop(self.child.kill().await);
                self.child = spawn(&self.program, &self.directory)?;
                match self.wait_until_ready().await {
                    Ok(()) => break,
                    Err(error) if stop.is_cancelled() => return Err(error),
                    Err(error) => {
                        tracing::error!(%error, "the embedded redis-server did not start; trying again");
                    }
                }
            }
        }
    }

    /// Lets the server write its files and end.
    pub async fn stop(mut self) {
        shut_down(&self.socket).await;
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            tracing::error!("the embedded redis-server did not stop; killing it");
            if let Err(error) = self.child.kill().await {
                tracing::error!(%error, "the embedded redis-server could not be killed");
            }
        }
        drop(fs::remove_file(&self.socket));
    }

    /// Waits until the server answers and has loaded its data, however long that takes: as long as it runs, no other may
    /// be started on its files.
    async fn wait_until_ready(&mut self) -> Result<(), LocalServerError> {
        let started = Instant::now();
        let mut told = started;
        loop {
            if let Ok(Some(ended)) = self.child.try_wait() {
                let log = self.directory.join("redis.log");
                return Err(LocalServerError::Ended { status: status(Ok(ended)), log });
            }
            let Err(error) = ping(&self.socket).await else { return Ok(()) };
            if told.elapsed() > Duration::from_secs(2) {
                told = Instant::now();
                let seconds = started.elapsed().as_secs();
                tracing::info!(seconds, %error, "waiting for the embedded redis-server");
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The URL of a server that listens on a socket.
#[must_use]
pub fn url_of(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

fn status(ended: io::Result<std::process::ExitStatus>) -> String {
    ended.map_or_else(|error| error.to_string(), |status| status.to_string())
}

async fn connect(socket: &Path) -> redis::RedisResult<redis::aio::MultiplexedConnection> {
    redis::Client::open(url_of(socket))?.get_multiplexed_async_connection().await
}

async fn ping(socket: &Path) -> redis::RedisResult<()> {
    redis::cmd("PING").exec_async(&mut connect(socket).await?).await
}

/// Asks the server to write its files and end. It answers by closing the connection.
async fn shut_down(socket: &Path) {
    if let Ok(mut connection) = connect(socket).await {
        drop(redis::cmd("SHUTDOWN").exec_async(&mut connection).await);
    }
}

/// Stops a server that a killed process left behind: whatever uses the files of a directory that is locked by this
/// process. Two servers on one append-only file would ruin it.
async fn stop_left_behind(directory: &Path, socket: &Path) -> Result<(), LocalServerError> {
    let deadline = Instant::now() + STOP_TIMEOUT;
    let mut asked = false;
    loop {
        let pid = pid_left_behind(directory, socket);
        let listens = tokio::net::UnixStream::connect(socket).await.is_ok();
        if pid.is_none() && !listens {
            break;
        }
        if Instant::now() > deadline {
            let pid = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
            return Err(LocalServerError::LeftBehind { pid, path: directory.to_owned() });
        }
        if !asked {
            tracing::warn!("stopping the redis-server that an earlier process left behind");
        }
        asked = true;
        shut_down(socket).await;
        tokio::time::sleep(LOOK).await;
    }
    drop(fs::remove_file(socket));
    Ok(())
}

/// The process that the pid file names, if it runs and is a server on these files: its title has the socket's path.
fn pid_left_behind(directory: &Path, socket: &Path) -> Option<i32> {
    let pid: i32 = fs::read_to_string(directory.join("redis.pid")).ok()?.trim().parse().ok()?;
    let title = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let title = String::from_utf8_lossy(&title);
    let names_files = title.contains(socket.to_str()?) || title.contains(directory.to_str()?);
    names_files.then_some(pid)
}

fn spawn(program: &Path, directory: &Path) -> Result<Child, LocalServerError> {
    let failed =
        |cause| LocalServerError::Io { doing: "starting", path: program.to_owned(), cause };
    // A process group of its own, so that Ctrl-C in the terminal does not stop it before this process has drained.
    Command::new(program)
        .arg(directory.join("redis.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        // A start that fails leaves no server behind; every change is on disk before it is answered.
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)
}

fn write_config(directory: &Path, socket: &Path) -> Result<(), LocalServerError> {
    let path = directory.join("redis.conf");
    let text = format!(
        "# Generated by redeemer at each start; changes are lost.\n\
         port 0\n\
         unixsocket \"{socket}\"\n\
         unixsocketperm 700\n\
         dir \"{directory}\"\n\
         logfile \"{directory}/redis.log\"\n\
         pidfile \"{directory}/redis.pid\"\n\
         daemonize no\n\
         save \"\"\n\
         appendonly yes\n\
         appendfsync always\n\
         # A small file is read fast enough; rewriting it again and again in a rush would cost more.\n\
         auto-aof-rewrite-min-size 256mb\n\
         # What a member holds stays in one piece, of a third of the memory: its longest value is some 230 bytes.\n\
         hash-max-listpack-value 256\n\
         maxmemory-policy noeviction\n",
        socket = in_quotes(socket),
        directory = in_quotes(directory),
    );
    let failed = |cause| LocalServerError::Io { doing: "writing", path: path.clone(), cause };
    let mut options = File::options();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

/// A path as it stands between the quotation marks of a redis.conf.
fn in_quotes(path: &Path) -> String {
    path.display().to_string().replace('\\', r"\\").replace('"', r#"\""#)
}

fn make_private_dir(path: &Path) -> Result<(), LocalServerError> {
    let failed = |cause| LocalServerError::Io {
        doing: "making the directory",
        path: path.to_owned(),
        cause,
    };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)
}

/// In the directory, or, where that path is too long for a socket, in a short one of its own.
fn socket_path(directory: &Path) -> Result<PathBuf, LocalServerError> {
    let absolute = std::path::absolute(directory).map_err(|cause| LocalServerError::Io {
        doing: "finding",
        path: directory.to_owned(),
        cause,
    })?;
    let near = absolute.join("redis.sock");
    let note = directory.join("redis.sock.path");
    if near.as_os_str().len() <= SOCKET_BYTES_MAX {
        drop(fs::remove_file(&note));
        return Ok(near);
    }
    let digest = data_encoding::HEXLOWER
        .encode(&Sha256::digest(absolute.as_os_str().as_encoded_bytes())[..8]);
    let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let short = base.join(format!("redeemer-{digest}"));
    make_private_dir(&short)?;
    let socket = short.join("redis.sock");
    let failed = |cause| LocalServerError::Io { doing: "writing", path: note.clone(), cause };
    fs::write(&note, format!("{}\n", socket.display())).map_err(failed)?;
    Ok(socket)
}

/// The socket of the embedded default's server in a data directory, if one has been started there.
#[must_use]
pub fn socket_in(data_dir: &Path) -> PathBuf {
    let directory = data_dir.join("redis");
    match fs::read_to_string(directory.join("redis.sock.path")) {
        Ok(path) => PathBuf::from(path.trim_end()),
        Err(_) => std::path::absolute(&directory).unwrap_or(directory).join("redis.sock"),
    }
}

/// The server program and its version: the one that is named, or the first on PATH that is fit.
///
/// # Errors
/// [`LocalServerError`] when there is none.
pub async fn find(named: Option<&Path>) -> Result<(PathBuf, String), LocalServerError> {
    let programs: Vec<PathBuf> = match named {
        Some(path) => vec![path.to_owned()],
        None => ["valkey-server", "redis-server"].into_iter().filter_map(on_path).collect(),
    };
    let mut unfit = None;
    for program in programs {
        let output = Command::new(&program).arg("--version").output().await;
        let said = output.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        );
        match version_of(&said) {
            Some((version, major)) if major >= MAJOR_MIN => return Ok((program, version)),
            _ => unfit = Some(LocalServerError::Unfit { program, said }),
        }
    }
    Err(unfit.unwrap_or(LocalServerError::NotFound { install: install_command() }))
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// `Redis server v=7.0.15 sha=…` or `Valkey server v=8.1.1 …`.
fn version_of(said: &str) -> Option<(String, u32)> {
    let version = said.split_whitespace().find_map(|word| word.strip_prefix("v="))?;
    let major = version.split('.').next()?.parse().ok()?;
    Some((version.to_owned(), major))
}

/// How to install a server on this system.
fn install_command() -> &'static str {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let is = |names: &[&str]| {
        let ids =
            release.lines().filter(|line| line.starts_with("ID=") || line.starts_with("ID_LIKE="));
        ids.flat_map(|line| line.split(['=', ' ', '"'])).any(|word| names.contains(&word))
    };
    if is(&["debian", "ubuntu"]) {
        "sudo apt-get install redis-server"
    } else if is(&["fedora", "rhel", "centos"]) {
        "sudo dnf install valkey"
    } else if is(&["alpine"]) {
        "sudo apk add valkey"
    } else if is(&["arch"]) {
        "sudo pacman -S valkey"
    } else {
        "on macOS: brew install valkey"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn start(path: &Path) -> LocalServer {
        LocalServer::start(DataDir::lock(path).unwrap(), None).await.unwrap()
    }

    async fn set(server: &LocalServer, value: &str) {
        let mut connection = connect(server.socket()).await.unwrap();
        redis::cmd("SET").arg("key").arg(value).exec_async(&mut connection).await.unwrap();
    }

    async fn get(server: &LocalServer) -> Option<String> {
        let mut connection = connect(server.socket()).await.unwrap();
        redis::cmd("GET").arg("key").query_async(&mut connection).await.unwrap()
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_a_stop_and_a_start() {
        let directory = tempfile::tempdir().unwrap();
        let server = start(directory.path()).await;
        set(&server, "one").await;
        server.stop().await;
        let server = start(directory.path()).await;
        assert_eq!(get(&server).await.as_deref(), Some("one"));
        server.stop().await;
    }

    #[tokio::test]
    async fn a_server_that_is_killed_is_started_again_with_its_data() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = start(directory.path()).await;
        set(&server, "one").await;
        let socket = server.socket().to_owned();
        server.child.start_kill().unwrap();
        let stop = CancellationToken::new();
        let watched = tokio::spawn(server.watch(stop.clone()));
        // The old server is gone or going; the new one answers on the same socket with the same data.
        loop {
            if let Ok(mut connection) = connect(&socket).await
                && let Ok(Some(value)) = redis::cmd("GET")
                    .arg("key")
                    .query_async::<Option<String>>(&mut connection)
                    .await
            {
                assert_eq!(value, "one");
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        stop.cancel();
        watched.await.unwrap().unwrap().stop().await;
    }

    #[tokio::test]
    async fn a_server_left_behind_is_stopped_and_its_data_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let first = start(directory.path()).await;
        set(&first, "one").await;
        let LocalServer { mut child, _data_dir: lock, .. } = first;
        drop(lock);
        let second = start(directory.path()).await;
        assert!(child.wait().await.unwrap().success());
        assert_eq!(get(&second).await.as_deref(), Some("one"));
        second.stop().await;
    }

    #[tokio::test]
    async fn a_second_process_is_told_who_has_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let _first = DataDir::lock(directory.path()).unwrap();
        let error = DataDir::lock(directory.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
    }

    #[tokio::test]
    async fn a_path_too_long_for_a_socket_gets_a_short_one() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("d".repeat(120));
        let server = start(&long).await;
        assert!(server.socket().as_os_str().len() <= SOCKET_BYTES_MAX);
        assert_eq!(socket_in(&long), server.socket());
        let short = server.socket().parent().unwrap().to_owned();
        server.stop().await;
        fs::remove_dir_all(short).unwrap();
    }

    #[tokio::test]
    async fn an_old_or_foreign_program_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        for (name, said) in [("old", "Redis server v=6.2.7 sha=0"), ("foreign", "hello")] {
            let program = directory.path().join(name);
            fs::write(&program, format!("#!/bin/sh\necho '{said}'\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
            let error = find(Some(&program)).await.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(matches!(
            find(Some(Path::new("/nowhere"))).await,
            Err(LocalServerError::Unfit { .. })
        ));
    }
}
