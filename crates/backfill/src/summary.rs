//! The result of a run: text on standard error, or with `--json` an object on standard output.

use crate::checkpoint::Checkpoint;
use crate::counters::per_second;
use crate::error::Error;
use crate::run_files::RunPaths;
use indicatif::{HumanCount, HumanDuration};
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Everything is done.
    Complete,
    /// An earlier run had done everything.
    AlreadyComplete,
    /// Everything was validated, and nothing was sent.
    DryRun,
    /// The run ended early and can be resumed.
    Aborted,
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// How the run ended.
    pub status: Status,
    /// The events accepted over all runs; with `--dry-run` the valid ones.
    pub accepted: u64,
    /// The events rejected over all runs.
    pub rejected: u64,
    /// The requests retried over all runs.
    pub retries: u64,
    /// The events accepted or rejected by this run.
    pub events_this_run: u64,
    /// How long this run took.
    pub seconds: f64,
    /// The rate of this run.
    pub events_per_second: u64,
    /// The path of the checkpoint, if there is one.
    pub checkpoint: Option<String>,
    /// The path of the rejects file, if any event was rejected.
    pub rejects: Option<String>,
    /// Why the run was aborted.
    pub error: Option<String>,
}

impl Summary {
    /// The summary of a run that ended at `checkpoint`. `before` is the number of events done before it.
    pub fn new(status: Status, checkpoint: &Checkpoint, before: u64, elapsed: Duration) -> Self {
        let events_this_run = checkpoint.events_done() - before;
        let seconds = elapsed.as_secs_f64();
        Self {
            status,
            accepted: checkpoint.accepted,
            rejected: checkpoint.rejected,
            retries: checkpoint.retries,
            events_this_run,
            seconds: (seconds * 1000.0).round() / 1000.0,
            events_per_second: per_second(events_this_run, seconds),
            checkpoint: None,
            rejects: None,
            error: None,
        }
    }

    /// Adds the paths of the run's files.
    pub fn with_files(mut self, paths: &RunPaths) -> Self {
        self.checkpoint = Some(paths.checkpoint.display().to_string());
        self.rejects = (self.rejected > 0).then(|| paths.rejects.display().to_string());
        self
    }

    /// Adds the error that ended the run.
    pub fn with_error(mut self, error: &Error) -> Self {
        self.error = Some(error.to_string());
        self
    }

    /// The exit code that `--help` documents.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.status {
            Status::Aborted => 3,
            _ if self.rejected > 0 => 1,
            _ => 0,
        })
    }

    /// The summary for people.
    pub fn text(&self) -> String {
        let (accepted, rejected) = (HumanCount(self.accepted), HumanCount(self.rejected));
        let elapsed = HumanDuration(Duration::from_secs_f64(self.seconds));
        let rate = HumanCount(self.events_per_second);
        let mut text = match self.status {
            Status::Complete => format!(
                "Done: {accepted} events accepted, {rejected} rejected, {} retries, in {elapsed} ({rate} events/s).",
                self.retries
            ),
            Status::AlreadyComplete => format!(
                "Already complete: an earlier run sent everything ({accepted} events accepted, {rejected} rejected). \
                 Nothing was sent. To send everything again, pass --restart."
            ),
            Status::DryRun => format!("{accepted} events are valid, {rejected} are not. Nothing was sent."),
            Status::Aborted => {
                let checkpoint = self.checkpoint.as_deref().unwrap_or_default();
                format!(
                    "Aborted: {accepted} events accepted, {rejected} rejected so far, {} retries. To resume from \
                     {checkpoint}, run the same command again within 24 hours.",
                    self.retries
                )
            }
        };
        if let Some(rejects) = &self.rejects {
            text = format!("{text}\nThe rejected events and the reasons are in {rejects}.");
        }
        text
    }

    /// The summary as JSON.
    pub fn json(&self) -> String {
        // Serializing strings and finite numbers cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}
