//! Wall-clock time as a port, so that tests choose it.
//!
//! Leases are compared between sandboxes and the Lambda deadline is an epoch time, so the
//! whole protocol runs on epoch milliseconds. Nothing else may read the clock.

use std::ops::Add;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The point `millis` milliseconds after the epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0 / 1000
    }

    /// Whole seconds since the epoch, rounded up.
    #[must_use]
    pub const fn seconds_rounded_up(self) -> u64 {
        self.0.div_ceil(1000)
    }

    /// The time from now until `later`, or zero when that has passed.
    #[must_use]
    pub const fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }

    /// This point less `duration`, or the epoch.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Time and chance, as the protocol sees them.
#[expect(async_fn_in_trait, reason = "everything runs on one thread; no caller needs a Send future")]
pub trait Clock {
    /// The current time.
    fn now(&self) -> Timestamp;

    /// Returns after `duration`.
    async fn sleep(&self, duration: Duration);

    /// A uniformly random duration from zero to `ceiling` ("full jitter").
    fn jitter(&self, ceiling: Duration) -> Duration;
}

/// The system's clock and tokio's timer.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Timestamp(since_epoch.map_or(0, millis))
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn jitter(&self, ceiling: Duration) -> Duration {
        Duration::from_millis(fastrand::u64(0..=millis(ceiling)))
    }
}
