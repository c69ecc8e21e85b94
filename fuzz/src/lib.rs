//! What the fuzzers run. `make test` replays the corpus through the same sources, which
//! `tests/suite/fuzz_corpus.rs` includes, so this crate is built only to fuzz.
#![expect(clippy::expect_used, reason = "here a panic is a finding")]

mod ports;
mod reference;
mod tape;
pub mod targets;

use peakmem_alloc::{INSTRUMENTED_SYSTEM, PeakMemAlloc, PeakMemAllocTrait};
use std::alloc::System;
use targets::Meter;

#[global_allocator]
static MEMORY: &PeakMemAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Measures what this process allocates.
pub const METER: Meter = Meter { reset: || MEMORY.reset_peak_memory(), peak: || MEMORY.get_peak_memory() };
