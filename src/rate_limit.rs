//! Limits the events that a caller may send per window. All sandboxes share the limit, at almost no
//! cost (docs/contract.md, "Rate limits").
//!
//! The state table has a counter per window, which contains the events granted so far. A sandbox
//! takes a grant in one atomic update and spends it locally. It asks for as many events as it
//! expects to need, so a busy sandbox asks only a few times per window. No grant takes the counter
//! beyond the window's capacity, so the counted events never exceed it either.
//!
//! The counter also tracks how many granted events the sandboxes have not spent yet, and limits that
//! number. A sandbox with a high forecast therefore cannot take the window from the others.

use crate::clock::{Clock, Timestamp};
use crate::store::StoreError;
use contract::api_key::KeyHash;
use contract::limits::MAX_BULK_EVENTS;
use contract::rate_limit::RateLimit;
use contract::tenant::Tenant;
use lru::LruCache;
use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::time::Duration;

/// The length of a window. Windows are aligned to the epoch.
pub const WINDOW: Duration = Duration::from_secs(10);
/// The longest time that a request waits for its grants before it continues uncounted.
const GRANT_TIMEOUT: Duration = Duration::from_millis(300);
/// The most shares that a sandbox keeps, one per counter. Each takes about 100 bytes.
const CACHED_SHARES: NonZeroUsize = NonZeroUsize::new(1000).unwrap();
const LARGEST_BATCH: u64 = MAX_BULK_EVENTS as u64;

/// A window, identified by its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(Timestamp);

impl Window {
    /// The window that contains `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        let length = WINDOW.as_secs();
        Self(Timestamp::from_millis(now.seconds() / length * length * 1000))
    }

    /// The start, in epoch seconds.
    #[must_use]
    pub fn start(self) -> u64 {
        self.0.seconds()
    }

    /// The start of the next window.
    #[must_use]
    pub fn end(self) -> Timestamp {
        self.0 + WINDOW
    }

    fn follows(self, other: Self) -> bool {
        self.0 == other.end()
    }
}

/// Identifies the counter of a caller's events: the tenant's, or the API key's own.
///
/// It contains the partition key of the counter's items, without the window.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Counter(String);

impl Counter {
    /// The counter shared by all API keys of a tenant that have no limit of their own.
    #[must_use]
    pub fn of_tenant(Tenant { project, mode }: &Tenant) -> Self {
        Self(format!("rate#{project}#{mode}"))
    }

    /// The counter of an API key with a limit of its own.
    #[must_use]
    pub fn of_key(hash: &KeyHash) -> Self {
        Self(format!("rate-key#{}", &hash.to_hex()[..32]))
    }

    /// The partition key of the counter's item for `window`.
    #[must_use]
    pub fn pk(&self, window: Window) -> String {
        format!("{}#{}", self.0, window.start())
    }
}

/// The limits of a window's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// The most events that the counter grants.
    pub events: u64,
    /// The most granted events that all sandboxes together may keep unspent.
    pub ahead: u64,
}

impl Capacity {
    /// The capacity of a window under `limit`.
    ///
    /// No batch is refused while less than 60 % of the capacity has been spent. A refusal means that the
    /// granted events and the batch together exceed the capacity. Apart from refunded events, at most 40 %
    /// of the capacity, less the largest batch, is granted but unspent. With a limit below 250 events per
    /// second, the bound is the capacity less the largest batch.
    #[must_use]
    pub fn of(limit: RateLimit) -> Self {
        let events = u64::from(limit.events_per_second()) * WINDOW.as_secs();
        Self { events, ahead: (events * 2 / 5).saturating_sub(LARGEST_BATCH) }
    }
}

/// A request for a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantRequest {
    /// The events to grant.
    pub events: u64,
    /// The change in the number of events that this sandbox keeps unspent. It is positive only if the
    /// request asks for more events than the current batch needs.
    pub ahead: i64,
}

/// The counter's response to a request for a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantResponse {
    /// Whether the counter granted the events. Otherwise they exceeded its capacity.
    pub granted: bool,
    /// Events granted in the window so far, to all sandboxes.
    pub used: u64,
    /// Granted events that the sandboxes last reported as unspent.
    pub ahead: u64,
}

/// The counters of the windows.
#[expect(async_fn_in_trait, reason = "everything runs on one thread; no caller needs a Send future")]
pub trait WindowStore {
    /// Grants events from a window's counter, unless the counter would exceed `capacity`. Returns no
    /// later than `by`.
    async fn grant(
        &self,
        counter: &Counter,
        window: Window,
        request: GrantRequest,
        capacity: Capacity,
        by: Timestamp,
    ) -> Result<GrantResponse, StoreError>;
}

/// The limiter's decision about a batch.
pub enum Admission<'a, W> {
    /// The batch may continue. Its events stay counted unless [`Charge::refund`] returns them.
    Admitted(Charge<'a, W>),
    /// The counter could not be updated, so the batch may continue uncounted.
    Uncounted(StoreError),
    /// The window has no room for the batch.
    Refused {
        /// The start of the next window.
        until: Timestamp,
    },
}

/// The events of one batch, counted against its limit.
#[must_use = "keep the charge, or refund it"]
pub struct Charge<'a, W> {
    limiter: &'a RateLimiter<W>,
    counter: &'a Counter,
    window: Window,
    events: u64,
}

impl<W> Charge<'_, W> {
    /// The window in which the events were counted.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// Leaves the events counted.
    pub fn keep(self) {}

    /// Returns the events to this sandbox's share. For a batch that does not count against the limit.
    pub fn refund(self) {
        if let Some(share) = self.limiter.shares.borrow_mut().get_mut(self.counter) {
            share.refund(self.window, self.events);
        }
    }
}

/// One sandbox's share of a counter's window. Pure arithmetic, without I/O.
#[derive(Clone, Debug)]
pub struct Share {
    window: Window,
    /// Events granted but not spent.
    left: u64,
    /// Events spent in this window.
    spent: u64,
    /// Events spent in the previous window.
    spent_before: u64,
    /// Whether a grant was refused in the previous window.
    scarce_before: bool,
    /// The unspent events that this sandbox last reported to the counter.
    reported: u64,
    /// The counter's last response, if there was one. Other sandboxes may have changed the counter since.
    counter: Option<GrantResponse>,
    /// Whether a grant was refused in this window.
    scarce: bool,
}

/// The next step for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The share covers the batch.
    Pass,
    /// The window has no room for the batch.
    Over,
    /// Ask for a grant, then try again.
    Ask(GrantRequest),
}

impl Share {
    /// An empty share of the window that contains `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            window: Window::at(now),
            left: 0,
            spent: 0,
            spent_before: 0,
            scarce_before: false,
            reported: 0,
            counter: None,
            scarce: false,
        }
    }

    /// The window of this share.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// Spends `events` if the share covers them; otherwise returns the next step.
    pub fn take(&mut self, now: Timestamp, events: u64, capacity: Capacity) -> Step {
        self.turn_to(now);
        if events <= self.left {
            self.left -= events;
            self.spent += events;
            return Step::Pass;
        }
        let missing = events - self.left;
        let room = capacity.events.saturating_sub(self.counter.map_or(0, |counter| counter.used));
        if missing > room {
            return Step::Over;
        }
        let others_ahead = self.counter.map_or(0, |counter| counter.ahead).saturating_sub(self.reported);
        let room_ahead = if self.refused_ahead() { 0 } else { capacity.ahead.saturating_sub(others_ahead) };
        // A sandbox keeps at most two fifths of its expected events unspent, so that all sandboxes together
        // rarely reach the limit for unspent events. A request asks for at most half of the window's
        // remaining room, unless its batch needs more.
        let expected = self.forecast(now);
        let ahead = expected.min(room / 2).saturating_sub(missing).min(expected * 2 / 5).min(room_ahead);
        Step::Ask(GrantRequest { events: missing + ahead, ahead: difference(ahead, self.reported) })
    }

    /// Whether the counter refused the last request. If the window still has room for the batch, the request
    /// was too large or other sandboxes keep too many events unspent. The next request then asks only for the
    /// events of its batch.
    fn refused_ahead(&self) -> bool {
        self.counter.is_some_and(|counter| !counter.granted)
    }

    /// Records the response of `window`'s counter to a request.
    pub fn record(&mut self, window: Window, request: GrantRequest, response: GrantResponse) {
        if window == self.window {
            if response.granted {
                self.left += request.events;
                self.reported = self.reported.saturating_add_signed(request.ahead);
            }
            self.counter = Some(response);
            self.scarce |= !response.granted;
        }
    }

    /// Returns `events` that were spent in `window` but not accepted.
    pub fn refund(&mut self, window: Window, events: u64) {
        // Events granted in an earlier window are no longer valid.
        if window == self.window {
            let refunded = events.min(self.spent);
            self.spent -= refunded;
            self.left += refunded;
        }
    }

    fn turn_to(&mut self, now: Timestamp) {
        let window = Window::at(now);
        if window != self.window {
            let before = window.follows(self.window).then_some(&*self);
            let spent_before = before.map_or(0, |share| share.spent);
            let scarce_before = before.is_some_and(|share| share.scarce);
            let empty = Self::new(now);
            *self = Self { spent_before, scarce_before, ..empty };
        }
    }

    /// The number of further events that this sandbox expects in this window.
    fn forecast(&self, now: Timestamp) -> u64 {
        if self.spent == 0 {
            // Expect a quarter more than in the previous window, because a second grant costs as much as
            // the first. If a grant was refused in that window, expect no more than before.
            return self.spent_before + if self.scarce_before { 0 } else { self.spent_before / 4 };
        }
        let rest = u64::try_from(now.until(self.window.end()).as_millis()).unwrap_or(0);
        let length = u64::try_from(WINDOW.as_millis()).unwrap_or(u64::MAX);
        let passed = length.saturating_sub(rest).max(1);
        // Extrapolate the rate so far, but at most double it: early in a window the rate is uncertain.
        self.spent.min(self.spent.saturating_mul(rest) / passed)
    }
}

/// The shares of one sandbox.
pub struct RateLimiter<W> {
    store: W,
    shares: RefCell<LruCache<Counter, Share>>,
}

impl<W: WindowStore> RateLimiter<W> {
    /// Creates a limiter over the counters in `store`.
    pub fn new(store: W) -> Self {
        Self { store, shares: RefCell::new(LruCache::new(CACHED_SHARES)) }
    }

    /// Counts `events` against `limit` in `counter`. Returns no later than `by`, with
    /// [`Admission::Uncounted`] if there is no response by then.
    pub async fn admit<'a, C: Clock>(
        &'a self,
        clock: &C,
        counter: &'a Counter,
        limit: RateLimit,
        events: usize,
        by: Timestamp,
    ) -> Admission<'a, W> {
        let events = events as u64;
        let capacity = Capacity::of(limit);
        let by = by.min(clock.now() + GRANT_TIMEOUT);
        loop {
            let now = clock.now();
            let (window, step) = self.with_share(counter, now, |share| {
                let step = share.take(now, events, capacity);
                (share.window(), step)
            });
            match step {
                Step::Pass => return Admission::Admitted(Charge { limiter: self, counter, window, events }),
                Step::Over => return Admission::Refused { until: window.end() },
                // This loop ends. After a refusal, the next request asks only for the missing events, and
                // the counter refuses it only if the window has no room for them.
                Step::Ask(request) => match self.store.grant(counter, window, request, capacity, by).await {
                    Ok(response) => self.with_share(counter, now, |share| share.record(window, request, response)),
                    Err(error) => return Admission::Uncounted(error),
                },
            }
        }
    }

    fn with_share<T>(&self, counter: &Counter, now: Timestamp, act: impl FnOnce(&mut Share) -> T) -> T {
        let mut shares = self.shares.borrow_mut();
        act(shares.get_or_insert_mut_ref(counter, || Share::new(now)))
    }
}

/// `after` − `before`.
fn difference(after: u64, before: u64) -> i64 {
    // Both are at most a window's capacity, which is far below the range of `i64`.
    after.cast_signed() - before.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::api_key::ApiKey;
    use contract::tenant::{Mode, ProjectId};

    const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);
    const CAPACITY: Capacity = Capacity { events: 10_000, ahead: 3000 };

    fn at(millis: u64) -> Timestamp {
        START + Duration::from_millis(millis)
    }

    fn ask(events: u64, ahead: i64) -> Step {
        Step::Ask(GrantRequest { events, ahead })
    }

    fn response(granted: bool, used: u64, ahead: u64) -> GrantResponse {
        GrantResponse { granted, used, ahead }
    }

    /// Takes `events` that the share does not cover. Returns the request, which the counter grants.
    fn take_with_grant(share: &mut Share, now: Timestamp, events: u64, counter: GrantResponse) -> (u64, i64) {
        let Step::Ask(request) = share.take(now, events, CAPACITY) else { panic!("the share covers the batch") };
        share.record(share.window(), request, counter);
        assert_eq!(share.take(now, events, CAPACITY), Step::Pass);
        (request.events, request.ahead)
    }

    /// A share that spent 1,000 events in the previous window and none in this one.
    fn after_a_busy_window(scarce: bool) -> Share {
        let mut share = Share::new(START);
        assert_eq!(take_with_grant(&mut share, START, 1000, response(true, 1000, 0)), (1000, 0));
        if scarce {
            share.record(share.window(), GrantRequest { events: 1, ahead: 0 }, response(false, 10_000, 0));
        }
        share
    }

    #[test]
    fn windows_are_aligned_and_follow_each_other() {
        let window = Window::at(at(19_999));
        assert_eq!((window.start(), window.end()), (1_800_000_010, at(20_000)));
        assert_eq!(Window::at(at(20_000)).start(), 1_800_000_020);
        assert!(window.follows(Window::at(START)) && !window.follows(window));
        assert!(!Window::at(at(20_000)).follows(Window::at(START)));
    }

    #[test]
    fn each_counter_has_an_item_per_window() {
        let tenant = Tenant { project: ProjectId::parse("acme").unwrap(), mode: Mode::Live };
        assert_eq!(Counter::of_tenant(&tenant).pk(Window::at(START)), "rate#acme#live#1800000000");
        let key = ApiKey::parse("sk_live_limited_limited_limited_limited_0000").unwrap().hash();
        let pk = format!("rate-key#{}#1800000010", &key.to_hex()[..32]);
        assert_eq!(Counter::of_key(&key).pk(Window::at(at(10_000))), pk);
    }

    #[test]
    fn two_fifths_of_a_window_less_the_largest_batch_can_be_unspent() {
        let capacity = |limit| Capacity::of(RateLimit::at_least_min(limit).unwrap());
        assert_eq!(capacity(1000), CAPACITY);
        assert_eq!(capacity(251), Capacity { events: 2510, ahead: 4 });
        assert_eq!(capacity(100), Capacity { events: 1000, ahead: 0 });
    }

    #[test]
    fn a_share_asks_for_the_events_that_it_expects_at_its_rate() {
        let mut share = Share::new(START);
        assert_eq!(take_with_grant(&mut share, START, 100, response(true, 100, 0)), (100, 0), "it expects none yet");
        // It expects 100 events, the number spent so far, and keeps at most two fifths of them unspent.
        assert_eq!(take_with_grant(&mut share, at(2000), 10, response(true, 150, 40)), (50, 40));
        // In the last second it expects 110 / 9 events, and 10 of this batch are missing.
        assert_eq!(take_with_grant(&mut share, at(9000), 50, response(true, 162, 2)), (12, -38));
        assert_eq!(share.take(at(9000), 2, CAPACITY), Step::Pass);
        // In the next window it expects a quarter more than the 162 events of this one.
        assert_eq!(share.take(at(10_000), 10, CAPACITY), ask(90, 80));
    }

    #[test]
    fn after_a_scarce_window_a_share_expects_no_more_than_it_spent() {
        assert_eq!(after_a_busy_window(false).take(at(10_000), 100, CAPACITY), ask(600, 500));
        assert_eq!(after_a_busy_window(true).take(at(10_000), 100, CAPACITY), ask(500, 400));
        assert_eq!(after_a_busy_window(false).take(at(20_000), 100, CAPACITY), ask(100, 0), "a window is between");
    }

    #[test]
    fn a_share_asks_for_half_of_the_room_unless_the_batch_needs_more() {
        let mut share = after_a_busy_window(false);
        assert_eq!(take_with_grant(&mut share, at(10_000), 1, response(true, 9800, 0)), (501, 500));
        assert_eq!(share.take(at(10_001), 701, CAPACITY), Step::Over);
        assert_eq!(share.take(at(10_001), 700, CAPACITY), ask(200, -500));
        let mut share = after_a_busy_window(false);
        share.turn_to(at(10_000));
        share.record(share.window(), GrantRequest { events: 0, ahead: 0 }, response(true, 9800, 0));
        assert_eq!(share.take(at(10_000), 10, CAPACITY), ask(100, 90));
    }

    #[test]
    fn the_unspent_events_of_the_others_leave_less_room() {
        let mut share = after_a_busy_window(false);
        share.turn_to(at(10_000));
        share.record(share.window(), GrantRequest { events: 0, ahead: 20 }, response(true, 5000, 2990));
        // 20 of the 2,990 unspent events are its own.
        assert_eq!(share.take(at(10_000), 10, CAPACITY), ask(40, 10));
        share.record(share.window(), GrantRequest { events: 40, ahead: 10 }, response(false, 5000, 2990));
        assert_eq!(share.take(at(10_000), 10, CAPACITY), ask(10, -20), "after a refusal");
    }

    #[test]
    fn only_a_response_and_a_refund_of_this_window_count() {
        let mut share = Share::new(START);
        let before = share.window();
        assert_eq!(take_with_grant(&mut share, START, 100, response(true, 100, 0)), (100, 0));
        share.refund(before, 30);
        assert_eq!(share.take(START, 30, CAPACITY), Step::Pass);
        share.refund(before, 1000);
        assert_eq!(share.take(START, 100, CAPACITY), Step::Pass, "it cannot get back more than it spent");
        assert_eq!(share.take(at(10_000), 1, CAPACITY), ask(51, 50));
        share.record(before, GrantRequest { events: 50, ahead: 0 }, response(true, 100, 0));
        share.refund(before, 50);
        assert_eq!(share.take(at(10_000), 1, CAPACITY), ask(51, 50));
    }
}
