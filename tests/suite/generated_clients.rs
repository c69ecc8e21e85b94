//! Generates clients from openapi.yaml, compiles them strictly, and sends events with them to the function.

use crate::http_api::HttpApi;
use crate::test_app::KEY;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The file of a tool that `make test` installs.
fn tool(path: &str) -> PathBuf {
    let tool = root().join(".venv").join(path);
    assert!(tool.exists(), "{} is missing: `make test` installs it", tool.display());
    tool
}

/// An empty directory with copies of files of `tests/generated_clients/`.
fn directory(name: &str, files: &[&str]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // It does not exist in the first run.
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).expect("the directory is created");
    for file in files {
        std::fs::copy(root().join("tests/generated_clients").join(file), directory.join(file)).expect("a copy");
    }
    directory
}

async fn run(command: &mut Command) {
    let output = command.kill_on_drop(true).output().await.expect("the command starts");
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{:?}:\n{text}", command.as_std());
}

/// Runs `client` with the URL and a key of the function. Every event that the clients send must be in the
/// queue, with its own members.
async fn send(mut client: Command) {
    let api = HttpApi::start(Duration::ZERO).await;
    client.args([api.url().as_str(), KEY]);
    api.serve_until(run(&mut client)).await;
    let events = api.test.aws.drain_events().await;
    let mut events: Vec<Value> = events.into_iter().map(|(_, event)| event).collect();
    events.sort_by_key(|event| event["external_user_id"].to_string());
    let users = ["batch-0", "batch-1", "bulk-0", "gzip-0", "single-0"];
    let expected = users.map(|user| {
        json!({ "external_user_id": user, "name": "user_signed_up", "properties": { "plan": "trial" },
            "source": "checkout" })
    });
    assert_eq!(events, expected);
}

#[tokio::test]
async fn a_generated_python_client_sends_events() {
    let directory = directory("python-client", &["send.py"]);
    let bin = tool("openapi-python-client/bin");
    // The generator formats its output with ruff.
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut generate = Command::new(bin.join("openapi-python-client"));
    generate.args(["generate", "--fail-on-warning", "--meta", "none", "--output-path", "client", "--path"]);
    generate.arg(root().join("openapi.yaml")).arg("--config").arg(root().join("tests/generated_clients/python.yaml"));
    run(generate.current_dir(&directory).env("PATH", path)).await;
    let mut check = Command::new(bin.join("mypy"));
    // `client/client.py` is the same for every API.
    check.args(["--strict", "--follow-imports=silent", "client/models", "client/api", "client/types.py", "send.py"]);
    run(check.current_dir(&directory)).await;
    let mut client = Command::new(bin.join("python"));
    client.arg("send.py").current_dir(&directory);
    send(client).await;
}

#[tokio::test]
async fn a_generated_typescript_client_sends_events() {
    let directory = directory("typescript-client", &["send.ts", "tsconfig.json"]);
    let modules = tool("openapi-typescript/node_modules");
    // Node and tsc look for packages beside the file that imports them.
    std::os::unix::fs::symlink(&modules, directory.join("node_modules")).expect("a link");
    std::fs::write(directory.join("package.json"), r#"{"type":"module"}"#).expect("written");
    let mut generate = Command::new(modules.join(".bin/openapi-typescript"));
    run(generate.arg(root().join("openapi.yaml")).args(["--output", "schema.ts"]).current_dir(&directory)).await;
    run(Command::new(modules.join(".bin/tsc")).args(["--project", "."]).current_dir(&directory)).await;
    let mut client = Command::new("node");
    client.arg("send.js").current_dir(&directory);
    send(client).await;
}
