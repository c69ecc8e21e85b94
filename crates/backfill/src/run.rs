//! A run: takes batches from the reader, sends them, tracks the results and writes checkpoints.

use crate::batch_sender::{BatchSender, SendResult, Split};
use crate::batch_tracker::{BatchTracker, DoneBatch};
use crate::checkpoint::{Checkpoint, Job};
use crate::client::Client;
use crate::counters::Counters;
use crate::error::Error;
use crate::forecast::forecast;
use crate::input::Source;
use crate::packing::{PackedBatch, Parts};
use crate::position::{Position, ResumePoint};
use crate::progress::Progress;
use crate::reader::{self, Batches, ReadPlan, ReadStart};
use crate::rejects::RejectedEvent;
use crate::run_files::{RunFiles, RunPaths, Treatment};
use crate::summary::{Status, Summary};
use crate::throttle::{Stopped, Throttle};
use indicatif::HumanCount;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// The shortest time between two checkpoints. If a run is killed, the next run sends the batches accepted
/// since the last checkpoint again, with the same keys.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(250);

/// How far the reader may be ahead of the first unfinished batch: this many batches for each request that
/// may be in flight. This bounds the size of the checkpoint while one batch is being retried.
const WINDOW_PER_REQUEST: u64 = 8;

/// How far the reader may be ahead of the last checkpoint. Batches further ahead were certainly not sent by a run that
/// ended at that checkpoint, so that a resumed run may split them. A run reads about 250 batches between two checkpoints.
const BATCHES_BEYOND_CHECKPOINT: u64 = 2048;

/// The options of a run.
pub struct RunOptions {
    /// What to read.
    pub plan: ReadPlan,
    /// Where to send it.
    pub job: Job,
    /// Sends the requests.
    pub client: Client,
    /// The run's files.
    pub paths: RunPaths,
    /// What to do with the files of an earlier run.
    pub treatment: Treatment,
    /// The maximum number of requests in flight.
    pub concurrency: usize,
    /// How long to wait for an answer.
    pub timeout: Duration,
    /// How long to continue without a success.
    pub give_up_after: Duration,
    /// Whether inputs without events are allowed.
    pub allow_empty: bool,
}

/// Sends everything that an earlier run has not sent.
///
/// # Errors
/// If the run cannot begin. A run that ends early returns a summary.
pub async fn run(options: RunOptions) -> Result<Summary, Error> {
    let RunOptions { plan, job, client, paths, treatment, concurrency, timeout, give_up_after, allow_empty } = options;
    let sources = plan.sources.clone();
    let input_names = sources.iter().map(Source::display_name).collect();
    // Nothing has been sent yet, so every error here is a usage error.
    let opened = RunFiles::open(paths.clone(), job, treatment);
    let (files, checkpoint) = opened.map_err(|error| Error::Usage(error.to_string()))?;
    let before = checkpoint.events_done();
    let (batch, at, key_name) = (checkpoint.next_batch, checkpoint.resume_point.clone(), checkpoint.key_name.clone());
    let (forecast, max_rejects) = (forecast(&plan), plan.max_rejects);
    let mut batches = reader::spawn(plan, ReadStart { batch, at, key_name });
    if checkpoint.complete {
        if batches.next().await?.is_some() {
            let path = paths.checkpoint.display();
            return Err(Error::Usage(format!(
                "the checkpoint {path} says that the run is complete, but the input continues. If this is another \
                 input, such as the next one of a nightly job, pass --run-name with a name of its own, such as its date"
            )));
        }
        return Ok(Summary::new(Status::AlreadyComplete, &checkpoint, before, Duration::ZERO).with_files(&paths));
    }
    let progress = Progress::new(&sources, &checkpoint);
    progress.print(&forecast);
    let is_resumed = files.is_resumed();
    if checkpoint.has_begun() {
        let path = paths.checkpoint.display();
        progress.print(&format!("Resuming from {path} after {before} events. Verifying the input before them first."));
    }
    if let Some(hours) = checkpoint.hours_if_keys_expired() {
        progress.print(&format!(
            "warning: the last run ended {hours} hours ago, but the service remembers idempotency keys for 24 hours. If \
             that run was killed, events that were in flight may be queued twice"
        ));
    }
    let counters = Arc::new(Counters::default());
    let throttle = Arc::new(Throttle::new(concurrency, give_up_after));
    let (splits, splits_to_record) = mpsc::channel(1);
    let sender = BatchSender {
        client,
        timeout,
        throttle: Arc::clone(&throttle),
        input_names,
        counters: Arc::clone(&counters),
        splits,
    };
    let mut run = Run {
        sender: Arc::new(sender),
        splits: splits_to_record,
        retries_before: checkpoint.retries,
        next: batch,
        saved_next: batch,
        never_sent_from: if is_resumed { batch + BATCHES_BEYOND_CHECKPOINT } else { 0 },
        has_read: false,
        max_rejects,
        tracker: BatchTracker::new(checkpoint),
        files: Some(files),
        batches,
        sending: JoinSet::new(),
        reading: true,
        concurrency,
        is_resumed,
        progress,
        throttle,
        counters,
    };
    let result = run.finish(allow_empty).await;
    run.progress.finish();
    let checkpoint = run.tracker.checkpoint();
    let elapsed = run.progress.elapsed();
    let mut summary = match result {
        Ok(()) => {
            let status = if checkpoint.complete { Status::Complete } else { Status::Limited };
            Summary::new(status, checkpoint, before, elapsed)
        }
        // An error in the input before anything was sent has no summary, because there is nothing to resume.
        Err(error @ (Error::Usage(_) | Error::Input(_))) if checkpoint.events_done() == before => return Err(error),
        Err(error) => Summary::new(Status::Aborted, checkpoint, before, elapsed).with_error(&error),
    };
    summary.warnings = run.warnings(&sources);
    summary.skipped = run.batches.skipped();
    summary.done_up_to = Some(done_up_to(checkpoint, &sources));
    Ok(summary.with_files(&paths))
}

/// Up to where everything is accepted or rejected.
fn done_up_to(checkpoint: &Checkpoint, sources: &[Source]) -> String {
    let Position { file, line, .. } = checkpoint.resume_point.position;
    match sources.get(file).filter(|_| line > 0) {
        Some(source) => format!("Everything before line {line} of {} is done.", source.display_name()),
        None => "The first batch is not done.".to_owned(),
    }
}

struct Run {
    sender: Arc<BatchSender>,
    splits: mpsc::Receiver<Split>,
    tracker: BatchTracker,
    /// `None` while a checkpoint is being written.
    files: Option<RunFiles>,
    batches: Batches,
    sending: JoinSet<SentBatch>,
    /// Whether the reader may have more batches.
    reading: bool,
    /// The number of the next batch to be read.
    next: u64,
    /// The first batch that was not done at the last checkpoint.
    saved_next: u64,
    /// No earlier run has sent this batch or a later one.
    never_sent_from: u64,
    /// Whether this run has read a batch.
    has_read: bool,
    max_rejects: Option<u64>,
    is_resumed: bool,
    concurrency: usize,
    retries_before: u64,
    progress: Progress,
    throttle: Arc<Throttle>,
    counters: Arc<Counters>,
}

/// The result of the task that sends a batch.
struct SentBatch {
    number: u64,
    key: String,
    end: ResumePoint,
    /// The bytes of the batch in the inputs.
    bytes: u64,
    /// The events that were rejected before sending.
    rejected: Vec<RejectedEvent>,
    result: Result<SendResult, Stopped>,
}

impl Run {
    async fn finish(&mut self, allow_empty: bool) -> Result<(), Error> {
        let mut signals = Signals::new()?;
        let mut interrupted = false;
        let mut tick = tokio::time::interval(CHECKPOINT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut saved_at = Instant::now();
        while !self.sending.is_empty() || (self.reading && !self.throttle.is_stopped()) {
            tokio::select! {
                Some(sent) = self.sending.join_next() => match sent {
                    Ok(sent) => self.record(sent),
                    Err(error) => self.throttle.stop(Error::Aborted(format!("internal error: {error}"))),
                },
                batch = self.batches.next(), if self.has_room() => self.take(batch),
                Some(split) = self.splits.recv() => {
                    self.tracker.split(split.batch, split.parts);
                    self.save().await?;
                    // Fails if the run has stopped.
                    let _ = split.recorded.send(());
                }
                () = signals.next() => {
                    if std::mem::replace(&mut interrupted, true) {
                        self.counters.may_be_queued();
                        break;
                    }
                    self.progress.print("Waiting for answers to the requests in flight. Press Ctrl-C again to stop at once.");
                    self.throttle.stop(Error::Aborted("interrupted".to_owned()));
                }
                _ = tick.tick() => {
                    let retry_after_left = self.throttle.retry_after_left();
                    self.progress.show(&self.tracker, &self.counters, retry_after_left);
                }
            }
            let is_urgent = self.tracker.is_checkpoint_urgent() || self.is_far_beyond_checkpoint();
            if saved_at.elapsed() >= CHECKPOINT_EVERY || is_urgent {
                self.save().await?;
                saved_at = Instant::now();
            }
        }
        let mut stop_reason = self.throttle.stop_reason();
        if stop_reason.is_none() {
            stop_reason = self.tracker.check_events(allow_empty).err();
        }
        if stop_reason.is_none() && !self.batches.has_reached_limit() {
            self.tracker.complete();
        }
        let nothing_queued =
            !self.is_resumed && self.tracker.checkpoint().accepted == 0 && self.counters.nothing_queued();
        self.tracker.set_nothing_queued(nothing_queued);
        self.save().await?;
        stop_reason.map_or(Ok(()), Err)
    }

    /// What the user should know besides the counts.
    fn warnings(&self, sources: &[Source]) -> Vec<String> {
        let mut warnings: Vec<_> = sources.iter().filter_map(Source::growth).collect();
        let replayed = self.tracker.checkpoint().replayed;
        if replayed > 0 && !self.is_resumed {
            warnings.push(format!(
                "{} events are replays: within the last 24 hours, the service accepted the same events from the same \
                 position of an input with the same name, and it did not queue them again. To queue them again, pass \
                 --run-name with a new name",
                HumanCount(replayed)
            ));
        }
        warnings
    }

    fn is_far_beyond_checkpoint(&self) -> bool {
        self.next >= self.saved_next + BATCHES_BEYOND_CHECKPOINT
    }

    /// Whether another batch may be read. This bounds memory and the checkpoint.
    fn has_room(&self) -> bool {
        let window = self.concurrency as u64 * WINDOW_PER_REQUEST;
        self.reading
            && !self.throttle.is_stopped()
            && self.sending.len() < self.concurrency
            && self.next < self.tracker.next_batch() + window
            && !self.is_far_beyond_checkpoint()
    }

    fn take(&mut self, batch: Result<Option<PackedBatch>, Error>) {
        match batch {
            Ok(Some(batch)) => self.dispatch(batch),
            Ok(None) => self.reading = false,
            Err(error) => {
                self.reading = false;
                self.throttle.stop(error);
            }
        }
    }

    /// Starts to send a batch, unless an earlier run has finished it.
    fn dispatch(&mut self, batch: PackedBatch) {
        self.next = batch.number + 1;
        if !std::mem::replace(&mut self.has_read, true) {
            self.tracker.begins_after(batch.read.start);
        }
        let bytes = batch.read.end - batch.read.start;
        if let Some(key) = self.tracker.key_if_done(batch.number) {
            if key == batch.key() {
                return self.tracker.read_again(batch.number, batch.end, bytes);
            }
            let reason = "the input has changed since the checkpoint was written. To start over, pass --restart";
            return self.throttle.stop(Error::Usage(reason.to_owned()));
        }
        let sender = Arc::clone(&self.sender);
        // An earlier run may have sent a batch whole, if the checkpoint does not say that it was sent in parts.
        let may_be_sent_whole = batch.number < self.never_sent_from;
        let parts = self.tracker.parts(batch.number).cloned().or_else(|| may_be_sent_whole.then(Parts::whole));
        self.sending.spawn(async move {
            let key = batch.key();
            let PackedBatch { number, end, body, rejected, .. } = batch;
            let result = match body.len() {
                0 => Ok(SendResult::default()),
                _ => sender.send(number, key.clone(), body, parts).await,
            };
            SentBatch { number, key, end, bytes, rejected, result }
        });
    }

    fn record(&mut self, sent: SentBatch) {
        let SentBatch { number, key, end, bytes, mut rejected, result } = sent;
        if let Ok(SendResult { accepted, replayed, rejected: by_service }) = result {
            rejected.extend(by_service);
            self.tracker.done(DoneBatch { number, key, end, bytes, accepted, replayed, rejected });
            if let Some(max) = self.max_rejects.filter(|max| self.tracker.checkpoint().rejected > *max) {
                self.throttle.stop(reader::too_many_rejects(max));
            }
        }
    }

    /// Writes a checkpoint on another thread, while requests continue.
    async fn save(&mut self) -> Result<(), Error> {
        self.tracker.set_retries(self.retries_before + self.counters.retries());
        let Some((checkpoint, new_rejects)) = self.tracker.take_unsaved() else { return Ok(()) };
        let Some(mut files) = self.files.take() else { return Ok(()) };
        self.saved_next = checkpoint.next_batch;
        let write = tokio::task::spawn_blocking(move || {
            let result = files.save(&checkpoint, &new_rejects);
            (files, result)
        });
        let (files, result) = write.await.map_err(|error| Error::Aborted(format!("internal error: {error}")))?;
        self.files = Some(files);
        result
    }
}

/// SIGINT (Ctrl-C) and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(|error| Error::Aborted(format!("cannot listen for signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
