//! The packages that a build of the command compiles.

use std::process::Command;

/// The packages of a build with these features, each with its version.
fn packages(features: &str) -> Vec<String> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--package", env!("CARGO_PKG_NAME"), "--features", features])
        .args(["--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo is installed");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let packages: Vec<_> = String::from_utf8(tree.stdout).expect("UTF-8").lines().map(str::to_owned).collect();
    assert!(packages.iter().any(|package| package.starts_with("event-ingest-contract ")), "{packages:?}");
    packages
}

fn starting_with(prefixes: &[&str], packages: Vec<String>) -> Vec<String> {
    let starts = |package: &String| prefixes.iter().any(|prefix| package.starts_with(prefix));
    packages.into_iter().filter(starts).collect()
}

/// An AWS SDK and the Lambda runtime would take minutes to compile.
#[test]
fn the_command_depends_on_no_aws_sdk_and_no_lambda_runtime() {
    assert_eq!(starting_with(&["aws-", "lambda"], packages("")), [""; 0]);
}

#[test]
fn the_feature_s3_adds_one_aws_sdk_and_no_second_tls_library() {
    let packages = packages("s3");
    assert!(packages.iter().any(|package| package.starts_with("aws-sdk-s3 ")), "{packages:?}");
    let unwanted = ["aws-lc", "native-tls ", "openssl ", "aws-sdk-dynamodb", "aws-sdk-sqs", "lambda"];
    assert_eq!(starting_with(&unwanted, packages), [""; 0]);
}
