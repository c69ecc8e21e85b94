//! Tests of `make deploy` on a local AWS. It shows the response of the function, or the reason why there is
//! none.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use test_support::local_aws::endpoint;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs tools/deploy.py without the AWS settings of the user.
fn deploy(options: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(root().join(".venv/sam/bin/python"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        command.env_remove(name);
    }
    let Output { status, stdout, stderr } = command
        .arg(root().join("tools/deploy.py"))
        .args(options)
        .env("HOME", env!("CARGO_TARGET_TMPDIR"))
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs(environment.iter().copied())
        .output()
        .expect("python starts: `make test` installs it");
    (status.code(), [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat())
}

/// Copies the build of `make test`, and changes one text in its template.
fn build_with(name: &str, from: &str, to: &str) -> PathBuf {
    let state = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let built = root().join(".local/build");
    std::fs::create_dir_all(state.join("build/Function")).expect("a folder");
    std::fs::copy(built.join("Function/bootstrap"), state.join("build/Function/bootstrap"))
        .expect("the build is missing: `make test` creates it");
    let template = std::fs::read_to_string(built.join("template.yaml")).expect("a template");
    let changed = template.replacen(from, to, 1);
    assert!(from == to || changed != template, "{from} is not in the template");
    std::fs::write(state.join("build/template.yaml"), changed).expect("room on the disk");
    state
}

const CREDENTIALS: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")];

fn deploy_locally(stack: &str, state: &Path, options: &[&str]) -> (Option<i32>, String) {
    let endpoint = endpoint();
    let environment: Vec<_> = CREDENTIALS.into_iter().chain([("AWS_ENDPOINT_URL", endpoint.as_str())]).collect();
    let mut all = vec!["dev", "--no-build", "--stack", stack, "--state-dir", state.to_str().expect("UTF-8")];
    all.extend(options);
    deploy(&all, &environment)
}

/// One test, because a deployment takes a while, and two concurrent first deployments would create the same
/// bucket.
#[test]
fn a_deployment_shows_the_401_of_the_function_or_the_reason_why_it_cannot_start() {
    let state = build_with("deploy-good", "", "");
    let (status, output) = deploy_locally("deploy", &state, &["--yes"]);
    assert_eq!(status, Some(0), "{output}");
    for expected in [
        "account  000000000000",
        "deploy, which is new",
        "HTTP 401 auth_required",
        "event-ingest-keys",
        "create --project",
        "curl -i",
    ] {
        assert!(output.contains(expected), "{expected:?} is missing from {output}");
    }

    let state = build_with("deploy-bad", " STATE_TABLE:", " STATE_TABEL:");
    let (status, output) = deploy_locally("deploy", &state, &["--yes"]);
    assert_eq!(status, Some(1), "{output}");
    for expected in [
        "deploy, now CREATE_COMPLETE",
        "The stack is deployed, but does not work",
        "Its function cannot start",
        "bad configuration: STATE_TABLE is required",
    ] {
        assert!(output.contains(expected), "{expected:?} is missing from {output}");
    }
}

#[test]
fn nothing_is_built_without_credentials_region_profile_or_confirmation() {
    let state = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("deploy-refused");
    let options = |profile| [profile, "--state-dir", state.to_str().expect("UTF-8")];
    let region = [("AWS_REGION", "us-east-1")];
    let refused = [
        (deploy(&options("dev"), &region), "There are no AWS credentials that work"),
        (deploy(&options("dev"), &CREDENTIALS[..2]), "No AWS region is set"),
        (deploy(&options("staging"), &CREDENTIALS), "samconfig.toml has no profile staging; it has: dev, prod"),
        (deploy_locally("deploy-refused", &state, &[]), "Nobody is there to confirm this"),
    ];
    for ((status, output), reason) in refused {
        assert_eq!(status, Some(1), "{output}");
        assert!(output.contains(reason), "{reason:?} is missing from {output}");
    }
    assert!(!state.exists(), "a build was made");
}
