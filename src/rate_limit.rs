//! How many events a project may send in a window, shared by all sandboxes for nearly nothing
//! (contract section 2, row 10).
//!
//! A window's counter in the state table holds what was granted of it. A sandbox takes a grant
//! by one atomic update and spends it locally; it asks for as much as it expects to use, so
//! that a busy sandbox asks about once a window. No grant takes the counter beyond the window's
//! capacity, so neither do the accepted events.

use crate::auth::{Mode, ProjectId};
use crate::clock::{Clock, Timestamp};
use crate::config::RateLimit;
use crate::idempotency::StoreError;
use lru::LruCache;
use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::time::Duration;

/// The length of a window; windows are aligned to the epoch (contract section 2).
pub const WINDOW: Duration = Duration::from_secs(10);
/// How long a request waits for a grant before it passes without one.
const PATIENCE: Duration = Duration::from_millis(300);
/// How many projects a sandbox keeps count of; about 100 bytes each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1000).unwrap();

/// Whose events are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tenant {
    /// A project,
    pub project: ProjectId,
    /// in one of its modes.
    pub mode: Mode,
}

/// One window of the epoch, by the time it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(Timestamp);

impl Window {
    /// The window that `now` lies in.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        let length = WINDOW.as_secs();
        Self(Timestamp::from_millis(now.seconds() / length * length * 1000))
    }

    /// Epoch seconds of its first moment.
    #[must_use]
    pub fn start(self) -> u64 {
        self.0.seconds()
    }

    /// The first moment after it.
    #[must_use]
    pub fn end(self) -> Timestamp {
        self.0 + WINDOW
    }

    fn follows(self, other: Self) -> bool {
        self.0 == other.end()
    }
}

/// How a window's counter took a request for a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Whether the grant was counted; else it would not have fit.
    pub done: bool,
    /// Events granted in the window so far, to all sandboxes.
    pub used: u64,
}

/// Where the windows' counters live.
#[expect(async_fn_in_trait, reason = "everything runs on one thread; no caller needs a Send future")]
pub trait WindowStore {
    /// Adds `events` to a window's counter unless that takes it beyond `capacity`; answers by
    /// the time `by`.
    async fn grant(
        &self,
        tenant: &Tenant,
        window: Window,
        events: u64,
        capacity: u64,
        by: Timestamp,
    ) -> Result<Granted, StoreError>;
}

/// What the limiter says of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on, and was counted in this window.
    Pass(Window),
    /// The counter could not be asked, so it may go on.
    PassUncounted(StoreError),
    /// The window is used up until this time.
    Over {
        /// When the next window starts.
        until: Timestamp,
    },
}

/// One sandbox's share of a tenant's window. All of it is arithmetic; nothing here waits.
#[derive(Clone, Debug)]
pub struct Share {
    window: Window,
    /// Granted and not spent.
    left: u64,
    spent: u64,
    spent_before: u64,
    /// Whether the window before was too small for what this sandbox had to send.
    scarce_before: bool,
    /// How many events the counter last had room for, if that is known. It can only have less now.
    room: Option<u64>,
    /// Whether a grant was refused.
    scarce: bool,
}

/// What to do about a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is paid for.
    Pass,
    /// Not enough is left in the window for it.
    Over,
    /// Ask for a grant of this many events, then see again.
    Ask(u64),
}

impl Share {
    /// Nothing granted yet, in the window of `now`.
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

    /// The window that this share is of.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// Pays for `events` if the grant covers them, else says what to do.
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
        // Of what is left of a window no sandbox takes more than half at once, if it needs less.
        let most = self.room.map_or(capacity, |room| room / 2).max(missing);
        Step::Ask(self.forecast(now).clamp(missing, most))
    }

    /// Notes how the counter of `window` took a request for `events`.
    pub fn settle(&mut self, window: Window, events: u64, granted: Granted, capacity: u64) {
        if window == self.window {
            self.left += if granted.done { events } else { 0 };
            self.room = Some(capacity.saturating_sub(granted.used));
            self.scarce |= !granted.done;
        }
    }

    /// Takes back what was paid in `window` for events that were not accepted now.
    pub fn give_back(&mut self, window: Window, events: u64) {
        // What was paid in an earlier window is gone with it.
        if window == self.window {
            let back = events.min(self.spent);
            self.spent -= back;
            self.left += back;
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

    /// How many more events this sandbox is likely to see in this window.
    fn forecast(&self, now: Timestamp) -> u64 {
        if self.spent == 0 {
            // A quarter more than last time, since a second grant costs as much as the first; but
            // no more than last time where there was too little for all.
            return self.spent_before + if self.scarce_before { 0 } else { self.spent_before / 4 };
        }
        let rest = u64::try_from(now.until(self.window.end()).as_millis()).unwrap_or(0);
        let length = u64::try_from(WINDOW.as_millis()).unwrap_or(u64::MAX);
        let passed = length.saturating_sub(rest).max(1);
        // At the rate so far, but no more than double: early in a window a rate says little.
        self.spent.min(self.spent.saturating_mul(rest) / passed)
    }
}

/// The shares of one sandbox.
pub struct RateLimiter<W> {
    store: W,
    shares: RefCell<LruCache<Tenant, Share>>,
}

impl<W: WindowStore> RateLimiter<W> {
    /// Over the counters in `store`.
    pub fn new(store: W) -> Self {
        Self { store, shares: RefCell::new(LruCache::new(REMEMBERED)) }
    }

    /// Counts `events` of a tenant against its limit.
    pub async fn admit<C: Clock>(&self, clock: &C, tenant: &Tenant, limit: RateLimit, events: usize) -> Verdict {
        let capacity = u64::from(limit.events_per_second()) * WINDOW.as_secs();
        loop {
            let now = clock.now();
            let (window, step) = self.with_share(tenant, now, |share| {
                let step = share.take(now, events as u64, capacity);
                (share.window(), step)
            });
            match step {
                Step::Pass => return Verdict::Pass(window),
                Step::Over => return Verdict::Over { until: window.end() },
                // This ends, as each refusal leaves less room to ask for.
                Step::Ask(grant) => match self.store.grant(tenant, window, grant, capacity, now + PATIENCE).await {
                    Ok(granted) => self.with_share(tenant, now, |share| share.settle(window, grant, granted, capacity)),
                    Err(error) => return Verdict::PassUncounted(error),
                },
            }
        }
    }

    /// Takes back what `admit` counted in `window` for events that were not accepted now.
    pub fn give_back(&self, tenant: &Tenant, window: Window, events: usize) {
        if let Some(share) = self.shares.borrow_mut().get_mut(tenant) {
            share.give_back(window, events as u64);
        }
    }

    fn with_share<T>(&self, tenant: &Tenant, now: Timestamp, act: impl FnOnce(&mut Share) -> T) -> T {
        let mut shares = self.shares.borrow_mut();
        act(shares.get_or_insert_mut_ref(tenant, || Share::new(now)))
    }
}
