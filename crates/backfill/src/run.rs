//! A run: takes batches from the reader, sends them, tracks the results and writes checkpoints.

use crate::batch_sender::{BatchSender, SendResult};
use crate::batch_tracker::BatchTracker;
use crate::checkpoint::Job;
use crate::client::Client;
use crate::counters::Counters;
use crate::error::Error;
use crate::forecast::forecast;
use crate::input::Source;
use crate::packing::PackedBatch;
use crate::position::ResumePoint;
use crate::progress::Progress;
use crate::reader::{self, Batches, ReadPlan, ReadStart};
use crate::rejects::RejectedEvent;
use crate::run_files::{RunFiles, RunPaths};
use crate::summary::{Status, Summary};
use crate::throttle::{Stopped, Throttle};
use contract::tenant::Mode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// The shortest time between two checkpoints. If a run is killed, the next run sends the batches accepted
/// since the last checkpoint again, with the same keys.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(250);

/// How far the reader may be ahead of the first unfinished batch: this many batches for each request that
/// may be in flight. This bounds the size of the checkpoint while one batch is being retried.
const WINDOW_PER_REQUEST: u64 = 8;

/// The options of a run.
pub struct RunOptions {
    /// What to read.
    pub plan: ReadPlan,
    /// The service's base URL.
    pub url: String,
    /// The `Host` header, if it is not the URL's.
    pub host: Option<String>,
    /// The mode of the API key.
    pub mode: Mode,
    /// Sends the requests.
    pub client: Client,
    /// The run's files.
    pub paths: RunPaths,
    /// Whether to ignore an earlier checkpoint.
    pub restart: bool,
    /// The most requests in flight.
    pub concurrency: usize,
    /// How long to continue without a success.
    pub give_up_after: Duration,
}

/// Sends everything that an earlier run has not sent.
///
/// # Errors
/// If the run cannot begin. A run that ends early returns a summary.
pub async fn run(options: RunOptions) -> Result<Summary, Error> {
    let RunOptions { plan, url, host, mode, client, paths, restart, concurrency, give_up_after } = options;
    let inputs: Vec<_> = plan.sources.iter().map(|source| source.identity.clone()).collect();
    let sizes: Vec<_> = inputs.iter().map(|input| input.bytes).collect();
    let input_names = plan.sources.iter().map(Source::display_name).collect();
    let mode = mode.to_string();
    let job = Job { url, host, mode, inputs, max_events: plan.max_events, reading: plan.options.clone() };
    // Nothing has been sent yet, so every error here is a usage error.
    let opened = RunFiles::open(paths.clone(), job, restart);
    let (files, checkpoint) = opened.map_err(|error| Error::Usage(error.to_string()))?;
    let before = checkpoint.events_done();
    let start = ReadStart { batch: checkpoint.next_batch, at: checkpoint.resume_point.clone() };
    let forecast = forecast(&plan);
    let mut batches = reader::spawn(plan, start);
    if checkpoint.complete {
        if batches.next().await?.is_some() {
            let path = paths.checkpoint.display();
            return Err(Error::Usage(format!(
                "the checkpoint {path} says that the run is complete, but the input continues. To start over, pass --restart"
            )));
        }
        return Ok(Summary::new(Status::AlreadyComplete, &checkpoint, before, Duration::ZERO).with_files(&paths));
    }
    let progress = Progress::new(&sizes, &checkpoint);
    progress.print(&forecast);
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
    let sender = BatchSender { client, throttle: Arc::clone(&throttle), input_names, counters: Arc::clone(&counters) };
    let mut run = Run {
        sender: Arc::new(sender),
        retries_before: checkpoint.retries,
        next: checkpoint.next_batch,
        tracker: BatchTracker::new(checkpoint),
        files: Some(files),
        batches,
        sending: JoinSet::new(),
        reading: true,
        concurrency,
        progress,
        throttle,
        counters,
    };
    let result = run.finish().await;
    run.progress.finish();
    let checkpoint = run.tracker.checkpoint();
    let elapsed = run.progress.elapsed();
    match result {
        Ok(()) => Ok(Summary::new(Status::Complete, checkpoint, before, elapsed).with_files(&paths)),
        // A usage error before anything was done has no summary, because there is nothing to resume.
        Err(error @ Error::Usage(_)) if checkpoint.events_done() == before => Err(error),
        Err(error) => {
            let summary = Summary::new(Status::Aborted, checkpoint, before, elapsed);
            Ok(summary.with_files(&paths).with_error(&error))
        }
    }
}

struct Run {
    sender: Arc<BatchSender>,
    tracker: BatchTracker,
    /// `None` while a checkpoint is being written.
    files: Option<RunFiles>,
    batches: Batches,
    sending: JoinSet<SentBatch>,
    /// Whether the reader may have more batches.
    reading: bool,
    /// The number of the next batch to be read.
    next: u64,
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
    /// The events that were rejected before sending.
    rejected: Vec<RejectedEvent>,
    result: Result<SendResult, Stopped>,
}

impl Run {
    async fn finish(&mut self) -> Result<(), Error> {
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
                () = signals.next() => {
                    if std::mem::replace(&mut interrupted, true) {
                        break;
                    }
                    self.progress.print("Waiting for answers to the requests in flight. Press Ctrl-C again to stop at once.");
                    self.throttle.stop(Error::Aborted("interrupted".to_owned()));
                }
                _ = tick.tick() => {
                    let retry_after_left = self.throttle.retry_after_left();
                    self.progress.show(self.tracker.checkpoint(), &self.counters, retry_after_left);
                }
            }
            if saved_at.elapsed() >= CHECKPOINT_EVERY || self.tracker.is_checkpoint_urgent() {
                self.save().await?;
                saved_at = Instant::now();
            }
        }
        let stop_reason = self.throttle.stop_reason();
        if stop_reason.is_none() {
            self.tracker.complete();
        }
        self.save().await?;
        stop_reason.map_or(Ok(()), Err)
    }

    /// Whether another batch may be read. This bounds memory and the checkpoint.
    fn has_room(&self) -> bool {
        let window = self.concurrency as u64 * WINDOW_PER_REQUEST;
        self.reading
            && !self.throttle.is_stopped()
            && self.sending.len() < self.concurrency
            && self.next < self.tracker.next_batch() + window
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
        if let Some(key) = self.tracker.key_if_done(batch.number) {
            if key == batch.key() {
                return self.tracker.read_again(batch.number, batch.end);
            }
            let reason = "the input has changed since the checkpoint was written. To start over, pass --restart";
            return self.throttle.stop(Error::Usage(reason.to_owned()));
        }
        let sender = Arc::clone(&self.sender);
        self.sending.spawn(async move {
            let key = batch.key();
            let PackedBatch { number, end, body, rejected, .. } = batch;
            let result = if body.len() == 0 { Ok(SendResult::default()) } else { sender.send(key.clone(), body).await };
            SentBatch { number, key, end, rejected, result }
        });
    }

    fn record(&mut self, sent: SentBatch) {
        let SentBatch { number, key, end, mut rejected, result } = sent;
        if let Ok(result) = result {
            rejected.extend(result.rejected);
            self.tracker.done(number, key, end, result.accepted, &rejected);
        }
    }

    /// Writes a checkpoint on another thread, while requests continue.
    async fn save(&mut self) -> Result<(), Error> {
        self.tracker.set_retries(self.retries_before + self.counters.retries());
        let Some((checkpoint, new_rejects)) = self.tracker.take_unsaved() else { return Ok(()) };
        let Some(mut files) = self.files.take() else { return Ok(()) };
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
