//! A rate limit, from the configuration or from an API key.

use std::num::NonZeroU32;

/// A rate limit in events per second, at least [`RateLimit::MIN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit(NonZeroU32);

impl RateLimit {
    /// The lowest limit. It admits 1,000 events per window of 10 s, so every request fits an empty window.
    pub const MIN: u32 = 100;

    /// Parses a configured limit. 0 means no limit; 1 to [`Self::MIN`] − 1 is an error.
    ///
    /// # Errors
    /// The message is a predicate for the operator, such as "must be 0 (no limit) or at least 100".
    pub fn parse(events_per_second: u32) -> Result<Option<Self>, String> {
        match NonZeroU32::new(events_per_second) {
            None => Ok(None),
            Some(limit) if limit.get() >= Self::MIN => Ok(Some(Self(limit))),
            Some(_) => Err(format!("must be 0 (no limit) or at least {}", Self::MIN)),
        }
    }

    /// The limit stored with an API key. 0 means no limit; 1 to [`Self::MIN`] − 1 counts as
    /// [`Self::MIN`].
    #[must_use]
    pub fn at_least_min(events_per_second: u32) -> Option<Self> {
        NonZeroU32::new(events_per_second.max(Self::MIN)).filter(|_| events_per_second > 0).map(Self)
    }

    /// Events per second.
    #[must_use]
    pub fn events_per_second(self) -> u32 {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_limit_below_the_minimum_is_an_error() {
        let parsed = |n| RateLimit::parse(n).map(|limit| limit.map(RateLimit::events_per_second));
        assert_eq!([0, 100].map(parsed), [Ok(None), Ok(Some(100))]);
        assert!([1, 99].into_iter().all(|n| parsed(n).is_err()));
    }

    #[test]
    fn a_stored_limit_below_the_minimum_counts_as_the_minimum() {
        let stored = |n| RateLimit::at_least_min(n).map(RateLimit::events_per_second);
        assert_eq!([0, 1, 99, 100, 101].map(stored), [None, Some(100), Some(100), Some(100), Some(101)]);
    }
}
