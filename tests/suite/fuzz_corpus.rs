//! Runs every input of `fuzz/corpus/` through the fuzz targets, so that inputs that a fuzzer once found
//! stay tested. `make fuzz` looks for new ones.

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use targets::meter::{Allocations, Meter};

/// Counts the allocations of the thread that calls it.
const METER: Meter = |run| {
    let counted = allocation_counter::measure(run);
    Allocations { count: counted.count_total, bytes: counted.bytes_total, peak: counted.bytes_max }
};

fn replay(target: &str, run: fn(&[u8], Meter)) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).expect("a corpus").map(|file| file.expect("a file").path());
    let mut failed: Vec<PathBuf> = files
        .filter(|path| {
            let input = std::fs::read(path).expect("the file is readable");
            std::panic::catch_unwind(AssertUnwindSafe(|| run(&input, METER))).is_err()
        })
        .collect();
    failed.sort();
    assert!(failed.is_empty(), "inputs that fail: {failed:#?}");
}

#[test]
fn gateway_events() {
    replay("gateway_event", targets::gateway_event::run);
}

#[test]
fn headers() {
    replay("headers", targets::headers::run);
}

#[test]
fn batches() {
    replay("batch", targets::batch::run);
}

#[test]
fn packings() {
    replay("packing", targets::packing::run);
}
