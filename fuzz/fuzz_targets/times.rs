//! See `event_ingest_fuzz::backfill_targets::times`.
#![no_main]

use event_ingest_fuzz::backfill_targets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| backfill_targets::times::run(input));
