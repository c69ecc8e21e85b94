//! See `event_ingest_fuzz::backfill_targets::readers`.
#![no_main]

use event_ingest_fuzz::backfill_targets;
use event_ingest_fuzz::mutate::{Expansion, mutate};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|input: &[u8]| backfill_targets::readers::run(input));

const EXPANSION: Expansion = Expansion { usual: 256, large_one_in: 65_536 };

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate(data, size, max_size, seed, EXPANSION)
});
