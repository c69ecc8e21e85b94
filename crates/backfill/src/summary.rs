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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Everything is done.
    Complete,
    /// An earlier run had done everything.
    AlreadyComplete,
    /// Everything was validated, and nothing was sent.
    DryRun,
    /// `--limit` was reached. The next run continues.
    Limited,
    /// The run ended early and can be resumed.
    Aborted,
    /// Something was wrong before the run, which sent nothing.
    #[default]
    Refused,
}

/// The result of a run.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// How the run ended.
    pub status: Status,
    /// The events accepted over all runs; with `--dry-run` the valid ones.
    pub accepted: u64,
    /// How many of these the service had accepted before, and did not queue again.
    pub replayed: u64,
    /// The events rejected over all runs.
    pub rejected: u64,
    /// The records that this run skipped because of `--where`.
    pub skipped: u64,
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
    /// Why the run was aborted or refused.
    pub error: Option<String>,
    /// What the user should know although the run succeeded.
    pub warnings: Vec<String>,
    /// Up to where everything is done, if the run was aborted.
    #[serde(skip)]
    pub done_up_to: Option<String>,
}

impl Summary {
    /// The summary of a run that ended at `checkpoint`. `before` is the number of events done before it.
    pub fn new(status: Status, checkpoint: &Checkpoint, before: u64, elapsed: Duration) -> Self {
        let events_this_run = checkpoint.events_done() - before;
        let seconds = elapsed.as_secs_f64();
        Self {
            status,
            accepted: checkpoint.accepted,
            replayed: checkpoint.replayed,
            rejected: checkpoint.rejected,
            retries: checkpoint.retries,
            events_this_run,
            seconds: (seconds * 1000.0).round() / 1000.0,
            events_per_second: per_second(events_this_run, seconds),
            ..Self::default()
        }
    }

    /// The summary of a run that sent nothing because of `error`.
    pub fn failed(error: &Error) -> Self {
        let status = if matches!(error, Error::Aborted(_)) { Status::Aborted } else { Status::Refused };
        Self { status, ..Self::default() }.with_error(error)
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
            Status::Refused => 2,
            _ if self.rejected > 0 => 1,
            _ => 0,
        })
    }

    /// The summary for people.
    pub fn text(&self) -> String {
        let (accepted, rejected) = (HumanCount(self.accepted), HumanCount(self.rejected));
        let elapsed = HumanDuration(Duration::from_secs_f64(self.seconds));
        let rate = HumanCount(self.events_per_second);
        let replayed = match self.replayed {
            0 => String::new(),
            replayed => format!(" ({} of them replayed)", HumanCount(replayed)),
        };
        let mut text = match self.status {
            Status::Refused => String::new(),
            Status::Complete | Status::Limited => {
                let done = if self.status == Status::Complete { "Done" } else { "Limit reached" };
                let next = if self.status == Status::Complete { "" } else { " The next run continues from here." };
                format!(
                    "{done}: {accepted} events accepted{replayed}, {rejected} rejected, {} retries, in {elapsed} ({rate} \
                     events/s).{next}",
                    self.retries
                )
            }
            Status::AlreadyComplete => format!(
                "Already complete: an earlier run sent everything ({accepted} events accepted, {rejected} rejected). \
                 Nothing was sent. To queue everything a second time, pass --run-name with a new name."
            ),
            Status::DryRun => format!("{accepted} events are valid, {rejected} are not. Nothing was sent."),
            Status::Aborted => match (&self.checkpoint, &self.done_up_to) {
                (Some(checkpoint), Some(done_up_to)) => format!(
                    "Aborted: {accepted} events accepted{replayed}, {rejected} rejected so far, {} retries. {done_up_to} \
                     To resume from {checkpoint}, run the same command again within 24 hours.",
                    self.retries
                ),
                _ => "Aborted: nothing was sent.".to_owned(),
            },
        };
        if self.skipped > 0 {
            text = format!("{text}\n{} records do not satisfy --where and were skipped.", HumanCount(self.skipped));
        }
        for warning in &self.warnings {
            text = format!("{text}\nwarning: {warning}");
        }
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
