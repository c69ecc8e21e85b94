//! See `event_ingest_fuzz::targets::bulk`.
#![no_main]

use event_ingest_fuzz::{CHECKS, mutate::mutate, targets};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|input: &[u8]| targets::bulk::run(input, CHECKS));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { mutate(data, size, max_size, seed) });
