//! How many requests may be in flight, and when: one for all batches.
//!
//! The limit halves when the service says 429 or 503 and grows by one for as many successes as it
//! is high, as TCP does it. A `Retry-After` holds everybody back.

use crate::failure::Failure;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The gate that every request passes.
pub struct Throttle {
    state: Mutex<State>,
    changed: Notify,
    most: f64,
    patience: Duration,
}

struct State {
    /// How many may be in flight, rounded down; at least 1.
    limit: f64,
    in_flight: usize,
    /// When the longest `Retry-After` so far is over.
    not_before: Instant,
    /// When the limit was last cut: what began earlier says nothing new.
    cut: Option<Instant>,
    /// Since when every request has failed, if the last one did.
    failing_since: Option<Instant>,
    stopped: Option<Failure>,
}

/// The run has been stopped; [`Throttle::reason`] says why.
#[derive(Debug, PartialEq, Eq)]
pub struct Stopped;

/// Leave to have one request in flight.
pub struct Slot {
    throttle: Arc<Throttle>,
    began: Instant,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.throttle.state().in_flight -= 1;
        self.throttle.changed.notify_waiters();
    }
}

impl Throttle {
    /// Lets through at most `most` at once. With no success for `patience`, a failure is the last.
    pub fn new(most: usize, patience: Duration) -> Self {
        let most = u32::try_from(most).map_or(1.0, f64::from).max(1.0);
        let now = Instant::now();
        let state = State { limit: most, in_flight: 0, not_before: now, cut: None, failing_since: None, stopped: None };
        Self { state: Mutex::new(state), changed: Notify::new(), most, patience }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for leave to make a request.
    ///
    /// # Errors
    /// Once the run is stopped.
    pub async fn slot(self: &Arc<Self>) -> Result<Slot, Stopped> {
        loop {
            // Made before the look at the state, so that no change in between is missed.
            let changed = self.changed.notified();
            let until = {
                let mut state = self.state();
                let now = Instant::now();
                if state.stopped.is_some() {
                    return Err(Stopped);
                }
                if now < state.not_before {
                    Some(state.not_before)
                } else if f64::from(u32::try_from(state.in_flight).unwrap_or(u32::MAX)) + 1.0 <= state.limit {
                    state.in_flight += 1;
                    return Ok(Slot { throttle: Arc::clone(self), began: now });
                } else {
                    None
                }
            };
            match until {
                None => changed.await,
                Some(until) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
    }

    /// Sleeps.
    ///
    /// # Errors
    /// Once the run is stopped.
    pub async fn pause(&self, duration: Duration) -> Result<(), Stopped> {
        let until = Instant::now() + duration;
        while Instant::now() < until {
            let changed = self.changed.notified();
            if self.is_stopped() {
                return Err(Stopped);
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
        Ok(())
    }

    /// A request was answered in a way that is final.
    pub fn succeeded(&self) {
        let mut state = self.state();
        state.failing_since = None;
        state.limit = (state.limit + 1.0 / state.limit).min(self.most);
        drop(state);
        self.changed.notify_waiters();
    }

    /// The service has too much to do.
    pub fn slow_down(&self, slot: &Slot, retry_after: Option<Duration>) {
        let now = Instant::now();
        let mut state = self.state();
        // Requests that were in flight together fail together: that is one reason, not several.
        if state.cut.is_none_or(|cut| slot.began > cut) {
            state.limit = (state.limit / 2.0).max(1.0);
            state.cut = Some(now);
        }
        state.not_before = state.not_before.max(now + retry_after.unwrap_or_default());
    }

    /// Stops the run, if nothing but failures came for too long. Time in which nothing was tried,
    /// as while a slow input was waited for, does not count.
    pub fn failed(&self, what: &str) {
        let failing = self.state().failing_since.get_or_insert_with(Instant::now).elapsed();
        if failing >= self.patience {
            let seconds = failing.as_secs();
            self.stop(Failure::Aborted(format!("no request has succeeded for {seconds} s; the last: {what}")));
        }
    }

    /// Lets no further request through. The first reason counts.
    pub fn stop(&self, failure: Failure) {
        self.state().stopped.get_or_insert(failure);
        self.changed.notify_waiters();
    }

    /// Whether the run is stopped.
    pub fn is_stopped(&self) -> bool {
        self.state().stopped.is_some()
    }

    /// Why the run is stopped.
    pub fn reason(&self) -> Option<Failure> {
        self.state().stopped.clone()
    }

    /// How long everybody waits yet, because the service said so.
    pub fn held_for(&self) -> Duration {
        self.state().not_before.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle(most: usize) -> Arc<Throttle> {
        Arc::new(Throttle::new(most, Duration::from_mins(1)))
    }

    async fn slots(throttle: &Arc<Throttle>) -> Vec<Slot> {
        let mut slots = Vec::new();
        while let Ok(Ok(slot)) = tokio::time::timeout(Duration::from_millis(20), throttle.slot()).await {
            slots.push(slot);
        }
        slots
    }

    #[tokio::test]
    async fn it_halves_once_for_what_was_in_flight_together_and_recovers() {
        let throttle = throttle(8);
        let all = slots(&throttle).await;
        assert_eq!(all.len(), 8);
        for slot in &all {
            throttle.slow_down(slot, None);
        }
        drop(all);
        let half = slots(&throttle).await;
        assert_eq!(half.len(), 4);
        throttle.slow_down(&half[0], None);
        drop(half);
        assert_eq!(slots(&throttle).await.len(), 2);
        // Two successes at 2, three at 3.
        (0..2).for_each(|_| throttle.succeeded());
        assert_eq!(slots(&throttle).await.len(), 2);
        throttle.succeeded();
        assert_eq!(slots(&throttle).await.len(), 3);
        (0..100).for_each(|_| throttle.succeeded());
        assert_eq!(slots(&throttle).await.len(), 8);
    }

    #[tokio::test]
    async fn one_always_gets_through() {
        let throttle = throttle(1);
        for _ in 0..5 {
            let slot = throttle.slot().await.unwrap();
            throttle.slow_down(&slot, None);
        }
        assert_eq!(slots(&throttle).await.len(), 1);
    }

    #[tokio::test]
    async fn retry_after_holds_everybody_back() {
        let throttle = throttle(4);
        let begun = Instant::now();
        let slot = throttle.slot().await.unwrap();
        throttle.slow_down(&slot, Some(Duration::from_millis(300)));
        // A shorter one does not shorten it.
        throttle.slow_down(&slot, Some(Duration::from_millis(1)));
        throttle.slot().await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(300));
    }

    #[tokio::test]
    async fn a_stop_ends_every_wait() {
        let throttle = throttle(1);
        let _slot = throttle.slot().await.unwrap();
        let stopping = async {
            tokio::task::yield_now().await;
            throttle.stop(Failure::Aborted("first".to_owned()));
            throttle.stop(Failure::Aborted("second".to_owned()));
        };
        let (slot, pause, ()) = tokio::join!(throttle.slot(), throttle.pause(Duration::from_mins(1)), stopping);
        assert!(slot.is_err() && pause.is_err());
        assert_eq!(throttle.reason(), Some(Failure::Aborted("first".to_owned())));
    }

    #[tokio::test]
    async fn patience_ends_with_a_failure_and_begins_anew_with_a_success() {
        let throttle = Throttle::new(1, Duration::ZERO);
        throttle.failed("503");
        assert!(matches!(throttle.reason(), Some(Failure::Aborted(why)) if why.contains("503")));
        let waited = Throttle::new(1, Duration::from_millis(500));
        tokio::time::sleep(Duration::from_millis(600)).await;
        waited.failed("503");
        assert_eq!(waited.reason(), None, "the time before the first failure counts");
        let patient = Throttle::new(1, Duration::from_mins(1));
        patient.failed("503");
        assert_eq!(patient.reason(), None);
    }
}
