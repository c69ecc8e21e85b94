//! Runs every input of `fuzz/corpus/` for the backfill through its fuzz targets. `make fuzz` looks for new ones.

#[path = "../../../../fuzz/src/backfill_targets.rs"]
mod backfill_targets;

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).expect("a corpus").map(|file| file.expect("a file").path());
    let mut failed: Vec<PathBuf> = files
        .filter(|path| {
            let input = std::fs::read(path).expect("the file is readable");
            catch_unwind(|| run(&input)).is_err()
        })
        .collect();
    failed.sort();
    assert!(failed.is_empty(), "inputs that fail: {failed:#?}");
}

#[test]
fn readers() {
    replay("readers", backfill_targets::readers::run);
}

#[test]
fn times() {
    replay("times", backfill_targets::times::run);
}
