//! See `event_ingest_fuzz::targets::gateway_event`.
#![no_main]

use event_ingest_fuzz::{METER, targets};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| targets::gateway_event::run(input, METER));
