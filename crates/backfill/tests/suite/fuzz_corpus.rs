//! Runs every input of `fuzz/corpus/` for the backfill through its fuzz targets. `make fuzz` looks for new ones.

#[path = "../../../../fuzz/src/expand.rs"]
mod expand;
#[path = "../../../../fuzz/src/readers.rs"]
mod readers;
#[path = "../../../../fuzz/src/times.rs"]
mod times;

use test_support::fuzz_corpus::replay;

#[test]
fn files() {
    replay("readers", readers::run);
}

#[test]
fn times_of_exports() {
    replay("times", times::run);
}
