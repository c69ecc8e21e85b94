//! The packages that a build of the command compiles.

use std::process::Command;

/// An AWS SDK and the Lambda runtime would take minutes to compile.
#[test]
fn the_command_depends_on_no_aws_sdk_and_no_lambda_runtime() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--package", env!("CARGO_PKG_NAME")])
        .args(["--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo is installed");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let packages = String::from_utf8(tree.stdout).expect("UTF-8");
    assert!(packages.lines().any(|package| package.starts_with("event-ingest-contract ")), "{packages}");
    let unwanted: Vec<_> =
        packages.lines().filter(|package| package.starts_with("aws-") || package.starts_with("lambda")).collect();
    assert_eq!(unwanted, [""; 0]);
}
