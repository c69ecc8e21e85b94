//! `--dry-run`: reads and validates the inputs, and sends nothing.

use crate::batch_tracker::{BatchTracker, DoneBatch};
use crate::checkpoint::{Checkpoint, Job};
use crate::counters::Counters;
use crate::error::Error;
use crate::packing::PackedBatch;
use crate::progress::Progress;
use crate::reader::{self, ReadPlan, ReadStart};
use crate::summary::{Status, Summary};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many rejected events are printed if there is no rejects file.
const MAX_PRINTED: u64 = 20;

/// Validates everything. Rejected events go to a new file, or the first few to standard error.
///
/// # Errors
/// If an input cannot be read, or the rejects file cannot be written.
pub async fn run(plan: ReadPlan, rejects: Option<PathBuf>, allow_empty: bool) -> Result<Summary, Error> {
    let mut tracker = BatchTracker::new(Checkpoint::new(Job::of(&plan)));
    let sources = plan.sources.clone();
    let mut progress = Progress::new(&sources, tracker.checkpoint());
    let mut file = rejects.as_deref().map(create).transpose()?;
    let mut batches = reader::spawn(plan, ReadStart::default());
    while let Some(batch) = batches.next().await? {
        let printed = tracker.checkpoint().rejected;
        let valid = batch.body.len() as u64;
        match &mut file {
            Some((path, file)) => {
                let mut lines = Vec::new();
                batch.rejected.iter().for_each(|event| event.write_to(&mut lines));
                file.write_all(&lines).map_err(|error| Error::file("write", path, &error))?;
            }
            None => batch
                .rejected
                .iter()
                .zip(printed..MAX_PRINTED)
                .for_each(|(event, _)| progress.print(&event.to_string())),
        }
        let PackedBatch { number, end, read, rejected, .. } = batch;
        let bytes = read.end - read.start;
        tracker.done(DoneBatch { number, end, bytes, accepted: valid, rejected, ..DoneBatch::default() });
        // Frees the tracker's lines for the rejects file, which were written above.
        drop(tracker.take_unsaved());
        progress.show(&tracker, &Counters::default(), Duration::ZERO);
    }
    if let Some((path, file)) = &mut file {
        file.flush().map_err(|error| Error::file("write", path, &error))?;
    }
    progress.finish();
    tracker.check_events(allow_empty)?;
    let mut summary = Summary::new(Status::DryRun, tracker.checkpoint(), 0, progress.elapsed());
    summary.skipped = batches.skipped();
    if file.is_none() && summary.rejected > MAX_PRINTED {
        let unprinted = summary.rejected - MAX_PRINTED;
        progress.print(&format!("… and {unprinted} more; --rejects PATH writes all of them to a file"));
    }
    summary.rejects = rejects.filter(|_| summary.rejected > 0).map(|path| path.display().to_string());
    Ok(summary)
}

/// Creates the rejects file. An existing file is refused, because it may belong to a run that can be resumed.
fn create(path: &Path) -> Result<(PathBuf, BufWriter<File>), Error> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let file = file.map_err(|error| Error::Usage(format!("cannot create {}: {error}", path.display())))?;
    Ok((path.to_owned(), BufWriter::new(file)))
}
