//! The run: reader → senders → ledger → checkpoint.

use crate::checkpoint::{Job, Paths, Store};
use crate::client::Client;
use crate::dry_run::reader_vanished;
use crate::failure::Failure;
use crate::input::Mark;
use crate::ledger::Ledger;
use crate::packing::Batch;
use crate::progress::{Counters, Progress};
use crate::reader::{self, Plan, Read, Start};
use crate::sending::{Outcome, Sender};
use crate::summary::{Status, Summary};
use crate::throttle::{Stopped, Throttle};
use contract::tenant::Mode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// How often, at most, a checkpoint is written. What was accepted since the last one is sent again,
/// with its old keys, after a run that was killed.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(250);

/// How many batches may be under way or done beyond the first that is not, for each that may be in
/// flight. It bounds the checkpoint while one batch is tried again and again.
const WINDOW_PER_SLOT: u64 = 8;

/// What to do.
pub struct Orders {
    /// What is read.
    pub plan: Plan,
    /// Where it is sent.
    pub url: String,
    /// The Host header, where it is not the URL's.
    pub host: Option<String>,
    /// Live or test.
    pub mode: Mode,
    /// By what.
    pub client: Client,
    /// Where the run's files are.
    pub paths: Paths,
    /// Whether to begin anew.
    pub restart: bool,
    /// The most requests in flight.
    pub concurrency: usize,
    /// How long to go on without success.
    pub give_up_after: Duration,
}

/// Does everything that is left to do.
///
/// # Errors
/// Where it could not even begin. A run that ends early has a summary.
pub async fn run(orders: Orders) -> Result<Summary, Failure> {
    let Orders { plan, url, host, mode, client, paths, restart, concurrency, give_up_after } = orders;
    let inputs: Vec<_> = plan.sources.iter().map(|source| source.identity.clone()).collect();
    let sizes: Vec<_> = inputs.iter().map(|input| input.bytes).collect();
    let names = plan.sources.iter().map(crate::input::Source::shown).collect();
    let mode = mode.to_string();
    let job = Job { url, host, mode, inputs, max_events: plan.max_events, types: plan.types.clone() };
    // Nothing was sent yet, so whatever is wrong here is a matter of how the command was called.
    let opened = Store::open(paths.clone(), job, restart);
    let (store, checkpoint) = opened.map_err(|failure| Failure::Usage(failure.to_string()))?;
    let before = checkpoint.accepted + checkpoint.rejected;
    let start = Start { ordinal: checkpoint.next_batch, mark: checkpoint.mark.clone() };
    let (to_us, mut batches) = mpsc::channel(2);
    std::thread::spawn(move || reader::run(&plan, &start, &to_us));
    if checkpoint.complete {
        let path = paths.checkpoint.display();
        if batches.recv().await.unwrap_or_else(|| Err(reader_vanished()))?.is_some() {
            return Err(Failure::Usage(format!(
                "the checkpoint {path} says that all was done, and the input goes on beyond that. To begin anew, give --restart"
            )));
        }
        return Ok(Summary::new(Status::AlreadyComplete, &checkpoint, before, Duration::ZERO).with_files(&paths));
    }
    let progress = Progress::new(&sizes, &checkpoint);
    if checkpoint.has_begun() {
        let (done, path) = (checkpoint.accepted + checkpoint.rejected, paths.checkpoint.display());
        progress.line(&format!("Going on after {done} events, as {path} says; reading what was sent again first."));
    }
    if let Some(hours) = checkpoint.forgotten_for() {
        progress.line(&format!(
            "warning: the last run ended {hours} hours ago and the service remembers keys for 24: what was in flight \
             when it ended, if it was killed, may be queued a second time"
        ));
    }
    let retries_before = checkpoint.retries;
    let counters = Arc::new(Counters::default());
    let throttle = Arc::new(Throttle::new(concurrency, give_up_after));
    let sender = Sender { client, throttle: Arc::clone(&throttle), names, counters: Arc::clone(&counters) };
    let next = checkpoint.next_batch;
    let mut running = Running {
        sender: Arc::new(sender),
        ledger: Ledger::new(checkpoint),
        store: Some(store),
        batches,
        sending: JoinSet::new(),
        reading: true,
        next,
        concurrency,
        retries_before,
        progress,
        throttle,
        counters,
    };
    let ended = running.finish().await;
    running.progress.end();
    let checkpoint = running.ledger.checkpoint();
    let took = running.progress.elapsed();
    match ended {
        Ok(()) => Ok(Summary::new(Status::Complete, checkpoint, before, took).with_files(&paths)),
        // What is wrong with the input or the command line is no reason to try the same again.
        Err(failure @ Failure::Usage(_)) if checkpoint.accepted + checkpoint.rejected == before => Err(failure),
        Err(failure) => {
            let summary = Summary::new(Status::Aborted, checkpoint, before, took);
            Ok(summary.with_files(&paths).with_failure(&failure))
        }
    }
}

struct Running {
    sender: Arc<Sender>,
    ledger: Ledger,
    /// Lent to the thread that writes.
    store: Option<Store>,
    batches: mpsc::Receiver<Read>,
    sending: JoinSet<Sent>,
    reading: bool,
    /// The number of the next batch to come.
    next: u64,
    concurrency: usize,
    retries_before: u64,
    progress: Progress,
    throttle: Arc<Throttle>,
    counters: Arc<Counters>,
}

/// What a sender's task ends with.
struct Sent {
    ordinal: u64,
    key: String,
    end: Mark,
    rejects: Vec<crate::rejects::Reject>,
    outcome: Result<Outcome, Stopped>,
}

impl Running {
    async fn finish(&mut self) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        let mut interrupted = false;
        let mut tick = tokio::time::interval(CHECKPOINT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut saved = Instant::now();
        while !self.sending.is_empty() || (self.reading && !self.throttle.is_stopped()) {
            tokio::select! {
                Some(sent) = self.sending.join_next() => match sent {
                    Ok(sent) => self.record(sent),
                    Err(error) => self.throttle.stop(Failure::Aborted(format!("a defect: {error}"))),
                },
                read = self.batches.recv(), if self.has_room() => self.take(read),
                () = signals.next() => {
                    if std::mem::replace(&mut interrupted, true) {
                        break;
                    }
                    self.progress.line("Stopping when the requests in flight are answered; Ctrl-C again does not wait.");
                    self.throttle.stop(Failure::Aborted("interrupted".to_owned()));
                }
                _ = tick.tick() => {
                    self.progress.show(self.ledger.checkpoint(), &self.counters, self.throttle.held_for());
                }
            }
            if saved.elapsed() >= CHECKPOINT_EVERY || self.ledger.is_urgent() {
                self.save().await?;
                saved = Instant::now();
            }
        }
        let stopped = self.throttle.reason();
        if stopped.is_none() {
            self.ledger.complete();
        }
        self.save().await?;
        stopped.map_or(Ok(()), Err)
    }

    /// Whether another batch may be taken: memory and the checkpoint hold only so many.
    fn has_room(&self) -> bool {
        let window = self.concurrency as u64 * WINDOW_PER_SLOT;
        self.reading
            && !self.throttle.is_stopped()
            && self.sending.len() < self.concurrency
            && self.next < self.ledger.next_batch() + window
    }

    fn take(&mut self, read: Option<Read>) {
        match read.unwrap_or_else(|| Err(reader_vanished())) {
            Ok(Some(batch)) => self.dispatch(batch),
            Ok(None) => self.reading = false,
            Err(failure) => {
                self.reading = false;
                self.throttle.stop(failure);
            }
        }
    }

    fn dispatch(&mut self, batch: Batch) {
        self.next = batch.ordinal + 1;
        if let Some(key) = self.ledger.done_before(batch.ordinal) {
            if key == batch.key() {
                return self.ledger.seen_again(batch.ordinal, batch.end);
            }
            let why = "the input is not what it was when the checkpoint was written; begin anew with --restart";
            return self.throttle.stop(Failure::Usage(why.to_owned()));
        }
        let sender = Arc::clone(&self.sender);
        self.sending.spawn(async move {
            let key = batch.key();
            let Batch { ordinal, end, body, rejects, .. } = batch;
            let outcome = if body.len() == 0 { Ok(Outcome::default()) } else { sender.send(key.clone(), body).await };
            Sent { ordinal, key, end, rejects, outcome }
        });
    }

    fn record(&mut self, sent: Sent) {
        let Sent { ordinal, key, end, mut rejects, outcome } = sent;
        if let Ok(outcome) = outcome {
            rejects.extend(outcome.rejects);
            self.ledger.done(ordinal, key, end, outcome.accepted, &rejects);
        }
    }

    /// Writes a checkpoint on a thread of its own, while requests go on.
    async fn save(&mut self) -> Result<(), Failure> {
        self.ledger.set_retries(self.retries_before + self.counters.retries.load(Ordering::Relaxed));
        let Some((checkpoint, rejects)) = self.ledger.unsaved() else { return Ok(()) };
        let Some(mut store) = self.store.take() else { return Ok(()) };
        let written = tokio::task::spawn_blocking(move || {
            let result = store.save(&checkpoint, &rejects);
            (store, result)
        });
        let (store, result) = written.await.map_err(|error| Failure::Aborted(format!("a defect: {error}")))?;
        self.store = Some(store);
        result
    }
}

/// Ctrl-C, and how systems end a process.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::Aborted(format!("cannot listen for signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
