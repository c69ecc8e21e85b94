//! See `event_ingest_fuzz::targets::packing`.
#![no_main]

use event_ingest_fuzz::{CHECKS, targets};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| targets::packing::run(input, CHECKS));
