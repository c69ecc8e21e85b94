//! Runs every input of `fuzz/corpus/` through the fuzz targets, so that inputs that a fuzzer once found
//! stay tested. `make fuzz` looks for new ones.

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use targets::checks::Checks;
use targets::meter::Allocations;
use test_support::fuzz_corpus;

/// All checks, for every input.
const CHECKS: Checks = Checks {
    meter: |run| {
        let counted = allocation_counter::measure(run);
        Allocations { count: counted.count_total, bytes: counted.bytes_total, peak: counted.bytes_max }
    },
    slow_one_in: 1,
};

fn replay(target: &str, run: fn(&[u8], Checks)) {
    fuzz_corpus::replay(target, |input| run(input, CHECKS));
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
