//! See `event_ingest_fuzz::targets::batch`.
#![no_main]

use event_ingest_fuzz::{METER, targets};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| targets::batch::run(input, METER));
