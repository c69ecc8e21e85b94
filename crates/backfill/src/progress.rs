//! What people see meanwhile: a bar on a terminal, else a line now and then.

use crate::checkpoint::Checkpoint;
use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What senders count.
#[derive(Default)]
pub struct Counters {
    /// Requests that had to be repeated.
    pub retries: AtomicU64,
    trouble: Mutex<Option<String>>,
}

impl Counters {
    /// Notes why a request failed, or that one succeeded.
    pub fn trouble(&self, what: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    fn current_trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How far a run is.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// The size of all inputs, where known.
    total: Option<u64>,
    /// Sizes of the inputs, for the place in all of them.
    sizes: Vec<u64>,
    begun: Instant,
    /// Events and bytes done before this run.
    before: (u64, u64),
    said: Option<Instant>,
    said_trouble: bool,
}

impl Progress {
    /// Begins at what `checkpoint` says of inputs of these sizes.
    pub fn new(sizes: &[Option<u64>], checkpoint: &Checkpoint) -> Self {
        let total = sizes.iter().copied().sum();
        let sizes: Vec<_> = sizes.iter().map(|size| size.unwrap_or_default()).collect();
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            let template = if total.is_some() { "{bar:30} {percent:>3} % {msg}" } else { "{spinner} {msg}" };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.with_style(style)
        });
        let before = (checkpoint.accepted + checkpoint.rejected, position(&sizes, checkpoint));
        Self { bar, total, sizes, begun: Instant::now(), before, said: None, said_trouble: false }
    }

    /// Shows how far it is now, `held_for` being how long the service asked to wait yet.
    pub fn show(&mut self, checkpoint: &Checkpoint, counters: &Counters, held_for: Duration) {
        let trouble = counters.current_trouble();
        if self.bar.is_none() && !self.is_line_due(trouble.is_some()) {
            return;
        }
        let done = position(&self.sizes, checkpoint);
        let mut text = self.text(checkpoint, counters.retries.load(Ordering::Relaxed), done);
        if let Some(trouble) = &trouble {
            text = format!("{text}; trying again after {trouble}");
            if !held_for.is_zero() {
                text = format!("{text} (in {} s)", held_for.as_secs() + 1);
            }
        }
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(text);
                bar.tick();
            }
            None => self.line(&match self.total {
                Some(total) => format!("{} %, {text}", done * 100 / total.max(1)),
                None => format!("{}, {text}", HumanBytes(done)),
            }),
        }
    }

    /// Trouble is news at once, whatever was said a moment ago.
    fn is_line_due(&mut self, trouble: bool) -> bool {
        let news = trouble && !self.said_trouble;
        let since = self.said.unwrap_or(self.begun).elapsed();
        let due = news || since >= LINE_EVERY;
        if due {
            self.said = Some(Instant::now());
            self.said_trouble = trouble;
        }
        due
    }

    fn text(&self, checkpoint: &Checkpoint, retries: u64, done: u64) -> String {
        let seconds = self.begun.elapsed().as_secs_f64().max(0.001);
        let rate = per_second(checkpoint.accepted + checkpoint.rejected - self.before.0, seconds);
        let (accepted, rejected) = (HumanCount(checkpoint.accepted), HumanCount(checkpoint.rejected));
        let (retries, rate) = (HumanCount(retries), HumanCount(rate));
        let mut text = format!("{accepted} accepted, {rejected} rejected, {retries} retries, {rate} events/s");
        let bytes = per_second(done - self.before.1, seconds);
        if let Some(left) = self.total.and_then(|total| total.saturating_sub(done).checked_div(bytes)) {
            text = format!("{text}, {} left", HumanDuration(Duration::from_secs(left)));
        }
        text
    }

    /// Says something, above the bar if there is one.
    pub fn line(&self, text: &str) {
        // Nobody is left to tell if standard error is gone.
        let write = || drop(writeln!(stderr(), "{text}"));
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// How long the run has taken.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// Bytes of all inputs before the mark.
fn position(sizes: &[u64], checkpoint: &Checkpoint) -> u64 {
    let place = &checkpoint.mark.place;
    sizes.iter().take(place.file).sum::<u64>() + place.offset
}

/// A rate, to the next lower whole number.
pub fn per_second(count: u64, seconds: f64) -> u64 {
    let rate = std::time::Duration::from_secs(count).div_f64(seconds.max(0.001));
    rate.as_secs()
}
