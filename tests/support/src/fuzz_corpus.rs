//! Runs the inputs of `fuzz/corpus/` through the fuzz targets.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Runs every input of a target, and names all inputs that fail.
pub fn replay(target: &str, run: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).expect("a corpus").map(|file| file.expect("a file").path());
    let mut failed: Vec<PathBuf> = files
        .filter(|path| {
            let input = std::fs::read(path).expect("the file is readable");
            catch_unwind(AssertUnwindSafe(|| run(&input))).is_err()
        })
        .collect();
    failed.sort();
    assert!(failed.is_empty(), "inputs that fail: {failed:#?}");
}
