//! The tests run a binary with exactly the features that ship, and the benchmark compares builds of one profile.
//!
//! Cargo builds a dependency with all features that any package of the build requests. A development
//! dependency could therefore add features that the deployed function does not have. Cargo.toml declares such
//! features for every build.

use std::collections::BTreeSet;
use std::process::Command;

/// Each package of a build, with its version and features.
fn packages(of: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["tree", "--offline", "--locked", "--format", "{p} {f}", "--prefix", "none", "--no-dedupe"])
        .args(of)
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").lines().map(str::to_owned).collect()
}

#[test]
fn the_tests_run_a_binary_with_the_features_that_ship() {
    let shipped = packages(&["--package", "event-ingest", "--edges", "normal"]);
    assert!(shipped.iter().any(|package| package.starts_with("tokio v") && package.contains("macros")), "{shipped:?}");
    let tested = packages(&["--package", "event-ingest", "--edges", "normal,dev"]);
    let missing: Vec<&String> = shipped.difference(&tested).collect();
    assert!(missing.is_empty(), "these packages have other features in the tests: {missing:#?}");
}

/// The lines of the release profile, without comments.
fn release_profile(file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(file).expect("the file can be read");
    let section = text.lines().skip_while(|line| *line != "[profile.release]").take_while(|line| !line.is_empty());
    section.filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn the_benchmark_has_the_release_profile_of_the_function() {
    let shipped = release_profile("Cargo.toml");
    assert!(shipped.len() > 5, "{shipped:?}");
    assert_eq!(release_profile("benches/Cargo.toml"), shipped);
}
