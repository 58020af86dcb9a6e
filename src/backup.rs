//! Backups of a ledger in SQLite, and the way back.
//!
//! A backup is a directory with the file of the ledger and [`Manifest`], which says what must be in it. The manifest is
//! written last, and everything under another name before: what has one is whole.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::{
    domain::{Cursor, Millis, Partition},
    gate::{Gate, audit},
    ledger::{self, Contents, Deployment, Ledger, LedgerError, PartitionRow, PartitionState},
    recovery,
    sync::chain,
};

/// The ledger's file in a backup.
const LEDGER: &str = "ledger.sqlite";
/// The manifest in a backup.
const MANIFEST: &str = "backup.json";
/// What a name ends with until the file is whole.
const PARTIAL: &str = ".partial";
/// How often it looks how far the ledger is.
const LOOK: Duration = Duration::from_millis(20);
/// How long the ledger may stand still while it is behind the gate.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no backup, or none was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The ledger can not be read, or is not what it should be.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The sync is not coming along.
    #[error(
        "the ledger is at {ledger} of partition {partition}, the gate at {gate}, and the ledger does not come nearer; \
         see `redeemer status`"
    )]
    Behind {
        /// Which partition.
        partition: Partition,
        /// Where the ledger is.
        ledger: Cursor,
        /// Where the gate was.
        gate: Cursor,
    },
    /// What is there must not be touched, or must not be used; a sentence for the operator.
    #[error("{0}")]
    Refused(String),
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
}

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of redeemer that made it.
    pub version: String,
    /// When.
    pub at: Millis,
    /// Whether it has everything that the gate had granted when it was begun.
    pub complete: bool,
    /// Why that is not known.
    pub doubts: Vec<String>,
    /// The length of the ledger's file.
    pub bytes: u64,
    /// Its digest, in hexadecimal digits.
    pub sha256: String,
    /// What is in it.
    #[serde(flatten)]
    pub contents: Contents,
}

/// Makes the directory of a backup, readable by its owner only. One that is there must be empty.
///
/// # Errors
/// [`BackupError::Refused`] when something is in it.
pub fn prepare(directory: &Path) -> Result<(), BackupError> {
    let mut made = DirBuilder::new();
    made.recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(of("making the directory", directory))?;
    sync_parent(directory)?;
    let mut entries = fs::read_dir(directory).map_err(of("reading the directory", directory))?;
    let Some(entry) = entries.next() else { return Ok(()) };
    let name = entry.map_err(of("reading the directory", directory))?.file_name();
    let name = name.to_string_lossy();
    let whose = if is_backup(directory) {
        "a backup is there".to_owned()
    } else if name.contains(PARTIAL) {
        format!("{name} is of a backup that did not come to its end")
    } else {
        format!("{name} is there")
    };
    Err(BackupError::Refused(format!(
        "{} is not empty: {whose}; name another directory, or remove that first",
        directory.display()
    )))
}

/// Waits until the ledger has what the gate had granted when this began. Returns why that is not known, where it is not.
///
/// # Errors
/// [`BackupError::Behind`] when the ledger does not come along.
pub async fn come_as_far(
    gate: &Gate,
    ledger: &Ledger,
    deployment: &Deployment,
) -> Result<Vec<String>, BackupError> {
    let rows = recovery::refresh_fences(gate, ledger, deployment).await?;
    if !rows.iter().any(|row| row.lease_live) {
        return Ok(vec!["no node is running: the backup has what the ledger has".to_owned()]);
    }
    let mut awaited = Vec::new();
    let mut doubts = Vec::new();
    for (row, position) in
        rows.iter().zip(join_all(rows.iter().map(|row| position(gate, row))).await)
    {
        match position {
            Ok(cursor) => awaited.extend(cursor.map(|cursor| (row.partition, cursor))),
            Err(why) => doubts.push(format!(
                "partition {}: {why}; the backup has what the ledger has",
                row.partition
            )),
        }
    }
    let mut seen = Vec::new();
    let mut moved = Instant::now();
    loop {
        let rows = ledger.partitions().await?;
        let behind = |(partition, gate): &(Partition, Cursor)| {
            let row = rows.iter().find(|row| row.partition == *partition)?;
            (row.cursor < *gate).then_some((*partition, row.cursor, *gate))
        };
        let behind: Vec<_> = awaited.iter().filter_map(behind).collect();
        let Some(&(partition, ledger, gate)) = behind.first() else { return Ok(doubts) };
        if behind != seen {
            moved = Instant::now();
            seen = behind;
        } else if moved.elapsed() > PATIENCE {
            return Err(BackupError::Behind { partition, ledger, gate });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How far the gate is in a partition; nothing for one that has never served.
async fn position(gate: &Gate, row: &PartitionRow) -> Result<Option<Cursor>, String> {
    match (row.state, &row.reason) {
        (PartitionState::Open, _) => match audit::read(gate, row.partition, &[]).await {
            Ok(moment) => Ok(Some(moment.at)),
            Err(error) => Err(chain(&error)),
        },
        (PartitionState::New, None) => Ok(None),
        (_, reason) => Err(reason.clone().unwrap_or_else(|| "it is closed".to_owned())),
    }
}

/// Writes a backup into a directory that was [`prepare`]d. One that fails leaves nothing there.
///
/// # Errors
/// [`BackupError`] when the ledger can not be read or a file not be written.
pub async fn take(
    ledger: &Ledger,
    directory: &Path,
    doubts: Vec<String>,
) -> Result<Manifest, BackupError> {
    // SQLite would take a name that begins with `file:` for a URI.
    let directory = std::path::absolute(directory).map_err(of("finding", directory))?;
    let [file, manifest_file] = [LEDGER, MANIFEST].map(|name| directory.join(name));
    let taken = write(ledger, &file, &manifest_file, doubts).await;
    if taken.is_err() {
        for left in
            [file.clone(), partial(&file), journal(&partial(&file)), partial(&manifest_file)]
        {
            drop(fs::remove_file(left));
        }
    }
    taken
}

async fn write(
    ledger: &Ledger,
    file: &Path,
    manifest_file: &Path,
    doubts: Vec<String>,
) -> Result<Manifest, BackupError> {
    let at = crate::ids::now();
    ledger.backup(&partial(file)).await?;
    let contents = ledger::contents(&partial(file)).await?;
    let mut copy = File::open(partial(file)).map_err(of("reading", file))?;
    let (bytes, sha256) = digest_into(&mut copy, &mut io::sink()).map_err(of("reading", file))?;
    copy.sync_all().map_err(of("writing", file))?;
    let manifest = Manifest {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        at,
        complete: doubts.is_empty(),
        doubts,
        bytes,
        sha256,
        contents,
    };
    let failed = of("writing", manifest_file);
    let text = serde_json::to_string_pretty(&manifest).map_err(|error| failed(error.into()))?;
    let mut part = create(&partial(manifest_file))?;
    writeln!(part, "{text}").and_then(|()| part.sync_all()).map_err(failed)?;
    // From the last of these on it counts as a backup.
    rename(file)?;
    rename(manifest_file)?;
    Ok(manifest)
}

/// Puts the ledger of a backup where there is none, once all is as its manifest says.
///
/// # Errors
/// [`BackupError::Refused`] when it is no whole backup, or a ledger is there already.
pub async fn restore(directory: &Path, file: &Path) -> Result<Manifest, BackupError> {
    if !is_backup(directory) {
        return Err(BackupError::Refused(format!(
            "{} is no backup, or one that did not come to its end: it has no {MANIFEST}",
            directory.display()
        )));
    }
    let manifest_file = directory.join(MANIFEST);
    let text = fs::read_to_string(&manifest_file).map_err(of("reading", &manifest_file))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| {
        BackupError::Refused(format!("{} can not be understood: {error}", manifest_file.display()))
    })?;
    // What SQLite has left beside a file that was removed, it would write into the one that takes its place.
    let beside = ["-wal", "-shm", "-journal"].map(|end| ending(file, end));
    if let Some(there) =
        [file].into_iter().chain(beside.iter().map(PathBuf::as_path)).find(|path| path.exists())
    {
        return Err(BackupError::Refused(format!(
            "{} is there already; a backup is restored where there is no ledger: set data.dir to another directory, or \
             move away {name}, {name}-wal and {name}-shm",
            there.display(),
            name = file.display()
        )));
    }
    if let Some(parent) = file.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(of("making the directory", parent))?;
    }
    let restored = match copy_checked(&directory.join(LEDGER), file, &manifest).await {
        Ok(()) => rename(file),
        Err(error) => Err(error),
    };
    if let Err(error) = restored {
        drop(fs::remove_file(partial(file)));
        return Err(error);
    }
    Ok(manifest)
}

async fn copy_checked(from: &Path, file: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    let mut source = File::open(from).map_err(of("reading", from))?;
    // What an earlier one that was killed has left is written over.
    let mut copy = create(&partial(file))?;
    let (bytes, sha256) = digest_into(&mut source, &mut copy).map_err(of("copying", from))?;
    copy.sync_all().map_err(of("writing", file))?;
    if (bytes, &sha256) != (manifest.bytes, &manifest.sha256) {
        return Err(BackupError::Refused(format!(
            "{} is not the file that {MANIFEST} was written for: {bytes} bytes with SHA-256 {sha256} instead of {} bytes \
             with {}",
            from.display(),
            manifest.bytes,
            manifest.sha256
        )));
    }
    if ledger::contents(&partial(file)).await? != manifest.contents {
        return Err(BackupError::Refused(format!(
            "{} does not hold what {MANIFEST} says",
            from.display()
        )));
    }
    Ok(())
}

fn is_backup(directory: &Path) -> bool {
    directory.join(MANIFEST).exists()
}

/// The name that a file has until it is whole.
fn partial(path: &Path) -> PathBuf {
    ending(path, PARTIAL)
}

/// What SQLite has beside a file that it writes.
fn journal(path: &Path) -> PathBuf {
    ending(path, "-journal")
}

fn ending(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn create(path: &Path) -> Result<File, BackupError> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).map_err(of("writing", path))
}

/// Copies what is read; returns how much that is, and its digest.
fn digest_into(from: &mut File, to: &mut dyn io::Write) -> io::Result<(u64, String)> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, data_encoding::HEXLOWER.encode(&digest.finalize())));
        }
        digest.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
        bytes += read as u64;
    }
}

/// Gives a file that is whole its name, for good.
fn rename(path: &Path) -> Result<(), BackupError> {
    fs::rename(partial(path), path).map_err(of("naming", path))?;
    sync_parent(path)
}

/// Sees to it that a name survives the loss of power.
fn sync_parent(path: &Path) -> Result<(), BackupError> {
    let absolute = std::path::absolute(path).map_err(of("finding", path))?;
    let directory = absolute.parent().unwrap_or(Path::new("/"));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(of("writing", directory))
}

fn of(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> BackupError {
    move |cause| BackupError::Io { doing, path: path.to_owned(), cause }
}
