//! The number of events that a tenant may send per window, shared by all sandboxes at almost no
//! cost (docs/contract.md, "Rate limits").
//!
//! The state table has a counter per window, which contains the events granted so far. A sandbox
//! takes a grant in one atomic update and spends it locally. It asks for as many events as it
//! expects to need, so that a busy sandbox asks about once per window. No grant takes the counter
//! beyond the window's capacity, so the accepted events never exceed it either.

use crate::clock::{Clock, Timestamp};
use crate::store::StoreError;
use contract::rate_limit::RateLimit;
use contract::tenant::Tenant;
use lru::LruCache;
use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::time::Duration;

/// The length of a window. Windows are aligned to the epoch.
pub const WINDOW: Duration = Duration::from_secs(10);
/// The longest time that a request waits for a grant before it continues without one.
const GRANT_TIMEOUT: Duration = Duration::from_millis(300);
/// The most tenants whose shares a sandbox keeps; about 100 bytes each.
const CACHED_SHARES: NonZeroUsize = NonZeroUsize::new(1000).unwrap();

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

/// The counter's response to a request for a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantResponse {
    /// Whether the counter granted the events; if not, they did not fit.
    pub granted: bool,
    /// Events granted in the window so far, to all sandboxes.
    pub used: u64,
}

/// The windows' counters.
#[expect(async_fn_in_trait, reason = "everything runs on one thread; no caller needs a Send future")]
pub trait WindowStore {
    /// Adds `events` to a window's counter, unless the sum would exceed `capacity`. Returns by the
    /// time `by`.
    async fn grant(
        &self,
        tenant: &Tenant,
        window: Window,
        events: u64,
        capacity: u64,
        by: Timestamp,
    ) -> Result<GrantResponse, StoreError>;
}

/// The limiter's decision about a batch.
pub enum Admission<'a, W> {
    /// The batch may continue. It is charged for until [`Charge::refund`].
    Admitted(Charge<'a, W>),
    /// The counter could not be read or written, so the batch may continue uncounted.
    Uncounted(StoreError),
    /// The window has no room for the batch.
    Refused {
        /// The start of the next window.
        until: Timestamp,
    },
}

/// The events of one batch, counted against its tenant's limit.
#[must_use = "keep the charge, or refund it"]
pub struct Charge<'a, W> {
    limiter: &'a RateLimiter<W>,
    tenant: &'a Tenant,
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

    /// Returns the events to this sandbox's share, because they were not accepted in this window.
    pub fn refund(self) {
        if let Some(share) = self.limiter.shares.borrow_mut().get_mut(self.tenant) {
            share.refund(self.window, self.events);
        }
    }
}

/// One sandbox's share of a tenant's window. Pure arithmetic, without I/O.
#[derive(Clone, Debug)]
pub struct Share {
    window: Window,
    /// Events granted and not spent.
    left: u64,
    /// Events spent in this window.
    spent: u64,
    /// Events spent in the previous window.
    spent_before: u64,
    /// Whether a grant was refused in the previous window.
    scarce_before: bool,
    /// The room in the counter after the last response, if there was one. Other sandboxes may have
    /// used some of it since.
    room: Option<u64>,
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
    /// Ask for a grant of this many events, then try again.
    Ask(u64),
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
            room: None,
            scarce: false,
        }
    }

    /// The window of this share.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// Spends `events` if the share covers them; otherwise returns the next step.
    pub fn take(&mut self, now: Timestamp, events: u64, capacity: u64) -> Step {
        self.turn_to(Window::at(now));
        if events <= self.left {
            self.left -= events;
            self.spent += events;
            return Step::Pass;
        }
        let missing = events - self.left;
        if missing > self.room.unwrap_or(capacity) {
            return Step::Over;
        }
        // A sandbox takes at most half of a window's remaining room at once, unless it needs more.
        let most = self.room.map_or(capacity, |room| room / 2).max(missing);
        Step::Ask(self.forecast(now).clamp(missing, most))
    }

    /// Records the response of `window`'s counter to a request for `events`.
    pub fn record(&mut self, window: Window, events: u64, response: GrantResponse, capacity: u64) {
        if window == self.window {
            self.left += if response.granted { events } else { 0 };
            self.room = Some(capacity.saturating_sub(response.used));
            self.scarce |= !response.granted;
        }
    }

    /// Returns `events` that were spent in `window` but not accepted.
    pub fn refund(&mut self, window: Window, events: u64) {
        // A grant of an earlier window is no longer valid.
        if window == self.window {
            let refunded = events.min(self.spent);
            self.spent -= refunded;
            self.left += refunded;
        }
    }

    fn turn_to(&mut self, window: Window) {
        if window != self.window {
            let before = window.follows(self.window).then_some(&*self);
            let spent_before = before.map_or(0, |share| share.spent);
            let scarce_before = before.is_some_and(|share| share.scarce);
            *self = Self { window, left: 0, spent: 0, spent_before, scarce_before, room: None, scarce: false };
        }
    }

    /// The number of further events that this sandbox expects in this window.
    fn forecast(&self, now: Timestamp) -> u64 {
        if self.spent == 0 {
            // A quarter more than in the previous window, because a second grant costs as much as
            // the first. No more than before if that window was too small for all sandboxes.
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
    shares: RefCell<LruCache<Tenant, Share>>,
}

impl<W: WindowStore> RateLimiter<W> {
    /// Creates a limiter over the counters in `store`.
    pub fn new(store: W) -> Self {
        Self { store, shares: RefCell::new(LruCache::new(CACHED_SHARES)) }
    }

    /// Counts `events` of a tenant against its limit.
    pub async fn admit<'a, C: Clock>(
        &'a self,
        clock: &C,
        tenant: &'a Tenant,
        limit: RateLimit,
        events: usize,
    ) -> Admission<'a, W> {
        let events = events as u64;
        let capacity = u64::from(limit.events_per_second()) * WINDOW.as_secs();
        loop {
            let now = clock.now();
            let (window, step) = self.with_share(tenant, now, |share| {
                let step = share.take(now, events, capacity);
                (share.window(), step)
            });
            match step {
                Step::Pass => return Admission::Admitted(Charge { limiter: self, tenant, window, events }),
                Step::Over => return Admission::Refused { until: window.end() },
                // The loop ends, because each refusal leaves less room to ask for.
                Step::Ask(grant) => {
                    match self.store.grant(tenant, window, grant, capacity, now + GRANT_TIMEOUT).await {
                        Ok(response) => {
                            self.with_share(tenant, now, |share| share.record(window, grant, response, capacity));
                        }
                        Err(error) => return Admission::Uncounted(error),
                    }
                }
            }
        }
    }

    fn with_share<T>(&self, tenant: &Tenant, now: Timestamp, act: impl FnOnce(&mut Share) -> T) -> T {
        let mut shares = self.shares.borrow_mut();
        act(shares.get_or_insert_mut_ref(tenant, || Share::new(now)))
    }
}
