//! Runs Schemathesis against the function. Every request that it generates from openapi.yaml must get a
//! documented response, and every valid request must succeed.

use crate::http_api::HttpApi;
use crate::test_app::KEY;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

#[tokio::test]
async fn schemathesis_gets_only_documented_responses() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schemathesis = root.join(".venv/schemathesis/bin/schemathesis");
    assert!(schemathesis.exists(), "{} is missing: `make test` installs it", schemathesis.display());
    // Schemathesis expects no replays, so each request comes after the previous key has expired.
    let api = HttpApi::start(Duration::from_hours(25)).await;
    let mut run = Command::new(schemathesis)
        // Its output, including a record of each call, is written to target/.
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .arg("--config-file")
        .arg(root.join("tools/schemathesis/schemathesis.toml"))
        .arg("run")
        .arg(root.join("openapi.yaml"))
        .args(["--url", &api.url(), "--continue-on-failure", "--report=har", "--report-har-path=schemathesis.har"])
        .env("API_KEY", KEY)
        .env("PYTHONPATH", root.join("tools/schemathesis"))
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .kill_on_drop(true)
        .spawn()
        .expect("schemathesis starts");
    let status = api.serve_until(run.wait()).await.expect("schemathesis ends");
    assert!(status.success(), "{status}: the output above lists the failures");
    let statuses = api.statuses.take();
    println!("responses by status: {statuses:?}");
    for status in [200, 202, 400, 401, 405, 415, 422] {
        assert!(statuses.contains_key(&status), "no response had the status {status}");
    }
    // Checks the messages against the schema.
    api.test.aws.drain().await;
}
