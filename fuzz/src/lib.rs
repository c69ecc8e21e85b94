//! The code that the fuzzers run. Only the fuzzers use this crate. `tests/suite/fuzz_corpus.rs`, which
//! replays the corpus, includes `targets.rs` instead.
#![expect(clippy::expect_used, reason = "a panic is a finding")]

// With `path`, the compiler looks for the modules of `targets.rs` next to it, as for `tests/suite`.
#[path = "targets.rs"]
pub mod targets;

#[path = "backfill_targets.rs"]
pub mod backfill_targets;

pub mod mutate;

use targets::checks::Checks;
use targets::meter::Allocations;

/// The checks of the fuzzers.
pub const CHECKS: Checks = Checks {
    meter: |run| {
        let counted = allocation_counter::measure(run);
        Allocations { count: counted.count_total, bytes: counted.bytes_total, peak: counted.bytes_max }
    },
    slow_one_in: 16,
};
