//! What a run came to: words on standard error, or with `--json` an object on standard output.

use crate::checkpoint::{Checkpoint, Paths};
use crate::failure::Failure;
use crate::progress::per_second;
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
    /// Everything was validated, and nothing sent.
    DryRun,
    /// It can go on.
    Aborted,
}

/// What a run came to.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// How it ended.
    pub status: Status,
    /// Events accepted, over all runs; with `--dry-run` those that are valid.
    pub accepted: u64,
    /// Events rejected, over all runs.
    pub rejected: u64,
    /// Requests repeated, over all runs.
    pub retries: u64,
    /// Events accepted or rejected by this run.
    pub events_this_run: u64,
    /// How long this run took.
    pub seconds: f64,
    /// [`Self::events_this_run`] over [`Self::seconds`].
    pub events_per_second: u64,
    /// Where the checkpoint is, if there is one.
    pub checkpoint: Option<String>,
    /// Where the rejected events are, if there are any.
    pub rejects: Option<String>,
    /// Why it was aborted.
    pub error: Option<String>,
}

impl Summary {
    /// Of a run that ended as `status`, having begun with `before` events done.
    pub fn new(status: Status, checkpoint: &Checkpoint, before: u64, took: Duration) -> Self {
        let events_this_run = checkpoint.accepted + checkpoint.rejected - before;
        let seconds = took.as_secs_f64();
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

    /// Adds where the run's files are.
    pub fn with_files(mut self, paths: &Paths) -> Self {
        self.checkpoint = Some(paths.checkpoint.display().to_string());
        self.rejects = (self.rejected > 0).then(|| paths.rejects.display().to_string());
        self
    }

    /// Adds why it ended early.
    pub fn with_failure(mut self, failure: &Failure) -> Self {
        self.error = Some(failure.to_string());
        self
    }

    /// As `--help` says.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.status {
            Status::Aborted => 3,
            _ if self.rejected > 0 => 1,
            _ => 0,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let (accepted, rejected) = (HumanCount(self.accepted), HumanCount(self.rejected));
        let took = HumanDuration(Duration::from_secs_f64(self.seconds));
        let rate = HumanCount(self.events_per_second);
        let mut text = match self.status {
            Status::Complete => format!(
                "Done: {accepted} events accepted, {rejected} rejected, {} retries, in {took} ({rate} events/s).",
                self.retries
            ),
            Status::AlreadyComplete => format!(
                "Already done by an earlier run: {accepted} events accepted, {rejected} rejected; nothing was sent. \
                 To send everything again, give --restart."
            ),
            Status::DryRun => format!("{accepted} events are valid, {rejected} are not; nothing was sent."),
            Status::Aborted => {
                let checkpoint = self.checkpoint.as_deref().unwrap_or_default();
                format!(
                    "Aborted: {accepted} events accepted, {rejected} rejected so far, {} retries. Start it again, within \
                     24 hours, and it goes on where it was: that is in {checkpoint}.",
                    self.retries
                )
            }
        };
        if let Some(rejects) = &self.rejects {
            text = format!("{text}\nThe rejected events, and why, are in {rejects}.");
        }
        text
    }

    /// For machines.
    pub fn json(&self) -> String {
        // Strings and finite numbers always make JSON.
        serde_json::to_string(self).unwrap_or_default()
    }
}
