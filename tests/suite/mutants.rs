//! tests/mutants/mutants.toml applies to the current code. `make mutants` runs the mutations.

use std::path::Path;
use std::process::Command;

#[test]
fn every_mutation_applies_to_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".venv/sam/bin/python");
    let output = Command::new(&python).arg(root.join("tools/mutants.py")).arg("--check").output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}; `make test` installs it", python.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
