//! Reads the inputs and packs their events into batches, on a separate thread.

use crate::error::Error;
use crate::input::{InputReader, Source, hash_of_pinned, read_error};
use crate::packing::{PackedBatch, Packer};
use crate::position::{Position, ResumePoint};
use crate::records::{ReadOptions, Record, RecordReader};
use crate::rejects::RejectedEvent;
use sha2::{Digest, Sha256};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// The longest time for which the reader does not notice that the run has stopped.
const MAX_SLEEP: Duration = Duration::from_millis(50);

/// How many batches the reader may be ahead of the senders.
const BATCHES_AHEAD: usize = 2;

/// If this many first records are all rejected, the input is not what the user thinks it is.
const MAX_FIRST_REJECTED: u64 = 1000;

/// What to read, and how.
#[derive(Clone)]
pub struct ReadPlan {
    /// The inputs, in order.
    pub sources: Vec<Source>,
    /// How their records become events.
    pub options: ReadOptions,
    /// The maximum number of events in a batch.
    pub max_events: usize,
    /// The maximum number of events that may be rejected before sending. `None` stops only if the first
    /// [`MAX_FIRST_REJECTED`] are all rejected.
    pub max_rejects: Option<u64>,
    /// The maximum number of events of this run.
    pub limit: Option<u64>,
    /// The maximum number of events per second, on average.
    pub events_per_second: Option<u64>,
}

impl ReadPlan {
    /// Reads everything, at any rate.
    pub fn new(sources: Vec<Source>, options: ReadOptions, max_events: usize) -> Self {
        Self { sources, options, max_events, max_rejects: None, limit: None, events_per_second: None }
    }

    /// The bytes before `position`, where the reader must be, in the inputs whose size is known.
    fn bytes_before(&self, position: &Position) -> u64 {
        let earlier = self.sources.iter().take(position.file).filter_map(|source| source.identity.bytes);
        let last = self.sources.get(position.file);
        earlier.sum::<u64>() + last.map_or(position.offset, |source| source.bytes_before(position.offset))
    }
}

/// Where to start reading.
#[derive(Clone, Debug, Default)]
pub struct ReadStart {
    /// The number of the first batch.
    pub batch: u64,
    /// Where that batch begins.
    pub at: ResumePoint,
    /// The name in the keys of all batches.
    pub key_name: String,
}

/// The batches of a run, in order.
pub struct Batches {
    receiver: Receiver<Message>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    skipped: AtomicU64,
    has_reached_limit: AtomicBool,
}

/// A batch, the end of the inputs (`None`), or an error.
type Message = Result<Option<PackedBatch>, Error>;

impl Batches {
    /// The next batch, or `None` at the end of the inputs. Dropping the future loses no batch.
    ///
    /// # Errors
    /// If an input cannot be read, or has changed since the checkpoint was written.
    pub async fn next(&mut self) -> Message {
        let thread_ended = || Error::Aborted("internal error: the reader thread ended unexpectedly".to_owned());
        self.receiver.recv().await.unwrap_or_else(|| Err(thread_ended()))
    }

    /// The records that this run has skipped so far, because they do not satisfy `--where`.
    pub fn skipped(&self) -> u64 {
        self.counts.skipped.load(Ordering::Relaxed)
    }

    /// Whether the batches ended because of `--limit`, so that the inputs may continue.
    pub fn has_reached_limit(&self) -> bool {
        self.counts.has_reached_limit.load(Ordering::Relaxed)
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
        RecordReader::open(&mut input, source, &plan.options)?;
    }
    Ok(())
}

/// Starts a thread that reads everything from `start` on.
pub fn spawn(plan: ReadPlan, start: ReadStart) -> Batches {
    let (sender, receiver) = channel(BATCHES_AHEAD);
    let counts = Arc::<Counts>::default();
    let shared = Arc::clone(&counts);
    std::thread::spawn(move || {
        let result = Reading::new(&plan, &start, &sender, &shared).run();
        // Sending fails if the run has stopped, which needs no handling.
        let _ = match result {
            Ok(()) => sender.blocking_send(Ok(None)),
            Err(Halt::Error(error)) => sender.blocking_send(Err(error)),
            Err(Halt::RunStopped) => Ok(()),
        };
    });
    Batches { receiver, counts }
}

/// The error for more than `max` rejected events.
pub fn too_many_rejects(max: u64) -> Error {
    Error::Aborted(format!("more than {max} events are rejected (--max-rejects)"))
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
    counts: &'a Counts,
    packer: Packer,
    /// The events read, and how many of them were rejected.
    events: u64,
    rejected: u64,
    /// The first batches, as long as all their events are rejected; `None` once a batch was sent.
    held: Option<Vec<PackedBatch>>,
    /// When the next batch may be sent.
    due: Instant,
}

impl<'a> Reading<'a> {
    fn new(plan: &'a ReadPlan, start: &'a ReadStart, batches: &'a Sender<Message>, counts: &'a Counts) -> Self {
        let read = plan.bytes_before(&start.at.position);
        let packer = Packer::new(plan.max_events, start.key_name.clone(), start.batch, read);
        let held = (start.batch == 0 && plan.max_rejects.is_none()).then(Vec::new);
        Self { plan, start, batches, counts, packer, events: 0, rejected: 0, held, due: Instant::now() }
    }

    fn run(mut self) -> Result<(), Halt> {
        let mut hash = Sha256::new();
        let mut end = self.start.at.clone();
        for (file, source) in self.plan.sources.iter().enumerate() {
            if file < self.start.at.position.file && source.is_pinned() {
                hash = hash_of_pinned(source, hash);
                continue;
            }
            let mut input = InputReader::open(source, file, hash)?;
            if file < self.start.at.position.file {
                self.skip(&mut input, source)?;
            } else {
                self.read(&mut input, source)?;
                end = input.resume_point();
            }
            hash = input.into_hash();
            if self.counts.has_reached_limit.load(Ordering::Relaxed) {
                break;
            }
        }
        if !self.packer.is_empty() {
            self.finish_batch(end)?;
        }
        for batch in self.held.take().unwrap_or_default() {
            self.send(batch)?;
        }
        Ok(())
    }

    /// Reads an input that an earlier run completed, only to hash it.
    fn skip(&self, input: &mut InputReader, source: &Source) -> Result<(), Halt> {
        loop {
            let available = input.peek().map_err(|error| read_error(&source.location, &error))?.len();
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
        let mut records = RecordReader::open(input, source, &self.plan.options)?;
        if input.position().file == self.start.at.position.file {
            self.resume(input, source)?;
            self.packer.begin_after(self.plan.bytes_before(input.position()));
        }
        let name = source.display_name();
        let (mut text, mut line) = (Vec::new(), 0);
        loop {
            let before = input.snapshot();
            match records.next(input, &mut text, &mut line).map_err(|error| read_error(&source.location, &error))? {
                Record::End => return Ok(()),
                Record::Skipped => {
                    self.counts.skipped.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Record::Rejected { problems, has_text } => {
                    let text = has_text.then(|| text.clone());
                    self.packer.push_rejected(RejectedEvent { file: name.clone(), line, problems, text });
                    self.rejected += 1;
                }
                Record::Valid => {
                    let position = Position { line, ..before.position };
                    if !self.packer.has_room_for(&text) {
                        self.finish_batch(before.resume_point())?;
                    }
                    self.packer.push(&source.identity.name, position, &text);
                }
            }
            self.events += 1;
            let is_over = self.plan.max_rejects.is_some_and(|max| self.rejected > max);
            if self.packer.is_full() || is_over {
                self.finish_batch(input.resume_point())?;
            }
            if let (true, Some(max)) = (is_over, self.plan.max_rejects) {
                return Err(too_many_rejects(max).into());
            }
            if self.plan.limit == Some(self.events) {
                self.counts.has_reached_limit.store(true, Ordering::Relaxed);
                return Ok(());
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
                "{} has changed since the checkpoint was written, so the run cannot resume. Restore the old input, pass \
                 --run-name with a new name if this is another input, or start over with --restart",
                source.display_name()
            ))
        };
        match input.resume_at(source, &at.position) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(changed().into()),
            Err(error) => Err(read_error(&source.location, &error).into()),
            Ok(()) if input.resume_point() != *at => Err(changed().into()),
            Ok(()) => Ok(()),
        }
    }

    fn finish_batch(&mut self, end: ResumePoint) -> Result<(), Halt> {
        let read = self.plan.bytes_before(&end.position);
        let batch = self.packer.finish_batch(end, read);
        self.send(batch)
    }

    fn send(&mut self, batch: PackedBatch) -> Result<(), Halt> {
        let Some(held) = &mut self.held else { return self.send_when_due(batch) };
        if batch.body.len() == 0 {
            held.push(batch);
            return self.check_first_rejected();
        }
        let held = self.held.take().unwrap_or_default();
        held.into_iter().chain([batch]).try_for_each(|batch| self.send_when_due(batch))
    }

    /// Refuses an input whose first records are all rejected, before anything is sent or written.
    fn check_first_rejected(&self) -> Result<(), Halt> {
        let first = self.held.iter().flatten().flat_map(|batch| &batch.rejected).next();
        let Some(first) = first.filter(|_| self.rejected >= MAX_FIRST_REJECTED) else { return Ok(()) };
        Err(Error::Usage(format!(
            "the first 1,000 records are all rejected, the first one for this reason: {first}. If the rest is right, pass \
             --max-rejects with the number of events that may be rejected"
        ))
        .into())
    }

    fn send_when_due(&mut self, batch: PackedBatch) -> Result<(), Halt> {
        if let Some(rate) = self.plan.events_per_second {
            while let Some(wait) = self.due.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) {
                if self.batches.is_closed() {
                    return Err(Halt::RunStopped);
                }
                std::thread::sleep(wait.min(MAX_SLEEP));
            }
            let events = u32::try_from(batch.body.len()).unwrap_or(u32::MAX);
            // A pause of the run, such as a Retry-After, is not made up for.
            self.due = self.due.max(Instant::now())
                + Duration::from_secs(1) * events / u32::try_from(rate).unwrap_or(u32::MAX);
        }
        self.batches.blocking_send(Ok(Some(batch))).map_err(|_| Halt::RunStopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::Location;
    use std::path::{Path, PathBuf};
    use tempfile::TempDir;

    fn file(directory: &TempDir, name: &str, content: &str) -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn read(files: &[&Path], start: &ReadStart) -> Result<Vec<PackedBatch>, Error> {
        let sources = files.iter().map(|path| Source::new(Location::File(path.to_path_buf()), None).unwrap()).collect();
        let mut batches = spawn(
            ReadPlan { max_rejects: Some(u64::MAX), ..ReadPlan::new(sources, ReadOptions::default(), 3) },
            start.clone(),
        );
        std::iter::from_fn(|| batches.receiver.blocking_recv().expect("a message").transpose()).collect()
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
