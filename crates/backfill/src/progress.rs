//! The progress display: a bar on a terminal, otherwise a line from time to time.

use crate::checkpoint::Checkpoint;
use crate::counters::{Counters, per_second};
use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// How often a line is printed without a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows the progress of a run on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// The size of all inputs, if known.
    total: Option<u64>,
    /// The size of each input, or 0 if unknown.
    sizes: Vec<u64>,
    started: Instant,
    /// The events and bytes that were done before this run.
    before: (u64, u64),
    last_line: Option<Instant>,
    last_line_had_error: bool,
}

impl Progress {
    /// Starts at `checkpoint`, for inputs of these sizes.
    pub fn new(sizes: &[Option<u64>], checkpoint: &Checkpoint) -> Self {
        let total = sizes.iter().copied().sum();
        let sizes: Vec<_> = sizes.iter().map(|size| size.unwrap_or_default()).collect();
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            let template = if total.is_some() { "{bar:30} {percent:>3} % {msg}" } else { "{spinner} {msg}" };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.with_style(style)
        });
        let before = (checkpoint.events_done(), bytes_done(&sizes, checkpoint));
        Self { bar, total, sizes, started: Instant::now(), before, last_line: None, last_line_had_error: false }
    }

    /// Updates the bar, or prints a line if one is due.
    pub fn show(&mut self, checkpoint: &Checkpoint, counters: &Counters, retry_after_left: Duration) {
        let error = counters.current_error();
        if self.bar.is_none() && !self.is_line_due(error.is_some()) {
            return;
        }
        let done = bytes_done(&self.sizes, checkpoint);
        let mut text = self.text(checkpoint, counters.retries(), done);
        if let Some(error) = &error {
            text = format!("{text}; retrying after {error}");
            if !retry_after_left.is_zero() {
                text = format!("{text} (in {} s)", retry_after_left.as_secs() + 1);
            }
        }
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(text);
                bar.tick();
            }
            None => self.print(&match self.total {
                Some(total) => format!("{} %, {text}", done * 100 / total.max(1)),
                None => format!("{}, {text}", HumanBytes(done)),
            }),
        }
    }

    /// A line is due after [`LINE_EVERY`], or at once when requests begin to fail.
    fn is_line_due(&mut self, has_error: bool) -> bool {
        let failures_began = has_error && !self.last_line_had_error;
        let elapsed = self.last_line.unwrap_or(self.started).elapsed();
        let due = failures_began || elapsed >= LINE_EVERY;
        if due {
            self.last_line = Some(Instant::now());
            self.last_line_had_error = has_error;
        }
        due
    }

    fn text(&self, checkpoint: &Checkpoint, retries: u64, done: u64) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = per_second(checkpoint.events_done() - self.before.0, seconds);
        let (accepted, rejected) = (HumanCount(checkpoint.accepted), HumanCount(checkpoint.rejected));
        let (retries, rate) = (HumanCount(retries), HumanCount(rate));
        let mut text = format!("{accepted} accepted, {rejected} rejected, {retries} retries, {rate} events/s");
        let bytes_per_second = per_second(done - self.before.1, seconds);
        if let Some(left) = self.total.and_then(|total| total.saturating_sub(done).checked_div(bytes_per_second)) {
            text = format!("{text}, {} left", HumanDuration(Duration::from_secs(left)));
        }
        text
    }

    /// Prints a line, above the bar if there is one.
    pub fn print(&self, text: &str) {
        // If standard error is closed, the error cannot be reported anywhere.
        let write = || drop(writeln!(stderr(), "{text}"));
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// How long the run has taken.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The bytes of all inputs before the checkpoint's position.
fn bytes_done(sizes: &[u64], checkpoint: &Checkpoint) -> u64 {
    let position = &checkpoint.resume_point.position;
    sizes.iter().take(position.file).sum::<u64>() + position.offset
}
