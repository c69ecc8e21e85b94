//! See `event_ingest_fuzz::times`.
#![no_main]

use event_ingest_fuzz::times;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| times::run(input));
