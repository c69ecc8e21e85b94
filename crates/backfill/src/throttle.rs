//! Limits the requests in flight and the size of new batches.
//!
//! As in TCP's congestion control, a 429, a 503 or a timeout halves the limit, and each success raises it by a
//! fraction, so that a full round of successes raises it by one. A `Retry-After` delays all requests.
//!
//! On a slow line, requests in flight share the line, and each exceeds its timeout. A timeout therefore also doubles
//! the slowness: new batches are split into that many parts, and whole batches may take that many times as long.

use crate::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The highest slowness.
const MAX_SLOWNESS: u32 = 64;
/// After this many successes without a timeout, the slowness is halved.
const SUCCESSES_BEFORE_FASTER: u32 = 100;

/// Gives out permits for requests, and stops the run.
pub struct Throttle {
    state: Mutex<State>,
    changed: Notify,
    max_limit: f64,
    give_up_after: Duration,
}

struct State {
    /// How many requests may be in flight: at least 1, rounded down when compared.
    limit: f64,
    in_flight: usize,
    /// When the longest `Retry-After` so far ends.
    not_before: Instant,
    /// When the limit was last halved. Requests that started earlier do not halve it again.
    halved_at: Option<Instant>,
    /// Into how many parts a new batch is split.
    slowness: u32,
    /// The successes since the slowness changed.
    successes: u32,
    /// Whether any request got a final answer.
    succeeded: bool,
    /// The time since which every request has failed; `None` if the last one succeeded.
    failing_since: Option<Instant>,
    stop_reason: Option<Error>,
}

impl State {
    /// Halves the limit, but only once for requests that were in flight together. Returns whether it did.
    fn halve(&mut self, permit: &Permit) -> bool {
        let is_first = self.halved_at.is_none_or(|halved_at| permit.started > halved_at);
        if is_first {
            self.limit = (self.limit / 2.0).max(1.0);
            self.halved_at = Some(Instant::now());
        }
        is_first
    }
}

/// The run was stopped. [`Throttle::stop_reason`] says why.
#[derive(Debug, PartialEq, Eq)]
pub struct Stopped;

/// Permission to have one request in flight, until it is dropped.
pub struct Permit {
    throttle: Arc<Throttle>,
    started: Instant,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.throttle.state().in_flight -= 1;
        self.throttle.changed.notify_waiters();
    }
}

impl Throttle {
    /// Allows at most `concurrency` requests in flight, and stops the run at the first failure after
    /// `give_up_after` without a success.
    pub fn new(concurrency: usize, give_up_after: Duration) -> Self {
        let max_limit = u32::try_from(concurrency).map_or(1.0, f64::from).max(1.0);
        let state = State {
            limit: max_limit,
            in_flight: 0,
            not_before: Instant::now(),
            halved_at: None,
            slowness: 1,
            successes: 0,
            succeeded: false,
            failing_since: None,
            stop_reason: None,
        };
        Self { state: Mutex::new(state), changed: Notify::new(), max_limit, give_up_after }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for permission to send a request.
    ///
    /// # Errors
    /// When the run is stopped.
    pub async fn permit(self: &Arc<Self>) -> Result<Permit, Stopped> {
        loop {
            // Created before the state is read, so that no change is missed.
            let changed = self.changed.notified();
            let until = {
                let mut state = self.state();
                let now = Instant::now();
                if state.stop_reason.is_some() {
                    return Err(Stopped);
                }
                if now < state.not_before {
                    Some(state.not_before)
                } else if f64::from(u32::try_from(state.in_flight).unwrap_or(u32::MAX)) + 1.0 <= state.limit {
                    state.in_flight += 1;
                    return Ok(Permit { throttle: Arc::clone(self), started: now });
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
    /// When the run is stopped.
    pub async fn sleep(&self, duration: Duration) -> Result<(), Stopped> {
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

    /// Records that a request got a final answer.
    pub fn request_succeeded(&self) {
        let mut state = self.state();
        state.failing_since = None;
        state.succeeded = true;
        state.limit = (state.limit + 1.0 / state.limit).min(self.max_limit);
        state.successes += 1;
        if state.successes >= SUCCESSES_BEFORE_FASTER {
            state.slowness = (state.slowness / 2).max(1);
            state.successes = 0;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Records a 429 or 503: halves the limit and waits for `retry_after`.
    pub fn slow_down(&self, permit: &Permit, retry_after: Option<Duration>) {
        let now = Instant::now();
        let mut state = self.state();
        state.halve(permit);
        state.not_before = state.not_before.max(now + retry_after.unwrap_or_default());
    }

    /// Records a request without an answer in time: halves the limit and doubles the slowness.
    pub fn timed_out(&self, permit: &Permit) {
        let mut state = self.state();
        if state.halve(permit) {
            state.slowness = (state.slowness * 2).min(MAX_SLOWNESS);
            state.successes = 0;
        }
    }

    /// Into how many parts to split a batch that was never sent, and how many times as long a whole batch may take.
    pub fn slowness(&self) -> u32 {
        self.state().slowness
    }

    /// Whether any request of this run got a final answer.
    pub fn has_succeeded(&self) -> bool {
        self.state().succeeded
    }

    /// Records a failed request, and stops the run if every request has failed for too long. The time
    /// before the first failure does not count, for example a wait for slow input.
    pub fn request_failed(&self, reason: &str) {
        let failing_for = self.state().failing_since.get_or_insert_with(Instant::now).elapsed();
        if failing_for >= self.give_up_after {
            let seconds = failing_for.as_secs();
            self.stop(Error::Aborted(format!("no request has succeeded for {seconds} s; the last error: {reason}")));
        }
    }

    /// Stops the run: no more permits are given out. Only the first reason is kept.
    pub fn stop(&self, reason: Error) {
        self.state().stop_reason.get_or_insert(reason);
        self.changed.notify_waiters();
    }

    /// Whether the run is stopped.
    pub fn is_stopped(&self) -> bool {
        self.state().stop_reason.is_some()
    }

    /// Why the run is stopped.
    pub fn stop_reason(&self) -> Option<Error> {
        self.state().stop_reason.clone()
    }

    /// How much of the longest `Retry-After` is left.
    pub fn retry_after_left(&self) -> Duration {
        self.state().not_before.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle(concurrency: usize) -> Arc<Throttle> {
        Arc::new(Throttle::new(concurrency, Duration::from_mins(1)))
    }

    /// All permits that are available now.
    async fn permits(throttle: &Arc<Throttle>) -> Vec<Permit> {
        let mut permits = Vec::new();
        while let Ok(Ok(permit)) = tokio::time::timeout(Duration::from_millis(20), throttle.permit()).await {
            permits.push(permit);
        }
        permits
    }

    #[tokio::test]
    async fn the_limit_halves_once_for_requests_in_flight_together_and_recovers() {
        let throttle = throttle(8);
        let all = permits(&throttle).await;
        assert_eq!(all.len(), 8);
        for permit in &all {
            throttle.slow_down(permit, None);
        }
        drop(all);
        let half = permits(&throttle).await;
        assert_eq!(half.len(), 4);
        throttle.slow_down(&half[0], None);
        drop(half);
        assert_eq!(permits(&throttle).await.len(), 2);
        // Two successes raise the limit from 2 to 2.9, and a third raises it above 3.
        (0..2).for_each(|_| throttle.request_succeeded());
        assert_eq!(permits(&throttle).await.len(), 2);
        throttle.request_succeeded();
        assert_eq!(permits(&throttle).await.len(), 3);
        (0..100).for_each(|_| throttle.request_succeeded());
        assert_eq!(permits(&throttle).await.len(), 8);
    }

    #[tokio::test]
    async fn time_outs_raise_the_slowness_until_enough_requests_succeed() {
        let throttle = throttle(4);
        let permits = permits(&throttle).await;
        for permit in &permits {
            throttle.timed_out(permit);
        }
        assert_eq!(throttle.slowness(), 2);
        drop(permits);
        for _ in 0..20 {
            throttle.timed_out(&throttle.permit().await.unwrap());
        }
        assert_eq!(throttle.slowness(), MAX_SLOWNESS);
        (1..SUCCESSES_BEFORE_FASTER).for_each(|_| throttle.request_succeeded());
        assert_eq!(throttle.slowness(), MAX_SLOWNESS);
        throttle.request_succeeded();
        assert_eq!(throttle.slowness(), MAX_SLOWNESS / 2);
    }

    #[tokio::test]
    async fn the_limit_never_falls_below_one() {
        let throttle = throttle(1);
        for _ in 0..5 {
            let permit = throttle.permit().await.unwrap();
            throttle.slow_down(&permit, None);
        }
        assert_eq!(permits(&throttle).await.len(), 1);
    }

    #[tokio::test]
    async fn retry_after_delays_all_requests() {
        let throttle = throttle(4);
        let started = Instant::now();
        let permit = throttle.permit().await.unwrap();
        throttle.slow_down(&permit, Some(Duration::from_millis(300)));
        // A later, shorter Retry-After does not shorten the wait.
        throttle.slow_down(&permit, Some(Duration::from_millis(1)));
        throttle.permit().await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(300));
    }

    #[tokio::test]
    async fn a_stop_ends_every_wait() {
        let throttle = throttle(1);
        let _permit = throttle.permit().await.unwrap();
        let stopping = async {
            tokio::task::yield_now().await;
            throttle.stop(Error::Aborted("first".to_owned()));
            throttle.stop(Error::Aborted("second".to_owned()));
        };
        let (permit, sleep, ()) = tokio::join!(throttle.permit(), throttle.sleep(Duration::from_mins(1)), stopping);
        assert!(permit.is_err() && sleep.is_err());
        assert_eq!(throttle.stop_reason(), Some(Error::Aborted("first".to_owned())));
    }

    #[tokio::test]
    async fn the_run_stops_when_every_request_failed_for_too_long() {
        let throttle = Throttle::new(1, Duration::ZERO);
        throttle.request_failed("503");
        assert!(matches!(throttle.stop_reason(), Some(Error::Aborted(reason)) if reason.contains("503")));
        let waited = Throttle::new(1, Duration::from_millis(500));
        tokio::time::sleep(Duration::from_millis(600)).await;
        waited.request_failed("503");
        assert_eq!(waited.stop_reason(), None, "the time before the first failure counts");
        let patient = Throttle::new(1, Duration::from_mins(1));
        patient.request_failed("503");
        assert_eq!(patient.stop_reason(), None);
    }
}
