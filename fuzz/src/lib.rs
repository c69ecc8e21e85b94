//! The code that the fuzzers run. It is a crate only for them: `tests/suite/fuzz_corpus.rs` includes
//! `targets.rs` to replay the corpus.
#![expect(clippy::expect_used, reason = "a panic is a finding")]

// With `path`, the modules of `targets.rs` are beside it here as well as in `tests/suite`.
#[path = "targets.rs"]
pub mod targets;

use targets::meter::{Allocations, Meter};

/// Counts the allocations of the thread that calls it.
pub const METER: Meter = |run| {
    let counted = allocation_counter::measure(run);
    Allocations { count: counted.count_total, bytes: counted.bytes_total, peak: counted.bytes_max }
};
