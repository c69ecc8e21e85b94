//! `--dry-run`: everything but the sending.

use crate::checkpoint::{Checkpoint, Job};
use crate::failure::Failure;
use crate::ledger::Ledger;
use crate::progress::{Counters, Progress};
use crate::reader::{self, Plan, Start};
use crate::rejects::Reject;
use crate::summary::{Status, Summary};
use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// So many rejects are shown where no file gets them.
const SHOWN: u64 = 20;

/// Validates everything. Rejects go to a new file, or a few of them to standard error.
///
/// # Errors
/// Where an input cannot be read or the file not be written.
pub async fn run(plan: Plan, rejects: Option<PathBuf>) -> Result<Summary, Failure> {
    let inputs: Vec<_> = plan.sources.iter().map(|source| source.identity.clone()).collect();
    let sizes: Vec<_> = inputs.iter().map(|input| input.bytes).collect();
    let (url, mode) = (String::new(), String::new());
    let job = Job { url, host: None, mode, inputs, max_events: plan.max_events, types: plan.types.clone() };
    let mut ledger = Ledger::new(Checkpoint::new(job));
    let mut progress = Progress::new(&sizes, ledger.checkpoint());
    let mut file = rejects.as_deref().map(create).transpose()?;
    let (sender, mut batches) = mpsc::channel(2);
    std::thread::spawn(move || reader::run(&plan, &Start::default(), &sender));
    loop {
        let read = batches.recv().await.unwrap_or_else(|| Err(reader_vanished()));
        let Some(batch) = read? else { break };
        let shown = ledger.checkpoint().rejected;
        let events = batch.body.len() as u64;
        match &mut file {
            Some((path, file)) => {
                let mut lines = Vec::new();
                batch.rejects.iter().for_each(|reject| reject.write_to(&mut lines));
                file.write_all(&lines).map_err(|error| Failure::file("write", path, &error))?;
            }
            None => batch.rejects.iter().zip(shown..SHOWN).for_each(|(reject, _)| progress.line(&line(reject))),
        }
        ledger.done(batch.ordinal, String::new(), batch.end, events, &batch.rejects);
        // The ledger's lines are for a run that has a file for them.
        drop(ledger.unsaved());
        progress.show(ledger.checkpoint(), &Counters::default(), Duration::ZERO);
    }
    if let Some((path, file)) = &mut file {
        file.flush().map_err(|error| Failure::file("write", path, &error))?;
    }
    progress.end();
    let mut summary = Summary::new(Status::DryRun, ledger.checkpoint(), 0, progress.elapsed());
    if file.is_none() && summary.rejected > SHOWN {
        progress.line(&format!("… and {} more; --rejects PATH keeps them all", summary.rejected - SHOWN));
    }
    summary.rejects = rejects.filter(|_| summary.rejected > 0).map(|path| path.display().to_string());
    Ok(summary)
}

/// The reader's thread ended without a word.
pub fn reader_vanished() -> Failure {
    Failure::Aborted("the input's reader ended unexpectedly; this is a defect".to_owned())
}

/// Never one that is there: it may be that of a run that was broken off.
fn create(path: &Path) -> Result<(PathBuf, BufWriter<std::fs::File>), Failure> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let file = file.map_err(|error| Failure::Usage(format!("cannot create {}: {error}", path.display())))?;
    Ok((path.to_owned(), BufWriter::new(file)))
}

fn line(reject: &Reject) -> String {
    let faults = reject.faults.iter().map(|fault| match &fault.field {
        Some(field) => format!("{field} {}", fault.reason),
        None => fault.reason.clone(),
    });
    let faults: Vec<_> = faults.collect();
    format!("{}:{}: {}", reject.file, reject.line, faults.join("; ").replace(char::is_control, "\u{fffd}"))
}
