//! `--preview`: prints the first events as they would be sent.

use crate::error::Error;
use crate::reader::{self, ReadPlan, ReadStart};
use std::io::{Write, stdout};
use std::process::ExitCode;

/// Prints up to `events` events to standard output, and rejected events to standard error. The result is the exit code.
///
/// # Errors
/// If an input cannot be read.
pub async fn run(plan: ReadPlan, events: u64) -> Result<ExitCode, Error> {
    let mut batches =
        reader::spawn(ReadPlan { limit: Some(events), max_rejects: Some(u64::MAX), ..plan }, ReadStart::default());
    let mut has_rejected = false;
    while let Some(batch) = batches.next().await? {
        has_rejected |= !batch.rejected.is_empty();
        batch.rejected.iter().for_each(|event| crate::command::print(&event.to_string()));
        let events = (0..batch.body.len()).filter_map(|index| batch.body.event(index));
        let mut lines = Vec::new();
        events.for_each(|(_, event)| lines.extend([event, b"\n"].concat()));
        let written = stdout().write_all(&lines);
        written.map_err(|error| Error::Aborted(format!("cannot write to standard output: {error}")))?;
    }
    Ok(ExitCode::from(u8::from(has_rejected)))
}
