//! What the senders share with the run and the progress display.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The retries of this run, the error that is being retried, and whether anything may be in the queue.
#[derive(Default)]
pub struct Counters {
    retries: AtomicU64,
    may_be_queued: AtomicBool,
    current_error: Mutex<Option<String>>,
}

impl Counters {
    /// Records that a request failed and will be retried.
    pub fn request_failed(&self, reason: String) {
        self.retries.fetch_add(1, Ordering::Relaxed);
        self.set_error(Some(reason));
    }

    /// Records that a request got a final answer.
    pub fn request_succeeded(&self) {
        self.set_error(None);
    }

    /// Records that the service may have queued events of this run.
    pub fn may_be_queued(&self) {
        self.may_be_queued.store(true, Ordering::Relaxed);
    }

    /// Whether it is certain that the service has queued no event of this run.
    pub fn nothing_queued(&self) -> bool {
        !self.may_be_queued.load(Ordering::Relaxed)
    }

    /// The number of requests of this run that were retried.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Why the most recent request failed, or `None` if it succeeded.
    pub fn current_error(&self) -> Option<String> {
        self.current_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_error(&self, error: Option<String>) {
        *self.current_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// A rate, rounded down.
pub fn per_second(count: u64, seconds: f64) -> u64 {
    Duration::from_secs(count).div_f64(seconds.max(0.001)).as_secs()
}
