//! Bounds on the work and the memory of a stage.
//!
//! Work is counted in allocations and allocated bytes, because these are the same in every run on every
//! machine. CPU time is not: it depends on the other processes. Instruction counters would be better,
//! but virtual machines rarely have one. A loop that does not allocate is therefore bounded only by
//! libFuzzer's time limit for an input.

/// The allocations of a stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocations {
    /// Allocations and reallocations.
    pub count: u64,
    /// The bytes of all of them together.
    pub bytes: u64,
    /// The most bytes allocated at the same time.
    pub peak: u64,
}

/// Runs a closure and counts its allocations.
pub type Meter = fn(&mut dyn FnMut()) -> Allocations;

/// The most that a stage may allocate.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// Allocations and reallocations.
    pub count: usize,
    /// The bytes of all of them together.
    pub bytes: usize,
    /// The most bytes at the same time.
    pub peak: usize,
}

impl Bound {
    /// Runs a stage within this bound.
    ///
    /// # Panics
    /// If the stage allocates more.
    pub fn check<T>(self, meter: Meter, stage: impl FnOnce() -> T) -> T {
        let (mut stage, mut result) = (Some(stage), None);
        let used = meter(&mut || result = stage.take().map(|stage| stage()));
        let is_within = |used: u64, most: usize| usize::try_from(used).is_ok_and(|used| used <= most);
        let within =
            is_within(used.count, self.count) && is_within(used.bytes, self.bytes) && is_within(used.peak, self.peak);
        assert!(within, "a stage used {used:?}, more than {self:?}");
        result.expect("a meter runs its closure")
    }
}
