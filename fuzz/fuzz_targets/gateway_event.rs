//! See `event_ingest_fuzz::targets::gateway_event`.
#![no_main]

use event_ingest_fuzz::mutate::{Expansion, mutate};
use event_ingest_fuzz::{CHECKS, targets};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|input: &[u8]| targets::gateway_event::run(input, CHECKS));

const EXPANSION: Expansion = Expansion { usual: 8 * 1024, large_one_in: 2048 };

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate(data, size, max_size, seed, EXPANSION)
});
