//! Every input of fuzz/corpus/ once more through what is fuzzed: what a fuzzer ever reached
//! stays tested without one. `make fuzz` looks for more.

#[path = "../../fuzz/src/ports.rs"]
mod ports;
#[path = "../../fuzz/src/reference.rs"]
mod reference;
#[path = "../../fuzz/src/tape.rs"]
mod tape;
#[path = "../../fuzz/src/targets.rs"]
mod targets;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use targets::Meter;

/// Other tests allocate at the same time, so only the fuzzers measure memory.
const NO_METER: Meter = Meter { reset: || {}, peak: || 0 };

fn replay(target: &str, run: fn(&[u8], &Meter)) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).expect("a corpus").map(|file| file.expect("a file").path());
    let mut broken: Vec<PathBuf> = files
        .filter(|path| {
            let input = std::fs::read(path).expect("it can be read");
            std::panic::catch_unwind(AssertUnwindSafe(|| run(&input, &NO_METER))).is_err()
        })
        .collect();
    broken.sort();
    assert!(broken.is_empty(), "the promises are broken for {broken:#?}");
}

#[test]
fn gateway_events() {
    replay("gateway_event", targets::gateway_event);
}

#[test]
fn headers() {
    replay("headers", targets::headers);
}

#[test]
fn batches() {
    replay("batch", targets::batch);
}

#[test]
fn packings() {
    replay("packing", targets::packing);
}
