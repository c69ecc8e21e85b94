//! Runs every input of `fuzz/corpus/` through the fuzz targets, so that inputs that a fuzzer once found
//! stay tested. `make fuzz` looks for new ones.

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use targets::checks::Checks;
use targets::meter::Allocations;

/// All checks, for every input.
const CHECKS: Checks = Checks {
    meter: |run| {
        let counted = allocation_counter::measure(run);
        Allocations { count: counted.count_total, bytes: counted.bytes_total, peak: counted.bytes_max }
    },
    slow_one_in: 1,
};

fn replay(target: &str, run: fn(&[u8], Checks)) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).expect("a corpus").map(|file| file.expect("a file").path());
    let mut failed: Vec<PathBuf> = files
        .filter(|path| {
            let input = std::fs::read(path).expect("the file is readable");
            std::panic::catch_unwind(AssertUnwindSafe(|| run(&input, CHECKS))).is_err()
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
fn bulk_requests() {
    replay("bulk", targets::bulk::run);
}

#[test]
fn ordered_queues() {
    replay("ordered", targets::ordered::run);
}

#[test]
fn packings() {
    replay("packing", targets::packing::run);
}
