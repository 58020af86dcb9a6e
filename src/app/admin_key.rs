//! The first admin key: made at the first start and written into the data directory, for its owner's eyes only.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use crate::{
    config::Config,
    domain::{ApiKey, Role, Token},
    ledger::{By, Ledger, LedgerError},
    sync::chain,
};

/// Sees to it that somebody can administer the service: with a configured key, with the key of the data directory,
/// which is made known to a ledger that does not have it, or with a new one where there is none at all.
pub(super) async fn ensure(config: &Config, ledger: &Ledger) -> Result<(), String> {
    if config.auth.admin_key.is_some() {
        return Ok(());
    }
    let path = config.admin_key_file();
    let keys = ledger.keys().await.map_err(|error| chain(&error))?;
    match fs::read_to_string(&path) {
        Ok(text) => {
            let token = Token::parse(text.trim()).map_err(|error| {
                format!(
                    "{}: {error}; delete it, and `redeemer key reset-admin` makes a new one",
                    path.display()
                )
            })?;
            if keys.iter().any(|key| key.id == token.id()) {
                return Ok(());
            }
            insert(ledger, &token, &By::node()).await
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let now = crate::ids::now();
            let is_admin = |key: &ApiKey| key.role == Role::Admin && key.is_live(now);
            if !config.is_embedded() && keys.iter().any(is_admin) {
                return Ok(());
            }
            make(ledger, &path, &By::node()).await
        }
        Err(error) => Err(format!("{} can not be read: {error}", path.display())),
    }
}

/// Revokes every admin key of the ledger and makes a new one, which is written into the data directory.
///
/// # Errors
/// A sentence for the operator.
pub async fn reset(config: &Config, ledger: &Ledger, by: &By) -> Result<(), String> {
    let failed = |error: LedgerError| chain(&error);
    let path = config.admin_key_file();
    for key in ledger.keys().await.map_err(failed)? {
        if key.role == Role::Admin && key.revoked_at.is_none() {
            ledger.revoke_key(&key.id, crate::ids::now(), by).await.map_err(failed)?;
        }
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(format!("{} can not be replaced: {error}", path.display()));
        }
        _ => {}
    }
    make(ledger, &path, by).await
}

async fn make(ledger: &Ledger, path: &Path, by: &By) -> Result<(), String> {
    let token = crate::ids::token("", None);
    // The file first: a key that nobody can read is worse than a file without its key, which the next start mends.
    write(path, &token)
        .map_err(|error| format!("{} can not be written: {error}", path.display()))?;
    insert(ledger, &token, by).await
}

fn write(path: &Path, token: &Token) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{}", token.reveal())?;
    file.sync_all()
}

async fn insert(ledger: &Ledger, token: &Token, by: &By) -> Result<(), String> {
    let key = ApiKey {
        id: token.id().to_owned(),
        name: "admin.key".to_owned(),
        role: Role::Admin,
        namespaces: None,
        secret_sha256: token.secret_sha256(),
        created_at: crate::ids::now(),
        expires_at: None,
        revoked_at: None,
    };
    ledger.insert_key(&key, by).await.map_err(|error| chain(&error))
}
