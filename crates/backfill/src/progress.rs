//! The progress display: a bar on a terminal, otherwise a line from time to time.

use crate::batch_tracker::BatchTracker;
use crate::checkpoint::Checkpoint;
use crate::counters::{Counters, per_second};
use crate::input::Source;
use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::VecDeque;
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// How often a line is printed without a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// The rate and the time left are computed from this last part of the run.
const RATE_WINDOW: Duration = Duration::from_secs(15);
/// The shortest time between two measurements of the rate.
const MEASURE_EVERY: Duration = Duration::from_millis(200);

/// Shows the progress of a run on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// The size of all inputs, if known.
    total: Option<u64>,
    started: Instant,
    rate: Rate,
    last_line: Option<Instant>,
    last_line_had_error: bool,
}

impl Progress {
    /// Starts at `checkpoint`.
    pub fn new(sources: &[Source], checkpoint: &Checkpoint) -> Self {
        let total = sources.iter().map(|source| source.identity.bytes).sum();
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            let template = if total.is_some() { "{bar:30} {percent:>3} % {msg}" } else { "{spinner} {msg}" };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.with_style(style)
        });
        let started = Instant::now();
        let rate = Rate::new(Measurement { at: started, events: checkpoint.events_done(), bytes: 0 });
        Self { bar, total, started, rate, last_line: None, last_line_had_error: false }
    }

    /// Updates the bar, or prints a line if one is due.
    pub fn show(&mut self, tracker: &BatchTracker, counters: &Counters, retry_after_left: Duration) {
        let (checkpoint, bytes) = (tracker.checkpoint(), tracker.bytes_done());
        self.rate.add(Measurement { at: Instant::now(), events: checkpoint.events_done(), bytes });
        let done = tracker.bytes_before() + bytes;
        let error = counters.current_error();
        if self.bar.is_none() && !self.is_line_due(error.is_some()) {
            return;
        }
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
                Some(total) => format!("{} %, {text}", (done * 100 / total.max(1)).min(100)),
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
        let (events, bytes) = self.rate.per_second();
        let (accepted, rejected) = (HumanCount(checkpoint.accepted), HumanCount(checkpoint.rejected));
        let (retries, rate) = (HumanCount(retries), HumanCount(events));
        let mut text = format!("{accepted} accepted, {rejected} rejected, {retries} retries, {rate} events/s");
        if let Some(left) = self.total.and_then(|total| total.saturating_sub(done).checked_div(bytes)) {
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

/// What was done at some time.
#[derive(Clone, Copy)]
struct Measurement {
    at: Instant,
    events: u64,
    bytes: u64,
}

/// The rate in the last [`RATE_WINDOW`].
struct Rate(VecDeque<Measurement>);

impl Rate {
    fn new(first: Measurement) -> Self {
        Self([first].into())
    }

    fn add(&mut self, measurement: Measurement) {
        if self.0.back().is_some_and(|last| measurement.at - last.at < MEASURE_EVERY) {
            return;
        }
        // One measurement before the window stays, so that the rate covers the whole window.
        while self.0.get(1).is_some_and(|second| measurement.at - second.at >= RATE_WINDOW) {
            self.0.pop_front();
        }
        self.0.push_back(measurement);
    }

    /// Events and bytes per second.
    fn per_second(&self) -> (u64, u64) {
        let (Some(first), Some(last)) = (self.0.front(), self.0.back()) else { return (0, 0) };
        let seconds = (last.at - first.at).as_secs_f64();
        (per_second(last.events - first.events, seconds), per_second(last.bytes - first.bytes, seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |seconds, events| Measurement { at: start + Duration::from_secs(seconds), events, bytes: events * 10 };
        let mut rate = Rate::new(at(0, 0));
        assert_eq!(rate.per_second(), (0, 0));
        rate.add(at(1, 1000));
        assert_eq!(rate.per_second(), (1000, 10_000));
        // Ten minutes of failures, and then 100 events a second.
        rate.add(at(600, 1000));
        assert_eq!(rate.per_second().0, 0);
        (601..=620).for_each(|second| rate.add(at(second, 1000 + (second - 600) * 100)));
        assert_eq!(rate.per_second(), (100, 1000));
        assert!(rate.0.len() < 20);
        // Measurements in quick succession cost nothing.
        (0..100).for_each(|_| rate.add(at(620, 9999)));
        assert!(rate.0.len() < 20);
    }
}
