//! `redeemer export redemptions|invites|members`
//!
//! A file gets its name when it is whole. Until then it is NAME.part, and the same command goes on behind its last row.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{
    Common,
    codes::is_broken_pipe,
    output::{Output, complain, pass_on},
};
use crate::client::{Client, ClientError};

/// How often a download that was cut is taken up again.
const ATTEMPTS_MAX: u32 = 10;
/// How long it waits before that.
const PAUSE: Duration = Duration::from_secs(1);
/// More than the longest row has.
const ROW_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  redeemer export redemptions --file redemptions.csv
  redeemer export invites --output json --file invites.ndjson     resumes where it was cut
  redeemer export members --spreadsheet > members.csv")]
pub(super) struct Export {
    /// What
    #[arg(value_enum)]
    what: What,
    /// Where to write it; without it, to standard output
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Put ' before what a spreadsheet would take for a formula
    #[arg(long)]
    spreadsheet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum What {
    Redemptions,
    Invites,
    Members,
}

impl What {
    fn as_str(self) -> &'static str {
        match self {
            Self::Redemptions => "redemptions",
            Self::Invites => "invites",
            Self::Members => "members",
        }
    }

    /// The cursor that goes on behind a row.
    fn cursor(self, row: &Value) -> Option<String> {
        let text = |name: &str| row[name].as_str();
        let parts = match self {
            Self::Redemptions => vec![text("position")?.split_once('/')?.1],
            Self::Invites => vec![text("code")?, text("id")?],
            Self::Members => vec![text("user")?, text("group")?],
        };
        Some(data_encoding::BASE64URL_NOPAD.encode(parts.join("\n").as_bytes()))
    }
}

impl Export {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let client = common.client()?;
        let is_csv = common.output != Output::Json;
        let format = if is_csv { "csv" } else { "ndjson" };
        let spreadsheet = if self.spreadsheet { "&spreadsheet=true" } else { "" };
        let path =
            common.path(&format!("/export/{}?format={format}{spreadsheet}", self.what.as_str()));
        let Some(name) = &self.file else {
            let done = client.download(&path, |bytes| Ok(pass_on(bytes)?)).await;
            return match done {
                // Whoever reads has seen enough.
                Err(error) if !is_broken_pipe(&error) => Err(error),
                _ => Ok(ExitCode::SUCCESS),
            };
        };
        let part = PathBuf::from(format!("{}.part", name.display()));
        self.download(&client, &path, &part, is_csv).await?;
        fs::rename(&part, name)
            .with_context(|| format!("{} can not be renamed", part.display()))?;
        Ok(ExitCode::SUCCESS)
    }

    /// Fills the file, from where it ends.
    async fn download(
        &self,
        client: &Client,
        path: &str,
        part: &Path,
        is_csv: bool,
    ) -> anyhow::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let cannot = || format!("{} can not be written", part.display());
        let style = ProgressStyle::with_template("{spinner} {pos} rows {per_sec} {wide_msg}")?;
        let bar = ProgressBar::no_length().with_style(style);
        bar.set_message(part.display().to_string());
        let mut attempt = 0;
        loop {
            let mut options = File::options();
            let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let mut file = options.open(part).with_context(cannot)?;
            let path = match last_row(&mut file, is_csv)?.and_then(|row| self.what.cursor(&row)) {
                Some(cursor) => format!("{path}&cursor={cursor}"),
                None => {
                    file.set_len(0)?;
                    path.to_owned()
                }
            };
            let before = file.seek(SeekFrom::End(0))?;
            let mut writer = io::BufWriter::new(&file);
            let taken = client
                .download(&path, |bytes| {
                    bar.inc(bytes.split(|byte| *byte == b'\n').count() as u64 - 1);
                    writer.write_all(bytes).with_context(cannot)
                })
                .await;
            writer.flush().with_context(cannot)?;
            drop(writer);
            match taken {
                Ok(()) => break file.sync_all().with_context(cannot)?,
                Err(error) if attempt < ATTEMPTS_MAX && may_come_back(&error) => {
                    // One that gets further may be cut as often as it likes.
                    let grew = file.seek(SeekFrom::End(0))? > before;
                    attempt = if grew { 0 } else { attempt + 1 };
                    bar.suspend(|| complain("the download was cut; going on behind its last row"));
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    return Err(error.context(format!(
                        "what came is in {}; the same command goes on there",
                        part.display()
                    )));
                }
            }
        }
        bar.finish_and_clear();
        Ok(())
    }
}

fn may_come_back(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Problem(problem)) => problem.retryable,
        Some(ClientError::Transport { .. }) => true,
        Some(ClientError::Foreign { .. }) | None => false,
    }
}

/// Cuts off a last line that is not whole, and reads the last row; nothing if there is none that can be read.
fn last_row(file: &mut File, is_csv: bool) -> anyhow::Result<Option<Value>> {
    let length = file.metadata()?.len();
    let begin = length.saturating_sub(ROW_BYTES_MAX);
    file.seek(SeekFrom::Start(begin))?;
    let mut tail = Vec::new();
    (&mut *file).take(ROW_BYTES_MAX).read_to_end(&mut tail)?;
    let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else { return Ok(None) };
    file.set_len(begin + end as u64 + 1)?;
    let start = tail[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let line = &tail[start..end];
    if !is_csv {
        return Ok(serde_json::from_slice(line).ok());
    }
    file.seek(SeekFrom::Start(0))?;
    let mut names = Vec::new();
    BufReader::new(&*file).read_until(b'\n', &mut names)?;
    if begin == 0 && start == 0 {
        // Only the names of the columns.
        return Ok(None);
    }
    let both = [names.as_slice(), line].concat();
    let row = csv::Reader::from_reader(both.as_slice()).deserialize().next();
    Ok(row.and_then(|row: csv::Result<std::collections::HashMap<String, String>>| {
        serde_json::to_value(row.ok()?).ok()
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn last(text: &str, is_csv: bool) -> (Option<Value>, String) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let row = last_row(&mut file, is_csv).unwrap();
        let mut kept = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut kept).unwrap();
        (row, kept)
    }

    #[test]
    fn a_file_that_was_cut_goes_on_behind_its_last_whole_row() {
        let csv = "user,group\nalice,\"a,b\"\nbo";
        let (row, kept) = last(csv, true);
        assert_eq!(row.unwrap(), json!({"user": "alice", "group": "a,b"}));
        assert_eq!(kept, "user,group\nalice,\"a,b\"\n");
        assert_eq!(last("user,group\nal", true).0, None);
        assert_eq!(last("user,gr", true).0, None);
        assert_eq!(last("", false).0, None);
        let (row, kept) = last("{\"user\":\"a\"}\n{\"user\":\"b\"}\n{\"us", false);
        assert_eq!((row.unwrap(), kept.lines().count()), (json!({"user": "b"}), 2));
    }
}
