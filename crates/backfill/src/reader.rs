//! Reads the inputs and packs their events into batches, on a separate thread.

use crate::column_types::ColumnTypes;
use crate::error::Error;
use crate::input::{InputReader, Source, read_error};
use crate::packing::{PackedBatch, Packer};
use crate::position::{Position, ResumePoint};
use crate::records::{Record, RecordReader};
use crate::rejects::RejectedEvent;
use sha2::{Digest, Sha256};
use std::io;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// How many batches the reader may be ahead of the senders.
const BATCHES_AHEAD: usize = 2;

/// What to read, and how.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    /// The inputs, in order.
    pub sources: Vec<Source>,
    /// The types of CSV columns.
    pub types: ColumnTypes,
    /// The most events in a batch.
    pub max_events: usize,
}

impl ReadPlan {
    /// The bytes of all inputs before `position`, of those whose size is known.
    pub fn bytes_before(&self, position: &Position) -> u64 {
        let earlier = self.sources.iter().take(position.file).filter_map(|source| source.identity.bytes);
        earlier.sum::<u64>() + position.offset
    }
}

/// Where to start reading.
#[derive(Clone, Debug, Default)]
pub struct ReadStart {
    /// The number of the first batch.
    pub batch: u64,
    /// Where that batch begins.
    pub at: ResumePoint,
    /// What enters the keys of all batches.
    pub key_name: String,
}

/// The batches of a run, in order.
pub struct Batches(Receiver<Message>);

/// A batch, the end of the inputs (`None`), or an error.
type Message = Result<Option<PackedBatch>, Error>;

impl Batches {
    /// The next batch, or `None` at the end of the inputs. Dropping the future loses no batch.
    ///
    /// # Errors
    /// If an input cannot be read, or has changed since the checkpoint was written.
    pub async fn next(&mut self) -> Message {
        let thread_ended = || Error::Aborted("internal error: the reader thread ended unexpectedly".to_owned());
        self.0.recv().await.unwrap_or_else(|| Err(thread_ended()))
    }
}

/// Checks the headers of all CSV files, so that a bad header is reported before anything is sent.
///
/// # Errors
/// If a header is not valid or a file cannot be read.
pub fn check_headers(plan: &ReadPlan) -> Result<(), Error> {
    // Only regular files have a size, and only they can be read a second time.
    for source in plan.sources.iter().filter(|source| source.identity.bytes.is_some()) {
        let mut input = InputReader::open(source, 0, Sha256::new())?;
        RecordReader::open(&mut input, source, &plan.types)?;
    }
    Ok(())
}

/// Starts a thread that reads everything from `start` on.
pub fn spawn(plan: ReadPlan, start: ReadStart) -> Batches {
    let (sender, receiver) = channel(BATCHES_AHEAD);
    std::thread::spawn(move || {
        let read = plan.bytes_before(&start.at.position);
        let packer = Packer::new(plan.max_events, start.key_name.clone(), start.batch, read);
        let result = Reading { plan: &plan, start: &start, batches: &sender, packer }.run();
        // Sending fails if the run has stopped, which needs no handling.
        let _ = match result {
            Ok(()) => sender.blocking_send(Ok(None)),
            Err(Halt::Error(error)) => sender.blocking_send(Err(error)),
            Err(Halt::RunStopped) => Ok(()),
        };
    });
    Batches(receiver)
}

/// Why reading ends early.
enum Halt {
    Error(Error),
    RunStopped,
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

struct Reading<'a> {
    plan: &'a ReadPlan,
    start: &'a ReadStart,
    batches: &'a Sender<Message>,
    packer: Packer,
}

impl Reading<'_> {
    fn run(mut self) -> Result<(), Halt> {
        let mut hash = Sha256::new();
        let mut end = self.start.at.clone();
        for (file, source) in self.plan.sources.iter().enumerate() {
            let mut input = InputReader::open(source, file, hash)?;
            if file < self.start.at.position.file {
                self.skip(&mut input, source)?;
            } else {
                self.read(&mut input, source)?;
                end = input.resume_point();
            }
            hash = input.into_hash();
        }
        if !self.packer.is_empty() {
            self.finish_batch(end)?;
        }
        Ok(())
    }

    /// Reads an input that an earlier run completed, only to hash it.
    fn skip(&self, input: &mut InputReader, source: &Source) -> Result<(), Halt> {
        loop {
            let available = input.peek().map_err(|error| read_error(source, &error))?.len();
            if available == 0 {
                return Ok(());
            }
            if self.batches.is_closed() {
                return Err(Halt::RunStopped);
            }
            input.consume(available);
        }
    }

    fn read(&mut self, input: &mut InputReader, source: &Source) -> Result<(), Halt> {
        let mut records = RecordReader::open(input, source, &self.plan.types)?;
        if input.position().file == self.start.at.position.file {
            self.resume(input, source)?;
        }
        let name = source.display_name();
        let (mut text, mut line) = (Vec::new(), 0);
        loop {
            let before = input.snapshot();
            match records.next(input, &mut text, &mut line).map_err(|error| read_error(source, &error))? {
                Record::End => return Ok(()),
                Record::Rejected { problems, has_text } => {
                    let text = has_text.then(|| text.clone());
                    self.packer.push_rejected(RejectedEvent { file: name.clone(), line, problems, text });
                }
                Record::Valid => {
                    let position = Position { line, ..before.position };
                    if !self.packer.has_room_for(&text) {
                        self.finish_batch(before.resume_point())?;
                    }
                    self.packer.push(&source.identity.name, position, &text);
                }
            }
            if self.packer.is_full() {
                self.finish_batch(input.resume_point())?;
            }
        }
    }

    /// Moves to where the earlier run ended, and verifies that everything before is unchanged.
    fn resume(&self, input: &mut InputReader, source: &Source) -> Result<(), Halt> {
        let at = &self.start.at;
        if at.sha256.is_empty() {
            return Ok(());
        }
        let changed = || {
            Error::Usage(format!(
                "{} has changed since the checkpoint was written, so the run cannot resume. Restore the old file, or \
                 start over with --restart",
                source.display_name()
            ))
        };
        match input.skip_to(at.position.offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(changed().into()),
            Err(error) => Err(read_error(source, &error).into()),
            Ok(()) if input.resume_point() != *at => Err(changed().into()),
            Ok(()) => Ok(()),
        }
    }

    fn finish_batch(&mut self, end: ResumePoint) -> Result<(), Halt> {
        let read = self.plan.bytes_before(&end.position);
        let batch = self.packer.finish_batch(end, read);
        self.batches.blocking_send(Ok(Some(batch))).map_err(|_| Halt::RunStopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};
    use tempfile::TempDir;

    fn file(directory: &TempDir, name: &str, content: &str) -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn read(files: &[&Path], start: &ReadStart) -> Result<Vec<PackedBatch>, Error> {
        let sources = files.iter().map(|path| Source::new(path, None).unwrap()).collect();
        let mut batches = spawn(ReadPlan { sources, types: ColumnTypes::default(), max_events: 3 }, start.clone());
        std::iter::from_fn(|| batches.0.blocking_recv().expect("a message").transpose()).collect()
    }

    fn lines(from: usize, count: usize) -> String {
        let line = |id| format!("{{\"external_user_id\":\"{id}\",\"name\":\"n\"}}\n");
        (from..from + count).map(line).collect()
    }

    #[test]
    fn a_read_from_the_end_of_any_batch_yields_the_same_later_batches() {
        let directory = tempfile::tempdir().unwrap();
        let rows = (0..7).map(|id| format!("c{id},n\r\n\r\n")).collect::<Vec<_>>().concat();
        let first = file(&directory, "first.ndjson", &format!("\u{feff}{}\n{{}}\n{}", lines(0, 4), lines(10, 3)));
        let csv = format!("\u{feff}external_user_id,name\r\n{rows}broken\r\n");
        let second = file(&directory, "second.csv", &csv);
        let third = file(&directory, "third.ndjson", &lines(20, 2));
        let files = [first.as_path(), &second, &third];
        let all = read(&files, &ReadStart::default()).unwrap();
        let valid: usize = all.iter().map(|batch| batch.body.len()).sum();
        let rejected: Vec<_> = all.iter().flat_map(|batch| &batch.rejected).map(|event| event.line).collect();
        assert_eq!((valid, rejected), (16, vec![6, 16]));
        for (index, batch) in all.iter().enumerate() {
            let start = ReadStart { batch: batch.number + 1, at: batch.end.clone(), ..ReadStart::default() };
            let rest = read(&files, &start).unwrap();
            let identities = |batches: &[PackedBatch]| -> Vec<_> {
                batches.iter().map(|batch| (batch.number, batch.key(), batch.end.clone(), batch.read.clone())).collect()
            };
            assert_eq!(identities(&rest), identities(&all[index + 1..]));
        }
    }

    #[test]
    fn input_that_changed_before_the_resume_point_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(&directory, "events.ndjson", &lines(0, 7));
        let batches = read(&[&path], &ReadStart::default()).unwrap();
        let start = ReadStart { batch: 1, at: batches[0].end.clone(), ..ReadStart::default() };
        read(&[&path], &start).unwrap();
        for changed in [lines(0, 7).replacen("\"n\"", "\"m\"", 1), lines(1, 7), String::new()] {
            file(&directory, "events.ndjson", &changed);
            let error = read(&[&path], &start).unwrap_err();
            assert!(matches!(error, Error::Usage(reason) if reason.contains("--restart")));
        }
    }

    #[test]
    fn a_batch_ends_after_500_rejected_events() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(&directory, "invalid.ndjson", &"{}\n".repeat(1200));
        let batches = read(&[&path], &ReadStart::default()).unwrap();
        assert_eq!(batches.iter().map(|batch| batch.rejected.len()).collect::<Vec<_>>(), [500, 500, 200]);
        assert!(batches.iter().all(|batch| batch.body.len() == 0));
        let event = &batches[0].rejected[1];
        assert_eq!((event.line, event.problems.len()), (2, 2));
        assert_eq!(event.problems[0].field.as_deref(), Some("external_user_id"));
    }
}
