//! What is checked for each input, and what only for a sample of the inputs.

use super::meter::Meter;
use std::hash::{DefaultHasher, Hasher};

/// The checks of a run.
#[derive(Clone, Copy)]
pub struct Checks {
    /// Counts allocations.
    pub meter: Meter,
    /// The slow checks run for one in this many inputs. 1 in the tests.
    pub slow_one_in: u64,
}

impl Checks {
    /// Whether the slow checks run for this input. It depends only on the input, so that a failure is reproducible.
    pub fn are_slow(&self, input: &[u8]) -> bool {
        hash(input).is_multiple_of(self.slow_one_in)
    }
}

/// A hash that is the same in every run.
pub fn hash(input: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(input);
    hasher.finish()
}
